"""The JavaScript clients, unmodified, in front of real models: npm `openai`, and `ai` with `@ai-sdk/openai-compatible`.

The programs in ``node/`` do what their users do; what they are to get is asserted here. Where it can be, it is what the
same program gets from the host itself, to which it is sent past the router.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ringbuffer import find_current
from router.embedded.hosts import CHAT, EMBEDDING
from router.telemetry.reader import InflightReader
from tests.support.processes import HostProcess, RouterProcess
from tests.support.records import done_record
from tests.support.waiting import wait_until

PROGRAMS = Path(__file__).parent / "node"
OPENAI, AI = "openai_sdk.mjs", "ai_sdk.mjs"
Step = tuple[str, dict[str, Any]]
"""A scenario of a program and its input."""
NODE_MAJOR_MIN = 20
ANSWER_S = 60.0
HELLO = [{"role": "user", "content": "Say hello"}]
# Without its prompt cache the host computes the same request in the same way, however often it is asked.
SAME: dict[str, Any] = {"model": CHAT.model, "max_tokens": 8, "temperature": 0, "seed": 1, "cache_prompt": False}
CHAT_BODY = SAME | {"messages": HELLO}
COMPLETION_BODY = SAME | {"prompt": "New York is"}
STREAM: dict[str, Any] = {"stream": True}
ENDLESS: dict[str, Any] = {"max_tokens": 1500, "ignore_eos": True}
# The same in the words of the package `ai`, which puts `more` into the body as it is.
AI_CHAT: dict[str, Any] = {
    "model": CHAT.model, "messages": HELLO, "maxOutputTokens": 8, "temperature": 0, "seed": 1,
    "more": {"cache_prompt": False},
}  # fmt: skip
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "Get the weather for a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TEXTS = ["A man eats food.", "A man is eating a meal."]
TOO_LONG = [{"role": "user", "content": "word " * 3000}]


def weather_talk() -> list[dict[str, Any]]:
    """Return a talk with a few calls in it: after those the small model calls the tool reliably."""
    talk: list[dict[str, Any]] = []
    for number, city in enumerate(["Rome", "Oslo"]):
        function = {"name": WEATHER["name"], "arguments": json.dumps({"city": city})}
        call = {"id": f"call_{number}", "type": "function", "function": function}
        talk.append({"role": "user", "content": f"What is the weather in {city}?"})
        talk.append({"role": "assistant", "content": None, "tool_calls": [call]})
    return [*talk, {"role": "user", "content": "What is the weather in Paris?"}]


# A long prompt, the same in several tests: these may take it from the cache. The call is no close decision.
TOOL_BODY = CHAT_BODY | {"messages": weather_talk(), "max_tokens": 60, "cache_prompt": True}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("chat", CHAT_BODY),
    "stream": ("chat", CHAT_BODY | STREAM),
    "stream with usage": ("chat", CHAT_BODY | STREAM | {"stream_options": {"include_usage": True}}),
    "stream with logprobs": ("chat", CHAT_BODY | STREAM | {"logprobs": True, "top_logprobs": 2, "max_tokens": 3}),
    "tool call in a stream": ("chat", TOOL_BODY | STREAM | {"tools": [{"type": "function", "function": WEATHER}]}),
    "completion": ("completions", COMPLETION_BODY),
    "completion stream": ("completions", COMPLETION_BODY | STREAM),
}
"""Of each case the resource and the body."""
ERRORS: dict[str, tuple[str, dict[str, Any], tuple[Any, ...]]] = {
    "unknown model": (
        "chat",
        CHAT_BODY | {"model": "gpt-9"},
        ("NotFoundError", 404, "model_not_found", "invalid_request_error", "model"),
    ),
    "wrong type": (
        "chat",
        CHAT_BODY | {"n": "two"},
        ("BadRequestError", 400, "bad_request", "invalid_request_error", "n"),
    ),
    "host's error": (
        "chat",
        CHAT_BODY | {"messages": TOO_LONG},
        ("BadRequestError", 400, 400, "exceed_context_size_error", None),
    ),
    "host's error to a stream": (
        "chat",
        CHAT_BODY | {"messages": TOO_LONG} | STREAM,
        ("BadRequestError", 400, 400, "exceed_context_size_error", None),
    ),
    "model that cannot": (
        "embeddings",
        {"model": CHAT.model, "input": "text"},
        ("InternalServerError", 501, 501, "not_supported_error", None),
    ),
}
"""Of each case the resource, the body, and the error: its class, status, code, type and param."""


def node_major() -> int:
    """Return the major version of Node.js, 0 without it."""
    try:
        version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        return 0
    return int(version.removeprefix("v").partition(".")[0])


@pytest.fixture(scope="module", autouse=True)
def node_packages() -> None:
    """Skip without Node.js and the packages that `make node-clients` installs."""
    found = node_major()
    if found < NODE_MAJOR_MIN or shutil.which("npm") is None:
        here = f"Node.js {found}" if found else "no Node.js"
        pytest.skip(f"Node.js {NODE_MAJOR_MIN} or newer with npm is needed, and here is {here}")
    if not (PROGRAMS / "node_modules" / ".ready").exists():
        reason = "the JavaScript clients are not installed: make node-clients"
        if os.environ.get("CI"):  # a pipeline that could test them must not look green without
            pytest.fail(reason)
        pytest.skip(reason)


@contextmanager
def program(script: str, where: str, *steps: Step) -> Iterator[subprocess.Popen[str]]:
    """Run a program that goes through scenarios; at the end its input ends, and so does it."""
    command = ["node", str(PROGRAMS / script), where, json.dumps(steps)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
            _, complaints = process.communicate(timeout=ANSWER_S)
        except BaseException:
            process.kill()
            raise
    assert process.returncode == 0, complaints


def said(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return what a program says of a scenario as soon as it does."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the program ended without a word"
    words: dict[str, Any] = json.loads(line)
    return words


def run(script: str, where: str, *steps: Step) -> list[Any]:
    """Return the results of scenarios."""
    with program(script, where, *steps) as process:
        words = [said(process) for _ in steps]
    assert all("result" in word for word in words), words
    return [word["result"] for word in words]


def errors_of(script: str, where: str, *steps: Step) -> list[dict[str, Any]]:
    """Return the errors that scenarios throw."""
    with program(script, where, *steps) as process:
        words = [said(process) for _ in steps]
    assert all("error" in word for word in words), words
    return [word["error"] for word in words]


def openai(where: str, scenario: str, **what: Any) -> Any:
    """Return the result of one scenario."""
    return run(OPENAI, where, (scenario, what))[0]


def ai(where: str, scenario: str, **what: Any) -> Any:
    """Return the result of one scenario."""
    return run(AI, where, (scenario, what))[0]


def comparable(value: Any) -> Any:
    """Return an answer without what differs each time: when it was made, the ids, how long it took."""
    if isinstance(value, dict):
        varying = {"id", "created", "timings"}
        return {name: comparable(each) for name, each in value.items() if name not in varying}
    return [comparable(each) for each in value] if isinstance(value, list) else value


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def accepted_count(router: RouterProcess) -> int:
    """Return how many connections the router has accepted."""
    return router.counter("connections_accepted")


def order_in_decoding(router: RouterProcess, process: subprocess.Popen[str], request_id: str) -> dict[str, Any]:
    """Tell a program to abort once its answer is under way; return what it says when it has."""
    inflight = InflightReader(find_current(router.instance_dir))
    try:

        def decoding() -> bool:
            return any(row["request_id"] == request_id and row["phase"] == "decode" for row in inflight.read())

        wait_until(decoding, f"{request_id} in its decoding", ANSWER_S)
        assert process.stdin is not None
        process.stdin.write("abort\n")
        process.stdin.flush()
        return said(process)
    finally:
        inflight.close()


def check_left(router: RouterProcess, request_id: str) -> None:
    """Check that a request ended with its client's leaving, and that nothing of it is left."""
    record = done_record(router, request_id)
    assert (record["outcome"], record["error"]) == ("client_gone", "client_gone")
    assert 0 < record["n_content"] < ENDLESS["max_tokens"]
    inflight = InflightReader(find_current(router.instance_dir))
    try:
        wait_until(lambda: not inflight.read(), "an empty in-flight table")
    finally:
        inflight.close()


