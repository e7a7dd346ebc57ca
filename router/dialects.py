"""The APIs of model hosts beyond OpenAI's chats, completions and embeddings, as far as the router must speak them.

Requests to their paths pass through; only where the router answers in a host's place, with an error, it must do so in
the words of the path's API. One table tells which path belongs to which. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from router.errors import WIRE, ErrorKind, error_object
from router.telemetry.records import Endpoint

_encode: Final = msgspec.json.encode
_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Anthropic's error types by status (https://platform.claude.com/docs/en/api/errors); else invalid_request_error."""


class Failure(NamedTuple):
    """What is to be said of a request that failed: in the body of an error answer, or in its stream.

    ``content_count`` and ``event_count`` are the events that came before it, of a broken stream.
    """

    kind: ErrorKind
    message: str
    request_id: str
    param: str | None = None
    content_count: int = 0
    event_count: int = 0


class Dialect(NamedTuple):
    """How an API tells of errors, and what its streams are."""

    body: Callable[[Failure], bytes]
    """The body of an error answer."""
    event: Callable[[Failure], bytes]
    """The last event of a stream that breaks: whole, with its boundary."""
    lines: bool = False
    """Streams are lines of JSON, in which a comment has no place; else server-sent events."""
    streams_by_default: bool = False
    """A request that does not say ``stream`` is answered by one."""


def _openai_body(failure: Failure) -> bytes:
    return error_object(failure.kind, failure.message, failure.param)


def _openai_event(failure: Failure) -> bytes:
    return b"data: %b\n\n" % error_object(failure.kind, failure.message, failure.param, failure.content_count)


def _anthropic_body(failure: Failure) -> bytes:
    kind = _ANTHROPIC_TYPES.get(WIRE[failure.kind].status, "invalid_request_error")
    error = {"type": kind, "message": failure.message}
    return _encode({"type": "error", "error": error, "request_id": failure.request_id or None})


def _anthropic_event(failure: Failure) -> bytes:
    return b"event: error\ndata: %b\n\n" % _anthropic_body(failure)


def _responses_event(failure: Failure) -> bytes:
    error = {
        "type": "error",
        "code": WIRE[failure.kind].code,
        "message": failure.message,
        "param": failure.param,
        "sequence_number": failure.event_count,
    }
    return b"event: error\ndata: %b\n\n" % _encode(error)


def _ollama_body(failure: Failure) -> bytes:
    return _encode({"error": failure.message})


def _ollama_event(failure: Failure) -> bytes:
    return _ollama_body(failure) + b"\n"


OPENAI: Final = Dialect(_openai_body, _openai_event)
ANTHROPIC: Final = Dialect(_anthropic_body, _anthropic_event)
RESPONSES: Final = Dialect(_openai_body, _responses_event)
OLLAMA: Final = Dialect(_ollama_body, _ollama_event, lines=True)
OLLAMA_STREAMING: Final = OLLAMA._replace(streams_by_default=True)

_PREFIXES: Final = (
    ("/v1/messages/count_tokens", ANTHROPIC, Endpoint.TOKENIZE),
    ("/v1/messages", ANTHROPIC, Endpoint.MESSAGES),
    ("/v1/responses", RESPONSES, Endpoint.RESPONSES),
    ("/v1/rerank", OPENAI, Endpoint.RERANK),
    ("/v2/rerank", OPENAI, Endpoint.RERANK),
    ("/rerank", OPENAI, Endpoint.RERANK),
    ("/v1/score", OPENAI, Endpoint.RERANK),
    ("/score", OPENAI, Endpoint.RERANK),
    ("/tokenize", OPENAI, Endpoint.TOKENIZE),
    ("/detokenize", OPENAI, Endpoint.TOKENIZE),
    ("/v1/tokenize", OPENAI, Endpoint.TOKENIZE),
    ("/v1/detokenize", OPENAI, Endpoint.TOKENIZE),
    ("/api/chat", OLLAMA_STREAMING, Endpoint.OTHER),
    ("/api/generate", OLLAMA_STREAMING, Endpoint.OTHER),
    ("/api/", OLLAMA, Endpoint.OTHER),
)
"""By how a path begins; the first that fits stands. Any other path is of OpenAI's kind."""


def _row(path: str) -> tuple[Dialect, Endpoint]:
    for prefix, dialect, endpoint in _PREFIXES:
        if path.startswith(prefix):
            return dialect, endpoint
    return OPENAI, Endpoint.OTHER


def dialect_of(path: str) -> Dialect:
    """Return the dialect of a path."""
    return _row(path)[0]


def endpoint_of(path: str) -> Endpoint:
    """Return how requests to a path that passes through are counted."""
    return _row(path)[1]


def in_stream(dialect: Dialect, *, lines: bool) -> Dialect:
    """Return the dialect of errors within a stream that has begun: what its bytes are decides, not the path alone."""
    if dialect.lines == lines:
        return dialect
    return OLLAMA if lines else OPENAI
