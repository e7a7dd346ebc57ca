"""Which requests count for an objective, and which of them were bad: for whole tables; pure.

The rules are those of :mod:`router.observer.slo.objectives`: a request that failed is bad, one that was the client's
own fault does not count, and one whose client left counts only if it had waited for longer than the limit.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from router.observer.alerts.evidence.table import BAD_REQUEST, GONE, OK, PLACE, TOOL_STAGE, Bools, Doubles, Table

AT_LEAST: Final = frozenset({"early_tps", "visible_2s"})
"""More is better."""
OF_STREAMS: Final = frozenset({"ttft", "ttfc", "ttfo", "host_ttfc", "early_tps", "visible_2s"})
_WHOLE: Final = frozenset({"e2e", "duration"})
_OF_FIRST_TOKEN: Final = frozenset({"ttft", "ttfc", "ttfo"})
AVAILABILITY: Final = "availability"
GOODPUT: Final = "goodput"


def judge(table: Table, metric: str, threshold: float | None) -> tuple[Bools, Bools]:
    """Return which requests count, and which of all are bad (never one that does not count).

    ``threshold`` is in the metric's unit inside. Without one, and for a metric that is not a number of a request, bad
    is what failed.
    """
    if metric == GOODPUT and bool((table.good >= 0).any()):
        return table.good >= 0, table.good == 0
    gone = np.isin(table.outcome, GONE)
    failed = (table.outcome != OK) & (table.outcome != BAD_REQUEST) & ~gone
    if column_of(metric) is None or threshold is None:
        return failed | (table.outcome == OK), failed
    values = values_of(table, metric)
    is_told = (table.outcome == OK) & ~np.isnan(values)
    late = is_told & (values < threshold if metric in AT_LEAST else values > threshold)
    if metric in {TOOL_STAGE, "cost"}:
        return is_told, late
    if metric in OF_STREAMS:
        failed = failed & table.is_stream
    failed = failed | _left_late(table, gone, metric, threshold)
    return is_told | failed, late | failed


def _left_late(table: Table, gone: Bools, metric: str, threshold: float) -> Bools:
    """Return whose clients left after they had waited for too long, where waiting is what the limit is about."""
    if metric in _OF_FIRST_TOKEN:
        return gone & table.is_stream & (table.number("waited") > threshold)
    if metric in _WHOLE:
        left: Bools = (table.outcome == GONE[0]) & (table.number("left") > threshold)
        return left
    return np.zeros(len(table), dtype=np.bool_)


def column_of(metric: str) -> str | None:
    """Return the column of a metric; ``None`` for one that is no number of a request."""
    name = f"stage.{metric}" if f"stage.{metric}" in PLACE else metric
    return name if name in PLACE else None


def values_of(table: Table, metric: str) -> Doubles:
    """Return the values of a metric, NaN where a request has none: as the catalogue, of answers that were given."""
    name = column_of(metric)
    if name is None:
        return np.full(len(table), np.nan)
    values = table.number(name).astype(np.float64)
    values[table.outcome != OK] = np.nan
    if metric in OF_STREAMS:
        values[~table.is_stream] = np.nan
    return values
