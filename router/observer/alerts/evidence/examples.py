"""Requests that show what is wrong: the worst ones, and what is typical of it; pure."""

from __future__ import annotations

from typing import Final

import numpy as np

from router.observer.alerts.evidence.judge import AT_LEAST, values_of
from router.observer.alerts.evidence.table import EVIDENCE_STAGES, Bools, Table, Values
from router.observer.alerts.model import Example
from router.observer.catalogue import OUTCOME_WORDS

WORST_COUNT: Final = 3
TYPICAL_COUNT: Final = 2


def examples(now: Table, is_bad: Bools, metric: str, values: Values) -> tuple[Example, ...]:
    """Return the worst of the bad requests, those that failed before those that took long, and typical ones of them.

    Without a bad one there is none: a good request shows nothing.
    """
    bad = now.take(is_bad)
    if not len(bad):
        return ()
    measure = _badness(bad, metric)
    order = np.argsort(measure, kind="stable")[::-1]
    worst = order[:WORST_COUNT].tolist()
    rest = order[WORST_COUNT:]
    answered = rest[np.isfinite(measure[rest])]
    rest = answered if answered.size else rest  # typical is one that was answered, where there is one
    distance = np.abs(np.nan_to_num(measure[rest], posinf=0.0) - np.median(measure[rest])) if rest.size else rest
    typical = rest[np.argsort(np.nan_to_num(distance), kind="stable")][:TYPICAL_COUNT].tolist()
    return tuple(_example(bad, place, "worst", values) for place in worst) + tuple(
        _example(bad, place, "typical", values) for place in typical
    )


def _badness(bad: Table, metric: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return how bad each request was: by the metric, endlessly where it has none."""
    values = values_of(bad, metric)
    if metric in AT_LEAST:
        values = -values
    if np.isnan(values).all():
        return bad.number("duration").astype(np.float64)
    return np.where(np.isnan(values), np.inf, values)


def _example(table: Table, place: int, kind: str, values: Values) -> Example:
    def number(name: str) -> float | None:
        value = float(table.number(name)[place])
        return None if np.isnan(value) else value

    def whole(name: str) -> int | None:
        value = number(name)
        return None if value is None else round(value)

    stages = {name: whole(f"stage.{name}") for name in EVIDENCE_STAGES}
    texts = {name: values.text(at, int(table.codes[place, at])) for at, name in enumerate(values.dimensions)}
    return Example(
        kind=kind,
        request_id=table.request_id[place].decode("utf-8", "replace"),
        trace_id=table.trace_id[place].decode("ascii", "replace"),
        ended_wall_ns=int(table.end_wall_ns[place]),
        host=texts["host"],
        model=texts["model"],
        outcome=OUTCOME_WORDS[int(table.outcome[place])],
        ttft_ns=whole("ttft"),
        e2e_ns=whole("e2e"),
        tokens_in=whole("n_in"),
        tokens_out=whole("n_out") or 0,
        cost=number("cost"),
        stages_ns={name: ns for name, ns in stages.items() if ns},
        tags={name: text for name, text in texts.items() if text and name not in {"host", "model"}},
    )
