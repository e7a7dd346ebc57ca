"""Classes, deadlines, shares and levers between real sockets: who is served first, who is refused, what hosts get."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from router.admission import BATCH, REALTIME
from router.telemetry.records import Lever
from tests.faults.client import Answer, Client
from tests.faults.stage import MS, QUIET, SHORT_TICK, Stage, check_on_time, host_entry
from tests.support import scripted_host as sh
from tests.support.scripted_host import Gate, ScriptedHost
from tests.support.waiting import shared_memory_directory, wait_until

SAMPLE_COUNT = 10
"""Answers after which the router foretells."""
RULES = """
[models.bounded.admission]
default_class = "batch"
classes = { batch = { waiting = 1 }, realtime = { deadline_ms = 60000 } }
[models.late.admission]
on_deadline = "serve"
[models.unfair.admission]
fair_share = false
[models.capped.levers]
max_output_tokens = 512
temperature_max = 1.0
[features.autocomplete]
model = "capped"
default_class = "realtime"
deadline_ms = 30000
max_output_tokens = 64
default_temperature = 0.0
[features.nightly]
default_class = "batch"
"""
MODELS = ("m", "bounded", "late", "unfair", "capped")


@pytest.fixture(scope="module")
def host() -> Iterator[ScriptedHost]:
    with ScriptedHost("alpha", models=MODELS) as host:
        yield host


@pytest.fixture(scope="module")
def running_stage(directory: Path, host: ScriptedHost) -> Iterator[Stage]:
    facts = {"paths": ["/v1/responses", "/v1/messages", "/completion"]}
    toml = QUIET + SHORT_TICK + RULES + host_entry(host, slots=1, facts=facts)
    with Stage(directory, [host], toml, models=["m"]) as stage:
        yield stage


class Queue:
    """The host's one slot is taken; whoever asks then waits, and is served by the order of the waiting room."""

    def __init__(self, stage: Stage, host: ScriptedHost) -> None:
        self.stage = stage
        self.host = host
        self.gate: Gate = stage.gate()
        self.before = len(host.exchanges) + 1
        host.script(self.gate, *sh.chunked(sh.STREAM))
        self.clients: list[Client] = [stage.client()]
        self.clients[0].chat()
        self.gate.wait_reached()

    def ask(self, seed: str, *head: str, model: str = "m", **fields: Any) -> Client:
        count = len(self.stage.in_flight("waiting"))
        client = self.stage.client()
        client.chat(model=model, more="\n".join(head), seed=seed, **fields)
        self.clients.append(client)
        self.stage.wait_phase("waiting", count + 1)
        return client

    def served(self) -> list[str]:
        """Let all be served; return their seeds in the order in which the host got them."""
        self.gate.open()
        for client in self.clients:
            answer = client.answer()
            assert (answer.status, answer.ended) == (200, True), answer.body
        self.stage.finished(len(self.clients))
        return [exchange.json()["seed"] for exchange in self.host.exchanges[self.before :]]


def refused(client: Client) -> tuple[int, str, str]:
    answer = client.answer()
    return answer.status, answer.error["code"], answer.error["message"]


def asked(
    stage: Stage, host: ScriptedHost, *head: str, path: str = "/v1/chat/completions", **fields: Any
) -> tuple[Answer, Any]:
    """Send one request; return its answer and the body that the host got."""
    count = len(host.exchanges)
    client = stage.client()
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": path.endswith("ions")} | fields
    client.post(body, path, more="\n".join(head))
    answer = client.answer()
    return answer, host.exchanges[count].json() if len(host.exchanges) > count else None


# ---------------------------------------------------------------- order
def test_classes_from_headers_tags_and_features(stage: Stage, host: ScriptedHost) -> None:
    queue = Queue(stage, host)
    queue.ask("plain")
    queue.ask("nightly", "x-ringrouter-tag-feature-name: nightly")
    queue.ask("batch tag", metadata={"workload_class": "batch"})
    queue.ask("realtime tag", "x-ringrouter-tag-realtime: 1")
    queue.ask("realtime", "x-ringrouter-class: realtime", "x-ringrouter-tag-feature-name: nightly")
    wait_until(lambda: stage.counter("waiting_batch") == 2, "the gauges show the classes")
    assert (stage.counter("waiting_realtime"), stage.counter("waiting_interactive")) == (2, 1)
    assert queue.served() == ["realtime tag", "realtime", "plain", "nightly", "batch tag"]


