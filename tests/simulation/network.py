"""Connections in memory. The router's end is a transport as uvloop's are, the other end a scripted :class:`Peer`.

What is modelled of a real one: bytes take time and come cut anywhere; a peer's kernel takes a bounded number of bytes,
the rest waits in the transport and is reported (``pause_writing``); closing is put off to a later turn while
``shutdown`` acts at once, as uvloop and the kernel do; an end or a reset stands behind the bytes before it, and is not
seen by who does not read.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import termios
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.simulation.virtual_loop import VirtualLoop

_EOF: Final = "eof"
_RESET: Final = "reset"
_FIRST_DESCRIPTOR: Final = 1_000_000
READ_BYTES_MAX: Final = 16_384
"""Bytes of one read, whatever is in the socket."""


class Network:
    """All connections of a run, by the descriptors that the router believes them to have."""

    def __init__(self, loop: VirtualLoop, trace: Callable[[str], None]) -> None:
        self.loop = loop
        self.trace = trace
        self.transports: dict[int, Transport] = {}

    def connect(self, protocol: asyncio.BaseProtocol, peer: Peer, latency_ns: int, room: int) -> Transport:
        """Join a protocol of the router and a peer; ``room`` bytes fit between a write and the peer's reading."""
        descriptor = _FIRST_DESCRIPTOR + len(self.transports)
        transport = self.transports[descriptor] = Transport(self, protocol, peer, descriptor, latency_ns, room)
        peer.transport = transport
        protocol.connection_made(transport)
        return transport

    def queued(self, descriptor: int) -> int:
        """Return what a socket has not delivered."""
        return self.transports[descriptor].in_kernel


