"""Collects the evidence of a finding from the requests of the last two hours; pure.

*Now* is from the onset on, *before* is what came before it. Which requests are bad is the objective's own rule; for a
regression, which has none, bad is what takes longer than nine of ten such requests took before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from router.observer.alerts.evidence.examples import examples
from router.observer.alerts.evidence.expected import Expectation
from router.observer.alerts.evidence.judge import AT_LEAST, judge, values_of
from router.observer.alerts.evidence.onset import onset_ns
from router.observer.alerts.evidence.recent import KEEP_NS, Recent
from router.observer.alerts.evidence.sentence import Facts, Hit, mostly, sentence
from router.observer.alerts.evidence.slices import (
    Case,
    Where,
    candidates,
    cause,
    is_new,
    mask_of,
    ranked,
    where_of,
    with_feature,
)
from router.observer.alerts.evidence.stages import stage_deltas
from router.observer.alerts.evidence.table import BAD_REQUEST, GONE, OK, Bools, Doubles, Ints, Table, Values
from router.observer.alerts.model import Cause, Change, Evidence, Finding, SliceShare

CHANGES_NS: Final = 3600 * 1_000_000_000
CHANGE_SLACK_NS: Final = 60 * 1_000_000_000
"""A change this long after the onset may still be its cause: an onset is an estimate."""
COMPARED_MAX: Final = 20_000
"""Requests of each side that are looked at; of more, every so-manieth: shares are known well enough from these."""
DEVIATION_MAX: Final = 2.0
"""A request that took more than e² times as long tells no more than that; one that failed as much."""
BAD_QUANTILE: Final = 0.9
_TELLS_OF_REQUESTS: Final = frozenset({Cause.BURN, Cause.BUDGET, Cause.REGRESSION, Cause.HOST_DOWN})


class _Sides(NamedTuple):
    """The requests that count, now and before, and which of them are bad."""

    now: Table
    now_bad: Bools
    before: Table
    before_bad: Bools

    def of(self, where: Where, values: Values) -> _Sides:
        """Return the requests of a slice; those of before without the values that nobody had then."""
        now = mask_of(self.now, where, values)
        known = {
            name: text
            for name, text in where.items()
            if not is_new(int(mask_of(self.before, {name: text}, values).sum()), int(now.sum()))
        }
        before = mask_of(self.before, known, values)
        return _Sides(self.now.take(now), self.now_bad[now], self.before.take(before), self.before_bad[before])


def evidence(
    finding: Finding, recent: Recent, wall_ns: int, changes: Sequence[Change] = (), currency: str = ""
) -> Evidence:
    """Return where and why a finding came about; its summary alone where requests do not tell.

    ``wall_ns`` is now. ``changes`` are in no order; those of the last hour are kept.
    """
    fresh = [each for each in changes if wall_ns - each.wall_ns <= CHANGES_NS]
    changes = tuple(sorted(fresh, key=lambda each: -each.wall_ns))
    if finding.cause not in _TELLS_OF_REQUESTS:
        return Evidence(sentence=finding.summary, changes=changes)
    table, is_bad, threshold = _judged(finding, recent, wall_ns)
    own = mask_of(table, finding.where, recent.values)
    onset = _onset_of(table.take(own), is_bad[own], finding.since_wall_ns)
    sides = _split(table, is_bad, onset)
    if not sides.now_bad.any():
        return Evidence(sentence=finding.summary, changes=changes)
    where, shares = _slices(finding, sides, recent.values)
    own = mask_of(table, where, recent.values)
    onset = _onset_of(table.take(own), is_bad[own], onset)
    sides = _split(table, is_bad, onset)
    return _told(finding, sides, where, shares, threshold, onset, changes, currency, recent.values)


def _judged(finding: Finding, recent: Recent, wall_ns: int) -> tuple[Table, Bools, float | None]:
    """Return the requests of the last two hours that it is about, which of them are bad, and above what they are."""
    table = recent.between(wall_ns - KEEP_NS, wall_ns + 1)
    threshold, where = finding.threshold, finding.where
    if finding.cause is Cause.REGRESSION:  # a prompt version is seen beside the others of its feature
        where = {name: text for name, text in where.items() if name != "prompt_version"}
    table = table.take(mask_of(table, where, recent.values))
    if threshold is None and finding.cause is Cause.REGRESSION:
        threshold = _usual_limit(table, finding, recent.values)
    counts, is_bad = judge(table, finding.metric, threshold)
    return table.take(counts), is_bad[counts], threshold


def _onset_of(own: Table, is_bad: Bools, onset: int) -> int:
    """Return since when it is so in the slice that it comes from; of one that was not there before, since it is."""
    if not len(own):
        return onset
    now_count = int((own.end_wall_ns >= onset).sum())
    if is_new(len(own) - now_count, now_count):
        return int(own.end_wall_ns[0])
    return onset_ns(own.end_wall_ns, is_bad, own.weight) or onset


def _usual_limit(table: Table, finding: Finding, values: Values) -> float | None:
    """Return what nine of ten requests like those of a regression did not exceed before it."""
    before = table.take(table.end_wall_ns < finding.since_wall_ns)
    own = mask_of(before, finding.where, values)
    told = values_of(before.take(own) if own.any() else before, finding.metric)
    told = told[~np.isnan(told)]
    return float(np.quantile(told, BAD_QUANTILE)) if told.size else None


def _split(table: Table, is_bad: Bools, onset: int) -> _Sides:
    """Return the requests of now and before, in the order of time; of too many every so-manieth."""
    is_now = table.end_wall_ns >= onset
    now, before = (_sparse(np.flatnonzero(side)) for side in (is_now, ~is_now))
    return _Sides(table.take(now), is_bad[now], table.take(before), is_bad[before])


def _sparse(places: Ints) -> Ints:
    return places[:: -(-places.size // COMPARED_MAX)] if places.size else places


# ---------------------------------------------------------------- which requests
def _slices(finding: Finding, sides: _Sides, values: Values) -> tuple[Where, tuple[SliceShare, ...]]:
    """Return the slice that it comes from, and those that contribute."""
    prior = _ratio(sides.before_bad, sides.before)
    if prior is None:
        prior = 0.0 if finding.objective is None else 1 - finding.objective / 100
    case = Case(
        sides.now, sides.now_bad, _deviation(finding.metric, sides, values), sides.before, sides.before_bad, prior
    )
    found = candidates(case, values)
    total = float(sides.now.weight.sum())
    excess = float(sides.now.weight[sides.now_bad].sum()) - prior * total
    if finding.cause is Cause.REGRESSION:  # which knows its slice from days, not from two hours
        first, where = None, finding.where
    else:
        first = cause(found, case)
        where = {} if first is None else where_of(first, values)
        where = with_feature(where, sides.now.take(mask_of(sides.now, where, values)), values)
    others = [each for each in ranked(found, first, excess, total, values) if each.where != where]
    own = _share_of(where, {**finding.where, **where}, sides, excess, prior, values)
    return where, tuple([own, *others] if own.where else others)


def _share_of(where: Where, named: Where, sides: _Sides, excess: float, prior: float, values: Values) -> SliceShare:
    """Return a slice as it is shown, with the name ``named``."""
    own = sides.of(where, values)
    ratio = _ratio(own.before_bad, own.before)
    bad, total = float(own.now.weight[own.now_bad].sum()), float(own.now.weight.sum())
    over = bad - total * (prior if ratio is None else ratio)
    return SliceShare(
        where=named,
        bad=round(bad),
        total=round(total),
        baseline_ratio=ratio,
        excess=over,
        share=over / excess if excess > 0 else 0.0,
    )


def _deviation(metric: str, sides: _Sides, values: Values) -> Doubles:
    """Return how much worse each request is than such a request was before; of failed ones as much as can be."""
    now_values, before_values = _scaled(sides.now, metric), _scaled(sides.before, metric)
    if np.isnan(now_values).all():
        now_values, before_values = sides.now_bad.astype(np.float64), sides.before_bad.astype(np.float64)
    expected = Expectation(sides.before, before_values, values).of(sides.now)
    apart = now_values - (np.nanmean(now_values) if expected is None else expected)
    return np.clip(np.where(np.isnan(apart), DEVIATION_MAX * sides.now_bad, apart), -DEVIATION_MAX, DEVIATION_MAX)


def _scaled(table: Table, metric: str) -> Doubles:
    """Return the logarithms of a metric, so that more is worse; NaN where a request has none."""
    logs = (
        np.log(np.maximum(values_of(table, metric), 1e-9))
        if metric != "visible_2s"
        else np.log1p(values_of(table, metric))
    )
    return -logs if metric in AT_LEAST else logs


def _is_new_prompt(where: Where, sides: _Sides, values: Values) -> bool:
    """Say whether it is a prompt version that nobody used before: then its length is part of what changed."""
    before, now = (int(mask_of(side, where, values).sum()) for side in (sides.before, sides.now))
    return "prompt_version" in where and is_new(before, now)


# ---------------------------------------------------------------- what is told of them
def _told(
    finding: Finding,
    sides: _Sides,
    where: Where,
    shares: tuple[SliceShare, ...],
    threshold: float | None,
    onset: int,
    changes: tuple[Change, ...],
    currency: str,
    values: Values,
) -> Evidence:
    own = sides.of(where, values)
    metric = finding.metric
    stages = stage_deltas(own.now, own.before, metric, by_length=not _is_new_prompt(where, sides, values))
    named = {**finding.where, **where}
    cost_now, cost_before = _cost(own.now), _cost(own.before)
    facts = Facts(
        finding=finding,
        where=named,
        threshold=threshold,
        bad_ratio=_ratio(own.now_bad, own.now),
        before_ratio=_ratio(own.before_bad, own.before),
        median_now=_median(own.now, metric),
        median_before=_median(own.before, metric),
        onset_wall_ns=onset,
        stages=stages,
        mostly=mostly(_singles(own, values), named),
        length_ratio=_length_ratio(own),
        cost_now=cost_now,
        cost_before=cost_before,
        currency=currency,
        change=_likely_change(changes, onset, where),
    )
    return Evidence(
        sentence=sentence(facts),
        slices=shares,
        stages=stages,
        cost_now=cost_now,
        cost_before=cost_before,
        currency=currency,
        examples=examples(own.now, own.now_bad, metric, values),
        changes=changes,
        hosts=_hosts(own.now, values),
    )


def _singles(own: _Sides, values: Values) -> list[Hit]:
    """Return of each dimension the value that has most of the slice's excess."""
    prior = _ratio(own.before_bad, own.before) or 0.0
    all_total = float(own.now.weight.sum())
    excess = float(own.now.weight[own.now_bad].sum()) - prior * all_total
    found = []
    for at, name in enumerate(values.dimensions):
        codes = own.now.codes[:, at]
        bad = np.bincount(codes[own.now_bad], own.now.weight[own.now_bad], values.count(at))
        total = np.bincount(codes, own.now.weight, values.count(at))
        over = bad - prior * total
        top = int(over.argmax())
        if top and over[top] > 0 and excess > 0:
            share = min(1.0, float(over[top]) / excess)
            found.append(Hit(name, values.text(at, top), share, float(total[top]) / all_total))
    return found


