"""A bare word of shared memory for each direction, looked at all the time through a memoryview: no ring, no record."""

from __future__ import annotations

import mmap
import time
from pathlib import Path

from bench.alternatives.peer import Peer

_THERE, _BACK = 0, 16
"""Indices of the two words, a pair of cache lines apart."""


class MemoryviewSpin(Peer):
    """The yardstick of visibility: a store here, a load there."""

    name = "bare memoryview spin"
    loads = ("visibility",)

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")

    def ask(self, count: int) -> list[int]:
        words, clock = self._words, time.perf_counter_ns
        taken_ns = []
        for number in range(1, count + 1):
            began_ns = clock()
            words[_THERE] = number
            while words[_BACK] != number:
                pass
            taken_ns.append(clock() - began_ns)
        return taken_ns

    def answer(self, count: int) -> None:
        words = self._words
        for number in range(1, count + 1):
            while words[_THERE] != number:
                pass
            words[_BACK] = number
