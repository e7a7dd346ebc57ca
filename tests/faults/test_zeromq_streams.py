"""What a ZeroMQ client gets of an answer: each event whole, in order, with its time, and one end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from time import monotonic_ns
from typing import Any

import pytest

import router
from router.stamps import STAMPS
from router.telemetry.records import Kind
from tests.captures import capture, data_of, split_events, stream_names
from tests.faults.stage import QUIET, SHORT_TICK, Stage, check_stages, host_entry
from tests.faults.zeromq_client import Answer, ZeromqClient
from tests.support import scripted_host as sh
from tests.support.scripted_host import ScriptedHost, chunk, event

HEAD, TEXT, REASONING, TOOL_CALL, FINISH, USAGE, COMMENT, ERROR = 3, 4, 5, 6, 7, 8, 9, 10
PLAIN_EVENTS = [sh.ROLE, *sh.TOKENS, sh.FINISH]
HOST_ERROR = {"message": "no memory", "type": "server_error", "code": 500}
ERROR_EVENT = event({"error": HOST_ERROR})
CUTS = {1: False, 7: True, 100: False, 1000: True, 1 << 20: False}
"""Bytes of each write of the host, and whether the client asks for usage."""
SENT_LATER = {"out1", "outN", "done"}
"""Stamps that the message takes as it is made and the record when the message has been sent."""


@pytest.fixture(scope="module")
def host() -> Iterator[ScriptedHost]:
    with ScriptedHost("alpha", models=("m", "both", "folded", "quiet", "plain")) as host:
        yield host


@pytest.fixture(scope="module")
def second() -> Iterator[ScriptedHost]:
    with ScriptedHost("beta", models=("both", "other")) as host:
        yield host


@pytest.fixture(scope="module")
def running_stage(directory: Path, host: ScriptedHost, second: ScriptedHost) -> Iterator[Stage]:
    toml = (
        f'{QUIET}{SHORT_TICK}[models.folded]\nfold = "always"\n[models.plain]\nfold = "never"\n'
        "[models.quiet.timeouts]\nheartbeat_after_s = 0.05\nfirst_token_s = 30\n"
        + host_entry(host, facts={"trace_headers": True, "request_id_header": True})
        + host_entry(second)
    )
    with Stage(directory, [host, second], toml, models=["m", "other"]) as stage:
        yield stage


def whole_captures() -> list[str]:
    """Return the captured streams of chats and completions that came to their end."""
    bodies = {name: capture(name).body for name in stream_names()}
    return [name for name, body in bodies.items() if b'"finish_reason":"' in body.replace(b" ", b"") and DONE in body]


DONE = b"[DONE]"


def expected_events(body: bytes, *, usage_asked: bool) -> list[bytes]:
    """Return what a client is to get of a host's stream: all but ``[DONE]`` and a usage event not asked for."""
    kept = []
    for each in split_events(body)[0]:
        data = data_of(each)
        if data == DONE:
            break
        decoded = json.loads(data) if data is not None else {}
        added = decoded.get("choices") == [] and decoded.get("usage") is not None
        if usage_asked or not added:
            kept.append(each)
    return kept


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def check_record(stage: Stage, answer: Answer) -> dict[str, Any]:
    """Check an answer that is complete against what was recorded of it."""
    record = stage.last_finished()
    assert (record["outcome"], record["request_id"], record["request_seq"]) == ("ok", answer.id, answer.request_seq)
    check_stages(record)
    recorded = [
        (Kind[each["kind"].upper()], each["t_ns"])
        for each in stage.token_records(record["request_seq"])
        if "host_event" in each["flags"] and "removed" not in each["flags"] and each["kind"] != "sentinel"
    ]
    if answer.events:  # those of an attempt that failed are recorded too
        assert recorded[-len(answer.events) :] == [(each.kind, each.t_ns) for each in answer.events], (
            "kinds and times are those recorded"
        )
    said = dict(zip(STAMPS, answer.done["stamps"], strict=True))
    for name in set(STAMPS) - SENT_LATER:
        assert said[name] == record["stamps"][name], f"stamp {name}"
    happened = [said[name] for name in STAMPS if name not in {"tokN", "out1"} and said[name]]
    assert happened == sorted(happened), f"a stamp runs backwards: {said}"
    assert answer.end is not None
    assert said["done"] == max(said.values()) <= answer.end.came_ns
    assert answer.done["host"] == record["host"]
    assert answer.done["status"] == 200
    return record


