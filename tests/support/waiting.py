"""Free ports, fresh directories, and waiting for what has no event to await."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

POLL_S = 0.005
WAIT_S = 60.0
"""So long only what never comes is waited for, even by a machine that does much else: an observer has taken 14 s to
start beside eight processes on two cores."""
T = TypeVar("T")


_PORTS = range(10_000, 32_000)
"""Below those that the kernel gives to connections (net.ipv4.ip_local_port_range): none takes a port that was found
free, nor one whose router is being started again."""
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 2
_steps = itertools.count(random.SystemRandom().randrange(len(_PORTS)))


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 on which nothing listens, another one each time.

    Two processes that run tests side by side are given odd and even ones.
    """
    while True:
        port = _PORTS[(2 * next(_steps) + _WORKER) % len(_PORTS)]
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


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
