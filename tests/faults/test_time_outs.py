"""Every time-out fires, never early and at most 50 ms late, ends in a proper error, and frees slot and connection."""

from __future__ import annotations

import select
from collections.abc import Iterator
from pathlib import Path
from time import monotonic_ns
from typing import Any

import pytest

from tests.faults.client import CHAT, Answer
from tests.faults.stage import LATE_NS_MAX, QUIET, Stage, check_on_time, host_entry
from tests.support import scripted_host as sh
from tests.support.scripted_host import ScriptedHost, chunk
from tests.support.waiting import wait_until

LIMIT_S = 0.2
PATIENT_S = 0.5
"""Of a model whose tests must do something in time again and again, which a busy machine lets them do late."""
TEXT_BYTES = 16_384
CLIENT_BUFFER_BYTES = 256 * 1024
"""`limits.client_buffer_bytes` as it is without configuration."""
FLOOD: list[sh.Step] = [sh.stream_head(), chunk(sh.ROLE), *[chunk(sh.token("x" * TEXT_BYTES))] * 2000]
DELAYED_ACK_NS = 40_000_000
"""What a client has taken is known when its kernel acknowledges it, which a single segment makes it put off."""
WHOLE = sh.answer(200, b"x" * (16 << 20))
TOKENS_FOR_EVER: list[sh.Step] = [sh.stream_head(), *[chunk(sh.token("x")), 0.02] * 500]
MODELS = ("first", "idle", "stall", "total", "slow-connect", "patient-idle", "patient-stall")
CONFIG = f"""
[limits]
attempts = 1
[timeouts]
head_s = {LIMIT_S}
[models.queue.timeouts]
queue_s = {LIMIT_S}
[models.connect.timeouts]
connect_s = {LIMIT_S}
[models.first.timeouts]
first_token_s = {LIMIT_S}
[models.slow-connect.timeouts]
connect_s = 5
first_token_s = {LIMIT_S}
[models.idle.timeouts]
idle_s = {LIMIT_S}
[models.stall.timeouts]
client_stall_s = {LIMIT_S}
[models.total.timeouts]
total_s = {LIMIT_S}
[models.patient-idle.timeouts]
idle_s = {PATIENT_S}
[models.patient-stall.timeouts]
client_stall_s = {PATIENT_S}
"""


@pytest.fixture(scope="module")
def host() -> Iterator[ScriptedHost]:
    with ScriptedHost("alpha", models=MODELS) as host:
        yield host


@pytest.fixture(scope="module")
def narrow_host() -> Iterator[ScriptedHost]:
    with ScriptedHost("narrow", models=("queue", "total-queue")) as host:
        yield host


@pytest.fixture(scope="module")
def stuck_host() -> Iterator[ScriptedHost]:
    with ScriptedHost("stuck", models=("connect",)) as host:
        yield host


@pytest.fixture(scope="module")
def running_stage(
    directory: Path, host: ScriptedHost, narrow_host: ScriptedHost, stuck_host: ScriptedHost
) -> Iterator[Stage]:
    toml = (
        QUIET
        + CONFIG
        + f"[models.total-queue.timeouts]\ntotal_s = {LIMIT_S}\n"
        + host_entry(host)
        + host_entry(narrow_host, slots=1)
        + host_entry(stuck_host)
    )
    with Stage(directory, [host, narrow_host, stuck_host], toml) as stage:
        yield stage


