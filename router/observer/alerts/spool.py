"""Messages that a sink has not taken yet: one file in a directory of the sink, a message a line, the oldest first.

A message is on disk before it is sent and until it was taken, so that neither a dead sink nor a kill loses it. All that
were added since the last :meth:`Spool.flush` are written and synced at once: a sync takes a millisecond or more,
whatever it is of, and 500 alerts may fire in one turn of the observer::

    {"event":"firing","alert":{...}}     waits
    #"event":"firing","alert":{...}}     was taken or dropped: its first byte is overwritten, without a sync
    {"event":"fir                        the last line, without its end: a kill came before anybody was told of it

The file is emptied when nothing waits, and written anew without what is gone when that is half of ``bytes_max``.

Count and bytes are bounded: over either, the oldest resolved message goes first, for what still fires is worth more,
then the oldest. A disk that cannot be written is told, and the messages wait in memory until it can.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import structlog

from router.observer.alerts.ledger import Event
from router.observer.alerts.model import Alert

FILE: Final = "messages.jsonl"
DAMAGED: Final = "messages.damaged"
_GONE: Final = b"#"
_END: Final = b"\n"

_log = structlog.get_logger("alerts")


class Message(msgspec.Struct, frozen=True):
    """Something that one sink is to be told."""

    event: Event
    alert: Alert


class _Held(NamedTuple):
    message: Message
    size: int


class Spool:
    """The messages of one sink. Raises OSError when its directory cannot be made."""

    def __init__(self, directory: Path, count_max: int, bytes_max: int) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self._path = directory / FILE
        self._count_max, self._bytes_max = count_max, bytes_max
        self._held: OrderedDict[int, _Held] = OrderedDict()
        self._number = 0
        self._unwritten: dict[int, bytes] = {}
        """Lines that are not on disk yet."""
        self._places: dict[int, int] = {}
        """Where the lines of the others begin in the file."""
        self._end = 0
        """Where the file ends, as we left it."""
        self._gone_bytes = 0
        """Of lines in the file that nobody waits for."""
        self._is_whole = True
        """Whether every line of the file has its end, so that another one may follow."""
        self.byte_count = 0
        self.dropped_count = 0
        """Messages that had to make room, or could not be understood, since the start."""
        self.problem = ""
        """Why the disk does not take messages now."""
        self._load()

    def __len__(self) -> int:
        return len(self._held)

    def first(self) -> tuple[int, Message] | None:
        """Return the oldest message with the number that :meth:`remove` takes; ``None`` without any."""
        for number, held in self._held.items():
            return number, held.message
        return None

    def add(self, message: Message) -> None:
        """Take a message, which is on disk after the next :meth:`flush`; older ones may make room."""
        raw = msgspec.json.encode(message)
        if len(raw) > self._bytes_max:
            message = Message(message.event, msgspec.structs.replace(message.alert, evidence=None))
            raw = msgspec.json.encode(message)
        self._unwritten[self._hold(message, len(raw))] = raw + _END
        self._make_room()

    def flush(self) -> None:
        """Put all that was added on disk, with one sync; :attr:`problem` says when that cannot be done."""
        if self._unwritten or self.problem:
            self._try(self._append if self._may_append() else self._write_anew)

    def remove(self, number: int) -> None:
        """Forget a message that was taken; one that is gone already is none."""
        place = self._forget(number)
        if place is not None:
            with contextlib.suppress(OSError):  # then it is sent once more by the next observer
                self._mark((place,))

    # ------------------------------------------------------------ in memory
    def _hold(self, message: Message, size: int) -> int:
        self._number += 1  # never used again: one that had to make room may be under way to the sink
        self._held[self._number] = _Held(message, size)
        self.byte_count += size
        return self._number

    def _forget(self, number: int) -> int | None:
        """Forget a message; return where it stands on disk, ``None`` where it does not."""
        held = self._held.pop(number, None)
        if held is None:
            return None
        self.byte_count -= held.size
        self._unwritten.pop(number, None)
        place = self._places.pop(number, None)
        if place is not None:
            self._gone_bytes += held.size + len(_END)
        return place

    def _make_room(self) -> None:
        dropped = []
        while len(self._held) > self._count_max or self.byte_count > self._bytes_max:
            dropped.append(self._forget(self._least()))
            self.dropped_count += 1
        places = [place for place in dropped if place is not None]
        if places:
            with contextlib.suppress(OSError):  # then the next observer drops them
                self._mark(places)

    def _least(self) -> int:
        resolved = (number for number, held in self._held.items() if held.message.event == "resolved")
        return next(resolved, next(iter(self._held)))

    # ------------------------------------------------------------ on disk
    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
            self.problem = ""
        except OSError as error:
            self._is_whole = False  # nobody knows how much of it was written
            self.problem = f"{self._directory} cannot be written: {error.strerror or error}"

    def _may_append(self) -> bool:
        if not self._is_whole or self._gone_bytes > self._bytes_max // 2:
            return False
        try:
            return self._path.stat().st_size == self._end  # else it was changed or removed by somebody
        except OSError:
            return False

    def _append(self) -> None:
        with self._path.open("ab") as file:
            file.write(b"".join(self._unwritten.values()))
            file.flush()
            os.fdatasync(file.fileno())
        self._place(self._unwritten.items())

    def _write_anew(self) -> None:
        """Replace the file by one of all that waits; whoever is killed on the way leaves the one before."""
        lines = {number: msgspec.json.encode(held.message) + _END for number, held in self._held.items()}
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.write(b"".join(lines.values()))
            file.flush()
            os.fdatasync(file.fileno())
        temporary.replace(self._path)
        _sync_directory(self._directory)
        self._end = self._gone_bytes = 0
        self._is_whole = True
        self._place(lines.items())

    def _place(self, lines: Iterable[tuple[int, bytes]]) -> None:
        """Note where lines stand that are on disk now."""
        for number, line in lines:
            self._places[number] = self._end
            self._end += len(line)
        self._unwritten.clear()

    def _mark(self, places: Iterable[int]) -> None:
        """Let the lines at ``places`` count no more, or empty the file when no other is left."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            if self._places:
                for place in places:
                    os.pwrite(descriptor, _GONE, place)
            else:
                os.ftruncate(descriptor, 0)
                self._end, self._gone_bytes, self._is_whole = 0, 0, True
        finally:
            os.close(descriptor)

    # ------------------------------------------------------------ over restarts
    def _load(self) -> None:
        """Take what the last observer left; what cannot be understood is put aside under another name."""
        why = ""
        try:
            with self._path.open("rb") as lines:
                damaged_count = sum(not self._take(line) for line in lines)
            if damaged_count:
                self.dropped_count += damaged_count
                why = f"{damaged_count} messages cannot be understood"
        except FileNotFoundError:
            return
        except OSError as error:
            self.dropped_count += 1  # at least
            why = f"it cannot be read: {error.strerror or error}"
        if why:
            self._put_aside(why)
        self._make_room()
        if not self._is_whole:
            self._try(self._write_anew)

    def _take(self, line: bytes) -> bool:
        """Take a line of the file; return whether it could be understood."""
        place, self._end = self._end, self._end + len(line)
        if not line.endswith(_END):
            self._is_whole = False
            return True
        if line.startswith(_GONE):
            self._gone_bytes += len(line)
            return True
        try:
            message = msgspec.json.decode(line, type=Message)
        except (ValueError, RecursionError):
            self._is_whole = False
            return False
        self._places[self._hold(message, len(line) - len(_END))] = place
        return True

    def _put_aside(self, why: str) -> None:
        aside = self._path.with_name(DAMAGED)
        with contextlib.suppress(OSError):
            self._path.replace(aside)
        self._places.clear()
        self._is_whole = False
        _log.error("alert_messages_not_understood", file=str(self._path), moved_to=str(aside), error=why)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
