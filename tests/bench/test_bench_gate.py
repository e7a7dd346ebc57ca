"""The gate: what it counts is right, it fails on planted regressions, and its baseline has reasons.

A regression is planted without the gate's or the router's help: a ``sitecustomize`` module on the path of every process
that the gate starts puts one more step into the handling of each read.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bench import gate, gate_baseline
from bench.build import compiler, program
from bench.gate_baseline import Baseline, Entry, judge, renewed
from bench.gate_lockstep import Hosts, HttpClient, run_streams, stream_parts
from bench.gate_quantities import QUANTITIES, Found, Quantity
from bench.gate_router import GateRouter

ROOT = Path(__file__).resolve().parents[2]
HERE = {"python": "3.11", "extensions": "c", "build": "x"}
CALLS = Quantity("calls_per_token", "calls", "calls", 0.1, limit=3.2, depends_on=("python",))
INSTRUCTIONS = Quantity("instructions", "calls", "instructions", 0.01, relative=True)

PLANT = """
from router.hosts.connection import HostConnection
{imports}
received = HostConnection.data_received
def planted(self, data):
    {step}
    received(self, data)
HostConnection.data_received = planted
"""
SYSTEM_CALL = PLANT.format(imports="import os", step="os.getppid()")
JSON_DECODE = PLANT.format(
    imports="import msgspec\nevent = " + repr(next(stream_parts(2)).partition(b"data: ")[2].partition(b"\n")[0]),
    step="msgspec.json.decode(event)",
)
KEPT = PLANT.format(imports="kept = []", step="kept.append(data + b' ')")
MODULES = "import xmlrpc.server"


def _gate(arguments: str, *, plant: Path | None = None) -> subprocess.CompletedProcess[str]:
    paths = [str(path) for path in (plant, ROOT) if path is not None]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "bench.gate", *arguments.split()]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.fixture(scope="module")
def measurable() -> str:
    """The groups that this machine can measure, of those that the tests plant something in."""
    if compiler() is None:
        pytest.skip("system calls are counted by a C program and there is no compiler")
    return "http,calls,modules,instructions" if shutil.which("valgrind") else "http,calls,modules"


@pytest.fixture(scope="module")
def clean(measurable: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A baseline of this machine: the committed one may be of another interpreter."""
    path = tmp_path_factory.mktemp("gate") / "baseline.json"
    result = _gate(f"--only {measurable} --baseline {path} --update --reason as-it-is-here")
    assert result.returncode == 0, result.stdout + result.stderr
    return path


def _verdicts(
    groups: str, baseline: Path, plant_text: str, directory: Path
) -> tuple[int, dict[str, Mapping[str, Any]]]:
    (directory / "sitecustomize.py").write_text(plant_text, encoding="utf-8")
    result = _gate(f"--only {groups} --baseline {baseline} --json", plant=directory)
    assert result.stdout, result.stderr
    return result.returncode, {each["name"]: each for each in json.loads(result.stdout)["quantities"]}


def _worse(verdicts: Mapping[str, Mapping[str, Any]]) -> set[str]:
    return {name for name, each in verdicts.items() if each["verdict"] == "worse"}


# ------------------------------------------------------------ planted regressions
def test_nothing_planted_passes(clean: Path, tmp_path: Path) -> None:
    status, verdicts = _verdicts("http,calls,modules", clean, "", tmp_path)
    assert status == 0
    assert {each["verdict"] for each in verdicts.values()} == {"ok"}, verdicts


def test_one_more_system_call_a_token_fails(clean: Path, tmp_path: Path) -> None:
    status, verdicts = _verdicts("http", clean, SYSTEM_CALL, tmp_path)
    assert status == 1
    assert "http_system_calls_per_token" in _worse(verdicts)
    found = verdicts["http_system_calls_per_token"]
    assert found["value"] - found["baseline"] == pytest.approx(1, abs=0.05)
    assert "getppid 1.0" in found["detail"], "the table names the call that is new"


def test_one_more_json_decode_a_token_fails(measurable: str, clean: Path, tmp_path: Path) -> None:
    groups = ",".join(group for group in measurable.split(",") if group in {"calls", "instructions"})
    status, verdicts = _verdicts(groups, clean, JSON_DECODE, tmp_path)
    assert status == 1
    expected = {"c_calls_per_token", "allocations_per_token"}
    if "instructions" in groups:
        expected.add("instructions_per_token")
    assert expected <= _worse(verdicts)


def test_what_is_kept_of_a_request_fails(clean: Path, tmp_path: Path) -> None:
    status, verdicts = _verdicts("calls", clean, KEPT, tmp_path)
    assert status == 1
    assert "kept_blocks_per_request" in _worse(verdicts)


def test_more_modules_fail(clean: Path, tmp_path: Path) -> None:
    status, verdicts = _verdicts("modules", clean, MODULES, tmp_path)
    assert status == 1
    assert _worse(verdicts) == {"modules"}


# ------------------------------------------------------------ what is counted
ASKING = """
import os, signal, sys, threading
def ask(times):
    for _ in range(times):
        os.getppid()
thread = threading.Thread(target=ask, args=(700,))
thread.start()
thread.join()
ask(299)
parent = os.getppid()
if "tell" in sys.argv:
    os.kill(parent, signal.SIGUSR1)
    sys.stdin.read()
"""
"""Asks for its parent 300 times in its first thread and 700 times in another, and tells the counter to write."""


