"""The journal: every row once, whatever happens to the process or the disk; and never what was said."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from router.config import JournalConfig
from router.observer import journal as journal_module
from router.observer import parquet, segments
from router.observer.journal import KEEP_SEALED_NS, SEAL_AFTER_NS, Journal, retain
from router.observer.query import JournalReader, QueryError
from router.observer.rows import RequestRow, RowCandidate, RowCost
from router.observer.segments import Name, Segment
from tests.support.request_rows import attempt, row
from tests.support.waiting import wait_until

HOUR = 3_600_000_000_000
NOON = 1_763_899_200 * 1_000_000_000  # 2025-11-23 12:00 UTC
POLICY = JournalConfig(fsync_s=0)
S = 1_000_000_000


def rows(count: int, *, first: int = 0, end_wall_ns: int = NOON, **given: Any) -> list[RequestRow]:
    made = range(first, first + count)
    return [
        row(request_seq=i, done_seq=i, end_wall_ns=end_wall_ns + i, start_wall_ns=end_wall_ns, **given) for i in made
    ]


def seqs(directory: Path) -> list[int]:
    """Return what a query finds."""
    reader = JournalReader(directory)
    found = [seq for (seq,) in reader.ask("SELECT request_seq FROM requests ORDER BY request_seq")]
    reader.close()
    return found


def run_until(condition: Callable[[], bool], journal: Journal, wall_ns: int = NOON) -> None:
    def ticked() -> bool:
        journal.tick(time.monotonic_ns(), wall_ns)
        return condition()

    wait_until(ticked, "the journal to do its work")


def sealed(directory: Path) -> list[Path]:
    return segments.parquet_paths(directory)


class TestWriting:
    def test_rows_are_found_at_once_and_durable_after_the_tick(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, POLICY)
        made = rows(3)
        journal.append(made)
        assert journal.tick(time.monotonic_ns(), NOON) == made
        assert journal.tick(time.monotonic_ns(), NOON) == []
        assert seqs(tmp_path) == [0, 1, 2]
        assert journal.close() == []

    def test_rows_are_forced_to_the_disk_when_the_time_has_come(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, JournalConfig(fsync_s=2.0))
        journal.append(rows(1), 10 * S)
        journal.append(rows(1, first=1), 11 * S)
        assert journal.tick(12 * S - 1, NOON) == []
        assert len(journal.tick(12 * S, NOON)) == 2
        journal.append(rows(1, first=2), 13 * S)
        assert len(journal.close()) == 1

    def test_each_hour_has_its_segment(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, POLICY)
        journal.append([*rows(2, end_wall_ns=NOON - S), *rows(2, first=2)])
        assert [path.name[:13] for path in segments.segment_paths(tmp_path)] == ["2025-11-23T11", "2025-11-23T12"]
        journal.close()

    def test_a_row_that_cannot_be_written_is_given_up_and_no_other(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, POLICY)
        made = [*rows(1), *rows(1, first=1, model="half \ud800"), *rows(1, first=2)]
        journal.append(made)
        assert journal.tick(time.monotonic_ns(), NOON) == made, "the position may pass it"
        assert (journal.row_count, journal.dropped_count) == (2, 1)
        assert seqs(tmp_path) == [0, 2]
        journal.close()

    def test_an_error_message_of_a_host_is_not_kept(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, POLICY)
        journal.append(rows(1, message="the prompt 'my secret' is too long"))
        journal.close()
        (segment,) = segments.segment_paths(tmp_path)
        assert b"secret" not in segment.read_bytes()
        parquet.convert(tmp_path, segment)
        with pytest.raises(QueryError, match="message"):
            JournalReader(tmp_path).ask("SELECT message FROM requests")


class TestSealing:
    def test_a_segment_becomes_parquet_when_its_hour_is_over(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, POLICY)
        journal.append(rows(5))
        over = NOON + HOUR + SEAL_AFTER_NS
        journal.tick(time.monotonic_ns(), over - 1)
        assert not journal._sealed
        run_until(lambda: bool(sealed(tmp_path)) and not journal._sealed, journal, over)
        (path,) = sealed(tmp_path)
        assert path.relative_to(tmp_path).parts[:3] == ("requests", "dt=2025-11-23", "h=12")
        assert seqs(tmp_path) == list(range(5)), "the segment still stands beside its Parquet file"
        journal.tick(time.monotonic_ns() + KEEP_SEALED_NS, over)
        assert segments.segment_paths(tmp_path) == []
        assert seqs(tmp_path) == list(range(5))
        journal.close()

    def test_a_large_segment_does_not_wait_for_its_hour(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(journal_module, "SEGMENT_BYTES_MAX", 1000)
        journal = Journal(tmp_path, POLICY)
        journal.append(rows(5))
        run_until(lambda: bool(sealed(tmp_path)), journal)
        journal.append(rows(5, first=5))
        run_until(lambda: len(sealed(tmp_path)) == 2, journal)
        assert seqs(tmp_path) == list(range(10))
        journal.close()

    def test_a_backlog_of_many_hours_keeps_few_files_open(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, POLICY)
        for hour in range(20):
            journal.append(rows(1, first=hour, end_wall_ns=NOON + hour * HOUR))
            journal.tick(time.monotonic_ns(), NOON)
            assert len(journal._open) <= journal_module.OPEN_SEGMENTS_MAX
        assert seqs(tmp_path) == list(range(20))
        journal.close()

    def test_every_field_survives(self, tmp_path: Path) -> None:
        cost = RowCost(1.5, 0.5, 10, 5, "EUR", "occupancy", "")
        made = row(
            request_seq=2**40,
            end_wall_ns=NOON,
            start_wall_ns=NOON - 123_456_000,
            tags={"feature_name": "search", "my_own": "ü'\"\n", "user_id": "u1"},
            attempts=(attempt("gpu", 1, 2), attempt("gpu2", None, 2, outcome="failed")),
            candidates=(RowCandidate("gpu", "chosen", 0.5),),
            flags=("stream", "folded"),
            ttft_ns=123,
            tpot_ns=1.25,
            stream=True,
            cost=cost,
        )
        journal = Journal(tmp_path, POLICY)
        journal.append([made])
        journal.close()
        asked = """SELECT request_seq, feature_name, tags['my_own'], user_id, device_type, attempts[2].host,
            attempts[2].sent_mono_ns, candidates[1].score, flags, ttft_ns, tpot_ns, stream, e2e_ns,
            cost_amount, cost_waste_amount, host_ns, waste_host_ns, cost_currency, cost_basis, cost_missing,
            start_time::VARCHAR, epoch_ns(end_time) FROM requests"""
        wanted = (
            *(2**40, "search", "ü'\"\n", "u1", None, "gpu2", None, 0.5, ["stream", "folded"], 123, 1.25, True, None),
            *(1.5, 0.5, 10, 5, "EUR", "occupancy", "", "2025-11-23 11:59:59.876544", NOON),
        )
        live = list(JournalReader(tmp_path).ask(asked))
        parquet.convert(tmp_path, segments.segment_paths(tmp_path)[0])
        segments.segment_paths(tmp_path)[0].unlink()
        assert live == list(JournalReader(tmp_path).ask(asked)) == [wanted]


class TestAfterAKill:
    def test_a_line_that_was_cut_is_taken_back(self, tmp_path: Path) -> None:
        segments.make_directory(tmp_path / segments.WAL)
        segment = Segment(tmp_path, Name("2025-11-23T12", 1))
        segment.append(b'{"whole": 1}\n')
        segment.close()
        with segment.path.open("ab") as file:
            file.write(b'{"torn": ' + b"x" * 200_000)
        again = Segment(tmp_path, Name("2025-11-23T12", 1))
        assert again.byte_count == len(b'{"whole": 1}\n')
        again.append(b"{}\n")
        again.close()
        assert again.path.read_bytes() == b'{"whole": 1}\n{}\n'

    def test_a_torn_last_line_hides_no_other(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, POLICY)
        journal.append(rows(3))
        journal.close()
        (path,) = segments.segment_paths(tmp_path)
        with path.open("ab") as file:
            file.write(b'{"instance": "main", "gener')
        again = Journal(tmp_path, POLICY)
        assert sorted(again.durable()) == [("main", 1, seq) for seq in range(3)]
        assert seqs(tmp_path) == [0, 1, 2]
        run_until(lambda: bool(sealed(tmp_path)), again)
        assert seqs(tmp_path) == [0, 1, 2]
        again.close()

    def test_the_next_observer_learns_which_rows_are_there(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, POLICY)
        assert journal.durable() == {}
        journal.append(rows(2, first=7))
        journal.close()
        assert Journal(tmp_path, POLICY).durable() == {("main", 1, 7): 7, ("main", 1, 8): 8}

    @pytest.mark.parametrize("damage", [None, b"", b"PAR1" * 100])
    def test_rows_in_parquet_files_are_told_from_a_place_on_or_at_least_the_last(
        self, tmp_path: Path, damage: bytes | None
    ) -> None:
        journal = Journal(tmp_path, POLICY)
        assert journal.sealed("main", 1, 0) == {}
        journal.append([*rows(6), *rows(1, first=3, generation=2), *rows(1, first=9, instance="other")])
        journal.append([msgspec.structs.replace(row(request_seq=7, end_wall_ns=NOON), done_seq=-1)])
        journal.close()
        (segment,) = segments.segment_paths(tmp_path)
        parquet.convert(tmp_path, segment)
        if damage is not None:
            (path,) = sealed(tmp_path)
            path.with_name("2025-11-23T12-000099.parquet").write_bytes(damage)
        again = Journal(tmp_path, POLICY)
        aborted = {("main", 1, 7): -1}
        assert again.sealed("main", 1, 4) == {("main", 1, 4): 4, ("main", 1, 5): 5, **aborted}
        assert again.sealed("main", 1, 100) == {("main", 1, 5): 5, **aborted}, "what was lost since is known by it"
        assert again.sealed("main", 3, 0) == {}
        again.close()

    def test_a_conversion_that_was_interrupted_is_done_again(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, POLICY)
        journal.append(rows(3))
        journal.close()
        (path,) = segments.segment_paths(tmp_path)
        name = segments.name_of(path)
        assert name is not None
        target = segments.parquet_path(tmp_path, name)
        segments.make_directory(target.parent)
        target.with_name(target.name + ".tmp").write_bytes(b"half a file")
        assert seqs(tmp_path) == [0, 1, 2]
        again = Journal(tmp_path, POLICY)
        run_until(target.exists, again)
        assert sorted(os.listdir(target.parent)) == [target.name]
        again.close()

    def test_a_segment_beside_its_parquet_file_is_not_counted_twice(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, POLICY)
        journal.append(rows(3))
        journal.close()
        (path,) = segments.segment_paths(tmp_path)
        parquet.convert(tmp_path, path)
        assert seqs(tmp_path) == [0, 1, 2]
        again = Journal(tmp_path, POLICY)
        assert len(again.durable()) == 3, "the follower's position may not have passed them"
        again.tick(time.monotonic_ns() + KEEP_SEALED_NS, NOON)
        again.close()
        assert segments.segment_paths(tmp_path) == []
        assert seqs(tmp_path) == [0, 1, 2]

    def test_numbers_are_not_used_again(self, tmp_path: Path) -> None:
        for round_number in range(3):
            journal = Journal(tmp_path, POLICY)
            journal.append(rows(1, first=round_number))
            run_until(lambda: len(sealed(tmp_path)) >= round_number, journal)  # noqa: B023 - called at once
            journal.close()
        assert seqs(tmp_path) == [0, 1, 2]

    def test_killed_at_any_moment_what_was_durable_is_there_once(self, tmp_path: Path) -> None:
        program = """
