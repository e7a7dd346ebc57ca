"""One segment: a mapped file with a header, created whole or attached after every check.

A segment is built under a temporary name and renamed when it is complete, so a reader never meets half of one by name.
Its writer holds an flock on it from before that rename until it closes or dies: the kernel drops the lock even after
SIGKILL, so a held lock means *alive*. The heartbeat word says whether that live writer still makes progress.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ringbuffer import layout, process, words
from ringbuffer.errors import (
    Corrupt,
    ForeignFile,
    Missing,
    NotReady,
    RingError,
    Truncated,
    VersionMismatch,
    WriterAlive,
    WrongEndianness,
    WrongKind,
    named,
)
from ringbuffer.layout import Kind, word_index

FILE_MODE: Final = 0o640
HUNG_AFTER_S: Final = 5.0
"""A live writer whose heartbeat is older than this is called hung, unless the caller knows better."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a segment says about itself; it never changes once the segment can be attached."""

    kind: Kind
    layout_version: tuple[int, int]
    record_schema: tuple[int, int]
    header_size: int
    slot_count: int
    slot_size: int
    file_size: int
    writer_pid: int
    writer_start_ticks: int
    created_mono_ns: int
    anchor_wall_ns: int
    anchor_mono_ns: int
    boot_id: uuid.UUID
    name: str
    consumers_max: int

    def wall_ns(self, mono_ns: int) -> int:
        """Return the calendar time, ns since 1970, of a monotonic stamp of the same boot."""
        return self.anchor_wall_ns + mono_ns - self.anchor_mono_ns


class Segment:
    """A mapped segment. ``words`` reaches its live words; ``mapping`` is the whole file.

    The mapping lives until the last object that uses it is gone, bound methods included: closing can never pull memory
    away from under a caller.
    """

    def __init__(self, path: Path, header: Header, mapping: mmap.mmap, inode: int, lock_descriptor: int = -1) -> None:
        self.path = path
        self.header = header
        self.mapping = mapping
        self.words = words.core.Words(mapping)
        self.inode = inode
        self._lock_descriptor = lock_descriptor
        self._owner_pid = os.getpid()

    @property
    def slots_word(self) -> int:
        """Index of the first word of slot 0."""
        return word_index(self.header.header_size)

    @property
    def slot_words(self) -> int:
        """Words per slot."""
        return word_index(self.header.slot_size)

    @property
    def published(self) -> int:
        """Number of records published: sequences 0 … published-1."""
        return self.words.load_acquire(word_index(layout.PUBLISHED_OFFSET))  # SYNC A

    @property
    def heartbeat_ns(self) -> int:
        """Monotonic time of the writer's last beat."""
        return self.words.load_relaxed(word_index(layout.HEARTBEAT_OFFSET))

    @property
    def is_owner(self) -> bool:
        """Whether this process made the object, and did not inherit it by a fork."""
        return os.getpid() == self._owner_pid

    def beat(self, now_ns: int) -> None:
        """Store the heartbeat: the writer is making progress at ``now_ns``, CLOCK_MONOTONIC."""
        self.words.store_relaxed(word_index(layout.HEARTBEAT_OFFSET), now_ns)

    def close(self) -> None:
        """Give up the writer's lock. Does nothing the second time, and for whoever only attached.

        In a forked child the lock is the parent's, and stays.
        """
        if self._lock_descriptor < 0:
            return
        if self.is_owner:
            # The mapping keeps a duplicate of the descriptor, and with it the lock: it has to be given up by name.
            fcntl.flock(self._lock_descriptor, fcntl.LOCK_UN)
        os.close(self._lock_descriptor)
        self._lock_descriptor = -1


