"""Waking consumers in other processes: one eventfd for each of them, rung once per batch.

The producer rings always, whether anybody sleeps or not. Leaving the bell alone while the consumer is awake would need
a full fence at both ends; ringing costs half a microsecond and needs nothing: the kernel's lock on the eventfd orders
what was published before the ring against what is read after the bell was cleared.

A consumer gets its bell over a unix socket and keeps that connection, so that either side notices when the other ends::

    consumer  connect ─────────▶ producer  serve(): makes an eventfd, keeps one descriptor, sends the other
    consumer  ◀── descriptor ───
    either    ends               the other sees the connection close

A process forked from either end shares its sockets: there only ``close`` may be called, and the parent notices nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import struct
from pathlib import Path
from typing import Final

from ringbuffer import segment
from ringbuffer.errors import ConsumersFull, ForeignFile, NotReady, RingError, WriterAlive, named

_WANTING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What the system wants for a new connection: it will not come by asking again at once."""
BELLS_MAX: Final = 64
"""Most consumers of one server: every ring goes through all of them, and a ring has no more consumer rows."""
CONNECT_TIMEOUT_S: Final = 5.0
SOCKET_MODE: Final = 0o660
_GREETING: Final = b"\1"  # descriptors cannot be sent without a byte
_PEER: Final = struct.Struct("3i")
"""struct ucred of SO_PEERCRED, unix(7): pid, uid, gid."""


class DoorbellServer:
    """The producer's end. Watch :meth:`fileno` in an event loop and call :meth:`serve` when it is readable."""

    def __init__(self, path: Path, listener: socket.socket, epoll: select.epoll) -> None:
        self.path = path
        self._listener = listener
        self._epoll = epoll
        self._connections: dict[int, socket.socket] = {}
        self._bells: dict[int, int] = {}  # both by the connection's descriptor
        self._epoll.register(listener, select.EPOLLIN)
        self._is_muted = False
        self._owner_pid = os.getpid()

    @classmethod
    def listen(cls, path: Path | str) -> DoorbellServer:
        """Listen at ``path``, at most 107 bytes long. Only the writer of the ring may do this: it takes the place of a
        dead one. Raises WriterAlive when somebody listens there, ForeignFile for a file that is no socket, Missing (no
        such directory), AccessDenied, NoSpace, else RingError.
        """
        path = Path(path)
        try:
            with contextlib.ExitStack() as undo:
                _make_free(path)
                listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                epoll = undo.enter_context(select.epoll())
                listener.setblocking(False)
                listener.bind(str(path))
                undo.callback(path.unlink, missing_ok=True)
                path.chmod(SOCKET_MODE)
                listener.listen(BELLS_MAX)
                undo.pop_all()
        except OSError as error:
            raise named(error, f"cannot listen at {path}") from error
        return cls(path, listener, epoll)

    def fileno(self) -> int:
        """Return a descriptor that is readable when :meth:`serve` has something to do."""
        return self._epoll.fileno()

    @property
    def bell_count(self) -> int:
        """Consumers that have a bell."""
        return len(self._bells)

    def serve(self) -> None:
        """Hand bells to who asks for one and take back those of who has left. Never blocks; not for the path.

        Without a descriptor left nobody gets a bell: who asks waits until a call of this or of :meth:`ring` finds one.
        """
        if self._is_muted:
            self._unmute()
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
        if self._is_muted:
            self._unmute()

    def close(self) -> None:
        """Stop listening and let every consumer see that the producer has left. Closing twice does nothing.

        In a forked child only its copies of the descriptors are closed: all else is the parent's.
        """
        if self._epoll.closed:
            return
        is_owner = os.getpid() == self._owner_pid
        for descriptor in list(self._connections):
            if is_owner:  # the kernel's list of what is watched is one for both processes
                self._epoll.unregister(descriptor)
            self._give_up(descriptor)
        self._epoll.close()
        self._listener.close()
        if is_owner:
            self.path.unlink(missing_ok=True)

    def _mute(self) -> None:
        """Watch the listener no more: without a descriptor to accept with it would be readable for ever."""
        self._epoll.modify(self._listener, 0)
        self._is_muted = True

    def _unmute(self) -> None:
        self._epoll.modify(self._listener, select.EPOLLIN)
        self._is_muted = False

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            if error.errno in _WANTING:
                self._mute()
            return  # else it left before its turn came
        if len(self._bells) == BELLS_MAX:
            connection.close()
            return
        connection.setblocking(False)
        try:
            self._hand_out_bell(connection)
        except OSError:
            connection.close()  # it left, or there is no descriptor for its bell

    def _hand_out_bell(self, connection: socket.socket) -> None:
        with contextlib.ExitStack() as undo:
            bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            undo.callback(os.close, bell)
            self._epoll.register(connection, select.EPOLLIN)
            undo.callback(self._epoll.unregister, connection)
            socket.send_fds(connection, [_GREETING], [bell])
            undo.pop_all()
        descriptor = connection.fileno()
        self._connections[descriptor], self._bells[descriptor] = connection, bell

    def _forget(self, descriptor: int) -> None:
        self._epoll.unregister(descriptor)
        self._give_up(descriptor)

    def _give_up(self, descriptor: int) -> None:
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

        Raises Missing (nobody listens), AccessDenied, NotReady (no bell within ``timeout_s``), ConsumersFull, else
        RingError.
        """
        try:
            with contextlib.ExitStack() as undo:
                connection = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                bell = _receive_bell(connection, path, timeout_s)
                undo.pop_all()
        except TimeoutError as error:
            raise NotReady(f"{path} gave no bell within {timeout_s:g} s") from error
        except OSError as error:
            raise named(error, f"cannot connect to {path}") from error
        return cls(connection, bell)

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


def _receive_bell(connection: socket.socket, path: Path | str, timeout_s: float) -> int:
    connection.settimeout(timeout_s)
    connection.connect(str(path))
    _, descriptors, flags, _ = socket.recv_fds(connection, 1, 1)
    if flags & socket.MSG_CTRUNC:
        raise RingError(f"cannot take the bell of {path}: {os.strerror(errno.EMFILE)}")
    if not descriptors:
        raise ConsumersFull(f"{path} gives no more bells, it has at most {BELLS_MAX}")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _make_free(path: Path) -> None:
    """Remove the socket that a dead process left at a path; raises an error when anything else is there.

    Whoever listens need not answer to be seen: a connection is only begun.
    """
    mode = segment.mode_at(path, follow=False)
    if not mode:
        return
    if not stat.S_ISSOCK(mode):
        raise ForeignFile(f"cannot listen at {path}: a file that is no socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            raise WriterAlive(path, 0) from None  # its backlog is full
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        pid, _, _ = _PEER.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    raise WriterAlive(path, pid)
