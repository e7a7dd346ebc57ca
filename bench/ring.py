"""The rings beside what else hands records over, interleaved: ``python -m bench.ring``.

Every round goes through all loads and all peers in shuffled order, so that drift of the machine hits all alike.
Producer and consumer have a core each; the consumer is another process, or another thread where a peer knows no
processes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from bench import machine
from bench.alternatives.in_process import Deque, SimpleQueue
from bench.alternatives.peer import Load, Peer
from bench.alternatives.processes import MultiprocessingQueue
from bench.alternatives.spin import MemoryviewSpin
from bench.alternatives.zeromq import ZeroMQInproc, ZeroMQIpc
from bench.ring_peers import ring_peers

BATCH = 64
WAIT_S = 60.0
YARDSTICK = MemoryviewSpin.name
VISIBILITY_FACTOR = 1.5
FAST = ("(c)", "(plain)", "deque", "SimpleQueue", YARDSTICK)
"""Peers that need many records to be measured well; the others are a hundred times slower."""


@dataclass(frozen=True)
class Measure:
    """One load: what its figure means, how many records it takes, and what the rings promise."""

    heading: str
    unit: str
    fast_count: int
    slow_count: int
    targets: dict[str, float]
    """By peer."""
    is_rate: bool


MEASURES: dict[Load, Measure] = {
    "publish": Measure(
        "one record published, nobody reading",
        "ns",
        200_000,
        10_000,
        {"broadcast (c)": 150, "gating (c)": 150, "broadcast (plain)": 600, "gating (plain)": 600},
        is_rate=False,
    ),
    "singly": Measure(
        "to a consumer, one record a call, none lost", "M records/s", 1_000_000, 20_000, {"gating (c)": 3}, is_rate=True
    ),
    "batch": Measure(
        f"to a consumer, {BATCH} records a call, none lost", "M records/s", 6_400_000, 320_000, {"gating (c)": 10},
        is_rate=True,
    ),
    "poll": Measure(
        "records that lie ready, polled into a numpy array", "M records/s", 2_000_000, 200_000,
        {"broadcast (c)": 20, "gating (c)": 20}, is_rate=True,
    ),
    "visibility": Measure(
        "from one process to the other: half a round trip, p50", "ns", 30_000, 2_000,
        {"broadcast (c)": math.nan}, is_rate=False,
    ),
}  # fmt: skip
PEERS: list[type[Peer]] = [
    *ring_peers(),
    MemoryviewSpin,
    Deque,
    SimpleQueue,
    MultiprocessingQueue,
    ZeroMQInproc,
    ZeroMQIpc,
]


class Run(NamedTuple):
    """One figure, in the unit of its load."""

    load: Load
    peer: str
    value: float


def main() -> int:
    """Run all rounds and print the table; 1 when something could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.ring", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="runs of each peer in each load (default: 5)")
    parser.add_argument("--loads", default=",".join(MEASURES), help="separated by commas (default: all)")
    parser.add_argument("--quick", action="store_true", help="one round of a tenth of the records")
    arguments = parser.parse_args()
    loads = arguments.loads.split(",")
    if unknown := set(loads) - set(MEASURES):
        parser.error(f"--loads: {min(unknown)!r} is not one of {', '.join(MEASURES)}")
    for fact in facts():
        print(fact, flush=True)
    runs: list[Run] = []
    began_s, stolen_s = time.monotonic(), machine.stolen_s()
    try:
        rounds, share = (1, 0.1) if arguments.quick else (arguments.rounds, 1.0)
        for run in measure(loads, rounds, share):
            runs.append(run)
            print(f"{run.load:11s} {run.peer:24s} {run.value:12,.2f} {MEASURES[run.load].unit}", flush=True)
    except RuntimeError as error:
        print(f"bench.ring: {error}", file=sys.stderr)
        return 1
    stolen_percent = 100 * (machine.stolen_s() - stolen_s) / (time.monotonic() - began_s)
    print(f"\n{table(runs)}\n\nStolen by the hypervisor: {stolen_percent:.1f} %.")
    return 0


def facts() -> list[str]:
    """Return the machine, and the versions of the rivals, in lines."""
    rivals = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("pyzmq", "numpy"))
    return [*machine.facts(), f"{rivals}; load average {os.getloadavg()[0]:.1f} before the first run"]


def measure(loads: Sequence[Load], rounds: int, share: float, peers: Sequence[type[Peer]] = PEERS) -> Iterator[Run]:
    """Yield each figure as soon as it is there; ``share`` of the records of a whole measurement."""
    order = random.Random(7)
    for _ in range(rounds):
        for load in loads:
            taking_part = [peer for peer in peers if load in peer.loads]
            for peer in order.sample(taking_part, len(taking_part)):
                with tempfile.TemporaryDirectory(prefix="ring-bench-", dir="/dev/shm") as directory:
                    yield Run(load, peer.name, measure_one(peer, load, _count(peer, load, share), Path(directory)))


