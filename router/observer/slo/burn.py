"""Burn rates, state, budget and time to exhaustion, from counts of bad and all requests; pure.

``burn = (bad / total) / (1 − objective)``: a burn of 1 spends the budget exactly in the period. A rule fires while a
long and a short window both burn faster than its factor: the long one says that it matters, the short one that it is
still going on (sre.google/workbook/alerting-on-slos, "Multiwindow, Multi-Burn-Rate Alerts").

What is left of the budget is set against that of a whole period, also when only a part of it was counted so far:
``left = 1 − burn of what was counted × counted / period``. The first bad minute of a month is not half the budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from msgspec.structs import replace

from router.observer.alerts.model import Burn, Severity
from router.observer.slo.cells import BAD, TOTAL, Ints
from router.observer.slo.objectives import NS_PER_S, Objective, Rule
from router.observer.slo.status import Outlook, State

OUTLOOK_S: Final = (3600, 6 * 3600)
_RANK: Final = {Severity.INFO: 0, Severity.TICKET: 1, Severity.PAGE: 2}


class Sum(NamedTuple):
    """Requests of one window."""

    bad: int
    total: int


def burn_of(found: Sum, budget_ratio: float) -> float | None:
    """Return how fast a window burns the budget; ``None`` without requests."""
    return found.bad / found.total / budget_ratio if found.total else None


def windows_of(objective: Objective) -> list[int]:
    """Return every window that is read for an objective, once."""
    outlooks = (round(seconds * NS_PER_S / objective.time_scale) for seconds in OUTLOOK_S)
    windows = (window for rule in objective.rules for window in (rule.long_ns, rule.short_ns))
    return list(dict.fromkeys((objective.period_ns, *outlooks, *windows)))


def burns_of(objective: Objective, sums: Mapping[int, Sum]) -> tuple[Burn, ...]:
    """Return how each rule stands. ``sums`` are by window."""
    return tuple(_burn(objective, rule, sums[rule.long_ns], sums[rule.short_ns]) for rule in objective.rules)


def _burn(objective: Objective, rule: Rule, long: Sum, short: Sum) -> Burn:
    long_burn, short_burn = burn_of(long, objective.budget_ratio), burn_of(short, objective.budget_ratio)
    exceeds = _exceeds(long, rule) and _exceeds(short, rule)
    is_judged = long.total >= objective.min_events and (long.bad >= objective.min_bad or not exceeds)
    return Burn(
        long_s=objective.told_s(rule.long_ns),
        short_s=objective.told_s(rule.short_ns),
        factor=rule.factor,
        needed_ratio=rule.needed_ratio,
        severity=rule.severity,
        long_burn=long_burn,
        short_burn=short_burn,
        long_bad=long.bad,
        long_total=long.total,
        short_bad=short.bad,
        short_total=short.total,
        is_firing=exceeds and is_judged,
        is_judged=is_judged,
    )


def without_told(objective: Objective, burns: Sequence[Burn], after: Sum) -> tuple[Burn, ...]:
    """Return the burns with those that fire only for what a page has told; ``after`` is what came after the page."""
    return tuple(
        replace(each, is_firing=False, is_told=True)
        if each.is_firing and not (after.total >= objective.min_events and _exceeds(after, rule))
        else each
        for rule, each in zip(objective.rules, burns, strict=True)
    )


def _exceeds(found: Sum, rule: Rule) -> bool:
    """Say whether a window burns faster than a rule allows: compared with the needed ratio, which was not divided."""
    return found.bad > rule.needed_ratio * found.total


def budget_left(objective: Objective, period: Sum, counted_ns: int) -> float | None:
    """Return the share of the period's budget that is left; below 0 when it is overspent, ``None`` without requests."""
    burn = burn_of(period, objective.budget_ratio)
    return None if burn is None else 1 - burn * min(1.0, counted_ns / objective.period_ns)


def outlooks_of(objective: Objective, sums: Mapping[int, Sum], left: float | None) -> tuple[Outlook, ...]:
    """Return what becomes of the budget at the burn of each of the last windows."""
    return tuple(_outlook(objective, seconds, sums, left) for seconds in OUTLOOK_S)


def _outlook(objective: Objective, seconds: int, sums: Mapping[int, Sum], left: float | None) -> Outlook:
    burn = burn_of(sums[round(seconds * NS_PER_S / objective.time_scale)], objective.budget_ratio)
    period_s = objective.told_s(objective.period_ns)
    exhausted_s = None
    if left is not None and left <= 0:
        exhausted_s = 0.0
    elif left is not None and burn is not None and burn > 1:
        exhausted_s = left * period_s / burn
    return Outlook(window_s=float(seconds), burn=burn, exhausted_in_s=exhausted_s)


def state_of(objective: Objective, burns: Sequence[Burn], period: Sum, left: float | None) -> State:
    """Return the state in one word. Data suffice when some rule could judge, and none is kept from firing by too few
    requests.
    """
    if any(burn.is_firing for burn in burns):
        return State.FIRING
    has_enough = period.total >= objective.min_events and period.bad >= objective.min_bad
    if left is not None and left <= 0 and has_enough:
        return State.BUDGET_SPENT
    is_held_back = any(not burn.is_judged and burn.long_total >= objective.min_events for burn in burns)
    if is_held_back or not any(burn.is_judged for burn in burns):
        return State.INSUFFICIENT_DATA
    return State.OK


def severity_of(burns: Sequence[Burn]) -> Severity | None:
    """Return the worst severity of the rules that fire."""
    return max((burn.severity for burn in burns if burn.is_firing), key=_RANK.__getitem__, default=None)


def onset_ns(times: Ints, counts: Ints, budget_ratio: float) -> int:
    """Return about when a burn began: the begin of the cells that have the most bad requests too many.

    Too many is more than halfway between the budget and what the last tenth of the cells has (the begin of a cusum,
    Page, *Continuous Inspection Schemes*, 1954).
    """
    recent = counts[-max(1, len(counts) // 10) :].sum(axis=0)
    usual = (budget_ratio + recent[BAD] / max(1, recent[TOTAL])) / 2
    excess = counts[:, BAD] - usual * counts[:, TOTAL]
    return int(times[len(times) - 1 - int(np.argmax(np.cumsum(excess[::-1])))])
