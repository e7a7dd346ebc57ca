"""A client that leaves ends the work at the host at once, in every phase and every form of answer."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.client import Client, chat_body, request
from tests.faults.stage import MS, QUIET, SHORT_TICK, Stage, host_entry
from tests.support import scripted_host as sh
from tests.support.scripted_host import Exchange, ScriptedHost, chunk

SEEN_NS_MAX = 100 * MS
"""A host sees within this that its client has left: it takes a few ms."""
GRACE_MS = 300
TEXT_BYTES = 16_384
PLAIN_BYTES = sh.json_answer(200, sh.PLAIN)
BEGUN_STREAM: list[sh.Step] = [sh.stream_head(), chunk(sh.ROLE), chunk(sh.token("a"))]
FLOOD: list[sh.Step] = [sh.stream_head(), *[chunk(sh.token("x" * TEXT_BYTES))] * 2000]
PHASES: dict[str, tuple[str, bool, list[sh.Step]]] = {
    "prefill, streamed": ("m", True, []),
    "prefill, head sent": ("m", True, [sh.stream_head(), chunk(sh.ROLE)]),
    "prefill, plain": ("m", False, []),
    "prefill, folded": ("folded", False, []),
    "decode, streamed": ("m", True, BEGUN_STREAM),
    "decode, plain": ("m", False, [PLAIN_BYTES[:100]]),
    "decode, folded": ("folded", False, BEGUN_STREAM),
}


@pytest.fixture(scope="module")
def folding_host(directory: Path) -> Iterator[ScriptedHost]:
    """On a unix socket, as co-located hosts are."""
    with ScriptedHost("folding", directory, models=("folded",)) as host:
        yield host


@pytest.fixture(scope="module")
def slow_host() -> Iterator[ScriptedHost]:
    with ScriptedHost("slow", models=("slow", "hasty")) as host:
        yield host


@pytest.fixture(scope="module")
def deaf_host() -> Iterator[ScriptedHost]:
    with ScriptedHost("deaf", models=("deaf",)) as host:
        yield host


@pytest.fixture(scope="module")
def running_stage(
    directory: Path, host: ScriptedHost, folding_host: ScriptedHost, slow_host: ScriptedHost, deaf_host: ScriptedHost
) -> Iterator[Stage]:
    toml = (
        f"{QUIET}{SHORT_TICK}[models.hasty.timeouts]\nfirst_token_s = 0.1\n"
        + host_entry(host, slots=2)
        + host_entry(folding_host, facts={"cancels_whole_answers": False})
        + host_entry(slow_host, slots=1, facts={"cancel_grace_ms": GRACE_MS})
        + host_entry(deaf_host, slots=1, facts={"cancels_whole_answers": False})
    )
    with Stage(directory, [host, folding_host, slow_host, deaf_host], toml) as stage:
        yield stage


def close(client: Client, how: str) -> int:
    if how == "half-close":
        client.socket.shutdown(socket.SHUT_WR)
    elif how == "reset":
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return client.close()


def check_gone(stage: Stage, exchange: Exchange, closed_ns: int) -> None:
    assert exchange.wait_gone() - closed_ns < stage.allowed_ns(SEEN_NS_MAX), "the host sees at once that nobody waits"
    record = stage.last_finished()
    assert (record["outcome"], record["error"]) == ("client_gone", "client_gone")
    assert closed_ns - SEEN_NS_MAX < record["left_ns"] <= exchange.gone_ns
    assert 0 < record["cancel_latency_ns"] < stage.allowed_ns(SEEN_NS_MAX)
    assert [each["kind"] for each in stage.token_records(record["request_seq"])].count("cancel") == 1


@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
@pytest.mark.parametrize(("model", "stream", "script"), PHASES.values(), ids=PHASES.keys())
def test_the_host_sees_a_client_leave(
    stage: Stage,
    host: ScriptedHost,
    folding_host: ScriptedHost,
    model: str,
    stream: bool,
    script: list[sh.Step],
    how: str,
) -> None:
    serving = folding_host if model == "folded" else host
    gate = stage.gate()
    serving.script(*script, gate)
    client = stage.client()
    client.chat(model=model, stream=stream, max_tokens=50)
    gate.wait_reached()
    exchange = serving.exchanges[-1]
    assert exchange.json()["stream"] is (stream or model == "folded")
    if stream and script == BEGUN_STREAM:
        client.wait_for(b"data: ")
    elif script == BEGUN_STREAM:
        stage.wait_phase("decode")
    check_gone(stage, exchange, close(client, how))
    record = stage.finished(1)[0]
    content = 1 if script == BEGUN_STREAM else 0
    assert record["tokens_saved"] == 50 - content


def test_while_it_waits_for_a_slot(stage: Stage, host: ScriptedHost) -> None:
    gates = [stage.gate() for _ in range(2)]
    running = []
    for gate in gates:
        host.script(gate, *sh.chunked(sh.STREAM))
        running.append(stage.client())
        running[-1].chat()
        gate.wait_reached()
    count = len(host.exchanges)
    waiting = stage.client()
    waiting.chat()
    stage.wait_phase("waiting")
    closed_ns = waiting.close()
    record = stage.last_finished()
    assert record["outcome"] == "client_gone"
    assert record["left_ns"] - closed_ns < stage.allowed_ns(SEEN_NS_MAX)
    for gate, client in zip(gates, running, strict=True):
        gate.open()
        assert client.answer().ended
        stage.last_finished()
    assert len(host.exchanges) == count, "it never came to the host"


def test_while_it_waits_for_a_connection(stage: Stage, host: ScriptedHost) -> None:
    host.stick()
    host.close_idle()
    count = len(host.exchanges)
    client = stage.client()
    client.chat()
    stage.wait_phase("connecting")
    closed_ns = client.close()
    (record,) = stage.finished(1)
    host.unstick()
    assert record["outcome"] == "client_gone"
    assert record["left_ns"] - closed_ns < stage.allowed_ns(SEEN_NS_MAX)
    assert len(host.exchanges) == count, "it never came to the host"


def test_while_its_own_socket_is_blocked(stage: Stage, host: ScriptedHost) -> None:
    host.script(*FLOOD)
    client = stage.client(receive_buffer_bytes=4096)
    client.chat()
    host.wait_exchange(len(host.exchanges))
    stage.wait_phase("decode")
    wait_blocked(stage)
    check_gone(stage, host.exchanges[-1], client.close())


def wait_blocked(stage: Stage) -> None:
    (row,) = stage.in_flight()
    deadline = sh.WAIT_S / 0.01
    while not any(each["kind"] == "blocked" for each in stage.token_records(row["request_seq"])):
        deadline -= 1
        assert deadline > 0, "the client's socket gets full"


def test_when_its_requests_were_sent_ahead(stage: Stage, host: ScriptedHost) -> None:
    """Those behind the first are for nobody: they never come to the host."""
    gate = stage.gate()
    host.script(gate, *sh.chunked(sh.STREAM))
    client = stage.client()
    client.send(request(chat_body("m")) * 3)
    gate.wait_reached()
    exchange = host.exchanges[-1]
    count = len(host.exchanges)
    check_gone(stage, exchange, client.close())
    stage.finished(1)
    assert len(host.exchanges) == count


def test_a_cancelled_slot_stays_taken_for_the_hosts_grace(stage: Stage, slow_host: ScriptedHost) -> None:
    gate = stage.gate()
    slow_host.script(*BEGUN_STREAM, gate)
    first, second = stage.client(), stage.client()
    first.chat(model="slow")
    first.wait_for(b"data: ")
    second.chat(model="slow")
    stage.wait_phase("waiting")
    count = len(slow_host.exchanges)
    check_gone(stage, slow_host.exchanges[-1], first.close())
    left_ns = stage.finished(1)[0]["left_ns"]
    assert second.answer().ended
    received_ns = slow_host.wait_exchange(count + 1).received_ns
    waited_ns = received_ns - left_ns - GRACE_MS * MS
    assert waited_ns >= 0, "a slot the host may still work on is not given away"
    assert waited_ns < stage.allowed_ns(SEEN_NS_MAX)
    assert slow_host.running_count_max == 1
    stage.finished(2)


def test_a_slot_of_a_request_that_timed_out_stays_taken_too(stage: Stage, slow_host: ScriptedHost) -> None:
    slow_host.script(sh.End.HANG)
    first, second = stage.client(), stage.client()
    first.chat(model="hasty")
    assert first.answer().error["code"] == "first_token_timeout"
    timed_out = stage.last_finished()
    second.chat(model="slow")
    assert second.answer().ended
    assert slow_host.exchanges[-1].received_ns >= timed_out["stamps"]["done"] + GRACE_MS * MS
    stage.finished(2)


def test_a_slot_of_garbage_stays_taken_too(stage: Stage, slow_host: ScriptedHost) -> None:
    slow_host.script(sh.stream_head() + chunk(sh.ROLE) + chunk(sh.token("a")), 0.02, b"zz\r\n", sh.End.HANG)
    first, second = stage.client(), stage.client()
    first.chat(model="slow")
    assert first.answer().stream_error["code"] == "host_protocol"
    broken = stage.last_finished()
    second.chat(model="slow")
    assert second.answer().ended
    assert slow_host.exchanges[-1].received_ns >= broken["stamps"]["done"] + GRACE_MS * MS
    stage.finished(2)


def test_a_slot_that_was_not_cancelled_is_free_at_once(stage: Stage, slow_host: ScriptedHost) -> None:
    client = stage.client()
    for _ in range(3):
        client.chat(model="slow")
        assert client.answer().ended
    for record in stage.finished(3):
        assert record["stages_ns"]["queue"] < stage.allowed_ns(GRACE_MS * MS // 2)


@pytest.mark.parametrize("end", ["answer", "close"])
def test_a_host_that_cannot_be_told_keeps_its_slot_until_it_has_finished(
    stage: Stage, deaf_host: ScriptedHost, end: str
) -> None:
    """With log probabilities a whole answer is not folded, and such a host works on for a client that has left."""
    gate = stage.gate()
    deaf_host.script(gate, PLAIN_BYTES if end == "answer" else sh.End.CLOSE)
    first, second = stage.client(), stage.client()
    first.chat(model="deaf", stream=False, logprobs=True)
    gate.wait_reached()
    count = len(deaf_host.exchanges)
    first.close()
    assert stage.last_finished()["outcome"] == "client_gone"
    second.chat(model="deaf")
    stage.wait_phase("waiting")
    assert len(deaf_host.exchanges) == count, "nothing waits inside a host that is still at work"
    gate.open()
    assert second.answer().ended
    stage.finished(2)
