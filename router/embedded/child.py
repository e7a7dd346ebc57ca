"""One supervised program: its process, its log, and how long to wait before it is started again.

It is in a process group of its own, so that Ctrl-C in a terminal reaches the supervisor alone; and the kernel kills it
when the supervisor dies, so that nothing is ever left behind.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

READY_S: Final = 60.0
"""A model loads in under a second; a cold disk and a busy machine may make it a minute."""

BACK_OFF_FIRST_S: Final = 0.5
BACK_OFF_LAST_S: Final = 10.0
STEADY_AFTER_S: Final = 30.0

LOG_BYTES_MAX: Final = 4 << 20
"""Logs lie in memory (tmpfs), so they are bounded."""
LOG_TAIL_LINES: Final = 15

_PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>
_libc: Final = ctypes.CDLL(None, use_errno=True)


class RunError(Exception):
    """`ringrouter run` cannot go on; the message says why and what to do."""


class Child:
    """One program: its command, its log, and its process while it runs.

    ``announces_ready``: the program takes ``--ready-fd N`` and writes a line there when it can serve.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log_path: Path,
        *,
        announces_ready: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """``environment``: all of it; without one, this process's."""
        self.name = name
        self._environment = environment
        self.log_path = log_path
        self.started_s = 0.0
        self._command = list(command)
        self._announces_ready = announces_ready
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = asyncio.Event()
        self._ready = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The process id while the process runs."""
        return self._process.pid if self._process is not None and not self._ended.is_set() else None

    def start(self) -> None:
        """Start the program; raises ``OSError`` if it cannot be executed."""
        self._ready.clear()
        self.started_s = time.monotonic()
        if self._announces_ready:
            self._start_announcing()
        else:
            self._process = spawn(self._command, self.log_path, environment=self._environment)
        self._ended.clear()

    def _start_announcing(self) -> None:
        read_fd, write_fd = os.pipe()
        try:
            command = [*self._command, "--ready-fd", str(write_fd)]
            self._process = spawn(command, self.log_path, pass_fds=(write_fd,), environment=self._environment)
        except OSError:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        asyncio.get_running_loop().add_reader(read_fd, self._take_ready, read_fd)

    def _take_ready(self, read_fd: int) -> None:
        line = os.read(read_fd, 4096)
        asyncio.get_running_loop().remove_reader(read_fd)
        os.close(read_fd)
        if line:  # nothing: the program ended without having become ready, which reap() tells
            self._ready.set()

    def reap(self) -> None:
        """Take note if the process has ended; to be called when a child of this process has."""
        if self._process is not None and self._process.poll() is not None:
            self._ended.set()

    async def wait_ready(self) -> None:
        """Wait until the program says that it can serve; raises :class:`RunError` if it ends or takes too long."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self._ready, self._ended)]
        try:
            await asyncio.wait(waits, timeout=READY_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self._ended.is_set():
            raise self.failure(f"{self.name} ended before it was ready ({describe_exit(self.exit_code)})")
        if not self._ready.is_set():
            raise self.failure(f"{self.name} was not ready after {READY_S:g} s")

    async def wait_ended(self) -> int:
        """Wait until the process has ended; return its exit code (negative: the signal that killed it)."""
        await self._ended.wait()
        return self.exit_code

    @property
    def exit_code(self) -> int:
        """The exit code of the last process, 0 while it runs."""
        return (self._process.returncode or 0) if self._process is not None else 0

    def failure(self, message: str) -> RunError:
        """Return the error that says ``message``, names the log and shows its end."""
        tail = log_tail(self.log_path)
        return RunError(f"{message}; its log: {self.log_path}" + (f"\n{tail}" if tail else ""))

    async def stop(self, grace_s: float) -> bool:
        """End the process: SIGTERM, then SIGKILL after ``grace_s``. Return False if it had to be killed."""
        if self.pid is None:
            return True
        self.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._ended.wait(), grace_s)
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self._ended.wait()
            return False
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it runs."""
        if self._process is not None and self.pid is not None:
            self._process.send_signal(number)


def spawn(
    command: Sequence[str],
    log_path: Path,
    *,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program that ends with this process, in its own process group, its output appended to its log."""
    parent_pid = os.getpid()

    def die_with_parent() -> None:
        # The rings are made for a killed writer and the hosts keep nothing, so the sure signal is the right one.
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:  # it died before the line above
            os.kill(os.getpid(), signal.SIGKILL)

    with log_path.open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - the commands are ours
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=pass_fds,
            env=environment,
            process_group=0,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - it takes no lock that a thread could hold
        )


class BackOff:
    """How long to wait before a child is started again."""

    def __init__(self) -> None:
        self._next_s = BACK_OFF_FIRST_S

    def delay_s(self, up_s: float) -> float:
        """Return the seconds to wait after a child ended that had run for ``up_s`` seconds."""
        if up_s >= STEADY_AFTER_S:
            self._next_s = BACK_OFF_FIRST_S
        delay_s = self._next_s
        self._next_s = min(2 * delay_s, BACK_OFF_LAST_S)
        return delay_s


def bound_log(path: Path) -> None:
    """Move a log that is over its bound to ``NAME.log.1`` and begin it anew. Its writers append, so they go on."""
    if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
        shutil.copyfile(path, path.with_name(path.name + ".1"))
        os.truncate(path, 0)


def log_tail(path: Path) -> str:
    """Return the last lines of a log, indented; empty if there are none."""
    if not path.exists():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return "\n".join(f"  | {line}" for line in lines)


def describe_exit(exit_code: int) -> str:
    """Say how a process ended."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    return f"killed by {signal.Signals(-exit_code).name}"
