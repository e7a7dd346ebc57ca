"""A silent stream is kept alive by the router's own head and comments; until content comes nothing is decided."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.client import Client
from tests.faults.stage import LATE_NS_MAX, MS, QUIET, SHORT_TICK, Stage, host_entry
from tests.support import scripted_host as sh
from tests.support.scripted_host import Gate, ScriptedHost, chunk

AFTER_S = 0.1
AFTER_NS = round(AFTER_S * 1000) * MS
COMMENT = b": waiting for the model\n\n"


@pytest.fixture(scope="module")
def running_stage(directory: Path, host: ScriptedHost) -> Iterator[Stage]:
    toml = f"{QUIET}{SHORT_TICK}[timeouts]\nheartbeat_after_s = {AFTER_S}\nqueue_s = 0.5\n" + host_entry(host, slots=1)
    with Stage(directory, [host], toml) as stage:
        yield stage


def begin_silently(stage: Stage, host: ScriptedHost, *script: sh.Step) -> tuple[Client, Gate, int]:
    """Ask for a stream of which ``script`` comes behind a gate; return when the first comment is there, and when."""
    gate = stage.gate()
    host.script(gate, *script)
    client = stage.client()
    client.chat()
    return client, gate, client.wait_for(COMMENT)


def test_head_and_comment_come_in_time_and_the_answer_behind_them(stage: Stage, host: ScriptedHost) -> None:
    for attempt in range(3):
        client, gate, seen_ns = begin_silently(stage, host, *sh.chunked(sh.STREAM))
        gate.open()
        answer = client.answer()
        record = stage.last_finished()
        late_ns = seen_ns - record["stamps"]["body"] - AFTER_NS
        assert late_ns >= 0, "never early"
        if late_ns <= stage.allowed_ns(LATE_NS_MAX):
            break
        assert attempt < 2, f"{late_ns / MS} ms late"
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.ended
    events = [each for each in answer.events if each != COMMENT]
    assert events == [each for each in sh.STREAM if each is not sh.USAGE]
    assert answer.events[0] == COMMENT
    assert (record["outcome"], record["error"]) == ("ok", "none")
    assert "heartbeat" in record["flags"]
    assert record["stamps"]["out1"] >= record["stamps"]["tok1"] > record["stamps"]["recv"] + AFTER_NS


def test_comments_go_on_while_the_host_is_silent(stage: Stage, host: ScriptedHost) -> None:
    before = stage.counter("heartbeats")
    client, gate, _ = begin_silently(stage, host, *sh.chunked(sh.STREAM))
    client.wait_for(chunk(COMMENT) * 3)
    gate.open()
    answer = client.answer()
    assert answer.text == "one two three"
    assert stage.counter("heartbeats") - before == answer.body.count(COMMENT) >= 3
    stage.finished(1)


def test_comments_stand_between_tokens_too(stage: Stage, host: ScriptedHost) -> None:
    gate = stage.gate()
    half = chunk(sh.token("b"))
    script = [sh.stream_head(), chunk(sh.token("a")) + half[:40], gate, half[40:], chunk(sh.FINISH), sh.LAST_CHUNK]
    host.script(*script)
    client = stage.client()
    client.chat()
    client.wait_for(COMMENT)
    gate.open()
    answer = client.answer()
    assert answer.events[0] == sh.token("a")
    assert answer.events[1] == COMMENT, "only ever between two events"
    assert answer.text == "ab"
    assert answer.ended
    stage.finished(1)


FAILURES: list[list[sh.Step]] = [
    [sh.End.RESET],
    [sh.stream_head(), chunk(sh.ROLE), sh.End.CLOSE],
]


@pytest.mark.parametrize("failure", FAILURES, ids=["RST", "EOF after the role"])
def test_a_retry_is_still_possible_behind_a_heartbeat(stage: Stage, host: ScriptedHost, failure: list[sh.Step]) -> None:
    if failure == [sh.End.RESET]:
        host.close_idle()
    client, gate, _ = begin_silently(stage, host, *failure)
    gate.open()
    answer = client.answer()
    assert [each for each in answer.events if each != COMMENT] == [e for e in sh.STREAM if e is not sh.USAGE]
    assert answer.ended, "one clean stream"
    (record,) = stage.finished(1)
    assert record["outcome"] == "ok"


@pytest.mark.parametrize("status", [400, 500])
def test_a_hosts_error_behind_a_heartbeat_is_an_event(stage: Stage, host: ScriptedHost, status: int) -> None:
    error = {"error": {"message": "too long", "type": "t", "param": None, "code": "c"}}
    client, gate, _ = begin_silently(stage, host, sh.json_answer(status, error))
    gate.open()
    answer = client.answer()
    assert answer.status == 200
    assert "too long" in answer.stream_error["message"]
    (record,) = stage.finished(1)
    assert (record["error"], record["status"]) == ("host_status", status)


def test_a_time_out_behind_a_heartbeat_is_an_event(stage: Stage, host: ScriptedHost) -> None:
    first, gate, _ = begin_silently(stage, host, *sh.chunked(sh.STREAM))
    waiting = stage.client()
    waiting.chat()
    answer = waiting.answer()
    assert answer.status == 200, "the waiting room is silence too"
    assert answer.events[0] == COMMENT
    assert answer.stream_error["code"] == "queue_timeout"
    gate.open()
    assert first.answer().ended
    stage.finished(2)


def test_a_plain_answer_has_no_heartbeat(stage: Stage, host: ScriptedHost) -> None:
    host.script(AFTER_S * 2, sh.json_answer(200, sh.PLAIN))
    client = stage.client()
    client.chat(stream=False)
    assert client.answer().json() == sh.PLAIN
    (record,) = stage.finished(1)
    assert "heartbeat" not in record["flags"]


def test_a_client_that_leaves_behind_a_heartbeat_ends_the_hosts_work(stage: Stage, host: ScriptedHost) -> None:
    client, _, _ = begin_silently(stage, host)
    closed_ns = client.close()
    assert host.exchanges[-1].wait_gone() - closed_ns < stage.allowed_ns(100 * MS)
    (record,) = stage.finished(1)
    assert record["outcome"] == "client_gone"
