"""The tick: time-outs, heartbeats, draining slots, spares. One timer for all requests, none per request.

Every deadline is compared with the clock, so none fires early. The tick comes every 40 ms while a deadline is near, so
none is more than 50 ms late even when the loop is busy for a few milliseconds; while none is near it comes so seldom
that it meets each new deadline at least two short ticks ahead (a wake-up of a sleeping core costs more than a token).
"""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from router.admission import BATCH, INTERACTIVE, REALTIME
from router.errors import ErrorKind
from router.memory import MemoryKeeper
from router.telemetry.counters import Counter
from router.telemetry.records import Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.attempt import Attempt
    from router.loop import Loop
    from router.request import Request

TICK_S: Final = 0.040
BLOCKED_TICK_S: Final = 0.020
"""Between ticks while a client is blocked: that it took bytes is seen one tick late, that it stalled another one."""
LONG_TICK_S: Final = 0.250
"""Most between two ticks: heartbeat, gauges and the age of idle connections need no more."""
_SLOW_NS: Final = 1_000_000_000
_NS: Final = 1_000_000_000
_HEARTBEAT_TEXT: Final = b"waiting for the model"
_FAR_NS: Final = 1 << 62
_WAITING_COUNTERS: Final = (
    (REALTIME, Counter.WAITING_REALTIME),
    (INTERACTIVE, Counter.WAITING_INTERACTIVE),
    (BATCH, Counter.WAITING_BATCH),
)


