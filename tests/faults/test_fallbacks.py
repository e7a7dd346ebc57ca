"""Names and chains of models: an alias is the model; a model that cannot answer has others answer in its place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.stage import QUIET, SHORT_TICK, Stage, host_entry
from tests.support import scripted_host as sh
from tests.support.processes import get
from tests.support.scripted_host import ScriptedHost, chunk
from tests.support.waiting import wait_until

CONFIG = """
[models.large]
aliases = ["gpt-4o", "default"]
fallback = ["middle", "little"]
[models.folded]
fold = "always"
fallback = ["little"]
[models.last]
timeouts = { first_token_s = 20 }
[limits]
attempts = 2
waiting = 4
"""
ERROR = sh.json_answer(503, {"error": {"message": "busy", "type": "t", "param": None, "code": "c"}})


@pytest.fixture(scope="module")
def big() -> Iterator[ScriptedHost]:
    with ScriptedHost("big", models=("large", "folded", "last")) as host:
        yield host


@pytest.fixture(scope="module")
def small() -> Iterator[ScriptedHost]:
    with ScriptedHost("small", models=("little",)) as host:
        yield host


@pytest.fixture(scope="module")
def running_stage(directory: Path, big: ScriptedHost, small: ScriptedHost) -> Iterator[Stage]:
    entries = host_entry(big, slots=1) + host_entry(small, slots=1)
    none = '[[hosts]]\nname = "none"\nurl = "http://127.0.0.1:1"\nkind = "openai"\nmodels = ["middle"]\n'
    directory = directory / "own"
    directory.mkdir()
    stage = Stage(directory, [big, small], QUIET + SHORT_TICK + CONFIG + entries + none)
    stage.router._wait = False  # one model has no host that can serve
    with stage:
        wait_until(lambda: stage.counter("hosts_healthy") == 2, "two of three hosts are there")
        yield stage


def test_an_alias_is_the_model_under_another_name(stage: Stage, big: ScriptedHost) -> None:
    client = stage.client()
    client.chat(model="gpt-4o")
    answer = client.answer()
    assert answer.text == "one two three"
    assert "x-ringrouter-model" not in answer.headers
    assert big.exchanges[-1].json()["model"] == "large"
    (record,) = stage.finished(1)
    assert (record["model"], record["asked_model"]) == ("large", "")


def test_aliases_are_listed_with_what_they_stand_for(stage: Stage) -> None:
    client = stage.client()
    client.get("/v1/models")
    listed = {each["id"]: each.get("root") for each in client.answer().json()["data"]}
    names = ("folded", "last", "large", "little", "middle", "of-no-host")
    assert listed == {"default": "large", "gpt-4o": "large"} | {n: None for n in names if n in listed}
    client.get("/v1/models/gpt-4o")
    assert client.answer().json()["root"] == "large"


@pytest.mark.parametrize("stream", [True, False])
def test_when_every_attempt_has_failed_the_next_model_answers(
    stage: Stage, big: ScriptedHost, small: ScriptedHost, stream: bool
) -> None:
    fallbacks = stage.counter("fallbacks")
    big.script(ERROR)
    client = stage.client()
    client.chat(model="large", stream=stream)
    answer = client.answer()
    assert answer.status == 200
    assert (answer.headers["x-ringrouter-model"], answer.headers["x-ringrouter-host"]) == ("little", "small")
    assert small.exchanges[-1].json()["model"] == "little", "the host gets its own name for the model"
    (record,) = stage.finished(1)
    assert (record["model"], record["asked_model"], record["outcome"]) == ("little", "large", "ok")
    assert [(each["host"], each["status"]) for each in record["failed_attempts"]] == [("big", 503)]
    assert stage.counter("fallbacks") == fallbacks + 1, "the model without a host was passed over"


def test_a_model_that_folds_goes_on_with_one_that_does_not(
    stage: Stage, big: ScriptedHost, small: ScriptedHost
) -> None:
    big.script(sh.stream_head(), chunk(sh.ROLE), chunk(sh.token("half")), sh.End.CLOSE)
    client = stage.client()
    client.chat(model="folded", stream=False)
    answer = client.answer()
    assert answer.json() == sh.PLAIN, "nothing of the failed attempt"
    assert big.exchanges[-1].json()["stream"] is True
    assert not small.exchanges[-1].json().get("stream")
    stage.finished(1)


def test_the_last_error_stands_when_the_chain_is_at_its_end(
    stage: Stage, big: ScriptedHost, small: ScriptedHost
) -> None:
    big.script(ERROR)
    small.script(sh.json_answer(500, {"error": {"message": "broken", "type": "t", "param": None, "code": "c"}}))
    client = stage.client()
    client.chat(model="large")
    answer = client.answer()
    assert (answer.status, answer.error["message"]) == (500, "broken")
    (record,) = stage.finished(1)
    assert [each["host"] for each in record["failed_attempts"]] == ["big", "small"]
    assert record["asked_model"] == "large"


def test_each_model_of_the_chain_has_attempts_of_its_own(stage: Stage, big: ScriptedHost, small: ScriptedHost) -> None:
    for host, count in ((big, 2), (small, 1)):
        for _ in range(count):
            host.script(sh.stream_head(), sh.End.CLOSE)
    client = stage.client()
    client.chat(model="large")
    assert client.answer().text == "one two three"
    (record,) = stage.finished(1)
    assert [each["host"] for each in record["failed_attempts"]] == ["big", "big", "small"]
    assert record["attempt_count"] == 4


def test_a_broken_stream_is_not_answered_again_by_another_model(stage: Stage, big: ScriptedHost) -> None:
    big.script(sh.stream_head(), chunk(sh.ROLE), chunk(sh.token("half")), 0.02, sh.End.CLOSE)
    client = stage.client()
    client.chat(model="large")
    error = client.answer().stream_error
    assert (error["code"], error["delivered_events"]) == ("host_closed", 1), "what was delivered is said"
    (record,) = stage.finished(1)
    assert (record["model"], record["asked_model"]) == ("large", "")


def test_a_client_that_wants_one_host_gets_no_other(stage: Stage, big: ScriptedHost) -> None:
    big.script(ERROR)
    client = stage.client()
    client.chat(model="large", more="x-ringrouter-host: big\r\n")
    assert client.answer().status == 503
    stage.finished(1)


def test_vectors_of_another_model_are_none(stage: Stage, big: ScriptedHost) -> None:
    big.script(ERROR)
    client = stage.client()
    client.post({"model": "large", "input": "text"}, "/v1/embeddings")
    answer = client.answer()
    assert (answer.status, "x-ringrouter-model" in answer.headers) == (503, False)
    stage.finished(1)


def test_a_model_without_a_chain_fails_as_ever(stage: Stage, big: ScriptedHost) -> None:
    big.script(ERROR)
    client = stage.client()
    client.chat(model="last")
    assert client.answer().status == 503
    client.chat(model="middle")
    answer = client.answer()
    assert (answer.status, answer.error["code"]) == (503, "no_host")
    assert "none: " in answer.error["message"]
    stage.finished(2)


def test_zeromq_clients_are_told_too(stage: Stage, big: ScriptedHost) -> None:
    big.script(ERROR)
    client = stage.zeromq_client()
    answer = client.chat("1", model="large")
    client.finish(answer)
    assert answer.end is not None
    assert answer.end.facts["model"] == "little"
    stage.finished(1)


def test_those_that_wait_go_on_when_their_model_loses_its_last_host(directory: Path) -> None:
    """With routers of their own: the host dies for good."""
    own = directory / "dying"
    own.mkdir()
    with ScriptedHost("dying", models=("large",)) as dying, ScriptedHost("other", models=("little",)) as other:
        health = "[health]\ninterval_s = 0.05\ntimeout_s = 0.2\nfail_after = 2\n"
        chain = '[models.large]\nfallback = ["little"]\n'
        stage = Stage(own, [dying, other], health + SHORT_TICK + chain + host_entry(dying, slots=1) + host_entry(other))
        with stage:
            gate = stage.gate()
            dying.script(sh.stream_head(), chunk(sh.ROLE), chunk(sh.token("a")), gate, *sh.chunked(sh.STREAM)[1:])
            runs, waits = stage.client(), stage.client()
            runs.chat(model="large")
            runs.begin()
            waits.chat(model="large")
            stage.wait_phase("waiting")
            dying.health_status = 500
            answer = waits.answer()
            assert answer.headers["x-ringrouter-model"] == "little"
            assert answer.text == "one two three"
            stage.wait(lambda: stage.counter("hosts_healthy") == 1, "the host is out")
            late = stage.client()
            late.chat(model="large")
            assert late.answer().headers["x-ringrouter-host"] == "other", "new ones go there at once"
            status, body = get("127.0.0.1", stage.router.port, "/ready")
            assert (status, b"unhealthy: GET /health answered 500" in body) == (503, True)
            gate.open()
            stage.finished(3)
