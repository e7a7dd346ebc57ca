"""The bytes of every segment: drawn here, named here once, asserted at import.

A segment is one file: a header, then ``slot_count`` slots of ``slot_size`` bytes. Every field is a native
little-endian 8-byte word unless it is text, so that each can be read and written as one atomic word. A *line* is 128
bytes: two cache lines of 64, because processors prefetch them in pairs. Words with different writers never share one.

Every segment::

    0x000  magic              stored last (SYNC M): 0 = not ready yet
    0x008  layout_version     major << 32 | minor
    0x010  header_size        offset of slot 0
    0x018  kind               Kind
    0x020  slot_count         a power of two in rings
    0x028  slot_size          bytes, a multiple of 8
    0x030  record_schema      major << 32 | minor of what the slots hold
    0x038  endian_mark        0x0102030405060708
    0x040  writer_pid
    0x048  writer_start_ticks field 22 of /proc/PID/stat: tells a reused pid apart
    0x050  created_mono_ns    CLOCK_MONOTONIC
    0x058  anchor_wall_ns     CLOCK_REALTIME  ┐ read together: turns monotonic stamps into
    0x060  anchor_mono_ns     CLOCK_MONOTONIC ┘ calendar time, within one boot_id
    0x068  boot_id            16 bytes
    0x078  file_size
    0x080  name               64 bytes of UTF-8, zero padded
    0x0c0  consumers_max      rows of the consumer table, 0 without one
    ─────────────────────────────────────────────────────── all above: never changes once magic stands
    0x100  published          records published: sequences 0 … published-1 exist       writer
    0x180  heartbeat          CLOCK_MONOTONIC ns: the writer is making progress        writer
    0x200  full_count         refusals: the ring was full                              writer
    0x208  dropped_count      consumers dropped because their process had died         writer
    0x400  gating ring: the consumer table · counters: the values · others: reserved
    header_size  slot 0, slot 1, …

Consumer table of a gating ring, ``consumers_max`` rows of two lines each::

    +0x00  state              0 free, 1 active      consumer, under the flock of the sibling ``.lock`` file
    +0x08  pid                                      the same
    +0x10  start_ticks                              the same
    +0x18  name               64 bytes of UTF-8     the same
    +0x58  registered         CLOCK_MONOTONIC ns: tells two owners of the row apart   the same
    +0x80  released           sequences below it may be overwritten                   consumer
    +0x88  heartbeat          CLOCK_MONOTONIC ns: it released, or began to have work  consumer
    +0x90  handed             sequences below it have been handed to it               consumer

Slot of a ring (broadcast, gating)::

    +0x00  sequence word      sequence + 1; 0 = empty, or being overwritten
    +0x08  payload            slot_size - 8 bytes

Row of a table, and of an append-only table::

    +0x00  row word           version << 2 | in use << 1 | being written: odd while a write runs
    +0x08  payload            row_size - 8 bytes

Counters: the values are signed words at 0x400, indexed by counter id, dense because they have one writer. The slots are
the catalogue::

    +0x00  id    +0x08  name 48 bytes    +0x38  unit 32 bytes    +0x58  label 168 bytes    (UTF-8, zero padded)

Row of the distinct errors; ``published`` counts the rows, ``full_count`` the observations that found no row left::

    +0x00  count              observations of this error; 0 = the row is free
    +0x08  first_ns           CLOCK_MONOTONIC of the first observation
    +0x10  last_ns            CLOCK_MONOTONIC of the last one
    +0x18  text               488 bytes of UTF-8, zero padded

Position of a lossy reader, one file per reader, written by that reader: ``published`` is its position, ``full_count``
the number of records it lost, slot 0 the name of the ring it reads (64 bytes of UTF-8).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

WORD_BYTES: Final = 8
LINE_BYTES: Final = 128
PAGE_BYTES: Final = 4096

MAGIC: Final = int.from_bytes(b"RINGBUF\x01", "little")
MAGIC_SWAPPED: Final = int.from_bytes(b"RINGBUF\x01", "big")
ENDIAN_MARK: Final = 0x0102030405060708
LAYOUT_VERSION: Final = (1, 0)
"""(major, minor). A reader refuses another major and tolerates a higher minor."""

MAGIC_OFFSET: Final = 0x000
LAYOUT_VERSION_OFFSET: Final = 0x008
HEADER_SIZE_OFFSET: Final = 0x010
KIND_OFFSET: Final = 0x018
SLOT_COUNT_OFFSET: Final = 0x020
SLOT_SIZE_OFFSET: Final = 0x028
RECORD_SCHEMA_OFFSET: Final = 0x030
ENDIAN_MARK_OFFSET: Final = 0x038
WRITER_PID_OFFSET: Final = 0x040
WRITER_START_TICKS_OFFSET: Final = 0x048
CREATED_MONO_OFFSET: Final = 0x050
ANCHOR_WALL_OFFSET: Final = 0x058
ANCHOR_MONO_OFFSET: Final = 0x060
BOOT_ID_OFFSET: Final = 0x068
FILE_SIZE_OFFSET: Final = 0x078
NAME_OFFSET: Final = 0x080
CONSUMERS_MAX_OFFSET: Final = 0x0C0
PUBLISHED_OFFSET: Final = 0x100
HEARTBEAT_OFFSET: Final = 0x180
FULL_COUNT_OFFSET: Final = 0x200
DROPPED_COUNT_OFFSET: Final = 0x208
EXTRA_OFFSET: Final = 0x400
"""Where the consumer table or the counter values begin."""

NAME_BYTES: Final = 64
BOOT_ID_BYTES: Final = 16

CONSUMER_BYTES: Final = 2 * LINE_BYTES
CONSUMER_STATE: Final = 0x00
CONSUMER_PID: Final = 0x08
CONSUMER_START_TICKS: Final = 0x10
CONSUMER_NAME: Final = 0x18
CONSUMER_REGISTERED: Final = 0x58
CONSUMER_RELEASED: Final = 0x80
CONSUMER_HEARTBEAT: Final = 0x88
CONSUMER_HANDED: Final = 0x90
CONSUMER_FREE: Final = 0
CONSUMER_ACTIVE: Final = 1
CONSUMERS_LIMIT: Final = 64
"""Most consumer rows of one ring: the producer scans all of them whenever the ring looks full."""

ROW_WRITING: Final = 1
ROW_IN_USE: Final = 2
ROW_VERSION: Final = 4
"""Bits of a row word; _ring.h has the same three."""

COUNTERS_MAX: Final = 1024
"""Counter ids are below this: the values fill two pages."""
COUNTER_SLOT_BYTES: Final = 256
COUNTER_NAME: Final = 0x08
COUNTER_UNIT: Final = 0x38
COUNTER_LABEL: Final = 0x58

ERROR_ROW_BYTES: Final = 512
ERROR_COUNT: Final = 0x00
ERROR_FIRST: Final = 0x08
ERROR_LAST: Final = 0x10
ERROR_TEXT: Final = 0x18

SLOT_COUNT_MAX: Final = 1 << 32
SLOT_SIZE_MAX: Final = 1 << 20
"""Bounds that keep every offset far below 2^63, so that sizes read from a broken header cannot wrap around."""
TIME_NS_MAX: Final = (1 << 63) - 1
"""No clock shows more before the year 2262, so a greater time is damage; sums of two below it fit into a word."""


class Kind(IntEnum):
    """What a segment is."""

    BROADCAST = 1
    GATING = 2
    TABLE = 3
    APPEND = 4
    COUNTERS = 5
    READER_POSITION = 6
    ERRORS = 7


def word_index(offset: int) -> int:
    """Return the index of the 8-byte word at a byte offset."""
    return offset // WORD_BYTES


def header_size(kind: Kind, consumers_max: int = 0) -> int:
    """Return the bytes in front of slot 0: whole pages, so that slots start on a page."""
    extra = {Kind.GATING: consumers_max * CONSUMER_BYTES, Kind.COUNTERS: COUNTERS_MAX * WORD_BYTES}.get(kind, 0)
    return -(-(EXTRA_OFFSET + extra) // PAGE_BYTES) * PAGE_BYTES


def consumer_offset(row: int) -> int:
    """Return the byte offset of a row of the consumer table."""
    return EXTRA_OFFSET + row * CONSUMER_BYTES


def pack_version(version: tuple[int, int]) -> int:
    """Return (major, minor) as one word."""
    return version[0] << 32 | version[1]


def unpack_version(word: int) -> tuple[int, int]:
    """Return (major, minor) of a word."""
    return word >> 32, word & 0xFFFFFFFF


def pack_text(text: str, size: int, what: str) -> bytes:
    """Return ``text`` as ``size`` bytes of zero-padded UTF-8; ValueError when it does not fit."""
    raw = text.encode()
    if len(raw) > size:
        raise ValueError(f"{what} {text!r} has {len(raw)} bytes, more than {size}")
    return raw.ljust(size, b"\0")


def slot_size_min(kind: Kind) -> int:
    """Return the bytes that every slot of a kind has at least: what its readers look into."""
    own = {
        Kind.COUNTERS: COUNTER_SLOT_BYTES,
        Kind.READER_POSITION: NAME_BYTES,
        Kind.ERRORS: ERROR_ROW_BYTES,
    }
    return own.get(kind, 2 * WORD_BYTES)


def unpack_text(raw: bytes) -> str:
    """Return the text of a zero-padded field; bytes that are no UTF-8 are shown, not refused."""
    return raw.rstrip(b"\0").decode("utf-8", "replace")


assert BOOT_ID_OFFSET + BOOT_ID_BYTES == FILE_SIZE_OFFSET
assert NAME_OFFSET + NAME_BYTES == CONSUMERS_MAX_OFFSET
assert all(
    offset % LINE_BYTES == 0
    for offset in (PUBLISHED_OFFSET, HEARTBEAT_OFFSET, FULL_COUNT_OFFSET, EXTRA_OFFSET, CONSUMER_RELEASED)
)
assert PUBLISHED_OFFSET >= CONSUMERS_MAX_OFFSET + WORD_BYTES
assert CONSUMER_NAME + NAME_BYTES <= CONSUMER_REGISTERED < CONSUMER_RELEASED < CONSUMER_HANDED < CONSUMER_BYTES
assert COUNTER_LABEL < COUNTER_SLOT_BYTES
assert ERROR_TEXT < ERROR_ROW_BYTES
assert PAGE_BYTES % LINE_BYTES == 0
