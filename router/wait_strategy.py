"""How the event loop waits for the next event: asleep, awake for a while, or always awake.

A core that sleeps takes tens of microseconds to wake, more than all the work that a token needs. So, as in LMAX's
Disruptor, there are three ways, with the trade between latency and CPU time in the name:

* ``block``: sleep in epoll. Costs nothing while nothing happens.
* ``adaptive``: after each event look for the next one for a while, then sleep.
* ``spin``: never sleep. For a router that has a core of its own.

Being awake means that the loop always has something to call, so that libuv asks the kernel for events and does not wait
for them. With ``block`` nothing of this file is on any path.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic_ns
from typing import Final, Literal

WaitStrategy = Literal["block", "adaptive", "spin"]
_US_NS: Final = 1_000

Publish = Callable[[int, int, int, int, int, int, int], int]
"""Publishes the seven words of a token record, the first of which is its time in ns; returns its sequence."""


class StayAwake:
    """Keeps an event loop from sleeping: for ``spin_us`` after each :meth:`touch`, or always (``None``)."""

    def __init__(self, event_loop: asyncio.AbstractEventLoop, spin_us: float | None) -> None:
        self._call_soon = event_loop.call_soon
        self._spin_ns = None if spin_us is None else int(spin_us * _US_NS)
        self._until_ns = 0
        self._turning = False
        self._stopped = False
        self.turn_count = 0
        """Turns of the loop that were taken only to stay awake."""

    def start(self) -> None:
        """Stay awake from now on, if it is always."""
        if self._spin_ns is None:
            self._turning = True
            self._call_soon(self._turn)

    def stop(self) -> None:
        """Let the loop sleep."""
        self._stopped = True

    def touch(self, now_ns: int) -> None:
        """Something has happened."""
        if self._spin_ns is None or self._stopped:
            return
        self._until_ns = now_ns + self._spin_ns
        if not self._turning:
            self._turning = True
            self._call_soon(self._turn)

    def _turn(self) -> None:
        if self._stopped or (self._spin_ns is not None and monotonic_ns() >= self._until_ns):
            self._turning = False
            return
        self.turn_count += 1
        self._call_soon(self._turn)

    def watching(self, publish: Publish) -> Publish:
        """Return a function that publishes a token record and takes it for an event."""

        def publish_and_touch(now: int, w2: int, w3: int, w4: int, w5: int, w6: int, w7: int, /) -> int:
            sequence = publish(now, w2, w3, w4, w5, w6, w7)
            self.touch(now)
            return sequence

        return publish_and_touch


def stay_awake(event_loop: asyncio.AbstractEventLoop, strategy: WaitStrategy, spin_us: float) -> StayAwake | None:
    """Return what keeps a loop awake as a strategy says, ``None`` for ``block``."""
    if strategy == "block":
        return None
    return StayAwake(event_loop, None if strategy == "spin" else spin_us)
