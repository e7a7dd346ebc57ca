"""``ringrouter ask``: the answer and nothing else on standard output, and where the time went."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import router as package
from router import cli, config
from router.cli import ask as ask_module
from tests.support import scripted_router as wire
from tests.support.scripted_router import ScriptedRouter, answer, ignore, text

ROOT = Path(package.__file__).parents[1]
NO_SPACE = f"cannot write the answer: {os.strerror(errno.ENOSPC)}"


@pytest.fixture
def router(run_dir: Path) -> Iterator[ScriptedRouter]:
    (run_dir / "main").mkdir()
    with ScriptedRouter(f"ipc://{run_dir}/main/zmq.sock") as router:
        yield router


class Asked:
    """What a call of the command came to."""

    def __init__(self, capsys: pytest.CaptureFixture[str], run_dir: Path, *arguments: str) -> None:
        self.status = cli.main(["ask", "--run-dir", str(run_dir), *arguments])
        self.out, self.err = capsys.readouterr()


@pytest.mark.usefixtures("router")
class TestOutput:
    def test_the_answer_alone_goes_to_standard_output(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        asked = Asked(capsys, run_dir, "--model", "one", "Say hello.")
        assert (asked.status, asked.out, asked.err) == (0, "Hello!\n", "")

    def test_the_waterfall_goes_to_standard_error(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        asked = Asked(capsys, run_dir, "--model", "one", "--waterfall", "x")
        assert asked.out == "Hello!\n"
        assert "chat · one · at scripted · stream" in asked.err
        assert "TTFT" in asked.err
        assert "decode" in asked.err

    def test_a_host_with_odd_finer_counts_has_a_waterfall_too(
        self, run_dir: Path, router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def script(ask: wire.Ask) -> None:
            ask.accept()
            ask.events(text("yes"))
            odd = {"prompt_tokens_details": "few", "completion_tokens_details": {"reasoning_tokens": "x"}}
            ask.done(usage=wire.USAGE_NUMBERS | odd)

        router.script(script)
        asked = Asked(capsys, run_dir, "--model", "one", "--waterfall", "x")
        assert (asked.status, asked.out) == (0, "yes\n")
        assert "TTFT" in asked.err

    def test_json_is_one_object(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        asked = Asked(capsys, run_dir, "--model", "one", "--json", "x")
        record = json.loads(asked.out)
        assert asked.out.count("\n") == 1
        assert record["schema"] == "ringrouter.ask/1"
        assert (record["text"], record["model"], record["host"]) == ("Hello!", "one", "scripted")
        assert (record["finish_reason"], record["usage"]) == ("stop", wire.USAGE_NUMBERS)
        assert sum(list(record["timing"]["stages_ns"].values())[:11]) == record["timing"]["ttft_ns"]
        assert record["request_id"]

    def test_an_answer_that_ends_its_line_gets_no_second_end(
        self, run_dir: Path, router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        router.script(answer(text("a\n"), wire.STOP))
        assert Asked(capsys, run_dir, "--model", "one", "x").out == "a\n"

    def test_thoughts_are_no_answer(
        self, run_dir: Path, router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        router.script(answer((wire.REASONING, wire.chunk({"reasoning": "hm"})), text("yes"), wire.STOP))
        assert Asked(capsys, run_dir, "--model", "one", "x").out == "yes\n"


class TestRequest:
    def test_it_has_what_the_options_say(
        self, run_dir: Path, router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = ["--model", "one", "--system", "Be brief.", "--max-tokens", "5", "--temperature", "0"]
        Asked(capsys, run_dir, *options, "--tag", "feature_name=search", "--tag", "user_id=a=b", "x")
        ask = router.wait_ask()
        assert ask.json() == {
            "model": "one",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}],
            "max_tokens": 5,
            "temperature": 0.0,
        }
        assert ask.header["tags"] == {"feature_name": "search", "user_id": "a=b"}

    def test_a_dash_reads_standard_input(
        self,
        run_dir: Path,
        router: ScriptedRouter,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO("Say\nhello."))
        assert Asked(capsys, run_dir, "--model", "one", "-").status == 0
        assert router.wait_ask().json()["messages"][0]["content"] == "Say\nhello."

    def test_without_a_name_the_first_model_is_asked_and_said(
        self, run_dir: Path, router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked = Asked(capsys, run_dir, "x")
        assert (asked.status, asked.out) == (0, "Hello!\n")
        assert asked.err == "asking one (--model for another: two)\n"

    def test_a_model_that_cannot_chat_is_passed_over(
        self, run_dir: Path, router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        router.script(lambda ask: ask.error(501, "not_supported", "this model only embeds"))
        asked = Asked(capsys, run_dir, "x")
        assert (asked.status, asked.out) == (0, "Hello!\n")
        assert "asking two" in asked.err

    def test_a_model_that_looks_as_if_it_embeds_is_asked_last(
        self,
        run_dir: Path,
        router: ScriptedRouter,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(wire, "MODELS", ("all-minilm", "chatty"))
        Asked(capsys, run_dir, "x")
        assert router.asks[-1].json()["model"] == "chatty"

    def test_if_none_can_the_first_error_is_told(
        self, run_dir: Path, router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        router.script(*[lambda ask, n=number: ask.error(400, "bad", f"fault {n}") for number in (1, 2)])
        asked = Asked(capsys, run_dir, "x")
        assert (asked.status, asked.out, asked.err) == (1, "", "ringrouter: fault 1\n")


class TestErrors:
    def test_a_failed_request_is_one_line_and_1(
        self, run_dir: Path, router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        router.script(lambda ask: ask.error(404, "model_not_found", "model 'x' is not served here"))
        asked = Asked(capsys, run_dir, "--model", "x", "hi")
        assert (asked.status, asked.out, asked.err) == (1, "", "ringrouter: model 'x' is not served here\n")

    def test_a_router_that_is_not_there_is_3_and_named(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ask_module, "CONNECT_TIMEOUT_S", 0.2)
        asked = Asked(capsys, run_dir, "hi")
        assert asked.status == 3
        endpoint = f"ipc://{run_dir}/main/zmq.sock"
        assert asked.err == f"ringrouter: no router answers at {endpoint} (there is no such file) within 0.2 s\n"

    def test_one_that_does_not_accept_the_request_is_there(
        self,
        run_dir: Path,
        router: ScriptedRouter,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(ask_module, "CONNECT_TIMEOUT_S", 1.0)
        router.script(ignore)
        asked = Asked(capsys, run_dir, "--model", "one", "hi")
        assert asked.status == 1
        assert "did not accept the request within 1 s" in asked.err

    def test_a_host_whose_error_has_the_clients_own_code_is_there(
        self, run_dir: Path, router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        router.script(lambda ask: ask.error(502, "not_connected", "no"))
        assert Asked(capsys, run_dir, "--model", "one", "hi").status == 1

    def test_an_error_stands_on_a_line_of_its_own(
        self, run_dir: Path, router: ScriptedRouter, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def script(ask: wire.Ask) -> None:
            ask.accept()
            ask.events(text("half an ans"))
            ask.error(502, "host_closed", "the host\nhas \x1b[31mgone")

        router.script(script)
        asked = Asked(capfd, run_dir, "--model", "one", "x")
        assert (asked.status, asked.out) == (1, "half an ans\n")
        assert asked.err == "ringrouter: the host has [31mgone\n", "one line, and nothing that a terminal obeys"

    def test_tags_that_are_too_long_are_wrong_use(
        self, run_dir: Path, router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked = Asked(capsys, run_dir, "--model", "one", "--tag", f"a={'x' * 20_000}", "hi")
        assert (asked.status, asked.out) == (2, "")
        assert asked.err.count("\n") == 1
        assert "expected at most 16384" in asked.err

    def test_an_empty_question_is_wrong_use(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert Asked(capsys, run_dir, " ").status == 2

    def test_an_endpoint_that_is_none_is_wrong_use(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        asked = Asked(capsys, run_dir, "--endpoint", "http://localhost", "x")
        assert asked.status == 2
        assert "expected ipc:///absolute/path or tcp://address:port" in asked.err

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--tag", "feature_name"],
            ["--tag", "=x"],
            ["--tag", "Feature=x"],
            ["--max-tokens", "0"],
            ["--temperature", "hot"],
            ["--temperature", "nan"],
            [],
        ],
    )
    def test_bad_options_are_wrong_use(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main(["ask", *arguments, *(["x"] if arguments else [])])
        assert ended.value.code == 2
        if arguments:
            assert f"argument {arguments[0]}: {arguments[1]!r}: expected" in capsys.readouterr().err


class TestWhere:
    @pytest.fixture(autouse=True)
    def no_other_router(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A router of this user that runs now, or has run, is not found."""
        monkeypatch.setattr(config, "tmpfs_run_dir", lambda: tmp_path)

    def endpoint(self, tmp_path: Path, listen: str, *arguments: str) -> str:
        path = tmp_path / "router.toml"
        path.write_text(f'version = 1\n[listen]\nrun_dir = "/run/rr"\n{listen}\n', encoding="utf-8")
        return ask_module.endpoint_of(cli._parser().parse_args(["ask", "x", "--config", str(path), *arguments]))

    def test_the_configuration_says_where_the_socket_is(self, tmp_path: Path) -> None:
        assert self.endpoint(tmp_path, "") == "ipc:///run/rr/main/zmq.sock"
        assert self.endpoint(tmp_path, 'instance = "two"') == "ipc:///run/rr/two/zmq.sock"
        assert self.endpoint(tmp_path, "", "--instance", "two") == "ipc:///run/rr/two/zmq.sock"
        assert self.endpoint(tmp_path, 'zeromq = "ipc:///elsewhere"') == "ipc:///elsewhere"
        assert self.endpoint(tmp_path, 'zeromq = "tcp://0.0.0.0:8402"') == "tcp://127.0.0.1:8402"
        assert self.endpoint(tmp_path, "", "--endpoint", "tcp://a:1") == "tcp://a:1"

    def test_a_router_without_the_socket_is_said(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "router.toml"
        path.write_text("version = 1\n[listen]\nzeromq = []\n", encoding="utf-8")
        assert cli.main(["ask", "--config", str(path), "x"]) == 2
        assert "listen.zeromq is empty" in capsys.readouterr().err


class TestStreams:
    """A program of its own whose standard streams are not what one expects."""

    def ask(self, run_dir: Path, line: str, *arguments: str | bytes, **environment: str) -> tuple[int, str, str]:
        """Run a command line of the shell in which ``$@`` is the command; return its status and what it printed."""
        command = [sys.executable, "-m", "router", "ask", "--run-dir", str(run_dir), *arguments]
        run = ["/bin/sh", "-c", line, "sh", *command]
        settings = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
        ended = subprocess.run(run, check=False, capture_output=True, timeout=100, cwd=ROOT, env=settings | environment)
        return ended.returncode, ended.stdout.decode(), ended.stderr.decode()

    @pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8"])
    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            ([b"\xff hi"], "the text"),
            (["--model", b"\xff", "x"], "--model"),
            (["--system", b"\xff", "x"], "--system"),
            (["--tag", b"a=\xff", "x"], "--tag a"),
        ],
        ids=["text", "model", "system", "tag"],
    )
    def test_arguments_that_are_no_text_are_wrong_use(
        self, run_dir: Path, locale: str, arguments: list[str | bytes], named: str
    ) -> None:
        status, out, err = self.ask(run_dir, 'exec "$@"', *arguments, LC_ALL=locale)
        assert (status, out, err) == (2, "", f"ringrouter: {named}: expected UTF-8\n")

    @pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8"])
    def test_input_that_is_no_text_is_wrong_use(self, run_dir: Path, locale: str) -> None:
        status, out, err = self.ask(run_dir, 'printf "\\377" | "$@"', "-", LC_ALL=locale)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(("ringrouter: the text: expected UTF-8", "ringrouter: standard input is not text"))

    @pytest.mark.parametrize(
        ("line", "arguments", "status", "said"),
        [
            ('"$@" >&-', ["x"], 2, "standard output is closed"),
            ('"$@" <&-', ["-"], 2, "standard input is closed"),
            ('"$@" >/dev/full', ["--model", "one", "x"], 1, NO_SPACE),
            ('"$@" >/dev/full', ["--model", "one", "--json", "x"], 1, NO_SPACE),
        ],
        ids=["no output", "no input", "full", "full, JSON"],
    )
    @pytest.mark.usefixtures("router")
    def test_streams_that_are_closed_or_full_are_said_in_a_line(
        self, run_dir: Path, line: str, arguments: list[str], status: int, said: str
    ) -> None:
        assert self.ask(run_dir, line, *arguments) == (status, "", f"ringrouter: {said}\n")

    @pytest.mark.usefixtures("router")
    def test_an_input_that_is_not_needed_may_be_closed(self, run_dir: Path) -> None:
        assert self.ask(run_dir, '"$@" <&-', "--model", "one", "x") == (0, "Hello!\n", "")

    @pytest.mark.usefixtures("router")
    def test_without_standard_error_notes_do_not_mix_with_the_answer(self, run_dir: Path) -> None:
        assert self.ask(run_dir, '"$@" 2>&-', "x") == (0, "Hello!\n", "")

    def test_an_output_without_the_answers_letters_gets_others(self, run_dir: Path, router: ScriptedRouter) -> None:
        router.script(answer(text("Grüße"), wire.STOP))
        found = self.ask(run_dir, 'exec "$@"', "--model", "one", "x", PYTHONIOENCODING="ascii")
        assert found == (0, "Gr??e\n", "")

    def test_json_is_whole_on_any_output(self, run_dir: Path, router: ScriptedRouter) -> None:
        router.script(answer(text("Grüße\x9b"), wire.STOP))
        status, out, _ = self.ask(run_dir, 'exec "$@"', "--model", "one", "--json", "x", PYTHONIOENCODING="ascii")
        assert (status, json.loads(out)["text"]) == (0, "Grüße\x9b")


