"""Texts that are in no cache, of all clients: each is asked of a host once, together with others that came with it.

A text waits ``wait_ms`` for others of its space, or until a call is full; whoever asks for the same text in the
meantime, or while the call runs, gets its answer too. A call is a request of the router's own (``workload_class``
``cache``): it waits for a slot, is retried and recorded like any other.

* A call is as urgent as the most urgent who waits for it (:mod:`router.caches.urgency`), also when they come while it
  waits for a slot. Who asks for one host gets calls of that host, apart from those of all others.
* Clients that leave take nothing away from the others; a text nobody waits for any more goes into no call.
* An error is told to everybody who waits for a text of the call, and is not kept. Where a host refuses a call with
  texts of several clients (4xx), the call is halved and asked again, until only those are refused whose text it is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic_ns, time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import msgspec

from router.caches import entries, keys
from router.caches.entries import EntryError
from router.caches.silent import SilentEgress
from router.caches.urgency import CALLS_MAX, LEAST_URGENT, Urgency, joined, of_all
from router.errors import UNDECODABLE, ErrorKind, RequestError
from router.ingress.submission import submit
from router.messages import RequestBody
from router.request import Request
from router.telemetry.counters import Counter
from router.telemetry.records import Endpoint

if TYPE_CHECKING:
    from router.config import EmbeddingsCache
    from router.loop import Loop
    from router.models import Model
    from router.request import Terms

_TARGET: Final = b"/v1/embeddings"
_HEADERS: Final = {b"x-ringrouter-tag-workload_class": b"cache"}
_JSON: Final = b"application/json"
_US_NS: Final = 1000


class Failure(NamedTuple):
    """Why a text has no vector: an error of the router, or the answer of a host with its status."""

    kind: ErrorKind
    message: str
    status: int = 0
    content_type: bytes = _JSON
    body: bytes = b""
    extra: bytes = b""
    retry_after_s: int = 1


class Waiter(Protocol):
    """Who waits for the vectors of some texts."""

    @property
    def is_gone(self) -> bool:
        """Whether it waits no more."""

    @property
    def terms(self) -> Terms:
        """How urgent it is."""

    def arrived(self, position: int, entry: bytes, call: Request) -> None:
        """Take the vector of one of its texts."""

    def failed(self, failure: Failure, call: Request | None) -> None:
        """Learn that one of its texts will have none; more of the kind may follow."""


class Group(NamedTuple):
    """What goes into one call: of one model and space, in the form that was asked for first, at one host or any."""

    model: Model
    space: bytes
    form: keys.Form
    dimensions: int
    pin: int = 0


class _Text:
    """A text that is asked for, and who waits for it. ``place`` is the one in :class:`Calls`."""

    __slots__ = ("batch", "json", "key", "place", "waiters")

    def __init__(self, place: tuple[bytes, int], json: bytes, batch: _Batch) -> None:
        self.place = place
        self.key = place[0]
        self.json = json
        self.batch = batch
        self.waiters: list[tuple[Waiter, int]] = []


class _Batch:
    """Texts that go into one call. ``egress`` is there once it has begun."""

    __slots__ = ("egress", "group", "size", "texts", "timer", "urgency")

    def __init__(self, group: Group) -> None:
        self.group = group
        self.texts: list[_Text] = []
        self.size = 0
        self.urgency: Urgency = LEAST_URGENT
        self.timer: asyncio.TimerHandle | None = None
        self.egress: CallEgress | None = None

    def terms(self) -> list[Terms]:
        """Return those of all who wait for it."""
        return [waiter.terms for text in self.texts for waiter, _ in text.waiters if not waiter.is_gone]


class _Item(msgspec.Struct):
    embedding: list[float] | str
    index: int = -1


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0


class _Answer(msgspec.Struct):
    data: list[_Item]
    usage: _Usage | None = None
    model: str = ""


_decode_answer: Final = msgspec.json.Decoder(_Answer).decode


class CallEgress(SilentEgress):
    """Where the answer of a call goes."""

    def __init__(self, batch: _Batch, on_end: Callable[[CallEgress], None]) -> None:
        super().__init__(self._ended)
        self.batch = batch
        self.texts = batch.texts
        self.group = batch.group
        self.failure: Failure | None = None
        self.echo = ""
        """What the host calls the model."""
        self._done = on_end

    def whole(self, request: Request, status: int, content_type: bytes, body: bytes, extra: bytes = b"") -> None:
        """Take a whole answer, or the error of a host."""
        self.status, self.body = status, body
        if status != 200:
            self.failure = Failure(ErrorKind.HOST_STATUS, request.message, status, content_type, body, extra)

    def fail(self, request: Request, kind: ErrorKind, message: str, retry_after_s: int) -> None:  # noqa: ARG002
        """Take an error of the router."""
        self.failure = Failure(kind, message, retry_after_s=retry_after_s or 1)

    def abort(self) -> None:
        """The request has no proper end."""
        self.failure = self.failure or Failure(ErrorKind.INTERNAL, "the call of the host was broken off")

    def _ended(self, _: SilentEgress) -> None:
        self._done(self)


class Calls:
    """Collects texts into calls.

    ``on_vector`` is given each new vector: its group, its key, its entry, and what the host calls the model.
    """

    def __init__(
        self, loop: Loop, config: EmbeddingsCache, on_vector: Callable[[Group, bytes, bytes, str], None]
    ) -> None:
        self._loop = loop
        self._event_loop = asyncio.get_running_loop()
        self._config = config
        self._on_vector = on_vector
        self._texts: dict[tuple[bytes, int], _Text] = {}
        """Those that wait and those that are being asked for, by key and the host that they are asked of (0: any)."""
        self._gathering: dict[Group, _Batch] = {}
        self._call_count = 0
        self._running = 0
        """Calls under way."""
        self._next: list[deque[_Batch]] = [deque() for _ in CALLS_MAX]
        """Those that wait until there are fewer, by class."""
        loop.has_own_room = self._has_room  # type: ignore[method-assign]

    def ask(self, group: Group, key: bytes, item: str | list[int], waiter: Waiter, position: int) -> None:
        """Have a text asked for, or wait for the call that asks for it already."""
        place = key, group.pin
        text = self._texts.get(place)
        if text is None:
            json = keys.as_json(item)
            batch = self._room_for(group, len(json))
            text = self._texts[place] = _Text(place, json, batch)
            batch.texts.append(text)
            batch.size += len(json)
            if len(batch.texts) >= self._config.batch_texts:
                self._close(batch)
        text.waiters.append((waiter, position))
        self._urge(text.batch, waiter)

    def _room_for(self, group: Group, size: int) -> _Batch:
        """Return the batch that a text goes into, a new one where those that gather leave it no room."""
        batch = self._gathering.get(group)
        if batch is not None and batch.size + size > self._config.batch_bytes:
            self._close(batch)
            batch = None
        if batch is None:
            batch = self._gathering[group] = _Batch(group)
            batch.timer = self._event_loop.call_later(self._config.wait_ms / 1000, self._go, batch)
        return batch

    def _close(self, batch: _Batch) -> None:
        """Gather no more, and begin in a turn of its own: this one may be within the loop's own batch."""
        del self._gathering[batch.group]
        assert batch.timer is not None
        batch.timer.cancel()
        self._event_loop.call_soon(self._call, batch)

    def _go(self, batch: _Batch) -> None:
        if self._gathering.get(batch.group) is batch:
            del self._gathering[batch.group]
            self._call(batch)

    # ------------------------------------------------------------ how urgent
    def _urge(self, batch: _Batch, waiter: Waiter) -> None:
        """Let a batch be as urgent as who has come to wait for it, wherever it is."""
        before = batch.urgency
        urgency = batch.urgency = joined(before, waiter.terms)
        if urgency == before:
            return
        if batch.egress is not None:
            self._event_loop.call_soon(self._move_up, batch.egress)
        elif urgency.workload != before.workload and batch in (waiting := self._next[before.workload - 1]):
            waiting.remove(batch)
            self._next[urgency.workload - 1].append(batch)

    def _move_up(self, egress: CallEgress) -> None:
        """Put a call that waits for a slot where somebody more urgent would stand."""
        request, urgency = egress.request, egress.batch.urgency
        if request is None or not self._loop.waits(request) or request.model.waiting.is_full(urgency.workload):
            return
        self._loop.leave_waiting(request)
        urgency.put(request.own_terms())
        self._loop.place(request, monotonic_ns())

    def waits_for_host(self, key: bytes, pin: int) -> bool:
        """Whether a text that is asked for is at no host yet."""
        text = self._texts.get((key, pin))
        if text is None:
            return False
        egress = text.batch.egress
        return egress is None or egress.request is None or self._loop.waits(egress.request)

    def flush(self) -> None:
        """Begin the calls that wait for company: the router is stopping."""
        for batch in list(self._gathering.values()):
            self._go(batch)

    # ------------------------------------------------------------ a call
    def _has_room(self, request: Request) -> bool:
        """Calls take no room from clients, nor clients from the calls they wait for: calls have rows of their own."""
        loop = self._loop
        return isinstance(request.egress, CallEgress) or len(loop.in_flight) - self._running < loop.limits.in_flight

    def _call(self, batch: _Batch) -> None:
        """Begin a call, or have it wait for one of those under way to end."""
        self._next[batch.urgency.workload - 1].append(batch)
        self._begin_next()

    def _begin_next(self) -> None:
        for waiting, calls_max in zip(self._next, CALLS_MAX, strict=True):
            while waiting and self._running < calls_max:
                self._begin(waiting.popleft())

    def _begin(self, batch: _Batch) -> None:
        asked, group = [], batch.group
        for text in batch.texts:
            if all(waiter.is_gone for waiter, _ in text.waiters):
                self._texts.pop(text.place, None)
            else:
                asked.append(text)
        if not asked:
            return
        batch.texts = asked
        batch.urgency = of_all(batch.terms())
        body = keys.call_body(group.model.name, [text.json for text in asked], group.form, group.dimensions)
        egress = batch.egress = CallEgress(batch, self._ended)
        now = monotonic_ns()
        self._call_count += 1
        request_id = f"cache-call-{self._call_count}"
        fields = RequestBody(model=group.model.name)
        request = Request(
            egress, Endpoint.EMBEDDINGS, request_id, body, fields, _HEADERS, group.model, now, now,
            target=_TARGET, model_id=group.model.model_id,
        )  # fmt: skip
        terms = request.own_terms()
        terms.pin = group.pin
        batch.urgency.put(terms)
        egress.request = request
        self._loop.counters.add(Counter.CACHE_CALLS)
        self._running += 1
        try:
            submit(self._loop, request, 0)
        except RequestError as error:
            egress.failure = Failure(error.kind, error.message)
            self._ended(egress)

    def _ended(self, egress: CallEgress) -> None:
        """A call is over: give everybody what they wait for, whatever fails on the way."""
        self._running -= 1
        if any(self._next):
            self._event_loop.call_soon(self._begin_next)
        try:
            failure = egress.failure
            found = None
            if failure is None:
                try:
                    found = self._vectors(egress)
                except (EntryError, *UNDECODABLE) as error:
                    failure = Failure(ErrorKind.HOST_PROTOCOL, f"the host's embeddings cannot be used: {error}")
            if found is not None:
                self._deliver(egress, found)
            elif failure is not None and not self._halve(egress, failure):
                self._fail(egress, failure)
        except Exception as error:
            self._fail(egress, Failure(ErrorKind.INTERNAL, "the router failed; its log says how"))
            context = {"message": "embeddings could not be delivered", "exception": error}
            self._event_loop.call_exception_handler(context)

    def _vectors(self, egress: CallEgress) -> list[bytes]:
        """Return the entries of a call's texts in their order; raises :class:`EntryError` and what decoding raises."""
        answer = _decode_answer(egress.body)
        texts, data = egress.texts, answer.data
        egress.echo = answer.model
        if len(data) != len(texts):
            raise EntryError(f"{len(data)} vectors for {len(texts)} texts")
        if sorted(item.index for item in data) == list(range(len(data))):
            data.sort(key=lambda item: item.index)
        elif any(item.index != -1 for item in data):
            raise EntryError("their indexes are not those of the texts")
        shares = share_tokens(answer.usage.prompt_tokens if answer.usage else 0, [len(text.json) for text in texts])
        request = egress.request
        assert request is not None
        host_us = (request.tok1 - (request.sent_ns or request.routed)) // _US_NS if request.tok1 else 0
        made_s = int(time())  # of the wall: it is compared with those of other lives of this machine
        found = []
        for text, item, tokens in zip(texts, data, shares, strict=True):
            vector = item.embedding
            kind, numbers = entries.from_base64(vector) if isinstance(vector, str) else entries.from_floats(vector)
            if not numbers:
                raise EntryError("one of them is empty")
            found.append(
                entries.pack(
                    text.key, kind, numbers, tokens=tokens, host_us=host_us, made_s=made_s, exact=len(texts) == 1
                )
            )
        return found

    def _deliver(self, egress: CallEgress, found: list[bytes]) -> None:
        request = egress.request
        assert request is not None
        for text in egress.texts:  # before anybody is told: whoever asks again in this turn is to find it
            self._texts.pop(text.place, None)
        for text, entry in zip(egress.texts, found, strict=True):
            self._on_vector(egress.group, text.key, entry, egress.echo)
        for text, entry in zip(egress.texts, found, strict=True):
            for waiter, position in text.waiters:
                if not waiter.is_gone:
                    waiter.arrived(position, entry, request)

    def _halve(self, egress: CallEgress, failure: Failure) -> bool:
        """Ask again in two calls, where the one is refused for texts of some of several clients; return whether."""
        texts = egress.texts
        if not 400 <= failure.status < 500 or failure.status == 429 or len(texts) < 2:
            return False
        if len({waiter for text in texts for waiter, _ in text.waiters if not waiter.is_gone}) < 2:
            return False
        middle = len(texts) // 2
        for part in (texts[:middle], texts[middle:]):
            batch = _Batch(egress.group)
            batch.texts, batch.urgency = part, egress.batch.urgency
            for text in part:
                text.batch = batch
            self._event_loop.call_soon(self._call, batch)
        return True

    def _fail(self, egress: CallEgress, failure: Failure) -> None:
        for text in egress.texts:
            self._texts.pop(text.place, None)
        for text in egress.texts:
            for waiter, _ in text.waiters:
                if not waiter.is_gone:
                    waiter.failed(failure, egress.request)


def share_tokens(total: int, sizes: list[int]) -> list[int]:
    """Divide the tokens of a call among its texts by their sizes in bytes, so that the shares add up to the total."""
    if len(sizes) == 1:
        return [total]
    whole = sum(sizes)
    shares, given, passed = [], 0, 0
    for size in sizes:
        passed += size
        upto = total * passed // whole
        shares.append(upto - given)
        given = upto
    return shares


def usage_json(tokens: int) -> bytes:
    """Return the usage of an answer with embeddings."""
    return b'{"prompt_tokens":%d,"total_tokens":%d}' % (tokens, tokens)
