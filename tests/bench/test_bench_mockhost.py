"""The mock model host keeps its word: tokens and times as asked, slots, connections that close."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from stream_client import StreamClient

from bench.processes import MockHosts
from tests.support.waiting import shared_memory_directory, wait_until

WRITE_STAMP = re.compile(rb"~t(\d{19})")


def _wait_for_stats(host: MockHosts, holds: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        shown = host.get("/stats")
        return shown if holds(shown) else None

    shown = wait_until(look, what)
    assert shown is not None
    return shown


def test_a_stream_has_the_tokens_that_were_asked_for_and_their_times_stand_in_them(host: MockHosts) -> None:
    begin_ns = time.monotonic_ns()
    with StreamClient(host.addresses[0]) as client:
        client.ask("n=7 ttft=20000 itl=3000")
        answer = client.read_stream()
    end_ns = time.monotonic_ns()
    stamps_ns = [int(digits) for digits in WRITE_STAMP.findall(answer)]
    assert len(stamps_ns) == 7
    assert stamps_ns == sorted(stamps_ns)
    assert begin_ns + 20e6 <= stamps_ns[0], "the first token comes no earlier than ttft"
    assert stamps_ns[-1] >= begin_ns + 20e6 + 6 * 3e6, "each further token comes after itl"
    assert stamps_ns[-1] <= end_ns
    assert answer.count(b"~r") == 1, "the first token says when the request had been read"


def test_usage_comes_only_when_it_is_asked_for(host: MockHosts) -> None:
    with StreamClient(host.addresses[0]) as client:
        client.ask("n=2")
        assert b'"usage"' not in client.read_stream()


def test_a_whole_answer_has_a_length_and_keeps_the_connection(host: MockHosts) -> None:
    host.get("/set?close=1")
    with StreamClient(host.addresses[0]) as client:
        for _ in range(2):
            client.ask("n=3", stream=False)
            answer = client.read_until(b'"total_tokens":203}}')
            assert b"content-length:" in answer
            assert answer.count(b" tok") == 3


def test_with_close_a_stream_ends_its_connection_though_the_head_promises_to_keep_it(host: MockHosts) -> None:
    host.get("/set?close=1")
    with StreamClient(host.addresses[0]) as client:
        client.ask("n=2")
        answer = client.read_stream()
        assert b"keep-alive: timeout=5" in answer
        assert b"connection: close" not in answer.lower()
        assert client.is_at_end()


def test_without_close_a_connection_carries_stream_after_stream(host: MockHosts) -> None:
    with StreamClient(host.addresses[0]) as client:
        for _ in range(3):
            client.ask("n=2")
            assert client.read_stream().count(b"~t") == 2
    assert host.get("/stats")["addresses"][0]["connections"] < 5, "the three streams shared one connection"


def test_an_idle_connection_is_closed_after_its_time(host: MockHosts) -> None:
    host.get("/set?idle=50")
    with StreamClient(host.addresses[0]) as client:
        client.ask("n=1")
        client.read_stream()
        assert client.is_at_end()


def test_beyond_its_slots_a_host_is_silent_and_serves_in_order(host: MockHosts) -> None:
    host.get("/set?slots=1")
    with StreamClient(host.addresses[0]) as first, StreamClient(host.addresses[0]) as second:
        first.ask("n=200 itl=100000 id=1")
        first.read_until(b"~t")
        second.ask("n=1 id=2")
        shown = _wait_for_stats(host, lambda stats: stats["waiting"] == 1, "the second request waits for the slot")
        assert shown["running"] == 1
        assert not second.has_bytes(), "not even a head while it waits"
        first.close()
        assert second.read_stream().count(b"~t") == 1
    shown = host.get("/stats")
    assert shown["addresses"][0]["max_running"] == 1
    assert shown["addresses"][0]["max_waiting"] == 1
    assert shown["cancelled"]["streaming"] == 1


def test_a_waiting_request_whose_client_left_still_takes_a_slot_for_its_prefill(host: MockHosts) -> None:
    host.get("/set?slots=1&prefill_us=30000")
    with StreamClient(host.addresses[0]) as first:
        first.ask("n=3 itl=20000")
        with StreamClient(host.addresses[0]) as second:
            second.ask("n=1")
            _wait_for_stats(host, lambda stats: stats["waiting"] == 1, "the second request waits for the slot")
        first.read_stream()
    shown = _wait_for_stats(
        host, lambda stats: stats["ghosts"] == 1 and stats["running"] == 0, "the answer to nobody has come and gone"
    )
    assert shown["cancelled"]["waiting"] == 1
    assert shown["ghost_slot_ms"] == pytest.approx(30, abs=1)
    assert shown["started"] == 1


def test_a_client_that_left_is_matched_with_what_the_host_saw(host: MockHosts) -> None:
    with StreamClient(host.addresses[0]) as client:
        client.ask("n=500 itl=20000 id=77")
        client.read_until(b"~t")
    left_ns = time.monotonic_ns()
    _wait_for_stats(host, lambda stats: stats["cancelled"]["all"] == 1, "the host sees that the client has left")
    host.get(f"/left?id=77&t={left_ns}")
    shown = host.get("/stats?cancels=1")
    assert shown["left"]["told"] == 1
    assert shown["left"]["noticed_us"]["n"] == 1
    assert [(cancel["id"], cancel["phase"]) for cancel in shown["cancels"]] == [(77, "streaming")]


def test_reset_starts_the_counts_over(host: MockHosts) -> None:
    with StreamClient(host.addresses[0]) as client:
        client.ask("n=2")
        client.read_stream()
    assert host.get("/stats?reset=1")["tokens"] == 2
    shown = host.get("/stats")
    assert (shown["received"], shown["finished"], shown["tokens"]) == (0, 0, 0)


def test_a_unix_socket_is_served_as_a_port_is(host: MockHosts) -> None:
    with shared_memory_directory() as directory, MockHosts([f"unix:{directory}/h.sock"]) as local:
        assert local.urls == [f"unix://{directory}/h.sock"]
        with StreamClient(local.addresses[0]) as client:
            client.ask("n=3")
            assert client.read_stream().count(b"~t") == 3


def test_an_unknown_option_is_refused(host: MockHosts) -> None:
    with pytest.raises(RuntimeError, match="did not start"):
        MockHosts(["127.0.0.1:0"], "speed=9")
