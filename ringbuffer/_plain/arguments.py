"""What methods are given, checked: integers as words, counters and indices, buffers as bytes."""

from __future__ import annotations

import operator
import struct
from typing import TYPE_CHECKING, Final

from ringbuffer.layout import WORD_BYTES

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

WORDS_PER_RECORD: Final = 7
RECORD_BYTES: Final = WORDS_PER_RECORD * WORD_BYTES
pack_record: Final = struct.Struct(f"<{WORDS_PER_RECORD}Q").pack
VALUE_MIN: Final = -(1 << 63)
VALUE_MAX: Final = (1 << 63) - 1
WORD_MASK: Final = (1 << 64) - 1


def as_index(index: int, count: int) -> int:
    """Return an integer from 0 to below ``count``; raises IndexError."""
    if type(index) is not int:
        index = operator.index(index)
    if not 0 <= index < count:
        raise IndexError(f"index {index} is not in 0 to {count - 1}")
    return index


def _as_integer(value: int, smallest: int, largest: int) -> int:
    if type(value) is not int:
        value = operator.index(value)
    if not smallest <= value <= largest:
        raise OverflowError(f"{value} is not in {smallest} to {largest}")
    return value


def as_word(value: int) -> int:
    """Return what a word may be; raises OverflowError."""
    return _as_integer(value, 0, WORD_MASK)


def as_value(value: int) -> int:
    """Return what a counter may be; raises OverflowError."""
    return _as_integer(value, VALUE_MIN, VALUE_MAX)


def _word_error(value: int) -> Exception | None:
    try:
        as_word(value)
    except (TypeError, OverflowError) as error:
        return error
    return None


def flaw(*values: int) -> Exception:
    """Return what is wrong with the first of some values that is no word."""
    return next(filter(None, map(_word_error, values)))


def view_of(payload: Buffer) -> memoryview:
    """Return the bytes of a buffer; raises BufferError for one with gaps."""
    view = memoryview(payload)
    if not view.c_contiguous:
        raise BufferError("memoryview: underlying buffer is not C-contiguous")
    return view.cast("B")
