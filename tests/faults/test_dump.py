"""``ringrouter dump`` of a router that works, and of one that was killed while it did."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ringbuffer import find_current
from router.telemetry.reader import DoneReader, InflightReader
from tests.faults.client import Client
from tests.faults.stage import QUIET, SHORT_TICK, host_entry
from tests.support import scripted_host as sh
from tests.support.processes import RouterProcess
from tests.support.scripted_host import ScriptedHost, chunk
from tests.support.trace_format import check_document
from tests.support.waiting import wait_until

PAUSE_S = 0.005
TOKEN_COUNT = 200
FLOW: list[sh.Step] = [
    sh.stream_head(), chunk(sh.ROLE), *[chunk(sh.token("x")), PAUSE_S] * TOKEN_COUNT,
    *map(chunk, (sh.FINISH, sh.USAGE, sh.DONE)), sh.LAST_CHUNK,
]  # fmt: skip
EVENT_COUNT = TOKEN_COUNT + 4
"""One for each token, and the role, the finish, the usage and the end."""


@pytest.fixture
def host() -> Iterator[ScriptedHost]:
    with ScriptedHost("gpu-0", models=("chat",)) as host:
        yield host


@pytest.fixture
def router(directory: Path, host: ScriptedHost) -> Iterator[RouterProcess]:
    with RouterProcess(directory, QUIET + SHORT_TICK + host_entry(host, slots=2)) as router:
        yield router


def dump(router: RouterProcess, *options: str) -> tuple[int, str]:
    """Return exit code and output of the command, run as a user does."""
    command = [sys.executable, "-m", "router", "dump", "--run-dir", str(router.run_dir), *options]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.stderr == ""
    return ran.returncode, ran.stdout


def dumped_lines(router: RouterProcess, *options: str) -> tuple[int, list[dict[str, Any]]]:
    code, out = dump(router, *options)
    records = [json.loads(line) for line in out.splitlines()]
    for record in records:
        if record["what"] == "coverage" and "published" in record:
            parts = (record["overwritten"], record["lost_while_reading"], record["read"])
            assert sum(parts) == record["published"], "what is not there is counted exactly"
    return code, records


def start(router: RouterProcess, host: ScriptedHost, request_id: str) -> Client:
    host.script(*FLOW)
    client = Client(router.port)
    client.chat(model="chat", more=f"x-request-id: {request_id}\r\n")
    client.wait_for(b'"x"')
    return client


def wait_finished(router: RouterProcess, count: int) -> None:
    with DoneReader(find_current(router.instance_dir), "oldest") as done:
        wait_until(lambda: done.published_count == count, f"{count} done records")


def test_a_router_at_work_goes_on_and_is_told_of_exactly(router: RouterProcess, host: ScriptedHost) -> None:
    with start(router, host, "first") as first, start(router, host, "second") as second:
        for _ in range(2):
            code, records = dumped_lines(router)
            assert code == 0
            assert {record["request_id"] for record in records if record["what"] in {"inflight", "done"}} == {
                "first", "second",
            }  # fmt: skip
            assert check_document(json.loads(dump(router, "--format", "chrome")[1]))
        for client in (first, second):
            answer = client.answer()
            assert answer.ended
            assert len(answer.text) == TOKEN_COUNT, "a dump takes no token away"
        wait_finished(router, 2)
        code, records = dumped_lines(router, "--request-id", "first")
        (done,) = [record for record in records if record["what"] == "done"]
        tokens = [record for record in records if record["what"] == "tokens"]
        events = [record["event_index"] for record in tokens if "host_event" in record["flags"]]
        assert events == list(range(EVENT_COUNT)) == list(range(done["n_events"]))
        events_drawn = check_document(json.loads(dump(router, "--format", "chrome", "--request-id", "first")[1]))
        drawn = Counter(event["name"] for event in events_drawn if event.get("cat") == "token")
        assert drawn["text"] == TOKEN_COUNT
        stages = {event["name"]: event["dur"] for event in events_drawn if event.get("cat") == "stage"}
        expected = {name: ns / 1000 for name, ns in done["stages_ns"].items() if ns and name != "egress"}
        assert stages == pytest.approx(expected)


def test_a_killed_router_has_left_what_it_did(router: RouterProcess, host: ScriptedHost) -> None:
    with start(router, host, "cut off"):
        reader = InflightReader(find_current(router.instance_dir))
        wait_until(lambda: [row["phase"] for row in reader.read()] == ["decode"], "decoding is shown")
        reader.close()
        router.kill()
        code, records = dumped_lines(router)
        assert code == 3
        (running,) = [record for record in records if record["what"] == "inflight"]
        assert (running["request_id"], running["phase"], running["host"]) == ("cut off", "decode", "gpu-0")
        tokens = [record for record in records if record["what"] == "tokens" and record["kind"] == "text"]
        assert [record["event_index"] for record in tokens] == list(range(1, len(tokens) + 1))
        code, out = dump(router, "--format", "chrome")
        assert code == 3
        (request,) = [each for each in check_document(json.loads(out)) if each.get("cat") == "request"]
        assert request["name"] == "chat chat #0 (in flight: decode)"
        router.start()
        code, records = dumped_lines(router, "--generation", "previous", "--what", "inflight")
        assert (code, [each["request_id"] for each in records if each["what"] == "inflight"]) == (3, ["cut off"])
