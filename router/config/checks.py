"""Checks that several sections share. Each raises :class:`ConfigError`, which names the key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from router.config_schema import shown
from router.errors import ConfigError

_VARIABLE: Final = re.compile(r"[A-Z_][A-Z0-9_]*")


def check_power_of_two(slot_count: int, key: str) -> None:
    """Refuse a number of slots that is no power of two."""
    if slot_count & (slot_count - 1):
        below = 1 << (slot_count.bit_length() - 1)
        raise ConfigError(f"{key} = {slot_count}: expected a power of two, e.g. {below} or {2 * below}")


def check_differ(values: Sequence[str], key: str, field: str = "") -> None:
    """Refuse a list in which a value stands twice; ``field`` is where the values stand in each of its entries."""
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ConfigError(f"{key}[{index}]{field} = {shown(value)}: expected values that differ, it stands twice")


def shown_variable(value: str) -> str:
    """Return what a message says of the name of an environment variable: someone may have written the secret itself
    there, so that only what looks like a name is repeated.
    """
    return shown(value) if _VARIABLE.fullmatch(value) else "(not shown)"
