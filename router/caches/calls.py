"""Texts that are in no cache, of all clients: each is asked of a host once, together with others that came with it.

A text waits ``wait_ms`` for others of its space, or until a call is full; whoever asks for the same text in the
meantime, or while the call runs, gets its answer too. A call is a request of the router's own (``workload_class``
``cache``): it waits for a slot, is retried and recorded like any other.

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
from router.config.caches import CALLS_AT_ONCE
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


class Waiter(Protocol):
    """Who waits for the vectors of some texts."""

    @property
    def is_gone(self) -> bool:
        """Whether it waits no more."""

    def arrived(self, position: int, entry: bytes, call: Request) -> None:
        """Take the vector of one of its texts."""

    def failed(self, failure: Failure, call: Request | None) -> None:
        """Learn that one of its texts will have none; more of the kind may follow."""


class Group(NamedTuple):
    """What goes into one call: of one model and space, in the form that was asked for first."""

    model: Model
    space: bytes
    form: keys.Form
    dimensions: int


class _Text:
    """A text that is asked for, and who waits for it."""

    __slots__ = ("json", "key", "waiters")

    def __init__(self, key: bytes, json: bytes) -> None:
        self.key = key
        self.json = json
        self.waiters: list[tuple[Waiter, int]] = []


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

    def __init__(self, texts: list[_Text], group: Group, on_end: Callable[[CallEgress], None]) -> None:
        super().__init__(self._ended)
        self.texts = texts
        self.group = group
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
        self.failure = Failure(kind, message)

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
        self._texts: dict[bytes, _Text] = {}
        """Those that wait and those that are being asked for, by key."""
        self._waiting: dict[Group, list[_Text]] = {}
        self._sizes: dict[Group, int] = {}
        self._timers: dict[Group, asyncio.TimerHandle] = {}
        self._call_count = 0
        self._running = 0
        """Calls under way, at most :data:`router.config.caches.CALLS_AT_ONCE`."""
        self._next: deque[tuple[Group, list[_Text]]] = deque()
        """Those that wait until there are fewer."""
        loop.has_own_room = self._has_room  # type: ignore[method-assign]

    def ask(self, group: Group, key: bytes, item: str | list[int], waiter: Waiter, position: int) -> None:
        """Have a text asked for, or wait for the call that asks for it already."""
        text = self._texts.get(key)
        if text is None:
            text = self._texts[key] = _Text(key, keys.as_json(item))
            self._enqueue(group, text)
        text.waiters.append((waiter, position))

    def _enqueue(self, group: Group, text: _Text) -> None:
        size = len(text.json)
        waiting = self._waiting.get(group)
        if waiting and self._sizes[group] + size > self._config.batch_bytes:
            self._go_soon(group)
            waiting = None
        if waiting is None:
            waiting = self._waiting[group] = []
            self._sizes[group] = 0
            self._timers[group] = self._event_loop.call_later(self._config.wait_ms / 1000, self._go, group)
        waiting.append(text)
        self._sizes[group] += size
        if len(waiting) >= self._config.batch_texts:
            self._go_soon(group)

    def _take(self, group: Group) -> list[_Text]:
        self._timers.pop(group).cancel()
        del self._sizes[group]
        return self._waiting.pop(group)

    def _go_soon(self, group: Group) -> None:
        """Begin a call in a turn of its own: this one may be within the loop's own batch."""
        self._event_loop.call_soon(self._call, group, self._take(group))

    def _go(self, group: Group) -> None:
        if group in self._waiting:
            self._call(group, self._take(group))

    def flush(self) -> None:
        """Begin the calls that wait for company: the router is stopping."""
        for group in list(self._waiting):
            self._go(group)

    # ------------------------------------------------------------ a call
    def _has_room(self, request: Request) -> bool:
        """Calls take no room from clients, nor clients from the calls they wait for: calls have rows of their own."""
        loop = self._loop
        return isinstance(request.egress, CallEgress) or len(loop.in_flight) - self._running < loop.limits.in_flight

    def _call(self, group: Group, texts: list[_Text]) -> None:
        """Begin a call, or have it wait for one of those under way to end."""
        self._next.append((group, texts))
        self._begin_next()

    def _begin_next(self) -> None:
        while self._next and self._running < CALLS_AT_ONCE:
            self._begin(*self._next.popleft())

    def _begin(self, group: Group, texts: list[_Text]) -> None:
        asked = []
        for text in texts:
            if all(waiter.is_gone for waiter, _ in text.waiters):
                self._texts.pop(text.key, None)
            else:
                asked.append(text)
        if not asked:
            return
        body = keys.call_body(group.model.name, [text.json for text in asked], group.form, group.dimensions)
        egress = CallEgress(asked, group, self._ended)
        now = monotonic_ns()
        self._call_count += 1
        request_id = f"cache-call-{self._call_count}"
        fields = RequestBody(model=group.model.name)
        request = Request(
            egress, Endpoint.EMBEDDINGS, request_id, body, fields, _HEADERS, group.model, now, now,
            target=_TARGET, model_id=group.model.model_id,
        )  # fmt: skip
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
        if self._next:
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
            self._texts.pop(text.key, None)
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
            self._event_loop.call_soon(self._call, egress.group, part)
        return True

    def _fail(self, egress: CallEgress, failure: Failure) -> None:
        for text in egress.texts:
            self._texts.pop(text.key, None)
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
