"""What clients do while their requests run: leave, stall, fall behind, catch up; and what they are told meanwhile."""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from router.errors import ErrorKind
from router.telemetry.counters import Counter
from router.telemetry.records import DoneFlag, Kind, Outcome, Phase

if TYPE_CHECKING:
    from router.loop import Loop
    from router.request import Request

_DONE: Final = Phase.DONE


class Clients:
    """The client's half of the loop."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def left(self, request: Request, now: int) -> None:
        """The client is gone: whatever is done for it stops in this very call."""
        self.drop(request, Outcome.CLIENT_GONE, ErrorKind.CLIENT_GONE, now)

    def stalled(self, request: Request, now: int) -> None:
        """The client has taken no byte for too long: its own fault."""
        egress = request.egress
        self.drop(request, Outcome.CLIENT_STALLED, ErrorKind.CLIENT_STALLED, now)
        egress.abort()

    def drop(self, request: Request, outcome: Outcome, kind: ErrorKind, now: int) -> None:
        """End a request that nobody waits for any more, and whatever is done for it."""
        if request.phase is _DONE:
            return
        loop = self._loop
        request.left_ns = now
        loop.leave_waiting(request)
        attempt = request.attempt
        if attempt is not None and not attempt.over:
            host = attempt.host
            loop.recovery.end_attempt(attempt, now, host_may_work=bool(request.sent_ns))
            if request.model.forecast is not None:
                request.model.forecast.note_held(now - request.routed, now)
            request.cancel_latency_ns = monotonic_ns() - now
            request.tokens_saved = max(0, request.max_tokens - request.content_count)
            loop.telemetry.event(now, request, Kind.CANCEL)
            loop.finish(request, outcome, kind, now)
            loop.pump(host, now)
            return
        loop.finish(request, outcome, kind, now)

    def blocked(self, request: Request) -> None:
        """The client's socket does not take everything."""
        loop = self._loop
        now = monotonic_ns()
        request.blocked_ns = now
        request.taken_bytes = request.bytes_out - request.egress.untaken_bytes()
        request.check_ns = 0
        loop.on_blocked()
        loop.telemetry.event(now, request, Kind.BLOCKED)

    def drained(self, request: Request) -> None:
        """The client's socket has taken everything that was written."""
        loop = self._loop
        now = monotonic_ns()
        loop.telemetry.event(now, request, Kind.DRAINED)
        request.blocked_ns = 0
        if request.tok1:
            request.out_n = now
            if not request.out1:
                request.out1 = now
        self.resume_host(request)
        if request.ending:
            loop.finish(request, request.ending, request.error, now)

    def pause_host(self, request: Request) -> None:
        """Read a host no further: its client is too far behind."""
        if request.attempt is not None and request.attempt.connection is not None:
            request.host_paused = True
            request.attempt.connection.pause(paused=True)

    def heartbeat(self, request: Request, text: bytes) -> None:
        """Tell the client of a silent stream that it is still being served."""
        if not request.committed:
            request.committed = True
            request.status = 200
            request.flags |= int(DoneFlag.HEARTBEAT)
            request.egress.begin_stream(request, b"", b"text/event-stream")
        request.egress.write_comment(text)
        self._loop.counters.add(Counter.HEARTBEATS)

    def resume_host(self, request: Request) -> None:
        """Read a host again that was paused for its client."""
        if request.host_paused:
            request.host_paused = False
            if request.attempt is not None and request.attempt.connection is not None:
                request.attempt.last_read_ns = monotonic_ns()  # its silence until now was ours
                request.attempt.connection.pause(paused=False)
