"""A thousand streams at once: each whole, though one client of several reads nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.stage import QUIET, SHORT_TICK, Stage, check_stages, host_entry
from tests.faults.zeromq_client import CREDIT_FIRST, ZeromqClient
from tests.support import scripted_host as sh
from tests.support.scripted_host import ScriptedHost, chunk
from tests.support.waiting import wait_until

MIB = 1 << 20
CLIENT_COUNT = 5
STREAMS_PER_CLIENT = 200
STREAM_COUNT = CLIENT_COUNT * STREAMS_PER_CLIENT
EVENTS_PER_READ = 30
READS = 10
STALL_S = 1.0
TOKENS = [sh.token(f"t{i}") for i in range(EVENTS_PER_READ * READS)]
WRITES = [b"".join(map(chunk, TOKENS[at : at + EVENTS_PER_READ])) for at in range(0, len(TOKENS), EVENTS_PER_READ)]
ANSWER = b"".join(TOKENS) + sh.FINISH
MEMORY_BYTES_MAX = 64 * MIB
"""A thousand requests cost some 10 MiB, what the slow client lets wait 9 MiB of answers and a few thousand messages."""


@pytest.fixture(scope="module")
def host(directory: Path) -> Iterator[ScriptedHost]:
    with ScriptedHost("alpha", directory, models=("m", "hasty")) as host:
        yield host


@pytest.fixture(scope="module")
def running_stage(directory: Path, host: ScriptedHost) -> Iterator[Stage]:
    """Its records are more than are checked one by one after each test elsewhere."""
    toml = f"{QUIET}{SHORT_TICK}[models.hasty.timeouts]\nclient_stall_s = {STALL_S}\n"
    with Stage(directory, [host], toml + host_entry(host, slots=STREAM_COUNT)) as stage:
        yield stage


def read_all(clients: list[ZeromqClient]) -> bool:
    """Read what has come; return whether all answers have ended."""
    for client in clients:
        while client.has_more():
            client.read()
    return all(answer.end for client in clients for answer in client.answers.values())


def test_a_thousand_streams_beside_a_client_that_never_reads(running_stage: Stage, host: ScriptedHost) -> None:
    stage = running_stage
    before = stage.memory_bytes()
    gate = stage.gate()
    clients = [stage.zeromq_client(high_water=0 if index else 1) for index in range(CLIENT_COUNT)]
    slow, *others = clients
    is_slow_lost = slow.watch_losses()
    for index in range(STREAMS_PER_CLIENT):
        for client in clients:
            host.script(sh.stream_head(), gate, *WRITES, chunk(sh.FINISH), chunk(sh.DONE) + sh.LAST_CHUNK)
            client.granting = client is not slow
            client.chat(f"{index}", "hasty" if client is slow else "m")
    host.wait(lambda: host.running_count == STREAM_COUNT, "all streams run at once", timeout_s=20)
    gate.open()
    wait_until(lambda: read_all(others), "all streams but those of the slow client end")
    for client in others:
        for answer in client.answers.values():
            assert answer.data == ANSWER, "no event is lost or repeated"
            assert answer.done["status"] == 200
    assert stage.memory_bytes() - before < MEMORY_BYTES_MAX
    records = stage.finished(STREAM_COUNT)
    outcomes = Counter(record["outcome"] for record in records)
    assert outcomes == {"ok": len(others) * STREAMS_PER_CLIENT, "client_stalled": STREAMS_PER_CLIENT}
    slow.granting = False
    # Who reads nothing does not answer heartbeats either. A machine that takes more than three seconds for all this
    # makes it lose its connection, and with it what it has not read: the others are what this test is about.
    wait_until(lambda: is_slow_lost() or read_all([slow]), "the ends of the slow client's streams")
    if not is_slow_lost():
        assert {answer.error["code"] for answer in slow.answers.values()} == {"client_stalled"}
    assert all(len(answer.events) <= CREDIT_FIRST for answer in slow.answers.values())
    assert all(ANSWER.startswith(answer.data) for answer in slow.answers.values())
    for record in records:
        check_stages(record)
    assert not stage.in_flight()
    others[0].finish(others[0].chat("last"))
    assert [candidate["score"] for candidate in stage.last_finished()["candidates"]] == [0], "no slot is in use"
    for client in clients:
        client.close()
