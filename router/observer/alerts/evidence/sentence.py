"""One plain sentence that says what is wrong, where, since when, and what changed; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from router.observer.alerts.evidence.judge import AT_LEAST
from router.observer.alerts.evidence.stages import stages_of
from router.observer.alerts.model import Cause, Change, Finding, StageDelta

_WORDS: Final = {
    "feature_name": "feature",
    "prompt_version": "prompt version",
    "model": "model",
    "device_type": "device",
    "channel": "channel",
    "network_type": "network",
    "workload_class": "class",
    "variant": "variant",
    "host": "host",
}
"""Tags in the words of a sentence, and in its order; others stand behind by their own names."""
_METRICS: Final = {
    "availability": "Availability",
    "goodput": "Goodput",
    "tool": "The time of tools",
    "cost": "The cost",
    "early_tps": "The early pace",
}
_ALWAYS_NAMED: Final = frozenset({"feature_name", "device_type"})
_HIT_MIN: Final = 0.5
_HIT_HARDER: Final = 1.2
"""A value is hit harder when its share of the excess is this much more than its share of the requests."""
_STAGE_SHARE_MIN: Final = 0.15
"""A stage is named when it changed by at least so much of what the largest one did."""
_STAGES_NAMED: Final = 2
_LENGTH_RATIO_NAMED: Final = 1.15
"""Inputs this much longer, or shorter, are told."""
_COST_RATIO_NAMED: Final = 1.02
_NS_PER_S: Final = 1e9


class Hit(NamedTuple):
    """The value of a dimension that has most of a slice's excess of bad requests."""

    name: str
    value: str
    share: float
    """Of the excess."""
    traffic: float
    """Of the slice's requests."""


class Facts(NamedTuple):
    """What the sentence is made of; ``None`` is what is not known."""

    finding: Finding
    where: Mapping[str, str]
    threshold: float | None
    bad_ratio: float | None
    before_ratio: float | None
    median_now: float | None
    median_before: float | None
    onset_wall_ns: int
    stages: Sequence[StageDelta]
    mostly: Sequence[Hit]
    length_ratio: float | None
    """Mean input length now over that of before."""
    cost_now: float | None
    cost_before: float | None
    currency: str
    change: Change | None


def sentence(facts: Facts) -> str:
    """Return the sentence."""
    parts = [
        _what(facts),
        *_stage_parts(facts),
        *_mostly_part(facts),
        *_length_part(facts),
        *_cost_part(facts),
    ]
    if facts.change is not None:
        parts.append(f"{facts.change.text}, {clock(facts.change.wall_ns)}" if facts.change.text else "")
    return "; ".join(part for part in parts if part).rstrip(".") + "."


def _what(facts: Facts) -> str:
    finding = facts.finding
    metric = finding.metric
    name = _METRICS.get(metric, metric.upper() if len(metric) <= 4 else metric or "Requests")
    head = f"{name} of {place(facts.where)}" if facts.where else f"{name} of all requests"
    since = f" since {clock(facts.onset_wall_ns)} UTC"
    if finding.cause is Cause.REGRESSION:
        return f"{head}: {_medians(facts)}{since} (observational)"
    now = "some" if facts.bad_ratio is None else percent(facts.bad_ratio)
    if finding.cause is Cause.HOST_DOWN:
        head = finding.summary.rstrip(".")
    before = "" if facts.before_ratio is None else f" ({percent(facts.before_ratio)} before)"
    return f"{head}: {now} {_limit(metric, facts.threshold)}{before}{since}"


def _medians(facts: Facts) -> str:
    metric = facts.finding.metric
    if facts.median_now is None:
        now = "more" if facts.bad_ratio is None else percent(facts.bad_ratio)
        return f"{now} failed" + ("" if facts.before_ratio is None else f" ({percent(facts.before_ratio)} before)")
    text = f"median {amount(metric, facts.median_now, facts.currency)}"
    if not facts.median_before:
        return text
    change = facts.median_now / facts.median_before - 1
    return f"{text} ({amount(metric, facts.median_before, facts.currency)} before, {change:+.0%})".replace("%", " %")


