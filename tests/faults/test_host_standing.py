"""Hosts that fail, between real sockets: breakers hold them, they come back, and retries have a budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringbuffer import DistinctErrorsReader, find_current
from tests.faults.client import Client
from tests.faults.stage import MS, SHORT_TICK, Stage, host_entry
from tests.support import scripted_host as sh
from tests.support.processes import RouterProcess, host_toml
from tests.support.scripted_host import ScriptedHost
from tests.support.waiting import free_port

HEALTH = """
[health]
interval_s = 0.05
timeout_s = 0.5
fail_after = 2
slow_start_s = 0
breaker = { failures = 3, open_s = 0.5, open_s_max = 1.0, trial_requests = 2 }
outliers = { interval_s = 0 }
"""
BUDGET = "[limits]\nretry_share = 0\nretries_per_s = 0.3\n"
ERROR = sh.json_answer(500, {"error": {"message": "broken", "type": "t", "param": None, "code": "c"}})
OPEN_NS_MIN = 400 * MS
"""An open breaker's first time, less its jitter."""


@pytest.fixture(scope="module")
def ill() -> Iterator[ScriptedHost]:
    with ScriptedHost("ill") as host:
        yield host


@pytest.fixture(scope="module")
def well() -> Iterator[ScriptedHost]:
    with ScriptedHost("well") as host:
        yield host


def errors(stage: Stage) -> dict[str, int]:
    reader = DistinctErrorsReader.attach(find_current(stage.router.instance_dir) / "errors")
    found = {error.text: error.count for error in reader.read()}
    reader.close()
    return found


def condition(stage: Stage, host: str) -> str:
    client = stage.client()
    client.get("/ready")
    return str(client.answer().json()["hosts"][host])


def test_a_host_whose_probes_are_fine_and_whose_requests_fail_is_held_and_does_not_flap(
    directory: Path, ill: ScriptedHost, well: ScriptedHost
) -> None:
    own = directory / "held"
    own.mkdir()
    with Stage(own, [ill, well], HEALTH + SHORT_TICK + host_entry(ill) + host_entry(well)) as stage:
        client = stage.client()
        for _ in range(3):
            ill.script(ERROR)
        asked = 0
        while stage.counter("breakers_opened") == 0:
            client.chat()
            assert client.answer().text == "one two three", "no client notices"
            asked += 1
        failed_ns = ill.exchanges[-1].received_ns
        text = condition(stage, "ill")
        assert text.startswith("breaker open for 0."), text
        assert text.endswith("it answered 500")
        seen = len(ill.exchanges)
        while len(ill.exchanges) == seen:  # it is healthy by its probes all the time
            client.chat()
            assert client.answer().headers["x-ringrouter-host"]
            asked += 1
        assert ill.exchanges[-1].received_ns - failed_ns >= OPEN_NS_MIN
        while condition(stage, "ill") != "healthy":
            client.chat()
            assert client.answer().ended
            asked += 1
        assert "host ill: unhealthy" not in errors(stage)
        assert errors(stage)["host ill: breaker open"] == 1
        barred = [r for r in stage.finished(asked) for c in r["candidates"] if c["reason"] == "breaker_open"]
        assert barred, "the record says why the host got nothing"
        stage.settle()


def test_a_trial_that_fails_holds_it_for_twice_as_long(directory: Path, ill: ScriptedHost) -> None:
    own = directory / "twice"
    own.mkdir()
    with Stage(own, [ill], HEALTH + SHORT_TICK + host_entry(ill)) as stage:
        client = stage.client()
        for _ in range(4):
            ill.script(ERROR)
        begun = len(ill.exchanges)
        statuses: Counter[str] = Counter()
        while stage.counter("breakers_opened") < 2:
            client.chat()
            statuses[client.answer().error["code"]] += 1
        assert statuses["c"] == 4
        times = [each.received_ns for each in ill.exchanges[begun:]]
        assert times[3] - times[2] >= OPEN_NS_MIN
        assert statuses["no_host"] > 0, "in the meantime it is said at once"
        while True:
            client.chat()
            if client.answer().status == 200:
                break
        assert ill.exchanges[-1].received_ns - times[3] >= 2 * OPEN_NS_MIN


