"""How the time of one host is shared out among the requests it works on: processor sharing in whole numbers; pure.

While n requests run at a host, each is charged the n-th part of the time. With ``V(t) = ∫ dt / n(t)`` a request that
runs from s to e is charged ``V(e) − V(s)``: one addition for each begin and end, however many run beside it
(Kleinrock's egalitarian processor sharing, as in fair queueing's virtual time).

``V`` counts in 2⁻³² ns. What a division leaves over, and the fraction of each request's charge, is carried to the next
request. So no nanosecond is lost or charged twice, at any time::

    attributed + lost + idle + gap + carry + Σ (V − V(s)) over what runs  =  clock − begin      (exactly)

and the sum of all charges differs from the time that was used by less than 1 ns, whatever their number.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import Final

import msgspec

UNITS_PER_NS: Final = 1 << 32


class Share:
    """What one attempt at a host is charged. ``ended`` is set when the host's clock has passed its end."""

    __slots__ = ("begin_gap_ns", "begin_units", "ended", "lost", "ns")

    def __init__(self) -> None:
        self.ns = 0
        """The charge in nanoseconds of the host's time, once it has ended."""
        self.lost = False
        """Nobody knows what ran beside it: ``ns`` is not its charge."""
        self.ended = False
        self.begin_units = 0
        self.begin_gap_ns = 0


class HostTime(msgspec.Struct, frozen=True):
    """Where the time of a host went, in nanoseconds; with what is still running it sums to its whole time."""

    attributed_ns: int
    """Charged to requests."""
    idle_ns: int
    """Nothing ran."""
    lost_ns: int
    """Used by requests whose charge is not known."""
    gap_ns: int
    """Nobody knows what ran."""


class HostMeter:
    """The clock of one host. Begins and ends may come in any order, but not from before the clock."""

    def __init__(self, begin_ns: int) -> None:
        self.begin_ns = begin_ns
        self.clock_ns = begin_ns
        """Everything before this time is shared out."""
        self.running_count = 0
        self._virtual_units = 0
        self._running_begin_units = 0
        self._carry_units = 0
        self._attributed_ns = self._idle_ns = self._lost_ns = self._gap_ns = 0
        self._gap_until_ns = begin_ns
        self._order = count()
        self._turns: list[tuple[int, int, bool, Share]] = []

    def begin_at(self, begin_ns: int) -> None:
        """Begin earlier than was thought; only before the clock has gone on for the first time."""
        assert self.clock_ns == self.begin_ns
        self.begin_ns = self.clock_ns = min(begin_ns, self.begin_ns)

    def time(self) -> HostTime:
        """Return where the time went so far, without what is still running."""
        return HostTime(self._attributed_ns, self._idle_ns, self._lost_ns, self._gap_ns)

    def unsettled_units(self) -> int:
        """Return the rest of the equation above, in 2⁻³² ns: the carry and what the running ones have used so far."""
        running = self._virtual_units * self.running_count - self._running_begin_units
        return self._carry_units + running

    def begin(self, t_ns: int, share: Share) -> None:
        """Let an attempt begin to run."""
        self._push(t_ns, share, is_begin=True)

    def end(self, t_ns: int, share: Share) -> None:
        """Let an attempt end that has begun, no earlier than it began."""
        self._push(t_ns, share, is_begin=False)

    def gap(self, until_ns: int) -> None:
        """From the clock until then nobody knows what ran: no one is charged, and whoever ran is ``lost``."""
        self._gap_until_ns = max(self._gap_until_ns, until_ns)

    def advance(self, until_ns: int) -> None:
        """Share out the time until then; a time before the clock does nothing."""
        turns = self._turns
        while turns and turns[0][0] <= until_ns:
            t_ns, _, is_begin, share = heapq.heappop(turns)
            self._pass(t_ns)
            if is_begin:
                self._begin(share)
            else:
                self._end(share)
        self._pass(until_ns)

    def _push(self, t_ns: int, share: Share, *, is_begin: bool) -> None:
        if t_ns < self.clock_ns:  # that time is given away already
            share.lost = True
            t_ns = self.clock_ns
        heapq.heappush(self._turns, (t_ns, next(self._order), is_begin, share))

    def _pass(self, t_ns: int) -> None:
        """Let the clock go on to a time, with what runs now."""
        known_from_ns = min(max(self.clock_ns, self._gap_until_ns), t_ns)
        self._gap_ns += max(0, known_from_ns - self.clock_ns)
        length_ns = t_ns - max(known_from_ns, self.clock_ns)
        if length_ns > 0 and self.running_count:
            each, left = divmod(length_ns * UNITS_PER_NS, self.running_count)
            self._virtual_units += each
            self._carry_units += left
        elif length_ns > 0:
            self._idle_ns += length_ns
        self.clock_ns = max(self.clock_ns, t_ns)

    def _begin(self, share: Share) -> None:
        self.running_count += 1
        self._running_begin_units += self._virtual_units
        share.begin_units = self._virtual_units
        share.begin_gap_ns = self._gap_ns

    def _end(self, share: Share) -> None:
        self.running_count -= 1
        self._running_begin_units -= share.begin_units
        units = self._virtual_units - share.begin_units + self._carry_units
        share.ns, self._carry_units = divmod(units, UNITS_PER_NS)
        share.lost = share.lost or self._gap_ns > share.begin_gap_ns
        share.ended = True
        if share.lost:
            self._lost_ns += share.ns
        else:
            self._attributed_ns += share.ns
