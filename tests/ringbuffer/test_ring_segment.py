from __future__ import annotations

import errno
import gc
import os
import resource
import stat
import time
from pathlib import Path

import pytest

from ringbuffer import (
    AccessDenied,
    BroadcastReader,
    BroadcastWriter,
    Corrupt,
    ForeignFile,
    Missing,
    NoSpace,
    NotReady,
    RingError,
    TableReader,
    Truncated,
    VersionMismatch,
    WriterAlive,
    WrongEndianness,
    WrongKind,
    layout,
    segment,
)
from ringbuffer.layout import Kind

ALL = tuple(Kind)


def make(path: Path, **changes: object) -> segment.Segment:
    values: dict[str, object] = {"slot_count": 4, "slot_size": 64, "record_schema": (1, 2), "name": "tokens"}
    return segment.create(path, Kind.BROADCAST, **(values | changes))  # type: ignore[arg-type]


def broken_copy(path: Path, offset: int, value: int, size: int = 8) -> Path:
    """Return a copy of the segment at ``path`` with other bytes at an offset."""
    raw = bytearray(path.read_bytes())
    raw[offset : offset + size] = value.to_bytes(size, "little")
    copy = path.with_name("broken.ring")
    copy.write_bytes(raw)
    return copy


def test_a_header_says_what_it_was_created_with(tmp_path: Path, backend: str) -> None:
    before = time.monotonic_ns()
    made = make(tmp_path / "a.ring")
    header = segment.attach(tmp_path / "a.ring", ALL).header
    assert header == made.header
    assert (header.kind, header.slot_count, header.slot_size) == (Kind.BROADCAST, 4, 64)
    assert (header.name, header.record_schema, header.layout_version) == ("tokens", (1, 2), layout.LAYOUT_VERSION)
    assert header.writer_pid == os.getpid()
    assert before <= header.created_mono_ns <= time.monotonic_ns()
    assert abs(header.wall_ns(time.monotonic_ns()) - time.time_ns()) < 1_000_000_000
    assert str(header.boot_id) == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    made.close()


def test_a_new_segment_is_private_to_user_and_group_and_fully_reserved(tmp_path: Path) -> None:
    previous = os.umask(0o077)
    try:
        made = make(tmp_path / "a.ring", slot_count=1024)
    finally:
        os.umask(previous)
    status = (tmp_path / "a.ring").stat()
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert status.st_blocks * 512 >= status.st_size == made.header.file_size
    assert [path.name for path in tmp_path.iterdir()] == ["a.ring"], "no temporary file is left"
    made.close()


@pytest.mark.parametrize(
    "sizes",
    [
        {"slot_count": 3},
        {"slot_count": 0},
        {"slot_size": 60},
        {"slot_size": 8},
        {"slot_size": 2**21},
        {"name": "é" * 33},
    ],
)
def test_bad_sizes_are_refused_before_anything_is_made(tmp_path: Path, sizes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"slot_count|slot_size|segment name"):
        make(tmp_path / "a.ring", **sizes)
    assert list(tmp_path.iterdir()) == []


