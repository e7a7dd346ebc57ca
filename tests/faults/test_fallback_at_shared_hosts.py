"""Models of one chain that have a host in common: what it has failed under the one name, it need not get under the
other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.stage import QUIET, SHORT_TICK, Stage, host_entry
from tests.support import scripted_host as sh
from tests.support.scripted_host import ScriptedHost, chunk

ERROR = sh.json_answer(503, {"error": {"message": "busy", "type": "t", "param": None, "code": "c"}})


@pytest.fixture(scope="module")
def both() -> Iterator[ScriptedHost]:
    with ScriptedHost("both", models=("first", "second")) as host:
        yield host


@pytest.fixture(scope="module")
def other() -> Iterator[ScriptedHost]:
    with ScriptedHost("other", models=("second",)) as host:
        yield host


@pytest.fixture(scope="module")
def running_stage(directory: Path, both: ScriptedHost, other: ScriptedHost) -> Iterator[Stage]:
    chain = '[models.first]\nfallback = ["second"]\n'
    entries = host_entry(both, slots=2) + host_entry(other, slots=1)
    with Stage(directory, [both, other], QUIET + SHORT_TICK + chain + entries) as stage:
        yield stage


def test_it_waits_for_a_host_that_has_not_failed_it(stage: Stage, both: ScriptedHost, other: ScriptedHost) -> None:
    gate = stage.gate()
    other.script(sh.stream_head(), chunk(sh.ROLE), chunk(sh.token("one")), gate, *sh.chunked(sh.STREAM)[3:])
    runs, falls_back = stage.client(), stage.client()
    runs.chat(model="second", more="x-ringrouter-host: other\r\n")
    gate.wait_reached()
    both.script(ERROR)
    falls_back.chat(model="first")
    stage.wait_phase("waiting")
    gate.open()
    answer = falls_back.answer()
    assert (answer.text, answer.headers["x-ringrouter-host"]) == ("one two three", "other")
    assert runs.answer().ended
    stage.finished(2)
