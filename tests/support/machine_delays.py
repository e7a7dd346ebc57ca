"""For how long the machine has kept a test's processes waiting: what a bound on a time allows beyond itself.

A bound such as "the host sees it within 100 ms" is about the router. On a busy machine each process on the way may be
ready to go on and get no processor for longer than that; the kernel counts this time for each thread, exactly, and it
is nobody's fault here. On a machine that is quiet it is next to nothing and the bound is as tight as it reads.
"""

from __future__ import annotations

import os
from pathlib import Path

_STEAL_FIELD = 8
"""Of the line `cpu` in /proc/stat: the time that the hypervisor gave to other machines."""


class MachineDelays:
    """What the threads of this process and of all that it has started have waited for a processor since a moment."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Count from now on."""
        self._stolen_ns = _stolen_ns()
        self._waited_ns = waited_ns()

    def ns(self) -> int:
        """Return the sum since then, in nanoseconds; that of threads which have ended since is not in it."""
        began = self._waited_ns
        waited = sum(max(0, ns - began.get(thread, 0)) for thread, ns in waited_ns().items())
        return waited + _stolen_ns() - self._stolen_ns

    def allowed_ns(self, limit_ns: int) -> int:
        """Return the bound with this sum on top: what takes longer has taken its time itself."""
        return limit_ns + self.ns()


def waited_ns() -> dict[int, int]:
    """Return for each thread of the process tree how long it has been ready to run while others ran.

    It is the second number of /proc/PID/task/TID/schedstat (Linux, Documentation/scheduler/sched-stats.rst). Empty on a
    kernel that does not count it.
    """
    found: dict[int, int] = {}
    processes = [os.getpid()]
    while processes:
        for thread in _threads(processes.pop()):
            try:
                processes += map(int, (thread / "children").read_bytes().split())
                found[int(thread.name)] = int((thread / "schedstat").read_bytes().split()[1])
            except (OSError, IndexError):  # it has just ended
                continue
    return found


def _threads(process: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{process}/task").iterdir())
    except OSError:
        return []


def _stolen_ns() -> int:
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    return int(fields[_STEAL_FIELD]) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
