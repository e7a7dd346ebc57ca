"""Durations and counts as people read them."""

from __future__ import annotations

from typing import Final

ABSENT: Final = "–"
"""What stands where there is no value."""
_SCALES: Final = (("µs", 1e3), ("ms", 1e6), ("s", 1e9))


def duration(ns: float | None) -> str:
    """Write nanoseconds with three digits in the unit that fits: ``8.20 µs``, ``12.3 ms``, ``1.25 s``."""
    if ns is None:
        return ABSENT
    if not ns:
        return "0 µs"
    for unit, scale in _SCALES:
        value = ns / scale
        if value < 999.5 or unit == "s":
            return f"{value:,.{_decimals(value)}f} {unit}"
    raise AssertionError("the last unit takes every value")


def _decimals(value: float) -> int:
    """Return how many decimals make three digits, as rounding will leave them."""
    if value < 9.995:
        return 2
    return 1 if value < 99.95 else 0


def span(ns: float) -> str:
    """Write a length of time in its two largest units: ``0.4s``, ``59s``, ``4m 12s``, ``2h 05m``, ``3d 04h``."""
    if ns < 9.95e9:
        return f"{ns / 1e9:.1f}s"
    seconds = round(ns / 1e9)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m {seconds % 60:02}s"
    if seconds < 86_400:
        return f"{seconds // 3600}h {seconds % 3600 // 60:02}m"
    return f"{seconds // 86_400}d {seconds % 86_400 // 3600:02}h"


def rate(per_second: float | None) -> str:
    """Write a rate per second: ``0.5``, ``37.4``, ``1,204``; from a million on ``2.5e+06``, which no host reaches."""
    if per_second is None:
        return ABSENT
    if per_second >= 1e6:
        return f"{per_second:.1e}"
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.1f}"
