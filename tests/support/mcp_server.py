"""A real MCP server of the official SDK, over stdio or streamable HTTP, whose tools a file names.

``python -m tests.support.mcp_server FILE [--port N]``. FILE is JSON: names of tools with their descriptions. When it
changes, so do the tools, and the server says so; ``__exit__`` among the names ends the server.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import anyio
import uvicorn
from mcp.server.mcpserver import MCPServer
from mcp.server.subscriptions import InMemorySubscriptionBus
from mcp.shared.subscriptions import ToolsListChanged

LOOK_S = 0.02


def weather(city: str) -> str:
    """Tell the weather."""
    return f"sunny in {city}"


class Server:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: set[str] = set()
        self._bus = InMemorySubscriptionBus()
        self._mcp = MCPServer("test", subscriptions=self._bus)
        self.load()

    def load(self) -> bool:
        """Take the tools from the file; return whether they have changed."""
        wanted: dict[str, str] = json.loads(self._path.read_text(encoding="utf-8"))
        if "__exit__" in wanted:
            os._exit(3)
        for name in self._names - set(wanted):
            self._mcp.remove_tool(name)
        for name in set(wanted) - self._names:
            self._mcp.add_tool(weather, name=name, description=wanted[name])
        changed = set(wanted) != self._names
        self._names = set(wanted)
        return changed

    async def watch(self) -> None:
        while True:
            await anyio.sleep(LOOK_S)
            if self.load():
                await self._bus.publish(ToolsListChanged())

    async def run(self, port: int) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.watch)
            if port:
                config = uvicorn.Config(self._mcp.streamable_http_app(), port=port, log_level="warning")
                await uvicorn.Server(config).serve()
            else:
                await self._mcp.run_stdio_async()
            tasks.cancel_scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    anyio.run(Server(args.file).run, args.port)


if __name__ == "__main__":
    main()
