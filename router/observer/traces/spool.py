"""Traces that wait on disk for an endpoint that does not take them: one file for each batch, the oldest first.

What is kept is the row of a request; its spans are made again when it is sent, and are the same. A file gets its name
when it is whole. Over the bound the oldest batches are dropped and counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from router.observer.traces.sampling import Kept

_SUFFIX: Final = ".json"
_TEMPORARY: Final = ".tmp"

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(list[Kept]).decode


class _Batch(msgspec.Struct):
    """A file: its size, and how many traces are in it."""

    byte_count: int
    trace_count: int


class TraceSpool:
    """The batches in one directory; one process at a time. Raises OSError when the directory cannot be made."""

    def __init__(self, directory: Path, bytes_max: int) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self._bytes_max = bytes_max
        self._batches: OrderedDict[int, _Batch] = OrderedDict()
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
        """Traces that wait; of batches that an earlier observer left nobody knows how many until they are read."""
        return sum(batch.trace_count for batch in self._batches.values())

    def add(self, batch: Sequence[Kept]) -> None:
        """Put a batch behind the others. What a host says in an error may quote a prompt: it is never written."""
        raw = _encode([kept._replace(row=replace(kept.row, message="")) for kept in batch])
        number = next(reversed(self._batches), 0) + 1
        try:
            temporary = self._path(number).with_suffix(_TEMPORARY)
            temporary.write_bytes(raw)
            temporary.replace(self._path(number))
            self.problem = ""
        except OSError as error:
            self.problem = f"{self._directory} cannot be written: {error.strerror or error}"
            self.dropped_count += len(batch)
            return
        self._batches[number] = _Batch(len(raw), len(batch))
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
                found = _decode(self._path(number).read_bytes())
            except (OSError, ValueError):  # damaged, or somebody has taken it away
                self.dropped_count += max(1, batch.trace_count)
                self.remove(number)
                continue
            batch.trace_count = len(found)
            return number, found
        return None

    def remove(self, number: int) -> None:
        """Forget a batch."""
        batch = self._batches.pop(number, None)
        if batch is not None:
            self.byte_count -= batch.byte_count
            try:
                self._path(number).unlink(missing_ok=True)
            except OSError as error:  # the next observer sends it once more
                self.problem = f"{self._directory} cannot be written: {error.strerror or error}"

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:020d}{_SUFFIX}"

    def _load(self) -> None:
        for path in self._directory.glob(f"*{_TEMPORARY}"):
            path.unlink(missing_ok=True)
        for path in sorted(self._directory.glob(f"*{_SUFFIX}")):
            if path.stem.isdigit():
                size = path.stat().st_size
                self._batches[int(path.stem)] = _Batch(size, 0)
                self.byte_count += size
