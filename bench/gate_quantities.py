"""What the gate counts, and how: every quantity repeats on a machine that is busy or shared.

Each group is measured by one function, in processes of its own. Latency is not among them: a shared machine changes it
more than code does.
"""

from __future__ import annotations

import contextlib
import json
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import ringbuffer
from bench import machine
from bench.build import BuildError, library
from bench.config import router_environment
from bench.gate_lockstep import Client, Hosts, HttpClient, ZeromqClient, open_silent_stream, run_streams
from bench.gate_path import COLD_ROUNDS, COLD_STEPS, LONG_TOKENS, SHORT_TOKENS, STREAMS, Cost, cost
from bench.gate_router import CannotTraceError, CountedRouter, GateRouter
from router import native

UNLIMITED = float("inf")
KILOBYTE, MEGABYTE = 1e3, 1e6
FILLING_STREAMS = 400
"""Opened before those that are measured: they take what lies free in the heap at rest, which differs by a megabyte and
a half from checkout to checkout."""
SILENT_STREAMS = 600
DESCRIPTORS = 4 * (FILLING_STREAMS + SILENT_STREAMS)
"""Of this process in the memory measurement: it is both ends, client and host, of every stream."""
ZEROMQ_LOADS = 4
CHILD_LIMIT_S = 240


class UnmeasurableError(RuntimeError):
    """A quantity cannot be counted on this machine; the message says why."""


class Quantity(NamedTuple):
    """One thing that is counted. ``tolerance`` is what it may exceed its baseline by, in its unit."""

    name: str
    group: str
    unit: str
    tolerance: float
    """How far it is from repeating exactly, and never so much as one more step per token."""
    limit: float = UNLIMITED
    """What it must not exceed, whatever its baseline."""
    depends_on: tuple[str, ...] = ()
    """Parts of the environment with which the baseline means something."""
    relative: bool = False
    """Whether ``tolerance`` is a share of the baseline."""
    is_gated: bool = True

    def allowed(self, baseline: float) -> float:
        """Return the largest value that passes."""
        slack = self.tolerance * baseline if self.relative else self.tolerance
        return min(baseline + slack, self.limit)

    def expected(self, baseline: float) -> float:
        """Return the smallest value that is no improvement."""
        return baseline - (self.tolerance * baseline if self.relative else self.tolerance)


class Found(NamedTuple):
    """A measured value; ``detail`` says what it consists of."""

    value: float
    detail: str = ""


Results = dict[str, Found | str]
"""What was found, by the quantity's name; a text says why a quantity cannot be counted here."""

_CODE = ("python", "extensions")
_BUILD = ("python", "extensions", "build")


def environment() -> dict[str, str]:
    """Return what counts depend on: the version of Python, which extensions are in use, the interpreter's build."""
    libc = " ".join(platform.libc_ver())
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "extensions": f"scanner {native.BACKEND}, rings {ringbuffer.BACKEND}",
        "build": f"{platform.python_version()}, {platform.python_compiler()}, {libc}, {platform.machine()}",
    }


# ------------------------------------------------------------ system calls
Calls = Counter[str]
"""System calls by name."""


def http_system_calls() -> Results:
    """Count the router's system calls while streams go over HTTP."""
    with Hosts() as hosts, CountedRouter(hosts) as router, HttpClient(router.target) as client:
        run_streams(hosts, client, 2, SHORT_TOKENS)  # connections are there, buffers have their size
        short, long = (sum(_load(hosts, router, client, n), Calls()) for n in (SHORT_TOKENS, LONG_TOKENS))
    return _sums("http_system_calls", _costs(short, long))


