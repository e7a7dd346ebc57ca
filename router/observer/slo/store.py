"""The counts of objectives on disk: one file, replaced as a whole, by a thread: the turn never waits for the disk."""

from __future__ import annotations

import os
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec
import structlog

from router.observer.slo.book import SCHEMA, BookState

FILE: Final = "slo.state"
DAMAGED: Final = "slo.state.damaged"
_LEVEL: Final = 1
"""Of the compression: most cells hold small numbers or nothing, and it is done every ten seconds."""

_log = structlog.get_logger("slo")


class File(msgspec.Struct, frozen=True):
    """What stands in the file: msgpack in zlib."""

    schema: str
    book: BookState
    extents: dict[str, int]
    """Of each segment of the journal the bytes whose rows are counted in ``book``."""


class Store:
    """The file in a directory that one observer uses."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._worker: ThreadPoolExecutor | None = None
        self._saving: Future[None] | None = None
        self.problem = ""
        """Why the last save failed; empty when it did not."""
        self.lost = ""
        """What was found and could not be understood; empty for nothing."""

    def load(self) -> File | None:
        """Return what the last life wrote, ``None`` without one. A file that cannot be understood is put aside."""
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            file = msgspec.msgpack.decode(zlib.decompress(raw), type=File)
            if file.schema != SCHEMA:
                raise ValueError(f"schema {file.schema!r}, expected {SCHEMA!r}")
        except (zlib.error, msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
            self.put_aside(error)
            return None
        return file

    def put_aside(self, error: Exception) -> None:
        """Move a file away that is of no use, so that a person can look at it."""
        aside = self._path.with_name(DAMAGED)
        self._path.replace(aside)
        self.lost = f"{self._path} was damaged, so all objectives are counted anew; it is {aside.name} now"
        _log.error("slo_counts_not_understood", moved_to=str(aside), error=str(error))

    def save_now(self, file: File) -> bool:
        """Write the file and wait for it; return whether it is on the disk."""
        self.wait()
        try:
            _write(self._path, file)
        except OSError as error:
            self._fail(error)
            return False
        self.problem = ""
        return True

    def begin(self, file: File) -> None:
        """Write the file in the thread; :meth:`ended` says when it is there."""
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "slo")
        self._saving = self._worker.submit(_write, self._path, file)

    @property
    def is_saving(self) -> bool:
        """Whether a save is under way, or was and nobody has asked how it ended."""
        return self._saving is not None

    def ended(self) -> bool | None:
        """Return, once, whether the save that was begun is on the disk; ``None`` while it is under way, or none is."""
        if self._saving is None or not self._saving.done():
            return None
        error = self._saving.exception()
        self._saving = None
        if error is None:
            self.problem = ""
            return True
        self._fail(error)
        return False

    def wait(self) -> None:
        """Wait for a save under way; how it ended no longer matters."""
        if self._saving is not None:
            self._saving.exception()
            self._saving = None

    def close(self) -> None:
        """Let the thread go."""
        self.wait()
        if self._worker is not None:
            self._worker.shutdown()

    def _fail(self, error: BaseException) -> None:
        problem = f"{self._path} cannot be written: {getattr(error, 'strerror', None) or error}"
        if problem != self.problem:
            _log.error("slo_counts_not_written", file=str(self._path), error=str(error))
        self.problem = problem


def _write(path: Path, file: File) -> None:
    """Replace the file; whoever is killed on the way leaves the one before."""
    temporary = path.with_name(path.name + ".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    with os.fdopen(descriptor, "wb") as out:
        out.write(zlib.compress(msgspec.msgpack.encode(file), _LEVEL))
        out.flush()
        os.fsync(descriptor)
    temporary.replace(path)
