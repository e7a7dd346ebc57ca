"""Measure ringrouter beside other routers and proxies on this machine: ``python -m bench.peers --help``.

    python -m bench.peers --install vllm-router smg     # once; nginx and HAProxy come from the system's packages
    python -m bench.peers                               # everything, 7 rounds: about 75 minutes on a quiet machine
    python -m bench.peers --into docs/performance.md README.md          # the same, and into the pages
    python -m bench.peers --quick --modes low,s64       # one round: about 90 s
    python -m bench.peers --awake --peers direct,relay-c,ringrouter-spin,nginx --modes low,sat-req

Every peer has one worker on the same core; hosts and load have another. Those that are not measured are stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import machine, peers_footprint, peers_must, report
from bench.build import BUILD_DIR, BuildError, program
from bench.harness import Peer, Plan, Run, measure
from bench.modes import MODES
from bench.peers_known import DEFAULT_PEERS, KNOWN, Known, install, of_command
from bench.peers_process import open_peers
from bench.peers_ratios import STEAL_MAX_PERCENT
from bench.processes import MockHosts

DEFAULT_MODES = (
    *("low", "s64", "burst64", "s256", "s1000", "s5000"),
    *("sat-tok", "sat-req", "close64", "slots8", "prompt200k"),
)
README_COLUMNS = ("low: TTFT", "low: token", "s64: TTFT", "s64: token", "s256: CPU/token", "sat-req: answers/s")
AWAKE_LIMIT_S = 6 * 3600
"""The waking loop ends with this program; the limit is for a program that was killed."""

Facts = dict[str, Any]
"""What is needed to read the runs: lines on the machine, versions of peers, who was left out and why, the footprint."""


def main() -> int:
    """Do what the command line asks for; 1 when something could not be measured or installed."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that peers and hosts are ended too
    try:
        if arguments.install:
            return _install(arguments.install)
        if arguments.report:
            runs, facts = report.load_runs(arguments.report), load_facts(arguments.report)
            _publish(runs, facts, arguments.report.parent, arguments.into)
            return 0
        return _measure(arguments)
    except (BuildError, RuntimeError, OSError, ValueError) as error:
        print(f"bench.peers: {error}", file=sys.stderr)
        return 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peers", type=_names, default=DEFAULT_PEERS, help=f"separated by commas, of: direct, {', '.join(KNOWN)}"
    )
    parser.add_argument("--cmd", action="append", default=[], metavar="NAME=COMMAND", help=of_command.__doc__)
    parser.add_argument(
        "--modes", type=_names, default=DEFAULT_MODES, help=f"separated by commas, of: {', '.join(MODES)}"
    )
    parser.add_argument("--rounds", type=int, default=7, help="runs of each peer in each mode (default: 7)")
    parser.add_argument("--repeats", type=int, default=3, help="times that a disturbed run is done again (default: 3)")
    parser.add_argument("--quick", action="store_true", help="one round, nothing repeated, no footprint")
    parser.add_argument("--awake", action="store_true", help="keep the peers' core from going to sleep")
    parser.add_argument("--out", type=Path, default=BUILD_DIR / "peers-out", help="folder of what is written")
    parser.add_argument("--report", type=Path, metavar="RAW", help="tables and files of an earlier run's raw.jsonl")
    parser.add_argument(
        "--into", type=Path, nargs="+", default=[], metavar="PAGE", help="replace the measured sections of these pages"
    )
    parser.add_argument("--install", nargs="+", metavar="NAME", help="install peers that are Python packages, and end")
    arguments = parser.parse_args()
    for option, names, known in (("--peers", arguments.peers, {"direct", *KNOWN}), ("--modes", arguments.modes, MODES)):
        if unknown := [name for name in names if name not in known]:
            parser.error(f"{option}: {unknown[0]!r} is not one of {', '.join(known)}")
    if arguments.rounds < 1 or arguments.repeats < 0:
        parser.error("--rounds: expected at least 1; --repeats: at least 0")
    return arguments


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _install(names: Sequence[str]) -> int:
    for name in names:
        if name not in KNOWN:
            raise ValueError(f"--install {name}: not one of {', '.join(KNOWN)}")
        print(f"{name}: installing", flush=True)
        install(KNOWN[name])
        print(f"{name}: {KNOWN[name].version()}")
    return 0


