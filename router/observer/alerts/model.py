"""The values that alerts are made of; pure.

Durations end in ``_ns``; times end in ``_wall_ns`` (since 1970, UTC). Ratios are between 0 and 1. ``None`` is what is
not known, never 0.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all parts: values that never change."""


class Cause(StrEnum):
    """What kind of thing is wrong."""

    BURN = "slo_burn"
    """Requests miss an objective so fast that its budget will not last."""
    BUDGET = "slo_budget"
    """The budget of an objective is spent."""
    REGRESSION = "regression"
    """A prompt version, model, feature or host is worse than it was itself; observational."""
    HOST_DOWN = "host_down"
    ROUTER_DOWN = "router_down"
    LOSSY = "observer_lossy"
    """The observer did not see everything, or cannot write it down: other numbers are not complete."""
    SINK_DOWN = "sink_down"
    """Alerts cannot be delivered."""
    TEST = "test"


class Severity(StrEnum):
    """Whom it concerns: ``page`` somebody now, ``ticket`` somebody soon, ``info`` nobody in particular."""

    PAGE = "page"
    TICKET = "ticket"
    INFO = "info"


class Burn(_Part, frozen=True):
    """One pair of windows of an objective. A rule fires while both burn faster than ``factor``.

    A burn rate of 1 spends the budget exactly at the end of the period (sre.google/workbook/alerting-on-slos).
    """

    long_s: float
    short_s: float
    factor: float
    needed_ratio: float
    """Share of bad requests that ``factor`` stands for: ``factor × (1 − objective)``."""
    severity: Severity
    long_burn: float | None
    short_burn: float | None
    """``None`` without requests."""
    long_bad: int
    long_total: int
    short_bad: int
    short_total: int
    is_firing: bool
    is_judged: bool = True
    """Whether there were enough requests, and enough bad ones, to say anything."""
    is_told: bool = False
    """It would fire, but only for what a page has told that is over."""


class Finding(_Part, frozen=True):
    """Something is wrong now. Two findings with the same ``labels`` are the same thing at different times."""

    cause: Cause
    severity: Severity
    labels: dict[str, str]
    """Few and with few values: they identify the alert. ``alertname`` and ``severity`` are added on delivery."""
    summary: str
    """One sentence, before anything is known of why."""
    since_wall_ns: int
    """When it began, as far as can be told."""
    slo: str = ""
    metric: str = ""
    """A metric of the catalogue; empty where it is about none."""
    threshold: float | None = None
    """In the metric's unit inside (:mod:`router.observer.catalogue`); good is at most that, or at least for paces."""
    objective: float | None = None
    """Percent."""
    where: dict[str, str] = {}
    """The requests it is about: tags, ``model``, ``host``, ``endpoint``; empty: all."""
    burns: tuple[Burn, ...] = ()
    budget_left: float | None = None
    """Share of the period's budget that is left; below 0 when it is overspent."""
    exhausted_in_s: float | None = None
    facts: tuple[str, ...] = ()
    """Further sentences."""


class SliceShare(_Part, frozen=True):
    """A slice that contributes to what is wrong."""

    where: dict[str, str]
    bad: int
    total: int
    baseline_ratio: float | None
    """Share of bad requests that it had before; ``None`` when nobody had these values then."""
    excess: float
    """``bad − total × baseline_ratio``: bad requests more than there would have been; of what is new by the share of
    all requests before, without any by what the objective allows."""
    share: float
    """``excess`` over that of all requests."""


class StageDelta(_Part, frozen=True):
    """What a stage of the path took, now against before: means over the requests of the slice."""

    stage: str
    now_ns: float
    before_ns: float
    now_count: int
    before_count: int

    @property
    def delta_ns(self) -> float:
        """Return how much longer it takes."""
        return self.now_ns - self.before_ns


class Example(_Part, frozen=True):
    """A request that shows what is wrong."""

    kind: str
    """``worst`` or ``typical``."""
    request_id: str
    trace_id: str
    ended_wall_ns: int
    host: str
    model: str
    outcome: str
    ttft_ns: int | None
    e2e_ns: int | None
    tokens_in: int | None
    tokens_out: int
    cost: float | None
    stages_ns: dict[str, int]
    tags: dict[str, str]


class Change(_Part, frozen=True):
    """Something that was changed shortly before."""

    wall_ns: int
    instance: str
    """Router that took it over; empty for what was seen in the traffic."""
    text: str


class Evidence(_Part, frozen=True):
    """Where and why: what a person needs who was just woken."""

    sentence: str
    """What is wrong, where, since when, and what changed, in one sentence."""
    slices: tuple[SliceShare, ...] = ()
    stages: tuple[StageDelta, ...] = ()
    """The largest change first."""
    cost_now: float | None = None
    """Per response."""
    cost_before: float | None = None
    currency: str = ""
    examples: tuple[Example, ...] = ()
    changes: tuple[Change, ...] = ()
    hosts: dict[str, dict[str, float]] = {}
    """Of each host concerned: ``running``, ``failed_ratio``, ``ttft_p50_ns`` and what else is known."""


class Alert(_Part, frozen=True):
    """A finding with its evidence and its life."""

    fingerprint: str
    """Of the labels: the same for the same thing."""
    finding: Finding
    starts_wall_ns: int
    updated_wall_ns: int
    ends_wall_ns: int | None = None
    """``None`` while it fires."""
    evidence: Evidence | None = None
