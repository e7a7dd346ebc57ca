"""A broadcast ring: its writer, and readers that it never waits for."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from ringbuffer._plain.arguments import RECORD_BYTES, as_word, flaw, pack_record
from ringbuffer._plain.core import Ring
from ringbuffer.layout import WORD_BYTES

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer
    from _typeshed import WriteableBuffer


class LossyWriter(Ring):
    """Writer of a broadcast ring. ``next`` is the sequence of the next record."""

    def __init__(self, buffer: Buffer, slots: int, slot_count: int, slot_words: int, published: int) -> None:
        super().__init__(buffer, slots, slot_count, slot_words, published)
        self._require_writable()
        self.next = self._words[published]

    def publish(self, w1: int, w2: int, w3: int, w4: int, w5: int, w6: int, w7: int, /) -> int:
        """Publish seven words; return the sequence."""
        self._check_record()
        try:
            record = pack_record(w1, w2, w3, w4, w5, w6, w7)
        except struct.error:
            raise flaw(w1, w2, w3, w4, w5, w6, w7) from None
        sequence = self.next
        words, slot = self._words, self._slot_at(sequence)
        first = (slot + 1) * WORD_BYTES
        words[slot] = 0  # SYNC B: the slot is marked before its payload changes
        self._bytes[first : first + RECORD_BYTES] = record
        self.next = sequence + 1
        words[slot] = sequence + 1  # SYNC C
        words[self._published] = sequence + 1  # SYNC A
        return sequence

    def native_publish(self) -> object | None:
        """Return nothing: there is no native code."""
        self._check_record()
        return None

    def publish_record(self, payload: Buffer, /) -> int:
        """Publish a payload, zero padded; return the sequence."""
        view = self._payload_of(payload)
        sequence = self.next
        self.next = sequence + 1
        self._publish_bytes(sequence, view)
        return sequence

    def publish_batch(self, records: Buffer, /) -> int:
        """Publish whole payloads at once; return the first sequence."""
        batch = self._batch_of(records)
        first = self.next
        self.next = first + len(batch) // self._payload_bytes
        self._publish_batch(first, batch)
        return first


class LossyReader(Ring):
    """Reader of a ring that never gates it: ``position`` is the next sequence, ``lost`` counts what was overwritten."""

    def __init__(
        self, buffer: Buffer, slots: int, slot_count: int, slot_words: int, published: int, position: int
    ) -> None:
        super().__init__(buffer, slots, slot_count, slot_words, published)
        self.position = position
        self.lost = 0

    def poll(self, limit: int, /) -> list[tuple[int, bytes]]:
        """Return up to ``limit`` (sequence, payload) and count what was overwritten."""
        limit = as_word(limit)
        records: list[tuple[int, bytes]] = []
        published = self._words[self._published]  # SYNC A
        for _ in range(limit):
            if self.position >= published:
                break
            self._skip_lapped(published)
            payload = self._copy_record(self.position)
            if payload is None:
                published = self._lose()
            else:
                records.append((self.position, payload))
            self.position += 1
        return records

    def poll_into(self, buffer: WriteableBuffer, spin_ns: int = 0, /) -> int:
        """Copy records, each behind its sequence, into a buffer; return how many."""
        spin_ns = as_word(spin_ns)
        room, limit = self._room_of(buffer)
        if spin_ns:
            self.spin(spin_ns)
        copied = 0
        published = self._words[self._published]  # SYNC A
        for _ in range(limit):
            if self.position >= published:
                break
            self._skip_lapped(published)
            if self._copy_into(room, copied, self.position):
                copied += 1
            else:
                published = self._lose()
            self.position += 1
        return copied

    def spin(self, limit_ns: int, /) -> int:
        """Spin up to ``limit_ns`` until there are records; return how many."""
        return self._spin(self.position, limit_ns)

    def _skip_lapped(self, published: int) -> None:
        oldest = published - self._slot_count
        if self.position < oldest:
            self.lost += oldest - self.position
            self.position = oldest

    def _lose(self) -> int:
        """Count the record at ``position`` as lost; return how far the writer is by now."""
        self.lost += 1
        return self._words[self._published]  # SYNC A