class Transport(asyncio.Transport):
    """The router's end of a connection."""

    def __init__(
        self, network: Network, protocol: Any, peer: Peer, descriptor: int, latency_ns: int, room: int
    ) -> None:
        super().__init__()
        self.network = network
        self.peer = peer
        self.descriptor = descriptor
        self.latency_ns = latency_ns
        self.in_kernel = 0
        """Bytes written that the peer has not read."""
        self.is_shut = False
        """The other side is told, or will be without any further doing of ours."""
        self.is_lost = False
        self.resets_on_close = False
        """What the peer has not read is taken from it."""
        self.taken_ns = network.loop.clock.now_ns
        """When the peer last read something."""
        self._loop = network.loop
        self._protocol = protocol
        self._room = room
        self._unsent = bytearray()
        self._high = 64 * 1024
        self._low = 16 * 1024
        self._paused_writer = False
        self._reading = True
        self._incoming: list[bytes | str] = []
        self._closing = False
        self._eof_wanted = False

    # ------------------------------------------------------------ what protocols call
    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return _Socket(self) if name == "socket" else default

    def get_protocol(self) -> Any:
        return self._protocol

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high is not None
        assert low is not None
        self._high, self._low = high, low

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def is_closing(self) -> bool:
        return self._closing

    def write(self, data: Any) -> None:
        if self._closing or self.is_shut or self._eof_wanted:
            return
        if self._unsent:
            self._unsent += data
        else:
            sent = self._to_kernel(bytes(data))
            self._unsent += data[sent:]
        if len(self._unsent) > self._high and not self._paused_writer:
            self._paused_writer = True
            self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._eof_wanted = True
        if not self._unsent:
            self._tell_end(reset=False)

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self._loop.soon(self._deliver)

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._incoming.clear()
            if not self._unsent:
                self._loop.soon(self._lose, None)

    def abort(self) -> None:
        if not self._closing or self._unsent:
            self._closing = True
            self._incoming.clear()
            self._unsent.clear()
            self._loop.soon(self._lose, None)

    def shutdown(self) -> None:
        """Do what ``shutdown(SHUT_RDWR)`` does: the peer learns of the end, whatever the event loop is about to do."""
        self._unsent.clear()
        self._tell_end(reset=False)

    # ------------------------------------------------------------ towards the peer
    def _to_kernel(self, data: bytes) -> int:
        """Take what there is room for; return how much."""
        data = data[: max(self._room - self.in_kernel, 0)]
        if data:
            self.in_kernel += len(data)
            self._loop.at(self._loop.clock.now_ns + self.latency_ns, self.peer.arrived, data)
        return len(data)

    def taken(self, size: int) -> None:
        """The peer has read bytes."""
        self.in_kernel -= size
        self.taken_ns = self._loop.clock.now_ns
        if self._unsent:
            self._loop.soon(self._flush)

    def _flush(self) -> None:
        if not self._unsent:
            return
        sent = self._to_kernel(bytes(self._unsent))
        del self._unsent[:sent]
        if self._unsent:
            return
        if self._closing:
            self._lose(None)
            return
        if self._eof_wanted:
            self._tell_end(reset=False)
        if self._paused_writer:
            self._paused_writer = False
            self._guarded(self._protocol.resume_writing)

    def _tell_end(self, *, reset: bool) -> None:
        if not self.is_shut:
            self.is_shut = True
            self._loop.at(self._loop.clock.now_ns + self.latency_ns, self.peer.end_arrived, reset)

    # ------------------------------------------------------------ from the peer
    def arrived(self, what: bytes | str) -> None:
        """Bytes, an end or a reset of the peer's are in this socket."""
        if self._closing or self.is_lost:
            return
        if isinstance(what, bytes) and self._incoming and isinstance(self._incoming[-1], bytes):
            self._incoming[-1] += what
        else:
            self._incoming.append(what)
        self._deliver()

    def _deliver(self) -> None:
        while self._incoming and self._reading and not self._closing:
            what = self._incoming.pop(0)
            if isinstance(what, bytes):
                if len(what) > READ_BYTES_MAX:
                    self._incoming.insert(0, what[READ_BYTES_MAX:])
                    what = what[:READ_BYTES_MAX]
                self.network.trace(f"{self.peer.name} > {len(what)} {crc32(what):08x}")
                self._guarded(self._protocol.data_received, what)
            elif what == _EOF:
                self.network.trace(f"{self.peer.name} > end")
                self.peer.end_coming(self)
                keep = self._guarded(self._protocol.eof_received)
                self.peer.end_seen(self)
                if not keep:
                    self.close()
            else:
                self.network.trace(f"{self.peer.name} > reset")
                self._unsent.clear()
                self._closing = True
                self._loop.soon(self._lose, ConnectionResetError("reset by peer"))

    def _guarded(self, callback: Callable[..., Any], *args: Any) -> Any:
        """Call a protocol; an exception is logged and ends the connection, as in uvloop."""
        try:
            return callback(*args)
        except Exception as error:
            self._loop.call_exception_handler({"message": "an exception in a protocol", "exception": error})
            self.abort()
            return False

    def _lose(self, error: Exception | None) -> None:
        if self.is_lost:
            return
        self.is_lost = True
        if error is not None:
            self.peer.end_coming(self)
        self._tell_end(reset=self.resets_on_close)
        self._guarded(self._protocol.connection_lost, error)
        if error is not None:
            self.peer.end_seen(self)


