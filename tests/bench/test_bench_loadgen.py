"""The load generator counts what the hosts count, and measures from the time at which a request should have gone."""

from __future__ import annotations

import pytest

from bench.processes import MockHosts, run_load
from tests.support.waiting import free_port, shared_memory_directory


def _no_errors(run: dict[str, dict[str, int]]) -> bool:
    return not any(run["errors"].values())


def test_streams_and_tokens_agree_with_the_host(host: MockHosts) -> None:
    host.get("/stats?reset=1")
    run = run_load(host.addresses[0], "mode=stream conc=8 maxreq=40 n=5 itl=2000 dur=10 warm=0")
    shown = host.get("/stats")
    assert _no_errors(run)
    assert run["started"] == run["ok"] == shown["received"] == shown["finished"] == 40
    assert run["tokens_all"] == shown["tokens"] == 40 * 5
    assert run["ttft_over"]["n"] == 40
    assert run["tok"]["n"] == 40 * 4, "every token but the first is timed"
    assert shown["addresses"][0]["max_running"] <= 8


def test_whole_answers_agree_with_the_host(host: MockHosts) -> None:
    host.get("/stats?reset=1")
    run = run_load(host.addresses[0], "mode=closed conc=4 maxreq=30 n=5 dur=10 warm=0")
    assert _no_errors(run)
    assert run["ok"] == host.get("/stats")["finished"] == run["over"]["n"] == 30


def test_embeddings_are_asked_for_at_their_own_path(host: MockHosts) -> None:
    run = run_load(host.addresses[0], "mode=closed embed=1 maxreq=3 dur=10 warm=0")
    assert _no_errors(run)
    assert run["ok"] == 3


def test_an_open_loop_counts_latency_from_the_intended_time(host: MockHosts) -> None:
    # One connection and 10 ms an answer carry 100 a second; 200 a second are intended, so the last waits about 250 ms.
    run = run_load(host.addresses[0], "mode=rate rate=200 conc=1 n=1 ttft=10000 dur=0.52 warm=0 drain=5")
    assert _no_errors(run)
    assert run["ok"] == 100
    assert run["e2e"]["max"] > 200_000, "waiting for a free connection belongs to the latency"
    assert run["fwd"]["p50"] < 100_000


def test_hosts_that_close_after_each_stream_cause_no_errors(host: MockHosts) -> None:
    host.get("/set?close=1")
    run = run_load(host.addresses[0], "mode=stream conc=4 maxreq=40 n=3 dur=10 warm=0")
    assert _no_errors(run)
    assert run["ok"] == 40
    assert run["conns"] >= 40, "each stream needs a connection of its own"


def test_a_refused_connection_is_an_error(host: MockHosts) -> None:
    run = run_load(f"127.0.0.1:{free_port()}", "mode=stream dur=0.2 warm=0 drain=0.1")
    assert run["ok"] == 0
    assert run["errors"]["connect"] > 0


def test_a_bad_status_is_an_error_and_its_body_is_shown(host: MockHosts) -> None:
    run = run_load(host.addresses[0], "mode=closed maxreq=2 path=/v1/nothing dur=2 warm=0")
    assert (run["ok"], run["errors"]["http"], run["last_status"]) == (0, 2, 404)
    assert "Not Found" in run["errbody"]


def test_a_stream_that_takes_too_long_is_an_error(host: MockHosts) -> None:
    run = run_load(host.addresses[0], "mode=stream maxreq=1 n=100 itl=100000 timeout=0.2 dur=3 warm=0 drain=0")
    assert run["errors"]["timeout"] == 1


def test_a_unix_socket_is_loaded_as_a_port_is(host: MockHosts) -> None:
    with shared_memory_directory() as directory, MockHosts([f"unix:{directory}/h.sock"]) as local:
        run = run_load(local.addresses[0], "mode=stream maxreq=2 n=2 dur=5 warm=0")
    assert run["ok"] == 2


def test_an_unknown_option_is_refused(host: MockHosts) -> None:
    with pytest.raises(RuntimeError, match="not an option of the load generator"):
        run_load(host.addresses[0], "speed=9")
