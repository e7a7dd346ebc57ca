"""Go round by round, mode by mode, through the peers, interleaved, and write one JSON line for each run.

The order within a mode is shuffled, so that whatever the machine does meanwhile hits all peers alike. A run in which
the hypervisor took time, or the machine stood still, is done again, at most :attr:`Plan.repeats` times; what it took
stands in the line.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Iterator, Sequence
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
    """What is measured and where it runs; cores are None when nothing is pinned."""

    modes: Sequence[Mode]
    rounds: int
    repeats: int
    router_core: int | None
    load_core: int | None


class Peer(Protocol):
    """Something that the load is sent to."""

    name: str
    host_slot_factor: int
    """How many hosts' slots each host gets in a mode with slots: a peer that knows one host only gets all of them."""

    def target(self, mode: Mode) -> str:
        """Return the address the load generator connects to."""

    def pid(self, mode: Mode) -> int | None:
        """Return the process whose CPU is counted."""


class Direct:
    """No router: the load goes to the first host."""

    name = "direct"
    host_slot_factor = HOST_COUNT

    def __init__(self, hosts: MockHosts) -> None:
        self._hosts = hosts

    def target(self, mode: Mode) -> str:  # noqa: ARG002 - the same host in every mode
        return self._hosts.addresses[0]

    def pid(self, mode: Mode) -> int | None:  # noqa: ARG002 - no process of its own
        return None


class Ringrouter:
    """This checkout's router: one process for each setup that the modes ask for."""

    name = "ringrouter"
    host_slot_factor = 1

    def __init__(self, routers: dict[RouterSetup, RouterProcess]) -> None:
        self._routers = routers

    def target(self, mode: Mode) -> str:
        return self._routers[mode.setup].target

    def pid(self, mode: Mode) -> int | None:
        router = self._routers[mode.setup]
        if not router.is_running():
            raise RuntimeError(f"the router has ended:\n{router.log_end()}")
        return router.pid


def measure(plan: Plan, raw_file: Path) -> Iterator[Run]:
    """Run the plan; yields each run, and appends it to ``raw_file``, as soon as it is there."""
    with contextlib.ExitStack() as stack:
        hosts = stack.enter_context(MockHosts(["127.0.0.1:0"] * HOST_COUNT, core=plan.load_core))
        peers: list[Peer] = [Direct(hosts), Ringrouter(_start_routers(plan, hosts, stack))]
        raw = stack.enter_context(raw_file.open("w", encoding="utf-8"))
        order = random.Random(7)
        for round_index in range(plan.rounds):
            for mode in plan.modes:
                for peer in order.sample(peers, len(peers)):
                    run = _measure_peer(plan, hosts, mode, peer) | {"round": round_index}
                    raw.write(json.dumps(run) + "\n")
                    raw.flush()
                    yield run


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
        run_load(peer.target(mode), SHORT_WARM_UP, core=plan.load_core)
        time.sleep(SETTLE_S)
        for _ in range(1 + plan.repeats):
            run = _measure_once(plan, hosts, mode, peer)
            if run["steal"] <= STEAL_MAX_PERCENT and run["stall_ms"] <= STALL_MAX_MS:
                break
        return run
    finally:
        hosts.get(f"/set?{HOST_DEFAULTS}")


def _measure_once(plan: Plan, hosts: MockHosts, mode: Mode, peer: Peer) -> Run:
    pid = peer.pid(mode)
    hosts.get("/stats?reset=1")
    cpu_before_s, stolen_before_s = _cpu_s(pid), machine.stolen_s()
    begin_s = time.monotonic()
    run = run_load(peer.target(mode), mode.load, core=plan.load_core)
    wall_s = time.monotonic() - begin_s
    cpu_after_s, stolen_after_s = _cpu_s(pid), machine.stolen_s()
    time.sleep(SETTLE_S)  # hosts notice the last clients that left
    return run | {
        "peer": peer.name,
        "mode": mode.name,
        "cpu_s": cpu_after_s - cpu_before_s,
        "wall_s": wall_s,
        "rss": machine.resident_bytes(pid) if pid is not None else 0,
        "steal": 100 * (stolen_after_s - stolen_before_s) / wall_s,
        "host": hosts.get("/stats"),
    }


def _cpu_s(pid: int | None) -> float:
    return machine.cpu_s(pid) if pid is not None else 0.0
