"""The rings of this checkout as peers of their measurement: both kinds, both backends, spinning and with a doorbell."""

from __future__ import annotations

import importlib
import itertools
import os
import time
from pathlib import Path
from typing import ClassVar

import numpy as np

from bench.alternatives.peer import RECORD_BYTES, Peer
from ringbuffer import (
    BroadcastReader,
    BroadcastWriter,
    Doorbell,
    DoorbellServer,
    GatingConsumer,
    GatingProducer,
    words,
)

SLOT_BYTES = 64
SLOT_COUNT = 4096
"""Slots of the rings between processes: 256 KiB, what a second-level cache holds."""
POLL_SLOT_COUNT = 65_536
ROOM_RECORDS = 4096
"""Records that one poll may bring."""
SPIN_NS = 100_000_000
SCHEMA = (1, 0)


class RingPeer(Peer):
    """A ring; whoever opens one takes the backend of the peer."""

    backend: ClassVar[str]

    def use_backend(self) -> None:
        words.core = importlib.import_module("ringbuffer._words" if self.backend == "c" else "ringbuffer._plain")

    def broadcast(self, name: str, slot_count: int = SLOT_COUNT) -> BroadcastWriter:
        self.use_backend()
        return BroadcastWriter.create(
            self.directory / name, slot_count=slot_count, slot_size=SLOT_BYTES, record_schema=SCHEMA, name=name
        )

    def gating(self, name: str, slot_count: int = SLOT_COUNT) -> GatingProducer:
        self.use_backend()
        return GatingProducer.create(
            self.directory / name, slot_count=slot_count, slot_size=SLOT_BYTES, record_schema=SCHEMA, name=name
        )


class Broadcast(RingPeer):
    """The lossy ring; visibility is that of a consumer that spins."""

    loads = ("publish", "poll", "visibility")

    def publish_ns(self, count: int) -> float:
        writer = self.broadcast("publish")
        publish = writer.publish
        began_ns = time.perf_counter_ns()
        for n in range(count):
            publish(n, 2, 3, 4, 5, 6, 7)
        taken_ns = time.perf_counter_ns() - began_ns
        writer.close()
        return taken_ns / count

    def poll_per_s(self, count: int) -> float:
        writer = self.broadcast("poll", POLL_SLOT_COUNT)
        room = np.empty((ROOM_RECORDS, 8), np.uint64)
        taken_ns = polled = 0
        while polled < count:
            reader = BroadcastReader.attach(writer.segment.path)
            writer.publish_batch(bytes(POLL_SLOT_COUNT * RECORD_BYTES))
            began_ns = time.perf_counter_ns()
            while taken := reader.poll_into(room):
                polled += taken
            taken_ns += time.perf_counter_ns() - began_ns
            assert reader.lost == 0
        writer.close()
        return 1e9 * polled / taken_ns

    def open_consumer(self) -> None:
        self._back = self.broadcast("back")
        self._in = BroadcastReader.attach(self.directory / "there")

    def ask(self, count: int) -> list[int]:
        reader = BroadcastReader.attach(self.directory / "back")
        publish, poll_into = self._there.publish, reader.poll_into
        room, clock = bytearray(SLOT_BYTES), time.perf_counter_ns
        taken_ns = []
        for n in range(count):
            began_ns = clock()
            publish(n, 2, 3, 4, 5, 6, 7)
            poll_into(room, SPIN_NS)
            taken_ns.append(clock() - began_ns)
        assert int.from_bytes(room[:8], "little") == count - 1
        return taken_ns

    def answer(self, count: int) -> None:
        publish, poll_into = self._back.publish, self._in.poll_into
        room = bytearray(SLOT_BYTES)
        for n in range(count):
            poll_into(room, SPIN_NS)
            publish(n, 2, 3, 4, 5, 6, 7)

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._there = self.broadcast("there")

    def close(self) -> None:
        self._there.close()


