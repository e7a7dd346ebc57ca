"""What every scanner of a host's stream shares, sans I/O: response bytes in, whole events out.

The bytes that come out are the bytes that went in, with their chunk framing, as long as a read begins and ends at an
event boundary and has nothing to remove; else the whole events of the read are framed anew and what is incomplete
waits. So the client only ever sees whole events, and an error or a comment can be put between any two writes.

What an event is, is the scanner's own matter: :mod:`router.hosts.scanner` for chats and completions,
:mod:`router.hosts.foreign` for the other dialects.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from router.http1 import BodyDecoder, ChunkedDecoder, chunk
from router.telemetry.records import Kind, TokenFlag

# As a plain integer: reading a member of an enum costs more than the comparison it is for.
_SENTINEL: Final = int(Kind.SENTINEL)
_FLAG_REMOVED: Final = int(TokenFlag.REMOVED) << 8
_HOST_EVENT: Final = int(TokenFlag.HOST_EVENT) << 8
_EVENT_END: Final = re.compile(rb"\n\r?\n")
"""A carriage return in front belongs to the event either way; not to ask for it lets the search skip to line ends."""
_LINE_END: Final = re.compile(rb"\n")
_EVENT_END_BYTES_MAX: Final = 3
DONE: Final = b"[DONE]"
ABSENT: Final = msgspec.Raw(b"")
_NULL: Final = b"null"


class StreamError(Exception):
    """The host's stream cannot be taken further; the text says why."""


def given(raw: msgspec.Raw) -> bytes | None:
    """Return the JSON of a field, ``None`` where it is absent or null."""
    if raw is ABSENT:
        return None
    data = bytes(raw)
    return None if not data or data == _NULL else data


def event_code(kind: int, flags: int = 0, choice: int = 0) -> int:
    """Return the third word of a token record for a host's event, without the host (bits 16 to 31)."""
    return kind | flags << 8 | _HOST_EVENT | choice << 32


HEAD_CODE: Final = event_code(Kind.HEAD)
KEEPALIVE_CODE: Final = event_code(Kind.KEEPALIVE)
SENTINEL_CODE: Final = event_code(Kind.SENTINEL)
ERROR_CODE: Final = event_code(Kind.ERROR)


def split_lines(event: bytes) -> tuple[bytes, bytes, bool]:
    """Split one event into ``(data, event name, has any field)``; several data lines are joined by LF."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and event.find(b"\r") < 0:
        return event[6:-2], b"", True  # as nearly all are
    data: list[bytes] = []
    name = b""
    fields = False
    for line in event.splitlines():
        if not line or line.startswith(b":"):
            continue
        fields = True
        key, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if key == b"data":
            data.append(value)
        elif key == b"event":
            name = value
    return b"\n".join(data), name, fields


class EventScanner:
    """Scans one response body.

    After each :meth:`feed` the caller reads and clears ``events``: a list of ``(code, bytes)``, one for each event of
    the host, ``code`` as :func:`event_code` makes it. ``raw`` keeps chunk framing in what :meth:`feed` returns;
    without it the return value is the bare events. ``lines``: each line is an event (JSON lines), not what stands
    between blank ones. What is to be written last waits in ``sentinel``, because that is the caller's decision.
    """

    __slots__ = (
        "_boundary",
        "_decoder",
        "_event_bytes_max",
        "_raw",
        "_tail",
        "aligned",
        "choice_count",
        "code",
        "content_count",
        "error",
        "events",
        "finish_count",
        "first_choices",
        "lesson",
        "metrics",
        "misses",
        "payloads",
        "prefix",
        "sentinel",
        "suffix",
        "timings",
        "usage",
    )

    def __init__(self, decoder: BodyDecoder, raw: bool, event_bytes_max: int, lines: bool = False) -> None:
        self._decoder = decoder
        self._raw = raw
        self._event_bytes_max = event_bytes_max
        self._boundary = _LINE_END if lines else _EVENT_END
        self.aligned = isinstance(decoder, ChunkedDecoder)
        """The next read begins a chunk, and nothing of an event is held."""
        self._tail = b""
        self.code = 0
        self.prefix = self.suffix = b""
        """What stands before and behind the text of the last usual token, in a read of its own; empty: none was yet."""
        self.misses = 0
        """Consecutive events that the template did not fit."""
        self.lesson: tuple[int, bytes | None, bytes | None] | None = None
        """Code of the last event that a template can be made of, and what stands before and behind its text: set while
        there is something for :meth:`learn` to do."""
        self.events: list[tuple[int, int]] = []
        self.payloads: list[bytes] | None = None
        self.content_count = 0
        self.finish_count = 0
        self.choice_count = 0
        self.first_choices = False
        self.usage: bytes | None = None
        self.timings: bytes | None = None
        self.metrics: bytes | None = None
        self.error: bytes | None = None
        self.sentinel: bytes | None = None

    @property
    def ended(self) -> bool:
        """Whether the body's framing says that it is complete."""
        return self._decoder.ended

    @property
    def surplus(self) -> bytes:
        """Bytes behind the end of the body: the connection cannot be used again."""
        return self._decoder.surplus

    @property
    def succeeded(self) -> bool:
        """Whether the answer is complete, and no error came."""
        raise NotImplementedError

    def learn(self) -> None:
        """Do what can wait until the read is with the client."""

    def feed(self, data: bytes) -> bytes:
        """Take one read; return what the client gets of it. Raises :class:`StreamError` or ``ProtocolError``."""
        return self._feed_slowly(data, b"")

    def finish(self) -> bytes:
        """Take the end of the body; return what the client gets of what was left."""
        raise NotImplementedError

    def _feed_slowly(self, data: bytes, done: bytes) -> bytes:
        """Take the rest of a read, of which ``done`` is ready to go out."""
        was_aligned = self.aligned
        events, kept_all = self._split(self._decoder.feed(data))
        self.aligned = not self._tail and self._decoder.at_boundary
        if self._raw and kept_all and was_aligned and self.aligned:
            return done + data
        out = b"".join(events)
        if out and self._raw:
            out = chunk(out)
        return done + out if done else out

    def _split(self, payload: bytes) -> tuple[list[bytes], bool]:
        """Cut whole events off; return those to forward and whether these are all of ``payload``."""
        # An event's end may lie across two reads; what is before it was searched already.
        searched = max(0, len(self._tail) - _EVENT_END_BYTES_MAX + 1)
        if self._tail:
            payload = self._tail + payload
        forwarded: list[bytes] = []
        start = 0
        kept_all = True
        for boundary in self._boundary.finditer(payload, searched):
            end = boundary.end()
            kept_all = self._take_event(payload[start:end], forwarded) and kept_all
            start = end
        self._tail = payload[start:]
        if len(self._tail) > self._event_bytes_max:
            raise StreamError(f"an event of the host exceeds {self._event_bytes_max} bytes")
        return forwarded, kept_all

    def _take_event(self, event: bytes, forwarded: list[bytes]) -> bool:
        if self.sentinel is not None:  # the answer is over: what comes behind would be written before [DONE]
            return False
        code, keep = self._classify(event)
        self.events.append((code if keep else code | _FLAG_REMOVED, len(event)))
        if code & 0xFF == _SENTINEL:
            self.sentinel = event
            return False
        if keep:
            forwarded.append(event)
        return keep

    def _classify(self, event: bytes) -> tuple[int, bool]:
        """Return the event's code and whether the client gets it."""
        raise NotImplementedError
