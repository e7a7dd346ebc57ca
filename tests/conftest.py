"""What holds for all tests, and how they are shared out when two processes run them (`make test`)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support.waiting import shared_memory_directory

# Every run of the tests draws the same examples and none is timed: what fails, fails for everybody and again, and no
# busy machine fails anything. `pytest --hypothesis-profile=search` looks for new ones.
settings.register_profile(
    "suite",
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("search", settings.get_profile("suite"), derandomize=False)
settings.load_profile("suite")

# A shell starts what runs behind it with the interrupt ignored, and children inherit that: tests that interrupt a
# program would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # likewise behind nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

COMPUTED = (
    "tests/bench/test_bench_gate.py", "tests/bench/test_bench_harness.py", "tests/bench/test_bench_policies.py",
    "tests/bench/test_bench_report.py", "tests/crash/", "tests/observer/", "tests/ordering/", "tests/packaging/",
    "tests/property/", "tests/ringbuffer/", "tests/simulation/", "tests/tidy/", "tests/unit/",
)  # fmt: skip
"""Tests that compute. All others await processes that run by the clock, and share model hosts and a systemd: those stay
together, one after the other, in one process, as if there were no other; these run beside them in the other one.
"""
NICE = 5
"""What computes makes room for what runs by the clock."""


def group_of(node_id: str) -> str:
    """Return which of the two processes runs a test."""
    return "computed" if node_id.startswith(COMPUTED) else "clocked"


@pytest.hookimpl(optionalhook=True)  # pytest-xdist asks
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return what hands out one of the two groups to each of the two processes, whole and in order."""
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415 - only where it is installed and in use

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Groups(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Lower the priority of the process that computes."""
    if hasattr(item.config, "workerinput") and group_of(item.nodeid) == "computed":
        os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))


@pytest.fixture
def directory() -> Iterator[Path]:
    """A fresh directory in shared memory, as rings need it."""
    with shared_memory_directory() as path:
        yield path
