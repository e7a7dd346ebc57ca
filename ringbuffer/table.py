"""Tables of fixed rows: rewritten in place under a row word (inflight), or only ever appended to (names)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ringbuffer import layout, segment, words
from ringbuffer.layout import Kind, word_index
from ringbuffer.segment import Segment
from ringbuffer.writer import SegmentWriter

READ_TRIES: Final = 100
"""Looks at a row that is being written, giving up the processor in between. A write takes well under a microsecond; a
row that stays open that long belongs to a writer that died, or was stopped, inside the write."""


class TableWriter(SegmentWriter):
    """Writer of a table.

    ``write(row, payload)`` rewrites a row with a bytes-like of at most ``row_size - 8`` bytes, zero padded.
    ``clear(row)`` marks it as empty. Both are methods of the backend itself; IndexError for a row that does not exist.
    """

    def __init__(self, table: Segment) -> None:
        super().__init__(table)
        core = words.core.RowWriter(table.mapping, table.slots_word, table.header.slot_count, table.slot_words)
        self.write = core.write
        self.clear = core.clear

    @classmethod
    def create(
        cls, path: Path | str, *, row_count: int, row_size: int, record_schema: tuple[int, int], name: str
    ) -> TableWriter:
        """Create the table with all rows empty; errors as :func:`ringbuffer.segment.create`."""
        return cls(
            segment.create(
                path, Kind.TABLE, slot_count=row_count, slot_size=row_size, record_schema=record_schema, name=name
            )
        )


class TableReader:
    """Reader of a table through a read-only mapping."""

    def __init__(self, table: Segment) -> None:
        self.segment = table
        self.header = table.header
        self.torn_count = 0
        """Reads given up because the row stayed open: see :data:`READ_TRIES`."""
        self._core = words.core.RowReader(table.mapping, table.slots_word, table.header.slot_count, table.slot_words)

    @classmethod
    def attach(cls, path: Path | str, *, record_schema: tuple[int, int] | None = None) -> TableReader:
        """Attach to a table; errors as :func:`ringbuffer.segment.attach`."""
        return cls(segment.attach(path, (Kind.TABLE,), record_schema=record_schema))

    def read(self, row: int) -> bytes | None:
        """Return a row's payload of ``row_size - 8`` bytes; None when it is empty, or torn, which is counted."""
        for _ in range(READ_TRIES):
            payload = self._core.read(row)
            if payload != b"":
                return payload
            os.sched_yield()
        self.torn_count += 1
        return None

    def rows(self) -> Iterator[tuple[int, bytes]]:
        """Yield (row, payload) of every row in use."""
        for row in range(self.header.slot_count):
            payload = self.read(row)
            if payload is not None:
                yield row, payload

    def close(self) -> None:
        """Detach; the mapping goes with the last object that uses it."""
        self.segment.close()


def count_rows_in_use(table: Segment) -> int:
    """Return how many rows of a table are in use, by their row words alone."""
    load = table.words.load_relaxed
    first, stride = table.slots_word, table.slot_words
    return sum(load(first + row * stride) & layout.ROW_IN_USE != 0 for row in range(table.header.slot_count))


class AppendWriter(SegmentWriter):
    """Writer of an append-only table."""

    def __init__(self, table: Segment) -> None:
        super().__init__(table)
        self._row_count = table.header.slot_count
        self._next = table.published
        core = words.core.RowWriter(table.mapping, table.slots_word, table.header.slot_count, table.slot_words)
        self._write = core.write

    @classmethod
    def create(
        cls, path: Path | str, *, row_count: int, row_size: int, record_schema: tuple[int, int], name: str
    ) -> AppendWriter:
        """Create the empty table; errors as :func:`ringbuffer.segment.create`."""
        return cls(
            segment.create(
                path, Kind.APPEND, slot_count=row_count, slot_size=row_size, record_schema=record_schema, name=name
            )
        )

    def append(self, payload: bytes) -> int:
        """Append at most ``row_size - 8`` bytes, zero padded; return the row, -1 when the table is full."""
        row = self._next
        if row == self._row_count:
            return -1
        self._write(row, payload)
        self._next = row + 1
        self.segment.words.store_release(word_index(layout.PUBLISHED_OFFSET), row + 1)  # SYNC A
        return row


class AppendReader:
    """Reader of an append-only table: a row that was published never changes."""

    def __init__(self, table: Segment) -> None:
        self.segment = table
        self.header = table.header
        self._core = words.core.RowReader(table.mapping, table.slots_word, table.header.slot_count, table.slot_words)

    @classmethod
    def attach(cls, path: Path | str, *, record_schema: tuple[int, int] | None = None) -> AppendReader:
        """Attach to an append-only table; errors as :func:`ringbuffer.segment.attach`."""
        return cls(segment.attach(path, (Kind.APPEND,), record_schema=record_schema))

    def read_from(self, row: int) -> list[bytes]:
        """Return the payloads of all rows from ``row`` on, oldest first; Corrupt when more count than there are."""
        payloads = (self._core.read(each) for each in range(row, segment.published_rows(self.segment)))
        return [payload for payload in payloads if payload]

    def close(self) -> None:
        """Detach; the mapping goes with the last object that uses it."""
        self.segment.close()
