"""The part of the keeper that writes the store of vectors: what routers send, and what `ringrouter cache` asks.

Vectors come off the rings every 50 ms (:data:`TURN_S`) and go into one commit, in a thread; while it runs, the next
gather in the rings. At the start a store is looked through in a process of its own (:mod:`router.keep.check`); one that
is damaged, or another program's, is set aside under another name, and a new one is begun.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import lmdb

from router.caches import entries, keys, published
from router.caches.outbox import OP_PUT, OP_TOUCH
from router.caches.reader import PUBLISHED_NAME, STORE, PublishedStore
from router.config import Config, cache_dir
from router.keep import check
from router.keep.inbox import Inbox
from router.keep.part import KeepError, Verb
from router.keep.store import Put, Store, StoreError, Usage, Written

TURN_S: Final = 0.05
"""Between two looks at the rings; at most so much is written at once that half of a ring stays free."""
STORE_NAME: Final = "embeddings"
_HAS_MAX: Final = 65_536
"""Keys of one question."""
_READERS_EVERY_S: Final = 60.0
_NOTHING: Final = Usage(0, 0, 0, 0, 0, 0)


class EmbeddingKeeper:
    """Owns the store."""

    name = "embeddings"

    def __init__(self, config: Config, run_dir: Path, log: Any) -> None:
        self._path = cache_dir(config) / STORE_NAME
        self._store_bytes = config.cache.embeddings.store_bytes
        self._published = run_dir / PUBLISHED_NAME
        self._inbox = Inbox(run_dir, log)
        self._log = log
        self._store: Store | None = None
        self._lock = asyncio.Lock()
        """Whoever writes has it: LMDB has one writer, and so has the store's own state."""
        self._task: asyncio.Task[None] | None = None
        self._usage = _NOTHING
        self._set_aside = ""
        self._failure = ""
        """Why the last turn wrote nothing."""
        self._counts = {"written": 0, "touched": 0, "evicted": 0, "dropped": 0, "damaged": 0}
        self.on_change: Callable[[], None] = lambda: None
        """Called when routers should be told at once how it does."""
        self._stopping = asyncio.Event()
        self._readers_s = time.monotonic()
        self.verbs: Mapping[str, Verb] = {
            "cache.has": self._has,
            "cache.put": self._put,
            "cache.get": self._get,
            "cache.purge": self._purge,
            "cache.spaces": self._spaces,
            "cache.verify": self._verify,
        }

    # ------------------------------------------------------------ life
    async def start(self) -> None:
        """Open the store, or a new one in the place of one that is no good, and tell routers where it is."""
        try:
            problem = await asyncio.to_thread(check.problem_of, self._path, self._store_bytes)
        except check.UncheckedError as error:
            raise KeepError(f"the store of vectors: {error}") from None
        if problem:
            self._put_aside(problem)
        try:
            self._store = Store(self._path, self._store_bytes)
        except (StoreError, lmdb.Error, OSError) as error:
            raise KeepError(f"the store of vectors in {self._path} cannot be opened: {error}") from None
        self._usage = self._store.usage()
        self._publish(self._store)
        self._log.info("vectors", store=str(self._path), entries=self._usage.entry_count)
        self._task = asyncio.create_task(self._run())

    def _put_aside(self, problem: str) -> None:
        when = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        try:
            aside = check.set_aside(self._path, when)
        except OSError as error:
            raise KeepError(
                f"the store of vectors in {self._path} is no good ({problem}) and cannot be set aside: {error.strerror}"
            ) from None
        self._set_aside = f"{aside}: {problem}"
        self._log.warning(
            "the store of vectors was set aside, and a new one is begun", store=str(self._path), now=str(aside),
            reason=problem,
        )  # fmt: skip

    def _publish(self, store: Store) -> None:
        published.publish(self._published, STORE, PublishedStore(str(store.path), store.inode, store.map_bytes))

    async def stop(self) -> None:
        """Write what is still in the rings, and close the store."""
        self._stopping.set()
        if self._task is not None:
            await self._task
        if self._store is not None:
            await self._turn()
            self._store.close()
        self._inbox.close()

    def status(self) -> dict[str, Any]:
        """Return how full the store is, and what was done to it since the start."""
        usage = self._usage
        age_s = max(0, int(time.time()) - usage.oldest_made_s) if usage.oldest_made_s else 0
        problem = {"problem": f"a store was set aside: {self._set_aside}"} if self._set_aside else {}
        return {
            "path": str(self._path),
            **usage.facts(),
            "oldest_age_s": age_s,
            "rings": self._inbox.generations,
            "purges": [list(purge) for purge in self._store.purges] if self._store is not None else [],
            **self._counts,
            **problem,
        }

    # ------------------------------------------------------------ the rings
    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                await self._turn()
            except Exception as error:  # a full disk, a damaged ring: vectors are lost, the next turn comes
                self._counts["dropped"] += 1
                self._note_failure(str(error) or repr(error))
            else:
                self._failure = ""
            try:
                await asyncio.wait_for(self._stopping.wait(), TURN_S)
            except TimeoutError:
                continue

    def _note_failure(self, reason: str) -> None:
        """Log why nothing is written, once for each reason: the next turn comes at once."""
        if reason != self._failure:
            self._log.error("vectors could not be written", reason=reason)
        self._failure = reason

    async def _turn(self) -> None:
        """Write what has come by the rings."""
        puts: list[Put] = []
        touches: list[bytes] = []

        def take(op: int, record: bytes) -> None:
            if op == OP_TOUCH and len(record) == keys.KEY_BYTES:
                touches.append(record)
            elif op == OP_PUT and (put := _read_put(record)) is not None:
                puts.append(put)
            else:
                self._counts["damaged"] += 1

        self._inbox.poll(take)
        if puts or touches:
            store = self._open_store()
            late = [put for put in puts if store.is_purged(put)]
            self._counts["dropped"] += len(late)
            await self._write([put for put in puts if put not in late] if late else puts, touches)
        if self._store is not None and time.monotonic() - self._readers_s >= _READERS_EVERY_S:
            self._readers_s = time.monotonic()
            self._store.clear_readers()

    async def _write(self, puts: list[Put], touches: list[bytes]) -> Written:
        store = self._open_store()
        async with self._lock:
            done = await asyncio.to_thread(store.write, puts, touches)
            self._usage = await asyncio.to_thread(store.usage)
        self._counts["written"] += done.put_count
        self._counts["touched"] += done.touched_count
        self._counts["evicted"] += done.evicted_count
        self._counts["dropped"] += done.dropped_count
        return done

    def _open_store(self) -> Store:
        if self._store is None:
            raise KeepError("the store of vectors is not open")
        return self._store

    # ------------------------------------------------------------ questions
    async def _has(self, payload: Any) -> list[bool]:
        """Tell of each key whether it has an entry."""
        asked = _keys(payload)
        store = self._open_store()
        return await asyncio.to_thread(lambda: [store.has(key) for key in asked])

    async def _put(self, payload: Any) -> dict[str, int]:
        """Write records as the rings have them; what is said to be written is on the disk."""
        if not isinstance(payload, list) or len(payload) > _HAS_MAX:
            raise KeepError(f"cache.put takes a list of at most {_HAS_MAX} records")
        puts = [_read_put(record) if isinstance(record, bytes) else None for record in payload]
        good = [put for put in puts if put is not None]
        if len(good) != len(puts):
            raise KeepError(f"{len(puts) - len(good)} of {len(puts)} records are damaged; none was written")
        done = await self._write(good, [])
        return {"durable": len(good) - done.dropped_count, "evicted": done.evicted_count}

    async def _get(self, payload: Any) -> bytes | None:
        (key,) = _keys([payload])
        return await asyncio.to_thread(self._open_store().get, key)

    async def _purge(self, payload: Any) -> dict[str, int]:
        """Remove what has a key that begins so; empty: everything. Routers are told before the answer is sent."""
        if not isinstance(payload, bytes) or len(payload) > keys.KEY_BYTES:
            raise KeepError(f"cache.purge takes at most {keys.KEY_BYTES} bytes of a key")
        store = self._open_store()
        await self._turn()  # what was on its way here is purged too
        async with self._lock:
            count = await asyncio.to_thread(store.purge, payload)
            self._usage = await asyncio.to_thread(store.usage)
        self.on_change()
        return {"removed": count}

    async def _spaces(self, _: Any) -> list[list[Any]]:
        store = self._open_store()
        names, counts = await asyncio.to_thread(lambda: (store.spaces(), store.count_by_space()))
        return [[space, s.model, s.revision, s.dimensions, counts.get(space, 0)] for space, s in names.items()]

    async def _verify(self, _: Any) -> list[str]:
        """Look at every entry; return what is wrong."""
        store = self._open_store()
        return await asyncio.to_thread(lambda: list(store.problems())[:_HAS_MAX])


def _keys(payload: Any) -> list[bytes]:
    if not isinstance(payload, list) or len(payload) > _HAS_MAX:
        raise KeepError(f"expected a list of at most {_HAS_MAX} keys")
    if not all(isinstance(key, bytes) and len(key) == keys.KEY_BYTES for key in payload):
        raise KeepError(f"expected keys of {keys.KEY_BYTES} bytes")
    return payload


def _read_put(record: bytes) -> Put | None:
    """Return the entry of a record, ``None`` if it is damaged."""
    begin = 2 + int.from_bytes(record[:2], "little")
    name, key, entry = record[2:begin], record[begin : begin + keys.KEY_BYTES], record[begin + keys.KEY_BYTES :]
    if len(key) != keys.KEY_BYTES or not entries.is_whole(key, entry) or len(entry) > entries.ENTRY_BYTES_MAX:
        return None
    return Put(name, key, entry)
