"""When an attempt fails: another attempt, another model, or an error for the client; and what it says of the host.

Before the commit point a request can go on unseen by its client: at another host of its model, as long as there are
attempts, time and retry budget; then at the next model of its fallback chain. After it the client gets an error in its
stream, with how much was delivered. What a failure says of its host goes to :mod:`router.hosts.standing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from router import outbound, verdicts
from router.errors import ErrorKind
from router.hosts.standing import Standing, condition
from router.routing import Reason
from router.telemetry.counters import Counter
from router.telemetry.host_rows import HostRow
from router.telemetry.records import Endpoint, Kind, Outcome, Phase

if TYPE_CHECKING:
    from router.attempt import Attempt
    from router.hosts.host import Host
    from router.loop import Loop
    from router.models import Model
    from router.request import Request

_DONE: Final = Phase.DONE
_EMBEDDINGS: Final = Endpoint.EMBEDDINGS
_MS_NS: Final = 1_000_000
_STALE_RETRIES_MAX: Final = 2
_DRAINING: Final = int(Reason.DRAINING)
_MAY_FALL_BACK: Final = frozenset({
    Endpoint.CHAT,
    Endpoint.COMPLETION,
    Endpoint.RESPONSES,
    Endpoint.MESSAGES,
    Endpoint.RERANK,
})  # fmt: skip
"""Not vectors or tokens: those of another model mean something else, and nobody would see it."""
_HEADER_SAFE: Final = "/:@+=,;!$&'()*[] "
"""Characters that names of models have and headers may."""


@dataclass(slots=True)
class Detour:
    """Where a request went on that its own model could not answer; most have none.

    ``asked`` is the model that it was for, ``rest`` the names of those of its fallback chain that it has not seen yet,
    ``attempts_before`` how many attempts were made at the models before this one.
    """

    asked: Model
    rest: tuple[str, ...]
    attempts_before: int
    line: bytes = b""
    """The header line that names the model that answers."""


class Recovery:
    """The failure half of the loop. ``standing`` says which hosts may get requests."""

    def __init__(self, loop: Loop, hosts: list[Host]) -> None:
        self.random = Random(1)  # noqa: S311 - jitter is no secret
        """Jitter; the daemon seeds it, so that several routers differ."""
        self.standing = Standing(hosts, loop.config.health, loop.counters, self.random)
        self.standing.on_change = self._standing_changed
        self.standing.on_slots = loop.pump
        self.standing.trials_running = self._trials_running
        self._loop = loop

    # ------------------------------------------------------------ an attempt fails
    def attempt_failed(self, attempt: Attempt, kind: ErrorKind, text: str, now: int) -> None:
        """An attempt failed: tried elsewhere before the commit point, an error for the client after it."""
        if attempt.over:
            return
        loop, request, host = self._loop, attempt.request, attempt.host
        if verdicts.blames_host(kind, 0):  # before its slot is handed on: perhaps nobody should get it
            self._blame(request, host, text, now)
        self.end_attempt(attempt, now, host_may_work=kind in verdicts.BROKEN_OFF and bool(request.sent_ns))
        self._note_failed(request, host, kind, attempt.status, now)
        may_go_on = kind in verdicts.RETRIED and not attempt.live
        refusal = self._go_on(request, host, now, elsewhere=kind in verdicts.ANSWERED) if may_go_on else ""
        if refusal is not None:
            loop.fail(request, kind, text + refusal, now)
        loop.pump(host, now)

    def fault(self, attempt: Attempt, now: int) -> None:
        """The router itself has failed at an answer: the request ends and its slot is free, whatever else fails."""
        loop, request = self._loop, attempt.request
        try:
            self.attempt_failed(attempt, ErrorKind.INTERNAL, "the router failed; its log says how", now)
        finally:
            if request.phase is not _DONE and not request.ending:
                loop.clients.drop(request, Outcome.ABORTED, ErrorKind.INTERNAL, now)
                request.egress.abort()

    def closed_before_answer(self, attempt: Attempt, now: int) -> None:
        """A host closed before the answer's head was complete.

        Before its first byte on a kept connection that is no failure of the request: the host gave the connection up at
        the same moment. It goes out again on a new connection to the same host, which the client never sees.
        """
        request = attempt.request
        stale = attempt.on_kept_connection and not request.hfb
        if stale and request.stale_retries < _STALE_RETRIES_MAX:
            request.stale_retries += 1
            self._loop.counters.add(Counter.RETRIES_STALE)
            attempt.over = True
            request.conn_ns = request.sent_ns = 0
            request.routed = now  # the time to connect begins anew
            self._loop.connect(request, attempt.host, fresh=True)
            return
        self.attempt_failed(attempt, ErrorKind.HOST_CLOSED, f"host {attempt.host.name} closed before it answered", now)

    def host_status(self, attempt: Attempt, status: int, content_type: bytes, body: bytes, now: int) -> None:
        """A host answered with an error status: retried elsewhere if that can help, else passed on as it is."""
        loop, request, host = self._loop, attempt.request, attempt.host
        if verdicts.blames_host(ErrorKind.HOST_STATUS, status):  # before its slot is handed on
            self._blame(request, host, f"it answered {status}", now)
        elif status < 500 and status != 429:
            self.host_served(host, request, now)
        attempt.complete(now)
        request.attempt = None
        self._note_failed(request, host, ErrorKind.HOST_STATUS, status, now)
        text = outbound.error_text(body) or f"host {host.name} answered {status}"
        if status in verdicts.RETRIED_STATUSES and self._go_on(request, host, now, elsewhere=True) is None:
            return
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
        loop.end(request, outcome, now)

    def _note_failed(self, request: Request, host: Host, kind: ErrorKind, status: int, now: int) -> None:
        telemetry = self._loop.telemetry
        self._loop.counters.add(Counter.ATTEMPTS_FAILED)
        telemetry.event(now, request, Kind.ATTEMPT_FAILED)
        # The kind alone: what a host says may quote a prompt, and may be different every time.
        what = f"{kind.name.lower()} {status}" if kind == ErrorKind.HOST_STATUS else kind.name.lower()
        telemetry.errors.note(f"host {host.name}: {what}", now)
        attempt = (host.host_id, kind, status, request.routed, request.conn_ns, request.sent_ns, request.hfb, now)
        request.failed_attempts += (attempt,)

    def end_attempt(self, attempt: Attempt, now: int, *, host_may_work: bool) -> None:
        """Take connection and slot back from an attempt that did not complete; the host learns of it in this call."""
        loop = self._loop
        connection = attempt.take_connection()
        request, host = attempt.request, attempt.host
        request.attempt = None
        if request.ask is not None:
            request.ask.policy.ended(host.host_id, request.ask)
        deaf = not (request.stream or request.fold or request.hfb or host.facts.cancels_whole_answers)
        if connection is None:
            loop.fleet.withdraw(attempt)
        elif host_may_work and deaf:
            loop.fleet.abandon(connection, request.recv + request.model.total_ns)
            return
        else:
            connection.kill()
        grace_ns = int(host.facts.cancel_grace_ms * _MS_NS)
        if host_may_work and grace_ns:
            host.drain_slot(now + grace_ns)
        host.running -= 1  # behind the line before: in between another router would see a slot free
        if host.on_trial:
            self.standing.refresh(host, now)

    # ------------------------------------------------------------ how it goes on
    def _go_on(self, request: Request, host: Host, now: int, *, elsewhere: bool) -> str | None:
        """Start another attempt or have it wait for one; return ``None``, or what to say of why there is none.

        ``elsewhere``: the host has worked on it and would do no better a second time.
        """
        if self._loop.stopping or self._is_late(request, now):
            return ""
        request.tried += (host.host_id,)
        before = request.detour.attempts_before if request.detour is not None else 0
        attempts_left = self._loop.limits.attempts - (request.attempt_count - before)
        may_retry = attempts_left > 0 and self._has_host(request, elsewhere=elsewhere)
        model = request.model if request.detour is None else request.detour.asked
        if not may_retry and self._next_model(request) is None:
            return ""
        if not model.retry_budget.take(now, model.served_count()):
            self._loop.counters.add(Counter.RETRIES_REFUSED)
            return "; not tried again: too many retries (limits.retry_share, limits.retries_per_s)"
        self._loop.counters.add(Counter.RETRIES)
        if may_retry:
            request.reset_attempt()
            self._loop.run_or_wait(request, now)
        else:
            self.fall_back(request, now)
        return None

    @staticmethod
    def _is_late(request: Request, now: int) -> bool:
        """Whether the time is over by which an answer would have to begin."""
        if request.deadline_ns and now >= request.deadline_ns and not request.serves_late:
            return True
        return bool(now - request.recv >= request.model.total_ns)

    def _has_host(self, request: Request, *, elsewhere: bool) -> bool:
        if elsewhere:
            return self._loop.untried(request)
        return any(h.usable for h in self._loop.hosts_of(request))

    # ------------------------------------------------------------ fallback
    def _next_model(self, request: Request) -> Model | None:
        """Return the first model of a request's fallback chain, beyond where it is, that has a host for it."""
        chain = request.model.fallback if request.detour is None else request.detour.rest
        if request.pin or request.endpoint not in _MAY_FALL_BACK:  # of a pin: the client wants this host and no other
            return None
        path = request.path
        for name in chain:
            model = self._loop.by_name.get(name)
            if model is not None and any(h.usable and (not path or path in h.facts.paths) for h in model.hosts):
                return model
        return None

    def fall_back(self, request: Request, now: int) -> bool:
        """Have a request that is at no host go on with the next model of its fallback chain; false if there is none."""
        model = self._next_model(request)
        if model is None or self._loop.stopping or self._is_late(request, now):
            return False
        loop, detour = self._loop, request.detour
        loop.leave_waiting(request)
        if not request.identity:
            loop.telemetry.identify(request)  # its tags are those of what was asked for
        if detour is None:
            detour = request.detour = Detour(request.model, request.model.fallback, 0)
        detour.rest = detour.rest[detour.rest.index(model.name) + 1 :]
        detour.attempts_before = request.attempt_count
        loop.counters.add(Counter.FALLBACKS)
        request.reset_attempt()
        request.ask = None
        request.model, request.model_id = model, model.model_id
        lines = request.terms.answer_lines.removesuffix(detour.line)
        detour.line = _model_line(model.name)
        request.own_terms().answer_lines = lines + detour.line
        generates = not request.path and request.endpoint is not _EMBEDDINGS
        if generates and not request.stream and request.fields is not None:
            request.fold = model.folds(log_probabilities=bool(getattr(request.fields, "logprobs", None)))
        loop.place(request, now)
        return True

    def _rescue(self, host: Host, now: int) -> None:
        """Have what waits for models that no host can serve any more go on with other models."""
        loop = self._loop
        for name in host.models:
            model = loop.models.get(name)
            if model is None or not model.fallback or any(h.usable for h in model.hosts):
                continue
            for request in list(model.waiting):
                self.fall_back(request, now)

    def _release(self, host: Host, now: int) -> None:
        """Have what waited for this host alone, since all others had failed it, go to one of them after all."""
        for other in self._loop.hosts:
            if other is not host and not other.models.keys().isdisjoint(host.models):
                self._loop.pump(other, now)

    # ------------------------------------------------------------ hosts
    def _blame(self, request: Request, host: Host, text: str, now: int) -> None:
        host.last_error = text
        self.standing.failed(host, request.routed, now)
        if request.model.is_compared:
            self.standing.note(request.model.name, host.host_id, ttft_ns=0, ok=False)

    def host_served(self, host: Host, request: Request, now: int) -> None:
        """A host has answered a request as it should."""
        host.served_count += 1
        if host.on_trial:
            self.standing.served(host, request.routed, now)

    def connect_failed(self, host: Host, text: str, now: int) -> None:
        """Nobody accepts connections at a host."""
        host.last_error = text
        self.standing.connect_failed(host, now)

    def _trials_running(self, host: Host, since_ns: int) -> int:
        requests = self._loop.in_flight.values()
        return sum(1 for r in requests if _runs_at(r.attempt, host) and r.routed >= since_ns)

    def _standing_changed(self, host: Host, old_bar: int, now: int) -> None:
        """A host may get requests again, or no more, or for another reason not."""
        loop = self._loop
        loop.on_standing(host, old_bar)
        self.show_hosts(now)
        if host.usable:
            loop.fleet.top_up(host, now)
            loop.pump(host, now)
        elif not old_bar:
            self._rescue(host, now)
            self._release(host, now)
        if host.bar == _DRAINING:
            loop.fleet.close_idle(host)

    def drain(self, host: Host, *, drains: bool, now: int) -> None:
        """Take a host out of service or put it back; what runs there has ``timeouts.drain_s`` to end."""
        until_ns = now + int(self._loop.config.timeouts.drain_s * 1e9)
        host.is_empty = False
        self.standing.drain(host, drains=drains, until_ns=until_ns, now=now)

    def break_off(self, host: Host, now: int) -> None:
        """The time of a host that drains is over: what still runs there fails, and goes on elsewhere if it can."""
        text = f"host {host.name} is taken out of service (timeouts.drain_s)"
        for request in list(self._loop.in_flight.values()):
            attempt = request.attempt
            if _runs_at(attempt, host):
                self.attempt_failed(attempt, ErrorKind.HOST_DRAINED, text, now)
        self._loop.fleet.give_up(host)

    def show_hosts(self, now: int) -> None:
        """Show how every host is, to whoever reads shared memory."""
        self._loop.telemetry.host_rows.write(
            HostRow(
                host_id=host.host_id,
                name=host.name,
                bar=host.bar,
                is_removed=host.removed,
                running=host.running + len(host.draining),
                slots=host.slots,
                slot_count=host.facts.slot_count,
                t_ns=now,
                text=condition(host, now, in_own_words=False),
            )
            for host in sorted(
                self._loop.hosts, key=lambda host: not host.removed
            )  # of two with one id the one that stays
        )

    # ------------------------------------------------------------ time goes by
    def tick(self, now: int) -> None:
        """Do what is due of the hosts' standing."""
        self.standing.tick(now)
        for host in self._loop.hosts:
            if host.drains and host.running and now >= host.drained_at_ns:
                self.break_off(host, now)

    def second(self, now: int) -> None:
        """Once a second: windows go on, hosts are compared, hosts that drain are looked after."""
        loop = self._loop
        for model in loop.models.values():
            model.retry_budget.second(now, model.served_count())
            model.is_compared = self.standing.compares(len(model.hosts))
        self.standing.second(now, {name: model.hosts for name, model in loop.models.items()})
        for host in [host for host in loop.hosts if host.drains]:
            if not host.running and not host.draining:
                self._drained(host)
        self.show_hosts(now)

    def _drained(self, host: Host) -> None:
        """Nothing runs any more at a host that is taken out of service."""
        loop = self._loop
        loop.fleet.close_idle(host)
        if not host.is_empty:
            host.is_empty = True
            loop.on_drained(host)
        if host.removed:
            loop.hosts.remove(host)
            loop.turns.forget(host.host_id)
            self.standing.forget(host)


def _model_line(name: str) -> bytes:
    """Return the header line for the client; a name of anything but ASCII is percent-encoded, as in an URL."""
    return b"x-ringrouter-model: %b\r\n" % quote(name, safe=_HEADER_SAFE).encode("ascii")


def _runs_at(attempt: Attempt | None, host: Host) -> bool:
    return attempt is not None and attempt.host is host and not attempt.over
