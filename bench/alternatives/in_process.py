"""``collections.deque`` and ``queue.SimpleQueue``: between threads of one process. Nothing is copied."""

from __future__ import annotations

import queue
import time
from collections import deque
from pathlib import Path

from bench.alternatives.peer import RECORD, Peer, each_ns, rounds_ns

BACKLOG_MAX = 4096
"""Records ahead of the consumer at which the producer waits, so that no queue grows without end."""


class Deque(Peer):
    """A deque that the consumer looks into again and again: it has no wait of its own."""

    name = "collections.deque"
    loads = ("publish", "singly", "batch", "poll")
    is_threaded = True

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._records: deque[tuple[int, ...]] = deque()

    def publish_ns(self, count: int) -> float:
        append = self._records.append
        return each_ns(lambda: append(RECORD), count)

    def poll_per_s(self, count: int) -> float:
        self._records.extend([RECORD] * count)
        take = self._records.popleft
        return 1e9 / each_ns(take, count)

    def send(self, count: int, batch: int) -> None:
        records = self._records
        together = [RECORD] * batch
        for _ in range(count // batch):
            while len(records) > BACKLOG_MAX:
                time.sleep(0)
            records.extend(together)

    def receive(self, count: int, batch: int) -> None:  # noqa: ARG002 - takes what is there
        records = self._records
        for _ in range(count):
            while not records:
                time.sleep(0)
            assert records.popleft() is RECORD


class SimpleQueue(Peer):
    """The queue in C of the standard library; a batch is one item."""

    name = "queue.SimpleQueue"
    is_threaded = True

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._there: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._back: queue.SimpleQueue[object] = queue.SimpleQueue()

    def publish_ns(self, count: int) -> float:
        put = self._there.put
        return each_ns(lambda: put(RECORD), count)

    def send(self, count: int, batch: int) -> None:
        put, size = self._there.put, self._there.qsize
        item = (RECORD,) * batch
        for _ in range(count // batch):
            while size() > BACKLOG_MAX:
                time.sleep(0)
            put(item)

    def receive(self, count: int, batch: int) -> None:
        get = self._there.get
        for _ in range(count // batch):
            assert len(get()) == batch  # type: ignore[arg-type]

    def ask(self, count: int) -> list[int]:
        put = self._there.put
        return rounds_ns(lambda: put(RECORD), self._back.get, count)

    def answer(self, count: int) -> None:
        for _ in range(count):
            self._back.put(self._there.get())
