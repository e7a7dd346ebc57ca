"""What has been counted since the observer's start, as Prometheus wants it: exact counts within given boundaries; pure.

One line of counters for each slice, one stretch of columns for each metric::

    slice 7   │ ttft ≤ 1 ms │ ≤ 5 ms │ … │ more │ ttfc ≤ 1 ms │ …         and beside it the sum of each metric

Each value is counted once, in the column of the first boundary that is not below it; Prometheus's cumulative counts are
the running sums of these. Boundaries are compared exactly, not by way of a histogram's buckets, so that the share of
requests within a service level's limit is exact.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.observer.catalogue import Metric
from router.observer.hist import Ints
from router.observer.samples import Samples, entries_of, sums_of

_FIRST_LINES: Final = 64
_SHIFT: Final = 52
"""Bits that hold any value (:data:`router.observer.hist.VALUE_MAX` has 50), below a metric's number in a sort key."""


class Line(NamedTuple):
    """Totals of one slice: ``counts`` in every column, ``sums`` of every metric in the unit inside."""

    counts: Ints
    sums: NDArray[np.float64]


class Totals:
    """Counters of all slices. A slice takes memory from its first request on until it is no longer kept."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        widths = [len(metric.bounds) + 1 for metric in metrics]
        self.offsets = [0, *np.cumsum(widths).tolist()]
        """Where each metric's columns begin, and where the last one's end."""
        # All boundaries as one ascending list: a value's column is its rank among those of its metric.
        self._bounds = np.array([i << _SHIFT | bound for i, metric in enumerate(metrics) for bound in metric.bounds])
        self._metric_count = len(metrics)
        self._lines: dict[int, int] = {}
        self._free: list[int] = []
        self._counts = np.zeros((0, self.offsets[-1]), dtype=np.int64)
        self._sums = np.zeros((0, self._metric_count), dtype=np.float64)

    def add(self, samples: Samples) -> None:
        """Count samples, each under every slice of its row."""
        if not samples.values.size:
            return
        # Each metric before a value's own has one column more than boundaries: the one above the last.
        columns = np.searchsorted(self._bounds, samples.metrics << _SHIFT | samples.values) + samples.metrics
        sums = sums_of(samples)
        column_count = self.offsets[-1]
        for ids, positions in entries_of(samples.slice_ids):
            lines = np.array([self._line(slice_id) for slice_id in ids.tolist()], dtype=np.int64)
            counts = np.bincount(positions[samples.places] * column_count + columns, minlength=ids.size * column_count)
            self._counts[lines] += counts.reshape(ids.size, column_count)
            np.add.at(self._sums, (lines[positions[sums.places]], sums.metrics), sums.totals.astype(np.float64))

    def _line(self, slice_id: int) -> int:
        line = self._lines.get(slice_id)
        if line is None:
            if not self._free:
                self._grow()
            line = self._lines[slice_id] = self._free.pop()
        return line

    def _grow(self) -> None:
        """Double the lines."""
        old = len(self._counts)
        new = max(_FIRST_LINES, 2 * old)
        self._counts = np.concatenate([self._counts, np.zeros((new - old, self.offsets[-1]), dtype=np.int64)])
        self._sums = np.concatenate([self._sums, np.zeros((new - old, self._metric_count))])
        self._free = list(range(new - 1, old - 1, -1))

    def keep_only(self, slice_ids: Collection[int]) -> None:
        """Forget the slices that have no place any more."""
        for slice_id in self._lines.keys() - slice_ids:
            line = self._lines.pop(slice_id)
            self._counts[line] = 0
            self._sums[line] = 0
            self._free.append(line)

    def line(self, slice_id: int) -> Line | None:
        """Return a copy of a slice's counters; ``None`` when it has counted nothing."""
        line = self._lines.get(slice_id)
        return None if line is None else Line(self._counts[line].copy(), self._sums[line].copy())
