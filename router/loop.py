"""The duty cycle: requests off the ring, through the waiting room, to a host, and their end. The only writer of routing
state.

Everything happens in the callback that brought it about: the ingress publishes into the request ring and drains it in
the same turn; a freed slot starts the next waiting request at once. Time-outs are the tick's (:mod:`router.watch`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING, Final, NoReturn

from router import outbound, verdicts
from router.admission import Admission, Turns, admit, next_of
from router.attempt import Attempt
from router.clients import Clients
from router.dispatching import DRAIN_MAX, dispatcher
from router.errors import UNDECODABLE, WIRE, ErrorKind, RequestError
from router.models import Model
from router.picking import pick
from router.recovery import Recovery
from router.refusals import RETRY_AFTER_S, Refusals
from router.request import NO_TERMS
from router.routing import NO_HOST, Candidate, choose
from router.telemetry.counters import Counter
from router.telemetry.records import DoneFlag, Kind, Outcome, Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.config import Config
    from router.hosts.connection import HostConnection
    from router.hosts.fleet import Fleet
    from router.hosts.host import Host
    from router.request import Request
    from router.routing.policy import Policy
    from router.telemetry.writer import Telemetry

# The interpreter looks members of an enum up anew each time: those of every request are kept here.
_RUN: Final = Admission.RUN
_OK: Final = Outcome.OK
_CONNECTING, _DONE = Phase.CONNECTING, Phase.DONE
_OPEN, _DISPATCHED, _DONE_EVENT = int(Kind.OPEN), int(Kind.DISPATCHED), int(Kind.DONE)
_FLAG_STREAM, _FLAG_FOLDED = int(DoneFlag.STREAM), int(DoneFlag.FOLDED)
_ENDED_MAX: Final = 16
"""Ended requests whose records wait to be written; then they are written at once."""


class Loop:
    """Owns requests, models, and the slots of hosts."""

    def __init__(self, config: Config, hosts: list[Host], fleet: Fleet, telemetry: Telemetry) -> None:
        self.config = config
        self.limits = config.limits
        self.hosts = hosts
        """Those of the configuration, and those that were taken out of it as long as something runs there."""
        self.host_of = {host.host_id: host for host in hosts}
        """By id: the hosts that there were since the start, each as it is now."""
        self.fleet = fleet
        self.telemetry = telemetry
        self.counters = telemetry.counters
        self.host_settings = {host.host_id: host.config for host in hosts}
        """By host id: what routing policies look at for each decision."""
        self.models: dict[str, Model] = {}
        """By their own names."""
        self.by_name: dict[str, Model] = {}
        """By every name that a client may use: aliases too."""
        self.in_flight: dict[int, Request] = {}
        self.waiting_count = 0
        self.stopping = False
        self.turns = Turns()
        self.take: Callable[[Request, int], None] = self.place
        """What is done with each request off the ring at a time. Caches put themselves in front of it."""
        self.seconds: list[Callable[[int], None]] = []
        """What else is done each second; ``now`` is given."""
        self._published: dict[int, Request] = {}
        self._pumping = False
        self._ended: deque[Request] = deque()
        self.recovery = Recovery(self, hosts)
        self.clients = Clients(self)
        self.refusals = Refusals(self)
        if type(self).place is _PLACE and (submit := dispatcher(self, self._published, Attempt)) is not None:
            self.submit = submit  # type: ignore[method-assign, assignment]  # in one call

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
        if len(self.in_flight) >= self.limits.in_flight and not self.has_own_room(request):
            text = f"{self.limits.in_flight} requests are in flight (limits.in_flight)"
            self.telemetry.errors.note(f"overloaded: {text}", monotonic_ns())
            self.counters.add(Counter.REFUSED_FULL)
            raise RequestError(ErrorKind.OVERLOADED, text)
        request.pub = monotonic_ns()
        sequence = self.telemetry.requests.try_publish(request.recv, request.body_ns, request.pub, w4, w5, w6, 0)
        if sequence < 0:
            self.refuse_ring_full(request)
        request.seq = sequence
        self._published[sequence] = request
        self.drain()

    def refuse_ring_full(self, request: Request) -> NoReturn:
        """Raise what a client is told whose request found no room in the ring."""
        text = "the request ring is full (rings.requests)"
        self.telemetry.errors.note(f"overloaded: {text}", request.pub)
        raise RequestError(ErrorKind.OVERLOADED, text)

    def drain(self) -> None:
        """Take what was published off the ring, in order, in one batch."""
        reader = self.telemetry.loop_reader
        first, end = reader.poll(DRAIN_MAX)
        try:
            for sequence in range(first, end):
                request = self._published.pop(sequence)
                now = request.deq = monotonic_ns()
                self.in_flight[sequence] = request
                try:
                    self.take(request, now)
                except Exception as error:
                    self._give_up(request, error)
        finally:
            reader.release(end)  # whatever happened to one request, the next ones follow it

    def _give_up(self, request: Request, error: Exception) -> None:
        """End a request that could not be placed, because of a fault of the router's own, where it is nowhere yet."""
        text = "a request could not be placed"
        asyncio.get_running_loop().call_exception_handler({"message": text, "exception": error})
        if request.attempt is None and request.phase not in {Phase.WAITING, _DONE}:
            self.fail(request, ErrorKind.INTERNAL, "the router failed; its log says how", monotonic_ns())

    def place(self, request: Request, now: int) -> None:
        """Have a request run, wait or be refused, by its model's hosts and who waits for them.

        One of which nothing special is known runs at once, where nobody waits and the default policy finds a host for
        it: so :meth:`_admit` would decide too, which looks closer.
        """
        model = request.model
        if (
            model.policy is not None
            or model.waiting.size
            or request.terms is not NO_TERMS
            or request.path
            or request.tried
        ):
            self._admit(request, now)
            return
        chosen, verdicts = pick(model.hosts, model.turn)
        if chosen == NO_HOST:
            self._admit(request, now)
            return
        model.turn = chosen + 1
        request.packed_candidates = verdicts
        self._go(request, now, model.hosts[chosen])
        if request.row < 0:  # it waits for a connection
            self._book(request)

    def _admit(self, request: Request, now: int) -> None:
        """Decide about a request by its model's hosts, who waits for them, and its own terms."""
        model = request.model
        candidates = self._candidates(request)
        healthy = free = 0
        for _, busy, slots, is_healthy, _ in candidates:
            if is_healthy:
                healthy += 1
                if slots > busy:
                    free += slots - busy
        waiting = model.waiting.size
        if waiting and free and not self._is_behind(request):
            waiting = 0
        decision = _RUN if free and not waiting else admit(waiting, self.limits.waiting, healthy, free)
        if request.terms.deadline_ns and self.refusals.is_hopeless(request, decision, candidates, now):
            return
        if decision is _RUN:
            if not self._run(request, now, candidates):  # free are only hosts that have failed it, as another model's
                self._wait(request)
            elif request.row < 0:  # it waits for a connection
                self._book(request)
        elif decision is Admission.WAIT and not model.waiting.is_full(request.workload):
            self._wait(request)
        elif decision is Admission.WAIT or decision is Admission.REFUSE_FULL:
            self.refusals.refuse_full(request, candidates, now)
        elif not self.recovery.fall_back(request, now):
            self.fail(request, ErrorKind.NO_HOST, self.refusals.no_host_text(request), now)

    def _book(self, request: Request) -> None:
        """Give a request its row and its first record: once, and after it went to a host where that is at once."""
        if request.row < 0 and request.phase is not _DONE:
            telemetry = self.telemetry
            if not telemetry.free_rows:
                self.flush()  # ended requests hold their rows until their records are written
            request.row = telemetry.free_rows.pop()
            telemetry.publish_token(request.deq, request.seq, _OPEN | request.host << 16, request.event_index, 0, 0, 0)
            telemetry.show_phase(request)

    def _is_behind(self, request: Request) -> bool:
        """Whether somebody waits for one of the free slots that a new request could take.

        Who waits is not always in its way: requests that pass through wait for hosts that have their path, and those
        that a host has failed wait for another.
        """
        free = [h for h in self.hosts_of(request) if h.usable and h.free_slots > 0]
        return any(self._may_serve(host, waiting) for waiting in request.model.waiting for host in free)

    def _wait(self, request: Request, *, first: bool = False) -> None:
        waiting = request.model.waiting
        request.phase = Phase.WAITING
        request.check_ns = 0
        if not first:
            self.know_share(request)
            deadline_ns, key = request.deadline_ns, request.share_key
            request.waiting_ahead = waiting.ahead_of(request.workload, deadline_ns, key)
        waiting.add(request, first=first)
        self.waiting_count += 1
        if request.deadline_ns:
            self.on_blocked()  # it may be nearer than the next tick
        self._book(request)
        self.telemetry.show_phase(request)

    def know_share(self, request: Request) -> None:
        """Find out with whom a request shares its turns."""
        if not request.share_key and request.model.waiting.is_fair and (user := self.telemetry.user_of(request)):
            request.own_terms().share_key = user

    # ------------------------------------------------------------ answered without a host
    def park(self, request: Request) -> None:
        """Let a request wait for what other requests bring; only the whole of its time is bounded."""
        request.phase = Phase.PREFILL
        request.check_ns = request.recv + request.model.total_ns
        self._book(request)

    def end_with_status(
        self, request: Request, status: int, content_type: bytes, body: bytes, extra: bytes, text: str
    ) -> None:
        """End a request with the error that a host gave to what was asked of it for this one."""
        request.error = ErrorKind.HOST_STATUS
        request.message = text
        request.status = status
        request.egress.whole(request, status, content_type, body, extra)
        self.end(request, Outcome.BAD_REQUEST if 400 <= status < 500 else Outcome.HOST_ERROR, monotonic_ns())

    # ------------------------------------------------------------ to a host
    @staticmethod
    def hosts_of(request: Request) -> list[Host]:
        """Return the hosts of a request's model that have its path, of one that is pinned that host alone."""
        hosts: list[Host] = request.model.hosts
        path = request.path
        if request.pin:
            hosts = [h for h in hosts if h.host_id == request.pin]
        return [h for h in hosts if path in h.facts.paths] if path else hosts

    def _candidates(self, request: Request) -> list[Candidate]:
        tried = request.tried
        candidates = []
        hosts = self.hosts_of(request) if request.path or request.terms.pin else request.model.hosts
        for h in hosts:
            host_id = h.host_id
            candidates.append(
                (host_id, h.running + len(h.draining), h.slots, h.usable, bool(tried) and host_id in tried)
            )
        return candidates

    def _run(self, request: Request, now: int, candidates: list[Candidate] | None = None) -> bool:
        """Route a request and start an attempt; false when no host has a free slot for it."""
        model = request.model
        if candidates is None:
            candidates = self._candidates(request)
        policy = model.policy
        chosen = choose(candidates, model.turn) if policy is None else self._choose(policy, request, candidates, now)
        if chosen == NO_HOST:
            return False
        model.turn = chosen + 1
        request.candidates = candidates
        request.chosen = chosen
        self._go(request, now, self.host_of[candidates[chosen][0]])
        return True

    def _go(self, request: Request, now: int, host: Host) -> None:
        """Start an attempt at the host that was chosen."""
        if not request.admitted:
            request.admitted = now
        request.host = host.host_id
        routed = request.routed = monotonic_ns()
        if not request.routed1:
            request.routed1 = routed
        request.attempt_count += 1
        running = host.running = host.running + 1
        policy = request.model.policy
        if policy is not None:
            self._note_choice(policy, request)
        sent = self.connect(request, host)
        spares = host.spares
        spares.start(routed, running)
        if sent and len(host.idle) < spares.largest:
            self.fleet.top_up(host, routed)

    @staticmethod
    def _choose(policy: Policy, request: Request, candidates: list[Candidate], now: int) -> int:
        """Have a policy of its own choose for a request."""
        ask = request.ask
        if ask is None or ask.policy is not policy:
            ask = request.ask = request.model.asker.ask(request, now)
        ask.now_ns = now
        return policy.choose(candidates, ask)

    @staticmethod
    def _note_choice(policy: Policy, request: Request) -> None:
        """Tell a policy that its choice is carried out, and keep for the record what it said."""
        ask = request.ask
        request.policy = policy.number
        ask.verdicts = policy.verdicts()
        policy.sent(request.host, ask)

    def run_or_wait(self, request: Request, now: int) -> None:
        """Have a request that was admitted before run again, or be the first to when a slot is free."""
        if not self._run(request, now):
            self._wait(request, first=True)

    def connect(self, request: Request, host: Host, *, fresh: bool = False) -> bool:
        """Start an attempt; return whether there was a connection for it at once."""
        attempt = request.attempt = Attempt.of(self, request, host)
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
            self.recovery.end_attempt(attempt, now, host_may_work=False)
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

    # ------------------------------------------------------------ slots
    def release_slot(self, host: Host, now: int) -> None:
        """A request no longer runs at a host: the next waiting one takes its place in this turn."""
        host.running -= 1
        if host.on_trial:
            self.recovery.standing.refresh(host, now)
        if self.waiting_count:  # the usual case is spared the call
            self.pump(host, now)

    def pump(self, host: Host, now: int) -> None:
        """Start waiting requests while the host has free slots, in the order of :mod:`router.admission`."""
        if self._pumping or not self.waiting_count:
            return
        self._pumping = True
        try:
            while host.usable and host.free_slots > 0:
                request = self._next_waiting(host, now)
                if request is None:
                    break
                request.model.waiting.start(request)
                self.turns.started(host.host_id)
                self.waiting_count -= 1
                if not self._run(request, now):
                    self._wait(request, first=True)
                    break
        finally:
            self._pumping = False

    def _next_waiting(self, host: Host, now: int) -> Request | None:
        """Return who of those that the host may serve is next."""
        rooms = [self.models[name].waiting for name in host.models]
        starving = self.turns.is_for_starving(host.host_id)
        request: Request | None = next_of(rooms, partial(self._may_serve, host), now, for_starving=starving)
        return request

    def _may_serve(self, host: Host, request: Request) -> bool:
        """Whether a waiting request of one of the host's models may go there."""
        if request.path and request.path not in host.facts.paths:
            return False
        if request.pin and request.pin != host.host_id:
            return False
        return host.host_id not in request.tried or not self.untried(request)

    def untried(self, request: Request) -> bool:
        """Whether a healthy host is left that has not failed this request."""
        return any(h.usable and h.host_id not in request.tried for h in self.hosts_of(request))

    # ------------------------------------------------------------ failures
    def has_own_room(self, request: Request) -> bool:  # noqa: ARG002
        """Whether there is room for a request beyond ``limits.in_flight``: caches do not count their calls."""
        return False

    def on_blocked(self) -> None:
        """Called when a client is blocked or a deadline set; the daemon lets the tick look closer."""

    def on_host_added(self, host: Host) -> None:
        """Called with a host that has come while the router runs; the daemon has it probed."""

    def on_drained(self, host: Host) -> None:
        """Called once nothing runs any more at a host that is taken out of service; the daemon logs it."""

    def waits(self, request: Request) -> bool:
        """Whether a request is in a waiting room."""
        return request.phase == Phase.WAITING

    def on_standing(self, host: Host, old_bar: int) -> None:
        """Called when a host may get requests again, no more, or for another reason not; the daemon logs it."""

    def fail(self, request: Request, kind: ErrorKind, text: str, now: int, retry_after_s: int = RETRY_AFTER_S) -> None:
        """End a request with an error of the router's own; a refusal says when to ask again."""
        request.error = kind
        request.message = text
        if kind in verdicts.OF_NO_ATTEMPT:
            self.telemetry.errors.note(f"model {request.model.name}: {kind.name.lower()}", now)
        self.leave_waiting(request)
        account = request.terms.account
        if account is not None:  # the record keeps the whole
            text = account.may_read(kind, text)
        if request.committed:
            self.telemetry.event(now, request, Kind.ERROR)
            request.egress.break_stream(request, request.failure(kind, text))
        else:
            request.status = WIRE[kind].status
            request.egress.fail(request, kind, text, retry_after_s if request.status in {429, 503} else 0)
        if kind in verdicts.TIMEOUTS:
            self.counters.add(Counter.TIMEOUTS)
        self.end(request, verdicts.outcome_of(kind), now)

    def time_out(self, request: Request, kind: ErrorKind, text: str, now: int) -> None:
        """A time-out of the router has come: end the attempt, if there is one, and the request."""
        attempt = request.attempt
        if request.ending:  # the answer is complete: nothing may be written behind it
            self.clients.stalled(request, now)
        elif attempt is not None:
            self.recovery.attempt_failed(attempt, kind, text, now)
        else:
            self.fail(request, kind, text, now)

    def leave_waiting(self, request: Request) -> None:
        """Take a request out of the waiting room, if it is there."""
        if request.phase == Phase.WAITING:
            request.model.waiting.remove(request)
            self.waiting_count -= 1
            request.phase = Phase.NONE

    # ------------------------------------------------------------ the end
    def end_ok(self, request: Request, now: int) -> None:
        """The answer is written and complete."""
        attempt = request.attempt
        if attempt is not None:
            host = attempt.host
            host.served_count += 1
            if host.on_trial:
                self.recovery.standing.served(host, request.routed, now)
        if request.stream and not request.folded and not request.egress.blocked:
            self.finish(request, _OK, request.error, now)
        else:
            self.end(request, _OK, now)

    def end_with_host_error(self, request: Request, text: str, now: int) -> None:
        """The host ended its stream with an error event, which the client has got."""
        request.error = ErrorKind.HOST_ERROR_EVENT
        request.message = text
        self.end(request, Outcome.HOST_ERROR, now)

    def end(self, request: Request, outcome: Outcome, now: int) -> None:
        """Everything is written; wait for the client's socket to take it, then finish."""
        request.attempt = None
        if request.egress.blocked:
            request.ending = outcome
            request.phase = Phase.DECODE
            request.check_ns = 0
            return
        if request.tok1 and (request.folded or not request.stream):
            request.out1 = request.out_n = monotonic_ns()
        self.finish(request, outcome, request.error, now)

    def finish(self, request: Request, outcome: Outcome, error: ErrorKind, now: int) -> None:
        """A request is over: its last event is recorded, and its done record will be, by :meth:`flush`."""
        if request.phase is _DONE:
            return
        if request.row < 0:
            self._book(request)
        request.phase = _DONE
        request.attempt = None
        request.outcome = outcome
        request.error = error
        taken_ns = request.out_n
        done_ns = request.done_ns = taken_ns if taken_ns > now else now  # max() is a call, and this is the path
        if request.stream:
            request.flags |= _FLAG_STREAM
        if request.folded:
            request.flags |= _FLAG_FOLDED
        self.in_flight.pop(request.seq, None)
        terms = request.terms
        if terms is not NO_TERMS and terms.account is not None:
            terms.account.finished(request, now)
        self.telemetry.publish_token(
            done_ns, request.seq, _DONE_EVENT | request.host << 16, request.event_index, 0, 0, 0
        )
        if request.body or request.fields is not None:  # else they were let go at its first token
            request.let_go()
        egress = request.egress
        request.packed_tcp = egress.tcp_info()
        ended = self._ended
        ended.append(request)
        egress.finished()
        if len(ended) >= _ENDED_MAX:
            self.flush()

    def flush(self) -> None:
        """Write the done records of the requests that have ended.

        A client's next request often comes within microseconds of its last byte, and should not wait for the record of
        the one before; and several in a row take half the time of as many apart, whose code and data are cold. So the
        tick writes them, after 250 ms at most, or whoever ends the sixteenth.
        """
        if not self._ended:
            return
        events = bytes_out = 0
        counters, telemetry = self.counters, self.telemetry
        while self._ended:
            request = self._ended.popleft()
            if request.model.is_compared and request.outcome is _OK:
                self._compare(request)
            counters.add(_OUTCOME_COUNTERS[request.outcome])
            events += request.event_index
            bytes_out += request.bytes_out
            try:
                telemetry.done(request)
            except Exception as error:
                text = "a done record could not be written"
                telemetry.errors.note(f"{text}; the log says where", request.done_ns)
                asyncio.get_running_loop().call_exception_handler({"message": text, "exception": error})
        counters.add(_TOKEN_EVENTS, events)
        counters.add(_BYTES_TO_CLIENTS, bytes_out)

    def _compare(self, request: Request) -> None:
        """Note how long a host took that is compared with others."""
        ttft_ns = request.tok1 - request.sent_ns if request.stream or request.fold else 0
        self.recovery.standing.note(request.model.name, request.host, ttft_ns=ttft_ns, ok=True)


_PLACE: Final = Loop.place
"""Who has another way to place requests gets each of them by it."""
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
