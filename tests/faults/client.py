"""A client on a bare socket: it can send any bytes, and stamps what comes back."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, field
from time import monotonic_ns
from typing import Any, Self

from tests.captures import data_of, split_events

READ_BYTES = 1 << 16
TIMEOUT_S = 60.0
CHAT = "/v1/chat/completions"


@dataclass
class Answer:
    """One answer. ``ended`` tells whether its framing came to a proper end."""

    status: int
    headers: dict[str, str]
    begun_ns: int
    body: bytes = b""
    ended: bool = False
    done_ns: int = 0
    interim: list[int] = field(default_factory=list)
    """Statuses of the interim answers before it."""

    def json(self) -> Any:
        """Return the body's JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object of a body in OpenAI's shape."""
        error: dict[str, Any] = self.json()["error"]
        assert set(error) >= {"message", "type", "param", "code"}, error
        assert isinstance(error["message"], str)
        return error

    @property
    def events(self) -> list[bytes]:
        """The server-sent events of the body, comments included."""
        events, rest = split_events(self.body)
        assert not rest, f"the stream ends within an event: {rest!r}"
        return events

    @property
    def data(self) -> list[Any]:
        """The JSON of each event; ``[DONE]`` as this text, comments left out."""
        texts = [data for event in self.events if (data := data_of(event)) is not None]
        return [text.decode() if text == b"[DONE]" else json.loads(text) for text in texts]

    @property
    def text(self) -> str:
        """What the content of all events of a chat spells."""
        deltas = [c["delta"] for d in self.data if isinstance(d, dict) for c in d.get("choices") or ()]
        return "".join(delta.get("content") or "" for delta in deltas)

    @property
    def stream_error(self) -> dict[str, Any]:
        """The error object of the stream's last event, behind which nothing may come."""
        last = self.data[-1]
        error: dict[str, Any] = last["error"]
        assert set(error) >= {"message", "type", "param", "code"}, error
        assert not self.ended, "a broken stream must not have a proper end"
        return error


