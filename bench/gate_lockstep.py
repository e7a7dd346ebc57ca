"""A load whose course does not depend on time: hosts and clients in one thread, each step after the one before.

The next token is written when the client has read the last one, so every token comes alone, however slow, busy or
traced the router is. What is counted over such a load repeats.
"""

from __future__ import annotations

import itertools
import json
import re
import selectors
import socket
from collections.abc import Iterator
from typing import Any, Protocol

from bench.closing import Closing
from bench.config import MODEL

HOST_COUNT = 2
PROMPT_BYTES = 1024
SILENCE_S = 20.0
"""For how long one step may take; a step is under a millisecond, but the machine may be busy."""

BODY = json.dumps(
    {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "x" * PROMPT_BYTES}]}
).encode()
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: gate\r\ncontent-type: application/json\r\n"
    b"x-ringrouter-tag-feature-name: gate\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
STREAM_END = b"0\r\n\r\n"
_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 00:00:00 GMT\r\nserver: gate\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
_WORDS = (" the", " quick", " brown", " fox", " jumps", " over", " a", " lazy", " dog", ",", " and", " so", " on", ".")
"""Texts of different lengths, as tokens have: a scanner that only knows equal events gains nothing here."""
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


def stream_parts(token_count: int) -> Iterator[bytes]:
    """Yield the writes of one streamed answer, one token each: the first has the head, the last the end."""
    words = itertools.islice(itertools.cycle(_WORDS), token_count)
    for index, word in enumerate(words):
        part = _choice({"content": word})
        if index == 0:
            part = _HEAD + _choice({"role": "assistant", "content": ""}) + part
        if index == token_count - 1:
            part += _choice({}, "stop") + _usage(token_count) + _chunk(b"data: [DONE]\n\n") + STREAM_END
        yield part


def _choice(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return _event({"choices": [choice]})


def _usage(token_count: int) -> bytes:
    usage = {"prompt_tokens": 200, "completion_tokens": token_count, "total_tokens": 200 + token_count}
    return _event({"choices": [], "usage": usage})


def _event(rest: dict[str, Any]) -> bytes:
    common = {"id": "chatcmpl-gate", "object": "chat.completion.chunk", "created": 1790000000, "model": MODEL}
    return _chunk(b"data: %b\n\n" % json.dumps(common | rest, separators=(",", ":")).encode())


def _chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


class Hosts(Closing):
    """Model hosts that do nothing by themselves: probes are answered while a request is awaited, streams by hand."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._listeners = [socket.create_server(("127.0.0.1", 0), backlog=1024) for _ in range(HOST_COUNT)]
        self._received: dict[socket.socket, bytes] = {}
        for listener in self._listeners:
            self._selector.register(listener, selectors.EVENT_READ)
        self.urls = [f"http://127.0.0.1:{listener.getsockname()[1]}" for listener in self._listeners]

    def close(self) -> None:
        for open_socket in (*self._listeners, *self._received):
            open_socket.close()
        self._selector.close()

    def next_request(self, timeout_s: float = SILENCE_S) -> socket.socket:
        """Return the connection on which the next request came in; raises ``TimeoutError`` when none comes."""
        while True:
            ready = self._selector.select(timeout_s)
            if not ready:
                raise TimeoutError(f"no request came to a host for {timeout_s:g} s")
            for key, _ in ready:
                if (connection := self._take(key.fileobj)) is not None:  # type: ignore[arg-type]
                    return connection

    def answer_probes(self, timeout_s: float) -> None:
        """Answer what the router asks of its own accord, until nothing more comes for ``timeout_s``."""
        while ready := self._selector.select(timeout_s):
            for key, _ in ready:
                self._take(key.fileobj)  # type: ignore[arg-type]

    def _take(self, ready: socket.socket) -> socket.socket | None:
        if ready in self._listeners:
            connection, _ = ready.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._received[connection] = b""
            self._selector.register(connection, selectors.EVENT_READ)
            return None
        data = _read(ready)
        if not data:
            self._selector.unregister(ready)
            del self._received[ready]
            ready.close()
            return None
        self._received[ready] += data
        return self._whole_request(ready)

    def _whole_request(self, connection: socket.socket) -> socket.socket | None:
        head, blank, body = self._received[connection].partition(b"\r\n\r\n")
        length = _LENGTH.search(head + b"\r\n")
        if not blank or len(body) < int(length[1] if length else 0):
            return None
        self._received[connection] = b""
        if head.startswith(b"POST "):
            return connection
        answer = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode()
        connection.sendall(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(answer), answer)
        )
        return None


def _read(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""


class Client(Protocol):
    """One client with one request at a time."""

    def ask(self) -> None:
        """Send a request for a stream."""

    def wait_token(self, part: bytes) -> None:
        """Return when the token that the host wrote in ``part`` is here."""

    def wait_end(self) -> None:
        """Return when the answer is complete."""


class HttpClient(Closing):
    """A client of the HTTP API on a connection that it keeps; a context manager that closes it."""

    def __init__(self, target: str) -> None:
        name, _, port = target.rpartition(":")
        self._socket = socket.create_connection((name, int(port)), timeout=SILENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self._socket.close()

    def ask(self) -> None:
        self._socket.sendall(REQUEST)

    def wait_token(self, part: bytes) -> None:
        self._read_until(part[-min(len(part), 64) :])

    def wait_end(self) -> None:
        self._read_until(STREAM_END)

    def _read_until(self, ending: bytes) -> None:
        received = b""
        while not received.endswith(ending):
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError(f"the router closed the connection after {received[-300:]!r}")
            received += data


class ZeromqClient(Closing):
    """A client of the ZeroMQ socket; a context manager that closes it."""

    def __init__(self, endpoint: str) -> None:
        import msgspec  # noqa: PLC0415 - the same as pyzmq
        import zmq  # noqa: PLC0415 - other users of this module have no need of it

        self._encode, self._decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.RCVTIMEO, int(SILENCE_S * 1000))
        self._socket.connect(endpoint)
        self._count = 0

    def close(self) -> None:
        self._socket.close(0)
        self._context.term()

    def ask(self) -> None:
        self._count += 1
        header = {"v": 1, "verb": "chat", "id": str(self._count), "credit": 4096}
        self._socket.send_multipart((self._encode(header), BODY))

    def wait_token(self, part: bytes) -> None:  # noqa: ARG002 - messages are whole: the next one has the token
        while self._next_kind() != "events":
            pass

    def wait_end(self) -> None:
        while self._next_kind() != "done":
            pass

    def _next_kind(self) -> str:
        frames = self._socket.recv_multipart()
        kind: str = self._decode(frames[0])[1]
        if kind == "error":
            raise ConnectionError(f"the router answered {frames[-1][:300]!r}")
        return kind


def run_streams(hosts: Hosts, client: Client, stream_count: int, token_count: int) -> None:
    """Have a number of streams answered, one after the other, token by token."""
    parts = list(stream_parts(token_count))
    for _ in range(stream_count):
        client.ask()
        connection = hosts.next_request()
        for part in parts[:-1]:
            connection.sendall(part)
            client.wait_token(part)
        connection.sendall(parts[-1])
        client.wait_end()


def open_silent_stream(hosts: Hosts, client: Client) -> None:
    """Have one stream begun that stays open: its first token has come, and nothing comes after it."""
    first = next(stream_parts(2))
    client.ask()
    hosts.next_request().sendall(first)
    client.wait_token(first)