def zeromq_system_calls() -> Results:
    """Count the router's system calls while streams go over ZeroMQ, and apart from them those of libzmq's own thread.

    How often the two threads find each other awake is chance, so of several loads the one with the fewest counts.
    """
    with Hosts() as hosts, CountedRouter(hosts) as router, ZeromqClient(router.zeromq_endpoint) as client:
        run_streams(hosts, client, 2, SHORT_TOKENS)  # connections are there, buffers have their size
        loads = [_load(hosts, router, client, tokens) for tokens in (SHORT_TOKENS, LONG_TOKENS) * ZEROMQ_LOADS]
    own, libzmq = (
        _costs(min(threads[0::2], key=Counter.total), min(threads[1::2], key=Counter.total))
        for threads in zip(*loads, strict=True)
    )
    library_calls = _sum({call: each.per_token for call, each in libzmq.items()})
    return _sums("zeromq_system_calls", own) | {"zeromq_library_calls_per_token": library_calls}


def _load(hosts: Hosts, router: CountedRouter, client: Client, token_count: int) -> tuple[Calls, Calls]:
    """Return the calls of one load: those of the router's thread, and of the others."""
    before = router.system_calls()
    run_streams(hosts, client, STREAMS, token_count)
    after = router.system_calls()
    return after[0] - before[0], after[1] - before[1]


def _costs(short: Calls, long: Calls) -> dict[str, Cost]:
    return {call: cost(short[call], long[call]) for call in short | long}


def _sums(name: str, costs: dict[str, Cost]) -> Results:
    return {
        f"{name}_per_token": _sum({call: each.per_token for call, each in costs.items()}),
        f"{name}_per_request": _sum({call: each.per_request for call, each in costs.items()}),
    }


def _sum(by_name: dict[str, float]) -> Found:
    largest = sorted(by_name.items(), key=lambda item: -item[1])
    detail = ", ".join(f"{name} {count:.2f}" for name, count in largest if count >= 0.005)
    return Found(sum(by_name.values()), detail)


# ------------------------------------------------------------ inside the process
@contextlib.contextmanager
def _ring_directory() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="ringrouter-gate-", dir="/dev/shm") as directory:
        yield directory


def _run_path(what: str, directory: str, *wrapper: str) -> str:
    command = [*wrapper, sys.executable, "-m", "bench.gate_path", what, directory]
    environment_ = router_environment() | {"PYTHONHASHSEED": "0"}
    result = subprocess.run(
        command, env=environment_, capture_output=True, text=True, timeout=CHILD_LIMIT_S, check=False
    )
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {result.returncode}:\n{result.stderr[-2000:]}")
    return result.stdout


def calls() -> Results:
    """Count calls of functions and allocations on the path, and what is kept of a request."""
    with _ring_directory() as directory:
        counted = json.loads(_run_path("counts", directory))
    found: Results = {"kept_blocks_per_request": Found(counted["kept_blocks"])}
    for name in ("python_calls", "c_calls", "allocations"):
        found |= _both(name, counted[name])
    return found


