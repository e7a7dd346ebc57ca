"""What ran at which host and when, put together from rows and sightings; pure.

An attempt occupies its host from the last byte of its request sent until its slot was given back. Rows tell it of every
request that has ended, sightings of those that still run (:mod:`router.observer.in_flight`). The hosts' clocks
(:mod:`router.observer.sharing`) follow :data:`SETTLE_NS` behind the time until which everything is known.

Where rows were lost nobody knows what ran. All hosts' clocks pass over that time as a gap, and the next sighting says
what runs behind it. The same goes for the life of a router before the first row that the observer read of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from router.observer.in_flight import LOOK_EVERY_NS, Sighting
from router.observer.rows import NO_DONE_SEQ, RequestRow, RowAttempt
from router.observer.sharing import HostMeter, HostTime, Share

SETTLE_NS: Final = 1_000_000_000
"""How far the clocks stay behind: records are written up to 250 ms after a request's end, sightings come as far apart,
and both are read ten times a second."""
BLOCK_MAX_NS: Final = 5_000_000_000
"""After this a sighting whose rows have not come holds the clocks no longer, and the rows count as lost."""
_LIVE_NS: Final = 4 * LOOK_EVERY_NS
"""A router that was not seen for this long is dead or has a new generation."""
_FORGET_NS: Final = 10_000_000_000
"""A request that ended longer ago is in no sighting that is still to come."""
_LIVES_MAX: Final = 256
"""Lives that are remembered; a router keeps two on disk."""

Source = tuple[str, int]
"""One life of one router: instance and generation."""


class Stay(NamedTuple):
    """One attempt at one host, and its share of the host's time."""

    host: str
    sent_ns: int
    share: Share


class Occupancy(NamedTuple):
    """What a request took of its hosts.

    ``of_attempts``: one for each attempt of the row; ``None`` for one that never reached its host, or failed so quickly
    that it was not seen in time. ``unnamed``: attempts that were seen to run although the row, which names only the
    last failed ones, does not have them.
    """

    of_attempts: tuple[Stay | None, ...]
    unnamed: tuple[Stay, ...] = ()

    def is_settled(self) -> bool:
        """Return whether the hosts' clocks have passed all of it."""
        return all(stay is None or stay.share.ended for stay in (*self.of_attempts, *self.unnamed))


class _Life:
    """What is known of one life of a router."""

    def __init__(self) -> None:
        self.next_done_seq: int | None = None
        """Of the row that comes next; ``None`` before the first one."""
        self.waiting: deque[Sighting] = deque()
        """Sightings whose rows have not all come."""
        self.seen_ns = 0
        """The last sighting."""
        self.known_until_ns = 0
        """The last sighting whose rows have all come: everything before it is known."""
        self.running: dict[int, Stay] = {}
        self.earlier: dict[int, list[Stay]] = {}
        """Attempts that were seen to run, of requests that are at another host now."""
        self.ended: dict[int, int] = {}
        """When requests ended that a sighting may still show as running."""


