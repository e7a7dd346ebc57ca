"""What goes wrong on further paths: broken streams, clients that leave, hosts that fail, slots that are taken."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.captures import data_of
from tests.faults.client import Answer, Client
from tests.faults.stage import LATE_NS_MAX, QUIET, SHORT_TICK, Stage, host_entry
from tests.faults.test_pass_through import (
    LINES,
    MESSAGE,
    MESSAGES,
    OLLAMA,
    OLLAMA_LINES,
    RESPONSE,
    RESPONSES,
    ask,
    lines_head,
    lines_script,
    text_delta,
)
from tests.support import scripted_host as sh
from tests.support.scripted_host import ScriptedHost, chunk

PATHS = [MESSAGES, RESPONSES, OLLAMA, "/own/path"]
FIRST_TOKEN_S, IDLE_S = 0.2, 0.3
HEARTBEAT_S = 0.1


@pytest.fixture(scope="module")
def one() -> Iterator[ScriptedHost]:
    with ScriptedHost("one", models=("m", "alone", "hasty", "lively")) as host:
        yield host


@pytest.fixture(scope="module")
def two() -> Iterator[ScriptedHost]:
    with ScriptedHost("two", models=("m", "other")) as host:
        yield host


@pytest.fixture(scope="module")
def without() -> Iterator[ScriptedHost]:
    """A host without further paths, and the one with most free slots."""
    with ScriptedHost("without", models=("m",)) as host:
        yield host


@pytest.fixture(scope="module")
def deaf() -> Iterator[ScriptedHost]:
    with ScriptedHost("deaf", models=("deaf",)) as host:
        yield host


@pytest.fixture(scope="module")
def running_stage(
    directory: Path, one: ScriptedHost, two: ScriptedHost, without: ScriptedHost, deaf: ScriptedHost
) -> Iterator[Stage]:
    toml = (
        f"{QUIET}{SHORT_TICK}"
        f"[models.hasty.timeouts]\nfirst_token_s = {FIRST_TOKEN_S}\nidle_s = {IDLE_S}\n"
        f"[models.lively.timeouts]\nheartbeat_after_s = {HEARTBEAT_S}\n"
        + host_entry(one, slots=1, facts={"paths": PATHS})
        + host_entry(two, slots=1, facts={"paths": [MESSAGES]})
        + host_entry(without, slots=8, facts={"paths": []})
        + host_entry(deaf, slots=1, facts={"paths": [MESSAGES], "cancels_whole_answers": False})
    )
    with Stage(directory, [one, two, without, deaf], toml) as stage:
        yield stage


def last_data(answer: Answer) -> tuple[bytes, Any]:
    """Return the last event of a broken stream, whole and as JSON."""
    assert not answer.ended, "a broken stream must not have a proper end"
    event = answer.events[-1]
    data = data_of(event)
    assert data is not None
    return event, json.loads(data)


# ---------------------------------------------------------------- the host dies in the middle
def break_off(
    stage: Stage, host: ScriptedHost, path: str, events: Sequence[bytes], *end: sh.Step, head: bytes = b""
) -> Answer:
    """Have a stream end in its middle, when the client has all whole events of it."""
    gate = stage.gate()
    host.script(head or sh.stream_head(), *map(chunk, events), gate, *end)
    client = stage.client()
    ask(client, path, model="alone", stream=True, more="x-request-id: my-id")
    client.wait_for(events[-1])
    gate.open()
    answer = client.answer()
    assert answer.status == 200
    record = stage.last_finished()
    assert (record["outcome"], record["attempt_count"]) == ("host_error", 1)
    return answer


@pytest.mark.parametrize("end", [sh.End.CLOSE, sh.End.RESET], ids=["FIN", "RST"])
def test_messages_that_break_end_with_an_error_event_of_anthropic(stage: Stage, one: ScriptedHost, end: sh.End) -> None:
    answer = break_off(stage, one, MESSAGES, MESSAGE[:5], chunk(text_delta("cut"))[:30], end)
    assert answer.events[:-1] == list(MESSAGE[:5]), "what is not whole is not passed on"
    event, data = last_data(answer)
    assert event.startswith(b"event: error\ndata: ")
    assert data == {
        "type": "error",
        "error": {"type": "api_error", "message": data["error"]["message"]},
        "request_id": "my-id",
    }
    assert "closed" in data["error"]["message"]


def test_messages_that_break_behind_their_last_event_are_broken_too(stage: Stage, one: ScriptedHost) -> None:
    answer = break_off(stage, one, MESSAGES, MESSAGE, sh.End.CLOSE)
    assert last_data(answer)[1]["type"] == "error", "success is the proper end of the body"


def test_responses_that_break_end_with_an_error_event_of_theirs(stage: Stage, one: ScriptedHost) -> None:
    answer = break_off(stage, one, RESPONSES, RESPONSE[:2], sh.End.CLOSE)
    event, data = last_data(answer)
    assert event.startswith(b"event: error\ndata: ")
    assert set(data) == {"type", "code", "message", "param", "sequence_number"}
    assert (data["type"], data["code"], data["param"], data["sequence_number"]) == ("error", "host_closed", None, 2)


@pytest.mark.parametrize("path", [OLLAMA, "/own/path"])
def test_lines_that_break_end_with_a_line_of_error(stage: Stage, one: ScriptedHost, path: str) -> None:
    answer = break_off(stage, one, path, OLLAMA_LINES[:1], sh.End.CLOSE, head=lines_head())
    assert answer.headers["content-type"] == LINES
    first, last = answer.body.splitlines(keepends=True)
    assert first == OLLAMA_LINES[0]
    assert last.endswith(b"}\n")
    assert set(json.loads(last)) == {"error"}
    assert "closed" in json.loads(last)["error"]
    assert not answer.ended


def test_an_unknown_event_stream_that_breaks_ends_with_an_error_of_openai(stage: Stage, one: ScriptedHost) -> None:
    answer = break_off(stage, one, "/own/path", [b"data: x\n\n"], sh.End.CLOSE)
    _, data = last_data(answer)
    assert (data["error"]["code"], data["error"]["delivered_events"]) == ("host_closed", 1)


def test_bytes_that_are_no_chunks_break_the_stream(stage: Stage, one: ScriptedHost) -> None:
    answer = break_off(stage, one, MESSAGES, MESSAGE[:4], b"garbage\r\n", sh.End.HANG)
    assert "garbage" in last_data(answer)[1]["error"]["message"]


def test_an_error_event_of_the_host_passes_and_the_request_has_failed(stage: Stage, one: ScriptedHost) -> None:
    error = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'
    one.script(*sh.chunked([*MESSAGE[:4], error]))
    client = stage.client()
    ask(client, MESSAGES, model="alone", stream=True)
    answer = client.answer()
    assert answer.body == b"".join([*MESSAGE[:4], error])
    record = stage.last_finished()
    assert (record["outcome"], record["error"], record["message"]) == ("host_error", "host_error_event", "Overloaded")
    assert stage.host_events(record)[-1] == "error"


def test_a_silent_host_times_out_in_the_words_of_the_path(stage: Stage, one: ScriptedHost) -> None:
    one.script(sh.stream_head(), *map(chunk, MESSAGE[:2]), sh.End.HANG)
    client = stage.client()
    ask(client, MESSAGES, model="hasty", stream=True)
    answer = client.answer()
    assert answer.status == 504
    assert answer.json()["error"]["type"] == "timeout_error"
    assert "timeouts.first_token_s" in answer.json()["error"]["message"]
    one.exchanges[-1].wait_gone()
    one.script(sh.stream_head(), *map(chunk, MESSAGE[:4]), sh.End.HANG)
    ask(client, MESSAGES, model="hasty", stream=True)
    _, data = last_data(client.answer())
    assert data["error"]["type"] == "timeout_error"
    assert [record["error"] for record in stage.finished(2)] == ["first_token_timeout", "idle_timeout"]


def test_an_error_behind_a_heartbeat_is_an_event(stage: Stage, one: ScriptedHost) -> None:
    gate = stage.gate()
    one.script(gate, sh.answer(400, b'{"error":{"message":"too long"}}'))
    client = stage.client()
    ask(client, MESSAGES, model="lively", stream=True)
    client.wait_for(b": waiting")
    gate.open()
    event, data = last_data(client.answer())
    assert event.startswith(b"event: error\n")
    assert data["error"]["message"] == "400: too long"
    record = stage.last_finished()
    assert (record["error"], record["status"]) == ("host_status", 400)


def test_a_host_that_closes_within_a_whole_answer_has_failed(stage: Stage, one: ScriptedHost) -> None:
    for _ in range(3):
        one.script(sh.answer(200, b"x" * 100)[:-50], sh.End.CLOSE)
    client = stage.client()
    ask(client, OLLAMA, model="alone", stream=False)
    answer = client.answer()
    assert answer.status == 502
    assert set(answer.json()) == {"error"}
    record = stage.last_finished()
    assert (record["error"], record["attempt_count"]) == ("host_closed", 3)


# ---------------------------------------------------------------- the client leaves
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_before_the_answer_cancels_its_host(stage: Stage, one: ScriptedHost, stream: bool) -> None:
    count = len(one.exchanges) + 1
    one.script(sh.End.HANG)
    client = stage.client()
    ask(client, MESSAGES, model="alone", stream=stream)
    exchange = one.wait_exchange(count)
    left_ns = client.close()
    assert exchange.wait_gone() - left_ns < stage.allowed_ns(LATE_NS_MAX)
    assert stage.last_finished()["outcome"] == "client_gone"


@pytest.mark.parametrize(
    ("path", "script"),
    [(MESSAGES, [sh.stream_head(), *map(chunk, MESSAGE[:4])]), (OLLAMA, [lines_head(), chunk(OLLAMA_LINES[0])])],
)
def test_a_client_that_leaves_its_stream_cancels_its_host(
    stage: Stage, one: ScriptedHost, path: str, script: list[sh.Step]
) -> None:
    one.script(*script, sh.End.HANG)
    client = stage.client()
    ask(client, path, model="alone", stream=True, max_tokens=100)
    client.wait_for(b"one")
    left_ns = client.close()
    assert one.exchanges[-1].wait_gone() - left_ns < stage.allowed_ns(LATE_NS_MAX)
    record = stage.last_finished()
    assert (record["outcome"], record["tokens_saved"]) == ("client_gone", 99)


def test_a_host_that_does_not_notice_keeps_its_slot_until_it_has_finished(stage: Stage, deaf: ScriptedHost) -> None:
    gate = stage.gate()
    deaf.script(gate, sh.json_answer(200, {}))
    client = stage.client()
    ask(client, MESSAGES, model="deaf")
    gate.wait_reached()
    client.close()
    stage.finished(1)
    after = stage.client()
    ask(after, MESSAGES, model="deaf", more="x-request-id: after")
    stage.wait_phase("waiting")
    gate.open()
    assert after.answer().status == 200
    assert [record["outcome"] for record in stage.finished(2)] == ["client_gone", "ok"]


# ---------------------------------------------------------------- other hosts, and slots
def hold(stage: Stage, host: ScriptedHost, model: str) -> tuple[Client, sh.Gate]:
    """Take the one slot of a host until the gate is opened."""
    gate = stage.gate()
    host.script(gate, *sh.chunked(sh.STREAM))
    client = stage.client()
    client.chat(model=model)
    gate.wait_reached()
    return client, gate


FAILURES: dict[str, list[sh.Step]] = {
    "503": [sh.json_answer(503, {"error": {"message": "busy"}})],
    "EOF after the preliminaries": [sh.stream_head(), *map(chunk, MESSAGE[:3]), sh.End.CLOSE],
    "an error event first": sh.chunked([b'event: error\ndata: {"error":{"message":"no memory"}}\n\n']),
}


@pytest.mark.parametrize("script", FAILURES.values(), ids=FAILURES.keys())
def test_a_failure_before_the_content_is_tried_at_a_host_that_has_the_path(
    stage: Stage, one: ScriptedHost, two: ScriptedHost, without: ScriptedHost, script: list[sh.Step]
) -> None:
    holder, gate = hold(stage, two, "other")
    one.script(*script)
    before = len(without.exchanges)
    client = stage.client()
    ask(client, MESSAGES, model="m", stream=True)
    stage.wait_phase("waiting")  # the one other host with the path is taken; a host without it has free slots
    two.script(*sh.chunked(MESSAGE))
    gate.open()
    answer = client.answer()
    assert holder.answer().ended
    assert answer.body == b"".join(MESSAGE), "one clean answer and nothing of the failed one"
    assert answer.headers["x-ringrouter-host"] == "two"
    assert len(without.exchanges) == before
    record = next(record for record in stage.finished(2) if record["model"] == "m")
    assert (record["outcome"], record["attempt_count"]) == ("ok", 2)


def test_a_failure_with_no_other_host_goes_to_the_client_as_it_is(stage: Stage, one: ScriptedHost) -> None:
    body = b'{"error":"model is busy"}'
    one.script(sh.answer(503, body, more="retry-after: 7"))
    client = stage.client()
    ask(client, OLLAMA, model="m")
    answer = client.answer()
    assert (answer.status, answer.body, answer.headers["retry-after"]) == (503, body, "7")
    record = stage.last_finished()
    assert (record["outcome"], record["message"], record["attempt_count"]) == ("host_error", "model is busy", 1)


def test_who_waits_for_a_path_is_in_nobody_elses_way(
    stage: Stage, one: ScriptedHost, two: ScriptedHost, without: ScriptedHost
) -> None:
    holder, gate = hold(stage, one, "alone")
    waits = stage.client()
    one.script(*lines_script(OLLAMA_LINES))
    ask(waits, OLLAMA, model="m", more="x-request-id: waits")
    stage.wait_phase("waiting")
    for _ in range(3):
        chats, messages = stage.client(), stage.client()
        chats.chat(model="m")
        assert chats.answer().headers["x-ringrouter-host"] in {"two", "without"}
        ask(messages, MESSAGES, model="m")
        assert messages.answer().headers["x-ringrouter-host"] == "two", "it has the path and a free slot"
    assert [row["request_id"] for row in stage.in_flight("waiting")] == ["waits"]
    assert one.running_count == 1
    gate.open()
    answer = waits.answer()
    assert holder.answer().ended
    assert answer.body == b"".join(OLLAMA_LINES)
    assert answer.headers["x-ringrouter-host"] == "one"
    assert max(host.running_count_max for host in (one, two)) == 1, "slots count for every kind of request"
    stage.finished(8)


def test_who_waits_longest_for_a_path_gets_the_slot_first(stage: Stage, one: ScriptedHost) -> None:
    holder, gate = hold(stage, one, "alone")
    clients: list[Client] = []
    for number, path in enumerate((OLLAMA, MESSAGES, "/own/path")):
        client = stage.client()
        ask(client, path, model="alone", stream=False, more=f"x-request-id: {number}")
        clients.append(client)
        stage.wait_phase("waiting", number + 1)
    gate.open()
    assert holder.answer().ended
    for client in clients:
        assert client.answer().status == 200
    records = [record for record in stage.finished(4) if record["request_id"] in {"0", "1", "2"}]
    assert [record["request_id"] for record in records] == ["0", "1", "2"]
    assert all(record["stages_ns"]["queue"] > 0 for record in records)


def test_a_client_that_leaves_while_it_waits_is_forgotten(stage: Stage, one: ScriptedHost) -> None:
    holder, gate = hold(stage, one, "alone")
    client = stage.client()
    ask(client, MESSAGES, model="alone", stream=True)
    stage.wait_phase("waiting")
    client.close()
    (record,) = stage.finished(1)
    assert (record["outcome"], record["attempt_count"]) == ("client_gone", 0)
    gate.open()
    assert holder.answer().ended
    stage.finished(2)
