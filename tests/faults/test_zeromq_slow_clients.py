"""Clients that read nothing: what they may cost is bounded, and nobody else waits for them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic_ns

import pytest

from tests.faults.stage import MS, QUIET, SHORT_TICK, Stage, host_entry
from tests.faults.zeromq_client import CREDIT_FIRST, CREDIT_MAX, ZeromqClient, pack
from tests.support import scripted_host as sh
from tests.support.processes import Program
from tests.support.scripted_host import ScriptedHost, chunk

MIB = 1 << 20
PIPE_MESSAGES = 8192
"""What the router lets wait for one client."""
FLOOD = 3 * PIPE_MESSAGES
FLOOD_BYTES_MAX = 16 * MIB
"""What all the waiting messages of one client may cost: libzmq has some 100 bytes for each, and as much again in
blocks that it keeps."""
REQUESTS = 1500
PING = pack({"v": 1, "verb": "ping", "id": "flood"})
TOKEN_COUNT = 200
STREAM: list[sh.Step] = sh.chunked([*(sh.token(f"t{i}") for i in range(TOKEN_COUNT)), sh.FINISH, sh.DONE])
DEAF_PROGRAM = """
import json, signal, sys, zmq
socket = zmq.Context().socket(zmq.DEALER)
socket.setsockopt(zmq.RCVHWM, 1)
socket.connect(sys.argv[1])
for _ in range(int(sys.argv[2])):
    socket.send(bytes.fromhex(sys.argv[3]))
header = b"\\x83\\xa1v\\x01\\xa4verb\\xa4chat\\xa2id\\xa11"
socket.send_multipart([header, json.dumps({"model": "m", "messages": [], "max_tokens": 5}).encode()])
signal.pause()  # until it is killed
"""


@pytest.fixture(scope="module")
def host(directory: Path) -> Iterator[ScriptedHost]:
    with ScriptedHost("alpha", directory, models=("m", "hasty")) as host:
        yield host


@pytest.fixture(scope="module")
def healthy_host(directory: Path) -> Iterator[ScriptedHost]:
    """Has the model of the client that does nothing wrong."""
    with ScriptedHost("beta", directory, models=("healthy",)) as host:
        yield host


@pytest.fixture(scope="module")
def running_stage(directory: Path, host: ScriptedHost, healthy_host: ScriptedHost) -> Iterator[Stage]:
    toml = f"{QUIET}{SHORT_TICK}[models.hasty.timeouts]\nclient_stall_s = 1.0\n"
    toml += host_entry(host, slots=64) + host_entry(healthy_host)
    with Stage(directory, [host, healthy_host], toml) as stage:
        yield stage


def fill(stage: Stage, client: ZeromqClient) -> None:
    """Send pings and read no pong until nothing more fits into the client's pipe."""
    read, dropped = stage.counter("zeromq_messages"), stage.counter("zeromq_dropped")
    for _ in range(FLOOD):
        client.send(PING)
    stage.wait_counter("zeromq_messages", read + FLOOD)
    assert stage.counter("zeromq_dropped") > dropped, "what does not fit is dropped and counted"


def check_healthy(healthy_host: ScriptedHost, client: ZeromqClient, request_id: str) -> None:
    """Check that another client's stream is whole and that nothing keeps it waiting."""
    healthy_host.script(*STREAM)
    answer = client.finish(client.chat(request_id, "healthy"))
    assert answer.data == b"".join(sh.token(f"t{i}") for i in range(TOKEN_COUNT)) + sh.FINISH
    assert answer.end is not None


def test_a_client_that_only_sends_is_bounded_and_gets_its_stream_when_it_reads(
    stage: Stage, host: ScriptedHost, healthy_host: ScriptedHost
) -> None:
    slow, other = stage.zeromq_client(high_water=1), stage.zeromq_client()
    check_healthy(healthy_host, other, "before")
    before = stage.memory_bytes()
    fill(stage, slow)
    gate = stage.gate()
    host.script(sh.stream_head(), *STREAM[1:101], gate, *STREAM[101:])
    answer = slow.chat("1", keys={"credit": CREDIT_MAX})
    gate.wait_reached()
    check_healthy(healthy_host, other, "beside")
    assert stage.memory_bytes() - before < FLOOD_BYTES_MAX
    slow.read_until(lambda: len(answer.events) >= 100, "the events that had no room")
    assert answer.message_sizes[0] > 1, "they come together once there is room"
    gate.open()
    slow.finish(answer)
    assert answer.data == b"".join(sh.token(f"t{i}") for i in range(TOKEN_COUNT)) + sh.FINISH
    assert 0 < len(slow.others) < FLOOD
    check_healthy(healthy_host, other, "after")
    assert {record["outcome"] for record in stage.finished(4)} == {"ok"}


