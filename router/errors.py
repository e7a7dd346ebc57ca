"""The errors of the router, each with the HTTP status and the words OpenAI's clients understand.

An :class:`ErrorKind` is a small number in records, a ``type`` and ``code`` on the wire, and a status. OpenAI's shape:
``{"error": {"message", "type", "param", "code"}}`` (https://platform.openai.com/docs/guides/error-codes).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import msgspec

from router.masking import masked

UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding raises: the last two for text that is not UTF-8 and for a thousand nested brackets."""


class ConfigError(ValueError):
    """The configuration cannot be used; the message names key, value and what is allowed.

    What looks like a key is taken out of it: somebody may have pasted one where a name belongs.
    """

    def __init__(self, message: str) -> None:
        super().__init__(masked(message))


class ErrorKind(IntEnum):
    """Why a request failed; the number stands in the done record."""

    NONE = 0
    BAD_REQUEST = 1
    HEAD_TOO_LARGE = 2
    BODY_TOO_LARGE = 3
    MODEL_NOT_FOUND = 4
    NOT_FOUND = 5
    METHOD_NOT_ALLOWED = 6
    TOO_MANY_CONNECTIONS = 9
    OVERLOADED = 10
    """In flight or waiting room full."""
    NO_HOST = 11
    """No healthy host has the model."""
    QUEUE_TIMEOUT = 12
    CONNECT_FAILED = 13
    CONNECT_TIMEOUT = 14
    HOST_CLOSED = 15
    """The host closed before its answer was complete."""
    HOST_PROTOCOL = 16
    """The host's bytes are not HTTP or not an answer of its kind."""
    HOST_STATUS = 17
    """The host answered with an error status."""
    HOST_ERROR_EVENT = 18
    """An error object in the host's stream."""
    NO_FINISH = 19
    """The host ended the stream without a finish_reason."""
    FIRST_TOKEN_TIMEOUT = 20
    IDLE_TIMEOUT = 21
    TOTAL_TIMEOUT = 22
    HEAD_TIMEOUT = 23
    CLIENT_GONE = 24
    CLIENT_STALLED = 25
    ANSWER_TOO_LARGE = 26
    SHUTTING_DOWN = 27
    PIPELINE_TOO_LONG = 28
    BAD_MESSAGE = 29
    """A ZeroMQ message that is not of the protocol."""
    BAD_CREDIT = 30
    DUPLICATE_REQUEST = 31
    CANCELLED = 32
    """The client said so."""
    INTERNAL = 33
    """A fault of the router's own."""
    HOST_DRAINED = 34
    """The host was taken out of service, and the time for what ran there is over."""
    DEADLINE_UNREACHABLE = 35
    """Refused at once: its first token is not to be expected by its deadline."""
    DEADLINE_EXCEEDED = 36
    """Its deadline passed while it waited for a host."""
    UNAUTHORIZED = 37
    """No key, or one that is not known."""
    FORBIDDEN = 38
    """The key does not allow it."""
    RATE_LIMITED = 39
    """A limit of the key is reached."""


@dataclass(frozen=True, slots=True)
class WireError:
    """How an error kind looks to an HTTP client."""

    status: int
    type: str
    code: str


_INVALID: Final = "invalid_request_error"
_HOST: Final = "host_error"

