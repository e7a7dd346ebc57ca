"""Doorbells: a sleeping consumer in another process is woken once per batch, and each side sees when the other ends."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ringbuffer import (
    AccessDenied,
    ConsumersFull,
    Doorbell,
    DoorbellServer,
    ForeignFile,
    GatingProducer,
    Missing,
    NotReady,
    RingError,
    WriterAlive,
)
from ringbuffer import doorbell as doorbell_module

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 20.0
CONSUMER = """
import sys
from ringbuffer import Doorbell, GatingConsumer
ring, bell_path, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
consumer = GatingConsumer.register(ring, "sleeper")
bell = Doorbell.connect(bell_path)
room = bytearray(64 * 64)
expected = 0
while expected < count and bell.is_connected:
    taken = consumer.poll_into(room)
    for place in range(taken):
        sequence = int.from_bytes(room[64 * place : 64 * place + 8], "little")
        assert sequence == expected, (sequence, expected)
        expected += 1
    consumer.release(expected)
    if not taken:
        bell.wait(20)
print(expected, bell.is_connected, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DoorbellServer]:
    made = DoorbellServer.listen(tmp_path / "bell")
    yield made
    made.close()


def wait_readable(server: DoorbellServer) -> None:
    poll = select.poll()
    poll.register(server.fileno(), select.POLLIN)
    assert poll.poll(1000 * WAIT_S), "nothing to serve"
    server.serve()


def serve_until(server: DoorbellServer, is_done: Callable[[], bool]) -> None:
    while not is_done():
        wait_readable(server)


def connect(server: DoorbellServer) -> Doorbell:
    """Connect from a thread while this one serves."""
    made: list[Doorbell] = []
    thread = threading.Thread(target=lambda: made.append(Doorbell.connect(server.path)))
    count = server.bell_count
    thread.start()
    serve_until(server, lambda: server.bell_count > count)
    thread.join()
    return made[0]


def start_consumer(ring: Path, server: DoorbellServer, count: int, backend: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", CONSUMER, str(ring), str(server.path), str(count)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "RINGBUFFER_BACKEND": backend},
    )  # fmt: skip
    serve_until(server, lambda: server.bell_count > 0)
    return child


def end(child: subprocess.Popen[str]) -> None:
    child.communicate(timeout=WAIT_S)
    assert child.returncode == 0


def test_one_ring_wakes_every_consumer_and_is_cleared_by_each_for_itself(server: DoorbellServer) -> None:
    first, second = connect(server), connect(server)
    assert not first.wait(0)
    server.ring()
    server.ring()
    assert first.wait(WAIT_S), "two rings are one wake-up"
    assert not first.wait(0)
    assert second.wait(WAIT_S), "another consumer has its own bell"
    for bell in (first, second):
        bell.close()
        bell.close()


def test_an_event_loop_watches_the_bell_and_clears_it(server: DoorbellServer) -> None:
    bell = connect(server)
    poll = select.poll()
    poll.register(bell, select.POLLIN)
    bell.clear()  # clearing a silent bell does nothing
    assert not poll.poll(0)
    server.ring()
    assert poll.poll(1000 * WAIT_S)
    bell.clear()
    assert not poll.poll(0)
    assert not os.get_inheritable(bell.fileno())
    bell.close()


def test_ringing_without_consumers_and_a_bell_that_nobody_clears_do_no_harm(server: DoorbellServer) -> None:
    server.ring()
    bell = connect(server)
    os.eventfd_write(bell.fileno(), 2**64 - 2)
    server.ring()
    assert bell.wait(WAIT_S)
    bell.close()


def test_a_sleeping_process_gets_every_record(tmp_path: Path, backend: str, server: DoorbellServer) -> None:
    ring = tmp_path / "requests.ring"
    producer = GatingProducer.create(ring, slot_count=64, slot_size=64, record_schema=(1, 0), name="requests")
    child = start_consumer(ring, server, 5000, backend)
    published = 0
    while published < 5000:
        if producer.try_publish_batch(bytes(56 * 10)) >= 0:
            published += 10
        else:
            os.sched_yield()
        server.ring()
    assert child.stdout is not None
    assert child.stdout.readline().split() == ["5000", "True"], "none lost, none doubled, woken to the last"
    end(child)
    producer.close()


