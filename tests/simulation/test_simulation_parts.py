"""The virtual loop and the network do what real ones do: else the simulation would prove nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.simulation.network import READ_BYTES_MAX, Network, Peer, Transport, kernel
from tests.simulation.virtual_loop import NS, START_NS, Clock, VirtualLoop

LATENCY_NS = 1_000_000
ROOM = 100


class Recorder(asyncio.Protocol):
    """Notes what the loop calls."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.set_write_buffer_limits(0, 0)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.calls.append(data)

    def eof_received(self) -> bool:
        self.calls.append("eof")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append(type(exc).__name__ if exc else "lost")

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")


class Scripted(Peer):
    """Notes what comes."""

    def __init__(self, loop: VirtualLoop, pace: tuple[int, int] | None = None) -> None:
        super().__init__(loop, "peer", pace)
        self.came: list[tuple[int, bytes | str]] = []

    def received(self, data: bytes) -> None:
        self.came.append((self.loop.clock.now_ns - START_NS, data))

    def closed(self) -> None:
        self.came.append((self.loop.clock.now_ns - START_NS, "closed"))

    @property
    def what(self) -> list[bytes | str]:
        return [what for _, what in self.came]


class Joined:
    """A protocol and a peer, joined on a loop."""

    def __init__(self, pace: tuple[int, int] | None = None) -> None:
        self.loop = VirtualLoop(Clock())
        self.network = Network(self.loop, lambda _: None)
        self.protocol, self.peer = Recorder(), Scripted(self.loop, pace)
        self.transport: Transport = self.network.connect(self.protocol, self.peer, LATENCY_NS, ROOM)

    def run(self) -> None:
        """Run until nothing is left to do."""
        self.loop.run(lambda: False, START_NS + 100 * NS)


def test_callbacks_come_in_the_order_of_their_times_and_timers_never_early() -> None:
    loop = VirtualLoop(Clock())
    came: list[tuple[str, int]] = []

    def note(name: str) -> None:
        came.append((name, loop.clock.now_ns - START_NS))

    loop.call_later(0.3, note, "last")
    loop.call_later(0.1, note, "second")
    loop.call_later(0.1, note, "third")
    cancelled = loop.call_later(0.05, note, "never")
    cancelled.cancel()
    loop.call_soon(note, "first")
    assert not loop.run(lambda: False, START_NS + NS)
    assert came == [("first", 0), ("second", NS // 10), ("third", NS // 10), ("last", 3 * NS // 10)]


def test_tasks_and_time_outs_of_asyncio_run_on_the_loop() -> None:
    loop = VirtualLoop(Clock())

    async def late() -> str:
        try:
            async with asyncio.timeout(1.0):
                await asyncio.sleep(5)
        except TimeoutError:
            return f"{loop.time() - START_NS / NS:g}"
        return "never"

    async def start() -> str:
        return await loop.create_task(late())

    asyncio._set_running_loop(loop)
    task = loop.create_task(start())
    asyncio._set_running_loop(None)
    assert loop.run(task.done, START_NS + 10 * NS)
    assert task.result() == "1"


def test_an_exception_of_the_router_is_kept_and_one_of_the_simulation_ends_the_run() -> None:
    loop = VirtualLoop(Clock())
    loop.call_soon(lambda: 1 // 0)
    loop.run(lambda: False, START_NS)
    assert [type(fault["exception"]) for fault in loop.faults] == [ZeroDivisionError]
    loop.soon(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        loop.run(lambda: False, START_NS)


def test_bytes_take_their_time_and_keep_their_order() -> None:
    joined = Joined()
    joined.transport.write(b"one")
    joined.transport.write(b"two")
    joined.peer.send(b"late", delay_ns=5)
    joined.peer.send(b"later")
    joined.run()
    assert joined.peer.came == [(LATENCY_NS, b"one"), (LATENCY_NS, b"two")]
    assert joined.protocol.calls == [b"late", b"later"]


def test_what_a_peer_does_not_read_is_bounded_and_reported() -> None:
    joined = Joined(pace=(40, 10 * LATENCY_NS))
    joined.transport.write(b"x" * 250)
    assert joined.protocol.calls == ["pause"]
    assert joined.transport.get_write_buffer_size() == 250 - ROOM
    assert joined.network.queued(joined.transport.descriptor) == ROOM
    joined.run()
    assert joined.protocol.calls == ["pause", "resume"]
    assert b"".join(what for what in joined.peer.what if isinstance(what, bytes)) == b"x" * 250
    assert joined.network.queued(joined.transport.descriptor) == 0


def test_an_end_stands_behind_the_bytes_before_it_and_is_not_seen_by_who_does_not_read() -> None:
    joined = Joined()
    joined.transport.pause_reading()
    joined.peer.send(b"a" * (READ_BYTES_MAX + 1))
    joined.peer.finish()
    joined.run()
    assert joined.protocol.calls == []
    joined.transport.resume_reading()
    joined.run()
    assert joined.protocol.calls == [b"a" * READ_BYTES_MAX, b"a", "eof", "lost"]


def test_a_reset_loses_what_was_not_sent() -> None:
    joined = Joined(pace=(10, NS))
    joined.transport.write(b"x" * 250)
    joined.peer.reset()
    joined.run()
    assert joined.protocol.calls == ["pause", "ConnectionResetError"]


def test_closing_is_put_off_and_a_shutdown_is_not() -> None:
    joined = Joined()
    joined.transport.abort()
    assert not joined.transport.is_shut
    joined.run()
    assert joined.transport.is_shut
    other = Joined()
    with kernel(other.network):
        from router.hosts.connection import shut_down  # noqa: PLC0415 - as the router has it now

        shut_down(other.transport)
    assert other.transport.is_shut
    other.run()
    assert other.peer.what == ["closed"]
    assert other.protocol.calls == ["lost"]


def test_closing_in_order_sends_what_is_written_first() -> None:
    joined = Joined(pace=(40, LATENCY_NS))
    joined.transport.write(b"x" * 250)
    joined.transport.close()
    joined.run()
    assert joined.peer.what[-1] == "closed"
    assert b"".join(what for what in joined.peer.what if isinstance(what, bytes)) == b"x" * 250
    assert joined.protocol.calls == ["pause", "lost"]
