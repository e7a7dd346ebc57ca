"""The journal's segments: files that rows are appended to, one line each, until their hour is over.

::

    DIR/wal/2026-11-22T07-000001.ndjson                     rows that ended in this hour (UTC), being appended to
    DIR/requests/dt=2026-11-22/h=07/2026-11-22T07-000001.parquet    the same rows, once the segment was sealed

A line is whole or it is not there: a write that was cut short, by a full disk or a kill, is taken back. The name of a
segment is never used twice, so that a segment beside its own Parquet file is one whose removal was interrupted.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from router.observer.rows import RequestRow, RowKey

JOURNAL: Final = "journal"
"""Directory of the journal below the observer's data."""
WAL: Final = "wal"
REQUESTS: Final = "requests"
SUFFIX: Final = ".ndjson"
_NAME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d)-(\d{6,})")
_FILE_MODE: Final = 0o640
_DIRECTORY_MODE: Final = 0o750
_NS_PER_S: Final = 1_000_000_000


class Name(NamedTuple):
    """A segment's name: the hour of its rows as ``2026-11-22T07`` and a number that is never used again."""

    hour: str
    number: int

    def __str__(self) -> str:
        return f"{self.hour}-{self.number:06}"


def hour_of(wall_ns: int) -> str:
    """Return the hour (UTC) that a calendar time is in."""
    return datetime.fromtimestamp(wall_ns // _NS_PER_S, UTC).strftime("%Y-%m-%dT%H")


def hour_end_ns(hour: str) -> int:
    """Return the calendar time at which an hour is over."""
    end = datetime.strptime(hour, "%Y-%m-%dT%H").replace(tzinfo=UTC) + timedelta(hours=1)
    return int(end.timestamp()) * _NS_PER_S


def name_of(path: Path) -> Name | None:
    """Return the name of a segment or Parquet file; ``None`` for a file of another kind."""
    found = _NAME.fullmatch(path.name.removesuffix(SUFFIX).removesuffix(".parquet"))
    return Name(found[1], int(found[2])) if found else None


def parquet_path(directory: Path, name: Name) -> Path:
    """Return where a segment's rows are once it was sealed; ``directory`` is that of the journal."""
    day, _, hour = name.hour.partition("T")
    return directory / REQUESTS / f"dt={day}" / f"h={hour}" / f"{name}.parquet"


def segment_paths(directory: Path) -> list[Path]:
    """Return the segments of a journal, the oldest first."""
    return sorted(path for path in (directory / WAL).glob(f"*{SUFFIX}") if name_of(path))


def parquet_paths(directory: Path) -> list[Path]:
    """Return the Parquet files of a journal, the oldest first."""
    return sorted(path for path in (directory / REQUESTS).glob("dt=*/h=*/*.parquet") if name_of(path))


def make_directory(path: Path) -> None:
    """Make a directory of the journal, for its owner and group alone."""
    path.mkdir(_DIRECTORY_MODE, parents=True, exist_ok=True)


def sync_directory(path: Path) -> None:
    """Force a directory's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Segment:
    """One file that is appended to. Errors of the disk are OSError, and then nothing of the write is there."""

    def __init__(self, directory: Path, name: Name) -> None:
        self.name = name
        self.path = directory / WAL / f"{name}{SUFFIX}"
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(self.path, flags, _FILE_MODE)
        self.byte_count = _cut_to_lines(self._descriptor)
        self._is_synced = False

    def append(self, lines: bytes) -> None:
        """Write whole lines."""
        if not lines:
            return
        written = 0
        try:
            while written < len(lines):
                written += os.write(self._descriptor, memoryview(lines)[written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.byte_count)
            raise
        self.byte_count += written
        self._is_synced = False

    def sync(self) -> None:
        """Force what was written to the disk."""
        if not self._is_synced:
            os.fdatasync(self._descriptor)
            self._is_synced = True

    def close(self) -> None:
        """Close the file. Closing twice does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _cut_to_lines(descriptor: int) -> int:
    """Take back a line that was never finished; return how many bytes are left."""
    size = os.fstat(descriptor).st_size
    end = size
    while end:
        begin = max(0, end - 65_536)
        at = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if at >= 0:
            end = begin + at + 1
            break
        end = begin
    if end < size:
        os.ftruncate(descriptor, end)
    return end


class _Key(msgspec.Struct):
    """The part of a line that names its row."""

    instance: str
    generation: int
    request_seq: int
    done_seq: int


def keys_in(paths: Iterable[Path]) -> Iterator[tuple[RowKey, int]]:
    """Yield the key and ``done_seq`` of every row in segments; lines that cannot be read are passed over."""
    decode = msgspec.json.Decoder(_Key).decode
    for path in paths:
        with path.open("rb") as lines:
            for line in lines:
                with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                    key = decode(line)
                    yield (key.instance, key.generation, key.request_seq), key.done_seq


def by_hour(rows: Iterable[RequestRow]) -> dict[str, list[RequestRow]]:
    """Return rows by the hour in which they ended, in their order."""
    hours: dict[str, list[RequestRow]] = {}
    for row in rows:
        hours.setdefault(hour_of(row.end_wall_ns), []).append(row)
    return hours
