"""Export of traces: what a collector decodes, and what becomes of them while it is dead, slow, full or wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from router.errors import ErrorKind
from router.observer.traces import exporter as exporting
from router.observer.traces.exporter import TraceExporter
from router.observer.traces.otlp import OtlpSender
from router.observer.traces.sampling import Kept
from router.observer.traces.spans import Naming, Span, spans_of
from router.observer.traces.spool import BATCH_COUNT, TraceSpool
from router.telemetry.records import Outcome
from tests.observer.test_traces_spans import CALLER, changed, row
from tests.support.otlp_collector import Collector, Got
from tests.support.waiting import free_port, wait_until

NAMING = Naming(user_id="hash", user_key=b"k" * 32)
RESOURCE = {"service.name": "ringrouter", "service.version": "1", "service.instance.id": "here", "team": "a"}
SPOOL_BYTES = 1 << 20
SHORT_S = 0.7
"""Enough for an answer on a busy machine, and less than the exporter itself pauses before it asks again (0.8 s)."""


def kept(count: int, first: int = 0) -> list[Kept]:
    return [Kept(changed(row(), request_seq=seq), ("head",)) for seq in range(first, first + count)]


def seqs(spans: Sequence[Got]) -> list[int]:
    return [span.attributes["ringrouter.request.seq"] for span in spans if span.kind == "server"]


def made(each: Kept) -> list[Span]:
    return spans_of(each.row, NAMING)


class Setting:
    """An exporter with its spool, made anew by each :meth:`start`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.spool_bytes = SPOOL_BYTES
        self.exporter: TraceExporter | None = None

    def start(self, url: str, timeout_s: float = 5.0) -> TraceExporter:
        def sender() -> OtlpSender:
            return OtlpSender(url, {"x-secret": "s3cret"}, RESOURCE, timeout_s=timeout_s)

        spool = TraceSpool(self.directory, self.spool_bytes)
        self.exporter = TraceExporter(sender, made, spool, linger_s=0.01, retry_first_s=0.05)
        return self.exporter

    def files(self) -> list[Path]:
        return sorted(self.directory.glob("*.json"))


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    one = Setting(tmp_path / "spool")
    yield one
    if one.exporter is not None:
        one.exporter.close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as one:
        yield one


class TestWhatIsSent:
    def test_a_collector_decodes_what_a_row_says(self, setting: Setting, collector: Collector) -> None:
        one = changed(row(), **CALLER, tool_ns=5, tool_after=f"{'ef' * 16}-{'12' * 8}")
        setting.start(collector.url).offer([Kept(one, ("head",))])
        got = collector.wait(lambda spans: len(spans) == 7, "the spans")
        for span, expected in zip(got, spans_of(one, NAMING), strict=True):
            assert (span.trace_id, span.span_id, span.parent_id) == (
                expected.trace_id,
                expected.span_id,
                expected.parent_id,
            )
            assert (span.name, span.kind, span.error) == (expected.name, expected.kind, expected.error)
            assert (span.start_ns, span.end_ns) == (expected.start_wall_ns, expected.end_wall_ns)
            assert span.attributes == expected.attributes
            assert [(name, ns) for name, ns, _ in span.events] == [(e.name, e.wall_ns) for e in expected.events]
            assert span.links == [(link.trace_id, link.span_id) for link in expected.links]
            assert span.resource == RESOURCE
        assert collector.headers[0]["x-secret"] == "s3cret"

    def test_an_error_is_a_status(self, setting: Setting, collector: Collector) -> None:
        failed = row(outcome=Outcome.TIMEOUT, error=ErrorKind.FIRST_TOKEN_TIMEOUT)
        setting.start(collector.url).offer([Kept(failed, ("error",))])
        assert collector.wait(bool, "the spans")[0].error == "first_token_timeout"

    def test_many_come_in_batches_and_none_twice(self, setting: Setting, collector: Collector) -> None:
        exporter = setting.start(collector.url)
        for first in range(0, 500, 50):
            exporter.offer(kept(50, first))
        got = collector.wait(lambda spans: len(seqs(spans)) >= 500, "all")
        assert sorted(seqs(got)) == list(range(500))
        assert len(collector.bodies) < 100
        wait_until(lambda: exporter.exported_count == 500, "the count")
        assert (exporter.waiting_count, exporter.dropped_count, setting.files()) == (0, 0, [])

    @pytest.mark.parametrize("bad", [{"tool_after": "no hex-at all", "tool_ns": 1}, {"attempts": (None,)}])
    def test_a_row_that_is_not_as_rows_are_is_not_in_the_way(
        self, setting: Setting, collector: Collector, bad: dict[str, Any]
    ) -> None:
        exporter = setting.start(collector.url)
        exporter.offer([Kept(changed(row(), request_seq=1, **bad), ("head",))])
        wait_until(lambda: exporter.dropped_count == 1, "it is counted")
        exporter.offer(kept(1, 2))
        assert seqs(collector.wait(bool, "the other one")) == [2]


