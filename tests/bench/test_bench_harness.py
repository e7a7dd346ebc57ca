"""Plans, tables and verdicts of the measuring programs."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from bench import build, machine, report, soak
from bench.config import config_text
from bench.harness import Plan, measure
from bench.modes import DEFAULT_MODES, MODES, Mode
from bench.processes import MockHosts
from router.config import parse


def _run(peer: str, ttft_us: float, *, mode: str = "s64", errors: int = 0, cpu_s: float = 0.0) -> dict[str, Any]:
    times = {name: {"n": 10, "p50": ttft_us} for name in ("ttft_over", "ttft", "tok", "over")}
    return times | {
        "peer": peer,
        "mode": mode,
        "round": 0,
        "errors": {"http": errors, "close": 0},
        "unfinished": 0,
        "retried": 0,
        "tokens_all": 1000,
        "ok": 10,
        "tok_s": 100.0,
        "req_s": 1.0,
        "cpu_s": cpu_s,
        "steal": 0.0,
        "stall_ms": 0.0,
        "host": {"addresses": [{"max_waiting": 3}, {"max_waiting": 1}]},
    }


def _cells(table: str, row: int) -> dict[str, str]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return dict(zip(lines[0], lines[2 + row], strict=True))


def test_added_is_the_difference_of_the_medians() -> None:
    runs = [_run("direct", value) for value in (10, 20, 90)]
    runs += [_run("ringrouter", value, cpu_s=0.05) for value in (110, 150, 400)]
    table = report.table(runs)
    assert _cells(table, 0)["peer"] == "direct"
    row = _cells(table, 1)
    assert row["TTFT p50"] == "150 (110–400)"
    assert row["added"] == "+130"
    assert row["CPU/token"].startswith("50.0")
    assert row["waiting in a host"] == "3"


def test_errors_are_named_by_kind() -> None:
    row = _cells(report.table([_run("direct", 10), _run("ringrouter", 20, errors=2)]), 1)
    assert row["errors"] == "http 2"


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_the_router_of_every_mode_has_a_valid_configuration_that_tells_it_its_hosts(mode: Mode) -> None:
    setup = mode.setup
    text = config_text(
        "127.0.0.1:1", ["http://127.0.0.1:2", "unix:///h.sock"], Path("/r"), slots=setup.slots, close=setup.close
    )
    hosts = parse(text).hosts
    assert [host.url for host in hosts] == ["http://127.0.0.1:2", "unix:///h.sock"]
    assert [host.slots for host in hosts] == [setup.slots] * 2
    assert [host.facts.reuse_after_stream for host in hosts] == [not mode.close] * 2


def test_one_host_gets_the_slots_of_all_where_a_peer_knows_one_only() -> None:
    assert "slots=16&" in MODES["slots8"].host_options(2)
    assert "close=1&" in MODES["close64"].host_options()
    assert set(DEFAULT_MODES) <= set(MODES)


def test_without_a_compiler_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "BUILD_DIR", tmp_path)
    monkeypatch.setattr(build, "compiler", lambda: None)
    with pytest.raises(build.BuildError, match="install gcc, or set CC"):
        build.program("loadgen")


def test_a_program_is_built_once_for_each_state_of_its_source(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: MockHosts
) -> None:
    monkeypatch.setattr(build, "BUILD_DIR", tmp_path / "build")
    monkeypatch.setattr(build, "SOURCE_DIR", tmp_path)
    source = tmp_path / "tiny.c"
    source.write_text("int main(void) { return 0; }\n", encoding="ascii")
    first = build.program("tiny")
    built_ns = first.stat().st_mtime_ns
    assert build.program("tiny").stat().st_mtime_ns == built_ns
    source.write_text("int main(void) { return 1; }\n", encoding="ascii")
    second = build.program("tiny")
    assert second != first
    assert not first.exists(), "outdated programs do not pile up"


def test_a_pinned_block_gives_the_affinity_back() -> None:
    before = os.sched_getaffinity(0)
    with machine.pinned(min(before)):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before


def test_the_cpu_clock_of_a_process_moves_with_its_work() -> None:
    before_s = machine.cpu_s(os.getpid())
    sum(range(100_000))
    assert machine.cpu_s(os.getpid()) > before_s


def test_a_soak_fails_on_memory_descriptors_and_lost_streams() -> None:
    before = soak.Footprint(20_000_000, 30)
    assert soak.faults_of_footprint(before, soak.Footprint(24_999_999, 30)) == []
    assert len(soak.faults_of_footprint(before, soak.Footprint(25_000_001, 30))) == 1
    assert len(soak.faults_of_footprint(before, soak.Footprint(20_000_000, 29))) == 1
    whole = {"ok": 5, "unfinished": 0, "retried": 0, "errors": {"close": 0}}
    assert soak.faults_of_run(whole, 5) == []
    assert soak.faults_of_run(whole | {"ok": 4, "unfinished": 1}, 5) == ["4 of 5 streams came whole, 1 did not end"]
    assert soak.faults_of_run(whole | {"retried": 2, "errors": {"close": 1}}, 5) == [
        "1 errors of kind close",
        "2 requests had to be sent again by the client",
    ]


def test_a_plan_measures_every_peer_in_every_mode(host: MockHosts, tmp_path: Path) -> None:
    short = "mode=stream conc=4 n=4 ttft=2000 itl=2000 dur=0.3 warm=0.1"
    modes = [dataclasses.replace(MODES["low"], load=short), dataclasses.replace(MODES["close64"], load=short)]
    router_core, load_core = machine.two_cores()
    runs = list(measure(Plan(modes, 1, 0, router_core, load_core), tmp_path / "raw.jsonl"))
    assert {(run["mode"], run["peer"]) for run in runs} == {
        (mode.name, peer) for mode in modes for peer in ("direct", "ringrouter")
    }
    assert report.load_runs(tmp_path / "raw.jsonl") == runs
    for run in runs:
        assert run["ok"] > 0
        assert not any(run["errors"].values()), run["errors"]
        assert (run["cpu_s"] > 0) == (run["peer"] == "ringrouter")
    assert report.table(runs).count("ringrouter") == 2
