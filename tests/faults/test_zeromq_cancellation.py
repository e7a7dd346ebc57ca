"""A ZeroMQ client that cancels, leaves, dies or falls silent ends the work at the host at once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from time import monotonic_ns
from typing import Any

import pytest

from tests.faults.client import chat_body
from tests.faults.stage import MS, QUIET, SHORT_TICK, Stage, host_entry
from tests.faults.zeromq_client import Answer, ZeromqClient
from tests.support import scripted_host as sh
from tests.support.processes import Program
from tests.support.scripted_host import Exchange, Gate, ScriptedHost, chunk

SEEN_NS_MAX = 100 * MS
ALIVE_NS = 1_000 * MS
ALIVE_NS_MAX = 1_350 * MS
"""1.25 s as documented, and room for a machine that is busy."""
WAITING_MAX = 5
PLAIN_BYTES = sh.json_answer(200, sh.PLAIN)
BEGUN_STREAM: list[sh.Step] = [sh.stream_head(), chunk(sh.ROLE), chunk(sh.token("a"))]
PHASES: dict[str, tuple[str, bool, list[sh.Step]]] = {
    "prefill, streamed": ("m", True, []),
    "prefill, head sent": ("m", True, [sh.stream_head(), chunk(sh.ROLE)]),
    "prefill, whole": ("m", False, []),
    "prefill, folded": ("folded", False, []),
    "decode, streamed": ("m", True, BEGUN_STREAM),
    "decode, whole": ("m", False, [PLAIN_BYTES[:100]]),
    "decode, folded": ("folded", False, BEGUN_STREAM),
}
CLIENT_PROGRAM = """
import sys, zmq
socket = zmq.Context().socket(zmq.DEALER)
socket.connect(sys.argv[1])
socket.send_multipart([bytes.fromhex(sys.argv[2]), sys.argv[3].encode()])
while True:
    socket.recv_multipart()
