"""What the service manager is told while the router runs: that it makes progress, and how it is.

The tick of the loop calls :meth:`Pulse.beat` at the end of each of its seconds. There is no timer and no thread of its
own: a loop that is stuck says nothing, and the watchdog ends it.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from router.log import dropped_count
from router.telemetry.counters import Counter

if TYPE_CHECKING:
    from router.loop import Loop
    from router.service.notify import Notifier

_NS: Final = 1_000_000_000
_STATUS_EVERY_NS: Final = 2 * _NS
_HELD_NS: Final = 15 * _NS
EXTENSION_S: Final = 5.0
"""How much more time a drain asks for, each second: it is a bound on a drain that hangs, not on one that goes on."""


class Pulse:
    """Tells a :class:`Notifier` how a loop is, once a second."""

    def __init__(self, loop: Loop, notifier: Notifier) -> None:
        self._loop = loop
        self.notifier = notifier
        self.paused = False
        """The status and the watchdog are another process's: this one has handed over."""
        self.draining_until_ns = 0
        """While the router drains, when that ends at the latest."""
        self._status = ""
        self._status_ns = 0
        self._request_count = 0
        self._event_count = 0
        self._counted_ns = monotonic_ns()

    def beat(self, now: int) -> None:
        """Say that the loop makes progress, if it does, and every other second how it is."""
        self._loop.counters.set(Counter.LOG_DROPPED, dropped_count())
        if self._loop.backlog:  # the tick came, but requests lie published and nobody takes them
            return
        if not self.paused:
            self.notifier.alive()
        if self.draining_until_ns > now and not self.paused:
            self.notifier.extend(EXTENSION_S)
        if now - self._status_ns >= _STATUS_EVERY_NS and not self.paused:
            self._status_ns = now
            self._tell(now)

    def hold(self, now: int) -> None:
        """Leave the status alone for a while: something was said there that is to be read."""
        self._status_ns = now + _HELD_NS - _STATUS_EVERY_NS
        self._status = ""

    def _tell(self, now: int) -> None:
        text = self.text(now)
        if text != self._status:
            self._status = text
            self.notifier.status(text)

    def text(self, now: int) -> str:
        """Return how the router is, in one line."""
        loop, get = self._loop, self._loop.counters.get
        requests, events = get(Counter.REQUESTS), get(Counter.TOKEN_EVENTS)
        seconds = max(now - self._counted_ns, 1) / _NS
        request_rate = (requests - self._request_count) / seconds
        event_rate = (events - self._event_count) / seconds
        self._request_count, self._event_count, self._counted_ns = requests, events, now
        state = f"draining, {max(self.draining_until_ns - now, 0) / _NS:.0f} s left" if loop.stopping else "serving"
        healthy = sum(host.healthy for host in loop.hosts)
        return (
            f"{state}: {len(loop.in_flight)} in flight, {loop.waiting_count} waiting, "
            f"{healthy} of {len(loop.hosts)} hosts healthy, {request_rate:.1f} requests/s, {event_rate:.0f} events/s, "
            f"{requests} requests since the start"
        )
