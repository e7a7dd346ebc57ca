"""The messages of the ZeroMQ protocol, pure: headers of clients in, headers of the router out.

docs/zeromq.md has their meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from router.errors import UNDECODABLE, ErrorKind, RequestError
from router.telemetry.records import Endpoint

VERSION: Final = 1
"""Of the protocol."""
CREDIT_FIRST: Final = 256
"""Events a stream may send before its client has granted any."""
CREDIT_MAX: Final = 4096
"""Events one stream, or all streams of one client together, may have under way."""
HEADER_BYTES_MAX: Final = 16 * 1024
FRAMES_MAX: Final = 3
"""Identity, header, body."""
_TAGS_MAX: Final = 64
_ID_CHARS_MAX: Final = 64
_SHOWN_CHARS_MAX: Final = 200
"""Of a client's own values in an error."""

encode: Final = msgspec.msgpack.Encoder().encode
API_VERBS: Final = {"chat": Endpoint.CHAT, "completion": Endpoint.COMPLETION, "embeddings": Endpoint.EMBEDDINGS}
NEAREST_VERB: Final = "nearest"
OTHER_VERBS: Final = frozenset({"models", "cancel", "credit", "ping"})
_NEED_NO_ID: Final = frozenset({"credit", "ping"})
_TRACE_NAMES: Final = ("traceparent", "tracestate", "baggage")

Mark = tuple[int, int, int]
"""One event in an events message: kind, when it was read (ns), bytes."""


class Header(msgspec.Struct, forbid_unknown_fields=True):
    """The header of a client's message."""

    v: int
    verb: str
    id: str = ""
    credit: int = CREDIT_FIRST
    host: str = ""
    request_class: str = ""
    deadline_ms: int | float | None = None
    tags: dict[str, str] = {}
    traceparent: str = ""
    tracestate: str = ""
    baggage: str = ""
    grants: list[tuple[str, int]] = []
    cache: Literal["", "on", "off"] = ""
    key: str = ""


class _Name(msgspec.Struct):
    """What must be known of a message that cannot be understood, to answer it."""

    v: Any = None
    id: Any = None


_decode_header: Final = msgspec.msgpack.Decoder(Header).decode
_decode_name: Final = msgspec.msgpack.Decoder(_Name).decode


def accepted(request_id: str, request_seq: int, generation_ns: int) -> bytes:
    """Return the header that says that a request is in the ring."""
    return encode((VERSION, "accepted", request_id, request_seq, generation_ns))


def events(request_id: str, first_index: int, marks: Sequence[Mark]) -> bytes:
    """Return the header of one or more events."""
    return encode((VERSION, "events", request_id, first_index, marks))


def done(
    request_id: str,
    *,
    status: int,
    host: str,
    event_count: int,
    usage: Any,
    stamps: Sequence[int],
    levers: Sequence[str] = (),
    model: str = "",
    headers: dict[str, str] | None = None,
) -> bytes:
    """Return the header of the end of an answer.

    ``levers`` are told where there are any, ``model`` where another one answered than was asked for, ``headers`` are
    further lines of an HTTP answer's head.
    """
    more = {"status": status, "host": host, "events": event_count, "usage": usage, "stamps": stamps}
    if levers:
        more["levers"] = levers
    if model:
        more["model"] = model
    if headers:
        more["headers"] = headers
    return encode((VERSION, "done", request_id, more))


def error(request_id: str, status: int, retry_after_s: int, event_count: int) -> bytes:
    """Return the header of an error; its body is OpenAI's error object."""
    more = {"status": status, "retry_after_s": retry_after_s, "events": event_count}
    return encode((VERSION, "error", request_id, more))


def pong(request_id: str, router_version: str, generation_ns: int, now: int) -> bytes:
    """Return the answer to a ping."""
    more = {"version": router_version, "generation": generation_ns, "t_ns": now}
    return encode((VERSION, "pong", request_id, more))


ALIVE: Final = encode((VERSION, "alive", ""))


