"""What runs now: every request that was sent is in a sighting or has a record, and the costs agree with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from router.observer.cost import CostMeter
from router.observer.follow import Follower
from router.observer.in_flight import LOOK_EVERY_NS, InFlight, Running
from router.observer.prices import Prices
from router.observer.rows import RequestRow
from router.telemetry import records as rec
from tests.support.told_requests import MS, ToldRouter
from tests.support.waiting import shared_memory_directory

S = 1_000_000_000


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with shared_memory_directory() as directory:
        yield directory


@pytest.fixture
def router(run_dir: Path) -> Iterator[ToldRouter]:
    one = ToldRouter(run_dir / "main")
    yield one
    one.die()


@pytest.fixture
def in_flight(run_dir: Path) -> Iterator[InFlight]:
    one = InFlight(run_dir)
    yield one
    one.close()


def test_a_sighting_says_where_each_request_is_and_how_many_have_ended(router: ToldRouter, in_flight: InFlight) -> None:
    begin_ns = int(router.directory.name)
    running, waiting, ended = router.ask(begin_ns), router.ask(begin_ns), router.ask(begin_ns)
    running.dispatch(begin_ns + 5, host=2)
    running.show(3)
    waiting.show(7, rec.Phase.WAITING)
    ended.dispatch(begin_ns + 6)
    ended.event(begin_ns + 7)
    ended.end(begin_ns + 8)
    ended.record()
    (sighting,) = in_flight.look(begin_ns + S)
    assert sighting.running == (Running(0, "gpu-1", begin_ns + 5, begin_ns + 5), Running(1, "", 0, 0))
    assert (sighting.instance, str(sighting.generation)) == ("main", router.directory.name)
    assert sighting.done_count == 1
    assert sighting.taken_ns == begin_ns + S


def test_it_looks_no_more_often_than_it_must(router: ToldRouter, in_flight: InFlight) -> None:
    assert len(in_flight.look(LOOK_EVERY_NS)) == 1
    assert in_flight.look(2 * LOOK_EVERY_NS - 1) == []
    assert len(in_flight.look(2 * LOOK_EVERY_NS)) == 1


def test_a_dead_router_runs_nothing_and_a_new_generation_is_found(run_dir: Path, in_flight: InFlight) -> None:
    assert in_flight.look(LOOK_EVERY_NS) == []
    first = ToldRouter(run_dir / "main")
    assert len(in_flight.look(2 * LOOK_EVERY_NS)) == 1
    first.die()
    assert in_flight.look(3 * LOOK_EVERY_NS) == []
    second = ToldRouter(run_dir / "main")
    (sighting,) = in_flight.look(4 * LOOK_EVERY_NS)
    assert str(sighting.generation) == second.directory.name
    second.die()


def test_only_the_named_routers_are_looked_at(run_dir: Path, router: ToldRouter) -> None:
    other = ToldRouter(run_dir / "other")
    both, one = InFlight(run_dir), InFlight(run_dir, ["other", "missing"])
    assert [each.instance for each in both.look(LOOK_EVERY_NS)] == ["main", "other"]
    assert [each.instance for each in one.look(LOOK_EVERY_NS)] == ["other"]
    both.close()
    one.close()
    other.die()


def test_costs_by_the_rings_of_a_router(run_dir: Path, router: ToldRouter, in_flight: InFlight, tmp_path: Path) -> None:
    follower = Follower(run_dir, tmp_path)
    meter = CostMeter(Prices("EUR", {"gpu-0": 3600.0}), ["gpu-0"])
    begin_ns = int(router.directory.name)
    ended, running = router.ask(begin_ns), router.ask(begin_ns)
    ended.dispatch(begin_ns)
    running.dispatch(begin_ns + 10 * MS)
    running.show(1)
    ended.event(begin_ns + 20 * MS)
    ended.event(begin_ns + 30 * MS)
    ended.finish(begin_ns + 30 * MS)

    def settled(now_ns: int) -> list[RequestRow]:
        sightings = in_flight.look(now_ns)
        meter.add(follower.poll(now_ns).rows, sightings, now_ns)
        return meter.settled(now_ns)

    assert settled(begin_ns + S) == []
    (row,) = settled(begin_ns + 30 * MS + 2 * S)
    assert row.cost is not None
    assert row.cost.host_ns == 20 * MS
    assert row.cost.amount == pytest.approx(0.02)
    follower.close()
