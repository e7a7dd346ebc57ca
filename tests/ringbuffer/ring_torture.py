"""One process of the torture tests: ``ring_torture.py ROLE PATH SECONDS``.

Writers publish at full speed, singly and in batches, records that check themselves, and end with a last record that
says so. Readers read until they have met it, check every record and print ``DELIVERED LOST``. Each says ``ready`` first
and goes on when it reads a line.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import ringbuffer as rb

SCHEMA = (1, 0)
LOSSY_SLOTS = 1024
GATING_SLOTS = 256
BATCHES = (1, 2, 7, 64)
"""Sizes of batches in turn; 1 is published singly."""
LOOK_EVERY = 64
"""Writers look at the clock after so many calls."""
RECORDS_MIN = 10_000
STUCK_S = 60.0
STRIDE = 0x9E37_79B9_7F4A_7C15
"""Odd and large: neighbouring words, and neighbouring records, have no half in common."""
MASK = (1 << 64) - 1
END_MARK = MASK
_RECORD = struct.Struct("<7Q")
_SLOT = struct.Struct("<8Q")


def words_of(sequence: int, *, is_last: bool = False) -> tuple[int, int, int, int, int, int, int]:
    """Return the record that belongs at ``sequence``: every word is another multiple of one number."""
    seed = (sequence + 1) * STRIDE
    w1, w2, w3, w4, w5, w6 = (seed * factor & MASK for factor in (1, 3, 5, 7, 9, 11))
    return w1, w2, w3, w4, w5, w6, END_MARK if is_last else sequence


def wait_for_parent() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()


def answer(*numbers: int) -> None:
    sys.stdout.write(" ".join(map(str, numbers)) + "\n")
    sys.stdout.flush()
    sys.stdin.readline()  # what was written stays alive until everybody has read it


def turns(seconds: float) -> Iterator[int]:
    """Yield sizes of batches until the time is over, on a slow machine until they are enough records."""
    until, count = time.monotonic() + seconds, 0
    while time.monotonic() < until or count < RECORDS_MIN:
        for turn in range(LOOK_EVERY):
            size = BATCHES[turn % len(BATCHES)]
            count += size
            yield size


def publish_all(
    seconds: float, publish: Callable[[tuple[int, ...]], object], publish_batch: Callable[[bytes], object]
) -> int:
    """Publish records until the time is over and a last one; return how many."""
    sequence = 0
    for size in turns(seconds):
        if size == 1:
            publish(words_of(sequence))
        else:
            publish_batch(b"".join(_RECORD.pack(*words_of(sequence + each)) for each in range(size)))
        sequence += size
    publish(words_of(sequence, is_last=True))
    return sequence + 1


def write_lossy(path: Path, seconds: float) -> None:
    writer = rb.BroadcastWriter.create(path, slot_count=LOSSY_SLOTS, slot_size=64, record_schema=SCHEMA, name="torture")
    wait_for_parent()
    answer(publish_all(seconds, lambda words: writer.publish(*words), writer.publish_batch))


def write_gating(path: Path, seconds: float) -> None:
    producer = rb.GatingProducer.create(
        path, slot_count=GATING_SLOTS, slot_size=64, record_schema=SCHEMA, name="torture"
    )

    def until_accepted(attempt: Callable[[], int]) -> None:
        deadline = time.monotonic() + STUCK_S
        while attempt() < 0:
            os.sched_yield()
            assert time.monotonic() < deadline, "a consumer has ended, or does not release"

    wait_for_parent()
    answer(
        publish_all(
            seconds,
            lambda words: until_accepted(lambda: producer.try_publish(*words)),
            lambda records: until_accepted(lambda: producer.try_publish_batch(records)),
        )
    )


def check(sequence: int, words: tuple[int, ...]) -> bool:
    """Check a record against its place; tell whether it is the last."""
    is_last = words[6] == END_MARK
    assert words == words_of(sequence, is_last=is_last), f"record {sequence} is torn, or not in its place: {words}"
    return is_last


def read_lossy(path: Path, _seconds: float) -> None:
    """Read record by record, or many at once, in turn."""
    reader = rb.BroadcastReader.attach(path, join="oldest")
    buffer = bytearray(64 * 100)
    wait_for_parent()
    delivered, newest, ended = 0, -1, False
    for turn in range(sys.maxsize):
        if turn % 2:
            records = [(sequence, _RECORD.unpack(payload)) for sequence, payload in reader.poll(100)]
        else:
            view = memoryview(buffer)[: 64 * reader.poll_into(buffer)]
            records = [(slot[0], slot[1:]) for slot in _SLOT.iter_unpack(view)]
        for sequence, words in records:
            assert sequence > newest, f"record {sequence} came after {newest}"
            newest, delivered = sequence, delivered + 1
            ended = check(sequence, words)
        if ended:
            break
    assert delivered + reader.lost == reader.position
    answer(delivered, reader.lost)


def consume(path: Path, _seconds: float) -> None:
    consumer = rb.GatingConsumer.register(path, str(os.getpid()))
    buffer = bytearray(64 * 100)
    wait_for_parent()
    position, ended = 0, False
    for turn in range(sys.maxsize):
        if turn % 2:
            first, end = consumer.poll(100)
            records = [(sequence, consumer.read(sequence)) for sequence in range(first, end)]
        else:
            view = memoryview(buffer)[: 64 * consumer.poll_into(buffer)]
            records = [(slot[0], slot[1:]) for slot in _SLOT.iter_unpack(view)]
        for sequence, words in records:
            assert sequence == position, f"record {sequence} came where {position} was due"
            position += 1
            ended = check(sequence, words)
        consumer.release(position)
        if ended:
            break
        if not records:
            os.sched_yield()
    consumer.close()
    answer(position, 0)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]), float(sys.argv[3]))
