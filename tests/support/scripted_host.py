"""A model host over real sockets whose every byte and every moment is scripted, and that tells what it saw.

A script is what the host does with one request, step by step: bytes are sent, a number is seconds to wait, a
:class:`Gate` waits until the test opens it, and an :class:`End` ends the connection or never ends at all. A script that
comes to its end leaves the connection open for the next request.

The host runs on a thread and an event loop of its own, so that a test may block.
"""

from __future__ import annotations

import asyncio
import json
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from enum import Enum
from http import HTTPStatus
from pathlib import Path
from time import monotonic_ns
from typing import Any, Self, TypeVar

from tests.support.waiting import free_port

WAIT_S = 60.0
"""So long only what never comes is waited for, even by a machine that does much else."""
_RST_ON_CLOSE = struct.pack("ii", 1, 0)
_FILLERS_MAX = 16
T = TypeVar("T")


class End(Enum):
    """How a script can end other than by keeping the connection."""

    CLOSE = "a FIN, whatever the framing has promised"
    RESET = "a RST"
    HANG = "neither a byte nor an end, until the other side leaves"


class Gate:
    """A step that waits until the test opens it."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened = asyncio.Event()
        self.reached = threading.Event()

    async def passed(self) -> None:
        """Wait on the host's loop."""
        self._loop = asyncio.get_running_loop()
        self.reached.set()
        await self._opened.wait()

    def wait_reached(self) -> None:
        """Wait until a script has come so far."""
        assert self.reached.wait(WAIT_S), f"waited {WAIT_S:g} s in vain: a request whose script comes to its gate"

    def open(self) -> None:
        """Let the scripts pass that wait here; the host must have come so far."""
        self.wait_reached()
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._opened.set)

    def unlock(self) -> None:
        """Let pass whatever waits here and whatever comes, if anything does; on the host's loop only."""
        self._opened.set()


Step = bytes | float | Gate | End
Script = Sequence[Step]


# ---------------------------------------------------------------- answers
def event(data: Any, *, end: bytes = b"\n\n", field: bytes = b"data: ") -> bytes:
    """Return a server-sent event; ``data`` is text as it is or an object for JSON."""
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    return field + text + end


def choice_event(delta: dict[str, Any], finish_reason: str | None = None, **fields: Any) -> bytes:
    """Return an event of a streamed chat with one choice."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return event({"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": [choice], **fields})


def token(text: str) -> bytes:
    """Return an event with text."""
    return choice_event({"content": text})


ROLE = choice_event({"role": "assistant", "content": ""})
FINISH = choice_event({}, "stop")
USAGE_NUMBERS = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
USAGE = event({"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": [], "usage": USAGE_NUMBERS})
DONE = event(b"[DONE]")
TOKENS = (token("one"), token(" two"), token(" three"))
STREAM = (ROLE, *TOKENS, FINISH, USAGE, DONE)
LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Return data as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def stream_head(framing: str = "transfer-encoding: chunked", *, more: str = "") -> bytes:
    """Return the head of a streamed answer; ``more`` are further header lines."""
    lines = ["HTTP/1.1 200 OK", "content-type: text/event-stream", framing, *more.splitlines()]
    return "".join(f"{line}\r\n" for line in lines if line).encode() + b"\r\n"


def chunked(events: Iterable[bytes]) -> list[Step]:
    """Return the script of a whole streamed answer, one chunk and one write for each event."""
    return [stream_head(), *(chunk(each) for each in events), LAST_CHUNK]


def answer(status: int, body: bytes, *, content_type: str = "application/json", more: str = "") -> bytes:
    """Return a whole answer; ``more`` are further header lines."""
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"content-type: {content_type}",
        f"content-length: {len(body)}",
        *more.splitlines(),
    ]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body


PLAIN = {
    "id": "c1",
    "object": "chat.completion",
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "one two three"}, "finish_reason": "stop"}],
    "usage": USAGE_NUMBERS,
}


def json_answer(status: int, value: Any, *, more: str = "") -> bytes:
    """Return a whole answer of JSON."""
    return answer(status, json.dumps(value).encode(), more=more)


# ---------------------------------------------------------------- what the host saw
class Exchange:
    """One request as the host saw it. Times are monotonic nanoseconds, 0 = has not happened."""

    def __init__(self, host: ScriptedHost, connection: int, head: bytes, body: bytes) -> None:
        request_line, *lines = head.decode("latin-1").split("\r\n")
        self._host = host
        self.connection = connection
        """Number of the connection, 1 is the first that the host accepted."""
        self.method, self.path, _ = request_line.split(" ")
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.body = body
        self.received_ns = monotonic_ns()
        self.sent_ns = 0
        """When the last step was through that sends bytes."""
        self.sent_bytes = 0
        self.gone_ns = 0
        """When the host saw that the other side had left, before the script was at its end."""
        self.over = False

    def json(self) -> Any:
        """Return the body's JSON."""
        return json.loads(self.body)

    def wait_gone(self, timeout_s: float = WAIT_S) -> int:
        """Return when the other side left; fail if it does not."""
        self._host.wait(lambda: self.gone_ns, "the router leaves its host", timeout_s)
        return self.gone_ns


