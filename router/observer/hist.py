"""Histograms of whole numbers in the layout of HdrHistogram with two significant digits; pure.

A value below 256 has a bucket of its own; above, each power of two is cut into 128 equal buckets, so that a bucket is
never wider than 1/128 of its lowest value::

    value     0 … 255   256 … 511   512 … 1023   …   2**49 … 2**50 − 1
    bucket    0 … 255   256 … 383   384 … 511    …   5504 … 5631
    width     1         2           4            …   2**42

The index of a bucket is that of ``counts`` in ``HdrHistogram(1, VALUE_MAX, 2)``, so a count here and a count there are
the same number (http://hdrhistogram.org). Recording differs: a batch at a time, by numpy, where the reference library
in Python takes a call and a microsecond for each value. What is kept of a histogram are the buckets that are not empty.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]

SUB_BUCKET_BITS: Final = 7
"""Each power of two has 2**7 buckets: 1/128 is finer than the 1/100 of two significant digits."""
VALUE_MAX: Final = (1 << 50) - 1
"""Larger values count as this one: 13 days in nanoseconds, and the longest time-out of the router is seven days."""
BUCKET_BITS: Final = 13
"""Bits that hold every bucket index: the largest is 5,631."""
BUCKET_COUNT: Final = (50 - SUB_BUCKET_BITS + 1) << SUB_BUCKET_BITS

assert BUCKET_COUNT <= 1 << BUCKET_BITS


def buckets_of(values: Ints) -> Ints:
    """Return the bucket index of each value; values are clipped to 0 … :data:`VALUE_MAX`."""
    clipped = np.clip(values, 0, VALUE_MAX)
    # frexp gives the bit length: every value is below 2**53 and therefore exact as a double.
    bit_lengths: Ints = np.frexp(clipped.astype(np.float64))[1].astype(np.int64)
    shifts: Ints = np.maximum(bit_lengths - (SUB_BUCKET_BITS + 1), 0)
    buckets: Ints = (shifts << SUB_BUCKET_BITS) + (clipped >> shifts)
    return buckets


def shifts_of(buckets: Ints) -> Ints:
    """Return the binary logarithm of each bucket's width."""
    shifts: Ints = np.maximum((buckets >> SUB_BUCKET_BITS) - 1, 0)
    return shifts


def lowest_of(buckets: Ints) -> Ints:
    """Return the lowest value of each bucket."""
    shifts = shifts_of(buckets)
    return (buckets - (shifts << SUB_BUCKET_BITS)) << shifts


def highest_of(buckets: Ints) -> Ints:
    """Return the highest value of each bucket."""
    return lowest_of(buckets) + (np.int64(1) << shifts_of(buckets)) - 1


def middle_of(buckets: Ints) -> Ints:
    """Return the value in the middle of each bucket: at most 0.4 % from any other in it."""
    return lowest_of(buckets) + (np.int64(1) << shifts_of(buckets) >> 1)


class Histogram(NamedTuple):
    """Counts by bucket, and what buckets would blur: the exact sum, least and largest value.

    ``buckets`` ascends without repeats and ``counts`` has the count of each, none of them 0. Of no values ``minimum``
    and ``maximum`` are 0. Histograms of the same values in another order, or merged from parts, are equal.
    """

    buckets: Ints
    counts: Ints
    total: int = 0
    minimum: int = 0
    maximum: int = 0

    @staticmethod
    def of(values: ArrayLike) -> Histogram:
        """Return the histogram of whole numbers from 0 to :data:`VALUE_MAX`; larger and smaller ones are clipped."""
        array = np.clip(np.asarray(values, dtype=np.int64), 0, VALUE_MAX)
        if not array.size:
            return EMPTY
        buckets, counts = np.unique(buckets_of(array), return_counts=True)
        return Histogram(buckets, counts.astype(np.int64), int(array.sum()), int(array.min()), int(array.max()))

    @property
    def n(self) -> int:
        """How many values were recorded."""
        return int(self.counts.sum())

    def mean(self) -> float | None:
        """Return the exact mean; ``None`` of no values."""
        n = self.n
        return self.total / n if n else None

    def quantile(self, q: float) -> float | None:
        """Return the value at rank ``ceil(q · n)``, to 0.4 %; ``None`` of no values."""
        n = self.n
        if not n:
            return None
        rank = max(1, math.ceil(round(q * n, 9)))
        place = int(np.searchsorted(np.cumsum(self.counts), rank))
        return float(min(max(int(middle_of(self.buckets[place])), self.minimum), self.maximum))

    def dense(self) -> Ints:
        """Return the counts of all :data:`BUCKET_COUNT` buckets, as the reference library keeps them."""
        counts = np.zeros(BUCKET_COUNT, dtype=np.int64)
        counts[self.buckets] = self.counts
        return counts


EMPTY: Final = Histogram(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
"""The histogram of no values."""
