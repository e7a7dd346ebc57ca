"""Tables of the policy study, and how the recommended policy does beside others, seed by seed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from math import inf, isinf, log, sqrt
from typing import NamedTuple

from bench.policies_run import Outcome
from bench.report import aligned

Cell = tuple[str, int, str]
"""Workload, load in percent, rule."""
Results = Mapping[Cell, Sequence[Outcome]]
"""One outcome for each seed, in the order of the seeds."""

MIN_DIFFERENCE = 0.05
"""A time that differs by less than this share is called the same, whatever the seeds say."""
MIN_GOOD_DIFFERENCE = 0.005
"""The same for shares of good answers, as a difference."""
# Two-sided 99 % quantiles of Student's t for 1, 2, ... degrees of freedom. Not 95 %: hundreds of differences are looked
# at, and dozens would be found where there are none.
_T_99 = (63.657, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169, 3.106, 3.055, 3.012, 2.977, 2.947)
_T_99_MANY = 2.9


class Quantity(NamedTuple):
    """Something by which policies are compared: the logarithm of a time, or a share turned so that less is better."""

    name: str
    value: Callable[[Outcome], float]
    least_difference: float


def _log_s(seconds: float) -> float:
    return log(max(seconds, 1e-6)) if not isinf(seconds) else inf


COMPARED = (
    Quantity("p50", lambda o: _log_s(o.ttft_p50_s), MIN_DIFFERENCE),
    Quantity("p95", lambda o: _log_s(o.ttft_p95_s), MIN_DIFFERENCE),
    Quantity("p99", lambda o: _log_s(o.ttft_p99_s), MIN_DIFFERENCE),
    Quantity("goodput", lambda o: -o.good_share, MIN_GOOD_DIFFERENCE),
)


def verdict(own: Sequence[Outcome], other: Sequence[Outcome], quantity: Quantity) -> int:
    """Return -1 where the first policy is better than the other, 1 where it is worse, 0 where no difference shows.

    Seeds are compared pairwise: both policies were asked the same. A difference shows when the 99 % interval of its
    mean (Student's t) does not contain 0 and it is not too small to matter.
    """
    differences = [_difference(quantity.value(a), quantity.value(b)) for a, b in zip(own, other, strict=True)]
    mean = statistics.fmean(differences)
    if isinf(mean):
        return 1 if mean > 0 else -1
    half = interval(differences)
    if abs(mean) <= half or abs(mean) < quantity.least_difference:
        return 0
    return 1 if mean > 0 else -1


def _difference(one: float, other: float) -> float:
    return 0.0 if one == other else one - other  # two infinite times are equal


def interval(values: Sequence[float]) -> float:
    """Return half the width of the 99 % interval of a mean, infinite for a single value."""
    count = len(values)
    if count < 2:
        return inf
    quantile = _T_99[count - 2] if count - 2 < len(_T_99) else _T_99_MANY
    return quantile * statistics.stdev(values) / sqrt(count)


class Comparison(NamedTuple):
    """How a policy does beside another at one workload and load: what is better and what is worse."""

    workload: str
    load: int
    other: str
    better: tuple[str, ...]
    worse: tuple[str, ...]


def comparisons(results: Results, own: str, others: Sequence[str]) -> list[Comparison]:
    """Compare one policy with others at every workload and load."""
    places = dict.fromkeys((workload, load) for workload, load, _ in results)
    return [_compared(results, workload, load, own, other) for workload, load in places for other in others]


def _compared(results: Results, workload: str, load: int, own: str, other: str) -> Comparison:
    ours, theirs = results[workload, load, own], results[workload, load, other]
    verdicts = {quantity.name: verdict(ours, theirs, quantity) for quantity in COMPARED}
    better = tuple(name for name, sign in verdicts.items() if sign < 0)
    worse = tuple(name for name, sign in verdicts.items() if sign > 0)
    return Comparison(workload, load, other, better, worse)


def comparison_table(found: Sequence[Comparison]) -> str:
    """Return one row for each workload and load, one column for each other policy."""
    others = list(dict.fromkeys(each.other for each in found))
    places = dict.fromkeys((each.workload, each.load) for each in found)
    cells = {(each.workload, each.load, each.other): _words(each) for each in found}
    rows = [("workload", "load", *others)]
    rows += [(workload, f"{load} %", *(cells[workload, load, other] for other in others)) for workload, load in places]
    return aligned(rows)


def _words(found: Comparison) -> str:
    if found.worse:
        return " ".join(("WORSE", *found.worse))
    return " ".join(("better", *found.better)) if found.better else "same"


def short_table(results: Results, load: int) -> str:
    """Return the times to the first token at the 95th percentile at one load: workloads by policies, ms."""
    rules = list(dict.fromkeys(rule for _, _, rule in results))
    workloads = dict.fromkeys(workload for workload, at, _ in results if at == load)
    rows = [("policy", *workloads)]
    rows += [
        (rule, *(_ms([o.ttft_p95_s for o in results[workload, load, rule]]) for workload in workloads))
        for rule in rules
    ]
    return aligned(rows)


COLUMNS = ("TTFT p50, ms", "p95", "p99", "goodput", "held", "busiest")


def workload_table(results: Results, workload: str, load: int) -> str:
    """Return one row for each policy: medians of the seeds, the smallest and the largest in brackets."""
    rows: list[tuple[str, ...]] = [("policy", *COLUMNS)]
    for (name, at, rule), outcomes in results.items():
        if (name, at) == (workload, load):
            rows.append((rule, *_cells(outcomes)))
    return aligned(rows)


def _cells(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    return (
        _ms([o.ttft_p50_s for o in outcomes], spread=True),
        _ms([o.ttft_p95_s for o in outcomes], spread=True),
        _ms([o.ttft_p99_s for o in outcomes], spread=True),
        _percent([o.good_share for o in outcomes]),
        _percent([o.held_share for o in outcomes]),
        f"{statistics.median(o.imbalance for o in outcomes):.2f}",
    )


def _ms(seconds: Sequence[float], *, spread: bool = False) -> str:
    middle = _one_ms(statistics.median(seconds))
    return f"{middle} ({_one_ms(min(seconds))}–{_one_ms(max(seconds))})" if spread else middle


def _one_ms(seconds: float) -> str:
    return "∞" if isinf(seconds) else f"{1000 * seconds:,.0f}"


def _percent(shares: Sequence[float]) -> str:
    return f"{100 * statistics.median(shares):.1f} %"