def _measure(arguments: argparse.Namespace) -> int:
    router_core, load_core = machine.two_cores()
    plan = Plan(
        modes=[MODES[name] for name in arguments.modes],
        rounds=1 if arguments.quick else arguments.rounds,
        repeats=0 if arguments.quick else arguments.repeats,
        router_core=router_core,
        load_core=load_core,
        steal_max_percent=STEAL_MAX_PERCENT,
        keep_going=True,
    )
    chosen = [KNOWN[name] for name in arguments.peers if name != "direct"] + [
        of_command(text) for text in arguments.cmd
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    facts = _facts(plan, is_awake=arguments.awake)
    _print_facts(facts)
    if not arguments.quick and any(known.name == peers_must.OWN for known in chosen):
        facts["footprint"] = peers_footprint.measure(router_core, load_core)
    runs: list[Run] = []
    with contextlib.ExitStack() as stack:
        if arguments.awake:
            stack.enter_context(_kept_awake(router_core))
        try:
            for run in _runs(plan, chosen, arguments.out, facts):
                runs.append(run)
                print(report.line(run), flush=True)
        except KeyboardInterrupt:
            print("bench.peers: interrupted; the tables are of what was measured until now", file=sys.stderr)
    if not runs:
        raise RuntimeError("nothing was measured")
    _publish(runs, facts, arguments.out, arguments.into)
    return 0


def _runs(plan: Plan, chosen: list[Known], out: Path, facts: Facts) -> Iterator[Run]:
    """Yield the runs; the facts are complete, and written beside the raw lines, before the first of them."""

    def opener(plan: Plan, hosts: MockHosts, stack: contextlib.ExitStack) -> list[Peer]:
        peers, left_out = open_peers(chosen, plan, hosts, stack)
        here = [known for known in chosen if known.name not in left_out]
        facts["peers"] = {known.name: known.version() for known in here}
        facts["left_out"] = left_out
        _facts_file(out / "raw.jsonl").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        for name, why in left_out.items():
            print(f"{name} is left out: {why}", flush=True)
        return peers

    return measure(plan, out / "raw.jsonl", opener)


def _facts(plan: Plan, *, is_awake: bool) -> Facts:
    taken = machine.check_stolen_time()
    places = (
        "one core only: peers, hosts and load share it"
        if plan.router_core is None
        else f"peers on core {plan.router_core}, hosts and load on core {plan.load_core}"
    )
    return {
        "machine": machine.facts(),
        "plan": f"rounds: {plan.rounds}; {places}" + ("; the peers' core is kept awake" if is_awake else ""),
        "before": f"{taken.stolen_percent:.1f} % stolen, longest pause {taken.longest_pause_ms:.1f} ms, "
        f"in {machine.SPIN_S:g} s of spinning",
        "footprint": {},
        "peers": {},
        "left_out": {},
    }


def _print_facts(facts: Facts) -> None:
    print("\n".join([*facts["machine"], facts["plan"], facts["before"]]), flush=True)


def _facts_file(raw_file: Path) -> Path:
    return raw_file.with_name("facts.json")


def load_facts(raw_file: Path) -> Facts:
    """Read what stands beside the raw lines; raises ``OSError`` when it is not there."""
    facts: Facts = json.loads(_facts_file(raw_file).read_text(encoding="utf-8"))
    return facts


@contextlib.contextmanager
def _kept_awake(core: int | None) -> Iterator[None]:
    with machine.pinned(core):
        process = subprocess.Popen([str(program("awake")), str(AWAKE_LIMIT_S)])
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _publish(runs: Sequence[Run], facts: Facts, out: Path, pages: Sequence[Path] = ()) -> None:
    text = tables(runs, facts)
    written = report.publish(runs, text, out, facts)
    for page in pages:
        page.write_text(report.filled(page.read_text(encoding="utf-8"), sections(runs, facts)), encoding="utf-8")
        written.append(f"{page}: its measured sections")
    print("\n".join([f"\n{text}", *written, f"{out / 'raw.jsonl'}: every run"]))


def sections(runs: Sequence[Run], facts: Facts) -> dict[str, str]:
    """Return what pages can show of a run, by the names that their comments use."""
    found = peers_must.findings(runs, facts["footprint"])
    return {
        "machine": "\n".join(f"* {line}" for line in _machine_lines(facts, runs)),
        "short": f"{report.short_table(runs)}\n\n{report.SHORT_LEGEND}",
        "readme": f"{report.short_table(runs, README_COLUMNS)}\n\n{report.SHORT_LEGEND}",
        "reached": f"{peers_must.table(found)}\n\n{peers_must.LEGEND}",
        "modes": f"{report.table(runs)}\n\n{report.LEGEND}",
    }


def _machine_lines(facts: Facts, runs: Sequence[Run]) -> list[str]:
    versions = ", ".join(version for version in facts["peers"].values() if version)
    left_out = [f"Left out: {name}, {why.splitlines()[0]}" for name, why in facts["left_out"].items()]
    measured = [*facts["machine"], facts["plan"], f"Before: {facts['before']}", versions, *left_out]
    return [line for line in [*measured, *report.disturbance(runs).splitlines()] if line]


def tables(runs: Sequence[Run], facts: Facts) -> str:
    """Return all tables of a run: in short, what must be reached, every mode in full."""
    part = sections(runs, facts)
    meanings = "\n".join(f"{mode.name}: {mode.meaning}. `{mode.load}`" for mode in _modes(runs))
    parts = [
        part["machine"],
        *("## In short", part["short"]),
        *("## What must be reached", part["reached"]),
        *("## Every mode", part["modes"], meanings),
    ]
    return "\n\n".join(parts) + "\n"


def _modes(runs: Sequence[Run]) -> list[Any]:
    return [mode for name, mode in MODES.items() if any(run["mode"] == name for run in runs)]


if __name__ == "__main__":
    sys.exit(main())
