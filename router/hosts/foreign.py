"""Answers in other dialects than OpenAI's chats and completions, sans I/O: passed on as they are, understood as far as
their records need it.

Understood are the events of Anthropic's messages (https://platform.claude.com/docs/en/build-with-claude/streaming), of
OpenAI's responses (https://platform.openai.com/docs/api-reference/responses-streaming), of llama.cpp's own completions
and, as lines of JSON, of Ollama's own API (https://github.com/ollama/ollama/blob/main/docs/api.md). An event that is
none of these counts as text: whatever it means, it is not held back.

Nothing is added, removed or edited. Only events that may hold content, counts or an error are decoded.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from router.errors import UNDECODABLE
from router.hosts.events import (
    ABSENT,
    DONE,
    ERROR_CODE,
    HEAD_CODE,
    KEEPALIVE_CODE,
    SENTINEL_CODE,
    EventScanner,
    event_code,
    given,
    split_lines,
)
from router.http1 import BodyDecoder
from router.telemetry.records import Kind, TokenFlag

_TEXT, _REASONING, _TOOL_CALL = int(Kind.TEXT), int(Kind.REASONING), int(Kind.TOOL_CALL)
_HEAD, _FINISH, _USAGE = int(Kind.HEAD), int(Kind.FINISH), int(Kind.USAGE)
_FLAG_FINISH, _FLAG_USAGE = int(TokenFlag.FINISH), int(TokenFlag.USAGE)

_EVENT_STREAM: Final = "text/event-stream"
_JSON_LINES: Final = ("application/x-ndjson", "application/jsonl", "application/x-jsonlines")
_NAMED_EVENT: Final = re.compile(rb"event: ?([^\r\n]+)\ndata: ?([^\r\n]*)\n\n")
"""An event as nearly all of these dialects write it."""

_TOLD_BY_NAME: Final = {"ping": KEEPALIVE_CODE} | dict.fromkeys(
    (
        "content_block_start", "content_block_stop", "response.created", "response.queued", "response.in_progress",
        "response.output_item.added", "response.output_item.done", "response.content_part.added",
        "response.content_part.done", "response.output_text.done", "response.refusal.done",
        "response.reasoning_text.done", "response.reasoning_summary_part.added", "response.reasoning_summary_part.done",
        "response.reasoning_summary_text.done", "response.function_call_arguments.done",
    ),
    HEAD_CODE,
)  # fmt: skip
"""Codes of events whose name says all: not decoded. The last of an answer repeat all of its text."""
_RESPONSE_DELTAS: Final = {
    "response.reasoning_text.delta": _REASONING,
    "response.reasoning_summary_text.delta": _REASONING,
    "response.reasoning.delta": _REASONING,
    "response.reasoning_summary.delta": _REASONING,
    "response.function_call_arguments.delta": _TOOL_CALL,
    "response.mcp_call_arguments.delta": _TOOL_CALL,
    "response.custom_tool_call_input.delta": _TOOL_CALL,
    "response.code_interpreter_call_code.delta": _TOOL_CALL,
}
"""Deltas of responses that are not text."""
_RESPONSE_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.cancelled"})


class _Object(msgspec.Struct):
    """The fields of an event, or of a whole answer, that the records need."""

    type: Any = None
    delta: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT
    usage: msgspec.Raw = ABSENT
    timings: msgspec.Raw = ABSENT
    metrics: msgspec.Raw = ABSENT
    message: msgspec.Raw = ABSENT
    response: msgspec.Raw = ABSENT
    thinking: msgspec.Raw = ABSENT
    content: msgspec.Raw = ABSENT
    done: Any = None
    stop: Any = None
    input_tokens: msgspec.Raw = ABSENT
    tokens_evaluated: msgspec.Raw = ABSENT
    tokens_predicted: msgspec.Raw = ABSENT
    prompt_eval_count: msgspec.Raw = ABSENT
    prompt_eval_duration: msgspec.Raw = ABSENT
    eval_count: msgspec.Raw = ABSENT
    eval_duration: msgspec.Raw = ABSENT


_COUNTS: Final = (
    "input_tokens", "tokens_evaluated", "tokens_predicted", "prompt_eval_count", "prompt_eval_duration", "eval_count",
    "eval_duration",
)  # fmt: skip
"""Fields that stand for usage where a dialect has no object for it."""


class _Inner(msgspec.Struct):
    """What stands one level deeper: Anthropic's delta and message, Ollama's message, a response."""

    type: Any = None
    text: Any = None
    thinking: Any = None
    partial_json: Any = None
    content: Any = None
    tool_calls: Any = None
    stop_reason: Any = None
    usage: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


_decode: Final = msgspec.json.Decoder(_Object).decode
_decode_inner: Final = msgspec.json.Decoder(_Inner).decode
_decode_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode: Final = msgspec.json.Encoder().encode
_NOTHING: Final = _Inner()


def is_event_stream(content_type: bytes) -> bool:
    """Whether a body consists of server-sent events."""
    return _media_type(content_type) == _EVENT_STREAM


def is_json_lines(content_type: bytes) -> bool:
    """Whether a body consists of lines of JSON."""
    return _media_type(content_type) in _JSON_LINES


def _media_type(content_type: bytes) -> str:
    return content_type.partition(b";")[0].strip().lower().decode("latin-1")


def _inner(raw: msgspec.Raw) -> _Inner:
    """Decode an object within an event; what is none has nothing in it."""
    try:
        return _decode_inner(raw)
    except UNDECODABLE:
        return _NOTHING


def _fills(raw: msgspec.Raw) -> bool:
    """Whether a field is there and not an empty string."""
    value = given(raw)
    return value is not None and value != b'""'


class ForeignScanner(EventScanner):
    """Scans one response body of another dialect, as :class:`EventScanner` says.

    ``lines``: JSON lines, else server-sent events. What stands behind the last boundary when the body has ended goes
    out last and as it is, so it waits in ``sentinel``, as ``[DONE]`` does.
    """

    __slots__ = ("_closed", "_lines", "_marks_end", "_usage_begun")

    def __init__(
        self, decoder: BodyDecoder, *, raw: bool = True, lines: bool = False, event_bytes_max: int = 4 << 20
    ) -> None:
        super().__init__(decoder, raw, event_bytes_max, lines)
        self._lines = lines
        self._closed = False
        self._marks_end = False
        """The dialect has an event that ends an answer."""
        self._usage_begun: bytes | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the body came to its proper end and no error came.

        Where only the end of the connection ends the body, a dialect that marks its end must have done so.
        """
        if self.error is not None:
            return False
        if self._closed and not self.ended:
            return self.finish_count > 0 or not self._marks_end
        return self.sentinel is not None or self.ended

    def finish(self) -> bytes:
        """Take the end of the body; what was left goes out as it is, at the very end."""
        self._closed = True
        rest, self._tail = self._tail, b""
        if rest.strip():
            code, _ = self._classify(rest)
            self.events.append((code, len(rest)))
        self.sentinel = rest or None
        return b""

    # ------------------------------------------------------------ what an event is
    def _classify(self, event: bytes) -> tuple[int, bool]:
        if self._lines:
            line = event.strip()
            return (self._classify_data(line, "") if line else KEEPALIVE_CODE), True
        found = _NAMED_EVENT.fullmatch(event)
        if found is not None:
            name, data = found.groups()
        else:
            data, name, has_fields = split_lines(event)
            if not has_fields:
                return KEEPALIVE_CODE, True
            if data == DONE:
                return SENTINEL_CODE, True
        return self._classify_data(data, name.decode("utf-8", "replace")), True

    def _classify_data(self, data: bytes, name: str) -> int:
        code = _TOLD_BY_NAME.get(name)
        if code is not None:
            return code
        self.first_choices = True
        try:
            decoded = _decode(data)
        except UNDECODABLE:
            return self._failed(data) if name == "error" else self._content(_TEXT)
        if not name and isinstance(decoded.type, str):
            name = decoded.type
            code = _TOLD_BY_NAME.get(name)
            if code is not None:
                return code
        if name == "error":
            return self._failed(given(decoded.error) or data)
        if name.startswith("response."):
            return self._classify_response(name, decoded)
        handler = _ANTHROPIC.get(name)
        if handler is not None:
            self._marks_end = True
            return handler(self, decoded)
        return self._classify_plain(decoded)

    def _content(self, kind: int, flags: int = 0) -> int:
        """Count an event with content; 0 is one without."""
        if not kind:
            return event_code(_FINISH, flags) if flags & _FLAG_FINISH else HEAD_CODE
        self.content_count += 1
        return event_code(kind, flags)

    def _failed(self, error: bytes) -> int:
        self.error = error
        return ERROR_CODE

    # ------------------------------------------------------------ OpenAI's responses
    def _classify_response(self, name: str, decoded: _Object) -> int:
        self._marks_end = True
        if name.endswith(".delta"):
            return self._content(_RESPONSE_DELTAS.get(name, _TEXT) if _fills(decoded.delta) else 0)
        if name == "response.failed":
            return self._failed(given(_inner(decoded.response).error) or b'"the response failed"')
        if name not in _RESPONSE_ENDS:
            return HEAD_CODE
        self.finish_count = 1
        self.timings = given(decoded.timings)
        self.usage = given(_inner(decoded.response).usage)
        return event_code(_FINISH, _FLAG_FINISH | (_FLAG_USAGE if self.usage else 0))

    # ------------------------------------------------------------ Anthropic's messages
    def _message_start(self, decoded: _Object) -> int:
        self._usage_begun = given(_inner(decoded.message).usage)
        return HEAD_CODE

    def _block_delta(self, decoded: _Object) -> int:
        delta = _inner(decoded.delta)
        kind, field = _BLOCK_DELTAS.get(str(delta.type), (_TEXT, "type"))
        return self._content(kind if getattr(delta, field) else 0)

    def _message_delta(self, decoded: _Object) -> int:
        """Usage, and why the message ends; the counts of the prompt came with the message's start."""
        flags = 0
        usage = given(decoded.usage)
        if usage is not None:
            flags = _FLAG_USAGE
            self.usage = _merged(self.usage or self._usage_begun, usage)
        self.timings = given(decoded.timings) or self.timings
        if _inner(decoded.delta).stop_reason:
            self.finish_count = 1
            return event_code(_FINISH, flags | _FLAG_FINISH)
        return event_code(_USAGE if flags else _HEAD, flags)

    def _message_stop(self, decoded: _Object) -> int:
        self.finish_count = 1
        self.timings = given(decoded.timings) or self.timings
        return event_code(_FINISH, _FLAG_FINISH)

    # ------------------------------------------------------------ any other: Ollama's, llama.cpp's, an unknown one
    def _classify_plain(self, decoded: _Object) -> int:
        error = given(decoded.error)
        if error is not None:
            return self._failed(error)
        self.timings = given(decoded.timings) or self.timings
        self.metrics = given(decoded.metrics) or self.metrics
        self.usage = given(decoded.usage) or self.usage
        ends = decoded.done if isinstance(decoded.done, bool) else decoded.stop
        if not isinstance(ends, bool):
            return self._content(_TEXT)
        self._marks_end = True
        if not ends:
            return self._content(_plain_kind(decoded))
        self.finish_count = 1
        self.usage = self.usage or _counts(decoded)
        return self._content(_plain_kind(decoded), _FLAG_FINISH | (_FLAG_USAGE if self.usage else 0))


