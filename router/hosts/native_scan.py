"""What tells one more token like the last: the plain twin, and which of the two this process has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from router import native
from router.http1 import CHUNK_LINE_SEARCH, CHUNK_SIZES

SameToken = Callable[[bytes, bytes, bytes], int]


def plain_same_token(data: bytes, prefix: bytes, suffix: bytes) -> int:
    """Return the payload's size if a read is one chunk with one event that differs from the template in its text only.

    Most reads of most streams are exactly this; 0 for any other, and with an empty ``prefix``: no template yet.
    ``suffix`` ends in the chunk's own end, so the payload ends two bytes before the read does. ``data`` begins at the
    beginning of a chunk.
    """
    if not prefix:
        return 0
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


same_token: Final[SameToken] = plain_same_token if native.scan is None else native.scan.same_token
"""As :func:`plain_same_token`, in one call where there is native code."""
