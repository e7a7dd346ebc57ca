"""Which scan of a stream's reads this process has: ``router._scan``, or plain Python where it could not be compiled."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any, Final, cast

from router.http1 import CHUNK_LINE_SEARCH, CHUNK_SIZES

Scan = Callable[[bytes, bool, bool, bool], tuple[Any, ...] | None]
SameToken = Callable[[bytes, bytes, bytes], int]


def plain_same_token(data: bytes, prefix: bytes, suffix: bytes) -> int:
    """Return the payload's size if a read is one chunk with one event that differs from the template in its text only.

    Most reads of most streams are exactly this; 0 for any other. ``suffix`` ends in the chunk's own end, so the payload
    ends two bytes before the read does. ``data`` begins at the beginning of a chunk.
    """
    line_end = data.find(b"\r\n", 0, CHUNK_LINE_SEARCH)
    start = line_end + 2
    size = len(data) - start - 2
    text = start + len(prefix)
    text_end = len(data) - len(suffix)
    if (
        text_end <= text
        or CHUNK_SIZES.get(data[: max(line_end, 0)].lower()) != size
        or not data.startswith(prefix, start)
        or not data.endswith(suffix)
        or data.find(b'"', text, text_end) >= 0
    ):
        return 0
    return size


def _find() -> Any:
    if os.environ.get("RINGROUTER_SCANNER", "") == "plain":
        return None
    try:
        return importlib.import_module("router._scan")
    except ImportError:
        return None


_module: Final = _find()
scan: Final = cast("Scan | None", _module and _module.scan)
"""The native scan; ``None`` where it was not compiled, or where ``RINGROUTER_SCANNER=plain`` says so."""
same_token: Final[SameToken] = plain_same_token if _module is None else _module.same_token
"""As :func:`plain_same_token`, in one call where it was compiled."""
BACKEND: Final = "plain" if _module is None else "c"
"""``c`` or ``plain``."""
