"""The part of the keeper that answers what is nearest, and notices new versions of tables."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from router.config import Config, tables_dir
from router.keep.part import KeepError, Verb
from router.keep.tables import Table, TableError, table_names

LOOK_S: Final = 1.0
TABLES_MAX: Final = 256
_AT_ONCE: Final = 2
"""Products at once: each is as fast as memory is, so more would only share it."""


class Nearest:
    """Owns the tables that are mapped."""

    name = "nearest"

    def __init__(self, config: Config, log: Any) -> None:
        self._dir: Path = tables_dir(config)
        self._log = log
        self._tables: dict[str, Table] = {}
        self._seen: dict[str, str] = {}
        """The version of each that was last looked at, good or not."""
        self._problems: dict[str, str] = {}
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._task: asyncio.Task[None] | None = None
        self._asked_count = 0
        self.verbs: Mapping[str, Verb] = {"nearest": self._answer}

    async def start(self) -> None:
        """Map what is there, and look for more once a second."""
        await self._look()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def status(self) -> dict[str, Any]:
        """Return which tables there are."""
        tables = {
            name: {
                "version": m.version,
                "model": m.model,
                "revision": m.revision,
                "dimensions": m.dimensions,
                "count": m.count,
                "made_s": m.made_s,
            }
            for name, table in self._tables.items()
            for m in (table.manifest,)
        }
        problem = {"problem": "; ".join(self._problems.values())} if self._problems else {}
        return {"dir": str(self._dir), "tables": tables, "asked": self._asked_count, **problem}

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self._look()
            except Exception as error:  # whatever is wrong with the directory, the tables that are mapped stay
                self._log.error("the tables could not be looked at", reason=repr(error)[:500])

    async def _look(self) -> None:
        """Map new versions, one after another; a table that is no good leaves the one before in use."""
        found = dict(list(table_names(self._dir))[:TABLES_MAX])
        for name in [name for name in self._seen if name not in found]:
            del self._seen[name]
            self._tables.pop(name, None)
            self._problems.pop(name, None)
        for name, version in found.items():
            if self._seen.get(name) == version:
                continue
            self._seen[name] = version
            try:
                table = await asyncio.to_thread(Table, self._dir / name / version)
            except (TableError, OSError, ValueError) as error:
                self._problems[name] = f"table {name}: {error}"
                self._log.error("a table cannot be used", table=name, version=version, reason=str(error))
                continue
            self._problems.pop(name, None)
            self._tables[name] = table
            self._log.info("table", table=name, version=version, count=table.manifest.count)

    async def _answer(self, payload: Any) -> list[Any]:
        """Answer ``[table, k, vector, with metadata]`` with ``[error, body]``, one of them empty."""
        try:
            name, k, raw, with_metadata = payload
            vector = np.frombuffer(raw, dtype="<f4")
        except (TypeError, ValueError) as error:
            raise KeepError(f"nearest takes a table, k, a vector and a flag: {error}") from None
        table = self._tables.get(name)
        if table is None:
            return [f"no table is called {name!r} any more", b""]
        dimensions = table.manifest.dimensions
        if len(vector) != dimensions:
            return [f"vector has {len(vector)} numbers, table {name!r} has {dimensions}", b""]
        self._asked_count += 1
        async with self._room:
            body = await asyncio.to_thread(_body, table, vector, int(k), with_metadata=bool(with_metadata))
        return ["", body]


def _body(table: Table, vector: Any, k: int, *, with_metadata: bool) -> bytes:
    """Return the JSON of an answer."""
    manifest = table.manifest
    data = []
    for index, (row, score) in enumerate(table.nearest(vector, k)):
        item = msgspec.json.decode(table.item(row))
        found = {"object": "nearest", "index": index, "id": item["id"], "score": score}
        if with_metadata and "metadata" in item:
            found["metadata"] = item["metadata"]
        data.append(found)
    whole = {
        "object": "list",
        "data": data,
        "table": manifest.name,
        "version": manifest.version,
        "model": manifest.model,
    }
    return msgspec.json.encode(whole)
