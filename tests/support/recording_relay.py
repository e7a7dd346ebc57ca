"""A relay in front of a host that keeps the bytes of both directions: what the host really said."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any, Self


class RecordingRelay:
    """Listens on a unix socket and passes everything on to another; a context manager."""

    def __init__(self, listen_at: Path, pass_to: Path) -> None:
        self.url = f"unix://{listen_at}"
        self._listen_at = listen_at
        self._pass_to = pass_to
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._streams: list[tuple[bytearray, bytearray]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def exchanges(self, path: str) -> list[tuple[Any, Any]]:
        """Return the bodies of all requests to a path, each with that of its answer."""
        found = []
        for sent, got in self._streams:
            requests, answers = _messages(bytes(sent)), _messages(bytes(got))
            for (line, request), (_, answer) in zip(requests, answers, strict=False):
                if line.split(" ")[1] == path:
                    found.append((json.loads(request), json.loads(answer)))
        return found

    async def _listen(self) -> None:
        await asyncio.start_unix_server(self._serve, str(self._listen_at))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent, got = bytearray(), bytearray()
        self._streams.append((sent, got))
        host_reader, host_writer = await asyncio.open_unix_connection(str(self._pass_to))
        await asyncio.gather(_copy(reader, host_writer, sent), _copy(host_reader, writer, got), return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
    while data := await reader.read(1 << 16):
        kept += data
        writer.write(data)
        await writer.drain()
    writer.close()


def _messages(data: bytes) -> list[tuple[str, bytes]]:
    """Return the first line and the body of each message."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
        length = int(headers.get("content-length", "0"))
        found.append((lines[0], data[:length]))
        data = data[length:]
    return found
