"""Histograms by time: windows of 10 s, folded into minutes, folded into hours; pure.

All histograms of a window stand in one table, sorted by a key that names series and bucket::

    cell key    series << 13 | bucket        → count
    series      slice id << 6 | metric       → count, sum, least, largest

so that a slice without requests takes no room, folding windows is adding the counts of equal keys, and reading one
histogram is a binary search. Memory is bounded by :data:`BYTES_MAX`, whatever arrives: above it windows are folded
before their time, the oldest first, and at last the oldest hours are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.observer.hist import BUCKET_BITS, EMPTY, VALUE_MAX, Histogram, Ints, buckets_of
from router.observer.samples import METRIC_BITS, Samples, Sums, entries_of, starts_of, sums_of

BYTES_MAX: Final = 256 << 20
"""Of all windows together: 12 for each cell and 40 for each series, of which a slice has one for every metric."""
SPARED_COUNT: Final = 30
"""Windows of each length that are folded early only when nothing else helps: five minutes of 10 s."""
_DENSE_FACTOR: Final = 4
"""Up to so many places for each value are cheaper counted all than sorted."""
_SECOND_NS: Final = 1_000_000_000

Counts = NDArray[np.uint32]


class Tier(NamedTuple):
    """How long windows are, and until which age they stay as they are."""

    length_ns: int
    keep_ns: int


TIERS: Final = (
    Tier(10 * _SECOND_NS, 900 * _SECOND_NS),
    Tier(60 * _SECOND_NS, 6 * 3600 * _SECOND_NS),
    Tier(3600 * _SECOND_NS, 30 * 86_400 * _SECOND_NS),
)
"""10 s for a quarter of an hour, minutes for six hours, hours for a month."""


def series_of(slice_ids: Ints | int, metrics: Ints | int) -> Ints:
    """Return the number of the series that a metric of a slice is."""
    return np.asarray(slice_ids, dtype=np.int64) << METRIC_BITS | np.asarray(metrics, dtype=np.int64)


class Table(NamedTuple):
    """Histograms of many series, keys ascending without repeats."""

    cell_keys: Ints
    cell_counts: Counts
    """32 bits: 1.2 million values a second in one bucket would overflow an hour."""
    series_keys: Ints
    ns: Ints
    """How many values each series has."""
    totals: Ints
    minima: Ints
    maxima: Ints


_NO_INTS: Final[Ints] = np.zeros(0, dtype=np.int64)
NO_TABLE: Final = Table(_NO_INTS, np.zeros(0, dtype=np.uint32), _NO_INTS, _NO_INTS, _NO_INTS, _NO_INTS, _NO_INTS)


def tabulate(samples: Samples, has_buckets: NDArray[np.bool_] | None = None) -> Table:
    """Count samples, each under every slice of its row.

    ``has_buckets`` says, by the index of a metric, which are kept as histograms; of others only count, sum, least and
    largest value are. Without it all are.

    Entry by entry, by numpy's ``bincount`` over (slice, cell): sorting the product of values and slices instead takes
    ten times as long.
    """
    if not samples.values.size or not samples.slice_ids.shape[1]:
        return NO_TABLE
    sums = sums_of(samples)
    _, places, metrics, values = samples if has_buckets is None else samples.only(has_buckets[samples.metrics])
    codes, positions = np.unique(metrics << BUCKET_BITS | buckets_of(values), return_inverse=True)
    return merge(
        [_entry_table(ids, lines, places, codes, positions, sums) for ids, lines in entries_of(samples.slice_ids)]
    )


def _entry_table(ids: Ints, lines: Ints, places: Ints, codes: Ints, positions: Ints, sums: Sums) -> Table:
    """Count under the slices of one entry: ``ids``, of which each row has the one at its position in ``lines``."""
    keys = lines[places] * codes.size + positions
    code_count = max(1, codes.size)
    if ids.size * codes.size <= _DENSE_FACTOR * keys.size:
        dense = np.bincount(keys)
        found = np.flatnonzero(dense)
        counts = dense[found]
    else:
        found, counts = np.unique(keys, return_counts=True)
    series_keys = lines[sums.places] << METRIC_BITS | sums.metrics
    places_count = ids.size << METRIC_BITS
    ns, totals = np.zeros(places_count, dtype=np.int64), np.zeros(places_count, dtype=np.int64)
    minima, maxima = np.full(places_count, VALUE_MAX, dtype=np.int64), np.zeros(places_count, dtype=np.int64)
    np.add.at(ns, series_keys, sums.counts)
    np.add.at(totals, series_keys, sums.totals)
    np.minimum.at(minima, series_keys, sums.minima)
    np.maximum.at(maxima, series_keys, sums.maxima)
    there = np.flatnonzero(ns)
    return Table(
        ids[found // code_count] << (METRIC_BITS + BUCKET_BITS) | codes[found % code_count],
        counts.astype(np.uint32),
        series_of(ids[there >> METRIC_BITS], there & ((1 << METRIC_BITS) - 1)),
        ns[there],
        totals[there],
        minima[there],
        maxima[there],
    )


def merge(tables: Sequence[Table]) -> Table:
    """Return one table with the counts of all: adding is all that merging histograms takes."""
    if len(tables) == 1:
        return tables[0]
    cell_keys = np.concatenate([table.cell_keys for table in tables])
    order = np.argsort(cell_keys)
    cell_keys = cell_keys[order]
    starts = starts_of(cell_keys)
    counts = np.concatenate([table.cell_counts for table in tables])[order]
    series = np.concatenate([table.series_keys for table in tables])
    series_order = np.argsort(series)
    series = series[series_order]
    series_starts = starts_of(series)
    return Table(
        cell_keys[starts],
        np.add.reduceat(counts, starts),
        series[series_starts],
        np.add.reduceat(np.concatenate([table.ns for table in tables])[series_order], series_starts),
        np.add.reduceat(np.concatenate([table.totals for table in tables])[series_order], series_starts),
        np.minimum.reduceat(np.concatenate([table.minima for table in tables])[series_order], series_starts),
        np.maximum.reduceat(np.concatenate([table.maxima for table in tables])[series_order], series_starts),
    )


class Window:
    """One stretch of time: a merged table, and tables that wait until merging them is worth it."""

    def __init__(self, start_ns: int, length_ns: int) -> None:
        self.start_ns = start_ns
        self.length_ns = length_ns
        self._tables: list[Table] = []

    @property
    def byte_count(self) -> int:
        """Memory that the tables take now."""
        return sum(column.nbytes for table in self._tables for column in table)

    def add(self, table: Table) -> None:
        """Add counts. Small tables are merged into equal ones, so that each cell is moved seldom."""
        while self._tables and self._tables[-1].cell_keys.size <= 2 * table.cell_keys.size:
            table = merge([self._tables.pop(), table])
        self._tables.append(table)

    def table(self) -> Table:
        """Return everything in one table."""
        self._tables = [merge(self._tables)] if self._tables else []
        return self._tables[0] if self._tables else NO_TABLE


class Windows:
    """The windows of all tiers. Times are nanoseconds since 1970, UTC."""

    def __init__(self, tiers: Sequence[Tier] = TIERS, bytes_max: int = BYTES_MAX) -> None:
        self._tiers = tiers
        self._bytes_max = bytes_max
        self._windows: list[dict[int, Window]] = [{} for _ in tiers]
        self.late_count = 0
        """Values that belonged to a time for which no window is kept."""

    @property
    def byte_count(self) -> int:
        """Memory that the tables of all windows take."""
        return sum(window.byte_count for windows in self._windows for window in windows.values())

    @property
    def oldest_ns(self) -> int | None:
        """Start of the oldest window; ``None`` when there is none."""
        return min((start for windows in self._windows for start in windows), default=None)

    @property
    def window_length_ns(self) -> int:
        """Length of the shortest windows."""
        return self._tiers[0].length_ns

    def add(self, at_ns: int, table: Table, now_ns: int) -> None:
        """Add counts to the window that holds a time, of the tier that holds its age."""
        age_ns = now_ns - at_ns
        for tier, windows in zip(self._tiers, self._windows, strict=True):
            if age_ns < tier.keep_ns:
                self._window(windows, at_ns, tier.length_ns).add(table)
                return
        self.late_count += int(table.cell_counts.sum())

    @staticmethod
    def _window(windows: dict[int, Window], at_ns: int, length_ns: int) -> Window:
        start_ns = at_ns - at_ns % length_ns
        window = windows.get(start_ns)
        if window is None:
            window = windows[start_ns] = Window(start_ns, length_ns)
        return window

    def tick(self, now_ns: int) -> None:
        """Fold what has come of age, and as much more as it takes to stay within the bound of memory."""
        for index, tier in enumerate(self._tiers):
            for start_ns in [start for start in self._windows[index] if now_ns - start >= tier.keep_ns]:
                self._fold(index, start_ns)
        while self.byte_count > self._bytes_max and self._fold_earliest():
            pass

    def _fold_earliest(self) -> bool:
        """Fold the oldest window of the finest tier that has one to spare; false when nothing is left to fold."""
        for spared_count in (SPARED_COUNT, 1):
            for index, windows in enumerate(self._windows):
                if len(windows) > spared_count:
                    self._fold(index, min(windows))
                    return True
        return False

    def _fold(self, index: int, start_ns: int) -> None:
        """Add a window to the one of the next tier; one of the last tier is dropped."""
        window = self._windows[index].pop(start_ns)
        if index + 1 < len(self._tiers):
            above = self._windows[index + 1]
            self._window(above, start_ns, self._tiers[index + 1].length_ns).add(window.table())

    def between(self, begin_ns: int, end_ns: int) -> Iterator[Window]:
        """Yield the windows that hold some of ``[begin_ns, end_ns)``, oldest first."""
        found = [
            window
            for windows in self._windows
            for window in windows.values()
            if window.start_ns < end_ns and begin_ns < window.start_ns + window.length_ns
        ]
        yield from sorted(found, key=lambda window: window.start_ns)

    def histograms(self, begin_ns: int, end_ns: int, series: Ints) -> list[Histogram]:
        """Return the histogram of each series over the windows that hold some of ``[begin_ns, end_ns)``."""
        tables = [_chosen(window.table(), np.unique(series)) for window in self.between(begin_ns, end_ns)]
        table = merge(tables) if tables else NO_TABLE
        begins = np.searchsorted(table.cell_keys, series << BUCKET_BITS).tolist()
        ends = np.searchsorted(table.cell_keys, (series + 1) << BUCKET_BITS).tolist()
        places = np.searchsorted(table.series_keys, series).tolist()
        return [
            _cut(table, begin, end, place) if end > begin else EMPTY
            for begin, end, place in zip(begins, ends, places, strict=True)
        ]

    def means(self, begin_ns: int, end_ns: int, series: Ints) -> list[float | None]:
        """Return the mean of each series over the same windows, which takes far less than its histogram."""
        ns, totals = np.zeros(series.size, dtype=np.int64), np.zeros(series.size, dtype=np.int64)
        for window in self.between(begin_ns, end_ns):
            table = window.table()
            places = np.searchsorted(table.series_keys, series)
            places[places == table.series_keys.size] = 0
            if table.series_keys.size:
                is_there = table.series_keys[places] == series
                ns += np.where(is_there, table.ns[places], 0)
                totals += np.where(is_there, table.totals[places], 0)
        return [total / n if n else None for n, total in zip(ns.tolist(), totals.tolist(), strict=True)]


def _chosen(table: Table, series: Ints) -> Table:
    """Return what a table has of some series, given in ascending order."""
    begins = np.searchsorted(table.cell_keys, series << BUCKET_BITS)
    lengths = np.searchsorted(table.cell_keys, (series + 1) << BUCKET_BITS) - begins
    # All places of all stretches: each stretch's begin, and how far a place is into its stretch.
    ends = np.cumsum(lengths)
    cells = np.repeat(begins - (ends - lengths), lengths) + np.arange(int(lengths.sum()))
    places = np.flatnonzero(np.isin(table.series_keys, series, assume_unique=True))
    return Table(table.cell_keys[cells], table.cell_counts[cells], *(column[places] for column in table[2:]))


def _cut(table: Table, begin: int, end: int, place: int) -> Histogram:
    return Histogram(
        table.cell_keys[begin:end] & ((1 << BUCKET_BITS) - 1),
        table.cell_counts[begin:end].astype(np.int64),
        int(table.totals[place]),
        int(table.minima[place]),
        int(table.maxima[place]),
    )
