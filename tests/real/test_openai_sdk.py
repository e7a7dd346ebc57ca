"""The `openai` Python SDK, unmodified, in front of real models: what its users do, and each error they are to get."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from router.embedded.hosts import CHAT, EMBEDDING
from tests.support.processes import HostProcess, RouterProcess
from tests.support.records import done_record
from tests.support.waiting import shared_memory_directory
from tests.support.weather import WEATHER, weather_talk

ANSWER_S = 60.0
HELLO: list[Any] = [{"role": "user", "content": "Say hello"}]
# Without its prompt cache the host computes the same request in the same way, however often it is asked.
SAME: dict[str, Any] = {"temperature": 0, "seed": 1, "extra_body": {"cache_prompt": False}}
TOOLS: dict[str, Any] = {"messages": weather_talk(), "tools": [WEATHER], "max_tokens": 60, "temperature": 0}


def sdk(router: RouterProcess, **keys: Any) -> OpenAI:
    """Return a client that asks once, so that every error is seen."""
    return OpenAI(base_url=f"{router.base_url}/v1", api_key="any", **{"max_retries": 0, "timeout": ANSWER_S, **keys})


@pytest.fixture(scope="module")
def client(router: RouterProcess) -> Iterator[OpenAI]:
    with sdk(router) as client:
        yield client


def chat(client: OpenAI, **fields: Any) -> Any:
    """Ask for a short chat; a stream comes back as the list of its chunks."""
    asked: dict[str, Any] = {"model": CHAT.model, "messages": HELLO, "max_tokens": 8, **SAME, **fields}
    answer = client.chat.completions.create(**asked)
    return list(answer) if asked.get("stream") else answer


def text_of(chunks: list[Any], index: int = 0) -> str:
    """Return what the chunks of one choice spell."""
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


def finish_reasons(chunks: list[Any]) -> dict[int, str]:
    """Return the finish reason of each choice; fail if one has two."""
    found = [(choice.index, choice.finish_reason) for chunk in chunks for choice in chunk.choices]
    ended = [(index, reason) for index, reason in found if reason]
    assert len(dict(ended)) == len(ended), f"a choice ends once: {ended}"
    return dict(ended)


# ---------------------------------------------------------------- chat
def test_a_streamed_chat_spells_the_plain_one(client: OpenAI) -> None:
    plain = chat(client)
    chunks = chat(client, stream=True)
    assert plain.choices[0].message.content, "the model says something"
    assert plain.choices[0].message.role == "assistant"
    assert text_of(chunks) == plain.choices[0].message.content
    assert finish_reasons(chunks) == {0: "length"} == {0: plain.choices[0].finish_reason}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert plain.object == "chat.completion"
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk.model for chunk in chunks} == {plain.model} == {CHAT.model}
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_is_in_the_stream_exactly_when_it_was_asked_for(client: OpenAI) -> None:
    plain = chat(client)
    asked = chat(client, stream=True, stream_options={"include_usage": True})
    assert [chunk.usage for chunk in asked[:-1]] == [None] * (len(asked) - 1)
    assert asked[-1].choices == []
    assert asked[-1].usage == plain.usage
    assert plain.usage.completion_tokens == 8
    for options in ({}, {"stream_options": {"include_usage": False}}):
        chunks = chat(client, stream=True, **options)
        assert not any(chunk.usage for chunk in chunks)
        assert all(chunk.choices for chunk in chunks), "the event that the router asked for is for the router"
        assert len(chunks) == len(asked) - 1


def test_the_router_counts_the_tokens_of_a_stream_without_usage(client: OpenAI, router: RouterProcess) -> None:
    chat(client, stream=True, extra_headers={"x-request-id": "counted"})
    record = done_record(router, "counted")
    assert record["outcome"] == "ok"
    assert record["n_out"] == 8
    assert record["n_in"] > 0
    assert "n_out_estimated" not in record["flags"]


def test_two_choices(client: OpenAI) -> None:
    fields = {"n": 2, "temperature": 1.0, "seed": 5}
    plain = chat(client, **fields)
    assert [choice.index for choice in plain.choices] == [0, 1]
    assert all(choice.message.content for choice in plain.choices)
    chunks = chat(client, stream=True, **fields)
    assert finish_reasons(chunks) == {choice.index: choice.finish_reason for choice in plain.choices}
    assert all(text_of(chunks, index) for index in (0, 1))


def test_log_probabilities(client: OpenAI) -> None:
    fields = {"logprobs": True, "top_logprobs": 2, "max_tokens": 4}
    plain = chat(client, **fields).choices[0].logprobs.content
    chunks = chat(client, stream=True, **fields)
    streamed = [
        token
        for chunk in chunks
        for choice in chunk.choices
        if choice.logprobs and choice.logprobs.content
        for token in choice.logprobs.content
    ]
    assert [token.token for token in streamed] == [token.token for token in plain]
    assert len(plain) == 4
    for token in plain:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 2


def test_the_stream_helper_accumulates_what_the_plain_answer_says(client: OpenAI) -> None:
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "Say hi in one word."}], "max_tokens": 80}
    plain = chat(client, **asked)
    with client.chat.completions.stream(model=CHAT.model, **asked, **SAME) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].finish_reason == plain.choices[0].finish_reason == "stop"
    assert final.choices[0].message.content == plain.choices[0].message.content


# ---------------------------------------------------------------- tools
def test_a_plain_answer_calls_a_tool_and_takes_its_result(client: OpenAI) -> None:
    answer = chat(client, **TOOLS)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.id
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] == "Paris"
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"celsius": 21}'}
    talk = [*weather_talk(), choice.message.model_dump(exclude_none=True), result]
    reply = chat(client, **{**TOOLS, "messages": talk, "max_tokens": 8})
    assert reply.choices[0].finish_reason in {"length", "stop", "tool_calls"}, "the history with a result is taken"


def test_a_stream_calls_a_tool_in_pieces(client: OpenAI) -> None:
    chunks = chat(client, stream=True, **TOOLS)
    deltas = [delta for chunk in chunks for choice in chunk.choices for delta in choice.delta.tool_calls or ()]
    assert finish_reasons(chunks) == {0: "tool_calls"}
    assert [delta.function.name for delta in deltas if delta.function.name] == ["get_weather"]
    assert len([delta.id for delta in deltas if delta.id]) == 1
    assert len(deltas) > 1, "the arguments come as they are generated"
    arguments = "".join(delta.function.arguments or "" for delta in deltas)
    assert json.loads(arguments)["city"] == "Paris"


# ---------------------------------------------------------------- completions and embeddings
def test_completions_plain_and_streamed(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": CHAT.model, "prompt": "New York is", "max_tokens": 6, **SAME}
    plain = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True))
    assert plain.object == "text_completion"
    assert plain.choices[0].text
    assert plain.usage
    assert plain.usage.completion_tokens == 6
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == plain.choices[0].text
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["length"]


def test_embeddings_are_the_same_in_the_default_encoding_and_as_numbers(client: OpenAI) -> None:
    texts = ["A man eats food.", "A man is eating a meal."]
    by_default = client.embeddings.create(model=EMBEDDING.model, input=texts)  # asks for base64 and decodes it
    numbers = client.embeddings.create(model=EMBEDDING.model, input=texts, encoding_format="float")
    base64 = client.embeddings.create(model=EMBEDDING.model, input=texts, encoding_format="base64")
    assert [row.index for row in by_default.data] == [0, 1]
    assert all(len(row.embedding) == 384 for row in by_default.data)
    assert isinstance(base64.data[0].embedding, str)
    for row, other in zip(by_default.data, numbers.data, strict=True):
        assert row.embedding == pytest.approx(other.embedding, abs=1e-6)
    assert numbers.usage.prompt_tokens > 0
    assert numbers.model == EMBEDDING.model


# ---------------------------------------------------------------- models and headers
def test_models_are_listed_and_retrieved(client: OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {CHAT.model, EMBEDDING.model}
    model = client.models.retrieve(CHAT.model)
    assert model.id == CHAT.model
    assert model.object == "model"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("no/such model")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_response_headers(client: OpenAI, router: RouterProcess, stream: bool) -> None:
    request_id = f"headers-{stream}"
    raw = client.chat.completions.with_raw_response.create(
        model=CHAT.model, messages=HELLO, max_tokens=3, stream=stream, extra_headers={"x-request-id": request_id}
    )
    answer: Any = raw.parse()
    if stream:
        assert list(answer)
    else:
        assert answer._request_id == request_id
    assert raw.request_id == request_id, "the client's own id is kept"
    assert raw.headers["x-ringrouter-host"] == CHAT.name
    assert raw.headers["server-timing"]
    assert raw.headers["content-type"].startswith("text/event-stream" if stream else "application/json")
    assert done_record(router, request_id)["host"] == CHAT.name


def test_each_answer_has_an_id_of_its_own(client: OpenAI) -> None:
    first, second = (client.embeddings.create(model=EMBEDDING.model, input="text") for _ in range(2))
    assert first._request_id
    assert second._request_id
    assert first._request_id != second._request_id


# ---------------------------------------------------------------- async
def test_the_async_client_runs_streams_plain_answers_and_embeddings_at_once(router: RouterProcess) -> None:
    asked: dict[str, Any] = {"model": CHAT.model, "messages": HELLO, "max_tokens": 8, **SAME}

    async def streamed(client: AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(**asked, stream=True)
        return text_of([chunk async for chunk in stream])

    async def plain(client: AsyncOpenAI) -> str:
        return (await client.chat.completions.create(**asked)).choices[0].message.content or ""

    async def embedded(client: AsyncOpenAI) -> int:
        return len((await client.embeddings.create(model=EMBEDDING.model, input="text")).data[0].embedding)

    async def run() -> list[Any]:
        base_url = f"{router.base_url}/v1"
        async with AsyncOpenAI(base_url=base_url, api_key="any", max_retries=0, timeout=ANSWER_S) as client:
            asks = [ask(client) for ask in (streamed, plain, embedded) for _ in range(3)]
            return await asyncio.gather(*asks)

    answers = asyncio.run(run())
    assert all(answers[:6]), f"every answer has text: {answers}"
    assert answers[6:] == [384] * 3


def test_a_task_that_is_cancelled_leaves_its_stream(router: RouterProcess) -> None:
    async def run() -> None:
        async with AsyncOpenAI(base_url=f"{router.base_url}/v1", api_key="any", max_retries=0) as client:
            begun = asyncio.Event()

            async def read() -> None:
                stream: Any = await client.chat.completions.create(
                    model=CHAT.model,
                    messages=HELLO,
                    max_tokens=1500,
                    stream=True,
                    extra_body={"ignore_eos": True},
                    extra_headers={"x-request-id": "cancelled-task"},
                )
                async for _ in stream:
                    begun.set()

            task = asyncio.create_task(read())
            await asyncio.wait_for(begun.wait(), ANSWER_S)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    record = done_record(router, "cancelled-task")
    assert record["outcome"] == "client_gone"
    assert 0 < record["n_content"] < 1500


# ---------------------------------------------------------------- errors
def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        chat(client, model="gpt-9")
    error = caught.value
    assert (error.status_code, error.code, error.param) == (404, "model_not_found", "model")
    assert error.type == "invalid_request_error"
    assert "'gpt-9'" in error.message
    assert CHAT.model in error.message, "it tells what there is"
    assert error.request_id


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"temperature": "hot"}, "temperature"), ({"n": "two"}, "n"), ({"stream": "yes"}, "stream")],
    ids=["temperature", "n", "stream"],
)
def test_a_field_of_the_wrong_type_is_named(client: OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, **fields)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert param in caught.value.message


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_the_hosts_own_error_keeps_its_status_and_words(client: OpenAI, stream: bool) -> None:
    too_long = [{"role": "user", "content": "word " * 3000}]
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, messages=too_long, stream=stream)
    assert caught.value.type == "exceed_context_size_error"
    assert "context" in caught.value.message
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, messages=[{"role": "user", "content": 5}], stream=stream)
    assert caught.value.type == "invalid_request_error"


def test_a_model_that_cannot_do_it_is_an_error_of_the_host(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.embeddings.create(model=CHAT.model, input="text")
    assert caught.value.status_code == 501
    assert caught.value.request_id


@pytest.fixture
def narrow_router(llama_host: HostProcess) -> Iterator[RouterProcess]:
    """A router that gives the host one request at a time and lets none wait."""
    toml = "[limits]\nwaiting = 0\n" + llama_host.toml(slots=1)
    with shared_memory_directory() as directory, RouterProcess(directory, toml) as router:
        yield router


def test_a_full_waiting_room_is_a_rate_limit_that_a_patient_client_gets_over(narrow_router: RouterProcess) -> None:
    with sdk(narrow_router) as client, sdk(narrow_router, max_retries=5) as patient:
        stream: Any = client.chat.completions.create(
            model=CHAT.model, messages=HELLO, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            chat(client)
        stream.close()
        answer = chat(patient)
    assert caught.value.code == "overloaded"
    assert caught.value.response.headers["retry-after"] == "1"
    assert "limits.waiting" in caught.value.message
    assert answer.choices[0].message.content


def test_a_host_that_is_down_and_a_router_that_is_down(host_directory: Path) -> None:
    with shared_memory_directory() as directory:
        host = HostProcess(directory, EMBEDDING).start()
        router = RouterProcess(directory, host.toml() + "\n[health]\ninterval_s = 0.1\n").start()
        try:
            with sdk(router) as client:
                assert client.embeddings.create(model=EMBEDDING.model, input="text").data
                host.kill()
                with pytest.raises(openai.InternalServerError) as caught:
                    client.embeddings.create(model=EMBEDDING.model, input="text")
                assert caught.value.status_code in {502, 503}
                assert caught.value.type == "host_error"
                assert caught.value.code in {"connect_failed", "host_closed", "no_host"}
                router.stop()
                with pytest.raises(openai.APIConnectionError):
                    client.embeddings.create(model=EMBEDDING.model, input="text")
        finally:
            router.kill()
            host.kill()
