"""The journal: every finished request on disk, once, for ``ringrouter query`` and ``ringrouter report``.

Rows are appended to a segment per hour (:mod:`router.observer.segments`) and forced to the disk ``fsync_s`` seconds
later at the latest. What is there then is handed back as durable, so that the follower's position may pass it; a kill
or a power cut loses nothing that the rings still have. When a segment's hour is over, or it is large, it becomes a
Parquet file (:mod:`router.observer.parquet`), in a thread: DuckDB works without Python's lock. No prompt and no answer
is ever in a row.

A disk that is full, or fails, stops nothing: rows wait in memory up to :data:`BACKLOG_ROWS_MAX`, later ones are given
up and counted, and every second it is tried again. Retention deletes whole files, the oldest first: those past
``keep_days``, and then as many as it takes to stay below ``keep_bytes``.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import structlog

from router.config import JournalConfig
from router.observer import parquet, segments
from router.observer.columns import encode_line
from router.observer.rows import RequestRow, RowKey
from router.observer.segments import Name, Segment

SEGMENT_BYTES_MAX: Final = 64 << 20
"""A larger segment is sealed before its hour is over: as much as a conversion takes in a second or two."""
SEAL_AFTER_NS: Final = 120_000_000_000
"""How long after its hour a segment still takes rows: those whose cost settles late."""
OPEN_SEGMENTS_MAX: Final = 4
"""Segments open at once: the hour that ends, the one that begins, and some of a backlog."""
BACKLOG_ROWS_MAX: Final = 16_384
"""Rows that wait in memory for a disk that does not take them: as many as a router's ring keeps by default."""
RETRY_NS: Final = 1_000_000_000
KEEP_SEALED_NS: Final = 60_000_000_000
"""How long a segment stays beside its Parquet file: a query that has listed it may still want to open it, and a
follower whose position was not saved to know its rows."""
RETAIN_EVERY_NS: Final = 600_000_000_000
"""Between two looks for what is too old or too much; sealing a segment brings one too."""

_DAMAGED_TOLD: Final = 10
"""Damaged files that the log names."""

_log = structlog.get_logger("journal")


