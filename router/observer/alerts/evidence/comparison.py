"""How much slices deviate from their own baselines, and how sure that is; pure.

For a stretch of time, each slice and metric::

    level  = mean over requests of (value − mean of the baseline at this input length)
    apart  = level of the slice − level of all requests outside it: what is the same for all, as the load, is no change
    shift  = apart now − median of apart in the same hours of the last days
    noise² = spread of apart over those hours² + sampling error of now²

The spread is the largest of three: the slice's own (median absolute deviation: a day with an incident does not widen
it), the median of all slices (its own comes of eight days at most), and a floor.

A prompt version that is new has no baseline: it is compared with the feature that it is of, whatever the length of its
inputs, for that is part of what changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from router.observer.alerts.evidence.cells import METRICS, Sums
from router.observer.alerts.evidence.judge import AVAILABILITY
from router.observer.alerts.evidence.table import Bools, Doubles, Ints

HOUR_COUNT_MIN: Final = 20.0
"""Requests of an hour, for it to be a sample."""
HOURS_MIN: Final = 6
"""Samples, for a baseline: two days of three hours."""
REST_COUNT_MIN: Final = 20.0
STRATUM_COUNT_MIN: Final = 5.0
"""Requests of an input length in the baseline, for it to have a mean."""
SPREAD_MIN: Final = dict.fromkeys(METRICS, 0.05) | {AVAILABILITY: 0.01}
"""The floor of the spread: five percent, one percentage point of failures."""
_MAD_TO_SIGMA: Final = 1.4826


class Baseline(NamedTuple):
    """What slices were like. Arrays are slices × metrics (× lengths)."""

    means: Doubles
    """Of each length; NaN where there were too few."""
    rest_means: Doubles
    variance: Doubles
    """Of requests of one length."""
    center: Doubles
    """Median of ``apart``; NaN without a baseline."""
    spread: Doubles
    sample_counts: Ints


class Levels(NamedTuple):
    """How far slices are apart from the rest in stretches of time: arrays of stretches × slices × metrics."""

    apart: Doubles
    requests: Doubles
    error: Doubles
    """Variance of ``apart`` that comes of sampling."""


def baseline_of(hours: Sequence[Sums], inside: Sequence[Sums] | None = None) -> Baseline:
    """Return the baseline that hours make; all have the same shape. At least one. ``inside``: as for levels."""
    now = np.stack(hours).astype(np.float64)
    rest = _rest(now if inside is None else np.stack(inside).astype(np.float64))
    pooled, pooled_rest = now.sum(axis=0), rest.sum(axis=0)
    means, rest_means = _means(pooled), _means(pooled_rest)
    variance = _variance(pooled)
    levels = _levels(now, rest, means, rest_means, variance)
    apart = np.where(levels.requests < HOUR_COUNT_MIN, np.nan, levels.apart)
    counts = (~np.isnan(apart)).sum(axis=0)
    center, own = _median_and_spread(apart)
    center[counts < HOURS_MIN] = np.nan
    return Baseline(means, rest_means, variance, center, _spread(own, counts), counts)


def levels_of(stretches: Sequence[Sums], baseline: Baseline, inside: Sequence[Sums] | None = None) -> Levels:
    """Return how far apart slices are in stretches of time. ``inside``: what is not outside, if it is not the slice."""
    now = np.stack(stretches).astype(np.float64)
    rest = _rest(now if inside is None else np.stack(inside).astype(np.float64))
    return _levels(now, rest, baseline.means, baseline.rest_means, baseline.variance)


def joined_levels(parts: Sequence[Levels]) -> Levels:
    """Return the levels of all stretches, one behind the other."""
    return Levels(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def whatever_length(sums: Sums) -> Sums:
    """Return sums over all lengths, in the place of length 0."""
    collapsed = np.zeros_like(sums)
    collapsed[:, :, 0] = sums.sum(axis=2)
    return collapsed


def _rest(inside: Doubles) -> Doubles:
    """Return the sums of the requests outside each slice; slice 0 is all requests and has no outside."""
    rest = np.maximum(inside[:, :1] - inside, 0.0)
    rest[:, 0] = 0.0
    return rest


def _means(pooled: Doubles) -> Doubles:
    counts = pooled[..., 0]
    return np.where(counts >= STRATUM_COUNT_MIN, pooled[..., 1] / np.maximum(counts, 1e-9), np.nan)


def _variance(pooled: Doubles) -> Doubles:
    """Return the variance within lengths, over all lengths."""
    counts = np.maximum(pooled[..., 0], 1e-9)
    within = np.maximum(pooled[..., 2] - pooled[..., 1] ** 2 / counts, 0.0)
    total = pooled[..., 0].sum(axis=-1)
    found: Doubles = within.sum(axis=-1) / np.maximum(total, 1.0)
    return found


def _levels(now: Doubles, rest: Doubles, means: Doubles, rest_means: Doubles, variance: Doubles) -> Levels:
    level, count = _level(now, means)
    rest_level, rest_count = _level(rest, rest_means)
    has_rest = rest_count >= REST_COUNT_MIN
    apart = level - np.where(has_rest, rest_level, 0.0)
    error = variance / np.maximum(count, 1.0) + np.where(has_rest, variance[:1] / np.maximum(rest_count, 1.0), 0.0)
    return Levels(apart, count, error)


def _level(now: Doubles, means: Doubles) -> tuple[Doubles, Doubles]:
    """Return the mean deviation from the baseline at the same length, and of how many requests."""
    is_known = ~np.isnan(means)
    counts = np.where(is_known, now[..., 0], 0.0)
    over = np.where(is_known, now[..., 1] - now[..., 0] * np.nan_to_num(means), 0.0).sum(axis=-1)
    total: Doubles = counts.sum(axis=-1)
    return over / np.maximum(total, 1e-9), total


def _median_and_spread(apart: Doubles) -> tuple[Doubles, Doubles]:
    """Return median and robust standard deviation over the first axis, without NaN."""
    order = np.sort(apart, axis=0)  # NaN last
    counts = (~np.isnan(apart)).sum(axis=0)
    center = _middle(order, counts)
    return center, _MAD_TO_SIGMA * _middle(np.sort(np.abs(apart - center), axis=0), counts)


def _middle(ascending: Doubles, counts: Ints) -> Doubles:
    last = np.maximum(counts - 1, 0)
    low, high = last // 2, (last + 1) // 2
    picked = [np.take_along_axis(ascending, at[None], axis=0)[0] for at in (low, high)]
    middle: Doubles = (picked[0] + picked[1]) / 2
    return middle


def _spread(own: Doubles, counts: Ints) -> Doubles:
    has: Bools = counts >= HOURS_MIN
    spread = np.array(np.nan_to_num(own))
    for place, metric in enumerate(METRICS):
        known = own[1:, place][has[1:, place]]
        usual = float(np.median(known)) if known.size else 0.0
        spread[:, place] = np.maximum(spread[:, place], max(usual, SPREAD_MIN[metric]))
    return spread
