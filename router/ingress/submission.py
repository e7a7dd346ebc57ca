"""From a decoded body to a request in the ring: what every ingress does alike."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final
from zlib import crc32

from router.errors import ErrorKind, RequestError
from router.ingress.wishes import NO_WISHES, model_for, settle, with_metadata
from router.messages import decode_body
from router.request import new_request
from router.telemetry.counters import Counter
from router.telemetry.records import Endpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.ingress.wishes import Wishes
    from router.loop import Loop
    from router.request import Egress, Request

U32: Final = 0xFFFFFFFF
F32: Final = 3.0e38
"""What the record's fields hold: the host judges the client's values, not the router."""
_MODELS_SHOWN_MAX: Final = 20
_REFUSALS: Final = frozenset({
    ErrorKind.OVERLOADED,
    ErrorKind.SHUTTING_DOWN,
    ErrorKind.NO_HOST,
    ErrorKind.RATE_LIMITED,
})  # fmt: skip
_EMBEDDINGS: Final = Endpoint.EMBEDDINGS  # a member of an enum is looked up anew each time
_REQUESTS: Final = Counter.REQUESTS
_TARGETS: Final = (b"", b"/v1/chat/completions", b"/v1/completions", b"/v1/embeddings")
"""By the number of the endpoint."""


class RequestIds:
    """Makes ids for requests whose clients gave none: unlike those of any other router."""

    def __init__(self) -> None:
        self._prefix = id_prefix()
        self._count = 0

    def next(self) -> str:
        """Return a new id."""
        self._count += 1
        return f"{self._prefix}{self._count}"


def id_prefix() -> str:
    """Return what the ids begin with that one maker of ids makes."""
    return f"rr-{os.urandom(4).hex()}-"


def make_request(
    loop: Loop,
    egress: Egress,
    endpoint: Endpoint,
    request_id: str,
    body: bytes,
    headers: Mapping[bytes, bytes],
    recv_ns: int,
    body_ns: int,
    *,
    streams_by_default: bool,
    wishes: Wishes | None = None,
) -> Request:
    """Return the request that a body asks for; raises :class:`RequestError` that names what is wrong with it.

    ``streams_by_default``: an answer is streamed whose body does not say. ``wishes``: what the head says.
    """
    fields = decode_body(endpoint, body)
    name = fields.model
    if fields.metadata:
        wishes = with_metadata(wishes, headers, fields.metadata)
    if wishes is not None and wishes.feature:
        name = model_for(loop, wishes, endpoint, name)
    model = loop.by_name.get(name)
    if model is None:
        raise unknown_model(loop, name)
    request = new_request()
    request.egress = egress
    request.endpoint = endpoint
    request.request_id = request_id
    request.body = body
    request.fields = fields
    request.headers = headers
    request.model = model
    request.recv = recv_ns
    request.body_ns = body_ns
    request.target = _TARGETS[endpoint]
    request.model_id = model.model_id
    if endpoint is not _EMBEDDINGS:
        stream = fields.stream
        if stream is not True and stream is not False:
            stream = streams_by_default or model.config.stream_by_default
        request.stream = stream
        request.fold = not stream and model.folds(log_probabilities=bool(fields.logprobs))
    # What the records tell of a body, cut to what they can hold.
    max_tokens = fields.max_completion_tokens if fields.max_completion_tokens is not None else fields.max_tokens
    if max_tokens:
        request.max_tokens = int(max_tokens) if 0 <= max_tokens <= U32 else U32 if max_tokens > 0 else 0
    if fields.n:
        request.choices_asked = min(max(fields.n, 1), 0xFFFF)
    temperature = fields.temperature
    if temperature:
        request.temperature = temperature if -F32 <= temperature <= F32 else F32 if temperature > 0 else -F32
    if wishes is not None or model.has_rules:
        settle(loop, request, wishes or NO_WISHES)
    return request


def submit(loop: Loop, request: Request, client_number: int) -> None:
    """Publish a request and have it drained; raises :class:`RequestError` when there is no room.

    ``client_number`` tells in the request record which connection of this router it came by.
    """
    loop.submit(request, *record_words(request, client_number), crc32(request.request_id.encode()))
    loop.counters.add(_REQUESTS)


def record_words(request: Request, client_number: int) -> tuple[int, int]:
    """Return the fourth and the fifth word of the request record."""
    word4 = request.model.model_id | request.endpoint << 16 | request.stream << 24 | client_number << 32
    word5 = (request.body_bytes or len(request.body)) & U32 | request.max_tokens << 32  # no body is nearly as long
    return word4, word5


def is_refusal(error: RequestError) -> bool:
    """Return whether a request could have been served at another time."""
    return error.kind in _REFUSALS


def unknown_model(loop: Loop, name: str) -> RequestError:
    """Return the error for a model that no host has, as far as is known."""
    waiting = [h.name for h in loop.hosts if not h.probed]
    if waiting:
        text = f"model {name!r} is not known yet: no answer from {', '.join(waiting)} so far"
        return RequestError(ErrorKind.NO_HOST, text, "model")
    known = ", ".join(sorted(loop.by_name)[:_MODELS_SHOWN_MAX]) or "none"
    return RequestError(
        ErrorKind.MODEL_NOT_FOUND, f"model {name[:200]!r} is not served here (models: {known})", "model"
    )


def trace_headers(headers: Mapping[bytes, bytes]) -> bytes:
    """Return the lines of the client's trace for hosts that make use of it."""
    lines = b"traceparent: %b\r\n" % headers[b"traceparent"][:512]
    if b"tracestate" in headers:
        lines += b"tracestate: %b\r\n" % headers[b"tracestate"][:512]
    return lines
