"""Further paths of hosts: requests go to hosts that have them, answers come back as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from time import monotonic_ns
from typing import Any

import pytest

from tests.faults.client import Client
from tests.faults.stage import QUIET, SHORT_TICK, Stage, host_entry
from tests.support import scripted_host as sh
from tests.support.scripted_host import ScriptedHost, chunk
from tests.support.waiting import wait_until

MESSAGES, RESPONSES, OLLAMA = "/v1/messages", "/v1/responses", "/api/chat"
BODY_BYTES_MAX, ANSWER_BYTES_MAX, EVENT_BYTES_MAX = 65_536, 16_384, 8_192
LINES = "application/x-ndjson"
ALPHA_PATHS = [MESSAGES, "/v1/messages/count_tokens", RESPONSES, "/tokenize", "/rerank", OLLAMA, "/own/path"]


def named(name: str, **fields: Any) -> bytes:
    """Return a server-sent event with a name."""
    return b"event: %b\n" % name.encode() + sh.event({"type": name, **fields})


def text_delta(text: str) -> bytes:
    return named("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


MESSAGE_START = named("message_start", message={"id": "1", "usage": {"input_tokens": 7, "output_tokens": 1}})
MESSAGE = (
    MESSAGE_START,
    named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    named("ping"),
    text_delta("one"),
    text_delta(" two"),
    named("content_block_stop", index=0),
    named("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 5}),
    named("message_stop"),
)
MESSAGE_KINDS = ["head", "head", "keepalive", "text", "text", "head", "finish", "finish"]
RESPONSE = (
    named("response.created", response={"id": "r"}),
    named("response.output_text.delta", delta="one"),
    named("response.completed", response={"usage": {"input_tokens": 3, "output_tokens": 2}}),
)
OLLAMA_LINES = (
    b'{"message":{"role":"assistant","content":"one"},"done":false}\n',
    b'{"message":{"content":""},"done":true,"prompt_eval_count":4,"eval_count":2}\n',
)


def lines_head() -> bytes:
    return sh.stream_head().replace(b"text/event-stream", LINES.encode())


def lines_script(lines: tuple[bytes, ...]) -> list[sh.Step]:
    return [lines_head(), *(chunk(each) for each in lines), sh.LAST_CHUNK]


def ask(client: Client, path: str, *, model: str | None = "solo", more: str = "", **fields: Any) -> None:
    """Send a request to a path; without ``model`` the body names none."""
    body = {"model": model, **fields} if model is not None else fields
    client.post(body, path, more=more)


@pytest.fixture(scope="module")
def alpha() -> Iterator[ScriptedHost]:
    with ScriptedHost("alpha", models=("m", "solo", "silent")) as host:
        yield host


@pytest.fixture(scope="module")
def beta() -> Iterator[ScriptedHost]:
    with ScriptedHost("beta", models=("m", "renamed")) as host:
        yield host


@pytest.fixture(scope="module")
def plain() -> Iterator[ScriptedHost]:
    with ScriptedHost("plain", models=("m", "bare")) as host:
        yield host


@pytest.fixture(scope="module")
def running_stage(directory: Path, alpha: ScriptedHost, beta: ScriptedHost, plain: ScriptedHost) -> Iterator[Stage]:
    limits = (
        f"[limits]\nbody_bytes = {BODY_BYTES_MAX}\nanswer_bytes = {ANSWER_BYTES_MAX}\nevent_bytes = {EVENT_BYTES_MAX}\n"
    )
    toml = (
        f"{QUIET}{SHORT_TICK}{limits}[models.silent.timeouts]\nheartbeat_after_s = 0.1\n"
        + host_entry(alpha, facts={"paths": ALPHA_PATHS})
        + host_entry(beta, models={"m": "m", "renamed": "own-name"}, facts={"paths": [MESSAGES, "/tokenize"]})
        + host_entry(plain, facts={"paths": []})
    )
    with Stage(directory, [alpha, beta, plain], toml) as stage:
        yield stage


# ---------------------------------------------------------------- streams
def test_a_stream_of_messages_arrives_as_it_is(stage: Stage, alpha: ScriptedHost) -> None:
    alpha.script(*sh.chunked(MESSAGE))
    client = stage.client()
    ask(
        client, MESSAGES, stream=True, max_tokens=9, metadata={"user_id": "u-1"}, more="x-ringrouter-tag-channel: voice"
    )
    answer = client.answer()
    assert answer.status == 200
    assert answer.body == b"".join(MESSAGE), "byte for byte: nothing added, nothing taken out"
    assert answer.ended
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["x-ringrouter-host"] == "alpha"
    record = stage.last_finished()
    assert (record["endpoint"], record["outcome"], record["status"]) == ("messages", "ok", 200)
    assert (record["n_in"], record["n_out"], record["n_content"], record["n_events"]) == (7, 5, 2, 8)
    assert (record["max_tokens"], record["user_id"], record["tags"]["channel"]) == (9, "u-1", "voice")
    assert "stream" in record["flags"]
    assert "n_out_estimated" not in record["flags"]
    assert record["ttft_ns"] is not None
    assert stage.host_events(record) == MESSAGE_KINDS


@pytest.mark.parametrize("piece_bytes", [1, 7, 50, 4096])
def test_reads_that_end_anywhere_make_no_difference(stage: Stage, alpha: ScriptedHost, piece_bytes: int) -> None:
    framed = b"".join(map(chunk, MESSAGE)) + sh.LAST_CHUNK
    pieces = [framed[at : at + piece_bytes] for at in range(0, len(framed), piece_bytes)]
    alpha.script(sh.stream_head(), *pieces)
    client = stage.client()
    ask(client, MESSAGES, stream=True)
    answer = client.answer()
    assert answer.body == b"".join(MESSAGE)
    assert stage.host_events(stage.last_finished()) == MESSAGE_KINDS


def test_head_and_preliminaries_wait_for_the_first_content(stage: Stage, alpha: ScriptedHost) -> None:
    gate = stage.gate()
    alpha.script(sh.stream_head(), *map(chunk, MESSAGE[:3]), gate, *map(chunk, MESSAGE[3:]), sh.LAST_CHUNK)
    client = stage.client()
    ask(client, MESSAGES, stream=True)
    wait_until(lambda: any(each["kind"] == "keepalive" for each in stage.token_records()), "the preliminaries are read")
    opened_ns = monotonic_ns()
    gate.open()
    answer = client.answer()
    assert answer.body == b"".join(MESSAGE)
    assert answer.begun_ns > opened_ns
    record = stage.last_finished()
    assert record["stamps"]["tok1"] > record["ttfc_ns"] > 0


def test_lines_of_json_are_a_stream_too(stage: Stage, alpha: ScriptedHost) -> None:
    gate = stage.gate()
    alpha.script(lines_head(), chunk(OLLAMA_LINES[0]), gate, chunk(OLLAMA_LINES[1]), sh.LAST_CHUNK)
    client = stage.client()
    ask(client, OLLAMA, more="x-ringrouter-timing: 1")  # absent "stream" means true there
    client.wait_for(OLLAMA_LINES[0])
    gate.open()
    answer = client.answer()
    assert answer.headers["content-type"] == LINES
    assert answer.body == b"".join(OLLAMA_LINES), "no comment has a place in lines of JSON"
    record = stage.last_finished()
    assert (record["endpoint"], record["n_in"], record["n_out"], record["outcome"]) == ("other", 4, 2, "ok")
    assert stage.host_events(record) == ["text", "finish"]


def test_the_timing_comment_stands_at_the_end_of_an_event_stream(stage: Stage, alpha: ScriptedHost) -> None:
    alpha.script(*sh.chunked(RESPONSE))
    client = stage.client()
    ask(client, RESPONSES, stream=True, more="x-ringrouter-timing: 1")
    *events, comment = client.answer().events
    assert events == list(RESPONSE)
    assert comment.startswith(b": ringrouter {")
    assert stage.last_finished()["endpoint"] == "responses"


def test_what_comes_decides_and_not_what_was_asked_for(stage: Stage, alpha: ScriptedHost) -> None:
    alpha.script(*sh.chunked(MESSAGE))
    client = stage.client()
    ask(client, MESSAGES, stream=False)
    assert client.answer().body == b"".join(MESSAGE)
    assert "stream" in stage.last_finished()["flags"]
    alpha.script(sh.json_answer(200, {"type": "message", "usage": {"input_tokens": 2, "output_tokens": 1}}))
    ask(client, MESSAGES, stream=True)
    answer = client.answer()
    assert answer.headers["content-type"] == "application/json"
    record = stage.last_finished()
    assert "stream" not in record["flags"]
    assert (record["n_in"], record["n_out"]) == (2, 1)


def test_an_unknown_dialect_is_never_held_back(stage: Stage, alpha: ScriptedHost) -> None:
    gate = stage.gate()
    first, last = b"event: odd\ndata: not JSON\n\n", b"data: last, without its blank line"
    alpha.script(sh.stream_head(), chunk(first), gate, chunk(last), sh.LAST_CHUNK)
    client = stage.client()
    ask(client, "/own/path", stream=True)
    client.wait_for(first)
    gate.open()
    answer = client.answer()
    assert answer.body == first + last
    assert answer.ended
    record = stage.last_finished()
    assert record["outcome"] == "ok"
    assert "n_out_estimated" in record["flags"]


def test_http_1_0_clients_get_streams_without_chunks(stage: Stage, alpha: ScriptedHost) -> None:
    alpha.script(*sh.chunked(MESSAGE))
    client = stage.client()
    client.post({"model": "solo"}, MESSAGES, version="1.0")
    answer = client.answer()
    assert "transfer-encoding" not in answer.headers
    assert answer.body == b"".join(MESSAGE)
    stage.finished(1)


def test_a_heartbeat_comes_into_event_streams_only(stage: Stage, alpha: ScriptedHost) -> None:
    gates = [stage.gate(), stage.gate()]
    comment = b": waiting for the model\n\n"
    for path, script, gate in (
        (MESSAGES, sh.chunked(MESSAGE), gates[0]),
        (OLLAMA, lines_script(OLLAMA_LINES), gates[1]),
    ):
        alpha.script(gate, *script)
        client = stage.client()
        before = stage.counter("heartbeats")
        ask(client, path, model="silent", stream=True)
        chats = stage.client()
        alpha.script(*sh.chunked(sh.STREAM)[:2], gate, *sh.chunked(sh.STREAM)[2:])
        chats.chat(model="silent")  # its own heartbeats show that the time has come
        chats.wait_for(comment)
        gate.open()
        body = client.answer().body
        assert (comment in body) == (path == MESSAGES), "a comment has no place in lines of JSON"
        assert chats.answer().ended
        assert stage.counter("heartbeats") > before
    stage.finished(4)


# ---------------------------------------------------------------- whole answers
@pytest.mark.parametrize(
    ("status", "content_type", "body"),
    [
        (200, "application/json", b'{ "tokens": [1, 2] }'),
        (201, "application/json; charset=utf-8", b"[1]"),
        (200, "text/plain", b"just text"),
        (200, "audio/mpeg", bytes(range(256))),
        (200, "application/json", b""),
    ],
)
def test_a_whole_answer_arrives_as_it_is(
    stage: Stage, alpha: ScriptedHost, status: int, content_type: str, body: bytes
) -> None:
    alpha.script(sh.answer(status, body, content_type=content_type))
    client = stage.client()
    ask(client, "/own/path", anything=[1])
    answer = client.answer()
    assert (answer.status, answer.headers["content-type"], answer.body) == (status, content_type, body)
    record = stage.last_finished()
    assert (record["outcome"], record["status"], record["endpoint"]) == ("ok", status, "other")


@pytest.mark.parametrize(
    ("status", "name", "value"), [(200, "content-encoding", "gzip"), (307, "location", "http://elsewhere/x")]
)
def test_headers_without_which_an_answer_means_something_else_are_kept(
    stage: Stage, alpha: ScriptedHost, status: int, name: str, value: str
) -> None:
    alpha.script(sh.json_answer(status, {"a": 1}, more=f"{name}: {value}"))
    client = stage.client()
    ask(client, MESSAGES)
    answer = client.answer()
    assert (answer.status, answer.headers[name]) == (status, value)
    stage.finished(1)


def test_an_answer_without_content_has_no_length(stage: Stage, alpha: ScriptedHost) -> None:
    alpha.script(b"HTTP/1.1 204 No Content\r\n\r\n")
    client = stage.client()
    for _ in range(2):  # the second shows that nothing came behind the first
        ask(client, "/own/path")
        answer = client.answer(without_body=True)
        assert answer.status == 204
        assert "content-length" not in answer.headers
        alpha.script(b"HTTP/1.1 204 No Content\r\n\r\n")
    alpha.forget_scripts()
    assert [record["outcome"] for record in stage.finished(2)] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [("/rerank", "rerank"), ("/tokenize", "tokenize"), ("/v1/messages/count_tokens", "tokenize")],
)
def test_requests_are_counted_by_what_they_ask_for(stage: Stage, alpha: ScriptedHost, path: str, endpoint: str) -> None:
    alpha.script(sh.json_answer(200, {"input_tokens": 14}))
    client = stage.client()
    ask(client, path)
    assert client.answer().json() == {"input_tokens": 14}
    record = stage.last_finished()
    assert (record["endpoint"], record["n_in"], record["n_out"]) == (endpoint, 14, 0)


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_hosts_error_keeps_status_and_body(stage: Stage, alpha: ScriptedHost, status: int) -> None:
    body = b'{"detail": "no such thing"}'
    alpha.script(sh.answer(status, body))
    client = stage.client()
    ask(client, MESSAGES)
    answer = client.answer()
    assert (answer.status, answer.body) == (status, body)
    record = stage.last_finished()
    assert (record["outcome"], record["status"], record["message"]) == ("bad_request", status, "no such thing")


def test_an_answer_over_the_limit_is_refused(stage: Stage, alpha: ScriptedHost) -> None:
    alpha.script(sh.answer(200, b"x" * (ANSWER_BYTES_MAX + 1)), sh.End.HANG)
    client = stage.client()
    ask(client, MESSAGES)
    answer = client.answer()
    assert answer.status == 502
    assert str(ANSWER_BYTES_MAX) in answer.json()["error"]["message"]
    assert stage.last_finished()["error"] == "answer_too_large"


# ---------------------------------------------------------------- what the host gets
def test_the_host_gets_the_query_and_the_headers_of_the_dialect_and_no_key(stage: Stage, alpha: ScriptedHost) -> None:
    given = {"anthropic-version": "2023-06-01", "anthropic-beta": "a,b", "openai-beta": "x=v2", "accept": "text/*"}
    secret = {"authorization": "Bearer secret", "x-api-key": "secret", "cookie": "secret", "user-agent": "secret"}
    alpha.script(sh.json_answer(200, {}))
    client = stage.client()
    body = b'{ "model" : "solo",\t"unknown": [1.50, null], "metadata": 5, "user": [], "stream": "no" }'
    client.post(
        body, f"{MESSAGES}?beta=true&a=%2F", more="\n".join(f"{k}: {v}" for k, v in {**given, **secret}.items())
    )
    assert client.answer().status == 200
    exchange = alpha.exchanges[-1]
    assert (exchange.method, exchange.path) == ("POST", f"{MESSAGES}?beta=true&a=%2F")
    assert exchange.headers == {
        "host": exchange.headers["host"],
        "content-type": "application/json",
        "content-length": str(len(body)),
        **given,
    }
    assert exchange.body == body, "the host judges what is not the router's"
    stage.finished(1)


def test_the_model_gets_the_hosts_own_name_and_all_else_is_kept(stage: Stage, beta: ScriptedHost) -> None:
    beta.script(sh.json_answer(200, {}))
    client = stage.client()
    ask(client, MESSAGES, model="renamed", a=[1, {"b": None}], text="\u00e9")
    assert client.answer().status == 200
    assert beta.exchanges[-1].json() == {"model": "own-name", "a": [1, {"b": None}], "text": "\u00e9"}
    assert stage.last_finished()["model"] == "renamed"


def test_a_body_without_a_model_stays_as_it_is(stage: Stage, beta: ScriptedHost) -> None:
    beta.script(sh.json_answer(200, {"tokens": [1]}))
    client = stage.client()
    client.post(b'{"content":"x"}', "/tokenize", more="x-ringrouter-model: renamed")
    assert client.answer().json() == {"tokens": [1]}
    assert beta.exchanges[-1].body == b'{"content":"x"}', "a host of one model needs no name"
    assert stage.last_finished()["model"] == "renamed"


def test_only_hosts_with_the_path_are_asked(stage: Stage, plain: ScriptedHost) -> None:
    before = len(plain.exchanges)
    client = stage.client()
    hosts = set()
    for _ in range(6):
        ask(client, MESSAGES, model="m")
        hosts.add(client.answer().headers["x-ringrouter-host"])
    assert hosts == {"alpha", "beta"}
    assert len(plain.exchanges) == before
    assert all(len(record["candidates"]) == 2 for record in stage.finished(6))


# ---------------------------------------------------------------- refused before a host is asked
def refused(stage: Stage, path: str, *, model: str | None = "solo", more: str = "", **fields: Any) -> tuple[int, Any]:
    before = sum(len(host.exchanges) for host in stage.hosts)
    client = stage.client()
    ask(client, path, model=model, more=more, **fields)
    answer = client.answer()
    assert sum(len(host.exchanges) for host in stage.hosts) == before, "no host was asked"
    assert answer.headers["content-type"] == "application/json"
    ask(client, MESSAGES, model="solo")
    assert client.answer().status == 200, "the connection stays usable"
    return answer.status, answer.json()


def test_an_unknown_model_is_said_in_the_words_of_the_path(stage: Stage) -> None:
    status, body = refused(stage, MESSAGES, model="nobody", more="x-request-id: my-id")
    assert status == 404
    assert set(body) == {"type", "error", "request_id"}
    assert (body["type"], body["request_id"]) == ("error", "my-id")
    assert body["error"]["type"] == "not_found_error"
    assert "'nobody'" in body["error"]["message"]
    status, body = refused(stage, RESPONSES, model="nobody")
    assert status == 404
    assert (body["error"]["code"], body["error"]["param"]) == ("model_not_found", "model")
    status, body = refused(stage, OLLAMA, model="nobody")
    assert status == 404
    assert set(body) == {"error"}
    assert "'nobody'" in body["error"]


def test_a_path_that_no_host_of_the_model_has_is_not_found(stage: Stage) -> None:
    status, body = refused(stage, RESPONSES, model="bare")
    assert status == 404
    assert body["error"]["code"] == "not_found"
    for word in ("'bare'", RESPONSES, "m, silent, solo"):
        assert word in body["error"]["message"], "model, path, and who has it"


def test_a_path_of_another_kind_of_host_is_not_found(stage: Stage) -> None:
    status, body = refused(stage, "/infill", model="solo")
    assert (status, body["error"]["code"]) == (404, "not_found")
    status, body = refused(stage, "/v1/messages/")
    assert (status, body["type"]) == (404, "error")


def test_without_a_model_the_only_one_with_the_path_is_meant(stage: Stage) -> None:
    status, body = refused(stage, "/tokenize", model=None)
    assert status == 400
    assert body["error"]["param"] == "model"
    for word in ("model", "m, renamed, silent, solo", "x-ringrouter-model"):
        assert word in body["error"]["message"]
    status, body = refused(stage, "/tokenize", model=None, more="x-ringrouter-model: nobody")
    assert (status, body["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
def test_another_method_is_not_allowed(stage: Stage, method: str) -> None:
    client = stage.client()
    client.get(MESSAGES, method)
    answer = client.answer(without_body=method == "HEAD")
    assert answer.status == 405
    assert answer.headers["allow"] == "POST"
    if method != "HEAD":
        assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "empty"),
        (b"{", "not JSON"),
        (b"[]", "object"),
        (b'"x"', "object"),
        (b'{"model": 5}', "model"),
        (b'{"model": "\xff"}', "UTF-8"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(stage: Stage, body: bytes, said: str) -> None:
    client = stage.client()
    client.post(body, MESSAGES)
    answer = client.answer()
    assert answer.status == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert said in answer.json()["error"]["message"]


def test_a_body_over_the_limit_is_refused_in_the_words_of_the_path(stage: Stage) -> None:
    client = stage.client()
    client.post(b"x" * (BODY_BYTES_MAX + 1), MESSAGES)
    answer = client.answer()
    assert answer.status == 413
    assert answer.json()["error"]["type"] == "request_too_large"
    assert "limits.body_bytes" in answer.json()["error"]["message"]


def test_numbers_beyond_what_records_hold_pass(stage: Stage, alpha: ScriptedHost) -> None:
    huge = 10**400
    client = stage.client()
    alpha.script(sh.json_answer(200, {}))
    body = json.dumps({"model": "solo", "max_tokens": -5, "temperature": 1e300, "n": huge}).encode()
    client.post(body, RESPONSES)
    assert client.answer().status == 200
    assert alpha.exchanges[-1].body == body
    stage.finished(1)
