from __future__ import annotations

from enum import IntEnum
from pathlib import Path

import pytest

from ringbuffer import (
    AppendReader,
    AppendWriter,
    Corrupt,
    CounterSpec,
    CountersReader,
    CountersWriter,
    TableReader,
    TableWriter,
    layout,
)

SCHEMA = (1, 0)


def make_table(path: Path) -> tuple[TableWriter, TableReader]:
    writer = TableWriter.create(path, row_count=3, row_size=64, record_schema=SCHEMA, name="inflight")
    return writer, TableReader.attach(path)


def test_rows_are_empty_written_rewritten_and_cleared(tmp_path: Path, backend: str) -> None:
    writer, reader = make_table(tmp_path / "t")
    assert list(reader.rows()) == []
    writer.write(2, b"long enough to leave something behind")
    writer.write(2, b"two")
    writer.write(0, b"")
    assert list(reader.rows()) == [(0, bytes(56)), (2, b"two".ljust(56, b"\0"))]
    writer.clear(2)
    assert reader.read(2) is None
    writer.write(2, b"x" * 56)
    assert reader.read(2) == b"x" * 56
    assert reader.torn_count == 0
    writer.close()


def test_rows_and_payloads_outside_the_table_are_refused(tmp_path: Path, backend: str) -> None:
    writer, reader = make_table(tmp_path / "t")
    for row in (3, -1):
        with pytest.raises((IndexError, OverflowError)):
            writer.write(row, b"")
        with pytest.raises((IndexError, OverflowError)):
            writer.clear(row)
        with pytest.raises((IndexError, OverflowError)):
            reader.read(row)
    with pytest.raises(ValueError, match="at most 56"):
        writer.write(0, b"x" * 57)
    assert list(reader.rows()) == []
    writer.close()


def test_a_row_its_writer_died_in_is_not_shown_but_counted(tmp_path: Path, backend: str) -> None:
    writer, reader = make_table(tmp_path / "t")
    writer.write(0, b"whole")
    writer.write(1, b"torn")
    word = writer.segment.slots_word + writer.segment.slot_words
    writer.segment.words.store_release(word, writer.segment.words.load_acquire(word) | 1)
    assert [row for row, _ in reader.rows()] == [0]
    assert reader.torn_count == 1
    writer.write(1, b"repaired by writing")
    assert reader.read(1) is not None
    writer.close()


def test_appended_rows_are_read_from_any_row_on(tmp_path: Path, backend: str) -> None:
    writer = AppendWriter.create(tmp_path / "n", row_count=3, row_size=24, record_schema=SCHEMA, name="names")
    reader = AppendReader.attach(tmp_path / "n")
    assert reader.read_from(0) == []
    assert [writer.append(each) for each in (b"a", b"", b"c", b"d")] == [0, 1, 2, -1]
    assert reader.read_from(0) == [b"a".ljust(16, b"\0"), bytes(16), b"c".ljust(16, b"\0")]
    assert reader.read_from(2) == [b"c".ljust(16, b"\0")]
    assert reader.read_from(3) == []
    writer.close()


def test_a_payload_that_does_not_fit_is_not_appended(tmp_path: Path, backend: str) -> None:
    writer = AppendWriter.create(tmp_path / "n", row_count=3, row_size=24, record_schema=SCHEMA, name="names")
    with pytest.raises(ValueError, match="at most 16"):
        writer.append(b"x" * 17)
    assert writer.append(b"next") == 0
    writer.close()


class Id(IntEnum):
    FIRST = 0
    GAUGE = 1023


SPECS = [
    CounterSpec(Id.GAUGE, "gauge", "requests", "requests in flight now"),
    CounterSpec(Id.FIRST, "first", "bytes", "bytes written, é included"),
]


def test_counters_count(tmp_path: Path, backend: str) -> None:
    writer = CountersWriter.create(tmp_path / "counters", SPECS)
    writer.add(Id.FIRST)
    writer.add(Id.FIRST, 41)
    writer.max(Id.FIRST, 7)
    assert writer.get(Id.FIRST) == 42
    writer.max(Id.FIRST, 43)
    writer.set(Id.GAUGE, 3)
    writer.add(Id.GAUGE, -4)
    values = CountersReader.attach(tmp_path / "counters").read()
    assert values == [(SPECS[0], -1), (SPECS[1], 43)], "in the order of the catalogue, signed"
    writer.max(Id.GAUGE, 0)
    assert writer.get(Id.GAUGE) == 0
    writer.close()


def test_a_counter_wraps_like_a_machine_word(tmp_path: Path, backend: str) -> None:
    writer = CountersWriter.create(tmp_path / "counters", SPECS)
    writer.set(0, 2**63 - 1)
    writer.add(0)
    assert writer.get(0) == -(2**63)
    writer.close()


@pytest.mark.parametrize("counter_id", [1024, -1])
def test_ids_outside_the_catalogue_are_refused(tmp_path: Path, backend: str, counter_id: int) -> None:
    writer = CountersWriter.create(tmp_path / "counters", SPECS)
    for call in (writer.add, writer.get):
        with pytest.raises((IndexError, OverflowError)):
            call(counter_id)
    for change in (writer.set, writer.max):
        with pytest.raises((IndexError, OverflowError)):
            change(counter_id, 1)
    with pytest.raises((OverflowError, ValueError)):
        writer.set(0, 2**63)
    writer.close()


@pytest.mark.parametrize(
    "spec",
    [
        CounterSpec(0, "double", "", ""),
        CounterSpec(1024, "high", "", ""),
        CounterSpec(-1, "low", "", ""),
        CounterSpec(1, "n" * 49, "", ""),
        CounterSpec(1, "", "u" * 33, ""),
        CounterSpec(1, "", "", "l" * 169),
    ],
)
def test_a_bad_catalogue_is_refused(tmp_path: Path, spec: CounterSpec) -> None:
    with pytest.raises(ValueError, match="counter"):
        CountersWriter.create(tmp_path / "counters", [CounterSpec(0, "a", "", ""), spec])


def test_a_broken_catalogue_is_named(tmp_path: Path) -> None:
    writer = CountersWriter.create(tmp_path / "counters", SPECS)
    raw = bytearray((tmp_path / "counters").read_bytes())
    first = layout.header_size(layout.Kind.COUNTERS)
    raw[first : first + 8] = (2**40).to_bytes(8, "little")
    (tmp_path / "broken").write_bytes(raw)
    with pytest.raises(Corrupt, match=r"catalogue: id is \d+, must be below 1024"):
        CountersReader.attach(tmp_path / "broken")
    writer.close()
