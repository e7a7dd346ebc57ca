"""The summary of stats: nearest rank, the window really covered, failures counted beside the latencies."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.telemetry.summary import nearest_rank, percentiles, summarise

SECOND = 1_000_000_000


def request(**given: Any) -> dict[str, Any]:
    defaults = {
        "stamps": {"done": 0},
        "outcome": "ok",
        "flags": ["stream"],
        "host": "h",
        "model": "m",
        "phase": "done",
        "ttft_ns": 10,
        "tpot_ns": 2.0,
        "e2e_ns": 100,
        "router_overhead_ns": 1,
        "n_out": 50,
    }
    return {**defaults, **given}


@pytest.mark.parametrize(("percent", "value"), [(1, 15), (30, 20), (40, 20), (50, 35), (95, 50), (100, 50)])
def test_nearest_rank_is_always_a_measured_value(percent: float, value: float) -> None:
    assert nearest_rank([15, 20, 35, 40, 50], percent) == value


@given(st.lists(st.integers(), min_size=1), st.sampled_from([50, 95, 99]))
def test_at_least_p_percent_are_not_above_the_percentile(values: list[int], percent: int) -> None:
    found = nearest_rank(sorted(values), percent)
    assert found in values
    assert 100 * sum(value <= found for value in values) >= percent * len(values)
    assert 100 * sum(value < found for value in values) < percent * len(values)


def test_no_values_have_no_percentile() -> None:
    assert percentiles([None, None]).n == 0
    assert percentiles([]).p99 is None


def test_the_window_says_what_it_covers_and_what_was_overwritten() -> None:
    done = [request(stamps={"done": 10 * SECOND}), request(stamps={"done": 12 * SECOND})]
    window = summarise(done, [], published_count=5, now_ns=20 * SECOND).window
    assert (window.n, window.published_count, window.overwritten_count, window.length_ns) == (2, 5, 3, 10 * SECOND)


def test_failed_requests_are_counted_but_have_no_latency() -> None:
    done = [request(), request(outcome="timeout", ttft_ns=10**12), request(outcome="timeout", ttft_ns=None)]
    summary = summarise(done, [], published_count=3, now_ns=SECOND)
    assert summary.outcomes == {"timeout": 2, "ok": 1}
    assert summary.ttft_ns == percentiles([10])
    assert (summary.groups[0].ok_count, summary.groups[0].failed_count) == (1, 2)


def test_ttft_is_that_of_streams() -> None:
    done = [request(), request(flags=[], ttft_ns=99)]
    assert summarise(done, [], published_count=2, now_ns=1).ttft_ns.n == 1
    assert summarise(done, [], published_count=2, now_ns=1).e2e_ns.n == 2


def test_tokens_per_second_is_over_the_window_failed_requests_included() -> None:
    done = [request(), request(outcome="client_gone", n_out=10)]
    summary = summarise(done, [], published_count=2, now_ns=4 * SECOND)
    assert summary.tokens_out == 60
    assert summary.tokens_per_s == 15


def test_running_and_waiting_are_per_host_and_model() -> None:
    present = [
        request(host="", phase="waiting"),
        request(host="", phase="waiting", model="other"),
        request(phase="decode"),
        request(phase="prefill"),
        request(phase="connecting", host="g"),
    ]
    summary = summarise([request()], present, published_count=1, now_ns=1)
    assert (summary.running_count, summary.waiting_count) == (3, 2)
    assert {(g.host, g.model): (g.running_count, g.waiting_count, g.ok_count) for g in summary.groups} == {
        ("", "m"): (0, 1, 0),
        ("", "other"): (0, 1, 0),
        ("g", "m"): (1, 0, 0),
        ("h", "m"): (2, 0, 1),
    }


def test_an_idle_router_has_an_empty_summary() -> None:
    summary = summarise([], [], published_count=0, now_ns=1)
    assert summary.groups == []
    assert summary.tokens_per_s is None


@pytest.mark.parametrize("own", ["cache", "tools", "warm"])
def test_what_the_router_asked_itself_is_counted_but_nobody_waited_for_it(own: str) -> None:
    done = [request(tags={"workload_class": "batch"}), request(tags={"workload_class": own}, ttft_ns=10**12)]
    summary = summarise(done, [], published_count=2, now_ns=SECOND)
    assert summary.outcomes == {"ok": 2}
    assert (summary.ttft_ns.n, summary.ttft_ns.p99) == (1, 10)
    assert (summary.groups[0].ok_count, summary.groups[0].ttft_ns.n) == (2, 1)