def test_a_full_file_system_is_an_error_at_create(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(NoSpace, match="4352 bytes"):
        make(tmp_path / "a.ring")
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_limit_on_file_sizes_is_an_error_at_create(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(NoSpace):
            make(tmp_path / "a.ring", slot_count=1024)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(Missing):
        segment.attach(tmp_path / "none", ALL)
    with pytest.raises(Missing):
        make(tmp_path / "no directory" / "a.ring")


@pytest.mark.parametrize(
    ("offset", "value", "error"),
    [
        (layout.MAGIC_OFFSET, 0, NotReady),
        (layout.MAGIC_OFFSET, 12345, ForeignFile),
        (layout.MAGIC_OFFSET, layout.MAGIC_SWAPPED, WrongEndianness),
        (layout.ENDIAN_MARK_OFFSET, 0x0807060504030201, WrongEndianness),
        (layout.LAYOUT_VERSION_OFFSET, layout.pack_version((2, 0)), VersionMismatch),
        (layout.KIND_OFFSET, 99, Corrupt),
        (layout.SLOT_COUNT_OFFSET, 2**40, Corrupt),
        (layout.SLOT_COUNT_OFFSET, 8, Corrupt),
        (layout.SLOT_COUNT_OFFSET, 3, Corrupt),
        (layout.SLOT_SIZE_OFFSET, 0, Corrupt),
        (layout.HEADER_SIZE_OFFSET, 2**63, Corrupt),
        (layout.HEADER_SIZE_OFFSET, 8, Corrupt),
        (layout.FILE_SIZE_OFFSET, 2**50, Truncated),
        (layout.ANCHOR_WALL_OFFSET, 2**63, Corrupt),
    ],
)
def test_a_broken_header_is_named_for_what_it_is(
    tmp_path: Path, backend: str, offset: int, value: int, error: type[RingError]
) -> None:
    made = make(tmp_path / "a.ring")
    copy = broken_copy(tmp_path / "a.ring", offset, value)
    with pytest.raises(error, match=r"broken\.ring"):
        segment.attach(copy, ALL)
    made.close()


def test_a_higher_minor_is_tolerated(tmp_path: Path) -> None:
    made = make(tmp_path / "a.ring", record_schema=(1, 9))
    copy = broken_copy(tmp_path / "a.ring", layout.LAYOUT_VERSION_OFFSET, layout.pack_version((1, 7)))
    header = segment.attach(copy, ALL, record_schema=(1, 0)).header
    assert (header.layout_version, header.record_schema) == ((1, 7), (1, 9))
    made.close()


def test_another_major_of_the_records_is_refused(tmp_path: Path) -> None:
    made = make(tmp_path / "a.ring", record_schema=(2, 0))
    with pytest.raises(VersionMismatch, match=r"\(2, 0\).*\(1, 0\)"):
        BroadcastReader.attach(tmp_path / "a.ring", record_schema=(1, 0))
    made.close()


def test_files_that_are_no_segments_are_refused(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"x" * 8192)
    made = make(tmp_path / "a.ring")
    cut = tmp_path / "cut"
    cut.write_bytes((tmp_path / "a.ring").read_bytes()[:-1])
    with pytest.raises(ForeignFile):
        segment.attach(tmp_path / "long", ALL)
    with pytest.raises(Truncated):
        segment.attach(cut, ALL)
    with pytest.raises(WrongKind, match="BROADCAST, not TABLE"):
        TableReader.attach(tmp_path / "a.ring")
    with pytest.raises(ForeignFile):
        segment.attach(tmp_path, ALL)
    made.close()


@pytest.mark.parametrize(
    ("beginning", "error"),
    [
        (b"", Truncated),
        (b"RING", Truncated),
        (b"RINGBUF\x01", Truncated),
        (b"RINGBUF\x01 and some more", Truncated),
        (bytes(100), NotReady),
        (b"\x01FUBGNIR", WrongEndianness),
        (b"RANG", ForeignFile),
        (b"RINGBUF\x02", ForeignFile),
        (b"notes of somebody", ForeignFile),
    ],
)
def test_a_file_that_is_too_short_for_a_header_is_known_by_how_it_begins(
    tmp_path: Path, backend: str, beginning: bytes, error: type[RingError]
) -> None:
    (tmp_path / "short").write_bytes(beginning)
    with pytest.raises(RingError, match="short") as caught:
        segment.attach(tmp_path / "short", ALL)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("kind", "slot_size"), [(Kind.COUNTERS, 248), (Kind.ERRORS, 504), (Kind.READER_POSITION, 56), (Kind.TABLE, 8)]
)
def test_slots_that_are_smaller_than_what_stands_in_them_are_damage(tmp_path: Path, kind: Kind, slot_size: int) -> None:
    made = segment.create(tmp_path / "a", kind, slot_count=4, slot_size=1024, record_schema=(1, 0), name="a")
    with pytest.raises(Corrupt, match=f"slot_size is {slot_size}"):
        segment.attach(broken_copy(tmp_path / "a", layout.SLOT_SIZE_OFFSET, slot_size), ALL)
    made.close()


def test_a_pipe_of_that_name_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ForeignFile):
        segment.attach(tmp_path / "pipe", ALL)


def test_permissions_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)  # root may open everything
    with pytest.raises(AccessDenied, match=r"a\.ring cannot be opened: Permission denied"):
        segment.attach(tmp_path / "a.ring", ALL)


def test_a_live_writer_is_not_replaced_and_a_closed_one_is(tmp_path: Path, backend: str) -> None:
    path = tmp_path / "a.ring"
    first = make(path)
    with pytest.raises(WriterAlive) as caught:
        make(path)
    assert caught.value.pid == os.getpid()
    first.close()
    first.close()
    second = make(path)
    assert second.inode != first.inode
    second.close()


def test_a_reader_cannot_write(tmp_path: Path, backend: str) -> None:
    made = make(tmp_path / "a.ring")
    attached = segment.attach(tmp_path / "a.ring", ALL)
    with pytest.raises(TypeError):
        attached.words.store_release(0, 1)
    with pytest.raises(TypeError):
        attached.mapping[0:8] = bytes(8)
    made.close()


def test_descriptors_are_given_back(tmp_path: Path, backend: str) -> None:
    def open_count() -> int:
        gc.collect()  # what earlier tests left must not go away in between
        return len(os.listdir("/proc/self/fd"))

    before = open_count()
    for _ in range(3):
        writer = BroadcastWriter.create(
            tmp_path / "a.ring", slot_count=4, slot_size=64, record_schema=(1, 0), name="tokens"
        )
        reader = BroadcastReader.attach(tmp_path / "a.ring")
        with pytest.raises(WrongKind):
            TableReader.attach(tmp_path / "a.ring")
        writer.close()
        del writer, reader  # a reader that nobody closed holds nothing either
    assert open_count() == before


def test_a_bound_method_outlives_its_ring(tmp_path: Path, backend: str) -> None:
    writer = BroadcastWriter.create(
        tmp_path / "a.ring", slot_count=4, slot_size=64, record_schema=(1, 0), name="tokens"
    )
    publish = writer.publish
    writer.close()
    del writer
    assert publish(1, 2, 3, 4, 5, 6, 7) == 0, "the mapping lives as long as the method"
