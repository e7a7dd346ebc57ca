"""Tools that the router fills into requests, over both ingresses, with publications coming, changing and breaking."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.stage import QUIET, SHORT_TICK, Stage, host_entry
from tests.support import published as pub
from tests.support import scripted_host as sh
from tests.support.scripted_host import End, ScriptedHost
from tests.support.waiting import wait_until

SOURCES = """
[cache.tools]
select_model = "v"
select_wait_ms = 2000
[[cache.tools.sources]]
name = "weather"
file = "/nowhere/weather.json"
[cache.tools.toolsets]
all = ["weather.*"]
"""
TOOLS = [
    pub.tool("weather.now", [1.0, 0.0]),
    pub.tool("weather.soon", [0.0, 1.0]),
    pub.tool("weather.past", [0.6, 0.8]),
]
ALL = {"type": "ringrouter", "toolset": "all"}
MESSAGES, RESPONSES, OLLAMA = "/v1/messages", "/v1/responses", "/api/chat"
PATHS = [MESSAGES, "/v1/messages/count_tokens", RESPONSES, OLLAMA]


@pytest.fixture(scope="module")
def embedder() -> Iterator[ScriptedHost]:
    with ScriptedHost("beta", models=("v",)) as host:
        yield host


@pytest.fixture(scope="module")
def running_stage(directory: Path, host: ScriptedHost, embedder: ScriptedHost) -> Iterator[Stage]:
    (directory / "run").mkdir()
    pub.publish_tools(directory / "run", pub.tools(*TOOLS))
    toml = QUIET + SHORT_TICK + SOURCES + host_entry(host, facts={"paths": PATHS}) + host_entry(embedder)
    with Stage(directory, [host, embedder], toml, models=["m"]) as stage:
        yield stage


def republish(stage: Stage, value: Any) -> None:
    """Publish and wait until the router has it."""
    pub.publish_tools(stage.router.run_dir, value)
    wait_until(lambda: stage.counter("tools") == len(value.tools), "the router sees what is published")


def names_in(body: bytes) -> list[str]:
    return [entry["function"]["name"] for entry in json.loads(body)["tools"]]


def vector(*values: float) -> bytes:
    data = [{"object": "embedding", "index": 0, "embedding": values}]
    return sh.json_answer(200, {"object": "list", "model": "v", "data": data, "usage": {"prompt_tokens": 1}})


@pytest.mark.parametrize("stream", [True, False])
def test_named_tools_stand_in_the_hosts_request_and_the_rest_of_it_is_the_clients(
    stage: Stage, host: ScriptedHost, stream: bool
) -> None:
    own = pub.function("mine")
    entry = {"type": "ringrouter", "names": ["weather.soon", "weather.now"]}
    client = stage.client()
    client.chat(stream=stream, tools=[own, entry], tool_choice="auto", x={"a": [1, {}]})
    assert client.answer().status == 200
    sent = host.exchanges[-1].json()
    assert names_in(host.exchanges[-1].body) == ["mine", "weather__soon", "weather__now"]
    assert sent["tool_choice"] == "auto"
    assert sent["x"] == {"a": [1, {}]}
    assert sent["messages"] == [{"role": "user", "content": "hi"}]
    record = stage.last_finished()
    assert record["tool_count"] == 2
    assert record["tool_bytes"] == len(TOOLS[0].body) + len(TOOLS[1].body)


def test_a_zeromq_client_names_them_the_same_way(stage: Stage, host: ScriptedHost) -> None:
    client = stage.zeromq_client()
    client.finish(client.chat(tools=[ALL]))
    assert names_in(host.exchanges[-1].body) == ["weather__now", "weather__soon", "weather__past"]


OTHER_APIS = {
    MESSAGES: lambda function: {
        "name": function["name"], "description": function["description"], "input_schema": function["parameters"],
    },
    "/v1/messages/count_tokens": lambda function: {
        "name": function["name"], "description": function["description"], "input_schema": function["parameters"],
    },
    RESPONSES: lambda function: {"type": "function", "strict": False, **function},
    OLLAMA: lambda function: {"type": "function", "function": function},
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_further_apis_get_them_in_their_own_words(stage: Stage, host: ScriptedHost, path: str) -> None:
    client = stage.client()
    body = {"model": "m", "stream": False, "messages": [], "tools": [{"name": "mine"}, ALL], "x": [1]}
    client.post(body, path)
    assert client.answer().status == 200
    sent = host.exchanges[-1].json()
    functions = [json.loads(tool.body)["function"] for tool in TOOLS]
    assert sent["tools"] == [{"name": "mine"}, *map(OTHER_APIS[path], functions)]
    assert {**sent, "tools": 0} == {**body, "tools": 0}
    assert stage.last_finished()["tool_count"] == 3


@pytest.mark.parametrize(("path", "where"), [(MESSAGES, "invalid_request_error"), (RESPONSES, "invalid_request_error")])
def test_further_apis_are_told_in_their_own_words_what_is_not_known(
    stage: Stage, host: ScriptedHost, path: str, where: str
) -> None:
    count = len(host.exchanges)
    client = stage.client()
    client.post({"model": "m", "tools": [{"type": "ringrouter", "names": ["weather.never"]}]}, path)
    answer = client.answer()
    assert answer.status == 400
    error = answer.json()["error"]
    assert error["type"] == where
    assert error["message"].startswith("tools[0].names: no tool is called weather.never (tools: ")
    assert answer.json().get("type") == ("error" if path == MESSAGES else None)
    assert len(host.exchanges) == count


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "text", "text": "what"}]}]}),
        (RESPONSES, {"input": "what"}),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "what"}]}]}),
    ],
)
def test_further_apis_may_ask_for_the_nearest(
    stage: Stage, host: ScriptedHost, embedder: ScriptedHost, path: str, fields: dict[str, Any]
) -> None:
    embedder.script(vector(0.2, 4.0))
    client = stage.client()
    client.post({"model": "m", "tools": [{**ALL, "nearest": 1}], **fields}, path)
    assert client.answer().status == 200
    assert embedder.exchanges[-1].json()["input"] == ["what"]
    assert [tool["name"] for tool in host.exchanges[-1].json()["tools"]] == ["weather__soon"]


def test_each_attempt_has_them(stage: Stage, host: ScriptedHost) -> None:
    host.script(End.CLOSE)
    client = stage.client()
    client.chat(tools=[ALL])
    assert client.answer().status == 200
    assert host.exchanges[-1].body == host.exchanges[-2].body
    assert len(names_in(host.exchanges[-1].body)) == 3


def test_unknown_names_are_refused_by_name_without_a_host(stage: Stage, host: ScriptedHost) -> None:
    count, refused = len(host.exchanges), stage.counter("tools_refused")
    client = stage.client()
    for stream in (True, False):
        client.chat(stream=stream, tools=[{"type": "ringrouter", "names": ["weather.never", "weather.now"]}])
        answer = client.answer()
        assert answer.status == 400
        assert answer.error["code"] == "bad_request"
        assert "tools[0].names: no tool is called weather.never (tools: weather.now," in answer.error["message"]
    assert len(host.exchanges) == count
    stage.wait_counter("tools_refused", refused + 2)
    assert [record["outcome"] for record in stage.finished(2)] == ["bad_request", "bad_request"]


def test_a_body_without_our_entries_is_not_touched(stage: Stage, host: ScriptedHost) -> None:
    client = stage.client()
    body = b'{"model": "m",  "messages":[{"role":"user","content":"a \\"ringrouter\\" b"}], "tools":[]}'
    client.post(body)
    assert client.answer().status == 200
    assert host.exchanges[-1].body == body


def test_what_is_published_anew_is_there_a_second_later_and_what_is_damaged_changes_nothing(
    stage: Stage, host: ScriptedHost
) -> None:
    republish(stage, pub.tools(*TOOLS, pub.tool("weather.never"), age_s=5000, state="stale"))
    client = stage.client()
    client.chat(tools=[{"type": "ringrouter", "names": ["weather.never"]}])
    assert client.answer().status == 200
    assert stage.counter("tool_sources_stale") == 1
    assert 5000 <= stage.counter("tools_age_s_max") < 5100
    path = stage.router.run_dir / "keep.tools"
    path.write_bytes(path.read_bytes()[:-3])
    wait_until(lambda: "it is damaged" in stage.router.log_text(), "the log says so")
    client.chat(tools=[ALL])
    assert client.answer().status == 200
    assert len(names_in(host.exchanges[-1].body)) == 4, "the last good ones stand"
    path.unlink()
    client.chat(tools=[ALL])
    assert client.answer().status == 200, "without a keeper too"
    republish(stage, pub.tools(*TOOLS))


# ---------------------------------------------------------------- the nearest
def ask_nearest(stage: Stage, count: int, **fields: Any) -> Any:
    client = stage.client()
    client.chat(tools=[{"type": "ringrouter", "toolset": "all", "nearest": count}], **fields)
    return client


def test_the_tools_nearest_to_the_question_are_sent(stage: Stage, host: ScriptedHost, embedder: ScriptedHost) -> None:
    embedder.script(vector(0.2, 4.0))
    answer = ask_nearest(stage, 2).answer()
    assert answer.status == 200
    assert names_in(host.exchanges[-1].body) == ["weather__soon", "weather__past"], "in their own order"
    assert embedder.exchanges[-1].json()["input"] == ["hi"]
    records = stage.finished(2)
    assert [record["endpoint"] for record in records] == ["embeddings", "chat"]
    assert records[1]["tool_count"] == 2
    assert records[1]["stages_ns"]["queue"] > 0, "the time it was held is time in the queue"


@pytest.mark.parametrize("script", ["late", "error", "nonsense", "other length"])
def test_without_an_answer_in_time_all_are_sent(
    stage: Stage, host: ScriptedHost, embedder: ScriptedHost, script: str
) -> None:
    gate = stage.gate()
    steps: dict[str, list[sh.Step]] = {
        "late": [gate, vector(0.0, 1.0)],
        "error": [sh.json_answer(400, {"error": {"message": "no"}})],
        "nonsense": [sh.json_answer(200, {"data": []})],
        "other length": [vector(1.0, 2.0, 3.0)],
    }
    embedder.script(*steps[script])
    missed = stage.counter("tools_not_selected")
    answer = ask_nearest(stage, 1).answer()
    assert answer.status == 200
    assert len(names_in(host.exchanges[-1].body)) == 3
    assert stage.counter("tools_not_selected") == missed + 1
    if script == "late":
        gate.open()
    record = next(r for r in stage.finished(2) if r["endpoint"] == "chat")
    if script == "late":
        assert 1995e6 <= record["stages_ns"]["queue"] < stage.allowed_ns(2_200_000_000), (
            "it waited as long as it may, no longer"
        )


def test_a_request_that_is_held_stands_among_those_in_flight(
    stage: Stage, host: ScriptedHost, embedder: ScriptedHost
) -> None:
    gate = stage.gate()
    embedder.script(gate, vector(0.0, 1.0))
    client = ask_nearest(stage, 1, more="x-ringrouter-class: batch\r\n")
    gate.wait_reached()
    stage.wait(lambda: {row["endpoint"] for row in stage.in_flight()} == {"chat", "embeddings"}, "it and its question")
    gate.open()
    assert client.answer().status == 200
    assert [record["workload"] for record in stage.finished(2)] == [3, 3], "the question is as urgent as its request"
    assert "internal error" not in stage.router.log_text()


def test_a_client_that_leaves_while_it_waits_ends_its_request_and_nothing_is_sent(
    stage: Stage, host: ScriptedHost, embedder: ScriptedHost
) -> None:
    gate = stage.gate()
    embedder.script(gate, vector(0.0, 1.0))
    count = len(host.exchanges)
    client = ask_nearest(stage, 1)
    gate.wait_reached()
    client.close()
    wait_until(lambda: stage.counter("clients_gone"), "the router sees that the client has left")
    gate.open()
    assert sorted(record["outcome"] for record in stage.finished(2)) == ["client_gone", "ok"]
    assert len(host.exchanges) == count
    assert "Traceback" not in stage.router.log_text()
    assert "AttributeError" not in stage.router.log_text()