def test_an_end_that_has_no_room_comes_when_the_client_reads(stage: Stage, host: ScriptedHost) -> None:
    slow = stage.zeromq_client(high_water=1)
    fill(stage, slow)
    streamed, whole = slow.chat("streamed"), slow.chat("whole", stream=False)
    refused = slow.ask("refused", b"{}")
    host.wait(lambda: len(host.exchanges) >= 2 and not host.running_count, "both are answered")
    slow.finish()
    assert streamed.done["events"] == 5
    assert whole.done["status"] == 200
    assert refused.error["param"] == "model"
    stage.finished(2)


def test_without_room_for_too_long_the_request_ends(stage: Stage, host: ScriptedHost) -> None:
    slow = stage.zeromq_client(high_water=1)
    fill(stage, slow)
    gate = stage.gate()
    host.script(*STREAM[:50], gate, *STREAM[50:])
    answer = slow.chat("1", "hasty")
    gate.wait_reached()
    host.exchanges[-1].wait_gone()
    assert stage.last_finished()["outcome"] == "client_stalled"
    slow.finish(answer)
    assert answer.error["code"] == "client_stalled", "it may read that when it reads again"


def test_errors_for_a_client_that_does_not_read_are_bounded(
    stage: Stage, host: ScriptedHost, healthy_host: ScriptedHost
) -> None:
    """Beyond a thousand that wait the client is taken for dead: what runs for it ends."""
    slow, other = stage.zeromq_client(high_water=1), stage.zeromq_client()
    fill(stage, slow)
    gate = stage.gate()
    host.script(*STREAM[:50], gate, *STREAM[50:])
    slow.chat("1")
    gate.wait_reached()
    before, read = stage.memory_bytes(), stage.counter("zeromq_messages")
    for _ in range(3000):
        slow.send(b"\xc1")
    host.exchanges[-1].wait_gone()
    assert stage.last_finished()["outcome"] == "client_gone"
    stage.wait_counter("zeromq_messages", read + 3000)
    assert stage.memory_bytes() - before < FLOOD_BYTES_MAX
    check_healthy(healthy_host, other, "other")
    stage.finished(2)


def test_requests_of_a_client_that_does_not_read_are_bounded(
    stage: Stage, host: ScriptedHost, healthy_host: ScriptedHost
) -> None:
    """All of them are answered, nobody takes the answers: what waits is bounded, and every slot is free again."""
    slow, other = stage.zeromq_client(high_water=1), stage.zeromq_client()
    fill(stage, slow)
    before, read = stage.memory_bytes(), stage.counter("zeromq_messages")
    for index in range(REQUESTS):
        slow.chat(f"{index}", "hasty", stream=False)
    stage.wait_counter("zeromq_messages", read + REQUESTS)
    check_healthy(healthy_host, other, "other")
    assert stage.memory_bytes() - before < FLOOD_BYTES_MAX
    slow.close()
    stage.wait(lambda: not stage.in_flight(), "no request is left")


def test_kill_9_of_a_client_that_does_not_read(stage: Stage, host: ScriptedHost) -> None:
    gate = stage.gate()
    host.script(*STREAM[:50], gate, *STREAM[50:])
    command = [sys.executable, "-c", DEAF_PROGRAM, stage.zeromq_endpoint, str(FLOOD), PING.hex()]
    program = Program("deaf client", command, stage.router.log_path.with_name("deaf.log"))
    with ExitStack() as stack:
        program.start()
        stack.callback(program.kill)
        gate.wait_reached()
        killed_ns = monotonic_ns()
        program.signal(signal.SIGKILL)
        assert host.exchanges[-1].wait_gone() - killed_ns < stage.allowed_ns(100 * MS)
    record = stage.last_finished()
    assert record["outcome"] == "client_gone"
    assert record["left_ns"] - killed_ns < stage.allowed_ns(100 * MS)


def test_a_client_without_credit_costs_others_nothing(
    stage: Stage, host: ScriptedHost, healthy_host: ScriptedHost
) -> None:
    slow, other = stage.zeromq_client(high_water=1), stage.zeromq_client()
    gates = []
    for index in range(8):
        gates.append(stage.gate())
        host.script(sh.stream_head(), chunk(sh.token("x" * 1000)) * (CREDIT_FIRST + 100), gates[-1], sh.LAST_CHUNK)
        slow.chat(f"{index}")
    for gate in gates:
        gate.wait_reached()
    ttft_ns = []
    for index in range(10):
        check_healthy(healthy_host, other, f"{index}")
        ttft_ns.append(stage.last_finished()["ttft_ns"])
    assert sorted(ttft_ns)[5] < stage.allowed_ns(20 * MS), "others wait for nothing"
