"""What ringrouter takes before it does anything: time from start to ready, memory at rest, memory of an idle stream.

System calls are not counted here but by the gate, on a scripted load; its committed figure is passed on.
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from pathlib import Path

from bench import machine
from bench.build import program
from bench.config import MODEL
from bench.harness import HOST_COUNT
from bench.processes import MockHosts, RouterProcess, run_load

BASELINE_FILE = Path(__file__).with_name("baseline.json")
STARTS = 5
STREAMS = 1000
SETTLE_S = 0.5
"""The router looks after its memory and its spare connections by the tick: after it the numbers stand still."""
LIMIT_S = 30.0
LOOK_S = 0.002


def measure(router_core: int | None, load_core: int | None) -> dict[str, list[float]]:
    """Start the router several times; returns ``ready_ms``, ``at_rest_mb`` and ``idle_stream_kb``, a value per start.

    ``system_calls_per_token`` has the gate's figure, or nothing where there is none.
    """
    found: dict[str, list[float]] = {"ready_ms": [], "at_rest_mb": [], "idle_stream_kb": []}
    with MockHosts(["127.0.0.1:0"] * HOST_COUNT, core=load_core) as hosts:
        for _ in range(STARTS):
            begin_s = time.monotonic()
            with RouterProcess(hosts.urls, core=router_core) as router:
                _wait_ready(router, begin_s)
                found["ready_ms"].append(1e3 * (time.monotonic() - begin_s))
                run_load(router.target, "mode=stream conc=1 maxreq=1 n=4 dur=5 warm=0", core=load_core)
                time.sleep(SETTLE_S)
                at_rest_bytes = machine.anonymous_bytes(router.pid)
                found["at_rest_mb"].append(at_rest_bytes / 1e6)
                found["idle_stream_kb"].append((_bytes_with_streams(router, load_core) - at_rest_bytes) / STREAMS / 1e3)
    return found | {"system_calls_per_token": _counted_by_the_gate()}


def _counted_by_the_gate() -> list[float]:
    if not BASELINE_FILE.exists():
        return []
    quantities = json.loads(BASELINE_FILE.read_text(encoding="utf-8"))["quantities"]
    return [float(quantities[name]["value"]) for name in ("http_system_calls_per_token",) if name in quantities]


def _wait_ready(router: RouterProcess, begin_s: float) -> None:
    """Return when ``/ready`` says that a host can serve."""
    while time.monotonic() < begin_s + LIMIT_S:
        try:
            with urllib.request.urlopen(f"http://{router.target}/ready", timeout=1):
                return
        except OSError:  # nobody listens yet, or 503
            if not router.is_running():
                break
            time.sleep(LOOK_S)
    raise RuntimeError(f"the router was not ready in {LIMIT_S:g} s:\n{router.log_end()}")


def _bytes_with_streams(router: RouterProcess, load_core: int | None) -> int:
    """Return the router's anonymous memory while many streams wait for their first token."""
    load = f"mode=stream conc={STREAMS} maxreq={STREAMS} n=1 ttft={int(2e6 * LIMIT_S)} dur={LIMIT_S} warm=1 drain=0"
    with machine.pinned(load_core):
        client = subprocess.Popen(
            [str(program("loadgen")), f"target={router.target}", f"model={MODEL}", *load.split()],
            stdout=subprocess.DEVNULL,
        )
    try:
        deadline_s = time.monotonic() + LIMIT_S
        while router.stats()["router"]["running_count"] < STREAMS:
            if time.monotonic() > deadline_s or client.poll() is not None:
                raise RuntimeError(f"{STREAMS} streams did not come to run")
            time.sleep(0.1)
        time.sleep(SETTLE_S)
        return machine.anonymous_bytes(router.pid)
    finally:
        client.terminate()
        client.wait()
