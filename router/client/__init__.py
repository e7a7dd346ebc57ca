"""A client of the router over ZeroMQ, for Python programs beside it: every token with its times, and no HTTP.

    from router.client import Client

    with Client() as client:
        for token in client.chat("smollm2-135m", "Say hello."):
            print(token.text, end="", flush=True)

:class:`AsyncClient` is the same for asyncio. How it works, from the wire up: :mod:`router.client.protocol` (messages),
:mod:`router.client.exchange` (one request; pure), :mod:`router.client.session` (all that are open, and what may be
sent; pure), :mod:`router.client.wire` (sockets), :mod:`router.client.answer` (events to tokens),
:mod:`router.client.sync` and :mod:`router.client.aio` (the waiting).
"""

from router.client.aio import AsyncClient, AsyncStream
from router.client.answer import Choice, Token, ToolCall
from router.client.endpoint import default_endpoint
from router.client.errors import ConnectionLost, NotConnected, ProtocolError, RouterError, TimedOut
from router.client.exchange import Pong
from router.client.protocol import Kind
from router.client.reply import Embeddings, Reply
from router.client.sync import Client, Stream
from router.client.timing import Timing

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Choice",
    "Client",
    "ConnectionLost",
    "Embeddings",
    "Kind",
    "NotConnected",
    "Pong",
    "ProtocolError",
    "Reply",
    "RouterError",
    "Stream",
    "TimedOut",
    "Timing",
    "Token",
    "ToolCall",
    "default_endpoint",
]
