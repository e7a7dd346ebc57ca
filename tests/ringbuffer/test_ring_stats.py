from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

import ringbuffer as rb
from ringbuffer import cli, layout, sample, stats
from ringbuffer.distinct import DistinctError, DistinctErrorsWriter
from ringbuffer.layout import Kind
from ringbuffer.sample import ReaderSample, Sample, SegmentSample

NS_PER_S = 1_000_000_000
HEADER = rb.Header(
    kind=Kind.GATING,
    layout_version=(1, 0),
    record_schema=(1, 2),
    header_size=4096,
    slot_count=4096,
    slot_size=64,
    file_size=266_240,
    writer_pid=4242,
    writer_start_ticks=1,
    created_mono_ns=0,
    anchor_wall_ns=0,
    anchor_mono_ns=0,
    boot_id=uuid.UUID(int=0),
    name="requests",
    consumers_max=8,
)
LOOP = ReaderSample("loop", True, 4242, True, 9000, 0, 99 * NS_PER_S)
OBSERVE = ReaderSample("observe", False, 77, False, 5904, 12, 40 * NS_PER_S)
REQUESTS = SegmentSample(
    path=Path("/run/r/main/1/requests.ring"),
    inode=5,
    header=HEADER,
    taken_ns=100 * NS_PER_S,
    hung_after_s=5.0,
    state="alive",
    process_state="",
    heartbeat_ns=100 * NS_PER_S - 3_000_000,
    published=10_000,
    full_count=7,
    dropped_count=1,
    rows_in_use=0,
    readers=(LOOP, OBSERVE),
    counters=(),
    distinct_errors=None,
)
TOKENS = replace(
    REQUESTS, inode=6, header=replace(HEADER, kind=Kind.BROADCAST, name="tokens"), readers=(OBSERVE,), full_count=0
)
NAMES = replace(REQUESTS, inode=7, header=replace(HEADER, kind=Kind.APPEND, name="names"), published=96, readers=())
TABLE = replace(REQUESTS, inode=8, header=replace(HEADER, kind=Kind.TABLE, name="inflight"), rows_in_use=3, readers=())
COUNTERS = replace(
    REQUESTS,
    inode=9,
    header=replace(HEADER, kind=Kind.COUNTERS, name="counters", slot_count=1, slot_size=256),
    readers=(),
    counters=((rb.CounterSpec(18, "cycles_long", "cycles", "loop cycles over the threshold"), 1234),),
)


def sample_of(*segments: SegmentSample) -> Sample:
    return Sample(Path("/run/r/main/1"), segments, ())


def test_the_report_as_text() -> None:
    before = replace(REQUESTS, taken_ns=98 * NS_PER_S, published=7000, readers=())
    counted = replace(COUNTERS, taken_ns=98 * NS_PER_S, counters=((COUNTERS.counters[0][0], 1034),))
    tokens = replace(TOKENS, taken_ns=98 * NS_PER_S, published=5904)
    report = stats.build_report(sample_of(before, counted, tokens), sample_of(REQUESTS, TOKENS, NAMES, TABLE, COUNTERS))
    assert cli.format_report(report, {"tokens": "events"}) == [
        "requests: gating, layout 1.0, schema 1.2, pid 4242 alive, heartbeat 3 ms ago, 4,096 x 64 B",
        "      published 10,000, rate/s 1,500, free 3,096, full 7, consumers dropped 1, laps 2",
        (
            "      loop is 1,000 records behind, 24.4 % of the ring, 3,096 more fill it; "
            "consumer, pid 4242 alive, released 1.0 s ago"
        ),
        "      observe is 4,096 records behind, 100.0 % of the ring; reader, pid 77 dead, looked 60.0 s ago, lost 12",
        "tokens: broadcast, layout 1.0, schema 1.2, pid 4242 alive, heartbeat 3 ms ago, 4,096 x 64 B",
        "      published 10,000, rate/s 2,048, laps 2, holds 2.0 s at this rate",
        (
            "      observe is 4,096 events behind, 100.0 % of the ring; "
            "reader, pid 77 dead, looked 60.0 s ago, 0/s, lost 12"
        ),
        "names: append, layout 1.0, schema 1.2, pid 4242 alive, heartbeat 3 ms ago, 4,096 x 64 B",
        "      published 96, free 4,000",
        "inflight: table, layout 1.0, schema 1.2, pid 4242 alive, heartbeat 3 ms ago, 4,096 x 64 B",
        "      free 4,093",
        "counters: counters, layout 1.0, schema 1.2, pid 4242 alive, heartbeat 3 ms ago, 1 x 256 B",
        "  18:                1,234 - loop cycles over the threshold [cycles]  +100/s",
    ]
    assert (report.state, report.exit_code) == ("alive", 0)


