"""The committed baseline of the gate, and what a measured value is beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.config import REPOSITORY
from bench.gate_quantities import Found, Quantity, Results

BASELINE_FILE = REPOSITORY / "bench" / "baseline.json"
FAILING = frozenset({"worse", "no baseline"})
"""Verdicts with which the gate fails."""


@dataclass(frozen=True)
class Entry:
    """The baseline of one quantity, and why it is what it is."""

    value: float
    why: str


@dataclass(frozen=True)
class Baseline:
    """All baselines, and the environment in which they were measured."""

    environment: Mapping[str, str]
    entries: Mapping[str, Entry]


@dataclass(frozen=True)
class Verdict:
    """A quantity beside its baseline. ``reason`` says why there is no value, or what the baseline stands for."""

    name: str
    unit: str
    verdict: str
    value: float | None = None
    baseline: float | None = None
    allowed: float | None = None
    detail: str = ""
    reason: str = ""


NOTHING = Baseline({}, {})


def load(path: Path) -> Baseline:
    """Read a baseline; one that is not there has no entries."""
    if not path.exists():
        return NOTHING
    raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return Baseline(raw["environment"], {name: Entry(**entry) for name, entry in raw["quantities"].items()})


def save(path: Path, baseline: Baseline) -> None:
    """Write a baseline."""
    raw = {
        "environment": dict(baseline.environment),
        "quantities": {name: asdict(entry) for name, entry in baseline.entries.items()},
    }
    path.write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def judge(quantity: Quantity, found: Found | str, baseline: Baseline, environment: Mapping[str, str]) -> Verdict:
    """Return what is to be said of a measured value; ``found`` is a text where it could not be measured."""
    name, unit = quantity.name, quantity.unit
    entry = baseline.entries.get(name)
    if isinstance(found, str):
        return Verdict(name, unit, "skipped", baseline=entry.value if entry else None, reason=found)
    if not quantity.is_gated:
        return Verdict(name, unit, "reported", found.value, detail=found.detail)
    if entry is None:
        return Verdict(name, unit, "no baseline", found.value, detail=found.detail)
    if difference := _difference(quantity, baseline.environment, environment):
        return Verdict(name, unit, "skipped", found.value, entry.value, detail=found.detail, reason=difference)
    allowed = quantity.allowed(entry.value)
    verdict = "worse" if found.value > allowed else "better" if found.value < quantity.expected(entry.value) else "ok"
    return Verdict(name, unit, verdict, found.value, entry.value, allowed, found.detail, entry.why)


def _difference(quantity: Quantity, then: Mapping[str, str], now: Mapping[str, str]) -> str:
    differing = [part for part in quantity.depends_on if then.get(part) != now.get(part)]
    return "; ".join(f"the baseline is of {part} {then.get(part)}, here it is {now.get(part)}" for part in differing)


def renewed(
    baseline: Baseline, quantities: Sequence[Quantity], results: Results, environment: Mapping[str, str], why: str
) -> Baseline:
    """Return the baseline with what was found where it differs by more than its tolerance; ``why`` explains that.

    What still holds is kept with its own reason, so that noise does not move it step by step; so is what was not
    measured. In another environment nothing holds. Raises ``ValueError`` for a value over its limit.
    """
    kept = baseline.entries if dict(baseline.environment) == dict(environment) else {}
    entries: dict[str, Entry] = {}
    for quantity in quantities:
        found, old = results.get(quantity.name), kept.get(quantity.name)
        if not quantity.is_gated:
            continue
        if isinstance(found, Found) and (old is None or not _holds(quantity, found.value, old.value)):
            entries[quantity.name] = _entry(quantity, found.value, why)
        elif old is not None:
            entries[quantity.name] = old
    return Baseline(environment, entries)


def _holds(quantity: Quantity, value: float, baseline: float) -> bool:
    return quantity.expected(baseline) <= value <= quantity.allowed(baseline)


def _entry(quantity: Quantity, value: float, why: str) -> Entry:
    if value > quantity.limit:
        raise ValueError(f"{quantity.name} is {value:g} {quantity.unit}, and {quantity.limit:g} is its limit")
    return Entry(round(value, 3), why)
