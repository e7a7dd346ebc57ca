"""Torture of the rings: a writer at full speed and several readers, each a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests" / "ringbuffer" / "ring_torture.py"


class Tortured:
    """One of the processes; its answer comes after ``go``."""

    def __init__(self, backend: str, role: str, path: Path, seconds: float) -> None:
        environment = os.environ | {"RINGBUFFER_BACKEND": backend, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, PROGRAM, role, path, str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.line() == "ready"

    def line(self) -> str:
        """Return what it says next; fail with what it printed if it has ended."""
        assert self.process.stdout is not None
        said = self.process.stdout.readline().strip()
        if not said:
            self.process.kill()
            raise AssertionError(self.process.communicate()[1][-4000:])
        return said

    def go(self) -> None:
        """Let it go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def numbers(self) -> list[int]:
        """Return the numbers of its answer."""
        return [int(each) for each in self.line().split()]

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


def torture(
    directory: Path, writer: tuple[str, str], readers: list[tuple[str, str]], seconds: float
) -> tuple[int, list[tuple[int, int]]]:
    """Run a writer and readers, each (backend, role); return the records published, and (delivered, lost) of each."""
    path = directory / "torture"
    with contextlib.ExitStack() as stack:

        def start(backend: str, role: str) -> Tortured:
            process = Tortured(backend, role, path, seconds)
            stack.callback(process.close)
            return process

        source = start(*writer)
        takers = [start(*reader) for reader in readers]
        for each in [*takers, source]:
            each.go()
        (published,) = source.numbers()
        results = []
        for each in takers:
            delivered, lost = each.numbers()
            results.append((delivered, lost))
    return published, results