class Peer:
    """The scripted end of a connection. ``pace`` is ``None`` for one that reads at once, else ``(bytes, ns)``."""

    def __init__(self, loop: VirtualLoop, name: str, pace: tuple[int, int] | None = None) -> None:
        self.loop = loop
        self.name = name
        self.transport: Transport | None = None
        self.has_ended = False
        """This side is closed."""
        self.is_over = self.was_reset = False
        """The router's side is closed, and how."""
        self._pace = pace
        self._unread = bytearray()
        self._is_taking = False
        self._last_ns = 0

    # ------------------------------------------------------------ to be scripted
    def received(self, data: bytes) -> None:
        """Take bytes of the router."""

    def closed(self) -> None:
        """The router has closed, and all its bytes are taken."""

    def end_coming(self, transport: Transport) -> None:
        """The router is about to learn that this side is closed."""

    def end_seen(self, transport: Transport) -> None:
        """The router has learned, in this very callback, that this side is closed."""

    # ------------------------------------------------------------ from the router
    def arrived(self, data: bytes) -> None:
        """Bytes are in this end's kernel."""
        assert self.transport is not None
        if self.has_ended:
            self.transport.taken(len(data))
            return
        if self._pace is None:
            self.transport.network.trace(f"{self.name} < {len(data)} {crc32(data):08x}")
            self.transport.taken(len(data))
            self.received(data)
            return
        self._unread += data
        if not self._is_taking:
            self._is_taking = True
            self.loop.at(self.loop.clock.now_ns + self._pace[1], self._take)

    def _take(self) -> None:
        assert self._pace is not None
        assert self.transport is not None
        self._is_taking = False
        if self.has_ended or not self._unread:
            return
        data = bytes(self._unread[: self._pace[0]])
        del self._unread[: len(data)]
        self.transport.network.trace(f"{self.name} < {len(data)} {crc32(data):08x}")
        self.transport.taken(len(data))
        self.received(data)
        if self._unread:
            self._is_taking = True
            self.loop.at(self.loop.clock.now_ns + self._pace[1], self._take)
        elif self.is_over and not self.has_ended:
            self.closed()

    def end_arrived(self, reset: bool) -> None:
        """The router's end has come."""
        assert self.transport is not None
        self.transport.network.trace(f"{self.name} < end")
        self.is_over = True
        self.was_reset = reset
        if reset:
            self._unread.clear()
        if not self._unread and not self.has_ended:
            self.closed()

    # ------------------------------------------------------------ to the router
    def send(self, data: bytes, delay_ns: int = 0) -> None:
        """Send bytes, behind those sent before."""
        if data and not self.has_ended:
            self._dispatch(data, delay_ns)

    def finish(self) -> None:
        """Close in order."""
        self._end(_EOF)

    def reset(self) -> None:
        """Drop the connection."""
        self._end(_RESET)

    def _end(self, how: str) -> None:
        if not self.has_ended:
            self._dispatch(how, 0)
            self.has_ended = True
            unread = len(self._unread)
            self._unread.clear()
            if unread and self.transport is not None:
                self.transport.taken(unread)

    def _dispatch(self, what: bytes | str, delay_ns: int) -> None:
        transport = self.transport
        assert transport is not None
        when = max(self.loop.clock.now_ns + transport.latency_ns + delay_ns, self._last_ns)
        self._last_ns = when
        self.loop.at(when, transport.arrived, what)


class _Socket:
    """What the router sees of a transport's socket."""

    family = socket.AF_INET
    type = socket.SOCK_STREAM
    proto = 0

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def fileno(self) -> int:
        return -1 if self._transport.is_lost else self._transport.descriptor

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER)
        assert value == struct.pack("ii", 1, 0)
        self._transport.resets_on_close = True


class _Twin:
    """A second socket object on a descriptor."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def shutdown(self, how: int) -> None:
        assert how == socket.SHUT_RDWR
        self._transport.shutdown()

    def detach(self) -> None:
        """Do nothing."""


class _SocketModule:
    """Stands in for the module ``socket`` where the router shuts a connection down."""

    SHUT_RDWR = socket.SHUT_RDWR

    def __init__(self, network: Network) -> None:
        self._network = network

    def socket(self, family: int, type: int, proto: int, *, fileno: int) -> _Twin:  # noqa: A002 - the module's own name
        return _Twin(self._network.transports[fileno])


class _FcntlModule:
    """Stands in for the module ``fcntl`` where the router asks what a client has not taken."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def ioctl(self, descriptor: int, operation: int, buffer: bytes) -> bytes:
        assert operation == termios.TIOCOUTQ
        return self._network.queued(descriptor).to_bytes(4, sys.byteorder)


@contextmanager
def kernel(network: Network) -> Iterator[None]:
    """Have the router's own system calls go to this network."""
    from router.hosts import connection  # noqa: PLC0415 - what is patched is loaded when it is
    from router.ingress import http  # noqa: PLC0415

    connection.socket, socket_module = _SocketModule(network), connection.socket  # type: ignore[assignment]
    http.fcntl, fcntl_module = _FcntlModule(network), http.fcntl  # type: ignore[assignment]
    try:
        yield
    finally:
        connection.socket, http.fcntl = socket_module, fcntl_module
