"""Messages that a sink has not taken yet: one file each, in a directory of the sink, oldest first.

A message is on disk before it is sent and until it was taken, so that neither a dead sink nor a kill loses it. Count
and bytes are bounded: over either, the oldest resolved message goes first, for what still fires is worth more, then the
oldest. A disk that cannot be written is told, and the messages wait in memory.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from router.observer.alerts.ledger import Event
from router.observer.alerts.model import Alert

_SUFFIX: Final = ".json"


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
        self._count_max, self._bytes_max = count_max, bytes_max
        self._held: OrderedDict[int, _Held] = OrderedDict()
        self.byte_count = 0
        self.dropped_count = 0
        """Messages that had to make room, or were too large, since the start."""
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
        """Take a message; older ones may make room."""
        raw = msgspec.json.encode(message)
        if len(raw) > self._bytes_max:
            message = Message(message.event, msgspec.structs.replace(message.alert, evidence=None))
            raw = msgspec.json.encode(message)
        number = next(reversed(self._held), 0) + 1
        self._held[number] = _Held(message, len(raw))
        self.byte_count += len(raw)
        self._write(number, raw)
        while len(self._held) > self._count_max or self.byte_count > self._bytes_max:
            self.remove(self._least())
            self.dropped_count += 1

    def remove(self, number: int) -> None:
        """Forget a message that was taken; one that is gone already is none."""
        held = self._held.pop(number, None)
        if held is not None:
            self.byte_count -= held.size
            with contextlib.suppress(OSError):  # then it is sent once more by the next observer
                self._path(number).unlink(missing_ok=True)

    def _least(self) -> int:
        resolved = (number for number, held in self._held.items() if held.message.event == "resolved")
        return next(resolved, next(iter(self._held)))

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:020d}{_SUFFIX}"

    def _write(self, number: int, raw: bytes) -> None:
        path = self._path(number)
        temporary = path.with_suffix(".tmp")
        try:
            with temporary.open("wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            self.problem = ""
        except OSError as error:
            self.problem = f"{self._directory} cannot be written: {error.strerror or error}"

    def _load(self) -> None:
        """Take what the last observer left; what cannot be understood is put aside under another name."""
        for path in sorted(self._directory.glob(f"*{_SUFFIX}")):
            try:
                raw = path.read_bytes()
                message = msgspec.json.decode(raw, type=Message)
                number = int(path.stem)
            except (OSError, ValueError):
                with contextlib.suppress(OSError):
                    path.replace(path.with_suffix(".damaged"))
                self.dropped_count += 1
                continue
            self._held[number] = _Held(message, len(raw))
            self.byte_count += len(raw)
