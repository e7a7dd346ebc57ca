"""The ledger on disk: what fires, over restarts of the observer. One file, replaced as a whole.

A file that cannot be understood is put aside, so that a person can look at it, and the ledger begins empty: what still
fires is told again, and of what has ended meanwhile no sink hears the end. That is said in the log, by ``/healthz``, on
``/alerts.json`` and by an alert, for whoever is told everything twice wants to know why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import structlog

from router.observer.alerts.ledger import Ledger

FILE: Final = "ledger.json"
DAMAGED: Final = "ledger.damaged"
FILE_BYTES_MAX: Final = 256 << 20
"""Far above 600 alerts with all their evidence; what is larger is none of ours, and not read into memory."""
FOLLOWS: Final = "alerts that still fire are told again, and the ends of the others are told to nobody"

_log = structlog.get_logger("alerts")


class LedgerFile:
    """The file of a ledger in a directory that one observer uses."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._saved = b""
        self.problem = ""
        """Why the last save failed; empty when it did not."""
        self.lost = ""
        """What was found at the start and could not be used, and what follows; empty for nothing."""

    def load(self, ledger: Ledger) -> None:
        """Let a ledger go on from the file, if there is one."""
        try:
            ledger.load(_read(self._path))
        except FileNotFoundError:
            return
        except OSError as error:
            self._put_aside(f"cannot be read ({error.strerror or error})")
        except (ValueError, RecursionError) as error:  # what is nested without end is none of ours either
            self._put_aside(f"is damaged ({error})")

    def _put_aside(self, why: str) -> None:
        aside = self._path.with_name(DAMAGED)
        try:
            self._path.replace(aside)
            now = f"it is {aside.name} now"
        except OSError as error:
            now = f"it cannot be renamed to {aside.name} ({error.strerror or error}): remove it"
        self.lost = f"{self._path} {why}: {FOLLOWS}; {now}"
        _log.error("alerts_not_remembered", file=str(self._path), error=why, follows=FOLLOWS, now=now)

    def save(self, ledger: Ledger) -> None:
        """Replace the file, if there is anything new; :attr:`problem` says when that cannot be done."""
        raw = ledger.dump()
        try:
            if raw != self._saved:
                temporary = self._path.with_suffix(".tmp")
                temporary.write_bytes(raw)
                temporary.replace(self._path)
                self._saved = raw
            self.problem = ""
        except OSError as error:
            self.problem = f"{self._path.parent} cannot be written: {error.strerror or error}"


def _read(path: Path) -> bytes:
    """Return what stands in a file; raises OSError, ValueError for what is no file or too large to be a ledger."""
    if path.exists() and not path.is_file() and not path.is_dir():  # of a pipe a read would never end
        raise ValueError("it is no file")
    with path.open("rb") as file:
        raw = file.read(FILE_BYTES_MAX + 1)
    if len(raw) > FILE_BYTES_MAX:
        raise ValueError(f"it has more than {FILE_BYTES_MAX >> 20} MiB")
    return raw
