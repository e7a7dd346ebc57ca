"""A receiver of alerts over real sockets that takes, refuses, breaks or never answers, as a test says, and remembers
all it was told.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

WAIT_S = 60.0

Answer = int | str
"""A status; ``hang``: no byte and no end; ``close``: the connection ends after the request was read."""


class Told(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: Any


class AlertReceiver:
    """Answers each request with the next of ``answers``, and 200 when there are none left."""

    def __init__(self, *answers: Answer, port: int = 0, says: str = "") -> None:
        self.answers = deque(answers)
        self.told: list[Told] = []
        self._says = says
        self._port = port
        self._came = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def until(self, count: int) -> list[Told]:
        """Return all it was told once that are ``count`` requests."""
        async with self._came:
            await asyncio.wait_for(self._came.wait_for(lambda: len(self.told) >= count), WAIT_S)
        return self.told

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while await self._serve(reader, writer):
                pass
        writer.close()
        self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        answer = self.answers.popleft() if self.answers else 200
        self.told.append(Told(method, path, headers, json.loads(body)))
        async with self._came:
            self._came.notify_all()
        if answer == "hang":
            await asyncio.Event().wait()
        if answer == "close":
            return False
        said = self._says.encode()
        where = "location: /elsewhere\r\n" if str(answer).startswith("3") else ""
        writer.write(f"HTTP/1.1 {answer} x\r\n{where}content-length: {len(said)}\r\n\r\n".encode() + said)
        await writer.drain()
        return True


class WebhookThread:
    """A webhook on a thread of its own, for tests of processes; ``take`` false: each answer is 503."""

    def __init__(self, port: int = 0) -> None:
        self.take = True
        self.told: list[dict[str, Any]] = []
        self.refused_count = 0
        self._answering = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                with receiver._answering:
                    body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                    if receiver.take:
                        receiver.told.append(body)
                    else:
                        receiver.refused_count += 1
                    self.send_response(200 if receiver.take else 503)
                    self.send_header("content-length", "0")
                    self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/hook"

    def take_again(self) -> None:
        """Take what comes from now on: what came before is refused first, or it would be taken from a dead observer."""
        with self._answering:
            self.take = True

    def names(self) -> list[tuple[str, str]]:
        """Return name and status of all alerts it was told of, without those of tests."""
        found = [(each["commonLabels"]["alertname"], each["status"]) for each in list(self.told)]
        return [each for each in found if each[0] != "RingrouterTest"]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
