from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import ringbuffer as rb
from ringbuffer import cli, layout, sample, stats
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
    state="alive",
    heartbeat_ns=100 * NS_PER_S - 3_000_000,
    published=10_000,
    full_count=7,
    dropped_count=1,
    rows_in_use=0,
    readers=(LOOP, OBSERVE),
    counters=(),
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
    before = replace(REQUESTS, taken_ns=98 * NS_PER_S, published=7000)
    report = stats.build_report(sample_of(before), sample_of(REQUESTS, TOKENS, NAMES, TABLE, COUNTERS))
    assert cli.format_report(report) == [
        "requests: gating, layout 1.0, schema 1.2, pid 4242 alive, heartbeat 3 ms ago, 4,096 x 64 B",
        "      published 10,000, rate/s 1,500, free 3,096, full 7, consumers dropped 1, laps 2",
        "      consumer loop: pid 4242 alive, lag 1,000 (24.4 %), age 1.0 s",
        "      reader observe: pid 77 dead, lag 4,096 (100.0 %), age 60.0 s, lost 12",
        "tokens: broadcast, layout 1.0, schema 1.2, pid 4242 alive, heartbeat 3 ms ago, 4,096 x 64 B",
        "      published 10,000, laps 2",
        "      reader observe: pid 77 dead, lag 4,096 (100.0 %), age 60.0 s, lost 12",
        "names: append, layout 1.0, schema 1.2, pid 4242 alive, heartbeat 3 ms ago, 4,096 x 64 B",
        "      published 96, free 4,000",
        "inflight: table, layout 1.0, schema 1.2, pid 4242 alive, heartbeat 3 ms ago, 4,096 x 64 B",
        "      free 4,093",
        "counters: counters, layout 1.0, schema 1.2, pid 4242 alive, heartbeat 3 ms ago, 1 x 256 B",
        "  18:                1,234 - loop cycles over the threshold [cycles]",
    ]
    assert (report.state, report.exit_code) == ("alive", 0)


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
    for writer in (tokens, requests, inflight, counters):
        writer.close()
    made.close()


@pytest.mark.parametrize("where", ["main", "main/current"])
def test_a_generation_is_sampled_whole(tmp_path: Path, generation: rb.Generation, where: str) -> None:
    report = stats.build_report(None, sample.take(tmp_path / where))
    rows = {row.name: row for row in report.segments}
    assert sorted(rows) == ["counters", "inflight", "requests", "tokens"]
    assert (rows["tokens"].published, rows["tokens"].laps) == (20, 2)
    assert [(each.name, each.lag, each.state) for each in rows["tokens"].readers] == [("observe", 20, "alive")]
    assert (rows["requests"].published, rows["requests"].full_count, rows["requests"].free) == (8, 12, 0)
    assert [(each.name, each.lag) for each in rows["requests"].readers] == [("loop", 8)]
    assert rows["inflight"].free == 2
    assert [(each.id, each.value, each.label) for each in report.counters] == [(1, 5, "things counted")]
    assert (report.state, report.exit_code, report.errors) == ("alive", 0, ())


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
    assert "reader observe" in out


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
    assert (code, err) == (1, f"ringbuffer: there is no {tmp_path / 'none'}\n")
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


@pytest.mark.parametrize("arguments", [[], ["stats"], ["stats", "x", "--watch", "0"], ["stats", "x", "--watch", "nan"]])
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
    assert (code, waits) == (0, [2.5] * 4)
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
