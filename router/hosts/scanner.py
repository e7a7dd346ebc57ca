"""The stream scanner, sans I/O: a host's response bytes in, whole server-sent events and what they are out.

One pass per read; how reads become whole events is told in :mod:`router.hosts.events`.

A read that is all usual is scanned by ``router._scan``, in one call; what is said below, and done here, is for reads of
which it wants to know nothing, and for machines on which it could not be compiled. Both come to the same.

No JSON is decoded for most tokens. Consecutive token events of a stream differ only in the text itself, so the scanner
keeps the bytes before and after the text of the last decoded one. An event that begins and ends with exactly these
bytes and has no quotation mark between is the same JSON with another text, whatever the host and its spacing; any
other event is decoded.

Format of the events: https://html.spec.whatwg.org/multipage/server-sent-events.html §9.2.6, with OpenAI's objects as
data.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from router import native
from router.errors import UNDECODABLE
from router.hosts.events import (
    ABSENT,
    DONE,
    ERROR_CODE,
    HEAD_CODE,
    KEEPALIVE_CODE,
    SENTINEL_CODE,
    EventScanner,
    StreamError,
    event_code,
    given,
    split_lines,
)
from router.http1 import CHUNK_LINE_SEARCH, CHUNK_SIZES, BodyDecoder, ChunkedDecoder, chunk
from router.mould import mould
from router.telemetry.records import Kind, TokenFlag

__all__ = ["StreamError", "StreamScanner", "event_code"]

# As plain integers: reading a member of an enum costs more than the comparison it is for.
_TEXT, _REASONING, _TOOL_CALL = int(Kind.TEXT), int(Kind.REASONING), int(Kind.TOOL_CALL)
_HEAD, _FINISH, _USAGE = int(Kind.HEAD), int(Kind.FINISH), int(Kind.USAGE)
_FLAG_FINISH, _FLAG_USAGE = int(TokenFlag.FINISH), int(TokenFlag.USAGE)

_TEXT_VALUE: Final = re.compile(rb'"(?:content|text|reasoning|reasoning_content)" ?: ?"((?:[^"\\]++|\\.)++)"')
_MISSES_MAX: Final = 16
"""Consecutive events that did not fit the template after which no new one is learned: learning costs about 1 µs, and
streams whose every event differs (log probabilities, running timings, several choices) never repay it."""


class _Delta(msgspec.Struct):
    content: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    text: Any = None
    finish_reason: Any = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = ABSENT
    timings: msgspec.Raw = ABSENT
    metrics: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT
    prompt_progress: msgspec.Raw = ABSENT


_decode_event: Final = msgspec.json.Decoder(_Event).decode


def _is_whole(event: bytes) -> bool:
    """Return whether an event that the end of the body left open is complete but for its blank line."""
    data = split_lines(event)[0]
    if data == DONE:
        return True
    try:
        msgspec.json.decode(data)
    except UNDECODABLE:
        return False
    return True


class StreamScanner(EventScanner):
    """Scans one response body of a chat or completion, as :class:`EventScanner` says.

    ``[DONE]`` is never in what :meth:`feed` returns: it waits in ``sentinel``.
    """

    __slots__ = (
        "_drop_progress",
        "_drop_usage",
        "_finished",
    )

    def __init__(
        self,
        decoder: BodyDecoder,
        raw: bool = True,
        drop_usage: bool = False,
        drop_progress: bool = False,
        keep_payloads: bool = False,
        event_bytes_max: int = 4 << 20,
    ) -> None:
        EventScanner.__init__(self, decoder, raw, event_bytes_max)  # super() takes three times as long
        self._drop_usage = drop_usage
        self._drop_progress = drop_progress
        self._finished: frozenset[int] = frozenset()
        self.payloads = [] if keep_payloads else None
        """With ``keep_payloads`` the data of each event is kept, for folding; the caller clears it."""

    @staticmethod
    def of(
        decoder: BodyDecoder, raw: bool, drop_usage: bool, drop_progress: bool, event_bytes_max: int
    ) -> StreamScanner:
        """Return what the class would, but for payloads, in fewer steps."""
        self = new_scanner()
        self._decoder = decoder
        self._raw = raw
        self._drop_usage = drop_usage
        self._drop_progress = drop_progress
        self._event_bytes_max = event_bytes_max
        self.aligned = type(decoder) is ChunkedDecoder
        self.events = []
        return self

    @property
    def succeeded(self) -> bool:
        """Whether every choice that began has a finish_reason and no error came."""
        return self.error is None and 0 < self.finish_count >= self.choice_count

    def feed(self, data: bytes) -> bytes:
        """Take one read; return what the client gets of it. Raises :class:`StreamError` or ``ProtocolError``."""
        if self.lesson is not None:
            self.learn()
        if not self.aligned or self.payloads is not None:
            return self._feed_slowly(data, b"")
        if _scan is not None and self.sentinel is None:
            out = _scan(self, data)
            if out is not None:
                if not self.aligned:
                    self._decoder.end()  # no other than a ChunkedDecoder was aligned
                return out
        return self._feed_plainly(data)

    def _feed_plainly(self, data: bytes) -> bytes:
        """Take one read that begins a chunk, without the native scan."""
        position, size_of_data = 0, len(data)
        prefix, suffix, code = self.prefix, self.suffix, self.code
        prefix_bytes, suffix_bytes = len(prefix), len(suffix)
        events, sizes = self.events, CHUNK_SIZES
        hits = 0
        while prefix and position < size_of_data:
            line_end = data.find(b"\r\n", position, position + CHUNK_LINE_SEARCH)
            start = line_end + 2
            text = start + prefix_bytes
            if line_end < 0 or not data.startswith(prefix, start):
                break
            size = sizes.get(data[position:line_end])
            if size is None:
                break
            end = start + size + 2
            text_end = end - suffix_bytes
            if (
                end > size_of_data
                or text_end <= text
                or not data.endswith(suffix, text, end)
                or data.find(b'"', text, text_end) >= 0
            ):
                break
            events.append((code, size))
            hits += 1
            position = end
        if hits:
            self.content_count += hits
            self.misses = 0
        done = data[:position] if self._raw else self._bare(data, hits)
        return done if position == size_of_data else self._feed_slowly(data[position:], done)

    def finish(self) -> bytes:
        """Take the end of the body: an event that lacks only its blank line gets it and is returned.

        One that was cut off within is dropped, as §9.2.6 has it: passed on, it would swallow what comes behind it.
        """
        event, self._tail = self._tail.rstrip(b"\r\n") + b"\n\n", b""
        if not _is_whole(event):
            return b""
        forwarded: list[bytes] = []
        self._take_event(event, forwarded)
        payload = b"".join(forwarded)
        return chunk(payload) if payload and self._raw else payload

    # ------------------------------------------------------------ everything that is not the same token again
    def _bare(self, data: bytes, hits: int) -> bytes:
        """Return the payloads of the chunks at the start of a read whose events were just counted, ``hits`` of them."""
        parts: list[bytes] = []
        end = 0
        for _, size in self.events[len(self.events) - hits :]:
            start = data.find(b"\r\n", end) + 2
            parts.append(data[start : start + size])
            end = start + size + 2
        return b"".join(parts)

    def _classify(self, event: bytes) -> tuple[int, bool]:
        """Return the event's code and whether the client gets it."""
        data, name, has_fields = split_lines(event)
        if not has_fields:
            return KEEPALIVE_CODE, True
        if data == DONE:
            return SENTINEL_CODE, True
        try:
            decoded = _decode_event(data)
        except UNDECODABLE:
            return self._classify_foreign(data, name)
        error = given(decoded.error)
        if error is not None or name == b"error":
            self.error = error or data
            return ERROR_CODE, True
        if self.payloads is not None:
            self.payloads.append(data)
        return self._classify_answer(event, decoded)

    def _classify_foreign(self, data: bytes, name: bytes) -> tuple[int, bool]:
        """An event that is no chunk of OpenAI's shape: passed on, not understood."""
        if name == b"error":
            self.error = data
            return ERROR_CODE, True
        return HEAD_CODE, True

    def _classify_answer(self, event: bytes, decoded: _Event) -> tuple[int, bool]:
        flags = 0
        usage = given(decoded.usage)
        if usage is not None:
            self.usage = usage
            flags = _FLAG_USAGE
        self.timings = given(decoded.timings) or self.timings
        self.metrics = given(decoded.metrics) or self.metrics
        choices = decoded.choices
        if not choices:
            if usage is None:
                return HEAD_CODE, not (self._drop_progress and given(decoded.prompt_progress) is not None)
            # The usage event that was asked for has an empty list of choices; one without the list is something else.
            return event_code(_USAGE, flags), choices is None or not self._drop_usage
        kind, choice = self._content(choices)
        finished = self._note_finished(choices)
        if finished:
            flags |= _FLAG_FINISH
        if kind:
            self.content_count += 1
            code = event_code(kind, flags, choice)
            if len(choices) == 1 and not flags and kind != _TOOL_CALL:
                self.lesson = (code, *_around_text(event))
            return code, True
        progress = self._drop_progress and not finished and given(decoded.prompt_progress) is not None
        return event_code(_FINISH if finished else _HEAD, flags, choice), not progress

    def _note_finished(self, choices: list[_Choice]) -> bool:
        """Return whether a choice ended; a host that says so twice has still ended it once."""
        finished = [c.index for c in choices if c.finish_reason]
        if finished:
            self._finished = self._finished.union(finished)
            self.finish_count = len(self._finished)
        return bool(finished)

    def _content(self, choices: list[_Choice]) -> tuple[int, int]:
        """Return kind (0: no content) and index of the choice that has it, and count the choices."""
        self.first_choices = True
        for c in choices:
            self.choice_count = max(self.choice_count, (c.index & 0xFFFF) + 1)
        for c in choices:
            delta = c.delta
            if c.text:
                return _TEXT, c.index & 0xFFFF
            if delta is None:
                continue
            if delta.content or delta.refusal:
                return _TEXT, c.index & 0xFFFF
            if delta.reasoning or delta.reasoning_content:
                return _REASONING, c.index & 0xFFFF
            if delta.tool_calls or delta.function_call:
                return _TOOL_CALL, c.index & 0xFFFF
        return 0, choices[0].index & 0xFFFF

    def learn(self) -> None:
        """Keep what surrounds the text of the last decoded event as the template of the next.

        :meth:`feed` does so by itself before the next read; who calls it after the write keeps it off the token's time.
        """
        if self.lesson is None:
            return
        (code, prefix, suffix), self.lesson = self.lesson, None
        self.misses += 1
        if self.misses > _MISSES_MAX or prefix is None or suffix is None:
            return
        self.prefix, self.suffix = prefix, suffix
        self.code = code


def _around_text(event: bytes) -> tuple[bytes, bytes] | tuple[None, None]:
    """Return what stands before and behind the one text in an event, the chunk's end included; none if not just one."""
    found = _TEXT_VALUE.search(event)
    if found is None or _TEXT_VALUE.search(event, found.end()) is not None:
        return None, None
    start, end = found.span(1)
    return event[:start], event[end:] + b"\r\n"


def _pattern() -> StreamScanner:
    """Return a scanner that holds nothing which changes."""
    nothing: Any = None
    scanner = StreamScanner(nothing)
    scanner.events = nothing
    return scanner


new_scanner: Final = mould(_pattern)
"""Makes one of which nothing is known yet, :meth:`StreamScanner.of` says the rest."""
_scan: Final[Callable[[StreamScanner, bytes], bytes | None] | None] = (
    None if native.scan is None else native.scan.Scan(StreamScanner(ChunkedDecoder())).feed
)
"""Takes one whole read as :meth:`StreamScanner.feed` does; or changes nothing and returns ``None`` where that must do
it. There is none without native code.
"""