# ------------------------------------------------------------------ streams
@pytest.mark.parametrize("name", whole_captures())
def test_a_captured_stream_arrives_event_by_event(stage: Stage, host: ScriptedHost, name: str) -> None:
    captured = capture(name)
    client = stage.zeromq_client()
    for size, usage_asked in CUTS.items():
        host.script(captured.head, *pieces(captured.framed, size), sh.End.CLOSE)
        before_ns = monotonic_ns()
        answer = client.chat(f"cut {size}", stream_options={"include_usage": usage_asked}, n=2 if "n2" in name else 1)
        client.finish(answer)
        expected = expected_events(captured.body, usage_asked=usage_asked)
        assert len(expected) >= 3
        assert [each.data for each in answer.events] == expected, "each event is the host's, byte for byte"
        assert before_ns < answer.events[0].t_ns
        check_record(stage, answer)
        asked = json.loads(host.exchanges[-1].body)
        assert asked["stream"] is True, "streaming is the default"


KINDS: dict[str, tuple[list[bytes], list[int]]] = {
    "text": ([*PLAIN_EVENTS, sh.DONE], [HEAD, TEXT, TEXT, TEXT, FINISH]),
    "reasoning": (
        [sh.choice_event({"reasoning_content": "hm"}), sh.choice_event({"reasoning": "so"}), sh.token("a"), sh.FINISH],
        [REASONING, REASONING, TEXT, FINISH],
    ),
    "tool calls": (
        [sh.choice_event({"tool_calls": [{"index": 0, "function": {"name": "f"}}]}), sh.FINISH, sh.DONE],
        [TOOL_CALL, FINISH],
    ),
    "log probabilities": (
        [
            event({"choices": [{"index": 0, "delta": {"content": t}, "logprobs": {"content": [{"logprob": -i}]}}]})
            for i, t in enumerate("abc")
        ]
        + [sh.FINISH, sh.DONE],
        [TEXT, TEXT, TEXT, FINISH],
    ),
    "usage in the middle": (
        [sh.token("a"), sh.choice_event({}, usage=sh.USAGE_NUMBERS), sh.FINISH],
        [TEXT, HEAD, FINISH],
    ),
    "comments": (
        [b": a\n\n", sh.ROLE, b": b\n\n", sh.token("a"), b": c\n\n", sh.FINISH],
        [9, HEAD, 9, TEXT, 9, FINISH],
    ),
    "CRLF": (
        [each.replace(b"\n", b"\r\n") for each in [*PLAIN_EVENTS, sh.DONE]],
        [HEAD, TEXT, TEXT, TEXT, FINISH],
    ),
    "fields before": ([b"event: message\nid: 1\n" + each for each in PLAIN_EVENTS], [HEAD, TEXT, TEXT, TEXT, FINISH]),
    "something unknown": (
        [sh.token("a"), event(b"hello", field=b"event: note\ndata: "), sh.FINISH],
        [TEXT, HEAD, FINISH],
    ),
    "text with the finish reason": ([sh.choice_event({"content": "all"}, "length")], [TEXT]),
    "no content": ([sh.ROLE, sh.FINISH, sh.DONE], [HEAD, FINISH]),
    "two choices": (
        [event({"choices": [{"index": i, "delta": {"content": "c"}, "finish_reason": None}]}) for i in (0, 1, 0)]
        + [event({"choices": [{"index": i, "delta": {}, "finish_reason": "stop"}]}) for i in (1, 0)],
        [TEXT, TEXT, TEXT, FINISH, FINISH],
    ),
    "letters of all lengths": ([sh.token("é🙂\u2028"), sh.token('"\\}'), sh.FINISH], [TEXT, TEXT, FINISH]),
}


