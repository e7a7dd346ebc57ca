"""Everything the observer has counted: by time for people, since its start for Prometheus; pure.

Rows come in batches. Each batch becomes a matrix of values (requests by metrics) and a matrix of slices (requests by
entries); numpy counts their product twice::

    windows   log-linear histograms of 10 s, a minute, an hour    percentiles, to 0.4 %    router.observer.windows
    totals    counts within each metric's own boundaries           exact, since the start   router.observer.totals

Times are nanoseconds since 1970 (UTC). A request counts in the window in which it ended, whenever it was read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeVar

import numpy as np

from router.config import Goodput, Slices
from router.observer.batch import NO_PACE, PaceArrays
from router.observer.catalogue import FULL_ENTRIES, WORD, Metric, Source, catalogue
from router.observer.hist import VALUE_MAX, Histogram, Ints
from router.observer.rows import RequestRow
from router.observer.samples import METRIC_BITS, Samples, joined
from router.observer.slices import Slicer
from router.observer.totals import Totals
from router.observer.windows import Table, Windows, merge, series_of, tabulate

TOTAL: Final = ""
"""Name of the entry whose one slice is all requests."""
OTEL_ENTRY: Final = "endpoint,model,host,error"
"""What OpenTelemetry's metrics are told apart by."""
ALWAYS: Final = (TOTAL, OTEL_ENTRY, "model", "host")
"""Entries that are there whatever is configured."""
ROWS_AT_ONCE: Final = 4096
"""Rows counted in one go: bounds what a batch takes, some 40 MB."""
WAITING_MAX: Final = 500_000
"""Values that may wait to be counted: counting many at once is cheaper, and these take 12 MB."""
_ABSENT: Final = -1
_NO_BOUNDS: Final[Mapping[str, Iterable[int]]] = {}

T = TypeVar("T")