def reader_row(now: SegmentSample, before: SegmentSample | None = None) -> tuple[stats.ReaderRow, stats.SegmentRow]:
    earlier = sample_of(before) if before is not None else None
    (row,) = stats.build_report(earlier, sample_of(now)).segments
    return row.readers[0], row


def reading(ring: SegmentSample, reader: ReaderSample, position: int, **given: object) -> SegmentSample:
    return replace(ring, readers=(replace(reader, position=position),), **given)  # type: ignore[arg-type]


class TestPositionsInWords:
    @pytest.mark.parametrize(
        ("position", "words"),
        [
            (10_000, "observe is up to date"),
            (9_999, "observe is 1 event behind, < 0.1 % of the ring"),
            (8_796, "observe is 1,204 events behind, 29.4 % of the ring"),
            (4_904, "observe is 5,096 events behind, 124.4 % of the ring, 1,000 of them overwritten already"),
        ],
    )
    def test_a_lossy_reader(self, position: int, words: str) -> None:
        assert stats.explain(*reader_row(reading(TOKENS, OBSERVE, position)), "events") == words

    def test_a_large_ring(self) -> None:
        large = replace(TOKENS, header=replace(TOKENS.header, slot_count=262_144), published=300_000)
        words = stats.explain(*reader_row(reading(large, OBSERVE, 298_796)), "events")
        assert words == "observe is 1,204 events behind, 0.5 % of the ring"

    @pytest.mark.parametrize(
        ("ring", "reader", "positions", "published_before", "words"),
        [
            (TOKENS, OBSERVE, (7_400, 9_000), 9_800, "24.4 % of the ring, caught up in 1.4 s at this rate"),
            (TOKENS, OBSERVE, (8_800, 8_900), 9_000, "26.9 % of the ring, losing in 6.7 s at this rate"),
            (REQUESTS, LOOP, (8_800, 8_900), 9_000, ", 2,996 more fill it, full in 6.7 s at this rate"),
            (TOKENS, OBSERVE, (8_600, 8_790), 9_800, "29.5 % of the ring"),
            (TOKENS, OBSERVE, (8_600, 8_800), 9_800, "29.3 % of the ring"),
            (TOKENS, OBSERVE, (4_000, 4_500), 9_800, "1,404 of them overwritten already"),
        ],
        ids=["catching up", "losing soon", "full soon", "losing in minutes", "as fast as the writer", "lapped"],
    )
    def test_what_comes_of_it_is_said_when_it_is_soon(
        self, ring: SegmentSample, reader: ReaderSample, positions: tuple[int, int], published_before: int, words: str
    ) -> None:
        reader = replace(reader, is_alive=True)
        before = reading(ring, reader, positions[0], published=published_before, taken_ns=98 * NS_PER_S)
        assert stats.explain(*reader_row(reading(ring, reader, positions[1]), before)).endswith(words)


