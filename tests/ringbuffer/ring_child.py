"""The other process of the two-process tests: ``ring_child.py ROLE PATH COUNT``.

It says ``ready`` when its rings stand, and goes on when it reads a line.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import ringbuffer as rb

SCHEMA = (1, 0)


def wait_for_parent() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()


def publish_lossy(path: Path, count: int) -> None:
    writer = rb.BroadcastWriter.create(path, slot_count=64, slot_size=64, record_schema=SCHEMA, name="tokens")
    wait_for_parent()
    for n in range(count):
        writer.publish(n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6)
    wait_for_parent()


def publish_records(path: Path, count: int) -> None:
    writer = rb.BroadcastWriter.create(path, slot_count=16, slot_size=1024, record_schema=SCHEMA, name="done")
    wait_for_parent()
    for n in range(count):
        writer.publish_record(n.to_bytes(8, "little") * 127)
    wait_for_parent()


def rewrite_row(path: Path, count: int) -> None:
    writer = rb.TableWriter.create(path, row_count=2, row_size=1024, record_schema=SCHEMA, name="inflight")
    wait_for_parent()
    for n in range(count):
        writer.write(1, n.to_bytes(8, "little") * 127)
    wait_for_parent()


def publish_gating(path: Path, count: int) -> None:
    producer = rb.GatingProducer.create(path, slot_count=8, slot_size=64, record_schema=SCHEMA, name="requests")
    wait_for_parent()
    for n in range(count):
        while producer.try_publish(n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6) < 0:
            os.sched_yield()
    wait_for_parent()


def hold_generation(path: Path, count: int) -> None:
    generation = rb.Generation.create(path)
    writer = rb.BroadcastWriter.create(
        generation.path / "tokens.ring", slot_count=64, slot_size=64, record_schema=SCHEMA, name="tokens"
    )
    generation.activate()
    for n in range(count):
        writer.publish(n, 0, 0, 0, 0, 0, 0)
    writer.beat(time.monotonic_ns())
    wait_for_parent()


def consume(path: Path, _count: int) -> None:
    consumer = rb.GatingConsumer.register(path, "doomed")
    wait_for_parent()
    consumer.close()


if __name__ == "__main__":
    role = globals()[sys.argv[1]]
    role(Path(sys.argv[2]), int(sys.argv[3]))
