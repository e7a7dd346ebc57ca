"""Which traces are kept: a share of all, decided at their beginning, and at their end those that matter; pure.

=========== ========================================================================================
``head``    the caller has decided so (its ``traceparent``), else a share of all by trace id
``error``   the request failed, or asked for what cannot be
``slo``     it missed an objective
``slowest`` it was among the slowest of ten seconds; known when these are over
=========== ========================================================================================

One request may be kept for several reasons and is kept once.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from router.observer.rows import RequestRow, RowKey
from router.observer.traces.spans import is_sampled

PERIOD_NS: Final = 10_000_000_000
LATE_PERIODS: Final = 1
"""A period is over when the next one is, too: rows come a second or more after they ended, when their cost is known."""
HEAD, ERROR, SLO, SLOWEST = "head", "error", "slo", "slowest"
REASONS: Final = (HEAD, ERROR, SLO, SLOWEST)
_ERRORS: Final = frozenset({"rejected", "host_error", "timeout", "bad_request", "aborted"})

Breaches = Callable[[RequestRow], Sequence[str]]
"""Tells the names of the objectives that a request missed."""


class Kept(NamedTuple):
    """A request whose trace is kept, and why."""

    row: RequestRow
    reasons: tuple[str, ...]
    objectives: tuple[str, ...] = ()
    """Names of the objectives that it missed."""


class _Slow(NamedTuple):
    """A request by how long it took; the key makes the order total."""

    duration_ns: int
    key: RowKey
    kept: Kept


def no_breaches(_: RequestRow) -> Sequence[str]:
    """Tell that there are no objectives."""
    return ()


class Sampler:
    """Decides about finished requests. ``slowest_count`` are kept of every ten seconds."""

    def __init__(self, ratio: float, slowest_count: int, breaches: Breaches = no_breaches) -> None:
        self._ratio = ratio
        self._slowest_count = slowest_count
        self._breaches = breaches
        self._periods: dict[int, list[_Slow]] = {}
        self.counts = dict.fromkeys(REASONS, 0)
        """Kept requests by the first reason that held."""
        self.seen_count = 0

    def take(self, rows: Iterable[RequestRow], wall_ns: int) -> list[Kept]:
        """Return what is to be kept of these rows, and the slowest of the periods that are over at ``wall_ns``."""
        kept = [each for row in rows if (each := self._judged(row, wall_ns)) is not None]
        kept += self._slowest_until(wall_ns // PERIOD_NS - LATE_PERIODS)
        for each in kept:
            self.counts[each.reasons[0]] += 1
        return kept

    def flush(self) -> list[Kept]:
        """Return the slowest of the periods that are not over: there will be no more rows."""
        kept = self._slowest_until(max(self._periods, default=0) + 1)
        self.counts[SLOWEST] += len(kept)
        return kept

    def waiting(self) -> Iterable[RequestRow]:
        """Return the slowest requests so far of the periods that are not over."""
        return [slow.kept.row for slows in self._periods.values() for slow in slows]

    def _judged(self, row: RequestRow, wall_ns: int) -> Kept | None:
        self.seen_count += 1
        objectives = tuple(self._breaches(row))
        reasons = []
        if row.outcome in _ERRORS:
            reasons.append(ERROR)
        if objectives:
            reasons.append(SLO)
        if is_sampled(row, self._ratio):
            reasons.append(HEAD)
        kept = Kept(row, tuple(reasons), objectives)
        if self._slowest_count:
            self._contend(kept, min(row.end_wall_ns, wall_ns) // PERIOD_NS)
        return kept if reasons else None

    def _contend(self, kept: Kept, period: int) -> None:
        """Have a request contend for a place among the slowest of its period; one that is kept takes the place too."""
        slows = self._periods.setdefault(period, [])
        slow = _Slow(kept.row.duration_ns, kept.row.key, kept)
        if len(slows) < self._slowest_count:
            heapq.heappush(slows, slow)
        elif slow > slows[0]:
            heapq.heapreplace(slows, slow)

    def _slowest_until(self, number: int) -> list[Kept]:
        over = sorted(each for each in self._periods if each < number)
        slows = [slow for each in over for slow in sorted(self._periods.pop(each), reverse=True)]
        return [slow.kept._replace(reasons=(SLOWEST,)) for slow in slows if not slow.kept.reasons]
