"""Distinct errors: each kind of failure once, with how often and when, however many there are of it.

A storm of one error costs a look-up and two stores for each, and its record never grows. A row is never rewritten, only
its count and its last time move: whenever the writer is killed, every row that is counted can be read whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ringbuffer import layout, segment
from ringbuffer.errors import Corrupt
from ringbuffer.layout import Kind, unpack_text, word_index
from ringbuffer.segment import Segment
from ringbuffer.writer import SegmentWriter

ERRORS_SCHEMA: Final = (1, 0)
TEXT_BYTES: Final = layout.ERROR_ROW_BYTES - layout.ERROR_TEXT
"""Longer texts are cut; those that differ only beyond this count as one."""


@dataclass(frozen=True, slots=True)
class DistinctError:
    """One error, observed ``count`` times; ``first_ns`` and ``last_ns`` are CLOCK_MONOTONIC."""

    text: str
    count: int
    first_ns: int
    last_ns: int


class DistinctErrorsWriter(SegmentWriter):
    """Writer of the distinct errors. A text names a kind of failure: keep numbers that always differ out of it."""

    def __init__(self, errors: Segment) -> None:
        super().__init__(errors)
        self._rows: dict[bytes, int] = {}  # text → row; never more than there are rows

    @classmethod
    def create(cls, path: Path | str, *, row_count: int, name: str = "errors") -> DistinctErrorsWriter:
        """Create room for ``row_count`` different errors; errors as :func:`ringbuffer.segment.create`."""
        return cls(
            segment.create(
                path,
                Kind.ERRORS,
                slot_count=row_count,
                slot_size=layout.ERROR_ROW_BYTES,
                record_schema=ERRORS_SCHEMA,
                name=name,
            )
        )

    @property
    def overflow_count(self) -> int:
        """Observations of errors that found no row left."""
        return _overflow_count(self.segment)

    def note(self, text: str, now_ns: int) -> None:
        """Count one observation of the error ``text`` at ``now_ns``, CLOCK_MONOTONIC. Never fails for want of room."""
        key = _raw_text(text)
        row = self._rows.get(key)
        if row is not None:
            self._count_again(row, now_ns)
        elif len(self._rows) < self.segment.header.slot_count:
            self._add(key, now_ns)
        else:
            self.segment.words.store_relaxed(word_index(layout.FULL_COUNT_OFFSET), self.overflow_count + 1)

    def _count_again(self, row: int, now_ns: int) -> None:
        live = self.segment.words
        first = _first_word(self.segment, row)
        count = first + word_index(layout.ERROR_COUNT)
        live.store_relaxed(first + word_index(layout.ERROR_LAST), now_ns)
        live.store_release(count, live.load_relaxed(count) + 1)  # SYNC C

    def _add(self, key: bytes, now_ns: int) -> None:
        row = len(self._rows)
        live = self.segment.words
        first = _first_word(self.segment, row)
        text_at = first * layout.WORD_BYTES + layout.ERROR_TEXT
        self.segment.mapping[text_at : text_at + len(key)] = key
        live.store_relaxed(first + word_index(layout.ERROR_FIRST), now_ns)
        live.store_relaxed(first + word_index(layout.ERROR_LAST), now_ns)
        live.store_release(first + word_index(layout.ERROR_COUNT), 1)  # SYNC C: text and times stand before the count
        live.store_release(word_index(layout.PUBLISHED_OFFSET), row + 1)  # SYNC A
        self._rows[key] = row


class DistinctErrorsReader:
    """Reader of distinct errors through a read-only mapping."""

    def __init__(self, errors: Segment) -> None:
        self.segment = errors
        self.header = errors.header

    @classmethod
    def attach(cls, path: Path | str) -> DistinctErrorsReader:
        """Attach to distinct errors; errors as :func:`ringbuffer.segment.attach`."""
        return cls(segment.attach(path, (Kind.ERRORS,), record_schema=ERRORS_SCHEMA))

    @property
    def overflow_count(self) -> int:
        """Observations of errors that found no row left."""
        return _overflow_count(self.segment)

    def read(self) -> list[DistinctError]:
        """Return every error, in the order of their first observation; raises Corrupt for what cannot be true."""
        return read_distinct_errors(self.segment)

    def close(self) -> None:
        """Detach; the mapping goes with the last object that uses it."""
        self.segment.close()


def read_distinct_errors(errors: Segment) -> list[DistinctError]:
    """Return every error of a segment, in the order of their first observation; raises Corrupt."""
    return [_read_row(errors, _first_word(errors, row)) for row in range(segment.published_rows(errors))]


def _read_row(errors: Segment, first: int) -> DistinctError:
    live = errors.words
    count = live.load_acquire(first + word_index(layout.ERROR_COUNT))  # SYNC C
    text_at = first * layout.WORD_BYTES + layout.ERROR_TEXT
    times_ns = [live.load_relaxed(first + word_index(each)) for each in (layout.ERROR_FIRST, layout.ERROR_LAST)]
    if max(times_ns) > layout.TIME_NS_MAX:
        raise Corrupt(f"{errors.path} has an error at {max(times_ns)} ns, the limit is {layout.TIME_NS_MAX}")
    return DistinctError(unpack_text(errors.mapping[text_at : text_at + TEXT_BYTES]), count, *times_ns)


def _first_word(errors: Segment, row: int) -> int:
    return errors.slots_word + row * errors.slot_words


def _overflow_count(errors: Segment) -> int:
    return errors.words.load_relaxed(word_index(layout.FULL_COUNT_OFFSET))


def _raw_text(text: str) -> bytes:
    """Return a text as UTF-8 that fits into a row, cut between two characters."""
    raw = text.encode("utf-8", "replace")
    return raw if len(raw) <= TEXT_BYTES else raw[:TEXT_BYTES].decode("utf-8", "ignore").encode()
