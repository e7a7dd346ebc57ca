"""The folded answer of a real llama.cpp host equals its plain answer in all but id, created and values of timings."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router.hosts.fold import Fold
from router.hosts.scanner import StreamScanner
from router.http1 import LengthDecoder
from tests.support.processes import HostProcess
from tests.support.unix_http import UnixConnection

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
ANSWER_S = 60.0

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather for a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["c", "f"]}},
            "required": ["city", "unit"],
        },
    },
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


def say(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def weather_talk() -> list[dict[str, Any]]:
    """A small model calls a tool reliably when it has seen a few calls."""
    talk = []
    for number, city in enumerate(["Rome", "Oslo", "Berlin"]):
        arguments = json.dumps({"city": city, "unit": "c"})
        call = {"id": f"call_{number}", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
        talk += [*say(f"What is the weather in {city}?"), {"role": "assistant", "content": None, "tool_calls": [call]}]
    return talk + say("What is the weather in Paris?")


HELLO = {"messages": say("Say hello")}
TOOLS = {"messages": weather_talk(), "tools": [WEATHER], "max_tokens": 60}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
EMOJI = {"messages": [*say("Repeat: 😀🎉"), {"role": "assistant", "content": "😀🎉"}, *say("Repeat: 😀🎉漢")]}
NEW_YORK = {"prompt": "New York is"}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "max_tokens": (CHAT, {**HELLO, "max_tokens": 8}),
    "one token": (CHAT, {**HELLO, "max_tokens": 1}),
    "end of text": (CHAT, {"messages": say("Say hi in one word."), "max_tokens": 80}),
    "stop string": (CHAT, {"messages": say("Count: one two three"), "max_tokens": 40, "stop": [" subset of a"]}),
    "nothing said": (CHAT, {**HELLO, "max_tokens": 5, "stop": ["I"]}),
    "tool required": (CHAT, {**TOOLS, "tool_choice": "required", "parallel_tool_calls": False}),
    "tool auto, two choices": (CHAT, {**TOOLS, "n": 2}),
    "logprobs": (CHAT, {**HELLO, "max_tokens": 4, "logprobs": True, "top_logprobs": 2}),
    "logprobs of the chosen token": (CHAT, {**HELLO, "max_tokens": 3, "logprobs": True, "top_logprobs": 1}),
    "two choices": (CHAT, {**HELLO, "max_tokens": 4, "n": 2}),
    "two choices of other lengths": (
        CHAT,
        {"messages": say("Say hi in one word."), "n": 2, "temperature": 1.2, "seed": 3, "max_tokens": 40},
    ),
    "three choices": (CHAT, {**HELLO, "max_tokens": 4, "n": 3, "temperature": 0.9, "seed": 5}),
    "json schema": (CHAT, {"messages": say("Give me a name and age"), "max_tokens": 60, "response_format": SCHEMA}),
    "emoji": (CHAT, {**EMOJI, "max_tokens": 12}),
    "timings per token": (CHAT, {**HELLO, "max_tokens": 3, "timings_per_token": True}),
    "completion": (COMPLETION, {**NEW_YORK, "max_tokens": 6}),
    "completion, one token": (COMPLETION, {**NEW_YORK, "max_tokens": 1}),
    "completion with logprobs": (COMPLETION, {**NEW_YORK, "max_tokens": 4, "logprobs": 2}),
    "completion with echo": (COMPLETION, {**NEW_YORK, "max_tokens": 4, "echo": True}),
    "completion with a stop string": (COMPLETION, {"prompt": "1, 2, 3, 4,", "max_tokens": 20, "stop": [" 7"]}),
    "completion, two choices": (COMPLETION, {**NEW_YORK, "max_tokens": 4, "n": 2}),
    "completion, two prompts": (COMPLETION, {"prompt": ["New York is", "The sea is blue and"], "max_tokens": 4}),
}


def ask(host: HostProcess, path: str, request: dict[str, Any]) -> bytes:
    """Return the body of the host's answer, chunk framing taken off."""
    connection = UnixConnection(host.socket_path, ANSWER_S)
    try:
        connection.request("POST", path, json.dumps(request), {"content-type": "application/json"})
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    assert response.status == 200, body
    return body


def folded(stream: bytes, *, chat: bool) -> dict[str, Any]:
    scanner = StreamScanner(LengthDecoder(len(stream)), keep_payloads=True)
    scanner.feed(stream)
    assert scanner.succeeded
    assert scanner.payloads is not None
    fold = Fold(chat=chat, answer_bytes_max=1 << 20)
    for payload in scanner.payloads:
        fold.add(payload)
    return json.loads(fold.answer())


def comparable(answer: dict[str, Any]) -> dict[str, Any]:
    """Take out what differs from request to request, after a look at its form."""
    assert answer.pop("id").startswith("chatcmpl-")
    assert isinstance(answer.pop("created"), int)
    answer["timings"] = sorted(answer["timings"])
    for choice in answer["choices"]:
        for call in choice.get("message", {}).get("tool_calls", ()):
            assert len(call.pop("id")) == 32
    return answer


@pytest.mark.parametrize("case", CASES)
def test_the_folded_answer_equals_the_plain_one(llama_host: HostProcess, case: str) -> None:
    path, fields = CASES[case]
    # Without its prompt cache the host computes both answers in the same way.
    request = {"model": llama_host.model, "temperature": 0, "seed": 1, "cache_prompt": False, **fields}
    plain = ask(llama_host, path, request)
    asked = {"stream": True, "stream_options": {"include_usage": True}, "return_progress": True}
    stream = ask(llama_host, path, request | asked)
    assert comparable(folded(stream, chat=path == CHAT)) == comparable(json.loads(plain))