def test_the_record_has_class_and_deadline(stage: Stage, host: ScriptedHost) -> None:
    asked(stage, host, "x-ringrouter-class: batch", "x-ringrouter-deadline-ms: 30000")
    record = stage.last_finished()
    assert record["workload"] == BATCH
    assert record["deadline_ns"] == record["stamps"]["recv"] + 30_000 * MS
    asked(stage, host)
    record = stage.last_finished()
    assert (record["deadline_ns"], record["predicted_ttft_us"]) == (0, 0)
    assert record["workload"] == 0


def test_the_earliest_deadline_goes_first(stage: Stage, host: ScriptedHost) -> None:
    queue = Queue(stage, host)
    queue.ask("never")
    queue.ask("later", "x-ringrouter-deadline-ms: 60000")
    queue.ask("sooner", "x-ringrouter-deadline-ms: 30000.5")
    assert queue.served() == ["sooner", "later", "never"]


def test_users_take_turns(stage: Stage, host: ScriptedHost) -> None:
    queue = Queue(stage, host)
    for number in range(3):
        queue.ask(f"flood {number}", user="flood")
    queue.ask("guest 0", "x-ringrouter-tag-user-id: guest")
    queue.ask("guest 1", user="guest")
    assert queue.served() == ["flood 0", "guest 0", "flood 1", "guest 1", "flood 2"]


def test_users_take_no_turns_where_they_should_not(stage: Stage, host: ScriptedHost) -> None:
    queue = Queue(stage, host)
    for number in range(3):
        queue.ask(f"flood {number}", user="flood", model="unfair")
    queue.ask("guest", user="guest", model="unfair")
    assert queue.served() == ["flood 0", "flood 1", "flood 2", "guest"]


def test_a_class_that_has_its_own_bound(stage: Stage, host: ScriptedHost) -> None:
    queue = Queue(stage, host)
    queue.ask("one", model="bounded")
    client = stage.client()
    client.chat(model="bounded")
    status, code, message = refused(client)
    assert (status, code) == (429, "overloaded")
    assert message == "1 batch requests wait for 'bounded' (models.bounded.admission.classes.batch.waiting)"
    queue.ask("two", "x-ringrouter-class: realtime", model="bounded")
    count = stage.counter("refused_full")
    assert count >= 1
    queue.clients.append(stage.client())
    queue.clients[-1].chat(model="unfair", seed="three")
    queue.gate.open()
    for client in queue.clients:
        assert client.answer().status == 200
    assert len(stage.finished(5)) == 5


# ---------------------------------------------------------------- deadlines
def test_a_deadline_that_passes_while_waiting_ends_the_request(stage: Stage, host: ScriptedHost) -> None:
    queue = Queue(stage, host)
    expired = stage.counter("deadlines_exceeded")

    def measure() -> tuple[int, int, int]:
        client = stage.client()
        client.chat(more="x-ringrouter-deadline-ms: 120")
        status, code, message = refused(client)
        assert (status, code) == (503, "deadline_exceeded")
        assert message == "no host was free by the deadline, 120 ms after the request came"
        record = stage.last_finished()
        assert (record["outcome"], record["error"], record["attempt_count"]) == ("rejected", "deadline_exceeded", 0)
        return record["stamps"]["recv"], record["stamps"]["done"], record["stamps"]["done"]

    check_on_time(measure, 0.12)
    assert stage.counter("deadlines_exceeded") > expired
    queue.gate.open()
    assert queue.clients[0].answer().ended


