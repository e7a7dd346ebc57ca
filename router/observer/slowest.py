"""The slowest requests of the last hour, in bounded memory: for each ten seconds the few that took longest."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple

from router.observer.rows import RequestRow

SPAN_NS: Final = 10_000_000_000
SPAN_COUNT: Final = 360
KEPT_PER_SPAN: Final = 10
"""As many as a terminal shows; over an hour 3,600 rows at most."""


class Slow(NamedTuple):
    """A request by how long it took; the key makes the order total."""

    duration_ns: int
    key: tuple[str, int, int]
    row: RequestRow


class Slowest:
    """Keeps the slowest requests by the time they were read."""

    def __init__(self) -> None:
        self._spans: deque[tuple[int, list[Slow]]] = deque(maxlen=SPAN_COUNT)

    def add(self, rows: Iterable[RequestRow], now_ns: int) -> None:
        """Take in requests that were read at ``now_ns``."""
        span = self._span(now_ns // SPAN_NS)
        for row in rows:
            slow = Slow(row.duration_ns, row.key, row)
            if len(span) < KEPT_PER_SPAN:
                heapq.heappush(span, slow)
            elif slow > span[0]:
                heapq.heapreplace(span, slow)

    def _span(self, number: int) -> list[Slow]:
        if not self._spans or self._spans[-1][0] != number:
            self._spans.append((number, []))
        return self._spans[-1][1]

    def top(self, count: int, window_ns: int, now_ns: int) -> list[RequestRow]:
        """Return at most ``count`` (:data:`KEPT_PER_SPAN` at most) of the last ``window_ns``, the slowest first."""
        oldest = (now_ns - window_ns) // SPAN_NS + 1
        recent = (slow for number, span in self._spans if number >= oldest for slow in span)
        return [slow.row for slow in heapq.nlargest(min(count, KEPT_PER_SPAN), recent)]


def longest_stage(row: RequestRow) -> tuple[str, int]:
    """Return the longest stage of a request and its length; an empty name when it had none."""
    stages = ((length_ns or 0, name) for name, length_ns in row.stages_ns().items())
    length_ns, name = max(stages)
    return (name, length_ns) if length_ns else ("", 0)
