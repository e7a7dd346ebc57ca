"""What a request would have taken before: a ridge regression over dimensions and input length; pure.

It is what tells a slow slice from one that always was: a request's deviation is its value now less what such a request
took before. Values are logarithms, so that effects multiply. Coefficients are drawn towards 0, so that a value never
seen before (a new prompt version) has no effect of its own and its requests are compared with others like them.

Of a prompt version that is new, the length of its prompts is part of what changed: its requests are expected to be as
long as those of the same feature were. Of everything else length is what differs between users, and is taken out.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from router.observer.alerts.evidence.table import Bools, Codes, Doubles, Floats, Ints, Table, Values

RIDGE: Final = 3.0
"""As if each value of a dimension had been seen so many times more, without effect."""
LENGTH_CLASSES: Final = 22
"""Of input lengths: unknown, up to 32 tokens, then half octaves up to 32,768, and above."""
_LENGTH_FIRST: Final = 32.0
SEEN_MIN: Final = 10
"""A value that fewer requests of before had is one that was not there: an onset is not known to the request."""
_COLUMNS_PER_DIMENSION_MAX: Final = 64
"""Further values have no coefficient."""


def length_class(n_in: Floats) -> Ints:
    """Return the class of each input length. Classes are fixed, so that counts of different days can be compared."""
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.ceil(2 * np.log2(n_in / _LENGTH_FIRST)) + 1
    return np.where(np.isnan(n_in), 0, np.clip(np.nan_to_num(steps), 1, LENGTH_CLASSES - 1)).astype(np.int64)


class _Design(NamedTuple):
    """Columns of ones and zeros: which places of a request's line are 1. -1: none."""

    places: Ints
    width: int


class Expectation:
    """Fitted to requests of before; ``values`` are those of a metric, NaN where there is none."""

    def __init__(self, before: Table, values: Doubles, names: Values) -> None:
        self._names = names
        usable = ~np.isnan(values)
        before, values = before.take(usable), values[usable]
        self._seen = [_frequent(before.codes[:, at]) for at in range(before.codes.shape[1])]
        self._seen_before = before
        self.mean: float | None = None
        self._coefficients: Doubles = np.zeros(0)
        if values.size:
            self.mean = float(np.average(values, weights=before.weight))
            design = self._design(before, length_class(before.number("n_in")))
            self._coefficients = _fit(design, values - self.mean, before.weight.astype(np.float64))

    def of(self, now: Table) -> Doubles | None:
        """Return the expected value of each request; ``None`` when nothing is known of before."""
        if self.mean is None:
            return None
        lengths = length_class(now.number("n_in"))
        design = self._design(now, lengths)
        expected = self.mean + _sum_of(design, self._coefficients)
        is_new = self._has_new_prompt(now)
        if is_new.any():
            length_at = design.places[:, -1]
            own = np.where(length_at >= 0, self._coefficients[np.maximum(length_at, 0)], 0.0)
            expected[is_new] += self._length_effect(now)[is_new] - own[is_new]
        return expected

    def _design(self, table: Table, lengths: Ints) -> _Design:
        places, width = [], 0
        for at, seen in enumerate(self._seen):
            kept = seen[:_COLUMNS_PER_DIMENSION_MAX]
            found = np.searchsorted(kept, table.codes[:, at])
            found_safe = np.minimum(found, max(0, kept.size - 1))
            is_known = kept[found_safe] == table.codes[:, at] if kept.size else np.zeros(len(table), dtype=bool)
            places.append(np.where(is_known, width + found_safe, -1))
            width += kept.size
        places.append(width + lengths)
        return _Design(np.stack(places, axis=1), width + LENGTH_CLASSES)

    def _has_new_prompt(self, now: Table) -> Bools:
        at = self._names.dimensions.index("prompt_version")
        feature = self._names.dimensions.index("feature_name")
        before, counts = np.unique(self._seen_before.codes[:, (feature, at)], axis=0, return_counts=True)
        seen = {tuple(pair) for pair in before[counts >= SEEN_MIN].tolist()}
        pairs, inverse = np.unique(now.codes[:, (feature, at)], axis=0, return_inverse=True)
        is_new = np.array([tuple(pair) not in seen and pair[1] != 0 for pair in pairs.tolist()], dtype=np.bool_)
        return is_new[inverse] if is_new.size else np.zeros(len(now), dtype=np.bool_)

    def _length_effect(self, now: Table) -> Doubles:
        """Return for each request the mean effect of length that its feature had before."""
        before = self._seen_before
        feature = self._names.dimensions.index("feature_name")
        effects = self._coefficients[self._coefficients.size - LENGTH_CLASSES + length_class(before.number("n_in"))]
        width = self._names.count(feature)
        sums = np.bincount(before.codes[:, feature], before.weight * effects, width)
        counts = np.bincount(before.codes[:, feature], before.weight, width)
        overall = sums.sum() / counts.sum()
        means = np.divide(sums, counts, out=np.full(width, overall), where=counts > 0)
        effect: Doubles = means[now.codes[:, feature]]
        return effect


def _frequent(codes: Codes) -> Codes:
    found, counts = np.unique(codes, return_counts=True)
    return found[counts >= SEEN_MIN]


def _fit(design: _Design, values: Doubles, weight: Doubles) -> Doubles:
    """Solve the normal equations; the matrix is counted from places, never written out by request."""
    width, places = design.width, design.places
    gram = np.zeros(width * width)
    right = np.zeros(width)
    for i in range(places.shape[1]):
        has = places[:, i] >= 0
        right += np.bincount(places[has, i], (weight * values)[has], width)
        for j in range(places.shape[1]):
            both = has & (places[:, j] >= 0)
            gram += np.bincount(places[both, i] * width + places[both, j], weight[both], width * width)
    return np.linalg.solve(gram.reshape(width, width) + RIDGE * np.eye(width), right).astype(np.float64)


def _sum_of(design: _Design, coefficients: Doubles) -> Doubles:
    padded = np.append(coefficients, 0.0)  # place -1
    total: Doubles = padded[design.places].sum(axis=1)
    return total