@pytest.mark.parametrize(("events", "kinds"), KINDS.values(), ids=KINDS.keys())
def test_events_of_every_kind(stage: Stage, host: ScriptedHost, events: list[bytes], kinds: list[int]) -> None:
    script = sh.chunked(events)
    in_one_read = b"".join(each for each in script if isinstance(each, bytes))
    client = stage.zeromq_client()
    for number, steps in enumerate((script, [in_one_read])):
        host.script(*steps)
        answer = client.chat(f"{number}", n=2 if any(b'"index": 1' in each for each in events) else 1)
        client.finish(answer)
        assert [each.data for each in answer.events] == [each for each in events if DONE not in each]
        assert answer.kinds == kinds
        check_record(stage, answer)
    assert answer.message_sizes == [len(kinds)], "events of one read are one message"


def test_done_has_the_usage_that_was_not_asked_for(stage: Stage, host: ScriptedHost) -> None:
    client = stage.zeromq_client()
    answer = client.finish(client.chat("unasked"))
    assert [each.data for each in answer.events] == PLAIN_EVENTS
    assert answer.done["usage"] == sh.USAGE_NUMBERS
    asked = client.finish(client.chat("asked", stream_options={"include_usage": True}))
    assert asked.kinds[-1] == USAGE
    assert asked.done["usage"] == sh.USAGE_NUMBERS
    host.script(*sh.chunked([*PLAIN_EVENTS, sh.DONE]))
    assert client.finish(client.chat("none")).done["usage"] is None
    stage.finished(3)


HUGE = "123456789012345678901234567890"


@pytest.mark.parametrize("stream", [True, False])
def test_usage_that_messagepack_cannot_say_is_left_out(stage: Stage, host: ScriptedHost, stream: bool) -> None:
    """JSON's integers have no bound, MessagePack's have 64 bits."""
    usage = b'{"prompt_tokens":1,"completion_tokens":%b}' % HUGE.encode()
    event = b'data: {"choices":[],"usage":%b}\n\n' % usage
    host.script(*sh.chunked([*PLAIN_EVENTS, event, sh.DONE]))
    client = stage.zeromq_client()
    answer = client.finish(client.chat("1", stream=stream))
    assert answer.done["usage"] is None
    if not stream:
        assert answer.end is not None
        assert answer.end.body is not None
        assert HUGE.encode() in answer.end.body
    assert client.finish(client.chat("2")).done["usage"] == sh.USAGE_NUMBERS
    stage.finished(2)


@pytest.mark.parametrize(("said", "told"), [("9" * 30, 86_400), ("9" * 5000, 86_400), ("soon", 0), ("-1", 0)])
def test_a_hosts_retry_after_is_bounded(stage: Stage, host: ScriptedHost, said: str, told: int) -> None:
    host.script(sh.json_answer(429, {"error": {"message": "slow down"}}, more=f"retry-after: {said}"))
    client = stage.zeromq_client()
    answer = client.finish(client.chat("1"))
    assert answer.end is not None
    assert answer.end.facts == {"status": 429, "retry_after_s": told, "events": 0}
    stage.finished(1)


def test_each_token_is_sent_as_it_comes(stage: Stage, host: ScriptedHost) -> None:
    gates = [stage.gate() for _ in range(4)]
    tokens = [sh.token(f"t{i}") for i in range(4)]
    steps = [step for gate, each in zip(gates, tokens, strict=True) for step in (gate, chunk(each))]
    host.script(sh.stream_head(), *steps, chunk(sh.FINISH), sh.LAST_CHUNK)
    client = stage.zeromq_client()
    answer = client.chat()
    for index, gate in enumerate(gates):
        opened_ns = monotonic_ns()
        gate.open()
        client.wait_events(answer, index + 1)
        assert answer.events[index].data == tokens[index]
        assert opened_ns < answer.events[index].t_ns, "the time is when the router had it"
    client.finish(answer)
    check_record(stage, answer)


