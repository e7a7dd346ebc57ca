"""What a check of ``ringrouter doctor`` has found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

Level = Literal["ok", "warning", "error"]
EXIT_OK: Final = 0
EXIT_ERRORS: Final = 1
SCHEMA: Final = "ringrouter.doctor/1"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``todo`` says what to do about it, empty where all is well."""

    check: str
    level: Level
    what: str
    todo: str = ""


def ok(check: str, what: str) -> Finding:
    """Return that something is as it should be."""
    return Finding(check, "ok", what)


def warning(check: str, what: str, todo: str) -> Finding:
    """Return that something works, though not as well as it could."""
    return Finding(check, "warning", what, todo)


def error(check: str, what: str, todo: str) -> Finding:
    """Return that something does not work."""
    return Finding(check, "error", what, todo)


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 1 when something does not work; warnings alone are 0."""
    return EXIT_ERRORS if any(each.level == "error" for each in findings) else EXIT_OK
