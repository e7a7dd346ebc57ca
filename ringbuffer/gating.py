"""The gating ring: nothing is overwritten before every consumer released it; a full ring is an answer, not a wait.

Claiming looks at the consumers only when the lowest sequence it remembers says that the ring may be full. That is safe
because released sequences only grow. A consumer that joins begins at ``published`` and looks at it twice, see
:meth:`GatingConsumer.register`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ringbuffer import layout, process, segment, words
from ringbuffer.errors import ConsumersFull, Missing
from ringbuffer.layout import Kind, word_index
from ringbuffer.segment import Segment
from ringbuffer.writer import SegmentWriter

CONSUMERS_MAX_DEFAULT: Final = 8


class GatingProducer(SegmentWriter):
    """The one producer of a gating ring.

    ``try_publish(w1, …, w7)`` publishes seven unsigned words into a slot of 64 bytes; it returns the sequence, or -1
    and counts when the ring is full. ``try_publish_record(payload)`` does so with a bytes-like of at most
    ``slot_size - 8`` bytes, zero padded. ``try_publish_batch(records)`` publishes the payloads of ``slot_size - 8``
    bytes each that a contiguous bytes-like holds, and returns the first sequence; -1 when not all of them fit. To fill
    slots one by one and publish them together, ``try_claim(n)`` returns the first of ``n`` sequences, or -1;
    ``store(sequence, w1, …, w7)`` fills a claimed one; ``publish_upto(end)`` publishes all below ``end``, which must
    all have been stored. All are methods of the backend itself. Misuse raises ValueError (OverflowError
    or TypeError for what is no unsigned 64-bit integer) and publishes nothing.
    """

    def __init__(self, ring: Segment) -> None:
        super().__init__(ring)
        core = words.core.GatingWriter(
            ring.mapping,
            ring.slots_word,
            ring.header.slot_count,
            ring.slot_words,
            word_index(layout.PUBLISHED_OFFSET),
            word_index(layout.FULL_COUNT_OFFSET),
            word_index(layout.EXTRA_OFFSET),
            ring.header.consumers_max,
            word_index(layout.CONSUMER_BYTES),
            word_index(layout.CONSUMER_RELEASED),
        )
        self.try_publish = core.try_publish
        self.try_publish_record = core.try_publish_record
        self.try_publish_batch = core.try_publish_batch
        self.try_claim = core.try_claim
        self.store = core.store
        self.publish_upto = core.publish_upto

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        slot_count: int,
        slot_size: int,
        record_schema: tuple[int, int],
        name: str,
        consumers_max: int = CONSUMERS_MAX_DEFAULT,
    ) -> GatingProducer:
        """Create the ring for up to ``consumers_max`` consumers (64 at most) at a time.

        ``slot_count`` must be a power of two; ``slot_size`` is 64 for records of seven words. Errors as
        :func:`ringbuffer.segment.create`.
        """
        ring = segment.create(
            path,
            Kind.GATING,
            slot_count=slot_count,
            slot_size=slot_size,
            record_schema=record_schema,
            name=name,
            consumers_max=consumers_max,
        )
        return cls(ring)

    @property
    def full_count(self) -> int:
        """Times a claim was refused because the ring was full."""
        return self.segment.words.load_relaxed(word_index(layout.FULL_COUNT_OFFSET))

    @property
    def dropped_count(self) -> int:
        """Consumers dropped because their process had died."""
        return self.segment.words.load_relaxed(word_index(layout.DROPPED_COUNT_OFFSET))

    def drop_dead_consumers(self) -> list[str]:
        """Free the rows of consumers whose process has died; return their names.

        A dead consumer would gate the ring for ever. A slow one is never dropped: only the end of its process counts,
        as /proc shows it, so consumers must run in the producer's pid namespace. Not for the path. Returns nothing
        while another process is just registering; call it again. Raises RingError, and drops nobody, when the system
        does not tell: Missing when the ring's directory is gone.
        """
        with _registration_lock(self.segment.path, block=False) as locked:
            if not locked:
                return []
            dead = [row for row in consumer_rows(self.segment) if row.is_active and not row.is_alive]
            for row in dead:
                row.free()
        self.segment.words.store_relaxed(word_index(layout.DROPPED_COUNT_OFFSET), self.dropped_count + len(dead))
        return [row.name for row in dead]


class GatingConsumer:
    """A consumer that the producer waits for. Use it from one thread.

    ``poll(limit)`` returns the half-open range (first, end) of sequences to read, empty when first == end, and the same
    range again until it was released. ``read(sequence)`` returns a record's seven words, ``read_record(sequence)`` its
    payload. ``spin(limit_ns)`` looks at the ring without a pause until there are unreleased records, at most that long,
    and returns how many. ``poll_into(buffer[, spin_ns])`` spins likewise while there is nothing, then copies as many
    unreleased records as fit into a writable, contiguous buffer, each as its sequence and its payload (``slot_size``
    bytes), and returns how many. ``release(end)`` lets the producer overwrite everything below ``end``. All are methods
    of the backend itself.
    """

    def __init__(self, ring: Segment, row: ConsumerRow) -> None:
        self.segment = ring
        self.name = row.name
        self._row = row
        self._is_closed = False
        core = words.core.GatingReader(
            ring.mapping,
            ring.slots_word,
            ring.header.slot_count,
            ring.slot_words,
            word_index(layout.PUBLISHED_OFFSET),
            row.word(layout.CONSUMER_RELEASED),
            row.word(layout.CONSUMER_HEARTBEAT),
            row.word(layout.CONSUMER_HANDED),
        )
        self._core = core
        self.poll = core.poll
        self.poll_into = core.poll_into
        self.spin = core.spin
        self.read = core.read
        self.read_record = core.read_record
        self.release = core.release

    @classmethod
    def register(cls, path: Path | str, name: str, *, record_schema: tuple[int, int] | None = None) -> GatingConsumer:
        """Take a row of the consumer table; records published from now on are this consumer's too.

        Works in the producer's own process as well. Raises ConsumersFull, ValueError for a name longer than 64 bytes,
        and what :func:`ringbuffer.segment.attach` raises.
        """
        raw_name = layout.pack_text(name, layout.NAME_BYTES, "consumer name")
        ring = segment.attach(path, (Kind.GATING,), record_schema=record_schema, writable=True)
        with _registration_lock(Path(path), block=True):
            row = next((row for row in consumer_rows(ring) if not row.is_active), None)
            if row is None:
                raise ConsumersFull(f"{path} has {ring.header.consumers_max} consumer rows, all taken")
            row.take(raw_name)
        return cls(ring, row)

    @property
    def position(self) -> int:
        """First sequence that was not released."""
        return self._core.position

    @property
    def lag(self) -> int:
        """Records published and not released."""
        return self.segment.published - self._core.position

    def close(self) -> None:
        """Free the row, so that this consumer gates no more. Closing twice does nothing, nor does it in a forked
        child, whose parent has the row, or when the row was dropped.
        """
        if self._is_closed:
            return
        self._is_closed = True
        try:
            with _registration_lock(self.segment.path, block=True):
                self._row.give_back()
        except Missing:
            self._row.give_back()  # the directory is gone: nobody else can come to the row by its name


class ConsumerRow:
    """One row of the consumer table."""

    def __init__(self, ring: Segment, index: int) -> None:
        self._segment = ring
        self._words = ring.words
        self._offset = layout.consumer_offset(index)
        self._own_registered_ns = 0

    def word(self, field_offset: int) -> int:
        """Return the index of a word of this row."""
        return word_index(self._offset + field_offset)

    @property
    def is_active(self) -> bool:
        """Whether a consumer has this row."""
        return self._words.load_acquire(self.word(layout.CONSUMER_STATE)) == layout.CONSUMER_ACTIVE  # SYNC F

    @property
    def pid(self) -> int:
        """Process of the consumer."""
        return self._words.load_relaxed(self.word(layout.CONSUMER_PID))

    @property
    def is_alive(self) -> bool:
        """Whether the consumer's process still runs."""
        return process.is_alive(self.pid, self._words.load_relaxed(self.word(layout.CONSUMER_START_TICKS)))

    @property
    def is_own(self) -> bool:
        """Whether this very object took the row in this very process, and nobody after it."""
        registered_ns = self._words.load_relaxed(self.word(layout.CONSUMER_REGISTERED))
        return self.is_active and self.pid == os.getpid() and registered_ns == self._own_registered_ns

    @property
    def name(self) -> str:
        """Name the consumer registered under."""
        first = self._offset + layout.CONSUMER_NAME
        return layout.unpack_text(self._segment.mapping[first : first + layout.NAME_BYTES])

    @property
    def released(self) -> int:
        """First sequence the consumer has not released."""
        return self._words.load_acquire(self.word(layout.CONSUMER_RELEASED))  # SYNC D

    @property
    def heartbeat_ns(self) -> int:
        """Monotonic time at which the consumer released last, or was handed records after it had none."""
        return self._words.load_relaxed(self.word(layout.CONSUMER_HEARTBEAT))

    @property
    def handed(self) -> int:
        """First sequence the consumer has not been handed. What it has in hand it has since its heartbeat."""
        return self._words.load_acquire(self.word(layout.CONSUMER_HANDED))  # SYNC C

    def take(self, raw_name: bytes) -> None:
        """Fill the row and activate it. The caller holds the registration lock."""
        first = self._offset + layout.CONSUMER_NAME
        self._segment.mapping[first : first + layout.NAME_BYTES] = raw_name
        released = self.word(layout.CONSUMER_RELEASED)
        live = self._words
        self._own_registered_ns = time.monotonic_ns()
        fields = {
            layout.CONSUMER_PID: os.getpid(),
            layout.CONSUMER_START_TICKS: process.start_ticks(os.getpid()),
            layout.CONSUMER_REGISTERED: self._own_registered_ns,
            layout.CONSUMER_HEARTBEAT: self._own_registered_ns,
            layout.CONSUMER_HANDED: 0,
            layout.CONSUMER_RELEASED: self._segment.published,
        }
        for field_offset, value in fields.items():
            live.store_relaxed(self.word(field_offset), value)
        live.store_release(self.word(layout.CONSUMER_STATE), layout.CONSUMER_ACTIVE)  # SYNC F
        # A producer that looked before the row was active may go one whole ring beyond what it had published then.
        # Behind this fence we see at least that much as published, so beginning there nothing can be overwritten.
        live.fence()  # SYNC E
        live.store_release(released, self._segment.published)  # SYNC D

    def free(self) -> None:
        """Free the row. The caller holds the registration lock."""
        self._words.store_release(self.word(layout.CONSUMER_STATE), layout.CONSUMER_FREE)  # SYNC F

    def give_back(self) -> None:
        """Free the row if it is still the own one."""
        if self.is_own:
            self.free()


def consumer_rows(ring: Segment) -> list[ConsumerRow]:
    """Return all rows of a ring's consumer table, free ones included."""
    return [ConsumerRow(ring, index) for index in range(ring.header.consumers_max)]


@contextlib.contextmanager
def _registration_lock(path: Path, *, block: bool) -> Iterator[bool]:
    """Hold the flock under which consumer rows change hands; yields False when it is taken and ``block`` is not set."""
    descriptor = segment.open_file(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)
