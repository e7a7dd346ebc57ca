"""A clock that stands still between events, and an event loop on it."""

from __future__ import annotations

import asyncio
import heapq
import math
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, Final

NS: Final = 1_000_000_000
START_NS: Final = 1_000 * NS
"""Where each run begins: not at 0, which means "has not happened"."""


class Clock:
    """Virtual nanoseconds. Each reading takes ``step_ns``, so that stamps of one callback can differ."""

    def __init__(self, step_ns: int = 0) -> None:
        self.now_ns = START_NS
        self.step_ns = step_ns

    def read(self) -> int:
        """Return the time; takes the place of ``time.monotonic_ns``."""
        self.now_ns += self.step_ns
        return self.now_ns


class _Event:
    """Something of the simulation's own that is due: an exception in it ends the run, it is no fault of the router."""

    __slots__ = ("_args", "_callback", "_cancelled")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._callback = callback
        self._args = args
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True

    def _run(self) -> None:
        self._callback(*self._args)


Connector = Callable[[Callable[[], asyncio.BaseProtocol], tuple[str, int] | str], Awaitable[asyncio.Transport]]


class VirtualLoop(asyncio.AbstractEventLoop):
    """Runs callbacks in the order of their times and, at the same time, of their making: nothing is left to chance.

    ``connector`` opens connections, ``after`` is called after each callback, ``faults`` are the exceptions that escaped
    from callbacks of the router.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.connector: Connector | None = None
        self.after: Callable[[], None] = lambda: None
        self.faults: list[dict[str, Any]] = []
        self.callback_count = 0
        self._ready: deque[Any] = deque()
        self._timers: list[tuple[int, int, Any]] = []
        self._number = count()
        self._closed = False

    # ------------------------------------------------------------ running
    def run(self, until: Callable[[], bool], limit_ns: int) -> bool:
        """Run until ``until`` holds; false when ``limit_ns`` came first or nothing is left to do."""
        ready, timers, clock = self._ready, self._timers, self.clock
        asyncio._set_running_loop(self)
        try:
            while not until():
                if ready:
                    handle = ready.popleft()
                elif timers and timers[0][0] <= limit_ns:
                    when, _, handle = heapq.heappop(timers)
                    clock.now_ns = max(clock.now_ns, when)
                else:
                    return False
                if handle._cancelled:
                    continue
                self.callback_count += 1
                handle._run()
                self.after()
        finally:
            asyncio._set_running_loop(None)
        return True

    def at(self, when_ns: int, callback: Callable[..., object], *args: Any) -> _Event:
        """Have something of the simulation's own happen at a time."""
        event = _Event(callback, args)
        heapq.heappush(self._timers, (when_ns, next(self._number), event))
        return event

    def soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Have something of the simulation's own happen as the next but those that are ready already."""
        self._ready.append(_Event(callback, args))

    # ------------------------------------------------------------ what asyncio and the router ask of a loop
    def time(self) -> float:
        return self.clock.now_ns / NS

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Any = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return self._timer(self.clock.now_ns + math.ceil(delay * NS), callback, args, context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return self._timer(math.ceil(when * NS), callback, args, context)

    def _timer(self, when_ns: int, callback: Any, args: tuple[Any, ...], context: Any) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when_ns / NS, callback, args, self, context)
        heapq.heappush(self._timers, (when_ns, next(self._number), handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are passed over when their time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, name=name)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self._closed

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._closed = True
        self._ready.clear()
        self._timers.clear()

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.faults.append(context)

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        assert self.connector is not None
        transport = await self.connector(protocol_factory, (host, port))
        return transport, transport.get_protocol()
