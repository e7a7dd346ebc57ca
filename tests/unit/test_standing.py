"""Which hosts may get requests: what bars them, in which order, and how they come back."""

from __future__ import annotations

import itertools
from random import Random
from typing import Any

import pytest

from router.config import BreakerConfig, Health, HostConfig, OutliersConfig
from router.hosts.host import Host
from router.hosts.kinds import KINDS
from router.hosts.standing import FAR_NS, Standing, condition
from router.routing import Reason
from router.telemetry.counters import Counter

S = 1_000_000_000
MS = 1_000_000


class Counts(dict[int, int]):
    """Counters without shared memory."""

    def add(self, counter: int, count: int = 1) -> None:
        self[counter] = self.get(counter, 0) + count

    def set(self, counter: int, value: int) -> None:
        self[counter] = value


class Bench:
    """Some hosts of 10 slots and their standing; notes every change of a bar."""

    def __init__(self, count: int = 1, **health: Any) -> None:
        self.hosts = [Host(HostConfig(name=f"h{i}", url="http://x:1"), i, 0) for i in range(1, count + 1)]
        for host in self.hosts:
            host.facts = KINDS["openai"].__class__(slot_count=10)
        self.counts = Counts()
        self.changes: list[tuple[str, int]] = []
        self.standing = Standing(self.hosts, Health(**health), self.counts, Random(1))  # type: ignore[arg-type]
        self.standing.on_change = lambda host, _old, _now: self.changes.append((host.name, host.bar))
        for host in self.hosts:
            self.standing.set_health(host, healthy=True, now=S)
        self.changes.clear()

    @property
    def host(self) -> Host:
        return self.hosts[0]

    def fail(self, now: int, count: int = 1, host: Host | None = None) -> None:
        for _ in range(count):
            self.standing.failed(host or self.host, now, now)

    def run_until(self, now: int) -> None:
        """Tick whenever something is due, as the watch does."""
        while self.standing.due_ns <= now:
            self.standing.tick(self.standing.due_ns)


def test_a_host_is_usable_with_all_its_slots_once_it_is_probed() -> None:
    bench = Bench()
    assert (bench.host.usable, bench.host.bar, bench.host.slots) == (True, 0, 10)
    assert bench.counts[Counter.HOSTS_HEALTHY] == 1
    assert bench.standing.due_ns == FAR_NS, "nothing is to be done for a host that is well"


def test_a_breaker_holds_a_host_whose_probes_are_fine() -> None:
    bench = Bench(breaker=BreakerConfig(failures=5, open_s=4))
    bench.fail(10 * S, 5)
    for t in range(11, 13):
        bench.standing.set_health(bench.host, healthy=True, now=t * S)
    assert bench.changes == [("h1", Reason.BREAKER_OPEN)], "good probes do not bring it back"
    assert bench.counts[Counter.BREAKERS_OPENED] == 1
    assert bench.counts[Counter.HOSTS_HEALTHY] == 0


def test_a_host_that_keeps_failing_is_let_in_ever_more_seldom() -> None:
    bench = Bench(breaker=BreakerConfig(failures=1, open_s=1, open_s_max=64))
    times = []
    now = S
    while now < 100 * S:
        now += 10 * MS
        bench.run_until(now)
        bench.standing.set_health(bench.host, healthy=True, now=now)
        if bench.host.usable:
            times.append(now)
            bench.fail(now)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert len(times) <= 7
    assert all(later > 1.3 * earlier for earlier, later in itertools.pairwise(gaps))


def test_half_open_lets_so_many_through_and_no_more() -> None:
    bench = Bench(breaker=BreakerConfig(failures=1, open_s=1, trial_requests=2), slow_start_s=0)
    host = bench.host
    host.running = 4  # streams that began before
    bench.fail(10 * S)
    trials = 0
    bench.standing.trials_running = lambda _host, _since: trials
    bench.run_until(12 * S)
    assert (host.usable, host.on_trial, host.slots, host.free_slots) == (True, True, 6, 2)
    host.running, trials = 6, 2
    bench.standing.refresh(host, 12 * S)
    assert host.free_slots == 0
    host.running = 3  # three of the old ones have ended
    bench.standing.refresh(host, 12 * S)
    assert host.free_slots == 0, "trials are counted, whatever else runs there"
    for _ in range(2):
        host.running, trials = host.running - 1, trials - 1
        bench.standing.served(host, 12 * S, 13 * S)
    assert (host.on_trial, host.slots) == (False, 10)


