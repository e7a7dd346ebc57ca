"""Who waits for a model's hosts, and who is next; pure.

Three rules, each inside the one before:

1. **Class**: realtime before interactive before batch. A request of which nobody said a class is interactive.
2. **Share**: inside a class each key (a client, a user) starts one request a round. A key that sends a thousand
   requests at once delays those of others by one request, not by a thousand. The round in which a key's next request
   stands is its start tag as in start-time fair queueing with requests of length one (P. Goyal, H. Vin, H. Cheng:
   Start-time Fair Queuing, SIGCOMM 1996). Requests without a key share one.
3. **Deadline**: inside a round, and of one key, the earliest deadline first; without deadlines, first come first
   served.

**Starvation**: every :data:`STARVE_EVERY`-th slot that a host hands to somebody waiting (:class:`Turns`) goes to a
request that has waited beyond the limit of its class, whatever else waits: the one furthest beyond. Without that bound
on their number, a large backlog of old batch work would shut out everything urgent.

Costs: entry, leaving and the next one take O(log n) comparisons (and a move of memory in C, 8 bytes for each who
waits); a host that cannot take the first looks at the ones behind it in the same order.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Protocol

from router.admission.classes import CLASS_NAMES, INTERACTIVE

NO_DEADLINE: Final = 1 << 63
STARVE_EVERY: Final = 4
_CLASS_COUNT: Final = len(CLASS_NAMES)
_ROUNDS_AHEAD_MAX: Final = 8
"""So far a key may be ahead of the others in rounds: by slots that nobody else could take, or by starvation turns. What
it got beyond is not held against it."""
_KEYS_REMEMBERED_MAX: Final = 4096
"""Keys of a class that are ahead of the round and so must wait for it; of more, those served longest ago are forgotten
and may start sooner than is their due."""
_INTERACTIVE_LINE: Final = INTERACTIVE - 1


class Waiter(Protocol):
    """What the room looks at. ``workload`` is a class (0 = interactive), ``deadline_ns`` 0 where there is none,
    ``share_key`` empty where there is none, ``deq`` since when it waits; none of them may change while it waits.
    """

    seq: int
    workload: int
    deadline_ns: int
    share_key: str
    deq: int


Serves = Callable[[Any], bool]
"""Whether the host in question may serve a waiting request."""
_Entry = tuple[int, int, Any]
"""Deadline, order of arrival, request."""


_Place = tuple[int, int, int, "_Flow"]
"""Round, deadline and order of a flow's first request, the flow. No two have the same order, so that requests and
flows are never compared."""


class _Flow:
    """The waiting requests of one key in one class. ``place`` is where it stands among the others."""

    __slots__ = ("entries", "key", "place", "round")

    def __init__(self, key: str, first_round: int) -> None:
        self.key = key
        self.round = first_round
        self.entries: list[_Entry] = []
        self.place: _Place | None = None


class _Line:
    """One class of a room."""

    __slots__ = (
        "_arrivals",
        "_entered",
        "_flows",
        "_front",
        "_places",
        "_round",
        "_rounds",
        "starve_ns",
        "waiting_max",
    )

    def __init__(self) -> None:
        self.starve_ns = 0
        self.waiting_max = -1
        """Most that may wait here, -1 = no bound but the room's."""
        self._entered: dict[int, tuple[_Flow | None, _Entry]] = {}
        """By the request's number: where it stands."""
        self._arrivals: OrderedDict[int, Any] = OrderedDict()
        """In order of arrival."""
        self._front: OrderedDict[int, Any] = OrderedDict()
        """Those put back: they had their turn already."""
        self._flows: dict[str, _Flow] = {}
        self._places: list[_Place] = []
        """Sorted: round, deadline and order of each flow's first request."""
        self._round = 0
        self._rounds: dict[str, int] = {}
        """By key: the round of its next request, where it is ahead of ``_round``."""

    def __len__(self) -> int:
        return len(self._entered)

    def __iter__(self) -> Iterator[Any]:
        yield from self._front.values()
        yield from self._arrivals.values()

    # ------------------------------------------------------------ in and out
    def add(self, request: Waiter, order: int, *, first: bool) -> None:
        entry = (request.deadline_ns or NO_DEADLINE, order, request)
        if first:
            self._entered[request.seq] = (None, entry)
            self._front[request.seq] = request
            self._front.move_to_end(request.seq, last=False)
            return
        key = request.share_key
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = _Flow(key, max(self._round, self._rounds.get(key, 0)))
        insort(flow.entries, entry)
        self._entered[request.seq] = (flow, entry)
        self._arrivals[request.seq] = request
        if flow.entries[0] is entry:
            self._put(flow)

    def remove(self, request: Waiter, *, started: bool) -> None:
        flow, entry = self._entered.pop(request.seq)
        if flow is None:
            del self._front[request.seq]
            return
        del self._arrivals[request.seq]
        entries = flow.entries
        del entries[bisect_left(entries, entry)]
        if started:
            flow.round = min(flow.round + 1, self._round + _ROUNDS_AHEAD_MAX)
            self._rounds.pop(flow.key, None)  # the latest last
            self._rounds[flow.key] = flow.round
        self._put(flow)
        self._advance()

    def _put(self, flow: _Flow) -> None:
        """Put a flow where its first request and its round say; take it out when nobody is left in it."""
        places = self._places
        if flow.place is not None:
            del places[bisect_left(places, flow.place)]
        if not flow.entries:
            flow.place = None
            del self._flows[flow.key]
            return
        deadline, order, _ = flow.entries[0]
        flow.place = (flow.round, deadline, order, flow)
        insort(places, flow.place)

    def _advance(self) -> None:
        """Let the round be that of the first flow, and forget keys that are not ahead of it."""
        if not self._places:
            self._round = 0
            self._rounds.clear()
            return
        self._round = max(self._round, self._places[0][0])
        if len(self._rounds) > _KEYS_REMEMBERED_MAX:
            ahead = [(key, number) for key, number in self._rounds.items() if number > self._round]
            self._rounds = dict(ahead[-(_KEYS_REMEMBERED_MAX // 2) :])

    # ------------------------------------------------------------ who is next
    def next(self, may_serve: Serves) -> Any:
        """Return the next request that may be served, ``None`` if none may."""
        for request in self._front.values():
            if may_serve(request):
                return request
        for place in self._places:
            for _, _, request in place[3].entries:
                if may_serve(request):
                    return request
        return None

    def oldest(self, may_serve: Serves) -> Any:
        """Return the one of those that may be served who has waited longest, ``None`` if none may."""
        return next((request for request in self if may_serve(request)), None)

    def ahead_of(self, deadline_ns: int, key: str) -> int:
        """Return how many of this class would start before a request that comes now, about."""
        flow = self._flows.get(key)
        own = bisect_left(flow.entries, (deadline_ns + 1,)) if flow is not None else 0
        others = len(self._flows) - (flow is not None)
        behind = len(self._arrivals) - (len(flow.entries) if flow is not None else 0)
        rounds = own + 1
        of_others = min(behind, rounds * others - others // 2) if others else 0
        return len(self._front) + own + of_others


class WaitingRoom:
    """The waiting requests of one model. It is iterated in no order that means anything."""

    def __init__(self) -> None:
        self.is_fair = True
        """Whether keys take turns; whoever adds requests leaves ``share_key`` empty where it is false."""
        self.lines = tuple(_Line() for _ in range(_CLASS_COUNT))
        """By class, the most urgent first."""
        self._order = 0
        self.size = 0
        """How many wait: what ``len`` returns, without a call."""

    def configure(self, *, is_fair: bool, starve_ns: Sequence[int], waiting_max: Sequence[int]) -> None:
        """Set the rules, also while requests wait. ``starve_ns`` and ``waiting_max`` (-1 = no bound) are by class."""
        self.is_fair = is_fair
        for line, limit_ns, most in zip(self.lines, starve_ns, waiting_max, strict=True):
            line.starve_ns, line.waiting_max = limit_ns, most

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Any]:
        for line in self.lines:
            yield from line

    def count(self, workload: int) -> int:
        """Return how many of a class wait."""
        return len(self._line(workload))

    def is_full(self, workload: int) -> bool:
        """Whether as many of a class wait as may."""
        line = self._line(workload)
        return 0 <= line.waiting_max <= len(line)

    def add(self, request: Waiter, *, first: bool = False) -> None:
        """Take a request in; ``first``: it had its turn already and goes before all others of its class."""
        self._order += 1
        self.size += 1
        self._line(request.workload).add(request, self._order, first=first)

    def start(self, request: Waiter) -> None:
        """Let out a request that starts: it counts for the share of its key."""
        self.size -= 1
        self._line(request.workload).remove(request, started=True)

    def remove(self, request: Waiter) -> None:
        """Let out a request that will not be served. Raises :class:`KeyError` for one that does not wait here."""
        self._line(request.workload).remove(request, started=False)
        self.size -= 1

    def ahead_of(self, workload: int, deadline_ns: int, key: str) -> int:
        """Return how many would start before a request that comes now, about: requests that come later and go before
        it are not foreseen, and those that leave or that no free host can take are counted.
        """
        own = (workload or INTERACTIVE) - 1
        before = sum(len(line) for line in self.lines[:own])
        return before + self.lines[own].ahead_of(deadline_ns or NO_DEADLINE, key)

    def _line(self, workload: int) -> _Line:
        return self.lines[workload - 1 if workload else _INTERACTIVE_LINE]


class Turns:
    """Counts the slots that hosts hand to waiting requests: every so many one is for who has waited too long.

    Counted by host, so that each host's slots are shared, whichever models it has. Bounded by the number of hosts.
    """

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def is_for_starving(self, host_id: int) -> bool:
        """Whether the next slot of a host is for who has waited too long, if there is somebody."""
        return self._counts.get(host_id, 0) >= STARVE_EVERY - 1

    def started(self, host_id: int) -> None:
        """A waiting request has got a slot."""
        count = self._counts.get(host_id, 0)
        self._counts[host_id] = 0 if count >= STARVE_EVERY - 1 else count + 1

    def forget(self, host_id: int) -> None:
        """A host is gone."""
        self._counts.pop(host_id, None)


def next_of(rooms: Iterable[WaitingRoom], may_serve: Serves, now_ns: int, *, for_starving: bool) -> Any:
    """Return who of the models of a host is next, ``None`` if nobody may be served.

    ``for_starving``: the one who is furthest beyond the limit of its class, if there is one. Of several models the
    earlier deadline goes first inside a class, then the one who has waited longer.
    """
    rooms = [room for room in rooms if room]
    if for_starving and (request := _most_starved(rooms, may_serve, now_ns)) is not None:
        return request
    for number in range(_CLASS_COUNT):
        best = None
        for room in rooms:
            line = room.lines[number]
            request = line.next(may_serve) if line else None
            if request is not None and (best is None or _rank(request) < _rank(best)):
                best = request
        if best is not None:
            return best
    return None


def _rank(request: Waiter) -> tuple[int, int]:
    return request.deadline_ns or NO_DEADLINE, request.deq


def _most_starved(rooms: Iterable[WaitingRoom], may_serve: Serves, now_ns: int) -> Any:
    best, best_over_ns = None, 0
    for room in rooms:
        for line in room.lines:
            request = line.oldest(may_serve) if line else None
            if request is not None and (over_ns := now_ns - request.deq - line.starve_ns) > best_over_ns:
                best, best_over_ns = request, over_ns
    return best
