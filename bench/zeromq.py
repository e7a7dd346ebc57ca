"""Measure the ZeroMQ socket beside the HTTP API, no router at all, and bare libzmq, in one interleaved run.

    python -m bench.zeromq [--rounds 5]

``libzmq`` sends a message of a token's size to and fro between two processes on the same cores, at the pace of ``low``:
its one-way time is what the library and the wake-ups cost without any router.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import machine
from bench.build import BuildError
from bench.config import REPOSITORY
from bench.processes import MockHosts, RouterProcess, run_load

HOST_COUNT = 2
SETTLE_S = 0.15
PEERS = ("direct", "http", "zeromq")


class Load(NamedTuple):
    """One load, said to both load generators."""

    http: str
    zeromq: str


LOADS = {
    "low": Load(
        "mode=stream conc=1 n=16 ttft=2000 itl=2000 dur=2.6 warm=0.2",
        "--streams 1 --tokens 16 --interval-us 2000 --seconds 2.4 --warm 0.2",
    ),
    "s64": Load(
        "mode=stream conc=64 n=32 ttft=20000 itl=20000 dur=2.8 warm=0.8",
        "--streams 64 --tokens 32 --interval-us 20000 --seconds 2 --warm 0.8",
    ),
    "sat-tok": Load(
        "mode=stream conc=64 n=128 ttft=0 itl=0 dur=2.2 warm=0.4",
        "--streams 64 --tokens 128 --interval-us 0 --seconds 1.8 --warm 0.4",
    ),
}
PING = "--interval-us 2000 --seconds 2"

Run = dict[str, Any]


def main() -> int:
    """Run all rounds and print the table; 1 when something went wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.zeromq", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="runs of each peer in each load (default: 5)")
    arguments = parser.parse_args()
    for fact in machine.facts():
        print(fact)
    try:
        runs = list(measure(arguments.rounds))
    except (BuildError, RuntimeError) as error:
        print(f"bench.zeromq: {error}", file=sys.stderr)
        return 1
    print(f"\n{table(runs)}")
    faults = [fault for run in runs for fault in run.get("errors", ()) if run["peer"] == "zeromq"]
    for fault in faults[:5]:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if faults else 0


def measure(rounds: int) -> Iterator[Run]:
    """Go round by round, load by load, through the peers in shuffled order."""
    router_core, load_core = machine.two_cores()
    order = random.Random(7)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ringrouter-bench-", dir="/dev/shm")))
        hosts = stack.enter_context(MockHosts(["127.0.0.1:0"] * HOST_COUNT, core=load_core))
        router = stack.enter_context(RouterProcess(hosts.urls, core=router_core))
        router.wait_ready(core=load_core)
        echo = stack.enter_context(_echo(f"ipc://{directory}/echo.sock", router_core))
        for round_index in range(rounds):
            for load in LOADS:
                for peer in order.sample(PEERS, len(PEERS)):
                    yield _shown(_measure_peer(peer, load, hosts, router, load_core) | {"round": round_index})
            yield _shown(
                {"peer": "libzmq", "load": "low", "round": round_index} | _client("ping", echo, PING, load_core)
            )


def _measure_peer(peer: str, load: str, hosts: MockHosts, router: RouterProcess, core: int | None) -> Run:
    time.sleep(SETTLE_S)
    stolen_s, cpu_s = machine.stolen_s(), machine.cpu_s(router.pid)
    begin_s = time.monotonic()
    if peer == "zeromq":
        run = _client("streams", router.zeromq_endpoint, LOADS[load].zeromq, core)
    else:
        target = hosts.addresses[0] if peer == "direct" else router.target
        run = run_load(target, LOADS[load].http, core=core)
        run["errors"] = [f"{kind} {count}" for kind, count in run["errors"].items() if count]
    cpu_s = machine.cpu_s(router.pid) - cpu_s if peer != "direct" else 0.0
    steal = 100 * (machine.stolen_s() - stolen_s) / (time.monotonic() - begin_s)
    return run | {"peer": peer, "load": load, "cpu_us": 1e6 * cpu_s / max(run["tokens_all"], 1), "steal": steal}


def _client(what: str, endpoint: str, arguments: str, core: int | None) -> Run:
    with machine.pinned(core):
        process = subprocess.Popen(_command(what, endpoint, arguments), stdout=subprocess.PIPE, cwd=REPOSITORY)
    output, _ = process.communicate(timeout=60)
    if process.returncode:
        raise RuntimeError(f"the client of {endpoint} ended with {process.returncode}")
    run: Run = json.loads(output)
    return run


@contextlib.contextmanager
def _echo(endpoint: str, core: int | None) -> Iterator[str]:
    with machine.pinned(core):
        process = subprocess.Popen(
            _command("echo", endpoint), stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY
        )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield endpoint
    finally:
        process.communicate()  # the end of its input ends it


def _command(what: str, endpoint: str, arguments: str = "") -> list[str]:
    return [sys.executable, "-m", "bench.zeromq_load", what, endpoint, *arguments.split()]


def _shown(run: Run) -> Run:
    if run["peer"] == "libzmq":
        text = f"one way {run['one_way']['p50']:7.0f} µs  round trip {run['round_trip']['p50']:7.0f} µs"
    else:
        text = (
            f"TTFT {run['ttft_over'].get('p50', 0):7.0f} µs  token {run['tok'].get('p50', 0):7.0f} µs  "
            f"CPU {run['cpu_us']:6.1f} µs/token  {run['tok_s']:9,.0f} tokens/s  stolen {run['steal']:.1f} %"
        )
    print(f"round {run['round'] + 1}  {run['load']:8s} {run['peer']:7s} {text}", flush=True)
    return run


def table(runs: Sequence[Run]) -> str:
    """Return the medians over the rounds, smallest and largest behind them, as a Markdown table."""
    lines = ["| load | peer | TTFT p50, µs | token p50, µs | CPU µs/token | tokens/s |", "|---|---|---|---|---|---|"]
    for load in LOADS:
        for peer in PEERS:
            own = [run for run in runs if run["load"] == load and run["peer"] == peer]
            cells = (
                _spread([run["ttft_over"]["p50"] for run in own]),
                _spread([run["tok"]["p50"] for run in own]),
                _spread([run["cpu_us"] for run in own], 1) if peer != "direct" else "-",
                _spread([run["tok_s"] for run in own]),
            )
            lines.append(f"| {load} | {peer} | {' | '.join(cells)} |")
    pings = [run for run in runs if run["peer"] == "libzmq"]
    trips, ways = ([run[key]["p50"] for run in pings] for key in ("round_trip", "one_way"))
    lines.append(f"| low | libzmq, no router | {_spread(trips)} (round trip) | {_spread(ways)} (one way) | - | - |")
    return "\n".join(lines)


def _spread(values: Sequence[float], digits: int = 0) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


if __name__ == "__main__":
    sys.exit(main())
