"""A client that stops reading costs a bounded amount of memory and nobody else any time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.client import Client
from tests.faults.stage import QUIET, SHORT_TICK, Stage, host_entry
from tests.support import scripted_host as sh
from tests.support.scripted_host import Exchange, ScriptedHost, chunk
from tests.support.waiting import wait_until

MIB = 1 << 20
TEXT_BYTES = 16_384
TOKEN = sh.token("x" * TEXT_BYTES)
TOKEN_COUNT = 2000
"""Together more than all kernel buffers between host and client can hold."""
MEMORY_BYTES_MAX = 3 * MIB
"""What one slow client may cost: its 256 KiB, one read of its host on top, and the allocator's slack."""
FLOOD: list[sh.Step] = [sh.stream_head(), chunk(sh.ROLE), *[chunk(TOKEN)] * TOKEN_COUNT]
FLOOD_END: list[sh.Step] = [chunk(sh.FINISH), chunk(sh.DONE), sh.LAST_CHUNK]
FLOOD_BYTES = len(sh.ROLE) + TOKEN_COUNT * len(TOKEN) + len(sh.FINISH) + len(sh.DONE)


@pytest.fixture(scope="module")
def running_stage(directory: Path, host: ScriptedHost) -> Iterator[Stage]:
    with Stage(directory, [host], QUIET + SHORT_TICK + host_entry(host)) as stage:
        yield stage


def wait_paused(exchange: Exchange) -> int:
    """Wait until the host cannot send any more, and return how many bytes it has sent."""
    sent: list[int] = []

    def stands_still() -> bool:
        sent.append(exchange.sent_bytes)
        return len(sent) > 20 and sent[-1] == sent[-20] > 0

    wait_until(stands_still, "the host is paused")
    return sent[-1]


def flood(stage: Stage, host: ScriptedHost) -> tuple[Client, Exchange, int]:
    """Start a stream that its client does not read; return client, host's view, and bytes sent when it is paused."""
    host.script(*FLOOD, *FLOOD_END)
    count = len(host.exchanges)
    client = stage.client(receive_buffer_bytes=4096)
    client.chat()
    exchange = host.wait_exchange(count + 1)
    return client, exchange, wait_paused(exchange)


def test_a_client_that_does_not_read_pauses_its_host_and_loses_nothing(stage: Stage, host: ScriptedHost) -> None:
    before = stage.memory_bytes()
    client, exchange, sent = flood(stage, host)
    assert sent < FLOOD_BYTES * 2 // 3, "the host is paused"
    assert not exchange.over
    assert stage.memory_bytes() - before < MEMORY_BYTES_MAX
    assert stage.in_flight()[0]["phase"] == "decode"
    answer = client.answer()
    assert answer.ended
    assert len(answer.body) == FLOOD_BYTES, "nothing is lost"
    assert answer.body == sh.ROLE + TOKEN * TOKEN_COUNT + sh.FINISH + sh.DONE
    (record,) = stage.finished(1)
    assert record["outcome"] == "ok"
    assert record["n_content"] == TOKEN_COUNT
    kinds = {each["kind"] for each in stage.token_records(record["request_seq"])}
    assert {"blocked", "drained"} <= kinds
    unsent = max(each["client_unsent_bytes"] for each in stage.token_records(record["request_seq"]))
    assert 0 < unsent < MIB


def test_other_streams_are_not_affected(stage: Stage, host: ScriptedHost) -> None:
    slow, _, _ = flood(stage, host)
    fast = stage.client()
    for _ in range(20):
        fast.chat()
        answer = fast.answer()
        assert answer.text == "one two three"
    ttft_ns = sorted(record["ttft_ns"] for record in stage.finished(20))
    assert ttft_ns[10] < stage.allowed_ns(20_000_000), "others wait for nothing"
    assert slow.answer().ended
    stage.finished(21)


def test_a_client_that_reads_on_and_stops_again_gets_everything(stage: Stage, host: ScriptedHost) -> None:
    client, exchange, sent = flood(stage, host)
    for _ in range(3):
        taken = 0
        while taken < 3 * MIB:
            taken += len(client.take(MIB))
        again = wait_paused(exchange)
        assert again > sent, "a paused host is read again when its client reads on"
        sent = again
        assert not exchange.over
    assert client.read_to_end_of(sh.LAST_CHUNK)
    (record,) = stage.finished(1)
    assert (record["outcome"], record["n_content"]) == ("ok", TOKEN_COUNT)


def test_a_large_whole_answer_to_a_slow_client_is_delivered_whole(stage: Stage, host: ScriptedHost) -> None:
    body = b'{"choices":[{"message":{"content":"' + b"x" * (8 * MIB) + b'"}}]}'
    host.script(sh.answer(200, body))
    client = stage.client(receive_buffer_bytes=4096)
    client.chat(stream=False)
    host.wait(lambda: host.exchanges and host.exchanges[-1].over, "the host has given its answer")
    next_one = stage.client()
    next_one.chat(stream=False)
    assert next_one.answer().status == 200, "the slot is free as soon as the host is done"
    answer = client.answer()
    assert answer.body == body
    (_, record) = stage.finished(2)
    assert record["outcome"] == "ok"
    assert record["stages_ns"]["egress"] + record["stages_ns"]["tail"] > 0


def test_many_clients_that_do_not_read_cost_no_more_than_each_its_share(stage: Stage, host: ScriptedHost) -> None:
    before = stage.memory_bytes()
    for _ in range(3):
        flood(stage, host)
    assert stage.memory_bytes() - before < 3 * MEMORY_BYTES_MAX
