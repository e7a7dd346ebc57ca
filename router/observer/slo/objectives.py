"""An objective, compiled: does it count a row, in which group, and was the row good? Pure.

Who counts follows :func:`router.observer.catalogue.verdict`. A request that failed is bad. One that was the client's
own fault does not count. One whose client left counts only when it had already waited for longer than the limit, where
waiting is what the limit is about: nobody knows what would have become of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from router.config import Goodput, SloConfig
from router.config.slo import DURATIONS, PACES, expanded, needed_ratio
from router.observer.alerts.model import Severity
from router.observer.catalogue import NS, Limits, Metric, catalogue, verdict
from router.observer.rows import RequestRow
from router.observer.slices import Values, values_of

Judge = Callable[[RequestRow], bool | None]
"""Says whether a request was good; ``None`` for one that does not count."""

NS_PER_S: Final = 1_000_000_000
_FIRST_TOKEN: Final = frozenset({"ttft", "ttfc", "ttfo"})
_OF_STREAMS: Final = frozenset({*_FIRST_TOKEN, "host_ttfc", *PACES})
_WHOLE: Final = frozenset({"e2e", "duration"})
_OF_TOKENS: Final = frozenset({*_OF_STREAMS, "tpot", "stall_max", "host_ttft", "stage.host_first_token",
                               "stage.decode"})  # fmt: skip
"""Metrics that only answers made of tokens have: one that failed counts only where there would have been some."""
_GENERATING: Final = frozenset({"chat", "completion", "responses", "messages", ""})
_NO_LIMITS: Final = Limits("", None, None, None)


class Rule(NamedTuple):
    """A pair of windows, with the time scale in it."""

    long_ns: int
    short_ns: int
    factor: float
    needed_ratio: float
    severity: Severity


class Objective(NamedTuple):
    """One objective. Durations have the time scale in them; ``time_scale`` turns them back into what was asked for."""

    name: str
    description: str
    metric: str
    threshold: int | None
    """In the metric's unit inside; good is at most that, of a pace at least."""
    threshold_text: str
    percent: float
    budget_ratio: float
    where: dict[str, tuple[str, ...]]
    group_by: Values
    groups_max: int
    period_ns: int
    rules: tuple[Rule, ...]
    min_events: int
    min_bad: int
    time_scale: float
    judge: Judge

    def counts(self, row: RequestRow) -> bool:
        """Return whether a row is among those that the objective is about."""
        return all(values_of(row, row.tags, (name,))[0] in wanted for name, wanted in self.where.items())

    def group_of(self, row: RequestRow) -> Values:
        """Return the values of the group that a row belongs to; "" stands for a tag that was not given."""
        return values_of(row, row.tags, self.group_by)

    def told_s(self, inside_ns: int) -> float:
        """Return a time as the configuration has it, in seconds, to the millisecond: 3600 and not 3600.000000003."""
        return round(inside_ns * self.time_scale / NS_PER_S, 3)

    @property
    def definition(self) -> str:
        """Return what the counts are counts of: while this stays the same they may be counted on."""
        where = sorted((name, sorted(wanted)) for name, wanted in self.where.items())
        return repr((self.metric, self.threshold, where, self.group_by, self.time_scale))

    @property
    def is_pace(self) -> bool:
        """Whether more is better."""
        return self.metric in PACES


def objectives_of(slos: Sequence[SloConfig], goodput: Sequence[Goodput] = (), time_scale: float = 1) -> list[Objective]:
    """Return the objectives of a configuration, presets in their parts. With ``time_scale`` times pass faster."""
    metrics = {metric.name: metric for metric in catalogue(goodput)}
    return [_objective(slo, metrics, time_scale) for slo in expanded(slos)]


def _objective(slo: SloConfig, metrics: Mapping[str, Metric], time_scale: float) -> Objective:
    threshold = threshold_inside(slo, metrics)
    ns = NS_PER_S / time_scale
    return Objective(
        name=slo.name,
        description=slo.description,
        metric=slo.metric,
        threshold=threshold,
        threshold_text=_threshold_text(slo),
        percent=slo.target,
        budget_ratio=slo.budget_ratio,
        where={name: (value,) if isinstance(value, str) else tuple(value) for name, value in slo.where.items()},
        group_by=tuple(slo.group_by),
        groups_max=slo.groups_max,
        period_ns=round(slo.period_s * ns),
        rules=tuple(
            Rule(round(rule.long_s * ns), round(rule.short_s * ns), rule.factor, needed_ratio(slo, rule),
                 Severity(rule.severity))
            for rule in slo.rules
        ),
        min_events=slo.min_events,
        min_bad=slo.min_bad,
        time_scale=time_scale,
        judge=_judge(slo.metric, threshold, metrics),
    )  # fmt: skip


def threshold_inside(slo: SloConfig, metrics: Mapping[str, Metric]) -> int | None:
    """Return the threshold in the metric's unit inside; ``None`` where there is none."""
    if slo.threshold_ms is not None:
        return round(slo.threshold_ms / 1000 / NS.worth)
    if slo.at_least is not None:
        return round(slo.at_least / metrics[slo.metric].unit.worth)
    return None


def boundaries(slos: Sequence[SloConfig]) -> dict[str, list[int]]:
    """Return by metric the inclusive upper ends of buckets that make each share in Prometheus exact.

    Of a pace good is what is at least the threshold, so that the boundary is the last value below it.
    """
    metrics = {metric.name: metric for metric in catalogue()}
    found: dict[str, list[int]] = {}
    for slo in expanded(slos):
        inside = threshold_inside(slo, metrics)
        if inside is not None:
            found.setdefault(slo.metric, []).append(inside - (slo.metric in PACES))
    return found


def _threshold_text(slo: SloConfig) -> str:
    if slo.threshold_ms is not None:
        return f"<= {slo.threshold_ms:g} ms"
    if slo.at_least is not None:
        return f">= {slo.at_least:g}{'/s' if slo.metric == 'early_tps' else ''}"
    return ""


def _judge(metric: str, threshold: int | None, metrics: Mapping[str, Metric]) -> Judge:
    if metric == "goodput":
        read = metrics[metric].read
        return lambda row: None if (found := read(row)) is None else bool(found & 1)
    if threshold is None:
        return lambda row: verdict(row, _NO_LIMITS)
    return _by_value(metric, threshold, metrics)


def _by_value(metric: str, threshold: int, metrics: Mapping[str, Metric]) -> Judge:
    """Return the judge of a metric that is compared with a threshold, exactly."""
    read, is_duration = metrics[metric].read, metric in DURATIONS
    of_streams, of_tokens = metric in _OF_STREAMS, metric in _OF_TOKENS
    limits = Limits("", threshold if metric in _FIRST_TOKEN else None, None, None)

    def judge(row: RequestRow) -> bool | None:
        if (of_streams and not row.stream) or (of_tokens and row.endpoint not in _GENERATING):
            return None
        if row.outcome == "ok":
            value = read(row)
            if value is None:
                return None
            return value <= threshold if is_duration else value >= threshold
        if row.outcome == "client_gone" and metric in _WHOLE:
            waited_ns = row.left_ns or row.duration_ns
            return False if waited_ns > threshold else None
        return verdict(row, limits)

    return judge
