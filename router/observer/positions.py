"""How far the observer has come: one small file, replaced as a whole, so that a killed observer goes on where it was.

A position never passes a record whose row is not durable yet. What was made durable after the last save is read again;
its keys are then among those that the journal already has.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

SCHEMA: Final = "ringrouter.follow/1"
FILE: Final = "follow.json"
LOCK_FILE: Final = "follow.lock"
GONE_MAX: Final = 256
"""Positions that are kept of generations that are not there: a run directory that was named wrongly, or cannot be read
just now, must not make the observer forget where it was."""


class FollowError(Exception):
    """The observer cannot go on from where it was; the message says what to do."""


class Position(msgspec.Struct, frozen=True):
    """Where to read on in one generation."""

    instance: str
    generation: int
    boot_id: str
    """Generations are named by monotonic time: after a reboot the same name is another one."""
    done_seq: int
    """Every row before it in ``done.ring`` is durable."""
    token_seq: int
    """All token records of the requests whose rows are not durable are from here on."""
    is_closed: bool = False
    """Its router is gone, and so is everything there was to read."""


class _File(msgspec.Struct):
    schema: str
    positions: list[Position]


class Positions:
    """The positions of all generations, in a directory that only one observer may use.

    Raises FollowError when another one does, or when what is there is not such a file; OSError when the directory
    cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / FILE
        self._lock = _lock(directory / LOCK_FILE)
        self._is_saved = True
        try:
            self._positions = {(each.instance, each.generation): each for each in _load(self._path)}
        except FollowError:
            os.close(self._lock)
            raise

    @property
    def instances(self) -> set[str]:
        """The instances of which some generation was followed."""
        return {each.instance for each in self._positions.values()}

    def get(self, instance: str, generation: int) -> Position | None:
        """Return the position in a generation; ``None`` for one that nothing is known of."""
        return self._positions.get((instance, generation))

    def put(self, position: Position) -> None:
        """Take a position; :meth:`save` makes it last."""
        key = position.instance, position.generation
        self._is_saved = self._is_saved and self._positions.get(key) == position
        self._positions[key] = position

    def forget_gone(self, present: Collection[tuple[str, int]]) -> None:
        """Forget the generations that are no longer there, but for the :data:`GONE_MAX` that came last."""
        gone = [key for key in self._positions if key not in present]
        for key in gone[:-GONE_MAX]:
            del self._positions[key]
            self._is_saved = False

    def save(self) -> None:
        """Replace the file if anything is new; whoever reads it sees the old one or the new one."""
        if self._is_saved:
            return
        temporary = self._path.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(_File(SCHEMA, list(self._positions.values()))))
        temporary.replace(self._path)
        self._is_saved = True

    def close(self) -> None:
        """Let another observer go on from here. Closing twice does nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise FollowError(
            f"another observer uses {path.parent}: stop it, or give this one a directory of its own"
        ) from None
    return descriptor


def _load(path: Path) -> list[Position]:
    raw = b""
    with contextlib.suppress(FileNotFoundError):
        raw = path.read_bytes()
    if not raw:
        return []
    try:
        file = msgspec.json.decode(raw, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FollowError(
            f"{path} cannot be understood ({error}): remove it to read all that the rings still hold"
        ) from None
    if file.schema != SCHEMA:
        raise FollowError(f"{path} has schema {file.schema!r}, this program knows {SCHEMA!r}: remove it")
    return file.positions
