"""A host never gets more requests than it has slots; who waits is served in order; who cannot wait is told so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.client import Client
from tests.faults.stage import QUIET, SHORT_TICK, Stage, host_entry
from tests.support import scripted_host as sh
from tests.support.processes import host_toml
from tests.support.scripted_host import Gate, ScriptedHost
from tests.support.waiting import shared_memory_directory, wait_until

SLOT_COUNT = 2
WAITING_MAX = 8
CLIENT_COUNT = SLOT_COUNT + WAITING_MAX


@pytest.fixture(scope="module")
def llama_host() -> Iterator[ScriptedHost]:
    """It tells its kind, its model and its slots itself."""
    with ScriptedHost("llama", models=("own",), owned_by="llamacpp", total_slots=3) as host:
        yield host


@pytest.fixture(scope="module")
def running_stage(directory: Path, host: ScriptedHost, llama_host: ScriptedHost) -> Iterator[Stage]:
    toml = (
        f"{QUIET}{SHORT_TICK}[limits]\nwaiting = {WAITING_MAX}\nin_flight = 32\n"
        + host_entry(host, slots=SLOT_COUNT)
        + host_toml(llama_host.name, llama_host.url)
    )
    with Stage(directory, [host, llama_host], toml) as stage:
        yield stage


def ask(stage: Stage, host: ScriptedHost, count: int, model: str = "m", stream: bool = True) -> list[Client]:
    """Send requests one after another, each with its number as its seed."""
    clients = []
    for seed in range(count):
        client = stage.client()
        before = len(stage.in_flight())
        client.chat(model=model, stream=stream, seed=seed)
        wait_until(lambda before=before: len(stage.in_flight()) > before, "the request is taken")
        clients.append(client)
    return clients


@pytest.mark.parametrize("stream", [True, False])
def test_never_more_than_the_slots_and_first_come_first_served(stage: Stage, host: ScriptedHost, stream: bool) -> None:
    gates = [stage.gate() for _ in range(CLIENT_COUNT)]
    count = len(host.exchanges)
    for gate in gates:
        host.script(gate, *(sh.chunked(sh.STREAM) if stream else [sh.json_answer(200, sh.PLAIN)]))
    clients = ask(stage, host, CLIENT_COUNT, stream=stream)
    assert len(stage.in_flight("waiting")) == WAITING_MAX
    for number, (gate, client) in enumerate(zip(gates, clients, strict=True)):
        host.wait_exchange(count + min(number + SLOT_COUNT, CLIENT_COUNT))
        assert host.running_count <= SLOT_COUNT
        gate.open()
        answer = client.answer()
        assert answer.ended
        assert answer.status == 200
    assert host.running_count_max == SLOT_COUNT
    assert [exchange.json()["seed"] for exchange in host.exchanges[count:]] == list(range(CLIENT_COUNT))
    records = stage.finished(CLIENT_COUNT)
    ahead = [record["waiting_ahead"] for record in sorted(records, key=lambda record: record["request_seq"])]
    assert ahead == [0] * SLOT_COUNT + list(range(WAITING_MAX))


def test_a_burst_of_all_at_once_keeps_to_the_slots(stage: Stage, host: ScriptedHost) -> None:
    clients = [stage.client() for _ in range(CLIENT_COUNT)]
    for client in clients:
        host.script(0.005, *sh.chunked(sh.STREAM))
        client.chat()
    assert all(client.answer().text == "one two three" for client in clients)
    assert host.running_count_max == SLOT_COUNT
    stage.finished(CLIENT_COUNT)


def test_over_the_waiting_room_is_429_at_once(stage: Stage, host: ScriptedHost) -> None:
    gates = [stage.gate() for _ in range(SLOT_COUNT)]
    for gate in gates:
        host.script(gate, *sh.chunked(sh.STREAM))
    clients = ask(stage, host, CLIENT_COUNT)
    refused = stage.client()
    for _ in range(2):
        refused.chat()
        answer = refused.answer()
        assert (answer.status, answer.error["code"], answer.error["type"]) == (429, "overloaded", "overloaded_error")
        assert answer.headers["retry-after"] == "1"
        assert "limits.waiting" in answer.error["message"]
        record = stage.last_finished()
        assert (record["outcome"], record["error"], record["attempt_count"]) == ("rejected", "overloaded", 0)
    for gate in gates:
        gate.open()
    assert all(client.answer().ended for client in clients)
    refused.chat()
    assert refused.answer().status == 200, "and its connection goes on"
    stage.finished(CLIENT_COUNT + 3)


def test_over_the_requests_in_flight_is_429() -> None:
    with (
        shared_memory_directory() as directory,
        ScriptedHost("alpha") as host,
        Stage(directory, [host], f"{QUIET}{SHORT_TICK}[limits]\nin_flight = 3\n" + host_entry(host)) as stage,
    ):
        gates = [stage.gate() for _ in range(3)]
        for gate in gates:
            host.script(gate, *sh.chunked(sh.STREAM))
        clients = ask(stage, host, 3)
        refused = stage.client()
        refused.chat()
        answer = refused.answer()
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert "limits.in_flight" in answer.error["message"]
        for gate in gates:
            gate.open()
        assert all(client.answer().ended for client in clients)
        refused.chat()
        assert refused.answer().ended
        stage.finished(4)
        stage.settle()


def test_a_probed_host_tells_its_slots(stage: Stage, llama_host: ScriptedHost) -> None:
    gates = [stage.gate() for _ in range(4)]
    for gate in gates:
        llama_host.script(gate, *sh.chunked(sh.STREAM))
    clients = ask(stage, llama_host, len(gates), model="own")
    for gate in gates[:3]:
        gate.wait_reached()
    assert (len(stage.in_flight("waiting")), llama_host.running_count) == (1, 3)
    for gate in gates:
        gate.open()
    assert all(client.answer().ended for client in clients)
    assert llama_host.running_count_max == 3
    stage.finished(len(gates))


def test_the_load_goes_to_the_host_with_the_most_room() -> None:
    with (
        shared_memory_directory() as directory,
        ScriptedHost("small") as small,
        ScriptedHost("large") as large,
        Stage(
            directory, [small, large], QUIET + SHORT_TICK + host_entry(small, slots=1) + host_entry(large, slots=3)
        ) as stage,
    ):
        gates: list[Gate] = []
        clients = []
        for host in (small, large, large, large):
            gates.append(stage.gate())
            host.script(gates[-1], *sh.chunked(sh.STREAM))
        for _ in gates:
            clients.append(stage.client())
            clients[-1].chat()
        for gate in gates:
            gate.wait_reached()
        assert (small.running_count, large.running_count) == (1, 3)
        for gate in gates:
            gate.open()
        assert all(client.answer().ended for client in clients)
        for record in stage.finished(len(gates)):
            assert record["candidates"][0]["host"] == record["host"]
            assert record["candidates"][0]["reason"] == "chosen"
        stage.settle()


def test_health_decides_who_is_asked() -> None:
    health = "[health]\ninterval_s = 0.05\ntimeout_s = 0.2\nfail_after = 2\n"
    with (
        shared_memory_directory() as directory,
        ScriptedHost("alpha") as host,
        Stage(directory, [host], health + SHORT_TICK + host_entry(host, slots=1), models=("m",)) as stage,
    ):
        check_unhealthy_and_back(stage, host)
        check_waiting_is_served_when_the_host_is_back(stage, host)
        check_passive_marking(stage, host)


def check_unhealthy_and_back(stage: Stage, host: ScriptedHost) -> None:
    host.health_status = 503
    wait_until(lambda: stage.counter("hosts_healthy") == 0, "the host is marked")
    client = stage.client()
    client.chat()
    answer = client.answer()
    assert (answer.status, answer.error["code"]) == (503, "no_host")
    assert answer.headers["retry-after"] == "1"
    assert "503" in answer.error["message"], "it says why"
    (record,) = stage.finished(1)
    assert (record["outcome"], record["error"]) == ("rejected", "no_host")
    host.health_status = 200
    wait_until(lambda: stage.counter("hosts_healthy") == 1, "the host is back")
    client.chat()
    assert client.answer().text == "one two three"
    stage.finished(2)


def check_waiting_is_served_when_the_host_is_back(stage: Stage, host: ScriptedHost) -> None:
    gate = stage.gate()
    host.script(gate, *sh.chunked(sh.STREAM))
    first, second = ask(stage, host, 2)
    host.health_status = 503
    wait_until(lambda: stage.counter("hosts_healthy") == 0, "the host is marked")
    gate.open()
    assert first.answer().ended, "what runs goes on"
    stage.wait_phase("waiting")
    host.health_status = 200
    assert second.answer().ended, "who waits is served as soon as the host is back"
    stage.finished(4)


def check_passive_marking(stage: Stage, host: ScriptedHost) -> None:
    host.refuse()
    host.close_idle()
    client = stage.client()
    client.chat()
    assert client.answer().status in {502, 503}
    wait_until(lambda: stage.counter("hosts_healthy") == 0, "the host is marked")
    host.accept()
    wait_until(lambda: stage.counter("hosts_healthy") == 1, "the host is back")
    client.chat()
    assert client.answer().ended
    stage.finished(6)
