"""Alerts in words: the sentence, and below it what it stands on; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Final

from router.observer.alerts.model import Alert, Burn, Evidence, Example, Finding, SliceShare, StageDelta

SLICES_SHOWN: Final = 5
STAGES_SHOWN: Final = 4
CHANGES_SHOWN: Final = 8
_MS_NS: Final = 1_000_000
_HOST_WORDS: Final = {"failed_ratio": "failed", "ttft_p50_ns": "median TTFT", "tpot_p50_ns": "median TPOT"}


def sentence(alert: Alert) -> str:
    """Return what is wrong in one sentence: with its reasons where they are known."""
    return alert.evidence.sentence if alert.evidence is not None else alert.finding.summary


def lines(alert: Alert) -> list[str]:
    """Return all that is known of an alert, without its sentence."""
    finding, evidence = alert.finding, alert.evidence
    found = [*finding.facts, *(burn_line(burn) for burn in finding.burns), *_budget(finding)]
    if evidence is not None:
        found += _evidence(evidence)
    return found


def burn_line(burn: Burn) -> str:
    """Return ``burns 14.4× over 1h (…) and 5m (…): 14.4 % bad needed, fires``."""
    long = f"{_times(burn.long_burn)} over {span(burn.long_s)} ({burn.long_bad:,} of {burn.long_total:,} bad)"
    short = f"{_times(burn.short_burn)} over {span(burn.short_s)} ({burn.short_bad:,} of {burn.short_total:,} bad)"
    state = "fires" if burn.is_firing else "does not fire"
    return f"burns {long}, {short}; {state} at {burn.factor:g}× ({_percent(burn.needed_ratio)} bad)"


def _budget(finding: Finding) -> Iterator[str]:
    if finding.budget_left is not None:
        left = f"{_percent(finding.budget_left)} of the budget is left"
        if finding.exhausted_in_s is not None:
            left += f", for {span(finding.exhausted_in_s)} at this rate"
        yield left


def _evidence(evidence: Evidence) -> Iterator[str]:
    for each in evidence.slices[:SLICES_SHOWN]:
        yield _slice_line(each)
    for stage in evidence.stages[:STAGES_SHOWN]:
        yield _stage_line(stage)
    if evidence.cost_now is not None:
        before = f" ({_money(evidence.cost_before)} before)" if evidence.cost_before is not None else ""
        yield f"cost per response {_money(evidence.cost_now)} {evidence.currency}{before}".replace("  ", " ")
    for host, values in evidence.hosts.items():
        told = (f"{_HOST_WORDS.get(name, name)} {_value(name, value)}" for name, value in values.items())
        yield f"host {host}: {', '.join(told)}"
    for change in evidence.changes[:CHANGES_SHOWN]:
        where = f" ({change.instance})" if change.instance else ""
        yield f"{clock(change.wall_ns)} {change.text}{where}"
    for example in evidence.examples:
        yield example_line(example, evidence.currency)


def _slice_line(each: SliceShare) -> str:
    where = ", ".join(f"{name} {value or '–'}" for name, value in each.where.items()) or "all"
    before = "none" if each.baseline_ratio is None else _percent(each.baseline_ratio)
    return f"{_percent(each.share)} of the bad requests: {where}, {each.bad:,} of {each.total:,} bad ({before} before)"


def _stage_line(stage: StageDelta) -> str:
    sign = "+" if stage.delta_ns >= 0 else "−"
    return f"{sign}{duration(abs(stage.delta_ns))} in {stage.stage} ({duration(stage.before_ns)} before)"


def example_line(example: Example, currency: str = "") -> str:
    """Return one request in one line, with the ids that it is opened by and its stages, the longest first."""
    longest = sorted(example.stages_ns.items(), key=lambda item: -item[1])[:STAGES_SHOWN]
    stages = ", ".join(f"{name} {duration(ns)}" for name, ns in longest if ns)
    parts = [
        f"{example.kind} request {example.request_id or '–'} (trace {example.trace_id or '–'})",
        f"{example.outcome} at {example.host or 'no host'}",
        f"TTFT {duration(example.ttft_ns)}" if example.ttft_ns is not None else "no first token",
        f"{example.tokens_out} tokens",
    ]
    if example.cost is not None:
        parts.append(f"{_money(example.cost)} {currency}".rstrip())
    return ": ".join(filter(None, [", ".join(parts), stages]))


def where_line(where: Mapping[str, str]) -> str:
    """Return ``feature_name search, host gpu-1``; empty for all requests."""
    return ", ".join(f"{name} {value or '–'}" for name, value in where.items())


# ---------------------------------------------------------------- numbers
def duration(ns: float) -> str:
    """Return ``1.23 s``, ``45.6 ms`` or ``12 µs``."""
    if ns >= 1000 * _MS_NS:
        return f"{ns / 1e9:.3g} s"
    return f"{ns / 1e6:.3g} ms" if ns >= _MS_NS else f"{ns / 1e3:.3g} µs"


def span(seconds: float) -> str:
    """Return ``3d``, ``6h``, ``30m`` or ``12s``, rounded to what a person would say."""
    for unit_s, name in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= unit_s:
            return f"{seconds / unit_s:.3g}{name}"
    return f"{seconds:.3g}s"


def rfc3339(wall_ns: int) -> str:
    """Return a time as RFC 3339 has it, in UTC, to the millisecond."""
    moment = datetime.fromtimestamp(wall_ns // _MS_NS / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clock(wall_ns: int) -> str:
    """Return the time of day, UTC."""
    return f"{datetime.fromtimestamp(wall_ns / 1e9, UTC):%H:%M:%S}Z"


def _times(burn: float | None) -> str:
    return "–" if burn is None else f"{burn:.3g}×"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _money(amount: float | None) -> str:
    return "–" if amount is None else f"{amount:.2g}"


def _value(name: str, value: float) -> str:
    if name.endswith("_ns"):
        return duration(value)
    return _percent(value) if name.endswith("_ratio") else f"{value:g}"
