"""The connections to all hosts: taken, kept warm, given up. Nothing here waits on the path."""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from router.errors import ErrorKind
from router.hosts.connection import HostConnection
from router.hosts.probe import own_fault
from router.telemetry.counters import Counter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ringbuffer import CountersWriter
    from router.attempt import Attempt
    from router.hosts.host import Host
    from router.loop import Loop

_NS: Final = 1_000_000_000
_MS_NS: Final = 1_000_000
_CANCELLED: Final = -1
"""In place of the time until which an abandoned connection is waited for."""
_TRAILING_NS: Final = _NS
"""How long a host may take from its last event to the end of the body before the connection is given up."""


class Fleet:
    """Connections by host. An attempt without one waits in its host's ``queue`` for whichever comes first."""

    def __init__(self, hosts: Sequence[Host], counters: CountersWriter, connect_timeout_s: float) -> None:
        self.hosts = hosts
        self.loop: Loop
        self._counters = counters
        self.connect_timeout_s = connect_timeout_s
        self._trailing: set[HostConnection] = set()
        self._abandoned: dict[HostConnection, int] = {}
        """Connections whose answers nobody wants, and until when they are waited for."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    # ------------------------------------------------------------ the path
    def take(self, host: Host, now: int) -> HostConnection | None:
        """Return an idle connection, the youngest first; those past their age are closed."""
        idle = host.idle
        if not idle:
            return None
        connection = idle.pop()
        if connection.transport is None or connection.transport.is_closing():
            return None
        if now - connection.idle_since > host.facts.idle_close_s * _NS:
            self._close_all(idle)  # the youngest is too old: all are
            connection.close()
            return None
        return connection

    def request(self, attempt: Attempt) -> None:
        """Have a connection made for an attempt that found none."""
        attempt.host.queue.append(attempt)
        self._connect(attempt.host)

    def withdraw(self, attempt: Attempt) -> None:
        """The attempt no longer waits for a connection."""
        queue = attempt.host.queue
        if attempt in queue:
            queue.remove(attempt)

    def keep(self, connection: HostConnection) -> None:
        """Take a connection whose answer is complete: for a waiting attempt, or as a spare."""
        self._trailing.discard(connection)
        host = connection.host
        now = monotonic_ns()
        queue = host.queue
        if self._closed or connection.transport is None or connection.transport.is_closing():
            connection.close()
            if queue and not connection.used:  # accepted and closed at once: nobody serves there
                text = f"host {host.name} closed a new connection at once"
                self.loop.recovery.attempt_failed(queue.pop(0), ErrorKind.CONNECT_FAILED, text, now)
            return
        if queue:
            self.loop.connected(queue.pop(0), connection, now)
            return
        if host.drains:
            connection.close()
            return
        connection.idle_since = now
        host.idle.append(connection)

    def wait_for_end(self, connection: HostConnection) -> None:
        """Keep a connection aside until the end of its last body is in."""
        self._trailing.add(connection)

    def abandon(self, connection: HostConnection, until_ns: int) -> None:
        """Let a host finish what it cannot be told to stop; its slot stays taken, until ``until_ns`` at most."""
        host = connection.host
        self._abandoned[connection] = until_ns

        def release() -> None:
            now = monotonic_ns()
            grace_ns = int(host.facts.cancel_grace_ms * _MS_NS)
            if self._abandoned.pop(connection, 0) == _CANCELLED and grace_ns:
                host.drain_slot(now + grace_ns)
            self.loop.release_slot(host, now)

        connection.abandon(release)

    def forget(self, connection: HostConnection) -> None:
        """A connection is gone."""
        self._trailing.discard(connection)
        if connection in connection.host.idle:
            connection.host.idle.remove(connection)

    # ------------------------------------------------------------ spares
    def top_up(self, host: Host, now: int) -> None:
        """Open spares until there are as many as the recent bursts ask for."""
        if not host.usable or self._closed:
            return
        target = host.spares.target(now, max(host.free_slots, 0))
        missing = target + len(host.queue) - len(host.idle) - host.connecting
        for _ in range(missing):
            self._connect(host)

    def prune(self, now: int) -> None:
        """Close idle connections past their age and those whose body never ended; refill the spares."""
        for connection in [c for c in self._trailing if now - c.idle_since > _TRAILING_NS]:
            connection.close()
        for connection in [c for c, until in self._abandoned.items() if now >= until > _CANCELLED]:
            self._cancel(connection)
        for host in self.hosts:
            age_ns = host.facts.idle_close_s * _NS
            old = [c for c in host.idle if now - c.idle_since > age_ns]
            if old:
                host.idle = [c for c in host.idle if now - c.idle_since <= age_ns]
                self._close_all(old)
            self.top_up(host, now)

    def close_idle(self, host: Host) -> None:
        """Close the idle connections of a host: it gets no requests for now."""
        self._close_all(host.idle)

    def give_up(self, host: Host) -> None:
        """Close the connections of a host on which answers are under way that nobody wants; their slots are free."""
        for connection in [c for c in self._abandoned if c.host is host]:
            self._cancel(connection)

    def _cancel(self, connection: HostConnection) -> None:
        """Break off an answer that nobody wants: its end frees the slot, which the host may still use for a while."""
        self._abandoned[connection] = _CANCELLED
        connection.kill()

    @staticmethod
    def _close_all(connections: list[HostConnection]) -> None:
        for connection in connections:
            connection.close()
        connections.clear()

    # ------------------------------------------------------------ connecting
    def _connect(self, host: Host) -> None:
        host.connecting += 1
        self._counters.add(Counter.CONNECTS)
        task = asyncio.get_running_loop().create_task(self._connect_now(host))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect_now(self, host: Host) -> None:
        loop = asyncio.get_running_loop()
        text = ""
        connection: HostConnection | None = None
        try:
            async with asyncio.timeout(self.connect_timeout_s):
                address = host.resolved
                if address is None:
                    raise OSError(f"the name of host {host.name} is not resolved")
                if isinstance(address, str):
                    _, connection = await loop.create_unix_connection(lambda: HostConnection(self, host), address)
                else:
                    _, connection = await loop.create_connection(lambda: HostConnection(self, host), *address)
        except TimeoutError:
            return  # whoever waits for a connection has a time-out of its own, which began when it was routed
        except OSError as error:
            own = own_fault(error)
            text = f"host {host.name} cannot be reached: {error.strerror or error}"
        finally:
            host.connecting -= 1
        if connection is not None:
            self.keep(connection)
            return
        now = monotonic_ns()
        queue = host.queue
        if not own:
            self.loop.recovery.connect_failed(host, text, now)
        if queue:
            self.loop.recovery.attempt_failed(queue.pop(0), ErrorKind.CONNECT_FAILED, text, now)

    async def close(self) -> None:
        """Close every connection and wait for what is being connected."""
        self._closed = True
        for host in self.hosts:
            self._close_all(host.idle)
        for connection in [*self._trailing, *self._abandoned]:
            connection.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
