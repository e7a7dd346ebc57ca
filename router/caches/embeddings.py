"""Requests for embeddings: what is known is answered in the turn in which it was asked, the rest is asked of a host.

An answer that is all hits leaves in the same callback that read the request; one with many texts is put together over
several turns, so that no stream waits for it. A request with misses waits beside the loop (:meth:`Loop.park`) for the
calls of :mod:`router.caches.calls`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic_ns
from typing import TYPE_CHECKING, Final

import msgspec

from router.caches import entries, keys
from router.caches.calls import CallEgress, Calls, Failure, Group, usage_json
from router.caches.memory import MemoryMap
from router.caches.outbox import OP_PUT, OP_TOUCH
from router.telemetry.counters import Counter
from router.telemetry.decision import note
from router.telemetry.records import CacheUse, Endpoint, Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.caches.calls import Waiter
    from router.caches.outbox import Outbox
    from router.caches.reader import StoreReader
    from router.config import EmbeddingsCache
    from router.loop import Loop
    from router.models import Model
    from router.request import Request, Terms

_EMBEDDINGS: Final = Endpoint.EMBEDDINGS
_DONE: Final = Phase.DONE
_HIT, _PARTIAL, _MISS = CacheUse.HIT, CacheUse.PARTIAL, CacheUse.MISS
_JSON: Final = b"application/json"
_TEXTS_PER_TURN: Final = 64
"""Texts looked up, or written, in one turn: about a millisecond of work."""
_TOUCHED_MAX: Final = 8192
"""Keys that are remembered, for a second, as told to the keeper."""
_SPACES_MAX: Final = 4096
"""Spaces that are remembered; clients choose dimensions, so there may be many. Then all are made anew."""
_OFFERED_AT_ONCE: Final = 128
_OFFERED_EVERY_S: Final = 0.05
_US_NS: Final = 1000
_NS: Final = 1_000_000_000
_STATES: Final = {_HIT: b"hit", _PARTIAL: b"partial", _MISS: b"miss"}


class Embeddings:
    """The cache in front of the hosts. ``reader`` and ``outbox`` are there where vectors outlive the router."""

    def __init__(
        self, loop: Loop, config: EmbeddingsCache, reader: StoreReader | None = None, outbox: Outbox | None = None
    ) -> None:
        self.memory = MemoryMap(config.memory_bytes)
        self.calls = Calls(loop, config, self._keep)
        self.loop = loop
        self._config = config
        self._reader = reader
        self._outbox = outbox
        self._counters = loop.counters
        self._models = frozenset(config.models)
        self._space_ids: dict[tuple[str, int], bytes] = {}
        self._spaces: dict[bytes, keys.Space] = {}
        self._without_echo: set[bytes] = set()
        """Spaces whose echo the store was asked for in this second."""
        self._touched: set[bytes] = set()
        self._offered: deque[bytes] = deque()
        """Keys of what is still to be offered to a keeper that came late."""
        self._admit: Callable[[Request, int], None] = loop.take

    def stand_in_front(self) -> None:
        """Take requests for embeddings off the ring in place of what did until now."""
        self._admit = self.loop.take
        self.loop.take = self.take

    # ------------------------------------------------------------ a request
    def take(self, request: Request, now: int) -> None:
        """Answer a request off the ring from the cache as far as it goes; let all others be admitted."""
        if request.endpoint is not _EMBEDDINGS or isinstance(request.egress, CallEgress) or request.path:
            self._admit(request, now)
            return
        texts = keys.read_texts(request.body) if self._is_cached(request.model.name) else None
        if texts is None:
            self._admit(request, now)
            return
        _Answer(self, request, texts).go_on()

    def _is_cached(self, model: str) -> bool:
        return not self._models or model in self._models

    # ------------------------------------------------------------ vectors
    def space_of(self, model: str, dimensions: int) -> bytes:
        """Return the id of the space of a model's vectors."""
        found = self._space_ids.get((model, dimensions))
        if found is None:
            if len(self._space_ids) >= _SPACES_MAX:
                self._space_ids.clear()
                self._spaces.clear()
            space = keys.Space(model, self._config.revisions.get(model, ""), dimensions)
            found = self._space_ids[model, dimensions] = space.space_id()
            self._spaces[found] = space
        return found

    def echo_of(self, space_id: bytes, model: str) -> str:
        """Return what hosts call a model in answers with vectors of a space."""
        space = self._spaces.get(space_id)
        if space is None:
            return model
        if not space.echo and self._reader is not None and space_id not in self._without_echo:
            self._without_echo.add(space_id)
            self._learn_echo(space_id, self._reader.echo_of(space_id))
            space = self._spaces[space_id]
        return space.echo or model

    def _learn_echo(self, space_id: bytes, echo: str) -> None:
        space = self._spaces.get(space_id)
        if space is not None and echo and space.echo != echo:
            self._spaces[space_id] = msgspec.structs.replace(space, echo=echo)

    def find(self, key: bytes) -> bytes | None:
        """Return the entry of a text, ``None`` where there is none."""
        entry = self.memory.get(key)
        if entry is not None or self._reader is None:
            return entry
        entry = self._reader.get(key)
        if entry is not None and entries.generation(entry) < self._reader.generation:
            self._touch(key)
        return entry

    def _touch(self, key: bytes) -> None:
        """Tell the keeper that an old entry is of use, once in a while."""
        if self._outbox is not None and key not in self._touched and len(self._touched) < _TOUCHED_MAX:
            self._touched.add(key)
            self._outbox.send(OP_TOUCH, key)

    def _keep(self, group: Group, key: bytes, entry: bytes, echo: str) -> None:
        """Keep a new vector: in memory at once, and on disk when the keeper has got it there."""
        self._learn_echo(group.space, echo)
        if len(entry) > entries.ENTRY_BYTES_MAX or not entries.is_finite(entry):
            return
        for old_key, old in self.memory.put(key, entry):
            self._offer(old_key, old)  # it was of use here, of which the keeper knows nothing
        self._offer(key, entry)

    def _offer(self, key: bytes, entry: bytes) -> None:
        space = self._spaces.get(key[: keys.SPACE_BYTES])
        if self._outbox is not None and space is not None:
            name = space.record()
            self._outbox.send(OP_PUT, len(name).to_bytes(2, "little"), name, key, entry)

    def offer_all(self) -> None:
        """Offer the keeper everything in memory, a little at a time: it has just come."""
        is_under_way = bool(self._offered)
        self._offered = deque(self.memory.keys())
        if not is_under_way:
            self._offer_some()

    def _offer_some(self) -> None:
        offered = self._offered
        for _ in range(min(_OFFERED_AT_ONCE, len(offered))):
            key = offered.popleft()
            entry = self.memory.peek(key)
            if entry is not None:
                self._offer(key, entry)
        if offered:
            asyncio.get_running_loop().call_later(_OFFERED_EVERY_S, self._offer_some)

    def ask(self, model: Model, texts: keys.Texts, position: int, key: bytes, waiter: Waiter) -> None:
        """Have a text asked of a host."""
        group = Group(model, key[: keys.SPACE_BYTES], texts.form, texts.dimensions, waiter.terms.pin)
        self.calls.ask(group, key, texts.items[position], waiter, position)

    def second(self, now: int) -> None:
        """Show how the cache does; once a second."""
        self._touched.clear()
        self._without_echo.clear()
        put = self._counters.set
        put(Counter.CACHE_MEMORY_BYTES, self.memory.used_bytes)
        put(Counter.CACHE_MEMORY_EVICTED, self.memory.evicted_count)
        if self._outbox is not None:
            self._outbox.second(now)
            put(Counter.CACHE_SKIPPED, self._outbox.skipped_count)
        if self._reader is not None:
            self._reader.second()

    def forget(self, prefix: bytes, until_s: int) -> None:
        """Forget what is in memory of keys that begin so and was made until then: the keeper was told to purge it."""
        self.memory.drop_all(prefix, until_s)


