"""Embeddings of tools, asked of the router: a batch at a time, again after a while where it cannot answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import aiohttp
import msgspec

from router.caches.published import PublishedTool
from router.caches.selection import packed
from router.config import Config, split_address
from router.config.caches import keeper_key
from router.keys.environment import bearer

_BATCH: Final = 32
_RETRY_S: Final = 5.0
_TIMEOUT_S: Final = 60.0
_TEXT_CHARS_MAX: Final = 1000
"""Of name and description: what embedding models take in one go."""


class ToolVectors:
    """Vectors of the tools that are published now; ``on_new`` is called when there are new ones."""

    def __init__(self, config: Config, log: Any, on_new: Callable[[], None]) -> None:
        self._model = config.cache.tools.select_model
        self._address = split_address(config.listen.http[0], "listen.http[0]")
        self._key = keeper_key(config.cache)
        self._log = log
        self._on_new = on_new
        self._vectors: dict[str, bytes] = {}
        self._wanted: list[str] = []
        self._wake = asyncio.Event()

    def of(self, tool: PublishedTool) -> bytes:
        """Return the vector of a tool, empty while there is none."""
        return self._vectors.get(text_of(tool), b"")

    def want(self, tools: Sequence[PublishedTool]) -> None:
        """Have the vectors of these tools, and of no others."""
        texts = dict.fromkeys(text_of(tool) for tool in tools)
        self._vectors = {text: vector for text, vector in self._vectors.items() if text in texts}
        self._wanted = [text for text in texts if text not in self._vectors]
        if self._wanted:
            self._wake.set()

    async def run(self) -> None:
        """Ask for what is wanted."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            failed = ""
            while self._wanted and not failed:
                batch = self._wanted[:_BATCH]
                try:
                    vectors = await self._ask(batch)
                except (OSError, aiohttp.ClientError, msgspec.MsgspecError, TimeoutError, ValueError) as error:
                    failed = str(error) or type(error).__name__
                    break
                self._vectors.update(zip(batch, vectors, strict=True))
                self._wanted = [text for text in self._wanted if text not in self._vectors]
                if not self._wanted:
                    self._on_new()
            if failed:
                self._log.warning("tools have no vectors yet", model=self._model, reason=failed[:300])
                await asyncio.sleep(_RETRY_S)
                self._wake.set()

    async def _ask(self, texts: list[str]) -> list[bytes]:
        body = {"model": self._model, "input": texts, "encoding_format": "float"}
        if isinstance(self._address, str):
            connector: aiohttp.BaseConnector = aiohttp.UnixConnector(self._address)
            base = "http://localhost"
        else:
            host, port = self._address
            connector = aiohttp.TCPConnector()
            host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - where it listens, not we
            base = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        own = {"authorization": f"Bearer {self._key}"} if self._key else bearer()
        headers = {"x-ringrouter-tag-workload-class": "tools", **own}
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session,
            session.post(f"{base}/v1/embeddings", json=body) as response,
        ):
            answer = await response.read()
            if response.status != 200:
                raise ValueError(f"{response.status}: {answer[:200].decode('utf-8', 'replace')}")
        data = msgspec.json.decode(answer, type=_Answer).data
        if len(data) != len(texts):
            raise ValueError(f"{len(data)} vectors for {len(texts)} texts")
        return [packed(each.embedding) for each in sorted(data, key=lambda each: each.index)]


class _Datum(msgspec.Struct):
    embedding: list[float]
    index: int = 0


class _Answer(msgspec.Struct):
    data: list[_Datum]


def text_of(tool: PublishedTool) -> str:
    """Return what of a tool is compared with a question: its name in words, and its description."""
    function = msgspec.json.decode(tool.body)["function"]
    name = tool.name.replace(".", " ").replace("_", " ").replace("-", " ")
    return f"{name}: {function.get('description', '')}"[:_TEXT_CHARS_MAX]
