"""A relay in front of a real host that holds answers back: a host that has become slow, and recovers."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Self

WAIT_S = 60.0


class DelayingRelay:
    """Listens on a unix socket and passes everything on to another; a context manager.

    Each answer to a POST begins ``delay_s`` after it was asked for, or later; probes are not held back.
    """

    def __init__(self, listen_at: Path, pass_to: Path) -> None:
        self.url = f"unix://{listen_at}"
        self.delay_s = 0.0
        self._listen_at = listen_at
        self._pass_to = pass_to
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(WAIT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, str(self._listen_at))

    async def _stop(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        host_reader, host_writer = await asyncio.open_unix_connection(str(self._pass_to))
        held_until_s = [0.0]
        directions = [
            asyncio.create_task(self._ask(reader, host_writer, held_until_s)),
            asyncio.create_task(self._answer(host_reader, writer, held_until_s)),
        ]
        try:  # a host whose client has left must notice, and a client whose host has
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            host_writer.close()
            writer.close()
            self._tasks.discard(task)

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, held_until_s: list[float]) -> None:
        while data := await reader.read(1 << 16):
            if data.startswith(b"POST "):
                held_until_s[0] = self._loop.time() + self.delay_s
            writer.write(data)
            await writer.drain()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, held_until_s: list[float]
    ) -> None:
        while data := await reader.read(1 << 16):
            await asyncio.sleep(max(0.0, held_until_s[0] - self._loop.time()))
            writer.write(data)
            await writer.drain()
