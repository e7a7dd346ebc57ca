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


def inhibited(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings that are told on their own, with what they explain among their facts."""
    found = list(findings)
    explained: dict[int, list[str]] = {}
    kept: list[int] = []
    for index, finding in enumerate(found):
        reasons = [at for at, other in enumerate(found) if at != index and _explains(other, finding)]
        if reasons:
            explained.setdefault(reasons[0], []).append(finding.summary)
        else:
            kept.append(index)
    return [_with_facts(found[index], explained.get(index, [])) for index in kept]


def _with_facts(finding: Finding, more: list[str]) -> Finding:
    if not more:
        return finding
    return replace(finding, facts=tuple(dict.fromkeys((*finding.facts, *more)))[:FACTS_MAX])


def _explains(reason: Finding, other: Finding) -> bool:
    if other.cause is Cause.REGRESSION:
        if reason.cause is Cause.HOST_DOWN:
            return other.where.get("host") == reason.labels.get("host")
        return reason.cause is Cause.BURN and is_compatible(reason.where, other.where)
    if other.cause is Cause.BUDGET:
        return reason.cause is Cause.BURN and reason.slo == other.slo and is_compatible(reason.where, other.where)
    return False


def is_compatible(where: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Return whether a request can be of both: no tag that both name has other values. A selector of an objective may
    name several, with ``|`` between.
    """
    return all(
        name not in other or other[name] == value or not set(other[name].split("|")).isdisjoint(value.split("|"))
        for name, value in where.items()
    )
