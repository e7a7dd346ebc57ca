"""What a request for vectors says of its way (class, deadline, host) holds for the calls that are made for it."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.client import Client
from tests.faults.stage import QUIET, SHORT_TICK, Stage, host_entry
from tests.support.embedding_host import EmbeddingHost, vector_of
from tests.support.scripted_host import WAIT_S, Gate

PATH = "/v1/embeddings"
TOML = "[timeouts]\nqueue_s = 1.5\n[models.solo.timeouts]\nqueue_s = 30\n"
TOML += "[cache.embeddings]\nenabled = true\nbatch_texts = 2\nwait_ms = 1\n"
_numbers = itertools.count()
REALTIME, BATCH = "x-ringrouter-class: realtime\r\n", "x-ringrouter-class: batch\r\n"


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[EmbeddingHost]]:
    with EmbeddingHost("e1", models=("m", "solo")) as first, EmbeddingHost("e2") as second:
        yield [first, second]


@pytest.fixture(scope="module")
def running_stage(directory: Path, hosts: list[EmbeddingHost]) -> Iterator[Stage]:
    toml = QUIET + SHORT_TICK + TOML + "".join(host_entry(host, slots=1) for host in hosts)
    with Stage(directory, hosts, toml) as running:
        yield running


@pytest.fixture
def gate(stage: Stage, hosts: list[EmbeddingHost]) -> Iterator[Gate]:
    """The first host has its one slot taken, and answers nothing until the gate opens."""
    hosts[1].exchanges.clear()
    hosts[0].exchanges.clear()
    hosts[0].gate = gate = stage.gate()
    ask(stage, f"first {next(_numbers)}")
    assert gate.reached.wait(WAIT_S)
    yield gate
    hosts[0].gate = None


def ask(stage: Stage, texts: Any, head: str = "", *, model: str = "solo") -> Client:
    client = stage.client()
    client.post({"model": model, "input": texts}, PATH, more=head)
    return client


def got(client: Client, *texts: str) -> None:
    answer = client.answer()
    assert answer.status == 200, answer.body
    assert [item["embedding"] for item in answer.json()["data"]] == [vector_of(text) for text in texts]


def calls_waiting(stage: Stage) -> int:
    return sum(row["request_id"].startswith("cache-call") for row in stage.in_flight("waiting"))


@pytest.mark.parametrize("is_joined", [False, True])
def test_a_call_goes_before_those_of_a_lesser_class_also_when_the_urgent_come_while_it_waits(
    stage: Stage, hosts: list[EmbeddingHost], gate: Gate, is_joined: bool
) -> None:
    tail = f"{is_joined}"
    clients = []
    for n in range(3):
        texts = [f"batch {n} {tail}", f"more {n} {tail}"]
        clients.append((ask(stage, texts, BATCH), texts))
        stage.wait(lambda n=n: calls_waiting(stage) == n + 1, "the call waits for a slot")
    urgent = f"more 2 {tail}" if is_joined else f"urgent {tail}"
    clients.append((ask(stage, [urgent], REALTIME), [urgent]))
    if is_joined:
        stage.wait(lambda: len(stage.in_flight("prefill")) == 6, "it waits with the last one")
    else:
        stage.wait(lambda: calls_waiting(stage) == 4, "its call waits too")
    gate.open()
    for client, texts in clients:
        got(client, *texts)
    order = hosts[0].calls[1:]
    assert urgent in order[0], order
    assert [call[0] for call in order if urgent not in call] == [
        f"batch {n} {tail}" for n in range(2 if is_joined else 3)
    ]
    records = [r for r in stage.finished(9 if is_joined else 10) if r["request_id"].startswith("cache-call")]
    assert sorted(record["workload"] for record in records[1:]) == ([1, 3, 3] if is_joined else [1, 3, 3, 3])


def test_who_has_a_deadline_is_refused_when_it_passes_and_those_who_have_none_are_answered(
    stage: Stage, hosts: list[EmbeddingHost], gate: Gate
) -> None:
    patient = ask(stage, ["wanted by two"])
    stage.wait(lambda: calls_waiting(stage) == 1, "its call waits")
    hurried = ask(stage, ["wanted by two"], "x-ringrouter-deadline-ms: 150\r\n")
    answer = hurried.answer()
    assert answer.status == 503, answer.body
    assert answer.error["code"] == "deadline_exceeded"
    assert "no host was free by the deadline, 150 ms after the request came" in answer.error["message"]
    gate.open()
    got(patient, "wanted by two")
    assert hosts[0].calls[1:] == [["wanted by two"]]


def test_a_call_for_one_deadline_alone_is_given_up_with_it(
    stage: Stage, hosts: list[EmbeddingHost], gate: Gate
) -> None:
    answer = ask(stage, ["wanted by one"], "x-ringrouter-deadline-ms: 150\r\n").answer()
    assert answer.status == 503, answer.body
    assert answer.error["code"].startswith("deadline_")
    stage.wait(lambda: not calls_waiting(stage), "nothing waits for it any more")
    gate.open()
    stage.wait(lambda: not stage.in_flight(), "the first is answered")
    assert len(hosts[0].calls) == 1


def test_a_deadline_holds_until_a_host_has_the_text_and_no_longer(
    stage: Stage, hosts: list[EmbeddingHost], gate: Gate
) -> None:
    gate.open()
    hosts[0].gate = held = stage.gate()
    client = ask(stage, ["at the host"], "x-ringrouter-deadline-ms: 600\r\n")
    assert held.reached.wait(WAIT_S)
    other = ask(stage, ["behind it"], "x-ringrouter-deadline-ms: 900\r\n")
    assert other.answer().status == 503, "by now the first one's has passed too"
    held.open()
    got(client, "at the host")


def test_a_pinned_request_is_computed_by_its_host_and_holds_up_nobody_else(
    stage: Stage, hosts: list[EmbeddingHost], gate: Gate
) -> None:
    pinned = ask(stage, ["same text"], "x-ringrouter-host: e1\r\n", model="m")
    stage.wait(lambda: calls_waiting(stage) == 1, "its call waits for its host")
    got(ask(stage, ["same text"], model="m"), "same text")
    assert hosts[1].calls == [["same text"]]
    gate.open()
    got(pinned, "same text")
    assert hosts[0].calls[1:] == [["same text"]]


def test_a_reload_does_not_have_the_time_in_the_queue_run_out_for_who_waits_for_a_host_at_work(
    stage: Stage, hosts: list[EmbeddingHost], gate: Gate
) -> None:
    gate.open()
    stage.wait(lambda: not stage.in_flight(), "the first is answered")
    hosts[0].gate = held = stage.gate()
    client = ask(stage, ["a slow one"], "x-ringrouter-host: e1\r\n", model="m")
    assert held.reached.wait(WAIT_S)
    stage.router.signal(signal.SIGHUP)
    stage.wait_counter("config_reloads", 1)
    parked = next(row for row in stage.in_flight() if not row["request_id"].startswith("cache-call"))
    other = ask(stage, ["behind it"], "x-ringrouter-host: e1\r\n", model="m")
    answer = other.answer()
    assert answer.error["code"] == "queue_timeout", "as long as this one has waited, the other has too"
    assert parked["request_seq"] in {row["request_seq"] for row in stage.in_flight()}
    held.open()
    got(client, "a slow one")