def instructions() -> Results:
    """Count the processor's instructions on the path, with callgrind."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise UnmeasurableError("valgrind is not installed; calls and allocations stand in for it")
    library("phase")  # so that no compiler runs under callgrind
    with _ring_directory() as directory:
        profile = f"{directory}/callgrind.out"
        _run_path(
            *("phases", directory, valgrind, "--tool=callgrind", "--dump-before=phase_begins"),
            f"--callgrind-out-file={profile}",
        )
        # PROFILE.1 is what came before the first mark, .2 and .3 the two loads.
        short, long = (_total(Path(f"{profile}.{phase}")) for phase in (2, 3))
    return _both("instructions", cost(short, long))


def cold_lines() -> Results:
    """Count the cache lines, of code and of data, that the steps of a stream find cold, with callgrind's simulation."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise UnmeasurableError("valgrind is not installed; instructions and allocations stand in for it")
    library("phase")  # so that no compiler runs under callgrind
    library("forget")
    caches = ("--cache-sim=yes", "--I1=32768,8,64", "--D1=32768,8,64", "--LL=1048576,16,64")
    with _ring_directory() as directory:
        profile = f"{directory}/callgrind.out"
        _run_path(
            *("cold", directory, valgrind, "--tool=callgrind", "--dump-before=phase_begins", *caches),
            f"--callgrind-out-file={profile}",
        )
        phase_count = COLD_ROUNDS * len(_COLD_PHASES)
        if Path(f"{profile}.{phase_count + 1}").exists():
            raise RuntimeError("a step wrote more than once: the phases cannot be told apart")
        counts = [_misses(Path(f"{profile}.{1 + phase}")) for phase in range(phase_count)]
    found = {
        name: median(counts[at :: len(_COLD_PHASES)]) for at, name in enumerate(_COLD_PHASES) if name != "forgetting"
    }
    for name in found:
        found[name] -= found["nothing"] if name != "nothing" else 0
    behind = {step: f"behind it {found[f'{step}, behind']:.0f}" for step in ("request", "first")}
    return {
        "cold_lines_before_request_is_sent": Found(found["request, before"], behind["request"]),
        "cold_lines_before_first_token_is_out": Found(found["first, before"], behind["first"]),
        "cold_lines_per_token": _whole_step(found, "token"),
        "cold_lines_of_last_read": _whole_step(found, "last"),
    }


def _whole_step(found: dict[str, float], step: str) -> Found:
    before, behind = found[f"{step}, before"], found[f"{step}, behind"]
    return Found(before + behind, f"before it is out {before:.0f}")


_COLD_PHASES = (
    "forgetting",
    "nothing",
    *(phase for step in COLD_STEPS[1:] for phase in ("forgetting", f"{step}, before", f"{step}, behind")),
)
"""What stands between the marks of one stream: each step writes once."""


def _misses(profile: Path) -> int:
    """Return how many lines were not in the simulated cache."""
    text = profile.read_text(encoding="utf-8", errors="replace")
    events = re.search(r"^events: (.+)$", text, re.MULTILINE)
    totals = re.search(r"^totals: (.+)$", text, re.MULTILINE)
    if events is None or totals is None:
        raise RuntimeError(f"{profile} has no line totals")
    by_name = dict(zip(events[1].split(), map(int, totals[1].split()), strict=False))  # zeros at the end are left out
    return sum(by_name.get(event, 0) for event in ("ILmr", "DLmr", "DLmw"))


