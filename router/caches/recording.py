"""An egress in front of another that keeps what goes through it: how an answer comes into the cache of answers."""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING, Final, cast

from router.caches.responses import Answer, Responses, is_finished
from router.http1 import LAST_CHUNK, ChunkedDecoder, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router.dialects import Failure
    from router.errors import ErrorKind
    from router.request import CountingEgress, Egress, Request

_MISS: Final = b"x-ringrouter-cache: miss\r\n"


class Recording:
    """Passes everything on, and puts the answer into the cache when it is complete. Comments are not part of it."""

    __slots__ = ("_answer_bytes_max", "_content_type", "_inner", "_key", "_parts", "_responses", "_size")

    def __init__(self, inner: Egress, responses: Responses, key: bytes, answer_bytes_max: int) -> None:
        self._inner = inner
        self._responses = responses
        self._key = key
        self._answer_bytes_max = answer_bytes_max
        self._content_type = b""
        self._parts: list[bytes] | None = []
        """``None`` once it is known that the answer will not be kept."""
        self._size = 0

    @property
    def raw(self) -> bool:
        """As of the egress behind."""
        return self._inner.raw

    @property
    def counts_events(self) -> bool:
        """As of the egress behind."""
        return self._inner.counts_events

    @property
    def blocked(self) -> bool:
        """As of the egress behind."""
        return self._inner.blocked

    # ------------------------------------------------------------ what is recorded
    def begin_stream(self, request: Request, data: bytes, content_type: bytes, extra: bytes = b"") -> None:
        """Write the head of a stream and its first bytes."""
        self._content_type = content_type
        self._keep(data)
        self._inner.begin_stream(request, data, content_type, extra + _MISS)

    def write(self, data: bytes) -> None:
        """Write bytes of a stream."""
        self._keep(data)
        self._inner.write(data)

    def write_event(self, code: int, now: int, data: bytes) -> None:
        """Write one event of a stream."""
        self._keep(data)
        cast("CountingEgress", self._inner).write_event(code, now, data)

    def end_stream(self, request: Request, data: bytes, sentinel: bytes) -> None:
        """Write the end of a stream; it is kept unless the host ended it with an error."""
        self._keep(data)
        if request.attempt.scanner.error is None:
            self._complete_stream(request, sentinel)
        self._forget()
        self._inner.end_stream(request, data, sentinel)

    def whole(self, request: Request, status: int, content_type: bytes, body: bytes, extra: bytes = b"") -> None:
        """Write a whole answer; it is kept if it is one and finished."""
        self._forget()
        if status == 200 and len(body) <= self._answer_bytes_max and is_finished(body):
            self._put(request, Answer(body, content_type, b"", request.usage, request.choice_count, 0, 0))
        self._inner.whole(request, status, content_type, body, extra + _MISS)

    # ------------------------------------------------------------ what is only passed on
    def prepare(self, request: Request) -> None:
        """Make ready what can be."""
        self._inner.prepare(request)

    def accepted(self, request: Request) -> None:
        """Say that the request is in the ring."""
        cast("CountingEgress", self._inner).accepted(request)

    def note(self, events: Sequence[tuple[int, int]], now: int) -> None:
        """Tell of the events of one read."""
        cast("CountingEgress", self._inner).note(events, now)

    def write_comment(self, text: bytes) -> None:
        """Write a comment."""
        self._inner.write_comment(text)

    def break_stream(self, request: Request, failure: Failure) -> None:
        """Write an error and end the stream."""
        self._forget()
        self._inner.break_stream(request, failure)

    def fail(self, request: Request, kind: ErrorKind, message: str, retry_after_s: int) -> None:
        """Write an error answer."""
        self._forget()
        self._inner.fail(request, kind, message, retry_after_s)

    def finished(self) -> None:
        """The request is over."""
        self._forget()
        self._inner.finished()

    def untaken_bytes(self) -> int:
        """Return how many bytes the client's side has not taken."""
        return self._inner.untaken_bytes()

    def unsent_bytes(self) -> int:
        """Return how many bytes wait for the client's socket."""
        return self._inner.unsent_bytes()

    def tcp_info(self) -> bytes:
        """Return the kernel's view of the client's connection."""
        return self._inner.tcp_info()

    def abort(self) -> None:
        """Drop the client."""
        self._inner.abort()

    # ------------------------------------------------------------ inside
    def _keep(self, data: bytes) -> None:
        parts = self._parts
        if parts is None or not data:
            return
        if self._size + len(data) > self._answer_bytes_max or not self._responses.reserve(len(data)):
            self._forget()
            return
        self._size += len(data)
        parts.append(data)

    def _forget(self) -> None:
        if self._size:
            self._responses.release(self._size)
            self._size = 0
        self._parts = None

    def _complete_stream(self, request: Request, sentinel: bytes) -> None:
        if self._parts is None:
            return
        body = b"".join(self._parts)
        self._forget()
        if self._inner.raw:
            try:
                body = ChunkedDecoder().feed(body + LAST_CHUNK)
            except ProtocolError:  # the scanner has passed it, so this cannot be
                return
        answer = Answer(body, self._content_type, sentinel, request.usage, request.choice_count, 0, 0)
        self._put(request, answer)

    def _put(self, request: Request, answer: Answer) -> None:
        if request.detour is not None:
            return  # another model has answered than the one that was asked
        now = monotonic_ns()
        self._responses.put(self._key, answer._replace(made_ns=now, took_ns=now - request.deq))
