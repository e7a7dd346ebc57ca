"""The slots of hosts, shared exactly by several routers of one machine, without a lock on the path.

A table in shared memory, ``RUN/slots.tab``, 8-byte words::

    0      magic and version          1   rows ever used (only grows)          2..7   unused
    8      64 x 2 words     a column is a host: digest of its address, 0 0 = free
    136    64 x 72 words    a row is a router: pid, 7 unused, then its requests at the host of each column

To take a slot a router adds one to its own word, passes a full fence, and sums the column over all rows. If that is
more than the host has, it takes the one back and tries again in 1 to 5 ms. Of two that add at the same moment at least
one sees the other (each stores first and looks behind the fence: Dekker), so the sum of those that went on never
exceeds the slots; that both take back is possible, and why the next try is at a random time.

A router sees its own free slot at once and another's only at its next look, so it could keep a host for itself for
ever. Hence a word also tells, in bit 32, that its router has requests waiting for that host; while another one's bit is
set, nobody begins a request beyond an even share of the slots.

A row belongs to a process as long as that holds an open file description lock on the row's bytes: the kernel gives it
up at the process's end, however that comes. What a dead router ran still counts until its hosts have had time to notice
(``cancel_grace_ms``); then whoever sees it clears the row. Columns and rows are given out under the lock of the header;
all columns are free again when a router starts as the only one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import ringbuffer
from router.errors import ConfigError

TABLE_NAME: Final = "slots.tab"
ROWS_MAX: Final = 64
COLUMNS_MAX: Final = 64
_MAGIC: Final = 0x0001_5352_534C_4F54
"""Version 1 in the high bytes."""
_ROW_COUNT: Final = 1
_COLUMNS: Final = 8
_ROWS: Final = _COLUMNS + 2 * COLUMNS_MAX
_COUNTS: Final = 8
"""Of a row, the first word of its counts: they stand on other cache lines than the pid."""
_ROW_WORDS: Final = _COUNTS + COLUMNS_MAX
_WORD: Final = 8
_BYTES: Final = (_ROWS + ROWS_MAX * _ROW_WORDS) * _WORD
_COUNT_MASK: Final = (1 << 32) - 1
_WAITING: Final = 1 << 32
_FLOCK: Final = struct.Struct("hhqqi4x")
"""``struct flock`` of fcntl(2) on 64-bit Linux: type, whence, start, length, pid."""


class SlotTable:
    """This router's row of the table. Made and closed by one thread, as everything of the loop."""

    def __init__(self, run_dir: Path) -> None:
        """Open or make the table and take a row; raises :class:`ConfigError` when there is none left, OSError."""
        if ringbuffer.BACKEND != "c":
            raise ConfigError(
                "loop.slots_shared = true: expected the C extension, whose fences hold on every processor"
            )
        path = run_dir / TABLE_NAME
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            self._lock(0, _WORD, wait=True)
            os.posix_fallocate(self._descriptor, 0, _BYTES)  # never a SIGBUS on a full tmpfs later
            self._words = ringbuffer.Words(_mapped(path))
            self._check_magic(path)
            self.row = self._take_row(path)
            self._forget_columns()
            self._unlock(0, _WORD)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._first = _ROWS + self.row * _ROW_WORDS + _COUNTS
        self._waiting = [0] * COLUMNS_MAX
        self.counts = [0] * COLUMNS_MAX
        """By column, the requests of this router there, kept by its hosts: several may have one address."""
        self._dead_since: dict[int, int] = {}

    def _check_magic(self, path: Path) -> None:
        found = self._words.load_acquire(0)
        if not found:
            self._words.store_release(0, _MAGIC)
        elif found != _MAGIC:
            raise ConfigError(f"{path} is of another version: end all routers of this directory, then remove it")

    # ------------------------------------------------------------ the path
    def take(self, column: int, count: int, slot_count: int) -> bool:
        """Say that this router has ``count`` requests at a host; false when all together have more than its slots.

        Then the caller says so again with what it has without the new one.
        """
        words = self._words
        words.store_release(self._first + column, count | self._waiting[column])
        words.fence()  # SYNC S: of two that take at once, one sees the other
        return self.total(column) <= slot_count

    def give(self, column: int, count: int) -> None:
        """Say how many requests this router has at a host, fewer than before."""
        self._words.store_release(self._first + column, count | self._waiting[column])

    def total(self, column: int) -> int:
        """Return the requests that all routers have at a host."""
        words = self._words
        first = _ROWS + _COUNTS + column
        load = words.load_acquire
        return sum(load(first + row * _ROW_WORDS) & _COUNT_MASK for row in range(load(_ROW_COUNT)))

    def room(self, column: int, slot_count: int) -> int:
        """Return how many more requests this router may begin at a host, as far as can be seen; may be negative."""
        load, own = self._words.load_acquire, self.row
        total = mine = takers = 0
        others_wait = False
        for row in range(load(_ROW_COUNT)):
            word = load(_ROWS + _COUNTS + column + row * _ROW_WORDS)
            count = word & _COUNT_MASK
            total += count
            if row == own:
                mine = count
            elif word:
                takers += 1
                others_wait = others_wait or word > _COUNT_MASK
        free = slot_count - total
        if not others_wait:
            return free
        return min(free, -(-slot_count // (takers + 1)) - mine)

    def say_waiting(self, column: int, count: int, *, waiting: bool) -> None:
        """Say whether this router has requests that wait for a host, beside ``count`` that it has there."""
        self._waiting[column] = _WAITING if waiting else 0
        self.give(column, count)

    # ------------------------------------------------------------ beside the path
    def column(self, address: str) -> int:
        """Return the column of a host, by where it listens; raises :class:`ConfigError` when none is left."""
        digest = hashlib.sha256(address.encode()).digest()
        key = int.from_bytes(digest[:8], "little") >> 1 | 1, int.from_bytes(digest[8:16], "little") >> 1
        self._lock(0, _WORD, wait=True)
        try:
            for column in range(COLUMNS_MAX):
                index = _COLUMNS + 2 * column
                found = self._words.load_acquire(index), self._words.load_acquire(index + 1)
                if found == (0, 0):
                    self._words.store_release(index + 1, key[1])
                    self._words.store_release(index, key[0])
                    return column
                if found == key:
                    return column
        finally:
            self._unlock(0, _WORD)
        raise ConfigError(f"loop.slots_shared = true: expected at most {COLUMNS_MAX} hosts, all routers together")

    def claim(self, addresses: Iterable[str]) -> None:
        """See that each of some hosts has a column; raises :class:`ConfigError` when there are not so many."""
        for address in addresses:
            self.column(address)

    def reap(self, now_ns: int, grace_ns: int) -> int:
        """Clear the rows of routers that ended at least ``grace_ns`` ago; return how many that were."""
        cleared = 0
        for row in range(self._words.load_acquire(_ROW_COUNT)):
            if row == self.row or not self._words.load_acquire(_ROWS + row * _ROW_WORDS) or self._is_held(row):
                self._dead_since.pop(row, None)
            elif now_ns - self._dead_since.setdefault(row, now_ns) >= grace_ns and self._clear(row):
                self._dead_since.pop(row, None)
                cleared += 1
        return cleared

    def close(self) -> None:
        """Give the row back. Where something may still run at a host, the others clear it when that is over."""
        if not any(self._words.load_acquire(self._first + column) & _COUNT_MASK for column in range(COLUMNS_MAX)):
            self._zero(self.row)
        os.close(self._descriptor)

    # ------------------------------------------------------------ rows and their locks
    def _take_row(self, path: Path) -> int:
        """Take a row that nobody holds; its counts are zero. The header is locked."""
        for row in range(ROWS_MAX):
            if self._words.load_acquire(_ROWS + row * _ROW_WORDS):
                continue  # in use, or of a dead router whose requests may still run
            if self._lock(*_row_bytes(row), wait=False):
                self._words.store_release(_ROWS + row * _ROW_WORDS, os.getpid())
                if row >= self._words.load_acquire(_ROW_COUNT):
                    self._words.store_release(_ROW_COUNT, row + 1)
                self._words.fence()  # SYNC S: whoever sums from now on sees this row
                return row
        raise ConfigError(f"{path}: all {ROWS_MAX} rows are in use: expected fewer routers")

    def _forget_columns(self) -> None:
        """Give all columns free where this router is alone: hosts come and go, and the table outlives the routers. The
        header is locked.
        """
        rows = range(self._words.load_acquire(_ROW_COUNT))
        if not any(self._words.load_acquire(_ROWS + row * _ROW_WORDS) for row in rows if row != self.row):
            for index in range(_COLUMNS, _ROWS):
                self._words.store_release(index, 0)

    def _clear(self, row: int) -> bool:
        """Zero a dead router's row, unless somebody else is about to."""
        if not self._lock(*_row_bytes(row), wait=False):
            return False
        self._zero(row)
        self._unlock(*_row_bytes(row))
        return True

    def _zero(self, row: int) -> None:
        first = _ROWS + row * _ROW_WORDS
        for index in range(_ROW_WORDS - 1, -1, -1):  # the pid last: with it the row is free
            self._words.store_release(first + index, 0)

    def _is_held(self, row: int) -> bool:
        """Whether a living process holds a row."""
        start, length = _row_bytes(row)
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        kind: int = _FLOCK.unpack(fcntl.fcntl(self._descriptor, fcntl.F_OFD_GETLK, asked))[0]
        return kind != fcntl.F_UNLCK

    def _lock(self, start: int, length: int, *, wait: bool) -> bool:
        what = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
        try:
            fcntl.fcntl(self._descriptor, what, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0))
        except OSError as error:
            if error.errno in {errno.EAGAIN, errno.EACCES}:
                return False
            raise
        return True

    def _unlock(self, start: int, length: int) -> None:
        fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, start, length, 0))


def _mapped(path: Path) -> mmap.mmap:
    """Map the table through a description of its own: the mapping keeps it, and with it what would be locked there."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return mmap.mmap(descriptor, _BYTES)
    finally:
        os.close(descriptor)


def _row_bytes(row: int) -> tuple[int, int]:
    return (_ROWS + row * _ROW_WORDS) * _WORD, _ROW_WORDS * _WORD
