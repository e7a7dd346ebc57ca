"""Which process is it, and is it still the same one: pid, start ticks and boot id."""

from __future__ import annotations

import uuid
from pathlib import Path

from ringbuffer.errors import named

GONE = ("Z", "X")
"""States of /proc/PID/stat of a process that runs no more and only waits to be reaped."""


def start_ticks(pid: int) -> int:
    """Return when a process started, in clock ticks since boot, 0 when there is no such running process.

    Source: field 22 of /proc/PID/stat, proc(5). A pid is reused, a pair of pid and start is not. Raises RingError when
    it cannot be told, for want of a descriptor say: taking that for the end of a process would drop a live one.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    except OSError as error:
        raise named(error, f"/proc/{pid}/stat cannot be read") from error
    # The command stands in parentheses and may itself hold spaces and parentheses: fields count from the last one.
    fields = stat[stat.rindex(b")") + 2 :].decode("ascii").split()
    return 0 if fields[0] in GONE else int(fields[19])


def is_alive(pid: int, ticks: int) -> bool:
    """Tell whether the process that had this pid and start still runs."""
    return ticks != 0 and start_ticks(pid) == ticks


def boot_id() -> uuid.UUID:
    """Return the id of the running boot: monotonic stamps of two boots cannot be compared."""
    return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip())
