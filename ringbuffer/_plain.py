"""The plain backend: the classes of ``_words.c`` and ``_ring.h`` in Python, for x86-64 only.

``memoryview.cast("Q")[i]`` is one aligned 8-byte move in CPython, and x86-64 keeps stores in order among themselves and
loads likewise: that is release and acquire. Payloads are copied with memmove, which may reorder its own stores; the
sequence word that covers them is therefore always a store of its own, after the copy.
Letters name the edges of the table in :mod:`ringbuffer`.
"""

from __future__ import annotations

import operator
import struct
import threading
import time
from typing import TYPE_CHECKING, Final

from ringbuffer.layout import ROW_IN_USE, ROW_VERSION, ROW_WRITING, WORD_BYTES

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer
    from _typeshed import WriteableBuffer

BACKEND: Final = "plain"
WORDS_PER_RECORD: Final = 7
_RECORD_BYTES: Final = WORDS_PER_RECORD * WORD_BYTES
_pack_record: Final = struct.Struct(f"<{WORDS_PER_RECORD}Q").pack
_LOOKS_PER_CLOCK_READ: Final = 16
_VALUE_MIN: Final = -(1 << 63)
_VALUE_MAX: Final = (1 << 63) - 1
_WORD_MASK: Final = (1 << 64) - 1

_fence_lock: Final = threading.Lock()


def full_fence() -> None:
    """Let nothing cross, not even a load over an earlier store.

    Taking a free lock is a ``lock cmpxchg``, and every locked instruction of x86-64 is a full fence.
    """
    with _fence_lock:
        pass


def _as_index(index: int, count: int) -> int:
    if type(index) is not int:
        index = operator.index(index)
    if not 0 <= index < count:
        raise IndexError(f"index {index} is not in 0 to {count - 1}")
    return index


def _as_integer(value: int, smallest: int, largest: int) -> int:
    if type(value) is not int:
        value = operator.index(value)
    if not smallest <= value <= largest:
        raise OverflowError(f"{value} is not in {smallest} to {largest}")
    return value


def _as_word(value: int) -> int:
    return _as_integer(value, 0, _WORD_MASK)


def _as_value(value: int) -> int:
    """Return what a counter may be."""
    return _as_integer(value, _VALUE_MIN, _VALUE_MAX)


def _word_error(value: int) -> Exception | None:
    try:
        _as_word(value)
    except (TypeError, OverflowError) as error:
        return error
    return None


def _flaw(*values: int) -> Exception:
    """Return what is wrong with the first of some values that is no word."""
    return next(filter(None, map(_word_error, values)))


def _view_of(payload: Buffer) -> memoryview:
    view = memoryview(payload)
    if not view.c_contiguous:
        raise BufferError("memoryview: underlying buffer is not C-contiguous")
    return view.cast("B")


