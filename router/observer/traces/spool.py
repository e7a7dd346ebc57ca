"""Traces that wait on disk for an endpoint that does not take them: one file for each batch, the oldest first.

What is kept is the row of a request; its spans are made again when it is sent, and are the same. A file gets its name,
NUMBER-TRACES.json, when it is whole. Over the bound the oldest batches are dropped and counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from router.observer.traces.sampling import Kept

BATCH_COUNT: Final = 128
"""Traces in a file, and so in one export: with some eight spans each a request of a few hundred KiB. Endpoints refuse
requests of many MiB for good."""
_SUFFIX: Final = ".json"
_TEMPORARY: Final = ".tmp"
_SHARE_MAX: Final = 8
"""A file holds at most one part in so many of the bound: what is dropped is dropped by files."""

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(list[Kept]).decode


class _Batch(msgspec.Struct):
    """A file: its size, and how many traces are in it."""

    path: Path
    byte_count: int
    trace_count: int


class TraceSpool:
    """The batches in one directory; one process at a time. Raises OSError when the directory cannot be made."""

    def __init__(self, directory: Path, bytes_max: int) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self._bytes_max = bytes_max
        self._batches: OrderedDict[int, _Batch] = OrderedDict()
        self._last_number = 0
        """Of a batch; never used again, for one that is being sent may be dropped meanwhile."""
        self.byte_count = 0
        self.dropped_count = 0
        """Traces that had to make room, could not be written, or could not be read again, since the start."""
        self.problem = ""
        """Why the disk does not take batches now; empty when it does."""
        self._load()

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def trace_count(self) -> int:
        """Traces that wait."""
        return sum(batch.trace_count for batch in self._batches.values())

    def add(self, traces: Sequence[Kept]) -> None:
        """Put traces behind the others. What a host says in an error may quote a prompt: it is never written."""
        for first in range(0, len(traces), BATCH_COUNT):
            self._add(
                [kept._replace(row=replace(kept.row, message="")) for kept in traces[first : first + BATCH_COUNT]]
            )

    def _add(self, batch: Sequence[Kept]) -> None:
        """Write a batch, in several files where it is large for the bound."""
        raw = _encode(batch)
        if len(raw) > self._bytes_max // _SHARE_MAX and len(batch) > 1:
            half = len(batch) // 2
            self._add(batch[:half])
            self._add(batch[half:])
            return
        number = self._last_number + 1
        path = self._directory / f"{number:020d}-{len(batch)}{_SUFFIX}"
        temporary = path.with_suffix(_TEMPORARY)
        try:
            temporary.write_bytes(raw)
            temporary.replace(path)
            self.problem = ""
        except OSError as error:
            self.problem = f"{self._directory} cannot be written: {error.strerror or error}"
            self.dropped_count += len(batch)
            with suppress(OSError):  # a disk that is full has taken a part
                temporary.unlink(missing_ok=True)
            return
        self._last_number = number
        self._batches[number] = _Batch(path, len(raw), len(batch))
        self.byte_count += len(raw)
        while self.byte_count > self._bytes_max:
            oldest = next(iter(self._batches))
            self.dropped_count += self._batches[oldest].trace_count
            self.remove(oldest)

    def first(self) -> tuple[int, list[Kept]] | None:
        """Return the oldest batch with the number that :meth:`remove` takes; ``None`` without any."""
        while self._batches:
            number, batch = next(iter(self._batches.items()))
            try:
                return number, _decode(batch.path.read_bytes())
            except (OSError, ValueError):  # damaged, or somebody has taken it away
                self.dropped_count += batch.trace_count
                self.remove(number)
        return None

    def remove(self, number: int) -> None:
        """Forget a batch."""
        batch = self._batches.pop(number, None)
        if batch is not None:
            self.byte_count -= batch.byte_count
            try:
                batch.path.unlink(missing_ok=True)
            except OSError as error:  # the next observer sends it once more
                self.problem = f"{self._directory} cannot be written: {error.strerror or error}"

    def _load(self) -> None:
        for path in self._directory.glob(f"*{_TEMPORARY}"):
            path.unlink(missing_ok=True)
        for path in sorted(self._directory.glob(f"*{_SUFFIX}")):
            number, _, count = path.stem.partition("-")
            if number.isdecimal() and (count.isdecimal() or not count):  # an earlier version gave no count
                size = path.stat().st_size
                self._last_number = int(number)
                self._batches[self._last_number] = _Batch(path, size, max(1, int(count or 1)))
                self.byte_count += size
