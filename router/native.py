"""``router._scan``, the router's native code, or what stands in for it where it could not be compiled.

Each of its functions has a twin in plain Python that comes to the same; which of the two this process has is decided
here, once.
"""

from __future__ import annotations

import importlib
import os
from typing import Any, Final


def _find() -> Any:
    if os.environ.get("RINGROUTER_SCANNER", "") == "plain":
        return None
    try:
        return importlib.import_module("router._scan")
    except ImportError:
        return None


module: Final = _find()
"""``None`` where it was not compiled, or where ``RINGROUTER_SCANNER=plain`` says so."""
BACKEND: Final = "plain" if module is None else "c"
"""``c`` or ``plain``."""