class TestReaderStates:
    """A reader is hung when records wait for it and it takes none; without work it takes none either."""

    @pytest.mark.parametrize(
        ("position", "age_s", "state"), [(9_000, 6, "hung"), (9_000, 4, "alive"), (10_000, 600, "alive")]
    )
    def test_a_lossy_reader_beats_whenever_it_looks(self, position: int, age_s: int, state: str) -> None:
        reader = replace(OBSERVE, is_alive=True, heartbeat_ns=(100 - age_s) * NS_PER_S)
        assert reader_row(reading(TOKENS, reader, position))[0].state == state

    @pytest.mark.parametrize(
        ("handed", "age_s", "state"),
        [(9_001, 6, "hung"), (9_001, 4, "alive"), (9_000, 600, "alive"), (0, 600, "alive")],
        ids=["holds it", "has just got it", "has just come", "never had any"],
    )
    def test_a_consumer_is_hung_when_it_holds_records_in_hand_for_too_long(
        self, handed: int, age_s: int, state: str
    ) -> None:
        consumer = replace(LOOP, handed=handed, heartbeat_ns=(100 - age_s) * NS_PER_S)
        assert reader_row(reading(REQUESTS, consumer, 9_000))[0].state == state

    @pytest.mark.parametrize(
        ("positions", "published", "state"),
        [
            ((9_000, 9_000, 9_000), (9_500, 9_600, 10_000), "hung"),
            ((9_000, 9_000, 9_000), (9_000, 9_500, 10_000), "alive"),  # nothing waited when it was looked at first
            ((8_999, 9_000, 9_000), (9_500, 9_600, 10_000), "alive"),  # it moved in between
        ],
    )
    def test_a_consumer_that_takes_nothing_is_hung_when_it_was_seen_so_for_long_enough(
        self, positions: tuple[int, int, int], published: tuple[int, int, int], state: str
    ) -> None:
        idle = replace(LOOP, heartbeat_ns=10 * NS_PER_S)
        seen = None
        looks = zip(positions, published, (94, 97, 100), strict=True)
        for position, count, second in looks:
            now = sample_of(reading(REQUESTS, idle, position, published=count, taken_ns=second * NS_PER_S))
            (row,) = stats.build_report(seen, now).segments
            assert second == 100 or row.readers[0].state == "alive", "that was not long enough"
            seen = stats.continued(seen, now)
        assert row.readers[0].state == state

    def test_a_consumer_of_the_same_name_in_another_process_begins_anew(self) -> None:
        idle = replace(LOOP, heartbeat_ns=10 * NS_PER_S)
        before = reading(REQUESTS, replace(idle, pid=1), 9_000, taken_ns=90 * NS_PER_S)
        assert reader_row(reading(REQUESTS, idle, 9_000), before)[0].state == "alive"

    def test_positions_that_cannot_be_make_no_row_wrong(self) -> None:
        beyond = reading(REQUESTS, LOOP, 2**64 - 1)
        row, ring = reader_row(beyond)
        assert (row.lag, row.state, ring.free) == (0, "alive", REQUESTS.header.slot_count)
        shrunk = replace(TOKENS, published=1)
        assert reader_row(shrunk, replace(TOKENS, taken_ns=98 * NS_PER_S))[1].holds_s is None

    def test_another_process_of_the_same_name_has_no_rate_yet(self) -> None:
        before = reading(TOKENS, replace(OBSERVE, pid=1), 10_000, taken_ns=98 * NS_PER_S)
        assert reader_row(reading(TOKENS, OBSERVE, 4), before)[0].rate_per_s is None


ERRORS = replace(
    COUNTERS,
    inode=10,
    header=replace(COUNTERS.header, kind=Kind.ERRORS, name="errors", anchor_wall_ns=1_700_000_000 * NS_PER_S),
    counters=(),
    distinct_errors=(
        DistinctError("host gpu-0: host_closed", 3, 5 * NS_PER_S, 9 * NS_PER_S),
        DistinctError("host gpu-1: host_status 503", 1, 7 * NS_PER_S, 7 * NS_PER_S),
    ),
)


def at(second: int) -> str:
    return datetime.fromtimestamp(1_700_000_000 + second).astimezone().isoformat(timespec="milliseconds")


def test_distinct_errors_stand_with_count_first_and_last_the_latest_last() -> None:
    report = stats.build_report(None, sample_of(ERRORS))
    assert cli.format_errors(report) == [
        f"1 observation at {at(7)} for: host gpu-1: host_status 503",
        f"3 observations from {at(5)} to {at(9)} for: host gpu-0: host_closed",
        "2 distinct errors observed",
    ]
    one = replace(ERRORS, distinct_errors=ERRORS.distinct_errors[:1] if ERRORS.distinct_errors else ())
    assert cli.format_errors(stats.build_report(None, sample_of(one)))[-1] == "1 distinct error observed"
    none = replace(ERRORS, distinct_errors=())
    assert cli.format_errors(stats.build_report(None, sample_of(none))) == ["0 distinct errors observed"]
    assert cli.format_errors(stats.build_report(None, sample_of(COUNTERS))) == [], "nothing here keeps errors"


