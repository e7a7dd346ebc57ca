"""Every form in which a host may answer: what the client gets, and how it is recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.client import Answer, request
from tests.faults.stage import QUIET, SHORT_TICK, Stage, host_entry
from tests.support import scripted_host as sh
from tests.support.scripted_host import ScriptedHost, chunk, event

PROMPT_BYTES = 200_000


@pytest.fixture(scope="module")
def host() -> Iterator[ScriptedHost]:
    with ScriptedHost("alpha", models=("m", "by-default")) as host:
        yield host


@pytest.fixture(scope="module")
def running_stage(directory: Path, host: ScriptedHost) -> Iterator[Stage]:
    own_names = {"m": "m", "by-default": "m", "ours": "theirs"}
    toml = QUIET + SHORT_TICK + "[models.by-default]\nstream_by_default = true\n" + host_entry(host, models=own_names)
    with Stage(directory, [host], toml) as stage:
        yield stage


def events_of(*payloads: bytes) -> bytes:
    return b"".join(payloads)


LENGTH = len(events_of(*sh.STREAM))
FRAMINGS = {
    "chunked, one write an event": sh.chunked(sh.STREAM),
    "chunked, all in one chunk": [sh.stream_head() + chunk(events_of(*sh.STREAM)) + sh.LAST_CHUNK],
    "chunked, all in one write": [sh.stream_head() + b"".join(map(chunk, sh.STREAM)) + sh.LAST_CHUNK],
    "chunked, the last chunk comes late": [
        sh.stream_head(),
        b"".join(map(chunk, sh.STREAM)),
        0.05,
        sh.LAST_CHUNK,
    ],
    "chunked, without the last chunk": [sh.stream_head(), b"".join(map(chunk, sh.STREAM)), sh.End.CLOSE],
    "chunked, chunks cut across events": [
        sh.stream_head(),
        *(chunk(events_of(*sh.STREAM)[at : at + 50]) for at in range(0, LENGTH, 50)),
        sh.LAST_CHUNK,
    ],
    "content-length": [sh.stream_head(f"content-length: {LENGTH}"), *sh.STREAM],
    "to the end of the connection": [sh.stream_head("connection: close"), *sh.STREAM, sh.End.CLOSE],
    "an interim response before": [b"HTTP/1.1 102 Processing\r\n\r\n", *sh.chunked(sh.STREAM)],
    "two interim responses and the head in one write": [
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + sh.stream_head(),
        *map(chunk, sh.STREAM),
        sh.LAST_CHUNK,
    ],
    "thousands of interim responses": [b"HTTP/1.1 102 Processing\r\n\r\n" * 5000, *sh.chunked(sh.STREAM)],
    "the head in single bytes": [
        *(bytes([byte]) for byte in sh.stream_head()),
        *map(chunk, sh.STREAM),
        sh.LAST_CHUNK,
    ],
}


@pytest.mark.parametrize("script", FRAMINGS.values(), ids=FRAMINGS.keys())
def test_a_stream_in_any_framing_comes_through_whole(stage: Stage, host: ScriptedHost, script: list[sh.Step]) -> None:
    host.script(*script)
    client = stage.client()
    client.chat(stream_options={"include_usage": True})
    answer = client.answer()
    assert answer.status == 200
    assert answer.body == events_of(*sh.STREAM), "the client's de-chunked body equals the host's"
    assert answer.ended
    (record,) = stage.finished(1)
    assert (record["outcome"], record["error"], record["status"]) == ("ok", "none", 200)
    assert stage.host_events(record) == ["head", "text", "text", "text", "finish", "usage", "sentinel"]
    assert (record["n_in"], record["n_out"], record["n_content"]) == (7, 3, 3)


FORMS = {
    "CRLF": [each.replace(b"\n", b"\r\n") for each in sh.STREAM],
    "no space behind data:": [each.replace(b"data: ", b"data:") for each in sh.STREAM],
    "comments between": [b": ping\n\n", *(part for each in sh.STREAM for part in (each, b": still here\n\n"))],
    "event lines": [b"event: message\n" + each for each in sh.STREAM],
    "id and retry lines": [b"id: 1\nretry: 10\n" + each for each in sh.STREAM],
    "usage in the middle": [sh.ROLE, sh.token("a"), sh.USAGE, sh.token("b"), sh.FINISH, sh.DONE],
    "usage on the finish event": [sh.ROLE, sh.token("a"), sh.choice_event({}, "stop", usage=sh.USAGE_NUMBERS), sh.DONE],
    "no [DONE]": [sh.ROLE, *sh.TOKENS, sh.FINISH],
    "a comment behind [DONE]": [sh.ROLE, *sh.TOKENS, sh.FINISH, sh.DONE, b": bye\n\n"],
    "an unknown event": [sh.ROLE, sh.token("a"), event(b"hello", field=b"event: note\ndata: "), sh.FINISH, sh.DONE],
    "no role event": [*sh.TOKENS, sh.FINISH, sh.DONE],
    "content in the finish event": [sh.ROLE, sh.choice_event({"content": "all"}, "length"), sh.DONE],
    "no content": [sh.ROLE, sh.FINISH, sh.DONE],
    "an escaped text": [sh.ROLE, sh.token('"\\ \u2028 é 🙂'), sh.token("}]}"), sh.FINISH, sh.DONE],
    "two choices": [
        event({"choices": [{"index": i, "delta": {"content": f"c{i}"}, "finish_reason": None}]}) for i in (0, 1)
    ]
    + [event({"choices": [{"index": i, "delta": {}, "finish_reason": "stop"}]}) for i in (1, 0)]
    + [sh.DONE],
}


@pytest.mark.parametrize("events", FORMS.values(), ids=FORMS.keys())
def test_events_in_any_form_come_through_untouched(stage: Stage, host: ScriptedHost, events: list[bytes]) -> None:
    host.script(*sh.chunked(events))
    client = stage.client()
    client.chat(stream_options={"include_usage": True})
    answer = client.answer()
    end = next((i + 1 for i, each in enumerate(events) if b"[DONE]" in each), len(events))
    assert answer.body == events_of(*events[:end])
    assert answer.ended
    (record,) = stage.finished(1)
    assert (record["outcome"], record["error"]) == ("ok", "none")
    assert record["n_events"] == end, "every event of the host has exactly one record"


@pytest.mark.parametrize(
    ("delta", "kind"),
    [
        ({"reasoning": "hm"}, "reasoning"),
        ({"reasoning_content": "hm"}, "reasoning"),
        ({"refusal": "no"}, "text"),
        ({"tool_calls": [{"index": 0, "id": "t", "function": {"name": "f", "arguments": ""}}]}, "tool_call"),
        ({"function_call": {"name": "f", "arguments": "{}"}}, "tool_call"),
    ],
)
def test_every_kind_of_content_commits_and_is_recorded(
    stage: Stage, host: ScriptedHost, delta: dict[str, object], kind: str
) -> None:
    gate = stage.gate()
    first = sh.choice_event(delta)
    host.script(sh.stream_head(), chunk(sh.ROLE), chunk(first), gate, chunk(sh.FINISH), chunk(sh.DONE), sh.LAST_CHUNK)
    client = stage.client()
    client.chat()
    assert client.begin().status == 200
    assert client.read_until(first), "the first content of any kind goes to the client at once"
    gate.open()
    client.read_until(sh.LAST_CHUNK)
    (record,) = stage.finished(1)
    assert stage.host_events(record) == ["head", kind, "finish", "sentinel"]
    assert record["stamps"]["tok1"] > 0


def test_what_comes_before_the_first_content_is_held(stage: Stage, host: ScriptedHost) -> None:
    gate = stage.gate()
    events = [sh.token("a"), sh.FINISH, sh.DONE]
    host.script(sh.stream_head(), chunk(sh.ROLE), gate, *map(chunk, events), sh.LAST_CHUNK)
    client = stage.client()
    client.chat()
    gate.wait_reached()
    client.socket.settimeout(0.1)
    with pytest.raises(TimeoutError):
        client.begin()
    client.socket.settimeout(sh.WAIT_S)
    gate.open()
    assert client.answer().body == events_of(sh.ROLE, *events)


def test_a_whole_answer_to_a_request_for_a_stream_is_passed_on(stage: Stage, host: ScriptedHost) -> None:
    host.script(sh.json_answer(200, sh.PLAIN))
    client = stage.client()
    client.chat()
    answer = client.answer()
    assert (answer.status, answer.json()) == (200, sh.PLAIN)
    assert answer.headers["content-type"] == "application/json"
    (record,) = stage.finished(1)
    assert (record["outcome"], record["n_out"]) == ("ok", 3)


# ---------------------------------------------------------------- success is a finish_reason
TWO_CHOICES = [event({"choices": [{"index": i, "delta": {"content": "a"}, "finish_reason": None}]}) for i in (0, 1)]
CHUNKED = sh.stream_head()
ENDINGS: dict[str, tuple[bytes, list[bytes], list[sh.Step]]] = {
    "a proper end": (CHUNKED, [sh.ROLE, *sh.TOKENS], [sh.LAST_CHUNK]),
    "[DONE]": (CHUNKED, [sh.ROLE, *sh.TOKENS], [chunk(sh.DONE), sh.LAST_CHUNK]),
    "one of two choices finished": (CHUNKED, TWO_CHOICES, [chunk(sh.FINISH), chunk(sh.DONE), sh.LAST_CHUNK]),
    "the end of the connection": (sh.stream_head("connection: close"), [sh.ROLE, *sh.TOKENS], [sh.End.CLOSE]),
}


def script_after_commit(
    stage: Stage, host: ScriptedHost, head: bytes, events: list[bytes], rest: list[sh.Step]
) -> Answer:
    """Play a stream of which ``rest`` comes only when the client has got ``events``."""
    gate = stage.gate()
    framed = b"".join(map(chunk, events)) if head == CHUNKED else events_of(*events)
    host.script(head, framed, gate, *rest)
    client = stage.client()
    client.chat()
    client.wait_for(events[-1])
    gate.open()
    return client.answer()


@pytest.mark.parametrize(("head", "events", "rest"), ENDINGS.values(), ids=ENDINGS.keys())
def test_an_end_without_a_finish_reason_is_an_error(
    stage: Stage, host: ScriptedHost, head: bytes, events: list[bytes], rest: list[sh.Step]
) -> None:
    answer = script_after_commit(stage, host, head, events, rest)
    assert answer.status == 200
    assert answer.stream_error["code"] == "no_finish_reason"
    assert b"[DONE]" not in answer.body
    assert answer.text in {"one two three", "aa"}, "what was delivered stays delivered"
    (record,) = stage.finished(1)
    assert (record["outcome"], record["error"]) == ("host_error", "no_finish")


BREAKS: dict[str, list[sh.Step]] = {
    "a RST": [sh.End.RESET],
    "a FIN": [sh.End.CLOSE],
    "a FIN within an event": [chunk(sh.FINISH)[:30], sh.End.CLOSE],
    "a RST within a chunk's size": [chunk(sh.FINISH)[:1], 0.01, sh.End.RESET],
}


@pytest.mark.parametrize("rest", BREAKS.values(), ids=BREAKS.keys())
def test_a_stream_that_breaks_off_ends_in_an_error_event(stage: Stage, host: ScriptedHost, rest: list[sh.Step]) -> None:
    answer = script_after_commit(stage, host, CHUNKED, list(sh.STREAM[:3]), rest)
    assert answer.text == "one two"
    assert answer.stream_error["code"] == "host_closed"
    assert answer.stream_error["delivered_events"] == 2
    (record,) = stage.finished(1)
    assert (record["outcome"], record["error"], record["n_content"]) == ("host_error", "host_closed", 2)
    assert stage.host_events(record) == ["head", "text", "text"]


def test_an_error_object_after_200_is_passed_on_with_its_done(stage: Stage, host: ScriptedHost) -> None:
    error = event({"error": {"message": "the cache is full", "type": "server_error", "param": None, "code": 500}})
    events = [sh.ROLE, sh.token("a"), error, sh.DONE]
    host.script(*sh.chunked(events))
    client = stage.client()
    client.chat()
    answer = client.answer()
    assert answer.body == events_of(*events)
    (record,) = stage.finished(1)
    assert (record["outcome"], record["error"]) == ("host_error", "host_error_event")
    assert record["message"] == "the cache is full"
    assert stage.host_events(record) == ["head", "text", "error", "sentinel"]


GARBAGE = {
    "not HTTP": [b"SSH-2.0-OpenSSH_9.2\r\n\r\n"],
    "an endless head": [b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000],
    "a chunk size that is none": [sh.stream_head(), b"zz\r\nhello\r\n"],
    "an event without an end": [sh.stream_head("connection: close"), *[b"x" * 65536] * 100],
    "an answer without an end": [b"HTTP/1.1 200 OK\r\ncontent-type: a/b\r\n\r\n", *[b"x" * 65536] * 600],
}


@pytest.mark.parametrize("script", GARBAGE.values(), ids=GARBAGE.keys())
def test_a_host_that_speaks_garbage_is_a_502(stage: Stage, host: ScriptedHost, script: list[sh.Step]) -> None:
    for _ in range(3):
        host.script(*script, sh.End.CLOSE)
    client = stage.client()
    client.chat()
    answer = client.answer()
    assert answer.status == 502
    assert answer.error["code"] in {"host_protocol", "answer_too_large"}
    (record,) = stage.finished(1)
    assert record["outcome"] == "host_error"
    host.forget_scripts()


def test_garbage_within_a_stream_is_an_error_event_behind_the_good_events(stage: Stage, host: ScriptedHost) -> None:
    rest: list[sh.Step] = [chunk(sh.token("b")) + b"zz\r\n", sh.End.HANG]
    answer = script_after_commit(stage, host, CHUNKED, [sh.ROLE, sh.token("a")], rest)
    assert answer.stream_error["code"] == "host_protocol"
    (record,) = stage.finished(1)
    assert (record["outcome"], record["error"]) == ("host_error", "host_protocol")
    assert stage.host_events(record)[:2] == ["head", "text"]
    host.exchanges[-1].wait_gone()


# ---------------------------------------------------------------- error bodies
def test_a_json_error_keeps_status_body_and_retry_after(stage: Stage, host: ScriptedHost) -> None:
    error = {"error": {"message": "too long", "type": "invalid_request_error", "param": "messages", "code": "x"}}
    host.script(sh.json_answer(400, error))
    client = stage.client()
    client.chat()
    answer = client.answer()
    assert (answer.status, answer.json()) == (400, error)
    assert answer.headers["x-ringrouter-host"] == "alpha"
    (record,) = stage.finished(1)
    assert (record["outcome"], record["error"], record["status"]) == ("bad_request", "host_status", 400)
    assert record["message"] == "too long"


@pytest.mark.parametrize(
    ("status", "body", "content_type", "text"),
    [
        (500, b"<html>Internal Server Error</html>", "text/html", "<html>Internal Server Error</html>"),
        (404, b"", "text/plain", "the host answered 404"),
        (422, b'{"detail": "no such field"}', "application/json", "no such field"),
        (400, b'{"error": "a plain text"}', "application/json", "a plain text"),
        (503, b'{"error": "\xff\xfe"}', "application/json", None),
        (500, b"[" * 100_000, "application/json", None),
    ],
)
def test_any_other_error_body_is_wrapped(
    stage: Stage, host: ScriptedHost, status: int, body: bytes, content_type: str, text: str | None
) -> None:
    host.script(sh.answer(status, body, content_type=content_type))
    client = stage.client()
    client.chat(stream=False)
    answer = client.answer()
    assert answer.status == status, "errors keep their status"
    assert text is None or answer.error["message"] == text
    assert answer.error["code"] == status
    (record,) = stage.finished(1)
    assert (record["error"], record["status"]) == ("host_status", status)


def test_a_host_that_says_more_than_its_answer_is_not_used_on_that_connection_again(
    stage: Stage, host: ScriptedHost
) -> None:
    host.script(sh.json_answer(200, sh.PLAIN) + b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
    client = stage.client()
    for _ in range(2):
        client.chat(stream=False)
        assert client.answer().json() == sh.PLAIN
    assert host.exchanges[-1].connection != host.exchanges[-2].connection
    stage.finished(2)


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_a_body_is_an_answer(stage: Stage, host: ScriptedHost, status: int) -> None:
    host.script(f"HTTP/1.1 {status} x\r\n\r\n".encode())
    client = stage.client()
    client.chat()
    assert client.answer(without_body=True).status == status
    stage.finished(1)


def test_a_plain_answer_with_bytes_that_are_not_utf8_is_passed_on(stage: Stage, host: ScriptedHost) -> None:
    body = json.dumps(sh.PLAIN).encode().replace(b"one", b"\xff\xfe")
    host.script(sh.answer(200, body))
    client = stage.client()
    client.chat(stream=False)
    assert client.answer().body == body
    (record,) = stage.finished(1)
    assert record["outcome"] == "ok"


def test_an_error_event_that_is_not_utf8_is_passed_on(stage: Stage, host: ScriptedHost) -> None:
    error = event(b'{"error": {"message": "\xff"}}')
    host.script(*sh.chunked([sh.ROLE, sh.token("a"), error, sh.DONE]))
    client = stage.client()
    client.chat()
    answer = client.answer()
    assert error in answer.body
    stage.finished(1)


# ---------------------------------------------------------------- what is asked of the host, and taken out again
def test_usage_is_asked_for_and_taken_out_again(stage: Stage, host: ScriptedHost) -> None:
    client = stage.client()
    client.chat()
    answer = client.answer()
    assert host.exchanges[-1].json()["stream_options"] == {"include_usage": True}
    assert answer.body == events_of(*(each for each in sh.STREAM if each is not sh.USAGE))
    (record,) = stage.finished(1)
    assert (record["n_in"], record["n_out"]) == (7, 3), "the record has what the client did not ask for"
    assert "usage_added" in record["flags"]
    usage = [t for t in stage.token_records(record["request_seq"]) if t["kind"] == "usage"]
    assert [t["flags"] for t in usage] == [["host_event", "usage", "removed"]]


@pytest.mark.parametrize("options", [{"include_usage": False}, {}, None])
def test_other_stream_options_stay_when_usage_is_added(stage: Stage, host: ScriptedHost, options: object) -> None:
    given = {**options, "more": [1, 2.50]} if isinstance(options, dict) else options
    client = stage.client()
    client.chat(stream_options=given)
    assert sh.USAGE not in client.answer().body
    expected = {**(given or {}), "include_usage": True}
    assert host.exchanges[-1].json()["stream_options"] == expected
    stage.finished(1)


def test_a_client_that_asks_for_usage_gets_it_and_its_body_is_not_touched(stage: Stage, host: ScriptedHost) -> None:
    body = b'{ "model":"m", "messages" : [ ],"stream" :true, "stream_options":{"include_usage":true}, "x": 1.0e5 }'
    client = stage.client()
    client.post(body)
    assert sh.USAGE in client.answer().body
    assert host.exchanges[-1].body == body
    stage.finished(1)


UNKNOWN = rb'"x":  {"a" : [1.10, 1e2, "\u00e9\/"], "a":2}, "seed":18446744073709551617, "messages": [ {"role":"user"} ]'


@pytest.mark.parametrize("stream", [b"true", b"false"])
@pytest.mark.parametrize("model", [b"m", b"ours"])
def test_unknown_fields_pass_byte_for_byte(stage: Stage, host: ScriptedHost, stream: bytes, model: bytes) -> None:
    client = stage.client()
    client.post(b'{"model": "%b", "stream": %b, %b}' % (model, stream, UNKNOWN))
    assert client.answer().status == 200
    seen = host.exchanges[-1].body
    for value in (
        rb'{"a" : [1.10, 1e2, "\u00e9\/"], "a":2}',
        b"18446744073709551617",
        b'[ {"role":"user"} ]',
    ):
        assert value in seen
    stage.finished(1)


def test_the_model_gets_the_hosts_name_in_the_request_only(stage: Stage, host: ScriptedHost) -> None:
    client = stage.client()
    client.chat(model="ours", stream=False)
    answer = client.answer()
    assert host.exchanges[-1].json()["model"] == "theirs"
    assert answer.json() == sh.PLAIN, "the answer is not edited"
    (record,) = stage.finished(1)
    assert record["model"] == "ours"


def test_absent_stream_means_a_plain_answer(stage: Stage, host: ScriptedHost) -> None:
    body = b'{"model":"m","messages":[]}'
    client = stage.client()
    client.post(body)
    assert client.answer().json() == sh.PLAIN
    assert host.exchanges[-1].body == body
    (record,) = stage.finished(1)
    assert "stream" not in record["flags"]


@pytest.mark.parametrize("given", [b"", b',"stream":null'])
def test_stream_by_default(stage: Stage, host: ScriptedHost, given: bytes) -> None:
    client = stage.client()
    client.post(b'{"model":"by-default","messages":[]%b}' % given)
    assert client.answer().text == "one two three"
    assert host.exchanges[-1].json()["stream"] is True
    client.chat(model="by-default", stream=False)
    assert client.answer().json() == sh.PLAIN, "a client that says false gets no stream"
    stage.finished(2)


def test_a_long_prompt_passes_whole(stage: Stage, host: ScriptedHost) -> None:
    prompt = "".join(chr(0x21 + i % 90) for i in range(PROMPT_BYTES))
    client = stage.client()
    client.chat(messages=[{"role": "user", "content": prompt}])
    assert client.answer().text == "one two three"
    assert host.exchanges[-1].json()["messages"][0]["content"] == prompt
    (record,) = stage.finished(1)
    assert record["bytes_in"] > PROMPT_BYTES


# ---------------------------------------------------------------- headers
@pytest.mark.parametrize("stream", [True, False])
def test_headers_tell_id_host_and_times(stage: Stage, host: ScriptedHost, stream: bool) -> None:
    client = stage.client()
    client.chat(stream=stream, more="x-request-id: my-own-id")
    client.chat(stream=stream, more="x-request-id: my-own-id")
    for _ in range(2):
        answer = client.answer()
        assert answer.headers["x-request-id"] == "my-own-id", "HTTP never refuses a repeated id"
        assert answer.headers["x-ringrouter-host"] == "alpha"
        timings = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
        assert set(timings) == {"ingress", "queue", "route", "connect", "host"}
        assert all(float(value) >= 0 for value in timings.values())
    records = stage.finished(2)
    assert [record["request_id"] for record in records] == ["my-own-id"] * 2


@pytest.mark.parametrize("given", ["", "x-request-id: " + "x" * 200, "x-request-id: é", "x-request-id: a\tb"])
def test_a_request_id_is_made_where_no_usable_one_is_given(stage: Stage, given: str) -> None:
    client = stage.client()
    ids = []
    for _ in range(2):
        client.chat(stream=False, more=given)
        ids.append(client.answer().headers["x-request-id"])
    assert len(set(ids)) == 2
    assert [record["request_id"] for record in stage.finished(2)] == ids


@pytest.mark.parametrize(
    ("path", "fields", "endpoint"),
    [
        ("/v1/completions", {"prompt": "hi"}, "completion"),
        ("/v1/embeddings", {"input": ["a", "b"]}, "embeddings"),
    ],
)
def test_the_other_endpoints_take_the_same_path(
    stage: Stage, host: ScriptedHost, path: str, fields: dict[str, object], endpoint: str
) -> None:
    client = stage.client()
    client.post({"model": "ours", **fields}, path)
    assert client.answer().json() == sh.PLAIN
    assert host.exchanges[-1].path == path
    assert host.exchanges[-1].json() == {"model": "theirs", **fields}
    (record,) = stage.finished(1)
    assert (record["endpoint"], record["outcome"]) == (endpoint, "ok")


def test_the_timing_comment_stands_just_before_done(stage: Stage) -> None:
    client = stage.client()
    client.chat(more="x-ringrouter-timing: 1")
    events = client.answer().events
    assert events[-1] == sh.DONE
    comment = events[-2]
    assert comment.startswith(b": ringrouter {")
    timing = json.loads(comment.removeprefix(b": ringrouter "))
    assert timing["host"] == "alpha"
    assert timing["tokens"] == 3
    (record,) = stage.finished(1)
    assert timing["ttft_ms"] == pytest.approx(record["ttft_ns"] / 1e6), "the same value as in the record"
    assert [e for e in events[:-2] if e.startswith(b":")] == [], "one comment and no other"


def test_keys_of_clients_do_not_reach_the_host(stage: Stage, host: ScriptedHost) -> None:
    client = stage.client()
    client.chat(stream=False, more="authorization: Bearer secret\r\ncookie: a=b\r\nx-other: 1")
    client.answer()
    assert not {"authorization", "cookie", "x-other"} & set(host.exchanges[-1].headers)
    stage.finished(1)


def test_requests_and_their_answers_may_come_in_single_bytes(stage: Stage, host: ScriptedHost) -> None:
    everything = b"".join(map(chunk, sh.STREAM)) + sh.LAST_CHUNK
    host.script(sh.stream_head(), *(bytes([byte]) for byte in everything))
    client = stage.client()
    for byte in request({"model": "m", "messages": [], "stream": True}):
        client.send(bytes([byte]))
    answer = client.answer()
    assert answer.ended
    assert answer.text == "one two three"
    (record,) = stage.finished(1)
    assert record["n_events"] == len(sh.STREAM)
