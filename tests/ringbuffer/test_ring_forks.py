"""A forked child may close everything it inherited: what its parent holds stays the parent's."""

from __future__ import annotations

import os
import select
import socket
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

import ringbuffer as rb
from ringbuffer import segment

SCHEMA = (1, 0)


def in_child(*steps: Callable[[], object]) -> None:
    """Run steps in a forked child and wait for its end."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            for step in steps:
                step()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_writer_keeps_its_lock(broadcast: rb.BroadcastWriter) -> None:
    path = broadcast.segment.path
    in_child(broadcast.close)
    assert segment.is_locked(path)
    with pytest.raises(rb.WriterAlive):
        rb.BroadcastWriter.create(path, slot_count=8, slot_size=64, record_schema=SCHEMA, name="tokens")
    broadcast.close()
    assert not segment.is_locked(path), "its own close still works"


def test_a_generation_keeps_its_locks(tmp_path: Path) -> None:
    generation = rb.Generation.create(tmp_path)
    in_child(generation.close)
    with pytest.raises(rb.WriterAlive):
        rb.Generation.create(tmp_path)
    generation.close()


def test_a_consumer_keeps_its_row(producer: rb.GatingProducer) -> None:
    consumer = rb.GatingConsumer.register(producer.segment.path, "worker")
    in_child(consumer.close)
    for _ in range(8):
        producer.try_publish(1, 2, 3, 4, 5, 6, 7)
    assert producer.try_publish(1, 2, 3, 4, 5, 6, 7) == -1, "it still gates"
    consumer.close()
    assert producer.try_publish(1, 2, 3, 4, 5, 6, 7) == 8


def test_a_reader_keeps_its_position_file(tmp_path: Path, broadcast: rb.BroadcastWriter) -> None:
    reader = rb.BroadcastReader.attach(broadcast.segment.path, position=tmp_path / "position")
    in_child(reader.close)
    assert (tmp_path / "position").exists()
    reader.close()
    assert not (tmp_path / "position").exists()


def test_a_doorbell_server_keeps_its_place_and_its_bells(tmp_path: Path) -> None:
    server = rb.DoorbellServer.listen(tmp_path / "bell")
    readable = select.poll()
    readable.register(server.fileno(), select.POLLIN)

    consumer_pid = os.fork()
    if not consumer_pid:  # a consumer of its own, that waits for the bell and then leaves
        bell = rb.Doorbell.connect(server.path)
        os._exit(0 if bell.wait(20) else 1)
    while not server.bell_count:
        assert readable.poll(20_000)
        server.serve()
    in_child(server.close)
    assert server.path.exists()
    server.ring()
    assert os.waitstatus_to_exitcode(os.waitpid(consumer_pid, 0)[1]) == 0, "the consumer was rung"
    assert readable.poll(20_000), "that it left is still seen"
    server.serve()
    assert server.bell_count == 0
    server.close()
    assert not server.path.exists()


def test_what_a_child_closes_are_its_descriptors(
    tmp_path: Path, broadcast: rb.BroadcastWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same in one process, which takes itself for its own child while it closes."""
    reader = rb.BroadcastReader.attach(broadcast.segment.path, position=tmp_path / "position")
    server = rb.DoorbellServer.listen(tmp_path / "bell")
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(server.path))
        server.serve()
        assert server.bell_count == 1
        before = len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patched:
            patched.setattr(os, "getpid", lambda: 1)
            for each in (reader, server, broadcast):
                each.close()
        closed = before - len(os.listdir("/proc/self/fd"))
    assert closed == 1 + 4 + 1, "the lock of a position; listener, epoll, connection and bell; the lock of a ring"
    assert {path.name for path in tmp_path.iterdir()} >= {"position", "bell"}