class Journal:
    """Writes the journal in ``directory``; one process at a time. Single-threaded but for the conversions.

    Raises OSError when the directory cannot be used at the start. Later errors of the disk are in :attr:`problem`.
    """

    def __init__(self, directory: Path, policy: JournalConfig) -> None:
        self.directory = directory
        self._policy = policy
        segments.make_directory(directory / segments.WAL)
        segments.make_directory(directory / segments.REQUESTS)
        self._left_over, stood_for = _recover(directory)
        self._next_number = _next_number(directory)
        self._open: dict[str, Segment] = {}
        self._sealed: deque[Path] = deque(self._left_over)
        remove_ns = time.monotonic_ns() + KEEP_SEALED_NS
        self._converted = deque((remove_ns, path) for path in stood_for)
        """Segments to remove, and when."""
        self._backlog: deque[RequestRow] = deque()
        self._written: list[RequestRow] = []
        """Rows that are in a segment and perhaps not on the disk yet."""
        self._written_ns = 0
        """When the first of them was written."""
        self._retry_ns = self._convert_ns = self._retain_ns = 0
        self._worker: ThreadPoolExecutor | None = None
        self._conversion: Future[int] | None = None
        self.row_count = 0
        """Rows written."""
        self.dropped_count = 0
        """Rows given up because the disk took none for too long, or because they cannot be written."""
        self._write_problem = self._conversion_problem = self._damage = ""

    @property
    def problem(self) -> str:
        """What is wrong with the disk now, in one line; empty when nothing is."""
        return self._write_problem or self._conversion_problem or self._damage

    def durable(self) -> dict[RowKey, int]:
        """Return the rows that an observer before this one left in segments, each with its ``done_seq``.

        The follower's position may not have passed them when it was killed.
        """
        converted = (path for _, path in self._converted)
        return dict(segments.keys_in(path for path in (*self._left_over, *converted) if path.exists()))

    def sealed(self, instance: str, generation: int, done_seq: int) -> dict[RowKey, int]:
        """Return the rows of a router's life that are in Parquet files, each with its ``done_seq``: those from
        ``done_seq`` on, those that have none, and in any case the last one.

        For a life whose position is not known. What cannot be read is left out and told in the log: then rows may be
        written again.
        """
        paths = segments.parquet_paths(self.directory)
        try:
            return parquet.keys_in(paths, instance, generation, done_seq)
        except Exception as error:  # DuckDB's own, which are of no use here: observing goes on
            _log.warning("sealed_rows_cannot_be_read", directory=str(self.directory), error=str(error))
            return {}

    def append(self, rows: Sequence[RequestRow], now_ns: int | None = None) -> None:
        """Write rows behind those before them; what the disk does not take waits. ``now_ns`` is ``CLOCK_MONOTONIC``."""
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        self._backlog.extend(rows)
        self._write(now_ns)
        while len(self._backlog) > BACKLOG_ROWS_MAX:
            self._written.append(self._backlog.popleft())  # given up: the position may pass it
            self.dropped_count += 1

    def tick(self, now_ns: int, wall_ns: int | None = None) -> list[RequestRow]:
        """Do what is due and return the rows that are durable now, each once; also those that were given up."""
        wall_ns = time.time_ns() if wall_ns is None else wall_ns
        self._write(now_ns)
        durable = self._sync(now_ns)
        # Conversions begin a tick after the sealing: by then the follower's position has passed the rows.
        self._convert(now_ns)
        self._seal_due(wall_ns)
        try:
            self._delete_due(now_ns, wall_ns)
        except OSError as error:
            self._fail(error, now_ns)
        return durable

    def close(self) -> list[RequestRow]:
        """Force everything to the disk and return the rows that became durable; a conversion under way is awaited."""
        now_ns = time.monotonic_ns()
        self._retry_ns = 0
        self._write(now_ns)
        durable = self._sync(now_ns, at_once=True)
        for segment in self._open.values():
            segment.close()
        self._open.clear()
        if self._worker is not None:
            self._worker.shutdown()
        return durable

    # ------------------------------------------------------------ writing
    def _write(self, now_ns: int) -> None:
        if not self._backlog or now_ns < self._retry_ns:
            return
        for hour, rows in segments.by_hour(self._backlog).items():
            lines = _encoded(rows)
            try:
                self._segment(hour).append(b"".join(lines))
            except OSError as error:
                self._fail(error, now_ns)
                written = {id(row) for row in self._written}
                self._backlog = deque(row for row in self._backlog if id(row) not in written)
                return
            self._written_ns = self._written_ns or now_ns
            self._written += rows  # also what cannot be written: the position may pass it
            self.row_count += len(lines)
            self.dropped_count += len(rows) - len(lines)
        self._backlog.clear()
        self._recovered()

    def _segment(self, hour: str) -> Segment:
        segment = self._open.get(hour)
        if segment is None:
            segment = self._open[hour] = Segment(self.directory, Name(hour, self._next_number))
            self._next_number += 1
            segments.sync_directory(self.directory / segments.WAL)
        return segment

    def _sync(self, now_ns: int, *, at_once: bool = False) -> list[RequestRow]:
        is_due = at_once or now_ns - self._written_ns >= self._policy.fsync_s * 1e9
        if not self._written or not is_due:
            return []
        try:
            for segment in self._open.values():
                segment.sync()
        except OSError as error:
            self._fail(error, now_ns)
            if len(self._written) <= BACKLOG_ROWS_MAX:
                return []
            # They are in the file, and more than that cannot be had: the rings would overtake the position.
        durable, self._written, self._written_ns = self._written, [], 0
        return durable

    def _fail(self, error: OSError, now_ns: int) -> None:
        self._retry_ns = now_ns + RETRY_NS
        problem = f"{self.directory} cannot be written: {error.strerror or error}"
        if problem != self._write_problem:
            self._write_problem = problem
            _log.error("journal_cannot_be_written", directory=str(self.directory), error=str(error))

    def _recovered(self) -> None:
        if self._write_problem:
            self._write_problem = ""
            _log.info("journal_is_written_again", directory=str(self.directory), dropped_rows=self.dropped_count)

    def _delete_due(self, now_ns: int, wall_ns: int) -> None:
        while self._converted and self._converted[0][0] <= now_ns:
            self._converted.popleft()[1].unlink(missing_ok=True)
        is_due = now_ns - self._retain_ns >= RETAIN_EVERY_NS or not self._retain_ns
        if is_due and self._conversion is None:  # whose directory must not be removed under it
            self._retain_ns = now_ns
            retain(self.directory, self._policy, wall_ns)
            self._look_at_files()

    def _look_at_files(self) -> None:
        """Notice Parquet files that cannot be read; questions leave them out."""
        damaged = [path for path in segments.parquet_paths(self.directory) if not parquet.is_whole(path)]
        more = f" and {len(damaged) - 1:,} more" if len(damaged) > 1 else ""
        damage = f"{damaged[0]} is damaged{more}: no question reads it, move it away" if damaged else ""
        if damage and damage != self._damage:
            _log.error("damaged_files", files=[str(path) for path in damaged[:_DAMAGED_TOLD]])
        self._damage = damage

    # ------------------------------------------------------------ sealing
    def _seal_due(self, wall_ns: int) -> None:
        """Close the segments that take no more rows, unless some of their rows are not durable yet."""
        if self._written:
            return
        excess = len(self._open) - OPEN_SEGMENTS_MAX
        for index, (hour, segment) in enumerate(sorted(self._open.items())):
            is_over = wall_ns >= segments.hour_end_ns(hour) + SEAL_AFTER_NS
            if is_over or segment.byte_count >= SEGMENT_BYTES_MAX or index < excess:
                segment.close()
                del self._open[hour]
                self._sealed.append(segment.path)

    def _convert(self, now_ns: int) -> None:
        """Look after the conversion under way, or begin the next one."""
        if self._conversion is not None:
            if not self._conversion.done():
                return
            self._end_conversion(self._conversion, now_ns)
            self._conversion = None
        if self._sealed and now_ns >= self._convert_ns:
            if self._worker is None:
                self._worker = ThreadPoolExecutor(1, "parquet")
            self._conversion = self._worker.submit(parquet.convert, self.directory, self._sealed[0])

    def _end_conversion(self, conversion: Future[int], now_ns: int) -> None:
        error = conversion.exception()
        if error is None:
            self._converted.append((now_ns + KEEP_SEALED_NS, self._sealed.popleft()))
            self._retain_ns, self._conversion_problem = 0, ""
            return
        # The rows are safe in their segment, and are read from there.
        self._sealed.rotate(-1)
        self._convert_ns = now_ns + RETRY_NS
        problem = f"a segment is not converted to Parquet: {str(error).partition(chr(10))[0]}"
        if problem != self._conversion_problem:
            self._conversion_problem = problem
            _log.error("segment_not_converted", error=str(error))


