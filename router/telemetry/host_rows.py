"""How each host is, in shared memory: ``hosts.tab``, a row each, written when it changes and every second.

Row, 256 bytes, behind its word of 8:

::

    0  id u16, bar u8, removed u8, running u32, slots u32, slot_count u32, t_ns u64
    24 name 64 bytes
    88 text 160 bytes
    248

``bar`` is a :class:`router.routing.Reason`, 0 for a host that gets requests; ``slots`` how many of its ``slot_count``
it may use now; ``text`` how it is in words; texts are UTF-8, cut, filled up with zeros.

Beside it ``models.json``, written when it changes: which models each host has (:class:`HostModels`).
"""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from ringbuffer import Missing, TableReader, TableWriter
from router.telemetry.records import RECORD_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable

FILE: Final = "hosts.tab"
MODELS_FILE: Final = "models.json"
ROW_COUNT: Final = 256
"""Hosts beyond these are served, but not shown."""
ROW_BYTES: Final = 256
_NAME_BYTES: Final = 64
_TEXT_BYTES: Final = 160
_ROW: Final = struct.Struct(f"<HBBIIIQ{_NAME_BYTES}s{_TEXT_BYTES}s")
assert _ROW.size == ROW_BYTES - 8


class HostRow(msgspec.Struct, frozen=True, kw_only=True):
    """How one host is. ``bar``, ``slots`` and ``text`` are as the row has them."""

    host_id: int
    name: str
    bar: int
    is_removed: bool
    running: int
    slots: int
    slot_count: int
    t_ns: int
    text: str


class HostModels(msgspec.Struct, frozen=True):
    """Which models a router has, and where."""

    hosts: dict[str, list[str]] = {}
    """Of each host that was not taken out the models that it has, by the names that clients use; none of a host that
    has not told them yet."""
    configured: list[str] = []
    """Models that the configuration has a section for, wherever they are."""


class HostRows:
    """Writes the rows; a host keeps the row that it gets first."""

    def __init__(self, path: Path) -> None:
        self.table = TableWriter.create(
            path / FILE, row_count=ROW_COUNT, row_size=ROW_BYTES, record_schema=RECORD_SCHEMA, name="hosts"
        )
        self._rows: dict[int, int] = {}
        self._models_path = path / MODELS_FILE
        self._models = HostModels()

    def keep_models(self, models: HostModels) -> None:
        """Show where models are. What cannot be written is left out, and tried again with the next change."""
        if models != self._models:
            with suppress(OSError):
                temporary = self._models_path.with_suffix(".tmp")
                temporary.write_bytes(msgspec.json.encode(models))
                temporary.replace(self._models_path)
                self._models = models

    def write(self, rows: Iterable[HostRow]) -> None:
        """Show these hosts and no others."""
        wanted = {row.host_id: row for row in rows}
        for host_id in [each for each in self._rows if each not in wanted]:
            self.table.clear(self._rows.pop(host_id))
        for host_id, row in wanted.items():
            place = self._place(host_id)
            if place >= 0:
                self.table.write(place, _packed(row))

    def _place(self, host_id: int) -> int:
        """Return the row of a host, a free one for a new host, -1 without one."""
        place = self._rows.get(host_id, -1)
        if place < 0 and len(self._rows) < ROW_COUNT:
            taken = set(self._rows.values())
            place = self._rows[host_id] = next(row for row in range(ROW_COUNT) if row not in taken)
        return place


def _packed(row: HostRow) -> bytes:
    name, text = _cut(row.name, _NAME_BYTES), _cut(row.text, _TEXT_BYTES)
    numbers = (row.host_id, row.bar, row.is_removed, row.running, row.slots, row.slot_count, row.t_ns)
    return _ROW.pack(*numbers, name, text)


def _cut(text: str, limit: int) -> bytes:
    return text.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore").encode()


def read_hosts(directory: Path) -> list[HostRow]:
    """Return how the hosts of a generation are, by name; none of a router that did not write them.

    Raises :class:`ringbuffer.RingError` as every reader does.
    """
    try:
        table = TableReader.attach(directory / FILE, record_schema=RECORD_SCHEMA)
    except Missing:
        return []
    try:
        rows = [_unpacked(payload) for _, payload in table.rows()] if table.header.slot_size == ROW_BYTES else []
    finally:
        table.close()
    return sorted(rows, key=lambda row: row.name)


def read_models(directory: Path) -> HostModels:
    """Return where the models of a generation are; nothing of a router that did not write it."""
    try:
        return msgspec.json.decode((directory / MODELS_FILE).read_bytes(), type=HostModels)
    except (OSError, ValueError):
        return HostModels()


def _unpacked(payload: bytes) -> HostRow:
    host_id, bar, removed, running, slots, slot_count, t_ns, name, text = _ROW.unpack(payload)
    return HostRow(
        host_id=host_id,
        name=name.rstrip(b"\0").decode("utf-8", "replace"),
        bar=bar,
        is_removed=bool(removed),
        running=running,
        slots=slots,
        slot_count=slot_count,
        t_ns=t_ns,
        text=text.rstrip(b"\0").decode("utf-8", "replace"),
    )
