"""``multiprocessing.Queue``: a pipe, two locks, a semaphore and a thread that pickles."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

from bench.alternatives.peer import RECORD, RECORD_BYTES, Peer, each_ns, rounds_ns


class MultiprocessingQueue(Peer):
    """A batch is one item: the bytes of its records."""

    name = "multiprocessing.Queue"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        context = multiprocessing.get_context("fork")
        self._there: multiprocessing.Queue[Any] = context.Queue()
        self._back: multiprocessing.Queue[Any] = context.Queue()

    def publish_ns(self, count: int) -> float:
        put = self._there.put
        taken_ns = each_ns(lambda: put(RECORD), count)
        for _ in range(count):
            self._there.get()
        return taken_ns

    def send(self, count: int, batch: int) -> None:
        put = self._there.put
        item = RECORD if batch == 1 else bytes(batch * RECORD_BYTES)
        for _ in range(count // batch):
            put(item)

    def receive(self, count: int, batch: int) -> None:
        get = self._there.get
        size = len(RECORD) if batch == 1 else batch * RECORD_BYTES
        for _ in range(count // batch):
            assert len(get()) == size

    def ask(self, count: int) -> list[int]:
        put = self._there.put
        return rounds_ns(lambda: put(RECORD), self._back.get, count)

    def answer(self, count: int) -> None:
        for _ in range(count):
            self._back.put(self._there.get())

    def close_consumer(self) -> None:
        self._back.close()
        self._back.join_thread()

    def close(self) -> None:
        for each in (self._there, self._back):
            each.close()
            each.join_thread()
