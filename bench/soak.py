"""Many streams at once for a while, then: is everything back where it was?

    python -m bench.soak --streams 1000 --rate 5 --seconds 60

One router in front of mock hosts carries the streams, all at the same time. Afterwards, when nothing is in flight, its
anonymous memory must be within :data:`GROWTH_MAX_BYTES` of before and its descriptors must be as many as before.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from typing import Any, NamedTuple

from bench import machine
from bench.build import BuildError
from bench.processes import MockHosts, RouterProcess, run_load

HOST_COUNT = 2
GROWTH_MAX_BYTES = 5_000_000
QUIET_S = 6.0
"""Descriptors unchanged for so long have settled: idle connections to hosts are given up after 4 s."""
SETTLE_LIMIT_S = 60.0
"""Spare connections follow the starts of the last 10 s, so they take a while to become few again."""
START_S = 5.0
"""Over which the streams start; all of them run together after it."""


class Footprint(NamedTuple):
    """What the router holds when nothing is in flight."""

    anonymous_bytes: int
    descriptors: int


def main() -> int:
    """Soak a router and print what it held before and after; 1 when it lost streams or kept anything."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--streams", type=int, default=1000, help="streams at the same time (default: 1000)")
    parser.add_argument("--rate", type=float, default=5, help="tokens per second of each (default: 5)")
    parser.add_argument("--seconds", type=float, default=60, help="length of each stream (default: 60)")
    parser.add_argument("--rounds", type=int, default=1, help="times to do it: a leak grows with each, buffers do not")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the router and the hosts are ended too
    try:
        return _soak(arguments)
    except (BuildError, RuntimeError) as error:
        print(f"bench.soak: {error}", file=sys.stderr)
        return 1


def _soak(arguments: argparse.Namespace) -> int:
    router_core, load_core = machine.two_cores()
    for fact in machine.facts():
        print(fact)
    load = _load(arguments.streams, arguments.rate, arguments.seconds)
    limit_s = START_S + arguments.seconds + 60
    faults: list[str] = []
    with (
        MockHosts(["127.0.0.1:0"] * HOST_COUNT, core=load_core) as hosts,
        RouterProcess(hosts.urls, core=router_core) as router,
    ):
        router.wait_ready(core=load_core)
        before = _footprint(router)
        print(f"before:  {_in_words(before)}", flush=True)
        for _ in range(arguments.rounds):
            hosts.get("/stats?reset=1")
            cpu_before_s = machine.cpu_s(router.pid)
            run = run_load(router.target, load, core=load_core, limit_s=limit_s)
            print(f"streams: {_run_in_words(run, machine.cpu_s(router.pid) - cpu_before_s)}", flush=True)
            after = _footprint(router)
            print(f"after:   {_in_words(after)}", flush=True)
            faults += faults_of_run(run, arguments.streams)
            faults += faults_of_footprint(before, after)
    print("\n".join(f"FAILED: {fault}" for fault in faults) or "ok: nothing lost, nothing kept")
    return 1 if faults else 0


def _load(streams: int, rate: float, seconds: float) -> str:
    """Return the load generator's arguments for ``streams`` streams, one after the other begun, each run once."""
    interval_us = round(1e6 / rate)
    tokens = max(1, round(rate * seconds))
    longest_s = START_S + seconds + 30
    return (
        f"mode=stream conc={streams} maxreq={streams} n={tokens} ttft={interval_us} itl={interval_us} "
        f"warm={START_S:g} dur={longest_s:g} drain=1 timeout={longest_s:g}"
    )


def _footprint(router: RouterProcess) -> Footprint:
    """Return what the router holds once nothing is in flight and its descriptors have settled."""
    deadline_s = time.monotonic() + SETTLE_LIMIT_S
    _wait_until_idle(router, deadline_s)
    descriptors = machine.descriptor_count(router.pid)
    quiet_since_s = time.monotonic()
    while time.monotonic() < min(quiet_since_s + QUIET_S, deadline_s):
        time.sleep(0.25)
        now = machine.descriptor_count(router.pid)
        if now != descriptors:
            descriptors, quiet_since_s = now, time.monotonic()
    return Footprint(machine.anonymous_bytes(router.pid), descriptors)


def _wait_until_idle(router: RouterProcess, deadline_s: float) -> None:
    while time.monotonic() < deadline_s:
        shown = router.stats()["router"]
        if shown["running_count"] + shown["waiting_count"] == 0:
            return
        time.sleep(0.25)
    raise RuntimeError(f"requests were in flight for {SETTLE_LIMIT_S:g} s after the last stream had ended")


def faults_of_run(run: dict[str, Any], streams: int) -> list[str]:
    """Return what went wrong with the streams, one sentence each."""
    faults = [f"{count} errors of kind {kind}" for kind, count in run["errors"].items() if count]
    if run["ok"] != streams:
        faults.append(f"{run['ok']} of {streams} streams came whole, {run['unfinished']} did not end")
    if run["retried"]:
        faults.append(f"{run['retried']} requests had to be sent again by the client")
    return faults


def faults_of_footprint(before: Footprint, after: Footprint) -> list[str]:
    """Return what the router kept, one sentence each."""
    faults = []
    growth_bytes = after.anonymous_bytes - before.anonymous_bytes
    if growth_bytes > GROWTH_MAX_BYTES:
        faults.append(f"anonymous memory grew by {_mb(growth_bytes)}, allowed are {_mb(GROWTH_MAX_BYTES)}")
    if after.descriptors != before.descriptors:
        faults.append(f"{after.descriptors} descriptors, before {before.descriptors}")
    return faults


def _in_words(footprint: Footprint) -> str:
    return f"{_mb(footprint.anonymous_bytes)} anonymous memory, {footprint.descriptors} descriptors"


def _run_in_words(run: dict[str, Any], cpu_s: float) -> str:
    return (
        f"{run['ok']:,} whole, {run['tokens_all']:,} tokens, errors {sum(run['errors'].values())}, "
        f"token p50 {run['tok']['p50']:,.0f} µs, p99 {run['tok']['p99']:,.0f} µs, "
        f"{1e6 * cpu_s / max(1, run['tokens_all']):.1f} µs CPU/token"
    )


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
