"""A vector as it is kept: the numbers that a host sent, bit for bit, and what is to be told of them; pure.

Entry, little-endian::

     0  kind u8 (F32, F64)   flags u8 (EXACT_TOKENS)   0 u16
     4  tokens u32           tokens of the prompt, as the host counted them
     8  host_us u32          how long the host took for it
    12  made_s u32           when, in seconds of the wall clock since 1970
    16  crc u32              CRC-32 of the key, of all above and of the numbers
    20  generation u32       of the store, when it was last used; the keeper's
    24  numbers

Hosts compute in 32 bits and write each number as the 64-bit number that it is: then 32 bits hold all of it (F32), half
the room, a fifth of the text. A host that rounds its texts otherwise has its numbers kept in 64 bits (F64). Which it is
is found out for each vector. Base64 in OpenAI's API is 32 bits by definition.
"""

from __future__ import annotations

import binascii
import math
import struct
from array import array
from functools import lru_cache
from typing import Final
from zlib import crc32

import msgspec

F32: Final = 1
F64: Final = 2
EXACT_TOKENS: Final = 1
"""``tokens`` is what the host reported for this text alone, not its share of a call."""
HEAD: Final = struct.Struct("<BBHIIIII")
HEAD_BYTES: Final = HEAD.size
ENTRY_BYTES_MAX: Final = 96 << 10
"""Vectors of more than 12,000 numbers of 64 bits are not kept."""
_REMEMBERED_MAX: Final = 256
_REMEMBERED_BYTES_MAX: Final = 8 << 10
"""Of an entry whose text is remembered: with their texts 256 of them take 13 MiB at most, of 384 numbers 2.5 MiB."""
U32: Final = 0xFFFFFFFF
_SUMMED: Final = struct.Struct("<BBHIII")
_GENERATION: Final = struct.Struct("<I")
_GENERATION_AT: Final = 20
_KINDS: Final = (F32, F64)
_encode: Final = msgspec.json.Encoder().encode
assert HEAD_BYTES == 24
assert array("f").itemsize == 4


class EntryError(ValueError):
    """Numbers that are no vector."""


def from_floats(values: list[float]) -> tuple[int, bytes]:
    """Return kind and numbers of a vector that a host sent as text."""
    try:
        narrow = array("f", values)
    except OverflowError:
        return F64, array("d", values).tobytes()
    if narrow.tolist() == values:
        return F32, narrow.tobytes()
    return F64, array("d", values).tobytes()


def from_base64(text: str) -> tuple[int, bytes]:
    """Return kind and numbers of a vector that a host sent as base64; raises :class:`EntryError`."""
    try:
        numbers = binascii.a2b_base64(text)
    except ValueError as error:
        raise EntryError(f"not base64: {error}") from None
    if len(numbers) % 4:
        raise EntryError(f"{len(numbers)} bytes are no numbers of 32 bits")
    return F32, numbers


def pack(key: bytes, kind: int, numbers: bytes, *, tokens: int, host_us: int, made_s: int, exact: bool) -> bytes:
    """Return the entry of a vector."""
    flags = EXACT_TOKENS if exact else 0
    summed = _SUMMED.pack(kind, flags, 0, min(tokens, U32), min(host_us, U32), min(made_s, U32))
    crc = crc32(numbers, crc32(summed, crc32(key)))
    return summed + struct.pack("<II", crc, 0) + numbers


def is_whole(key: bytes, entry: bytes) -> bool:
    """Return whether an entry is what was packed for a key, whatever its generation."""
    if len(entry) <= HEAD_BYTES or entry[0] not in _KINDS:
        return False
    numbers = memoryview(entry)[HEAD_BYTES:]
    if len(numbers) % (4 if entry[0] == F32 else 8):
        return False
    return crc32(numbers, crc32(entry[:16], crc32(key))) == int.from_bytes(entry[16:20], "little")


def is_finite(entry: bytes) -> bool:
    """Return whether all numbers of an entry are finite: JSON has no others, so the rest is not kept."""
    return math.isfinite(sum(_numbers(entry).tolist()))


def tokens(entry: bytes) -> int:
    """Return the tokens of the prompt."""
    return int.from_bytes(entry[4:8], "little")


def host_us(entry: bytes) -> int:
    """Return how long the host took for it, in microseconds."""
    return int.from_bytes(entry[8:12], "little")


def made_s(entry: bytes) -> int:
    """Return when it was computed, in seconds of the wall clock."""
    return int.from_bytes(entry[12:16], "little")


def generation(entry: bytes) -> int:
    """Return the generation of the store in which it was last used."""
    return int.from_bytes(entry[_GENERATION_AT:HEAD_BYTES], "little")


def with_generation(entry: bytes, number: int) -> bytes:
    """Return the entry with another generation."""
    return entry[:_GENERATION_AT] + _GENERATION.pack(number) + entry[HEAD_BYTES:]


def dimensions(entry: bytes) -> int:
    """Return how many numbers it has."""
    return (len(entry) - HEAD_BYTES) // (4 if entry[0] == F32 else 8)


def _numbers(entry: bytes) -> memoryview[float]:
    numbers = memoryview(entry)[HEAD_BYTES:]
    return numbers.cast("f") if entry[0] == F32 else numbers.cast("d")


def float_text(entry: bytes) -> bytes:
    """Return the JSON of its numbers: each with the value that the host sent.

    Of vectors of a usual size those that were asked for last are remembered: to write 384 numbers takes half of the
    time that a hit takes.
    """
    return _float_text(entry) if len(entry) > _REMEMBERED_BYTES_MAX else _remembered_text(entry)


def _float_text(entry: bytes) -> bytes:
    return _encode(_numbers(entry).tolist())


_remembered_text: Final = lru_cache(_REMEMBERED_MAX)(_float_text)


def base64_text(entry: bytes) -> bytes:
    """Return the JSON of its base64."""
    return b'"%b"' % binascii.b2a_base64(f32_bytes(entry), newline=False)


def f32_bytes(entry: bytes) -> bytes:
    """Return its numbers in 32 bits each, rounded where they have more."""
    if entry[0] == F32:
        return entry[HEAD_BYTES:]
    return array("f", _numbers(entry).tolist()).tobytes()