@pytest.mark.parametrize(
    ("text", "line"),
    [("plain – text", "plain – text"), ("/run/\udcff/x", r"/run/\xff/x"), ("two\nlines\x1b[2J", r"two\nlines\x1b[2J")],
)
def test_what_came_from_a_file_or_its_name_is_one_line_that_can_be_written(text: str, line: str) -> None:
    assert stats.shown(text) == line


class TestSelections:
    REPORT = stats.build_report(None, sample_of(REQUESTS, TOKENS, NAMES, COUNTERS, ERRORS))

    def shown(self, *selections: str) -> tuple[list[str], list[str], list[str], list[str] | None]:
        report = stats.select(self.REPORT, [stats.parse_selection(text) for text in selections])
        assert (report.state, report.exit_code) == (self.REPORT.state, self.REPORT.exit_code)
        errors = report.distinct_errors
        return (
            [row.name for row in report.segments],
            [reader.name for row in report.segments for reader in row.readers],
            [row.name for row in report.counters],
            [row.text for row in errors] if errors is not None else None,
        )

    def test_none_shows_everything(self) -> None:
        assert stats.select(self.REPORT, []) is self.REPORT

    def test_a_segment_comes_with_its_readers(self) -> None:
        assert self.shown("segment=req*") == (["requests"], ["loop", "observe"], [], None)

    def test_a_reader_stands_below_each_of_its_rings(self) -> None:
        assert self.shown("reader=obs*") == (["requests", "tokens"], ["observe", "observe"], [], None)

    def test_several_add_up(self) -> None:
        assert self.shown("counter=cycles_*", "segment=names", "error=*gpu-1*") == (
            ["names"], [], ["cycles_long"], ["host gpu-1: host_status 503"],
        )  # fmt: skip

    @pytest.mark.parametrize("text", ["", "tokens", "ring=tokens", "segment="])
    def test_what_names_nothing_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="expected NAME=PATTERN, NAME one of segment, reader, counter, error"):
            stats.parse_selection(text)


@pytest.mark.parametrize(
    ("codes", "code"), [([0, 0], 0), ([0, 1], 1), ([1, 4], 4), ([4, 3], 3), ([3, 5, 0], 5), ([], 1)]
)
def test_the_exit_code_of_several_is_the_worst(codes: list[int], code: int) -> None:
    assert stats.worst(codes) == code


def test_the_report_as_json_carries_its_schema() -> None:
    document = json.loads(json.dumps(stats.as_json(stats.build_report(None, sample_of(REQUESTS, COUNTERS)))))
    assert document["schema"] == "ringbuffer.stats/1"
    assert document["segments"][0]["readers"][0] == {
        "name": "loop",
        "gates": True,
        "pid": 4242,
        "state": "alive",
        "lag": 1000,
        "lag_percent": pytest.approx(24.4, abs=0.1),
        "age_s": 1.0,
        "lost": 0,
        "overwritten": 0,
        "rate_per_s": None,
    }
    assert document["segments"][0]["rate_per_s"] is None, "a rate needs two samples"
    assert document["counters"][0]["value"] == 1234


def test_a_ring_that_was_replaced_between_the_samples_has_no_rate() -> None:
    before = replace(REQUESTS, inode=1, taken_ns=98 * NS_PER_S)
    assert stats.build_report(sample_of(before), sample_of(REQUESTS)).segments[0].rate_per_s is None


def test_a_gating_ring_without_consumers_is_free() -> None:
    report = stats.build_report(None, sample_of(replace(REQUESTS, readers=())))
    assert report.segments[0].free == 4096


