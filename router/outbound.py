"""What goes to a host and how its errors come back: request heads, body edits, error shapes. Pure but for the attempt's
own flags.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import UNSET

from router.errors import UNDECODABLE
from router.messages import TRUE, USAGE_OPTIONS, add_field, edit_body, with_usage
from router.telemetry.records import DoneFlag

if TYPE_CHECKING:
    from router.attempt import Attempt
    from router.messages import RequestBody

_USAGE_FIELD: Final = b'"stream_options":%b' % USAGE_OPTIONS
USAGE_FIELD_BEFORE: Final = _USAGE_FIELD + b","
USAGE_ADDED: Final = int(DoneFlag.USAGE_ADDED)


def build(attempt: Attempt) -> bytes:
    """Return the request as this attempt's host gets it, and note in the attempt what to take out of its answer."""
    request, host = attempt.request, attempt.host
    facts = host.facts
    head = host.heads.get(request.target) or host.request_head(request.target)
    body = request.body
    if request.path:
        body = _passed_body(attempt)
        head += request.dialect_headers
    elif request.stream or request.fold:
        body = _stream_body(attempt)
    elif host.models.get(request.model.name) != request.fields.model:
        body = edit_body(body, {}, _model_field(attempt))
    if facts.request_id_header:
        head += b"x-request-id: %b\r\n" % request.request_id.encode("ascii", "replace")
    if (request.trace_headers or host.tracer) and facts.trace_headers:
        head += request.trace_headers if host.tracer is None else host.tracer.lines(request)
    return head + b"content-length: " + str(len(body)).encode() + b"\r\n\r\n" + body


def _model_field(attempt: Attempt) -> dict[str, bytes]:
    """Return the host's name for the model as a field of the body, nothing where it is the client's."""
    name = attempt.request.model.name
    host_model = attempt.host.models.get(name, name)
    return {} if host_model == attempt.request.fields.model else {"model": msgspec.json.encode(host_model)}


def _stream_body(attempt: Attempt) -> bytes:
    """Return the client's body, edited only where it must be: mostly to ask for usage, which the client did not."""
    request, host = attempt.request, attempt.host
    fields: RequestBody = request.fields
    facts = host.facts
    is_renamed = host.models.get(request.model.name) != fields.model
    if is_renamed or facts.progress or fields.stream is not True or fields.stream_options is not UNSET:
        return _edited_stream_body(attempt)
    body = request.body
    if not facts.include_usage:
        return body
    attempt.drop_usage = not request.fold
    request.flags |= USAGE_ADDED
    brace = body.index(b"{") + 1  # as add_field() does
    return body[:brace] + USAGE_FIELD_BEFORE + body[brace:]


def _edited_stream_body(attempt: Attempt) -> bytes:
    """Return the client's body, edited where it must be.

    The model gets the host's name for it; a stream is asked for where the answer is folded or streamed by default;
    usage and prefill progress are asked for where the client did not, and then taken out of its answer.
    """
    request, host = attempt.request, attempt.host
    fields: RequestBody = request.fields
    facts, options = host.facts, fields.stream_options
    same_model = host.models.get(request.model.name) == fields.model
    own_options = options is not UNSET and options is not None
    wants_usage = facts.include_usage and not (own_options and options.include_usage)  # type: ignore[union-attr]
    wants_progress = facts.progress and not fields.return_progress
    if wants_usage:
        attempt.drop_usage = not request.fold
        request.flags |= USAGE_ADDED
    if wants_progress:
        attempt.drop_progress = True
    if fields.stream is True and same_model:
        if not (wants_usage or wants_progress):
            return request.body
        if options is UNSET and not wants_progress:
            return add_field(request.body, _USAGE_FIELD)
    add: dict[str, bytes] = {}
    replace = _model_field(attempt)

    def put(name: str, value: bytes, given: object) -> None:
        (add if given is UNSET else replace)[name] = value

    if fields.stream is not True:
        put("stream", TRUE, fields.stream)
    if wants_usage:
        put("stream_options", with_usage(request.body) if own_options else USAGE_OPTIONS, options)
    if wants_progress:
        put("return_progress", TRUE, fields.return_progress)
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
