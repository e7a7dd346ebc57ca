"""`ringrouter run` as a newcomer sees it: one command, a real model's answer, and where its time went."""

from __future__ import annotations

import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.embedded.demonstration import QUESTION
from router.stamps import STAGES
from tests.support.processes import HostProcess, Program
from tests.support.waiting import free_port, shared_memory_directory, wait_until

RUN = [sys.executable, "-m", "router", "run"]
LAST_LINE = "Ctrl-C stops everything."


@pytest.fixture
def directory() -> Iterator[Path]:
    with shared_memory_directory() as path:
        yield path


def running_below(directory: Path) -> list[str]:
    """Return the command lines of the processes that name a path below ``directory``."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            commands.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has just ended
            continue
    return [command for command in commands if f"{directory}/" in command]


def wait_shown(program: Program) -> str:
    """Wait until the whole demonstration is printed; return all that was."""

    def shown() -> bool:
        assert program.is_running, program.log_text()
        return LAST_LINE in program.log_text()

    wait_until(shown, "the demonstration to be shown", timeout_s=60)
    return program.log_text()


@pytest.mark.usefixtures("host_directory")
def test_run_shows_a_real_answer_and_its_waterfall_and_ends_clean(directory: Path) -> None:
    environment = {"XDG_RUNTIME_DIR": str(directory), "XDG_STATE_HOME": str(directory / "state")}
    with Program("run", [*RUN, "--port", "0"], directory / "run.log", environment) as program:
        said = wait_shown(program)
        assert "HTTP    http://127.0.0.1:" in said
        assert f"rings   {directory}/ringrouter/main/" in said
        answer = said.split(QUESTION)[1].split("\n\n")[0]
        assert "sky" in answer.removeprefix("\nsmollm2-135m"), f"the model's own words, not {answer!r}"
        for stage in STAGES:
            assert stage.replace("_", " ") in said, f"the waterfall shows the stage {stage}"
        for figure in ("TTFT", "TPOT", "first 2 s", "router overhead"):
            assert figure in said
        assert len(running_below(directory)) == 4, "the router, its observer and two hosts"
        base_url = said.split("HTTP    ")[1].split("/v1")[0]
        with urllib.request.urlopen(f"{base_url}/v1/models", timeout=5) as response:
            assert b"smollm2-135m" in response.read()
        program.signal(signal.SIGINT)
        assert program.wait(20) == 0
    assert "Traceback" not in program.log_text()
    assert running_below(directory) == []
    assert not list(directory.rglob("*.sock")), "no socket is left"


@pytest.mark.usefixtures("host_directory")
def test_a_killed_run_leaves_no_process_behind_and_the_next_one_starts(directory: Path) -> None:
    environment = {"XDG_RUNTIME_DIR": str(directory), "XDG_STATE_HOME": str(directory / "state")}
    program = Program("run", [*RUN, "--port", "0"], directory / "run.log", environment)
    with program:
        wait_shown(program)
        program.kill()
        wait_until(lambda: not running_below(directory), "the kernel to kill the children")
    program.log_path.unlink()
    with program:
        wait_shown(program)


def test_run_with_a_configuration_serves_the_users_own_host(directory: Path, llama_host: HostProcess) -> None:
    config_path = directory / "mine.toml"
    config_path.write_text(
        f'version = 1\n[listen]\nhttp = "127.0.0.1:{free_port()}"\nrun_dir = "{directory}/rings"\n'
        f'[observer]\nhttp = "127.0.0.1:{free_port()}"\ndata_dir = "{directory}/data"\n{llama_host.toml()}'
    )
    with Program("run", [*RUN, "--config", str(config_path)], directory / "run.log") as program:
        said = wait_shown(program)
        assert "starting the chat model" not in said, "with a configuration no model comes along"
        assert f"rings   {directory}/rings/main/" in said
        assert "smollm2-135m  " in said
        assert "host first token" in said
        assert f"stats --run-dir {directory}/rings" in said, "what it tells to try next works as typed"
        program.signal(signal.SIGTERM)
        assert program.wait(20) == 0
    assert llama_host.is_running, "a host that the user runs is not ended"


def test_run_with_a_host_that_does_not_answer_keeps_running_and_says_so(directory: Path) -> None:
    config_path = directory / "mine.toml"
    config_path.write_text(
        f'version = 1\n[listen]\nhttp = "127.0.0.1:{free_port()}"\nrun_dir = "{directory}/rings"\n'
        "[observer]\nenabled = false\n"
        f'[[hosts]]\nname = "absent"\nurl = "http://127.0.0.1:{free_port()}"\nmodels = ["m"]\n'
    )
    with Program("run", [*RUN, "--config", str(config_path)], directory / "run.log") as program:
        wait_until(lambda: "--watch" in program.log_text(), "the message")
        said = program.log_text()
        assert "Not every model has a host that answers" in said
        assert "\n  absent: " in said, "each host with its state"
        assert program.is_running