"""


@pytest.fixture(scope="module")
def host() -> Iterator[ScriptedHost]:
    with ScriptedHost("alpha", models=("m", "folded")) as host:
        yield host


@pytest.fixture(scope="module")
def running_stage(directory: Path, host: ScriptedHost) -> Iterator[Stage]:
    toml = f'{QUIET}{SHORT_TICK}[limits]\nwaiting = {WAITING_MAX}\n[models.folded]\nfold = "always"\n' + host_entry(
        host, slots=2
    )
    with Stage(directory, [host], toml) as stage:
        yield stage


@pytest.fixture
def taken_slots(stage: Stage, host: ScriptedHost) -> Iterator[None]:
    """Requests that take both slots of the host for the test."""
    client = stage.zeromq_client()
    gates = [stage.gate() for _ in range(2)]
    for index, gate in enumerate(gates):
        host.script(gate, *sh.chunked(sh.STREAM))
        client.chat(f"other {index}")
        gate.wait_reached()
    yield
    for gate in gates:
        gate.open()
    client.finish()


def begin(
    stage: Stage, host: ScriptedHost, client: ZeromqClient, phase: str, request_id: str = "1"
) -> tuple[Answer, Exchange, Gate]:
    """Bring a request into a phase."""
    model, stream, script = PHASES[phase]
    gate = stage.gate()
    host.script(*script, gate, sh.End.CLOSE)
    answer = client.chat(request_id, model, stream=stream, max_tokens=50)
    gate.wait_reached()
    if phase == "decode, streamed":
        client.wait_events(answer, 2)
    elif phase == "decode, folded":
        stage.wait_phase("decode")
    return answer, host.exchanges[-1], gate


def check_record(stage: Stage, left_ns: int, phase: str) -> None:
    record = stage.last_finished()
    assert (record["outcome"], record["error"]) == ("client_gone", "client_gone")
    assert 0 < record["left_ns"] - left_ns < stage.allowed_ns(SEEN_NS_MAX)
    if phase in PHASES:
        assert [each["kind"] for each in stage.token_records(record["request_seq"])].count("cancel") == 1
        assert record["tokens_saved"] == 50 - (PHASES[phase][2] == BEGUN_STREAM)


# ------------------------------------------------------------------ cancel
def cancel(client: ZeromqClient, answer: Answer) -> int:
    """Cancel and check the answer; return when it was said."""
    count = len(answer.events)
    said_ns = monotonic_ns()
    client.say("cancel", id=answer.id)
    client.finish(answer)
    assert answer.end is not None
    assert answer.end.facts == {"status": 499, "retry_after_s": 0, "events": count}
    assert answer.error["code"] == "cancelled"
    client.ping()  # anything behind the end of a request fails the client
    return said_ns


@pytest.mark.parametrize("phase", PHASES)
def test_cancel_ends_the_work_at_the_host(stage: Stage, host: ScriptedHost, phase: str) -> None:
    client = stage.zeromq_client()
    answer, exchange, _ = begin(stage, host, client, phase)
    said_ns = cancel(client, answer)
    assert exchange.wait_gone() - said_ns < stage.allowed_ns(SEEN_NS_MAX), "the host sees at once that nobody waits"
    check_record(stage, said_ns, phase)
    again = client.finish(client.chat("1"))
    assert again.done["events"] == 5, "its id is free again"
    stage.finished(2)


@pytest.mark.usefixtures("taken_slots")
def test_cancel_of_a_request_that_waits(stage: Stage, host: ScriptedHost) -> None:
    client = stage.zeromq_client()
    count = len(host.exchanges)
    answer = client.chat()
    stage.wait_phase("waiting")
    check_record(stage, cancel(client, answer), "waiting")
    assert len(host.exchanges) == count, "it never came to the host"


@pytest.mark.usefixtures("taken_slots")
def test_a_request_for_which_there_is_no_room_gets_only_its_error(stage: Stage) -> None:
    client = stage.zeromq_client()
    for index in range(WAITING_MAX):
        client.chat(f"{index}")
    refused = client.finish(client.chat("refused"))
    assert refused.error["code"] == "overloaded"
    assert refused.end is not None
    assert refused.end.facts == {"status": 429, "retry_after_s": 1, "events": 0}
    assert refused.request_seq < 0, "what is refused was not accepted"
    client.ping()  # anything behind the end of a request fails the client


def test_cancel_of_a_request_that_connects(stage: Stage, host: ScriptedHost) -> None:
    host.stick()
    host.close_idle()
    count = len(host.exchanges)
    client = stage.zeromq_client()
    answer = client.chat()
    stage.wait_phase("connecting")
    check_record(stage, cancel(client, answer), "connecting")
    host.unstick()
    assert len(host.exchanges) == count, "it never came to the host"


def test_cancel_that_crosses_the_end_of_its_request(stage: Stage) -> None:
    """Whichever is first decides; there is one end either way."""
    client = stage.zeromq_client()
    before = stage.counter("zeromq_dropped")
    for index in range(20):
        client.chat(f"{index}")
        client.say("cancel", id=f"{index}")
    client.finish()
    client.ping()
    outcomes = [record["outcome"] for record in stage.finished(20)]
    assert outcomes.count("client_gone") == sum(a.end.type == "error" for a in client.answers.values() if a.end)
    assert stage.counter("zeromq_dropped") - before == outcomes.count("ok")


def test_a_cancel_for_nothing_is_dropped_and_counted(stage: Stage, host: ScriptedHost) -> None:
    owner, other = stage.zeromq_client(), stage.zeromq_client()
    owner.finish(owner.chat("over"))
    answer, exchange, _ = begin(stage, host, owner, "decode, streamed", "mine")
    before = stage.counter("zeromq_dropped")
    other.say("cancel", id="mine")
    other.say("cancel", id="unknown")
    other.ping()
    assert not other.others, "it is no error: it can have crossed the end of the request"
    owner.say("cancel", id="over")
    owner.ping()
    assert stage.counter("zeromq_dropped") == before + 3
    assert not exchange.over, "another client's request goes on"
    assert answer.end is None
    owner.say("cancel", id="mine")
    owner.say("cancel", id="mine")
    owner.finish(answer)
    owner.ping()
    assert stage.counter("zeromq_dropped") == before + 4, "the second time it is over"
    stage.finished(2)


def test_cancel_leaves_the_other_streams_of_a_client_alone(stage: Stage, host: ScriptedHost) -> None:
    client = stage.zeromq_client()
    first, _, _ = begin(stage, host, client, "decode, streamed", "first")
    gate = stage.gate()
    host.script(*BEGUN_STREAM, gate, chunk(sh.FINISH), sh.LAST_CHUNK)
    second = client.chat("second")
    gate.wait_reached()
    cancel(client, first)
    gate.open()
    client.finish(second)
    assert second.data == sh.ROLE + sh.token("a") + sh.FINISH
    stage.finished(2)


# ------------------------------------------------------------------ loss
LOSS_PHASES = ["prefill, streamed", "prefill, whole", "decode, streamed", "decode, folded"]


@pytest.mark.parametrize("phase", LOSS_PHASES)
def test_the_host_sees_a_client_close_its_socket(stage: Stage, host: ScriptedHost, phase: str) -> None:
    client = stage.zeromq_client()
    _, exchange, _ = begin(stage, host, client, phase)
    closed_ns = client.close()
    assert exchange.wait_gone() - closed_ns < stage.allowed_ns(SEEN_NS_MAX)
    check_record(stage, closed_ns, phase)


@pytest.mark.usefixtures("taken_slots")
def test_a_client_that_closes_its_socket_while_its_requests_wait(stage: Stage, host: ScriptedHost) -> None:
    client = stage.zeromq_client()
    count = len(host.exchanges)
    for index in range(3):
        client.chat(f"{index}")
    stage.wait_phase("waiting", 3)
    closed_ns = client.close()
    for record in stage.finished(3):
        assert record["outcome"] == "client_gone"
        assert record["left_ns"] - closed_ns < stage.allowed_ns(SEEN_NS_MAX)
    assert len(host.exchanges) == count


def test_all_requests_of_a_client_end_with_it_and_nobody_elses(stage: Stage, host: ScriptedHost) -> None:
    client, other = stage.zeromq_client(), stage.zeromq_client()
    _, exchange, _ = begin(stage, host, client, "decode, streamed", "1")
    gate = stage.gate()
    host.script(*BEGUN_STREAM, gate, chunk(sh.FINISH), sh.LAST_CHUNK)
    healthy = other.chat("1")
    gate.wait_reached()
    client.chat("2")
    client.chat("3")
    stage.wait_phase("waiting", 2)
    count = len(host.exchanges)
    closed_ns = client.close()
    assert exchange.wait_gone() - closed_ns < stage.allowed_ns(SEEN_NS_MAX)
    for record in stage.finished(3):
        assert record["outcome"] == "client_gone"
    assert len(host.exchanges) == count, "those that waited do not take the slot of the one that ran"
    gate.open()
    other.finish(healthy)
    assert healthy.data == sh.ROLE + sh.token("a") + sh.FINISH
    stage.finished(4)


def client_process(stage: Stage, stack: ExitStack, **body: Any) -> Program:
    """Start a process that asks for a chat and reads what comes. It is killed when the test ends."""
    header = b"\x83\xa1v\x01\xa4verb\xa4chat\xa2id\xa11"
    text = str(chat_body(max_tokens=50, **body)).replace("'", '"').replace("True", "true").replace("False", "false")
    command = [sys.executable, "-c", CLIENT_PROGRAM, stage.zeromq_endpoint, header.hex(), text]
    program = Program("client", command, stage.router.log_path.with_name("client.log")).start()
    stack.callback(program.kill)
    return program


@pytest.mark.parametrize("phase", ["prefill, streamed", "prefill, whole", "decode, streamed"])
def test_kill_9_of_a_client_process(stage: Stage, host: ScriptedHost, phase: str) -> None:
    gate = stage.gate()
    _, stream, script = PHASES[phase]
    host.script(*script, gate, sh.End.CLOSE)
    with ExitStack() as stack:
        program = client_process(stage, stack, stream=stream)
        gate.wait_reached()
        stage.wait_phase(phase.partition(",")[0])
        killed_ns = monotonic_ns()
        program.signal(signal.SIGKILL)
        assert host.exchanges[-1].wait_gone() - killed_ns < stage.allowed_ns(SEEN_NS_MAX)
    check_record(stage, killed_ns, phase)


@pytest.mark.usefixtures("taken_slots")
def test_kill_9_of_a_client_process_whose_request_waits(stage: Stage, host: ScriptedHost) -> None:
    count = len(host.exchanges)
    with ExitStack() as stack:
        program = client_process(stage, stack)
        stage.wait_phase("waiting")
        killed_ns = monotonic_ns()
        program.signal(signal.SIGKILL)
        check_record(stage, killed_ns, "waiting")
    assert len(host.exchanges) == count


def test_a_client_process_that_falls_silent_is_gone_after_three_heartbeats(stage: Stage, host: ScriptedHost) -> None:
    gate = stage.gate()
    host.script(*BEGUN_STREAM, gate, sh.End.CLOSE)
    with ExitStack() as stack:
        program = client_process(stage, stack)
        gate.wait_reached()
        stage.wait_phase("decode")
        stopped_ns = monotonic_ns()
        program.signal(signal.SIGSTOP)
        silent_s = (host.exchanges[-1].wait_gone() - stopped_ns) / 1e9
    assert 2 < silent_s < 4.5 + stage.allowed_ns(0) / 1e9, (
        "3 s behind the last heartbeat that was answered, and those are 1 s apart"
    )
    assert stage.last_finished()["outcome"] == "client_gone"


# ------------------------------------------------------------------ alive
def test_alive_is_sent_while_a_request_runs_and_nothing_else_is_sent(stage: Stage, host: ScriptedHost) -> None:
    silent, busy, idle = stage.zeromq_client(), stage.zeromq_client(), stage.zeromq_client()
    idle.finish(idle.chat())
    gate, busy_gate = stage.gate(), stage.gate()
    host.script(gate, *sh.chunked(sh.STREAM))
    answer = silent.chat()
    gate.wait_reached()
    token = chunk(sh.token("b"))
    host.script(*BEGUN_STREAM, *[0.4, token] * 10, busy_gate, chunk(sh.FINISH), sh.LAST_CHUNK)
    flowing = busy.chat()
    silent.read_until(lambda: len(silent.alive_ns) >= 2, "alive twice")
    assert answer.request_seq >= 0
    gaps_ns = [b - a for a, b in pairwise(silent.alive_ns)]
    late_ns = stage.allowed_ns(0)
    assert all(ALIVE_NS * 0.9 - late_ns < gap_ns < ALIVE_NS_MAX + late_ns for gap_ns in gaps_ns), gaps_ns
    assert not answer.events
    gate.open()
    silent.finish(answer)
    busy.wait_events(flowing, 12)
    # But where its host, on a busy machine, has itself been silent for so long.
    quiet_ns = max(b.t_ns - a.t_ns for a, b in pairwise(flowing.events))
    assert not busy.alive_ns or quiet_ns > ALIVE_NS * 0.9, "whoever gets events needs no further message"
    busy_gate.open()
    busy.finish(flowing)
    assert not idle.has_more(), "nothing is sent to a client for which nothing runs"
    stage.finished(3)


def test_alive_while_a_request_waits(stage: Stage, taken_slots: None) -> None:
    client = stage.zeromq_client()
    answer = client.chat()
    stage.wait_phase("waiting")
    begun_ns = monotonic_ns()
    client.read_until(lambda: client.alive_ns, "alive")
    assert client.alive_ns[0] - begun_ns < stage.allowed_ns(ALIVE_NS_MAX)
    client.say("cancel", id=answer.id)
    client.finish(answer)