WIRE: Final[dict[ErrorKind, WireError]] = {
    ErrorKind.BAD_REQUEST: WireError(400, _INVALID, "bad_request"),
    ErrorKind.HEAD_TOO_LARGE: WireError(431, _INVALID, "head_too_large"),
    ErrorKind.BODY_TOO_LARGE: WireError(413, _INVALID, "body_too_large"),
    ErrorKind.MODEL_NOT_FOUND: WireError(404, _INVALID, "model_not_found"),
    ErrorKind.NOT_FOUND: WireError(404, _INVALID, "not_found"),
    ErrorKind.METHOD_NOT_ALLOWED: WireError(405, _INVALID, "method_not_allowed"),
    ErrorKind.TOO_MANY_CONNECTIONS: WireError(503, "overloaded_error", "too_many_connections"),
    ErrorKind.OVERLOADED: WireError(429, "overloaded_error", "overloaded"),
    ErrorKind.NO_HOST: WireError(503, _HOST, "no_host"),
    ErrorKind.QUEUE_TIMEOUT: WireError(503, "timeout_error", "queue_timeout"),
    ErrorKind.CONNECT_FAILED: WireError(502, _HOST, "connect_failed"),
    ErrorKind.CONNECT_TIMEOUT: WireError(504, "timeout_error", "connect_timeout"),
    ErrorKind.HOST_CLOSED: WireError(502, _HOST, "host_closed"),
    ErrorKind.HOST_PROTOCOL: WireError(502, _HOST, "host_protocol"),
    ErrorKind.HOST_STATUS: WireError(502, _HOST, "host_status"),
    ErrorKind.HOST_ERROR_EVENT: WireError(502, _HOST, "host_error_event"),
    ErrorKind.NO_FINISH: WireError(502, _HOST, "no_finish_reason"),
    ErrorKind.FIRST_TOKEN_TIMEOUT: WireError(504, "timeout_error", "first_token_timeout"),
    ErrorKind.IDLE_TIMEOUT: WireError(504, "timeout_error", "idle_timeout"),
    ErrorKind.TOTAL_TIMEOUT: WireError(504, "timeout_error", "total_timeout"),
    ErrorKind.HEAD_TIMEOUT: WireError(408, "timeout_error", "head_timeout"),
    ErrorKind.CLIENT_GONE: WireError(499, "client_error", "client_gone"),
    ErrorKind.CLIENT_STALLED: WireError(499, "client_error", "client_stalled"),
    ErrorKind.ANSWER_TOO_LARGE: WireError(502, _HOST, "answer_too_large"),
    ErrorKind.SHUTTING_DOWN: WireError(503, "overloaded_error", "shutting_down"),
    ErrorKind.PIPELINE_TOO_LONG: WireError(400, _INVALID, "pipeline_too_long"),
    ErrorKind.BAD_MESSAGE: WireError(400, _INVALID, "bad_message"),
    ErrorKind.BAD_CREDIT: WireError(400, _INVALID, "bad_credit"),
    ErrorKind.DUPLICATE_REQUEST: WireError(409, _INVALID, "duplicate_request"),
    ErrorKind.CANCELLED: WireError(499, "client_error", "cancelled"),
    ErrorKind.INTERNAL: WireError(500, "internal_error", "internal_error"),
    ErrorKind.HOST_DRAINED: WireError(503, _HOST, "host_drained"),
    ErrorKind.DEADLINE_UNREACHABLE: WireError(503, "overloaded_error", "deadline_unreachable"),
    ErrorKind.DEADLINE_EXCEEDED: WireError(503, "timeout_error", "deadline_exceeded"),
    ErrorKind.UNAUTHORIZED: WireError(401, _INVALID, "invalid_api_key"),
    ErrorKind.FORBIDDEN: WireError(403, "permission_error", "forbidden"),
    ErrorKind.RATE_LIMITED: WireError(429, "rate_limit_error", "rate_limit_exceeded"),
}

assert set(WIRE) == set(ErrorKind) - {ErrorKind.NONE}


class RequestError(Exception):
    """A request that cannot be served: its kind, what to say, the field that is at fault (``param``), and after how
    many seconds to ask again where that is known.
    """

    def __init__(self, kind: ErrorKind, message: str, param: str | None = None, *, retry_after_s: int = 0) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


def error_object(kind: ErrorKind, message: str, param: str | None = None, delivered: int | None = None) -> bytes:
    """Return the JSON body of an error in OpenAI's shape.

    ``delivered``, in an event of a broken stream, is how many content events came before it.
    """
    wire = WIRE[kind]
    error: dict[str, object] = {"message": message, "type": wire.type, "param": param, "code": wire.code}
    if delivered is not None:
        error["delivered_events"] = delivered
    return msgspec.json.encode({"error": error})