def test_the_counter_of_system_calls_counts_each_thread() -> None:
    if compiler() is None:
        pytest.skip("the counter is written in C and there is no compiler")
    command = [str(program("syscalls")), sys.executable, "-c", ASKING, "tell"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first, others = json.loads(process.stdout.readline())
        process.communicate()
    assert (first["getppid"], others["getppid"]) == (300, 700)
    assert process.returncode == 0, "the counter ends as the program does"


def test_strace_counts_the_same(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    summary = tmp_path / "summary"
    subprocess.run([strace, "-f", "-c", "-o", str(summary), sys.executable, "-c", ASKING], check=True)
    lines = (line.split() for line in summary.read_text(encoding="ascii").splitlines())
    assert {words[-1]: words[3] for words in lines if len(words) >= 5}["getppid"] == "1000"


def test_the_load_is_answered_whole_and_token_by_token() -> None:
    with Hosts() as hosts, GateRouter(hosts) as router, HttpClient(router.target) as client:
        run_streams(hosts, client, 3, 20)  # each token must be at the client before the next one is written
    parts = list(stream_parts(5))
    assert len(parts) == 5
    assert b"".join(parts).count(b'"content":" ') + b"".join(parts).count(b'"content":","') == 5
    assert parts[-1].endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


# ------------------------------------------------------------ verdicts and the baseline
@pytest.mark.parametrize(
    ("value", "verdict"), [(3.0, "ok"), (3.09, "ok"), (3.11, "worse"), (2.91, "ok"), (2.89, "better")]
)
def test_a_value_is_held_against_its_baseline(value: float, verdict: str) -> None:
    baseline = Baseline(HERE, {"calls_per_token": Entry(3.0, "three steps")})
    assert judge(CALLS, Found(value), baseline, HERE).verdict == verdict


def test_a_limit_holds_whatever_the_baseline_says() -> None:
    baseline = Baseline(HERE, {"calls_per_token": Entry(3.15, "nearly four")})
    assert judge(CALLS, Found(3.19), baseline, HERE).verdict == "ok"
    assert judge(CALLS, Found(3.21), baseline, HERE).verdict == "worse"
    with pytest.raises(ValueError, match=r"3\.2 is its limit"):
        renewed(baseline, [CALLS], {"calls_per_token": Found(3.3)}, HERE, "more")


def test_tolerance_can_be_a_share() -> None:
    baseline = Baseline(HERE, {"instructions": Entry(20_000, "all of it")})
    assert judge(INSTRUCTIONS, Found(20_199), baseline, HERE).verdict == "ok"
    assert judge(INSTRUCTIONS, Found(20_201), baseline, HERE).verdict == "worse"


def test_without_a_baseline_the_gate_fails() -> None:
    assert judge(CALLS, Found(1), gate_baseline.NOTHING, HERE).verdict in gate_baseline.FAILING


def test_what_cannot_be_compared_is_skipped_with_a_reason() -> None:
    baseline = Baseline(HERE | {"python": "3.13"}, {"calls_per_token": Entry(3.0, "three steps")})
    verdict = judge(CALLS, Found(9), baseline, HERE)
    assert (verdict.verdict, verdict.reason) == ("skipped", "the baseline is of python 3.13, here it is 3.11")
    assert judge(INSTRUCTIONS, "valgrind is not installed", baseline, HERE).reason == "valgrind is not installed"


def test_an_update_gives_its_reason_to_what_changed_and_keeps_the_rest() -> None:
    old = Baseline(HERE, {"calls_per_token": Entry(3.0, "three steps"), "instructions": Entry(20_000, "all of it")})
    results: dict[str, Found | str] = {"calls_per_token": Found(2.0), "instructions": Found(20_010)}
    new = renewed(old, [CALLS, INSTRUCTIONS], results, HERE, "one write for two")
    assert new.entries == {
        "calls_per_token": Entry(2.0, "one write for two"),
        "instructions": old.entries["instructions"],
    }
    assert renewed(old, [CALLS, INSTRUCTIONS], {}, HERE, "nothing measured").entries == old.entries
    elsewhere = renewed(old, [CALLS, INSTRUCTIONS], results, HERE | {"python": "3.13"}, "another interpreter")
    assert {entry.why for entry in elsewhere.entries.values()} == {"another interpreter"}


def test_an_update_wants_a_reason(tmp_path: Path) -> None:
    for reason in ("", " --reason short"):
        result = _gate(f"--update --baseline {tmp_path}/b.json{reason}")
        assert result.returncode == 2
        assert "needs --reason" in result.stderr


def test_the_committed_baseline_has_every_gated_quantity_and_a_reason_for_each() -> None:
    baseline = gate_baseline.load(gate_baseline.BASELINE_FILE)
    assert set(baseline.entries) == {quantity.name for quantity in QUANTITIES if quantity.is_gated}
    for name, entry in baseline.entries.items():
        assert len(entry.why) >= gate.REASON_LENGTH_MIN, name
    assert set(baseline.environment) == {"python", "extensions", "build"}


def test_the_table_says_what_is_new_and_what_to_do() -> None:
    baseline = Baseline(HERE, {"calls_per_token": Entry(3.0, "three steps")})
    verdicts = [judge(CALLS, Found(4.0, "read 1.00, getppid 1.00"), baseline, HERE)]
    shown = gate.table(verdicts)
    assert re.search(r"calls_per_token +4\.00 +3\.00 +3\.10 +calls +worse", shown)
    assert "now: read 1.00, getppid 1.00" in shown
    assert "three steps" in shown
    assert "--update --reason" in gate.conclusion(verdicts)
