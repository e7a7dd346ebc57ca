"""The gate: what a token and a request cost, counted, beside the committed baseline.

    python -m bench.gate                              measure and compare; exit status 1: something costs more
    python -m bench.gate --only http,calls            some groups
    python -m bench.gate --update --reason 'TEXT'     make what changed the new baseline; commit it with the change

Only quantities that repeat on a busy machine are compared (docs/performance-gate.md); latency is measured by
``python -m bench``.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.gate_baseline import BASELINE_FILE, FAILING, Baseline, Verdict, judge, load, renewed, save
from bench.gate_quantities import GROUPS, QUANTITIES, Results, environment, measure

REASON_LENGTH_MIN = 10
"""A shorter reason says nothing."""


def main() -> int:
    """Measure and compare, or make a new baseline; returns the exit status."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that routers are ended too
    baseline = load(arguments.baseline)
    try:
        results = _measure(arguments.only)
        if arguments.update:
            return _update(arguments.baseline, baseline, results, arguments.reason)
    except (RuntimeError, ValueError, OSError) as error:
        print(f"bench.gate: {error}", file=sys.stderr)
        return 2
    here = environment()
    verdicts = [
        judge(quantity, results[quantity.name], baseline, here) for quantity in QUANTITIES if quantity.name in results
    ]
    failed = any(verdict.verdict in FAILING for verdict in verdicts)
    if arguments.json:
        shown = {"environment": here, "passed": not failed, "quantities": [asdict(verdict) for verdict in verdicts]}
        print(json.dumps(shown, indent=2, ensure_ascii=False))
    else:
        print(f"{table(verdicts)}\n\n{conclusion(verdicts)}")
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(GROUPS), help=f"groups, separated by commas, of {', '.join(GROUPS)}")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--baseline", type=Path, default=BASELINE_FILE, help="another file than bench/baseline.json")
    parser.add_argument("--update", action="store_true", help="write what changed into the baseline; needs --reason")
    parser.add_argument("--reason", default="", help="why it changed: it stands in the baseline beside each new value")
    arguments = parser.parse_args()
    arguments.only = arguments.only.split(",")
    if unknown := [name for name in arguments.only if name not in GROUPS]:
        parser.error(f"--only: {unknown[0]!r} is not one of {', '.join(GROUPS)}")
    if arguments.update and len(arguments.reason.strip()) < REASON_LENGTH_MIN:
        parser.error("--update needs --reason 'TEXT': what changed, and why it is worth its cost")
    if arguments.reason and not arguments.update:
        parser.error("--reason is for --update")
    return arguments


def _measure(groups: Sequence[str]) -> Results:
    results: Results = {}
    for group in groups:
        begin_s = time.monotonic()
        print(f"gate: {group}", end="", file=sys.stderr, flush=True)
        try:
            results |= measure(group)
        finally:
            print(f", {time.monotonic() - begin_s:.1f} s", file=sys.stderr, flush=True)
    return results


def _update(path: Path, baseline: Baseline, results: Results, reason: str) -> int:
    here = environment()
    expected = {quantity.name for quantity in QUANTITIES if quantity.is_gated}
    if dict(baseline.environment) != here and baseline.entries and not expected <= set(results):
        raise ValueError("the baseline was measured in another environment: renew all of it, without --only")
    new = renewed(baseline, QUANTITIES, results, here, reason.strip())
    save(path, new)
    for name, entry in new.entries.items():
        old = baseline.entries.get(name)
        if entry != old:
            print(f"{name}: {old.value if old else 'new'} → {entry.value}")
    print(f"{path} is written; commit it together with what changed the counts.")
    return 0


def table(verdicts: Sequence[Verdict]) -> str:
    """Return the verdicts as a table, with what stands behind each line that fails or was skipped."""
    rows = [("quantity", "value", "baseline", "allowed", "unit", "verdict")]
    rows += [
        (each.name, _number(each.value), _number(each.baseline), _number(each.allowed), each.unit, each.verdict)
        for each in verdicts
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row, verdict in zip(rows, (None, *verdicts), strict=True):
        left, right = (
            row[0].ljust(widths[0]),
            "  ".join(cell.ljust(width) for cell, width in zip(row[4:], widths[4:], strict=True)),
        )
        numbers = "  ".join(cell.rjust(width) for cell, width in zip(row[1:4], widths[1:4], strict=True))
        lines.append(f"{left}  {numbers}  {right}".rstrip())
        lines += [f"    {note}" for note in _notes(verdict)]
    return "\n".join(lines)


def _notes(verdict: Verdict | None) -> list[str]:
    if verdict is None or verdict.verdict in {"ok", "reported"}:
        return []
    return list(filter(None, (verdict.detail and f"now: {verdict.detail}", verdict.reason)))


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}"


def conclusion(verdicts: Sequence[Verdict]) -> str:
    """Return what is to be done about the verdicts, in a sentence or two."""
    by_verdict = {kind: [each.name for each in verdicts if each.verdict == kind] for kind in ("better", "skipped")}
    failing = [each.name for each in verdicts if each.verdict in FAILING]
    sentences = []
    if failing:
        sentences.append(
            f"gate: FAILED: {', '.join(failing)}. Make it cheaper, or, where it is worth its cost, write a new "
            "baseline: python -m bench.gate --update --reason 'what changed, and why'."
        )
    else:
        sentences.append("gate: passed.")
    if by_verdict["better"]:
        sentences.append(f"Cheaper than the baseline, which should be renewed: {', '.join(by_verdict['better'])}.")
    if by_verdict["skipped"]:
        sentences.append(f"Not compared: {len(by_verdict['skipped'])} (the reasons are above).")
    return " ".join(sentences)


if __name__ == "__main__":
    sys.exit(main())
