"""The command line: usage, exit codes, check and serve; how commands end when they are interrupted or not read."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_router import FakeRouter

import router
from router import cli, config, supervisor
from router.config import Config
from router.config_reference import EXAMPLE_LLAMA, EXAMPLE_VLLM

ROOT = Path(router.__file__).parents[1]


@pytest.fixture
def fake(run_dir: Path) -> Iterator[FakeRouter]:
    fake = FakeRouter(run_dir / "main")
    yield fake
    fake.die()


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "router", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


class TestUsage:
    def test_the_version_is_that_of_the_package(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main(["--version"])
        assert ended.value.code == 0
        assert capsys.readouterr().out == f"ringrouter {router.__version__}\n"

    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["fly"],
            ["check"],
            ["stats", "--watch", "0"],
            ["stats", "--watch", "nan"],
            ["stats", "--config", "a", "--run-dir", "b"],
            ["tail", "-n", "-1"],
            ["run", "--port", "70000"],
        ],
    )
    def test_what_cannot_be_understood_is_2(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 2
        assert "usage: ringrouter" in capsys.readouterr().err

    def test_the_module_is_the_command(self) -> None:
        process = start("--version")
        assert process.communicate()[0] == f"ringrouter {router.__version__}\n"


class TestServe:
    def test_without_a_configuration_there_are_no_hosts(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["serve"]) == 2
        assert "no hosts to serve" in capsys.readouterr().err

    def test_a_bad_configuration_is_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "r.toml"
        path.write_text("version = 9")
        assert cli.main(["serve", "--config", str(path)]) == 2
        assert capsys.readouterr().err == f"ringrouter: {path}: version = 9: expected 1\n"

    def test_the_configuration_reaches_the_daemon(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        served: list[Config] = []
        daemon = types.SimpleNamespace(serve=lambda config, _: served.append(config) or 7)
        monkeypatch.setattr(router, "daemon", daemon, raising=False)
        monkeypatch.setitem(sys.modules, "router.daemon", daemon)
        path = tmp_path / "r.toml"
        path.write_text(EXAMPLE_LLAMA)
        assert cli.main(["serve", "--config", str(path)]) == 7
        assert [host.name for host in served[0].hosts] == ["laptop"]


def test_run_hands_file_and_port_to_the_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Path | None, int | None]] = []
    monkeypatch.setattr(supervisor, "run", lambda path, port: calls.append((path, port)) or 0)
    assert cli.main(["run", "--port", "0"]) == 0
    assert cli.main(["run", "--config", "x.toml"]) == 0
    assert calls == [(None, 0), (Path("x.toml"), None)]


class TestCheck:
    def check(self, text: str, tmp_path: Path) -> int:
        path = tmp_path / "r.toml"
        path.write_text(text)
        return cli.main(["check", str(path)])

    def test_it_prints_what_would_be_served(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.check(EXAMPLE_VLLM, tmp_path) == 0
        out = capsys.readouterr().out
        for expected in (
            "r.toml: ok",
            "http://127.0.0.1:8400",
            "unix:/run/ringrouter/http.sock",
            "http://127.0.0.1:8401, data in /",
            "gpu-0  vllm  unix:///run/vllm/gpu-0.sock  slots as probed",
            "gpu-1  vllm  http://10.0.0.12:8000        128 slots",
            "chat  at gpu-0 as meta-llama/Llama-3.1-8B-Instruct, gpu-1 as meta-llama/Llama-3.1-8B-Instruct",
        ):
            assert expected in out

    def test_it_names_the_directory_that_the_router_would_use(
        self, tmp_path: Path, run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(config, "is_tmpfs", lambda path: path != tmp_path / "disk")
        elsewhere = config.tmpfs_run_dir() / "main"
        listen = "version = 1\n[listen]\nzeromq = ['ipc']\nrun_dir = "
        assert self.check(f"{listen}'{run_dir}'", tmp_path) == 0
        out = capsys.readouterr().out
        assert f"rings in    {run_dir}/main\n" in out
        assert "tmpfs" not in out
        assert self.check(f"{listen}'{tmp_path}/disk'", tmp_path) == 0
        out = capsys.readouterr().out
        assert f"rings in    {elsewhere}\n" in out
        assert f"for {tmp_path}/disk is not on a tmpfs" in out
        assert f"ipc://{elsewhere}/zmq.sock" in out

    def test_models_that_a_host_will_name_are_said_to_come(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.check(EXAMPLE_LLAMA, tmp_path) == 0
        assert "what laptop will name when asked" in capsys.readouterr().out

    def test_how_a_model_is_routed_is_said(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        routing = '[models.chat.routing]\npolicy = "prefix_affinity"\nsticky = "user_id"\norder = "priority"'
        assert self.check(f"{EXAMPLE_VLLM}\n{routing}", tmp_path) == 0
        out = capsys.readouterr().out
        assert "routed by prefix_affinity, sticky by user_id, in the order of priority\n" in out

    def test_a_model_that_no_host_has_is_a_warning(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.check(f"{EXAMPLE_VLLM}\n[models.other]\nfold = 'never'", tmp_path) == 0
        assert "warning: [models.other]: no host has this model" in capsys.readouterr().out

    def test_no_hosts_are_said(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.check("version = 1", tmp_path) == 0
        assert "none: every request is refused" in capsys.readouterr().out

    def test_an_error_is_2_and_goes_to_standard_error(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.check("version = 1\n[limits]\nattempts = 9", tmp_path) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.endswith("limits.attempts = 9: expected a whole number between 1 and 4\n")


class TestEndings:
    @pytest.mark.parametrize("command", [["stats", "--watch", "0.05"], ["tail"]])
    def test_an_interrupt_ends_quietly_with_130(self, command: list[str], run_dir: Path, fake: FakeRouter) -> None:
        process = start(*command, "--run-dir", run_dir)
        assert process.stdout is not None
        assert process.stdout.readline() != "", "the command has begun"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 130
        assert errors == ""

    def test_a_closed_pipe_ends_quietly(self, run_dir: Path, fake: FakeRouter) -> None:
        fake.finish("r")
        reading, writing = os.pipe()
        os.close(reading)
        process = subprocess.run(
            [sys.executable, "-m", "router", "tail", "--no-follow", "--run-dir", run_dir],
            stdout=writing,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            check=False,
        )
        os.close(writing)
        assert process.returncode == 0
        assert process.stderr == b""


def test_looking_at_a_router_loads_no_event_loop(run_dir: Path, fake: FakeRouter) -> None:
    program = (
        "import sys; from router.cli import main; main(sys.argv[1:]);"
        "sys.stderr.write(' '.join({'uvloop', 'zmq', 'aiohttp', 'asyncio'} & set(sys.modules)))"
    )
    for command in ("stats", "tail"):
        arguments = [command, "--run-dir", str(run_dir), *(["--no-follow"] if command == "tail" else [])]
        ran = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True, cwd=ROOT
        )
        assert ran.stderr == ""


@pytest.mark.parametrize(
    ("redirect", "status", "said"),
    [(">/dev/full", 1, "the output cannot be written: No space left"), (">&-", 2, "standard output is closed")],
)
def test_output_that_cannot_be_written_is_one_line(tmp_path: Path, redirect: str, status: int, said: str) -> None:
    path = tmp_path / "router.toml"
    path.write_text('version = 1\n[[hosts]]\nname = "a"\nurl = "http://127.0.0.1:1"\n', encoding="utf-8")
    command = f"{shlex.quote(sys.executable)} -m router check {shlex.quote(str(path))} {redirect}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


class TestCheckAgainst:
    def test_what_a_reload_would_say(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        host = 'version = 1\n[[hosts]]\nname = "a"\nurl = "http://h:1"\n'
        old, new = tmp_path / "old.toml", tmp_path / "new.toml"
        old.write_text(host, encoding="utf-8")
        new.write_text(f"{host}drain = true\n[limits]\nwaiting = 5\n[rings]\ntokens = 2048\n", encoding="utf-8")
        assert cli.main(["check", str(new), "--against", str(old)]) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"{new}: ok",
            "  limits.waiting: 1024 -> 5",
            "  rings.tokens: 262144 -> 2048  (needs a restart of the router)",
            "  hosts.a.drain: false -> true",
        ]
        assert cli.main(["check", str(old), "--against", str(old)]) == 0
        assert f"nothing differs from {old}" in capsys.readouterr().out

    def test_a_bad_file_to_compare_with_is_named(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
        good.write_text("version = 1\n", encoding="utf-8")
        bad.write_text("version = 1\nfoo = 1\n", encoding="utf-8")
        assert cli.main(["check", str(good), "--against", str(bad)]) == 2
        assert f"{bad}: foo is not a known key" in capsys.readouterr().err
