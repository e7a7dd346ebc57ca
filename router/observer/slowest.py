"""The slowest requests of the last hour, in bounded memory: for each ten seconds the few that took longest."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Final, NamedTuple

from router.observer.catalogue import egress_ns
from router.observer.rows import RequestRow

SPAN_NS: Final = 10_000_000_000
SPAN_COUNT: Final = 360
KEPT_PER_SPAN: Final = 10
"""As many as a terminal shows; over an hour and the two spans beside it 3,620 rows at most."""


class Slow(NamedTuple):
    """A request by how long it took; the key makes the order total."""

    duration_ns: int
    key: tuple[str, int, int]
    row: RequestRow


class Slowest:
    """Keeps the slowest requests by the time they ended. All times are of ``CLOCK_MONOTONIC``."""

    def __init__(self) -> None:
        self._spans: dict[int, list[Slow]] = {}

    def add(self, rows: Iterable[RequestRow], now_ns: int) -> None:
        """Take in requests that were read at ``now_ns``, however long ago they ended.

        A request that ended in the future did so by the clock of an earlier boot: it is not among them.
        """
        newest = now_ns // SPAN_NS + 1  # the rings were read a moment after now_ns
        oldest = newest - SPAN_COUNT - 1
        for number in [number for number in self._spans if number < oldest]:
            del self._spans[number]
        for row in rows:
            number = row.done_mono_ns // SPAN_NS
            if oldest <= number <= newest:
                _keep(self._spans.setdefault(number, []), Slow(row.duration_ns, row.key, row))

    def top(self, count: int, window_ns: int, now_ns: int) -> list[RequestRow]:
        """Return at most ``count`` (:data:`KEPT_PER_SPAN` at most) of the last ``window_ns``, the slowest first.

        As elsewhere the window is longer by up to one span: it begins with the span in which it would.
        """
        oldest = (now_ns - window_ns) // SPAN_NS
        recent = (slow for number, span in self._spans.items() if number >= oldest for slow in span)
        return [slow.row for slow in heapq.nlargest(min(count, KEPT_PER_SPAN), recent)]


def _keep(span: list[Slow], slow: Slow) -> None:
    """Put a request among the slowest of its span, in the place of the fastest of them."""
    if len(span) < KEPT_PER_SPAN:
        heapq.heappush(span, slow)
    elif slow > span[0]:
        heapq.heapreplace(span, slow)


def longest_stage(row: RequestRow) -> tuple[str, int]:
    """Return the longest stage of a request and its length; an empty name when it had none.

    Of a folded answer the host's decoding is ``decode`` and not ``egress``.
    """
    stages_ns = row.stages_ns() | {"egress": egress_ns(row)}
    length_ns, name = max((length_ns or 0, name) for name, length_ns in stages_ns.items())
    return (name, length_ns) if length_ns else ("", 0)
