"""LangChain's `langchain-openai`, unmodified, in front of real models: chat, tools, structured answers, embeddings.

Its plain answers are compared with what the host says to the same request, sent past the router.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from router.embedded.hosts import CHAT, EMBEDDING
from tests.support.processes import HostProcess, RouterProcess
from tests.support.records import done_record

ANSWER_S = 60.0
ANSWER_TOKENS = 8
QUESTIONS: list[Any] = ["Say hello", "Name a colour", "What is the sea?"]
TEXTS = ["A man eats food.", "A man is eating a meal.", "The car is red."]
PERSON: dict[str, Any] = {
    "title": "Person",
    "description": "A person",
    "type": "object",
    "properties": {"name": {"type": "string", "enum": ["Ada", "Bob"]}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {
    "title": "get_weather",
    "description": "Get the weather for a city",
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}


@pytest.fixture(autouse=True)
def nothing_leaves_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what would make LangChain report its runs to its makers, or send requests elsewhere."""
    for name in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2", "OPENAI_API_BASE", "OPENAI_BASE_URL", "OPENAI_PROXY"):
        monkeypatch.delenv(name, raising=False)


def chat_model(router: RouterProcess, **keys: Any) -> ChatOpenAI:
    """Return a model that asks once and computes the same each time."""
    return ChatOpenAI(
        base_url=f"{router.base_url}/v1",
        **{
            "api_key": "any",
            "model": CHAT.model,
            "temperature": 0,
            "seed": 1,
            "max_tokens": ANSWER_TOKENS,
            "max_retries": 0,
            "timeout": ANSWER_S,
            "extra_body": {"cache_prompt": False},
            **keys,
        },
    )


def embedding_model(router: RouterProcess) -> OpenAIEmbeddings:
    """Return a model that sends texts: tokens, as it would by default, come from a vocabulary that it would load."""
    keys: dict[str, Any] = {"api_key": "any", "model": EMBEDDING.model, "max_retries": 0}
    return OpenAIEmbeddings(base_url=f"{router.base_url}/v1", check_embedding_ctx_length=False, **keys)


def ask_host(host: HostProcess, path: str, **body: Any) -> Any:
    """Return a host's own answer."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(ANSWER_S)
    connection.sock.connect(str(host.socket_path))
    try:
        connection.request("POST", path, json.dumps(body))
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def ask_host_plainly(host: HostProcess, question: str) -> Any:
    messages = [{"role": "user", "content": question}]
    same = {"temperature": 0, "seed": 1, "max_tokens": ANSWER_TOKENS, "cache_prompt": False}
    return ask_host(host, "/v1/chat/completions", messages=messages, **same)


def weather_talk() -> list[BaseMessage]:
    """Return a talk with a few calls in it: after those the small model calls the tool reliably."""
    talk: list[BaseMessage] = []
    for number, city in enumerate(["Rome", "Oslo"]):
        call = {"name": WEATHER["title"], "args": {"city": city}, "id": f"call_{number}"}
        talk += [HumanMessage(f"What is the weather in {city}?"), AIMessage("", tool_calls=[call])]
    return [*talk, HumanMessage("What is the weather in Paris?")]


def added(chunks: list[Any]) -> Any:
    """Return the sum of the chunks, as LangChain's users make it."""
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    return total


# ---------------------------------------------------------------- chat
def test_a_plain_answer_is_the_hosts(router: RouterProcess, llama_host: HostProcess) -> None:
    answer = chat_model(router).invoke(QUESTIONS[0])
    of_host = ask_host_plainly(llama_host, QUESTIONS[0])
    (choice,) = of_host["choices"]
    assert answer.content
    assert answer.content == choice["message"]["content"]
    assert answer.response_metadata["finish_reason"] == choice["finish_reason"] == "length"
    assert answer.response_metadata["model_name"] == CHAT.model
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["input_tokens"] == of_host["usage"]["prompt_tokens"]
    assert answer.usage_metadata["output_tokens"] == of_host["usage"]["completion_tokens"] == ANSWER_TOKENS


def test_a_stream_spells_the_plain_answer_and_has_its_usage(router: RouterProcess) -> None:
    plain = chat_model(router).invoke(QUESTIONS[0])
    chunks: list[Any] = list(chat_model(router, stream_usage=True).stream(QUESTIONS[0]))
    total = added(chunks)
    assert len([chunk for chunk in chunks if chunk.content]) == ANSWER_TOKENS, "it comes as it is generated"
    assert total.content == plain.content
    assert total.response_metadata["finish_reason"] == "length"
    assert total.usage_metadata == plain.usage_metadata


def test_a_stream_without_usage_has_none(router: RouterProcess) -> None:
    request_id = "langchain without usage"
    model = chat_model(router, stream_usage=False, default_headers={"x-request-id": request_id})
    assert not any(chunk.usage_metadata for chunk in model.stream(QUESTIONS[0]))
    assert done_record(router, request_id)["n_out"] == ANSWER_TOKENS, "the router counts all the same"