_ANTHROPIC: Final = {
    "message_start": ForeignScanner._message_start,  # noqa: SLF001 - the scanner's own table
    "content_block_delta": ForeignScanner._block_delta,  # noqa: SLF001
    "message_delta": ForeignScanner._message_delta,  # noqa: SLF001
    "message_stop": ForeignScanner._message_stop,  # noqa: SLF001
}
_BLOCK_DELTAS: Final = {
    "text_delta": (_TEXT, "text"),
    "thinking_delta": (_REASONING, "thinking"),
    "input_json_delta": (_TOOL_CALL, "partial_json"),
    "signature_delta": (0, "type"),
    "citations_delta": (0, "type"),
}
"""Kind of a delta and where its content stands."""


def _plain_kind(decoded: _Object) -> int:
    """Return the kind of content in an object of Ollama's or llama.cpp's own API, 0 for none."""
    if decoded.message is not ABSENT:
        message = _inner(decoded.message)
        if message.content:
            return _TEXT
        if message.thinking:
            return _REASONING
        return _TOOL_CALL if message.tool_calls else 0
    if _fills(decoded.response) or _fills(decoded.content):
        return _TEXT
    return _REASONING if _fills(decoded.thinking) else 0


def _counts(decoded: _Object) -> bytes | None:
    """Return the counts that stand in the object itself, as an object of their own."""
    counts = {name: raw for name in _COUNTS if given(raw := getattr(decoded, name)) is not None}
    return _encode(counts) if counts else None


def _merged(before: bytes | None, usage: bytes) -> bytes:
    """Return usage with the fields that only the earlier one has."""
    try:
        return _encode({**_decode_fields(before or b"{}"), **_decode_fields(usage)})
    except UNDECODABLE:
        return usage


def whole_report(body: bytes) -> tuple[bytes | None, bytes | None, bytes | None]:
    """Return usage, timings and metrics of a whole answer as JSON, each ``None`` where it has none."""
    try:
        decoded = _decode(body)
    except UNDECODABLE:
        return None, None, None
    return given(decoded.usage) or _counts(decoded), given(decoded.timings), given(decoded.metrics)