import sys, time
from pathlib import Path
from router.config import JournalConfig
from router.observer import journal as module
from tests.observer.test_observer_journal import rows
module.SEGMENT_BYTES_MAX = 60_000
journal = module.Journal(Path(sys.argv[1]), JournalConfig(fsync_s=0))
first = int(sys.argv[2])
while True:
    journal.append(rows(20, first=first, end_wall_ns=time.time_ns()))
    for row in journal.tick(time.monotonic_ns()):
        first = row.request_seq + 1
    print(first, flush=True)
"""
        first = 0
        for delay_s in (0.05, 0.3, 0.5):
            with subprocess.Popen(
                [sys.executable, "-c", program, str(tmp_path), str(first)], stdout=subprocess.PIPE, text=True
            ) as child:
                assert child.stdout is not None
                first = int(child.stdout.readline())
                child_end = time.monotonic() + delay_s
                while time.monotonic() < child_end:
                    first = int(child.stdout.readline())
                child.send_signal(signal.SIGKILL)
                told = child.stdout.read().split()
            # A line of the pipe may be half written at the kill.
            first = max([first, *(int(number) for number in told[:-1])])
            durable = Journal(tmp_path, POLICY)
            there = seqs(tmp_path)
            assert there == list(range(len(there))), "each once, none missing"
            assert len(there) >= first
            first = len(there)
            durable.close()


class TestDisk:
    @pytest.fixture
    def full(self, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
        """A disk that takes half a write and then nothing while the list holds True."""
        is_full = [True]
        real = os.write

        def write(descriptor: int, data: bytes) -> int:
            if not is_full[0]:
                return real(descriptor, data)
            if len(data) > 100:
                return real(descriptor, data[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(segments.os, "write", write)
        return is_full

    def test_rows_wait_for_a_full_disk_and_come_in_order(self, tmp_path: Path, full: list[bool]) -> None:
        journal = Journal(tmp_path, POLICY)
        journal.append(rows(1), 10 * S)
        journal.append(rows(2, first=1), 10 * S)
        assert journal.tick(10 * S, NOON) == []
        assert journal.problem == f"{tmp_path} cannot be written: No space left on device"
        assert seqs(tmp_path) == []
        full[0] = False
        assert journal.tick(10 * S + 1, NOON) == [], "tried again after a second, not at once"
        assert [r.request_seq for r in journal.tick(11 * S, NOON)] == [0, 1, 2]
        assert journal.problem == ""
        assert journal.row_count == 3
        assert seqs(tmp_path) == [0, 1, 2]
        journal.close()

    def test_what_waits_has_a_bound_and_the_rest_is_counted(
        self, tmp_path: Path, full: list[bool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journal_module, "BACKLOG_ROWS_MAX", 10)
        journal = Journal(tmp_path, POLICY)
        journal.append(rows(25), 10 * S)
        assert journal.dropped_count == 15
        full[0] = False
        passed = journal.tick(12 * S, NOON)
        assert [r.request_seq for r in passed] == list(range(25)), "the position passes those that were given up too"
        assert seqs(tmp_path) == list(range(15, 25))
        assert journal.row_count == 10
        journal.close()

    def test_a_conversion_that_fails_loses_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(parquet, "_write", refuse)
            journal = Journal(tmp_path, POLICY)
            journal.append(rows(3))
            run_until(lambda: bool(journal.problem), journal, NOON + 2 * HOUR)
        assert "not converted to Parquet" in journal.problem
        assert seqs(tmp_path) == [0, 1, 2]
        monkeypatch.setattr(journal_module, "RETRY_NS", 0)
        journal._convert_ns = 0
        run_until(lambda: bool(sealed(tmp_path)) and not journal.problem, journal, NOON + 2 * HOUR)
        assert seqs(tmp_path) == [0, 1, 2]
        journal.close()

    @pytest.mark.parametrize("damage", [b"", b"PA", b"PAR1 cut", None])
    def test_a_damaged_file_is_a_problem_until_it_is_moved_away(self, tmp_path: Path, damage: bytes | None) -> None:
        journal = Journal(tmp_path, POLICY)
        journal.append([*rows(1), *rows(1, first=1, end_wall_ns=NOON + HOUR)])
        journal.close()
        for segment in segments.segment_paths(tmp_path):
            parquet.convert(tmp_path, segment)
        path = sealed(tmp_path)[0]
        if damage is None:
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes(damage)
        again = Journal(tmp_path, POLICY)
        again.tick(10 * S, NOON)
        assert again.problem == f"{path} is damaged: no question reads it, move it away"
        path.rename(tmp_path / "elsewhere")
        again.tick(10 * S + journal_module.RETAIN_EVERY_NS, NOON)
        assert again.problem == ""
        again.close()


class TestRetention:
    def sealed_hours(self, directory: Path, count: int) -> list[Path]:
        segments.make_directory(directory / segments.WAL)
        for number in range(count):
            name = Name(segments.hour_of(NOON + number * HOUR), number)
            path = segments.parquet_path(directory, name)
            segments.make_directory(path.parent)
            path.write_bytes(b"x" * 1000)
        return sealed(directory)

    def test_rows_past_their_days_are_deleted(self, tmp_path: Path) -> None:
        files = self.sealed_hours(tmp_path, 4)
        policy = JournalConfig(keep_days=1.0)
        now = NOON + 24 * HOUR + 2 * HOUR  # the first hour ended 25 h ago, the second exactly a day
        assert retain(tmp_path, policy, now) == 1
        assert sealed(tmp_path) == files[1:]
        assert not files[0].parent.exists()

    def test_the_oldest_go_when_there_is_too_much(self, tmp_path: Path) -> None:
        files = self.sealed_hours(tmp_path, 30)
        policy = JournalConfig(keep_bytes=1 << 20)
        assert retain(tmp_path, policy, NOON) == 0
        (tmp_path / segments.WAL / "2025-11-23T12-000099.ndjson").write_bytes(b"x" * ((1 << 20) - 5500))
        assert retain(tmp_path, policy, NOON) == 25
        assert sealed(tmp_path) == files[25:]
        assert not (tmp_path / "requests" / "dt=2025-11-23").exists(), "days without a file go too"
