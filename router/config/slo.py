"""The section that says how good is good enough: service level objectives and when to say that one is missed.

What an objective means is in docs/slo.md. A rule of burn rates that can never fire, because more requests than there
are would have to be bad, is refused here, with the arithmetic.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from router.config.base import Section, above_zero, between, named
from router.config.observer import SLICE_FIELDS
from router.config_schema import shown
from router.errors import ConfigError
from router.stamps import STAGES
from router.telemetry.records import TAGS, TEXT_TAGS

DURATIONS: Final = (
    *("ttft", "ttfc", "ttfo", "tpot", "e2e", "duration", "stall_max", "router_overhead"),
    *("host_ttft", "host_ttfc", "host_e2e"),
    *(f"stage.{stage}" for stage in STAGES),
)
"""Metrics of which less is better: good is at most ``threshold_ms``."""
PACES: Final = ("early_tps", "visible_2s")
"""Metrics of which more is better: good is at least ``at_least``, in events per second or events."""
SHARES: Final = ("availability", "goodput")
"""What is good or not by itself: an answer was given; it was within the limits of ``observer.goodput``."""
METRICS: Final = (*DURATIONS, *PACES, *SHARES)
PRESETS: Final = {
    "interactive": (("ttft", 500.0), ("tpot", 30.0)),
    "conversational": (("ttft", 2000.0), ("tpot", 100.0)),
}
"""What a preset stands for: metrics and their thresholds in milliseconds."""
PRESET_OBJECTIVE: Final = 99.0
LOW_OBJECTIVE: Final = 97.0
"""Up to this objective the usual rules need too many bad requests: 14.4 times 5 % are 72 %."""
PERIOD_DAYS: Final = 30.0
LOW_PERIOD_DAYS: Final = 7.0
NEEDED_MAX: Final = 0.9
"""A rule that needs a larger share of bad requests than this is refused: an outage of everything would hardly do."""
NEEDED_WARNED: Final = 0.5
GROUPS_MAX: Final = 2048
"""Groups of all objectives together: each has 16 KB of counts (:mod:`router.observer.slo.cells`)."""
DAY_S: Final = 86_400
_EXAMPLES: Final = 5


class SloWindow(Section, frozen=True):
    """`[[slo.windows]]`: a rule: it fires while both windows burn the budget faster than `factor`."""

    long_s: Annotated[float, between(60, 31 * DAY_S, "The long window: what happened is worth telling.")]
    short_s: Annotated[float, between(10, 31 * DAY_S, "The short one: it is still going on. Usual: a twelfth.")]
    factor: Annotated[
        float, above_zero(10_000, "How many times faster than the budget lasts; 1 spends it exactly in `window_days`.")
    ]
    severity: Annotated[
        Literal["page", "ticket", "info"], Meta(description="Whom it concerns: somebody now, soon, or nobody.")
    ] = "page"


class SloConfig(Section, frozen=True):
    """`[[slo]]`: a service level objective: which share of which requests must be good (docs/slo.md)."""

    name: Annotated[str, named("It stands in alerts and metrics.")]
    description: Annotated[str, Meta(max_length=500, description="A sentence for who is woken by it.")] = ""
    preset: (
        Annotated[
            Literal["interactive", "conversational"],
            Meta(
                description="Two objectives at once, `NAME-ttft` and `NAME-tpot`, in place of `metric` and its "
                "threshold: 500 ms and 30 ms, or 2000 ms and 100 ms; `objective` is 99 if not given."
            ),
        ]
        | None
    ) = None
    metric: Annotated[
        str,
        Meta(
            extra={"allowed": "one of " + ", ".join(f"`{name}`" for name in METRICS)},
            description="What is looked at: a duration, a pace, `availability` (an answer was given) or `goodput` "
            "(within `observer.goodput`).",
        ),
    ] = ""  # fmt: skip
    threshold_ms: Annotated[float, above_zero(86_400_000, "Of a duration: good is at most this.")] | None = None
    at_least: (
        Annotated[float, above_zero(1e6, "Of `early_tps` (per second) and `visible_2s`: good is at least this.")] | None
    ) = None
    objective: Annotated[float, between(50, 99.999, "Percent of requests that must be good.")] | None = None
    where: Annotated[
        dict[str, str | list[str]],
        Meta(
            extra={"allowed": "a table of tags, `model`, `host`, `endpoint` or `instance`, each with a text or a list"},
            description="Only requests with these values: tags, `model`, `host`, `endpoint`, `instance`; of a list any "
            "one.",
        ),
    ] = msgspec.field(default_factory=dict)  # fmt: skip
    group_by: Annotated[
        list[Annotated[str, Meta(extra={"allowed": "a tag with few values, `model`, `host`, `endpoint`, `instance`"})]],
        Meta(max_length=2, description="Each value, or pair, has a budget and alerts of its own."),
    ] = msgspec.field(default_factory=list)
    groups_max: Annotated[int, between(1, 256, "Values that are told apart; later ones count as `__other__`.")] = 50
    window_days: (
        Annotated[float, between(1, 31, "The period of the budget. Absent: 30; 7 for objectives up to 97.")] | None
    ) = None
    windows: Annotated[
        list[SloWindow], Meta(max_length=8, description="Rules. Absent: those of docs/slo.md for the objective.")
    ] = msgspec.field(default_factory=list)
    min_events: Annotated[
        int, between(1, 1_000_000, "With fewer requests than this in the long window a rule says nothing.")
    ] = 100
    min_bad: Annotated[int, between(1, 1_000_000, "With fewer bad ones than this a rule does not fire.")] = 10

    @property
    def target(self) -> float:
        """Percent of requests that must be good."""
        return PRESET_OBJECTIVE if self.objective is None else self.objective

    @property
    def budget_ratio(self) -> float:
        """Share of requests that may be bad."""
        return round(1 - self.target / 100, 9)

    @property
    def period_s(self) -> float:
        """Seconds over which the budget is counted."""
        days = LOW_PERIOD_DAYS if self.target <= LOW_OBJECTIVE else PERIOD_DAYS
        return DAY_S * (days if self.window_days is None else self.window_days)

    @property
    def rules(self) -> list[SloWindow]:
        """Its own rules, else those for its objective that look back no longer than its period."""
        return list(self.windows) or [rule for rule in default_rules(self.target) if rule.long_s <= self.period_s]


def default_rules(objective: float) -> list[SloWindow]:
    """Return the rules for an objective in percent.

    Above :data:`LOW_OBJECTIVE` those of the SRE workbook (sre.google/workbook/alerting-on-slos): 2 %, 5 %, 10 % and
    10 % of a budget of 30 days. Below, the factor is chosen by the share of bad requests that it needs: at most half
    and a third of the way from what is allowed to everything.
    """
    if objective > LOW_OBJECTIVE:
        return [
            SloWindow(long_s=3600, short_s=300, factor=14.4, severity="page"),
            SloWindow(long_s=6 * 3600, short_s=1800, factor=6, severity="page"),
            SloWindow(long_s=DAY_S, short_s=2 * 3600, factor=3, severity="ticket"),
            SloWindow(long_s=3 * DAY_S, short_s=6 * 3600, factor=1, severity="ticket"),
        ]
    allowed = 1 - objective / 100
    page, ticket = min(3.0, (1 + allowed) / (2 * allowed)), min(1.5, (1 + 2 * allowed) / (3 * allowed))
    return [
        SloWindow(long_s=3600, short_s=300, factor=round(page, 3), severity="page"),
        SloWindow(long_s=6 * 3600, short_s=1800, factor=round(ticket, 3), severity="ticket"),
    ]


def needed_ratio(slo: SloConfig, rule: SloWindow) -> float:
    """Return the share of bad requests at which a rule fires; above 1 it never does."""
    return round(rule.factor * slo.budget_ratio, 9)


def expanded(slos: Sequence[SloConfig]) -> list[SloConfig]:
    """Return the objectives with each preset in its parts."""
    found: list[SloConfig] = []
    for slo in slos:
        if slo.preset is None:
            found.append(slo)
            continue
        found += [
            replace(slo, name=f"{slo.name}-{metric}", preset=None, metric=metric, threshold_ms=threshold_ms,
                    objective=slo.target)
            for metric, threshold_ms in PRESETS[slo.preset]
        ]  # fmt: skip
    return found


class _Names(NamedTuple):
    """What a configuration has that objectives may name."""

    tags: Collection[str]
    has_goodput: bool


def check_slos(slos: Sequence[SloConfig], own_tags: Sequence[str], *, has_goodput: bool) -> None:
    """Check what one value alone cannot show; raises :class:`ConfigError`. ``own_tags`` are those of `tags.own`."""
    names = _Names({*TAGS, *TEXT_TAGS, *own_tags}, has_goodput)
    seen: dict[str, int] = {}
    for index, slo in enumerate(slos):
        key = f"slo[{index}]"
        fault = _metric_fault(slo, names) or _selector_fault(slo, names) or _rules_fault(slo)
        if fault:
            raise ConfigError(f"{key}{fault}")
        for part in expanded([slo]):
            if part.name in seen:
                raise ConfigError(
                    f"{key}.name = {shown(slo.name)}: expected names that differ, slo[{seen[part.name]}] has "
                    f"{shown(part.name)} too"
                )
            seen[part.name] = index
    group_count = sum(group_capacity(slo) for slo in expanded(slos))
    if group_count > GROUPS_MAX:
        raise ConfigError(
            f"slo: all groups_max together are {group_count:,} groups: expected at most {GROUPS_MAX:,}, "
            "for each keeps its own counts"
        )


def group_capacity(slo: SloConfig) -> int:
    """Return how many groups an objective counts at most: all requests, each group, and the others."""
    return slo.groups_max + 2 if slo.group_by else 1


def _metric_fault(slo: SloConfig, names: _Names) -> str:
    if slo.preset is not None:
        given = [key for key in ("metric", "threshold_ms", "at_least") if getattr(slo, key)]
        return f".{given[0]} stands beside preset: expected one of them" if given else ""
    if not slo.metric:
        return ".metric is missing: expected it, or preset"
    if slo.metric not in METRICS:
        return f".metric = {shown(slo.metric)}: expected one of {', '.join(METRICS)}"
    if slo.objective is None:
        return ".objective is missing: expected the percent of requests that must be good, 50 to 99.999"
    wanted = "threshold_ms" if slo.metric in DURATIONS else "at_least" if slo.metric in PACES else ""
    for key in ("threshold_ms", "at_least"):
        if key == wanted and getattr(slo, key) is None:
            return f".{key} is missing: metric = {shown(slo.metric)} needs it"
        if key != wanted and getattr(slo, key) is not None:
            expected = wanted or "neither threshold_ms nor at_least"
            return f".{key} has no meaning for metric = {shown(slo.metric)}: expected {expected}"
    if slo.metric == "goodput" and not names.has_goodput:
        return '.metric = "goodput": expected an entry in observer.goodput, which says what a good answer is'
    return ""


def _selector_fault(slo: SloConfig, names: _Names) -> str:
    for name, wanted in slo.where.items():
        if name not in names.tags and name not in SLICE_FIELDS:
            return f".where.{name}: expected a tag or one of {', '.join(SLICE_FIELDS)}"
        if not wanted and not isinstance(wanted, str):
            return f".where.{name} = []: expected at least one value"
    for position, name in enumerate(slo.group_by):
        if name in TEXT_TAGS:
            return f".group_by[{position}] = {shown(name)}: expected a tag with few values, this one has no bound"
        if name not in names.tags and name not in SLICE_FIELDS:
            return f".group_by[{position}] = {shown(name)}: expected a tag or one of {', '.join(SLICE_FIELDS)}"
        if name in slo.group_by[:position]:
            return f".group_by[{position}] = {shown(name)}: expected names that differ, it stands twice"
    return ""


def _rules_fault(slo: SloConfig) -> str:
    for position, rule in enumerate(slo.rules):
        key = f".windows[{position}]"
        if rule.short_s >= rule.long_s:
            return f"{key}.short_s = {rule.short_s:g}: expected less than long_s ({rule.long_s:g})"
        if rule.long_s > slo.period_s:
            return f"{key}.long_s = {rule.long_s:g}: expected at most window_days ({slo.period_s / DAY_S:g} d)"
        needed = needed_ratio(slo, rule)
        if needed > NEEDED_MAX:
            return (
                f"{key}.factor = {rule.factor:g} of {shown(slo.name)}: {rule.factor:g} x (1 - {slo.target / 100:g}) = "
                f"{needed:.3g}: {needed:.0%} of requests would have to be bad{', it can never fire' * (needed > 1)}; "
                f"expected at most {NEEDED_MAX:.0%}, a factor of {NEEDED_MAX / slo.budget_ratio:.3g}"
            )
    return ""


def slo_warnings(slos: Sequence[SloConfig]) -> Iterator[str]:
    """Yield what is allowed and yet hardly meant, a line each."""
    for slo in expanded(slos):
        for rule in slo.rules:
            needed, spent = needed_ratio(slo, rule), rule.factor * rule.long_s / slo.period_s
            what = f"[[slo]] {slo.name}: the {rule.severity} rule over {rule.long_s / 3600:g} h"
            if needed > NEEDED_WARNED:
                yield (
                    f"{what} fires only when {needed:.0%} of requests are bad "
                    f"({rule.factor:g} x (1 - {slo.target / 100:g}))"
                )
            if spent > 1:
                yield f"{what} fires only after {spent:.0%} of the budget of {slo.period_s / DAY_S:g} days was spent"