class Aggregate:
    """Counts requests. Memory is bounded: by the slices there can be, and by the windows' own bound."""

    def __init__(
        self,
        slices: Slices,
        goodput: Sequence[Goodput] = (),
        now_ns: int = 0,
        boundaries: Mapping[str, Iterable[int]] = _NO_BOUNDS,
    ) -> None:
        self.metrics: list[Metric] = catalogue(goodput, boundaries)
        if len(self.metrics) > 1 << METRIC_BITS:
            raise AssertionError(f"{len(self.metrics)} metrics do not fit into {METRIC_BITS} bits")
        self.index = {metric.name: position for position, metric in enumerate(self.metrics)}
        self.started_ns = now_ns
        self.slicer = Slicer([*ALWAYS, *slices.tags], slices.values_max, slices.top, slices.top_count, now_ns)
        self.windows = Windows()
        self.totals = Totals(self.metrics)
        self.row_count = 0
        self._waiting: list[tuple[Samples, Ints]] = []
        self._waiting_count = 0
        self._gap_metric = self.index["icl"]
        names = [",".join(entry.names) for entry in self.slicer.entries()]
        self._full_columns = [column for column, name in enumerate(names) if name in FULL_ENTRIES]
        self._headline_columns = [
            column for column, name in enumerate(names) if name not in FULL_ENTRIES and name != OTEL_ENTRY
        ]
        self._is_headline = np.array([metric.is_headline or metric.unit is WORD for metric in self.metrics])
        self._of_source = {
            source: [(i, metric) for i, metric in enumerate(self.metrics) if metric.source is source]
            for source in Source
        }

    def add(self, rows: Sequence[RequestRow], pace: PaceArrays, now_ns: int) -> None:
        """Count finished requests and the gaps between their tokens; costs come later, by :meth:`add_costs`."""
        self.row_count += len(rows)
        for begin in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[begin : begin + ROWS_AT_ONCE]
            gaps = _cut(pace, begin, begin + ROWS_AT_ONCE)
            self._note(part, Source.ROW, self._place(part, now_ns, again=False), gaps, now_ns)

    def add_costs(self, rows: Sequence[RequestRow], now_ns: int) -> None:
        """Count what rows cost that were counted before and are settled now."""
        for begin in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[begin : begin + ROWS_AT_ONCE]
            self._note(part, Source.COST, self._place(part, now_ns, again=True), NO_PACE, now_ns)

    def tick(self, now_ns: int) -> None:
        """Fold windows, and give the places of the busiest values anew. Meant for once a second."""
        self.flush(now_ns)
        self.slicer.tick(now_ns)
        self.windows.tick(now_ns)
        self.totals.keep_only(self.slicer.ids())

    def _place(self, rows: Sequence[RequestRow], now_ns: int, *, again: bool) -> Ints:
        """Return the ids of the slices of each row, a line each."""
        place = self.slicer.place
        placed = [[found.id for found in place(row, now_ns, failed=row.outcome != "ok", again=again)] for row in rows]
        return np.array(placed, dtype=np.int64).reshape(len(rows), -1)

    def _note(self, rows: Sequence[RequestRow], source: Source, slice_ids: Ints, gaps: PaceArrays, now_ns: int) -> None:
        """Read the metrics of a source off the rows; they are counted together with what else comes soon."""
        metrics = self._of_source[source]
        reads = [metric.read for _, metric in metrics]
        read = np.array(
            [[_ABSENT if (value := read(row)) is None else value for read in reads] for row in rows], dtype=np.int64
        )
        places, columns = np.nonzero(read >= 0)
        indexes = np.array([index for index, _ in metrics], dtype=np.int64)
        samples = Samples(
            slice_ids,
            np.concatenate([places, gaps.row.astype(np.int64)]),
            np.concatenate([indexes[columns], np.full(gaps.row.size, self._gap_metric, dtype=np.int64)]),
            np.clip(np.concatenate([read[places, columns], gaps.gap_ns]), 0, VALUE_MAX),
        )
        ends_ns = np.array([min(row.end_wall_ns, now_ns) for row in rows], dtype=np.int64)
        self._waiting.append((samples, ends_ns))
        self._waiting_count += samples.values.size
        if self._waiting_count >= WAITING_MAX:
            self.flush(now_ns)

    def flush(self, now_ns: int) -> None:
        """Count what waits. Reading does so by itself."""
        if not self._waiting:
            return
        samples = joined([part for part, _ in self._waiting])
        ends_ns = np.concatenate([part for _, part in self._waiting])
        self._waiting, self._waiting_count = [], 0
        self.totals.add(samples)
        starts_ns = ends_ns - ends_ns % self.windows.window_length_ns
        for start_ns in np.unique(starts_ns).tolist():
            rows = np.flatnonzero(starts_ns == start_ns)
            chosen = samples if rows.size == starts_ns.size else samples.of_rows(rows)
            self.windows.add(start_ns, self._table(chosen), now_ns)

    def _table(self, samples: Samples) -> Table:
        """Tabulate samples for the windows: every metric under some entries, the headline metrics under the others."""
        full = tabulate(samples.of_entries(self._full_columns))
        return merge([full, tabulate(samples.of_entries(self._headline_columns), self._is_headline)])

    # ------------------------------------------------------------ reading
    def metric(self, name: str) -> Metric:
        """Return a metric by its name; raises ``KeyError``."""
        return self.metrics[self.index[name]]

    def histograms(
        self, metric_names: Sequence[str], slice_ids: Sequence[int], begin_ns: int, end_ns: int
    ) -> list[list[Histogram]]:
        """Return, for each slice, the histogram of each metric: of the windows that hold some of the time given.

        Only headline metrics have one under entries that are not in :data:`FULL_ENTRIES`; others are empty there.
        """
        found = self.windows.histograms(begin_ns, end_ns, self._series(metric_names, slice_ids))
        return _by(len(metric_names), found)

    def means(
        self, metric_names: Sequence[str], slice_ids: Sequence[int], begin_ns: int, end_ns: int
    ) -> list[list[float | None]]:
        """Return, for each slice, the exact mean of each metric; ``None`` where there are no values."""
        return _by(len(metric_names), self.windows.means(begin_ns, end_ns, self._series(metric_names, slice_ids)))

    def _series(self, metric_names: Sequence[str], slice_ids: Sequence[int]) -> Ints:
        """Return the series of all metrics of all slices, slice by slice."""
        metrics = np.array([self.index[name] for name in metric_names], dtype=np.int64)
        ids = np.array(slice_ids, dtype=np.int64)
        return series_of(np.repeat(ids, metrics.size), np.tile(metrics, ids.size))


def _by(length: int, values: Sequence[T]) -> list[list[T]]:
    """Cut a sequence into stretches."""
    return [list(values[begin : begin + length]) for begin in range(0, len(values), length)]


def _cut(pace: PaceArrays, begin: int, end: int) -> PaceArrays:
    """Return the gaps of the rows from ``begin`` to ``end``, counted from the first of them."""
    if not pace.row.size:
        return NO_PACE
    first, behind = np.searchsorted(pace.row, [begin, end])
    return PaceArrays(pace.row[first:behind] - np.int32(begin), pace.gap_ns[first:behind])