class Gating(RingPeer):
    """The ring that refuses; throughput is that of a consumer that spins while there is nothing."""

    loads = ("publish", "singly", "batch", "poll")

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._producer = self.gating("there")

    def close(self) -> None:
        self._producer.close()

    def publish_ns(self, count: int) -> float:
        publish = self._producer.try_publish
        began_ns = time.perf_counter_ns()
        for n in range(count):
            publish(n, 2, 3, 4, 5, 6, 7)
        taken_ns = time.perf_counter_ns() - began_ns
        assert self._producer.full_count == 0, "nobody gates"
        return taken_ns / count

    def poll_per_s(self, count: int) -> float:
        producer = self.gating("poll", POLL_SLOT_COUNT)
        consumer = GatingConsumer.register(producer.segment.path, "poll")
        room = np.empty((ROOM_RECORDS, 8), np.uint64)
        taken_ns = polled = 0
        while polled < count:
            producer.try_publish_batch(bytes(POLL_SLOT_COUNT * RECORD_BYTES))
            began_ns = time.perf_counter_ns()
            while taken := consumer.poll_into(room):
                polled += taken
                consumer.release(polled)
            taken_ns += time.perf_counter_ns() - began_ns
        consumer.close()
        producer.close()
        return 1e9 * polled / taken_ns

    def send(self, count: int, batch: int) -> None:
        if batch > 1:
            self._send_batches(count // batch, bytes(batch * RECORD_BYTES))
            return
        publish, give_way = self._producer.try_publish, os.sched_yield
        for n in range(count):
            while publish(n, 2, 3, 4, 5, 6, 7) < 0:
                give_way()

    def _send_batches(self, batch_count: int, records: bytes) -> None:
        publish, give_way = self._producer.try_publish_batch, os.sched_yield
        for _ in range(batch_count):
            while publish(records) < 0:
                give_way()

    def open_consumer(self) -> None:
        self.use_backend()
        self._consumer = GatingConsumer.register(self.directory / "there", "consumer")

    def receive(self, count: int, batch: int) -> None:  # noqa: ARG002 - takes what is there
        consumer = self._consumer
        room = np.empty((ROOM_RECORDS, 8), np.uint64)
        sequences = room[:, 0]
        wanted = np.arange(ROOM_RECORDS, dtype=np.uint64)
        received = 0
        while received < count:
            taken = consumer.poll_into(room, SPIN_NS)
            assert (sequences[:taken] == wanted[:taken] + received).all(), "none lost, none doubled"
            received += taken
            consumer.release(received)
        consumer.close()


class GatingDoorbell(Gating):
    """The same ring with a consumer that sleeps until its bell is rung."""

    loads = ("visibility",)

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._server = DoorbellServer.listen(directory / "there.bell")

    def close(self) -> None:
        self._server.close()
        super().close()

    def open_consumer(self) -> None:
        super().open_consumer()
        self._back = self.gating("back")
        self._back_server = DoorbellServer.listen(self.directory / "back.bell")

    def ask(self, count: int) -> list[int]:
        _serve_one(self._server)
        bell = Doorbell.connect(self.directory / "back.bell")
        self._consumer = GatingConsumer.register(self.directory / "back", "producer")
        taken_ns = []
        for _ in range(count):
            began_ns = time.perf_counter_ns()
            self._producer.try_publish(1, 2, 3, 4, 5, 6, 7)
            self._server.ring()
            self._take_one(bell)
            taken_ns.append(time.perf_counter_ns() - began_ns)
        bell.close()
        return taken_ns

    def answer(self, count: int) -> None:
        bell = Doorbell.connect(self.directory / "there.bell")
        _serve_one(self._back_server)
        for _ in range(count):
            self._take_one(bell)
            self._back.try_publish(1, 2, 3, 4, 5, 6, 7)
            self._back_server.ring()
        self._back_server.close()

    def _take_one(self, bell: Doorbell) -> None:
        consumer = self._consumer
        while True:
            first, end = consumer.poll(1)
            if first < end:
                consumer.read(first)
                consumer.release(end)
                return
            bell.wait()


def _serve_one(server: DoorbellServer) -> None:
    while server.bell_count == 0:
        server.serve()
        os.sched_yield()


def ring_peers() -> list[type[Peer]]:
    """Return every ring with every backend of this installation."""
    backends = ["plain"]
    if importlib.util.find_spec("ringbuffer._words"):
        backends.insert(0, "c")
    kinds = ((Broadcast, "broadcast"), (Gating, "gating"), (GatingDoorbell, "gating, doorbell"))
    return [
        type(f"{kind.__name__}_{backend}", (kind,), {"backend": backend, "name": f"{name} ({backend})"})
        for (kind, name), backend in itertools.product(kinds, backends)
    ]