def test_a_consumer_sees_that_the_producer_has_left(tmp_path: Path, backend: str, server: DoorbellServer) -> None:
    ring = tmp_path / "requests.ring"
    producer = GatingProducer.create(ring, slot_count=64, slot_size=64, record_schema=(1, 0), name="requests")
    child = start_consumer(ring, server, 10, backend)
    producer.try_publish_batch(bytes(56 * 3))
    server.ring()
    server.close()
    assert child.stdout is not None
    assert child.stdout.readline().split() == ["3", "False"], "what was rung before the end is still delivered"
    end(child)
    producer.close()


def test_a_killed_consumer_loses_its_bell_and_its_row(tmp_path: Path, backend: str, server: DoorbellServer) -> None:
    ring = tmp_path / "requests.ring"
    producer = GatingProducer.create(ring, slot_count=64, slot_size=64, record_schema=(1, 0), name="requests")
    child = start_consumer(ring, server, 10, backend)
    child.kill()
    serve_until(server, lambda: server.bell_count == 0)
    child.communicate(timeout=WAIT_S)
    server.ring()
    assert producer.drop_dead_consumers() == ["sleeper"]
    assert producer.dropped_count == 1
    producer.close()


def test_after_the_producer_has_left_nothing_is_waited_for(server: DoorbellServer) -> None:
    bell = connect(server)
    server.close()
    server.close()
    assert not bell.wait(None)
    assert not bell.is_connected
    assert not bell.wait(None), "not even for ever"
    assert not server.path.exists()
    bell.close()


def test_bells_are_bounded(server: DoorbellServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorbell_module, "BELLS_MAX", 1)
    only = connect(server)
    refused: list[BaseException] = []

    def ask() -> None:
        try:
            Doorbell.connect(server.path)
        except ConsumersFull as error:
            refused.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while thread.is_alive():
        server.serve()
    assert "gives no more bells" in str(refused[0])
    assert server.bell_count == 1
    only.close()
    serve_until(server, lambda: server.bell_count == 0)


def test_what_can_go_wrong_while_connecting_has_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Missing, match="cannot connect"):
        Doorbell.connect(tmp_path / "none")
    server = DoorbellServer.listen(tmp_path / "bell")
    with pytest.raises(NotReady, match=r"no bell within 0\.01 s"):
        Doorbell.connect(server.path, timeout_s=0.01)
    server.serve()  # the one that asked has left
    serve_until(server, lambda: server.bell_count == 0)
    server._listener.close()
    with pytest.raises(Missing, match="refused"):
        Doorbell.connect(server.path)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(AccessDenied, match="Permission denied"):
        Doorbell.connect(server.path)


def test_a_server_takes_the_place_of_a_dead_one_and_names_what_it_cannot_do(tmp_path: Path) -> None:
    abandoned = socket.socket(socket.AF_UNIX)
    abandoned.bind(str(tmp_path / "bell"))
    abandoned.close()
    server = DoorbellServer.listen(tmp_path / "bell")
    assert (tmp_path / "bell").stat().st_mode & 0o777 == 0o660
    server.close()
    with pytest.raises(Missing):
        DoorbellServer.listen(tmp_path / "no directory" / "bell")
    with pytest.raises(RingError, match="too long"):
        DoorbellServer.listen(tmp_path / ("long" * 40))