class Words:
    """The 8-byte words of a buffer, by index. Stores into a read-only buffer raise TypeError."""

    def __init__(self, buffer: Buffer) -> None:
        view = memoryview(buffer)
        self._words = view[: len(view) // WORD_BYTES * WORD_BYTES].cast("Q")

    def load_acquire(self, index: int) -> int:
        """Return word ``index``; later accesses stay behind it."""
        return self._words[_as_index(index, len(self._words))]

    def load_relaxed(self, index: int) -> int:
        """Return word ``index``."""
        return self.load_acquire(index)

    def store_release(self, index: int, value: int) -> None:
        """Store word ``index``; earlier accesses stay before it."""
        index, value = _as_index(index, len(self._words)), _as_word(value)
        if self._words.readonly:
            raise TypeError("cannot store into a read-only mapping")
        self._words[index] = value

    def store_relaxed(self, index: int, value: int) -> None:
        """Store word ``index``."""
        self.store_release(index, value)

    def fence(self) -> None:
        """Full fence: nothing crosses it, not even a load over a store."""
        full_fence()


class _Slots:
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
        view = _view_of(payload)
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


class _Ring(_Slots):
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
        view = _view_of(records)
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
        view = _view_of(buffer)
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
        limit_ns = _as_word(limit_ns)
        words, published = self._words, self._published
        began_ns = time.monotonic_ns()
        while True:
            for _ in range(_LOOKS_PER_CLOCK_READ):
                if words[published] > position:  # SYNC A
                    return words[published] - position
            if time.monotonic_ns() - began_ns >= limit_ns:
                return 0


class LossyWriter(_Ring):
    """Writer of a broadcast ring. ``next`` is the sequence of the next record."""

    def __init__(self, buffer: Buffer, slots: int, slot_count: int, slot_words: int, published: int) -> None:
        super().__init__(buffer, slots, slot_count, slot_words, published)
        self._require_writable()
        self.next = self._words[published]

    def publish(self, w1: int, w2: int, w3: int, w4: int, w5: int, w6: int, w7: int, /) -> int:
        """Publish seven words; return the sequence."""
        self._check_record()
        try:
            record = _pack_record(w1, w2, w3, w4, w5, w6, w7)
        except struct.error:
            raise _flaw(w1, w2, w3, w4, w5, w6, w7) from None
        sequence = self.next
        words, slot = self._words, self._slot_at(sequence)
        first = (slot + 1) * WORD_BYTES
        words[slot] = 0  # SYNC B: the slot is marked before its payload changes
        self._bytes[first : first + _RECORD_BYTES] = record
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


class LossyReader(_Ring):
    """Reader of a ring that never gates it: ``position`` is the next sequence, ``lost`` counts what was overwritten."""

    def __init__(
        self, buffer: Buffer, slots: int, slot_count: int, slot_words: int, published: int, position: int
    ) -> None:
        super().__init__(buffer, slots, slot_count, slot_words, published)
        self.position = position
        self.lost = 0

    def poll(self, limit: int, /) -> list[tuple[int, bytes]]:
        """Return up to ``limit`` (sequence, payload) and count what was overwritten."""
        limit = _as_word(limit)
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
        spin_ns = _as_word(spin_ns)
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


class GatingWriter(_Ring):
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
            record = _pack_record(w1, w2, w3, w4, w5, w6, w7)
        except struct.error:
            raise _flaw(w1, w2, w3, w4, w5, w6, w7) from None
        self._check_nothing_claimed()
        if not self._has_room(1):
            return -1
        sequence = self.next
        words, slot = self._words, self._slot_at(sequence)
        first = (slot + 1) * WORD_BYTES
        words[slot] = 0  # SYNC B: the slot is marked before its payload changes
        self._bytes[first : first + _RECORD_BYTES] = record
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
        count = _as_word(count)
        if not 0 < count <= self._slot_count:
            raise ValueError(f"cannot claim {count} of {self._slot_count} slots")
        if not self._has_room(count):
            return -1
        first = self.next
        self.next = first + count
        return first

    def store(self, sequence: int, w1: int, w2: int, w3: int, w4: int, w5: int, w6: int, w7: int, /) -> None:
        """Store seven words into a claimed slot."""
        sequence = _as_word(sequence)
        self._check_record()
        try:
            record = _pack_record(w1, w2, w3, w4, w5, w6, w7)
        except struct.error:
            raise _flaw(w1, w2, w3, w4, w5, w6, w7) from None
        if not self._words[self._published] <= sequence < self.next:
            raise ValueError(f"sequence {sequence} is not claimed")
        self._store_record(sequence, record)

    def publish_upto(self, end: int, /) -> None:
        """Publish the claimed and stored records below ``end``."""
        end = _as_word(end)
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


class GatingReader(_Ring):
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
        if type(limit) is not int or not 0 <= limit <= _WORD_MASK:
            limit = _as_word(limit)
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
        spin_ns = _as_word(spin_ns)
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
        if type(sequence) is not int or not 0 <= sequence <= _WORD_MASK:
            sequence = _as_word(sequence)
        self._check_record()
        slot = self._readable_slot(sequence)
        return tuple(self._words[slot + 1 : slot + 1 + WORDS_PER_RECORD])

    def read_record(self, sequence: int, /) -> bytes:
        """Return the payload of a record that was published and not released."""
        return self._load_payload(self._readable_slot(_as_word(sequence)))

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
        if type(end) is not int or not 0 <= end <= _WORD_MASK:
            end = _as_word(end)
        published = self._words[self._published]
        if not self.position <= end <= published:
            raise ValueError(f"cannot release up to {end}: {self.position} are released already or it is not published")
        self._is_idle = end == published
        self._words[self._heartbeat] = time.monotonic_ns()
        self.position = end
        self._words[self._released] = end  # SYNC D: every read is done before the slots may be overwritten


class RowWriter(_Slots):
    """Writer of the rows of a table."""

    def __init__(self, buffer: Buffer, slots: int, slot_count: int, slot_words: int) -> None:
        super().__init__(buffer, slots, slot_count, slot_words)
        self._require_writable()

    def write(self, row: int, payload: Buffer, /) -> None:
        """Write the payload of a row, zero padded."""
        row = _as_index(row, self._slot_count)
        view = self._payload_of(payload)
        slot = self._open_row(row)
        self._store_payload(slot, view)
        self._close_row(slot, ROW_IN_USE)

    def clear(self, row: int, /) -> None:
        """Mark a row as empty."""
        self._close_row(self._open_row(_as_index(row, self._slot_count)), 0)

    def _open_row(self, row: int) -> int:
        slot = self._slots + row * self._slot_words
        self._words[slot] |= ROW_WRITING  # SYNC B
        return slot

    def _close_row(self, slot: int, in_use: int) -> None:
        version = (self._words[slot] & ~(ROW_WRITING | ROW_IN_USE)) + ROW_VERSION
        self._words[slot] = version & _WORD_MASK | in_use  # SYNC C


class RowReader(_Slots):
    """Reader of the rows of a table."""

    def read(self, row: int, /) -> bytes | None:
        """Return a row's payload; None: the row is empty; ``b""``: it is being written just now."""
        slot = self._slots + _as_index(row, self._slot_count) * self._slot_words
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
        counter_id, n = self._as_id(counter_id), _as_value(n)
        value = self._values[counter_id] + n
        self._values[counter_id] = (value + _VALUE_MAX + 1 & _WORD_MASK) - _VALUE_MAX - 1  # wraps as a machine word

    def set(self, counter_id: int, value: int, /) -> None:
        """Set a counter."""
        counter_id, value = self._as_id(counter_id), _as_value(value)
        self._values[counter_id] = value

    def max(self, counter_id: int, value: int, /) -> None:
        """Raise a counter to ``value`` if it is lower."""
        counter_id, value = self._as_id(counter_id), _as_value(value)
        self._values[counter_id] = max(value, self._values[counter_id])

    def get(self, counter_id: int, /) -> int:
        """Return a counter."""
        return self._values[self._as_id(counter_id)]

    def _as_id(self, counter_id: int) -> int:
        return _as_index(counter_id, len(self._values))