class Client:
    """A connection to a router; a context manager. ``receive_buffer_bytes`` makes the kernel take little for it."""

    def __init__(self, port: int, receive_buffer_bytes: int = 0) -> None:
        self.socket = socket.socket(socket.AF_INET)
        if receive_buffer_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect(("127.0.0.1", port))
        self._buffer = b""
        self.last_read_ns = 0
        self.sent_ns = 0
        """When the last call to send bytes began: the router has had none of them before."""
        self.closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> int:
        """Close and return when."""
        now_ns = monotonic_ns()
        self.socket.close()
        self.closed = True
        return now_ns

    # ------------------------------------------------------------ out
    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.sent_ns = monotonic_ns()
        self.socket.sendall(data)

    def post(self, body: bytes | dict[str, Any], path: str = CHAT, *, more: str = "", version: str = "1.1") -> None:
        """Send a request; ``more`` are further header lines."""
        self.send(request(body, path, more=more, version=version))

    def chat(self, *, model: str = "m", stream: bool = True, more: str = "", **fields: Any) -> None:
        """Send a request for a chat; ``fields`` are further ones of its body."""
        self.post(chat_body(model, stream=stream, **fields), more=more)

    def get(self, path: str, method: str = "GET") -> None:
        """Send a request without a body."""
        self.send(f"{method} {path} HTTP/1.1\r\nhost: test\r\n\r\n".encode())

    # ------------------------------------------------------------ in
    def answer(self, *, without_body: bool = False) -> Answer:
        """Read one whole answer."""
        answer = self.begin()
        if without_body:
            answer.ended = True
        elif "chunked" in answer.headers.get("transfer-encoding", ""):
            self._read_chunked(answer)
        elif "content-length" in answer.headers:
            self._read_length(answer, int(answer.headers["content-length"]))
        else:
            self._read_rest(answer)
        answer.done_ns = self.last_read_ns
        return answer

    def begin(self) -> Answer:
        """Read the head of an answer."""
        interim: list[int] = []
        while True:
            if not self._buffer:
                assert self._read(), "the connection ended where an answer should begin"
            begun_ns = self.last_read_ns
            head = self.read_until(b"\r\n\r\n")
            status_line, *lines = head[:-4].decode("latin-1").split("\r\n")
            assert status_line.startswith("HTTP/1.1 "), status_line
            status = int(status_line.split(" ")[1])
            if status >= 200:
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                return Answer(status, headers, begun_ns, interim=interim)
            interim.append(status)

    def wait_for(self, mark: bytes) -> int:
        """Wait until ``mark`` has come, take nothing away, and return when."""
        while mark not in self._buffer:
            assert self._read(), f"the connection ended before {mark!r}: {self._buffer!r}"
        return self.last_read_ns

    def read_until(self, mark: bytes) -> bytes:
        """Return what comes up to and with ``mark``; fail if the connection ends before."""
        self.wait_for(mark)
        end = self._buffer.index(mark) + len(mark)
        data, self._buffer = self._buffer[:end], self._buffer[end:]
        return data

    def read_to_end_of(self, mark: bytes) -> int:
        """Read and forget until the last bytes are ``mark``; return how many bytes came."""
        count = len(self._buffer)
        while not self._buffer.endswith(mark):
            before = self._buffer[-len(mark) :]
            self._buffer = b""
            assert self._read(), f"the connection ended before {mark!r}"
            count += len(self._buffer)
            self._buffer = before + self._buffer
        self._buffer = b""
        return count

    def take(self, size: int) -> bytes:
        """Take what is there, at most ``size`` bytes; fail at the end of the connection."""
        data = self.socket.recv(size)
        assert data, "the connection ended"
        return data

    def read_events(self, count: int) -> None:
        """Read and forget until so many events with data have come."""
        while count > 0:
            if b"\n\n" in self._buffer:
                event, _, self._buffer = self._buffer.partition(b"\n\n")
                count -= b"data: " in event
            else:
                assert self._read(), "the connection ended before the event"

    def read_to_end(self) -> bytes:
        """Return all that comes until the other side closes."""
        while self._read():
            pass
        data, self._buffer = self._buffer, b""
        return data

    def _read(self) -> bool:
        """Read what is there, or wait; false at the end of the connection."""
        data = self.socket.recv(READ_BYTES)
        self.last_read_ns = monotonic_ns()
        self._buffer += data
        return bool(data)

    def _read_length(self, answer: Answer, size: int) -> None:
        while len(self._buffer) < size and self._read():
            pass
        answer.body, self._buffer = self._buffer[:size], self._buffer[size:]
        answer.ended = len(answer.body) == size

    def _read_rest(self, answer: Answer) -> None:
        answer.body = self.read_to_end()
        answer.ended = True

    def _read_chunked(self, answer: Answer) -> None:
        parts: list[bytes] = []
        while True:
            while b"\r\n" not in self._buffer:
                if not self._read():
                    assert not self._buffer, f"the connection ended within a chunk: {self._buffer!r}"
                    answer.body = b"".join(parts)
                    return
            line, _, self._buffer = self._buffer.partition(b"\r\n")
            size = int(line, 16)
            while len(self._buffer) < size + 2:
                assert self._read(), "the connection ended within a chunk"
            parts.append(self._buffer[:size])
            assert self._buffer[size : size + 2] == b"\r\n"
            self._buffer = self._buffer[size + 2 :]
            if size == 0:
                answer.body = b"".join(parts)
                answer.ended = True
                return


def chat_body(model: str = "m", *, stream: bool = True, **fields: Any) -> dict[str, Any]:
    """Return the body of a request for a chat."""
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream, **fields}


def request(body: bytes | dict[str, Any], path: str = CHAT, *, more: str = "", version: str = "1.1") -> bytes:
    """Return the bytes of a POST; ``more`` are further header lines."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/{version}", "host: test", f"content-length: {len(data)}", *more.splitlines()]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + data
