"""``ringrouter stats``: what it finds, what it says, how it exits."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from done_records import payload
from fake_router import FakeRouter

from ringbuffer import BroadcastReader
from router import cli, config
from router.cli import stats
from router.telemetry import records as rec
from router.telemetry.counters import Counter


@pytest.fixture
def fake(run_dir: Path) -> Iterator[FakeRouter]:
    fake = FakeRouter(run_dir / "main")
    yield fake
    fake.die()


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    code = cli.main(["stats", *map(str, arguments)])
    return code, capsys.readouterr().out


def plain(capsys: pytest.CaptureFixture[str], run_dir: Path) -> dict[str, Any]:
    _, out = said(capsys, "--run-dir", run_dir, "--json")
    decoded: dict[str, Any] = json.loads(out)
    return decoded


class TestText:
    def test_the_first_line_says_how_the_router_is(
        self, run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, out = said(capsys, "--run-dir", run_dir)
        assert code == 0
        assert out.startswith(f"ringrouter main: pid {os.getpid()} alive, heartbeat ")
        assert "done: broadcast, layout 1.0, schema {}.{}".format(*rec.RECORD_SCHEMA) in out
        assert "64 x 1,024 B" in out

    def test_percentiles_stand_with_n_and_the_window(
        self, run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for number in range(100):
            fake.finish(f"r-{number}")
        fake.finish_late("late")
        _, out = said(capsys, "--run-dir", run_dir)
        assert "n=64 of 101, 37 older ones overwritten" in out
        assert "ok 63, timeout 1" in out
        ttft = next(line for line in out.splitlines() if "TTFT, streams" in line)
        assert ttft.split()[-7:] == ["101", "ms", "101", "ms", "101", "ms", "63"]

    def test_an_idle_router_has_no_percentiles(
        self, run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _, out = said(capsys, "--run-dir", run_dir)
        assert "finished requests: none yet" in out
        assert "in flight: 0 running, 0 waiting" in out

    def test_counters_stand_with_label_and_unit(
        self, run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake.counters.set(Counter.CYCLE_NS_MAX, 1_234_567)
        _, out = said(capsys, "--run-dir", run_dir)
        assert "  17:            1,234,567 - longest time the loop kept its timer waiting [ns]" in out

    def test_running_and_waiting_stand_per_host_and_model(
        self, run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake.inflight.write(0, payload(phase=rec.Phase.WAITING, model=1))
        fake.inflight.write(1, payload(phase=rec.Phase.DECODE, model=1, host=1))
        _, out = said(capsys, "--run-dir", run_dir)
        rows = [line.split()[:4] for line in out.splitlines() if " chat " in line]
        assert rows == [["–", "chat", "0", "1"], ["gpu-0", "chat", "1", "0"]]

    def test_the_loop_is_told_in_words(
        self, run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake.counters.set(Counter.CYCLE_NS_MAX, 1_234_567)
        fake.counters.set(Counter.CYCLES_LONG, 1)
        _, out = said(capsys, "--run-dir", run_dir)
        assert "loop: longest cycle 1.23 ms, 1 cycle over loop.cycle_threshold_ms" in out

    def test_a_reader_is_told_in_words(
        self, run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        reader = BroadcastReader.attach(fake.directory / "tokens.ring", position=fake.directory / "readers" / "observe")
        for _ in range(16):
            fake.tokens.publish(1, 2, 3, 4, 5, 6, 7)
        _, out = said(capsys, "--run-dir", run_dir)
        reader.close()
        assert f"observe is 16 events behind, 25.0 % of the ring; reader, pid {os.getpid()} alive" in out

    def test_distinct_errors_stand_last(
        self, run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for _ in range(3):
            fake.errors.note("host gpu-0: host_closed", time.monotonic_ns())
        _, out = said(capsys, "--run-dir", run_dir)
        *_, observed, total = out.splitlines()
        assert observed.startswith("3 observations from ")
        assert observed.endswith(" for: host gpu-0: host_closed")
        assert total == "1 distinct error observed"

    def test_levels_have_no_rate(self, run_dir: Path, fake: FakeRouter) -> None:
        source = stats.Source(run_dir / "main", cli.HUNG_AFTER_S)
        source.look()
        fake.counters.set(Counter.IN_FLIGHT, 5)
        fake.counters.add(Counter.REQUESTS, 5)
        rates = {row.id: row.rate_per_s for row in source.look().rings.counters}
        source.close()
        assert rates[Counter.IN_FLIGHT] is None
        assert rates[Counter.REQUESTS]


class TestSelections:
    def test_only_what_was_asked_for_is_shown(
        self, run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake.counters.add(Counter.ZEROMQ_BAD, 2)
        code, out = said(capsys, "--run-dir", run_dir, "--only", "counter=zeromq_bad", "--only", "segment=done")
        assert code == 0
        lines = out.splitlines()
        assert lines[0].startswith("ringrouter main: ")
        assert lines[2].startswith("done: broadcast")
        assert lines[4] == "  24:                    2 - messages of ZeroMQ clients answered with an error [messages]"
        assert len(lines) == 5

    def test_json_has_the_same_part_of_the_rings(
        self, run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _, out = said(capsys, "--run-dir", run_dir, "--json", "--only", "segment=done")
        report = json.loads(out)
        assert [row["name"] for row in report["rings"]["segments"]] == ["done"]
        assert report["rings"]["counters"] == []
        assert report["pid"] == os.getpid()

    def test_what_cannot_be_selected_is_2(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["stats", "--run-dir", str(run_dir), "--only", "ring=x"]) == 2
        assert "NAME one of segment, reader, counter, error" in capsys.readouterr().err


class TestSeveral:
    def test_all_shows_every_instance_and_the_worst_exit_code(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        routers = {name: FakeRouter(run_dir / name) for name in ("b", "a")}
        (run_dir / "no-router").mkdir()
        code, out = said(capsys, "--run-dir", run_dir, "--all")
        heads = [line for line in out.splitlines() if line.startswith("ringrouter ")]
        assert (code, [head.split()[1] for head in heads]) == (0, ["a:", "b:"])
        routers["a"].die()
        code, out = said(capsys, "--run-dir", run_dir, "--all", "--json")
        states = {each["instance"]: each["state"] for each in map(json.loads, out.splitlines())}
        assert (code, states) == (3, {"a": "dead", "b": "alive"})
        routers["b"].die()

    def test_one_that_cannot_be_read_hides_no_other(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        other = FakeRouter(run_dir / "a", schema=(rec.RECORD_SCHEMA[0] + 1, 0))
        good = FakeRouter(run_dir / "b")
        assert cli.main(["stats", "--run-dir", str(run_dir), "--all"]) == 5
        told = capsys.readouterr()
        assert "record schema" in told.err
        assert told.out.startswith("ringrouter b: ")
        other.die()
        good.die()

    def test_without_any_it_is_1(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["stats", "--run-dir", str(run_dir), "--all"]) == 1
        assert "no instance" in capsys.readouterr().err

    def test_all_and_one_is_2(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["stats", "--run-dir", str(run_dir), "--all", "--instance", "a"]) == 2


class TestRestarts:
    def test_what_the_router_before_left_is_told(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        first = FakeRouter(run_dir / "main")
        first.inflight.write(3, payload(phase=rec.Phase.DECODE))
        first.die()
        second = FakeRouter(run_dir / "main")
        code, out = said(capsys, "--run-dir", run_dir)
        assert code == 0
        line = out.splitlines()[1]
        assert f"restarted: the one before it, pid {os.getpid()}, was last heard of 0.0s before this start" in line
        assert line.endswith(f"left 1 in flight, {first.directory}")
        report = plain(capsys, run_dir)
        assert report["previous"]["in_flight_count"] == 1
        shutil.rmtree(first.directory)
        assert plain(capsys, run_dir)["previous"] is None
        second.die()

    def test_the_first_has_none_before_it(
        self, run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert plain(capsys, run_dir)["previous"] is None


class TestJson:
    def test_it_carries_its_schema_and_both_parts(
        self, run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake.finish("r")
        report = plain(capsys, run_dir)
        assert report["schema"] == "ringrouter.stats/1"
        assert report["rings"]["schema"] == "ringbuffer.stats/1"
        assert (report["pid"], report["state"], report["instance"]) == (os.getpid(), "alive", "main")
        assert report["router"]["ttft_ns"] == {"n": 1, "p50": 101_000_000, "p95": 101_000_000, "p99": 101_000_000}
        assert report["router"]["window"]["published_count"] == 1


class TestExitCodes:
    def test_no_ring_is_1(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["stats", "--run-dir", str(run_dir)]) == 1
        assert "no router to look at" in capsys.readouterr().err

    def test_a_bad_configuration_is_2(self, tmp_path: Path) -> None:
        assert cli.main(["stats", "--config", str(tmp_path / "none.toml")]) == 2

    def test_a_dead_router_is_3_and_its_records_are_shown(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake = FakeRouter(run_dir / "main")
        fake.finish("r")
        fake.inflight.write(0, payload(phase=rec.Phase.DECODE, model=1, host=1))
        fake.die()
        code, out = said(capsys, "--run-dir", run_dir)
        assert code == 3
        assert f"pid {os.getpid()} dead" in out.splitlines()[0]
        assert "n=1 of 1" in out
        assert "in flight when the router ended: 1 running" in out

    def test_a_hung_router_is_4(self, run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
        fake.beat_at(time.monotonic_ns() - 60 * 10**9)
        code, out = said(capsys, "--run-dir", run_dir)
        assert code == 4
        assert "hung" in out.splitlines()[0]

    def test_how_old_a_heartbeat_may_be_can_be_said(self, run_dir: Path, fake: FakeRouter) -> None:
        fake.beat_at(time.monotonic_ns() - 60 * 10**9)
        assert cli.main(["stats", "--run-dir", str(run_dir), "--hung-after", "120"]) == 0

    def test_another_layout_is_5(self, run_dir: Path) -> None:
        fake = FakeRouter(run_dir / "main", schema=(rec.RECORD_SCHEMA[0] + 1, 0))
        assert cli.main(["stats", "--run-dir", str(run_dir)]) == 5
        fake.die()


class TestLocation:
    def test_the_configuration_names_directory_and_instance(
        self, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake = FakeRouter(run_dir / "second")
        path = tmp_path / "r.toml"
        hosts = '[[hosts]]\nname = "a"\nurl = "http://x"\napi_key_env = "A_KEY_ONLY_THE_ROUTER_HAS"'
        path.write_text(f'version = 1\n[listen]\nrun_dir = "{run_dir}"\ninstance = "second"\n{hosts}')
        code, out = said(capsys, "--config", path)
        fake.die()
        assert code == 0
        assert out.startswith("ringrouter second: ")

    def test_the_instance_can_be_named(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        fake = FakeRouter(run_dir / "other")
        code, _ = said(capsys, "--run-dir", run_dir, "--instance", "other")
        fake.die()
        assert code == 0

    def test_without_options_it_is_main_in_the_default_place(
        self, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(config, "default_run_dir", lambda: run_dir)
        fake = FakeRouter(run_dir / "main")
        code, _ = said(capsys)
        fake.die()
        assert code == 0


class TestAgain:
    def test_a_second_look_reads_on_and_has_rates(self, run_dir: Path, fake: FakeRouter) -> None:
        source = stats.Source(run_dir / "main", cli.HUNG_AFTER_S)
        fake.finish("a")
        assert source.look().token_events_per_s is None
        fake.finish("b")
        fake.tokens.publish(1, 2, 3, 4, 5, 6, 7)
        second = source.look()
        source.close()
        assert second.router.window.n == 2
        assert second.token_events_per_s is not None
        assert second.token_events_per_s > 0

    def test_it_follows_a_restarted_router(self, run_dir: Path) -> None:
        first = FakeRouter(run_dir / "main")
        first.finish("a")
        source = stats.Source(run_dir / "main", cli.HUNG_AFTER_S)
        source.look()
        first.die()
        second = FakeRouter(run_dir / "main")
        report = source.look()
        source.close()
        second.die()
        assert report.router.window.n == 0
        assert report.rings.state == "alive"

    def test_looking_changes_no_file(self, run_dir: Path, fake: FakeRouter) -> None:
        def state() -> dict[str, bytes]:
            return {str(path): path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}

        fake.finish("a")
        before = state()
        assert cli.main(["stats", "--run-dir", str(run_dir)]) == 0
        assert state() == before
