"""The sockets of a client: one DEALER for each endpoint, opened anew whenever it is lost.

libzmq's own reconnecting is not used: it would send what was queued for a router that died to the one that came after
it, and with it switched off (an interval of -1) a lost connection takes the messages with it that were received and not
read. So its interval is an hour, and a socket whose connection is lost is drained, closed and replaced here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any, Final

import zmq

from router.client.identity import Curve
from router.client.session import Session

RECEIVES_MAX: Final = 64
"""Messages read of one socket before others get their turn."""
_RECEIVE_QUEUE_MAX: Final = 16_384
"""Above all that a router may have under way: 4,096 events in at most as many messages, and beginning and end of 4,096
requests. A full queue would keep libzmq from reading heartbeats too."""
_ALL: Final = 1 << 31
_RETRY_NS_MIN: Final = 20_000_000
_RETRY_NS_MAX: Final = 500_000_000
"""A router that has been restarted is found again within this."""
_HANDSHAKE_MS: Final = 3000
_HEARTBEAT_MS: Final = 1000
_HEARTBEAT_TIMEOUT_MS: Final = 3000
"""ZMTP heartbeats also tell of a router that dies while nothing runs."""
_RECONNECT_MS: Final = 3_600_000

_MONITORED: Final = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
)
_EVENT: Final = struct.Struct("=Hi")

ZmqSocket = zmq.Socket[bytes]


@dataclass(slots=True, eq=False)
class Link:
    """One endpoint and, where there is one, its socket with the monitor of its connection."""

    index: int
    endpoint: str
    socket: ZmqSocket | None = None
    monitor: ZmqSocket | None = None
    retry_ns: int = 0
    """When to connect again, while there is no socket."""
    delay_ns: int = _RETRY_NS_MIN


class Wire:
    """Moves messages between the sockets and a session; never blocks. ``on_open`` and ``on_close`` see every socket."""

    def __init__(
        self,
        session: Session,
        endpoints: Sequence[str],
        on_open: Callable[[Link], None],
        on_close: Callable[[Link], None],
        curve: Curve | None = None,
    ) -> None:
        """``curve`` are the keys of connections over TCP, ``None`` for connections without encryption."""
        self.links = [Link(index, endpoint) for index, endpoint in enumerate(endpoints)]
        self._session = session
        self._on_open = on_open
        self._on_close = on_close
        self._curve = curve

    def turn(self) -> None:
        """Connect where it is time, read a bounded number of messages, look for what takes too long, send."""
        session, now_ns = self._session, monotonic_ns()
        session.look(now_ns)
        for link in self.links:
            if link.socket is not None:
                self._receive(link.socket, link.index, RECEIVES_MAX)
            elif now_ns >= link.retry_ns:
                self._open(link)
        session.tick(monotonic_ns())
        for index, reason in session.take_condemned():
            self._drop(self.links[index], reason)
        self.flush()

    def watch(self, link: Link) -> None:
        """Read what the monitor tells of a connection."""
        while link.monitor is not None:
            try:
                event, _ = _EVENT.unpack(link.monitor.recv_multipart(zmq.NOBLOCK)[0])
            except zmq.Again:
                return
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                link.delay_ns = _RETRY_NS_MIN
                self._session.connected(link.index, monotonic_ns())
            elif link.socket is not None:
                # Whether a request was accepted may stand in what has not been read.
                self._receive(link.socket, link.index, _ALL)
                self._drop(link, "closed the connection")

    def flush(self) -> None:
        """Send what the session has for the routers. Nothing waits: the queue is bounded by the open requests."""
        for index, frames in self._session.take_output():
            socket = self.links[index].socket
            if socket is not None:
                socket.send_multipart(frames, zmq.NOBLOCK)

    def has_input(self, link: Link) -> bool:
        """Return whether a message can be read. Asking is needed after reading less than all, and after sending: the
        descriptor of a ZeroMQ socket tells of the first message only.
        """
        return link.socket is not None and bool(int(link.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def due_ns(self) -> int:
        """Return when the next :meth:`turn` is due if nothing comes before."""
        retries = [link.retry_ns for link in self.links if link.socket is None]
        return min(self._session.due_ns, *retries) if retries else self._session.due_ns

    def close(self) -> None:
        """Close every socket; the routers cancel what still runs."""
        for link in self.links:
            self._close(link)

    def _receive(self, socket: ZmqSocket, index: int, limit: int) -> None:
        received, receive, option = self._session.received, socket.recv, socket.getsockopt
        for _ in range(limit):
            try:
                frames = [receive(zmq.NOBLOCK)]
            except zmq.Again:
                return
            while option(zmq.RCVMORE):
                frames.append(receive(zmq.NOBLOCK))
            received(index, frames, monotonic_ns())

    def _open(self, link: Link) -> None:
        socket: ZmqSocket = zmq.Context.instance().socket(zmq.DEALER)
        for option, value in _OPTIONS.items():
            socket.setsockopt(option, value)
        if "[" in link.endpoint:
            socket.setsockopt(zmq.IPV6, 1)
        if self._curve is not None and link.endpoint.startswith("tcp:"):
            socket.setsockopt(zmq.CURVE_SERVERKEY, self._curve.server_key)
            socket.setsockopt(zmq.CURVE_PUBLICKEY, self._curve.public)
            socket.setsockopt(zmq.CURVE_SECRETKEY, self._curve.secret)
        monitor: Any = socket.get_monitor_socket(_MONITORED)
        link.socket, link.monitor = socket, monitor
        socket.connect(link.endpoint)
        self._on_open(link)

    def _drop(self, link: Link, reason: str) -> None:
        if link.socket is None:
            return
        self._close(link)
        now_ns = monotonic_ns()
        link.retry_ns = now_ns + link.delay_ns
        link.delay_ns = min(2 * link.delay_ns, _RETRY_NS_MAX)
        self._session.lost(link.index, reason, now_ns)

    def _close(self, link: Link) -> None:
        if link.socket is None:
            return
        self._on_close(link)
        link.socket.disable_monitor()
        link.socket.close(linger=0)
        if link.monitor is not None:
            link.monitor.close(linger=0)
        link.socket = link.monitor = None


_OPTIONS: Final = {
    zmq.LINGER: 0,
    zmq.SNDHWM: 0,  # bounded by the open requests: a send never has to wait
    zmq.RCVHWM: _RECEIVE_QUEUE_MAX,
    zmq.RECONNECT_IVL: _RECONNECT_MS,
    zmq.HANDSHAKE_IVL: _HANDSHAKE_MS,
    zmq.CONNECT_TIMEOUT: _HANDSHAKE_MS,
    zmq.HEARTBEAT_IVL: _HEARTBEAT_MS,
    zmq.HEARTBEAT_TIMEOUT: _HEARTBEAT_TIMEOUT_MS,
}
