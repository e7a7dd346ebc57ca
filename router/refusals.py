"""Why a request gets no host, and what its client is told: no room, no host, no hope of its deadline."""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from router.admission import Admission, class_name, is_idle, slots_of
from router.errors import ErrorKind
from router.hosts.standing import condition
from router.telemetry.counters import Counter

if TYPE_CHECKING:
    from router.loop import Loop
    from router.request import Request
    from router.routing import Candidate

RETRY_AFTER_S: Final = 1
"""When to ask again where nothing better is known."""
_RUN: Final = Admission.RUN
_U32: Final = 0xFFFFFFFF
_MS_NS: Final = 1_000_000


class Refusals:
    """The refusing half of admission."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def refuse_full(self, request: Request, candidates: list[Candidate], now: int) -> None:
        """Refuse a request for which the waiting room has no place, and say when it may have one."""
        self._loop.counters.add(Counter.REFUSED_FULL)
        room, forecast, name = request.model.waiting, request.model.forecast, request.model.name
        text = f"{self._loop.limits.waiting} requests wait for {name!r} (limits.waiting)"
        if room.is_full(request.workload):
            which = class_name(request.workload)
            key = f"models.{name}.admission.classes.{which}.waiting"
            text = f"{room.count(request.workload)} {which} requests wait for {name!r} ({key})"
        retry_after_s = forecast.until_next_s(slots_of(candidates), now) if forecast is not None else RETRY_AFTER_S
        self._loop.fail(request, ErrorKind.OVERLOADED, text, now, retry_after_s)

    def is_hopeless(self, request: Request, decision: Admission, candidates: list[Candidate], now: int) -> bool:
        """Refuse a request that cannot have its first token by its deadline, as far as can be told; false if it can."""
        if decision is not _RUN and decision is not Admission.WAIT:
            return False
        model = request.model
        if now >= request.deadline_ns and not request.serves_late:
            self.deadline_passed(request, now)
            return True
        if model.forecast is None:
            from router.admission.predict import Forecast  # noqa: PLC0415 - only who sets deadlines loads it

            model.forecast = Forecast()
        ahead = -1
        if decision is not _RUN:
            self._loop.know_share(request)
            ahead = model.waiting.ahead_of(request.workload, request.deadline_ns, request.share_key)
        foretold = model.forecast.of(ahead, slots_of(candidates), now, whole=not (request.stream or request.fold))
        if foretold is None:
            return False
        request.own_terms().predicted_ttft_us = min(foretold.ttft_ns // 1000, _U32)
        if request.serves_late or now + foretold.ttft_ns <= request.deadline_ns or is_idle(candidates):
            return False
        self._loop.counters.add(Counter.REFUSED_DEADLINE)
        text, retry_after_s = foretold.refusal(request.deadline_ns - request.recv, request.deadline_ns - now)
        self._loop.fail(request, ErrorKind.DEADLINE_UNREACHABLE, text, now, retry_after_s)
        return True

    def deadline_passed(self, request: Request, now: int) -> None:
        """End a request whose deadline has passed before a host was free."""
        self._loop.counters.add(Counter.DEADLINES_EXCEEDED)
        after_ms = (request.deadline_ns - request.recv) // _MS_NS
        text = f"no host was free by the deadline, {after_ms} ms after the request came"
        self._loop.fail(request, ErrorKind.DEADLINE_EXCEEDED, text, now)

    def no_host_text(self, request: Request) -> str:
        """Return why no host can take a request, host by host."""
        loop = self._loop
        now, name = monotonic_ns(), request.model.name
        hosts = loop.hosts_of(request) or [h for h in loop.hosts if name in h.config.models]  # not probed yet
        reasons = "; ".join(f"{h.name}: {condition(h, now)}" for h in hosts) or "none is configured"
        return f"no host can serve {name!r} now ({reasons})"
