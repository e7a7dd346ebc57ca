"""One look at a segment, a generation or an instance: strictly read-only."""

from __future__ import annotations

import stat
import time
from dataclasses import dataclass
from pathlib import Path

from ringbuffer import layout, segment
from ringbuffer.counters import CounterSpec, read_counters
from ringbuffer.distinct import DistinctError, read_distinct_errors
from ringbuffer.errors import ForeignFile, Missing, RingError, WrongKind
from ringbuffer.gating import ConsumerRow, consumer_rows
from ringbuffer.generation import WriterState, find_current, is_instance, segment_files, writer_state
from ringbuffer.layout import Kind, word_index
from ringbuffer.readers import READERS_DIRECTORY
from ringbuffer.segment import HUNG_AFTER_S, Header, Segment
from ringbuffer.table import count_rows_in_use

CounterSample = tuple[CounterSpec, int]
"""A counter and its value."""
_SEGMENT_KINDS = tuple(kind for kind in Kind if kind is not Kind.READER_POSITION)


@dataclass(frozen=True, slots=True)
class ReaderSample:
    """A consumer of a gating ring (``gates``), or a reader of a lossy one that keeps a position file.

    ``handed`` is the first sequence a consumer has not been handed: what lies between it and ``position`` it has had in
    hand since ``heartbeat_ns`` at the latest. 0 for a lossy reader. ``waiting_since_ns`` is when the record at
    ``position`` was first seen waiting there, by this and the looks before; None when this is the first look at it.
    """

    name: str
    gates: bool
    pid: int
    is_alive: bool
    position: int
    lost: int
    heartbeat_ns: int
    handed: int = 0
    waiting_since_ns: int | None = None


@dataclass(frozen=True, slots=True)
class SegmentSample:
    """What one segment showed at ``taken_ns``, CLOCK_MONOTONIC.

    ``process_state`` is the kernel's word for the process of a hung writer, such as ``T (stopped)``, else empty.
    """

    path: Path
    inode: int
    header: Header
    taken_ns: int
    hung_after_s: float
    state: WriterState
    process_state: str
    heartbeat_ns: int
    published: int
    full_count: int
    dropped_count: int
    rows_in_use: int
    readers: tuple[ReaderSample, ...]
    counters: tuple[CounterSample, ...]
    distinct_errors: tuple[DistinctError, ...] | None


@dataclass(frozen=True, slots=True)
class Sample:
    """All segments found at a path, and the files there that could not be read, with the reason.

    Files that are no segments are nobody's business and are not among them; damaged segments are.
    """

    path: Path
    segments: tuple[SegmentSample, ...]
    errors: tuple[tuple[Path, RingError], ...]


def take(path: Path, hung_after_s: float = HUNG_AFTER_S) -> Sample:
    """Look at a segment, a generation directory, or an instance directory (its current generation).

    Raises Missing when there is nothing, AccessDenied, else RingError when the path cannot be looked at, and for a
    single file whatever :func:`ringbuffer.segment.attach` and :func:`ringbuffer.segment.published_rows` raise.
    """
    if not stat.S_ISDIR(segment.mode_at(path)):
        return Sample(path, (take_segment(path, hung_after_s),), ())
    directory = find_current(path) if is_instance(path) else path
    segments: list[SegmentSample] = []
    errors: list[tuple[Path, RingError]] = []
    for each in segment_files(directory):
        try:
            segments.append(take_segment(each, hung_after_s))
        except ForeignFile:
            continue  # sockets' neighbours, notes: not ours to complain about
        except RingError as error:
            errors.append((each, error))
    errors += _reader_errors(directory / READERS_DIRECTORY)
    if not segments and not errors:
        raise Missing(f"there is no segment in {directory}")
    return Sample(directory, tuple(segments), tuple(errors))