def test_accepted_says_where_the_request_is_recorded(stage: Stage) -> None:
    client = stage.zeromq_client()
    pong = client.ping()
    for request_id in ("a", "~" * 64):
        answer = client.finish(client.chat(request_id))
        assert answer.generation == pong.facts["generation"]
        assert check_record(stage, answer)["request_id"] == request_id


def test_many_streams_of_one_client_do_not_mix(stage: Stage, host: ScriptedHost) -> None:
    client = stage.zeromq_client()
    for index in range(4):
        host.script(*sh.chunked([*(sh.token(f"{index} {i}") for i in range(50)), sh.FINISH, sh.DONE]))
    answers = [client.chat(f"s{index}") for index in range(4)]
    client.finish()
    texts = sorted(answer.data for answer in answers)
    assert texts == sorted(b"".join([*(sh.token(f"{index} {i}") for i in range(50)), sh.FINISH]) for index in range(4))
    stage.finished(4)


# ------------------------------------------------------------------ failures
def test_an_error_event_before_any_content_is_an_error(stage: Stage, host: ScriptedHost) -> None:
    host.script(*sh.chunked([sh.ROLE, ERROR_EVENT]))
    client = stage.zeromq_client()
    answer = client.finish(client.chat())
    assert answer.error["code"] == "host_error_event"
    assert answer.end is not None
    assert (answer.end.facts["status"], answer.events) == (502, [])
    assert stage.last_finished()["outcome"] == "host_error"


@pytest.mark.parametrize("error", [HOST_ERROR, "no memory"], ids=["an object", "a text"])
def test_an_error_event_behind_content_ends_the_request_with_an_error(
    stage: Stage, host: ScriptedHost, error: object
) -> None:
    host.script(*sh.chunked([sh.ROLE, sh.token("a"), event({"error": error}), sh.DONE]))
    client = stage.zeromq_client()
    answer = client.finish(client.chat())
    assert answer.kinds == [HEAD, TEXT, ERROR]
    assert answer.end is not None
    assert (answer.end.facts["status"], answer.end.facts["events"]) == (502, 3)
    assert answer.error == HOST_ERROR if error is HOST_ERROR else "no memory" in answer.error["message"]
    assert stage.last_finished()["error"] == "host_error_event"


BROKEN: dict[str, tuple[list[sh.Step], str]] = {
    "closed": ([sh.End.CLOSE], "host_closed"),
    "closed within an event": ([chunk(sh.token("b"))[:30], sh.End.CLOSE], "host_closed"),
    "without a finish reason": ([chunk(sh.DONE), sh.LAST_CHUNK], "no_finish_reason"),
    "garbage": ([b"zz\r\n", sh.End.HANG], "host_protocol"),
}


@pytest.mark.parametrize(("steps", "code"), BROKEN.values(), ids=BROKEN.keys())
def test_an_answer_that_breaks_off_is_an_error_behind_its_events(
    stage: Stage, host: ScriptedHost, steps: list[sh.Step], code: str
) -> None:
    host.script(sh.stream_head(), chunk(sh.ROLE), chunk(sh.token("a")), 0.02, *steps)
    client = stage.zeromq_client()
    answer = client.finish(client.chat())
    assert answer.data == sh.ROLE + sh.token("a")
    assert answer.error["code"] == code
    assert stage.last_finished()["outcome"] == "host_error"


def test_the_hosts_own_error_is_passed_on(stage: Stage, host: ScriptedHost) -> None:
    own = {"error": {"message": "too long", "type": "invalid_request_error", "param": None, "code": 400, "n_ctx": 1}}
    client = stage.zeromq_client()
    for stream in (True, False):
        host.script(sh.json_answer(400, own))
        answer = client.finish(client.chat(f"400 {stream}", stream=stream))
        assert answer.end is not None
        assert answer.end.body == json.dumps(own).encode()
        assert answer.end.facts == {"status": 400, "retry_after_s": 0, "events": 0}
    host.script(sh.json_answer(429, {"error": {"message": "slow down"}}, more="retry-after: 9"))
    answer = client.finish(client.chat("429"))
    assert answer.end is not None
    assert answer.end.facts == {"status": 429, "retry_after_s": 9, "events": 0}
    stage.finished(3)


