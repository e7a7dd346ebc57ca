"""Values of finished requests on their way into the counts, and the arithmetic that both kinds share; pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.observer.hist import Ints

METRIC_BITS: Final = 6
"""Bits that hold the index of a metric."""


class Samples(NamedTuple):
    """Values of rows under slices.

    ``slice_ids`` has a line for each row and a column for each entry. ``places``, ``metrics`` and ``values`` have a
    place for each value: the line of its row, the index of its metric, and the whole number itself.
    """

    slice_ids: Ints
    places: Ints
    metrics: Ints
    values: Ints

    def of_rows(self, chosen: Ints) -> Samples:
        """Return the samples of some rows, by their lines in ascending order."""
        new_places = np.full(len(self.slice_ids), -1, dtype=np.int64)
        new_places[chosen] = np.arange(chosen.size)
        kept = new_places[self.places] >= 0
        return Samples(self.slice_ids[chosen], new_places[self.places[kept]], self.metrics[kept], self.values[kept])

    def only(self, chosen: NDArray[np.bool_]) -> Samples:
        """Return some of the values, under the same slices."""
        return Samples(self.slice_ids, self.places[chosen], self.metrics[chosen], self.values[chosen])

    def of_entries(self, columns: Sequence[int]) -> Samples:
        """Return all values under the slices of some entries."""
        return self._replace(slice_ids=self.slice_ids[:, list(columns)])


def joined(parts: Sequence[Samples]) -> Samples:
    """Return all samples as one, the rows one behind the other."""
    if len(parts) == 1:
        return parts[0]
    begins = np.cumsum([0, *(len(part.slice_ids) for part in parts[:-1])])
    return Samples(
        np.concatenate([part.slice_ids for part in parts]),
        np.concatenate([part.places + begin for part, begin in zip(parts, begins, strict=True)]),
        np.concatenate([part.metrics for part in parts]),
        np.concatenate([part.values for part in parts]),
    )


class Sums(NamedTuple):
    """Values summed up for each row and metric that has any."""

    places: Ints
    metrics: Ints
    counts: Ints
    totals: Ints
    minima: Ints
    maxima: Ints


def sums_of(samples: Samples) -> Sums:
    """Sum values up by row and metric: a request has one value of most metrics and hundreds of gaps."""
    keys = samples.places << METRIC_BITS | samples.metrics
    order = np.argsort(keys)
    keys, values = keys[order], samples.values[order]
    starts = starts_of(keys)
    counts = np.diff(np.append(starts, keys.size))
    keys = keys[starts]
    return Sums(
        keys >> METRIC_BITS,
        keys & ((1 << METRIC_BITS) - 1),
        counts,
        np.add.reduceat(values, starts),
        np.minimum.reduceat(values, starts),
        np.maximum.reduceat(values, starts),
    )


def starts_of(ascending: Ints) -> Ints:
    """Return where each run of equal keys begins."""
    differs = ascending[1:] != ascending[:-1]
    return np.flatnonzero(np.concatenate([[True], differs])[: ascending.size])


def entries_of(slice_ids: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Yield for each entry the ids of its slices, ascending, and the position among them of each row's slice."""
    for column in slice_ids.T:
        ids, positions = np.unique(column, return_inverse=True)
        yield ids, positions.astype(np.int64)
