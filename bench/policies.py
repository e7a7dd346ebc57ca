"""The policy study: routing policies over workloads and loads, in virtual time: ``python -m bench.policies --help``.

    python -m bench.policies --into docs/routing.md     # everything, about 6 minutes on two cores
    python -m bench.policies --quick                    # a look, about 20 s
    python -m bench.policies --workloads chat,slow --loads 80 --rules "prefix affinity;round robin"

The router's own modules route and admit (:mod:`bench.policies_run`) what a model of hosts that batch continuously then
works on (:mod:`bench.policies_host`). A load of 100 % is the rate at which round robin still serves 90 % of the
requests within the workload's limits. The exit code is 1 when the recommended policy is worse than a rule that it must
not be worse than.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from bench import policies_report, report
from bench.policies_report import Cell, Results
from bench.policies_rules import BASELINES, RECOMMENDED, RULES
from bench.policies_run import GOOD_SHARE, Outcome, capacity, run
from bench.policies_workloads import WORKLOADS

_RULES = {rule.name: rule for rule in RULES}
_WORKLOADS = {workload.name: workload for workload in WORKLOADS}
LOADS = (50, 80, 95)
LOAD_OF_TABLES = 80
REFERENCE = "round robin"
"""Its capacity is what loads are shares of."""
LEGEND = """\
Medians of the seeds, the smallest and largest in brackets. TTFT: from the request's arrival at the router to its first
token, of all requests but batch work; a request that never gets one counts as infinite. goodput: answers that are
complete and within the workload's limits for the first token and the pace. held: share of all prompt tokens that hosts
did not have to read. busiest: answers of the busiest host as a multiple of an equal share."""


class Plan(NamedTuple):
    """What is run: names of workloads and rules, loads in percent, seeds, requests of a run."""

    workloads: list[str]
    rules: list[str]
    loads: list[int]
    seeds: int
    request_count: int
    processes: int


def main() -> int:
    """Run the study and print it; 1 when the recommended policy is worse than it may be, 2 for a wrong argument."""
    try:
        plan, into, json_path = _arguments()
    except ValueError as error:
        print(f"bench.policies: {error}", file=sys.stderr)
        return 2
    begun_s = time.monotonic()
    results, capacities = study(plan)
    found = _comparisons(results, plan)
    sections = _sections(results, plan, capacities, found)
    for text in sections.values():
        print(text, end="\n\n")
    print(f"{sum(map(len, results.values())):,} runs in {time.monotonic() - begun_s:.0f} s")
    if json_path is not None:
        json_path.write_text(_json(results, plan, capacities, found), encoding="utf-8")
    if into is not None:
        into.write_text(report.filled(into.read_text(encoding="utf-8"), sections), encoding="utf-8")
    return int(any(each.worse for each in found))


def study(plan: Plan) -> tuple[dict[Cell, list[Outcome]], dict[str, float]]:
    """Return the outcomes of all runs by workload, load and rule, and the rate that is 100 % by workload."""
    with ProcessPoolExecutor(plan.processes) as pool:
        rates = pool.map(_capacity, plan.workloads, [plan.request_count] * len(plan.workloads))
        capacities = dict(zip(plan.workloads, rates, strict=True))
        cells = [(workload, load, rule) for workload in plan.workloads for load in plan.loads for rule in plan.rules]
        tasks = [
            (workload, rule, capacities[workload] * load / 100, seed, plan.request_count)
            for workload, load, rule in cells
            for seed in range(1, plan.seeds + 1)
        ]
        outcomes = iter(list(pool.map(_outcome, tasks, chunksize=plan.seeds)))
    return {cell: [next(outcomes) for _ in range(plan.seeds)] for cell in cells}, capacities


def _capacity(workload: str, request_count: int) -> float:
    return capacity(_WORKLOADS[workload], _RULES[REFERENCE], request_count)


def _outcome(task: tuple[str, str, float, int, int]) -> Outcome:
    workload, rule, rate, seed, request_count = task
    return run(_WORKLOADS[workload], _RULES[rule], rate, seed, request_count)


# ---------------------------------------------------------------- what is printed
def _comparisons(results: Results, plan: Plan) -> list[policies_report.Comparison]:
    others = [name for name in BASELINES if name in plan.rules]
    return policies_report.comparisons(results, RECOMMENDED, others) if RECOMMENDED in plan.rules else []


def _sections(
    results: Results, plan: Plan, capacities: dict[str, float], found: Sequence[policies_report.Comparison]
) -> dict[str, str]:
    load = LOAD_OF_TABLES if LOAD_OF_TABLES in plan.loads else plan.loads[0]
    short = [f"TTFT at the 95th percentile, ms, medians of {plan.seeds} seeds."]
    short += [f"At {at} % load:\n\n{policies_report.short_table(results, at)}" for at in plan.loads]
    long = [LEGEND, *(_workload(results, name, load, capacities[name]) for name in plan.workloads)]
    sections = {"policies-short": "\n\n".join(short), "policies": "\n\n".join(long)}
    if found:
        sections["policies-compared"] = _compared(plan, found)
    return sections


def _workload(results: Results, name: str, load: int, capacity_per_s: float) -> str:
    workload = _WORKLOADS[name]
    limits = f"First token within {workload.ttft_s:g} s, then one each {1000 * workload.token_s:g} ms"
    meaning = workload.meaning[0].upper() + workload.meaning[1:]
    rate = f"{load} % load: {capacity_per_s * load / 100:.1f} requests/s"
    table = policies_report.workload_table(results, name, load)
    return f"#### {name}\n\n{meaning}.\n{limits}. {rate}.\n\n{table}"


def _compared(plan: Plan, found: Sequence[policies_report.Comparison]) -> str:
    worse = sum(bool(each.worse) for each in found)
    better = sum(bool(each.better) and not each.worse for each in found)
    return (
        f"`{RECOMMENDED}` beside each rule, {plan.seeds} seeds compared in pairs by TTFT p50, p95, p99 and goodput.\n"
        f"In {len(found)} comparisons it is better {better} times and worse {worse} times.\n\n"
        f"{policies_report.comparison_table(found)}"
    )


def _json(
    results: Results, plan: Plan, capacities: dict[str, float], found: Sequence[policies_report.Comparison]
) -> str:
    runs = [
        {"workload": workload, "load": load, "rule": rule, "seed": seed, **outcome._asdict()}
        for (workload, load, rule), outcomes in results.items()
        for seed, outcome in enumerate(outcomes, 1)
    ]
    for each in runs:  # JSON has no infinity
        each.update({key: None for key, value in each.items() if value == float("inf")})
    document = {
        "schema": "ringrouter.policies/1",
        "good_share": GOOD_SHARE,
        "plan": plan._asdict(),
        "capacities_per_s": capacities,
        "comparisons": [each._asdict() for each in found],
        "runs": runs,
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


# ---------------------------------------------------------------- the command line
def _arguments() -> tuple[Plan, Path | None, Path | None]:
    parser = argparse.ArgumentParser(prog="python -m bench.policies", description=__doc__.partition("\n")[0])
    parser.add_argument("--workloads", default=",".join(_WORKLOADS), help="names, separated by commas")
    parser.add_argument("--rules", default="", help="names, separated by semicolons; all of them by default")
    parser.add_argument("--loads", default=",".join(map(str, LOADS)), help="percent (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=6, help="runs of each combination (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=2500, help="of a run (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="at a time")
    parser.add_argument("--quick", action="store_true", help="two seeds of short runs at 80 %% load")
    parser.add_argument("--into", type=Path, help="page whose measured sections are replaced")
    parser.add_argument("--json", type=Path, help="file for all outcomes")
    chosen = parser.parse_args()
    loads = [80] if chosen.quick else [_load(text) for text in chosen.loads.split(",")]
    plan = Plan(
        _known(chosen.workloads.split(","), _WORKLOADS, "--workloads"),
        _known(chosen.rules.split(";") if chosen.rules else list(_RULES), _RULES, "--rules"),
        loads,
        2 if chosen.quick else _at_least("--seeds", chosen.seeds, 1),
        1000 if chosen.quick else _at_least("--requests", chosen.requests, 100),
        _at_least("--processes", chosen.processes, 1),
    )
    return plan, chosen.into, chosen.json


def _load(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 300:
        raise ValueError(f"--loads: {text!r} is not a whole number of percent between 1 and 300")
    return int(text)


def _known(names: list[str], known: Collection[str], option: str) -> list[str]:
    for name in names:
        if name not in known:
            raise ValueError(f"{option}: {name!r} is none of {', '.join(known)}")
    return names


def _at_least(option: str, value: int, least: int) -> int:
    if value < least:
        raise ValueError(f"{option}: {value} is less than {least}")
    return value


if __name__ == "__main__":
    sys.exit(main())