def _encoded(rows: Sequence[RequestRow]) -> list[bytes]:
    """Return the lines of rows, without those that JSON cannot hold: they would be in the way of all behind them."""
    lines = []
    for row in rows:
        try:
            lines.append(encode_line(row))
        except ValueError as error:  # half a character
            _log.error("row_not_written", instance=row.instance, request_seq=row.request_seq, error=str(error))
    return lines


def _recover(directory: Path) -> tuple[list[Path], list[Path]]:
    """Find what a killed observer was about to do: the segments to convert, and those whose Parquet file is whole."""
    for path in (directory / segments.REQUESTS).glob(f"dt=*/h=*/*{parquet.TEMPORARY_SUFFIX}"):
        path.unlink()
    left: list[Path] = []
    stood_for: list[Path] = []
    for path in segments.segment_paths(directory):
        name = segments.name_of(path)
        is_whole = name is not None and segments.parquet_path(directory, name).exists()
        (stood_for if is_whole else left).append(path)
    return left, stood_for


def _next_number(directory: Path) -> int:
    paths = (*segments.segment_paths(directory), *segments.parquet_paths(directory))
    return 1 + max((name.number for path in paths if (name := segments.name_of(path))), default=0)


def retain(directory: Path, policy: JournalConfig, wall_ns: int) -> int:
    """Delete Parquet files that are too old, and the oldest ones while there is too much; return how many."""
    files = [(path, _size(path)) for path in segments.parquet_paths(directory)]
    total = sum(size for _, size in files) + sum(map(_size, segments.segment_paths(directory)))
    oldest_kept_ns = wall_ns - int(policy.keep_days * 86_400e9)
    deleted_count = 0
    for path, size in files:
        name = segments.name_of(path)
        if name is None or (segments.hour_end_ns(name.hour) >= oldest_kept_ns and total <= policy.keep_bytes):
            break
        path.unlink(missing_ok=True)
        deleted_count += 1
        total -= size
        _remove_empty(path.parent)
    return deleted_count


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # converted meanwhile
        return 0


def _remove_empty(hour_directory: Path) -> None:
    for directory in (hour_directory, hour_directory.parent):
        if any(directory.iterdir()):
            return
        directory.rmdir()
