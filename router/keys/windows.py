"""How much was used lately; pure, times are monotonic nanoseconds that the caller gives."""

from __future__ import annotations

from array import array
from typing import Final

_NS: Final = 1_000_000_000
MINUTE_NS: Final = 60 * _NS
DAY_NS: Final = 86_400 * _NS
_NEVER: Final = -(1 << 62)


class RequestWindow:
    """At most ``limit`` requests in any ``span_ns``, exactly.

    A ring of the times of the last ``limit`` requests: the oldest of them is the one that the next must not be too near
    to. 8 bytes for each request of the limit, and the same few steps whatever the limit.
    """

    __slots__ = ("_at", "_span_ns", "_times")

    def __init__(self, limit: int, span_ns: int = MINUTE_NS) -> None:
        self._span_ns = span_ns
        self._times = array("q", [_NEVER]) * limit
        self._at = 0

    @property
    def limit(self) -> int:
        """Requests that a span may have."""
        return len(self._times)

    def wait_ns(self, now: int) -> int:
        """Return how long it is until one more may come, 0 or less for at once."""
        return self._times[self._at] + self._span_ns - now

    def note(self, now: int) -> None:
        """A request has come; ``wait_ns`` has said that it may."""
        self._times[self._at] = now
        self._at = (self._at + 1) % len(self._times)

    def take_back(self) -> None:
        """The newest request was not taken after all."""
        self._at = (self._at - 1) % len(self._times)
        self._times[self._at] = _NEVER

    def count(self, now: int) -> int:
        """Return how many came in the last span."""
        since = now - self._span_ns
        return sum(time > since for time in self._times)

    def resized(self, limit: int) -> RequestWindow:
        """Return a window of another limit that knows the same requests, as many of them as it can tell apart."""
        other = RequestWindow(limit, self._span_ns)
        newest = sorted(self._times)[-limit:]
        other._times[limit - len(newest) :] = array("q", newest)
        return other


class TokenWindow:
    """Tokens of the last ``span_ns``, in buckets: what is in one counts until all of it is old enough."""

    __slots__ = ("_bucket_ns", "_buckets", "_newest", "total")

    def __init__(self, span_ns: int, bucket_count: int) -> None:
        self._bucket_ns = span_ns // bucket_count
        self._buckets = array("q", bytes(8 * (bucket_count + 1)))
        self._newest = 0
        self.total = 0
        """Of the window, as it was when somebody last asked or noted."""

    def note(self, now: int, count: int) -> None:
        """So many tokens were used."""
        self._go_to(now)
        self._buckets[self._newest % len(self._buckets)] += count
        self.total += count

    def wait_ns(self, now: int, limit: int) -> int:
        """Return how long it is until fewer than ``limit`` tokens are in the window, 0 where that is so."""
        self._go_to(now)
        left, n = self.total, len(self._buckets)
        if left < limit:
            return 0
        for number in range(self._newest - n + 1, self._newest + 1):
            left -= self._buckets[number % n]
            if left < limit:
                return (number + n) * self._bucket_ns - now
        raise AssertionError("an empty window is below every limit")

    def _go_to(self, now: int) -> None:
        """Forget what is too old."""
        newest, buckets = now // self._bucket_ns, self._buckets
        n = len(buckets)
        for number in range(max(self._newest, newest - n) + 1, newest + 1):
            self.total -= buckets[number % n]
            buckets[number % n] = 0
        self._newest = max(newest, self._newest)
