"""Tables: rows that are read whole or not at all, and signed counters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringbuffer._plain.arguments import VALUE_MAX, WORD_MASK, as_index, as_value
from ringbuffer._plain.core import Slots
from ringbuffer.layout import ROW_IN_USE, ROW_VERSION, ROW_WRITING, WORD_BYTES

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


class RowWriter(Slots):
    """Writer of the rows of a table."""

    def __init__(self, buffer: Buffer, slots: int, slot_count: int, slot_words: int) -> None:
        super().__init__(buffer, slots, slot_count, slot_words)
        self._require_writable()

    def write(self, row: int, payload: Buffer, /) -> None:
        """Write the payload of a row, zero padded."""
        row = as_index(row, self._slot_count)
        view = self._payload_of(payload)
        slot = self._open_row(row)
        self._store_payload(slot, view)
        self._close_row(slot, ROW_IN_USE)

    def clear(self, row: int, /) -> None:
        """Mark a row as empty."""
        self._close_row(self._open_row(as_index(row, self._slot_count)), 0)

    def _open_row(self, row: int) -> int:
        slot = self._slots + row * self._slot_words
        self._words[slot] |= ROW_WRITING  # SYNC B
        return slot

    def _close_row(self, slot: int, in_use: int) -> None:
        version = (self._words[slot] & ~(ROW_WRITING | ROW_IN_USE)) + ROW_VERSION
        self._words[slot] = version & WORD_MASK | in_use  # SYNC C


class RowReader(Slots):
    """Reader of the rows of a table."""

    def read(self, row: int, /) -> bytes | None:
        """Return a row's payload; None: the row is empty; ``b""``: it is being written just now."""
        slot = self._slots + as_index(row, self._slot_count) * self._slot_words
        word = self._words[slot]  # SYNC C
        if word & ROW_WRITING:
            return b""
        if not word & ROW_IN_USE:
            return None
        payload = self._load_payload(slot)
        return payload if self._words[slot] == word else b""  # SYNC B


class CounterWords:
    """Signed counters by id, with one writer."""

    def __init__(self, buffer: Buffer, first: int, count: int) -> None:
        view = memoryview(buffer)
        words = view[: len(view) // WORD_BYTES * WORD_BYTES].cast("q")
        if first < 0 or first + count > len(words):
            raise ValueError(f"{count} items of 1 words at word {first} do not fit into a buffer of {len(words)} words")
        if view.readonly:
            raise BufferError("the mapping is read-only")
        self._values = words[first : first + count]

    def add(self, counter_id: int, n: int = 1, /) -> None:
        """Add ``n`` to a counter."""
        counter_id, n = self._as_id(counter_id), as_value(n)
        value = self._values[counter_id] + n
        self._values[counter_id] = (value + VALUE_MAX + 1 & WORD_MASK) - VALUE_MAX - 1  # wraps as a machine word

    def set(self, counter_id: int, value: int, /) -> None:
        """Set a counter."""
        counter_id, value = self._as_id(counter_id), as_value(value)
        self._values[counter_id] = value

    def max(self, counter_id: int, value: int, /) -> None:
        """Raise a counter to ``value`` if it is lower."""
        counter_id, value = self._as_id(counter_id), as_value(value)
        self._values[counter_id] = max(value, self._values[counter_id])

    def get(self, counter_id: int, /) -> int:
        """Return a counter."""
        return self._values[self._as_id(counter_id)]

    def _as_id(self, counter_id: int) -> int:
        return as_index(counter_id, len(self._values))
