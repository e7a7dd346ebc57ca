"""Go round by round, mode by mode, through the peers, interleaved, and write one JSON line for each run.

The order within a mode is shuffled, so that whatever the machine does meanwhile hits all peers alike. A run in which
the hypervisor took time, or the machine stood still, is done again, at most :attr:`Plan.repeats` times; what it took
stands in the line. Which peers there are is the caller's: :func:`own_peers`, or those of :mod:`bench.peers`.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench import machine
from bench.modes import HOST_DEFAULTS, Mode
from bench.processes import MockHosts, RouterProcess, RouterSetup, run_load

Run = dict[str, Any]
"""One run: the load generator's JSON with peer, mode, round, cpu_s, wall_s, rss, steal (per cent) and host (/stats)."""

HOST_COUNT = 2
STEAL_MAX_PERCENT = 3.0
STALL_MAX_MS = 50.0
WARM_UP = "mode=stream conc=16 n=32 itl=0 dur=1.2 warm=0"
SHORT_WARM_UP = "mode=stream conc=4 n=8 itl=0 dur=0.2 warm=0"
SETTLE_S = 0.15
"""After a load has ended: what it left behind (closed clients, freed slots) is gone before the next step."""


@dataclass(frozen=True)
class Plan:
    """What is measured and where it runs; cores are None when nothing is pinned.

    A run with more than ``steal_max_percent`` stolen is done again. ``keep_going``: a peer that fails in a mode is told
    on stderr and in the raw file, and the others go on; else the failure is raised.
    """

    modes: Sequence[Mode]
    rounds: int
    repeats: int
    router_core: int | None
    load_core: int | None
    steal_max_percent: float = STEAL_MAX_PERCENT
    keep_going: bool = False


class Peer(Protocol):
    """Something that the load is sent to."""

    name: str
    host_slot_factor: int
    """How many hosts' slots each host gets in a mode with slots: a peer that knows one host only gets all of them."""

    def target(self, mode: Mode) -> str:
        """Return the address the load generator connects to."""

    def pid(self, mode: Mode) -> int | None:
        """Return the process whose CPU is counted, with that of its children."""

    @property
    def load_arguments(self) -> str:
        """Further arguments of the load generator, such as headers that this peer needs."""

    def resumed(self, mode: Mode) -> contextlib.AbstractContextManager[None]:
        """Let it run for the length of the block; outside of it it may be stopped."""


PeerOpener = Callable[[Plan, MockHosts, contextlib.ExitStack], list[Peer]]
"""Starts peers in front of the hosts, ready and warm; the stack ends them."""


class Direct:
    """No router: the load goes to the first host."""

    name = "direct"
    host_slot_factor = HOST_COUNT
    load_arguments = ""

    def __init__(self, hosts: MockHosts) -> None:
        self._hosts = hosts

    def target(self, mode: Mode) -> str:  # noqa: ARG002 - the same host in every mode
        return self._hosts.addresses[0]

    def pid(self, mode: Mode) -> int | None:  # noqa: ARG002 - no process of its own
        return None

    def resumed(self, mode: Mode) -> contextlib.AbstractContextManager[None]:  # noqa: ARG002 - the same
        return contextlib.nullcontext()


class Ringrouter:
    """This checkout's router: one process for each setup that the modes ask for."""

    name = "ringrouter"
    host_slot_factor = 1
    load_arguments = ""

    def __init__(self, routers: dict[RouterSetup, RouterProcess]) -> None:
        self._routers = routers

    def target(self, mode: Mode) -> str:
        return self._routers[mode.setup].target

    def pid(self, mode: Mode) -> int | None:
        router = self._routers[mode.setup]
        if not router.is_running():
            raise RuntimeError(f"the router has ended:\n{router.log_end()}")
        return router.pid

    def resumed(self, mode: Mode) -> contextlib.AbstractContextManager[None]:  # noqa: ARG002 - never stopped
        return contextlib.nullcontext()


