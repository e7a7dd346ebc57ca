"""Free ports, fresh directories, and waiting for what has no event to await."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

POLL_S = 0.005
WAIT_S = 20.0
"""So long only what never comes is waited for, even by a machine that does much else."""
T = TypeVar("T")


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def shared_memory_directory() -> Iterator[Path]:
    """Make a fresh directory on tmpfs, with a path short enough for unix sockets; remove it afterwards."""
    path = Path(tempfile.mkdtemp(prefix="rr-test-", dir="/dev/shm"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def wait_until(predicate: Callable[[], T], what: str, timeout_s: float = WAIT_S) -> T:
    """Return the first true value of ``predicate``; fail with ``what`` if none comes in ``timeout_s`` seconds."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        is_last = time.monotonic() > deadline_s  # told before the look: whoever was stopped for so long looks once more
        if value := predicate():
            return value
        if is_last:
            raise AssertionError(f"waited {timeout_s:g} s in vain: {what}")
        time.sleep(POLL_S)
