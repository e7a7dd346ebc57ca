"""A fault of the router's own costs one request its answer, and nobody else anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.stage import QUIET, Stage, host_entry
from tests.support import scripted_host as sh
from tests.support.scripted_host import ScriptedHost
from tests.support.waiting import wait_until

PLANTED = """
import router.ingress.heads as heads

real = heads.server_timing


def server_timing(request):
    if request.request_id == "fault":
        raise ZeroDivisionError("planted")
    return real(request)


heads.server_timing = server_timing

import router.telemetry.writer as writer

complete = writer.Telemetry._complete


def planted(self, request):
    if request.request_id == "unwritable":
        raise ZeroDivisionError("planted")
    complete(self, request)


writer.Telemetry._complete = planted

import router.loop as loop

place = loop.Loop.place


def misplaced(self, request, now):
    if request.request_id == "misplaced":
        raise ZeroDivisionError("planted")
    place(self, request, now)


loop.Loop.place = misplaced
"""


@pytest.fixture(scope="module")
def host() -> Iterator[ScriptedHost]:
    with ScriptedHost("a", models=["m"]) as host:
        yield host


@pytest.fixture(scope="module")
def running_stage(directory: Path, host: ScriptedHost) -> Iterator[Stage]:
    (directory / "sitecustomize.py").write_text(PLANTED, encoding="utf-8")
    root = str(Path(__file__).resolve().parents[2])
    stage = Stage(directory, [host], QUIET + host_entry(host, slots=1))
    stage.router.environment["PYTHONPATH"] = f"{directory}:{root}"
    with stage:
        yield stage


@pytest.mark.parametrize("stream", [True, False])
def test_the_request_ends_and_its_slot_is_free(stage: Stage, stream: bool) -> None:
    client = stage.client()
    client.chat(more="x-request-id: fault", stream=stream)
    with pytest.raises(ConnectionResetError):  # no answer can be made, so the connection ends
        client.read_to_end()
    (record,) = stage.finished(1)
    assert (record["outcome"], record["error"]) == ("aborted", "internal")
    other = stage.client()
    other.chat()
    assert other.answer().text == "one two three", "the only slot is free again"
    assert "ZeroDivisionError" in stage.router.log_text()
    stage.finished(2)


def test_others_go_on_meanwhile(stage: Stage, host: ScriptedHost) -> None:
    gate = stage.gate()
    host.script(sh.stream_head(), sh.chunk(sh.ROLE), gate)
    waiting = stage.client()
    waiting.chat()
    gate.wait_reached()
    faulty = stage.client()
    faulty.chat(more="x-request-id: fault")
    stage.wait_phase("waiting")
    gate.open()
    waiting.close()
    with pytest.raises(ConnectionResetError):
        faulty.read_to_end()
    outcomes = {record["outcome"] for record in stage.finished(2)}
    assert outcomes == {"client_gone", "aborted"}


def test_a_record_that_cannot_be_written_costs_no_other(stage: Stage) -> None:
    for request_id in ("before", "unwritable", "after"):
        client = stage.client()
        client.chat(more=f"x-request-id: {request_id}")
        assert client.answer().text == "one two three"
    stage.unrecorded_count = 1
    assert [record["request_id"] for record in stage.finished(2)] == ["before", "after"]
    wait_until(lambda: "a done record could not be written" in stage.router.log_text(), "a line in the log")


def test_a_request_that_cannot_be_placed_is_answered_and_forgotten(stage: Stage) -> None:
    client = stage.client()
    client.chat(more="x-request-id: misplaced")
    answer = client.answer()
    assert (answer.status, answer.json()["error"]["code"]) == (500, "internal_error")
    (record,) = stage.finished(1)
    assert (record["outcome"], record["error"]) == ("aborted", "internal")
    assert stage.in_flight() == []
    client.chat()
    assert client.answer().text == "one two three", "the connection and the router go on"
    wait_until(lambda: "a request could not be placed" in stage.router.log_text(), "a line in the log")
    stage.finished(2)