class Watch:
    """Owns the one timer of the router."""

    def __init__(
        self, loop: Loop, *, threshold_ns: int, shortest_s: float, clients_under_way: Callable[[int], bool]
    ) -> None:
        self._loop = loop
        self._threshold_ns = threshold_ns
        self._clients_under_way = clients_under_way
        self._event_loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._due_ns = 0
        self._slow_ns = 0
        self._long_s = TICK_S
        self.configure(shortest_s)
        self._cycle_max_ns = 0
        self._blocked = False
        self._memory = MemoryKeeper()
        self.on_second: Callable[[int], None] = _nothing
        """Called each second, behind everything else the tick does: the loop is making progress."""

    def configure(self, shortest_s: float) -> None:
        """Go on with other time-outs, the shortest of which is this long; the next tick comes soon."""
        # A request that begins right after a tick is looked at by the next one, before any of its time-outs is near.
        self._long_s = min(max(shortest_s - 2 * TICK_S, TICK_S), LONG_TICK_S)
        for request in self._loop.in_flight.values():
            request.check_ns = 0
        if self._timer is not None:
            self._timer.cancel()
            self._arm(TICK_S)

    def start(self) -> None:
        """Begin ticking."""
        self._arm(TICK_S)

    def stop(self) -> None:
        """Tick no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def look_closer(self) -> None:
        """A client is blocked: only a look at its socket shows that it takes its bytes."""
        if self._timer is not None and self._due_ns - monotonic_ns() > BLOCKED_TICK_S * _NS:
            self._timer.cancel()
            self._arm(BLOCKED_TICK_S)

    def _arm(self, delay_s: float) -> None:
        self._due_ns = monotonic_ns() + int(delay_s * _NS)
        self._timer = self._event_loop.call_later(delay_s, self._tick)

    def _tick(self) -> None:
        delay_s = TICK_S
        try:
            delay_s = self._look()
        finally:
            self._arm(delay_s)  # whatever went wrong with one request, the time-outs of all others go on

    def _look(self) -> float:
        """Do what is due; return how long to sleep."""
        now = monotonic_ns()
        self._note_cycle(now)
        loop = self._loop
        loop.flush()
        near = self._clients_under_way(now)
        soon = now + int((self._long_s + TICK_S) * _NS)
        self._blocked = False
        for request in list(loop.in_flight.values()):
            if now >= request.check_ns:
                self._check(request, now)
            near = near or request.check_ns < soon
        recovery = loop.recovery
        if now >= recovery.standing.due_ns:
            recovery.tick(now)
        near = near or recovery.standing.due_ns < soon
        for host in loop.hosts:
            if host.draining:
                near = True
                if host.expire_draining(now):
                    loop.pump(host, now)
        if now >= self._slow_ns:
            self._slow_ns = now + _SLOW_NS
            self._second(now)
        return BLOCKED_TICK_S if self._blocked else TICK_S if near else self._long_s

    def _note_cycle(self, now: int) -> None:
        """A timer that fires late shows how long the loop was busy with something else."""
        late_ns = now - self._due_ns
        if late_ns > self._cycle_max_ns:
            self._cycle_max_ns = late_ns
            self._loop.counters.set(Counter.CYCLE_NS_MAX, late_ns)
        if late_ns > self._threshold_ns:
            self._loop.counters.add(Counter.CYCLES_LONG)

    def _second(self, now: int) -> None:
        loop = self._loop
        loop.telemetry.beat(now)
        loop.recovery.second(now)
        loop.fleet.prune(now)
        loop.counters.set(Counter.IN_FLIGHT, len(loop.in_flight))
        loop.counters.set(Counter.WAITING, loop.waiting_count)
        rooms = [model.waiting for model in loop.models.values()]
        for workload, counter in _WAITING_COUNTERS:
            loop.counters.set(counter, sum(room.count(workload) for room in rooms) if loop.waiting_count else 0)
        self._memory.second(busy=bool(loop.in_flight))
        for call in loop.seconds:
            call(now)
        self.on_second(now)

    # ------------------------------------------------------------ one request
    def _check(self, request: Request, now: int) -> None:
        """Fire what is due and note when to look again."""
        model = request.model
        egress = request.egress
        if egress.blocked and self._check_blocked(request, now):
            return
        total = request.recv + model.total_ns
        if request.ending and now < total:
            request.check_ns = now if egress.blocked else total
            return
        if now >= total:
            self._loop.time_out(
                request, ErrorKind.TOTAL_TIMEOUT, _text("the request took", model.total_ns, "total_s"), now
            )
            return
        due, kind = self._phase_deadline(request)
        if now >= due:
            if kind is ErrorKind.DEADLINE_EXCEEDED:
                self._loop.refusals.deadline_passed(request, now)
            else:
                self._loop.time_out(request, kind, self._reason(request, kind), now)
            return
        self._loop.telemetry.show_phase(request)  # decoding has begun, perhaps: shown here, off the token's path
        beat = self._beat(request, now)
        request.check_ns = now if egress.blocked else min(total, due, beat)

    @staticmethod
    def _phase_deadline(request: Request) -> tuple[int, ErrorKind]:
        """Return when the time-out of the request's phase comes, and which one it is."""
        model, attempt = request.model, request.attempt
        if attempt is None and request.phase == Phase.PREFILL and not request.failed_attempts:
            return _FAR_NS, ErrorKind.TOTAL_TIMEOUT  # it waits beside the loop for what other requests bring
        if request.phase == Phase.WAITING or attempt is None:
            start = request.failed_attempts[-1][7] if request.failed_attempts else request.deq
            due = start + model.queue_ns
            if request.deadline_ns and not request.serves_late and request.deadline_ns < due:
                return request.deadline_ns, ErrorKind.DEADLINE_EXCEEDED
            return due, ErrorKind.QUEUE_TIMEOUT
        if request.phase == Phase.CONNECTING:
            return request.routed + model.connect_ns, ErrorKind.CONNECT_TIMEOUT
        if request.tok1:  # a host is silent too because we do not read it
            return _FAR_NS if request.host_paused else attempt.read_ns() + model.idle_ns, ErrorKind.IDLE_TIMEOUT
        if not (request.stream or request.fold):  # a whole answer comes when it is finished: only total_s bounds it
            return _FAR_NS, ErrorKind.FIRST_TOKEN_TIMEOUT
        return (request.sent_ns or request.conn_ns) + model.first_token_ns, ErrorKind.FIRST_TOKEN_TIMEOUT

    @staticmethod
    def _reason(request: Request, kind: ErrorKind) -> str:
        """Return what to tell the client of a time-out."""
        model = request.model
        host = f"host {request.attempt.host.name}" if request.attempt is not None else ""
        if kind == ErrorKind.QUEUE_TIMEOUT:
            return _text("no slot was free for", model.queue_ns, "queue_s")
        if kind == ErrorKind.CONNECT_TIMEOUT:
            return _text(f"{host} did not accept a connection for", model.connect_ns, "connect_s")
        if kind == ErrorKind.IDLE_TIMEOUT:
            return _text(f"{host} sent nothing for", model.idle_ns, "idle_s")
        return _text(f"{host} sent no content for", model.first_token_ns, "first_token_s")

    def _beat(self, request: Request, now: int) -> int:
        """Send a comment into a stream that has been silent for too long; return when the next one is due."""
        beat_ns: int = request.model.heartbeat_ns
        if not beat_ns or not request.stream or not request.comments:
            return _FAR_NS
        attempt: Attempt | None = request.attempt
        last_read = attempt.read_ns() if attempt is not None and request.tok1 else 0
        last = max(request.body_ns, request.last_out_ns, last_read)
        if now < last + beat_ns:
            return last + beat_ns
        request.last_out_ns = now
        self._loop.clients.heartbeat(request, _HEARTBEAT_TEXT)
        return now + beat_ns

    def _check_blocked(self, request: Request, now: int) -> bool:
        """Watch a client that does not take its bytes; return whether it was dropped."""
        loop, limits = self._loop, self._loop.limits
        self._blocked = True
        taken = request.bytes_out - request.egress.untaken_bytes()
        if taken > request.taken_bytes or not request.blocked_ns:
            request.blocked_ns = now
        request.taken_bytes = taken
        if now - request.blocked_ns >= request.model.stall_ns:
            loop.clients.stalled(request, now)
            return True
        if request.host_paused and request.egress.unsent_bytes() <= limits.client_resume_bytes:
            loop.clients.resume_host(request)
        return False


def _nothing(_: int) -> None:
    """Stand in for who would be told."""


def _text(what: str, limit_ns: int, key: str) -> str:
    return f"{what} {limit_ns / _NS:g} s (timeouts.{key})"
