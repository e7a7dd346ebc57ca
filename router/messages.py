"""What clients send: decoded as far as the router must know it, everything else passed on untouched.

Only the fields below are looked at; messages, tools and whatever else a body holds go to the host byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from router.errors import ErrorKind, RequestError
from router.telemetry.records import Endpoint


class StreamOptions(msgspec.Struct):
    """What the router reads of ``stream_options``."""

    include_usage: bool | None = None


class RequestBody(msgspec.Struct):
    """The fields of a request that the router reads; UNSET where the client did not give one."""

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


class _Chat(RequestBody):
    messages: Raw = Raw(b"")


class _Completion(RequestBody):
    prompt: Raw = Raw(b"")


class _Embeddings(RequestBody):
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

    def token_limit(self) -> int | float:
        """Return the most tokens that the answer may have, 0 where the body does not say."""
        for limit in (self.max_tokens, self.max_completion_tokens, self.max_output_tokens, self.n_predict):
            if isinstance(limit, int | float) and not isinstance(limit, bool):
                return limit
        return 0


_DECODERS: Final = {
    Endpoint.CHAT: (msgspec.json.Decoder(_Chat).decode, "messages"),
    Endpoint.COMPLETION: (msgspec.json.Decoder(_Completion).decode, "prompt"),
    Endpoint.EMBEDDINGS: (msgspec.json.Decoder(_Embeddings).decode, "input"),
}
_decode_pass_body: Final = msgspec.json.Decoder(PassBody).decode
_decode_fields: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_encode: Final = msgspec.json.Encoder().encode
_PATH: Final = re.compile(r" - at `\$\.?([^`]*)`")


def decode_body(endpoint: Endpoint, body: bytes) -> RequestBody:
    """Decode a request body; raises :class:`RequestError` that names the field, what it is and what it should be."""
    decode, content = _DECODERS[endpoint]
    decoded: RequestBody = _decoded(decode, body)
    given = bytes(memoryview(getattr(decoded, content))[:20])
    if not given or given == b"null":
        raise RequestError(ErrorKind.BAD_REQUEST, f"{content} is missing", content)
    if endpoint is Endpoint.CHAT and given[:1] != b"[":
        raise RequestError(
            ErrorKind.BAD_REQUEST, f"messages must be an array, not {given.decode(errors='replace')}", content
        )
    return decoded


def decode_pass_body(body: bytes) -> PassBody:
    """Decode the body of a request that passes through; raises :class:`RequestError` unless it is a JSON object."""
    decoded: PassBody = _decoded(_decode_pass_body, body)
    if not isinstance(decoded.user, str):
        decoded.user = None
    if not isinstance(decoded.metadata, dict):
        decoded.metadata = None
    return decoded


def _decoded(decode: Callable[[bytes], Any], body: bytes) -> Any:
    if not body.isascii():
        try:
            body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RequestError(ErrorKind.BAD_REQUEST, f"the body is not UTF-8: byte {error.start} is invalid") from None
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        raise _field_error(str(error)) from None
    except RecursionError:
        raise RequestError(ErrorKind.BAD_REQUEST, "the body is nested too deeply") from None
    except msgspec.DecodeError as error:
        raise RequestError(
            ErrorKind.BAD_REQUEST, f"the body is not JSON: {error}" if body else "the body is empty"
        ) from None


def _field_error(message: str) -> RequestError:
    """Turn msgspec's ``Expected `str`, got `int` - at `$.model``` into an error that names the field."""
    found = _PATH.search(message)
    field = found[1] if found else None
    text = _PATH.sub("", message).replace("`", "")
    missing = re.search(r"missing required field (\w+)", text)
    if missing:
        return RequestError(ErrorKind.BAD_REQUEST, f"{missing[1]} is missing", missing[1])
    return RequestError(ErrorKind.BAD_REQUEST, f"{field or 'the body'}: {text[:1].lower()}{text[1:]}", field or None)


def edit_body(body: bytes, add: dict[str, bytes], replace: dict[str, bytes]) -> bytes:
    """Return a JSON object with fields added (that are not in it) and replaced (that are); values are JSON.

    Added fields are spliced in behind the opening brace, so that a long prompt is not parsed again; a replacement
    decodes the object one level deep.
    """
    if replace:
        fields = _decode_fields(body)
        for name, value in (*replace.items(), *add.items()):
            fields[name] = Raw(value)
        return _encode(fields)
    brace = body.index(b"{") + 1
    extra = b",".join(b'"%b":%b' % (name.encode(), value) for name, value in add.items())
    return b"%b%b,%b" % (body[:brace], extra, body[brace:])


TRUE: Final = b"true"
USAGE_OPTIONS: Final = b'{"include_usage":true}'


def with_usage(body: bytes) -> bytes:
    """Return the client's own ``stream_options`` with ``include_usage`` set to true."""
    options = _decode_fields(_decode_fields(body)["stream_options"])
    options["include_usage"] = Raw(TRUE)
    return _encode(options)
