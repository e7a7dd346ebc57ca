"""Which scan of a stream's reads this process has: ``router._scan``, or none where it could not be compiled."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any, Final, cast

Scan = Callable[[bytes, bool, bool, bool], tuple[Any, ...] | None]


def _find() -> Scan | None:
    if os.environ.get("RINGROUTER_SCANNER", "") == "plain":
        return None
    try:
        module = importlib.import_module("router._scan")
    except ImportError:
        return None
    return cast("Scan", module.scan)


scan: Final = _find()
"""The native scan; ``None`` where it was not compiled, or where ``RINGROUTER_SCANNER=plain`` says so."""
BACKEND: Final = "plain" if scan is None else "c"
"""``c`` or ``plain``."""
