"""A router's ZeroMQ side whose every message and every moment is scripted, and that tells what it was sent.

It speaks docs/zeromq.md with messages built here, not with the project's own code, so that client and router are not
wrong in the same way. A script is called with each request, on the router's own thread; the test may do more to a
request later, through :meth:`ScriptedRouter.do`.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic, monotonic_ns
from typing import Any, Final, Self, TypeVar

import msgspec
import zmq

WAIT_S: Final = 60.0
ALIVE_S: Final = 0.2
STAMP_COUNT: Final = 15
MODELS = ("one", "two")
T = TypeVar("T")

HEAD, TEXT, REASONING, TOOL_CALL, FINISH, USAGE, COMMENT, ERROR = range(3, 11)


def chunk(delta: dict[str, Any], finish_reason: str | None = None, choice: int = 0) -> bytes:
    """Return an event of a streamed chat."""
    part = {"index": choice, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": [part]}).encode() + b"\n\n"


def text(content: str, choice: int = 0) -> tuple[int, bytes]:
    """Return a content event with its kind."""
    return TEXT, chunk({"content": content}, choice=choice)


ROLE: Final = (HEAD, chunk({"role": "assistant", "content": ""}))
STOP: Final = (FINISH, chunk({}, "stop"))
USAGE_NUMBERS: Final = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


class Ask:
    """One request as the router saw it, and what it can be answered with. Answer only on the router's thread."""

    def __init__(self, router: ScriptedRouter, identity: bytes, header: dict[str, Any], body: bytes, seq: int) -> None:
        self.header = header
        self.id: str = header.get("id", "")
        self.verb: str = header["verb"]
        self.body = body
        self.identity = identity
        self.received_ns = monotonic_ns()
        self.cancelled = threading.Event()
        self.granted = 0
        self.sent_count = 0
        self.over = False
        self._router = router
        self._seq = seq

    def json(self) -> Any:
        """Return the body's JSON."""
        return json.loads(self.body)

    def send(self, kind: str, *more: Any, body: bytes | None = None, version: int = 1) -> None:
        """Send any message about this request."""
        header = msgspec.msgpack.encode([version, kind, self.id, *more])
        self._router.send([self.identity, header] if body is None else [self.identity, header, body])

    def accept(self) -> None:
        """Say that the request is in the ring."""
        self.send("accepted", self._seq, 42)

    def events(self, *events: tuple[int, bytes], first_index: int | None = None) -> None:
        """Send events in one message, with the right indices unless told otherwise."""
        first = self.sent_count if first_index is None else first_index
        now_ns = monotonic_ns()
        self.send(
            "events", first, [[kind, now_ns, len(raw)] for kind, raw in events], body=b"".join(e[1] for e in events)
        )
        self.sent_count += len(events)

    def done(self, body: bytes | None = None, **more: Any) -> None:
        """End it properly."""
        now_ns = monotonic_ns()
        stamps = [self.received_ns + step * (now_ns - self.received_ns) // STAMP_COUNT for step in range(STAMP_COUNT)]
        facts = {"status": 200, "host": "scripted", "events": self.sent_count, "usage": USAGE_NUMBERS, "stamps": stamps}
        self._end()
        self.send("done", facts | more, body=body)

    def error(self, status: int, code: str, message: str = "no", retry_after_s: int = 0, **more: Any) -> None:
        """End it with an error."""
        body = {"error": {"message": message, "type": "test_error", "param": None, "code": code, **more}}
        facts = {"status": status, "retry_after_s": retry_after_s, "events": self.sent_count}
        self._end()
        self.send("error", facts, body=json.dumps(body).encode())

    def _end(self) -> None:
        self.over = True


Script = Callable[[Ask], None]


def answer(*events: tuple[int, bytes]) -> Script:
    """Return a script that answers with these events, one message each."""

    def script(ask: Ask) -> None:
        ask.accept()
        for event in events:
            ask.events(event)
        ask.done()

    return script


def reply(value: Any) -> Script:
    """Return a script that answers as a whole."""

    def script(ask: Ask) -> None:
        ask.accept()
        ask.done(json.dumps(value).encode(), events=0)

    return script


def accept(ask: Ask) -> None:
    """Accept a request and do no more."""
    ask.accept()


def ignore(_: Ask) -> None:
    """Do nothing with a request."""


HELLO: Final = answer(ROLE, text("Hel"), text("lo"), text("!"), STOP)


class ScriptedRouter:
    """The router; a context manager. ``die`` and ``__enter__`` again are its crash and restart.

    Each request takes the oldest script given to :meth:`script`, else :data:`HELLO`. ``asks`` are all requests in the
    order in which they came, ``messages`` the headers of everything that came.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.asks: list[Ask] = []
        self.messages: list[dict[str, Any]] = []
        self.is_silent = False
        """Send no ``alive``, as a router that hangs."""
        self._scripts: deque[Script] = deque()
        self._changed = threading.Condition()
        self._context = zmq.Context.instance()
        self._socket: zmq.Socket[bytes] | None = None

    def __enter__(self) -> Self:
        self._stopping = False
        self._calls: deque[Callable[[], None]] = deque()
        self._wake_descriptor = os.eventfd(0)
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.set(zmq.ROUTER_MANDATORY, 0)
        self._socket.set(zmq.SNDHWM, 0)
        self._socket.bind(self.endpoint)
        self._thread = threading.Thread(target=self._run, name="scripted-router", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self.die()

    def die(self, linger_ms: int = 0) -> None:
        """Close the socket without a word to anyone; ``linger_ms`` lets what was said before still go out."""
        self._stopping = True
        self._linger_ms = linger_ms
        os.eventfd_write(self._wake_descriptor, 1)
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        os.close(self._wake_descriptor)
        self._socket = None

    # ------------------------------------------------------------ what the test orders
    def script(self, *scripts: Script) -> None:
        """Tell what to do with the next requests that have no script yet."""
        self._scripts.extend(scripts)

    def do(self, call: Callable[[], T]) -> T:
        """Call something on the router's thread and return its result."""
        results: list[T] = []
        done = threading.Event()

        def run() -> None:
            results.append(call())
            done.set()

        self._calls.append(run)
        os.eventfd_write(self._wake_descriptor, 1)
        assert done.wait(WAIT_S), "the router's thread is stuck"
        return results[0]

    def send(self, frames: Sequence[bytes]) -> None:
        """Send any message; on the router's thread only."""
        assert self._socket is not None
        self._socket.send_multipart(frames)

    # ------------------------------------------------------------ what the router saw
    def wait(self, predicate: Callable[[], T], what: str, timeout_s: float = WAIT_S) -> T:
        """Return the first true value of ``predicate``; fail if none comes."""
        with self._changed:
            value = self._changed.wait_for(predicate, timeout_s)
        assert value, f"waited {timeout_s:g} s in vain: {what}"
        return value

    def wait_ask(self, count: int = 1) -> Ask:
        """Return the request with this number, counted from 1, as soon as it has come."""
        self.wait(lambda: len(self.asks) >= count, f"{count} requests")
        return self.asks[count - 1]

    def wait_cancelled(self, ask: Ask) -> None:
        """Wait until the client has cancelled a request."""
        self.wait(ask.cancelled.is_set, "the client cancels")

    # ------------------------------------------------------------ thread
    def _run(self) -> None:
        assert self._socket is not None
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_descriptor, zmq.POLLIN)
        alive_s = monotonic()
        while not self._stopping:
            ready = dict(poller.poll(ALIVE_S * 1000))
            if self._wake_descriptor in ready:
                os.eventfd_read(self._wake_descriptor)
            while self._calls:
                self._calls.popleft()()
            if self._socket in ready:
                self._receive(self._socket.recv_multipart())
            if monotonic() - alive_s >= ALIVE_S and not self.is_silent:
                alive_s = monotonic()
                for identity in {ask.identity for ask in self.asks if not ask.over}:
                    self.send([identity, msgspec.msgpack.encode([1, "alive", ""])])
        self._socket.close(self._linger_ms)

    def _receive(self, frames: list[bytes]) -> None:
        identity, head, *rest = frames
        header = msgspec.msgpack.decode(head)
        with self._changed:
            self.messages.append(header)
            if header["verb"] == "cancel":
                self._cancel(identity, header["id"])
            elif header["verb"] == "credit":
                self._grant(identity, header["grants"])
            else:
                ask = Ask(self, identity, header, rest[0] if rest else b"", len(self.asks))
                self.asks.append(ask)
                self._take(ask)
            self._changed.notify_all()

    def _take(self, ask: Ask) -> None:
        if ask.verb == "ping":
            ask.over = True
            ask.send("pong", {"version": "0", "generation": 42, "t_ns": monotonic_ns()})
        elif ask.verb == "models":
            ask.done(json.dumps({"object": "list", "data": [{"id": name} for name in MODELS]}).encode(), events=0)
        else:
            (self._scripts.popleft() if self._scripts else HELLO)(ask)

    def _cancel(self, identity: bytes, request_id: str) -> None:
        for ask in self.asks:
            if (ask.identity, ask.id) == (identity, request_id) and not ask.over:
                ask.cancelled.set()
                ask.error(499, "cancelled")

    def _grant(self, identity: bytes, grants: list[list[Any]]) -> None:
        for request_id, count in grants:
            for ask in self.asks:
                if (ask.identity, ask.id) == (identity, request_id) and not ask.over:
                    ask.granted += count
