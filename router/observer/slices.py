"""Which slices a request counts in: declared ones, capped; and the busiest values of tags without bound; pure.

A *slice* is a set of requests that agree in one or two tags: ``feature_name = search``, or ``(feature_name,
prompt_version) = (search, v7)``. An *entry* is one such choice of tags with all its slices; each request counts in
exactly one slice of every entry, so that the slices of an entry add up to the total. An entry is bounded. What does not
fit is folded into ``__other__`` where it overflows and nowhere else: of a pair, only the tag with the more values loses
its value, and every other entry keeps both. How often that happened is counted.

A slice that saw no request for an hour gives up its place when another one needs it, so that today's prompt version is
not lost among last month's. Ids of slices are never used again.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from router.observer.rows import RequestRow
from router.telemetry.records import OTHER_VALUE

IDLE_NS: Final = 3600 * 1_000_000_000
"""After this long without a request a slice's place may be taken."""
HALF_LIFE_NS: Final = 600 * 1_000_000_000
"""In this time a request loses half its weight in the choice of the busiest values."""
SURE_WEIGHT: Final = 10.0
"""A value that displaced another one is shown once this much weight is surely its own."""
FAILED_WEIGHT: Final = 10.0
"""A request that failed counts for as many: who is in trouble is seen before who is merely busy."""
_SPARE_PLACES: Final = 4
"""One in so many places of a pair's entry is kept for slices of which one tag is folded."""
_SKETCH_FACTOR: Final = 4
"""Values watched for each value shown: what makes the estimates of those shown good."""
_EXPONENT_MAX: Final = 512.0
"""Half-lives until weights are scaled back, far from the range of a double (2**1024)."""
_HOLDER_BONUS: Final = 2.0
"""A value that has a place is weighed heavier, so that two near the edge do not take turns."""

Values = tuple[str, ...]


class Slice:
    """One slice: ``id`` is unique for the life of the observer; ``seen_ns`` is when it last counted a request."""

    __slots__ = ("id", "names", "seen_ns", "values")

    def __init__(self, slice_id: int, names: Values, values: Values, now_ns: int) -> None:
        self.id = slice_id
        self.names = names
        self.values = values
        self.seen_ns = now_ns


class _Entry:
    """The slices of one choice of tags, at most ``places_max`` of them; which requests find no place differs."""

    def __init__(self, names: Values, places_max: int, ids: Iterator[int]) -> None:
        self.names = names
        self.slices: dict[Values, Slice] = {}
        self.folded_count = 0
        """Requests that were counted under ``__other__`` because there was no place."""
        self._ids = ids
        self._places_max = places_max

    def place(self, values: Values, now_ns: int, *, again: bool = False) -> Slice:
        """Return the slice in which a request with these values counts; "" stands for a tag that was not given.

        ``again``: the request was placed before, and that it was folded is counted already.
        """
        found = self.slices.get(values)
        if found is None:
            folded_count = self.folded_count
            found = self._find_place(values, now_ns)
            if again:
                self.folded_count = folded_count
        found.seen_ns = now_ns
        return found

    def _find_place(self, values: Values, now_ns: int) -> Slice:
        """Return the slice for values that have none yet."""
        raise NotImplementedError

    def _new(self, values: Values, now_ns: int) -> Slice:
        made = self.slices[values] = Slice(next(self._ids), self.names, values, now_ns)
        return made


