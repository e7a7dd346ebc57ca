"""Traces of a real router: hosts are told the spans that a collector gets, and each opens by its id."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from router.observer import client
from router.observer.client import ObserverError
from router.observer.traces.page import TracePage
from tests.faults.stage import host_entry
from tests.support import scripted_host as sh
from tests.support.otlp_collector import Collector, Got
from tests.support.processes import Program, RouterProcess
from tests.support.scripted_host import End, ScriptedHost, chunk
from tests.support.waiting import free_port, shared_memory_directory, wait_until

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "a=b"}
PROMPT, ANSWER, HOST_KEY, CLIENT_KEY, EXPORT_KEY, USER = (f"canary-{name}" for name in (
    "prompt", "answer", "host-key", "client-key", "export-key", "user"))  # fmt: skip
FACTS = {"trace_headers": True, "request_id_header": True}
INVALID = {
    "without a caller": {},
    "with an odd caller": {"traceparent": "00-zz-1-01"},
    "with a caller of zeros": {"traceparent": f"00-{'0' * 32}-{CALLER}-01"},
}
CALL = sh.choice_event({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]})


class Traced:
    """A router before two hosts, its observer, and the collector it exports to."""

    def __init__(self, directory: Path, collector: Collector, hosts: tuple[ScriptedHost, ScriptedHost]) -> None:
        self.collector = collector
        self.hosts = hosts
        self.address = f"127.0.0.1:{free_port()}"
        toml = (
            f'[observer]\nhttp = "{self.address}"\ndata_dir = "{directory / "data"}"\n'
            f'[observer.traces]\nendpoint = "{collector.url}"\nsample_ratio = 1.0\n'
            'headers_env = { "x-key" = "EXPORT" }\n'
            "[health]\nbreaker = { failures = 0, share = 0 }\n"
        ) + "".join(host_entry(each, facts=FACTS, api_key_env="HOST_KEY") for each in hosts)
        environment = {"HOST_KEY": HOST_KEY, "EXPORT": EXPORT_KEY}
        self.router = RouterProcess(directory, toml, environment=environment)
        command = [sys.executable, "-m", "router", "observe", "--config", str(self.router.config_path)]
        self.observer = Program("observer", command, directory / "observer.log", environment)

    def ask_all(self) -> None:
        """Ask for whatever the tests look at, each under a name of its own."""
        self.ask("with a caller", TRACEPARENT)
        for name, headers in INVALID.items():
            self.ask(name, headers)
        self.ask("retried", TRACEPARENT, script=[chunk(b"not HTTP"), End.CLOSE])
        session = {"x-ringrouter-tag-session-id": "s-1"}
        finish = sh.choice_event({}, "tool_calls")
        self.ask("calls tools", session, script=sh.chunked((sh.ROLE, CALL, finish, sh.USAGE, sh.DONE)))
        longer = sh.choice_event({}, usage={"prompt_tokens": 50, "completion_tokens": 1, "total_tokens": 51})
        self.ask("carries results", session, script=sh.chunked((sh.ROLE, *sh.TOKENS, sh.FINISH, longer, sh.DONE)))
        message = {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}
        answer = sh.PLAIN | {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
        self.ask("calls tools at once", stream=False, script=[sh.json_answer(200, answer)])
        said = sh.PLAIN["choices"][0]["message"] | {"tool_calls": []}  # as vLLM has it in every answer
        answer = sh.PLAIN | {"choices": [{"index": 0, "message": said, "finish_reason": "stop"}]}
        self.ask("plain", stream=False, script=[sh.json_answer(200, answer)])
        self.ask("secret answer", script=sh.chunked((sh.ROLE, sh.token(ANSWER), sh.FINISH, sh.USAGE, sh.DONE)))
        error = {"error": {"message": f"too long: {PROMPT}", "type": "invalid_request_error"}}
        self.ask("refused", script=[sh.json_answer(400, error)])
        self.ask("opened", {"x-ringrouter-tag-feature-name": "search"})

    def ask(
        self,
        name: str,
        headers: dict[str, str] | None = None,
        *,
        stream: bool = True,
        script: sh.Script = (),
    ) -> None:
        """Ask for a chat and wait for its end; whichever host gets it first does what ``script`` says."""
        for host in self.hosts:
            if script:
                host.script(*script)
        self._ask(name, headers or {}, stream=stream)
        for host in self.hosts:
            host.forget_scripts()

    def _ask(self, name: str, headers: dict[str, str], *, stream: bool) -> None:
        request_id = name.replace(" ", "-")
        body = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": PROMPT}], "user": USER}
        connection = http.client.HTTPConnection("127.0.0.1", self.router.port, timeout=10)
        own = {"content-type": "application/json", "x-request-id": request_id, "authorization": f"Bearer {CLIENT_KEY}"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), own | headers)
        connection.getresponse().read()
        connection.close()

    def wait_observing(self) -> None:
        """Wait until the observer has found the router."""

        def look() -> bool:
            self.observer.check_running()
            try:
                return bool(client.state(self.address).sources)
            except ObserverError:
                return False

        wait_until(look, "the observer")

    def spans_of(self, name: str) -> list[Got]:
        """Return the spans of a request that the collector got, the whole first."""
        request_id = name.replace(" ", "-")

        def found(spans: list[Got]) -> list[Got]:
            return [span for span in spans if span.attributes.get("ringrouter.request.id") == request_id]

        spans = self.collector.wait(found, f"the trace of {request_id}")
        (whole,) = found(spans)
        return [whole, *(span for span in spans if span.parent_id == whole.span_id)]

    def trace(self, identity: str, *arguments: str) -> TracePage:
        """Run ``ringrouter trace``."""
        command = [sys.executable, "-m", "router", "trace", identity, "--json", *arguments]
        done = subprocess.run(command, capture_output=True, check=False, timeout=100)
        assert done.returncode == 0, done.stderr.decode()
        return msgspec.json.decode(done.stdout, type=TracePage)

    def told(self, name: str) -> list[dict[str, str]]:
        """Return the headers that hosts got of a request."""
        headers = [each.headers for host in self.hosts for each in host.exchanges]
        return [each for each in headers if each["x-request-id"] == name.replace(" ", "-")]


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    with (
        shared_memory_directory() as directory,
        Collector() as collector,
        ScriptedHost("alpha") as alpha,
        ScriptedHost("beta") as beta,
    ):
        one = Traced(directory, collector, (alpha, beta))
        with one.router, one.observer:
            one.wait_observing()
            one.ask_all()
            yield one


def test_the_span_that_a_host_is_told_is_the_attempts_and_the_request_is_its_callers(traced: Traced) -> None:
    whole, *parts = traced.spans_of("with a caller")
    assert (whole.trace_id, whole.parent_id, whole.kind) == (TRACE, CALLER, "server")
    (attempt,) = [span for span in parts if span.kind == "client"]
    (headers,) = traced.told("with a caller")
    assert headers["traceparent"] == f"00-{TRACE}-{attempt.span_id}-01"
    assert headers["tracestate"] == "a=b"
    assert {span.name for span in parts if span.kind == "internal"} == {"receive", "queue", "route", "respond"}
    for span in parts:
        assert whole.start_ns <= span.start_ns <= span.end_ns
        assert span.trace_id == TRACE


@pytest.mark.parametrize("name", list(INVALID))
def test_without_a_valid_trace_of_the_caller_host_and_collector_get_the_requests_own(traced: Traced, name: str) -> None:
    whole, *parts = traced.spans_of(name)
    (attempt,) = [span for span in parts if span.kind == "client"]
    (headers,) = traced.told(name)
    assert whole.parent_id == ""
    assert headers["traceparent"] == f"00-{whole.trace_id}-{attempt.span_id}-01"


def test_each_attempt_at_a_host_is_told_its_own_span(traced: Traced) -> None:
    attempts = [span for span in traced.spans_of("retried") if span.kind == "client"]
    told = [headers["traceparent"].split("-")[2] for headers in traced.told("retried")]
    assert sorted(told) == sorted(span.span_id for span in attempts)
    assert len(told) >= 2
    assert [span.error is None for span in attempts] == [False] * (len(told) - 1) + [True]


def test_the_time_between_a_call_of_tools_and_its_result_is_a_span(traced: Traced) -> None:
    first, second = traced.spans_of("calls tools")[0], traced.spans_of("carries results")
    assert first.attributes["ringrouter.calls_tools"] is True
    (tools,) = [span for span in second if span.name == "execute_tool"]
    assert tools.attributes["ringrouter.inferred"] is True
    assert (tools.end_ns, tools.start_ns) == (second[0].start_ns, first.end_ns)
    assert tools.links == second[0].links == [(first.trace_id, first.span_id)]


def test_a_whole_answer_that_calls_tools_says_so(traced: Traced) -> None:
    assert traced.spans_of("calls tools at once")[0].attributes.get("ringrouter.calls_tools") is True
    assert "ringrouter.calls_tools" not in traced.spans_of("plain")[0].attributes


def test_nothing_of_prompts_answers_keys_or_users_leaves(traced: Traced) -> None:
    traced.spans_of("secret answer")
    assert traced.spans_of("refused")[0].attributes["error.type"] == "host_status"
    sent = b"".join(traced.collector.bodies)
    assert b"ringrouter.request.id" in sent
    assert b"canary" not in sent
    assert b"canary" not in traced.observer.log_path.read_bytes()
    assert traced.collector.headers[-1]["x-key"] == EXPORT_KEY, "the key goes where it belongs"


def test_a_trace_opens_from_memory_the_journal_and_the_rings_with_the_same_spans(
    traced: Traced, tmp_path: Path
) -> None:
    request_id = "opened"
    whole = traced.spans_of(request_id)[0]
    with_observer = traced.trace(request_id, "--url", traced.address)
    assert with_observer.source == "observer"
    (request,) = with_observer.requests
    assert (request.trace_id, request.span_id) == (whole.trace_id, whole.span_id)
    assert traced.trace(whole.trace_id, "--url", traced.address).requests == with_observer.requests
    config = ["--config", str(traced.router.config_path)]
    wait_until(lambda: _state(traced).observer.journal == "on", "the journal")
    traced.observer.kill()
    from_journal = traced.trace(request_id, *config)
    assert from_journal.source == "journal"
    assert from_journal.requests == with_observer.requests, "the same ids, times and attributes"
    rings = ["--data-dir", str(tmp_path), "--run-dir", str(traced.router.run_dir)]
    from_rings = traced.trace(whole.trace_id, *rings)
    assert from_rings.source == "rings"
    assert [_ids(each) for each in from_rings.requests] == [_ids(each) for each in with_observer.requests]
    traced.observer.start()
    traced.wait_observing()
    again = json.loads(client.get(traced.address, f"/traces/{request_id}.json"))
    assert again["source"] == "journal", "the new observer has it from disk"
    assert msgspec.convert(again, TracePage).requests == with_observer.requests


def test_an_unknown_id_is_not_found(traced: Traced) -> None:
    with pytest.raises(client.NotFoundError, match="no request with the id 'nobody'"):
        client.get(traced.address, "/traces/nobody.json")


def test_an_endpoint_that_fails_is_told_and_nothing_is_lost_over_a_stop(traced: Traced) -> None:
    traced.collector.status = 500
    traced.ask("while it fails")
    health = wait_until(lambda: _reasons(traced, "traces are not exported"), "the health says so")
    assert health == [health[0]]
    assert "127.0.0.1: answers 500" in health[0]
    assert traced.observer.stop() == 0
    traced.collector.status = 200
    before = len(traced.collector.bodies)
    traced.observer.start()
    traced.wait_observing()
    assert traced.spans_of("while it fails")
    assert len(traced.collector.bodies) > before


def _state(traced: Traced) -> Any:
    return client.state(traced.address)


def _reasons(traced: Traced, begin: str) -> list[str]:
    reasons = json.loads(client.get(traced.address, "/healthz"))["reasons"]
    return [reason for reason in reasons if reason.startswith(begin)]


def _ids(request: Any) -> set[tuple[str, str, str]]:
    return {(span.trace_id, span.span_id, span.parent_id) for span in request.spans}
