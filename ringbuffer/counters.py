"""Counters with a catalogue: every value carries its id, name, unit and the words a person should read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ringbuffer import layout, segment, words
from ringbuffer.errors import Corrupt
from ringbuffer.layout import Kind, pack_text, unpack_text, word_index
from ringbuffer.segment import Segment
from ringbuffer.writer import SegmentWriter

CATALOGUE_SCHEMA: Final = (1, 0)
_NAME_BYTES: Final = layout.COUNTER_UNIT - layout.COUNTER_NAME
_UNIT_BYTES: Final = layout.COUNTER_LABEL - layout.COUNTER_UNIT
_LABEL_BYTES: Final = layout.COUNTER_SLOT_BYTES - layout.COUNTER_LABEL
_SIGN: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class CounterSpec:
    """One entry of the catalogue: ``id`` below 1,024, ``name`` ≤ 48, ``unit`` ≤ 32, ``label`` ≤ 168 bytes of UTF-8."""

    id: int
    name: str
    unit: str
    label: str


class CountersWriter(SegmentWriter):
    """Writer of the counters; values are signed 64-bit.

    ``add(id[, n])`` adds n (1), ``set(id, value)``, ``max(id, value)`` raises it to a value, ``get(id)`` returns it.
    All are methods of the backend itself and take positional arguments; IndexError for an id of 1,024 or more.
    """

    def __init__(self, counters: Segment) -> None:
        super().__init__(counters)
        core = words.core.CounterWords(counters.mapping, word_index(layout.EXTRA_OFFSET), layout.COUNTERS_MAX)
        self.add = core.add
        self.set = core.set
        self.max = core.max
        self.get = core.get

    @classmethod
    def create(cls, path: Path | str, specs: Sequence[CounterSpec], *, name: str = "counters") -> CountersWriter:
        """Create the counters of a catalogue, all zero. ValueError for ids that are double or out of range, or texts
        that do not fit; other errors as :func:`ringbuffer.segment.create`.
        """
        ids = [spec.id for spec in specs]
        if len(set(ids)) != len(ids) or not all(0 <= each < layout.COUNTERS_MAX for each in ids):
            raise ValueError(f"counter ids must be distinct and below {layout.COUNTERS_MAX}: {ids}")
        return cls(
            segment.create(
                path,
                Kind.COUNTERS,
                slot_count=len(specs),
                slot_size=layout.COUNTER_SLOT_BYTES,
                record_schema=CATALOGUE_SCHEMA,
                name=name,
                payload=b"".join(_pack_spec(spec) for spec in specs),
            )
        )


class CountersReader:
    """Reader of counters through a read-only mapping."""

    def __init__(self, counters: Segment) -> None:
        self.segment = counters
        self.header = counters.header
        self.specs = _read_specs(counters)

    @classmethod
    def attach(cls, path: Path | str) -> CountersReader:
        """Attach to counters; errors as :func:`ringbuffer.segment.attach`."""
        return cls(segment.attach(path, (Kind.COUNTERS,), record_schema=CATALOGUE_SCHEMA))

    def read(self) -> list[tuple[CounterSpec, int]]:
        """Return every counter with its value, in the order of the catalogue."""
        return _read_values(self.segment, self.specs)

    def close(self) -> None:
        """Detach; the mapping goes with the last object that uses it."""
        self.segment.close()


def read_counters(counters: Segment) -> list[tuple[CounterSpec, int]]:
    """Return every counter of a segment with its value, in the order of the catalogue."""
    return _read_values(counters, _read_specs(counters))


def _read_values(counters: Segment, specs: Sequence[CounterSpec]) -> list[tuple[CounterSpec, int]]:
    load = counters.words.load_relaxed
    first = word_index(layout.EXTRA_OFFSET)
    return [(spec, _signed(load(first + spec.id))) for spec in specs]


def _signed(word: int) -> int:
    return word - 2 * _SIGN if word >= _SIGN else word


def _pack_spec(spec: CounterSpec) -> bytes:
    return b"".join((
        spec.id.to_bytes(layout.WORD_BYTES, "little"),
        pack_text(spec.name, _NAME_BYTES, "counter name"),
        pack_text(spec.unit, _UNIT_BYTES, "counter unit"),
        pack_text(spec.label, _LABEL_BYTES, "counter label"),
    ))  # fmt: skip


def _read_specs(counters: Segment) -> list[CounterSpec]:
    header = counters.header
    specs = []
    for slot in range(header.slot_count):
        first = header.header_size + slot * header.slot_size
        raw = counters.mapping[first : first + layout.COUNTER_SLOT_BYTES]
        spec = CounterSpec(
            int.from_bytes(raw[: layout.WORD_BYTES], "little"),
            unpack_text(raw[layout.COUNTER_NAME : layout.COUNTER_UNIT]),
            unpack_text(raw[layout.COUNTER_UNIT : layout.COUNTER_LABEL]),
            unpack_text(raw[layout.COUNTER_LABEL :]),
        )
        if spec.id >= layout.COUNTERS_MAX:
            limit = f"must be below {layout.COUNTERS_MAX}"
            raise Corrupt(f"{counters.path} has a broken catalogue: id is {spec.id}, {limit}")
        specs.append(spec)
    return specs
