"""Waking consumers in other processes: one eventfd for each of them, rung once per batch.

The producer rings always, whether anybody sleeps or not. Leaving the bell alone while the consumer is awake would need
a full fence at both ends; ringing costs half a microsecond and needs nothing: the kernel's lock on the eventfd orders
what was published before the ring against what is read after the bell was cleared.

A consumer gets its bell over a unix socket and keeps that connection, so that either side notices when the other ends::

    consumer  connect ─────────▶ producer  serve(): makes an eventfd, keeps one descriptor, sends the other
    consumer  ◀── descriptor ───
    either    ends               the other sees the connection close
"""

from __future__ import annotations

import os
import select
import socket
from pathlib import Path
from typing import Final

from ringbuffer.errors import ConsumersFull, NotReady, named

BELLS_MAX: Final = 64
"""Most consumers of one server: every ring goes through all of them, and a ring has no more consumer rows."""
CONNECT_TIMEOUT_S: Final = 5.0
SOCKET_MODE: Final = 0o660
_GREETING: Final = b"\1"  # descriptors cannot be sent without a byte


class DoorbellServer:
    """The producer's end. Watch :meth:`fileno` in an event loop and call :meth:`serve` when it is readable."""

    def __init__(self, path: Path, listener: socket.socket) -> None:
        self.path = path
        self._listener = listener
        self._connections: dict[int, socket.socket] = {}
        self._bells: dict[int, int] = {}  # both by the connection's descriptor
        self._epoll = select.epoll()
        self._epoll.register(listener, select.EPOLLIN)

    @classmethod
    def listen(cls, path: Path | str) -> DoorbellServer:
        """Listen at ``path``, at most 107 bytes long. Only the writer of the ring may do this: it replaces what is
        there. Raises Missing (no such directory), AccessDenied, NoSpace, else RingError.
        """
        path = Path(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            path.chmod(SOCKET_MODE)
            listener.listen(BELLS_MAX)
        except OSError as error:
            listener.close()
            raise named(error, f"cannot listen at {path}") from error
        return cls(path, listener)

    def fileno(self) -> int:
        """Return a descriptor that is readable when :meth:`serve` has something to do."""
        return self._epoll.fileno()

    @property
    def bell_count(self) -> int:
        """Consumers that have a bell."""
        return len(self._bells)

    def serve(self) -> None:
        """Hand bells to who asks for one and take back those of who has left. Never blocks; not for the path."""
        for descriptor, _ in self._epoll.poll(0):
            if descriptor in self._connections:
                self._forget(descriptor)  # consumers never send anything: this one has left
            else:
                self._accept()

    def ring(self) -> None:
        """Ring every bell. Call it once after each batch was published; half a microsecond for each consumer."""
        for bell in self._bells.values():
            try:
                os.eventfd_write(bell, 1)  # SYNC G
            except BlockingIOError:
                continue  # full of rings that nobody cleared: it rings already

    def close(self) -> None:
        """Stop listening and let every consumer see that the producer has left. Closing twice does nothing."""
        if self._epoll.closed:
            return
        for descriptor in list(self._connections):
            self._forget(descriptor)
        self._epoll.close()
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it left before its turn came
        if len(self._bells) == BELLS_MAX:
            connection.close()
            return
        connection.setblocking(False)
        bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        descriptor = connection.fileno()
        self._connections[descriptor], self._bells[descriptor] = connection, bell
        self._epoll.register(descriptor, select.EPOLLIN)
        try:
            socket.send_fds(connection, [_GREETING], [bell])
        except OSError:
            self._forget(descriptor)

    def _forget(self, descriptor: int) -> None:
        self._epoll.unregister(descriptor)
        self._connections.pop(descriptor).close()
        os.close(self._bells.pop(descriptor))


class Doorbell:
    """A consumer's end. After every wake-up read the ring until it is empty: one ring may stand for many batches.

    In an event loop watch :meth:`fileno`, and :meth:`clear` before reading the ring; otherwise :meth:`wait` does both.
    """

    def __init__(self, connection: socket.socket, bell: int) -> None:
        self._connection = connection
        self._bell = bell
        self._poll = select.poll()
        self._poll.register(bell, select.POLLIN)
        self._poll.register(connection, select.POLLIN)
        self.is_connected = True
        """False once :meth:`wait` has seen that the producer is gone."""

    @classmethod
    def connect(cls, path: Path | str, timeout_s: float = CONNECT_TIMEOUT_S) -> Doorbell:
        """Ask the producer at ``path`` for a bell. Read the ring once after this: what came before it rang nobody.

        Raises Missing (nobody listens), AccessDenied, NotReady (no bell within ``timeout_s``), ConsumersFull.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
        except TimeoutError as error:
            connection.close()
            raise NotReady(f"{path} gave no bell within {timeout_s:g} s") from error
        except OSError as error:
            connection.close()
            raise named(error, f"cannot connect to {path}") from error
        if not descriptors:
            connection.close()
            raise ConsumersFull(f"{path} gives no more bells, it has {BELLS_MAX}")
        os.set_inheritable(descriptors[0], False)
        return cls(connection, descriptors[0])

    def fileno(self) -> int:
        """Return the eventfd: readable when the bell was rung."""
        return self._bell

    def clear(self) -> None:
        """Take back all rings so far. Do this before reading the ring, never after it."""
        try:
            os.eventfd_read(self._bell)  # SYNC G
        except BlockingIOError:
            return

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for a ring and clear it; False when ``timeout_s`` has passed or the producer has left."""
        if not self.is_connected:
            return False
        ready = {descriptor for descriptor, _ in self._poll.poll(None if timeout_s is None else 1000 * timeout_s)}
        if self._bell in ready:
            self.clear()
            return True
        self.is_connected = not ready
        return False

    def close(self) -> None:
        """Give the bell back. Closing twice does nothing."""
        if self._connection.fileno() < 0:
            return
        self._connection.close()
        os.close(self._bell)
        self.is_connected = False
