"""Chooses the backend: C11 atomics (:mod:`ringbuffer._words`) or the plain one (:mod:`ringbuffer._plain`).

Both export the same names. ``RINGBUFFER_BACKEND=c`` or ``plain`` forces one; otherwise C is used when it was built.
Everything in the package reaches live words through :data:`core`.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
from typing import TYPE_CHECKING, Any, Final

from ringbuffer.errors import RingError

__all__ = ["BACKEND", "PUBLIC_NAMES", "core", "load_backend"]

PUBLIC_NAMES: Final = (
    "CounterWords",
    "GatingReader",
    "GatingWriter",
    "LossyReader",
    "LossyWriter",
    "RowReader",
    "RowWriter",
    "Words",
)
"""What each backend must export."""


def load_backend(wanted: str, machine: str, byte_order: str = sys.byteorder) -> Any:
    """Return the backend module: ``wanted`` is ``c``, ``plain`` or empty for the best one of this installation.

    Raises RingError for an unknown name, for ``c`` when the extension was not built, for the plain backend on anything
    but x86-64, as it relies on that processor keeping stores in order, and for any on a big-endian machine.
    """
    if byte_order != "little":
        raise RingError(f"segments are little-endian, this machine is {byte_order}-endian")
    if wanted not in ("", "c", "plain"):
        raise RingError(f"RINGBUFFER_BACKEND is {wanted!r}, must be 'c' or 'plain'")
    if wanted != "plain":
        try:
            return importlib.import_module("ringbuffer._words")
        except ImportError as error:
            if wanted == "c":
                raise RingError(f"RINGBUFFER_BACKEND is 'c', but the C extension cannot be loaded: {error}") from error
    if machine not in ("x86_64", "AMD64"):
        raise RingError(f"the plain backend serves x86-64 only, this is {machine}: install with a C compiler")
    return importlib.import_module("ringbuffer._plain")


if TYPE_CHECKING:
    from ringbuffer import _plain as core
else:
    core = load_backend(os.environ.get("RINGBUFFER_BACKEND", ""), platform.machine())

BACKEND: Final[str] = core.BACKEND
"""``c`` or ``plain``."""
