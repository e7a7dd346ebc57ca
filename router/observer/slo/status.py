"""How an objective fares: what ``/slo.json`` answers and what alerts are made of; values that never change.

All seconds are those of the configuration: under a time scale an hour is still called an hour. Times end in
``_wall_ns`` (since 1970, UTC).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from router.observer.alerts.model import Burn, Severity

SCHEMA: Final = "ringrouter.slo/1"


class State(StrEnum):
    """In one word, the worst first."""

    FIRING = "firing"
    """A rule fires."""
    BUDGET_SPENT = "budget_spent"
    """No rule fires, and the budget of the period is spent."""
    INSUFFICIENT_DATA = "insufficient_data"
    """Too few requests, or too few bad ones, to say anything; this is not the same as ok."""
    OK = "ok"


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of the budget if it goes on as in the last hour, or the last six."""

    window_s: float
    burn: float | None
    """``None`` without requests."""
    exhausted_in_s: float | None
    """0 when it is spent, ``None`` when it lasts: a burn of 1 or less."""


class SloStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One group of one objective, or all its requests."""

    slo: str
    description: str
    metric: str
    threshold: int | None
    """In the metric's unit inside (:mod:`router.observer.catalogue`)."""
    threshold_text: str
    """As ``<= 500 ms``."""
    objective: float
    """Percent."""
    where: dict[str, str]
    """The requests it is about; several values of one name with ``|`` between."""
    group: dict[str, str]
    """Values of ``group_by``; empty for all requests."""
    alerts: bool
    """Whether it has alerts of its own: with ``group_by`` only the groups have, without it all requests."""
    state: State
    severity: Severity | None
    """The worst of the rules that fire."""
    since_wall_ns: int | None
    """About when it began, while a rule fires."""
    burns: tuple[Burn, ...]
    period_s: float
    bad: int
    total: int
    """In the period."""
    good_ratio: float | None
    budget_left: float | None
    """Share of the period's budget; below 0 when it is overspent. ``None`` without requests."""
    counted_s: float
    """How much of the period was counted so far: what is spent is set against the budget of the whole period."""
    outlooks: tuple[Outlook, ...]
    last_wall_ns: int | None
    """When its last request ended."""

    @property
    def labels(self) -> dict[str, str]:
        """What identifies it: the objective and the values of ``group_by``."""
        return {"slo": self.slo, **self.group}


class SloPage(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of ``/slo.json``."""

    schema: str
    wall_ns: int
    time_scale: float
    problem: str
    """Why the counts cannot be written down just now; empty when they are."""
    statuses: list[SloStatus]
    """By objective in the order of the configuration: all requests, then its groups, the worst first."""
