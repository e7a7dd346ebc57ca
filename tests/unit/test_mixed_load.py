"""Native code and plain Python under a mix of all that clients, hosts and the operator do: the same comes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from router import native
from tests.support.waiting import shared_memory_directory

ROOT = Path(__file__).resolve().parents[2]
STEPS = 3000
SEEDS = (1, 2)
BLOCKS_MORE_MAX = 150
"""Of memory, over three rounds. Requests that are not released leave eight times as many."""


def started(seed: int, directory: Path, scanner: str) -> subprocess.Popen[bytes]:
    directory.mkdir()
    command = [sys.executable, "-m", "tests.support.mixed_load", str(seed), str(STEPS), str(directory)]
    environment = os.environ | {"RINGROUTER_SCANNER": scanner, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE)


def result(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.skipif(native.BACKEND != "c", reason="the native code is not compiled here")
@pytest.mark.parametrize("seed", SEEDS)
def test_native_and_plain_code_come_to_the_same(seed: int) -> None:
    with shared_memory_directory() as directory:
        processes = [started(seed, directory / name, name) for name in ("native", "plain")]
        by_native, by_python = map(result, processes)
    assert (by_native["backend"], by_python["backend"]) == ("c", "plain")
    for found in (by_native, by_python):
        assert not found["faults"]
        for left in found["left"]:
            assert not any(left.values()), left
    natively_kept, plainly_kept = (found["blocks"][-1] - found["blocks"][0] for found in (by_native, by_python))
    assert natively_kept < plainly_kept + BLOCKS_MORE_MAX, "native code keeps what Python lets go"
    for told in zip(by_native["told"], by_python["told"], strict=True):
        for natively, plainly in zip(*(each.split("\n") for each in told), strict=True):
            assert natively == plainly
