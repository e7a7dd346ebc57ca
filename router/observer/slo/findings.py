"""What alerts are made of: each objective or group whose rule fires, or whose budget is spent; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from router.observer.alerts.model import Cause, Finding, Severity
from router.observer.slo.status import SloStatus, State

_NOT_GIVEN = "(none)"
"""Value in an alert's labels of a tag that was not given: a label without a value is no label."""


def findings_of(statuses: Iterable[SloStatus], wall_ns: int) -> Iterator[Finding]:
    """Yield one finding for each status that has alerts of its own and is missing its objective.

    While a rule fires, that the budget is spent is a fact of the same finding, not another one.
    """
    for status in statuses:
        if status.alerts and status.state is State.FIRING:
            yield _finding(status, Cause.BURN, status.severity or Severity.TICKET, _burn_summary(status), wall_ns)
        elif status.alerts and status.state is State.BUDGET_SPENT:
            yield _finding(status, Cause.BUDGET, Severity.TICKET, _budget_summary(status), wall_ns)


def _finding(status: SloStatus, cause: Cause, severity: Severity, summary: str, wall_ns: int) -> Finding:
    exhausted = [each.exhausted_in_s for each in status.outlooks if each.exhausted_in_s is not None]
    return Finding(
        cause=cause,
        severity=severity,
        labels={name: value or _NOT_GIVEN for name, value in status.labels.items()},
        summary=summary,
        since_wall_ns=status.since_wall_ns or wall_ns,
        slo=status.slo,
        metric=status.metric,
        threshold=status.threshold,
        objective=status.objective,
        where={**status.where, **status.group},
        burns=status.burns,
        budget_left=status.budget_left,
        exhausted_in_s=min(exhausted, default=None),
        facts=tuple(_facts(status, cause)),
    )


def name_of(status: SloStatus) -> str:
    """Return what a status is called: ``chat-ttft (feature_name search)``."""
    group = ", ".join(f"{name} {value or _NOT_GIVEN}" for name, value in status.group.items())
    return f"{status.slo} ({group})" if group else status.slo


def goal_of(status: SloStatus) -> str:
    """Return the objective in words: ``99 % of ttft <= 500 ms``."""
    return f"{status.objective:g} % of {status.metric} {status.threshold_text}".rstrip()


def _burn_summary(status: SloStatus) -> str:
    worst = max((burn for burn in status.burns if burn.is_firing), key=lambda burn: burn.long_burn or 0)
    return (
        f"{name_of(status)}: {worst.long_bad:,} of {worst.long_total:,} requests in {span(worst.long_s)} missed "
        f"{goal_of(status)}, {worst.long_burn or 0:.1f} times what the budget allows"
    )


def _budget_summary(status: SloStatus) -> str:
    return (
        f"{name_of(status)}: the budget of {span(status.period_s)} is spent: {status.bad:,} of {status.total:,} "
        f"requests missed {goal_of(status)}"
    )


def _facts(status: SloStatus, cause: Cause) -> Iterator[str]:
    if status.description:
        yield status.description
    if cause is Cause.BURN and status.budget_left is not None and status.budget_left <= 0:
        yield f"The budget of {span(status.period_s)} is spent."


def span(seconds: float) -> str:
    """Return a time in the unit that it is a whole number of: ``5 min``, ``6 h``, ``3 d``."""
    for unit, worth in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= worth and seconds % worth == 0:
            return f"{seconds / worth:g} {unit}"
    return f"{seconds:g} s"


def window_label(seconds: float) -> str:
    """Return a window as Prometheus writes times: ``5m``, ``6h``, ``3d``."""
    return span(seconds).replace(" min", "m").replace(" ", "")