class TestTerminal:
    """A program of its own whose standard output is a terminal."""

    @contextmanager
    def asking(self, run_dir: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
        """Run a program that asks; gives it and the other end of its terminal."""
        command = [sys.executable, "-m", "router", "ask", "--run-dir", str(run_dir), "--model", "one", "x"]
        ours, its = pty.openpty()
        try:
            with subprocess.Popen(command, stdout=its, stderr=subprocess.PIPE, cwd=ROOT) as process:
                os.close(its)
                yield process, ours
        finally:
            os.close(ours)

    def read_to(self, descriptor: int, mark: bytes | None = None) -> bytes:
        """Read up to a mark, or to the end."""
        shown = b""
        while mark is None or mark not in shown:
            try:
                data = os.read(descriptor, 4096)
            except OSError:  # so the end of a terminal is told
                data = b""
            shown += data
            if not data:
                assert mark is None, f"{mark!r} did not come: {shown!r}"
                return shown
        return shown

    def test_interrupted_while_the_model_thinks_it_does_not_stay_faint(
        self, run_dir: Path, router: ScriptedRouter
    ) -> None:
        def think(ask: wire.Ask) -> None:
            ask.accept()
            ask.events((wire.REASONING, wire.chunk({"reasoning": "hm"})))

        router.script(think)
        with self.asking(run_dir) as (process, terminal):
            assert self.read_to(terminal, b"hm") == b"\x1b[2mhm"
            process.send_signal(signal.SIGINT)
            assert self.read_to(terminal) == b"\x1b[0m\r\n"
            assert process.wait(60) == 130

    def test_a_model_cannot_command_the_terminal(self, run_dir: Path, router: ScriptedRouter) -> None:
        router.script(answer(text("a\x1b]0;evil\x07b\x9b31m\x7f\r"), text("\tc\nd\x00"), wire.STOP))
        with self.asking(run_dir) as (process, terminal):
            assert self.read_to(terminal) == b"a]0;evilb31m\tc\r\nd\r\n"
            assert process.wait(60) == 0


class TestEnds:
    """A program of its own, ended while the answer comes."""

    @pytest.fixture
    def asking(self, run_dir: Path, router: ScriptedRouter) -> Iterator[subprocess.Popen[str]]:
        def begin(ask: wire.Ask) -> None:
            ask.accept()
            ask.events(wire.ROLE, text("begun\n"))

        router.script(begin)
        command = [sys.executable, "-m", "router", "ask", "--run-dir", str(run_dir), "--model", "one", "x"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n", "tokens are shown as they come"
            yield process

    def test_interrupted_it_cancels_at_the_router(self, asking: subprocess.Popen[str], router: ScriptedRouter) -> None:
        asking.send_signal(signal.SIGINT)
        out, err = asking.communicate(timeout=100)
        assert (asking.returncode, out, err) == (130, "", "")
        router.wait_cancelled(router.asks[0])

    def test_when_nobody_reads_it_any_more_it_cancels_quietly(
        self, asking: subprocess.Popen[str], router: ScriptedRouter
    ) -> None:
        assert asking.stdout is not None
        assert asking.stderr is not None
        asking.stdout.close()
        router.do(lambda: router.asks[0].events(text("more")))
        assert asking.wait(60) == 0
        assert asking.stderr.read() == ""
        router.wait_cancelled(router.asks[0])
