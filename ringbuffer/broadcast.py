"""Lossy broadcast: one writer that never waits, any number of readers that count what they missed.

Being overtaken is the agreed behaviour of an observer, not an error: an observer must never slow the writer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ringbuffer import layout, segment, words
from ringbuffer.layout import Kind, word_index
from ringbuffer.readers import ReaderPosition
from ringbuffer.segment import Segment
from ringbuffer.writer import SegmentWriter

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer


class BroadcastWriter(SegmentWriter):
    """Writer of a lossy ring.

    ``publish(w1, …, w7)`` publishes seven unsigned words into a slot of 64 bytes and returns the sequence.
    ``publish_record(payload)`` publishes a bytes-like of at most ``slot_size - 8`` bytes, zero padded, and returns the
    sequence. ``publish_batch(records)`` publishes the payloads of ``slot_size - 8`` bytes each that a contiguous
    bytes-like holds, at most one ring of them, and returns the first sequence; readers see all of them at once. All are
    methods of the backend itself, so a call costs no Python frame; a value that is no unsigned 64-bit integer raises
    OverflowError or TypeError, a payload or batch of a wrong size ValueError, and nothing is published or touched.
    """

    def __init__(self, ring: Segment) -> None:
        super().__init__(ring)
        core = words.core.LossyWriter(
            ring.mapping,
            ring.slots_word,
            ring.header.slot_count,
            ring.slot_words,
            word_index(layout.PUBLISHED_OFFSET),
        )
        self.publish = core.publish
        self.publish_record = core.publish_record
        self.publish_batch = core.publish_batch
        self._core = core

    def native_publish(self) -> object | None:
        """Return a capsule by which native code of this process publishes seven words, as ``publish`` does.

        What is in it stands in ``ringbuffer/_publish.h``. It keeps the ring mapped. ``None`` with the plain backend;
        ValueError where the slots are not of 64 bytes.
        """
        capsule: object | None = self._core.native_publish()
        return capsule

    @classmethod
    def create(
        cls, path: Path | str, *, slot_count: int, slot_size: int, record_schema: tuple[int, int], name: str
    ) -> BroadcastWriter:
        """Create the ring: ``slot_count`` (a power of two) slots; errors as :func:`ringbuffer.segment.create`."""
        return cls(
            segment.create(
                path, Kind.BROADCAST, slot_count=slot_count, slot_size=slot_size, record_schema=record_schema, name=name
            )
        )


class BroadcastReader:
    """Reader of a ring through a read-only mapping; it can read a gating ring too, without gating it.

    ``spin(limit_ns)`` looks at the ring without a pause until records are there, at most that long, and returns how
    many; 0 when none came. It costs a whole core and saves the tens of microseconds of a wake-up.
    ``poll_into(buffer[, spin_ns])`` spins likewise while there is nothing, then copies new records into a writable
    buffer, oldest first, as many whole ones as fit, and returns how many. Each takes ``slot_size`` bytes: its sequence,
    then its payload. So ``numpy.frombuffer(buffer, dtype)`` reads them with one dtype of that size, and gaps in the
    sequences are what was lost. The buffer must be contiguous and of plain bytes or numbers; ValueError when not even
    one record fits. Both are methods of the backend itself; in C other threads of the process run during a spin.
    """

    def __init__(self, ring: Segment, start: int, position_word: ReaderPosition | None) -> None:
        self.segment = ring
        self.header = ring.header
        self._core = words.core.LossyReader(
            ring.mapping,
            ring.slots_word,
            ring.header.slot_count,
            ring.slot_words,
            word_index(layout.PUBLISHED_OFFSET),
            start,
        )
        self.spin = self._core.spin
        self.poll_into = self._core.poll_into if position_word is None else self._poll_into_and_store
        self._position_word = position_word
        self._store_position()

    @classmethod
    def attach(
        cls,
        path: Path | str,
        join: Literal["latest", "oldest"] | int = "latest",
        position: Path | str | None = None,
        *,
        record_schema: tuple[int, int] | None = None,
    ) -> BroadcastReader:
        """Attach to the ring at ``path``.

        ``join``: ``latest`` waits for the next record, ``oldest`` begins with the oldest one still there, a number goes
        on at that sequence (what was overwritten meanwhile counts as lost). ``position``: where to keep this reader's
        own position file, so that ``stats`` can show its lag. ValueError for a sequence the ring has not reached.
        Other errors as :func:`ringbuffer.segment.attach`.
        """
        ring = segment.attach(path, (Kind.BROADCAST, Kind.GATING), record_schema=record_schema)
        start = _start(join, ring)
        position_word = None if position is None else ReaderPosition.at(position, ring.header.name)
        return cls(ring, start, position_word)

    @property
    def position(self) -> int:
        """Sequence of the next record to read."""
        return self._core.position

    @property
    def lost(self) -> int:
        """Records overwritten before this reader came to them; delivered + lost = records passed, exactly."""
        return self._core.lost

    @property
    def lag(self) -> int:
        """Records published and not yet read."""
        return self.segment.published - self._core.position

    def poll(self, max_records: int) -> list[tuple[int, bytes]]:
        """Return up to ``max_records`` new records as (sequence, payload of ``slot_size - 8`` bytes), oldest first.

        Every record was checked after it was copied: none is torn. An empty list means that nothing new was left, or
        that everything looked at had been overwritten; see :attr:`lost`.
        """
        records = self._core.poll(max_records)
        self._store_position()
        return records

    def close(self) -> None:
        """Detach, and remove the position file."""
        self.segment.close()
        if self._position_word is not None:
            self._position_word.close()

    def _poll_into_and_store(self, buffer: Buffer, spin_ns: int = 0, /) -> int:
        count = self._core.poll_into(buffer, spin_ns)
        self._store_position()
        return count

    def _store_position(self) -> None:
        if self._position_word is not None:
            self._position_word.store(self._core.position, self._core.lost)


def _start(join: str | int, ring: Segment) -> int:
    published = ring.published
    if join == "latest":
        return published
    if join == "oldest":
        return max(0, published - ring.header.slot_count)
    if isinstance(join, str) or not 0 <= join <= published:
        raise ValueError(f"join is {join!r}, must be 'latest', 'oldest' or a sequence of 0 to {published}")
    return join
