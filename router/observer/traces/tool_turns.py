"""Pairs an answer that called tools with the request that brings their results: the time between is the tools'; pure.

Nobody tells the router what a client does between two requests. It is inferred, and marked so wherever it is shown: a
request continues an answer when

* both belong together, by the caller's trace (``traceparent``) or by the tag ``session_id``;
* the answer's last content was a call of tools, and it ended before the request came, by at most :data:`WAIT_NS_MAX`;
* both are for the same model and API, and the request's prompt is longer, where both lengths are known: it holds the
  earlier prompt, the call and the result.

Of several such answers it is the one that ended last, and an answer is continued once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from router.observer.rows import RequestRow
from router.telemetry import trace_ids

WAIT_NS_MAX: Final = 600_000_000_000
"""A person who approves a call takes minutes; after ten it is more likely that the session did something else."""
PLACES_MAX: Final = 16_384
"""Sessions and traces that wait for results at once; beyond it the one that was heard of longest ago is forgotten."""
ANSWERS_PER_PLACE_MAX: Final = 8
"""Answers of one session that wait for results at once: the agents that work in parallel in it."""

_Place = tuple[str, str]


class _Called(NamedTuple):
    """An answer that ended in calls of tools."""

    key: tuple[str, int, int]
    done_mono_ns: int
    model: str
    endpoint: str
    n_in: int | None
    after: str
    places: Sequence[_Place]
    """Where it waits."""


class ToolTurns:
    """Remembers the answers whose tools are under way. Rows are to come in the order in which they ended."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[_Place, list[_Called]] = OrderedDict()

    @property
    def place_count(self) -> int:
        """Sessions and traces that wait for results."""
        return len(self._waiting)

    def pair(self, rows: list[RequestRow], earlier: Iterable[RequestRow] = ()) -> None:
        """Put those rows that continue an answer which called tools in their places again, with ``tool_ns``.

        ``earlier`` are rows of an earlier life of the observer, so that what follows them is understood.
        """
        for row in earlier:
            self._take(row)
        if not self._waiting and not any(row.calls_tools for row in rows):
            return
        for index, row in enumerate(rows):
            taken = self._take(row)
            if taken is not row:
                rows[index] = taken

    def _take(self, row: RequestRow) -> RequestRow:
        places = _places(row)
        if not places:
            return row
        called = self._continued(row, places)
        if row.calls_tools:
            self._wait(row, places)
        if called is None:
            return row
        return replace(row, tool_ns=row.recv_mono_ns - called.done_mono_ns, tool_after=called.after)

    def _continued(self, row: RequestRow, places: Sequence[_Place]) -> _Called | None:
        """Return the answer that a request continues, and wait for it no more."""
        for place in places:
            found = [called for called in self._waiting.get(place, ()) if _continues(row, called)]
            if found:
                last = max(found, key=lambda called: called.done_mono_ns)
                self._forget(last)
                return last
        return None

    def _forget(self, called: _Called) -> None:
        for place in called.places:
            left = [each for each in self._waiting.get(place, ()) if each.key != called.key]
            if left:
                self._waiting[place] = left
            else:
                self._waiting.pop(place, None)

    def _wait(self, row: RequestRow, places: Sequence[_Place]) -> None:
        life = trace_ids.life_of(row.instance, row.generation)
        span_id = trace_ids.span_id(life, row.request_seq, trace_ids.SERVER).hex()
        after = f"{row.trace_id}-{span_id}"
        called = _Called(row.key, row.done_mono_ns, row.model, row.endpoint, row.n_in, after, places)
        for place in places:
            self._waiting[place] = [*self._waiting.get(place, ())[-ANSWERS_PER_PLACE_MAX + 1 :], called]
            self._waiting.move_to_end(place)
        while len(self._waiting) > PLACES_MAX:
            self._waiting.popitem(last=False)


def _places(row: RequestRow) -> list[_Place]:
    """Return where a request's turns are looked for, the closest bond first."""
    places = []
    if row.span_id:  # else the trace is its own, and nobody else's
        places.append(("trace", row.trace_id))
    if row.tags.get("session_id"):
        places.append(("session", row.tags["session_id"]))
    return places


def _continues(row: RequestRow, called: _Called) -> bool:
    waited_ns = row.recv_mono_ns - called.done_mono_ns
    is_longer = row.n_in is None or called.n_in is None or row.n_in > called.n_in
    return 0 <= waited_ns <= WAIT_NS_MAX and row.model == called.model and row.endpoint == called.endpoint and is_longer
