"""Embeddings from the cache: hits without a host, misses together and once, errors kept from nobody and never kept."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.client import Answer, Client
from tests.faults.stage import QUIET, SHORT_TICK, Stage, host_entry
from tests.support.embedding_host import EmbeddingHost, tokens_of, vector_of
from tests.support.scripted_host import json_answer

PATH = "/v1/embeddings"
TOML = "[cache.embeddings]\nenabled = true\nbatch_texts = 16\nwait_ms = 20\n"


@pytest.fixture(scope="module")
def host() -> Iterator[EmbeddingHost]:
    with EmbeddingHost("e1") as host:
        yield host


@pytest.fixture(scope="module")
def running_stage(directory: Path, host: EmbeddingHost) -> Iterator[Stage]:
    toml = f"{QUIET}{SHORT_TICK}{TOML}{host_entry(host, slots=8)}"
    listen = 'zeromq = ["ipc"]'
    stage = Stage(directory, [host], toml)
    stage.router._toml = stage.router._toml.replace("[listen]\n", f"[listen]\n{listen}\n", 1)
    with stage as running:
        yield running


@pytest.fixture(autouse=True)
def as_before(host: EmbeddingHost) -> Iterator[None]:
    host.exchanges.clear()
    yield
    host.gate, host.rounded, host.echo = None, False, ""
    host.poison.clear()


def ask(stage: Stage, texts: Any, **fields: Any) -> Answer:
    client = stage.client()
    client.post({"model": "m", "input": texts, **fields}, PATH)
    return client.answer()


def vectors(answer: Answer) -> list[Any]:
    assert answer.status == 200, answer.body
    body = answer.json()
    assert body["object"] == "list"
    assert [item["index"] for item in body["data"]] == list(range(len(body["data"])))
    assert {item["object"] for item in body["data"]} == {"embedding"}
    return [item["embedding"] for item in body["data"]]


def bits(values: list[float]) -> bytes:
    """The numbers as a client has them: 64 bits each."""
    return struct.pack(f"<{len(values)}d", *values)


def users(stage: Stage, count: int) -> list[dict[str, Any]]:
    """The records of clients' requests; those of the cache's own calls are left out."""
    stage.wait(lambda: len(_of_users(stage)) >= count, f"{count} records of clients")
    found = _of_users(stage)
    assert len(found) == count
    return found


def _of_users(stage: Stage) -> list[dict[str, Any]]:
    stage._done += stage._done_reader.poll()
    return [record for record in stage._done if record["tags"].get("workload_class") != "cache"]


# ---------------------------------------------------------------- hits
def test_what_was_asked_once_is_answered_without_a_host_with_the_same_answer(stage: Stage, host: EmbeddingHost) -> None:
    first = ask(stage, ["hit one", "hit two"])
    assert first.headers["x-ringrouter-cache"] == "miss"
    assert first.headers["x-ringrouter-host"] == "e1"
    second = ask(stage, ["hit one", "hit two"])
    assert second.headers["x-ringrouter-cache"] == "hit"
    assert "x-ringrouter-host" not in second.headers
    assert first.body == second.body
    assert vectors(second) == [vector_of("hit one"), vector_of("hit two")]
    assert second.json()["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
    assert second.json()["model"] == "m"
    assert len(host.calls) == 1
    miss, hit = users(stage, 2)
    assert (miss["cache"], miss["cache_hits"], miss["cache_misses"]) == ("miss", 0, 2)
    assert (hit["cache"], hit["cache_hits"], hit["cache_misses"], hit["attempt_count"]) == ("hit", 2, 0, 0)
    assert hit["saved_us"] > 0
    assert hit["host"] == ""


@pytest.mark.parametrize("rounded", [False, True], ids=["of 32 bits", "of 64 bits"])
def test_numbers_come_back_bit_for_bit(stage: Stage, host: EmbeddingHost, rounded: bool) -> None:
    host.rounded = rounded
    text = f"bit for bit {rounded}"
    wanted = bits(vector_of(text, rounded=rounded))
    assert [bits(v) for v in vectors(ask(stage, text))] == [wanted]
    assert [bits(v) for v in vectors(ask(stage, text))] == [wanted]
    assert len(host.calls) == 1


@pytest.mark.parametrize("first", ["float", "base64"])
def test_one_form_answers_the_other(stage: Stage, host: EmbeddingHost, first: str) -> None:
    text = f"asked as {first} first"
    other = {"float": "base64", "base64": "float"}[first]
    answers = {form: vectors(ask(stage, text, encoding_format=form))[0] for form in (first, other)}
    assert len(host.calls) == 1
    assert bits(answers["float"]) == bits(vector_of(text))
    assert base64.b64decode(answers["base64"]) == struct.pack("<8f", *vector_of(text))


def test_a_partial_hit_asks_only_for_what_is_missing_and_keeps_the_order(stage: Stage, host: EmbeddingHost) -> None:
    ask(stage, ["part b", "part d"])
    texts = ["part a", "part b", "part c", "part d", "part a"]
    answer = ask(stage, texts)
    assert answer.headers["x-ringrouter-cache"] == "partial"
    assert vectors(answer) == [vector_of(text) for text in texts]
    assert host.calls[1] == ["part a", "part c"], "a text that stands twice is asked for once"
    record = users(stage, 2)[-1]
    assert (record["cache"], record["cache_hits"], record["cache_misses"]) == ("partial", 2, 3)


def test_lists_of_token_ids_are_texts_too(stage: Stage, host: EmbeddingHost) -> None:
    assert vectors(ask(stage, [[7, 8, 9], [10]])) == [vector_of([7, 8, 9]), vector_of([10])]
    assert vectors(ask(stage, [7, 8, 9])) == [vector_of([7, 8, 9])]
    assert vectors(ask(stage, "[7,8,9]")) == [vector_of("[7,8,9]")], "its JSON is another text"
    assert host.calls == [[[7, 8, 9], [10]], ["[7,8,9]"]]


def test_dimensions_are_spaces_of_their_own(stage: Stage, host: EmbeddingHost) -> None:
    assert len(vectors(ask(stage, "short", dimensions=3))[0]) == 3
    assert len(vectors(ask(stage, "short"))[0]) == 8
    assert len(vectors(ask(stage, "short", dimensions=3))[0]) == 3
    assert [each.json().get("dimensions") for each in host.exchanges] == [3, None]


def test_the_answer_says_what_the_host_calls_the_model(stage: Stage, host: EmbeddingHost) -> None:
    host.echo = "org/model-v1"
    assert ask(stage, "echo").json()["model"] == "org/model-v1"
    assert ask(stage, "echo").json()["model"] == "org/model-v1"
    host.echo = "m"
    ask(stage, "echo again")


def test_many_texts_are_answered_over_several_turns(stage: Stage, host: EmbeddingHost) -> None:
    texts = [f"many {n}" for n in range(300)]
    wanted = [vector_of(text) for text in texts]
    assert vectors(ask(stage, texts)) == wanted
    assert sorted(len(call) for call in host.calls) == [300 % 16] + [16] * (300 // 16)
    host.exchanges.clear()
    again = ask(stage, texts)
    assert again.headers["x-ringrouter-cache"] == "hit"
    assert vectors(again) == wanted
    assert not host.calls


def test_zeromq_is_answered_alike(stage: Stage, host: EmbeddingHost) -> None:
    over_http = ask(stage, ["zeromq one", "zeromq two"])
    client = stage.zeromq_client()
    answer = client.finish(client.ask("z1", {"model": "m", "input": ["zeromq one", "zeromq two"]}, "embeddings"))
    assert answer.end is not None
    assert answer.end.body == over_http.body
    assert answer.done["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
    assert answer.done["headers"]["x-ringrouter-cache"] == "hit"
    assert len(host.calls) == 1


# ---------------------------------------------------------------- misses
def test_a_hundred_clients_with_one_text_make_one_call(stage: Stage, host: EmbeddingHost) -> None:
    host.gate = gate = stage.gate()
    clients = [stage.client() for _ in range(100)]
    for client in clients:
        client.post({"model": "m", "input": "the same for all"}, PATH)
    gate.wait_reached()
    stage.wait(lambda: len(stage.in_flight()) == 101, "a hundred requests and a call are in flight")
    gate.open()
    bodies = {client.answer().body for client in clients}
    assert len(bodies) == 1
    assert host.calls == [["the same for all"]]
    assert stage.counter("cache_calls") >= 1


def test_texts_of_several_clients_go_together(stage: Stage, host: EmbeddingHost) -> None:
    clients = [stage.client() for _ in range(8)]
    for n, client in enumerate(clients):
        client.post({"model": "m", "input": f"together {n}"}, PATH)
    for n, client in enumerate(clients):
        assert vectors(client.answer()) == [vector_of(f"together {n}")]
    assert len(host.calls) < len(clients)
    assert sorted(text for call in host.calls for text in call) == sorted(f"together {n}" for n in range(8))


def test_a_client_that_leaves_takes_nothing_from_the_others(stage: Stage, host: EmbeddingHost) -> None:
    host.gate = gate = stage.gate()
    leaving, staying = stage.client(), stage.client()
    for client in (leaving, staying):
        client.post({"model": "m", "input": "left alone"}, PATH)
    gate.wait_reached()
    stage.wait(lambda: len(stage.in_flight()) == 3, "both wait")
    leaving.close()
    stage.wait(lambda: len(stage.in_flight()) == 2, "one has left")
    gate.open()
    assert vectors(staying.answer()) == [vector_of("left alone")]
    assert host.calls == [["left alone"]]
    assert sorted(record["outcome"] for record in users(stage, 2)) == ["client_gone", "ok"]


def test_a_text_nobody_waits_for_goes_into_no_call(stage: Stage, host: EmbeddingHost) -> None:
    client = stage.client()
    client.post({"model": "m", "input": "nobody"}, PATH)
    stage.wait(stage.in_flight, "it waits for company")
    client.close()
    assert vectors(ask(stage, "somebody")) == [vector_of("somebody")]
    assert host.calls == [["somebody"]]


# ---------------------------------------------------------------- errors
def test_an_error_of_the_host_is_told_to_everybody_and_not_kept(stage: Stage, host: EmbeddingHost) -> None:
    error = {"error": {"message": "out of memory", "type": "server_error", "code": 500}}
    host.script(json_answer(500, error))
    clients = [stage.client(), stage.client()]
    for client in clients:
        client.post({"model": "m", "input": ["fails once"]}, PATH)
    for client in clients:
        answer = client.answer()
        assert (answer.status, answer.json()) == (500, error)
    assert vectors(ask(stage, "fails once")) == [vector_of("fails once")]
    assert len(host.calls) == 2
    assert [record["outcome"] for record in users(stage, 3)] == ["host_error", "host_error", "ok"]


def test_who_asks_for_a_bad_text_is_refused_alone(stage: Stage, host: EmbeddingHost) -> None:
    host.poison.add("bad")
    clients: list[tuple[Client, str]] = [(stage.client(), text) for text in ("good 1", "bad", "good 2", "good 3")]
    for client, text in clients:
        client.post({"model": "m", "input": text}, PATH)
    for client, text in clients:
        answer = client.answer()
        if text == "bad":
            assert answer.status == 400
            assert answer.json()["error"]["message"] == "bad is too long"
        else:
            assert vectors(answer) == [vector_of(text)]


def test_an_answer_with_too_few_vectors_is_the_hosts_fault(stage: Stage, host: EmbeddingHost) -> None:
    item = {"object": "embedding", "index": 0, "embedding": [0.5]}
    host.script(json_answer(200, {"object": "list", "data": [item], "model": "m"}))
    answer = ask(stage, ["two", "texts"])
    assert answer.status == 502
    assert answer.error["code"] == "host_protocol"
    assert "1 vectors for 2 texts" in answer.error["message"]


def test_numbers_that_are_none_are_told_and_not_kept(stage: Stage, host: EmbeddingHost) -> None:
    raw = base64.b64encode(struct.pack("<2f", 1.0, float("nan"))).decode()
    item = {"object": "embedding", "index": 0, "embedding": raw}
    host.script(json_answer(200, {"object": "list", "data": [item], "model": "m"}))
    assert vectors(ask(stage, "not finite", encoding_format="base64")) == [raw]
    assert vectors(ask(stage, "not finite")) == [vector_of("not finite")]


# ---------------------------------------------------------------- what is none of the cache's
@pytest.mark.parametrize(
    "fields", [{"input_type": "query"}, {"encoding_format": "ubinary"}, {"input": ["text", [1, 2]]}, {"input": [""]}]
)
def test_what_is_not_plain_goes_to_the_host_as_it_is(stage: Stage, host: EmbeddingHost, fields: dict[str, Any]) -> None:
    body = {"model": "m", "input": "plain", **fields}
    for _ in range(2):
        client = stage.client()
        client.post(body, PATH)
        answer = client.answer()
        assert answer.status == 200
        assert "x-ringrouter-cache" not in answer.headers
    assert [each.json() for each in host.exchanges] == [body, body]


def test_usage_of_texts_asked_together_adds_up(stage: Stage, host: EmbeddingHost) -> None:
    texts = ["one", "one two three four five", "one two"]
    whole = ask(stage, texts).json()["usage"]["prompt_tokens"]
    assert whole == sum(map(tokens_of, texts))
    assert sum(ask(stage, text).json()["usage"]["prompt_tokens"] for text in texts) == whole
    assert json.loads(ask(stage, texts).body)["usage"]["total_tokens"] == whole
