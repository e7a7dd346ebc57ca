"""The duty cycle: requests off the ring, through the waiting room, to a host, and their end. The only writer of routing
state.

Everything happens in the callback that brought it about: the ingress publishes into the request ring and drains it in
the same turn; a freed slot starts the next waiting request at once. Time-outs are the tick's (:mod:`router.watch`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from router import outbound, verdicts
from router.admission import Admission, admit
from router.attempt import Attempt
from router.errors import UNDECODABLE, WIRE, ErrorKind, RequestError
from router.models import Model
from router.routing import NO_HOST, Candidate, choose
from router.telemetry.counters import Counter
from router.telemetry.records import DoneFlag, Kind, Outcome, Phase

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router.config import Config
    from router.hosts.connection import HostConnection
    from router.hosts.fleet import Fleet
    from router.hosts.host import Host
    from router.request import Request
    from router.telemetry.writer import Telemetry

# The interpreter looks members of an enum up anew each time: those of every request are kept here.
_RUN: Final = Admission.RUN
_OK: Final = Outcome.OK
_CONNECTING, _DONE = Phase.CONNECTING, Phase.DONE
_OPEN, _DISPATCHED, _DONE_EVENT = int(Kind.OPEN), int(Kind.DISPATCHED), int(Kind.DONE)
_FLAG_STREAM, _FLAG_FOLDED = int(DoneFlag.STREAM), int(DoneFlag.FOLDED)
_DRAIN_MAX: Final = 64
"""Requests taken off the ring in one turn."""
_ENDED_MAX: Final = 16
"""Ended requests whose records wait to be written; then they are written at once."""
_MS_NS: Final = 1_000_000
_RETRY_AFTER_S: Final = 1
_STALE_RETRIES_MAX: Final = 2


class Loop:
    """Owns requests, models, and the slots of hosts."""

    def __init__(self, config: Config, hosts: Sequence[Host], fleet: Fleet, telemetry: Telemetry) -> None:
        self.config = config
        self.limits = config.limits
        self.hosts = hosts
        self.fleet = fleet
        self.telemetry = telemetry
        self.counters = telemetry.counters
        self.models: dict[str, Model] = {}
        self.in_flight: dict[int, Request] = {}
        self.waiting_count = 0
        self.stopping = False
        self._published: dict[int, Request] = {}
        self._pumping = False
        self._ended: deque[Request] = deque()
        self._fail_after = config.health.fail_after

    @property
    def backlog(self) -> int:
        """Requests that were published and not taken off the ring: 0 between two turns of a loop that works."""
        return len(self._published)

    # ------------------------------------------------------------ in
    def submit(self, request: Request, w4: int, w5: int, w6: int) -> None:
        """Publish a request into the ring and drain it in this turn.

        Raises :class:`RequestError` when there is no room. The words are those of the request record behind its three
        stamps.
        """
        if self.stopping:
            raise RequestError(ErrorKind.SHUTTING_DOWN, "the router is shutting down; ask again in a moment")
        if len(self.in_flight) >= self.limits.in_flight:
            text = f"{self.limits.in_flight} requests are in flight (limits.in_flight)"
            self.telemetry.errors.note(f"overloaded: {text}", monotonic_ns())
            raise RequestError(ErrorKind.OVERLOADED, text)
        request.pub = monotonic_ns()
        sequence = self.telemetry.requests.try_publish(request.recv, request.body_ns, request.pub, w4, w5, w6, 0)
        if sequence < 0:
            text = "the request ring is full (rings.requests)"
            self.telemetry.errors.note(f"overloaded: {text}", request.pub)
            raise RequestError(ErrorKind.OVERLOADED, text)
        request.seq = sequence
        self._published[sequence] = request
        self.drain()

    def drain(self) -> None:
        """Take what was published off the ring, in order, in one batch."""
        reader = self.telemetry.loop_reader
        first, end = reader.poll(_DRAIN_MAX)
        try:
            for sequence in range(first, end):
                self._admit(self._published.pop(sequence))
        finally:
            reader.release(end)  # whatever happened to one request, the next ones follow it

    def _admit(self, request: Request) -> None:
        now = request.deq = monotonic_ns()
        model = request.model
        self.in_flight[request.seq] = request
        candidates = self._candidates(request)
        healthy = free = 0
        for _, busy, slots, is_healthy, _ in candidates:
            if is_healthy:
                healthy += 1
                if slots > busy:
                    free += slots - busy
        waiting = len(model.waiting)
        if waiting and free and not self._is_behind(request):
            waiting = 0
        decision = admit(waiting, self.limits.waiting, healthy, free)
        if decision is _RUN:
            self._run(request, now, candidates)
            if request.row < 0:  # it waits for a connection
                self._book(request)
        elif decision is Admission.WAIT:
            self._wait(request)
        elif decision is Admission.REFUSE_FULL:
            text = f"{self.limits.waiting} requests wait for {model.name!r} (limits.waiting)"
            self.fail(request, ErrorKind.OVERLOADED, text, now)
        else:
            self.fail(request, ErrorKind.NO_HOST, self._no_host_text(request), now)

    def _book(self, request: Request) -> None:
        """Give a request its row and its first record: once, and after it went to a host where that is at once."""
        if request.row < 0 and request.phase is not _DONE:
            telemetry = self.telemetry
            if not telemetry.has_row():
                self.flush()  # ended requests hold their rows until their records are written
            request.row = telemetry.take_row()
            telemetry.publish_token(request.deq, request.seq, _OPEN | request.host << 16, request.event_index, 0, 0, 0)
            telemetry.show_phase(request)

    def _is_behind(self, request: Request) -> bool:
        """Whether somebody waits for one of the free slots that a new request could take.

        Who waits is not always in its way: requests that pass through wait for hosts that have their path, and those
        that a host has failed wait for another.
        """
        free = [h for h in self._hosts(request) if h.healthy and h.free_slots > 0]
        return any(self._may_serve(host, waiting) for waiting in request.model.waiting for host in free)

    def _no_host_text(self, request: Request) -> str:
        hosts = self._hosts(request)
        reasons = "; ".join(f"{h.name}: {h.last_error or 'not healthy'}" for h in hosts) or "none is configured"
        return f"no host can serve {request.model.name!r} now ({reasons})"

    def _wait(self, request: Request, *, first: bool = False) -> None:
        waiting = request.model.waiting
        request.phase = Phase.WAITING
        request.check_ns = 0
        if first:
            waiting.appendleft(request)
        else:
            request.waiting_ahead = len(waiting)
            waiting.append(request)
        self.waiting_count += 1
        self._book(request)
        self.telemetry.show_phase(request)

    # ------------------------------------------------------------ to a host
    @staticmethod
    def _hosts(request: Request) -> list[Host]:
        """Return the hosts of a request's model that have its path."""
        hosts: list[Host] = request.model.hosts
        path = request.path
        return [h for h in hosts if path in h.facts.paths] if path else hosts

    def _candidates(self, request: Request) -> list[Candidate]:
        tried = request.tried
        candidates = []
        for h in self._hosts(request):
            host_id = h.host_id
            candidates.append(
                (host_id, h.running + len(h.draining), h.facts.slot_count, h.healthy, bool(tried) and host_id in tried)
            )
        return candidates

    def _run(self, request: Request, now: int, candidates: list[Candidate] | None = None) -> bool:
        """Route a request and start an attempt; false when no host has a free slot for it."""
        model = request.model
        if candidates is None:
            candidates = self._candidates(request)
        chosen = choose(candidates, model.turn)
        if chosen == NO_HOST:
            return False
        model.turn = chosen + 1
        if not request.admitted:
            request.admitted = now
        host = self.hosts[candidates[chosen][0] - 1]
        request.candidates = candidates
        request.chosen = chosen
        request.host = host.host_id
        routed = request.routed = monotonic_ns()
        if not request.routed1:
            request.routed1 = routed
        request.attempt_count += 1
        running = host.running = host.running + 1
        sent = self._connect(request, host)
        host.spares.start(routed, running)
        if sent:
            self.fleet.top_up(host, routed)
        return True

    def _connect(self, request: Request, host: Host, *, fresh: bool = False) -> bool:
        """Start an attempt; return whether there was a connection for it at once."""
        attempt = request.attempt = Attempt(self, request, host)
        request.phase = _CONNECTING
        request.check_ns = 0
        connection = None if fresh else self.fleet.take(host, request.routed)
        if connection is None:
            self.fleet.request(attempt)
            return False
        self.connected(attempt, connection, monotonic_ns())
        return True

    def connected(self, attempt: Attempt, connection: HostConnection, now: int) -> None:
        """An attempt has its connection: send the request, then write down that it was."""
        request = attempt.request
        try:
            data = outbound.build(attempt)
        except UNDECODABLE as error:  # what could just be decoded may be too deep to be edited
            self._end_attempt(attempt, now, host_may_work=False)
            self.fail(request, ErrorKind.BAD_REQUEST, f"the body cannot be edited: {error}", now)
            self.fleet.keep(connection)
            return
        attempt.start(connection, data, now)
        telemetry = self.telemetry
        if request.row < 0:
            self._book(request)
        else:
            telemetry.show_phase(request)
        telemetry.publish_token(now, request.seq, _DISPATCHED | request.host << 16, request.event_index, 0, 0, 0)
        request.egress.prepare(request)

    def closed_before_answer(self, attempt: Attempt, now: int) -> None:
        """A host closed before the answer's head was complete.

        Before its first byte on a kept connection that is no failure of the request: the host gave the connection up at
        the same moment. It goes out again on a new connection to the same host, which the client never sees.
        """
        request = attempt.request
        stale = attempt.on_kept_connection and not request.hfb
        if stale and request.stale_retries < _STALE_RETRIES_MAX:
            request.stale_retries += 1
            self.counters.add(Counter.RETRIES_STALE)
            attempt.over = True
            request.conn_ns = request.sent_ns = 0
            request.routed = now  # the time to connect begins anew
            self._connect(request, attempt.host, fresh=True)
            return
        self.attempt_failed(attempt, ErrorKind.HOST_CLOSED, f"host {attempt.host.name} closed before it answered", now)

    # ------------------------------------------------------------ slots
    def release_slot(self, host: Host, now: int) -> None:
        """A request no longer runs at a host: the next waiting one takes its place in this turn."""
        host.running -= 1
        self.pump(host, now)

    def pump(self, host: Host, now: int) -> None:
        """Start waiting requests while the host has free slots, the longest waiting first."""
        if self._pumping or not self.waiting_count:
            return
        self._pumping = True
        try:
            while host.healthy and host.free_slots > 0:
                request = self._longest_waiting(host)
                if request is None:
                    break
                request.model.waiting.remove(request)
                self.waiting_count -= 1
                if not self._run(request, now):
                    self._wait(request, first=True)
                    break
        finally:
            self._pumping = False

    def _longest_waiting(self, host: Host) -> Request | None:
        """Return the request that has waited longest of those the host may serve."""
        best: Request | None = None
        for name in host.models:
            model = self.models[name]
            for request in model.waiting:
                if best is not None and best.deq <= request.deq:
                    break
                if self._may_serve(host, request):
                    best = request
                    break
        return best

    def _may_serve(self, host: Host, request: Request) -> bool:
        """Whether a waiting request of one of the host's models may go there."""
        if request.path and request.path not in host.facts.paths:
            return False
        return host.host_id not in request.tried or not self._untried(request)

    def _untried(self, request: Request) -> bool:
        """Whether a healthy host is left that has not failed this request."""
        return any(h.healthy and h.host_id not in request.tried for h in self._hosts(request))

    # ------------------------------------------------------------ failures
    def host_failed(self, host: Host, text: str, now: int) -> None:
        """Count a failure of a host; after several in a row it gets no requests until a probe succeeds."""
        host.failures += 1
        host.last_error = text
        if host.healthy and host.failures >= self._fail_after:
            self.set_health(host, healthy=False, now=now)

    def set_health(self, host: Host, *, healthy: bool, now: int) -> None:
        """Mark a host; one that comes back takes waiting requests at once."""
        if host.healthy == healthy:
            return
        host.healthy = healthy
        host.failures = 0
        if healthy:
            host.last_error = ""
        self.counters.set(Counter.HOSTS_HEALTHY, sum(h.healthy for h in self.hosts))
        self.on_health(host)
        if healthy:
            self.fleet.top_up(host, now)
            self.pump(host, now)

    def on_blocked(self) -> None:
        """Called when a client is blocked; the daemon lets the tick look closer."""

    def on_health(self, host: Host) -> None:
        """Called when a host's health has changed; the daemon logs it."""

    def attempt_failed(self, attempt: Attempt, kind: ErrorKind, text: str, now: int) -> None:
        """An attempt failed: tried elsewhere before the commit point, an error for the client after it."""
        if attempt.over:
            return
        request, host = attempt.request, attempt.host
        self._end_attempt(attempt, now, host_may_work=kind in verdicts.BROKEN_OFF and bool(request.sent_ns))
        self._note_failed(request, host, kind, attempt.status, now)
        if kind in verdicts.UNHEALTHY:
            self.host_failed(host, text, now)
        elsewhere = kind in verdicts.ANSWERED
        if attempt.live or kind not in verdicts.RETRIED or not self._retry(request, host, now, elsewhere=elsewhere):
            self.fail(request, kind, text, now)
        self.pump(host, now)

    def fault(self, attempt: Attempt, now: int) -> None:
        """The router itself has failed at an answer: the request ends and its slot is free, whatever else fails."""
        request = attempt.request
        try:
            self.attempt_failed(attempt, ErrorKind.INTERNAL, "the router failed; its log says how", now)
        finally:
            if request.phase is not _DONE and not request.ending:
                self._drop_client(request, Outcome.ABORTED, ErrorKind.INTERNAL, now)
                request.egress.abort()

    def host_status(self, attempt: Attempt, status: int, content_type: bytes, body: bytes, now: int) -> None:
        """A host answered with an error status: retried elsewhere if that can help, else passed on as it is."""
        request, host = attempt.request, attempt.host
        attempt.complete(now)
        request.attempt = None
        self._note_failed(request, host, ErrorKind.HOST_STATUS, status, now)
        if status in verdicts.RETRIED_STATUSES and self._retry(request, host, now, elsewhere=True):
            return
        text = outbound.error_text(body) or f"host {host.name} answered {status}"
        request.error = ErrorKind.HOST_STATUS
        request.message = text
        request.status = status
        outcome = Outcome.BAD_REQUEST if 400 <= status < 500 else Outcome.HOST_ERROR
        if request.committed:
            request.egress.break_stream(request, request.failure(ErrorKind.HOST_STATUS, f"{status}: {text}"))
        else:
            if not request.path:
                content_type, body = outbound.openai_shaped(status, content_type, body)
            extra = b"retry-after: %b\r\n" % attempt.retry_after if attempt.retry_after else b""
            request.egress.whole(request, status, content_type, body, extra + attempt.passed_headers)
        self._end(request, outcome, now)

    def _note_failed(self, request: Request, host: Host, kind: ErrorKind, status: int, now: int) -> None:
        self.counters.add(Counter.ATTEMPTS_FAILED)
        self.telemetry.event(now, request, Kind.ATTEMPT_FAILED)
        # The kind alone: what a host says may quote a prompt, and may be different every time.
        what = f"{kind.name.lower()} {status}" if kind == ErrorKind.HOST_STATUS else kind.name.lower()
        self.telemetry.errors.note(f"host {host.name}: {what}", now)
        attempt = (host.host_id, kind, status, request.routed, request.conn_ns, request.sent_ns, request.hfb, now)
        request.failed_attempts += (attempt,)

    def _retry(self, request: Request, host: Host, now: int, *, elsewhere: bool) -> bool:
        """Start another attempt, at once or as soon as a slot is free; false when the request has none left.

        ``elsewhere``: the host has worked on it and would do no better a second time.
        """
        total_ns = request.model.total_ns
        if request.attempt_count >= self.limits.attempts or now - request.recv >= total_ns or self.stopping:
            return False
        request.tried += (host.host_id,)
        if not (self._untried(request) if elsewhere else any(h.healthy for h in self._hosts(request))):
            return False
        request.reset_attempt()
        if not self._run(request, now):
            self._wait(request, first=True)
        return True

    def _end_attempt(self, attempt: Attempt, now: int, *, host_may_work: bool) -> None:
        """Take connection and slot back from an attempt that did not complete; the host learns of it in this call."""
        connection = attempt.take_connection()
        request, host = attempt.request, attempt.host
        request.attempt = None
        deaf = not (request.stream or request.fold or request.hfb or host.facts.cancels_whole_answers)
        if connection is None:
            self.fleet.withdraw(attempt)
        elif host_may_work and deaf:
            self.fleet.abandon(connection, request.recv + request.model.total_ns)
            return
        else:
            connection.kill()
        grace_ns = int(host.facts.cancel_grace_ms * _MS_NS)
        if host_may_work and grace_ns:
            host.drain_slot(now + grace_ns)
        host.running -= 1  # behind the line before: in between another router would see a slot free

    def fail(self, request: Request, kind: ErrorKind, text: str, now: int) -> None:
        """End a request with an error of the router's own."""
        request.error = kind
        request.message = text
        if kind in verdicts.OF_NO_ATTEMPT:
            self.telemetry.errors.note(f"model {request.model.name}: {kind.name.lower()}", now)
        self._leave_waiting(request)
        if request.committed:
            self.telemetry.event(now, request, Kind.ERROR)
            request.egress.break_stream(request, request.failure(kind, text))
        else:
            request.status = WIRE[kind].status
            retry_after = _RETRY_AFTER_S if request.status in {429, 503} else 0
            request.egress.fail(request, kind, text, retry_after)
        if kind in verdicts.TIMEOUTS:
            self.counters.add(Counter.TIMEOUTS)
        self._end(request, verdicts.outcome_of(kind), now)

    def time_out(self, request: Request, kind: ErrorKind, text: str, now: int) -> None:
        """A time-out of the router has come: end the attempt, if there is one, and the request."""
        attempt = request.attempt
        if request.ending:  # the answer is complete: nothing may be written behind it
            self.client_stalled(request, now)
        elif attempt is not None:
            self.attempt_failed(attempt, kind, text, now)
        else:
            self.fail(request, kind, text, now)

    def _leave_waiting(self, request: Request) -> None:
        if request.phase == Phase.WAITING:
            request.model.waiting.remove(request)
            self.waiting_count -= 1
            request.phase = Phase.NONE

    # ------------------------------------------------------------ the client
    def client_left(self, request: Request, now: int) -> None:
        """The client is gone: whatever is done for it stops in this very call."""
        self._drop_client(request, Outcome.CLIENT_GONE, ErrorKind.CLIENT_GONE, now)

    def client_stalled(self, request: Request, now: int) -> None:
        """The client has taken no byte for too long: its own fault."""
        egress = request.egress
        self._drop_client(request, Outcome.CLIENT_STALLED, ErrorKind.CLIENT_STALLED, now)
        egress.abort()

    def _drop_client(self, request: Request, outcome: Outcome, kind: ErrorKind, now: int) -> None:
        if request.phase is _DONE:
            return
        request.left_ns = now
        self._leave_waiting(request)
        attempt = request.attempt
        if attempt is not None and not attempt.over:
            host = attempt.host
            self._end_attempt(attempt, now, host_may_work=bool(request.sent_ns))
            request.cancel_latency_ns = monotonic_ns() - now
            request.tokens_saved = max(0, request.max_tokens - request.content_count)
            self.telemetry.event(now, request, Kind.CANCEL)
            self._finish(request, outcome, kind, now)
            self.pump(host, now)
            return
        self._finish(request, outcome, kind, now)

    def client_blocked(self, request: Request) -> None:
        """The client's socket does not take everything."""
        now = monotonic_ns()
        request.blocked_ns = now
        request.taken_bytes = request.bytes_out - request.egress.untaken_bytes()
        request.check_ns = 0
        self.on_blocked()
        self.telemetry.event(now, request, Kind.BLOCKED)

    def client_drained(self, request: Request) -> None:
        """The client's socket has taken everything that was written."""
        now = monotonic_ns()
        self.telemetry.event(now, request, Kind.DRAINED)
        request.blocked_ns = 0
        if request.tok1:
            request.out_n = now
            if not request.out1:
                request.out1 = now
        self.resume_host(request)
        if request.ending:
            self._finish(request, request.ending, request.error, now)

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
        self.counters.add(Counter.HEARTBEATS)

    def resume_host(self, request: Request) -> None:
        """Read a host again that was paused for its client."""
        if request.host_paused:
            request.host_paused = False
            if request.attempt is not None and request.attempt.connection is not None:
                request.attempt.last_read_ns = monotonic_ns()  # its silence until now was ours
                request.attempt.connection.pause(paused=False)

    # ------------------------------------------------------------ the end
    def end_ok(self, request: Request, now: int) -> None:
        """The answer is written and complete."""
        if request.attempt is not None:
            request.attempt.host.failures = 0
        self._end(request, _OK, now)

    def end_with_host_error(self, request: Request, text: str, now: int) -> None:
        """The host ended its stream with an error event, which the client has got."""
        request.error = ErrorKind.HOST_ERROR_EVENT
        request.message = text
        self._end(request, Outcome.HOST_ERROR, now)

    def _end(self, request: Request, outcome: Outcome, now: int) -> None:
        """Everything is written; wait for the client's socket to take it, then finish."""
        request.attempt = None
        if request.egress.blocked:
            request.ending = outcome
            request.phase = Phase.DECODE
            request.check_ns = 0
            return
        if request.tok1 and (request.folded or not request.stream):
            request.out1 = request.out_n = monotonic_ns()
        self._finish(request, outcome, request.error, now)

    def _finish(self, request: Request, outcome: Outcome, error: ErrorKind, now: int) -> None:
        if request.phase is _DONE:
            return
        self._book(request)
        request.phase = _DONE
        request.attempt = None
        request.outcome = outcome
        request.error = error
        request.done_ns = max(now, request.out_n)
        if request.stream:
            request.flags |= _FLAG_STREAM
        if request.folded:
            request.flags |= _FLAG_FOLDED
        self.in_flight.pop(request.seq, None)
        self.telemetry.event(request.done_ns, request, _DONE_EVENT)
        request.let_go()
        request.packed_tcp = request.egress.tcp_info()
        self._ended.append(request)
        request.egress.finished()
        if len(self._ended) >= _ENDED_MAX:
            self.flush()

    def flush(self) -> None:
        """Write the done records of the requests that have ended.

        A client's next request often comes within microseconds of its last byte, and should not wait for the record of
        the one before; and several in a row take half the time of as many apart, whose code and data are cold. So the
        tick writes them, after 250 ms at most, or whoever ends the sixteenth.
        """
        while self._ended:
            request = self._ended.popleft()
            self._count(request)
            try:
                self.telemetry.done(request)
            except Exception as error:
                text = "a done record could not be written"
                self.telemetry.errors.note(f"{text}; the log says where", request.done_ns)
                asyncio.get_running_loop().call_exception_handler({"message": text, "exception": error})

    def _count(self, request: Request) -> None:
        counters = self.counters
        counters.add(_OUTCOME_COUNTERS[request.outcome])
        counters.add(_TOKEN_EVENTS, request.event_index)
        counters.add(_BYTES_TO_CLIENTS, request.bytes_out)


_TOKEN_EVENTS, _BYTES_TO_CLIENTS = Counter.TOKEN_EVENTS, Counter.BYTES_TO_CLIENTS
_OUTCOME_COUNTER: Final = {
    Outcome.OK: Counter.REQUESTS_OK,
    Outcome.REJECTED: Counter.REQUESTS_REFUSED,
    Outcome.HOST_ERROR: Counter.REQUESTS_FAILED,
    Outcome.TIMEOUT: Counter.REQUESTS_FAILED,
    Outcome.ABORTED: Counter.REQUESTS_FAILED,
    Outcome.BAD_REQUEST: Counter.REQUESTS_BAD,
    Outcome.CLIENT_GONE: Counter.CLIENTS_GONE,
    Outcome.CLIENT_STALLED: Counter.CLIENTS_STALLED,
}
_OUTCOME_COUNTERS: Final = [_OUTCOME_COUNTER.get(outcome, Counter.REQUESTS_FAILED) for outcome in Outcome]
"""By number: to hash a member of an enum is a call of Python."""
assert [*Outcome] == [*range(len(Outcome))]