def test_a_deadline_nearer_than_the_next_tick_is_met_too() -> None:
    with (
        shared_memory_directory() as directory,
        ScriptedHost("alpha") as host,
        Stage(directory, [host], QUIET + host_entry(host, slots=1)) as stage,
    ):
        queue = Queue(stage, host)

        def measure() -> tuple[int, int, int]:
            client = stage.client()
            client.chat(more="x-ringrouter-deadline-ms: 60")
            assert refused(client)[:2] == (503, "deadline_exceeded")
            stamps = stage.last_finished()["stamps"]
            return stamps["recv"], stamps["done"], stamps["done"]

        check_on_time(measure, 0.06)
        queue.gate.open()
        assert queue.clients[0].answer().ended
        stage.settle()


def test_a_deadline_that_only_orders(stage: Stage, host: ScriptedHost) -> None:
    queue = Queue(stage, host)
    queue.ask("late", "x-ringrouter-deadline-ms: 1", model="late")
    assert queue.served() == ["late"]


def test_one_that_is_hopeless_is_refused_at_once_with_figures(stage: Stage, host: ScriptedHost) -> None:
    for _ in range(SAMPLE_COUNT + 1):
        host.script(0.03, *sh.chunked(sh.STREAM))
        answer, _ = asked(stage, host, "x-ringrouter-deadline-ms: 60000")
        assert answer.status == 200
    queue = Queue(stage, host)
    for number in range(6):
        queue.ask(f"{number}")
    refused_count = stage.counter("refused_deadline")
    client = stage.client()
    client.chat(more="x-ringrouter-deadline-ms: 20\nx-ringrouter-class: batch")
    answer = client.answer()
    assert (answer.status, answer.error["code"]) == (503, "deadline_unreachable")
    assert answer.headers["retry-after"] == "1"
    assert "6 requests go first, 1 slots are held" in answer.error["message"]
    assert stage.counter("refused_deadline") == refused_count + 1
    queue.clients.append(stage.client())
    queue.clients[-1].chat(more="x-ringrouter-deadline-ms: 60000", seed="in time")
    stage.wait_phase("waiting", 7)
    queue.gate.open()
    for client in queue.clients:
        assert client.answer().status == 200
    records = stage.finished(SAMPLE_COUNT + 1 + 9)
    rejected = next(record for record in records if record["error"] == "deadline_unreachable")
    assert rejected["outcome"] == "rejected"
    assert rejected["predicted_ttft_us"] > 20_000
    assert rejected["stamps"]["done"] - rejected["stamps"]["recv"] < stage.allowed_ns(20 * MS), "it did not wait for it"


def test_an_idle_host_takes_whatever_comes(stage: Stage, host: ScriptedHost) -> None:
    for _ in range(SAMPLE_COUNT + 1):
        host.script(0.03, *sh.chunked(sh.STREAM))
        asked(stage, host, "x-ringrouter-deadline-ms: 60000")
    answer, _ = asked(stage, host, "x-ringrouter-deadline-ms: 10")
    assert answer.status == 200, "that hosts were slow once is no reason not to ask one that has nothing to do"
    assert len(stage.finished(SAMPLE_COUNT + 2)) == SAMPLE_COUNT + 2


@pytest.mark.parametrize(
    ("head", "param", "words"),
    [
        (
            "x-ringrouter-deadline-ms: soon",
            "x-ringrouter-deadline-ms",
            "'soon': expected milliseconds, a number from 1",
        ),
        ("x-ringrouter-deadline-ms: 0", "x-ringrouter-deadline-ms", "'0': expected"),
        ("x-ringrouter-class: urgent", "x-ringrouter-class", "'urgent': expected realtime, interactive or batch"),
    ],
)
def test_what_cannot_be_meant_is_named(stage: Stage, head: str, param: str, words: str) -> None:
    client = stage.client()
    client.chat(more=head)
    answer = client.answer()
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "bad_request", param)
    assert words in answer.error["message"]
    client.chat()
    assert client.answer().status == 200, "and the connection goes on"
    stage.finished(1)


