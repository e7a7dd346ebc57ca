"""The client for asyncio, on any event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Generator
from contextlib import suppress
from functools import partial
from time import monotonic_ns
from typing import Any, Final, Self, TypeVar

import zmq

from router.client import protocol
from router.client.answer import Token
from router.client.asking import Asking, Messages, embeddings_request, model_names
from router.client.channel import Channel
from router.client.exchange import NEVER_NS, Done, Exchange, Pong
from router.client.identity import Identity
from router.client.protocol import CONTENT_KINDS, Request
from router.client.reply import Embeddings, Reply
from router.client.stream import StreamState
from router.client.wire import Link

_TIMER_S_MIN: Final = 0.001
"""The clocks of some event loops count milliseconds."""
ReplyKind = TypeVar("ReplyKind", bound=Reply)


class AsyncStream(StreamState):
    """A streamed answer. Iterating gives the tokens with content as they come; leaving the loop cancels the request.

    ``async for token in stream`` is the usual way; its end, a ``break``, an exception, the cancellation of the task and
    :meth:`close` all end the request, and so does throwing the stream away. ``await anext(stream)`` takes one token and
    ends nothing.
    """

    def __init__(self, channel: LoopChannel, exchange: Exchange) -> None:
        super().__init__(exchange, channel.taken, same_clock=channel.same_clock)
        self._channel = channel

    def __aiter__(self) -> AsyncIterator[Token]:
        return _Each(self, self._channel, self._exchange, self._tokens, CONTENT_KINDS)

    async def __anext__(self) -> Token:
        return await self._channel.next_token(self._exchange, self._tokens, CONTENT_KINDS)

    def events(self) -> AsyncIterator[Token]:
        """Iterate over every event of the host, those without content too."""
        return _Each(self, self._channel, self._exchange, self._tokens, None)

    async def answer(self) -> str:
        """Read to the end and return the whole text, or raise what kept it from being whole."""
        async for _ in self:
            pass
        return self._whole_text()

    def close(self) -> None:
        """End the request if it still runs."""
        self._tokens.close()
        self._channel.leave(self._exchange)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._channel.abandon(self._exchange)


class _Each:
    """One ``async for`` over a stream. It is let go when the loop is left, and only then."""

    def __init__(
        self,
        stream: AsyncStream,
        channel: LoopChannel,
        exchange: Exchange,
        tokens: Generator[Token | None, None, None],
        kinds: frozenset[str] | None,
    ) -> None:
        self._stream = stream  # one that nobody holds ends its request
        self._channel = channel
        self._exchange = exchange
        self._tokens = tokens
        self._kinds = kinds

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Token:
        return await self._channel.next_token(self._exchange, self._tokens, self._kinds)

    def __del__(self) -> None:
        self._tokens.close()
        self._channel.abandon(self._exchange)


class AsyncClient(Asking["LoopChannel", AsyncStream, Coroutine[Any, Any, Reply]]):
    """Asks routers over ZeroMQ; an asynchronous context manager.

    Without ``endpoints`` it asks the router of this user on this machine. A request that no router has accepted
    ``connect_timeout_s`` seconds after it was asked ends in :class:`router.client.NotConnected`. A client belongs to
    the event loop in which it is first used. Streams are begun without ``await``: the request is on its way when
    ``chat`` returns. Any number of them may run at once, each read by one task at a time.
    ``key`` is shown to a router that wants one (``""``: none; without it that of ``$RINGROUTER_KEY``). Over TCP
    ``server_key`` and ``curve_key_file`` (`ringrouter keys curve`) encrypt the connection, and say who asks.
    Raises :class:`ValueError` for what is no endpoint or no key.
    """

    async def ask(self, model: str, messages: Messages, **options: Any) -> str:
        """Ask for a chat and return its whole text; the keywords are those of :meth:`chat`."""
        return await self.chat(model, messages, stream=True, **options).answer()

    async def embeddings(self, model: str, texts: Any, **options: Any) -> Embeddings:
        """Ask for the vectors of a text, or of a list of them; the keywords are those of :meth:`chat`."""
        return await self._whole(embeddings_request(model, texts, options), Embeddings)

    async def models(self) -> list[str]:
        """Return the names of the models that the router serves."""
        return model_names((await self._whole(protocol.request("models"), Reply)).json)

    async def ping(self) -> Pong:
        """Ask whether a router is there; raises :class:`router.client.NotConnected`."""
        pong = await self._channel.finish(self._channel.begin(protocol.request("ping")))
        assert isinstance(pong, Pong)
        return pong

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def _open(self, endpoints: tuple[str, ...], connect_timeout_s: float, own: Identity) -> LoopChannel:
        return LoopChannel(endpoints, connect_timeout_s, own)

    def _stream(self, request: Request) -> AsyncStream:
        return AsyncStream(self._channel, self._channel.begin(request))

    async def _reply(self, request: Request) -> Reply:
        return await self._whole(request, Reply)

    async def _whole(self, request: Request, kind: type[ReplyKind]) -> ReplyKind:
        exchange = self._channel.begin(request)
        done = await self._channel.finish(exchange)
        assert isinstance(done, Done)
        return kind(exchange, done, same_clock=self._channel.same_clock)


class LoopChannel(Channel):
    """Connections on an event loop, by the descriptors that libzmq gives.

    Such a descriptor tells that something has changed, once, and any call on its socket may take the news away: so
    after each call here that read less than all, or that sent, the sockets are asked again.
    """

    def __init__(self, endpoints: tuple[str, ...], connect_timeout_s: float, own: Identity) -> None:
        super().__init__(endpoints, connect_timeout_s, own)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_ns = 0
        self._is_scheduled = False
        self._descriptors: dict[int, tuple[int, int]] = {}

    def begin(self, request: Request) -> Exchange:
        """Submit a request and send it, or as soon as there is a connection."""
        self._attach()
        exchange = self.submit(request)
        self._turn()
        return exchange

    async def more(self, exchange: Exchange) -> bool:
        """Wait for events; false at the end of the request. Raises how it ended if not properly."""
        while not exchange.inbox and not exchange.over:
            if exchange.wake is not None:
                raise RuntimeError("this stream is being read by another task")
            waiter = self._attach().create_future()
            exchange.wake = partial(_wake, waiter)
            if self.session.wait(exchange):
                self.send()
            try:
                await waiter
            finally:
                exchange.wake = None
                self.session.stop_waiting(exchange)
        if exchange.inbox:
            return True
        if exchange.error is not None:
            raise exchange.error
        return False

    async def next_token(
        self, exchange: Exchange, tokens: Generator[Token | None, None, None], kinds: frozenset[str] | None
    ) -> Token:
        """Wait for the next token of one of the kinds, ``None`` for any; raises :class:`StopAsyncIteration`."""
        for token in tokens:
            if token is None:
                if not await self.more(exchange):
                    break
            elif kinds is None or token.kind in kinds:
                return token
        raise StopAsyncIteration

    async def finish(self, exchange: Exchange) -> Done | Pong:
        """Wait for the end of a request without events."""
        try:
            while await self.more(exchange):
                exchange.inbox.clear()
        finally:
            self.leave(exchange)
        assert exchange.result is not None
        return exchange.result

    def abandon(self, exchange: Exchange) -> None:
        """Cancel for a stream that was thrown away, in the next turn of the loop."""
        super().abandon(exchange)
        if self._loop is not None and not self.is_closed:
            with suppress(RuntimeError):  # the loop was closed before the client
                self._loop.call_soon_threadsafe(self._turn_again)

    def send(self) -> None:
        """Send what there is for the routers."""
        super().send()
        self._settle()

    def close(self) -> None:
        """Close the sockets; the routers cancel what still runs, and whoever waits is told."""
        super().close()
        if self._timer is not None:
            self._timer.cancel()

    def opened(self, link: Link) -> None:
        """Watch the descriptors of a socket and its monitor from now on."""
        assert link.socket is not None
        assert link.monitor is not None
        data, monitor = int(link.socket.getsockopt(zmq.FD)), int(link.monitor.getsockopt(zmq.FD))
        self._descriptors[link.index] = data, monitor
        self._attached.add_reader(data, self._turn)
        self._attached.add_reader(monitor, self._watch, link)
        self._attached.call_soon(self._watch, link)

    def closing(self, link: Link) -> None:
        """Watch the descriptors no longer."""
        for descriptor in self._descriptors.pop(link.index):
            if not self._attached.is_closed():
                self._attached.remove_reader(descriptor)

    def _attach(self) -> asyncio.AbstractEventLoop:
        """Return the loop that this channel belongs to, which must be the one that runs now."""
        if self.is_closed:
            raise RuntimeError("this client is closed")
        running = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = running
        elif self._loop is not running:
            raise RuntimeError("this client belongs to another event loop: make one for each")
        return running

    @property
    def _attached(self) -> asyncio.AbstractEventLoop:
        assert self._loop is not None, "sockets are opened by the first request"
        return self._loop

    def _turn(self) -> None:
        self.reap()
        self.wire.turn()
        self._settle()

    def _turn_again(self) -> None:
        self._is_scheduled = False
        if not self.is_closed:
            self._turn()

    def _watch(self, link: Link) -> None:
        if not self.is_closed:
            self.wire.watch(link)
            self.send()

    def _settle(self) -> None:
        """Come again for what is there already, and when something is due."""
        if not self._is_scheduled and any(map(self.wire.has_input, self.wire.links)):
            self._is_scheduled = True
            self._attached.call_soon(self._turn_again)
        due_ns = self.wire.due_ns()
        if due_ns >= NEVER_NS or (self._timer is not None and self._timer_due_ns <= due_ns):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due_ns = due_ns
        delay_s = max(_TIMER_S_MIN, (due_ns - monotonic_ns()) / 1e9)
        self._timer = self._attached.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._turn()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
