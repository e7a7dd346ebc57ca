"""What clients send: decoded as far as the router must know it, everything else passed on untouched.

Only the fields below are looked at; messages, tools and whatever else a body holds go to the host byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, cast

import msgspec
from msgspec import UNSET, Raw, UnsetType

from router import native
from router.errors import UNDECODABLE, ErrorKind, RequestError
from router.telemetry.records import Endpoint


class StreamOptions(msgspec.Struct):
    """What the router reads of ``stream_options``."""

    include_usage: bool | None = None


class RequestBody(msgspec.Struct, frozen=True):
    """The fields of a request that the router reads; UNSET where the client did not give one. Requests share them."""

    model: str
    stream: bool | UnsetType | None = UNSET
    stream_options: StreamOptions | UnsetType | None = UNSET
    max_tokens: int | float | None = None
    max_completion_tokens: int | float | None = None
    temperature: int | float | None = None
    n: int | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    return_progress: bool | UnsetType | None = UNSET
    logprobs: Any = None


class _Chat(RequestBody, frozen=True):
    messages: Raw = Raw(b"")
    tools: Raw = Raw(b"")


class _Completion(RequestBody, frozen=True):
    prompt: Raw = Raw(b"")


class _Embeddings(RequestBody, frozen=True):
    input: Raw = Raw(b"")


class PassBody(msgspec.Struct):
    """What the router reads of a body that passes through. What is of a wrong type is for the host to judge."""

    model: str | None = None
    stream: Any = None
    user: Any = None
    metadata: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    n_predict: Any = None
    temperature: Any = None
    tools: Raw = Raw(b"")
    messages: Raw = Raw(b"")
    input: Raw = Raw(b"")

    def token_limit(self) -> int | float:
        """Return the most tokens that the answer may have, 0 where the body does not say."""
        for limit in (self.max_tokens, self.max_completion_tokens, self.max_output_tokens, self.n_predict):
            if isinstance(limit, int | float) and not isinstance(limit, bool):
                return limit
        return 0


class _LeverFields(msgspec.Struct):
    max_tokens: Any = UNSET
    max_completion_tokens: Any = UNSET
    max_output_tokens: Any = UNSET
    n_predict: Any = UNSET
    temperature: Any = UNSET


_CHAT: Final = Endpoint.CHAT
_DECODERS: Final = (
    None,
    (msgspec.json.Decoder(_Chat).decode, "messages"),
    (msgspec.json.Decoder(_Completion).decode, "prompt"),
    (msgspec.json.Decoder(_Embeddings).decode, "input"),
)
"""By the number of the endpoint: to hash a member of an enum is a call of Python."""
assert (Endpoint.CHAT, Endpoint.COMPLETION, Endpoint.EMBEDDINGS) == (1, 2, 3)
_split_body: Final[Callable[[bytes], tuple[bytes, int, int] | None] | None] = native.scan and native.scan.split_body
"""Cuts the value of ``messages`` out of a body of the usual form; there is none without native code."""
_known_rests: Final[dict[bytes, _Chat]] = {}
"""Chats by their bodies without the messages: clients repeat themselves to the byte, but for what they ask. Of these
:func:`messages_of` finds the messages.
"""
_NOT_KEPT: Final = Raw(b"")
_REST_BYTES_MAX: Final = 512
_RESTS_MAX: Final = 512
"""At most 1 MB with what is decoded; then all are forgotten."""
_NULL, _ARRAY = b"n"[0], b"["[0]
_decode_pass_body: Final = msgspec.json.Decoder(PassBody).decode
_decode_lever_fields: Final = msgspec.json.Decoder(_LeverFields).decode
_decode_fields: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_encode: Final = msgspec.json.Encoder().encode
_PATH: Final = re.compile(r" - at `\$\.?([^`]*)`")


def decode_body(endpoint: Endpoint, body: bytes) -> RequestBody:
    """Decode a request body; raises :class:`RequestError` that names the field, what it is and what it should be."""
    rest = b""
    if endpoint is _CHAT and _split_body is not None and (found := _split_body(body)) is not None:
        rest = found[0]
        known = _known_rests.get(rest)
        if known is not None:
            return known
    decoded = plain_decode_body(endpoint, body)
    if rest:
        _remember(rest, cast("_Chat", decoded))
    return decoded


def _remember(rest: bytes, decoded: _Chat) -> None:
    """Keep what is decoded of a chat but for its messages, unless it says whose it is or has tools of its own."""
    if len(rest) > _REST_BYTES_MAX or decoded.user or decoded.metadata or first_byte(decoded.tools) >= 0:
        return
    if len(_known_rests) >= _RESTS_MAX:
        _known_rests.clear()
    _known_rests[rest] = msgspec.structs.replace(decoded, messages=_NOT_KEPT)


def shared_messages(fields: object, body: bytes) -> tuple[int, int] | None:
    """Return where the messages of a chat begin and end whose fields others share, ``None`` for any other request."""
    if not isinstance(fields, _Chat) or fields.messages is not _NOT_KEPT or _split_body is None:
        return None
    found = _split_body(body)
    return None if found is None else found[1:]


def messages_of(body: bytes) -> memoryview:
    """Return the messages in the body of a chat that was decoded."""
    found = _split_body(body) if _split_body is not None else None
    if found is not None:
        return memoryview(body)[found[1] : found[2]]
    return memoryview(cast("_Chat", plain_decode_body(_CHAT, body)).messages)


def plain_decode_body(endpoint: Endpoint, body: bytes) -> RequestBody:
    """As :func:`decode_body`, with nothing remembered of other bodies."""
    decode, content = _DECODERS[endpoint]  # type: ignore[misc]  # none of the others is decoded here
    try:
        if not body.isascii():
            body.decode()
        decoded: RequestBody = decode(body)
    except UNDECODABLE as error:
        raise _body_error(error, body) from None
    first = first_byte(getattr(decoded, content))
    if first == -1 or first == _NULL:  # noqa: PLR1714 - a set would be built each time
        raise RequestError(ErrorKind.BAD_REQUEST, f"{content} is missing", content)
    if endpoint is _CHAT and first != _ARRAY:
        given = bytes(memoryview(getattr(decoded, content))[:20]).decode(errors="replace")
        raise RequestError(ErrorKind.BAD_REQUEST, f"messages must be an array, not {given}", content)
    return decoded


def plain_first_byte(data: Any) -> int:
    """Return the first byte of anything with a buffer, -1 where it is empty."""
    view = memoryview(data)
    return view[0] if view else -1


first_byte: Final[Callable[[Any], int]] = plain_first_byte if native.steps is None else native.steps.first_byte
"""As :func:`plain_first_byte`, in one step where there is native code."""


def decode_pass_body(body: bytes) -> PassBody:
    """Decode the body of a request that passes through; raises :class:`RequestError` unless it is a JSON object."""
    try:
        if not body.isascii():
            body.decode()
        decoded = _decode_pass_body(body)
    except UNDECODABLE as error:
        raise _body_error(error, body) from None
    if not isinstance(decoded.user, str):
        decoded.user = None
    if not isinstance(decoded.metadata, dict):
        decoded.metadata = None
    return decoded


def _body_error(error: Exception, body: bytes) -> RequestError:
    """Return what is wrong with a body that cannot be decoded."""
    if isinstance(error, UnicodeDecodeError):
        text = f"the body is not UTF-8: byte {error.start} is invalid"
    elif isinstance(error, msgspec.ValidationError):
        return _field_error(str(error))
    elif isinstance(error, RecursionError):
        text = "the body is nested too deeply"
    else:
        text = f"the body is not JSON: {error}" if body else "the body is empty"
    return RequestError(ErrorKind.BAD_REQUEST, text)


def _field_error(message: str) -> RequestError:
    """Turn msgspec's ``Expected `str`, got `int` - at `$.model``` into an error that names the field."""
    found = _PATH.search(message)
    field = found[1] if found else None
    text = _PATH.sub("", message).replace("`", "")
    missing = re.search(r"missing required field (\w+)", text)
    if missing:
        return RequestError(ErrorKind.BAD_REQUEST, f"{missing[1]} is missing", missing[1])
    return RequestError(ErrorKind.BAD_REQUEST, f"{field or 'the body'}: {text[:1].lower()}{text[1:]}", field or None)