def own_peers(plan: Plan, hosts: MockHosts, stack: contextlib.ExitStack) -> list[Peer]:
    """Start what ``make bench`` compares: no router, and this checkout's."""
    return [Direct(hosts), Ringrouter(_start_routers(plan, hosts, stack))]


def measure(plan: Plan, raw_file: Path, open_peers: PeerOpener = own_peers) -> Iterator[Run]:
    """Run the plan; yields each run, and appends it to ``raw_file``, as soon as it is there."""
    with contextlib.ExitStack() as stack:
        hosts = stack.enter_context(MockHosts(["127.0.0.1:0"] * HOST_COUNT, core=plan.load_core))
        peers = open_peers(plan, hosts, stack)
        raw = stack.enter_context(raw_file.open("w", encoding="utf-8"))
        order = random.Random(7)
        for round_index in range(plan.rounds):
            for mode in plan.modes:
                for peer in order.sample(peers, len(peers)):
                    run = _measure_or_fail(plan, hosts, mode, peer) | {"round": round_index}
                    raw.write(json.dumps(run) + "\n")
                    raw.flush()
                    if "failed" in run:
                        print(f"round {round_index + 1}  {mode.name} {peer.name}: {run['failed']}", file=sys.stderr)
                    else:
                        yield run


def _measure_or_fail(plan: Plan, hosts: MockHosts, mode: Mode, peer: Peer) -> Run:
    if not plan.keep_going:
        return _measure_peer(plan, hosts, mode, peer)
    try:
        return _measure_peer(plan, hosts, mode, peer)
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        return {"peer": peer.name, "mode": mode.name, "failed": str(error)}


def _start_routers(plan: Plan, hosts: MockHosts, stack: contextlib.ExitStack) -> dict[RouterSetup, RouterProcess]:
    routers: dict[RouterSetup, RouterProcess] = {}
    for setup in dict.fromkeys(mode.setup for mode in plan.modes):
        router = stack.enter_context(RouterProcess(hosts.urls, setup, core=plan.router_core))
        router.wait_ready(core=plan.load_core)
        run_load(router.target, WARM_UP, core=plan.load_core)
        routers[setup] = router
    return routers


def _measure_peer(plan: Plan, hosts: MockHosts, mode: Mode, peer: Peer) -> Run:
    hosts.get(f"/set?{mode.host_options(peer.host_slot_factor)}")
    try:
        with peer.resumed(mode):
            run_load(peer.target(mode), f"{SHORT_WARM_UP} {peer.load_arguments}", core=plan.load_core)
            time.sleep(SETTLE_S)
            for _ in range(1 + plan.repeats):
                run = _measure_once(plan, hosts, mode, peer)
                if run["steal"] <= plan.steal_max_percent and run["stall_ms"] <= STALL_MAX_MS:
                    break
        return run
    finally:
        hosts.get(f"/set?{HOST_DEFAULTS}")


def _measure_once(plan: Plan, hosts: MockHosts, mode: Mode, peer: Peer) -> Run:
    pid = peer.pid(mode)
    hosts.get("/stats?reset=1")
    cpu_before_s, stolen_before_s = _cpu_s(pid), machine.stolen_s()
    begin_s = time.monotonic()
    run = run_load(peer.target(mode), f"{mode.load} buckets=1 {peer.load_arguments}", core=plan.load_core)
    wall_s = time.monotonic() - begin_s
    cpu_after_s, stolen_after_s = _cpu_s(pid), machine.stolen_s()
    time.sleep(SETTLE_S)  # hosts notice the last clients that left
    return run | {
        "peer": peer.name,
        "mode": mode.name,
        "cpu_s": cpu_after_s - cpu_before_s,
        "wall_s": wall_s,
        "rss": sum(map(machine.resident_bytes, machine.process_tree(pid))) if pid is not None else 0,
        "steal": 100 * (stolen_after_s - stolen_before_s) / wall_s,
        "host": hosts.get("/stats"),
    }


def _cpu_s(pid: int | None) -> float:
    return sum(map(machine.cpu_s, machine.process_tree(pid))) if pid is not None else 0.0
