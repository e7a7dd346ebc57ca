"""What must hold: after each callback, at every look (25 ms), at rest, and at the end.

Restated here from what the router promises (docs, DESIGN), not taken from its code: where the two disagree, one of them
is wrong.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import msgspec

from router.errors import WIRE, ErrorKind
from router.stamps import STAMPS, e2e_ns, normalise, stages, ttft_ns
from router.telemetry.counters import Counter
from router.telemetry.records import Kind, Outcome, Phase, TokenFlag
from tests.simulation import inside
from tests.simulation.answers import Job
from tests.simulation.clients import Answer
from tests.simulation.network import READ_BYTES_MAX, Transport

if TYPE_CHECKING:
    from router.hosts.host import Host
    from router.request import Request
    from tests.simulation.world import World

MS: Final = 1_000_000
LOOK_NS: Final = 25 * MS
LATE_NS: Final = 50 * MS
"""What a time-out may be late."""
BLOCKED_LATE_NS: Final = 150 * MS
"""The same for a client that takes nothing: two looks at its socket, and what is on its way."""
_FRAMING_BYTES: Final = 4096
"""What the router adds to a read: heads, chunk sizes, an error event."""
_CONTENT: Final = frozenset({Kind.TEXT, Kind.REASONING, Kind.TOOL_CALL})
_OUTCOME_COUNTERS: Final = {
    Counter.REQUESTS_OK: {Outcome.OK},
    Counter.REQUESTS_REFUSED: {Outcome.REJECTED},
    Counter.REQUESTS_BAD: {Outcome.BAD_REQUEST},
    Counter.CLIENTS_GONE: {Outcome.CLIENT_GONE},
    Counter.CLIENTS_STALLED: {Outcome.CLIENT_STALLED},
    Counter.REQUESTS_FAILED: {Outcome.HOST_ERROR, Outcome.TIMEOUT, Outcome.ABORTED},
}
_IN_ORDER: Final = [name for name in STAMPS if name not in {"out1", "done"}]
_CODES: Final = frozenset(wire.code for wire in WIRE.values())


class Inspector:
    """Looks into one run and reports what does not hold."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._router = world.daemon.loop
        self._report = world.report
        self._clock = world.clock
        self._late_ns = LATE_NS
        self._last: dict[int, tuple[int, int]] = {}
        """By sequence: when the last turn of a request's life was, and which one."""
        self._done_events: Tally[int] = Tally()
        self._content: Tally[int] = Tally()
        self._reloaded_ns = 0
        """When time-outs were last changed: those that are over by then are so from then on."""
        self._rows = world.daemon.config.limits.in_flight
        self._attempts = [world.daemon.config.limits.attempts]
        """What ``limits.attempts`` was, one configuration after the other."""
        self._busy: dict[Host, int] = {}
        """By host: slots in use after the last callback."""

    def start(self) -> None:
        """Look again and again."""
        self._listen_in()
        self._world.loop.at(self._clock.now_ns + LOOK_NS, self._look)

    def reloaded(self) -> None:
        """Another configuration holds."""
        self._attempts.append(self._world.daemon.config.limits.attempts)
        self._reloaded_ns = self._clock.now_ns

    def stalled(self, for_ns: int) -> None:
        """The router did not run for so long: nobody can expect that it was in time."""
        self._late_ns = max(self._late_ns, LATE_NS + for_ns)

    def _listen_in(self) -> None:
        """See where requests go."""
        connect = self._router.connect

        def see(request: Request, host: Host, *, fresh: bool = False) -> bool:
            if not (host.usable or fresh):  # a kept connection that was gone is replaced, whatever the host is now
                self._report(f"{request.request_id} goes to {host.name}, which cannot be used")
            used = host.running + len(host.draining)
            if used > host.slots and not fresh:
                self._report(f"{request.request_id} goes to {host.name}, of whose {host.slots} slots {used} are in use")
            if request.pin and request.pin != host.host_id:
                self._report(f"{request.request_id} goes to {host.name} and is for another host alone")
            return connect(request, host, fresh=fresh)

        self._router.connect = see  # type: ignore[method-assign]

    # ------------------------------------------------------------ after each callback
    def after(self) -> None:
        """Check what a single callback can break."""
        loop = self._router
        waiting = 0
        for model in loop.models.values():
            waiting += len(model.waiting)
        if waiting != loop.waiting_count:
            self._report(f"waiting_count is {loop.waiting_count}, and {waiting} requests wait")
        busy = self._busy
        for host in loop.hosts:
            running = host.running
            used = running + len(host.draining)
            if running < 0:
                self._report(f"{host.name}: {running} requests run there")
            if used > host.facts.slot_count and used > busy.get(host, 0):
                self._report(f"{host.name}: {used} of {host.facts.slot_count} slots are in use, draining ones counted")
            busy[host] = used

    def token(self, now: int, seq: int, kind: int, flags: int) -> None:
        """Note a token record."""
        if kind == Kind.DONE:
            self._done_events[seq] += 1
            if self._done_events[seq] > 1:
                self._report(f"request {seq} ended twice")
        elif self._done_events[seq]:
            self._report(f"request {seq}: a record of kind {kind} behind its end")
        if kind in {Kind.OPEN, Kind.DISPATCHED, Kind.ATTEMPT_FAILED}:
            self._last[seq] = (now, kind)
            self._content[seq] = 0
        elif flags & TokenFlag.HOST_EVENT:
            before = self._last.get(seq, (0, 0))[1]
            if kind in _CONTENT:
                self._content[seq] += 1
            self._last[seq] = (now, Kind.TEXT if kind in _CONTENT or before == Kind.TEXT else before)

    def leaving(self, transport: Transport) -> Callable[[], None]:
        """Look what runs for a client; return the check that it has stopped by the end of this callback."""
        request = transport.get_protocol().request
        attempt = getattr(request, "attempt", None)
        if request is None or attempt is None or attempt.over:
            return lambda: None
        connection, host = attempt.connection, attempt.host
        host_transport = connection.transport if connection is not None else None
        deaf = not (request.stream or request.fold or request.hfb or host.facts.cancels_whole_answers)

        def check() -> None:
            name = request.request_id
            if host_transport is None:
                if attempt in inside.queue_of(host):
                    self._report(f"{name}: its client has left, and it still waits for a connection")
            elif not host_transport.is_shut and not deaf:
                self._report(f"{name}: its client has left, and the socket of host {host.name} is open")
            if request.seq in self._router.in_flight:
                self._report(f"{name}: its client has left, and it is in flight")

        return check

    # ------------------------------------------------------------ at every look
    def _look(self) -> None:
        if self._world.is_down:
            return
        self._world.loop.at(self._clock.now_ns + LOOK_NS, self._look)
        now = self._clock.now_ns
        self._check_claims()
        for request in self._router.in_flight.values():
            due, what = self._due(request)
            if now > max(due, self._reloaded_ns) + self._late_ns:
                self._report(f"{request.request_id}: {what} is over since {(now - due) / MS:.1f} ms")
            self._check_blocked(request, now)
        self._check_idle_slots()

    def _check_claims(self) -> None:
        """Every claimed slot has a request or an answer that nobody wants."""
        loop = self._router
        claimed: Tally[Host] = Tally()
        for request in loop.in_flight.values():
            if request.attempt is not None and not request.attempt.over:
                claimed[request.attempt.host] += 1
            if (request.phase == Phase.WAITING) != any(request is other for other in request.model.waiting):
                self._report(f"{request.request_id} is in phase {request.phase!r}, which its waiting room contradicts")
        for connection in loop.fleet._abandoned:
            claimed[connection.host] += 1
        for host in loop.hosts:
            if host.running != claimed[host]:
                self._report(f"{host.name}: {host.running} slots are claimed, for {claimed[host]} requests")

    def _due(self, request: Request) -> tuple[int, str]:
        """Return by when something must have become of a request, and which time-out says so."""
        model = request.model
        total = request.recv + model.total_ns, "total_s"
        last = self._last.get(request.seq)
        if request.ending or last is None:
            return total
        if request.phase == Phase.CONNECTING:  # again, perhaps: a kept connection may have been gone
            return min(total, (request.routed + model.connect_ns, "connect_s"))
        since, kind = last
        if kind in {Kind.OPEN, Kind.ATTEMPT_FAILED}:
            if request.phase == Phase.WAITING:
                return min(total, (since + model.queue_ns, "queue_s"), *inside.deadlines(request))
            return total
        if not (request.stream or request.fold):
            return total
        if kind == Kind.DISPATCHED:
            return min(total, (since + model.first_token_ns, "first_token_s"))
        if request.egress.blocked or request.host_paused or request.attempt is None:
            return total
        return min(total, (max(since, request.attempt.read_ns()) + model.idle_ns, "idle_s"))

    def _check_blocked(self, request: Request, now: int) -> None:
        egress = request.egress
        if not egress.blocked:
            return
        transport: Transport = egress._transport  # type: ignore[attr-defined]
        if transport is None:
            return
        most = self._router.limits.client_buffer_bytes + READ_BYTES_MAX + _FRAMING_BYTES
        if request.tok1 and request.stream and not request.ending and transport.get_write_buffer_size() > most:
            self._report(f"{request.request_id}: {transport.get_write_buffer_size()} bytes wait for a slow client")
        since = max(transport.taken_ns, request.blocked_ns, self._reloaded_ns)
        if now > since + request.model.stall_ns + BLOCKED_LATE_NS + self._late_ns - LATE_NS:
            self._report(f"{request.request_id}: its client takes nothing since {(now - since) / MS:.1f} ms")

    def _check_idle_slots(self) -> None:
        """Nobody waits for a host that could take him."""
        loop = self._router
        if not loop.waiting_count:
            return
        for host in loop.hosts:
            if not (host.usable and host.free_slots > 0):
                continue
            for name in host.models:
                model = loop.models.get(name)
                for request in model.waiting if model is not None and host in model.hosts else ():
                    if inside.may_go(request, host):
                        self._report(f"{request.request_id} waits, and {host.name} has {host.free_slots} free slots")

    def what_hangs(self) -> str:
        """Return what is not over."""
        requests = [f"{r.request_id} ({r.phase.name})" for r in self._router.in_flight.values()]
        clients = [client.plan.name for client in self._world.clients if not client.is_done]
        return f"requests {requests}, clients {clients}"

    # ------------------------------------------------------------ at rest: nobody asks for anything
    def at_rest(self) -> None:
        """Check that everything that was taken is given back."""
        loop = self._router
        loop.flush()
        self._check_claims()
        if loop.in_flight:
            self._report(f"in flight at rest: {self.what_hangs()}")
        for host in loop.hosts:
            if host.running - sum(1 for c in loop.fleet._abandoned if c.host is host):
                self._report(f"{host.name}: {host.running} slots are claimed at rest")
            if host.draining and host.draining[0] < self._clock.now_ns - self._late_ns:
                self._report(f"{host.name}: a cancelled slot was not given back in its time")
            if inside.queue_of(host):
                self._report(f"{host.name}: an attempt waits for a connection at rest")
        self._check_accounts()

    def at_close(self) -> None:
        """Check what the router leaves behind when it has stopped, its rings still open."""
        if self._router.in_flight:
            self._report(f"in flight at the end: {self.what_hangs()}")
        for host in self._router.hosts:
            if host.running - sum(1 for c in self._router.fleet._abandoned if c.host is host):
                self._report(f"{host.name}: {host.running} slots are claimed at the end")
        self._check_accounts()

    def _check_accounts(self) -> None:
        """Every request that was published has one end, one record, and one count."""
        telemetry = self._world.daemon.telemetry
        missing = self._rows - len(telemetry.free_rows)
        if missing:
            self._report(f"{missing} rows of the in-flight table are not given back")
        counters = telemetry.counters
        done = self._world.done
        seqs = Tally(record["request_seq"] for record in done)
        twice = [seq for seq, count in seqs.items() if count > 1]
        if twice:
            self._report(f"requests with several done records: {twice}")
        published = counters.get(Counter.REQUESTS)
        if published != len(done):
            self._report(f"{published} requests were published, and {len(done)} have a done record")
        if set(self._done_events) - set(seqs):
            self._report(f"requests that ended without a record: {sorted(set(self._done_events) - set(seqs))}")
        outcomes = Tally(record["outcome"] for record in done)
        refused = self._world.refused
        for counter, kinds in _OUTCOME_COUNTERS.items():
            expected = sum(outcomes[kind] for kind in kinds) + refused[counter]
            if counters.get(counter) != expected:
                self._report(f"counter {counter.name} is {counters.get(counter)}, and {expected} requests ended so")
        for name, counter in (("n_events", Counter.TOKEN_EVENTS), ("bytes_out", Counter.BYTES_TO_CLIENTS)):
            total = sum(record[name] for record in done)
            if counters.get(counter) != total:
                self._report(f"counter {counter.name} is {counters.get(counter)}, and the records sum to {total}")
        for record in done:
            self._check_record(record)

    def _check_record(self, record: dict[str, Any]) -> None:
        """Stamps are in order where they happened, and the stages sum to the whole exactly."""
        stamps = record["stamps"]
        name = record["request_id"]
        at = dict(zip(STAMPS, stamps, strict=True))
        ordered = _IN_ORDER if record["outcome"] == Outcome.OK else _IN_ORDER[:-1]  # who left has not taken the last
        happened = [(stamp, at[stamp]) for stamp in ordered if at[stamp]]
        for (first, before), (second, after) in pairwise(happened):
            if after < before:
                self._report(f"{name}: {second} is {before - after} ns before {first}")
        whole = normalise(stamps)
        parts = stages(stamps)
        if ttft_ns(parts) != whole[STAMPS.index("out1")] - whole[0]:
            self._report(f"{name}: the stages do not sum to the time to the first token")
        if e2e_ns(parts) != whole[STAMPS.index("outN")] - whole[0]:
            self._report(f"{name}: the stages do not sum to the whole time")
        if any(value < 0 for value in parts.values()):
            self._report(f"{name}: a stage is negative: {parts}")
        if record["outcome"] == Outcome.OK and not at["tok1"]:
            self._report(f"{name}: answered without a first token")

    # ------------------------------------------------------------ at the end: the router is down
    def at_end(self) -> None:
        """Check what users got."""
        self._router.flush()
        records = {record["request_id"]: record for record in self._world.done}
        jobs: dict[str, dict[int, Job]] = {}
        for host in self._world.hosts.values():
            for request_id, attempts in host.attempts.items():
                for _, job in attempts:
                    jobs.setdefault(request_id, {})[job.serial] = job
        for client in self._world.clients:
            if not client.is_done:
                self._report(f"{client.plan.name} waits for ever")
            mine = [records.get(answer.ask.id) for answer in client.answers]
            stalled = any(record and record["outcome"] == Outcome.CLIENT_STALLED for record in mine)
            for answer, record in zip(client.answers, mine, strict=True):
                dropped = stalled or (self._world.is_told_to_stop and client.plan.pace is not None)
                if answer.was_reset and not answer.is_whole and dropped:
                    self._check_prefix(answer, jobs.get(answer.ask.id, {}))  # it has not read what it got
                else:
                    self._check_answer(answer, record, jobs.get(answer.ask.id, {}))
        self._check_attempts(jobs)

    def _check_attempts(self, jobs: dict[str, dict[int, Job]]) -> None:
        """No host is asked more often than was allowed."""
        models = max(len(self._router.models), 1)  # each of a fallback chain has attempts of its own
        most = max(self._attempts) * models + inside.STALE_RETRIES_MAX
        for request_id, attempts in jobs.items():
            if len(attempts) > most:
                self._report(f"{request_id} came to hosts {len(attempts)} times")

    def _check_answer(self, answer: Answer, record: dict[str, Any] | None, jobs: dict[int, Job]) -> None:
        name = answer.ask.id
        if answer.is_refused:
            return
        if answer.is_left:
            self._check_prefix(answer, jobs)
            return
        if not answer.is_begun:
            if record is not None and record["outcome"] not in {Outcome.CLIENT_STALLED, Outcome.CLIENT_GONE}:
                self._report(f"{name} got no answer, and its record says {Outcome(record['outcome']).name}")
            elif record is None and not (answer.is_behind or answer.ask.stuck or self._world.is_told_to_stop):
                self._report(f"{name} got no answer and has no record")
            return
        if not answer.is_whole:
            self._check_broken(answer, record, jobs)
        elif answer.status == 200 and answer.ask.endpoint != "models":
            self._check_whole(answer, record, jobs)
        elif answer.status != 200:
            self._check_error(answer, record)

    def _check_broken(self, answer: Answer, record: dict[str, Any] | None, jobs: dict[int, Job]) -> None:
        """An answer that is cut ends in an error, unless its client had not taken it."""
        name = answer.ask.id
        if record is None or record["outcome"] in {Outcome.CLIENT_STALLED, Outcome.CLIENT_GONE}:
            if record is None:
                self._report(f"{name}: a cut answer without a record")
            return
        if record["outcome"] == Outcome.OK:
            self._report(f"{name}: its answer is cut, and its record says OK")
        elif not answer.is_stream:
            self._report(f"{name}: a whole answer is cut")
        elif not answer.error:
            self._report(f"{name}: its stream is cut without an error event")
        self._check_prefix(answer, jobs)

    def _check_prefix(self, answer: Answer, jobs: dict[int, Job]) -> None:
        """What came of a stream is the beginning of one host's answer."""
        if answer.is_stream and not any(job.text.startswith(answer.text) for job in jobs.values()) and answer.text:
            self._report(f"{answer.ask.id}: no host said {answer.text[:80]!r}")

    def _check_whole(self, answer: Answer, record: dict[str, Any] | None, jobs: dict[int, Job]) -> None:
        """An answer that ends in order is all that one host said."""
        name = answer.ask.id
        if record is None:
            self._report(f"{name} was answered and has no record")
            return
        if answer.error:
            self._check_ended_in_error(answer, record, jobs)
            return
        if record["outcome"] not in {Outcome.OK, Outcome.CLIENT_GONE}:
            self._report(f"{name} got a whole answer, and its record says {Outcome(record['outcome']).name}")
        text = answer.text if answer.is_stream else _text_of_whole(answer)
        if not any(text == job.text for job in jobs.values()):
            self._report(f"{name}: no host said {text[-80:]!r} and no more")
        if answer.is_stream and not answer.finish_count and answer.ask.endpoint != "responses":
            self._report(f"{name}: its stream ends in order, and nothing says that it is finished")

    def _check_ended_in_error(self, answer: Answer, record: dict[str, Any], jobs: dict[int, Job]) -> None:
        """The host itself ended its stream with an error event: that is passed on."""
        if record["outcome"] == Outcome.OK:
            self._report(f"{answer.ask.id}: its stream ends in an error, and its record says OK")
        self._check_prefix(answer, jobs)

    def _check_error(self, answer: Answer, record: dict[str, Any] | None) -> None:
        name = answer.ask.id
        try:
            error = msgspec.json.decode(answer.body)["error"]
        except (msgspec.DecodeError, KeyError, TypeError):
            self._report(f"{name}: the error is not in OpenAI's shape: {answer.body[:80]!r}")
            return
        code = error.get("code")
        if code in _CODES and WIRE[_kind(code)].status != answer.status:
            self._report(f"{name}: status {answer.status} with the code {code}")
        if record is not None and record["outcome"] == Outcome.OK:
            self._report(f"{name}: status {answer.status}, and its record says OK")
        if record is not None and record["status"] != answer.status:
            self._report(f"{name}: status {answer.status}, and its record says {record['status']}")


def _kind(code: str) -> ErrorKind:
    return next(kind for kind, wire in WIRE.items() if wire.code == code)


def _text_of_whole(answer: Answer) -> str:
    try:
        body = msgspec.json.decode(answer.body)
    except msgspec.DecodeError:
        return f"no JSON: {answer.body[:60]!r}"
    if "whose" in body:
        return str(body["whose"])
    if "output" in body:
        return str(body["output"])
    choice = body["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])
