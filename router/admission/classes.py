"""The classes of requests, the most urgent first: their numbers stand in records, their names are what users write."""

from __future__ import annotations

from typing import Final

REALTIME: Final = 1
INTERACTIVE: Final = 2
BATCH: Final = 3
CLASS_NAMES: Final = ("realtime", "interactive", "batch")
"""By number less one."""
CLASS_NUMBERS: Final = {name: number for number, name in enumerate(CLASS_NAMES, 1)}


def class_name(number: int) -> str:
    """Return the name of a class; that of ``interactive`` for 0, a request of which nobody said anything."""
    return CLASS_NAMES[(number or INTERACTIVE) - 1]