FAILURES: dict[str, list[sh.Step]] = {
    "closed behind the role": [sh.stream_head(), chunk(sh.ROLE), chunk(b": ping\n\n"), sh.End.CLOSE],
    "an error event": sh.chunked([sh.ROLE, sh.choice_event({"content": ""}), ERROR_EVENT]),
    "no finish reason": sh.chunked([sh.ROLE, sh.DONE]),
    "503": [sh.json_answer(503, {"error": {"message": "busy"}})],
}


@pytest.mark.parametrize("script", FAILURES.values(), ids=FAILURES.keys())
def test_an_attempt_that_failed_leaves_no_trace(
    stage: Stage, host: ScriptedHost, second: ScriptedHost, script: list[sh.Step]
) -> None:
    gate = stage.gate()
    second.script(gate, *sh.chunked(sh.STREAM))
    client = stage.zeromq_client()
    busy = client.chat("busy", "other")
    gate.wait_reached()
    host.script(*script)
    answer = client.finish(client.chat("retried", "both"))
    assert [each.data for each in answer.events] == PLAIN_EVENTS, "nothing of the failed attempt is sent"
    assert answer.done["host"] == "beta"
    assert check_record(stage, answer)["attempt_count"] == 2
    gate.open()
    client.finish(busy)
    stage.finished(2)


def test_silence_is_no_event(stage: Stage, host: ScriptedHost) -> None:
    """Where an HTTP client gets comments a ZeroMQ client gets nothing that could be counted as an event."""
    before = stage.counter("heartbeats")
    first, between = stage.gate(), stage.gate()
    host.script(
        sh.stream_head(), chunk(sh.ROLE), first, chunk(sh.TOKENS[0]), between, *map(chunk, sh.STREAM[2:]), sh.LAST_CHUNK
    )
    client = stage.zeromq_client()
    answer = client.chat("1", "quiet")
    stage.wait_counter("heartbeats", before + 2)
    first.open()
    client.wait_events(answer, 2)
    stage.wait_counter("heartbeats", stage.counter("heartbeats") + 2)
    between.open()
    client.finish(answer)
    assert [each.data for each in answer.events] == PLAIN_EVENTS
    check_record(stage, answer)


def test_an_error_behind_a_silence_is_an_error(stage: Stage, host: ScriptedHost) -> None:
    before = stage.counter("heartbeats")
    gate = stage.gate()
    host.script(sh.stream_head(), chunk(sh.ROLE), gate, sh.End.CLOSE)
    client = stage.zeromq_client()
    answer = client.chat("1", "quiet")
    stage.wait_counter("heartbeats", before + 1)
    host.forget_scripts()
    host.script(sh.json_answer(400, {"error": {"message": "no"}}))
    gate.open()
    client.finish(answer)
    assert answer.end is not None
    assert (answer.end.type, answer.end.facts["status"], answer.events) == ("error", 400, [])
    stage.finished(1)


# ------------------------------------------------------------------ other verbs
@pytest.mark.parametrize("model", ["plain", "folded"])
def test_a_whole_answer_comes_with_done(stage: Stage, host: ScriptedHost, model: str) -> None:
    client = stage.zeromq_client()
    answer = client.finish(client.chat("1", model, stream=False))
    assert answer.end is not None
    assert answer.end.body is not None
    assert answer.events == []
    body = json.loads(answer.end.body)
    assert body["choices"][0]["message"]["content"] == "one two three"
    assert answer.done["usage"] == body["usage"] == sh.USAGE_NUMBERS
    assert host.exchanges[-1].json()["stream"] is (model == "folded")
    check_record(stage, answer)