@pytest.mark.parametrize(
    "begun",
    [b"P", b"POST /v1/chat/completions HTTP/1.1\r\ncontent-le", b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\n{}"],
    ids=["one byte", "half a head", "half a body"],
)
def test_head(stage: Stage, begun: bytes) -> None:
    def measure() -> tuple[int, int, int]:
        client = stage.client()
        client.send(begun)
        answer = client.answer()
        assert (answer.status, answer.error["code"]) == (408, "head_timeout")
        assert client.read_to_end() == b"", "the connection is closed"
        return client.sent_ns, 0, answer.begun_ns

    check_on_time(measure, LIMIT_S)


def test_head_is_not_prolonged_by_further_bytes(stage: Stage) -> None:
    def measure() -> tuple[int, int, int]:
        client = stage.client()
        client.send(b"P")
        began_ns = client.sent_ns
        client.socket.settimeout(LIMIT_S / 5)
        for byte in b"OST / HTTP":
            client.send(bytes([byte]))
            if select.select([client.socket], [], [], LIMIT_S / 5)[0]:
                break
        answer = client.answer()
        assert answer.status == 408
        return began_ns, 0, answer.begun_ns

    check_on_time(measure, LIMIT_S)


def test_an_idle_connection_and_the_next_request_have_no_head_time_out(stage: Stage) -> None:
    client = stage.client()
    for _ in range(2):
        client.chat(model="first", stream=False)
        assert client.answer().status == 200
        client.send(b"\r\n")  # blank lines between requests are no beginning of one
        client.socket.settimeout(LIMIT_S * 2)
        with pytest.raises(TimeoutError):
            client.begin()
        client.socket.settimeout(sh.WAIT_S)
    stage.finished(2)


@pytest.mark.parametrize("stream", [True, False])
def test_queue(stage: Stage, narrow_host: ScriptedHost, stream: bool) -> None:
    def measure() -> tuple[int, int, int]:
        gate = stage.gate()
        narrow_host.script(gate, *sh.chunked(sh.STREAM))
        first, second = stage.client(), stage.client()
        first.chat(model="queue")
        gate.wait_reached()
        second.chat(model="queue", stream=stream)
        answer = second.answer()
        assert (answer.status, answer.error["code"]) == (503, "queue_timeout")
        assert answer.headers["retry-after"] == "1"
        record = stage.last_finished()
        assert (record["outcome"], record["error"], record["attempt_count"]) == ("timeout", "queue_timeout", 0)
        gate.open()
        assert first.answer().ended
        stage.last_finished()
        return record["stamps"]["deq"], record["stamps"]["done"], answer.begun_ns

    check_on_time(measure, LIMIT_S)
    assert narrow_host.running_count_max == 1, "who waited in vain never came to the host"


def test_connect(stage: Stage, stuck_host: ScriptedHost) -> None:
    stuck_host.stick()
    stuck_host.close_idle()

    def measure() -> tuple[int, int, int]:
        client = stage.client()
        client.chat(model="connect")
        answer = client.answer()
        assert (answer.status, answer.error["code"]) == (504, "connect_timeout")
        record = stage.last_finished()
        assert (record["outcome"], record["error"], record["status"]) == ("timeout", "connect_timeout", 504)
        assert [a["error"] for a in record["failed_attempts"]] == ["connect_timeout"]
        return record["stamps"]["routed"], record["stamps"]["done"], answer.begun_ns

    try:
        check_on_time(measure, LIMIT_S)
    finally:
        stuck_host.unstick()


SILENCES: dict[str, list[sh.Step]] = {
    "nothing": [],
    "an interim response": [b"HTTP/1.1 102 Processing\r\n\r\n"],
    "half a head": [sh.stream_head()[:30]],
    "a head": [sh.stream_head()],
    "a role": [sh.stream_head(), chunk(sh.ROLE)],
    "comments": [sh.stream_head(), *[chunk(b": wait\n\n"), 0.03] * 50],
}


@pytest.mark.parametrize("script", SILENCES.values(), ids=SILENCES.keys())
def test_first_token(stage: Stage, host: ScriptedHost, script: list[sh.Step]) -> None:
    def measure() -> tuple[int, int, int]:
        host.script(*script, sh.End.HANG)
        client = stage.client()
        client.chat(model="first")
        answer = client.answer()
        assert (answer.status, answer.error["code"]) == (504, "first_token_timeout")
        record = stage.last_finished()
        assert (record["outcome"], record["error"]) == ("timeout", "first_token_timeout")
        gone_ns = host.exchanges[-1].wait_gone()
        return record["stamps"]["sent"], record["stamps"]["done"], max(answer.begun_ns, gone_ns)

    check_on_time(measure, LIMIT_S)


def test_first_token_behind_a_slow_connection(stage: Stage, host: ScriptedHost) -> None:
    def measure() -> tuple[int, int, int]:
        host.stick()
        host.close_idle()
        client = stage.client()
        client.chat(model="slow-connect")
        stage.wait_phase("connecting")
        host.script(sh.End.HANG)
        host.unstick()
        answer = client.answer()
        assert answer.error["code"] == "first_token_timeout"
        record = stage.last_finished()
        return record["stamps"]["sent"], record["stamps"]["done"], answer.begun_ns

    check_on_time(measure, LIMIT_S)


def test_idle(stage: Stage, host: ScriptedHost) -> None:
    def measure() -> tuple[int, int, int]:
        host.script(sh.stream_head(), chunk(sh.ROLE), chunk(sh.token("a")), 0.1, chunk(sh.token("b")), sh.End.HANG)
        client = stage.client()
        client.chat(model="idle")
        answer = client.answer()
        assert answer.status == 200
        assert answer.text == "ab"
        assert answer.stream_error["code"] == "idle_timeout"
        record = stage.last_finished()
        assert (record["outcome"], record["error"]) == ("timeout", "idle_timeout")
        gone_ns = host.exchanges[-1].wait_gone()
        return record["stamps"]["tokN"], record["stamps"]["done"], max(answer.done_ns, gone_ns)

    check_on_time(measure, LIMIT_S)


@pytest.mark.parametrize("script", [FLOOD, [WHOLE]], ids=["stream", "whole answer"])
def test_client_stall(stage: Stage, host: ScriptedHost, script: list[sh.Step]) -> None:
    def measure() -> tuple[int, int, int]:
        host.script(*script)
        client = stage.client(receive_buffer_bytes=4096)
        client.chat(model="stall", stream=script is FLOOD)
        dropped = select.poll()
        dropped.register(client.socket, select.POLLRDHUP)
        assert dropped.poll(sh.WAIT_S * 1000), "the client's connection is ended"
        seen_ns = monotonic_ns()
        record = stage.last_finished()
        assert (record["outcome"], record["error"]) == ("client_stalled", "client_stalled")
        blocked = [t["t_ns"] for t in stage.token_records(record["request_seq"]) if t["kind"] == "blocked"]
        if script is FLOOD:
            host.exchanges[-1].wait_gone()
        return blocked[-1], record["stamps"]["done"], seen_ns

    check_on_time(measure, LIMIT_S, LATE_NS_MAX + DELAYED_ACK_NS)


def test_a_slow_client_that_takes_bytes_is_no_stalled_one(stage: Stage, host: ScriptedHost) -> None:
    host.script(*FLOOD[:400], chunk(sh.FINISH), chunk(sh.DONE), sh.LAST_CHUNK)
    client = stage.client(receive_buffer_bytes=65536)
    client.chat(model="patient-stall")
    for _ in range(10):
        select.select([], [], [], PATIENT_S / 5)
        client.socket.recv(1 << 20)
    assert client.read_to_end_of(sh.LAST_CHUNK)
    (record,) = stage.finished(1)
    assert record["outcome"] == "ok"
    assert record["e2e_ns"] > 2 * PATIENT_S * 1e9


def total(stage: Stage, answer: Answer) -> tuple[int, int, int]:
    record = stage.last_finished()
    assert (record["outcome"], record["error"]) == ("timeout", "total_timeout")
    return record["stamps"]["recv"], record["stamps"]["done"], answer.done_ns


@pytest.mark.parametrize("stream", [True, False])
def test_total_before_the_first_token(stage: Stage, host: ScriptedHost, stream: bool) -> None:
    def measure() -> tuple[int, int, int]:
        host.script(sh.End.HANG)
        client = stage.client()
        client.chat(model="total", stream=stream)
        answer = client.answer()
        assert (answer.status, answer.error["code"]) == (504, "total_timeout")
        host.exchanges[-1].wait_gone()
        return total(stage, answer)

    check_on_time(measure, LIMIT_S)


def test_total_within_a_stream(stage: Stage, host: ScriptedHost) -> None:
    def measure() -> tuple[int, int, int]:
        host.script(*TOKENS_FOR_EVER)
        client = stage.client()
        client.chat(model="total")
        answer = client.answer()
        assert answer.status == 200
        assert answer.stream_error["code"] == "total_timeout"
        assert answer.stream_error["delivered_events"] == len(answer.text)
        host.exchanges[-1].wait_gone()
        return total(stage, answer)

    check_on_time(measure, LIMIT_S)


def test_total_in_the_waiting_room(stage: Stage, narrow_host: ScriptedHost) -> None:
    def measure() -> tuple[int, int, int]:
        gate = stage.gate()
        narrow_host.script(gate, *sh.chunked(sh.STREAM))
        first, second = stage.client(), stage.client()
        first.chat(model="queue")
        gate.wait_reached()
        second.chat(model="total-queue")
        answer = second.answer()
        assert answer.error["code"] == "total_timeout"
        measured = total(stage, answer)
        gate.open()
        assert first.answer().ended
        stage.last_finished()
        return measured

    check_on_time(measure, LIMIT_S)


def test_a_paused_host_is_not_idle(stage: Stage, host: ScriptedHost) -> None:
    """The router does not read a host while its client is too far behind: silence then is no fault of the host."""
    gates = [stage.gate() for _ in range(400)]
    host.script(sh.stream_head(), *(step for gate in gates for step in (gate, chunk(sh.token("x" * 65_536)))))
    client = stage.client(receive_buffer_bytes=4096)
    client.chat(model="patient-idle")
    opened, unsent = 0, 0
    while unsent <= CLIENT_BUFFER_BYTES:  # one event at a time: nothing is left to be read when the host is paused
        gates[opened].open()
        opened += 1
        unsent = unsent_after(stage, opened)
    select.select([], [], [], PATIENT_S * 1.5)
    assert len(stage.in_flight("decode")) == 1, "while it is paused no time runs"
    client.read_events(opened)
    (record,) = stage.finished(1)
    assert (record["error"], record["n_content"]) == ("idle_timeout", opened)
    drained_ns = [row["t_ns"] for row in stage.token_records(record["request_seq"]) if row["kind"] == "drained"][-1]
    assert record["stamps"]["done"] - drained_ns >= PATIENT_S * 1e9, "behind the pause it began anew"


def unsent_after(stage: Stage, token_count: int) -> int:
    """Wait until so many tokens are recorded; return how many bytes the client had not taken after the last one."""

    def tokens() -> list[dict[str, Any]]:
        return [row for row in stage.token_records() if row["kind"] == "text"][token_count - 1 :]

    return int(wait_until(tokens, f"token {token_count}")[0]["client_unsent_bytes"])


def test_a_bad_request_is_not_kept_until_a_time_out(stage: Stage) -> None:
    client = stage.client()
    client.post(b"{", CHAT)
    assert client.answer().status == 400
