"""Answers given again without a host: for who asks for it, at temperature 0, and never one that was not complete."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.client import Answer
from tests.faults.stage import QUIET, SHORT_TICK, Stage, host_entry
from tests.support import scripted_host as sh
from tests.support.scripted_host import End, ScriptedHost
from tests.support.waiting import wait_until

CACHE = '[cache.responses]\nenabled = true\nfeatures = ["search"]\nanswer_bytes = 4096\nbody_bytes = 8192\n'
ON = "x-ringrouter-cache: on"


@pytest.fixture(scope="module")
def running_stage(directory: Path, host: ScriptedHost) -> Iterator[Stage]:
    with Stage(directory, [host], QUIET + SHORT_TICK + CACHE + host_entry(host)) as stage:
        yield stage


def ask(stage: Stage, *, more: str = ON, **fields: Any) -> Answer:
    client = stage.client()
    client.chat(more=more, **{"temperature": 0, **fields})
    answer = client.answer()
    client.close()
    return answer


def used(answer: Answer) -> str:
    return answer.headers.get("x-ringrouter-cache", "")


@pytest.mark.parametrize("stream", [True, False])
def test_the_second_time_the_same_answer_comes_without_a_host(stage: Stage, host: ScriptedHost, stream: bool) -> None:
    count = len(host.exchanges)
    begin_ns = time.monotonic_ns()
    first = ask(stage, stream=stream, seed=1)
    second = ask(stage, stream=stream, seed=1, user="ann", more=f"{ON}\nx-request-id: again")
    both_us = (time.monotonic_ns() - begin_ns) // 1000
    assert (used(first), used(second)) == ("miss", "hit")
    assert second.body == first.body
    assert second.ended
    assert second.headers["content-type"] == first.headers["content-type"]
    assert int(second.headers["age"]) <= both_us // 1_000_000
    assert second.headers["x-request-id"] == "again"
    assert "x-ringrouter-host" not in second.headers
    assert len(host.exchanges) == count + 1
    miss, hit = stage.finished(2)
    assert (miss["cache"], miss["cache_misses"], miss["cache_hits"]) == ("miss", 1, 0)
    assert (hit["cache"], hit["cache_misses"], hit["cache_hits"]) == ("hit", 0, 1)
    assert (hit["outcome"], hit["status"], hit["host"], hit["attempt_count"]) == ("ok", 200, "", 0)
    assert hit["ttft_ns"] > 0
    assert (hit["n_in"], hit["n_out"]) == (miss["n_in"], miss["n_out"])
    assert ("stream" in hit["flags"]) == stream
    assert 0 < hit["saved_us"] < both_us


@pytest.mark.parametrize(
    "changed",
    [
        {"more": ""},
        {"more": "x-ringrouter-cache: off\nx-ringrouter-tag-feature-name: search"},
        {"temperature": 0.1},
        {"temperature": None},
        {"messages": [{"role": "user", "content": "x" * 9000}]},
    ],
)
def test_who_does_not_ask_or_asks_for_chance_goes_to_the_host(
    stage: Stage, host: ScriptedHost, changed: dict[str, Any]
) -> None:
    count = len(host.exchanges)
    for _ in range(2):
        answer = ask(stage, **changed)
        assert answer.status == 200
        assert used(answer) == ""
    assert len(host.exchanges) == count + 2


@pytest.mark.parametrize("how", ["header", "metadata"])
def test_a_feature_asks_for_all_of_its_requests(stage: Stage, host: ScriptedHost, how: str) -> None:
    fields: dict[str, Any] = {"more": "x-ringrouter-tag-feature-name: search"}
    if how == "metadata":
        fields = {"more": "", "metadata": {"feature_name": "search"}}
    assert used(ask(stage, seed=how == "header", **fields)) == "miss"
    assert used(ask(stage, seed=how == "header", **fields)) == "hit"
    assert used(ask(stage, seed=how == "header", more="x-ringrouter-tag-feature-name: other")) == ""


@pytest.mark.parametrize("stream", [True, False])
def test_a_zeromq_client_gets_it_in_its_own_form(stage: Stage, host: ScriptedHost, stream: bool) -> None:
    """What an HTTP client was answered, event for event, and the other way round."""
    over_http = ask(stage, stream=stream, seed=77 + stream)
    client = stage.zeromq_client()
    answer = client.finish(client.chat("1", keys={"cache": "on"}, temperature=0, seed=77 + stream, stream=stream))
    assert answer.end is not None
    headers = dict(answer.end.facts["headers"])
    assert int(headers.pop("age")) <= sh.WAIT_S, "in seconds"
    assert headers == {"x-ringrouter-cache": "hit"}
    if stream:
        events = [event for event in over_http.events if event != sh.DONE]
        assert [event.data for event in answer.events] == events
        assert answer.kinds == [3, 4, 4, 4, 7]
    else:
        assert answer.end.body == over_http.body
    answer = client.finish(client.chat("2", keys={"cache": "on"}, temperature=0, seed=99 + stream, stream=stream))
    assert answer.end is not None
    assert answer.end.facts["headers"] == {"x-ringrouter-cache": "miss"}
    again = ask(stage, stream=stream, seed=99 + stream)
    assert used(again) == "hit"
    if stream:
        assert again.data[-1] == "[DONE]"
        assert again.text == "one two three"


INCOMPLETE: dict[str, list[sh.Step]] = {
    "cut": [sh.stream_head(), sh.chunk(sh.ROLE), sh.chunk(sh.TOKENS[0]), End.CLOSE],
    "no finish": sh.chunked((sh.ROLE, *sh.TOKENS, sh.DONE)),
    "error event": sh.chunked((sh.ROLE, sh.TOKENS[0], sh.event({"error": {"message": "no"}}), sh.DONE)),
    "too large": sh.chunked((sh.ROLE, sh.token("x" * 5000), sh.FINISH, sh.DONE)),
    "status": [sh.json_answer(400, {"error": {"message": "no"}})],
}


@pytest.mark.parametrize("what", INCOMPLETE)
def test_what_was_not_complete_is_not_given_again(stage: Stage, host: ScriptedHost, what: str) -> None:
    seed = 1000 + list(INCOMPLETE).index(what)
    host.script(*INCOMPLETE[what])
    ask(stage, seed=seed)
    again = ask(stage, seed=seed)
    assert used(again) == "miss"
    assert again.text == "one two three"
    assert used(ask(stage, seed=seed)) == "hit"


def test_a_whole_answer_without_a_finish_reason_is_not_given_again(stage: Stage, host: ScriptedHost) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "one"}, "finish_reason": None}
    host.script(sh.json_answer(200, {**sh.PLAIN, "choices": [choice]}))
    assert used(ask(stage, stream=False, seed=501)) == "miss"
    assert used(ask(stage, stream=False, seed=501)) == "miss"


def test_of_another_key_nothing_is_seen(stage: Stage, host: ScriptedHost) -> None:
    assert used(ask(stage, seed=601, more=f"{ON}\nauthorization: Bearer a")) == "miss"
    assert used(ask(stage, seed=601, more=f"{ON}\nauthorization: Bearer b")) == "miss"
    assert used(ask(stage, seed=601, more=f"{ON}\nauthorization: Bearer a")) == "hit"


def test_a_client_of_http_1_0_gets_it_without_chunks(stage: Stage, host: ScriptedHost) -> None:
    first = ask(stage, seed=701)
    client = stage.client()
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "temperature": 0,
        "seed": 701,
    }
    client.post(body, more=ON, version="1.0")
    answer = client.answer()
    assert used(answer) == "hit"
    assert answer.body == first.body


def test_it_is_counted(stage: Stage, host: ScriptedHost) -> None:
    names = ("responses_hits", "responses_misses")
    before = [stage.counter(name) for name in names]
    ask(stage, seed=801)
    ask(stage, seed=801)
    assert [stage.counter(name) for name in names] == [before[0] + 1, before[1] + 1]
    wait_until(lambda: stage.counter("responses") > 0 and stage.counter("responses_bytes") > 0, "shown each second")