def _bad(text: str, param: str | None = None) -> RequestError:
    return RequestError(ErrorKind.BAD_MESSAGE, text, param)


def read_header(frames: Sequence[bytes]) -> Header:
    """Return the header of a message; raises :class:`RequestError` that says what is wrong with it."""
    raw = frames[1] if len(frames) > 1 else b""
    if not raw:
        raise _bad("the header is empty: REQ sockets put an empty frame first, use a DEALER socket")
    if len(frames) > FRAMES_MAX:
        raise _bad(f"a message has one or two frames, header and body, not {len(frames) - 1} or more")
    if len(raw) > HEADER_BYTES_MAX:
        raise _bad(f"the header has {len(raw)} bytes, at most {HEADER_BYTES_MAX} are allowed")
    header = _decode(raw)
    if header.verb not in API_VERBS and header.verb not in OTHER_VERBS and header.verb != NEAREST_VERB:
        known = ", ".join(sorted({*API_VERBS, *OTHER_VERBS, NEAREST_VERB}))
        raise _bad(f"unknown verb {header.verb[:_SHOWN_CHARS_MAX]!r} (verbs: {known})", "verb")
    if not _is_id(header.id) and (header.id or header.verb not in _NEED_NO_ID):
        raise _bad("id must be 1 to 64 printable ASCII characters", "id")
    _check_wishes(header)
    return header


def _decode(raw: bytes) -> Header:
    version: Any = None
    try:
        version = _decode_name(raw).v
        if version == VERSION:
            return _decode_header(raw)
    except msgspec.ValidationError as error:
        raise _bad(f"the header: {str(error)[:_SHOWN_CHARS_MAX]}") from None
    except UNDECODABLE as error:
        raise _bad(f"the header is not MessagePack: {error}") from None
    # Not the repr of just anything: that of what could barely be decoded is nested too deeply.
    shown = repr(version)[:_SHOWN_CHARS_MAX] if isinstance(version, int | float | str | None) else "of another type"
    raise _bad(f"protocol version {shown} is not spoken here, {VERSION} is", "v")


def _check_wishes(header: Header) -> None:
    """Check the values that go with a request."""
    if not 1 <= header.credit <= CREDIT_MAX:
        raise _bad(f"credit must be 1 to {CREDIT_MAX}, not {header.credit}", "credit")
    if len(header.tags) > _TAGS_MAX:
        raise _bad(f"{len(header.tags)} tags, at most {_TAGS_MAX} are allowed", "tags")
    for name in _TRACE_NAMES:  # they become header lines of the request to the host: a line end would add another one
        value = getattr(header, name)
        if not (value.isascii() and value.isprintable()):
            raise _bad(f"{name} must be printable ASCII, as in a header line", name)


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= _ID_CHARS_MAX and value.isascii() and value.isprintable()


def id_of(frames: Sequence[bytes]) -> str:
    """Return the id in a header, empty if it cannot be read."""
    raw = frames[1] if len(frames) > 1 else b""
    if len(raw) > HEADER_BYTES_MAX:  # a header of megabytes would be decoded for a second and more
        return ""
    try:
        name = _decode_name(raw).id
    except UNDECODABLE:
        return ""
    return name if _is_id(name) else ""


def as_headers(header: Header) -> dict[bytes, bytes]:
    """Return tags, trace, class and deadline of a header as the HTTP headers that mean the same."""
    headers: dict[bytes, bytes] = {}
    for name, value in header.tags.items():
        headers[b"x-ringrouter-tag-" + name.encode()] = value.encode()
    for name in _TRACE_NAMES:
        if value := getattr(header, name):
            headers[name.encode()] = value.encode()
    if header.request_class:
        headers[b"x-ringrouter-class"] = header.request_class.encode()
    if header.deadline_ms is not None:
        headers[b"x-ringrouter-deadline-ms"] = b"%f" % header.deadline_ms
    if header.cache:
        headers[b"x-ringrouter-cache"] = header.cache.encode()
    return headers
