"""Comparisons of peers inside one round: a ratio for every round, and the median of the ratios.

A shared machine is twice as fast in one minute as in the next, and a round is short: both sides of a ratio, and the
``direct`` that is taken from both, are of the same round. Rounds in which the machine was taken away do not count.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from bench.harness import STALL_MAX_MS, Run

STEAL_MAX_PERCENT = 2.0
"""A run with more stolen time is not counted."""

Value = Callable[[Run], float | None]


class Quantity(NamedTuple):
    """A number of a run. ``is_added``: less ``direct``'s in the same round; ``is_more_better``: a rate."""

    name: str
    value: Value
    is_added: bool = True
    is_more_better: bool = False


class Spread(NamedTuple):
    """Median, smallest and largest over so many rounds."""

    median: float
    smallest: float
    largest: float
    rounds: int

    def __str__(self) -> str:
        digits = 0 if self == tuple(map(round, self)) or abs(self.median) >= 10 else 2
        return f"{self.median:,.{digits}f} ({self.smallest:,.{digits}f}–{self.largest:,.{digits}f})"


def is_calm(run: Run) -> bool:
    """Whether the machine was ours during a run."""
    return bool(run["steal"] < STEAL_MAX_PERCENT and run["stall_ms"] <= STALL_MAX_MS)


def by_round(runs: Iterable[Run], mode: str, peer: str, quantity: Quantity) -> dict[int, float]:
    """Return round → value of a peer in a mode, in calm runs only."""
    runs = list(runs)
    own = _values(runs, mode, peer, quantity)
    if not quantity.is_added:
        return own
    direct = _values(runs, mode, "direct", quantity)
    return {index: value - direct[index] for index, value in own.items() if index in direct}


def _values(runs: Iterable[Run], mode: str, peer: str, quantity: Quantity) -> dict[int, float]:
    calm = (run for run in runs if run["mode"] == mode and run["peer"] == peer and is_calm(run))
    return {run["round"]: value for run in calm if (value := quantity.value(run)) is not None}


def spread(values: Iterable[float]) -> Spread | None:
    """Return what a set of rounds has come to; None without any."""
    known = list(values)
    return Spread(statistics.median(known), min(known), max(known), len(known)) if known else None


def ratio(runs: Sequence[Run], mode: str, peer: str, other: str, quantity: Quantity) -> Spread | None:
    """Return a peer's value over another's, of the rounds in which both are known and the other's is positive."""
    own = by_round(runs, mode, peer, quantity)
    base = by_round(runs, mode, other, quantity)
    return spread(value / base[index] for index, value in own.items() if base.get(index, 0) > 0)


def best(runs: Sequence[Run], mode: str, peers: Iterable[str], quantity: Quantity) -> str | None:
    """Return the peer whose median is best; None when none of them has one."""
    medians = {
        peer: statistics.median(values.values()) for peer in peers if (values := by_round(runs, mode, peer, quantity))
    }
    if not medians:
        return None
    return (max if quantity.is_more_better else min)(medians, key=medians.__getitem__)
