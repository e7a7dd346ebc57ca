"""A gating ring: its producer, and consumers that it waits for."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING

from ringbuffer._plain.arguments import RECORD_BYTES, WORD_MASK, WORDS_PER_RECORD, as_word, flaw, pack_record
from ringbuffer._plain.core import Ring
from ringbuffer._plain.words import full_fence
from ringbuffer.layout import WORD_BYTES

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer
    from _typeshed import WriteableBuffer


class GatingWriter(Ring):
    """Producer of a gating ring. ``next`` is the next sequence to claim."""

    def __init__(
        self,
        buffer: Buffer,
        slots: int,
        slot_count: int,
        slot_words: int,
        published: int,
        full_count: int,
        consumers: int,
        consumers_max: int,
        consumer_words: int,
        released_word: int,
    ) -> None:
        super().__init__(buffer, slots, slot_count, slot_words, published)
        self._require_writable()
        if released_word >= consumer_words:
            raise ValueError("the released word lies outside its consumer row")
        self._check_fits(full_count, 1, 1)
        self._check_fits(consumers, consumers_max, consumer_words)
        self._full_count = full_count
        self._states = range(consumers, consumers + consumers_max * consumer_words, consumer_words)
        self._released_word = released_word
        self.next = self._words[published]
        self._cached_min = self.next

    def try_publish(self, w1: int, w2: int, w3: int, w4: int, w5: int, w6: int, w7: int, /) -> int:
        """Publish seven words; return the sequence, -1 when full."""
        self._check_record()
        try:
            record = pack_record(w1, w2, w3, w4, w5, w6, w7)
        except struct.error:
            raise flaw(w1, w2, w3, w4, w5, w6, w7) from None
        self._check_nothing_claimed()
        if not self._has_room(1):
            return -1
        sequence = self.next
        words, slot = self._words, self._slot_at(sequence)
        first = (slot + 1) * WORD_BYTES
        words[slot] = 0  # SYNC B: the slot is marked before its payload changes
        self._bytes[first : first + RECORD_BYTES] = record
        self.next = sequence + 1
        words[slot] = sequence + 1  # SYNC C
        words[self._published] = sequence + 1  # SYNC A
        return sequence

    def try_publish_record(self, payload: Buffer, /) -> int:
        """Publish a payload, zero padded; return the sequence, -1 when full."""
        self._check_nothing_claimed()
        view = self._payload_of(payload)
        if not self._has_room(1):
            return -1
        sequence = self.next
        self.next = sequence + 1
        self._publish_bytes(sequence, view)
        return sequence

    def try_publish_batch(self, records: Buffer, /) -> int:
        """Publish whole payloads at once; return the first sequence, -1 when not all of them fit."""
        self._check_nothing_claimed()
        batch = self._batch_of(records)
        count = len(batch) // self._payload_bytes
        if not self._has_room(count):
            return -1
        first = self.next
        self.next = first + count
        self._publish_batch(first, batch)
        return first

    def try_claim(self, count: int, /) -> int:
        """Claim ``count`` slots; return the first sequence, -1 when full."""
        count = as_word(count)
        if not 0 < count <= self._slot_count:
            raise ValueError(f"cannot claim {count} of {self._slot_count} slots")
        if not self._has_room(count):
            return -1
        first = self.next
        self.next = first + count
        return first

    def store(self, sequence: int, w1: int, w2: int, w3: int, w4: int, w5: int, w6: int, w7: int, /) -> None:
        """Store seven words into a claimed slot."""
        sequence = as_word(sequence)
        self._check_record()
        try:
            record = pack_record(w1, w2, w3, w4, w5, w6, w7)
        except struct.error:
            raise flaw(w1, w2, w3, w4, w5, w6, w7) from None
        if not self._words[self._published] <= sequence < self.next:
            raise ValueError(f"sequence {sequence} is not claimed")
        self._store_record(sequence, record)

    def publish_upto(self, end: int, /) -> None:
        """Publish the claimed and stored records below ``end``."""
        end = as_word(end)
        published = self._words[self._published]
        if not published <= end <= self.next:
            raise ValueError(f"cannot publish up to {end}: {published} are published, {self.next} claimed")
        for sequence in range(published, end):
            if self._words[self._slot_at(sequence)] != sequence + 1:
                raise ValueError(f"sequence {sequence} was claimed but never stored")
        self._words[self._published] = end  # SYNC A

    def _check_nothing_claimed(self) -> None:
        if self._words[self._published] != self.next:
            raise ValueError("claimed records have not been published yet")

    def _has_room(self, count: int) -> bool:
        if self.next + count - self._cached_min <= self._slot_count:
            return True
        self._refresh_minimum()
        if self.next + count - self._cached_min <= self._slot_count:
            return True
        self._words[self._full_count] += 1
        return False

    def _refresh_minimum(self) -> None:
        """Look at every consumer again. Without consumers nothing gates: everything published counts as released."""
        words = self._words
        minimum = words[self._published]
        full_fence()  # SYNC E: what is published is seen by a consumer that we do not see
        for state in self._states:
            if words[state]:  # SYNC F
                minimum = min(minimum, words[state + self._released_word])  # SYNC D
        self._cached_min = minimum


class GatingReader(Ring):
    """Consumer of a gating ring; ``position`` is the first sequence it has not released."""

    def __init__(
        self,
        buffer: Buffer,
        slots: int,
        slot_count: int,
        slot_words: int,
        published: int,
        released: int,
        heartbeat: int,
        handed: int,
    ) -> None:
        super().__init__(buffer, slots, slot_count, slot_words, published)
        self._require_writable()
        self._check_fits(released, 1, 1)
        self._check_fits(heartbeat, 1, 1)
        self._check_fits(handed, 1, 1)
        self._released = released
        self._heartbeat = heartbeat
        self._handed = handed
        self.position = self._words[released]
        self.lost = 0
        self._handed_end = self.position
        self._is_idle = True

    def poll(self, limit: int, /) -> tuple[int, int]:
        """Return the half-open range of sequences to read, at most ``limit``."""
        if type(limit) is not int or not 0 <= limit <= WORD_MASK:
            limit = as_word(limit)
        position = self.position
        ready = self._words[self._published] - position  # SYNC A
        if ready <= 0:
            self._is_idle = self._is_idle or limit > 0
            return position, position
        end = position + (ready if ready < limit else limit)
        if position < end > self._handed_end:
            self._note_handed(end)
        return position, end

    def poll_into(self, buffer: WriteableBuffer, spin_ns: int = 0, /) -> int:
        """Copy unreleased records, each behind its sequence; return how many."""
        spin_ns = as_word(spin_ns)
        room, limit = self._room_of(buffer)
        if spin_ns:
            self.spin(spin_ns)
        first, end = self.poll(limit)
        for index, sequence in enumerate(range(first, end)):
            if not self._copy_into(room, index, sequence):
                raise AssertionError("a record that was not released has been overwritten")
        return end - first

    def _note_handed(self, end: int) -> None:
        """Note what this consumer has in hand. One that had nothing to do begins now, and its heartbeat says so: only
        then can others tell that it holds records for too long.
        """
        if self._is_idle:
            self._is_idle = False
            self._words[self._heartbeat] = time.monotonic_ns()
        self._handed_end = end
        self._words[self._handed] = end  # SYNC C: the time stands before what it is of

    def spin(self, limit_ns: int, /) -> int:
        """Spin up to ``limit_ns`` until there are records; return how many."""
        return self._spin(self.position, limit_ns)

    def read(self, sequence: int, /) -> tuple[int, ...]:
        """Return the seven words of a record that was published and not released."""
        if type(sequence) is not int or not 0 <= sequence <= WORD_MASK:
            sequence = as_word(sequence)
        self._check_record()
        slot = self._readable_slot(sequence)
        return tuple(self._words[slot + 1 : slot + 1 + WORDS_PER_RECORD])

    def read_record(self, sequence: int, /) -> bytes:
        """Return the payload of a record that was published and not released."""
        return self._load_payload(self._readable_slot(as_word(sequence)))

    def _readable_slot(self, sequence: int) -> int:
        slot = self._slot_at(sequence)
        words = self._words
        # A record this consumer has not released cannot be overwritten: another mark is a broken ring, or a
        # caller's mistake.
        if not self.position <= sequence < words[self._published] or words[slot] != sequence + 1:  # SYNC A, SYNC C
            raise AssertionError(f"sequence {sequence} is not between released and published")
        return slot

    def release(self, end: int, /) -> None:
        """Let the producer overwrite everything below ``end``."""
        if type(end) is not int or not 0 <= end <= WORD_MASK:
            end = as_word(end)
        published = self._words[self._published]
        if not self.position <= end <= published:
            raise ValueError(f"cannot release up to {end}: {self.position} are released already or it is not published")
        self._is_idle = end == published
        self._words[self._heartbeat] = time.monotonic_ns()
        self.position = end
        self._words[self._released] = end  # SYNC D: every read is done before the slots may be overwritten