def is_locked(path: Path) -> bool:
    """Tell whether a live writer holds the lock of a segment or generation directory.

    Asking takes the lock for a moment. That cannot disturb a writer: it takes its lock before the path gets this name.
    """
    descriptor = open_file(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def create(
    path: Path | str,
    kind: Kind,
    *,
    slot_count: int,
    slot_size: int,
    record_schema: tuple[int, int],
    name: str,
    consumers_max: int = 0,
    payload: bytes = b"",
) -> Segment:
    """Create a segment and take its writer's lock; ``payload`` is what slot 0 and those behind it hold at first.

    The file appears under ``path`` only when it is complete and all of its memory is reserved. Raises WriterAlive when
    a live writer has a segment there, NoSpace, AccessDenied, Missing (no such directory), ValueError for bad sizes,
    else RingError with the system's words (no descriptors left, no memory) and its OSError as the cause.
    """
    path = Path(path)
    _check_sizes(kind, slot_count, slot_size, consumers_max)
    raw_name = layout.pack_text(name, layout.NAME_BYTES, "segment name")
    _refuse_live_writer(path)
    first_slot = layout.header_size(kind, consumers_max)
    fields = {
        layout.HEADER_SIZE_OFFSET: first_slot,
        layout.KIND_OFFSET: kind,
        layout.SLOT_COUNT_OFFSET: slot_count,
        layout.SLOT_SIZE_OFFSET: slot_size,
        layout.RECORD_SCHEMA_OFFSET: layout.pack_version(record_schema),
        layout.FILE_SIZE_OFFSET: first_slot + slot_count * slot_size,
        layout.CONSUMERS_MAX_OFFSET: consumers_max,
    }
    try:
        return _build(path, fields, raw_name, payload)
    except OSError as error:
        raise named(error, f"{path} cannot be created") from error


def _build(path: Path, fields: dict[int, int], raw_name: bytes, payload: bytes) -> Segment:
    """Build the segment under a temporary name and rename it when it is whole; nothing is left when that fails."""
    first_slot, file_size = fields[layout.HEADER_SIZE_OFFSET], fields[layout.FILE_SIZE_OFFSET]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    descriptor = open_file(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        os.fchmod(descriptor, FILE_MODE)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _reserve(descriptor, file_size, path)
        mapping = mmap.mmap(descriptor, file_size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        mapping[first_slot : first_slot + len(payload)] = payload
        _write_header(mapping, fields, raw_name)
        segment = Segment(path, _read_header(mapping, path), mapping, os.fstat(descriptor).st_ino, descriptor)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)
        raise
    return segment


def attach(
    path: Path | str, kinds: tuple[Kind, ...], *, record_schema: tuple[int, int] | None = None, writable: bool = False
) -> Segment:
    """Map an existing segment, read-only unless ``writable``, after checking all that its header says.

    ``record_schema`` is what the caller understands: another major is refused, a higher minor tolerated. Raises
    Missing, NotReady, ForeignFile, Corrupt, WrongEndianness, VersionMismatch, Truncated, WrongKind, AccessDenied.
    """
    path = Path(path)
    descriptor = open_file(path, os.O_RDWR if writable else os.O_RDONLY)
    try:
        mapping = _map_existing(descriptor, path, writable)
        header = _read_header(mapping, path)
        _check_header(header, len(mapping), path)
        if header.kind not in kinds:
            raise WrongKind(f"{path} is of kind {header.kind.name}, not {' or '.join(kind.name for kind in kinds)}")
        if record_schema is not None and header.record_schema[0] != record_schema[0]:
            raise VersionMismatch(
                f"{path} has record schema {header.record_schema}, this program knows {record_schema}"
            )
        return Segment(path, header, mapping, os.fstat(descriptor).st_ino)
    finally:
        os.close(descriptor)  # the mapping stays


def published_rows(segment: Segment) -> int:
    """Return how many rows of a table that only grows are written; raises Corrupt when it has not as many."""
    published, row_count = segment.published, segment.header.slot_count
    if published > row_count:
        raise Corrupt(f"{segment.path} says that {published} rows are written, it has {row_count}")
    return published


def mode_at(path: Path, *, follow: bool = True) -> int:
    """Return the mode of what is at a path, 0 when nothing is; raises AccessDenied, ForeignFile, else RingError."""
    try:
        return os.stat(path, follow_symlinks=follow).st_mode
    except OSError as error:
        reason = named(error, f"{path} cannot be looked at")
        if isinstance(reason, Missing):
            return 0
        raise reason from error


def open_file(path: Path, flags: int) -> int:
    """Return a descriptor of a file; raises Missing, AccessDenied, ForeignFile, NoSpace, else RingError."""
    try:
        # Not blocking: the name may belong to a pipe, which has no say in when we go on.
        return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, FILE_MODE)
    except OSError as error:
        raise named(error, f"{path} cannot be opened") from error


def _reserve(descriptor: int, size: int, path: Path) -> None:
    """Reserve every page now: on a full tmpfs a sparse file would kill the writer with SIGBUS at its first store."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        raise named(error, f"{path} needs {size} bytes, the file system refused") from error


def _refuse_live_writer(path: Path) -> None:
    try:
        locked = is_locked(path)
    except Missing:
        return
    if locked:
        raise WriterAlive(path, writer_pid(path))


def writer_pid(path: Path) -> int:
    """Return the pid in the header of a segment, 0 when it cannot be read."""
    try:
        return attach(path, tuple(Kind)).header.writer_pid
    except RingError:
        return 0


def _check_sizes(kind: Kind, slot_count: int, slot_size: int, consumers_max: int) -> None:
    if not 1 <= slot_count <= layout.SLOT_COUNT_MAX:
        raise ValueError(f"slot_count is {slot_count}, must be 1 to {layout.SLOT_COUNT_MAX}")
    if kind in (Kind.BROADCAST, Kind.GATING) and slot_count & (slot_count - 1):
        raise ValueError(f"slot_count of a ring is {slot_count}, must be a power of two")
    if not 16 <= slot_size <= layout.SLOT_SIZE_MAX or slot_size % layout.WORD_BYTES:
        raise ValueError(f"slot_size is {slot_size}, must be a multiple of 8, 16 to {layout.SLOT_SIZE_MAX}")
    if not 0 <= consumers_max <= layout.CONSUMERS_LIMIT:
        raise ValueError(f"consumers_max is {consumers_max}, must be 0 to {layout.CONSUMERS_LIMIT}")


def _write_header(mapping: mmap.mmap, fields: dict[int, int], raw_name: bytes) -> None:
    live = words.core.Words(mapping)
    mapping[layout.NAME_OFFSET : layout.NAME_OFFSET + layout.NAME_BYTES] = raw_name
    mapping[layout.BOOT_ID_OFFSET : layout.BOOT_ID_OFFSET + layout.BOOT_ID_BYTES] = process.boot_id().bytes
    now_ns = time.monotonic_ns()
    every_segment = {
        layout.LAYOUT_VERSION_OFFSET: layout.pack_version(layout.LAYOUT_VERSION),
        layout.ENDIAN_MARK_OFFSET: layout.ENDIAN_MARK,
        layout.WRITER_PID_OFFSET: os.getpid(),
        layout.WRITER_START_TICKS_OFFSET: process.start_ticks(os.getpid()),
        layout.CREATED_MONO_OFFSET: now_ns,
        layout.ANCHOR_WALL_OFFSET: time.time_ns(),
        layout.ANCHOR_MONO_OFFSET: now_ns,
        layout.HEARTBEAT_OFFSET: now_ns,
    }
    for offset, value in (fields | every_segment).items():
        live.store_relaxed(word_index(offset), value)
    live.store_release(word_index(layout.MAGIC_OFFSET), layout.MAGIC)  # SYNC M: the header stands before its magic


def _map_existing(descriptor: int, path: Path, writable: bool) -> mmap.mmap:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ForeignFile(f"{path} is not a regular file")
    if status.st_size < layout.PAGE_BYTES:
        _check_beginning(os.pread(descriptor, layout.WORD_BYTES, 0), path)
        raise Truncated(f"{path} has {status.st_size} bytes, a header has {layout.PAGE_BYTES}")
    protection = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
    try:
        return mmap.mmap(descriptor, status.st_size, flags=mmap.MAP_SHARED, prot=protection)
    except OSError as error:
        raise named(error, f"{path} cannot be mapped") from error


def _read_header(mapping: mmap.mmap, path: Path) -> Header:
    live = words.core.Words(mapping)

    def field(offset: int) -> int:
        return live.load_relaxed(word_index(offset))

    _check_magic(live.load_acquire(word_index(layout.MAGIC_OFFSET)), path)  # SYNC M
    if field(layout.ENDIAN_MARK_OFFSET) != layout.ENDIAN_MARK:
        raise WrongEndianness(f"{path} has endian mark {field(layout.ENDIAN_MARK_OFFSET):#x}")
    version = layout.unpack_version(field(layout.LAYOUT_VERSION_OFFSET))
    if version[0] != layout.LAYOUT_VERSION[0]:
        raise VersionMismatch(f"{path} has layout version {version}, this program knows {layout.LAYOUT_VERSION}")
    try:
        kind = Kind(field(layout.KIND_OFFSET))
    except ValueError as error:
        known = f"known are {min(Kind)} to {max(Kind)}"
        raise Corrupt(f"{path} is of kind {field(layout.KIND_OFFSET)}, {known}") from error
    return Header(
        kind=kind,
        layout_version=version,
        record_schema=layout.unpack_version(field(layout.RECORD_SCHEMA_OFFSET)),
        header_size=field(layout.HEADER_SIZE_OFFSET),
        slot_count=field(layout.SLOT_COUNT_OFFSET),
        slot_size=field(layout.SLOT_SIZE_OFFSET),
        file_size=field(layout.FILE_SIZE_OFFSET),
        writer_pid=field(layout.WRITER_PID_OFFSET),
        writer_start_ticks=field(layout.WRITER_START_TICKS_OFFSET),
        created_mono_ns=field(layout.CREATED_MONO_OFFSET),
        anchor_wall_ns=field(layout.ANCHOR_WALL_OFFSET),
        anchor_mono_ns=field(layout.ANCHOR_MONO_OFFSET),
        boot_id=uuid.UUID(bytes=mapping[layout.BOOT_ID_OFFSET : layout.BOOT_ID_OFFSET + layout.BOOT_ID_BYTES]),
        name=layout.unpack_text(mapping[layout.NAME_OFFSET : layout.NAME_OFFSET + layout.NAME_BYTES]),
        consumers_max=field(layout.CONSUMERS_MAX_OFFSET),
    )


def _check_beginning(beginning: bytes, path: Path) -> None:
    """Raise an error for a file that is too short for a header and is not the beginning of a segment either.

    Less than a magic word is one as far as it goes: an empty file may be what is left of a segment.
    """
    magic = layout.MAGIC.to_bytes(layout.WORD_BYTES, "little")
    if not magic.startswith(beginning):
        _check_magic(int.from_bytes(beginning, "little"), path)


def _check_magic(magic: int, path: Path) -> None:
    if magic == layout.MAGIC:
        return
    if magic == 0:
        raise NotReady(f"{path} has no magic yet: nobody finished building it")
    if magic == layout.MAGIC_SWAPPED:
        raise WrongEndianness(f"{path} was written on a machine of the other byte order")
    raise ForeignFile(f"{path} does not begin with the magic of a segment")


def _check_header(header: Header, mapped_size: int, path: Path) -> None:
    try:
        _check_sizes(header.kind, header.slot_count, header.slot_size, header.consumers_max)
    except ValueError as error:
        raise Corrupt(f"{path} has a broken header: {error}") from error
    _check_header_values(header, path)
    needed = header.header_size + header.slot_count * header.slot_size
    header_needed = layout.header_size(header.kind, header.consumers_max)
    if header.header_size < header_needed or header.header_size % layout.WORD_BYTES or needed > header.file_size:
        raise Corrupt(
            f"{path} has a broken header: {header.slot_count} slots of {header.slot_size} bytes from byte "
            f"{header.header_size} on do not fit behind {header_needed} of header into {header.file_size}"
        )
    if mapped_size < header.file_size:
        raise Truncated(f"{path} has {mapped_size} bytes, its header says {header.file_size}")


def _check_header_values(header: Header, path: Path) -> None:
    slot_size_min = layout.slot_size_min(header.kind)
    if header.slot_size < slot_size_min:
        needed = f"{header.kind.name} needs {slot_size_min}"
        raise Corrupt(f"{path} has a broken header: slot_size is {header.slot_size}, {needed}")
    for name in ("created_mono_ns", "anchor_wall_ns", "anchor_mono_ns"):
        if getattr(header, name) > layout.TIME_NS_MAX:
            limit = f"must be at most {layout.TIME_NS_MAX}"
            raise Corrupt(f"{path} has a broken header: {name} is {getattr(header, name)}, {limit}")
