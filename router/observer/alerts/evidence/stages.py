"""What each stage took, now against before; pure.

Both are means over the requests of the slice that were answered. Before is what the same requests would have taken: the
means of before, by input length, in the shares that the lengths have now. A stage that did not happen took no time.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from router.observer.alerts.evidence.table import (
    EVIDENCE_STAGES,
    OK,
    TOOL_STAGE,
    TTFT_STAGES,
    Bools,
    Doubles,
    Floats,
    Ints,
    Table,
)
from router.observer.alerts.model import StageDelta

DECILES: Final = 10
BEFORE_MIN: Final = 3.0
"""Requests of a decile: with fewer the mean over all lengths is taken."""
_OF_DECODING: Final = frozenset({"tpot", "stall_max", "early_tps"})
DECODE_STAGES: Final = frozenset({"decode", "tail"})


def stages_of(metric: str) -> frozenset[str]:
    """Return the stages that a metric is made of."""
    if metric in {"ttft", "ttfc", "ttfo", "visible_2s"}:
        return TTFT_STAGES
    if metric in _OF_DECODING:
        return DECODE_STAGES
    if metric == TOOL_STAGE:
        return frozenset({TOOL_STAGE})
    if metric.startswith("stage."):
        return frozenset({metric.removeprefix("stage.")})
    return frozenset(EVIDENCE_STAGES) - {TOOL_STAGE}


def stage_deltas(now: Table, before: Table, metric: str, *, by_length: bool = True) -> tuple[StageDelta, ...]:
    """Return the stages of a metric, the largest change first, and then the others likewise.

    ``by_length``: false where the length of the input is part of what changed.
    """
    now, before = now.take(now.outcome == OK), before.take(before.outcome == OK)
    if not len(now) or not len(before):
        return ()
    classes = _deciles(now, before) if by_length else (np.zeros(len(now), np.int64), np.zeros(len(before), np.int64))
    deltas = [_delta(name, now, before, classes) for name in EVIDENCE_STAGES]
    told = [delta for delta in deltas if delta is not None]
    own = stages_of(metric)
    return tuple(sorted(told, key=lambda each: (each.stage not in own, -abs(each.delta_ns))))


def _deciles(now: Table, before: Table) -> tuple[Ints, Ints]:
    """Return the decile of each request's input length among all of them; unknown lengths are the last."""
    lengths = now.number("n_in")
    known = np.concatenate([lengths, before.number("n_in")])
    known = known[~np.isnan(known)]
    edges: Doubles = np.zeros(0)
    if known.size:
        edges = np.unique(np.quantile(known, np.arange(1, DECILES) / DECILES)).astype(np.float64)
    return _classes(lengths, edges), _classes(before.number("n_in"), edges)


def _classes(lengths: Floats, edges: Doubles) -> Ints:
    return np.where(np.isnan(lengths), DECILES, np.searchsorted(edges, lengths)).astype(np.int64)


def _delta(name: str, now: Table, before: Table, classes: tuple[Ints, Ints]) -> StageDelta | None:
    now_ns, before_ns = (table.number(f"stage.{name}").astype(np.float64) for table in (now, before))
    now_has, before_has = ~np.isnan(now_ns), ~np.isnan(before_ns)
    if name != TOOL_STAGE:  # a retry that was not made took no time; of tools only turns with tools count
        now_ns, before_ns = np.nan_to_num(now_ns), np.nan_to_num(before_ns)
        if not now_has.any() and not before_has.any():
            return None
        now_has, before_has = np.ones_like(now_has), np.ones_like(before_has)
    if not now_has.any() or not before_has.any():
        return None
    now_weight = _counts(classes[0], now.weight, now_has)
    before_weight = _counts(classes[1], before.weight, before_has)
    before_sums = _counts(classes[1], before.weight * np.nan_to_num(before_ns), before_has)
    overall = before_sums.sum() / before_weight.sum()
    means = np.divide(
        before_sums, before_weight, out=np.full(before_weight.size, overall), where=before_weight >= BEFORE_MIN
    )
    return StageDelta(
        stage=name,
        now_ns=float(np.average(now_ns[now_has], weights=now.weight[now_has])),
        before_ns=float(np.average(means, weights=now_weight)),
        now_count=round(float(now_weight.sum())),
        before_count=round(float(before_weight.sum())),
    )


def _counts(classes: Ints, weight: Floats | Doubles, chosen: Bools) -> Doubles:
    counts: Doubles = np.bincount(classes[chosen], weight[chosen], DECILES + 1).astype(np.float64)
    return counts