def _limit(metric: str, threshold: float | None) -> str:
    if threshold is None:
        return "not good" if metric == "goodput" else "failed"
    return f"{'under' if metric in AT_LEAST else 'over'} {amount(metric, threshold, '')}"


def _stage_parts(facts: Facts) -> Iterable[str]:
    own = stages_of(facts.finding.metric)
    grown = [each for each in facts.stages if each.stage in own and each.delta_ns > 0]
    if not grown:
        return
    largest = grown[0].delta_ns
    named = [each for each in grown if each.delta_ns >= _STAGE_SHARE_MIN * largest][:_STAGES_NAMED]
    yield ", ".join(f"+{duration(each.delta_ns)} in {each.stage}" for each in named)


def _mostly_part(facts: Facts) -> Iterable[str]:
    if facts.mostly:
        yield "hit most: " + ", ".join(f"{_WORDS[hit.name]} {hit.value} ({percent(hit.share)})" for hit in facts.mostly)


def _length_part(facts: Facts) -> Iterable[str]:
    ratio = facts.length_ratio
    if ratio is not None and not 1 / _LENGTH_RATIO_NAMED < ratio < _LENGTH_RATIO_NAMED:
        yield f"inputs are {ratio:.1f} times as long as before"


def _cost_part(facts: Facts) -> Iterable[str]:
    if facts.cost_now is None:
        return
    before = "" if facts.cost_before is None else f" ({money(facts.cost_before)} before)"
    yield f"cost per response {money(facts.cost_now)} {facts.currency}".rstrip() + before


def place(where: Mapping[str, str]) -> str:
    """Return a slice in words: ``feature search, device mobile, host gpu-1``."""
    order = [*_WORDS, *sorted(name for name in where if name not in _WORDS)]
    return ", ".join(f"{_WORDS.get(name, name)} {where[name]}" for name in order if name in where)


def mostly(hits: Iterable[Hit], where: Mapping[str, str]) -> list[Hit]:
    """Return the values to name beside a slice: feature and device always, others when they are hit harder."""
    order = list(_WORDS)
    named = [
        hit
        for hit in hits
        if hit.name in _WORDS
        and hit.name not in where
        and (hit.name in _ALWAYS_NAMED or (hit.share >= _HIT_MIN and hit.share >= _HIT_HARDER * hit.traffic))
    ]
    return sorted(named, key=lambda hit: order.index(hit.name))


def clock(wall_ns: int) -> str:
    """Return a time of day, UTC."""
    return datetime.fromtimestamp(wall_ns / _NS_PER_S, UTC).strftime("%H:%M")


def percent(ratio: float) -> str:
    """Return a share: one decimal below ten percent."""
    value = 100 * ratio
    return f"{value:.1f} %" if value < 10 else f"{value:.0f} %"


def amount(metric: str, value: float, currency: str) -> str:
    """Return a value of a metric with its unit."""
    if metric == "cost":
        return f"{money(value)} {currency}".rstrip()
    if metric == "early_tps":
        return f"{value / 1000:g} tokens/s"
    if metric == "visible_2s":
        return f"{value:g} tokens"
    return duration(value)


def duration(ns: float) -> str:
    """Return a duration in the unit in which it is read best."""
    if abs(ns) < 1e6:
        return f"{ns / 1e3:.0f} µs"
    if abs(ns) < 1e10:
        return f"{ns / 1e6:,.3g} ms" if abs(ns) < 1e9 else f"{ns / 1e6:,.0f} ms"
    return f"{ns / 1e9:.1f} s"


def money(value: float) -> str:
    """Return an amount of money with two digits that say something."""
    return f"{value:.2f}" if value >= 1 else f"{float(f'{value:.2g}'):.12f}".rstrip("0").rstrip(".") or "0"
