"""What rings and tables have in common: the geometry of slots, and how a record gets into one and out of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from ringbuffer._plain.arguments import WORDS_PER_RECORD, as_word, view_of
from ringbuffer.layout import WORD_BYTES

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer
    from _typeshed import WriteableBuffer

_LOOKS_PER_CLOCK_READ: Final = 16


class Slots:
    """A view of a buffer as words and as bytes, and the geometry of its slots; all sizes are checked here."""

    def __init__(self, buffer: Buffer, slots: int, slot_count: int, slot_words: int) -> None:
        view = memoryview(buffer)
        self._bytes = view
        self._words = view[: len(view) // WORD_BYTES * WORD_BYTES].cast("Q")
        if slot_words < 2 or slot_count < 1:
            raise ValueError("a segment has at least one slot of at least 16 bytes")
        self._check_fits(slots, slot_count, slot_words)
        self._slots = slots
        self._slot_count = slot_count
        self._slot_words = slot_words
        self._payload_bytes = (slot_words - 1) * WORD_BYTES
        self._zeros = bytes(self._payload_bytes)

    def _check_fits(self, first: int, count: int, size: int) -> None:
        if first < 0 or first + count * size > len(self._words):
            raise ValueError(
                f"{count} items of {size} words at word {first} do not fit into a buffer of {len(self._words)} words"
            )

    def _require_writable(self) -> None:
        if self._bytes.readonly:
            raise BufferError("the mapping is read-only")

    def _payload_of(self, payload: Buffer) -> memoryview:
        """Return a payload as bytes, or raise ValueError when it does not fit into a slot."""
        view = view_of(payload)
        if len(view) > self._payload_bytes:
            raise ValueError(f"payload of {len(view)} bytes, at most {self._payload_bytes} fit")
        return view

    def _store_payload(self, slot: int, payload: bytes | memoryview) -> None:
        first = (slot + 1) * WORD_BYTES
        end = first + len(payload)
        self._bytes[first:end] = payload
        rest = self._payload_bytes - len(payload)
        if rest:
            self._bytes[end : end + rest] = self._zeros[:rest]

    def _load_payload(self, slot: int) -> bytes:
        first = (slot + 1) * WORD_BYTES
        return bytes(self._bytes[first : first + self._payload_bytes])


class Ring(Slots):
    """Slots of a power of two, and the word that counts the published records."""

    def __init__(self, buffer: Buffer, slots: int, slot_count: int, slot_words: int, published: int) -> None:
        super().__init__(buffer, slots, slot_count, slot_words)
        if slot_count & (slot_count - 1):
            raise ValueError("slot_count of a ring is not a power of two")
        self._check_fits(published, 1, 1)
        self._published = published
        self._mask = slot_count - 1

    def _slot_at(self, sequence: int) -> int:
        return self._slots + (sequence & self._mask) * self._slot_words

    def _check_record(self) -> None:
        if self._slot_words != WORDS_PER_RECORD + 1:
            raise ValueError(
                f"records of seven words need slots of 64 bytes, these have {self._slot_words * WORD_BYTES}"
            )

    def _publish_bytes(self, sequence: int, payload: bytes | memoryview) -> None:
        self._store_record(sequence, payload)
        self._words[self._published] = sequence + 1  # SYNC A: the record stands before it counts as published

    def _publish_batch(self, first: int, batch: memoryview) -> None:
        size = self._payload_bytes
        end = first + len(batch) // size
        for sequence in range(first, end):
            at = (sequence - first) * size
            self._store_record(sequence, batch[at : at + size])
        self._words[self._published] = end  # SYNC A: once for all of them

    def _store_record(self, sequence: int, payload: bytes | memoryview) -> None:
        slot = self._slot_at(sequence)
        self._words[slot] = 0  # SYNC B: the slot is marked before its payload changes
        self._store_payload(slot, payload)
        self._words[slot] = sequence + 1  # SYNC C: the payload stands before its sequence word

    def _batch_of(self, records: Buffer) -> memoryview:
        """Return whole payloads as bytes, or raise ValueError when they are none, too many or not whole."""
        view = view_of(records)
        count, rest = divmod(len(view), self._payload_bytes)
        if rest or not 1 <= count <= self._slot_count:
            raise ValueError(
                f"a batch of {len(view)} bytes, must be 1 to {self._slot_count} payloads of {self._payload_bytes} bytes"
            )
        return view

    def _room_of(self, buffer: WriteableBuffer) -> tuple[memoryview, int]:
        """Return a writable buffer as bytes, and how many slots it holds; ValueError when none."""
        if memoryview(buffer).readonly:
            raise BufferError("the buffer is read-only")
        view = view_of(buffer)
        size = self._slot_words * WORD_BYTES
        if len(view) < size:
            raise ValueError(f"a buffer of {len(view)} bytes, one record has {size}")
        return view, len(view) // size

    def _copy_record(self, sequence: int) -> bytes | None:
        """Return a payload; None when it has been, or is being, overwritten."""
        slot = self._slot_at(sequence)
        if self._words[slot] != sequence + 1:  # SYNC C
            return None
        payload = self._load_payload(slot)
        return payload if self._words[slot] == sequence + 1 else None  # SYNC B

    def _copy_into(self, room: memoryview, index: int, sequence: int) -> bool:
        """Copy a record behind its sequence into place ``index``; False when it could not be had whole."""
        payload = self._copy_record(sequence)
        if payload is None:
            return False
        at = index * (len(payload) + WORD_BYTES)
        room[at : at + WORD_BYTES] = sequence.to_bytes(WORD_BYTES, "little")
        room[at + WORD_BYTES : at + WORD_BYTES + len(payload)] = payload
        return True

    def _spin(self, position: int, limit_ns: int) -> int:
        limit_ns = as_word(limit_ns)
        words, published = self._words, self._published
        began_ns = time.monotonic_ns()
        while True:
            for _ in range(_LOOKS_PER_CLOCK_READ):
                if words[published] > position:  # SYNC A
                    return words[published] - position
            if time.monotonic_ns() - began_ns >= limit_ns:
                return 0