def test_retries_end_with_their_budget(directory: Path, ill: ScriptedHost, well: ScriptedHost) -> None:
    """With three retries in ten seconds, and breakers that never open."""
    own = directory / "budget"
    own.mkdir()
    never = "[health]\ninterval_s = 3600\nbreaker = { failures = 0, share = 0 }\n"
    with Stage(own, [ill, well], never + SHORT_TICK + BUDGET + host_entry(ill) + host_entry(well)) as stage:
        for host in (ill, well):
            for _ in range(4):
                host.script(ERROR)
        client = stage.client()
        answers = []
        for _ in range(5):
            client.chat()
            answers.append(client.answer())
        assert [answer.status for answer in answers] == [500] * 5
        records = stage.finished(5)
        assert [record["attempt_count"] for record in records] == [2, 2, 2, 1, 1]
        assert (stage.counter("retries"), stage.counter("retries_refused")) == (3, 2)
        ill.forget_scripts()
        well.forget_scripts()


def test_what_broke_off_says_that_there_was_no_retry(directory: Path, ill: ScriptedHost) -> None:
    own = directory / "said"
    own.mkdir()
    never = "[health]\ninterval_s = 3600\nbreaker = { failures = 0, share = 0 }\n"
    none = "[limits]\nretry_share = 0\nretries_per_s = 0\n"
    with Stage(own, [ill], never + SHORT_TICK + none + host_entry(ill)) as stage:
        ill.script(sh.stream_head(), sh.End.CLOSE)
        client = stage.client()
        client.chat()
        answer = client.answer()
        assert answer.status == 502
        assert answer.error["message"].endswith(
            "not tried again: too many retries (limits.retry_share, limits.retries_per_s)"
        )
        stage.finished(1)


def test_a_host_that_died_comes_back_bit_by_bit(directory: Path) -> None:
    own = directory / "slow"
    own.mkdir()
    health = (
        "[health]\ninterval_s = 0.05\ntimeout_s = 0.2\nfail_after = 2\nslow_start_s = 60\nslow_start_share = 0.25\n"
    )
    with ScriptedHost("reborn") as host, Stage(own, [host], health + SHORT_TICK + host_entry(host, slots=4)) as stage:
        gates = [stage.gate() for _ in range(4)]
        for gate in gates:
            host.script(gate, *sh.chunked(sh.STREAM))
        assert condition(stage, "reborn") == "healthy", "at the start of the router all slots are there"
        host.refuse()
        host.close_idle()
        stage.wait(lambda: stage.counter("hosts_healthy") == 0, "it is out")
        host.accept()
        stage.wait(lambda: stage.counter("hosts_healthy") == 1, "it is back")
        assert condition(stage, "reborn") == "slow start, 1 of 4 slots"
        clients = [stage.client() for _ in range(4)]
        for client in clients:
            client.chat()
        stage.wait_phase("waiting", 3)
        assert host.running_count == 1
        for gate, client in zip(gates, clients, strict=True):
            gate.open()
            assert client.answer().ended
        stage.finished(4)


def test_a_host_that_was_never_there_is_named_as_the_reason(directory: Path) -> None:
    own = directory / "never"
    own.mkdir()
    absent = host_toml("absent", f"http://127.0.0.1:{free_port()}", models=["elsewhere"])
    with RouterProcess(own, HEALTH + absent, wait=False) as router, Client(router.port) as client:
        client.chat(model="elsewhere")
        answer = client.answer()
    assert answer.status == 503
    message = answer.json()["error"]["message"]
    assert message.startswith("no host can serve 'elsewhere' now (absent: ")
    assert "refused" in message or "not probed yet" in message
