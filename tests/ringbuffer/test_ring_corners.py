"""Rare paths: misuse of the backends, consumers that were dropped, files of others in the way, endings."""

from __future__ import annotations

import fcntl
import os
import runpy
import shutil
import sys
import time
from pathlib import Path

import pytest

import ringbuffer as rb
from ringbuffer import cli, layout, sample, stats, words

SCHEMA = (1, 0)


def test_a_consumer_row_without_its_released_word_is_refused(backend: str) -> None:
    with pytest.raises(ValueError, match="outside its consumer row"):
        words.core.GatingWriter(bytearray(4096), 8, 2, 8, 0, 1, 2, 1, 16, 16)


def test_counters_beyond_the_buffer_or_in_one_that_is_read_only_are_refused(backend: str) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        words.core.CounterWords(bytearray(64), 4, 5)
    with pytest.raises(BufferError):
        words.core.CounterWords(bytes(64), 0, 8)


def test_a_ring_has_no_more_consumer_rows_than_its_producer_can_look_at(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="consumers_max is 65"):
        rb.GatingProducer.create(
            tmp_path / "r", slot_count=8, slot_size=64, record_schema=SCHEMA, name="r", consumers_max=65
        )


def test_a_dropped_consumer_does_not_free_the_row_of_its_successor(
    producer: rb.GatingProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = producer.segment.path
    dropped = rb.GatingConsumer.register(path, "dropped")
    ticks = dropped._row.word(layout.CONSUMER_START_TICKS)
    producer.segment.words.store_relaxed(ticks, 1)  # as if its pid had been another process's
    assert producer.drop_dead_consumers() == ["dropped"]
    successor = rb.GatingConsumer.register(path, "successor")
    assert successor._row.word(0) == dropped._row.word(0), "in the same process and in the same row"
    dropped.close()
    assert successor._row.is_active, "it had no row to give back"
    successor.close()
    assert not successor._row.is_active
    for _ in range(producer.segment.header.slot_count + 1):
        assert producer.try_publish(0, 0, 0, 0, 0, 0, 0) >= 0


def test_a_consumer_closes_after_its_directory_has_gone(tmp_path: Path, backend: str) -> None:
    folder = tmp_path / "generation"
    folder.mkdir()
    producer = rb.GatingProducer.create(
        folder / "r", slot_count=1, slot_size=64, record_schema=SCHEMA, name="r", consumers_max=1
    )
    consumer = rb.GatingConsumer.register(folder / "r", "last")
    assert [producer.try_publish(0, 0, 0, 0, 0, 0, 0) for _ in range(2)] == [0, -1]
    shutil.rmtree(folder)
    consumer.close()
    consumer.close()
    assert producer.try_publish(0, 0, 0, 0, 0, 0, 0) == 1, "it gates no more"
    with pytest.raises(rb.Missing):
        producer.drop_dead_consumers()
    producer.close()


def test_readers_can_be_closed(tmp_path: Path, backend: str) -> None:
    names = rb.AppendWriter.create(tmp_path / "names", row_count=2, row_size=16, record_schema=SCHEMA, name="names")
    counters = rb.CountersWriter.create(tmp_path / "counters", [rb.CounterSpec(0, "a", "", "")])
    for reader in (rb.AppendReader.attach(tmp_path / "names"), rb.CountersReader.attach(tmp_path / "counters")):
        reader.close()
        reader.close()
    names.close()
    counters.close()


def test_a_reader_position_is_kept_in_the_generation(tmp_path: Path, backend: str) -> None:
    position = rb.ReaderPosition.create(tmp_path, "observer", "tokens")
    assert position.path == tmp_path / "readers" / "observer"
    position.store(7, 2)
    (seen,) = sample._lossy_readers(tmp_path / "readers", "tokens")
    assert (seen.name, seen.position, seen.lost, seen.is_alive) == ("observer", 7, 2, True)
    assert sample._lossy_readers(tmp_path / "readers", "another ring") == ()
    position.close()
    assert not position.path.exists()


def test_foreign_files_among_the_readers_are_passed_over(tmp_path: Path) -> None:
    assert sample._lossy_readers(tmp_path / "none", "tokens") == ()
    (tmp_path / "notes").write_text("not a position")
    assert sample._lossy_readers(tmp_path, "tokens") == ()


def test_a_foreign_file_in_a_generation_says_nothing_about_its_writer(tmp_path: Path) -> None:
    generation = rb.Generation.create(tmp_path)
    (generation.path / "notes").write_text("not a segment")
    assert rb.writer_state(generation.path) == "hung", "a file that is no segment beats not"
    generation.close()


def test_a_locked_file_that_is_no_segment_is_somebodys(tmp_path: Path) -> None:
    with (tmp_path / "ring").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(rb.WriterAlive) as caught:
            rb.BroadcastWriter.create(tmp_path / "ring", slot_count=8, slot_size=64, record_schema=SCHEMA, name="r")
    assert caught.value.pid == 0, "who it is cannot be read"


def test_a_process_that_is_gone_has_no_state() -> None:
    assert sample._process_state(0) == ""
    assert sample._process_state(os.getpid()).startswith("R")


def test_the_package_can_be_run_and_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["ringbuffer", "stats", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("ringbuffer", run_name="__main__")
    assert caught.value.code == 1
    runpy.run_module("ringbuffer.__main__", run_name="imported")


def test_a_reader_of_the_output_that_leaves_ends_the_command_quietly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    replaced: list[int] = []

    def broken(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(cli, "_show", broken)
    monkeypatch.setattr(os, "dup2", lambda descriptor, _: replaced.append(descriptor))
    assert cli.main(["stats", str(tmp_path)]) == 0
    assert len(replaced) == 1
    os.close(replaced[0])


def test_watching_separates_its_screens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = rb.BroadcastWriter.create(
        tmp_path / "ring", slot_count=8, slot_size=64, record_schema=SCHEMA, name="tokens"
    )
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", wait)
    assert cli.main(["stats", str(tmp_path / "ring"), "--watch", "1"]) == 130
    assert capsys.readouterr().out.splitlines().count("--") == 2
    writer.close()


def test_two_samples_of_one_moment_have_no_rate(tmp_path: Path) -> None:
    writer = rb.BroadcastWriter.create(
        tmp_path / "ring", slot_count=8, slot_size=64, record_schema=SCHEMA, name="tokens"
    )
    look = sample.take(tmp_path / "ring")
    (row,) = stats.build_report(look, look).segments
    assert row.rate_per_s is None
    writer.close()
