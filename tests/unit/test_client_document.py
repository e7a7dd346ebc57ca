"""What docs/client.md shows works as it stands there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import router
import router.client
from router import cli
from router.client import asking
from tests.support import scripted_router as wire
from tests.support.scripted_router import ScriptedRouter, answer, reply, text

ROOT = Path(router.__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


def answers(ask: wire.Ask) -> None:
    """Answer whatever the examples ask."""
    body = ask.json()
    if ask.verb == "embeddings":
        reply({"data": [{"index": index, "embedding": [1.0]} for index in range(len(body["input"]))]})(ask)
    elif body["model"] == "no-such-model":
        ask.error(404, "model_not_found", "no such model")
    elif body.get("stream") is False:
        reply({"choices": [{"message": {"content": "Hello!"}}]})(ask)
    elif "tools" in body:
        call = {"index": 0, "id": "c0", "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}
        answer((wire.TOOL_CALL, wire.chunk({"tool_calls": [call]})), (wire.FINISH, wire.chunk({}, "tool_calls")))(ask)
    elif "Count" in str(body["messages"]):
        ask.accept()
        for number in range(20):
            ask.events(text(f"{number} "))
    else:
        wire.HELLO(ask)


@pytest.fixture
def scripted(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedRouter]:
    """A router where a client without an endpoint looks for one."""
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run_dir))
    (run_dir / "ringrouter" / "main").mkdir(parents=True)
    with ScriptedRouter(f"ipc://{run_dir}/ringrouter/main/zmq.sock") as router:
        router.script(*[answers] * 100)
        yield router


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_each_example_runs(number: int, scripted: ScriptedRouter, capsys: pytest.CaptureFixture[str]) -> None:
    example = blocks("python")[number]
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, f"example {number}", "exec"), names)
    said = capsys.readouterr().out
    expected = {
        0: "Hello!",
        1: "3 tokens from scripted because of stop\nHello!\n2 ['one', 'two'] 0\n",
        2: 'c0 get_weather {"city":"Paris"}\n',
        3: "",
        4: "Hello!",
        6: "404 model_not_found no such model\n",
    }
    if number in expected:
        assert said == expected[number]
    if number == 3:
        scripted.wait_cancelled(scripted.asks[0])
    if number == 5:
        assert "host_first_token" in said


def test_the_shortest_example_has_five_lines() -> None:
    assert len([line for line in blocks("python")[0].splitlines() if line]) <= 5


def test_each_command_line_is_one() -> None:
    for line in "".join(blocks("sh")).splitlines():
        command = line.split("|")[-1].split(">")[0]
        program, *arguments = shlex.split(command)
        assert program == "ringrouter"
        assert cli._parser().parse_args(arguments).command == "ask"


def first_cells(head: str) -> list[str]:
    """Return what stands in code in the first column of the table with this head."""
    _, found, rest = DOCUMENT.partition(f"\n{head}\n")
    assert found, f"the document has a table with the head {head}"
    rows = rest.split("\n\n", 1)[0].splitlines()
    return [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]


def test_the_table_of_errors_has_those_that_are_exported() -> None:
    exported = [name for name in router.client.__all__ if is_error(getattr(router.client, name))]
    assert sorted(first_cells("| class | when | also a |")) == sorted(exported)


def is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


def test_the_table_of_keywords_has_those_that_do_not_go_into_the_body() -> None:
    assert sorted(first_cells("| keyword | meaning |")) == sorted(asking._OPTIONS | {"stream"})


def test_every_linked_file_exists() -> None:
    for path in re.findall(r"\]\(([^)#]+)[^)]*\)", DOCUMENT):
        assert (ROOT / "docs" / path).exists(), path
