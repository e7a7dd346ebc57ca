"""A thousand streams for a minute: no error, and memory and descriptors return to where they were."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="the mock host is compiled C")
def test_a_thousand_streams_leave_nothing_behind() -> None:
    command = [sys.executable, "-m", "bench.soak", "--streams", "1000", "--rate", "5", "--seconds", "60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
