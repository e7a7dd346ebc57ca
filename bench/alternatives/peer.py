"""What every peer of the ring measurements can be asked to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

RECORD = (1, 2, 3, 4, 5, 6, 7)
RECORD_BYTES = 56

Load = Literal["publish", "singly", "batch", "poll", "visibility"]


class Peer:
    """A way from a producer to a consumer. Made before the processes part; ``directory`` is empty and in shared memory.

    The consumer's methods run in another process, or in another thread where ``is_threaded``.
    """

    name: ClassVar[str]
    loads: ClassVar[tuple[Load, ...]] = ("publish", "singly", "batch", "visibility")
    is_threaded: ClassVar[bool] = False

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def publish_ns(self, count: int) -> float:
        """Publish ``count`` records one by one, nobody taking them meanwhile; return the ns that one takes."""
        raise NotImplementedError

    def poll_per_s(self, count: int) -> float:
        """Take ``count`` records that lie ready; return the records a second."""
        raise NotImplementedError

    def send(self, count: int, batch: int) -> None:
        """Producer: send ``count`` records, ``batch`` at once, losing none."""
        raise NotImplementedError

    def receive(self, count: int, batch: int) -> None:
        """Consumer: receive all of them; AssertionError when one is missing, or comes twice."""
        raise NotImplementedError

    def ask(self, count: int) -> list[int]:
        """Producer: send a record and wait until one comes back, ``count`` times; return the ns each round took."""
        raise NotImplementedError

    def answer(self, count: int) -> None:
        """Consumer: send a record back for each that comes, ``count`` times."""
        raise NotImplementedError

    def open_consumer(self) -> None:
        """Do what the consumer must have done before the producer begins."""

    def close_consumer(self) -> None:
        """Consumer: give back what it holds, sending on what it has not yet sent."""

    def open_producer(self) -> None:
        """Do what else must have been done before the clock starts; the consumer is open by now."""

    def close(self) -> None:
        """Give back what the producer holds."""


def each_ns(publish: Callable[[], object], count: int) -> float:
    """Return the ns of one call out of ``count``, the loop around them included."""
    began_ns = time.perf_counter_ns()
    for _ in range(count):
        publish()
    return (time.perf_counter_ns() - began_ns) / count


def rounds_ns(send: Callable[[], object], receive: Callable[[], object], count: int) -> list[int]:
    """Return the ns of each round of sending and waiting for the answer."""
    clock = time.perf_counter_ns
    taken_ns = []
    for _ in range(count):
        began_ns = clock()
        send()
        receive()
        taken_ns.append(clock() - began_ns)
    return taken_ns