class ScriptedHost:
    """The host; a context manager. On a TCP port of its own, or on a unix socket in ``directory``.

    Each POST takes the oldest script given to :meth:`script`; without one it is answered properly, as a stream or
    plain, as it asks. ``exchanges`` are all POSTs in the order in which they came.
    """

    def __init__(
        self,
        name: str,
        directory: Path | None = None,
        *,
        models: Sequence[str] = ("m",),
        owned_by: str = "test",
        total_slots: int | None = None,
    ) -> None:
        self.name = name
        self.models = tuple(models)
        self.exchanges: list[Exchange] = []
        self.connection_count = 0
        self.running_count = 0
        self.running_count_max = 0
        self.health_status = 200
        self.probe_count = 0
        """How often its health was asked for."""
        self._owned_by = owned_by
        self._total_slots = total_slots
        self._scripts: deque[Script] = deque()
        self._changed = threading.Condition()
        self._connections: set[_Connection] = set()
        self._fillers: list[socket.socket] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"host-{name}", daemon=True)
        self._listener: socket.socket | None = None
        # A port that the kernel gives to nobody else while this host refuses.
        where = ("127.0.0.1", free_port()) if directory is None else str(directory / f"{name}.s")
        self._address: tuple[str, int] | str = where
        self._listen()
        self.url = f"unix://{where}" if isinstance(where, str) else f"http://{where[0]}:{where[1]}"

    # ------------------------------------------------------------ life
    def __enter__(self) -> Self:
        self._thread.start()
        self._in_loop(self._watch_listener)
        return self

    def __exit__(self, *_: object) -> None:
        self.unstick()
        self._in_loop(self._close_all)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _in_loop(self, call: Callable[[], T]) -> T:
        """Call something on the host's loop and return its result."""

        async def run() -> T:
            return call()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(WAIT_S)

    def _close_all(self) -> None:
        self._stop_listening()
        for connection in list(self._connections):
            connection.abort()

    # ------------------------------------------------------------ what the test orders
    def script(self, *steps: Step) -> None:
        """Tell what to do with the next request that has no script yet."""
        self._scripts.append(steps)

    def forget_scripts(self) -> None:
        """Take back the scripts that no request has taken."""
        self._scripts.clear()

    def refuse(self) -> None:
        """Refuse new connections from now on."""
        self._in_loop(self._stop_listening)

    def accept(self) -> None:
        """Listen again where it listened before."""
        self._listen()
        self._in_loop(self._watch_listener)

    def stick(self) -> None:
        """Accept no more: connections on TCP neither come about nor are refused."""
        assert self._listener is not None
        listener = self._listener
        self._in_loop(lambda: self._loop.remove_reader(listener))
        listener.listen(0)  # the queue of a socket that listens can be made shorter
        while self._fill_backlog():
            assert len(self._fillers) < _FILLERS_MAX, "the queue of connections does not get full"

    def _fill_backlog(self) -> bool:
        """Connect without being accepted; false when a connection no longer comes about."""
        filler = socket.socket(socket.AF_INET)
        self._fillers.append(filler)
        filler.setblocking(False)
        filler.connect_ex(self._address)
        return bool(select.select([], [filler], [], 0.05)[1])

    def unstick(self) -> None:
        """Accept again after :meth:`stick`."""
        if self._fillers:
            for filler in self._fillers:
                filler.close()
            self._fillers.clear()
            self._in_loop(self._watch_listener)

    def close_idle(self) -> None:
        """Close the connections on which nothing runs."""

        def close() -> None:
            for connection in list(self._connections):
                if connection.exchange is None:
                    connection.close()

        self._in_loop(close)

    # ------------------------------------------------------------ what the test waits for
    def wait(self, predicate: Callable[[], T], what: str, timeout_s: float = WAIT_S) -> T:
        """Return the first true value of something that this host changes; fail with ``what`` without one."""
        with self._changed:
            value = self._changed.wait_for(predicate, timeout_s)
        assert value, f"host {self.name} waited {timeout_s:g} s in vain: {what}"
        return value

    def wait_exchange(self, count: int) -> Exchange:
        """Return the request with this number, 1 is the first, as soon as it is there."""
        self.wait(lambda: len(self.exchanges) >= count, f"request {count}")
        return self.exchanges[count - 1]

    @property
    def script_count(self) -> int:
        """Scripts that no request has taken yet."""
        return len(self._scripts)

    @property
    def open_count(self) -> int:
        """Connections open now."""
        return len(self._connections)

    # ------------------------------------------------------------ inside, on the host's thread
    def _listen(self) -> None:
        where = self._address
        sock = socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET)
        if isinstance(where, str):
            Path(where).unlink(missing_ok=True)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(1024)
        sock.setblocking(False)
        self._address = sock.getsockname()
        self._listener = sock

    def _watch_listener(self) -> None:
        assert self._listener is not None
        self._listener.listen(1024)
        self._loop.add_reader(self._listener, self._accept_all)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept_all(self) -> None:
        while self._listener is not None:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            if sock.family == socket.AF_INET:  # asyncio sets it only where the listener was made with proto = TCP
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._spawn(self._loop.connect_accepted_socket(lambda: _Connection(self), sock))

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self._loop.create_task(work)

    def _opened(self, connection: _Connection) -> int:
        with self._changed:
            self._connections.add(connection)
            self.connection_count += 1
            self._changed.notify_all()
        return self.connection_count

    def _closed(self, connection: _Connection) -> None:
        with self._changed:
            self._connections.discard(connection)
            self._changed.notify_all()

    def _began(self, exchange: Exchange) -> Script:
        if exchange.method == "GET":
            return [self._page(exchange.path)]
        with self._changed:
            self.exchanges.append(exchange)
            self.running_count += 1
            self.running_count_max = max(self.running_count_max, self.running_count)
            self._changed.notify_all()
        if self._scripts:
            return self._scripts.popleft()
        return chunked(STREAM) if exchange.json().get("stream") else [json_answer(200, PLAIN)]

    def _ended(self, exchange: Exchange, gone_ns: int) -> None:
        if exchange.over:
            return
        with self._changed:
            exchange.over = True
            exchange.gone_ns = gone_ns
            if exchange.method != "GET":
                self.running_count -= 1
            self._changed.notify_all()

    def _page(self, path: str) -> bytes:
        if path == "/health":
            self.probe_count += 1
            return json_answer(self.health_status, {"status": "ok" if self.health_status == 200 else "ill"})
        if path == "/v1/models":
            models = [{"id": name, "object": "model", "owned_by": self._owned_by} for name in self.models]
            return json_answer(200, {"object": "list", "data": models})
        if path == "/props" and self._total_slots is not None:
            return json_answer(200, {"total_slots": self._total_slots})
        return json_answer(404, {"error": {"message": f"nothing at {path}"}})


