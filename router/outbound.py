"""What goes to a host and how its errors come back: request heads, body edits, error shapes. Pure but for the attempt's
own flags.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import UNSET

from router.errors import UNDECODABLE
from router.messages import TRUE, USAGE_OPTIONS, StreamOptions, edit_body, with_usage
from router.telemetry.records import DoneFlag, Endpoint

if TYPE_CHECKING:
    from router.attempt import Attempt
    from router.messages import RequestBody

PATHS: Final = {
    Endpoint.CHAT: b"/v1/chat/completions",
    Endpoint.COMPLETION: b"/v1/completions",
    Endpoint.EMBEDDINGS: b"/v1/embeddings",
}


def build(attempt: Attempt) -> bytes:
    """Return the request as this attempt's host gets it, and note in the attempt what to take out of its answer."""
    request, host = attempt.request, attempt.host
    facts = host.facts
    if request.path:
        body = _passed_body(attempt)
        head = host.request_head(request.target) + request.dialect_headers
    else:
        body = _body(attempt)
        head = host.request_head(PATHS[request.endpoint])
    if facts.request_id_header:
        head += b"x-request-id: %b\r\n" % request.request_id.encode("ascii", "replace")
    if facts.trace_headers and request.trace_headers:
        head += request.trace_headers
    return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)


def _body(attempt: Attempt) -> bytes:
    """Return the client's body, edited only where it must be.

    The model gets the host's name for it; a stream is asked for where the answer is folded or streamed by default;
    usage and prefill progress are asked for where the client did not, and then taken out of its answer.
    """
    request, host = attempt.request, attempt.host
    fields: RequestBody = request.fields
    if request.endpoint is Endpoint.EMBEDDINGS and host.models.get(fields.model) == fields.model:
        return request.body
    add: dict[str, bytes] = {}
    replace: dict[str, bytes] = {}

    def put(name: str, value: bytes, given: object) -> None:
        (add if given is UNSET else replace)[name] = value

    host_model = host.models.get(request.model.name, request.model.name)
    if host_model != fields.model:
        replace["model"] = msgspec.json.encode(host_model)
    if request.stream or request.fold:
        if fields.stream is not True:
            put("stream", TRUE, fields.stream)
        own = isinstance(fields.stream_options, StreamOptions)
        asked = isinstance(fields.stream_options, StreamOptions) and fields.stream_options.include_usage
        if host.facts.include_usage and not asked:
            put("stream_options", with_usage(request.body) if own else USAGE_OPTIONS, fields.stream_options)
            attempt.drop_usage = not request.fold
            request.flags |= int(DoneFlag.USAGE_ADDED)
        if host.facts.progress and not fields.return_progress:
            put("return_progress", TRUE, fields.return_progress)
            attempt.drop_progress = True
    if not add and not replace:
        return request.body
    return edit_body(request.body, add, replace)


def _passed_body(attempt: Attempt) -> bytes:
    """Return the client's body; the model, if it names one, gets the host's name for it."""
    request = attempt.request
    asked = request.fields.model
    host_model = attempt.host.models.get(request.model.name, request.model.name)
    if asked is None or asked == host_model:
        return request.body
    return edit_body(request.body, {}, {"model": msgspec.json.encode(host_model)})


def error_text(body: bytes) -> str:
    """Return the message in a host's error body, whatever its shape; at most 200 characters."""
    try:
        decoded = msgspec.json.decode(body)
    except UNDECODABLE:
        return body[:200].decode("utf-8", "replace").strip()
    if isinstance(decoded, dict):
        error = decoded.get("error", decoded.get("detail", decoded.get("message")))
        if isinstance(error, dict):
            error = error.get("message")
        if isinstance(error, str):
            return error[:200]
    return body[:200].decode("utf-8", "replace")


def openai_shaped(status: int, content_type: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Return content type and body of a host's error: as they are when OpenAI's clients can read them, else wrapped."""
    try:
        decoded = msgspec.json.decode(body)
    except UNDECODABLE:
        decoded = None
    if isinstance(decoded, dict) and isinstance(decoded.get("error"), dict):
        return content_type, body
    kind = "invalid_request_error" if status < 500 else "host_error"
    error = {"message": error_text(body) or f"the host answered {status}", "type": kind, "param": None, "code": status}
    return b"application/json", msgspec.json.encode({"error": error})
