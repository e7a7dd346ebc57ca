"""How often alerts are wrong: false alarms of quiet months, and what planted causes are taken for.

    python -m bench.alerts                          3 months, 20 plants of each kind, twice
    python -m bench.alerts --months 12 --plants 100

Simulated traffic with known causes (tests/observer/traffic.py), the observer's own code on it: regressions, the rules
of burn rates of docs/slo.md, and the evidence. A plant is *right* when the slice and the stage that are named first are
those that were planted, and no other regression is told. Everything comes from seeds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from bench import machine
from bench.journal import made_rows
from router.observer.alerts.evidence import Recent, evidence
from router.observer.alerts.ledger import ACTIVE_MAX
from router.observer.alerts.model import Cause, Finding, Severity
from router.observer.alerts.spool import Message, Spool
from tests.observer.alert_simulation import KINDS, Outcome, World, breached, lived, planted, quiet
from tests.observer.traffic import HOUR, MONDAY_WALL_NS, MS, S, Traffic
from tests.support.alerts import alert, finding

WORLDS = 4
"""Baselines that plants are put into in turn."""


def false_alarms(months: int, days: float, per_s: float) -> None:
    """Print every alert of months in which nothing was planted."""
    total = 0
    for seed in range(months):
        alerts = quiet(seed, days, per_s)
        total += len(alerts)
        print(f"  month {seed}: {len(alerts)} alerts {' '.join(alerts)}")
    print(f"  {total} false alarms in {months} months of {days:g} days at {per_s:g} requests/s")


def plants(name: str, run: Callable[[World, str, int], Outcome], worlds: list[World], count: int) -> None:
    """Print how many plants were named rightly."""
    for kind in KINDS:
        outcomes = [run(worlds[number % len(worlds)], kind, 1000 + number) for number in range(count)]
        right = sum(outcome.is_right for outcome in outcomes)
        missed = sum(outcome.finding is None for outcome in outcomes)
        found = [outcome.after_s / 60 for outcome in outcomes if 0 < outcome.after_s < float("inf")]
        after = f", found after {median(found):.0f} min (median)" if found else ""
        print(f"  {name} {kind:13} {right} of {count} right, {missed} not found{after}")
        for outcome in outcomes:
            if outcome.finding is not None and not outcome.is_right:
                told = outcome.evidence
                first = told.slices[0].where if told and told.slices else None
                stage = told.stages[0].stage if told and told.stages else None
                print(f"    {outcome.plant.where} {outcome.plant.factor:.2f}: told {outcome.finding.labels}, "
                      f"evidence {first} {stage}, {outcome.others} others")  # fmt: skip


def evidence_cost() -> None:
    """Print what evidence takes from as many requests as are kept."""
    recent = Recent()
    traffic = Traffic(recent.values, 1, per_s=30.0, begin_wall_ns=MONDAY_WALL_NS + 10 * HOUR)
    end = MONDAY_WALL_NS + 12 * HOUR
    for wall_ns, table in traffic.blocks(MONDAY_WALL_NS + 10 * HOUR, end, 60 * S):
        recent.add_table(table, wall_ns)
    found = Finding(cause=Cause.BURN, severity=Severity.PAGE, labels={}, summary="", since_wall_ns=end - HOUR // 2,
                    metric="ttft", threshold=500 * MS, objective=99.0)  # fmt: skip
    took = []
    for _ in range(5):
        begin = time.process_time()
        evidence(found, recent, end)
        took.append(time.process_time() - begin)
    print(f"  evidence from {len(recent):,} requests: {1e3 * float(np.median(took)):.0f} ms of processor time")
    rows = list(made_rows(20_000, time.time_ns()))
    recent, begin = Recent(), time.process_time()
    recent.add(rows, rows[-1].end_wall_ns)
    recent.between(0, rows[-1].end_wall_ns)
    row_us = 1e6 * (time.process_time() - begin) / len(rows)
    print(f"  a row that is kept: {row_us:.1f} us of processor time")


def spool_cost() -> None:
    """Print what it takes to have an outage of many groups on disk for one sink, all of it in one turn."""
    took = []
    for _ in range(5):
        with TemporaryDirectory() as directory:
            spool = Spool(Path(directory), ACTIVE_MAX, 1 << 30)
            begin = time.monotonic()
            for number in range(ACTIVE_MAX):
                spool.add(Message("firing", alert(finding(labels={"slo": str(number)}))))
            spool.flush()
            took.append(time.monotonic() - begin)
            kib = spool.byte_count / ACTIVE_MAX / 1024
    print(f"  {ACTIVE_MAX} alerts of {kib:.1f} KiB on disk for one sink: {1e3 * median(took):.0f} ms")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.alerts", description=__doc__)
    parser.add_argument("--months", type=int, default=3)
    parser.add_argument("--days", type=float, default=30.0)
    parser.add_argument("--per-s", type=float, default=1.0, help="requests a second on average")
    parser.add_argument("--plants", type=int, default=20, help="of each kind")
    given = parser.parse_args(arguments)
    print("\n".join(machine.facts()))
    evidence_cost()
    spool_cost()
    worlds = [lived(seed, per_s=given.per_s) for seed in range(WORLDS)]
    plants("regression", planted, worlds, given.plants)
    plants("breach    ", breached, worlds, given.plants)
    false_alarms(given.months, given.days, given.per_s)
    return 0


if __name__ == "__main__":
    sys.exit(main())