class _Connection(asyncio.Protocol):
    """One connection of the host: one request after another, each with its script."""

    def __init__(self, host: ScriptedHost) -> None:
        self._host = host
        self._number = 0
        self._buffer = b""
        self._task: asyncio.Task[Any] | None = None
        self._writable = asyncio.Event()
        self.exchange: Exchange | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._transport.set_write_buffer_limits(0)  # what is sent is what the socket has taken
        self._writable.set()
        self._number = self._host._opened(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._take()

    def eof_received(self) -> bool:
        self._left()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._left()
        self._host._closed(self)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def _take(self) -> None:
        """Take a whole request off the buffer and play its script."""
        head, blank, rest = self._buffer.partition(b"\r\n\r\n")
        if self.exchange is not None or not blank:
            return
        exchange = Exchange(self._host, self._number, head, b"")
        size = int(exchange.headers.get("content-length", "0"))
        if len(rest) < size:
            return
        exchange.body, self._buffer = rest[:size], rest[size:]
        exchange.received_ns = monotonic_ns()
        self.exchange = exchange
        self._task = self._host._spawn(self._play(exchange, self._host._began(exchange)))

    async def _play(self, exchange: Exchange, script: Script) -> None:
        for step in script:
            if isinstance(step, bytes):
                self._transport.write(step)
                await self._writable.wait()
                exchange.sent_bytes += len(step)
                exchange.sent_ns = monotonic_ns()
            elif isinstance(step, Gate):
                await step.passed()
            elif isinstance(step, End):
                await self._end(step)
            else:
                await asyncio.sleep(step)
        self.exchange = None
        self._host._ended(exchange, 0)
        if exchange.headers.get("connection") == "close":
            self._transport.close()
        self._take()

    async def _end(self, end: End) -> None:
        if end is End.HANG:
            await asyncio.get_running_loop().create_future()
        if end is End.RESET:
            sock = self._transport.get_extra_info("socket")
            with suppress(OSError):  # a unix socket has no such option
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
            self._transport.abort()
        else:
            self._transport.close()

    def _left(self) -> None:
        """The other side has left: note when, if something was still to be done for it."""
        now_ns = monotonic_ns()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            self._host._ended(exchange, now_ns)
        if self._task is not None:
            self._task.cancel()
