"""Run scenarios by hand.

    python -m tests.simulation --seed 41                    one run: what came of it
    python -m tests.simulation --seed 41 --events           every event of it
    python -m tests.simulation --seed 41 --shrink           the smallest part of it that still fails
    python -m tests.simulation --seed 41 --policy p2c_ewma  the same through another policy, beside each other
    python -m tests.simulation --seed 41 --write run.json   keep it; --replay run.json runs it again and compares
    python -m tests.simulation --seeds 0:3000               many, with the time they took
    python -m tests.simulation --seed 41 --plant NAME       with a bug planted into the router

Exit status: 0 all holds, 1 something does not, 2 usage.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import msgspec

from tests.simulation.drawing import draw
from tests.simulation.plants import PLANTS
from tests.simulation.replay import command, difference, read, safely, shrink, summary, under_policy, write_down
from tests.simulation.scenario import Scenario
from tests.support.waiting import shared_memory_directory

_FAILURES_MAX = 20
"""Then there is enough to look at."""


def _many(first: int, end: int, directory: Path) -> int:
    """Run many seeds; print what fails and how long it took."""
    began, failed, callbacks = time.perf_counter(), 0, 0
    for seed in range(first, end):
        result = safely(draw(seed), directory)
        callbacks += result.callback_count
        if result.violations:
            failed += 1
            print(f"{command(seed)}    # {result.violations[0]}", flush=True)
            if failed == _FAILURES_MAX:
                break
    took_s = time.perf_counter() - began
    runs = seed - first + 1
    print(f"{runs} runs, {failed} failed, {runs / took_s:.1f} runs/s, {callbacks / took_s:.0f} callbacks/s")
    return 1 if failed else 0


def _replay(path: Path, directory: Path) -> int:
    """Run what was written down again."""
    written = read(path)
    found = difference(written, safely(written.scenario, directory, keeps_events=True))
    print(found or f"the same {len(written.events)} events, trace {written.trace_hash}")
    return 1 if found else 0


def _one(scenario: Scenario, directory: Path, arguments: argparse.Namespace) -> int:
    """Run one scenario and print what came of it."""
    result = safely(scenario, directory, keeps_events=bool(arguments.events or arguments.write))
    if arguments.show:
        print(msgspec.json.format(msgspec.json.encode(scenario)).decode())
    if arguments.events:
        print("\n".join(result.events))
    print(f"seed {scenario.seed} ({scenario.theme}): {summary(result)}")
    print("\n".join(result.violations) or "all holds")
    if arguments.write:
        write_down(scenario, result, arguments.write)
    if arguments.policy:
        other = safely(under_policy(scenario, arguments.policy), directory)
        print(f"through {arguments.policy}: {summary(other)}")
        print("\n".join(other.violations) or "all holds")
        return 1 if result.violations or other.violations else 0
    return 1 if result.violations else 0


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int, help="one run")
    what.add_argument("--seeds", metavar="FIRST:END", help="many runs")
    what.add_argument("--replay", type=Path, metavar="FILE", help="a run that was written down")
    parser.add_argument("--policy", help="run it through this routing policy too")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the run down")
    parser.add_argument("--plant", choices=sorted(PLANTS), help="plant a bug into the router")
    parser.add_argument("--show", action="store_true", help="print the scenario")
    parser.add_argument("--events", action="store_true", help="print every event")
    parser.add_argument("--shrink", action="store_true", help="make a scenario that fails smaller")
    arguments = parser.parse_args()
    with shared_memory_directory() as directory, PLANTS[arguments.plant]() if arguments.plant else nullcontext():
        if arguments.replay:
            try:
                return _replay(arguments.replay, directory)
            except ValueError as error:
                parser.error(str(error))
        if arguments.seeds:
            first, _, end = arguments.seeds.partition(":")
            return _many(int(first), int(end), directory)
        scenario = draw(arguments.seed)
        if arguments.shrink:
            scenario = shrink(scenario, lambda smaller: bool(safely(smaller, directory).violations))
            arguments.show = True
        return _one(scenario, directory, arguments)


if __name__ == "__main__":
    sys.exit(main())
