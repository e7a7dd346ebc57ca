"""Measure ringrouter beside no router at all: ``python -m bench --help``."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from bench import machine, report
from bench.build import BuildError
from bench.config import REPOSITORY
from bench.harness import STALL_MAX_MS, STEAL_MAX_PERCENT, Plan, Run, measure
from bench.modes import DEFAULT_MODES, MODES


def main() -> int:
    """Run the plan of the command line and print its tables; 1 when something could not be measured."""
    arguments = _arguments()
    if arguments.report:
        print(report.table(report.load_runs(arguments.report)))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that routers and hosts are ended too
    plan = _plan(arguments)
    _print_machine(plan)
    arguments.out.mkdir(parents=True, exist_ok=True)
    raw_file = arguments.out / "raw.jsonl"
    runs: list[Run] = []
    try:
        for run in measure(plan, raw_file):
            runs.append(run)
            print(report.line(run), flush=True)
    except (BuildError, RuntimeError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; the table is of what was measured until now", file=sys.stderr)
    if not runs:
        return 1
    tables = _tables(runs, plan)
    written = report.publish(runs, tables, arguments.out, {"machine": machine.facts()})
    print("\n".join([f"\n{tables}", f"{raw_file}: every run", *written]))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    known = "; ".join(f"{mode.name}: {mode.meaning}" for mode in MODES.values())
    parser.add_argument("--modes", default=",".join(DEFAULT_MODES), help=f"separated by commas. {known}")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each peer in each mode (default: 3)")
    parser.add_argument("--quick", action="store_true", help="one round, nothing repeated: about 50 s")
    parser.add_argument(
        "--out", type=Path, default=REPOSITORY / "build" / "bench" / "out", help="folder of what is written"
    )
    parser.add_argument("--report", type=Path, metavar="RAW", help="print the table of an earlier run and end")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.modes.split(",") if name not in MODES]
    if unknown:
        parser.error(f"--modes: {unknown[0]!r} is not one of {', '.join(MODES)}")
    if arguments.rounds < 1:
        parser.error(f"--rounds {arguments.rounds}: expected at least 1")
    return arguments


def _plan(arguments: argparse.Namespace) -> Plan:
    router_core, load_core = machine.two_cores()
    return Plan(
        modes=[MODES[name] for name in arguments.modes.split(",")],
        rounds=1 if arguments.quick else arguments.rounds,
        repeats=0 if arguments.quick else 2,
        router_core=router_core,
        load_core=load_core,
    )


def _print_machine(plan: Plan) -> None:
    for fact in machine.facts():
        print(fact)
    if plan.router_core is None:
        print("One core only: router, hosts and load share it, so latencies are mostly waiting for each other.")
    else:
        print(f"Router on core {plan.router_core}; hosts and load generator on core {plan.load_core}.")
    taken = machine.check_stolen_time()
    print(
        f"{machine.SPIN_S:g} s of spinning: {taken.stolen_percent:.1f} % stolen, "
        f"longest pause {taken.longest_pause_ms:.1f} ms."
    )
    if taken.stolen_percent > STEAL_MAX_PERCENT or taken.longest_pause_ms > STALL_MAX_MS:
        print("This machine is not quiet now: compare within a round only, and nothing beyond p50.")
    print(flush=True)


def _tables(runs: list[Run], plan: Plan) -> str:
    meanings = "\n".join(f"{mode.name}: {mode.meaning}. `{mode.load}`" for mode in plan.modes)
    return "\n\n".join([*machine.facts(), report.table(runs), report.LEGEND, meanings, report.disturbance(runs)]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