class TestWhatFails:
    def test_nothing_that_fits_is_lost_while_nobody_listens(self, setting: Setting) -> None:
        port = free_port()
        exporter = setting.start(f"http://127.0.0.1:{port}/v1/traces", timeout_s=SHORT_S)
        exporter.offer(kept(3))
        wait_until(lambda: exporter.problem == "127.0.0.1: ConnectionError", "it is noticed")
        wait_until(setting.files, "it is on disk")
        exporter.close()
        with Collector() as later:
            again = setting.start(later.url)
            got = later.wait(lambda spans: len(seqs(spans)) >= 3, "all of it, by the next observer")
            wait_until(lambda: not setting.files(), "the spool is empty")
            assert sorted(seqs(got)) == [0, 1, 2]
            assert again.problem == ""

    @pytest.mark.parametrize("status", [500, 503, 429, 401])
    def test_an_endpoint_that_fails_is_tried_again(self, setting: Setting, collector: Collector, status: int) -> None:
        collector.status = status
        exporter = setting.start(collector.url, timeout_s=SHORT_S)
        exporter.offer(kept(2))
        wait_until(lambda: exporter.failed_count >= 2, "it fails more than once")
        wait_until(lambda: exporter.problem == f"127.0.0.1: answers {status}", "it is said how")
        collector.status = 200
        assert sorted(seqs(collector.wait(bool, "it comes"))) == [0, 1]
        wait_until(lambda: not exporter.problem, "it is well again")

    def test_a_batch_that_is_never_taken_is_given_up(self, setting: Setting, collector: Collector) -> None:
        collector.status = 400
        exporter = setting.start(collector.url)
        exporter.offer(kept(2))
        wait_until(lambda: exporter.refused_count == 2, "it is refused")
        collector.status = 200
        exporter.offer(kept(1, 7))
        assert seqs(collector.wait(bool, "what comes behind it")) == [7]
        assert setting.files() == []

    def test_headers_are_not_carried_elsewhere(self, setting: Setting, collector: Collector) -> None:
        collector.status = 307
        exporter = setting.start(collector.url, timeout_s=SHORT_S)
        exporter.offer(kept(1))
        wait_until(lambda: exporter.problem == "127.0.0.1: TooManyRedirects", "it fails")
        assert collector.bodies == []

    def test_the_turn_does_not_wait_for_a_slow_endpoint_and_a_stop_keeps_what_is_left(
        self, setting: Setting, collector: Collector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(exporting, "STOP_S", 0.1)
        collector.gate.clear()
        exporter = setting.start(collector.url, timeout_s=30)
        exporter.offer(kept(1))
        wait_until(lambda: collector.asked_count, "an export is under way")
        exporter.offer(kept(3, 1))  # returns
        assert exporter.waiting_count == 4
        exporter.close()
        left = TraceSpool(setting.directory, SPOOL_BYTES).first()
        assert left is not None
        assert [each.row.request_seq for each in left[1]] == [0, 1, 2, 3]
        collector.gate.set()

    def test_a_stop_sends_what_there_is(self, setting: Setting, collector: Collector) -> None:
        exporter = setting.start(collector.url)
        exporter._linger_s = 60.0
        exporter.offer(kept(2))
        exporter.close()
        assert sorted(seqs(collector.spans())) == [0, 1]
        assert setting.files() == []

    def test_a_full_spool_drops_the_oldest_and_counts_them(self, setting: Setting) -> None:
        setting.spool_bytes = 30_000
        exporter = setting.start(f"http://127.0.0.1:{free_port()}/v1/traces", timeout_s=SHORT_S)
        for first in range(0, 100, 10):
            exporter.offer(kept(10, first))
        wait_until(lambda: exporter.failed_count, "the endpoint fails")
        exporter.close()
        assert sum(path.stat().st_size for path in setting.files()) <= 30_000
        spool = TraceSpool(setting.directory, 30_000)
        left = []
        while (first_batch := spool.first()) is not None:
            left += [each.row.request_seq for each in first_batch[1]]
            spool.remove(first_batch[0])
        assert len(left) + exporter.dropped_count == 100
        assert left == sorted(left)

    def test_a_fault_of_ours_ends_no_export_and_is_told(self, tmp_path: Path) -> None:
        class Odd:
            problem = ""
            sent: list[str]

            def __init__(self) -> None:
                self.sent, self.faults = [], 2

            def send(self, spans: Sequence[Span]) -> bool:
                self.sent += [span.name for span in spans if not self.faults]
                return not self.faults

            @property
            def is_refused(self) -> bool:
                self.faults -= 1
                raise KeyError("odd")

            def interrupt(self) -> None:
                pass

        odd = Odd()
        exporter = TraceExporter(lambda: odd, made, TraceSpool(tmp_path, SPOOL_BYTES), linger_s=0.0, retry_first_s=0.01)
        exporter.offer(kept(3))
        wait_until(lambda: exporter.failed_count, "it is told")
        wait_until(lambda: exporter.exported_count == 3, "none of them is lost")
        assert exporter.problem == ""
        exporter.close()


class TestSpool:
    def test_what_a_host_said_is_not_on_disk(self, tmp_path: Path) -> None:
        spool = TraceSpool(tmp_path, SPOOL_BYTES)
        spool.add([Kept(changed(row(), message="canary"), ("error",))])
        (path,) = tmp_path.iterdir()
        assert b"canary" not in path.read_bytes()

    def test_the_bound_is_of_bytes_and_the_newest_stay(self, tmp_path: Path) -> None:
        spool = TraceSpool(tmp_path, 20_000)
        for first in range(0, 60, 2):
            spool.add(kept(2, first))
            assert spool.byte_count <= 20_000
        assert spool.dropped_count == 60 - spool.trace_count
        number, batch = spool.first() or (0, [])
        assert batch[0].row.request_seq == spool.dropped_count
        spool.remove(number)
        assert spool.first() != (number, batch)

    def test_no_file_is_more_than_an_endpoint_takes(self, tmp_path: Path) -> None:
        spool = TraceSpool(tmp_path, 64 << 20)
        spool.add(kept(300))  # as a stop does with all that waits in memory
        sizes = []
        while (found := spool.first()) is not None:
            sizes.append(len(found[1]))
            spool.remove(found[0])
        assert sum(sizes) == 300
        assert max(sizes) <= BATCH_COUNT

    def test_a_batch_larger_than_the_bound_is_not_dropped_as_a_whole(self, tmp_path: Path) -> None:
        spool = TraceSpool(tmp_path, 65_536)
        spool.add(kept(BATCH_COUNT))
        assert spool.byte_count > 65_536 // 2
        assert spool.trace_count + spool.dropped_count == BATCH_COUNT

    def test_what_an_earlier_observer_left_is_known_and_counted_when_it_is_dropped(self, tmp_path: Path) -> None:
        TraceSpool(tmp_path, SPOOL_BYTES).add(kept(5))
        again = TraceSpool(tmp_path, 65_536)
        assert again.trace_count == 5
        again.add(kept(BATCH_COUNT, 5))
        assert again.trace_count + again.dropped_count == 5 + BATCH_COUNT

    def test_a_batch_that_is_dropped_while_it_is_sent_leaves_its_number_to_none(self, tmp_path: Path) -> None:
        spool = TraceSpool(tmp_path, SPOOL_BYTES)
        spool.add(kept(1))
        number, _ = spool.first() or (0, [])
        spool.remove(number)  # it had to make room
        spool.add(kept(1, 1))
        spool.remove(number)  # it was sent
        assert spool.trace_count == 1

    def test_damage_is_passed_over_and_counted(self, tmp_path: Path) -> None:
        spool = TraceSpool(tmp_path, SPOOL_BYTES)
        spool.add(kept(1))
        spool.add(kept(1, 1))
        sorted(tmp_path.iterdir())[0].write_bytes(b"[{")
        (tmp_path / "00000000000000000009.tmp").write_bytes(b"half a file")
        again = TraceSpool(tmp_path, SPOOL_BYTES)
        found = again.first()
        assert found is not None
        assert found[1][0].row.request_seq == 1
        assert again.dropped_count == 1
        assert len(list(tmp_path.iterdir())) == 1

    def test_a_disk_that_cannot_be_written_is_told(self, tmp_path: Path) -> None:
        spool = TraceSpool(tmp_path / "spool", SPOOL_BYTES)
        (tmp_path / "spool").rmdir()
        spool.add(kept(3))
        assert "cannot be written" in spool.problem
        assert spool.dropped_count == 3


def test_what_does_not_fit_into_memory_goes_to_the_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "QUEUE_MAX", 10)
    begun, go_on = threading.Event(), threading.Event()

    class Stuck:
        is_refused = False
        problem = ""

        def send(self, _: Sequence[Span]) -> bool:
            begun.set()
            return go_on.wait(20)

        def interrupt(self) -> None:
            go_on.set()

    spool = TraceSpool(tmp_path, SPOOL_BYTES)
    exporter = TraceExporter(Stuck, made, spool, linger_s=0.0)
    exporter.offer(kept(1))
    assert begun.wait(10)
    exporter.offer(kept(25, 1))
    assert (len(exporter._queue), spool.trace_count) == (10, 15)
    go_on.set()
    wait_until(lambda: exporter.exported_count == 26, "all are sent")
    exporter.close()
