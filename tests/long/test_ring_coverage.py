"""Every branch of the rings is run by their own tests, on each backend alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
TESTS = ("tests/ringbuffer", "-m", "not long", "--ignore=tests/ringbuffer/test_ring_torture.py")
"""The torture's work is done by other processes, which are not measured."""
OTHER_BACKEND = {"c": "ringbuffer/_plain/*", "plain": ""}
"""What a backend cannot run; the C of the other one is not counted."""


@pytest.mark.parametrize("backend", ["c", "plain"])
def test_branch_coverage_is_complete(tmp_path: Path, backend: str) -> None:
    if backend == "c":
        pytest.importorskip("ringbuffer._words", reason="the C extension was not built: no compiler")
    environment = os.environ | {
        "RINGBUFFER_BACKEND": backend,
        "RING_TEST_BACKENDS": backend,
        "COVERAGE_FILE": str(tmp_path / "coverage"),
    }
    run(environment, "run", "--branch", "--source=ringbuffer", "-m", "pytest", *TESTS)
    report = run(environment, "report", "--show-missing", "--skip-covered", f"--omit={OTHER_BACKEND[backend]}")
    total = next(line for line in report.splitlines() if line.startswith("TOTAL"))
    assert total.endswith(" 100%"), report


def run(environment: dict[str, str], *arguments: str) -> str:
    """Run coverage and return what it printed."""
    command = [sys.executable, "-m", "coverage", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout
