"""Further paths of a real llama.cpp server through the router: the same bytes as from the server itself."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from tests.captures import split_events
from tests.support.processes import HostProcess, RouterProcess
from tests.support.records import done_record
from tests.support.unix_http import UnixConnection
from tests.support.waiting import wait_until

ANSWER_S = 60.0
HELLO = [{"role": "user", "content": "Say hello"}]
# Without its prompt cache the host computes the same request in the same way, however often it is asked.
SAME: dict[str, Any] = {"temperature": 0, "seed": 1, "cache_prompt": False}
CHANGING = re.compile(
    rb'"(?:id|item_id)": ?"[^"]*"'  # made anew for each answer
    rb'|"(?:created|created_at|completed_at)": ?[0-9.]+'
    rb'|"(?:prompt|predicted)_(?:per_token_)?(?:ms|per_second)": ?[0-9.e+-]+'
    rb'|"id_slot": ?-?[0-9]+'
)


def post(
    connection: http.client.HTTPConnection, path: str, body: dict[str, Any], **headers: str
) -> tuple[int, str, bytes]:
    """Return status, content type and body of an answer."""
    given = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    connection.request("POST", path, json.dumps(body), given)
    response = connection.getresponse()
    answer = response.status, response.headers["content-type"], response.read()
    connection.close()
    return answer


@pytest.fixture
def direct(llama_host: HostProcess) -> http.client.HTTPConnection:
    return UnixConnection(llama_host.socket_path, ANSWER_S)


@pytest.fixture
def routed(router: RouterProcess) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", router.port, timeout=ANSWER_S)


@pytest.fixture
def client(router: RouterProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{router.base_url}/v1", api_key="any", max_retries=0, timeout=ANSWER_S) as client:
        yield client


def settled(body: bytes) -> bytes:
    """Return a body without what differs between two answers to the same request."""
    return CHANGING.sub(b'"-":0', body)


@pytest.mark.parametrize(
    ("path", "endpoint", "fields"),
    [
        ("/v1/messages", "messages", {"messages": HELLO, "max_tokens": 8}),
        ("/v1/responses", "responses", {"input": "Say hello", "max_output_tokens": 8}),
        ("/completion", "other", {"prompt": "Once upon a time", "n_predict": 8}),
    ],
    ids=["messages", "responses", "completion"],
)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_an_answer_is_the_same_through_the_router(
    llama_host: HostProcess,
    router: RouterProcess,
    direct: http.client.HTTPConnection,
    routed: http.client.HTTPConnection,
    path: str,
    endpoint: str,
    fields: dict[str, Any],
    stream: bool,
) -> None:
    body = {"model": llama_host.model, "stream": stream, **SAME, **fields}
    post(direct, path, body)  # messages use the prompt cache, whatever is asked: now it holds all of the prompt
    wanted = post(direct, path, body)
    request_id = f"{endpoint}-{stream}"
    got = post(routed, path, body, x_request_id=request_id)
    assert wanted[0] == 200, wanted
    assert got[:2] == wanted[:2]
    assert settled(got[2]) == settled(wanted[2]), "the host's bytes, but for ids and times"
    record = done_record(router, request_id)
    assert (record["endpoint"], record["outcome"]) == (endpoint, "ok")
    assert record["n_out"] == 8
    assert record["n_in"] > 0
    assert "n_out_estimated" not in record["flags"]
    if stream:
        assert record["n_events"] == len(split_events(got[2])[0]), "one record for every event"
        assert record["n_content"] >= 4
        assert record["ttft_ns"] < record["e2e_ns"]


def test_tokens_of_a_text_and_back(llama_host: HostProcess, routed: http.client.HTTPConnection) -> None:
    status, _, answer = post(routed, "/tokenize", {"content": "Hello, world"}, x_ringrouter_model=llama_host.model)
    assert status == 200
    tokens = json.loads(answer)["tokens"]
    assert tokens
    body = {"model": llama_host.model, "tokens": tokens}
    status, _, answer = post(routed, "/detokenize", body)
    assert (status, json.loads(answer)) == (200, {"content": "Hello, world"})


def test_a_template_is_applied_and_tokens_are_counted(
    llama_host: HostProcess, routed: http.client.HTTPConnection
) -> None:
    body = {"model": llama_host.model, "messages": HELLO, "max_tokens": 1}
    status, _, answer = post(routed, "/apply-template", body)
    assert status == 200
    assert "Say hello" in json.loads(answer)["prompt"]
    status, _, answer = post(routed, "/v1/messages/count_tokens?beta=true", body, anthropic_version="2023-06-01")
    assert status == 200
    assert json.loads(answer)["input_tokens"] > 3


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses", "/apply-template"])
def test_a_request_that_the_host_refuses_is_refused_alike(
    llama_host: HostProcess, direct: http.client.HTTPConnection, routed: http.client.HTTPConnection, path: str
) -> None:
    body = {"model": llama_host.model, "max_tokens": 1}
    wanted = post(direct, path, body)
    assert wanted[0] >= 400, "the host refuses it"
    assert post(routed, path, body) == wanted


def test_the_openai_sdk_streams_a_response(llama_host: HostProcess, client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": llama_host.model, "input": "Say hello", "max_output_tokens": 8, "temperature": 0}
    plain = client.responses.create(**asked)
    events = list(client.responses.create(**asked, stream=True))
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert plain.output_text, "the model says something"
    assert deltas == plain.output_text
    assert [events[0].type, events[-1].type] == ["response.created", "response.completed"]
    assert events[-1].response.usage.output_tokens == 8


def test_leaving_a_stream_of_messages_frees_the_host(
    llama_host: HostProcess, router: RouterProcess, routed: http.client.HTTPConnection
) -> None:
    body = {"model": llama_host.model, "messages": HELLO, "max_tokens": 1500, "stream": True, "ignore_eos": True}
    routed.request("POST", "/v1/messages", json.dumps(body), {"x-request-id": "left"})
    response = routed.getresponse()
    while b"content_block_delta" not in response.readline():
        pass
    response.close()
    routed.close()
    assert done_record(router, "left")["outcome"] == "client_gone"
    wait_until(lambda: llama_host.busy_slot_count() == 0, "the host works for nobody")
