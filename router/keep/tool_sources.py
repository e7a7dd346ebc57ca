"""Where tools come from: files that are read when they change, and MCP servers that are asked.

Each source is a task of its own that delivers a list of functions whenever it has a new one, or says why it has none.
A server (https://modelcontextprotocol.io) is asked for its tools at the start, when it says that they have changed
(``subscriptions/listen`` or the notification ``list_changed``, as its version of the protocol has it), when they are
older than ``ttl_s``, and when the keeper is told to. One that fails is started or connected anew after a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, Protocol

import httpx2
import mcp_types
from mcp import Client
from mcp.client.session import IncomingMessage
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import ListenNotSupportedError
from mcp.shared.exceptions import MCPError

from router.config.tools import ToolsCache, ToolSource
from router.keep.schemas import SchemaError, functions_in

FILE_LOOK_S: Final = 1.0
BETWEEN_S: Final = 1.0
"""Between two questions to a server, however often it says that its tools have changed."""
RETRY_S_MIN: Final = 1.0
RETRY_S_MAX: Final = 60.0
_PAGES_MAX: Final = 100
_FILE_BYTES_MAX: Final = 64 << 20


class Sink(Protocol):
    """What takes the functions of a source."""

    def deliver(self, source: ToolSource, functions: list[Any]) -> None:
        """Take all functions that a source has now, as OpenAI has them."""

    def failed(self, source: ToolSource, reason: str) -> None:
        """Take that a source cannot be asked; what it had before stands."""


def make_source(source: ToolSource, config: ToolsCache, sink: Sink) -> FileSource | ServerSource:
    """Return what follows a source."""
    return FileSource(source, sink) if source.file else ServerSource(source, config, sink)


class FileSource:
    """A file of function schemas."""

    transport = "file"

    def __init__(self, source: ToolSource, sink: Sink) -> None:
        self.source = source
        self._sink = sink
        self._seen: tuple[int, int, int] | str | None = None

    def refresh(self) -> None:
        """Read it anew at the next look."""
        self._seen = None

    async def run(self) -> None:
        """Look once a second whether it has changed."""
        while True:
            self._look()
            await asyncio.sleep(FILE_LOOK_S)

    def _look(self) -> None:
        path = Path(self.source.file)
        try:
            status = path.stat()
            seen: tuple[int, int, int] | str = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen == self._seen:
                return
            if status.st_size > _FILE_BYTES_MAX:
                raise SchemaError(f"it has {status.st_size} bytes, at most {_FILE_BYTES_MAX} are allowed")
            functions = functions_in(path.read_bytes(), is_toml=path.suffix == ".toml")
        except (OSError, SchemaError) as error:
            seen = (error.strerror if isinstance(error, OSError) else None) or str(error)
            if seen != self._seen:
                self._sink.failed(self.source, f"{path}: {seen}")
            self._seen = seen
            return
        self._seen = seen
        self._sink.deliver(self.source, functions)


class ServerSource:
    """An MCP server, started as a process (stdio) or connected to (streamable HTTP)."""

    def __init__(self, source: ToolSource, config: ToolsCache, sink: Sink) -> None:
        self.source = source
        self.transport = "http" if source.url else "stdio"
        self._sink = sink
        self._timeout_s = config.timeout_s
        self._ttl_s = source.ttl_s or config.ttl_s
        self._tools_max = config.tools
        self._changed = asyncio.Event()

    def refresh(self) -> None:
        """Ask the server again, soon; one that is being waited for, at once."""
        self._changed.set()

    async def run(self) -> None:
        """Ask and ask again, through every failure."""
        delay_s = RETRY_S_MIN
        while True:
            begun_s = asyncio.get_running_loop().time()
            self._changed.clear()
            try:
                async with AsyncExitStack() as stack:
                    async with asyncio.timeout(self._timeout_s):
                        client = await stack.enter_async_context(await self._client(stack))
                    await self._follow(client)
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                if _is_cancelled(error):
                    raise
                self._sink.failed(self.source, _reason(error, self._timeout_s))
            if asyncio.get_running_loop().time() - begun_s > RETRY_S_MAX:
                delay_s = RETRY_S_MIN  # it had been well
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), delay_s)
            delay_s = min(2 * delay_s, RETRY_S_MAX)

    async def _client(self, stack: AsyncExitStack) -> Client:
        """Return a client that is not connected yet; ``stack`` closes what it uses."""
        source = self.source
        server: Any
        if source.url:
            headers = {}
            if source.token_env:
                headers["authorization"] = f"Bearer {os.environ.get(source.token_env, '')}"
            # A stream of notifications may be silent for ever; each request has read_timeout_seconds.
            http = httpx2.AsyncClient(headers=headers, timeout=httpx2.Timeout(self._timeout_s, read=None))
            server = streamable_http_client(source.url, http_client=await stack.enter_async_context(http))
        else:
            program, *arguments = source.command
            server = StdioServerParameters(command=program, args=arguments, env=dict(source.env))
        return Client(server, read_timeout_seconds=self._timeout_s, message_handler=self._heard, cache=None)

    async def _heard(self, message: IncomingMessage) -> None:
        """A server of an older version says of itself that its tools have changed."""
        if isinstance(message, mcp_types.ToolListChangedNotification):
            self._changed.set()

    async def _follow(self, client: Client) -> None:
        """Deliver the tools whenever they may have changed; raises when the connection is lost."""
        listening = asyncio.create_task(self._listen(client))
        try:
            while True:
                self._changed.clear()
                self._sink.deliver(self.source, await self._fetch(client))
                await asyncio.sleep(min(BETWEEN_S, self._ttl_s))
                changed = asyncio.create_task(self._changed.wait())
                try:
                    await asyncio.wait({changed, listening}, timeout=self._ttl_s, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
                if listening.done():
                    listening.result()  # raises what ended it
        finally:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await listening

    async def _listen(self, client: Client) -> None:
        """Hear of changes, for as long as the connection lasts."""
        try:
            async with client.listen(tools_list_changed=True) as events:
                async for _ in events:
                    self._changed.set()
        except (ListenNotSupportedError, MCPError):
            await asyncio.Event().wait()  # its notifications come by themselves, or not at all: then ttl_s tells
        raise ConnectionError("the server has ended the subscription")

    async def _fetch(self, client: Client) -> list[Any]:
        functions: list[Any] = []
        cursor: str | None = None
        for _ in range(_PAGES_MAX):
            page = await client.list_tools(cursor=cursor, cache_mode="refresh")
            functions += [_function(tool) for tool in page.tools]
            cursor = page.next_cursor
            if not cursor or len(functions) > self._tools_max:
                break
        return functions


def _function(tool: mcp_types.Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    function["parameters"] = tool.input_schema
    return function


def _is_cancelled(error: BaseException) -> bool:
    task = asyncio.current_task()
    return not isinstance(error, Exception) and task is not None and task.cancelling() > 0


def _reason(error: BaseException, timeout_s: float) -> str:
    """Return why a server cannot be asked, in one line without what it said of its own."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:g} s (cache.tools.timeout_s)"
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
