"""What the machine keeps processes waiting is counted, and what they do themselves is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from time import monotonic_ns, sleep, thread_time_ns

import pytest

from tests.support import machine_delays
from tests.support.machine_delays import MachineDelays
from tests.support.waiting import wait_until

BUSY_NS = 100_000_000
BURN = "while True: pass"


@pytest.fixture
def crowded_core() -> Iterator[None]:
    """Bind this thread to one core and have another process burn it."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    command = [sys.executable, "-c", f"print(flush=True)\n{BURN}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as burner:  # inherits the core
        assert burner.stdout is not None
        try:
            assert burner.stdout.readline(), "it burns"
            yield
        finally:
            burner.kill()
            os.sched_setaffinity(0, mine)


@pytest.mark.usefixtures("crowded_core")
def test_waiting_for_a_core_is_counted() -> None:
    delays, began_ns, worked_ns = MachineDelays(), monotonic_ns(), thread_time_ns()
    while thread_time_ns() - worked_ns < BUSY_NS:
        pass
    waited_ns = monotonic_ns() - began_ns - BUSY_NS
    assert waited_ns > BUSY_NS / 4, "the other one has had its share"
    assert delays.ns() > waited_ns / 2
    assert delays.allowed_ns(BUSY_NS) > BUSY_NS + waited_ns / 2


def waits_for_nobody(pid: int) -> bool:
    before_ns = machine_delays.waited_ns()[pid]
    sleep(0.05)
    return machine_delays.waited_ns()[pid] == before_ns


def test_a_process_that_is_stopped_waits_for_nobody() -> None:
    """Who could run and may not waits for the machine; a router that stands still must not widen the bounds."""
    with subprocess.Popen([sys.executable, "-c", BURN]) as stopped:
        try:
            stopped.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, stopped.pid, os.WSTOPPED | os.WNOWAIT)
            wait_until(lambda: waits_for_nobody(stopped.pid), "it was told as stopped, and then it is")
        finally:
            stopped.kill()
