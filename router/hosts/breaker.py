"""The circuit breaker of one host, pure: whether its requests fail so often that it should get none for a while.

::

            failures in a row, or too large a share of a window
    CLOSED ────────────────────────────────────────────────────► OPEN ◄──┐
       ▲                                                          │      │ a trial fails:
       │ as many good trials as there may be at once              │ time │ twice as long
       └───────────────────────────────────────── HALF_OPEN ◄─────┘      │
                                                      └──────────────────┘

Time is given, and so is the jitter. Successes cost nothing while it is closed: the caller counts them in a number of
its own (``served``), and the breaker looks at how far that number has moved when a failure comes.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.config import BreakerConfig

_NS: Final = 1_000_000_000
_JITTER: Final = 0.2
"""Share by which an open time differs, so that several routers do not try a host in the same moment."""
_DOUBLINGS_MAX: Final = 30


class BreakerState(IntEnum):
    """Whether requests go to a host."""

    CLOSED = 0
    OPEN = 1
    HALF_OPEN = 2


_CLOSED, _OPEN, _HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


class Breaker:
    """State of one breaker. ``state`` and ``until_ns`` (when an open one lets trials through) are to be read only."""

    def __init__(self, config: BreakerConfig, jitter: Callable[[], float]) -> None:
        """``jitter`` returns a number in [0, 1), as ``random.Random.random``."""
        self.state = _CLOSED
        self.until_ns = 0
        self.since_ns = 0
        """When it came into its state: what began before says nothing of how the host is in it."""
        self.openings = 0
        """Times it opened since it was closed last."""
        self._config = config
        self._jitter = jitter
        self._in_a_row = 0
        self._served_then = 0
        self._failed = 0
        self._passed = 0
        self._seconds: deque[tuple[int, int, int]] = deque(maxlen=config.window_s + 1)
        """Time, requests served and requests failed by then: the beginning of each second of the window."""

    def configure(self, config: BreakerConfig) -> None:
        """Go on with other limits; an open breaker stays open for the time that it was given."""
        self._config = config
        self._seconds = deque(self._seconds, maxlen=config.window_s + 1)

    def second(self, now_ns: int, served: int) -> None:
        """Note how many requests the host has served by now; once a second."""
        self._seconds.append((now_ns, served, self._failed))

    def failed(self, now_ns: int, began_ns: int, served: int) -> bool:
        """Take a failed request that was sent at ``began_ns``; return whether the breaker has opened by it."""
        self._failed += 1
        if served != self._served_then:
            self._served_then, self._in_a_row = served, 0
        self._in_a_row += 1
        if self.state == _OPEN or began_ns < self.since_ns:
            return False  # it was under way when the breaker opened: no news
        if self.state == _HALF_OPEN or self._is_too_much(now_ns, served):
            self._open(now_ns)
            return True
        return False

    def _is_too_much(self, now_ns: int, served: int) -> bool:
        config = self._config
        if config.failures and self._in_a_row >= config.failures:
            return True
        if not config.share or not self._seconds:
            return False
        oldest_ns = now_ns - config.window_s * _NS
        begin = next((second for second in self._seconds if second[0] >= oldest_ns), self._seconds[-1])
        failed = self._failed - begin[2]
        total = failed + served - begin[1]
        return total >= config.requests_min and failed >= config.share * total

    def _open(self, now_ns: int) -> None:
        config = self._config
        doubled_s = config.open_s * 2 ** min(self.openings, _DOUBLINGS_MAX)
        open_s = min(doubled_s, config.open_s_max) * (1 + _JITTER * (2 * self._jitter() - 1))
        self.openings += 1
        self._change(_OPEN, now_ns)
        self.until_ns = now_ns + int(open_s * _NS)

    def try_again(self, now_ns: int) -> bool:
        """Let trials through when the time has come; return whether it has."""
        if self.state != _OPEN or now_ns < self.until_ns:
            return False
        self._change(_HALF_OPEN, now_ns)
        return True

    def restarted(self, now_ns: int) -> None:
        """The host was gone and is there again: an open breaker lets trials through at once."""
        if self.state == _OPEN:
            self._change(_HALF_OPEN, now_ns)

    def served(self, now_ns: int, began_ns: int) -> bool:
        """Take a good answer to a request that was sent at ``began_ns``; return whether the breaker has closed by it.

        To be called while it is half open.
        """
        if self.state != _HALF_OPEN or began_ns < self.since_ns:
            return False
        self._passed += 1
        if self._passed < self._config.trial_requests:
            return False
        self.openings = 0
        self._change(_CLOSED, now_ns)
        return True

    def _change(self, state: BreakerState, now_ns: int) -> None:
        self.state = state
        self.since_ns = now_ns
        self.until_ns = 0
        self._passed = self._in_a_row = 0
        self._seconds.clear()  # the share is of what comes after the next full second
