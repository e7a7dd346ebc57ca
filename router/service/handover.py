"""An upgrade: this process starts the next one with its sockets, and goes on serving until that one does too.

::

    this process                                   the next one
    ─────────────────────────────────────────────  ────────────────────────────────────────────────
    SIGUSR2: starts the same command again ──────▶ takes sockets and lock, reads the configuration,
    goes on as before                              makes rings of its own, asks every host
    ◀───────────────── a line in the pipe ──────── tells systemd MAINPID and READY, then serves
    accepts no more, ends each connection with
    its next answer, drains, ends

If the next one ends, or takes longer than :data:`READY_TIMEOUT_S`, nothing has changed but a line in the log, and
what it has left in shared memory is deleted. What is started is the command of this process, found anew: the same path
now leads to the new version.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from router.service.inherited import HANDOVER_VARIABLE, Handover

if TYPE_CHECKING:
    from router.listeners import Listeners

READY_TIMEOUT_S: Final = 60.0
"""Rings are reserved and hosts asked in a second or two; a process that takes so long will not come."""
_KILLED_S: Final = 5.0
SUPERVISED_VARIABLE: Final = "RINGROUTER_SUPERVISED"
"""Set for a child of `ringrouter run`."""
READY_LINE: Final = b"serving\n"
_OF_THIS_PROCESS: Final = ("WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class HandoverError(Exception):
    """The next process does not serve; the text says why."""


def check_possible() -> None:
    """Raise :class:`HandoverError` where the end of this process would be the end of the next one too."""
    if os.getpid() == 1:
        raise HandoverError("process 1 of a container cannot be followed by another: replace the container")
    if os.environ.get(SUPERVISED_VARIABLE):
        raise HandoverError("`ringrouter run` watches this process and no other: stop that and start it again")


async def hand_over(listeners: Listeners, lock: int, stop: asyncio.Event) -> int:
    """Start the next process and wait until it serves; return its pid. Raises :class:`HandoverError`.

    ``lock`` is the descriptor of the instance's lock, which both hold from then on. When ``stop`` is set meanwhile, the
    next process is told to stop too, however far it is.
    """
    read_end, write_end = os.pipe()
    passed = Handover(
        ready=write_end,
        lock=lock,
        held_http=[each.sock.fileno() for each in listeners.http if not each.address],
        held_zeromq=[each.sock.fileno() for each in listeners.zeromq if not each.address],
        own=listeners.own(),
    )
    own = [each for found in passed.own.values() for each in found]
    descriptors = [write_end, lock, *passed.held_http, *passed.held_zeromq, *own]
    try:
        process = await asyncio.to_thread(_start, passed, descriptors)
    except OSError as error:
        os.close(read_end)
        raise HandoverError(f"the new process cannot be started: {error}") from None
    finally:
        os.close(write_end)
    try:
        line = await _first_line(read_end, stop)
    finally:
        os.close(read_end)
    if stop.is_set():
        process.terminate()
        raise HandoverError("this process was told to stop, and the new one with it")
    if line == READY_LINE:
        return process.pid
    raise HandoverError(await asyncio.to_thread(_end, process))


def say_ready(descriptor: int) -> None:
    """Tell the process that started this one that this one serves."""
    with contextlib.suppress(OSError):  # it is gone: then there is nobody to relieve
        os.write(descriptor, READY_LINE)
    os.close(descriptor)


def _start(passed: Handover, descriptors: list[int]) -> subprocess.Popen[bytes]:
    """Start this process's own command; raises :class:`OSError`. Runs in a thread: the loop does not wait for exec."""
    environment = {name: value for name, value in os.environ.items() if name not in _OF_THIS_PROCESS}
    environment[HANDOVER_VARIABLE] = msgspec.json.encode(passed).decode()
    command = [sys.executable, *sys.orig_argv[1:]]
    return subprocess.Popen(command, pass_fds=descriptors, env=environment, stdin=subprocess.DEVNULL)  # noqa: S603


async def _first_line(read_end: int, stop: asyncio.Event) -> bytes:
    """Wait for what a pipe brings; empty when that takes too long or this process is told to stop."""
    tasks = [asyncio.ensure_future(_read_line(read_end)), asyncio.ensure_future(stop.wait())]
    await asyncio.wait(tasks, timeout=READY_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
    line = tasks[0].result() if tasks[0].done() else b""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)  # the pipe is closed behind this
    return line if isinstance(line, bytes) else b""


async def _read_line(descriptor: int) -> bytes:
    """Wait for the first bytes of a pipe, empty when its other end is closed."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)
    return os.read(descriptor, len(READY_LINE))


def _end(process: subprocess.Popen[bytes]) -> str:
    """See how a process that does not serve ended, ending it if need be; return what to say about it."""
    try:
        code = process.wait(0.5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_KILLED_S)
        return f"the new process did not serve within {READY_TIMEOUT_S:g} s and was ended"
    return f"the new process ended with exit code {code}; its log says why"
