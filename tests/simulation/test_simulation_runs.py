"""Many scenarios, each from its seed; and that they reach what they are there for."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from router.errors import ErrorKind
from router.routing import PolicyId
from router.telemetry.counters import Counter
from router.telemetry.records import Lever, Outcome
from tests.simulation.drawing import THEMES, draw
from tests.simulation.plants import PLANTS
from tests.simulation.replay import command, safely
from tests.simulation.scenario import Ask, Client, Fate, Host, Reload, Scenario
from tests.simulation.world import Result
from tests.support.waiting import shared_memory_directory

SHORT, MANY, LONG, STEP = 240, 2000, 10_000, 440
"""Seeds that reach every corner, and those of an ordinary and of a long run of the tests: about 10 s, 1 and 5 minutes
on a core.
"""
REACHED_OUTCOMES = set(Outcome) - {Outcome.NONE}
REACHED_ERRORS = {
    ErrorKind.OVERLOADED, ErrorKind.NO_HOST, ErrorKind.QUEUE_TIMEOUT, ErrorKind.CONNECT_FAILED,
    ErrorKind.CONNECT_TIMEOUT, ErrorKind.HOST_CLOSED, ErrorKind.HOST_PROTOCOL, ErrorKind.HOST_STATUS,
    ErrorKind.HOST_ERROR_EVENT, ErrorKind.NO_FINISH, ErrorKind.FIRST_TOKEN_TIMEOUT, ErrorKind.IDLE_TIMEOUT,
    ErrorKind.TOTAL_TIMEOUT, ErrorKind.CLIENT_GONE, ErrorKind.CLIENT_STALLED, ErrorKind.SHUTTING_DOWN,
    ErrorKind.DEADLINE_EXCEEDED,
}  # fmt: skip
REACHED_COUNTERS = {
    Counter.CONNECTIONS_REFUSED, Counter.RETRIES, Counter.RETRIES_STALE, Counter.RETRIES_REFUSED, Counter.FALLBACKS,
    Counter.HEARTBEATS, Counter.CYCLES_LONG, Counter.BREAKERS_OPENED, Counter.HOSTS_EJECTED, Counter.CONFIG_RELOADS,
    Counter.REFUSED_FULL, Counter.REFUSED_DEADLINE,
}  # fmt: skip


def run(seeds: range) -> Iterator[Result]:
    """Run seeds; fail with the commands that replay those that fail."""
    failed = []
    with shared_memory_directory() as directory:
        for seed in seeds:
            result = safely(draw(seed), directory)
            yield result
            if result.violations:
                failed.append(f"{command(seed)}\n    " + "\n    ".join(result.violations[:3]))
            if len(failed) == 5:
                break
    assert not failed, "replay with\n" + "\n".join(failed)


def check_reached(results: list[Result]) -> None:
    """Fail where nothing of a kind has happened: what is not reached is not tested."""
    records = [record for result in results for record in result.done]
    outcomes = Tally(record["outcome"] for record in records)
    assert not REACHED_OUTCOMES - set(outcomes)
    errors = {record["error"] for record in records} | {a["error"] for r in records for a in r["failed_attempts"]}
    assert not {kind.name for kind in REACHED_ERRORS if kind not in errors}
    counted: Tally[int] = Tally()
    for result in results:
        counted.update(result.counters)
    assert not {counter.name for counter in REACHED_COUNTERS if not counted[counter]}
    assert not {policy.name for policy in PolicyId if policy not in {record["policy"] for record in records}}
    levers = {lever for record in records for lever in Lever if record["levers"] & lever}
    assert Lever.MAX_TOKENS in levers
    assert {record["workload"] for record in records} >= {1, 2, 3}
    assert outcomes[Outcome.OK] > len(records) / 4  # trouble is not all there is


def test_scenarios_of_every_theme_hold_and_reach_every_corner() -> None:
    results = list(run(range(SHORT)))
    assert {draw(seed).theme for seed in range(SHORT)} == set(THEMES)
    check_reached(results)


@pytest.mark.parametrize("first", range(SHORT, MANY, STEP))
def test_thousands_of_scenarios_hold(first: int) -> None:
    assert sum(1 for _ in run(range(first, first + STEP))) == STEP


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_thousands_of_scenarios_hold() -> None:
    assert sum(1 for _ in run(range(MANY, LONG))) == LONG - MANY


def test_another_clock_of_the_day_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with shared_memory_directory() as directory:
        before = [safely(draw(seed), directory).trace_hash for seed in range(10)]
        jumps = iter(range(10**9))

        def jumping() -> float:
            return 1e9 - next(jumps) * 1e5

        monkeypatch.setattr("time.time", jumping)
        monkeypatch.setattr("router.ingress.server.time", jumping)
        monkeypatch.setattr("time.time_ns", lambda: int(jumping() * 1e9))
        assert [safely(draw(seed), directory).trace_hash for seed in range(10)] == before


def test_a_host_that_is_taken_out_and_back_in_counts_what_still_runs_there() -> None:
    hosts = [Host(f"h{i}", "openai", 1, ["small"], toml='models = ["small"]\nslots = 1\n') for i in range(2)]
    long = [Fate(tokens=40, gap_ms=50)]
    clients = [
        Client(f"c{i}", at_ms, [Ask(f"r{i}", "small", fates=long)]) for i, at_ms in enumerate((300, 310, 900, 910))
    ]
    toml = "[timeouts]\ndrain_s = 5\n"
    reloads = [Reload(500, toml, hosts[1:]), Reload(700, toml, hosts)]
    with shared_memory_directory() as directory:
        result = safely(Scenario(-1, "", toml, hosts, clients, reloads=reloads), directory)
    assert result.violations == []
    assert result.outcomes == {"ok": 4}
    assert {record["host"] for record in result.done} == {1, 2}


def test_a_request_that_falls_back_to_a_model_whose_free_host_has_failed_it_waits_for_the_other() -> None:
    both = Host("h0", "openai", 2, ["small", "large"], toml='models = ["small", "large"]\nslots = 2\n')
    other = Host("h1", "openai", 1, ["large"], toml='models = ["large"]\nslots = 1\n')
    busy = Ask("r0", "large", fates=[Fate(tokens=20, gap_ms=50)], headers={"x-ringrouter-host": "h1"})
    falls_back = Ask("r1", "small", fates=[Fate(kind="status", status=503), Fate()])
    clients = [Client("c0", 300, [busy]), Client("c1", 400, [falls_back])]
    scenario = Scenario(-1, "", '[models.small]\nfallback = ["large"]\n', [both, other], clients)
    with shared_memory_directory() as directory:
        result = safely(scenario, directory)
        with PLANTS["a request is lost behind a fallback"]():
            planted = safely(scenario, directory)
    assert result.violations == []
    assert result.outcomes == {"ok": 2}
    assert "r1 is at no host, and nobody lets it wait" in planted.violations[0]


def test_a_reload_with_more_names_than_there_is_room_for_changes_nothing() -> None:
    hosts = [Host(f"h{i}", "openai", 1, ["small"], toml='models = ["small"]\nslots = 1\n') for i in range(2)]
    many = [replace(hosts[0], name=f"new{i}") for i in range(300)]
    clients = [Client(f"c{i}", at_ms, [Ask(f"r{i}", "small")]) for i, at_ms in enumerate((300, 900, 1200))]
    timeouts = "[timeouts]\ntotal_s = 5\n"
    reloads = [Reload(500, timeouts, [hosts[1], *many]), Reload(1000, timeouts, hosts[1:])]
    with shared_memory_directory() as directory:
        scenario = Scenario(-1, "", "", hosts, clients, reloads=reloads)
        result = safely(scenario, directory, keeps_events=True)
    assert result.violations == []
    assert result.outcomes == {"ok": 3}
    assert sum("reload refused: hosts: more than" in event for event in result.events) == 1
    assert result.counters[Counter.CONFIG_RELOADS] == 1


def test_a_host_that_is_taken_for_another_kind_has_its_slots_once() -> None:
    host = Host("h0", "vllm", 1, ["small"], toml='models = ["small"]\nslots = 1\n')
    long = [Fate(tokens=20, gap_ms=50)]
    clients = [Client(f"c{i}", at_ms, [Ask(f"r{i}", "small", fates=long)]) for i, at_ms in enumerate((300, 900))]
    scenario = Scenario(-1, "", "", [host], clients, reloads=[Reload(600, "", [replace(host, kind="openai")])])
    with shared_memory_directory() as directory:
        result = safely(scenario, directory)
        with PLANTS["a host of another kind has slots of its own"]():
            planted = safely(scenario, directory)
    assert result.violations == []
    assert result.outcomes == {"ok": 2}
    assert "2 of 1 slots are in use, of the same host" in planted.violations[0]