def _total(profile: Path) -> int:
    found = re.search(r"^totals: (\d+)", profile.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{profile} has no line totals")
    return int(found[1])


def _both(name: str, found: Sequence[float] | str) -> Results:
    if isinstance(found, str):
        return dict.fromkeys((f"{name}_per_token", f"{name}_per_request"), found)
    per_token, per_request = found
    return {f"{name}_per_token": Found(per_token), f"{name}_per_request": Found(per_request)}


# ------------------------------------------------------------ memory, modules, start
def memory() -> Results:
    """Measure the router's own memory at rest and for each stream that is open and silent, and the time to start."""
    with _descriptors(), Hosts() as hosts, GateRouter(hosts) as router, contextlib.ExitStack() as clients:
        run_streams(hosts, clients.enter_context(HttpClient(router.target)), STREAMS, SHORT_TOKENS)
        at_rest = machine.anonymous_bytes(router.process.pid)
        for _ in range(FILLING_STREAMS):
            open_silent_stream(hosts, clients.enter_context(HttpClient(router.target)))
        filled = machine.anonymous_bytes(router.process.pid)
        for _ in range(SILENT_STREAMS):
            open_silent_stream(hosts, clients.enter_context(HttpClient(router.target)))
        grown = machine.anonymous_bytes(router.process.pid) - filled
    return {
        "memory_at_rest": Found(at_rest / MEGABYTE),
        "memory_per_silent_stream": Found(grown / SILENT_STREAMS / KILOBYTE),
        "start_to_ready": Found(router.ready_s * 1e3),
    }


@contextlib.contextmanager
def _descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
        raise UnmeasurableError(f"this process may open {hard} descriptors (ulimit -Hn), {DESCRIPTORS} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, DESCRIPTORS), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def modules() -> Results:
    """Count the modules that a router has loaded when it has answered a request."""
    with Hosts() as hosts, GateRouter(hosts, environment={"PYTHONPROFILEIMPORTTIME": "1"}) as router:
        with HttpClient(router.target) as client:
            run_streams(hosts, client, 1, SHORT_TOKENS)
        log = router.log.read_text(encoding="utf-8", errors="replace")
    names = set(re.findall(r"^import time: +\d+ \| +\d+ \| +([\w.]+)$", log, re.MULTILINE))
    packages = Counter(name.partition(".")[0] for name in names)
    detail = ", ".join(f"{package} {count}" for package, count in packages.most_common(12))
    return {"modules": Found(len(names), detail)}


QUANTITIES = (
    Quantity("http_system_calls_per_token", "http", "calls", 0.1, limit=3.2),
    Quantity("http_system_calls_per_request", "http", "calls", 0.5),
    Quantity("zeromq_system_calls_per_token", "zeromq", "calls", 0.9),
    Quantity("zeromq_system_calls_per_request", "zeromq", "calls", 0.0, is_gated=False),
    Quantity("zeromq_library_calls_per_token", "zeromq", "calls", 0.0, is_gated=False),
    Quantity("instructions_per_token", "instructions", "instructions", 0.01, depends_on=_BUILD, relative=True),
    Quantity("instructions_per_request", "instructions", "instructions", 0.01, depends_on=_BUILD, relative=True),
    Quantity("cold_lines_before_request_is_sent", "cold", "lines", 0.10, depends_on=_BUILD, relative=True),
    Quantity("cold_lines_before_first_token_is_out", "cold", "lines", 0.10, depends_on=_BUILD, relative=True),
    Quantity("cold_lines_per_token", "cold", "lines", 0.20, depends_on=_BUILD, relative=True),
    Quantity("cold_lines_of_last_read", "cold", "lines", 0.10, depends_on=_BUILD, relative=True),
    Quantity("python_calls_per_token", "calls", "calls", 0.05, depends_on=_CODE),
    Quantity("python_calls_per_request", "calls", "calls", 0.5, depends_on=_CODE),
    Quantity("c_calls_per_token", "calls", "calls", 0.05, depends_on=_CODE),
    Quantity("c_calls_per_request", "calls", "calls", 0.5, depends_on=_CODE),
    Quantity("allocations_per_token", "calls", "blocks", 0.2, depends_on=_CODE),
    Quantity("allocations_per_request", "calls", "blocks", 3.0, depends_on=_CODE),
    Quantity("kept_blocks_per_request", "calls", "blocks", 0.3, depends_on=_CODE),
    Quantity("memory_per_silent_stream", "memory", "kB", 0.5, limit=30.0, depends_on=_CODE),
    Quantity("memory_at_rest", "memory", "MB", 2.0, limit=45.0, depends_on=_CODE),
    Quantity("modules", "modules", "modules", 5, depends_on=_CODE),
    Quantity("start_to_ready", "memory", "ms", 0.0, is_gated=False),
)
_GROUPS: dict[str, Callable[[], Results]] = {
    "http": http_system_calls,
    "zeromq": zeromq_system_calls,
    "calls": calls,
    "instructions": instructions,
    "cold": cold_lines,
    "memory": memory,
    "modules": modules,
}
GROUPS = tuple(_GROUPS)
"""Names of what is measured together."""


def measure(group: str) -> Results:
    """Measure a group; where that cannot be done here, the reason stands for each of its quantities."""
    try:
        return _GROUPS[group]()
    except (BuildError, CannotTraceError, UnmeasurableError) as error:
        return {quantity.name: str(error) for quantity in QUANTITIES if quantity.group == group}
