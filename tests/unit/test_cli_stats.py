"""``ringrouter stats``: what it finds, what it says, how it exits."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from done_records import payload
from fake_router import FakeRouter

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