class HostClocks:
    """The clocks of all hosts. ``hosts``: those to begin with; others are added when they are first used."""

    def __init__(self, hosts: Iterable[str] = ()) -> None:
        self._hosts = tuple(hosts)
        self._meters: dict[str, HostMeter] = {}
        self._lives: dict[Source, _Life] = {}
        self._clock_ns = 0
        self._has_advanced = False
        self._gap_until_ns = 0

    def times(self) -> dict[str, HostTime]:
        """Return where each host's time went so far."""
        return {name: meter.time() for name, meter in self._meters.items()}

    def take(self, row: RequestRow) -> Occupancy:
        """Take the row of a request that has ended, in the order of ``done.ring``."""
        life = self._life((row.instance, row.generation), row.generation if row.done_seq <= 0 else row.done_mono_ns)
        if row.done_seq != NO_DONE_SEQ:
            self._follow(life, row.done_seq, row.done_mono_ns)
        life.ended[row.request_seq] = row.done_mono_ns
        seen = life.earlier.pop(row.request_seq, [])
        running = life.running.pop(row.request_seq, None)
        stays = tuple(self._stay(attempt, seen, running) for attempt in row.attempts)
        if running is not None and running not in stays:
            self._meter(running.host).end(max(running.sent_ns, _next_start_ns(row, running.sent_ns)), running.share)
            seen.append(running)
        return Occupancy(stays, tuple(stay for stay in seen if stay not in stays))

    def see(self, sightings: Sequence[Sighting], now_ns: int) -> None:
        """Take sightings, after all rows that were read since they were made."""
        for sighting in sightings:
            known_from_ns = sighting.taken_ns if sighting.done_count else sighting.generation
            life = self._life((sighting.instance, sighting.generation), known_from_ns)
            life.waiting.append(sighting)
            life.seen_ns = sighting.taken_ns
        for life in self._lives.values():
            self._apply(life, now_ns)
        self._retire(now_ns)

    def advance(self, now_ns: int) -> None:
        """Let the clocks go on as far as everything is known."""
        known_ns = [life.known_until_ns for life in self._lives.values() if life.seen_ns]
        until_ns = min([now_ns, *known_ns]) - SETTLE_NS
        if until_ns <= self._clock_ns:
            return
        self._clock_ns, self._has_advanced = until_ns, True
        for meter in self._meters.values():
            meter.advance(until_ns)

    # ------------------------------------------------------------ rows
    def _life(self, source: Source, known_from_ns: int) -> _Life:
        life = self._lives.get(source)
        if life is None:
            life = self._lives[source] = _Life()
            if len(self._lives) > _LIVES_MAX:
                del self._lives[next(iter(self._lives))]
            if not self._has_advanced:
                self._begin(known_from_ns)
        return life

    def _begin(self, known_from_ns: int) -> None:
        """Let the clocks begin with the life that is known from the earliest time on."""
        self._clock_ns = min(self._clock_ns or known_from_ns, known_from_ns)
        for host in self._hosts:
            self._meter(host)
        for meter in self._meters.values():
            meter.begin_at(self._clock_ns)

    def _meter(self, host: str) -> HostMeter:
        meter = self._meters.get(host)
        if meter is None:
            meter = self._meters[host] = HostMeter(self._clock_ns)
            meter.gap(self._gap_until_ns)
        return meter

    def _follow(self, life: _Life, done_seq: int, done_ns: int) -> None:
        """Notice what is missing before a row: all of it ended before this row did."""
        expected = life.next_done_seq or 0
        if done_seq < expected:  # it came after it was given up
            return
        if done_seq > expected:
            self._gap(done_ns)
        life.next_done_seq = done_seq + 1

    def _gap(self, until_ns: int) -> None:
        self._gap_until_ns = max(self._gap_until_ns, until_ns)
        for meter in self._meters.values():
            meter.gap(until_ns)

    def _stay(self, attempt: RowAttempt, seen: Sequence[Stay], running: Stay | None) -> Stay | None:
        sent_ns, end_ns = attempt.sent_mono_ns, attempt.end_mono_ns
        if sent_ns is None:
            return None
        for stay in seen:
            if (stay.host, stay.sent_ns) == (attempt.host, sent_ns):
                return stay
        meter = self._meter(attempt.host)
        end_ns = max(sent_ns, end_ns)
        if running is not None and (running.host, running.sent_ns) == (attempt.host, sent_ns):
            meter.end(end_ns, running.share)
            return running
        if attempt.outcome == "failed" and end_ns < meter.clock_ns and end_ns - sent_ns < _LIVE_NS:
            return None
        stay = Stay(attempt.host, sent_ns, Share())
        meter.begin(sent_ns, stay.share)
        meter.end(end_ns, stay.share)
        return stay

    # ------------------------------------------------------------ sightings
    def _apply(self, life: _Life, now_ns: int) -> None:
        while life.waiting:
            sighting = life.waiting[0]
            if sighting.done_count > (life.next_done_seq or 0):
                if now_ns - sighting.taken_ns < BLOCK_MAX_NS:
                    return
                life.next_done_seq = sighting.done_count
                self._gap(sighting.taken_ns)
            self._sight(life, life.waiting.popleft())

    def _sight(self, life: _Life, sighting: Sighting) -> None:
        """Bring what runs up to a sighting whose rows have all come."""
        taken_ns = sighting.taken_ns
        shown = {run.request_seq: run for run in sighting.running if run.request_seq not in life.ended}
        for seq, stay in list(life.running.items()):
            run = shown.get(seq)
            if run is None:  # it has neither a row nor a place in the table: its row was lost
                self._lose(life, seq, taken_ns)
            elif run.sent_ns != stay.sent_ns:
                self._meter(stay.host).end(max(stay.sent_ns, run.routed_ns or taken_ns), stay.share)
                life.earlier.setdefault(seq, []).append(life.running.pop(seq))
        for seq, run in shown.items():
            if run.sent_ns and seq not in life.running:
                stay = life.running[seq] = Stay(run.host, run.sent_ns, Share())
                self._meter(run.host).begin(run.sent_ns, stay.share)
        life.earlier = {seq: stays for seq, stays in life.earlier.items() if seq in shown}
        _forget_before(life.ended, taken_ns - _FORGET_NS)
        life.known_until_ns = taken_ns

    def _lose(self, life: _Life, seq: int, end_ns: int) -> None:
        stay = life.running.pop(seq)
        stay.share.lost = True
        self._meter(stay.host).end(max(stay.sent_ns, end_ns), stay.share)

    def _retire(self, now_ns: int) -> None:
        """Wait no longer for routers that are gone, once the rows of what they ran have come."""
        for life in self._lives.values():
            unseen_ns = now_ns - life.seen_ns
            if life.seen_ns and unseen_ns > _LIVE_NS and (not life.running or unseen_ns > BLOCK_MAX_NS):
                for seq in list(life.running):
                    self._lose(life, seq, life.known_until_ns)
                life.seen_ns = 0
                life.waiting.clear()
                life.ended.clear()


def _forget_before(ended: dict[int, int], ns: int) -> None:
    """Drop the oldest entries, which are the first."""
    while ended:
        seq = next(iter(ended))
        if ended[seq] > ns:
            return
        del ended[seq]


def _next_start_ns(row: RequestRow, sent_ns: int) -> int:
    """Return when the attempt behind one that the row does not name began; the request's end without one."""
    return min((a.start_mono_ns for a in row.attempts if a.start_mono_ns >= sent_ns), default=row.done_mono_ns)