@pytest.mark.parametrize(
    ("states", "exit_code"),
    [(["alive"], 0), (["alive", "hung"], 4), (["hung", "dead"], 3), (["restarted", "alive"], 3), ([], 1)],
)
def test_the_exit_code_is_that_of_the_worst(states: list[str], exit_code: int) -> None:
    segments = [replace(REQUESTS, state=state) for state in states]  # type: ignore[arg-type]
    assert stats.build_report(None, sample_of(*segments)).exit_code == exit_code


@pytest.fixture
def generation(tmp_path: Path, backend: str) -> Iterator[rb.Generation]:
    made = rb.Generation.create(tmp_path / "main")
    path = made.path
    tokens = rb.BroadcastWriter.create(
        path / "tokens.ring", slot_count=8, slot_size=64, record_schema=(1, 0), name="tokens"
    )
    requests = rb.GatingProducer.create(
        path / "requests.ring", slot_count=8, slot_size=64, record_schema=(1, 0), name="requests"
    )
    inflight = rb.TableWriter.create(
        path / "inflight.tab", row_count=3, row_size=64, record_schema=(1, 0), name="inflight"
    )
    errors = DistinctErrorsWriter.create(path / "errors", row_count=1)
    for text in ("a fault", "a fault", "another"):
        errors.note(text, time.monotonic_ns())
    counters = rb.CountersWriter.create(path / "counters", [rb.CounterSpec(1, "n", "things", "things counted")])
    reader = rb.BroadcastReader.attach(path / "tokens.ring", position=path / "readers" / "observe")
    consumer = rb.GatingConsumer.register(path / "requests.ring", "loop")
    for n in range(20):
        tokens.publish(n, 0, 0, 0, 0, 0, 0)
        requests.try_publish(n, 0, 0, 0, 0, 0, 0)
    inflight.write(1, b"x")
    counters.add(1, 5)
    made.activate()
    (path / "zmq.sock").mkdir()
    (path / "notes").write_bytes(b"n" * 5000)
    yield made
    reader.close()
    consumer.close()
    for writer in (tokens, requests, inflight, counters, errors):
        writer.close()
    made.close()


@pytest.mark.parametrize("where", ["main", "main/current"])
def test_a_generation_is_sampled_whole(tmp_path: Path, generation: rb.Generation, where: str) -> None:
    report = stats.build_report(None, sample.take(tmp_path / where))
    rows = {row.name: row for row in report.segments}
    assert sorted(rows) == ["counters", "errors", "inflight", "requests", "tokens"]
    assert (rows["tokens"].published, rows["tokens"].laps) == (20, 2)
    assert [(each.name, each.lag, each.state) for each in rows["tokens"].readers] == [("observe", 20, "alive")]
    assert (rows["requests"].published, rows["requests"].full_count, rows["requests"].free) == (8, 12, 0)
    assert [(each.name, each.lag) for each in rows["requests"].readers] == [("loop", 8)]
    assert rows["inflight"].free == 2
    assert (rows["errors"].published, rows["errors"].free, rows["errors"].full_count) == (1, 0, 1)
    assert [(each.text, each.count) for each in report.distinct_errors or ()] == [("a fault", 2)]
    assert [(each.id, each.value, each.label) for each in report.counters] == [(1, 5, "things counted")]
    assert (report.state, report.exit_code, report.errors) == ("alive", 0, ())


