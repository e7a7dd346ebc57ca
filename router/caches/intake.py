"""What stands in front of admission where caches are configured: tools are filled in, kept answers are given.

The loop hands each request to :meth:`Intake.take` in place of its own admission (:attr:`router.loop.Loop.take`);
without any of this configured the module is not loaded and nothing of it is on the path.
"""

from __future__ import annotations

import asyncio
from time import monotonic_ns, time_ns
from typing import TYPE_CHECKING, Any, Final

from router.caches import published
from router.caches.published import PublishedTools, Subscription
from router.caches.recording import Recording
from router.caches.replay import replay
from router.caches.responses import Responses, key_of
from router.caches.tool_shapes import Reshape, reshape_of
from router.caches.tools import MARK, Spliced, ToolRegistry, replace_part
from router.config.caches import published_tools
from router.dialects import OPENAI, Dialect
from router.errors import ErrorKind, RequestError
from router.telemetry.counters import Counter
from router.telemetry.decision import note
from router.telemetry.records import CacheUse, Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from router.caches.selecting import Selecting
    from router.config import Config
    from router.loop import Loop
    from router.request import Request

_EXPIRE_MAX: Final = 256
"""Kept answers whose age is looked at in one second."""
_NS: Final = 1_000_000_000
_MS_NS: Final = 1_000_000
_CHAT, _COMPLETION = Endpoint.CHAT, Endpoint.COMPLETION
_ASK: Final = b"x-ringrouter-cache"
_FEATURES: Final = (b"x-ringrouter-tag-feature-name", b"x-ringrouter-tag-feature_name")