def take_segment(path: Path, hung_after_s: float = HUNG_AFTER_S) -> SegmentSample:
    """Look at one segment; errors as :func:`ringbuffer.segment.attach`, and Corrupt for what it cannot hold."""
    attached = segment.attach(path, _SEGMENT_KINDS)
    header = attached.header
    # Readers first: a position read before ``published`` can only make a lag look longer, never negative.
    readers = _consumers(attached) if header.kind is Kind.GATING else ()
    readers += _lossy_readers(path.parent / READERS_DIRECTORY, header.name)
    state = writer_state(path, hung_after_s)
    if header.kind is Kind.APPEND:
        segment.published_rows(attached)
    return SegmentSample(
        path=path,
        inode=attached.inode,
        header=header,
        taken_ns=time.monotonic_ns(),
        hung_after_s=hung_after_s,
        state=state,
        process_state=_process_state(header.writer_pid) if state == "hung" else "",
        heartbeat_ns=attached.heartbeat_ns,
        published=attached.published,
        full_count=_word(attached, layout.FULL_COUNT_OFFSET),
        dropped_count=_word(attached, layout.DROPPED_COUNT_OFFSET),
        rows_in_use=count_rows_in_use(attached) if header.kind is Kind.TABLE else 0,
        readers=readers,
        counters=tuple(read_counters(attached)) if header.kind is Kind.COUNTERS else (),
        distinct_errors=tuple(read_distinct_errors(attached)) if header.kind is Kind.ERRORS else None,
    )


def _process_state(pid: int) -> str:
    """Return what the kernel says a process does: ``T (stopped)``, ``D (disk sleep)``, …; empty when it is not told."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.removeprefix("State:").strip() for line in lines if line.startswith("State:")), "")


def _word(attached: Segment, offset: int) -> int:
    return attached.words.load_relaxed(word_index(offset))


def _consumers(ring: Segment) -> tuple[ReaderSample, ...]:
    return tuple(_consumer(row) for row in consumer_rows(ring) if row.is_active)


def _consumer(row: ConsumerRow) -> ReaderSample:
    # Read in this order the heartbeat is never older than what was handed.
    position, handed, heartbeat_ns = row.released, row.handed, row.heartbeat_ns
    return ReaderSample(row.name, True, row.pid, row.is_alive, position, 0, heartbeat_ns, handed)


def _lossy_readers(directory: Path, ring_name: str) -> tuple[ReaderSample, ...]:
    found = (_lossy_reader(path, ring_name) for path in _position_files(directory))
    return tuple(each for each in found if each is not None)


def _position_files(directory: Path) -> list[Path]:
    """Return the files of a directory of positions; none when it cannot be read, see :func:`_reader_errors`."""
    try:
        return segment_files(directory)
    except RingError:
        return []


def _reader_errors(directory: Path) -> list[tuple[Path, RingError]]:
    """Return what stands in the way of showing lossy readers; one that has just left does not, nor do foreign files."""
    errors: list[tuple[Path, RingError]] = []
    try:
        paths = segment_files(directory)
    except Missing:
        return []
    except RingError as error:
        return [(directory, error)]
    for path in paths:
        try:
            segment.attach(path, (Kind.READER_POSITION,))
        except (Missing, ForeignFile, WrongKind):
            continue
        except RingError as error:
            errors.append((path, error))
    return errors


def _lossy_reader(path: Path, ring_name: str) -> ReaderSample | None:
    """Return the reader whose position file this is, None when it reads another ring or has just left."""
    try:
        own = segment.attach(path, (Kind.READER_POSITION,))
        is_alive = segment.is_locked(path)
    except RingError:
        return None
    header = own.header
    raw_name = own.mapping[header.header_size : header.header_size + layout.NAME_BYTES]
    if layout.unpack_text(raw_name) != ring_name:
        return None
    lost = _word(own, layout.FULL_COUNT_OFFSET)
    return ReaderSample(header.name, False, header.writer_pid, is_alive, own.published, lost, own.heartbeat_ns)