def _ratio(is_bad: Bools, table: Table) -> float | None:
    total = float(table.weight.sum())
    return float(table.weight[is_bad].sum()) / total if total else None


def _median(table: Table, metric: str) -> float | None:
    told = values_of(table, metric)
    told = told[~np.isnan(told)]
    return float(np.median(told)) if told.size else None


def _length_ratio(own: _Sides) -> float | None:
    now, before = (side.number("n_in")[~np.isnan(side.number("n_in"))] for side in (own.now, own.before))
    return float(now.mean() / before.mean()) if now.size and before.size and before.mean() else None


def _cost(table: Table) -> float | None:
    """Return what a good answer cost: all that is known of, failed ones too, over the answers that were given."""
    costs = table.number("cost")
    known = ~np.isnan(costs)
    answered = float(table.weight[known & (table.outcome == OK)].sum())
    return float((costs[known] * table.weight[known]).sum()) / answered if answered else None


def _likely_change(changes: Sequence[Change], onset: int, where: Where) -> Change | None:
    """Return the change that the sentence tells: one that names the slice, else the last one before the onset."""
    until = onset + CHANGE_SLACK_NS
    before = [each for each in changes if each.wall_ns <= until]
    naming = [each for each in before if any(text in each.text for text in where.values())]
    return max(naming or before, key=lambda each: each.wall_ns, default=None)


def _hosts(table: Table, values: Values) -> dict[str, dict[str, float]]:
    """Return what is known of each host of the requests."""
    at = values.dimensions.index("host")
    found = {}
    for code in np.unique(table.codes[:, at]).tolist():
        name = values.text(at, code)
        rows = table.take(table.codes[:, at] == code)
        if not name:
            continue
        is_failed = ~np.isin(rows.outcome, (OK, BAD_REQUEST, *GONE))
        facts = {"requests": float(rows.weight.sum()), "failed_ratio": _ratio(is_failed, rows) or 0.0}
        for metric in ("ttft", "tpot"):
            median = _median(rows, metric)
            if median is not None:
                facts[f"{metric}_p50_ns"] = median
        found[name] = facts
    return found
