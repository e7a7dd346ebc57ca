"""Which findings are told by another one, so that one fault is one alert; pure.

* A host that is down explains its own regressions, and the burn of what only it serves is still told: users see that.
* An objective that burns explains that its budget is spent, and every regression of requests that it is about.

What is left out becomes a fact of the finding that explains it, so that nothing is hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from msgspec.structs import replace

from router.observer.alerts.model import Cause, Finding

FACTS_MAX: Final = 20
"""Facts of one finding; the text of an alert must stay one that is read."""
_EXPLAINED_BY: Final = {Cause.REGRESSION: (Cause.HOST_DOWN, Cause.BURN), Cause.BUDGET: (Cause.BURN,)}
"""What may explain what; all else is told. An outage of many groups is hundreds of findings that explain nothing."""


def inhibited(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings that are told on their own, with what they explain among their facts."""
    found = list(findings)
    reasons: dict[Cause, list[int]] = {}
    for index, finding in enumerate(found):
        reasons.setdefault(finding.cause, []).append(index)
    explained: dict[int, list[str]] = {}
    kept: list[int] = []
    for index, finding in enumerate(found):
        could = (at for cause in _EXPLAINED_BY.get(finding.cause, ()) for at in reasons.get(cause, ()))
        reason = next((at for at in could if _explains(found[at], finding)), None)
        if reason is not None:
            explained.setdefault(reason, []).append(finding.summary)
        else:
            kept.append(index)
    return [_with_facts(found[index], explained.get(index, [])) for index in kept]


def _with_facts(finding: Finding, more: list[str]) -> Finding:
    if not more:
        return finding
    return replace(finding, facts=tuple(dict.fromkeys((*finding.facts, *more)))[:FACTS_MAX])


def _explains(reason: Finding, other: Finding) -> bool:
    if reason.cause is Cause.HOST_DOWN:
        return other.where.get("host") == reason.labels.get("host")
    if other.cause is Cause.BUDGET and reason.slo != other.slo:
        return False
    return is_compatible(reason.where, other.where)


def is_compatible(where: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Return whether a request can be of both: no tag that both name has other values. A selector of an objective may
    name several, with ``|`` between.
    """
    return all(
        name not in other or other[name] == value or not set(other[name].split("|")).isdisjoint(value.split("|"))
        for name, value in where.items()
    )