class CappedEntry(_Entry):
    """Gives places to the values that come first."""

    def __init__(self, names: Values, places_max: int, ids: Iterator[int]) -> None:
        super().__init__(names, places_max, ids)
        spare = max(1, places_max // _SPARE_PLACES) if len(names) > 1 else 0
        self._whole_max = places_max - spare - 1  # one place is for what has none of its values
        self._widest = 0

    def _find_place(self, values: Values, now_ns: int) -> Slice:
        if self._has_room(self._whole_max, now_ns):
            return self._new(values, now_ns)
        self.folded_count += 1
        folded = (*values[: self._widest], OTHER_VALUE, *values[self._widest + 1 :])
        if folded in self.slices:
            return self.slices[folded]
        if len(self.names) > 1 and self._has_room(self._places_max - 1, now_ns):
            return self._new(folded, now_ns)
        rest = (OTHER_VALUE,) * len(self.names)
        return self.slices.get(rest) or self._new(rest, now_ns)

    def _has_room(self, places_max: int, now_ns: int) -> bool:
        """Say whether a place is free, if need be by taking the one of the slice that was idle for longest."""
        if len(self.slices) < places_max:
            return True
        longest = min(self.slices.values(), key=lambda held: held.seen_ns)
        if now_ns - longest.seen_ns < IDLE_NS:
            return False
        del self.slices[longest.values]
        return len(self.slices) < places_max

    def _new(self, values: Values, now_ns: int) -> Slice:
        made = super()._new(values, now_ns)
        value_counts = [len({held[i] for held in self.slices}) for i in range(len(self.names))]
        self._widest = value_counts.index(max(value_counts)) if value_counts else 0
        return made


class Heavy(NamedTuple):
    """A value of a sketch: its weight lies between ``weight − error`` and ``weight``."""

    value: str
    weight: float
    error: float


class Sketch:
    """The heaviest values of a stream, in bounded memory: Space-Saving, with weights that halve with time.

    With ``places`` values kept, each value that makes up more than ``1/places`` of all weight is among them (Metwally,
    Agrawal, El Abbadi, *Efficient Computation of Frequent and Top-k Elements in Data Streams*, 2005). Decay is forward:
    a new request weighs ``2**(age of the sketch / half-life)``, so that nothing has to be touched as time passes
    (Cormode, Shkapenyuk, Srivastava, Xu, *Forward Decay*, 2009).
    """

    def __init__(self, places: int, now_ns: int, half_life_ns: int = HALF_LIFE_NS) -> None:
        self._places = places
        self._half_life_ns = half_life_ns
        self._zero_ns = now_ns
        self._held: dict[str, tuple[float, float]] = {}
        self._heap: list[tuple[float, str]] = []  # weights may lag: they are put right when they come to the top
        self.displaced_count = 0
        """Values that lost their place. While it is 0 every weight is exact."""

    def __contains__(self, value: str) -> bool:
        return value in self._held

    def add(self, value: str, now_ns: int, weight: float = 1.0) -> None:
        """Count a value."""
        added = weight * self._scale(now_ns)
        if held := self._held.get(value):
            self._held[value] = (held[0] + added, held[1])
            return
        least = 0.0
        if len(self._held) >= self._places:
            least = self._displace()
        self._held[value] = (least + added, least)
        heapq.heappush(self._heap, (least + added, value))

    def _displace(self) -> float:
        """Remove the lightest value and return its weight."""
        while True:
            noted, value = self._heap[0]
            weight = self._held[value][0]
            if weight <= noted:
                heapq.heappop(self._heap)
                del self._held[value]
                self.displaced_count += 1
                return weight
            heapq.heapreplace(self._heap, (weight, value))

    def _scale(self, now_ns: int) -> float:
        """Return what a request of now weighs, in units of one at time zero; at times moves time zero."""
        halvings = max(0.0, (now_ns - self._zero_ns) / self._half_life_ns)
        if halvings > _EXPONENT_MAX:
            factor = math.exp2(-halvings)
            self._held = {value: (w * factor, e * factor) for value, (w, e) in self._held.items()}
            self._heap = [(weight, value) for value, (weight, _) in self._held.items()]
            heapq.heapify(self._heap)
            self._zero_ns, halvings = now_ns, 0.0
        return math.exp2(halvings)

    def weights(self, now_ns: int) -> Iterator[Heavy]:
        """Yield every value that is kept, in no order."""
        scale = self._scale(now_ns)
        for value, (weight, error) in self._held.items():
            yield Heavy(value, weight / scale, error / scale)


class TopEntry(_Entry):
    """The slices of a tag without bound: its busiest values, and ``__other__`` for the rest."""

    def __init__(self, name: str, places_max: int, ids: Iterator[int], now_ns: int) -> None:
        super().__init__((name,), places_max, ids)
        self._sketch = Sketch(places_max * _SKETCH_FACTOR, now_ns)

    def note(self, value: str, now_ns: int, *, failed: bool) -> None:
        """Weigh the value of a request; "" is none."""
        if value:
            self._sketch.add(value, now_ns, FAILED_WEIGHT if failed else 1.0)

    def _find_place(self, values: Values, now_ns: int) -> Slice:
        # While no value had to give way to another, all weights are exact and a place can be had at once.
        if not values[0] or (not self._sketch.displaced_count and len(self.slices) < self._places_max):
            return self._new(values, now_ns)
        self.folded_count += 1
        rest = (OTHER_VALUE,)
        return self.slices.get(rest) or self._new(rest, now_ns)

    def tick(self, now_ns: int) -> None:
        """Give the places to the values that are the busiest now. Cheap enough for once a second."""
        if len(self.slices) < self._places_max and not self._sketch.displaced_count:
            return
        sure = (heavy for heavy in self._sketch.weights(now_ns) if _is_sure(heavy))
        best = heapq.nlargest(self._places_max, sure, key=self._claim)
        chosen = {(heavy.value,) for heavy in best}
        for values in [held for held in self.slices if held not in chosen and held[0] not in {"", OTHER_VALUE}]:
            del self.slices[values]
        for values in chosen - self.slices.keys():
            self._new(values, now_ns)

    def _claim(self, heavy: Heavy) -> float:
        own = heavy.weight - heavy.error
        return own * _HOLDER_BONUS if (heavy.value,) in self.slices else own


def _is_sure(heavy: Heavy) -> bool:
    return not heavy.error or heavy.weight - heavy.error >= SURE_WEIGHT


class Slicer:
    """Finds the slices of requests: one in each entry.

    ``entries`` are names of tags, two with a comma between, as in ``observer.slices.tags``; "" is the total.
    """

    def __init__(
        self, entries: Sequence[str], values_max: int, top: Sequence[str], top_count: int, now_ns: int
    ) -> None:
        ids = itertools.count()
        self.capped = [CappedEntry(_names(entry), values_max, ids) for entry in dict.fromkeys(entries)]
        self.top = [TopEntry(name, top_count, ids, now_ns) for name in dict.fromkeys(top)]

    def place(self, row: RequestRow, now_ns: int, *, failed: bool, again: bool = False) -> list[Slice]:
        """Return the slices of a row in the order of the entries.

        ``again`` says that the request was placed before: it is not counted a second time.
        """
        tags = row.tags
        found = [entry.place(values_of(row, tags, entry.names), now_ns, again=again) for entry in self.capped]
        for entry in self.top:
            values = values_of(row, tags, entry.names)
            if not again:
                entry.note(values[0], now_ns, failed=failed)
            found.append(entry.place(values, now_ns, again=again))
        return found

    def ids(self) -> set[int]:
        """Return the ids of all slices that have a place."""
        return {held.id for entry in self.entries() for held in entry.slices.values()}

    def entries(self) -> list[CappedEntry | TopEntry]:
        """Return all entries, in the order in which :meth:`place` names their slices."""
        return [*self.capped, *self.top]

    def tick(self, now_ns: int) -> None:
        """Give the places of the busiest values anew."""
        for entry in self.top:
            entry.tick(now_ns)

    def entry(self, name: str) -> CappedEntry | TopEntry | None:
        """Return an entry by its name: the names of its tags with a comma between."""
        names = _names(name)
        return next((entry for entry in self.entries() if entry.names == names), None)


def _names(entry: str) -> Values:
    return tuple(entry.split(",")) if entry else ()


_FIELDS: Final = frozenset({"model", "host", "endpoint", "instance", "error"})
"""What requests differ in beside their tags."""


def values_of(row: RequestRow, tags: Mapping[str, str], names: Values) -> Values:
    """Return what a row has of each name, ``tags`` being its tags; "" stands for a tag that was not given."""
    return tuple([getattr(row, name) if name in _FIELDS else tags.get(name, "") for name in names])