def test_who_leaves_before_its_turn_costs_nothing(server: DoorbellServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hasty = socket.socket(socket.AF_UNIX)
    hasty.connect(str(server.path))

    def gone(*_: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(socket, "send_fds", gone)
    wait_readable(server)
    assert server.bell_count == 0
    server._accept()  # nobody asks: as when a connection is gone before it is accepted
    assert server.bell_count == 0
    hasty.close()


class TestWhoIsThere:
    """A server takes no place but that of a dead one."""

    def test_a_live_server_is_not_replaced(self, server: DoorbellServer) -> None:
        with pytest.raises(WriterAlive) as caught:
            DoorbellServer.listen(server.path)
        assert caught.value.pid == os.getpid()
        bell = connect(server)
        server.ring()
        assert bell.wait(WAIT_S), "it goes on"
        bell.close()

    def test_a_live_server_whose_backlog_is_full_is_not_replaced_either(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
            busy.bind(str(tmp_path / "bell"))
            busy.listen(0)
            first.connect(str(tmp_path / "bell"))
            with pytest.raises(WriterAlive) as caught:
                DoorbellServer.listen(tmp_path / "bell")
            assert caught.value.pid == 0, "it did not say who it is"

    def test_a_file_that_is_no_socket_stays(self, tmp_path: Path) -> None:
        (tmp_path / "bell").write_text("notes")
        with pytest.raises(ForeignFile, match="no socket"):
            DoorbellServer.listen(tmp_path / "bell")
        assert (tmp_path / "bell").read_text() == "notes"

    def test_a_socket_that_vanishes_meanwhile_is_no_hindrance(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.socket(socket.AF_UNIX) as leaving:
            leaving.bind(str(tmp_path / "bell"))
        mode_at = doorbell_module.segment.mode_at

        def then_it_is_gone(path: Path, *, follow: bool) -> int:
            mode = mode_at(path, follow=follow)
            path.unlink()
            return mode

        monkeypatch.setattr(doorbell_module.segment, "mode_at", then_it_is_gone)
        DoorbellServer.listen(tmp_path / "bell").close()

    def test_a_place_that_may_not_be_looked_at_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(RingError, match="File name too long"):
            DoorbellServer.listen(tmp_path / ("long" * 100))


class TestWithoutDescriptors:
    """EMFILE and its like: a clear error, nothing left open, and no loop that spins."""

    @pytest.fixture
    def exhausted(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[object, str], None]:
        def exhaust(owner: object, name: str) -> None:
            def refuse(*_: object, **__: object) -> None:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

            monkeypatch.setattr(owner, name, refuse)

        return exhaust

    def test_listening_and_connecting_say_so(
        self, tmp_path: Path, server: DoorbellServer, exhausted: Callable[[object, str], None]
    ) -> None:
        exhausted(socket, "socket")
        for attempt in (lambda: DoorbellServer.listen(tmp_path / "other"), lambda: Doorbell.connect(server.path)):
            with pytest.raises(RingError, match="Too many open files") as caught:
                attempt()
            assert isinstance(caught.value.__cause__, OSError)

    def test_a_server_that_cannot_be_made_leaves_nothing(
        self, tmp_path: Path, exhausted: Callable[[object, str], None]
    ) -> None:
        before = len(os.listdir("/proc/self/fd"))
        exhausted(socket.socket, "listen")
        with pytest.raises(RingError, match="Too many open files"):
            DoorbellServer.listen(tmp_path / "bell")
        assert list(tmp_path.iterdir()) == []
        assert len(os.listdir("/proc/self/fd")) == before

    def test_a_consumer_without_a_descriptor_for_its_bell_says_so(
        self, server: DoorbellServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def cut(*_: object) -> tuple[bytes, list[int], int, None]:
            return b"", [], socket.MSG_CTRUNC, None

        monkeypatch.setattr(socket, "recv_fds", cut)
        with pytest.raises(RingError, match=r"cannot take the bell of .*: Too many open files"):
            Doorbell.connect(server.path)

    def test_a_server_that_cannot_accept_is_silent_until_it_can(self, server: DoorbellServer) -> None:
        """The limit is real: accepting fails in the kernel."""
        readable = select.poll()
        readable.register(server.fileno(), select.POLLIN)
        asking = socket.socket(socket.AF_UNIX)
        asking.connect(str(server.path))
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        for wake_up in (server.ring, server.serve):
            assert readable.poll(0)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
            try:
                server.serve()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert not readable.poll(0), "it would be called again and again otherwise"
            wake_up()
            assert wake_up == server.serve or readable.poll(0)
        assert server.bell_count == 1, "as soon as there is a descriptor, who asked gets its bell"
        asking.close()

    def test_a_bell_that_cannot_be_made_is_refused(
        self, server: DoorbellServer, exhausted: Callable[[object, str], None]
    ) -> None:
        exhausted(os, "eventfd")
        asking = socket.socket(socket.AF_UNIX)
        asking.connect(str(server.path))
        wait_readable(server)
        assert server.bell_count == 0
        assert asking.recv(1) == b"", "it is told at once"
        asking.close()