# ---------------------------------------------------------------- levers
def test_the_rules_of_a_model(stage: Stage, host: ScriptedHost) -> None:
    answer, got = asked(stage, host, model="capped", max_tokens=4096, temperature=1.8, seed=7)
    assert answer.headers["x-ringrouter-levers"] == "max_tokens=512 (asked 4096), temperature=1 (asked 1.8)"
    assert (got["max_tokens"], got["temperature"], got["seed"]) == (512, 1.0, 7)
    record = stage.last_finished()
    assert (record["max_tokens"], record["asked_max_tokens"]) == (512, 4096)
    assert record["temperature"] == 1.0
    assert record["asked_temperature"] == pytest.approx(1.8)
    assert record["levers"] == Lever.MAX_TOKENS | Lever.TEMPERATURE
    answer, got = asked(stage, host, model="capped", max_tokens=100, stream=False)
    assert "x-ringrouter-levers" not in answer.headers
    assert got["max_tokens"] == 100
    stage.finished(2)


def test_the_rules_of_a_feature_go_first_and_name_the_model(stage: Stage, host: ScriptedHost) -> None:
    answer, got = asked(stage, host, "x-ringrouter-tag-feature-name: autocomplete", max_tokens=128)
    assert answer.headers["x-ringrouter-levers"] == (
        "model=capped (asked m), max_tokens=64 (asked 128), temperature=0 (not asked)"
    )
    assert (got["model"], got["max_tokens"], got["temperature"]) == ("capped", 64, 0)
    record = stage.last_finished()
    assert (record["model"], record["asked_model"]) == ("capped", "m")
    assert record["workload"] == REALTIME
    assert record["deadline_ns"] == record["stamps"]["recv"] + 30_000 * MS
    answer, got = asked(stage, host, metadata={"feature_name": "autocomplete"}, model="nobody-has-this")
    assert (answer.status, got["model"]) == (200, "capped")
    stage.finished(2)


@pytest.mark.parametrize(
    ("path", "field"),
    [("/v1/responses", "max_output_tokens"), ("/v1/messages", "max_tokens"), ("/completion", "n_predict")],
)
def test_other_apis_have_other_names(stage: Stage, host: ScriptedHost, path: str, field: str) -> None:
    host.script(sh.json_answer(200, {"ok": True}))
    answer, got = asked(stage, host, path=path, model="capped", **{field: 4096})
    assert (answer.status, got[field]) == (200, 512)
    assert answer.headers["x-ringrouter-levers"] == f"{field}=512 (asked 4096)"
    host.script(sh.json_answer(200, {"ok": True}))
    assert asked(stage, host, path=path, model="capped")[1][field] == 512
    stage.finished(2)


def test_what_came_in_is_what_is_counted(stage: Stage, host: ScriptedHost) -> None:
    body = json.dumps({"model": "capped", "messages": [], "max_tokens": 1_000_000_000}).encode()
    client = stage.client()
    client.post(body)
    assert client.answer().status == 200
    assert stage.last_finished()["bytes_in"] == len(body)


# ---------------------------------------------------------------- ZeroMQ
def test_a_zeromq_client_has_all_of_it(stage: Stage, host: ScriptedHost) -> None:
    client = stage.zeromq_client()
    answer = client.chat("one", model="capped", max_tokens=4096, keys={"request_class": "batch", "deadline_ms": 30_000})
    client.finish(answer)
    assert answer.done["levers"] == ["max_tokens=512 (asked 4096)"]
    record = stage.last_finished()
    assert record["workload"] == BATCH
    assert record["deadline_ns"] == record["stamps"]["recv"] + 30_000 * MS
    answer = client.chat("two")
    client.finish(answer)
    assert "levers" not in answer.done
    for keys, param in (
        ({"deadline_ms": -1}, "x-ringrouter-deadline-ms"),
        ({"request_class": "x"}, "x-ringrouter-class"),
    ):
        answer = client.chat("three", keys=keys)
        client.finish(answer)
        assert (answer.error["code"], answer.error["param"]) == ("bad_request", param)
    stage.finished(2)
