"""Both clients in front of real models: what a user of `router.client` does, and what the host sees of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop

from router.client import AsyncClient, Client, RouterError, TimedOut, Timing
from router.embedded.hosts import CHAT, EMBEDDING
from tests.support.processes import HostProcess, RouterProcess
from tests.support.records import done_record
from tests.support.waiting import wait_until
from tests.support.weather import WEATHER, weather_talk

SAME: dict[str, Any] = {"temperature": 0, "seed": 1, "cache_prompt": False, "max_tokens": 8}
LONG: dict[str, Any] = {"max_tokens": 1500, "ignore_eos": True}


@pytest.fixture(scope="module")
def endpoint(router: RouterProcess) -> str:
    return f"ipc://{router.instance_dir}/zmq.sock"


@pytest.fixture(scope="module")
def client(endpoint: str) -> Iterator[Client]:
    with Client(endpoint) as client:
        yield client


def test_a_streamed_chat_spells_the_whole_one(client: Client) -> None:
    whole = client.chat(CHAT.model, "Say hello", stream=False, **SAME)
    stream = client.chat(CHAT.model, "Say hello", **SAME)
    tokens = list(stream)
    assert whole.text, "the model says something"
    assert "".join(token.text for token in tokens) == stream.text == whole.text
    assert stream.finish_reason == whole.json["choices"][0]["finish_reason"] == "length"
    assert stream.usage is not None
    assert whole.usage is not None
    assert stream.usage["completion_tokens"] == whole.usage["completion_tokens"] == 8
    assert stream.host == whole.host == CHAT.name
    times = [token.t_ns for token in tokens]
    assert times == sorted(times)
    assert all(0 < token.transport_ns < 10**9 for token in tokens)


def test_times_are_those_of_the_record_and_add_up(client: Client, router: RouterProcess) -> None:
    stream = client.chat(CHAT.model, "Say hello", request_id="timed-client", tags={"feature_name": "test"}, **SAME)
    stream.answer()
    record, times = done_record(router, "timed-client"), stream.timing
    assert isinstance(times, Timing)
    assert record["tags"]["feature_name"] == "test"
    assert record["request_seq"] == stream.request_seq
    # The end is recorded a moment before or after it is told.
    assert dict(times.stamps) | {"done": 0} == record["stamps"] | {"done": 0}
    assert dict(times.stage_ns) == record["stages_ns"]
    assert (times.ttft_ns, times.e2e_ns) == (record["ttft_ns"], record["e2e_ns"])
    assert times.router_overhead_ns == record["router_overhead_ns"]
    assert times.tpot_ns == pytest.approx(record["tpot_ns"])
    assert times.request_transport_ns is not None
    assert times.client_ttft_ns is not None
    assert times.ttft_ns is not None
    assert times.client_ttft_ns >= times.request_transport_ns + times.ttft_ns - times.stage_ns["egress"]


def test_both_clients_say_the_same(client: Client, endpoint: str) -> None:
    async def main() -> tuple[str, list[str], int, list[str]]:
        async with AsyncClient(endpoint) as own:
            stream = own.chat(CHAT.model, "Say hello", **SAME)
            pieces = [token.text async for token in stream]
            several = await asyncio.gather(*[own.ask(CHAT.model, "Say hello", **SAME) for _ in range(6)])
            vectors = (await own.embeddings(EMBEDDING.model, ["one", "two"])).vectors
            assert stream.text == "".join(pieces)
            return stream.text, several, len(vectors[0]), await own.models()

    text = client.ask(CHAT.model, "Say hello", **SAME)
    for run in (asyncio.run, uvloop.run):
        assert run(main()) == (text, [text] * 6, 384, sorted([CHAT.model, EMBEDDING.model]))


def test_completions_and_embeddings(client: Client) -> None:
    assert client.completion(CHAT.model, "The sky is", **SAME).answer()
    reply = client.embeddings(EMBEDDING.model, ["one", "two"])
    assert [len(vector) for vector in reply.vectors] == [384, 384]
    packed = client.embeddings(EMBEDDING.model, "one", encoding_format="base64")
    assert packed.vectors[0] == pytest.approx(reply.vectors[0], abs=1e-5)


def test_a_tool_call_is_put_together(client: Client) -> None:
    stream = client.chat(CHAT.model, weather_talk(), tools=[WEATHER], **SAME | {"max_tokens": 60})
    tokens = list(stream)
    (call,) = stream.tool_calls
    assert call.name == "get_weather"
    assert "Paris" in json.loads(call.arguments)["city"]
    assert call.id
    assert stream.finish_reason == "tool_calls"
    assert "".join(token.text for token in tokens if token.kind == "tool_call") == call.arguments


def test_two_choices_and_log_probabilities(client: Client) -> None:
    stream = client.chat(CHAT.model, "Say hello", n=2, logprobs=True, **SAME | {"temperature": 1.0})
    tokens = list(stream)
    assert {token.choice for token in tokens} == {0, 1}
    assert {choice.finish_reason for choice in stream.choices} <= {"length", "stop"}
    for index, choice in enumerate(stream.choices):
        assert choice.text == "".join(token.text for token in tokens if token.choice == index)
    assert all(token.json()["choices"][0]["logprobs"]["content"][0]["logprob"] <= 0 for token in tokens)


def test_every_event_is_there_and_says_what_it_is(client: Client) -> None:
    events = list(client.chat(CHAT.model, "Say hello", **SAME).events())
    assert [event.index for event in events] == list(range(len(events)))
    assert [event.kind for event in events] == ["head", *["text"] * 8, "finish"]
    assert all(event.raw.startswith(b"data: {") for event in events)


@pytest.mark.parametrize(
    ("model", "fields", "status", "words"),
    [
        ("gpt-9", {}, 404, "'gpt-9'"),
        (CHAT.model, {"temperature": "hot"}, 400, "temperature"),
        (CHAT.model, {"messages": [{"role": "user", "content": "word " * 3000}]}, 400, "context"),
        (EMBEDDING.model, {}, 500, "logits"),
    ],
    ids=["model", "field", "context", "embedding model"],
)
def test_errors_have_a_status_and_words(
    client: Client, model: str, fields: dict[str, Any], status: int, words: str
) -> None:
    asked = {"messages": "Say hello", **fields}
    with pytest.raises(RouterError) as caught:
        client.ask(model, **asked)
    assert caught.value.status == status
    assert words in str(caught.value)
    assert caught.value.delivered == 0


def test_leaving_the_loop_stops_the_host(client: Client, llama_host: HostProcess, router: RouterProcess) -> None:
    for token in client.chat(CHAT.model, "Count", request_id="left-client", **LONG):
        assert token.text
        break
    wait_until(lambda: llama_host.busy_slot_count() == 0, "the host is idle")
    record = done_record(router, "left-client")
    assert record["outcome"] == "client_gone"
    assert 0 < record["n_content"] < 1000


def test_a_limit_of_time_stops_the_host(endpoint: str, llama_host: HostProcess, router: RouterProcess) -> None:
    async def main() -> None:
        async with AsyncClient(endpoint) as own:
            with pytest.raises(TimedOut):
                await own.ask(CHAT.model, "Count", timeout_s=0.3, request_id="late-client", **LONG)
            await own.ping()

    uvloop.run(main())
    wait_until(lambda: llama_host.busy_slot_count() == 0, "the host is idle")
    assert done_record(router, "late-client")["outcome"] == "client_gone"


def test_closing_the_client_stops_the_host(endpoint: str, llama_host: HostProcess, router: RouterProcess) -> None:
    with Client(endpoint) as own:
        stream = own.chat(CHAT.model, "Count", request_id="closed-client", **LONG)
        next(stream)
    wait_until(lambda: llama_host.busy_slot_count() == 0, "the host is idle")
    assert done_record(router, "closed-client")["outcome"] == "client_gone"


def test_more_streams_than_slots_all_end_well(client: Client) -> None:
    streams = [client.chat(CHAT.model, f"Say the number {number}", **SAME) for number in range(12)]
    assert all(stream.answer() for stream in reversed(streams))
    assert {stream.finish_reason for stream in streams} <= {"length", "stop"}
