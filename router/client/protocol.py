"""The messages of the ZeroMQ protocol (docs/zeromq.md), built and taken apart; pure."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, Literal, NamedTuple

import msgspec

VERSION: Final = 1
CREDIT: Final = 256
"""Events of a stream that may be under way before the first grant, unless told otherwise."""
CREDIT_MAX: Final = 4096
HEADER_BYTES_MAX: Final = 16 * 1024
GRANTS_MAX: Final = 128
"""Grants in one message: with ids of 64 characters its header stays below :data:`HEADER_BYTES_MAX`."""

Kind = Literal["head", "text", "reasoning", "tool_call", "finish", "usage", "comment", "error", "other"]
"""What an event is: ``head`` has no content (the role, an empty delta), ``comment`` is one of the host,
``other`` one that this version does not know."""
KINDS: Final[dict[int, Kind]] = {
    3: "head",
    4: "text",
    5: "reasoning",
    6: "tool_call",
    7: "finish",
    8: "usage",
    9: "comment",
    10: "error",
}
CONTENT_CODES: Final = frozenset({4, 5, 6})
CONTENT_KINDS: Final = frozenset({"text", "reasoning", "tool_call"})

_REQUEST_ID: Final = re.compile(r"[ -~]{1,64}")
_COUNTS: Final = ("prompt_tokens", "completion_tokens", "total_tokens")
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder().decode


class Request(NamedTuple):
    """What to ask a router, as the frames of one message, and how long it may take (0 = as long as it takes)."""

    request_id: str
    verb: str
    frames: list[bytes]
    credit: int
    streamed: bool
    timeout_ns: int
    first_token_timeout_ns: int


def request(
    verb: str,
    body: Mapping[str, Any] | None = None,
    *,
    request_id: str | None = None,
    credit: int = CREDIT,
    streamed: bool = False,
    timeout_s: float | None = None,
    first_token_timeout_s: float | None = None,
    **header: Mapping[str, str] | str | float | None,
) -> Request:
    """Build a request; ``header`` are the other keys of its header, left out where ``None``.

    Raises :class:`ValueError` for what the protocol does not allow and :class:`TypeError` for what is not JSON.
    """
    own_id = new_request_id() if request_id is None else request_id
    if not _REQUEST_ID.fullmatch(own_id):
        raise ValueError(f"request_id = {own_id!r}: expected 1 to 64 printable ASCII characters")
    if not 1 <= credit <= CREDIT_MAX:
        raise ValueError(f"credit = {credit}: expected 1 to {CREDIT_MAX}")
    if first_token_timeout_s is not None and not streamed:
        raise ValueError("first_token_timeout_s: expected a stream, a whole answer has no first token; use timeout_s")
    fields: dict[str, Any] = {"v": VERSION, "verb": verb, "id": own_id}
    if streamed:
        fields["credit"] = credit
    fields |= {name: value for name, value in header.items() if value is not None}
    head = _encode(fields)
    if len(head) > HEADER_BYTES_MAX:
        raise ValueError(f"tags and trace headers take {len(head)} bytes: expected at most {HEADER_BYTES_MAX}")
    frames = [head] if body is None else [head, msgspec.json.encode(body)]
    timeout_ns, first_ns = _ns(timeout_s, "timeout_s"), _ns(first_token_timeout_s, "first_token_timeout_s")
    return Request(own_id, verb, frames, credit, streamed, timeout_ns, first_ns)


def with_key(asked: Request, key: str) -> Request:
    """Return the request with the key that it is asked with in its header."""
    head = _encode({**_decode(asked.frames[0]), "key": key})
    return asked._replace(frames=[head, *asked.frames[1:]])


def new_request_id() -> str:
    """Return an id that no other request has."""
    return uuid.uuid4().hex[:20]


def _ns(seconds: float | None, name: str) -> int:
    if seconds is None:
        return 0
    if not seconds > 0:
        raise ValueError(f"{name} = {seconds}: expected more than 0 seconds, or None for no limit")
    return max(1, round(seconds * 1e9))


def cancel(request_id: str) -> list[bytes]:
    """Return the message that ends a request."""
    return [_encode({"v": VERSION, "verb": "cancel", "id": request_id})]


def credit_messages(grants: Iterable[tuple[str, int]]) -> Iterator[list[bytes]]:
    """Yield the messages that give credit back, as few as their size allows."""
    rest = iter(grants)
    while batch := list(islice(rest, GRANTS_MAX)):
        yield [_encode({"v": VERSION, "verb": "credit", "grants": batch})]


def decode_header(frame: bytes) -> list[Any]:
    """Return the header of a message from the router; raises :class:`ValueError` for what is none of this version."""
    header = _decode(frame)
    if not isinstance(header, list) or len(header) < 3:
        raise ValueError("a header is not an array of at least three elements")
    if header[0] != VERSION:
        raise ValueError(f"the router speaks version {header[0]!r} of the protocol, this client version {VERSION}")
    return header


def usage_of(value: Any) -> dict[str, Any] | None:
    """Return a host's ``usage``; ``None`` where it is no object or one of its three totals is no count."""
    if not isinstance(value, dict):
        return None
    totals = [value[name] for name in _COUNTS if value.get(name) is not None]
    return value if all(type(total) is int and total >= 0 for total in totals) else None


class _Error(msgspec.Struct):
    # Hosts put what they like into the other three; the words are worth having all the same.
    message: str = ""
    type: Any = None
    param: Any = None
    code: Any = None


class _ErrorBody(msgspec.Struct):
    error: _Error | str


def error_fields(body: bytes) -> dict[str, Any]:
    """Return message, type, param and code of an error body; the text itself where it is not OpenAI's object."""
    try:
        error = msgspec.json.decode(body, type=_ErrorBody).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        error = body.decode("utf-8", "replace")
    if isinstance(error, str):
        return {"message": error.strip() or "an error without words"}
    return {
        "message": error.message or "an error without words",
        "type": str(error.type or ""),
        "param": None if error.param is None else str(error.param),
        "code": str(error.code or ""),
    }
