"""The router's native code, or what stands in for it where it could not be compiled.

Six modules: ``router._scan`` for reads of a stream and other JSON, ``router._relay`` for those that are one more token
like the last and for records of events, ``router._answer`` for what else an answer is made of, ``router._steps`` for
steps of a request, ``router._intake`` for requests like earlier ones, ``router._dispatch`` for the way from the ring to
a host. Each of their functions has a twin in plain Python that comes to the same; which of the two this process has is
decided here, once.
"""

from __future__ import annotations

import importlib
import os
from typing import Any, Final


def _find(name: str) -> Any:
    if os.environ.get("RINGROUTER_SCANNER", "") == "plain":
        return None
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


scan: Final = _find("router._scan")
"""``None`` where it was not compiled, or where ``RINGROUTER_SCANNER=plain`` says so."""
steps: Final = _find("router._steps")
"""Likewise."""
relay: Final = _find("router._relay")
"""Likewise."""
intake: Final = scan and _find("router._intake")
"""Likewise; it asks the scan."""
dispatch: Final = _find("router._dispatch")
"""Likewise."""
answer: Final = _find("router._answer")
"""Likewise."""
BACKEND: Final = "plain" if None in (scan, steps, relay, intake, dispatch, answer) else "c"
"""``c`` or ``plain``."""
