"""Giving memory back to the system after a busy time. Off the path: only while nothing is under way."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import Final

_IDLE_SECONDS: Final = 3
"""Seconds without any request before memory is given back: a pause between two bursts is not the end of the day."""


class MemoryKeeper:
    """Trims the allocator once after each busy time.

    Buffers of a thousand streams leave holes in malloc's heap that it keeps for itself; ``malloc_trim`` (glibc) returns
    whole pages of them. It takes about a millisecond, so it waits until nobody could be waiting for it.
    """

    def __init__(self) -> None:
        self._trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._idle_seconds = 0
        self._was_busy = False

    def second(self, *, busy: bool) -> None:
        """Called about once a second with whether any request is under way."""
        if busy:
            self._was_busy = True
            self._idle_seconds = 0
            return
        self._idle_seconds += 1
        if self._was_busy and self._idle_seconds >= _IDLE_SECONDS:
            self._was_busy = False
            gc.collect()
            if self._trim is not None:
                self._trim(0)
