"""Two processes: records check themselves, writers are killed, locks end with their process."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ringbuffer import (
    BroadcastReader,
    GatingConsumer,
    GatingProducer,
    Generation,
    TableReader,
    WriterAlive,
    find_current,
    writer_state,
)

CHILD = Path(__file__).with_name("ring_child.py")


class Child:
    def __init__(self, backend: str, role: str, path: Path, count: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, CHILD, role, path, str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"RINGBUFFER_BACKEND": backend},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def wait_ready(self) -> None:
        assert self.stdout.readline() == b"ready\n"

    def go(self) -> None:
        self.stdin.write(b"\n")
        self.stdin.flush()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start_child(tmp_path: Path, other_backend: str) -> Iterator[Callable[..., Child]]:
    with contextlib.ExitStack() as stack:

        def start(role: str, path: Path = tmp_path / "shared", count: int = 0) -> Child:
            child = Child(other_backend, role, path, count)
            stack.callback(child.close)
            child.wait_ready()
            return child

        yield start


@pytest.fixture(params=["same", "other"])
def other_backend(request: pytest.FixtureRequest, backend: str) -> str:
    """The child's backend: the two must understand each other in every pairing."""
    if request.param == "same":
        return backend
    return "plain" if backend == "c" else "c"


def read_all(reader: BroadcastReader, count: int, check: Callable[[int, bytes], bool]) -> int:
    """Read until the writer's last record; return how many were delivered, all of them whole."""
    delivered = 0
    while reader.position < count:
        for sequence, payload in reader.poll(1000):
            assert check(sequence, payload), f"record {sequence} is torn"
            delivered += 1
    return delivered


def test_no_record_is_torn_and_every_loss_is_counted(tmp_path: Path, start_child: Callable[..., Child]) -> None:
    count = 100_000
    child = start_child("publish_lossy", count=count)
    reader = BroadcastReader.attach(tmp_path / "shared")
    expected = struct.Struct("<7Q").pack
    child.go()
    delivered = read_all(reader, count, lambda n, payload: payload == expected(*range(n, n + 7)))
    assert delivered + reader.lost == count
    assert delivered >= 64, "the last lap at least is always there"


def test_no_large_record_is_torn(tmp_path: Path, start_child: Callable[..., Child]) -> None:
    count = 50_000
    child = start_child("publish_records", count=count)
    reader = BroadcastReader.attach(tmp_path / "shared")
    child.go()
    delivered = read_all(reader, count, lambda n, payload: payload == n.to_bytes(8, "little") * 127)
    assert delivered + reader.lost == count


def test_no_row_is_torn_while_it_is_rewritten(tmp_path: Path, start_child: Callable[..., Child]) -> None:
    count = 50_000
    child = start_child("rewrite_row", count=count)
    reader = TableReader.attach(tmp_path / "shared")
    child.go()
    last = -1
    while last < count - 1:
        payload = reader.read(1)
        if payload is None:
            continue
        assert payload == payload[:8] * 127, "the row is from one write"
        version = int.from_bytes(payload[:8], "little")
        assert version >= last, "rows never go back"
        last = version


def test_a_gating_ring_loses_nothing_between_processes(tmp_path: Path, start_child: Callable[..., Child]) -> None:
    count = 20_000
    child = start_child("publish_gating", count=count)
    consumer = GatingConsumer.register(tmp_path / "shared", "parent")
    child.go()
    first = 0
    while first < count:
        first, end = consumer.poll(5)
        for sequence in range(first, end):
            assert consumer.read(sequence) == tuple(range(sequence, sequence + 7))
        if first == end:
            os.sched_yield()
        consumer.release(end)
        first = end
    consumer.close()


def test_a_killed_writer_is_dead_its_records_stay_and_a_restart_is_a_new_generation(
    tmp_path: Path, start_child: Callable[..., Child]
) -> None:
    first = start_child("hold_generation", count=10)
    old = find_current(tmp_path / "shared")
    assert writer_state(tmp_path / "shared") == "alive"
    with pytest.raises(WriterAlive) as caught:
        Generation.create(tmp_path / "shared")
    assert caught.value.pid == first.process.pid
    reader = BroadcastReader.attach(old / "tokens.ring", join="oldest")
    first.kill()
    assert writer_state(tmp_path / "shared") == writer_state(old / "tokens.ring") == "dead"
    second = start_child("hold_generation", count=1)
    new = find_current(tmp_path / "shared")
    assert new != old
    assert writer_state(tmp_path / "shared") == "alive"
    assert writer_state(old) == writer_state(old / "tokens.ring") == "restarted"
    assert len(reader.poll(100)) == 10, "a reader finishes the old generation"
    second.go()
    assert second.process.wait() == 0


def test_a_stopped_writer_is_hung_not_dead(tmp_path: Path, start_child: Callable[..., Child]) -> None:
    child = start_child("hold_generation")
    child.process.send_signal(signal.SIGSTOP)
    assert writer_state(tmp_path / "shared", hung_after_s=1e-9) == "hung"
    child.process.send_signal(signal.SIGCONT)


def test_a_killed_consumer_is_dropped_and_counted(producer: GatingProducer, start_child: Callable[..., Child]) -> None:
    child = start_child("consume", producer.segment.path)
    for _ in range(8):
        producer.try_publish(0, 0, 0, 0, 0, 0, 0)
    assert producer.try_publish(0, 0, 0, 0, 0, 0, 0) == -1
    assert producer.drop_dead_consumers() == [], "a slow one is never dropped"
    child.kill()
    assert producer.try_publish(0, 0, 0, 0, 0, 0, 0) == -1
    assert producer.drop_dead_consumers() == ["doomed"]
    assert producer.try_publish(0, 0, 0, 0, 0, 0, 0) == 8
