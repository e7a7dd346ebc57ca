"""Cells against a naive recount; burn rates replayed against fire and resolve times that were worked out by hand."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router import config
from router.observer.alerts.inhibit import is_compatible
from router.observer.alerts.model import Cause, Severity
from router.observer.rows import RequestRow
from router.observer.slo.book import SloBook
from router.observer.slo.burn import onset_ns
from router.observer.slo.cells import BYTES_PER_GROUP, CELL_COUNT, COUNTS, WIDTHS_S, Cells
from router.observer.slo.findings import findings_of, name_of, span, window_label
from router.observer.slo.groups import Groups
from router.observer.slo.status import SloStatus, State
from tests.support.request_rows import row

S = 1_000_000_000
NOW = 1_763_899_200 * S  # 2025-11-23 12:00 UTC
HOUR = 3600


# ---------------------------------------------------------------- cells
def width_of(window_s: int) -> int:
    """Return the width of the cells that a window is read from, as the module's head has it."""
    return 10 if window_s <= 4190 else 120 if window_s <= 93_480 else 3600


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from((60, 300, 1800, 3600, 7200, 21_600, 86_400, 259_200, 2_592_000)))
def test_a_window_has_what_ended_in_it_and_in_the_cell_of_its_begin(seed: int, window_s: int) -> None:
    rng, width_s = random.Random(seed), width_of(window_s)
    cells, now = Cells(1, NOW), NOW
    ages_s = (0, 1, 30, 4000, 90_000, *(window_s + k * width_s // 2 for k in (-2, -1, 0, 1, 2, 3)))
    ended: list[tuple[int, int, int]] = []
    for number in range(60):
        now += rng.choice((1, 7, 10, 300, 5000, 90_000) if number < 50 else (1, 7)) * S
        cells.advance(now)
        for _ in range(rng.randrange(4)):
            end = now - rng.choice(ages_s) * S
            group, bad = rng.randrange(3), rng.randrange(3)
            cells.add(group, end, bad, 2)
            ended.append((group, end, bad))
    width = width_s * S
    begin = (now - window_s * S) // width * width
    expected = np.zeros((3, 2), np.int64)
    for group, end, bad in ended:
        if begin <= end <= now:
            expected[group] += (bad, 2)
    assert cells.sums(window_s * S, now)[:3].tolist() == expected.tolist()
    for group in range(3):
        times, counts = cells.series(group, window_s * S, now)
        assert counts.sum(axis=0).tolist() == expected[group].tolist()
        assert times[0] == begin or begin < times[0], "what is older than the cells is not there"


def test_the_widths_cover_what_their_head_says_in_the_memory_that_it_says() -> None:
    covered = [count * width for count, width in zip(COUNTS, WIDTHS_S, strict=True)]
    assert covered == [4200, 26 * HOUR, 745 * HOUR]
    assert (CELL_COUNT, BYTES_PER_GROUP) == (1945, 15_560)
    cells = Cells(1, NOW)
    assert len(cells.copied(10)) == 10 * BYTES_PER_GROUP


def test_a_clock_that_was_set_ahead_and_back_loses_no_counting() -> None:
    cells = Cells(1, NOW)
    cells.advance(NOW + 400 * 86_400 * S)
    cells.advance(NOW)
    cells.add(0, NOW, 1, 5)
    assert cells.sums(HOUR * S, NOW)[0].tolist() == [1, 5]
    assert cells.sums(30 * 86_400 * S, NOW)[0].tolist() == [1, 5]


def test_counts_are_restored_as_they_were_and_age_meanwhile() -> None:
    cells = Cells(1, NOW)
    cells.add(1, NOW, 3, 4)
    other = Cells(1, NOW + 7200 * S)
    other.restore(cells.newest(), cells.copied(2))
    other.advance(NOW + 7200 * S)
    assert other.sums(HOUR * S, NOW + 7200 * S)[1].tolist() == [0, 0]
    assert other.sums(6 * HOUR * S, NOW + 7200 * S)[1].tolist() == [3, 4]
    with pytest.raises(ValueError, match="expected 3"):
        other.restore([1], cells.copied(2))
    with pytest.raises(ValueError, match="reshape"):
        other.restore(cells.newest(), b"1234")


def test_groups_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="expected as many"):
        Groups(1, 5, 1, lambda _: None).restore([()], [])


# ---------------------------------------------------------------- replays
class Replay:
    """Requests one every so many seconds of the configuration's time, evaluated as often; seconds of that time."""

    def __init__(self, text: str, scale: float, *, every_s: int = 10, per_step: int = 1) -> None:
        self.scale, self.every_s, self.per_step = scale, every_s, per_step
        parsed = config.parse(f"version = 1\n[observer]\ntime_scale = {scale}\n{text}")
        self.width_ns = round(10 * S / scale)
        self.begin_ns = NOW // self.width_ns * self.width_ns
        self.book = SloBook(parsed, self.begin_ns)
        self.second = self.seq = 0

    @property
    def now_ns(self) -> int:
        return self.begin_ns + self.second // 10 * self.width_ns

    def step(self, bad_count: int) -> None:
        rows: list[RequestRow] = []
        middle_ns = self.now_ns + self.width_ns // 2
        for i in range(self.per_step):
            outcome = "timeout" if i < bad_count else "ok"
            rows.append(row(request_seq=self.seq, outcome=outcome, end_wall_ns=middle_ns, tags={"feature_name": "f"}))
            self.seq += 1
        self.second += self.every_s
        self.book.add(rows, self.now_ns - 1)

    def statuses(self) -> list[SloStatus]:
        return self.book.evaluate(self.now_ns)

    def run(self, seconds: int, bad_count: int = 0) -> None:
        for _ in range(seconds // self.every_s):
            self.step(bad_count)

    def until(self, is_so: Callable[[SloStatus], bool], bad_count: int, limit_s: int = 100_000) -> int:
        """Go on until it is so at an evaluation; return how many seconds that took."""
        begin = self.second
        while self.second - begin < limit_s:
            self.step(bad_count)
            if is_so(self.statuses()[0]):
                return self.second - begin
        raise AssertionError(f"not within {limit_s} s")


def fires(severity: Severity) -> Callable[[SloStatus], bool]:
    return lambda status: status.severity is severity


def rests(status: SloStatus) -> bool:
    return status.severity is None


SLO = '[[slo]]\nname = "a"\nmetric = "availability"\nobjective = 99\nmin_events = 1\nmin_bad = 1\n'


@pytest.mark.parametrize("scale", [1, 60, 360])
def test_14_4_times_over_an_hour_fires_after_520_seconds_of_outage_and_ends_260_seconds_after_it(scale: float) -> None:
    """One request in each cell of 10 s. An hour has 360: 52 bad ones are 14.44 % and above 14.4 %, 51 are 14.17 %.

    Five minutes have 30: the rule ends when at most 4 of them are bad (13.3 %), 26 good ones after the outage.
    """
    replay = Replay(SLO + "[[slo.windows]]\nlong_s = 3600\nshort_s = 300\nfactor = 14.4\n", scale)
    replay.run(2 * HOUR)
    assert replay.until(fires(Severity.PAGE), bad_count=1) == 520
    (status,) = replay.statuses()
    (burn,) = status.burns
    assert (burn.long_bad, burn.long_total, burn.short_bad, burn.short_total) == (52, 360, 30, 30)
    assert burn.long_burn == pytest.approx(52 / 360 / 0.01)
    assert (burn.long_s, burn.short_s) == (3600, 300)
    assert status.since_wall_ns == replay.now_ns - 52 * replay.width_ns, "when the first bad request came"
    replay.run(300, bad_count=1)
    assert replay.statuses()[0].since_wall_ns == status.since_wall_ns
    assert replay.until(rests, bad_count=0) == 260


def test_6_times_over_six_hours_fires_after_12970_seconds_of_one_bad_in_ten() -> None:
    """Ten requests in each cell of 10 s, one bad. Six hours are read from cells of two minutes, so up to 110 s more are
    counted: after 12,960 s exactly 6 % are bad, which is not above; after 12,970 s 1,297 of 21,610.
    """
    replay = Replay(SLO + "[[slo.windows]]\nlong_s = 21600\nshort_s = 1800\nfactor = 6\n", 1, per_step=10)
    replay.run(6 * HOUR + 1200)
    replay.run(12_900, bad_count=1)
    assert replay.until(fires(Severity.PAGE), bad_count=1) == 70
    (burn,) = replay.statuses()[0].burns
    assert (burn.long_bad, burn.long_total) == (1297, 21_610)
    replay.run(HOUR - 10, bad_count=1)
    # Of half an hour (180 cells) at most 6 % may be bad: 108 of them with one in ten, so 720 s after the end.
    assert replay.until(rests, bad_count=0) == 720


def test_all_rules_of_99_percent_fire_in_their_order_and_what_a_page_has_told_is_no_ticket_afterwards() -> None:
    """An outage of an hour in traffic of four days: a page after 520 s; 6 % of six hours are 1,296 s, so that the
    second rule fires too, and 100 % of an hour are 4.2 % of a day and 1.4 % of three: the third and fourth fire, but
    only while the second does, and not for hours after it.
    """
    replay = Replay(SLO, 3600)
    replay.run(4 * 24 * HOUR)
    assert replay.until(fires(Severity.PAGE), bad_count=1) == 520
    replay.run(HOUR - 520, bad_count=1)
    firing = [burn.is_firing for burn in replay.statuses()[0].burns]
    assert firing == [True, True, True, True]
    ended = replay.until(rests, bad_count=0)
    # Half an hour after the outage 30 minutes have at most 6 % bad: 1,800 - 108 = 1,692 s, then no page is left.
    assert ended == 1700
    status = replay.statuses()[0]
    assert [burn.is_told for burn in status.burns] == [False, False, True, True]
    assert status.state is State.OK
    # A new burn that is slow is a ticket all the same.
    assert replay.until(fires(Severity.TICKET), bad_count=1, limit_s=600) <= 600


def test_a_slow_burn_is_a_ticket_and_no_page() -> None:
    """2 % bad: twice the budget. Above 1 times over three days and six hours, below 3, 6 and 14.4."""
    replay = Replay(SLO, 3600, every_s=600, per_step=50)
    replay.run(3 * 24 * HOUR)
    took = replay.until(fires(Severity.TICKET), bad_count=1, limit_s=2 * 24 * HOUR)
    # 2 % of t against 1 % of three days: half of them, give or take a cell of an hour.
    assert 36 * HOUR <= took <= 37 * HOUR
    assert [burn.is_firing for burn in replay.statuses()[0].burns] == [False, False, False, True]


def test_too_few_requests_are_insufficient_and_not_ok() -> None:
    text = SLO.replace("min_events = 1\nmin_bad = 1", "min_events = 100\nmin_bad = 10")
    replay = Replay(text, 1)
    assert replay.statuses()[0].state is State.INSUFFICIENT_DATA
    replay.run(990, bad_count=0)
    assert replay.statuses()[0].state is State.INSUFFICIENT_DATA, "99 requests"
    replay.run(10, bad_count=0)
    assert replay.statuses()[0].state is State.OK, "100 requests"
    replay.run(90, bad_count=1)
    status = replay.statuses()[0]
    assert status.state is State.INSUFFICIENT_DATA, "9 bad ones of 109 would fire a rule, were there ten"
    assert {burn.is_judged for burn in status.burns if (burn.long_burn or 0) > burn.factor} == {False}
    replay.run(10, bad_count=1)
    assert replay.statuses()[0].state is State.FIRING


def test_a_quiet_service_stays_without_requests_and_without_alarm() -> None:
    replay = Replay(SLO + "[[slo.windows]]\nlong_s = 3600\nshort_s = 300\nfactor = 14.4\n", 1)
    replay.run(600, bad_count=1)
    assert replay.statuses()[0].state is State.FIRING
    replay.second += 310
    (status,) = replay.statuses()
    assert status.state is State.OK, "nothing in five minutes: it does not go on"
    assert (status.burns[0].short_burn, status.burns[0].short_total) == (None, 0)


# ---------------------------------------------------------------- budget
def test_the_budget_is_that_of_a_whole_period_also_when_less_was_counted() -> None:
    """Three hours of one in a hundred at 99 % spend exactly the share of the period that has passed."""
    replay = Replay(SLO, 60, every_s=60, per_step=100)
    replay.run(3 * HOUR, bad_count=1)
    (status,) = replay.statuses()
    assert status.good_ratio == 0.99
    passed = 3 * HOUR / (30 * 24 * HOUR)
    assert status.budget_left == pytest.approx(1 - passed, abs=2e-6)
    assert status.counted_s == pytest.approx(3 * HOUR, abs=10)


def test_time_to_exhaustion_is_what_is_left_at_the_burn_of_the_last_hour_and_six() -> None:
    """After five good hours one of five times the budget: left is 1 − 5 h/720 h; the hour burns 5, six hours 5/6."""
    replay = Replay(SLO, 60, per_step=20)
    replay.run(5 * HOUR)
    replay.run(HOUR, bad_count=1)
    hour, six = replay.statuses()[0].outlooks
    left = 1 - 5 / 720
    assert hour.burn == pytest.approx(5)
    assert hour.exhausted_in_s == pytest.approx(left * 30 * 86_400 / 5, rel=1e-3)
    assert six.burn == pytest.approx(5 / 6)
    assert six.exhausted_in_s is None, "at less than 1 it lasts"


def test_a_spent_budget_is_a_ticket_of_its_own_when_nothing_burns_any_more() -> None:
    text = SLO + "window_days = 1\n[[slo.windows]]\nlong_s = 3600\nshort_s = 300\nfactor = 14.4\n"
    replay = Replay(text, 60)
    replay.run(20 * HOUR)
    replay.run(HOUR, bad_count=1)
    burning = list(findings_of(replay.statuses(), replay.now_ns))
    assert [each.cause for each in burning] == [Cause.BURN]
    assert "The budget of 1 d is spent." in burning[0].facts
    assert burning[0].exhausted_in_s == 0
    replay.run(HOUR)
    (status,) = replay.statuses()
    assert status.state is State.BUDGET_SPENT
    (found,) = findings_of([status], replay.now_ns)
    assert (found.cause, found.severity, found.labels) == (Cause.BUDGET, Severity.TICKET, {"slo": "a"})
    assert found.budget_left is not None
    assert found.budget_left < 0
    assert "the budget of 1 d is spent: 360 of 7,920 requests missed 99 % of availability" in found.summary


# ---------------------------------------------------------------- findings
def test_only_groups_have_alerts_where_there_are_groups_and_their_labels_name_them() -> None:
    replay = Replay(SLO + 'group_by = ["feature_name"]\nwhere = { model = ["m", "n"] }\n', 1, per_step=10)
    replay.run(300)
    replay.run(300, bad_count=5)
    (found,) = findings_of(replay.statuses(), replay.now_ns)
    assert (found.cause, found.severity) == (Cause.BURN, Severity.PAGE)
    assert found.labels == {"slo": "a", "feature_name": "f"}
    assert found.where == {"model": "m|n", "feature_name": "f"}
    assert (found.slo, found.metric, found.objective) == ("a", "availability", 99)
    assert found.since_wall_ns == replay.begin_ns + 300 * S
    assert len(found.burns) == 4
    assert found.summary == (
        "a (feature_name f): 150 of 600 requests in 1 h missed 99 % of availability, 25.0 times what the budget allows"
    )


def test_a_tag_that_was_not_given_has_a_name_in_labels() -> None:
    replay = Replay(SLO + 'group_by = ["channel"]\n', 1, per_step=10)
    replay.run(600, bad_count=5)
    (found,) = findings_of(replay.statuses(), replay.now_ns)
    assert found.labels == {"slo": "a", "channel": "(none)"}
    assert found.where == {"channel": ""}
    assert name_of(replay.statuses()[1]) == "a (channel (none))"


@pytest.mark.parametrize(
    ("other", "is_one_fault"),
    [
        ({"model": "n"}, True),
        ({"host": "gpu-1"}, True),
        ({"model": "x"}, False),
        ({"model": "n", "feature_name": "g"}, False),
    ],
)
def test_a_burn_explains_a_regression_of_one_of_the_models_that_it_is_about(
    other: dict[str, str], is_one_fault: bool
) -> None:
    assert is_compatible({"model": "m|n", "feature_name": "f"}, other) is is_one_fault


def test_the_worst_group_comes_first() -> None:
    replay = Replay(SLO + 'group_by = ["host"]\n', 1)
    ends = replay.now_ns
    rows = [
        row(request_seq=i, host=f"h{i % 3}", outcome="timeout" if i % 3 == 1 and i > 60 else "ok", end_wall_ns=ends)
        for i in range(300)
    ]
    replay.book.add(rows, ends)
    assert [status.group.get("host") for status in replay.statuses()] == [None, "h1", "h0", "h2"]


@pytest.mark.parametrize("seed", range(20))
def test_the_onset_of_a_burn_is_found_in_noise(seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = np.arange(360) * 10
    ratio = np.where(times < 2400, 0.01, 0.4)
    totals = rng.poisson(20, 360)
    counts = np.stack([rng.binomial(totals, ratio), totals], axis=1).astype(np.int64)
    assert abs(onset_ns(times, counts, 0.01) - 2400) <= 20


@pytest.mark.parametrize("scale", [1, 7, 60, 99.9])
def test_times_that_pass_faster_keep_their_names(scale: float) -> None:
    replay = Replay(SLO, scale)
    replay.run(60)
    (status,) = replay.statuses()
    assert status.period_s == 30 * 86_400
    assert [each.long_s for each in status.burns] == [3600, 21_600, 86_400, 259_200]


def test_times_are_written_as_people_and_as_prometheus_write_them() -> None:
    shown = {seconds: (span(seconds), window_label(seconds)) for seconds in (90, 300, 3600, 21_600, 259_200)}
    assert shown == {
        90: ("90 s", "90s"),
        300: ("5 min", "5m"),
        3600: ("1 h", "1h"),
        21_600: ("6 h", "6h"),
        259_200: ("3 d", "3d"),
    }
