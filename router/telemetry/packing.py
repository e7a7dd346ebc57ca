"""Packs a record out of the attributes of one object, in one call.

A record of a request has fifty numbers, most of them attributes of the request. To read them into a tuple and to pack
that takes several times as long.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from router import native

Field = tuple[str, str, int]
"""Name of the attribute, code, offset in the record.

Codes: ``Q``, ``I``, ``H``, ``B`` for unsigned integers of 8, 4, 2 and 1 bytes, ``f`` for a float of 4, and ``32s`` for
up to 32 bytes, zero padded; little-endian. A number over what its field holds is stored as the largest; one below zero
is an ``OverflowError``.
"""


class Packer(Protocol):
    """Packs one kind of record."""

    def pack(self, source: object) -> bytes:
        """Return the record; what no field covers is zero."""


class PlainPacker:
    """The packer in plain Python."""

    def __init__(self, size: int, fields: Sequence[Field], probe: object = None) -> None:  # noqa: ARG002 - all alike here
        self._size = size
        self._fields = [(name, struct.Struct("<" + code), code, offset) for name, code, offset in fields]

    def pack(self, source: object) -> bytes:
        """As :meth:`Packer.pack`."""
        record = bytearray(self._size)
        for name, form, code, offset in self._fields:
            value: Any = getattr(source, name)
            if code in _LARGEST:
                if value < 0:
                    raise OverflowError(f"{name}: {value} is below zero")
                value = min(value, _LARGEST[code])
            record[offset : offset + form.size] = form.pack(value)
        return bytes(record)


_LARGEST: Final = {"B": 0xFF, "H": 0xFFFF, "I": 0xFFFFFFFF, "Q": 0xFFFFFFFFFFFFFFFF}
packer: Final[Callable[..., Packer]] = PlainPacker if native.steps is None else native.steps.Packer
"""``packer(size, fields[, probe])`` makes a packer of ``size`` bytes, the native one where there is native code;
``ValueError`` for a field outside. ``probe`` is an object of a class with slots, nobody else's: others of its class are
then packed from where its slots lie, without a look at their names.
"""
