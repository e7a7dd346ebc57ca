"""What goes wrong in a router is kept once for each kind, with how often and when, and never in a host's own words."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from time import monotonic_ns

import pytest

from ringbuffer import DistinctError, DistinctErrorsReader, find_current
from tests.faults.stage import SHORT_TICK, Stage, host_entry
from tests.support import scripted_host as sh
from tests.support.scripted_host import End, ScriptedHost
from tests.support.waiting import wait_until

SECRET = "the prompt was: a secret"
CONFIG = """
[health]
interval_s = 3600
fail_after = 3
breaker = { failures = 0, share = 0 }
[limits]
attempts = 1
waiting = 1
[models.m.timeouts]
queue_s = 1.5
"""


@pytest.fixture(scope="module")
def running_stage(directory: Path, host: ScriptedHost) -> Iterator[Stage]:
    with Stage(directory, [host], CONFIG + SHORT_TICK + host_entry(host, slots=1)) as stage:
        yield stage


def errors(stage: Stage) -> dict[str, DistinctError]:
    reader = DistinctErrorsReader.attach(find_current(stage.router.instance_dir) / "errors")
    found = {error.text: error for error in reader.read()}
    reader.close()
    return found


def test_a_storm_of_one_error_is_one_record(stage: Stage, host: ScriptedHost) -> None:
    before_ns = monotonic_ns()
    client = stage.client()
    for number in range(20):
        host.script(sh.json_answer(503, {"error": {"message": f"{SECRET} {number}"}}))
        client.chat(stream=False)
        assert client.answer().status == 503
    error = errors(stage)["host alpha: host_status 503"]
    assert error.count == 20
    assert not [text for text in errors(stage) if "secret" in text], "a host may quote a prompt"
    assert before_ns < error.first_ns < error.last_ns < monotonic_ns()


def test_a_host_that_closes_is_named(stage: Stage, host: ScriptedHost) -> None:
    host.script(sh.stream_head(), sh.chunk(sh.ROLE), End.CLOSE)
    client = stage.client()
    client.chat()
    assert client.answer().status == 502
    assert errors(stage)["host alpha: host_closed"].count == 1


def test_a_model_without_room_is_named(stage: Stage, host: ScriptedHost) -> None:
    gate = stage.gate()
    host.script(gate, *sh.chunked(sh.STREAM))
    running, waiting, refused = stage.client(), stage.client(), stage.client()
    running.chat()
    gate.wait_reached()
    waiting.chat()
    stage.wait_phase("waiting")
    refused.chat()
    assert refused.answer().status == 429
    assert waiting.answer().status == 503
    gate.open()
    assert running.answer().ended
    found = errors(stage)
    assert (found["model m: overloaded"].count, found["model m: queue_timeout"].count) == (1, 1)


def test_a_client_s_fault_is_none_of_the_router_s(stage: Stage, host: ScriptedHost) -> None:
    before = errors(stage)
    client = stage.client()
    client.post(b"{", more="")
    assert client.answer().status == 400
    client.chat(model="no such model")
    assert client.answer().status == 404
    left = stage.client()
    host.script(sh.stream_head(), End.HANG)
    left.chat()
    host.wait(lambda: host.running_count == 1, "the host works")
    left.close()
    assert [record["outcome"] for record in stage.finished(1)] == ["client_gone"]
    assert errors(stage) == before


def test_a_host_that_becomes_unhealthy_is_named(directory: Path) -> None:
    """A router of its own: its host comes back only after the next probe."""
    with ScriptedHost("beta", directory) as host:
        (directory / "own").mkdir()
        with Stage(directory / "own", [host], CONFIG + SHORT_TICK + host_entry(host)) as stage:
            client = stage.client()
            host.refuse()
            host.close_idle()
            statuses = set()
            while "host beta: unhealthy" not in errors(stage):
                client.chat(stream=False)
                statuses.add(client.answer().status)
            client.chat(stream=False)
            assert client.answer().status == 503
            client.close()
            found = errors(stage)
            assert found["host beta: unhealthy"].count == 1
            assert found["model m: no_host"].count >= 1
            stage.router.signal(signal.SIGTERM)
            wait_until(lambda: not stage.router.is_running, "the router ends")
