"""Which hosts may get requests, and how many slots of each: the one place that decides a host's ``bar`` and ``slots``.

Several things can bar a host, and each ends on its own: it is drained, its probes fail, its breaker is open, it was
left out for being far worse than its peers. The first of these that holds is its ``bar``. A host that comes back after
any of them gets its slots bit by bit (slow start); while its breaker is half open it gets a few more than it has
running.

Time is given and jitter comes from a seeded generator: the same calls leave the same hosts barred. Nothing here runs on
the path of a token; of a request only :meth:`Standing.served` does, and only while a breaker is half open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router.hosts import outliers
from router.hosts.breaker import Breaker, BreakerState
from router.hosts.outliers import Deeds
from router.hosts.slow_start import slots_now
from router.routing import Reason
from router.telemetry.counters import Counter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from random import Random

    from ringbuffer import CountersWriter
    from router.config import Health
    from router.hosts.host import Host

_NS: Final = 1_000_000_000
FAR_NS: Final = 1 << 62
_RAMP_STEP_NS: Final = 100_000_000
"""Between two looks at a host that gets its slots bit by bit."""
_UNHEALTHY, _BREAKER_OPEN = int(Reason.UNHEALTHY), int(Reason.BREAKER_OPEN)
_EJECTED, _DRAINING = int(Reason.EJECTED), int(Reason.DRAINING)


class Standing:
    """Keeps the standing of all hosts. ``due_ns`` is when :meth:`tick` has something to do, far away if nothing."""

    def __init__(self, hosts: Sequence[Host], config: Health, counters: CountersWriter, random: Random) -> None:
        self.due_ns = FAR_NS
        self.on_change: Callable[[Host, int, int], None] = lambda _host, _old_bar, _now: None
        """Called with a host whose bar has changed, the bar before and the time."""
        self.on_slots: Callable[[Host, int], None] = lambda _host, _now: None
        """Called with a host that has got more slots, and the time."""
        self.trials_running: Callable[[Host, int], int] = lambda _host, _since_ns: 0
        """Returns how many requests run at a host that began after a time."""
        self._hosts = hosts
        self._config = config
        self._counters = counters
        self._random = random
        self._deeds: dict[str, dict[int, Deeds]] = {}
        """By model and host: what they did in the interval that runs."""
        self._compared_ns = 0
        for host in hosts:
            self.add(host)

    # ------------------------------------------------------------ hosts come and go
    def add(self, host: Host, *, comes_new: bool = False) -> None:
        """Take care of a host. ``comes_new``: others are at work already, so it begins slowly."""
        host.breaker = Breaker(self._config.breaker, self._random.random)
        host.was_healthy = comes_new
        host.drains = host.config.drain

    def configure(self, config: Health, now: int) -> None:
        """Go on with other settings; what is barred now stays so for the time that it was given."""
        self._config = config
        for host in self._hosts:
            assert host.breaker is not None
            host.breaker.configure(config.breaker)
            self.refresh(host, now)

    def forget(self, host: Host) -> None:
        """A host is gone for good, and out of the list of hosts."""
        self._count_usable()
        for deeds in self._deeds.values():
            deeds.pop(host.host_id, None)

    # ------------------------------------------------------------ what is heard of a host
    def set_health(self, host: Host, *, healthy: bool, now: int) -> None:
        """Take what probes say of a host."""
        if healthy:
            host.connect_failures = 0
        if host.healthy == healthy:
            return
        host.healthy = healthy
        if healthy:
            host.last_error = ""
            assert host.breaker is not None
            host.breaker.restarted(now)
            if host.was_healthy:
                self._begin_slowly(host, now)
            host.was_healthy = True
        self.refresh(host, now)

    def connect_failed(self, host: Host, now: int) -> None:
        """A connect failed. Several in a row: nobody is there, until a probe finds somebody."""
        host.connect_failures += 1
        if host.connect_failures >= self._config.fail_after:
            self.set_health(host, healthy=False, now=now)
        self.failed(host, now, now)

    def failed(self, host: Host, began_ns: int, now: int) -> None:
        """A request failed that was sent to a host at ``began_ns``, and the host is to blame."""
        breaker = host.breaker
        assert breaker is not None
        if breaker.failed(now, began_ns, host.served_count):
            self._counters.add(Counter.BREAKERS_OPENED)
            self.refresh(host, now)

    def served(self, host: Host, began_ns: int, now: int) -> None:
        """A host whose breaker is half open has answered a request that was sent to it at ``began_ns``."""
        assert host.breaker is not None
        if host.breaker.served(now, began_ns):
            self._begin_slowly(host, now)
        self.refresh(host, now)

    def drain(self, host: Host, *, drains: bool, until_ns: int, now: int) -> None:
        """Take a host out of service, what runs there until ``until_ns``, or put it back."""
        if host.drains and not drains:
            self._begin_slowly(host, now)
        host.drains = drains
        host.drained_at_ns = until_ns if drains else 0
        self.refresh(host, now)

    def note(self, model_name: str, host_id: int, *, ttft_ns: int, ok: bool) -> None:
        """Note how a host did a request, to compare it with its peers; ``ttft_ns`` 0: not known."""
        deeds = self._deeds.setdefault(model_name, {}).setdefault(host_id, Deeds())
        if ok:
            deeds.served += 1
            if ttft_ns > 0:
                deeds.ttfts_ns.append(ttft_ns)
        else:
            deeds.failed += 1

    # ------------------------------------------------------------ time goes by
    def tick(self, now: int) -> None:
        """Do what is due: let trials through, take hosts back, give more slots."""
        self.due_ns = FAR_NS
        for host in self._hosts:
            assert host.breaker is not None
            host.breaker.try_again(now)
            if host.ejected_until_ns and now >= host.ejected_until_ns:
                host.ejected_until_ns = 0
                self._begin_slowly(host, now)
            self.refresh(host, now)

    def second(self, now: int, models: Mapping[str, Sequence[Host]]) -> None:
        """Note how far each host is, and compare the hosts of each model when their interval is over."""
        for host in self._hosts:
            assert host.breaker is not None
            host.breaker.second(now, host.served_count)
        interval_s = self._config.outliers.interval_s
        self._compared_ns = self._compared_ns or now
        if not interval_s or now - self._compared_ns < interval_s * _NS:
            return
        self._compared_ns = now
        deeds, self._deeds = self._deeds, {}
        for name, of_model in deeds.items():
            self._compare(models.get(name, ()), of_model, now)
        self._forgive()

    def compares(self, host_count: int) -> bool:
        """Return whether a model with so many hosts has any compared: what they do is noted only then."""
        config = self._config.outliers
        return config.interval_s > 0 and host_count >= config.hosts_min

    def _compare(self, hosts: Sequence[Host], deeds: Mapping[int, Deeds], now: int) -> None:
        by_id = {host.host_id: host for host in hosts}
        known = {host_id: each for host_id, each in deeds.items() if host_id in by_id}
        out_count = sum(1 for host in hosts if not host.usable)
        for host_id, why in outliers.find(known, self._config.outliers, len(hosts), out_count):
            self._eject(by_id[host_id], why, now)

    def _eject(self, host: Host, why: str, now: int) -> None:
        host.ejections += 1
        host.ejected_until_ns = now + outliers.eject_ns(host.ejections, self._config.outliers)
        host.last_error = why
        self._counters.add(Counter.HOSTS_EJECTED)
        self.refresh(host, now)

    def _forgive(self) -> None:
        """Who did as its peers for an interval is left out for less the next time."""
        for host in self._hosts:
            if host.ejections and host.usable:
                host.ejections -= 1

    # ------------------------------------------------------------ the outcome
    def _begin_slowly(self, host: Host, now: int) -> None:
        host.slow_since_ns = now if self._config.slow_start_s else 0

    def refresh(self, host: Host, now: int) -> None:
        """Work out anew whether a host may get requests and how many, and tell who wants to know."""
        breaker = host.breaker
        assert breaker is not None
        bar = _bar(host, breaker)
        self._set_slots(host, breaker, now)
        self._note_due(host, breaker, now)
        if bar == host.bar:
            return
        old_bar, host.bar = host.bar, bar
        host.usable = not bar
        self._count_usable()
        self.on_change(host, old_bar, now)

    def _count_usable(self) -> None:
        self._counters.set(Counter.HOSTS_HEALTHY, sum(each.usable for each in self._hosts))

    def _set_slots(self, host: Host, breaker: Breaker, now: int) -> None:
        before = host.slots
        slots = host.facts.slot_count
        host.on_trial = breaker.state == BreakerState.HALF_OPEN
        if host.on_trial:
            others = host.running + len(host.draining) - self.trials_running(host, breaker.since_ns)
            slots = min(slots, max(others, 0) + self._config.breaker.trial_requests)
        elif host.slow_since_ns:
            over_ns = int(self._config.slow_start_s * _NS)
            slots = slots_now(slots, host.slow_since_ns, now, over_ns, self._config.slow_start_share)
            if now - host.slow_since_ns >= over_ns:
                host.slow_since_ns = 0
        host.slots = slots
        if slots > before and host.usable:
            self.on_slots(host, now)

    def _note_due(self, host: Host, breaker: Breaker, now: int) -> None:
        due = FAR_NS
        if breaker.state == BreakerState.OPEN:
            due = breaker.until_ns
        elif host.on_trial or host.slow_since_ns:
            due = now + _RAMP_STEP_NS
        if host.ejected_until_ns:
            due = min(due, host.ejected_until_ns)
        if host.drains and host.running:
            due = min(due, host.drained_at_ns)
        self.due_ns = min(self.due_ns, due)


def _bar(host: Host, breaker: Breaker) -> int:
    """Return the first of the reasons why a host gets no requests, 0 without one."""
    if host.drains:
        return _DRAINING
    if not host.healthy:
        return _UNHEALTHY
    if breaker.state == BreakerState.OPEN:
        return _BREAKER_OPEN
    return _EJECTED if host.ejected_until_ns else 0


def condition(host: Host, now: int, *, in_own_words: bool = True) -> str:
    """Return how a host is, in words; with those of the host itself only if ``in_own_words``: it may quote a prompt."""
    error = host.last_error if in_own_words else host.last_error.partition(": ")[0]
    if host.bar == _DRAINING:
        return f"draining, {host.running} running" if host.running else "drained"
    if host.bar == _UNHEALTHY:
        return f"unhealthy: {error}" if error else "not probed yet"
    if host.bar == _BREAKER_OPEN:
        left_s = (host.breaker.until_ns - now) / _NS if host.breaker is not None else 0.0
        return f"breaker open for {max(left_s, 0.0):.1f} s: {error}"
    if host.bar == _EJECTED:
        return f"left out for {max(host.ejected_until_ns - now, 0) / _NS:.0f} s: {error}"
    if host.on_trial:
        return f"breaker half open, {host.slots} of {host.facts.slot_count} slots"
    if host.slow_since_ns:
        return f"slow start, {host.slots} of {host.facts.slot_count} slots"
    return "healthy"