class Intake:
    """Owns the tools and the kept answers of a router."""

    def __init__(self, loop: Loop, config: Config, run_dir: Path, log: Any) -> None:
        cache = config.cache
        self.registry: ToolRegistry | None = None
        """The tools as chats have them, ``None`` while none are published."""
        self._registries: dict[Reshape, ToolRegistry] = {}
        """In the shapes of other APIs, once somebody has asked for one."""
        self.responses: Responses | None = None
        self._loop = loop
        self._counters = loop.counters
        self._log = log
        self._admit: Callable[[Request, int], None] = loop.take
        self._config = cache
        self._names_tools = bool(cache.tools.sources)
        self._subscription = Subscription(published_tools(run_dir), published.TOOLS, PublishedTools)
        self._reading: asyncio.Future[PublishedTools | None] | None = None
        self._selecting: Selecting | None = None
        if cache.tools.select_model:
            from router.caches.selecting import Selecting  # noqa: PLC0415 - only who uses it loads it

            self._selecting = Selecting(loop, cache.tools, self._ready)
        if cache.responses.enabled:
            self.responses = Responses(cache.responses.total_bytes, int(cache.responses.ttl_s * _NS))
        self._features = frozenset(name.encode() for name in cache.responses.features)
        loop.take = self.take

    # ------------------------------------------------------------ life
    async def start(self) -> None:
        """Take what is published, and look for what will be, once a second."""
        self._look()
        if self._reading is not None:
            await asyncio.wait((self._reading,))
        self._loop.seconds.append(self._second)

    def stop(self) -> None:
        """Look no more."""
        self._loop.seconds.remove(self._second)

    def _second(self, _: int) -> None:
        self._look()

    def _look(self) -> None:
        if self._names_tools:
            if self._reading is None and self._subscription.is_changed():
                self._reading = asyncio.get_running_loop().run_in_executor(None, self._subscription.poll)
                self._reading.add_done_callback(self._read)
            self._show_tools()
        if self.responses is not None:
            self.responses.expire(monotonic_ns(), _EXPIRE_MAX)
            self._show_responses(self.responses)

    def _read(self, reading: asyncio.Future[PublishedTools | None]) -> None:
        """Take what a thread has read: megabytes with vectors take milliseconds, which no token should wait."""
        self._reading = None
        if reading.cancelled():
            return
        error = reading.exception()
        if error is not None:
            self._log.error("published tools cannot be used, those before stay", reason=str(error))
            return
        tools = reading.result()
        if tools is not None:
            self.registry = ToolRegistry(tools, self._config.tools.toolsets)
            self._registries.clear()
            self._log.info("tools", version=self._subscription.version, tools=len(tools.tools))
            self._show_tools()

    def _show_tools(self) -> None:
        registry = self.registry
        if registry is None:
            return
        put = self._counters.set
        sources = registry.published.sources
        put(Counter.TOOLS, len(registry.tools))
        put(Counter.TOOLS_BYTES, sum(len(tool.body) for tool in registry.published.tools))
        put(Counter.TOOL_SOURCES_STALE, sum(source.state != "ok" for source in sources))
        fetched = [source.fetched_wall_ns for source in sources if source.tool_count]
        put(Counter.TOOLS_AGE_S_MAX, max((time_ns() - min(fetched)) // _NS, 0) if fetched else 0)

    def _show_responses(self, responses: Responses) -> None:
        put = self._counters.set
        oldest_ns = responses.oldest_ns()
        put(Counter.RESPONSES, responses.count)
        put(Counter.RESPONSES_BYTES, responses.used_bytes)
        put(Counter.RESPONSES_EVICTED, responses.evicted_count)
        put(Counter.RESPONSES_EXPIRED, responses.expired_count)
        put(Counter.RESPONSES_AGE_S_MAX, (monotonic_ns() - oldest_ns) // _NS if oldest_ns else 0)

    # ------------------------------------------------------------ a request
    def take(self, request: Request, now: int) -> None:
        """Take a request off the ring: fill its tools in, answer it from the cache, or let it be admitted."""
        if self._names_tools and MARK in (tools := bytes(getattr(request.fields, "tools", b""))):
            try:
                spliced = self._spliced(tools, request.dialect)
            except RequestError as error:
                self._refuse(request, error, now)
                return
            if spliced is not None and spliced.nearest and self._selecting is not None:
                self._selecting.begin(request, spliced)
                return
            if spliced is not None:
                self._fill(request, spliced)
        self._answer(request, now)

    def _ready(self, request: Request, spliced: Spliced) -> None:
        """Go on with a request whose tools have been selected; the time it was held counts as time in the queue."""
        self._fill(request, spliced)
        self._answer(request, monotonic_ns())

    def _spliced(self, tools: bytes, dialect: Dialect) -> Spliced | None:
        """Return what a request's tools become; raises :class:`RequestError`."""
        registry = self.registry
        if registry is None:
            text = "the tools are not known yet: the keeper (ringrouter keep) has published none"
            raise RequestError(ErrorKind.NO_HOST, text, "tools")
        if dialect is not OPENAI and (reshape := reshape_of(dialect)) is not None:
            registry = self._registries.get(reshape) or self._reshaped(registry, reshape)
        spliced = registry.splice(tools)
        if spliced is not None and spliced.nearest and self._selecting is None:
            text = "tools: nearest needs cache.tools.select_model in the router's configuration"
            raise RequestError(ErrorKind.BAD_REQUEST, text, "tools")
        return spliced

    def _reshaped(self, registry: ToolRegistry, reshape: Reshape) -> ToolRegistry:
        made = self._registries[reshape] = ToolRegistry(registry.published, self._config.tools.toolsets, reshape)
        return made

    def _fill(self, request: Request, spliced: Spliced) -> None:
        request.body = replace_part(request.body, request.fields.tools, "tools", spliced.array)
        note(request, tool_count=spliced.tool_count, tool_bytes=spliced.tool_bytes)
        self._counters.add(Counter.TOOLS_FILLED_IN, spliced.tool_count)

    def _refuse(self, request: Request, error: RequestError, now: int) -> None:
        self._counters.add(Counter.TOOLS_REFUSED)
        self._loop.fail(request, error.kind, error.message, now)

    # ------------------------------------------------------------ kept answers
    def _answer(self, request: Request, now: int) -> None:
        """Give a kept answer, or have the request admitted and what it is answered kept."""
        responses = self.responses
        if responses is None or not self._is_asked(request):
            self._admit(request, now)
            return
        account = request.terms.account
        key = key_of(
            request.body, request.model.name, request.endpoint, request.headers,
            streams=request.stream, owner=account.name if account is not None else "",
        )  # fmt: skip
        answer = responses.get(key, now) if key is not None else None
        if answer is not None:
            self._counters.add(Counter.RESPONSES_HITS)
            saved_ns = replay(self._loop, request, answer, now)
            self._counters.add(Counter.RESPONSES_SAVED_MS, saved_ns // _MS_NS)
            return
        self._counters.add(Counter.RESPONSES_MISSES)
        note(request, cache=CacheUse.MISS, cache_misses=1)
        if key is not None:
            request.egress = Recording(  # type: ignore[assignment]  # its flags follow those of the egress behind
                request.egress, responses, key, self._config.responses.answer_bytes
            )
        self._admit(request, now)

    def _is_asked(self, request: Request) -> bool:
        """Whether a request may be answered from the cache: it says so, is short enough, and always the same."""
        if request.endpoint not in {_CHAT, _COMPLETION} or len(request.body) > self._config.responses.body_bytes:
            return False
        asked = request.headers.get(_ASK, b"")
        if asked != b"on" and (asked or not self._features or not self._is_of_feature(request)):
            return False
        return bool(request.fields.temperature == 0 and request.fields.temperature is not None)

    def _is_of_feature(self, request: Request) -> bool:
        headers, metadata = request.headers, request.fields.metadata
        if metadata and isinstance(name := metadata.get("feature_name"), str) and name.encode() in self._features:
            return True
        return any(headers.get(name, b"") in self._features for name in _FEATURES)
