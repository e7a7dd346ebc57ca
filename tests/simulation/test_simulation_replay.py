"""A run replays exactly, in this process and in another, from its seed and from its log; and through another policy."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.simulation.drawing import draw
from tests.simulation.drawing_config import POLICIES
from tests.simulation.plants import PLANTS
from tests.simulation.replay import difference, read, safely, shrink, under_policy, write_down
from tests.support.waiting import shared_memory_directory

ROOT = Path(__file__).resolve().parents[2]
SEED = 9


def command_line(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.simulation", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("seed", range(20))
def test_the_same_seed_is_the_same_run(seed: int) -> None:
    with shared_memory_directory() as one, shared_memory_directory() as other:
        first = safely(draw(seed), one, keeps_events=True)
        safely(draw(seed + 1), other)
        second = safely(draw(seed), other, keeps_events=True)
    assert first.events == second.events
    assert first.trace_hash == second.trace_hash
    assert len(first.events) > 10


def test_another_process_has_the_same_run() -> None:
    outputs = [command_line("--seed", str(SEED), "--events", hash_seed=seed) for seed in ("1", "2")]
    assert outputs[0].returncode == 0, outputs[0].stderr
    assert outputs[0].stdout == outputs[1].stdout
    assert outputs[0].stdout.endswith("all holds\n")


def test_a_log_replays_without_its_seed(tmp_path: Path) -> None:
    with shared_memory_directory() as directory:
        scenario = msgspec.structs.replace(draw(SEED), seed=-1)  # nothing is drawn any more
        write_down(scenario, safely(scenario, directory, keeps_events=True), tmp_path / "run.json")
        written = read(tmp_path / "run.json")
        assert written.scenario == scenario
        assert difference(written, safely(written.scenario, directory, keeps_events=True)) == ""
        written.events[5] += " or not"
        assert "event 5 was" in difference(written, safely(written.scenario, directory, keeps_events=True))


def test_the_command_line_replays_a_log(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    assert command_line("--seed", str(SEED), "--write", str(path)).returncode == 0
    replayed = command_line("--replay", str(path))
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert replayed.stdout.startswith("the same ")
    path.write_text("{}")
    broken = command_line("--replay", str(path))
    assert broken.returncode == 2
    assert "is no log of a run" in broken.stderr
    assert "Traceback" not in broken.stderr


@pytest.mark.parametrize("policy", POLICIES)
def test_a_scenario_runs_through_every_policy(policy: str) -> None:
    scenario = under_policy(draw(SEED), policy)
    models = re.findall(r"^\[models\.\w+\]$", scenario.toml, re.MULTILINE)
    assert re.findall(r'^policy = "(\w+)"$', scenario.toml, re.MULTILINE) == [policy] * len(models)
    with shared_memory_directory() as directory:
        result = safely(scenario, directory)
    assert result.violations == []


def test_the_command_line_shows_both_policies() -> None:
    done = command_line("--seed", str(SEED), "--policy", "round_robin")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"seed {SEED} ")
    assert lines[2].startswith("through round_robin: ")
    assert all("TTFT p50" in line and "refused" in line for line in (lines[0], lines[2]))


def test_a_failing_seed_names_the_command_that_replays_it() -> None:
    plant = "a slot is not released"
    done = command_line("--seeds", "0:3", "--plant", plant)
    assert done.returncode == 1
    assert done.stdout.startswith("python -m tests.simulation --seed 0 ")
    assert command_line("--seed", "0", "--plant", plant).returncode == 1


def test_a_failing_scenario_is_made_smaller() -> None:
    with shared_memory_directory() as directory, PLANTS["a slot is not released"]():
        scenario = draw(1)
        smaller = shrink(scenario, lambda each: bool(safely(each, directory).violations))
    assert sum(len(client.asks) for client in smaller.clients) <= 2 < sum(len(c.asks) for c in scenario.clients)