def lever_fields(body: bytes) -> dict[str, Any]:
    """Return those fields of a body, with their values, that :mod:`router.levers` may change; a null is a value.

    The body must be a JSON object. What else it holds is skipped, not decoded.
    """
    found = _decode_lever_fields(body)
    return {name: value for name in found.__struct_fields__ if (value := getattr(found, name)) is not UNSET}


def edit_body(body: bytes, add: dict[str, bytes], replace: dict[str, bytes]) -> bytes:
    """Return a JSON object with fields added (that are not in it) and replaced (that are); values are JSON.

    Added fields are spliced in behind the opening brace, so that a long prompt is not parsed again; a replacement
    decodes the object one level deep.
    """
    if not add and not replace:
        return body
    if replace:
        fields = _decode_fields(body)
        for name, value in (*replace.items(), *add.items()):
            fields[name] = Raw(value)
        return _encode(fields)
    return add_field(body, b",".join([b'"%b":%b' % (name.encode(), value) for name, value in add.items()]))


def add_field(body: bytes, field: bytes) -> bytes:
    """Return a JSON object that has at least one field with another in front of it; ``field`` is its name and value."""
    brace = body.index(b"{") + 1
    return body[:brace] + field + b"," + body[brace:]


TRUE: Final = b"true"
USAGE_OPTIONS: Final = b'{"include_usage":true}'


def with_usage(body: bytes) -> bytes:
    """Return the client's own ``stream_options`` with ``include_usage`` set to true."""
    options = _decode_fields(_decode_fields(body)["stream_options"])
    options["include_usage"] = Raw(TRUE)
    return _encode(options)
