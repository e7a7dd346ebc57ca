"""The store of vectors in LMDB (http://www.lmdb.tech/doc/), and its only writer.

Four tables: ``entries`` key → entry (:mod:`router.caches.entries`); ``order`` generation u32 big-endian and key →
nothing; ``spaces`` id of a space → its name; ``meta`` the format and the number of the generation.

* A commit is on the disk when :meth:`Store.write` returns (LMDB's default: two syncs). A kill at any moment leaves the
  last commit; nothing is repaired at the next start.
* **Size**: the file can never be larger than ``store_bytes`` (the map's size). Three quarters of its pages may hold
  entries. The others are LMDB's room to copy pages that it changes, of which those of the commit before cannot be used
  again: keys are random, so a commit changes some pages for each entry, and is made small enough for that room.
  Over it entries go by age.
* **Age** is counted in generations, not by the clock: one ends when an eighth of the store has been written or used.
  An entry is of the generation in which it was last used, as far as routers say so (once in each generation); the
  oldest go first, those of one generation in the order of their keys, which are as good as random.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from time import time_ns
from typing import Any, Final, NamedTuple

import lmdb
import msgspec

from router.caches import entries, keys
from router.caches.reader import (
    DATA_NAME,
    DB_ENTRIES,
    DB_META,
    DB_ORDER,
    DB_SPACES,
    DBS_MAX,
    FORMAT,
    META_FORMAT,
    META_GENERATION,
    META_PURGES,
    READERS_MAX,
)

GENERATIONS: Final = 8
"""How many of them the store holds, about."""
FILL: Final = 0.75
"""Share of the pages that may hold entries."""
SPACES_MAX: Final = 4096
"""Names of spaces that are kept; vectors of further ones are not: clients choose dimensions."""
COMMIT_SHARE: Final = 4
"""A commit may change this part of the free room: what it replaces and what the one before replaced are not free."""
COMMIT_PAGES_MAX: Final = 8192
"""32 MiB of changed pages are enough for one sync of the disk."""
_PAGES_PER_CHANGE: Final = 5
"""Of an entry that comes or goes: its leaf, that of its place in the order, and a share of the branches above."""
PURGES_MAX: Final = 64
"""Purges that are remembered; of older ones only that there were some."""
_READ_AT_ONCE: Final = 1024
"""Entries looked at in one read: a longer one would keep old pages from being used again."""
_EVICT_AT_ONCE: Final = 32
_GENERATION_BYTES: Final = 4
_MAP_ROUND: Final = 1 << 16
_NS: Final = 1_000_000_000


class Put(NamedTuple):
    """An entry to be written; ``space`` is the record of its space's name."""

    space: bytes
    key: bytes
    entry: bytes


class Purge(NamedTuple):
    """What was removed: all keys that begin so. ``wall_ns`` is when, and higher for each purge."""

    wall_ns: int
    prefix: bytes


class Written(NamedTuple):
    """What a write did."""

    put_count: int
    touched_count: int
    evicted_count: int
    dropped_count: int
    """Entries that found no room, or of too many spaces."""


class Usage(NamedTuple):
    """How full a store is."""

    entry_count: int
    used_bytes: int
    limit_bytes: int
    generation: int
    oldest_generation: int
    oldest_made_s: int
    """When the entry was computed that would leave next, in seconds of the wall clock; 0 = none."""

    def facts(self) -> dict[str, int]:
        """Return what commands are told of it."""
        return {
            "entries": self.entry_count,
            "used_bytes": self.used_bytes,
            "limit_bytes": self.limit_bytes,
            "generation": self.generation,
            "oldest_generation": self.oldest_generation,
        }


class StoreError(Exception):
    """A file that is no store of ours."""