class TestConsumersOfRealRings:
    """What stands in the row of a consumer that is new, idle, at work and stuck."""

    def state(self, ring: Path, hung_after_s: float = 1e-9) -> str:
        (row,) = stats.build_report(None, sample.take(ring, hung_after_s)).segments
        return row.readers[0].state

    @pytest.fixture
    def ring(self, tmp_path: Path, backend: str) -> Iterator[tuple[rb.GatingProducer, rb.GatingConsumer]]:
        producer = rb.GatingProducer.create(
            tmp_path / "ring", slot_count=8, slot_size=64, record_schema=(1, 0), name="work"
        )
        producer.beat(1)
        consumer = rb.GatingConsumer.register(tmp_path / "ring", "worker")
        yield producer, consumer
        consumer.close()
        producer.close()

    def test_a_new_one_is_as_old_as_its_registration(
        self, tmp_path: Path, ring: tuple[rb.GatingProducer, rb.GatingConsumer]
    ) -> None:
        (seen,) = sample.take(tmp_path / "ring").segments[0].readers
        assert time.monotonic_ns() - seen.heartbeat_ns < 60 * NS_PER_S, "not as old as the producer's heartbeat"

    def test_an_idle_one_is_not_hung_at_its_first_record(
        self, tmp_path: Path, ring: tuple[rb.GatingProducer, rb.GatingConsumer]
    ) -> None:
        producer, consumer = ring
        assert consumer.poll(9) == (0, 0)
        producer.try_publish(1, 2, 3, 4, 5, 6, 7)
        assert self.state(tmp_path / "ring") == "alive", "it was handed nothing"

    @pytest.mark.parametrize("poll", ["poll", "poll_into"])
    def test_one_that_begins_to_have_work_begins_to_be_measured(
        self, tmp_path: Path, ring: tuple[rb.GatingProducer, rb.GatingConsumer], poll: str
    ) -> None:
        producer, consumer = ring

        def take() -> None:
            consumer.poll(9) if poll == "poll" else consumer.poll_into(bytearray(64 * 9))

        def heartbeat_ns() -> int:
            return sample.take(tmp_path / "ring").segments[0].readers[0].heartbeat_ns

        take()
        registered_ns = heartbeat_ns()
        producer.try_publish(1, 2, 3, 4, 5, 6, 7)
        take()
        began_ns = heartbeat_ns()
        assert began_ns > registered_ns
        assert self.state(tmp_path / "ring", 60.0) == "alive"
        assert self.state(tmp_path / "ring") == "hung", "it has had the record for longer than a nanosecond"
        producer.try_publish(1, 2, 3, 4, 5, 6, 7)
        take()
        assert heartbeat_ns() == began_ns, "more work is no progress"
        consumer.poll(0)
        assert heartbeat_ns() == began_ns
        consumer.release(1)
        released_ns = heartbeat_ns()
        assert released_ns > began_ns
        consumer.release(2)
        assert self.state(tmp_path / "ring") == "alive", "it has done everything"
        producer.try_publish(1, 2, 3, 4, 5, 6, 7)
        take()
        assert heartbeat_ns() > released_ns, "after it had nothing left to do it begins anew"

    def test_watching_finds_one_that_takes_nothing_at_all(
        self,
        tmp_path: Path,
        ring: tuple[rb.GatingProducer, rb.GatingConsumer],
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        producer, _ = ring
        producer.try_publish(1, 2, 3, 4, 5, 6, 7)
        looks: list[float] = []

        def wait(seconds: float) -> None:
            looks.append(seconds)
            if len(looks) == 4:
                raise KeyboardInterrupt

        monkeypatch.setattr(time, "sleep", wait)
        paths = [str(tmp_path / "ring"), str(tmp_path / "none")]
        cli.main(["stats", *paths, "--watch", "1", "--json", "--hung-after", "1e-9"])
        states = [
            json.loads(line)["segments"][0]["readers"][0]["state"] for line in capsys.readouterr().out.splitlines()
        ]
        assert states == ["hung"] * 3, "its record waited from one look to the next, for longer than a nanosecond"


def digest(directory: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.rglob("*") if p.is_file()}


def test_looking_changes_nothing(tmp_path: Path, generation: rb.Generation) -> None:
    before = digest(tmp_path)
    stats.build_report(None, sample.take(tmp_path / "main"))
    assert digest(tmp_path) == before


def run_stats(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["stats", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_the_command_on_one_ring(generation: rb.Generation, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_stats(capsys, generation.path / "tokens.ring")
    assert code == 0
    assert out.startswith("tokens: broadcast, layout 1.0")
    assert "published 20, rate/s 0, laps 2" in out
    assert "observe is 20 records behind, 250.0 % of the ring, 12 of them overwritten already; reader, pid" in out


def test_the_command_on_several_paths(
    tmp_path: Path, generation: rb.Generation, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens, none = generation.path / "tokens.ring", tmp_path / "none"
    code, out, err = run_stats(capsys, tokens, none, generation.path / "counters")
    assert code == 1
    assert str(none) in err
    titles = [line for line in out.splitlines() if line.startswith("/")]
    assert titles == [f"{tokens}:", f"{generation.path / 'counters'}:"]
    code, out, _ = run_stats(capsys, tokens, generation.path / "counters", "--json")
    assert (code, [json.loads(line)["segments"][0]["name"] for line in out.splitlines()]) == (0, ["tokens", "counters"])


def test_the_command_shows_only_what_was_asked_for(
    generation: rb.Generation, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run_stats(capsys, generation.path, "--only", "counter=n")
    assert (code, out) == (0, "   1:                    5 - things counted [things]\n")


def test_the_command_says_hung_and_dead(generation: rb.Generation, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_stats(capsys, generation.path, "--json", "--hung-after", "1e-9")
    assert (code, json.loads(out)["state"]) == (4, "hung")
    copy = generation.path / "copy.ring"
    copy.write_bytes((generation.path / "tokens.ring").read_bytes())
    code, out, _ = run_stats(capsys, copy)
    assert code == 3
    assert f"pid {HEADER.writer_pid}" not in out
    assert " dead, heartbeat" in out


def test_the_command_names_what_it_cannot_read(
    tmp_path: Path, generation: rb.Generation, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run_stats(capsys, tmp_path / "none")
    assert code == 1
    assert err.startswith("ringbuffer: ")
    assert str(tmp_path / "none") in err
    (tmp_path / "empty").mkdir()
    assert run_stats(capsys, tmp_path / "empty")[0] == 1
    assert run_stats(capsys, generation.path / "notes")[0] == 1
    raw = bytearray((generation.path / "tokens.ring").read_bytes())
    raw[layout.LAYOUT_VERSION_OFFSET : layout.LAYOUT_VERSION_OFFSET + 8] = layout.pack_version((9, 0)).to_bytes(
        8, "little"
    )
    (generation.path / "future.ring").write_bytes(raw)
    assert run_stats(capsys, generation.path / "future.ring")[0] == 5
    code, out, _ = run_stats(capsys, generation.path)
    assert code == 5
    assert "cannot be read: future.ring:" in out
    assert "tokens: broadcast" in out, "the others are shown all the same"


@pytest.mark.parametrize(
    "arguments",
    [[], ["stats"], ["stats", "x", "--watch", "0"], ["stats", "x", "--watch", "nan"], ["stats", "x", "--only", "x"]],
)
def test_wrong_usage_is_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_watching_prints_a_report_per_interval_until_interrupted(
    generation: rb.Generation, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", wait)
    code, out, _ = run_stats(capsys, generation.path, "--watch", "2.5", "--json")
    assert (code, waits) == (130, [2.5] * 4)
    assert [json.loads(line)["schema"] for line in out.splitlines()] == [stats.SCHEMA] * 3


def test_the_command_runs_as_a_module_and_survives_a_closed_pipe(generation: rb.Generation) -> None:
    command = [sys.executable, "-m", "ringbuffer", "stats", generation.path, "--watch", "0.01"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stderr is not None
    assert running.stdout.readline() == b"--\n"
    running.stdout.close()
    assert running.wait() == 0
    assert running.stderr.read() == b""
    running.stderr.close()


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        (">/dev/full", 2, "the output cannot be written"),
        (">&-", 2, "standard output is closed"),
        ("--watch 1e300", 2, "seconds above 0"),
        ("--watch 0", 2, "seconds above 0"),
    ],
)
def test_what_cannot_be_shown_ends_in_one_line(tmp_path: Path, more: str, status: int, said: str) -> None:
    path = tmp_path / "ring"
    rb.BroadcastWriter.create(path, slot_count=4, slot_size=64, record_schema=(1, 0), name="ring").close()
    command = f"{shlex.quote(sys.executable)} -m ringbuffer stats {shlex.quote(str(path))} {more}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_and_a_closed_output_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(cli, "_show", full)
        patched.setattr(cli.os, "dup2", lambda *_: None)
        assert cli.main(["stats", str(tmp_path)]) == 2
    assert "the output cannot be written: No space left on device" in capfd.readouterr().err
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", None)
        assert cli.main(["stats", str(tmp_path)]) == 2
    assert "standard output is closed" in capfd.readouterr().err
