"""The plain backend: the classes of ``_words.c`` and its headers in Python, for x86-64 only.

``memoryview.cast("Q")[i]`` is one aligned 8-byte move in CPython, and x86-64 keeps stores in order among themselves and
loads likewise: that is release and acquire. Payloads are copied with memmove, which may reorder its own stores; the
sequence word that covers them is therefore always a store of its own, after the copy.
Letters name the edges of the table in :mod:`ringbuffer`.
"""

from typing import Final

from ringbuffer._plain.gating import GatingReader, GatingWriter
from ringbuffer._plain.lossy import LossyReader, LossyWriter
from ringbuffer._plain.rows import CounterWords, RowReader, RowWriter
from ringbuffer._plain.words import Words

__all__ = [
    "BACKEND", "CounterWords", "GatingReader", "GatingWriter", "LossyReader", "LossyWriter", "RowReader", "RowWriter",
    "Words",
]  # fmt: skip

BACKEND: Final = "plain"