class Store:
    """Owns the environment; use it from one thread at a time."""

    def __init__(self, path: Path, store_bytes: int) -> None:
        """Open a store, or make it; raises :class:`StoreError`, ``lmdb.Error`` and ``OSError``."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = path
        self.map_bytes = store_bytes // _MAP_ROUND * _MAP_ROUND
        self._env = lmdb.open(
            str(path), map_size=self.map_bytes, max_dbs=DBS_MAX, max_readers=READERS_MAX, mode=0o640, readahead=False
        )
        self._page_bytes = int(self._env.stat()["psize"])
        self._limit_pages = int(self.map_bytes * FILL) // self._page_bytes
        free_pages = self.map_bytes // self._page_bytes - self._limit_pages
        self._commit_pages = min(free_pages // COMMIT_SHARE, COMMIT_PAGES_MAX)
        self._written_bytes = 0
        try:
            self._open_tables()
        except BaseException:
            self._env.close()
            raise

    def _open_tables(self) -> None:
        env = self._env
        with env.begin() as transaction:
            names = {bytes(name) for name in transaction.cursor().iternext(values=False)}
        if names - {DB_ENTRIES, DB_ORDER, DB_SPACES, DB_META}:
            raise StoreError("it has tables of another program")
        self._entries = env.open_db(DB_ENTRIES)
        self._order = env.open_db(DB_ORDER)
        self._spaces = env.open_db(DB_SPACES)
        self._meta = env.open_db(DB_META)
        with env.begin(self._meta, write=True) as transaction:
            found = transaction.get(META_FORMAT)
            if found is None and not names:
                transaction.put(META_FORMAT, FORMAT)
            elif found != FORMAT:
                raise StoreError(f"its format is {found!r}, not {FORMAT!r}")
            self._generation = int.from_bytes(transaction.get(META_GENERATION) or b"", "little") or 1
            self.purges = _decode_purges(transaction.get(META_PURGES) or _NO_PURGES)
            """The last ones, the oldest first."""

    @property
    def inode(self) -> int:
        """The number of the store's file."""
        return (self.path / DATA_NAME).stat().st_ino

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def clear_readers(self) -> None:
        """Free the places of readers that have died: their old pages could not be used again."""
        self._env.reader_check()

    # ------------------------------------------------------------ read
    def has(self, key: bytes) -> bool:
        """Return whether a key has an entry."""
        with self._env.begin(self._entries) as transaction:
            return transaction.get(key) is not None

    def get(self, key: bytes) -> bytes | None:
        """Return an entry."""
        with self._env.begin(self._entries) as transaction:
            entry: bytes | None = transaction.get(key)
            return entry

    def usage(self) -> Usage:
        """Return how full it is."""
        with self._env.begin() as transaction:
            count = transaction.stat(self._entries)["entries"]
            used = self._used_pages(transaction) * self._page_bytes
            oldest = next(self._oldest(transaction), b"")
            entry = transaction.get(oldest[_GENERATION_BYTES:], db=self._entries) if oldest else None
        return Usage(
            count,
            used,
            self.map_bytes,
            self._generation,
            int.from_bytes(oldest[:_GENERATION_BYTES], "big"),
            entries.made_s(entry) if entry is not None else 0,
        )

    def spaces(self) -> dict[bytes, keys.Space]:
        """Return the names of all spaces."""
        with self._env.begin(self._spaces) as transaction:
            return {bytes(k): _decode_space(v) for k, v in transaction.cursor()}

    def count_by_space(self) -> dict[bytes, int]:
        """Return how many entries each space has; looks at every key."""
        counts: dict[bytes, int] = {}
        for part in self._key_parts():
            for key in part:
                space = key[: keys.SPACE_BYTES]
                counts[space] = counts.get(space, 0) + 1
        return counts

    def _key_parts(self, prefix: bytes = b"") -> Iterator[list[bytes]]:
        """Yield the keys that begin so, in parts; what is written in between may be missed, or seen."""
        last = prefix
        while True:
            with self._env.begin(self._entries) as transaction:
                cursor = transaction.cursor()
                found = cursor.iternext(values=False) if cursor.set_range(last) else iter(())
                part = [bytes(key) for key in islice(found, _READ_AT_ONCE)]
            part = [key for key in part if key.startswith(prefix)]
            if part:
                yield part
            if len(part) < _READ_AT_ONCE:
                return
            last = part[-1] + b"\0"

    def problems(self) -> Iterator[str]:
        """Look at everything; yield what is wrong, one line each."""
        for part in self._key_parts():
            with self._env.begin() as transaction:
                for key in part:
                    problem = self._problem_of(transaction, key)
                    if problem:
                        yield f"{key.hex()}: {problem}"
        with self._env.begin() as transaction:
            count, ordered = (transaction.stat(db)["entries"] for db in (self._entries, self._order))
        if ordered != count:
            yield f"{ordered} places in the order of eviction for {count} vectors"

    def _problem_of(self, transaction: Any, key: bytes) -> str:
        entry = transaction.get(key, db=self._entries)
        if entry is None:
            return ""  # it has left in the meantime
        if not entries.is_whole(key, entry):
            return "its vector is damaged"
        if transaction.get(self._place(entries.generation(entry), key), db=self._order) is None:
            return "it has no place in the order of eviction"
        if transaction.get(key[: keys.SPACE_BYTES], db=self._spaces) is None:
            return "its space has no name"
        return ""

    # ------------------------------------------------------------ write
    def write(self, puts: Sequence[Put], touches: Sequence[bytes] = ()) -> Written:
        """Write entries and mark others as used, and make room; all of it is on the disk on return.

        What is there already is only marked as used. Of more than fits into one commit each part is a commit.
        """
        total = Written(0, 0, 0, 0)
        at_once = max(1, self._commit_pages // _PAGES_PER_CHANGE)
        parts = [((), touches[begin : begin + at_once]) for begin in range(0, len(touches), at_once)]
        for part_of_puts, part_of_touches in [*parts, *((part, ()) for part in self._parts(puts))]:
            done = self._commit(part_of_puts, part_of_touches)
            total = Written(*(a + b for a, b in zip(total, done, strict=True)))
        return total

    def _parts(self, puts: Sequence[Put]) -> Iterator[Sequence[Put]]:
        """Divide entries into commits that change few enough pages; what comes makes as much go."""
        part: list[Put] = []
        pages = 0
        for put in puts:
            own_pages = 2 * (_PAGES_PER_CHANGE + len(put.entry) // self._page_bytes)
            if part and pages + own_pages > self._commit_pages:
                yield part
                part, pages = [], 0
            part.append(put)
            pages += own_pages
        if part:
            yield part

    def _commit(self, puts: Sequence[Put], touches: Sequence[bytes]) -> Written:
        try:
            with self._env.begin(write=True) as transaction:
                return self._apply(transaction, puts, touches)
        except lmdb.MapFullError:
            self.clear_readers()
        try:  # readers held old pages, or they are in pieces: with a tenth less there is room again
            evicted = self.evict(max(1, self.usage().entry_count // 10))
            with self._env.begin(write=True) as transaction:
                done = self._apply(transaction, puts, touches)
            return done._replace(evicted_count=done.evicted_count + evicted)
        except lmdb.MapFullError:
            return Written(0, 0, 0, len(puts))

    def _apply(self, transaction: Any, puts: Sequence[Put], touches: Sequence[bytes]) -> Written:
        self._advance(transaction)
        evicted = self._make_room(transaction, sum(len(put.entry) for put in puts))
        put_count = touched = dropped = 0
        for key in touches:
            touched += self._touch(transaction, key)
        for put in puts:
            if transaction.get(put.key, db=self._entries) is not None:
                self._name(transaction, put)  # whoever was first may not have known what hosts call the model
                touched += self._touch(transaction, put.key)
            elif self._name(transaction, put):
                self._insert(transaction, put.key, put.entry)
                put_count += 1
            else:
                dropped += 1
        return Written(put_count, touched, evicted, dropped)

    def _advance(self, transaction: Any) -> None:
        """Begin another generation when enough has happened in this one."""
        if self._written_bytes * GENERATIONS >= self._limit_pages * self._page_bytes:
            self._written_bytes = 0
            self._generation += 1
        number = self._generation.to_bytes(_GENERATION_BYTES, "little")
        transaction.put(META_GENERATION, number, db=self._meta)

    def _name(self, transaction: Any, put: Put) -> bool:
        """Note the name of an entry's space; false where there are too many."""
        space = put.key[: keys.SPACE_BYTES]
        known = transaction.get(space, db=self._spaces)
        if known == put.space:
            return True
        if known is None and transaction.stat(self._spaces)["entries"] >= SPACES_MAX:
            return False
        if known is None or _decode_space(put.space).echo:  # a writer may not know what hosts call the model
            transaction.put(space, put.space, db=self._spaces)
        return True

    def _insert(self, transaction: Any, key: bytes, entry: bytes) -> None:
        transaction.put(key, entries.with_generation(entry, self._generation), db=self._entries)
        transaction.put(self._place(self._generation, key), b"", db=self._order)
        self._written_bytes += len(entry) + len(key)

    def _touch(self, transaction: Any, key: bytes) -> bool:
        entry = transaction.get(key, db=self._entries)
        if entry is None or entries.generation(entry) == self._generation:
            return False
        transaction.delete(self._place(entries.generation(entry), key), db=self._order)
        self._insert(transaction, key, entry)
        return True

    @staticmethod
    def _place(generation: int, key: bytes) -> bytes:
        return generation.to_bytes(_GENERATION_BYTES, "big") + key

    # ------------------------------------------------------------ room
    def _used_pages(self, transaction: Any) -> int:
        """Return the pages that hold something, those of LMDB's list of free ones left out."""
        tables = [transaction.stat(db) for db in (self._entries, self._order, self._spaces, self._meta)]
        return 2 + sum(int(t["branch_pages"] + t["leaf_pages"] + t["overflow_pages"]) for t in tables)

    def _make_room(self, transaction: Any, incoming_bytes: int) -> int:
        """Evict until what comes fits; return how many went."""
        incoming_pages = 2 * incoming_bytes // self._page_bytes  # entries of half a page and a bit fill it badly
        evicted = 0
        while self._used_pages(transaction) + incoming_pages > self._limit_pages:
            gone = self._evict(transaction, _EVICT_AT_ONCE)
            evicted += gone
            if not gone:
                break
        return evicted

    def evict(self, count: int) -> int:
        """Evict so many entries, the oldest first, in a commit; return how many there were."""
        with self._env.begin(write=True) as transaction:
            return self._evict(transaction, count)

    def _evict(self, transaction: Any, count: int) -> int:
        places = [place for place, _ in zip(self._oldest(transaction), range(count), strict=False)]
        for place in places:
            transaction.delete(place, db=self._order)
            transaction.delete(place[_GENERATION_BYTES:], db=self._entries)
        return len(places)

    def _oldest(self, transaction: Any) -> Iterator[bytes]:
        for place in transaction.cursor(self._order).iternext(values=False):
            yield bytes(place)

    def purge(self, prefix: bytes = b"") -> int:
        """Remove all entries whose keys begin so, and names of spaces that have none left; return how many went.

        It is written down first: routers forget what they have of it, whichever keeper tells them.
        """
        self._note_purge(prefix)
        count = 0
        at_once = max(1, self._commit_pages // _PAGES_PER_CHANGE)
        while found := next(self._key_parts(prefix), None):
            found = found[:at_once]
            with self._env.begin(write=True) as transaction:
                for key in found:
                    entry = transaction.get(key, db=self._entries) or b""
                    transaction.delete(self._place(entries.generation(entry), key), db=self._order)
                    transaction.delete(key, db=self._entries)
            count += len(found)
        if len(prefix) <= keys.SPACE_BYTES:
            with self._env.begin(write=True) as transaction:
                for space in [s for s in self.spaces() if s.startswith(prefix)]:
                    transaction.delete(space, db=self._spaces)
        return count

    def _note_purge(self, prefix: bytes) -> None:
        last_ns = self.purges[-1].wall_ns if self.purges else 0
        purges = [*self.purges, Purge(max(time_ns(), last_ns + 1), prefix)]
        if len(purges) > PURGES_MAX:  # the two oldest become one, of everything
            purges[:2] = [Purge(purges[1].wall_ns, b"")]
        with self._env.begin(self._meta, write=True) as transaction:
            transaction.put(META_PURGES, msgspec.msgpack.encode(purges))
        self.purges = purges

    def is_purged(self, put: Put) -> bool:
        """Whether an entry was made before it was purged, and comes late."""
        made_s = entries.made_s(put.entry)
        return any(made_s < purge.wall_ns // _NS and put.key.startswith(purge.prefix) for purge in self.purges)


_decode_space: Final = msgspec.msgpack.Decoder(keys.Space).decode
_decode_purges: Final = msgspec.msgpack.Decoder(list[Purge]).decode
_NO_PURGES: Final = msgspec.msgpack.encode([])
