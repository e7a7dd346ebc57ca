"""A client of the mock host that sees bytes and ends of connections, which ready-made clients hide."""

from __future__ import annotations

import json
import select
import socket
from types import TracebackType
from typing import Self


class StreamClient:
    """One connection, one request at a time; a context manager that closes it."""

    def __init__(self, address: str) -> None:
        if address.startswith("unix:"):
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(address.removeprefix("unix:"))
        else:
            name, _, port = address.rpartition(":")
            self._socket = socket.create_connection((name, int(port)))
        self._socket.settimeout(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, directives: str, *, stream: bool = True) -> None:
        """Send a chat request whose prompt holds ``[[mock directives]]``."""
        prompt = f"hello [[mock {directives}]] and so on"
        body = json.dumps({"model": "m", "stream": stream, "messages": [{"role": "user", "content": prompt}]})
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: mock\r\ncontent-length: {len(body)}\r\n\r\n"
        self._socket.sendall((head + body).encode())

    def read_until(self, ending: bytes) -> bytes:
        """Read up to and with ``ending``; fail when the connection ends before it."""
        received = b""
        while ending not in received:
            part = self._socket.recv(65536)
            assert part, f"the connection ended before {ending!r}: {received[-200:]!r}"
            received += part
        return received

    def read_stream(self) -> bytes:
        """Read one streamed answer to the end of its last chunk."""
        return self.read_until(b"data: [DONE]\n\n\r\n0\r\n\r\n")

    def has_bytes(self) -> bool:
        """Whether a byte, or the end, is there to be read now."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def is_at_end(self) -> bool:
        """Wait for the next byte or the end; whether it is the end."""
        return self._socket.recv(1) == b""

    def close(self) -> None:
        self._socket.close()
