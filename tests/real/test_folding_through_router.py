"""What a client gets through the router for a not-streamed request equals what the host itself answers.

The router asks a llama.cpp host for a stream and folds it, because this host cancels nothing else. The same request
goes once to the host and once to the router, at temperature 0 and with a fixed seed: all fields are equal except id,
created and the values of timings.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from router.embedded.hosts import CHAT
from tests.support.processes import HostProcess, RouterProcess
from tests.support.records import done_record
from tests.support.unix_http import UnixConnection
from tests.support.waiting import shared_memory_directory

ANSWER_S = 60.0
CHAT_PATH = "/v1/chat/completions"
COMPLETION_PATH = "/v1/completions"
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


def say(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def sums_talk() -> list[dict[str, Any]]:
    """Return a talk with a few calls in it: after those the small model calls the tool reliably."""
    talk: list[dict[str, Any]] = []
    for number, (a, b) in enumerate([(1, 2), (5, 4), (7, 1)]):
        function = {"name": "add", "arguments": json.dumps({"a": a, "b": b})}
        call = {"id": f"call_{number}", "type": "function", "function": function}
        talk += [*say(f"What is {a} + {b}?"), {"role": "assistant", "content": None, "tool_calls": [call]}]
    return talk + say("What is 3 + 8?")


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "length": (CHAT_PATH, {"messages": say("Name three colours"), "max_tokens": 10}),
    "max_completion_tokens": (CHAT_PATH, {"messages": say("Name three colours"), "max_completion_tokens": 4}),
    "end of text": (CHAT_PATH, {"messages": say("Answer with one word: yes or no?"), "max_tokens": 80}),
    "stop string": (CHAT_PATH, {"messages": say("Count from one to ten"), "max_tokens": 40, "stop": [",", "\n"]}),
    "tool call": (CHAT_PATH, {"messages": sums_talk(), "tools": [TOOL], "max_tokens": 60}),
    "logprobs": (CHAT_PATH, {"messages": say("Name a colour"), "max_tokens": 4, "logprobs": True, "top_logprobs": 3}),
    "logprobs to the end": (
        CHAT_PATH,
        {"messages": say("Answer with one word: yes or no?"), "max_tokens": 80, "logprobs": True, "top_logprobs": 1},
    ),
    "two choices": (CHAT_PATH, {"messages": say("Name a colour"), "max_tokens": 6, "n": 2}),
    "usage asked for": (
        CHAT_PATH,
        {"messages": say("Name a colour"), "max_tokens": 3, "stream_options": {"include_usage": True}},
    ),
    "not ASCII": (CHAT_PATH, {"messages": say("Wie heißt „Straße“ auf Französisch? 😀"), "max_tokens": 12}),
    "completion": (COMPLETION_PATH, {"prompt": "The sea is", "max_tokens": 6}),
    "completion, two prompts": (COMPLETION_PATH, {"prompt": ["The sea is", "Once upon a"], "max_tokens": 4}),
    "completion that repeats a token": (
        COMPLETION_PATH,
        {"prompt": "ha ha ha ha ha ha ha ha ha ha ha ha", "max_tokens": 12, "ignore_eos": True},
    ),
    "completion with logprobs": (COMPLETION_PATH, {"prompt": "The sea is", "max_tokens": 3, "logprobs": 2}),
}

_request_ids = (f"fold-{number}" for number in count(1))


@dataclass
class Answer:
    """A whole answer and what its head said."""

    status: int
    headers: dict[str, str]
    body: Any


def _post(connection: http.client.HTTPConnection, path: str, body: dict[str, Any], request_id: str) -> Answer:
    try:
        connection.request("POST", path, json.dumps(body), {"x-request-id": request_id})
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, json.loads(response.read()))
    finally:
        connection.close()


def ask_host(host: HostProcess, path: str, body: dict[str, Any]) -> Answer:
    return _post(UnixConnection(host.socket_path, ANSWER_S), path, body, "")


def ask_router(router: RouterProcess, path: str, body: dict[str, Any]) -> tuple[Answer, dict[str, Any]]:
    """Return the router's answer and its done record."""
    request_id = next(_request_ids)
    connection = http.client.HTTPConnection("127.0.0.1", router.port, timeout=ANSWER_S)
    answer = _post(connection, path, body, request_id)
    return answer, done_record(router, request_id)


