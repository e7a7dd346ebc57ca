"""What the numbers depend on: facts of the machine, stolen time, and the CPU, memory and descriptors of a process."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SPIN_S = 0.5
_PROC_STAT_STEAL_FIELD = 8
_CPUCLOCK_OF_PROCESS = 2  # CPUCLOCK_SCHED for a whole process, as clock_getcpuclockid(3) makes it


class StolenTime(NamedTuple):
    """How much of a busy second the machine took away."""

    stolen_percent: float
    longest_pause_ms: float


def facts() -> list[str]:
    """Return the machine in lines: processor, kernel, interpreter, versions of what is on the token path."""
    cores = os.sched_getaffinity(0)
    libraries = ", ".join(f"{name} {_version(name)}" for name in ("uvloop", "msgspec", "httptools"))
    return [
        f"{_cpu_model()}, {len(cores)} core{'s' if len(cores) != 1 else ''}",
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, {libraries}",
    ]


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def stolen_s() -> float:
    """Return the seconds for which the hypervisor kept this machine's cores from running, all cores together."""
    with open("/proc/stat", encoding="ascii") as file:
        return int(file.readline().split()[_PROC_STAT_STEAL_FIELD]) / os.sysconf("SC_CLK_TCK")


def check_stolen_time() -> StolenTime:
    """Spin for :data:`SPIN_S` and see what was taken: the share stolen, and the longest time between two looks."""
    stolen_before_s, begin_ns = stolen_s(), time.monotonic_ns()
    longest_ns, now_ns = 0, begin_ns
    while now_ns < begin_ns + SPIN_S * 1e9:
        before_ns, now_ns = now_ns, time.monotonic_ns()
        longest_ns = max(longest_ns, now_ns - before_ns)
    stolen_percent = 100e9 * (stolen_s() - stolen_before_s) / (now_ns - begin_ns)
    return StolenTime(stolen_percent, longest_ns / 1e6)


def cpu_s(pid: int) -> float:
    """Return the user and system time of a process, to the nanosecond (``/proc`` counts in 10 ms)."""
    return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_OF_PROCESS) / 1e9


def process_tree(pid: int) -> list[int]:
    """Return a process and all its descendants that are there now."""
    found, to_visit = [], [pid]
    while to_visit:
        found.append(to_visit.pop())
        for children in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # a thread that has ended meanwhile
                to_visit += map(int, children.read_text(encoding="ascii").split())
    return found


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process, shared pages included."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def anonymous_bytes(pid: int) -> int:
    """Return the anonymous memory of a process: what it has allocated, without files and shared memory."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/{pid}/smaps_rollup has no line Anonymous")


def descriptor_count(pid: int) -> int:
    """Return the number of open descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def two_cores() -> tuple[int | None, int | None]:
    """Return a core for the router and one for hosts and load; (None, None) when there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    return (cores[1], cores[0]) if len(cores) > 1 else (None, None)


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Start processes on one core: a child inherits the affinity that this thread has in the meantime."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
