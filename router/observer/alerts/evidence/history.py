"""The sums of the last eight days, by the hour: what a slice is compared with; pure but for its files.

An hour is one file in ``directory``, replaced as a whole every five minutes while it lasts and never again; a kill
loses at most five minutes of a baseline of days. Its cells are kept sparse: 16 bytes each, at most 33,792 an hour,
hence at most 104 MB in memory and on disk; 30 slices of usual traffic take about 3 MB.

What is *the same hour*: the hour of the day and those beside it, on each day that is kept. The hour of the week alone
would be one sample.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import structlog

from router.observer.alerts.evidence.cells import LENGTHS, METRICS, SUMS, Slices, Sums, grown
from router.observer.alerts.evidence.table import Ints

HOUR_NS: Final = 3600 * 1_000_000_000
KEEP_HOURS: Final = 8 * 24
SAME_HOURS: Final = (-1, 0, 1)
SCHEMA: Final = "ringrouter.baseline/1"
_SUFFIX: Final = ".hour"

_log = structlog.get_logger("baseline")


class _Hour(msgspec.Struct):
    """One hour on disk: places of cells that are not empty, and their three sums, little-endian."""

    schema: str
    metrics: tuple[str, ...]
    lengths: int
    slices: list[tuple[tuple[str, str], ...]]
    places: bytes
    sums: bytes


class _Sparse:
    """The cells of an hour that are not empty, by the numbers of its own slices."""

    __slots__ = ("places", "sums")

    def __init__(self, dense: Sums) -> None:
        flat = dense.reshape(-1, SUMS)
        self.places = np.flatnonzero(flat[:, 0]).astype(np.int32)
        self.sums = flat[self.places]

    def dense(self, slice_count: int) -> Sums:
        flat = np.zeros((slice_count * len(METRICS) * LENGTHS, SUMS), dtype=np.float32)
        flat[self.places] = self.sums
        return flat.reshape(slice_count, len(METRICS), LENGTHS, SUMS)


class History:
    """Sums by the hour since 1970, UTC. With a time scale an hour is that much shorter, and nothing is on disk.

    Raises OSError when the directory cannot be made; later errors are told in the log, and the next hour tries again.
    """

    def __init__(self, directory: Path | None = None, time_scale: float = 1.0) -> None:
        self.slices = Slices()
        self.hour_ns = round(HOUR_NS / time_scale)
        self._directory = directory
        self._hours: dict[int, _Sparse] = {}
        self._running: Sums | None = None
        self._running_hour = 0
        if directory is not None:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._load(directory)

    @property
    def hours(self) -> list[int]:
        """The hours that are over, in order."""
        return sorted(self._hours)

    def add(self, sums: Sums, wall_ns: int) -> None:
        """Take the sums of a stretch of time that ended at ``wall_ns``."""
        hour = (wall_ns - 1) // self.hour_ns
        if self._running is not None and hour != self._running_hour:
            self._close()
        if self._running is None:
            self._running, self._running_hour = np.array(sums), hour
            if hour in self._hours:  # a life before this one had begun it
                known = self._hours.pop(hour).dense(len(self.slices))
                self._running = grown(self._running, len(known))
                self._running += known
        else:
            self._running = grown(self._running, len(sums))
            self._running[: len(sums)] += sums
        self._save(self._running_hour, _Sparse(self._running))

    def _close(self) -> None:
        if self._running is None:
            return
        self._hours[self._running_hour] = _Sparse(self._running)
        self._running = None
        oldest = self._running_hour - KEEP_HOURS
        for hour in [hour for hour in self._hours if hour <= oldest]:
            del self._hours[hour]
            if self._directory is not None:
                self._path(self._directory, hour).unlink(missing_ok=True)

    def same_hours(self, wall_ns: int) -> list[int]:
        """Return the hours that are compared with the one of ``wall_ns``; none of the last twelve hours."""
        now = (wall_ns - 1) // self.hour_ns
        wanted = {now - 24 * day + off for day in range(1, 1 + KEEP_HOURS // 24) for off in SAME_HOURS}
        return [hour for hour in self.hours if hour in wanted]

    def dense(self, hour: int) -> Sums:
        """Return the sums of an hour that is over, with room for all slices of now."""
        return self._hours[hour].dense(len(self.slices))

    def is_known(self, number: int, wall_ns: int) -> bool:
        """Say whether a slice had requests before the last two hours."""
        until = (wall_ns - 1) // self.hour_ns - 1
        per_slice = len(METRICS) * LENGTHS
        return any(bool((hour.places // per_slice == number).any()) for at, hour in self._hours.items() if at < until)

    def make_room(self) -> Ints | None:
        """Forget the slices that no hour has any more; returns their new numbers when there were any, else ``None``."""
        used: set[int] = set()
        sparse = list(self._hours.values())
        if self._running is not None:
            sparse.append(_Sparse(self._running))
        for each in sparse:
            used.update(np.unique(each.places // (len(METRICS) * LENGTHS)).tolist())
        if len(used) >= len(self.slices):
            return None
        moved = self.slices.keep_only(sorted(used))
        for each in self._hours.values():
            per_slice = len(METRICS) * LENGTHS
            each.places = (moved[each.places // per_slice] * per_slice + each.places % per_slice).astype(np.int32)
        if self._running is not None:
            self._running = np.ascontiguousarray(self._running[np.flatnonzero(moved[: len(self._running)] >= 0)])
        return moved

    # ------------------------------------------------------------ files
    @staticmethod
    def _path(directory: Path, hour: int) -> Path:
        return directory / f"{hour:08d}{_SUFFIX}"

    def _save(self, hour: int, sparse: _Sparse) -> None:
        if self._directory is None:
            return
        path = self._path(self._directory, hour)
        on_disk = _Hour(
            SCHEMA,
            METRICS,
            LENGTHS,
            list(self.slices.names),
            sparse.places.astype("<i4").tobytes(),
            sparse.sums.astype("<f4").tobytes(),
        )
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_bytes(msgspec.msgpack.encode(on_disk))
            temporary.replace(path)
        except OSError as error:
            _log.warning("baseline_not_written", path=str(path), error=str(error))

    def _load(self, directory: Path) -> None:
        """Read the hours that are there. One that cannot be understood is left out: it is one of many samples."""
        for path in sorted(directory.glob(f"*{_SUFFIX}"))[-KEEP_HOURS:]:
            try:
                self._hours[int(path.stem)] = self._read(path)
            except (OSError, ValueError) as error:
                _log.warning("baseline_not_read", path=str(path), error=str(error))

    def _read(self, path: Path) -> _Sparse:
        """Return an hour by the numbers of the slices of now; raises ValueError when it is none."""
        found = msgspec.msgpack.decode(path.read_bytes(), type=_Hour)
        if (found.schema, found.metrics, found.lengths) != (SCHEMA, METRICS, LENGTHS):
            raise ValueError(f"schema {found.schema!r} with {len(found.metrics)} metrics, expected {SCHEMA!r}")
        places = np.frombuffer(found.places, "<i4").astype(np.int64)
        sums = np.frombuffer(found.sums, "<f4").reshape(-1, SUMS)
        per_slice = len(METRICS) * LENGTHS
        is_within = not places.size or 0 <= places.min() <= places.max() < len(found.slices) * per_slice
        if len(places) != len(sums) or not is_within:
            raise ValueError("places and sums of its cells do not fit")
        numbers = np.array([self.slices.number(names) for names in found.slices], dtype=np.int64)
        is_kept = numbers[places // per_slice] >= 0
        places, sums = places[is_kept], sums[is_kept]
        sparse = _Sparse(np.zeros((1, len(METRICS), LENGTHS, SUMS), dtype=np.float32))
        sparse.places = (numbers[places // per_slice] * per_slice + places % per_slice).astype(np.int32)
        sparse.sums = sums.astype(np.float32)
        return sparse