class _Answer:
    """The answer to one request: looks its texts up, waits for the missing ones, and writes."""

    __slots__ = (
        "_cache", "_call", "_entries", "_hits", "_keys", "_missing", "_missing_count", "_over", "_parts", "_request",
        "_space", "_texts",
    )  # fmt: skip

    def __init__(self, cache: Embeddings, request: Request, texts: keys.Texts) -> None:
        self._cache = cache
        self._request = request
        self._texts = texts
        self._space = cache.space_of(request.model.name, texts.dimensions)
        self._keys: list[bytes] = []
        self._entries: list[bytes | None] = []
        self._missing: list[int] = []
        self._missing_count = 0
        self._hits = 0
        self._call: Request | None = None
        self._parts: list[bytes] = []
        self._over = False

    # ------------------------------------------------------------ what is known
    def go_on(self) -> None:
        """Look the next texts up; come back in a turn of its own while there are more."""
        if self.is_gone:
            return
        items, find, space = self._texts.items, self._cache.find, self._space
        begin = len(self._entries)
        for item in items[begin : begin + _TEXTS_PER_TURN]:
            key = keys.key_of(space, item)
            entry = find(key)
            self._keys.append(key)
            if entry is None:
                self._missing.append(len(self._entries))
            self._entries.append(entry)
        if len(self._entries) < len(items):
            self._park()
            asyncio.get_running_loop().call_soon(self.go_on)
            return
        self._hits = len(items) - len(self._missing)
        if self._missing:
            self._ask()
        else:
            self._write()

    def _park(self) -> None:
        if self._request.phase is Phase.NONE:
            self._cache.loop.park(self._request)

    def _ask(self) -> None:
        self._park()
        missing = self._missing
        self._missing_count = len(missing)
        for position in missing:
            self._cache.ask(self._request.model, self._texts, position, self._keys[position], self)
        terms = self._request.terms
        if terms.deadline_ns and not terms.serves_late:
            left_s = max(terms.deadline_ns - monotonic_ns(), 0) / _NS
            asyncio.get_running_loop().call_later(left_s, self._deadline_passed)

    def _deadline_passed(self) -> None:
        """End the request if a text of it is at no host yet; the others who wait for it go on."""
        calls, pin = self._cache.calls, self._request.terms.pin
        missing = (self._keys[position] for position in self._missing if self._entries[position] is None)
        if not self.is_gone and any(calls.waits_for_host(key, pin) for key in missing):
            self._over = True
            self._note(monotonic_ns())
            self._cache.loop.refusals.deadline_passed(self._request, monotonic_ns())

    # ------------------------------------------------------------ what was missing
    @property
    def is_gone(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._over or self._request.phase is _DONE

    @property
    def terms(self) -> Terms:
        """How urgent it is, and which host it asks for."""
        return self._request.terms

    def arrived(self, position: int, entry: bytes, call: Request) -> None:
        """Take the vector of a missing text."""
        self._entries[position] = entry
        self._missing_count -= 1
        self._call = call
        if not self._missing_count:
            self._write()

    def failed(self, failure: Failure, call: Request | None) -> None:
        """End the request with the error of its call."""
        self._over = True
        self._call = call
        self._note(monotonic_ns())
        request, loop = self._request, self._cache.loop
        if failure.status:
            extra = self._lines() + failure.extra
            loop.end_with_status(request, failure.status, failure.content_type, failure.body, extra, failure.message)
        else:
            loop.fail(request, failure.kind, failure.message, monotonic_ns(), failure.retry_after_s)

    # ------------------------------------------------------------ the answer
    def _write(self) -> None:
        """Write the answer's parts; come back in a turn of its own while there are more."""
        if self.is_gone:
            return
        text_of = entries.base64_text if self._texts.form == "base64" else entries.float_text
        begin = len(self._parts)
        for index, entry in enumerate(self._entries[begin : begin + _TEXTS_PER_TURN], begin):
            assert entry is not None
            self._parts.append(b'{"object":"embedding","index":%d,"embedding":%b}' % (index, text_of(entry)))
        if len(self._parts) < len(self._entries):
            asyncio.get_running_loop().call_soon(self._write)
            return
        self._over = True
        self._end()

    def _end(self) -> None:
        request, loop = self._request, self._cache.loop
        usage = usage_json(sum(map(entries.tokens, self._entries)))  # type: ignore[arg-type]  # each is there
        body = b'{"object":"list","data":[%b],"model":%b,"usage":%b}' % (
            b",".join(self._parts),
            _encode_json(self._cache.echo_of(self._space, request.model.name)),
            usage,
        )
        now = monotonic_ns()
        request.usage = usage
        self._note(now)
        request.tok1 = request.tok_n = request.ttfc = request.ttfo = now
        request.status = 200
        request.egress.whole(request, 200, _JSON, body, self._lines())
        loop.end_ok(request, now)

    def _note(self, now: int) -> None:
        """Note how the cache took part: in the record, in the counters, and where the time went."""
        request, call, counters = self._request, self._call, self._cache.loop.counters
        misses = len(self._entries) - self._hits
        use = self._use()
        saved_us = 0
        if use is _HIT:
            slowest_us = max(map(entries.host_us, self._entries))  # type: ignore[arg-type]  # each is there
            saved_us = max(0, slowest_us - (now - request.deq) // _US_NS)
            request.admitted = request.deq
            request.routed1 = now  # the look-up stands where else the routing does; there is no attempt
        elif call is not None and call.admitted:
            request.admitted = max(call.admitted, request.deq)
        note(request, cache=use, cache_hits=self._hits, cache_misses=misses, saved_us=saved_us)
        counters.add(Counter.CACHE_HITS, self._hits)
        counters.add(Counter.CACHE_MISSES, misses)
        counters.add(Counter.CACHE_SAVED_US, saved_us)

    def _use(self) -> CacheUse:
        if self._hits == len(self._entries):
            return _HIT
        return _PARTIAL if self._hits else _MISS

    def _lines(self) -> bytes:
        """Return the further header lines of the answer."""
        lines = b"x-ringrouter-cache: %b\r\n" % _STATES[self._use()]
        if self._call is not None and self._call.host:
            host = self._cache.loop.host_of[self._call.host].name
            lines += b"x-ringrouter-host: %b\r\n" % host.encode()
        return lines


_encode_json: Final = msgspec.json.Encoder().encode


class OneVector:
    """Waits for the vector of one text that the router needs itself."""

    is_gone = False

    def __init__(self, terms: Terms, on_entry: Callable[[bytes], None], on_failure: Callable[[Failure], None]) -> None:
        self.terms = terms
        self._on_entry = on_entry
        self._on_failure = on_failure

    def arrived(self, position: int, entry: bytes, call: Request) -> None:  # noqa: ARG002
        """Hand the vector on."""
        self._on_entry(entry)

    def failed(self, failure: Failure, call: Request | None) -> None:  # noqa: ARG002
        """Hand the error on."""
        self._on_failure(failure)