def test_a_streamed_answer_has_no_body_at_its_end(stage: Stage) -> None:
    client = stage.zeromq_client()
    answer = client.finish(client.chat(stream=True))
    assert answer.end is not None
    assert answer.end.body is None
    stage.finished(1)


def test_completions_are_streamed(stage: Stage, host: ScriptedHost) -> None:
    events = [event({"choices": [{"index": 0, "text": text, "finish_reason": None}]}) for text in ("a", "b")]
    events.append(event({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}))
    host.script(*sh.chunked([*events, sh.DONE]))
    client = stage.zeromq_client()
    answer = client.finish(client.ask("1", {"model": "m", "prompt": "hi"}, "completion"))
    assert host.exchanges[-1].path == "/v1/completions"
    assert [each.data for each in answer.events] == events
    assert answer.kinds == [TEXT, TEXT, FINISH]
    check_record(stage, answer)


def test_embeddings_come_whole(stage: Stage, host: ScriptedHost) -> None:
    body = sh.json_answer(200, {"object": "list", "data": [{"embedding": [0.1, 0.2]}], "usage": {"prompt_tokens": 3}})
    host.script(body)
    client = stage.zeromq_client()
    answer = client.finish(client.ask("1", {"model": "m", "input": "hi"}, "embeddings"))
    assert host.exchanges[-1].path == "/v1/embeddings"
    assert answer.end is not None
    assert answer.end.body == body.partition(b"\r\n\r\n")[2]
    assert answer.done["usage"] == {"prompt_tokens": 3}
    check_record(stage, answer)


def test_models_are_those_of_the_http_api(stage: Stage, host: ScriptedHost, second: ScriptedHost) -> None:
    http = stage.client()
    http.get("/v1/models")
    page = http.answer().body
    client = stage.zeromq_client()
    answer = client.answers["list"] = Answer("list")
    client.say("models", id="list")
    client.finish(answer)
    assert answer.done["status"] == 200
    assert answer.end is not None
    assert answer.end.body == page
    assert {each["id"] for each in json.loads(page)["data"]} == {*host.models, *second.models}


def test_ping(stage: Stage) -> None:
    client = stage.zeromq_client()
    before_ns = monotonic_ns()
    pong = client.ping()
    assert pong.id == "ping"
    assert set(pong.facts) == {"version", "generation", "t_ns"}
    assert before_ns < pong.facts["t_ns"] < pong.came_ns
    assert pong.facts["version"] == router.__version__
    client.say("ping")
    assert client.next_other().id == "", "a ping needs no id"


# ------------------------------------------------------------------ what goes with a request
def test_tags_and_trace_are_recorded_and_passed_on(stage: Stage, host: ScriptedHost) -> None:
    trace = f"00-{'ab' * 16}-{'cd' * 8}-01"
    client = stage.zeromq_client()
    keys = {
        "tags": {"feature_name": "search", "prompt_version": "7", "session_id": "s 1"},
        "traceparent": trace,
        "tracestate": "a=b",
        "baggage": "tenant_id=acme,unknown=1",
    }
    client.finish(client.chat("tagged", keys=keys))
    record = stage.last_finished()
    assert record["tags"]["feature_name"] == "search"
    assert record["tags"]["prompt_version"] == "7"
    assert record["session_id"] == "s 1"
    assert record["trace_id"] == "ab" * 16
    headers = host.exchanges[-1].headers
    assert (headers["traceparent"], headers["tracestate"]) == (trace, "a=b")
    assert headers["x-request-id"] == "tagged"


def test_two_ways_in_one_router(stage: Stage) -> None:
    """A request over HTTP and one over ZeroMQ get the same events."""
    http = stage.client()
    http.chat()
    with_http = [each for each in http.answer().events if DONE not in each]
    client: ZeromqClient = stage.zeromq_client()
    assert [each.data for each in client.finish(client.chat()).events] == with_http
    stage.finished(2)