def id_of(case: str) -> str:
    """Return the request id under which a case is asked."""
    return f"node {case}"


# ---------------------------------------------------------------- openai: answers
Answers = dict[str, tuple[dict[str, Any], dict[str, Any]]]


@pytest.fixture(scope="module")
def answers(router: RouterProcess, llama_host: HostProcess) -> Answers:
    """What the SDK gets in each of the cases, from the router and from the host; one program asks for all of them."""
    steps = [
        ("create", {"resource": resource, "body": body, "headers": {"x-request-id": id_of(case)}})
        for case, (resource, body) in CASES.items()
    ]
    of_router = run(OPENAI, router.base_url, *steps)
    of_host = run(OPENAI, llama_host.url, *steps)
    return dict(zip(CASES, zip(of_router, of_host, strict=True), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_openai_gets_what_it_gets_from_the_host(answers: Answers, case: str) -> None:
    of_router, of_host = (answer["answer"] for answer in answers[case])
    assert of_router, "there is something to compare"
    assert comparable(of_router) == comparable(of_host)


@pytest.mark.parametrize("case", CASES)
def test_openai_sees_the_routers_headers(router: RouterProcess, answers: Answers, case: str) -> None:
    answer, _ = answers[case]
    assert answer["requestId"] == id_of(case), "the client's own id is kept"
    assert answer["headers"]["x-ringrouter-host"] == CHAT.name
    assert answer["headers"]["server-timing"]
    if not isinstance(answer["answer"], list):
        assert answer["ownRequestId"] == id_of(case), "and is where the SDK puts it"
    record = done_record(router, id_of(case))
    assert (record["outcome"], record["host"]) == ("ok", CHAT.name)


def test_openais_stream_spells_its_plain_answer_and_has_usage_when_asked(answers: Answers) -> None:
    plain, chunks, with_usage = (answers[case][0]["answer"] for case in ("chat", "stream", "stream with usage"))
    text = plain["choices"][0]["message"]["content"]
    assert text
    assert text_of(chunks) == text_of(with_usage) == text
    assert not any(chunk.get("usage") for chunk in chunks), "nobody asked"
    assert with_usage[-1]["usage"] == plain["usage"]
    assert plain["usage"]["completion_tokens"] == CHAT_BODY["max_tokens"]


def test_openais_stream_calls_a_tool(answers: Answers) -> None:
    chunks = answers["tool call in a stream"][0]["answer"]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    deltas = [delta for choice in choices for delta in choice["delta"].get("tool_calls", ())]
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["tool_calls"]
    assert json.loads("".join(delta["function"]["arguments"] for delta in deltas)) == {"city": "Paris"}


def test_openais_stream_helper_accumulates_the_plain_answer(router: RouterProcess, answers: Answers) -> None:
    plain = answers["chat"][0]["answer"]["choices"][0]
    found = openai(router.base_url, "accumulate", body=CHAT_BODY)
    (choice,) = found["completion"]["choices"]
    assert choice["message"]["content"] == plain["message"]["content"] == "".join(found["pieces"])
    assert choice["finish_reason"] == plain["finish_reason"] == "length"


def test_openais_tool_runner_calls_the_tool_and_sends_its_result_back(router: RouterProcess) -> None:
    twice = {"maxChatCompletions": 2}
    found = openai(router.base_url, "runTools", body=TOOL_BODY, tool=WEATHER, result={"celsius": 21}, options=twice)
    assert found["calls"][0] == {"city": "Paris"}
    call, result, reply = found["messages"][len(weather_talk()) :][:3]
    assert call["tool_calls"][0]["function"]["name"] == WEATHER["name"]
    assert result == {"role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": '{"celsius":21}'}
    assert reply["role"] == "assistant", "the history with a result is taken"


def test_openais_embeddings_in_its_own_encoding_are_the_hosts_numbers(
    router: RouterProcess, embed_host: HostProcess
) -> None:
    asked = {"model": EMBEDDING.model, "input": TEXTS}
    numbers = {"resource": "embeddings", "body": asked | {"encoding_format": "float"}}
    decoded = {"resource": "embeddings", "body": asked}  # it asks for base64 and decodes it
    answers = [each["answer"] for each in run(OPENAI, router.base_url, ("create", numbers), ("create", decoded))]
    assert answers[0] == openai(embed_host.url, "create", **numbers)["answer"]
    assert len(answers[1]["data"]) == len(TEXTS)
    for row, other in zip(*(answer["data"] for answer in answers), strict=True):
        assert len(row["embedding"]) == 384
        assert row["embedding"] == pytest.approx(other["embedding"], abs=1e-6)


def test_openai_lists_and_retrieves_models(router: RouterProcess) -> None:
    found = openai(router.base_url, "models", model=CHAT.model)
    assert {model["id"] for model in found["listed"]} == {CHAT.model, EMBEDDING.model}
    assert (found["retrieved"]["id"], found["retrieved"]["object"]) == (CHAT.model, "model")


@pytest.mark.parametrize("fields", [{}, STREAM], ids=["plain", "streamed"])
def test_openai_reuses_its_connection(router: RouterProcess, fields: dict[str, Any]) -> None:
    ids = [f"node reuse {len(fields)} {number}" for number in range(4)]
    asked = [{"resource": "chat", "body": CHAT_BODY | fields, "headers": {"x-request-id": each}} for each in ids]
    before = accepted_count(router)
    answers = run(OPENAI, router.base_url, *(("create", each) for each in asked))
    assert [answer["requestId"] for answer in answers] == ids
    assert len({json.dumps(comparable(answer["answer"])) for answer in answers}) == 1, "the same answer each time"
    assert accepted_count(router) <= before + 2, "a connection whose answer is just being read counts as taken"


def test_openai_asks_for_more_at_once_than_the_host_has_slots(router: RouterProcess) -> None:
    bodies = [CHAT_BODY, CHAT_BODY | STREAM] * 3
    requests = [{"resource": "chat", "body": body} for body in bodies]
    requests += [{"resource": "embeddings", "body": {"model": EMBEDDING.model, "input": TEXTS}}] * 3
    answers = [each["answer"] for each in openai(router.base_url, "createAtOnce", requests=requests)]
    texts = [answer["choices"][0]["message"]["content"] for answer in answers[0:6:2]]
    texts += [text_of(chunks) for chunks in answers[1:6:2]]
    assert all(texts), f"each has text: {texts}"
    assert all(len(answer["data"]) == len(TEXTS) for answer in answers[6:])


# ---------------------------------------------------------------- openai: errors and leaving
@pytest.fixture(scope="module")
def errors(router: RouterProcess) -> dict[str, dict[str, Any]]:
    """What the SDK throws in each of the cases; one program asks for all of them."""
    headers = {"x-request-id": "node error"}
    steps = [
        ("create", {"resource": resource, "body": body, "headers": headers}) for resource, body, _ in ERRORS.values()
    ]
    return dict(zip(ERRORS, errors_of(OPENAI, router.base_url, *steps), strict=True))


@pytest.mark.parametrize("case", ERRORS)
def test_openai_throws_its_own_errors(errors: dict[str, dict[str, Any]], case: str) -> None:
    error, (_, _, expected) = errors[case], ERRORS[case]
    assert tuple(error.get(name) for name in ("kind", "status", "code", "type", "param")) == expected
    assert error["requestID"] == "node error"


@pytest.mark.parametrize("fields", [{}, STREAM], ids=["plain", "streamed"])
def test_a_request_that_openai_aborts_is_cancelled(router: RouterProcess, fields: dict[str, Any]) -> None:
    request_id = f"node abort {len(fields)}"
    asked = {"body": CHAT_BODY | ENDLESS | fields, "headers": {"x-request-id": request_id}}
    with program(OPENAI, router.base_url, ("abortStream" if fields else "abort", asked)) as process:
        words = order_in_decoding(router, process, request_id)
        check_left(router, request_id)  # while the program lives: it is not its end that cancels
    if fields:
        assert words["result"]["chunkCount"] > 0, "an aborted stream just ends"
    else:
        assert words["error"]["kind"] == "APIUserAbortError"


def test_a_stream_whose_loop_is_left_is_cancelled(router: RouterProcess) -> None:
    asked = {"body": CHAT_BODY | ENDLESS | STREAM, "headers": {"x-request-id": "node leave"}, "after": 3}
    with program(OPENAI, router.base_url, ("leave", asked)) as process:
        assert said(process)["result"] == {"chunkCount": 3}
        check_left(router, "node leave")


# ---------------------------------------------------------------- ai
def test_ai_gets_what_it_gets_from_the_host(router: RouterProcess, llama_host: HostProcess) -> None:
    steps = [("plain", AI_CHAT), ("stream", AI_CHAT)]
    answers, of_host = (run(AI, where, *steps) for where in (router.base_url, llama_host.url))
    for answer, other in zip(answers, of_host, strict=True):
        assert done_record(router, answer.pop("headers")["x-request-id"])["outcome"] == "ok"
        other.pop("headers")
        assert answer == other
        assert answer["finishReason"] == "length"
        assert answer["usage"]["outputTokens"] == AI_CHAT["maxOutputTokens"]
    plain, streamed = answers
    assert plain["text"]
    assert plain["text"] == streamed["text"]


def test_ais_stream_calls_a_tool(router: RouterProcess) -> None:
    talk: list[dict[str, Any]] = []
    for number, city in enumerate(["Rome", "Oslo"]):  # a history of calls as above, but `ai` wants each one's result
        named = {"toolCallId": f"call_{number}", "toolName": WEATHER["name"]}
        result = {"type": "tool-result", **named, "output": {"type": "json", "value": {"celsius": 20 + number}}}
        talk += [
            {"role": "user", "content": f"What is the weather in {city}?"},
            {"role": "assistant", "content": [{"type": "tool-call", **named, "input": {"city": city}}]},
            {"role": "tool", "content": [result]},
            {"role": "assistant", "content": f"It is {20 + number} degrees."},
        ]
    talk.append({"role": "user", "content": "What is the weather in Paris?"})
    asked = AI_CHAT | {"messages": talk, "maxOutputTokens": 60, "tools": {WEATHER["name"]: WEATHER}}
    found = ai(router.base_url, "stream", **asked)
    assert found["finishReason"] == "tool-calls"
    (call,) = found["toolCalls"]
    assert (call["toolName"], call["input"]) == (WEATHER["name"], {"city": "Paris"})


def test_ai_throws_its_own_errors(router: RouterProcess) -> None:
    asked = AI_CHAT | {"model": "gpt-9"}
    for error in errors_of(AI, router.base_url, ("plain", asked), ("stream", asked)):
        assert (error["kind"], error["statusCode"], error["isRetryable"]) == ("APICallError", 404, False)
        assert error["data"]["error"]["code"] == "model_not_found", "the error has the shape that it parses"
        assert error["requestId"]


def test_a_stream_that_ai_aborts_is_cancelled(router: RouterProcess) -> None:
    asked = AI_CHAT | {"maxOutputTokens": ENDLESS["max_tokens"], "headers": {"x-request-id": "node ai abort"}}
    asked["more"] = AI_CHAT["more"] | {"ignore_eos": True}
    with program(AI, router.base_url, ("abort", asked)) as process:
        words = order_in_decoding(router, process, "node ai abort")
        check_left(router, "node ai abort")
    assert words["result"]["kinds"][-1] == "abort", "it sees its own abort, and no error"


def test_ais_embeddings_are_openais(router: RouterProcess) -> None:
    found = ai(router.base_url, "embed", model=EMBEDDING.model, values=TEXTS)
    body = {"model": EMBEDDING.model, "input": TEXTS, "encoding_format": "float"}
    numbers = openai(router.base_url, "create", resource="embeddings", body=body)["answer"]["data"]
    assert found["embeddings"] == [row["embedding"] for row in numbers]
    assert found["usage"]["tokens"] > 0
