"""The client for programs without an event loop."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Iterator
from time import monotonic_ns
from typing import Any, Final, Self, TypeVar

import zmq

from router.client import protocol
from router.client.answer import Token
from router.client.asking import Asking, Messages, embeddings_request, model_names
from router.client.channel import Channel
from router.client.exchange import Done, Exchange, Phase, Pong
from router.client.identity import Identity
from router.client.protocol import CONTENT_KINDS, Request
from router.client.reply import Embeddings, Reply
from router.client.session import LOOK_NS
from router.client.stream import StreamState
from router.client.wire import Link

_POLL_MS_MAX: Final = LOOK_NS // 1_000_000
ReplyKind = TypeVar("ReplyKind", bound=Reply)


class Stream(StreamState):
    """A streamed answer. Iterating gives the tokens with content as they come; leaving the loop cancels the request.

    ``for token in stream`` is the usual way; its end, a ``break``, an exception and :meth:`close` all end the request,
    and so does throwing the stream away. ``next(stream)`` takes one token and ends nothing.
    """

    def __init__(self, channel: BlockingChannel, exchange: Exchange) -> None:
        super().__init__(exchange, channel.taken, same_clock=channel.same_clock)
        self._channel = channel

    def __iter__(self) -> Iterator[Token]:
        return self._each(CONTENT_KINDS)

    def __next__(self) -> Token:
        for token in self._tokens:
            if token is None:
                if not self._channel.more(self._exchange):
                    break
            elif token.kind in CONTENT_KINDS:
                return token
        raise StopIteration

    def events(self) -> Iterator[Token]:
        """Iterate over every event of the host, those without content too."""
        return self._each(None)

    def answer(self) -> str:
        """Read to the end and return the whole text, or raise what kept it from being whole."""
        for _ in self:
            pass
        return self._whole_text()

    def close(self) -> None:
        """End the request if it still runs."""
        self._tokens.close()
        self._channel.leave(self._exchange)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._channel.abandon(self._exchange)

    def _each(self, kinds: frozenset[str] | None) -> Iterator[Token]:
        try:
            for token in self._tokens:
                if token is None:
                    if not self._channel.more(self._exchange):
                        return
                elif kinds is None or token.kind in kinds:
                    yield token
        finally:
            self.close()


class Client(Asking["BlockingChannel", Stream, Reply]):
    """Asks routers over ZeroMQ and waits for their answers; a context manager.

    Without ``endpoints`` it asks the router of this user on this machine. A request that no router has accepted
    ``connect_timeout_s`` seconds after it was asked ends in :class:`router.client.NotConnected`. A client belongs to
    the thread that asks first: threads take a client each. Any number of its streams may run at once.
    ``key`` is shown to a router that wants one (``""``: none; without it that of ``$RINGROUTER_KEY``). Over TCP
    ``server_key`` and ``curve_key_file`` (`ringrouter keys curve`) encrypt the connection, and say who asks.
    Raises :class:`ValueError` for what is no endpoint or no key.
    """

    def ask(self, model: str, messages: Messages, **options: Any) -> str:
        """Ask for a chat and return its whole text; the keywords are those of :meth:`chat`."""
        return self.chat(model, messages, stream=True, **options).answer()

    def embeddings(self, model: str, texts: Any, **options: Any) -> Embeddings:
        """Ask for the vectors of a text, or of a list of them; the keywords are those of :meth:`chat`."""
        return self._whole(embeddings_request(model, texts, options), Embeddings)

    def models(self) -> list[str]:
        """Return the names of the models that the router serves."""
        return model_names(self._whole(protocol.request("models"), Reply).json)

    def ping(self) -> Pong:
        """Ask whether a router is there; raises :class:`router.client.NotConnected`."""
        pong = self._channel.finish(self._channel.begin(protocol.request("ping")))
        assert isinstance(pong, Pong)
        return pong

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, endpoints: tuple[str, ...], connect_timeout_s: float, own: Identity) -> BlockingChannel:
        return BlockingChannel(endpoints, connect_timeout_s, own)

    def _stream(self, request: Request) -> Stream:
        return Stream(self._channel, self._channel.begin(request))

    def _reply(self, request: Request) -> Reply:
        return self._whole(request, Reply)

    def _whole(self, request: Request, kind: type[ReplyKind]) -> ReplyKind:
        exchange = self._channel.begin(request)
        done = self._channel.finish(exchange)
        assert isinstance(done, Done)
        return kind(exchange, done, same_clock=self._channel.same_clock)


class BlockingChannel(Channel):
    """Connections whose user waits in a poll. Belongs to one thread."""

    def __init__(self, endpoints: tuple[str, ...], connect_timeout_s: float, own: Identity) -> None:
        super().__init__(endpoints, connect_timeout_s, own)
        self._owner: tuple[int, int] | None = None
        self._busy = False
        self._poller = zmq.Poller()
        self._monitors: dict[Any, Link] = {}

    def begin(self, request: Request) -> Exchange:
        """Submit a request and wait until it is sent, so that it runs whatever the program does next."""
        self._check_usable()
        self._poll(0)  # a connection that was lost since the last call is not to be used
        exchange = self.submit(request)
        try:
            self._turn()
            while exchange.phase is Phase.QUEUED:
                self._poll(self._due_ms())
                self._turn()
        except BaseException:
            self.leave(exchange)
            raise
        if exchange.error is not None and not exchange.send_count:
            raise exchange.error
        return exchange

    def more(self, exchange: Exchange) -> bool:
        """Wait for events; false at the end of the request. Raises how it ended if not properly."""
        inbox = exchange.inbox
        if not inbox and not exchange.over:
            self._check_usable()
            self.session.wait(exchange)
            try:
                self._wait(exchange)
            finally:
                self.session.stop_waiting(exchange)
        if inbox:
            return True
        if exchange.error is not None:
            raise exchange.error
        return False

    def finish(self, exchange: Exchange) -> Done | Pong:
        """Wait for the end of a request without events."""
        try:
            while self.more(exchange):
                exchange.inbox.clear()
        finally:
            self.leave(exchange)
        assert exchange.result is not None
        return exchange.result

    def abandon(self, exchange: Exchange) -> None:
        """Cancel for a stream that was thrown away: at once, or when this channel's own thread comes by."""
        super().abandon(exchange)
        own = self._owner == (os.getpid(), threading.get_ident())
        if own and not self._busy and not self.is_closed and not sys.is_finalizing():
            self.send()

    def opened(self, link: Link) -> None:
        """Poll a socket from now on."""
        self._poller.register(link.socket, zmq.POLLIN)
        self._poller.register(link.monitor, zmq.POLLIN)
        self._monitors[link.monitor] = link

    def closing(self, link: Link) -> None:
        """Poll a socket no longer."""
        self._poller.unregister(link.socket)
        self._poller.unregister(link.monitor)
        del self._monitors[link.monitor]

    def send(self) -> None:
        """Send what there is for the routers."""
        self._busy = True
        try:
            self.reap()
            self.wire.flush()
        finally:
            self._busy = False

    def _wait(self, exchange: Exchange) -> None:
        """Wait until events or the end have come."""
        inbox = exchange.inbox
        while not inbox and not exchange.over:
            self._turn()
            if not inbox and not exchange.over:
                self._poll(self._due_ms())

    def _turn(self) -> None:
        self._busy = True
        try:
            self.reap()
            self.wire.turn()
        finally:
            self._busy = False

    def _due_ms(self) -> int:
        """Return how long nothing is due."""
        due_ms = math.ceil((self.wire.due_ns() - monotonic_ns()) / 1e6)
        return max(0, min(due_ms, _POLL_MS_MAX))

    def _poll(self, timeout_ms: int) -> None:
        """Wait until a socket has something; take what the monitors tell."""
        for socket, _ in self._poller.poll(timeout_ms):
            link = self._monitors.get(socket)
            if link is not None:
                self._busy = True
                try:
                    self.wire.watch(link)
                finally:
                    self._busy = False

    def _check_usable(self) -> None:
        if self.is_closed:
            raise RuntimeError("this client is closed")
        user = os.getpid(), threading.get_ident()
        if self._owner is None:
            self._owner = user
        elif self._owner != user:
            raise RuntimeError("this client belongs to another thread or process: make one for each")
