"""What fails before the commit point is tried elsewhere, and the client sees one clean answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.client import Client
from tests.faults.stage import LATE_NS_MAX, MS, QUIET, SHORT_TICK, Stage, host_entry
from tests.support import scripted_host as sh
from tests.support.scripted_host import ScriptedHost, chunk

CONNECT_S = 0.2
ERROR_EVENT = sh.event({"error": {"message": "no memory", "type": "server_error", "code": 500}})
BUSY = sh.json_answer(503, {"error": {"message": "busy", "type": "server_error", "param": None, "code": 503}})


@pytest.fixture(scope="module")
def bad() -> Iterator[ScriptedHost]:
    with ScriptedHost("bad", models=("m", "alone", "folded")) as host:
        yield host


@pytest.fixture(scope="module")
def good() -> Iterator[ScriptedHost]:
    with ScriptedHost("good", models=("m", "other", "folded")) as host:
        yield host


@pytest.fixture(scope="module")
def running_stage(directory: Path, bad: ScriptedHost, good: ScriptedHost) -> Iterator[Stage]:
    toml = (
        f'{QUIET}{SHORT_TICK}[timeouts]\nconnect_s = {CONNECT_S}\n[models.folded]\nfold = "always"\n'
        + host_entry(bad)
        + host_entry(good)
    )
    with Stage(directory, [bad, good], toml) as stage:
        yield stage


@pytest.fixture
def bad_first(stage: Stage, bad: ScriptedHost, good: ScriptedHost) -> Iterator[None]:
    """Routing takes the bad host first, because the good one has something to do."""
    bad.wait(lambda: not bad.running_count, "the bad host is idle")
    gate = stage.gate()
    good.script(gate, *sh.chunked(sh.STREAM))
    client = stage.client()
    client.chat(model="other")
    gate.wait_reached()
    yield
    gate.open()
    assert client.answer().ended


def of_model(records: list[dict[str, Any]], model: str) -> list[dict[str, Any]]:
    return [record for record in records if record["model"] == model]


def check_answered_by_good(stage: Stage, client: Client, error: str) -> None:
    answer = client.answer()
    assert answer.status == 200
    assert answer.ended
    assert answer.headers["x-ringrouter-host"] == "good"
    without_usage = [each for each in sh.STREAM if each is not sh.USAGE]
    assert answer.body == b"".join(without_usage), "one clean answer and nothing of the failed one"
    (record,) = of_model(stage.finished(1), "m")
    assert (record["outcome"], record["error"], record["host"]) == ("ok", "none", "good")
    assert record["attempt_count"] == 2
    (failed,) = record["failed_attempts"]
    assert (failed["host"], failed["error"]) == ("bad", error)
    assert record["stages_ns"]["retry"] > 0
    assert record["stamps"]["routed1"] <= failed["ended"] <= record["stamps"]["routed"]
    assert stage.counter("attempts_failed") > 0
    kinds = [each["kind"] for each in stage.token_records(record["request_seq"])]
    assert kinds.count("attempt_failed") == 1


EARLY_FAILURES: dict[str, tuple[str, list[sh.Step]]] = {
    "EOF before any byte": ("host_closed", [sh.End.CLOSE]),
    "RST before any byte": ("host_closed", [sh.End.RESET]),
    "EOF within the head": ("host_closed", [sh.stream_head()[:40], sh.End.CLOSE]),
    "EOF after the head": ("host_closed", [sh.stream_head(), sh.End.CLOSE]),
    "EOF after the role": ("host_closed", [sh.stream_head(), chunk(sh.ROLE), sh.End.CLOSE]),
    "RST after the role": ("host_closed", [sh.stream_head(), chunk(sh.ROLE), 0.01, sh.End.RESET]),
    "a proper end after the role": ("no_finish", sh.chunked([sh.ROLE])),
    "[DONE] after the role": ("no_finish", sh.chunked([sh.ROLE, sh.DONE])),
    "an error event first": ("host_error_event", sh.chunked([ERROR_EVENT, sh.DONE])),
    "an error event after the role": ("host_error_event", sh.chunked([sh.ROLE, ERROR_EVENT])),
    "an error event by its name": ("host_error_event", sh.chunked([b'event: error\ndata: "no"\n\n'])),
    "503": ("host_status", [BUSY]),
    "500 to the end of the connection": ("host_status", [b"HTTP/1.1 500 x\r\n\r\nno", sh.End.CLOSE]),
    "429": ("host_status", [sh.json_answer(429, {"error": {"message": "slow down"}}, more="retry-after: 9")]),
    "not HTTP": ("host_protocol", [b"hello\r\n\r\n", sh.End.CLOSE]),
}


@pytest.mark.usefixtures("bad_first")
@pytest.mark.parametrize(("error", "script"), EARLY_FAILURES.values(), ids=EARLY_FAILURES.keys())
def test_a_failure_before_the_first_content_is_tried_elsewhere(
    stage: Stage, bad: ScriptedHost, error: str, script: list[sh.Step]
) -> None:
    kept = bad.open_count
    bad.script(*script)
    if kept and script[0] in {sh.End.CLOSE, sh.End.RESET}:
        bad.script(*script)  # on a kept connection the first time does not count
    client = stage.client()
    client.chat()
    check_answered_by_good(stage, client, error)


@pytest.mark.usefixtures("bad_first")
def test_a_host_that_refuses_is_passed_over(stage: Stage, bad: ScriptedHost) -> None:
    bad.refuse()
    bad.close_idle()
    client = stage.client()
    client.chat()
    check_answered_by_good(stage, client, "connect_failed")
    bad.accept()


@pytest.mark.usefixtures("bad_first")
def test_a_host_that_does_not_accept_is_passed_over(stage: Stage, bad: ScriptedHost) -> None:
    bad.stick()
    bad.close_idle()
    client = stage.client()
    client.chat()
    check_answered_by_good(stage, client, "connect_timeout")
    bad.unstick()


def test_a_connect_that_began_for_another_request_ends_none_early(stage: Stage, bad: ScriptedHost) -> None:
    """Connections are for whoever waits first, but each request has the whole of its own time."""
    bad.stick()
    bad.close_idle()
    first, second = stage.client(), stage.client()
    first.chat(model="alone")
    stage.wait_phase("connecting")
    first.close()
    assert not second.socket.settimeout(CONNECT_S / 2)
    with pytest.raises(TimeoutError):  # by now half the time of the first one's connection is over
        second.begin()
    second.socket.settimeout(sh.WAIT_S)
    second.chat(model="alone")
    assert second.answer().error["code"] == "connect_timeout"
    bad.unstick()
    record = stage.finished(2)[1]
    limit_ns = round(CONNECT_S * 1000) * MS
    assert len(record["failed_attempts"]) == 3, "there is no other host: the same one is tried again"
    for attempt in record["failed_attempts"]:
        assert limit_ns <= attempt["ended"] - attempt["routed"] <= stage.allowed_ns(limit_ns + 2 * LATE_NS_MAX)


@pytest.mark.parametrize("end", [sh.End.CLOSE, sh.End.RESET])
def test_a_kept_connection_that_closes_just_now_is_replaced_unseen(
    stage: Stage, bad: ScriptedHost, end: sh.End
) -> None:
    client = stage.client()
    client.chat(model="alone")
    assert client.answer().ended
    before = stage.counter("retries_stale")
    count = len(bad.exchanges)
    bad.script(end)
    client.chat(model="alone")
    answer = client.answer()
    assert answer.text == "one two three"
    first, second = bad.exchanges[count:]
    assert first.body == second.body
    assert second.connection != first.connection
    record = stage.finished(2)[1]
    assert (record["outcome"], record["attempt_count"], record["failed_attempts"]) == ("ok", 1, [])
    assert stage.counter("retries_stale") == before + 1


def test_a_request_is_not_sent_on_one_stale_connection_after_another(stage: Stage, bad: ScriptedHost) -> None:
    gates = [stage.gate() for _ in range(4)]
    clients = [stage.client() for _ in gates]
    for client, gate in zip(clients, gates, strict=True):
        bad.script(gate, *sh.chunked(sh.STREAM))
        client.chat(model="alone")
        gate.wait_reached()
    for client, gate in zip(clients, gates, strict=True):
        gate.open()
        assert client.answer().ended
    bad.wait(lambda: bad.open_count >= len(gates), "several connections are kept")
    bad.script(sh.End.CLOSE)
    clients[0].chat(model="alone")
    assert clients[0].answer().ended
    first, second = bad.exchanges[-2:]
    assert second.connection > first.connection, "the second time on a new connection"
    stage.finished(len(gates) + 1)


def test_a_host_that_closes_idle_connections_is_no_failure(stage: Stage, bad: ScriptedHost) -> None:
    client = stage.client()
    for _ in range(5):
        client.chat(model="alone", stream=False)
        assert client.answer().status == 200
        bad.close_idle()
    for record in stage.finished(5):
        assert record["failed_attempts"] == []


@pytest.mark.parametrize("more", ["connection: close", ""])
def test_a_host_that_closes_after_each_answer_is_no_failure(stage: Stage, bad: ScriptedHost, more: str) -> None:
    client = stage.client()
    for _ in range(5):
        bad.script(sh.json_answer(200, sh.PLAIN, more=more), sh.End.CLOSE)
        client.chat(model="alone", stream=False)
        assert client.answer().status == 200
    for record in stage.finished(5):
        assert record["failed_attempts"] == []


def test_when_every_attempt_fails_the_last_error_is_the_answer(stage: Stage, bad: ScriptedHost) -> None:
    for _ in range(3):
        bad.script(sh.stream_head(), sh.End.CLOSE)
    client = stage.client()
    client.chat(model="alone")
    answer = client.answer()
    assert (answer.status, answer.error["code"], answer.error["type"]) == (502, "host_closed", "host_error")
    (record,) = stage.finished(1)
    assert (record["outcome"], record["error"], record["attempt_count"]) == ("host_error", "host_closed", 3)
    assert [attempt["host"] for attempt in record["failed_attempts"]] == ["bad"] * 3
    client.chat(model="alone")
    assert client.answer().ended, "the client's connection goes on"
    stage.finished(2)


@pytest.mark.usefixtures("bad_first")
def test_an_error_of_all_hosts_is_passed_on_as_it_is(stage: Stage, bad: ScriptedHost, good: ScriptedHost) -> None:
    bad.script(BUSY)
    good.script(sh.json_answer(500, {"error": {"message": "broken", "type": "t", "param": None, "code": "c"}}))
    client = stage.client()
    client.chat()
    answer = client.answer()
    assert (answer.status, answer.error["message"]) == (500, "broken")
    (record,) = of_model(stage.finished(1), "m")
    assert [attempt["status"] for attempt in record["failed_attempts"]] == [503, 500]


@pytest.mark.usefixtures("bad_first")
@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
def test_a_client_error_is_not_tried_elsewhere(stage: Stage, bad: ScriptedHost, status: int) -> None:
    bad.script(sh.json_answer(status, {"error": {"message": "no", "type": "t", "param": None, "code": "c"}}))
    client = stage.client()
    client.chat()
    assert client.answer().status == status
    (record,) = of_model(stage.finished(1), "m")
    assert (record["attempt_count"], record["host"], record["outcome"]) == (1, "bad", "bad_request")


@pytest.mark.usefixtures("bad_first")
@pytest.mark.parametrize(
    "script",
    [
        [sh.End.CLOSE],
        [sh.json_answer(200, sh.PLAIN)[:90], sh.End.CLOSE],
        [sh.json_answer(200, sh.PLAIN)[:-1], sh.End.RESET],
        [BUSY],
    ],
)
def test_a_plain_answer_is_tried_elsewhere_as_long_as_it_is_not_whole(
    stage: Stage, bad: ScriptedHost, script: list[sh.Step]
) -> None:
    if bad.open_count and script[0] is sh.End.CLOSE:
        bad.script(*script)
    bad.script(*script)
    client = stage.client()
    client.chat(stream=False)
    answer = client.answer()
    assert (answer.status, answer.json()) == (200, sh.PLAIN)
    assert answer.headers["x-ringrouter-host"] == "good"
    (record,) = of_model(stage.finished(1), "m")
    assert [attempt["host"] for attempt in record["failed_attempts"]] == ["bad"]


FOLD_FAILURES: dict[str, tuple[str, list[sh.Step]]] = {
    "EOF after content": ("host_closed", [sh.stream_head(), chunk(sh.ROLE), chunk(sh.token("a")), 0.02, sh.End.CLOSE]),
    "no finish_reason": ("no_finish", sh.chunked([sh.ROLE, sh.token("a"), sh.DONE])),
    "an error event after content": ("host_error_event", sh.chunked([sh.token("a"), ERROR_EVENT, sh.DONE])),
    "tool calls that are none": ("host_protocol", sh.chunked([sh.choice_event({"tool_calls": 5}), sh.DONE])),
}


@pytest.mark.usefixtures("bad_first")
@pytest.mark.parametrize(("error", "script"), FOLD_FAILURES.values(), ids=FOLD_FAILURES.keys())
def test_a_folded_answer_is_tried_elsewhere_even_after_content(
    stage: Stage, bad: ScriptedHost, error: str, script: list[sh.Step]
) -> None:
    bad.script(*script)
    client = stage.client()
    client.chat(model="folded", stream=False)
    answer = client.answer()
    assert answer.status == 200
    assert answer.json()["choices"][0]["message"]["content"] == "one two three", "nothing of the failed attempt"
    assert answer.json()["usage"] == sh.USAGE_NUMBERS
    (record,) = of_model(stage.finished(1), "folded")
    assert (record["outcome"], record["host"], record["n_out"]) == ("ok", "good", 3)
    assert [attempt["error"] for attempt in record["failed_attempts"]] == [error]
    assert record["stamps"]["out1"] == record["stamps"]["outN"], "a folded answer goes out at once"


def test_what_comes_before_the_failure_is_recorded_with_its_host(stage: Stage, bad: ScriptedHost) -> None:
    for _ in range(2):
        bad.script(sh.stream_head(), chunk(sh.ROLE), sh.End.CLOSE)
    client = stage.client()
    client.chat(model="alone")
    assert client.answer().ended
    (record,) = stage.finished(1)
    assert stage.host_events(record) == ["head", "head", "head", "text", "text", "text", "finish", "usage", "sentinel"]
    assert record["n_content"] == 3
