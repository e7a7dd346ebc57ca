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


def wait_until(predicate: Callable[[], T], what: str, timeout_s: float = 10.0) -> T:
    """Return the first true value of ``predicate``; fail with ``what`` if none comes in ``timeout_s`` seconds."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := predicate()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"waited {timeout_s:g} s in vain: {what}")
        time.sleep(POLL_S)
    return value
