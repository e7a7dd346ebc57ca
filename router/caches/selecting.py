"""Requests that wait, for a bounded time, until the tools nearest to their question are known.

The question is embedded by a request of the router's own, which takes the way of every other: slots, records, and the
cache of embeddings where that is on. While it is under way the asking request is in flight without an attempt, so that
its client may leave and its time-outs run. When the answer is not there in time, the request gets all tools it named.
"""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

import msgspec

from router.caches.selection import last_question, nearest, vector_in
from router.caches.silent import SilentEgress
from router.caches.tools import Spliced, select
from router.errors import RequestError
from router.ingress.submission import RequestIds, make_request, submit
from router.telemetry.counters import Counter
from router.telemetry.records import Endpoint, Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.config.tools import ToolsCache
    from router.loop import Loop
    from router.request import Request

_HEADERS: Final = {b"x-ringrouter-tag-workload-class": b"tools"}
_encode: Final = msgspec.json.Encoder().encode


class Selecting:
    """Holds requests until their tools are selected; ``ready`` then takes each and its splice."""

    def __init__(self, loop: Loop, config: ToolsCache, ready: Callable[[Request, Spliced], None]) -> None:
        self._loop = loop
        self._model = config.select_model
        self._wait_s = config.select_wait_ms / 1000
        self._ready = ready
        self._next_id = RequestIds().next

    def begin(self, request: Request, spliced: Spliced) -> None:
        """Hold a request and ask for the vector of its question."""
        self._loop.park(request)
        held = _Held(self, request, spliced)
        event_loop = asyncio.get_running_loop()
        held.timer = event_loop.call_later(self._wait_s, held.late)
        event_loop.call_soon(self._ask, held, _question(request.fields))  # the ring is being drained now

    def _ask(self, held: _Held, question: str) -> None:
        if not question:
            held.late()
            return
        body = _encode({"model": self._model, "input": [question], "encoding_format": "float"})
        egress = SilentEgress(held.answered)
        now = monotonic_ns()
        try:
            asking = make_request(
                self._loop, egress, Endpoint.EMBEDDINGS, self._next_id(), body, _HEADERS, now, now,
                streams_by_default=False,
            )  # fmt: skip
            asking.own_terms().workload = held.request.workload
            submit(self._loop, asking, 0)
        except RequestError:
            held.late()

    def settle(self, request: Request, spliced: Spliced, *, is_selected: bool) -> None:
        """Let a request go on, unless it has ended meanwhile."""
        self._loop.counters.add(Counter.TOOLS_SELECTED if is_selected else Counter.TOOLS_NOT_SELECTED)
        if request.phase is not Phase.DONE:
            self._ready(request, spliced)


def _question(fields: Any) -> str:
    """Return the last question of a request, which stands in ``messages`` or, of the Responses API, in ``input``."""
    return last_question(fields.messages) or last_question(getattr(fields, "input", b""))


class _Held:
    """One request that waits."""

    __slots__ = ("_is_over", "_owner", "_spliced", "request", "timer")

    def __init__(self, owner: Selecting, request: Request, spliced: Spliced) -> None:
        self._owner = owner
        self.request = request
        self._spliced = spliced
        self._is_over = False
        self.timer: asyncio.TimerHandle | None = None

    def answered(self, egress: SilentEgress) -> None:
        """The vector is there, or an error."""
        if self._is_over:
            return
        spliced = self._spliced
        vector = vector_in(egress.body) if egress.status == 200 else b""
        chosen = nearest(vector, spliced.candidates, spliced.nearest)
        if chosen is None:
            self.go(spliced)
        else:
            self.go(select(spliced, chosen), is_selected=True)

    def late(self) -> None:
        """It is not there in time."""
        if not self._is_over:
            self.go(self._spliced)

    def go(self, spliced: Spliced, *, is_selected: bool = False) -> None:
        """Let the request go on."""
        self._is_over = True
        if self.timer is not None:
            self.timer.cancel()
        self._owner.settle(self.request, spliced, is_selected=is_selected)
