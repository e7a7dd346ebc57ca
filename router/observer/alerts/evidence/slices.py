"""Which slices contribute to what is wrong, and which one it comes from; pure.

Every value of every dimension, and every pair of values of two dimensions, is a candidate. *Contributing* slices are
ranked by their excess: bad requests more than there would have been at the share of before. The *cause* is the slice
that explains most: count × (mean deviation from before)², what is explained when these requests changed and no others
did. A slice that is too wide dilutes the deviation, one that is too narrow leaves a part of it out. Of slices that
explain the same, within the noise, the simplest is taken; all requests together are one too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Final, NamedTuple

import numpy as np

from router.observer.alerts.evidence.table import Bools, Doubles, Ints, Table, Values
from router.observer.alerts.model import SliceShare
from router.telemetry.records import OTHER_VALUE

ANY_OF: Final = "|"
"""Between the values of a selector that allows several."""
SHOWN: Final = 8
SAME: Final = 0.9
"""Slices explain the same when one has this much of what the other explains."""
NOISE: Final = 10.0
"""They also do when it differs by no more than so many variances of what is left unexplained of a request: the most
that one of a hundred splits of requests that are all alike explains by chance (2 ln 100)."""
PRIOR_COUNT: Final = 20.0
"""A slice's share of before is that of all, until it had some more requests than these."""
TOTAL_MIN: Final = 3.0
SINGLES_PAIRED: Final = 12
"""Pairs are made of the dimensions; of these only the values that explain something by themselves are paired."""
MOSTLY: Final = 0.95
HIT_HARDER: Final = 1.1
"""A slice is shown when its share of the excess is so much larger than that of the requests."""
NEW_MAX: Final = 0.05
"""Of a slice that is new there were at most so many requests before, for each one now."""

Where = dict[str, str]


class Candidate(NamedTuple):
    """A slice by the codes of its values: ``((dimension, code), ...)``."""

    codes: tuple[tuple[int, int], ...]
    bad: float
    total: float
    baseline_ratio: float
    excess: float
    gain: float
    """What it explains, in squared deviations; negative where its requests are better than before."""
    is_new: bool
    """Nobody had these values before, but for a few requests around the onset."""


class Case(NamedTuple):
    """What slices are compared on. ``deviation``: of each request now from what it would have taken before."""

    now: Table
    now_bad: Bools
    deviation: Doubles
    before: Table
    before_bad: Bools
    prior_ratio: float
    """Share of bad requests of before, of all together."""


def candidates(case: Case, values: Values) -> list[Candidate]:
    """Return every slice with enough requests, in no order."""
    singles = [found for at in range(len(values.dimensions)) for found in _of(case, (at,), values)]
    telling = sorted(singles, key=lambda each: (each.gain, each.excess), reverse=True)[:SINGLES_PAIRED]
    dimensions = sorted({each.codes[0][0] for each in telling})
    pairs = [found for chosen in combinations(dimensions, 2) for found in _of(case, chosen, values)]
    return singles + pairs


def _of(case: Case, dimensions: tuple[int, ...], values: Values) -> Iterator[Candidate]:
    """Yield the slices of one choice of dimensions."""
    widths = [values.count(at) for at in dimensions]
    now_keys, before_keys = (_keys(table, dimensions, widths) for table in (case.now, case.before))
    found, now_places = np.unique(now_keys, return_inverse=True)
    if found.size < 2 and len(dimensions) > 1:
        return
    places = np.minimum(np.searchsorted(found, before_keys), found.size - 1)
    is_there = found[places] == before_keys
    weight, before_weight = case.now.weight, case.before.weight
    total: Doubles = np.bincount(now_places, weight, found.size).astype(np.float64)
    bad = np.bincount(now_places[case.now_bad], weight[case.now_bad], found.size)
    deviation: Doubles = np.bincount(now_places, weight * case.deviation, found.size).astype(np.float64)
    before_total = np.bincount(places[is_there], before_weight[is_there], found.size)
    is_bad = is_there & case.before_bad
    before_bad = np.bincount(places[is_bad], before_weight[is_bad], found.size)
    ratio = (before_bad + PRIOR_COUNT * case.prior_ratio) / (before_total + PRIOR_COUNT)
    gain = _gain(total, deviation)
    for place in np.flatnonzero(total >= TOTAL_MIN).tolist():
        codes = _codes(int(found[place]), dimensions, widths)
        if any(code == 0 for _, code in codes):
            continue  # what was not given names nothing
        yield Candidate(
            codes=codes,
            bad=float(bad[place]),
            total=float(total[place]),
            baseline_ratio=float(ratio[place]),
            excess=float(bad[place] - total[place] * ratio[place]),
            gain=float(gain[place]),
            is_new=bool(is_new(before_total[place], total[place])),
        )