def _count(peer: type[Peer], load: Load, share: float) -> int:
    whole = MEASURES[load].fast_count if any(word in peer.name for word in FAST) else MEASURES[load].slow_count
    if "plain" in peer.name or "doorbell" in peer.name:
        whole //= 5
    return max(BATCH, int(whole * share) // BATCH * BATCH)


def measure_one(peer: type[Peer], load: Load, count: int, directory: Path) -> float:
    """Return one figure of one peer, in the unit of the load; RuntimeError when its consumer failed."""
    made = peer(directory)
    try:
        if load == "publish":
            return made.publish_ns(count)
        if load == "poll":
            return made.poll_per_s(count) / 1e6
        if load == "visibility":
            return _visibility_ns(made, count)
        return _throughput(made, count, BATCH if load == "batch" else 1) / 1e6
    finally:
        made.close()


def _throughput(peer: Peer, count: int, batch: int) -> float:
    with _Consumer(peer, lambda: peer.receive(count, batch)) as consumer:
        began_ns = time.monotonic_ns()
        peer.send(count, batch)
        return 1e9 * count / (consumer.ended_ns() - began_ns)


def _visibility_ns(peer: Peer, count: int) -> float:
    with _Consumer(peer, lambda: peer.answer(count)):
        return statistics.median(peer.ask(count)) / 2


class _Consumer:
    """The consumer in its process or thread; on its own core where there are two."""

    def __init__(self, peer: Peer, work: Callable[[], None]) -> None:
        self._peer = peer
        self._producer_core, self._core = machine.two_cores()
        self._affinity = os.sched_getaffinity(0)
        self._connection, end = multiprocessing.Pipe()
        run = (peer, work, end, self._core)
        self._runner: threading.Thread | multiprocessing.process.BaseProcess
        if peer.is_threaded:
            self._runner = threading.Thread(target=_consume, args=run, daemon=True)
        else:
            self._runner = multiprocessing.get_context("fork").Process(target=_consume, args=run, daemon=True)

    def __enter__(self) -> _Consumer:
        self._runner.start()
        self._receive()
        if self._producer_core is not None:
            os.sched_setaffinity(0, {self._producer_core})
        self._peer.open_producer()
        return self

    def __exit__(self, *_: object) -> None:
        os.sched_setaffinity(0, self._affinity)
        self._runner.join(WAIT_S)

    def ended_ns(self) -> int:
        """Return when the consumer had everything, CLOCK_MONOTONIC."""
        return self._receive()

    def _receive(self) -> int:
        if not self._connection.poll(WAIT_S):
            raise RuntimeError(f"the consumer said nothing for {WAIT_S:g} s")
        result: int = self._connection.recv()
        if result < 0:
            raise RuntimeError("the consumer failed")
        return result


def _consume(peer: Peer, work: Callable[[], None], connection: Connection, core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        peer.open_consumer()
        connection.send(0)
        work()
        connection.send(time.monotonic_ns())
        peer.close_consumer()
    except BaseException:
        connection.send(-1)
        raise


def table(runs: Sequence[Run]) -> str:
    """Return one Markdown table: the medians of the rounds, smallest and largest behind them."""
    lines = ["| load | peer | median (smallest–largest) | promise | |", "|---|---|---|---|---|"]
    for load, measured in MEASURES.items():
        own = [run for run in runs if run.load == load]
        names = {run.peer for run in own}
        medians = {name: _median(own, load, name) for name in names}
        for name in sorted(names, key=lambda name: medians[name], reverse=measured.is_rate):
            values = [run.value for run in own if run.peer == name]
            digits = 0 if measured.unit == "ns" else 2
            spread = f"{medians[name]:,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"
            cells = (load, name, f"{spread} {measured.unit}", _promise(load, name), verdict(runs, load, name))
            lines.append(f"| {' | '.join(cells)} |")
    meanings = "\n".join(f"{load}: {measured.heading}." for load, measured in MEASURES.items())
    return "\n".join(lines) + f"\n\n{meanings}"


def verdict(runs: Sequence[Run], load: Load, peer: str) -> str:
    """Return ``kept`` or ``missed``, nothing where nothing is promised."""
    target = MEASURES[load].targets.get(peer)
    if target is None:
        return ""
    if math.isnan(target):
        if not any(run.peer == YARDSTICK for run in runs):
            return ""
        target = VISIBILITY_FACTOR * _median(runs, load, YARDSTICK)
    value = _median(runs, load, peer)
    return "kept" if (value >= target if MEASURES[load].is_rate else value <= target) else "missed"


def _promise(load: Load, peer: str) -> str:
    target = MEASURES[load].targets.get(peer)
    if target is None:
        return ""
    if math.isnan(target):
        return f"≤ {VISIBILITY_FACTOR} × {YARDSTICK}"
    return f"{'≥' if MEASURES[load].is_rate else '≤'} {target:g} {MEASURES[load].unit}"


def _median(runs: Sequence[Run], load: Load, peer: str) -> float:
    return statistics.median(run.value for run in runs if run.load == load and run.peer == peer)


if __name__ == "__main__":
    sys.exit(main())
