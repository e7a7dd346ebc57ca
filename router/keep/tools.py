"""The tools of all sources, published for the routers.

What a source had last stands when it fails, with its age, also over a restart of the keeper: then what was published
before is taken over until the source has answered. Where tools are selected by nearness their embeddings are asked of
the router, a batch at a time, and published with them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from router.caches import published
from router.caches.published import (
    PublishedError,
    PublishedSource,
    PublishedTool,
    PublishedTools,
    Subscription,
    publish,
)
from router.config import Config
from router.config.caches import published_tools
from router.config.tools import ToolSource
from router.keep.part import Verb
from router.keep.schemas import Tools, make_tools, merge
from router.keep.tool_sources import FileSource, ServerSource, make_source
from router.keep.tool_vectors import ToolVectors

TOGETHER_S: Final = 0.1
"""What sources deliver within it is published at once."""


class ToolKeeper:
    """The part of the keeper that keeps tools."""

    name = "tools"

    def __init__(self, config: Config, run_dir: Path, log: Any) -> None:
        self._config = config.cache.tools
        self._path = published_tools(run_dir)
        self._log = log
        self._followers: list[FileSource | ServerSource] = [
            make_source(source, self._config, self) for source in self._config.sources
        ]
        self._tools: dict[str, Tools] = {}
        self._states: dict[str, PublishedSource] = {}
        self._vectors = ToolVectors(config, log, self._publish_soon) if self._config.select_model else None
        self._published = PublishedTools()
        self._tasks: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._version = 0

    # ------------------------------------------------------------ a part
    @property
    def verbs(self) -> Mapping[str, Verb]:
        """``tools``: every source and tool; ``tools.refresh``: ask all sources again."""
        return {"tools": self._tell, "tools.refresh": self._refresh_verb}

    async def start(self) -> None:
        """Take over what was published, and begin to follow the sources."""
        self._take_over()
        for follower in self._followers:
            self._tasks.append(asyncio.create_task(follower.run(), name=f"tools of {follower.source.name}"))
        if self._vectors is not None:
            self._tasks.append(asyncio.create_task(self._vectors.run(), name="tools' vectors"))

    async def stop(self) -> None:
        """Ask no more, and end the servers that were started; what is published stays."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()

    def refresh(self) -> None:
        """Ask all sources again."""
        for follower in self._followers:
            follower.refresh()

    def status(self) -> dict[str, Any]:
        """Return how many tools there are and which sources fail."""
        bad = [f"{state.name}: {state.error}" for state in self._states.values() if state.state != "ok"]
        refused = [each for state in self._states.values() for each in state.refused]
        problems = bad + [f"refused {each}" for each in refused]
        return {
            "tools": len(self._published.tools),
            "version": self._version,
            "sources": len(self._followers),
            "age_s_max": max((_age_s(state) for state in self._states.values()), default=0.0),
            **({"problem": "; ".join(problems)[:1000]} if problems else {}),
        }

    async def _tell(self, _: Any) -> dict[str, Any]:
        sources = [
            {
                "name": state.name,
                "transport": state.transport,
                "state": state.state,
                "tools": state.tool_count,
                "age_s": round(_age_s(state), 3),
                "error": state.error,
                "refused": state.refused,
            }
            for state in self._published.sources
        ]
        tools = [{"name": tool.name, "bytes": len(tool.body)} for tool in self._published.tools]
        return {"version": self._version, "sources": sources, "tools": tools}

    async def _refresh_verb(self, _: Any) -> dict[str, Any]:
        self.refresh()
        return {}

    # ------------------------------------------------------------ what sources deliver
    def deliver(self, source: ToolSource, functions: list[Any]) -> None:
        """Take all functions that a source has now."""
        tools = make_tools(source, functions, self._config)
        before = self._states.get(source.name)
        self._tools[source.name] = tools
        self._states[source.name] = PublishedSource(
            source.name, self._transport(source), "ok", len(tools.accepted), time.time_ns()
        )
        if before is None or before.state != "ok" or before.tool_count != len(tools.accepted):
            self._log.info("tools of a source", source=source.name, tools=len(tools.accepted))
        self._publish_soon()

    def failed(self, source: ToolSource, reason: str) -> None:
        """Take that a source cannot be asked."""
        before = self._states.get(source.name)
        if before is None:
            before = PublishedSource(source.name, self._transport(source), "failed", 0, 0)
        state = "stale" if before.fetched_wall_ns else "failed"
        if (before.state, before.error) != (state, reason):
            self._log.warning("a source of tools fails", source=source.name, state=state, reason=reason)
        self._states[source.name] = replace(before, state=state, error=reason)
        self._publish_soon()

    def _transport(self, source: ToolSource) -> str:
        return "file" if source.file else "http" if source.url else "stdio"

    # ------------------------------------------------------------ publishing
    def _take_over(self) -> None:
        """Begin with what was published before: a source that is away now had it."""
        subscription = Subscription(self._path, published.TOOLS, PublishedTools)
        try:
            before = subscription.poll()
        except PublishedError as error:
            self._log.warning("tools published before cannot be used", reason=str(error))
            return
        if before is None:
            return
        self._version = subscription.version
        names = {source.name for source in self._config.sources}
        for state in before.sources:
            if state.name in names and state.tool_count:
                own = [tool for tool in before.tools if tool.name.partition(".")[0] == state.name]
                self._tools[state.name] = Tools(own, state.refused)
                self._states[state.name] = replace(state, state="stale", error="not asked yet since the keeper's start")

    def _publish_soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TOGETHER_S, self._publish)

    def _publish(self) -> None:
        self._timer = None
        names = [source.name for source in self._config.sources if source.name in self._states]
        merged = merge([self._tools.get(name, Tools([], [])) for name in names], self._config)
        sources, tools = [], []
        for name, own in zip(names, merged, strict=True):
            before = self._states[name]
            refused = own.refused
            if refused and refused != before.refused:
                self._log.warning("tools are refused", source=name, refused=refused[:20])
            state = self._states[name] = replace(before, tool_count=len(own.accepted), refused=refused[:100])
            sources.append(state)
            tools += [self._with_vector(tool) for tool in own.accepted]
        self._published = PublishedTools(sources, tools, self._config.select_model)
        try:
            self._version = publish(self._path, published.TOOLS, self._published)
        except OSError as error:
            self._log.error("tools cannot be published", path=str(self._path), reason=error.strerror or str(error))
        if self._vectors is not None:
            self._vectors.want(tools)

    def _with_vector(self, tool: PublishedTool) -> PublishedTool:
        return tool if self._vectors is None else replace(tool, vector=self._vectors.of(tool))


def _age_s(state: PublishedSource) -> float:
    return max((time.time_ns() - state.fetched_wall_ns) / 1e9, 0.0) if state.fetched_wall_ns else 0.0
