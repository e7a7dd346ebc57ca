"""Tools of real MCP servers, over both transports, in requests to a real model that calls one of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from router.embedded.hosts import CHAT
from tests.support.processes import HostProcess, KeeperProcess, Program, RouterProcess
from tests.support.records import done_record
from tests.support.waiting import free_port, shared_memory_directory, wait_until
from tests.support.weather import weather_talk

ROOT = Path(__file__).resolve().parents[2]


def config(directory: Path, port: int, llama_host: HostProcess, embed_host: HostProcess) -> str:
    command = [sys.executable, "-m", "tests.support.mcp_server", str(directory / "weather.json")]
    return f"""
[cache]
dir = "{directory}/cache"
[cache.tools]
select_model = "{embed_host.model}"
select_wait_ms = 5000
[[cache.tools.sources]]
name = "weather"
command = {json.dumps(command)}
env = {{ PYTHONPATH = "{ROOT}" }}
[[cache.tools.sources]]
name = "calendar"
url = "http://127.0.0.1:{port}/mcp"
[cache.tools.toolsets]
all = ["*"]
{llama_host.toml()}
{embed_host.toml()}
"""


class Stand:
    def __init__(self, router: RouterProcess, keeper: KeeperProcess, server: Program) -> None:
        self.router, self.keeper, self.server = router, keeper, server
        self.client = OpenAI(base_url=f"{router.base_url}/v1", api_key="any", max_retries=0, timeout=60)

    def counter(self, name: str) -> int:
        return self.router.counter(name)


@pytest.fixture(scope="module")
def stand(llama_host: HostProcess, embed_host: HostProcess) -> Iterator[Stand]:
    with shared_memory_directory() as directory, ExitStack() as stack:
        (directory / "weather.json").write_text(json.dumps({"get_weather": "Get the weather for a city"}))
        (directory / "calendar.json").write_text(json.dumps({"create": "Create an event", "delete": "Delete an event"}))
        port = free_port()
        command = [
            sys.executable,
            "-m",
            "tests.support.mcp_server",
            str(directory / "calendar.json"),
            "--port",
            str(port),
        ]
        server = Program("mcp", command, directory / "mcp.log", {"PYTHONPATH": str(ROOT)})
        stack.callback(server.kill)
        server.start()
        router = RouterProcess(directory, config(directory, port, llama_host, embed_host))
        keeper = KeeperProcess(router)
        keeper = stack.enter_context(keeper)
        stand = Stand(stack.enter_context(router), keeper, server)
        wait_until(lambda: stand.counter("tools") == 3, "all three tools")
        yield stand


def talk() -> list[Any]:
    """The talk of the tool's own test, with its name as the router gives it."""
    return json.loads(json.dumps(weather_talk()).replace("get_weather", "weather__get_weather"))


def ask(stand: Stand, tools: list[dict[str, Any]], **fields: Any) -> Any:
    return stand.client.chat.completions.create(
        model=CHAT.model, messages=talk(), max_tokens=60, temperature=0, tools=tools, **fields  # type: ignore[arg-type]
    )  # fmt: skip


def check_call(answer: Any) -> None:
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather__get_weather"
    assert json.loads(call.function.arguments)["city"] == "Paris"


def test_a_request_that_names_tools_gets_a_call_of_one_of_them(stand: Stand) -> None:
    answer = ask(stand, [{"type": "ringrouter", "names": ["weather.*", "calendar.create"]}])
    check_call(answer)
    record = done_record(stand.router, answer._request_id)
    assert record["tool_count"] == 2
    assert record["tool_bytes"] > 200
    with_all = ask(stand, [{"type": "ringrouter", "toolset": "all"}])
    assert done_record(stand.router, with_all._request_id)["tool_count"] == 3
    assert with_all.usage.prompt_tokens > answer.usage.prompt_tokens > 100, "the model has read the schemas"


def test_an_unknown_tool_is_named(stand: Stand) -> None:
    with pytest.raises(BadRequestError, match=r"no tool is called weather\.never"):
        ask(stand, [{"type": "ringrouter", "names": ["weather.never"]}])


def test_the_tool_nearest_to_the_question_is_found_by_a_real_embedding_model(stand: Stand) -> None:
    def selected() -> Any:
        answer = ask(stand, [{"type": "ringrouter", "names": ["*"], "nearest": 1}])
        record = done_record(stand.router, answer._request_id)
        return answer if record["tool_count"] == 1 else None

    answer = wait_until(selected, "the tools have vectors")
    check_call(answer)


def test_without_servers_and_keeper_requests_are_answered_as_before(stand: Stand) -> None:
    """So no server is asked on a request's path: none is there, and nobody who could ask one."""
    stand.server.kill()
    stand.keeper.kill()
    check_call(ask(stand, [{"type": "ringrouter", "names": ["weather.get_weather", "calendar.create"]}]))
