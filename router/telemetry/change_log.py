"""What was changed at a router and when: ``changes/log.jsonl`` in its generation, for whoever asks what broke it.

Written at the start, at each reload, refused or not, and at the stop; never on the path of a request. One JSON object
a line: ``t_ns`` (``CLOCK_MONOTONIC``), ``kind`` (:data:`Kind`), ``text``. Beside it ``config.json``, the configuration
with checksums in the place of secrets: the next life of the router tells from it what its start has changed.

A generation whose log ends with ``stop`` was told to end; another one whose router is gone has died.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from router.config.changes import changes_since, outline

if TYPE_CHECKING:
    from collections.abc import Iterable

    from router.config import Config

DIRECTORY: Final = "changes"
FILE: Final = "log.jsonl"
OUTLINE: Final = "config.json"
FILE_BYTES_MAX: Final = 65_536
"""Over it the older half is left out: a router that is reloaded every second must not fill the memory."""
TEXT_CHARS_MAX: Final = 300
TEXTS_MAX: Final = 50
"""Lines of one reload; of more only the number is told."""
_MODE: Final = 0o640

Kind = Literal["start", "reload", "refused", "stop"]


class Entry(msgspec.Struct, frozen=True):
    """One line."""

    t_ns: int
    kind: Kind
    text: str


class ChangeLog:
    """Writes the log of one generation. What cannot be written is left out: a router does not end of that."""

    def __init__(self, generation: Path) -> None:
        self._path = generation / DIRECTORY / FILE

    def begin(self, config: Config, before: Path | None, version: str, t_ns: int) -> None:
        """Note a start, with what differs from the life ``before`` (its generation's directory)."""
        with suppress(OSError):
            self._path.parent.mkdir(exist_ok=True)
        # What differs comes first: of changes of one moment the first is what alerts name.
        self.note("start", [*_differences(before, config), f"router {version} started"], t_ns)
        self.keep(config)

    def keep(self, config: Config) -> None:
        """Keep the configuration that the router has now."""
        with suppress(OSError):
            _replace(self._path.with_name(OUTLINE), outline(config), 0o600)

    def note(self, kind: Kind, texts: Iterable[str], t_ns: int) -> None:
        """Append lines."""
        told = list(texts)
        if len(told) > TEXTS_MAX:
            told = [*told[:TEXTS_MAX], f"and {len(told) - TEXTS_MAX} more changes"]
        raw = b"".join(msgspec.json.encode(Entry(t_ns, kind, text[:TEXT_CHARS_MAX])) + b"\n" for text in told)
        with suppress(OSError):
            self._make_room(len(raw))
            _write(self._path, raw, _MODE, os.O_APPEND)

    def _make_room(self, size: int) -> None:
        if not self._path.exists() or self._path.stat().st_size + size <= FILE_BYTES_MAX:
            return
        kept = self._path.read_bytes()[-FILE_BYTES_MAX // 2 :].partition(b"\n")[2]
        _replace(self._path, kept, _MODE)


def _replace(path: Path, raw: bytes, mode: int) -> None:
    """Put a file in the place of another; whoever reads it sees the old one or the new one."""
    temporary = path.with_suffix(".tmp")
    _write(temporary, raw, mode, os.O_TRUNC)
    temporary.replace(path)


def _write(path: Path, raw: bytes, mode: int, how: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | how, mode)
    try:
        os.write(descriptor, raw)
    finally:
        os.close(descriptor)


def _differences(before: Path | None, config: Config) -> list[str]:
    if before is None:
        return []
    try:
        found = changes_since((before / DIRECTORY / OUTLINE).read_bytes(), config)
    except (OSError, ValueError, TypeError, AttributeError):  # none, or one that is not ours
        return []
    return [each.text for each in found]


def read_changes(generation: Path) -> list[Entry]:
    """Return the log of a generation, oldest first; what is not a line of it is left out."""
    try:
        raw = (generation / DIRECTORY / FILE).read_bytes()
    except OSError:
        return []
    found = []
    for line in raw.splitlines():
        try:
            found.append(msgspec.json.decode(line, type=Entry))
        except (
            ValueError
        ):  # msgspec's own are some; so are bytes that are no text, of a line that was cut by a full disk
            continue
    return found
