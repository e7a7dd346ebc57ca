"""Sums of a stretch of time by slice, metric and input length: what regressions are found with; pure.

A cell holds count, sum and sum of squares. Durations and costs are logarithms, so that effects multiply and one endless
request does not make a mean; of ``failed`` the value is 0 or 1. A cell's place, for ``S`` slices::

    cell = (slice × METRICS + metric) × LENGTHS + class of the input's length        3 × float32

Slices are those that get better or worse by themselves: hosts, models, features, and prompt versions of a feature. The
classes of lengths are fixed, unlike deciles: sums of different days must be comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from router.observer.alerts.evidence.expected import LENGTH_CLASSES, length_class
from router.observer.alerts.evidence.judge import AVAILABILITY, judge, values_of
from router.observer.alerts.evidence.table import Doubles, Ints, Table, Values

METRICS: Final = ("ttft", "tpot", "e2e", "tool", "cost", AVAILABILITY)
LENGTHS: Final = LENGTH_CLASSES
SUMS: Final = 3
"""Of a cell: count, sum, sum of squares."""
KINDS: Final = (("host",), ("feature_name",), ("model",), ("feature_name", "prompt_version"))
"""Of two slices that are the same requests the one whose kind stands first is named."""
SLICES_MAX: Final = 256
"""Slices at a time, the total among them; later ones are not watched. 33,792 cells, of which most stay empty."""
TOTAL: Final = 0

Sums = NDArray[np.float32]
Names = tuple[tuple[str, str], ...]
"""A slice by name: dimensions and their values."""


class Slices:
    """The slices that are watched, by number; number 0 is all requests."""

    def __init__(self) -> None:
        self.names: list[Names] = [()]
        self._numbers: dict[Names, int] = {(): TOTAL}
        self.left_out_count = 0
        """How often a slice found no place."""

    def __len__(self) -> int:
        return len(self.names)

    def number(self, names: Names) -> int:
        """Return the number of a slice, a new one if need be; -1 when there is no place."""
        found = self._numbers.get(names)
        if found is not None:
            return found
        if len(self.names) >= SLICES_MAX:
            self.left_out_count += 1
            return -1
        self._numbers[names] = len(self.names)
        self.names.append(names)
        return len(self.names) - 1

    def parent(self, number: int) -> int:
        """Return the slice that a prompt version is of: its feature; of others all requests."""
        names = self.names[number]
        return self._numbers.get(names[:1], TOTAL) if len(names) > 1 else TOTAL

    def keep_only(self, numbers: Sequence[int]) -> Ints:
        """Forget all other slices. Returns the new number of each old one, -1 for those that are gone."""
        kept = [TOTAL, *(number for number in numbers if number != TOTAL)]
        moved = np.full(len(self.names), -1, dtype=np.int64)
        moved[kept] = np.arange(len(kept))
        self.names = [self.names[number] for number in kept]
        self._numbers = {names: number for number, names in enumerate(self.names)}
        return moved


def sums_of(table: Table, values: Values, slices: Slices) -> Sums:
    """Return the sums of a table: an array of slices × metrics × lengths × 3."""
    numbers = _slice_numbers(table, values, slices)
    measured = np.stack([_measured(table, metric) for metric in METRICS], axis=1)
    lengths = length_class(table.number("n_in"))
    size = len(slices) * len(METRICS) * LENGTHS
    found = np.zeros((size, SUMS))
    has = ~np.isnan(measured)
    weight = table.weight.astype(np.float64)
    for column in numbers.T:
        places = (column[:, None] * len(METRICS) + np.arange(len(METRICS))) * LENGTHS + lengths[:, None]
        chosen = has & (column >= 0)[:, None]
        at, value = places[chosen], measured[chosen]
        heavy = np.broadcast_to(weight[:, None], measured.shape)[chosen]
        for power, amounts in enumerate((heavy, heavy * value, heavy * value * value)):
            found[:, power] += np.bincount(at, amounts, size)
    return found.reshape(len(slices), len(METRICS), LENGTHS, SUMS).astype(np.float32)


def _slice_numbers(table: Table, values: Values, slices: Slices) -> Ints:
    """Return the slices of each request: a column for all, and one for each kind; -1 for none."""
    columns = [np.zeros(len(table), dtype=np.int64)]
    for kind in KINDS:
        places = [values.dimensions.index(name) for name in kind]
        keys = table.codes[:, places[0]].astype(np.int64)
        for place in places[1:]:
            keys = keys * values.count(place) + table.codes[:, place]
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        numbers = []
        for row in first.tolist():
            texts = [values.text(place, int(table.codes[row, place])) for place in places]
            numbers.append(slices.number(tuple(zip(kind, texts, strict=True))) if all(texts) else -1)
        columns.append(np.array(numbers, dtype=np.int64)[inverse] if numbers else columns[0])
    return np.stack(columns, axis=1)


def _measured(table: Table, metric: str) -> Doubles:
    """Return a metric of each request as it is summed up; NaN where it has none."""
    if metric == AVAILABILITY:
        counts, failed = judge(table, metric, None)
        return np.where(counts, failed, np.nan)
    return np.log(np.maximum(values_of(table, metric), 1e-9))


def grown(sums: Sums, slice_count: int) -> Sums:
    """Return sums with room for more slices."""
    if len(sums) >= slice_count:
        return sums
    larger = np.zeros((slice_count, *sums.shape[1:]), dtype=sums.dtype)
    larger[: len(sums)] = sums
    return larger