def test_a_host_that_comes_back_starts_slowly() -> None:
    bench = Bench(slow_start_s=10, slow_start_share=0.1)
    host = bench.host
    bench.standing.set_health(host, healthy=False, now=20 * S)
    bench.standing.set_health(host, healthy=True, now=30 * S)
    slots = [host.slots]
    for t in range(31, 41):
        bench.run_until(t * S)
        slots.append(host.slots)
    assert slots == sorted(slots)
    assert slots[0] == 1
    assert 4 <= slots[5] <= 6
    assert slots[-1] == 10
    assert bench.standing.due_ns == FAR_NS


def test_more_slots_are_told_at_once() -> None:
    bench = Bench(slow_start_s=10)
    told: list[int] = []
    bench.standing.on_slots = lambda host, _now: told.append(host.slots)
    bench.standing.set_health(bench.host, healthy=False, now=20 * S)
    bench.standing.set_health(bench.host, healthy=True, now=30 * S)
    bench.run_until(41 * S)
    assert told == sorted(set(told))
    assert told[-1] == 10


def test_an_outlier_is_left_out_and_comes_back() -> None:
    bench = Bench(3, outliers=OutliersConfig(interval_s=10, requests_min=5, eject_s=30), slow_start_s=0)
    models = {"m": bench.hosts}
    bench.standing.second(S, models)
    for host in bench.hosts:
        for _ in range(10):
            bench.standing.note("m", host.host_id, ttft_ns=100 * MS * (20 if host.name == "h2" else 1), ok=True)
    bench.standing.second(10 * S, models)
    assert not bench.changes, "the interval is not over"
    bench.standing.second(11 * S, models)
    assert bench.changes == [("h2", Reason.EJECTED)]
    assert "2000 ms, 100 ms at its peers" in condition(bench.hosts[1], 11 * S)
    bench.run_until(41 * S)
    assert bench.changes == [("h2", Reason.EJECTED), ("h2", 0)]
    assert bench.counts[Counter.HOSTS_EJECTED] == 1


def test_an_outlier_that_is_one_again_and_again_is_left_out_for_longer_and_forgiven_in_time() -> None:
    bench = Bench(3, outliers=OutliersConfig(interval_s=10, requests_min=5, eject_s=30), slow_start_s=0)
    bad = bench.hosts[1]
    spans, now = [], S
    bench.standing.second(now, {"m": bench.hosts})
    for good_intervals in (0, 0, 0, 3):
        for interval in range(good_intervals + 1):
            for host in bench.hosts:
                for _ in range(10):
                    is_bad = host is bad and interval == good_intervals
                    bench.standing.note("m", host.host_id, ttft_ns=100 * MS, ok=not is_bad)
            now += 10 * S
            bench.standing.second(now, {"m": bench.hosts})
        spans.append((bad.ejected_until_ns - now) // S)
        now = bad.ejected_until_ns
        bench.run_until(now)
        assert bad.usable
    assert spans == [30, 60, 90, 30]


def test_what_bars_a_host_first_is_its_bar() -> None:
    bench = Bench(breaker=BreakerConfig(failures=1, open_s=60, open_s_max=60))
    host = bench.host
    bench.fail(10 * S)
    assert host.bar == Reason.BREAKER_OPEN
    bench.standing.set_health(host, healthy=False, now=11 * S)
    assert host.bar == Reason.UNHEALTHY
    bench.standing.drain(host, drains=True, until_ns=100 * S, now=12 * S)
    assert host.bar == Reason.DRAINING
    bench.standing.drain(host, drains=False, until_ns=0, now=13 * S)
    assert host.bar == Reason.UNHEALTHY
    bench.standing.set_health(host, healthy=True, now=14 * S)
    assert (host.bar, host.on_trial) == (0, True), "a host that was gone is tried at once, and carefully"


def test_connects_that_fail_mark_a_host_until_a_probe_finds_it() -> None:
    bench = Bench(fail_after=2, breaker=BreakerConfig(failures=0, share=0))
    bench.standing.connect_failed(bench.host, 10 * S)
    assert bench.host.usable
    bench.standing.connect_failed(bench.host, 11 * S)
    assert bench.host.bar == Reason.UNHEALTHY
    bench.standing.set_health(bench.host, healthy=True, now=12 * S)
    bench.standing.connect_failed(bench.host, 13 * S)
    assert bench.host.usable, "the row begins anew"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: None, "healthy"),
        (lambda b: b.standing.drain(b.host, drains=True, until_ns=0, now=S), "drained"),
        (lambda b: b.fail(S, 5), "breaker open for "),
        (lambda b: b.standing.set_health(b.host, healthy=False, now=S), "not probed yet"),
    ],
)
def test_how_a_host_is_in_words(change: Any, words: str) -> None:
    bench = Bench()
    change(bench)
    assert condition(bench.host, S).startswith(words)