def test_asynchronous_streams_run_at_once(router: RouterProcess) -> None:
    async def ask(model: ChatOpenAI, question: str) -> Any:
        return added([chunk async for chunk in model.astream(question)])

    async def run() -> list[Any]:
        model = chat_model(router)
        return await asyncio.gather(*(ask(model, question) for question in QUESTIONS * 2))

    answers = asyncio.run(run())
    assert all(answer.content for answer in answers)
    assert {answer.response_metadata["finish_reason"] for answer in answers} <= {"length", "stop"}


def test_a_batch_has_an_answer_for_each_question(router: RouterProcess) -> None:
    answers = chat_model(router).batch(QUESTIONS)
    assert len(answers) == len(QUESTIONS)
    assert all(answer.content for answer in answers)
    assert len({answer.content for answer in answers}) == len(QUESTIONS), "each has its own"


def test_a_chain_of_prompt_model_and_parser_streams(router: RouterProcess) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "You answer in {language}."), ("user", "{question}")])
    chain = prompt | chat_model(router) | StrOutputParser()
    asked = {"language": "English", "question": QUESTIONS[0]}
    assert "".join(chain.stream(asked)) == chain.invoke(asked) != ""


def test_log_probabilities(router: RouterProcess) -> None:
    answer = chat_model(router, logprobs=True, top_logprobs=2, max_tokens=3).invoke(QUESTIONS[0])
    tokens = answer.response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == answer.content
    assert [len(token["top_logprobs"]) for token in tokens] == [2, 2, 2]


# ---------------------------------------------------------------- tools and structured answers
@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
def test_a_bound_tool_is_called(router: RouterProcess, streamed: bool) -> None:
    # Both ask with the same long prompt and may take it from the cache: the call is no close decision.
    model = chat_model(router, max_tokens=60, extra_body=None).bind_tools([WEATHER])
    chunks: list[Any] = list(model.stream(weather_talk())) if streamed else [model.invoke(weather_talk())]
    answer: Any = added(chunks)
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    assert answer.response_metadata["finish_reason"] == "tool_calls"
    if not streamed:
        result = ToolMessage('{"celsius": 21}', tool_call_id=call["id"])
        reply = model.invoke([*weather_talk(), answer, result], max_tokens=4)
        assert reply.response_metadata["finish_reason"], "the history with a result is taken"


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
def test_a_structured_answer_has_its_schema(router: RouterProcess, streamed: bool) -> None:
    model = chat_model(router, max_tokens=60).with_structured_output(PERSON, method="json_schema")
    question = "Ada is 36 years old. Describe her."
    answer: Any = list(model.stream(question))[-1] if streamed else model.invoke(question)
    assert set(answer) == {"name", "age"}
    assert answer["name"] in {"Ada", "Bob"}
    assert isinstance(answer["age"], int)


# ---------------------------------------------------------------- embeddings
def test_embeddings_are_the_hosts(router: RouterProcess, embed_host: HostProcess) -> None:
    model = embedding_model(router)
    rows = ask_host(embed_host, "/v1/embeddings", input=TEXTS)["data"]
    documents = model.embed_documents(TEXTS)
    assert len(documents) == len(rows) == len(TEXTS)
    for document, row in zip(documents, rows, strict=True):
        assert document == pytest.approx(row["embedding"], abs=1e-6)
    assert model.embed_query(TEXTS[0]) == pytest.approx(rows[0]["embedding"], abs=1e-3), "alone, not in a batch"
    assert asyncio.run(model.aembed_documents(TEXTS)) == documents


# ---------------------------------------------------------------- errors and leaving
@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
def test_an_unknown_model_is_not_found(router: RouterProcess, streamed: bool) -> None:
    model = chat_model(router, model="gpt-9")
    with pytest.raises(openai.NotFoundError) as caught:
        list(model.stream("hi")) if streamed else model.invoke("hi")
    assert caught.value.code == "model_not_found"


def test_a_prompt_that_is_too_long_is_the_hosts_error(router: RouterProcess) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat_model(router).invoke("word " * 3000)
    assert caught.value.type == "exceed_context_size_error"


def test_a_stream_that_is_left_is_cancelled(router: RouterProcess) -> None:
    request_id = "langchain left"
    model = chat_model(
        router, max_tokens=1500, extra_body={"ignore_eos": True}, default_headers={"x-request-id": request_id}
    )
    stream: Any = model.stream(QUESTIONS[0])
    while not next(stream).content:
        pass
    stream.close()
    record = done_record(router, request_id)
    assert record["outcome"] == "client_gone"
    assert 0 < record["n_content"] < 1500
