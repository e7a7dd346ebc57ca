"""Regressions: what got worse than it was itself is found and named; what only looks so is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from router.observer.alerts.evidence import cells as cells_module
from router.observer.alerts.evidence.cells import LENGTHS, METRICS, SUMS, Slices, Sums, sums_of
from router.observer.alerts.evidence.comparison import baseline_of, levels_of
from router.observer.alerts.evidence.history import HOUR_NS, KEEP_HOURS, History
from router.observer.alerts.evidence.regressions import BLOCK_NS, LATE_NS, Regressions, _shift_of
from router.observer.alerts.model import Cause, Finding, Severity
from tests.observer.alert_simulation import KINDS, World, breached, lived, planted, quiet
from tests.observer.traffic import DAY, HOUR, MONDAY_WALL_NS, Plant, S, Traffic

TTFT = METRICS.index("ttft")


@pytest.fixture(scope="module")
def world() -> World:
    """Return a world with three days behind it, in which nothing was told."""
    return lived(seed=1, days=3.0)


def told(world: World, plants: list[Plant], length_ns: int) -> list[list[Finding]]:
    """Let a copy of the world go on in the middle of its fourth day, and return the findings of every five minutes."""
    world = copy.deepcopy(world)
    world.traffic.plants = plants
    world.jump(world.now_wall_ns + 11 * HOUR)
    return [findings for _, findings in world.run(length_ns)]


NOON = MONDAY_WALL_NS + 3 * DAY + 12 * HOUR
"""An hour after :func:`told` begins."""


# ---------------------------------------------------------------- what is told
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_planted_is_found_with_its_slice_and_stage(world: World, kind: str) -> None:
    outcomes = [planted(world, kind, seed) for seed in range(100, 103)]
    assert sum(outcome.is_right for outcome in outcomes) >= 2, [o for o in outcomes if not o.is_right]


@pytest.mark.parametrize("kind", KINDS)
def test_an_objective_that_burns_is_explained_by_what_was_planted(world: World, kind: str) -> None:
    outcomes = [breached(world, kind, seed) for seed in range(200, 203)]
    assert sum(outcome.is_right for outcome in outcomes) >= 2, [o for o in outcomes if not o.is_right]


def test_a_regression_says_what_it_is_and_that_it_is_observational(world: World) -> None:
    findings = told(world, [Plant("host_decode", "gpu-1", NOON, 2.0)], 2 * HOUR)
    (found,) = findings[-1]
    assert (found.cause, found.severity) == (Cause.REGRESSION, Severity.TICKET)
    assert (found.labels, found.metric) == ({"host": "gpu-1"}, "tpot")
    assert abs(found.since_wall_ns - NOON) <= BLOCK_NS
    assert "host gpu-1: tpot +" in found.summary
    assert found.facts[0].startswith("tpot +")
    assert "against the same hours of the last days" in found.facts[0]
    assert "Observational" in found.facts[1]
    first = next(index for index, each in enumerate(findings) if each)
    assert (first + 1) * BLOCK_NS <= HOUR + 30 * 60 * S, "found within half an hour"


def test_it_is_over_when_the_slice_is_as_it_was(world: World) -> None:
    world = copy.deepcopy(world)
    world.jump(world.now_wall_ns + 11 * HOUR)
    for _ in world.run(HOUR):
        pass
    world.traffic.plants = [Plant("host_prefill", "gpu-0", NOON, 2.0)]
    assert [findings for _, findings in world.run(HOUR)][-1]
    world.traffic.plants = []
    assert [findings for _, findings in world.run(HOUR)][-1] == []


def test_a_restart_judges_the_last_hour_at_once(world: World) -> None:
    world = copy.deepcopy(world)
    world.jump(world.now_wall_ns + 11 * HOUR)
    world.traffic.plants = [Plant("host_prefill", "gpu-0", NOON, 2.0)]
    before = [findings for _, findings in world.run(2 * HOUR)][-1]
    again = Regressions(world.recent, world.history, world.now_wall_ns + 20 * S)
    assert again.evaluate(world.now_wall_ns + 20 * S) == []
    again.recall()
    after = again.evaluate(world.now_wall_ns + 21 * S)
    assert [(each.labels, each.metric) for each in after] == [(each.labels, each.metric) for each in before]
    assert abs(after[0].since_wall_ns - before[0].since_wall_ns) <= 2 * BLOCK_NS


def test_five_minutes_are_summed_up_when_their_costs_have_settled() -> None:
    world = World(seed=3, per_s=1.0)
    end = MONDAY_WALL_NS + BLOCK_NS
    world.regressions.evaluate(end + LATE_NS - S)
    world.recent.add_table(world.traffic.between(MONDAY_WALL_NS, end), end + LATE_NS - S)
    assert len(world.regressions.slices) == 1
    world.regressions.evaluate(end + LATE_NS)
    assert len(world.regressions.slices) > 10


def test_a_clock_that_is_put_back_is_followed() -> None:
    world = World(seed=3, per_s=1.0, begin_wall_ns=MONDAY_WALL_NS + DAY)
    assert not any(findings for _, findings in world.run(HOUR))
    slice_count = len(world.regressions.slices)
    world.jump(MONDAY_WALL_NS + HOUR)
    world.regressions.evaluate(world.now_wall_ns)
    world.traffic.plants = [Plant("prompt", "search", 0, 1.0)]
    for _ in world.run(2 * BLOCK_NS):
        pass
    assert len(world.regressions.slices) == slice_count + 1, "the new version was seen"


def test_two_causes_at_once_are_both_told(world: World) -> None:
    plants = [Plant("host_decode", "gpu-2", NOON, 2.5), Plant("tool", "agent", NOON, 2.5)]
    findings = told(world, plants, 2 * HOUR)
    assert sorted(str(each.labels) for each in findings[-1]) == ["{'feature_name': 'agent'}", "{'host': 'gpu-2'}"]


def test_a_version_that_only_some_requests_have_is_told_from_its_feature(world: World) -> None:
    findings = told(world, [Plant("prompt", "search", NOON, 3.0, share=0.5)], 2 * HOUR)
    (found,) = findings[-1]
    assert found.labels == {"feature_name": "search", "prompt_version": "new"}


# ---------------------------------------------------------------- what is not
def test_days_in_which_nothing_is_wrong_raise_no_alarm() -> None:
    assert quiet(seed=2, days=2.6, per_s=0.5, with_burns=False) == []


def test_users_who_ask_longer_questions_are_no_regression(world: World) -> None:
    findings = told(world, [Plant("length", "search", NOON, 2.5)], 2 * HOUR)
    assert not [each for found in findings for each in found if each.metric != "cost"]
    assert not any(findings), "at the same length nothing takes longer"


def test_a_version_with_prompts_as_long_as_before_is_no_regression(world: World) -> None:
    assert not any(told(world, [Plant("prompt", "search", NOON, 1.0)], 2 * HOUR))


def test_a_quarter_of_an_hour_is_no_regression(world: World) -> None:
    world = copy.deepcopy(world)
    world.jump(world.now_wall_ns + 11 * HOUR)
    found = [findings for _, findings in world.run(HOUR)]
    world.traffic.plants = [Plant("host_prefill", "gpu-0", NOON, 3.0)]
    found += [findings for _, findings in world.run(900 * S)]
    world.traffic.plants = []
    found += [findings for _, findings in world.run(HOUR)]
    assert not any(found)


def test_what_slows_all_alike_is_no_regression_of_one(world: World) -> None:
    plants = [Plant("host_prefill", host, NOON, 2.0) for host in ("gpu-0", "gpu-1", "gpu-2")]
    named = {str(each.labels) for found in told(world, plants, 2 * HOUR) for each in found}
    assert not {name for name in named if "host" in name}


def test_without_days_to_compare_with_nothing_is_said() -> None:
    world = World(seed=3, per_s=1.0)
    world.traffic.plants = [Plant("host_prefill", "gpu-0", MONDAY_WALL_NS + HOUR, 5.0)]
    assert not any(findings for _, findings in world.run(3 * HOUR))


# ---------------------------------------------------------------- the comparison, by hand
def sums(values: dict[int, tuple[float, int]], slice_count: int = 3, spread: float = 0.1, length: int = 5) -> Sums:
    """Return sums in which each slice has a mean of the logarithm of TTFT, and so many requests; slice 0 is all."""
    made = np.zeros((slice_count, len(METRICS), LENGTHS, SUMS), dtype=np.float32)
    for number, (mean, count) in values.items():
        made[number, TTFT, length] = count, count * mean, count * (mean**2 + spread**2)
        made[0, TTFT, length] += made[number, TTFT, length]
    return made


def test_a_shift_is_that_of_the_slice_beyond_that_of_the_others() -> None:
    hours = [sums({1: (5.0 + day, 100), 2: (6.0 + day, 100)}) for day in (0.0, 0.1, 0.2, 0.0, -0.1, -0.2, 0.05)]
    baseline = baseline_of(hours)
    assert baseline.center[1, TTFT] == pytest.approx(0, abs=1e-4), "days that are slower for all are no deviation"
    assert baseline.spread[1, TTFT] == pytest.approx(0.05), "the floor"
    alike = levels_of([sums({1: (7.0, 50), 2: (8.0, 50)})], baseline)
    assert alike.apart[0, 1, TTFT] == pytest.approx(0, abs=1e-4)
    slower = levels_of([sums({1: (5.0 + np.log(2), 50), 2: (6.0, 50)})], baseline)
    assert slower.apart[0, 1, TTFT] == pytest.approx(np.log(2), abs=1e-4)
    own, of_all = baseline.variance[1, TTFT], baseline.variance[0, TTFT]
    assert slower.error[0, 1, TTFT] == pytest.approx(own / 50 + of_all / 50, rel=1e-6)


def test_a_day_with_an_incident_neither_moves_nor_widens_the_baseline() -> None:
    usual = [sums({1: (5.0, 100), 2: (6.0, 100)}) for _ in range(18)]
    incident = [sums({1: (8.0, 100), 2: (6.0, 100)}) for _ in range(3)]
    baseline = baseline_of(usual + incident)
    now = levels_of([sums({1: (5.0, 100), 2: (6.0, 100)})], baseline)
    assert now.apart[0, 1, TTFT] - baseline.center[1, TTFT] == pytest.approx(0, abs=1e-4)
    assert baseline.spread[1, TTFT] == pytest.approx(0.05)


def test_a_shift_is_the_median_of_the_half_hour_and_no_single_five_minutes_make_it() -> None:
    baseline = baseline_of([sums({1: (5.0, 100), 2: (6.0, 100)})] * 6)
    blocks = [sums({1: (5.0 + over, 100), 2: (6.0, 100)}) for over in (0.15, 0.15, 0.15, 3.0, 0.15, 0.15)]
    shift = _shift_of(levels_of(blocks, baseline), baseline)
    assert shift.median[1, TTFT] == pytest.approx(0.15, abs=1e-3)
    assert shift.is_lasting[1, TTFT]


def test_of_a_feature_and_its_only_version_the_version_is_named_if_it_was_just_born(world: World) -> None:
    regressions = copy.deepcopy(world).regressions
    feature = regressions.slices.number((("feature_name", "search"),))
    known, born = (
        regressions.slices.number((("feature_name", "search"), ("prompt_version", version))) for version in ("v1", "v9")
    )
    gains = np.ones(len(regressions.slices))
    assert regressions._most([feature, known], gains, world.now_wall_ns) == feature
    assert regressions._most([feature, known, born], gains, world.now_wall_ns) == born


def test_a_length_that_was_never_seen_says_nothing() -> None:
    baseline = baseline_of([sums({1: (5.0, 100), 2: (6.0, 100)})] * 6)
    now = levels_of([sums({1: (9.0, 100), 2: (6.0, 100)}, length=20)], baseline)
    assert now.requests[0, 1, TTFT] == 0


def test_two_days_of_three_hours_are_the_least_to_compare_with() -> None:
    hour = sums({1: (5.0, 100), 2: (6.0, 100)})
    assert np.isnan(baseline_of([hour] * 5).center[1, TTFT])
    assert not np.isnan(baseline_of([hour] * 6).center[1, TTFT])


# ---------------------------------------------------------------- the baseline on disk
def filled(history: History, hours: range, name: str = "gpu-0") -> None:
    for hour in hours:
        number = history.slices.number((("host", name),))
        made = np.zeros((len(history.slices), len(METRICS), LENGTHS, SUMS), dtype=np.float32)
        made[number, TTFT, 3] = hour + 1, 2, 3
        history.add(made, (hour * 12 + 1) * BLOCK_NS)
        history.add(made, (hour * 12 + 2) * BLOCK_NS)


def test_a_baseline_survives_a_kill_and_an_hour_that_ran_goes_on(tmp_path: Path) -> None:
    filled(History(tmp_path), range(3))
    again = History(tmp_path)
    assert again.hours == [0, 1, 2]
    number = again.slices.number((("host", "gpu-0"),))
    assert list(again.dense(1)[number, TTFT, 3]) == [4, 4, 6]
    filled(again, range(2, 3))  # the hour goes on
    filled(again, range(3, 4))
    assert list(again.dense(2)[number, TTFT, 3]) == [12, 8, 12]
    assert list(History(tmp_path).dense(2)[number, TTFT, 3]) == [12, 8, 12]


def test_hours_older_than_eight_days_are_deleted(tmp_path: Path) -> None:
    history = History(tmp_path)
    filled(history, range(KEEP_HOURS + 5))
    assert len(history.hours) == KEEP_HOURS
    assert len(list(tmp_path.glob("*.hour"))) == KEEP_HOURS + 1  # with the one that runs


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"",
        lambda raw: b"\xc1 nothing",
        lambda raw: raw.replace(b"ringrouter.baseline/1", b"ringrouter.baseline/9"),
    ],
)
def test_a_damaged_hour_is_left_out(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    filled(History(tmp_path), range(3))
    path = tmp_path / f"{1:08d}.hour"
    path.write_bytes(damage(path.read_bytes()))
    assert History(tmp_path).hours == [0, 2]


def test_the_same_hours_are_those_of_the_days_before() -> None:
    history = History()
    filled(history, range(83))  # also the hours just before, which may have it already
    now = (3 * 24 + 10) * HOUR_NS + HOUR_NS // 2
    assert history.same_hours(now) == [9, 10, 11, 33, 34, 35, 57, 58, 59]


def test_slices_without_requests_for_days_give_their_places_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells_module, "SLICES_MAX", 3)
    history = History()
    filled(history, range(2), "old")
    filled(history, range(2, 2 + KEEP_HOURS + 1), "busy")
    assert history.slices.number((("host", "new"),)) == -1
    moved = history.make_room()
    assert moved is not None
    assert list(history.slices.names) == [(), (("host", "busy"),)]
    number = history.slices.number((("host", "busy"),))
    assert history.dense(10)[number, TTFT, 3, 0] == 22
    assert history.slices.number((("host", "new"),)) == 2


def test_sums_are_those_of_the_requests() -> None:
    world = World(seed=4, per_s=1.0)
    table = Traffic(world.recent.values, 4).between(MONDAY_WALL_NS, MONDAY_WALL_NS + HOUR)
    slices = Slices()
    made = sums_of(table, world.recent.values, slices)
    assert made[0, TTFT, :, 0].sum() == (table.outcome == 1).sum()
    at = world.recent.values.dimensions.index("host")
    of_host = table.codes[:, at] == world.recent.values.known(at, "gpu-1")
    logs = np.log(table.number("ttft")[of_host & (table.outcome == 1)])
    number = slices.number((("host", "gpu-1"),))
    assert made[number, TTFT, :, 1].sum() == pytest.approx(logs.sum(), rel=1e-4)
    assert made[number, TTFT, :, 2].sum() == pytest.approx((logs**2).sum(), rel=1e-4)
    failed = METRICS.index("availability")
    assert made[0, failed, :, 1].sum() == (table.outcome != 1).sum()


# ---------------------------------------------------------------- the whole of it
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_of_many_plants_nearly_all_are_named_rightly() -> None:
    worlds = [lived(seed) for seed in range(4)]
    for told in (planted, breached):
        right = [told(worlds[number % 4], kind, 1000 + number).is_right for number in range(20) for kind in KINDS]
        assert sum(right) >= 0.95 * len(right), (told.__name__, right)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(3))
def test_a_quiet_month_raises_at_most_one_false_alarm(seed: int) -> None:
    assert len(quiet(seed, days=30)) <= 1