def comparable(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer without what differs from request to request, after a look at its form."""
    rest = {name: value for name, value in answer.items() if name not in {"id", "created"}}
    assert answer["id"].startswith("chatcmpl-")
    assert isinstance(answer["created"], int)
    rest["timings"] = sorted(answer["timings"])
    for choice in rest["choices"]:
        for call in choice.get("message", {}).get("tool_calls", ()):
            assert call.pop("id"), "a call has an id, random at the host"
    return rest


@pytest.mark.parametrize("case", CASES)
def test_the_routers_plain_answer_equals_the_hosts(llama_host: HostProcess, router: RouterProcess, case: str) -> None:
    path, fields = CASES[case]
    # Without its prompt cache the host computes both answers from nothing, hence in the same way.
    body = {"model": CHAT.model, "temperature": 0, "seed": 1, "cache_prompt": False, **fields}
    of_host = ask_host(llama_host, path, body)
    of_router, record = ask_router(router, path, body)
    assert of_host.status == of_router.status == 200, (of_host.body, of_router.body)
    assert comparable(of_router.body) == comparable(of_host.body)
    assert of_router.headers["content-type"].split(";")[0] == "application/json"
    # With log probabilities the host is asked plainly: it leaves the stop token's out of a stream.
    assert ("folded" in record["flags"]) == ("logprobs" not in fields)
    assert record["stamps"]["out1"] == record["stamps"]["outN"], "a whole answer reaches the client at once"
    assert record["n_out"] == of_host.body["usage"]["completion_tokens"]


@pytest.fixture(scope="module")
def one_slot_host(host_directory: Path) -> Iterator[HostProcess]:
    """A host whose only slot keeps the one prompt cache that there is."""
    with (
        shared_memory_directory() as directory,
        HostProcess(directory, CHAT, "--slots", "1", "--threads", "1", "--batch", "64") as host,
    ):
        yield host


@pytest.fixture(scope="module", params=["auto", "never"])
def one_slot_router(one_slot_host: HostProcess, request: pytest.FixtureRequest) -> Iterator[RouterProcess]:
    """Routers in front of it: one that folds, one that asks for the plain answer."""
    toml = one_slot_host.toml() + f'\n[models."{CHAT.model}"]\nfold = "{request.param}"\n'
    with shared_memory_directory() as directory, RouterProcess(directory, toml) as router:
        yield router


def test_answers_are_equal_with_the_prompt_cache_as_hosts_use_it(
    one_slot_host: HostProcess, one_slot_router: RouterProcess
) -> None:
    # The host keeps the last prompt and computes only what is new of the next one. How much that is decides over
    # cached_tokens and, by the shape of the computation, over the last bits of each number. So the same request goes
    # first once to either side: afterwards the cache is the same before the two that are compared.
    body = {"model": CHAT.model, "temperature": 0, "seed": 1, "messages": say("Name three animals"), "max_tokens": 12}
    ask_host(one_slot_host, CHAT_PATH, body)
    ask_router(one_slot_router, CHAT_PATH, body)
    of_host = ask_host(one_slot_host, CHAT_PATH, body)
    of_router, record = ask_router(one_slot_router, CHAT_PATH, body)
    assert of_host.body["usage"]["prompt_tokens_details"]["cached_tokens"] > 0, "the cache was used"
    assert comparable(of_router.body) == comparable(of_host.body)
    assert record["n_cached"] == of_host.body["usage"]["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": say("word " * 3000)},
        {"messages": say("hi"), "response_format": {"type": "poem"}},
        {"messages": [{}]},
    ],
    ids=["context too long", "unknown format", "no role"],
)
def test_an_error_of_the_host_is_the_same_folded(
    llama_host: HostProcess, router: RouterProcess, fields: dict[str, Any]
) -> None:
    body = {"model": CHAT.model, **fields}
    of_host = ask_host(llama_host, CHAT_PATH, body)
    of_router, record = ask_router(router, CHAT_PATH, body)
    assert of_router.status == of_host.status
    assert of_host.status in {400, 500}, of_host.body
    for key in ("message", "type"):
        assert of_router.body["error"][key] == of_host.body["error"][key]
    assert record["error"] == "host_status"
    assert record["status"] == of_host.status