def is_new(before_total: float, total: float) -> bool:
    """Say whether a slice with ``total`` requests now was not there before: an onset is not known to the request."""
    return before_total <= NEW_MAX * total


def _keys(table: Table, dimensions: tuple[int, ...], widths: list[int]) -> Ints:
    keys = np.zeros(len(table), dtype=np.int64)
    for at, width in zip(dimensions, widths, strict=True):
        keys = keys * width + table.codes[:, at]
    return keys


def _codes(key: int, dimensions: tuple[int, ...], widths: list[int]) -> tuple[tuple[int, int], ...]:
    codes = []
    for at, width in zip(reversed(dimensions), reversed(widths), strict=True):
        key, code = divmod(key, width)
        codes.append((at, code))
    return tuple(reversed(codes))


def _gain(total: Doubles, deviation: Doubles) -> Doubles:
    """Return what each slice explains; negative where its requests are better than before."""
    gain: Doubles = np.sign(deviation) * deviation**2 / np.maximum(total, 1e-9)
    return gain


def cause(found: list[Candidate], case: Case) -> Candidate | None:
    """Return the slice that what is wrong comes from; ``None`` when it is all requests, or none in particular.

    Of those that explain the same it is one that was not there before, then the simplest, then the first by dimension.
    """
    good = [each for each in found if each.gain > 0 and each.excess > 0]
    weight = case.now.weight
    mean = float(np.average(case.deviation, weights=weight))
    of_all = max(0.0, mean) ** 2 * float(weight.sum())
    best = max((each.gain for each in good), default=0.0)
    noise = max(0.0, float((weight * case.deviation**2).sum()) - max(best, of_all)) / float(weight.sum())
    least = min(SAME * best, best - NOISE * noise)
    same = [each for each in good if each.gain >= least]
    born = [each for each in same if each.is_new]
    if not born and of_all >= least:
        return None
    return min(born or same, key=lambda each: (len(each.codes), each.codes), default=None)


def ranked(
    found: list[Candidate], first: Candidate | None, excess: float, total: float, values: Values
) -> tuple[SliceShare, ...]:
    """Return the slices to show beside the cause, the largest excess first. ``excess`` and ``total``: of all requests.

    Left out are slices that are within one that is shown, and those that have no more of the excess than of the
    requests.
    """
    rest = sorted((each for each in found if each is not first), key=_excess, reverse=True)
    chosen = [first] if first is not None else []
    for each in rest:
        if len(chosen) >= SHOWN or each.excess <= 0:
            break
        is_hit_harder = each.excess / excess >= HIT_HARDER * each.total / total if excess > 0 else True
        if is_hit_harder and not any(set(each.codes) > set(shown.codes) for shown in chosen):
            chosen.append(each)
    return tuple(_share(each, excess, values) for each in chosen if each is not first)


def _excess(found: Candidate) -> tuple[float, int]:
    return found.excess, -len(found.codes)


def _share(found: Candidate, excess: float, values: Values) -> SliceShare:
    return SliceShare(
        where=where_of(found, values),
        bad=round(found.bad),
        total=round(found.total),
        baseline_ratio=None if found.is_new else found.baseline_ratio,
        excess=found.excess,
        share=found.excess / excess if excess > 0 else 0.0,
    )


def where_of(found: Candidate, values: Values) -> Where:
    """Return the values of a slice by the names of its dimensions."""
    return {values.dimensions[at]: values.text(at, code) for at, code in found.codes}


def mask_of(table: Table, where: Mapping[str, str], values: Values) -> Bools:
    """Return which requests are in a slice. What is no dimension here does not tell requests apart."""
    mask = np.ones(len(table), dtype=np.bool_)
    for name, text in where.items():
        if name not in values.dimensions or text == OTHER_VALUE:
            continue
        at = values.dimensions.index(name)
        code = values.known(at, text)
        texts = (text,) if code is not None else text.split(ANY_OF)  # of a selector with several values
        codes = [found for each in texts if (found := values.known(at, each)) is not None]
        mask &= np.isin(table.codes[:, at], codes)
    return mask


def with_feature(where: Where, rows: Table, values: Values) -> Where:
    """Return the slice with the feature that a prompt version belongs to, if it is one: ``v8`` of which prompt?"""
    if "prompt_version" not in where or "feature_name" in where or not len(rows):
        return where
    at = values.dimensions.index("feature_name")
    counts = np.bincount(rows.codes[:, at], rows.weight)
    top = int(counts.argmax())
    if not top or counts[top] < MOSTLY * counts.sum():
        return where
    return {"feature_name": values.text(at, top), **where}
