"""Which traces are kept, and for how long they can be opened."""

from __future__ import annotations

from typing import Any

import pytest

from router.observer.rows import RequestRow
from router.observer.traces.kept import KEEP_NS, ROWS_PER_ID_MAX, KeptRows
from router.observer.traces.sampling import PERIOD_NS, Kept, Sampler
from router.telemetry import trace_ids
from tests.support.request_rows import row

S = 1_000_000_000
LIFE = trace_ids.life_of("main", 1)


def request(seq: int, duration_s: float = 1.0, end_s: float = 5.0, **given: Any) -> RequestRow:
    trace_id = trace_ids.trace_id(LIFE, seq).hex()
    values = {"duration_ns": round(duration_s * S), "end_wall_ns": round(end_s * S), "trace_id": trace_id} | given
    return row(request_seq=seq, **values)


def reasons(kept: list[Kept]) -> dict[int, tuple[str, ...]]:
    return {each.row.request_seq: each.reasons for each in kept}


class TestSampler:
    def test_a_share_of_all_by_trace(self) -> None:
        kept = Sampler(0.25, 0).take([request(seq) for seq in range(2000)], S)
        assert 400 <= len(kept) <= 600
        assert {each.reasons for each in kept} == {("head",)}
        again = Sampler(0.25, 0).take([request(seq) for seq in range(2000)], S)
        assert reasons(again) == reasons(kept), "another observer keeps the same"

    def test_a_caller_that_keeps_its_trace_has_it_kept_and_one_that_does_not_has_not(self) -> None:
        flagged = {"span_id": "cd" * 8, "trace_flags": 1}
        rows = [request(1, **flagged), request(2, **(flagged | {"trace_flags": 0}))]
        assert reasons(Sampler(0.0, 0).take(rows, S)) == {1: ("head",)}
        assert reasons(Sampler(1.0, 0).take(rows, S)) == {1: ("head",)}

    @pytest.mark.parametrize("outcome", ["rejected", "host_error", "timeout", "bad_request", "aborted"])
    def test_errors_are_always_kept(self, outcome: str) -> None:
        assert reasons(Sampler(0.0, 0).take([request(1, outcome=outcome)], S)) == {1: ("error",)}

    @pytest.mark.parametrize("outcome", ["ok", "client_gone", "client_stalled"])
    def test_what_went_well_is_no_error(self, outcome: str) -> None:
        assert Sampler(0.0, 0).take([request(1, outcome=outcome)], S) == []

    def test_what_missed_an_objective_is_always_kept_and_says_which(self) -> None:
        sampler = Sampler(0.0, 0, lambda one: ["fast"] if one.request_seq == 2 else [])
        (kept,) = sampler.take([request(seq) for seq in range(5)], S)
        assert (kept.row.request_seq, kept.reasons, kept.objectives) == (2, ("slo",), ("fast",))

    def test_the_slowest_of_ten_seconds_are_kept_when_these_are_over(self) -> None:
        sampler = Sampler(0.0, 2)
        rows = [request(seq, duration_s=seq, end_s=3) for seq in range(10)]
        assert sampler.take(rows[:5], 3 * S) == []
        assert sampler.take(rows[5:], 9 * S) == []
        assert {one.request_seq for one in sampler.waiting()} == {8, 9}
        assert sampler.take([], 15 * S) == [], "requests of the period may still come: their cost settles late"
        assert reasons(sampler.take([], 21 * S)) == {9: ("slowest",), 8: ("slowest",)}
        assert sampler.take([], 60 * S) == []

    def test_the_slowest_that_is_kept_already_is_kept_once_and_holds_its_place(self) -> None:
        sampler = Sampler(0.0, 1)
        rows = [request(1, duration_s=1), request(2, duration_s=9, outcome="timeout")]
        assert reasons(sampler.take(rows, 5 * S)) == {2: ("error",)}
        assert sampler.take([], 30 * S) == []

    def test_at_the_end_nothing_is_waited_for(self) -> None:
        sampler = Sampler(0.0, 1)
        sampler.take([request(1)], 5 * S)
        assert reasons(sampler.flush()) == {1: ("slowest",)}
        assert sampler.flush() == []

    def test_a_clock_that_was_ahead_does_not_keep_a_period_open(self) -> None:
        sampler = Sampler(0.0, 1)
        sampler.take([request(1, end_s=10**6)], 5 * S)
        assert reasons(sampler.take([], 5 * S + 2 * PERIOD_NS)) == {1: ("slowest",)}

    def test_reasons_are_counted(self) -> None:
        sampler = Sampler(1.0, 1, lambda one: ["fast"] if one.request_seq == 2 else [])
        sampler.take([request(1, outcome="timeout"), request(2), request(3)], S)
        assert sampler.counts == {"head": 1, "error": 1, "slo": 1, "slowest": 0}
        assert sampler.seen_count == 3


class TestKeptRows:
    def test_a_request_is_found_by_its_id_and_by_its_trace(self) -> None:
        kept = KeptRows(10)
        one = request(1, tags={"request_id": "r-1"})
        kept.add([one], 5 * S)
        assert kept.find("r-1") == kept.find(one.trace_id) == [one]
        assert kept.find("r-2") == []
        assert kept.find("") == []

    def test_a_trace_of_several_requests_is_found_as_a_whole_in_order(self) -> None:
        kept = KeptRows(10)
        rows = [request(seq, trace_id="ab" * 16, start_wall_ns=10 - seq) for seq in range(3)]
        kept.add(rows, 5 * S)
        assert [one.request_seq for one in kept.find("ab" * 16)] == [2, 1, 0]

    def test_the_oldest_go_first_and_leave_nothing(self) -> None:
        kept = KeptRows(3)
        kept.add([request(seq, tags={"request_id": "same"}) for seq in range(10)], 5 * S)
        assert len(kept) == 3
        assert [one.request_seq for one in kept.find("same")] == [7, 8, 9]
        assert kept.find(trace_ids.trace_id(LIFE, 0).hex()) == []
        kept.add([request(20, end_s=5 + KEEP_NS / S + 1)], round((6 + KEEP_NS / S) * S))
        assert (len(kept), kept.find("same")) == (1, [])
        assert set(kept._by_id) == {trace_ids.trace_id(LIFE, 20).hex()}

    def test_one_id_shows_no_more_than_its_newest_requests(self) -> None:
        kept = KeptRows(1000)
        kept.add([request(seq, trace_id="ab" * 16) for seq in range(ROWS_PER_ID_MAX + 20)], 5 * S)
        assert len(kept.find("ab" * 16)) == ROWS_PER_ID_MAX
