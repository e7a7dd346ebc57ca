"""The store of vectors as the router sees it: mapped read-only, found through what the keeper has published.

Only a store that the keeper has looked through is published (``keep.store`` in the run directory), so a file that would
end the process is never mapped. Before a store is used its file is read once, in a thread, so that look-ups find it in
memory: a page that the kernel has dropped in the meantime makes one look-up wait for the disk. The map has the size of
the whole store from the start: it grows without being mapped again.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import lmdb
import msgspec

from router.caches import entries, keys
from router.caches.published import PublishedError, Subscription
from router.errors import UNDECODABLE
from router.telemetry.counters import Counter

if TYPE_CHECKING:
    from ringbuffer import CountersWriter

STORE: Final = 3
"""The kind of what is published (:mod:`router.caches.published`)."""
PUBLISHED_NAME: Final = "keep.store"
DATA_NAME: Final = "data.mdb"
FORMAT: Final = b"ringrouter embeddings 1"
DB_ENTRIES: Final = b"entries"
DB_ORDER: Final = b"order"
DB_SPACES: Final = b"spaces"
DB_META: Final = b"meta"
META_FORMAT: Final = b"format"
META_GENERATION: Final = b"generation"
META_PURGES: Final = b"purges"
READERS_MAX: Final = 256
DBS_MAX: Final = 4
_READ_BYTES: Final = 1 << 20


class PublishedStore(msgspec.Struct, frozen=True, array_like=True):
    """A store that is good. ``inode`` is its file's: another file at its path is not this store."""

    path: str
    inode: int
    map_bytes: int


class StoreReader:
    """Looks keys up. While nothing is published, or nothing usable, it finds nothing."""

    def __init__(self, run_dir: Path, counters: CountersWriter, log: Any) -> None:
        self.generation = 0
        """Of the store; entries of an older one are told to the keeper when they are used."""
        self._subscription = Subscription(run_dir / PUBLISHED_NAME, STORE, PublishedStore)
        self._counters = counters
        self._log = log
        self._env: lmdb.Environment | None = None
        self._entries: Any = None
        self._spaces: Any = None
        self._meta: Any = None
        self._opening: asyncio.Task[None] | None = None

    # ------------------------------------------------------------ on the path
    def get(self, key: bytes) -> bytes | None:
        """Return an entry, ``None`` where there is none that is whole."""
        env = self._env
        if env is None:
            return None
        try:
            with env.begin(self._entries) as transaction:
                entry: bytes | None = transaction.get(key)
        except lmdb.Error as error:
            self._fail(error)
            return None
        if entry is None or entries.is_whole(key, entry):
            return entry
        self._counters.add(Counter.CACHE_DAMAGED)
        return None

    def echo_of(self, space_id: bytes) -> str:
        """Return what hosts call the model of a space, empty if the store does not say."""
        if self._env is None:
            return ""
        try:
            with self._env.begin(self._spaces) as transaction:
                record = transaction.get(space_id)
            return _decode_space(record).echo if record is not None else ""
        except (lmdb.Error, *UNDECODABLE):
            return ""

    def _fail(self, error: lmdb.Error) -> None:
        """A store that cannot be read is let go; the keeper will publish one again when it has repaired it."""
        self._log.error("the store of vectors cannot be read, and is not used any more", reason=str(error))
        self.close()

    # ------------------------------------------------------------ beside the path
    def second(self) -> None:
        """Notice a new store, and what has become of the one that is mapped."""
        self._look()
        if self._env is None:
            return
        try:
            with self._env.begin(self._meta) as transaction:
                self.generation = int.from_bytes(transaction.get(META_GENERATION) or b"", "little")
        except lmdb.Error as error:
            self._fail(error)

    def _look(self) -> None:
        if self._opening is not None:
            return
        try:
            store = self._subscription.poll()
        except PublishedError as error:
            self._log.error("the published store cannot be used, the one before stays", reason=str(error))
            return
        if store is not None:
            self._opening = asyncio.get_running_loop().create_task(self._open(store))

    async def _open(self, store: PublishedStore) -> None:
        try:
            if not store.path:
                self.close()
                return
            env = await asyncio.to_thread(_open_read, store)
            self.close()
            self._use(env)
            self._log.info("vectors", store=store.path)
        except (lmdb.Error, OSError) as error:
            self._log.error("the store of vectors cannot be opened", store=store.path, reason=str(error))
        finally:
            self._opening = None

    async def opened(self) -> None:
        """Look now, and wait until what is published is open: before a router begins to serve."""
        self._look()
        if self._opening is not None:
            await self._opening
            self.second()

    def _use(self, env: lmdb.Environment) -> None:
        self._entries = env.open_db(DB_ENTRIES, create=False)
        self._spaces = env.open_db(DB_SPACES, create=False)
        self._meta = env.open_db(DB_META, create=False)
        self._env = env

    def close(self) -> None:
        """Map nothing any more."""
        env, self._env = self._env, None
        self._entries = self._spaces = self._meta = None
        if env is not None:
            env.close()


_decode_space: Final = msgspec.msgpack.Decoder(keys.Space).decode


def _open_read(store: PublishedStore) -> lmdb.Environment:
    """Read a store's file into the kernel's memory and map it; raises ``lmdb.Error`` and ``OSError``."""
    descriptor = os.open(Path(store.path) / DATA_NAME, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_ino != store.inode:
            raise OSError("another file is there than the one the keeper has published")
        while os.read(descriptor, _READ_BYTES):
            pass
    finally:
        os.close(descriptor)
    return lmdb.open(
        store.path, map_size=store.map_bytes, readonly=True, readahead=False, max_dbs=DBS_MAX, max_readers=READERS_MAX,
        create=False,
    )  # fmt: skip
