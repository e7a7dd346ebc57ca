"""Windows: what is counted is found again, folding loses nothing, and memory has a bound."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.observer.hist import VALUE_MAX, Histogram
from router.observer.samples import Samples, joined
from router.observer.windows import TIERS, Tier, Windows, merge, series_of, tabulate

SECOND = 10**9
NOW = 1_763_900_000 * SECOND


def samples(slice_ids: list[list[int]], values: list[tuple[int, int, int]]) -> Samples:
    """Make samples of ``(row, metric, value)``."""
    array = np.array(values, dtype=np.int64).reshape(-1, 3)
    return Samples(np.array(slice_ids, dtype=np.int64), array[:, 0], array[:, 1], array[:, 2])


def of_one_slice(values: list[int]) -> Samples:
    return samples([[7]], [(0, 3, value) for value in values])


def found(windows: Windows, begin_ns: int = 0, end_ns: int = NOW + 1) -> Histogram:
    return windows.histograms(begin_ns, end_ns, np.array([series_of(7, 3)]))[0]


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=2), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 63), st.integers(0, 10**12)), max_size=60),
)
def test_every_series_is_the_histogram_of_its_values(
    slices: list[list[int]], values: list[tuple[int, int, int]]
) -> None:
    values = [(row % len(slices), metric, value) for row, metric, value in values]
    slices = [[a, 10 + b] for a, b in slices]  # entries share no slice
    windows = Windows()
    windows.add(NOW, tabulate(samples(slices, values)), NOW)
    for slice_id in {slice_id for row in slices for slice_id in row}:
        for metric in {metric for _, metric, _ in values}:
            expected = Histogram.of([v for row, m, v in values if m == metric and slice_id in slices[row]])
            back = windows.histograms(0, NOW + 1, np.array([series_of(slice_id, metric)]))[0]
            assert back.dense().tolist() == expected.dense().tolist()
            assert back[2:] == expected[2:]


def test_tables_merge_by_addition_in_any_order() -> None:
    parts = [tabulate(of_one_slice([10**k, 10**k + 1, 5])) for k in range(5)]
    expected = tabulate(joined([of_one_slice([10**k, 10**k + 1, 5]) for k in range(5)]))
    for tables in (parts, parts[::-1], [merge(parts[:2]), merge(parts[2:])]):
        assert all(np.array_equal(a, b) for a, b in zip(merge(tables), expected, strict=True))


PARTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 63), st.integers(0, VALUE_MAX)), max_size=30)


@given(st.tuples(PARTS, PARTS, PARTS))
def test_merging_is_associative(parts: tuple[list[tuple[int, int, int]], ...]) -> None:
    one, two, three = (tabulate(samples([[k] for k in range(10)], part)) for part in parts)
    left, right = merge([merge([one, two]), three]), merge([one, merge([three, two])])
    assert all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def test_rows_of_several_windows_are_told_apart() -> None:
    both = samples([[7], [7]], [(0, 3, 100), (1, 3, 200)])
    assert both.of_rows(np.array([1])).values.tolist() == [200]
    windows = Windows()
    windows.add(NOW, tabulate(both.of_rows(np.array([0]))), NOW)
    windows.add(NOW - 20 * SECOND, tabulate(both.of_rows(np.array([1]))), NOW)
    assert found(windows, NOW - 10 * SECOND).total == 100
    assert found(windows).total == 300


def test_windows_fold_into_minutes_and_hours_and_lose_nothing() -> None:
    windows = Windows()
    values = []
    end_ns = NOW + 2 * 86_400 * SECOND
    for at_ns in range(NOW, end_ns, 600 * SECOND):
        value = at_ns // SECOND % 10_000
        windows.add(at_ns, tabulate(of_one_slice([value])), at_ns)
        windows.tick(at_ns)
        values.append(value)
    expected = Histogram.of(values)
    back = found(windows, 0, end_ns)
    assert back.dense().tolist() == expected.dense().tolist()
    assert back[2:] == expected[2:]
    ages = {window.length_ns: end_ns - window.start_ns for window in windows.between(0, end_ns)}
    assert set(ages) == {tier.length_ns for tier in TIERS}
    assert windows.oldest_ns == NOW - NOW % (3600 * SECOND)


def test_the_newest_windows_stay_as_they_are() -> None:
    windows = Windows()
    for age_s in (5, 15, 800, 1000):
        windows.add(NOW - age_s * SECOND, tabulate(of_one_slice([age_s])), NOW)
    windows.tick(NOW)
    lengths = [window.length_ns // SECOND for window in windows.between(0, NOW)]
    assert lengths == [60, 10, 10, 10]


def test_what_is_too_old_is_counted_as_late() -> None:
    windows = Windows()
    windows.add(NOW - TIERS[-1].keep_ns, tabulate(of_one_slice([1, 2, 3])), NOW)
    assert windows.late_count == 3
    assert windows.byte_count == 0


def test_windows_that_come_of_age_in_the_last_tier_are_dropped() -> None:
    windows = Windows((Tier(SECOND, 10 * SECOND), Tier(10 * SECOND, 100 * SECOND)))
    windows.add(NOW, tabulate(of_one_slice([1])), NOW)
    windows.tick(NOW + 50 * SECOND)
    assert found(windows, 0, NOW + 100 * SECOND).n == 1
    windows.tick(NOW + 200 * SECOND)
    assert windows.oldest_ns is None


def test_memory_has_a_bound_and_the_recent_past_goes_last() -> None:
    bytes_max = 300_000
    windows = Windows(bytes_max=bytes_max)
    random = np.random.default_rng(3)
    for step in range(600):
        at_ns = NOW + step * 10 * SECOND
        windows.add(at_ns, tabulate(of_one_slice(random.integers(0, 10**9, 100).tolist())), at_ns)
        windows.tick(at_ns)
        assert windows.byte_count <= bytes_max
    recent = [w for w in windows.between(at_ns - 290 * SECOND, at_ns + 1) if w.length_ns == 10 * SECOND]
    assert len(recent) == 30
    assert found(windows, 0, at_ns + 1).n == 60_000, "folding early loses resolution, not requests"


def test_the_bound_counts_all_that_the_tables_hold() -> None:
    tracemalloc.start()
    try:
        windows = Windows()
        before, _ = tracemalloc.get_traced_memory()
        for step in range(50):
            # Many series of few values each, as most slices have them: a series takes more than its cells.
            values = [(row, metric, row * metric) for row in range(20) for metric in range(20)]
            at_ns = NOW + step * 10 * SECOND
            windows.add(at_ns, tabulate(samples([[row] for row in range(20)], values)), at_ns)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.8 < windows.byte_count / (taken - before) <= 1.0


@pytest.mark.parametrize("sizes", [[1] * 300, [300, 1, 1, 1], [1, 300, 2, 100]])
def test_however_counts_arrive_one_table_comes_out(sizes: list[int]) -> None:
    windows = Windows()
    values = iter(range(10**6))
    recorded: list[int] = []
    for size in sizes:
        part = [next(values) * 977 for _ in range(size)]
        windows.add(NOW, tabulate(of_one_slice(part)), NOW)
        recorded += part
    assert found(windows).dense().tolist() == Histogram.of(recorded).dense().tolist()
