"""Distinct errors: a storm of one failure is one row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ringbuffer import (
    CountersReader,
    DistinctError,
    DistinctErrorsReader,
    DistinctErrorsWriter,
    WrongKind,
    layout,
)
from ringbuffer.distinct import TEXT_BYTES


@pytest.fixture
def errors(tmp_path: Path, backend: str) -> Iterator[DistinctErrorsWriter]:
    writer = DistinctErrorsWriter.create(tmp_path / "errors", row_count=3)
    yield writer
    writer.close()


@pytest.fixture
def reader(errors: DistinctErrorsWriter) -> DistinctErrorsReader:
    return DistinctErrorsReader.attach(errors.segment.path)


def test_every_error_is_told_once_with_count_first_and_last(
    errors: DistinctErrorsWriter, reader: DistinctErrorsReader
) -> None:
    assert reader.read() == []
    errors.note("gpu0: connection refused", 100)
    errors.note("gpu1: 503", 150)
    errors.note("gpu0: connection refused", 200)
    errors.note("gpu0: connection refused", 300)
    assert reader.read() == [
        DistinctError("gpu0: connection refused", 3, 100, 300),
        DistinctError("gpu1: 503", 1, 150, 150),
    ]
    assert errors.published == 2
    reader.close()


def test_a_storm_takes_one_row_and_an_unknown_error_without_a_row_is_counted(
    errors: DistinctErrorsWriter, reader: DistinctErrorsReader
) -> None:
    for now_ns in range(1000):
        errors.note(f"kind {now_ns % 5}", now_ns)
    assert [(each.text, each.count) for each in reader.read()] == [(f"kind {n}", 200) for n in range(3)]
    assert reader.overflow_count == errors.overflow_count == 400
    assert len(errors._rows) == 3, "nothing grows beyond the rows"


def test_long_texts_are_cut_between_characters_and_are_one_error_when_they_agree_so_far(
    errors: DistinctErrorsWriter, reader: DistinctErrorsReader
) -> None:
    errors.note("é" * 300 + "a", 1)
    errors.note("é" * 300 + "b", 2)
    errors.note("x" * TEXT_BYTES, 3)
    errors.note("x" + "é" * 300, 4)
    cut, exact, odd = reader.read()
    assert (cut.text, cut.count) == ("é" * (TEXT_BYTES // 2), 2)
    assert exact.text == "x" * TEXT_BYTES
    assert odd.text == "x" + "é" * ((TEXT_BYTES - 1) // 2)


def test_no_text_is_refused(errors: DistinctErrorsWriter, reader: DistinctErrorsReader) -> None:
    errors.note("", 1)
    errors.note("lone surrogate \ud800", 2)
    errors.note("two\nlines", 3)
    assert [each.text for each in reader.read()] == ["", "lone surrogate ?", "two\nlines"]


def test_a_row_that_is_not_counted_yet_is_not_shown(errors: DistinctErrorsWriter, reader: DistinctErrorsReader) -> None:
    errors.note("whole", 1)
    words = errors.segment.words
    row = errors.segment.slots_word + errors.segment.slot_words
    words.store_relaxed(row + layout.word_index(layout.ERROR_FIRST), 7)  # as a writer leaves it that dies in between
    assert [each.text for each in reader.read()] == ["whole"]


def test_only_errors_are_read_as_errors(errors: DistinctErrorsWriter) -> None:
    assert errors.segment.header.name == "errors"
    with pytest.raises(WrongKind, match="ERRORS, not COUNTERS"):
        CountersReader.attach(errors.segment.path)


def test_a_successor_begins_anew(tmp_path: Path, backend: str) -> None:
    first = DistinctErrorsWriter.create(tmp_path / "errors", row_count=2, name="mine")
    first.note("old", 1)
    post_mortem = DistinctErrorsReader.attach(tmp_path / "errors")
    first.close()
    second = DistinctErrorsWriter.create(tmp_path / "errors", row_count=2, name="mine")
    assert DistinctErrorsReader.attach(tmp_path / "errors").read() == []
    assert [each.text for each in post_mortem.read()] == ["old"]
    second.close()
