"""The aggregate: what rows say is what comes out, by window, by slice and since the start; memory stays flat."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

from router.config import Goodput, Slices
from router.observer import catalogue as metrics
from router.observer.aggregate import Aggregate
from router.observer.batch import NO_PACE, PaceArrays
from router.observer.hist import VALUE_MAX
from router.observer.rows import RequestRow, RowCost
from router.observer.view import View
from router.stamps import STAGES
from router.telemetry.records import OTHER_VALUE
from tests.support.request_rows import row

SECOND = 10**9
MS = 10**6
NOW = 1_763_900_000 * SECOND
GOALS = [Goodput(ttft_s=0.5, tpot_s=0.03), Goodput(workload_class="batch", e2e_s=60)]


def request(**given: Any) -> RequestRow:
    values: dict[str, Any] = {
        "end_wall_ns": NOW - SECOND,
        "stream": True,
        "endpoint": "chat",
        "host": "gpu-0",
        "model": "llama",
        "ttft_ns": 100 * MS,
        "tpot_ns": 10.0 * MS,
        "e2e_ns": 2000 * MS,
        "duration_ns": 2001 * MS,
        "early_tps": 99.5,
        "visible_2s": 180,
        "n_in": 50,
        "n_out": 200,
        "tags": {"feature_name": "search"},
    }
    return row(**values | given)


def failed(**given: Any) -> RequestRow:
    nothing = dict.fromkeys(("ttft_ns", "tpot_ns", "e2e_ns", "early_tps", "n_in"))
    return request(**nothing | {"outcome": "host_error", "error": "no_finish", "n_out": 0, **given})


def aggregate(*rows: RequestRow, goodput: list[Goodput] | None = None, slices: Slices | None = None) -> Aggregate:
    made = Aggregate(slices or Slices(), goodput or [], NOW - 60 * SECOND)
    made.add(rows, NO_PACE, NOW)
    return made


def view(made: Aggregate, window_s: int = 60) -> View:
    return View(made, NOW, window_s * SECOND)


class TestWhoCounts:
    def test_a_metric_is_read_off_its_row(self) -> None:
        found = view(aggregate(request())).histograms(["ttft", "tpot", "e2e", "early_tps", "visible_2s", "tokens_out"])
        totals = {name: histogram.total for name, histogram in found.items()}
        assert totals == {
            "ttft": 100 * MS, "tpot": 10 * MS, "e2e": 2000 * MS,
            "early_tps": 99_500, "visible_2s": 180, "tokens_out": 200,
        }  # fmt: skip

    def test_failed_requests_have_no_latency_but_are_counted(self) -> None:
        made = view(aggregate(request(), failed(ttft_ns=5 * MS)))
        found = made.histograms(["ttft", "outcome", "error", "duration"])
        assert (found["ttft"].n, found["outcome"].n, found["duration"].n) == (1, 2, 2)
        assert found["error"].buckets.tolist() == [0, metrics.ERROR_WORDS.index("no_finish")]

    def test_the_first_token_of_a_whole_answer_is_no_time_to_the_first_token(self) -> None:
        found = view(aggregate(request(stream=False))).histograms(["ttft", "e2e", "visible_2s"])
        assert [histogram.n for histogram in found.values()] == [0, 1, 0]

    def test_tokens_of_failed_requests_count(self) -> None:
        assert view(aggregate(failed(n_out=7))).histograms(["tokens_out"])["tokens_out"].total == 7

    def test_a_folded_answers_egress_is_not_its_decoding(self) -> None:
        folded = request(stream=False, folded=True, egress_ns=900 * MS, decode_ns=890 * MS)
        assert view(aggregate(folded)).histograms(["stage.egress"])["stage.egress"].total == 10 * MS

    def test_stage_sums_are_the_sum_of_ttft(self) -> None:
        chance = np.random.default_rng(2)
        rows = []
        for _ in range(50):
            stages = {f"{name}_ns": int(chance.integers(0, 10**9)) for name in STAGES}
            ttft_ns = sum(stages[f"{name}_ns"] for name in STAGES[:11])
            rows.append(request(ttft_ns=ttft_ns, **stages))
        found = view(aggregate(*rows)).histograms(["ttft", *(f"stage.{name}" for name in STAGES[:11])])
        ttft = found.pop("ttft")
        assert sum(histogram.total for histogram in found.values()) == ttft.total

    def test_gaps_count_under_the_slices_of_their_request(self) -> None:
        rows = [request(), request(tags={"feature_name": "chat"})]
        made = Aggregate(Slices(), (), NOW)
        made.add(rows, PaceArrays(np.array([0, 0, 1], np.int32), np.array([5, 7, 11 * MS], np.int64)), NOW)
        assert view(made).histograms(["icl"])["icl"].total == 11 * MS + 12
        entry = made.slicer.entry("feature_name")
        assert entry is not None
        search = entry.slices["search",].id
        assert view(made).histograms(["icl"], search)["icl"].total == 12

    def test_rows_and_gaps_in_many_go_count_as_in_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = [request(ttft_ns=k * MS, tags={"feature_name": f"f{k % 3}"}) for k in range(1, 21)]
        pace = PaceArrays(np.repeat(np.arange(20, dtype=np.int32), 3), np.arange(60) * MS)
        whole = Aggregate(Slices(), (), NOW)
        whole.add(rows, pace, NOW)
        monkeypatch.setattr("router.observer.aggregate.ROWS_AT_ONCE", 7)
        monkeypatch.setattr("router.observer.aggregate.WAITING_MAX", 10)
        parts = Aggregate(Slices(), (), NOW)
        parts.add(rows, pace, NOW)
        names = [metric.name for metric in whole.metrics]
        left, right = view(whole), view(parts)
        for slice_id in sorted(whole.slicer.ids()):
            one, two = left.histograms(names, slice_id), right.histograms(names, slice_id)
            assert [h.dense().tolist() for h in one.values()] == [h.dense().tolist() for h in two.values()]
            assert [h[2:] for h in one.values()] == [h[2:] for h in two.values()]
            first, second = whole.totals.line(slice_id), parts.totals.line(slice_id)
            assert (first is None) == (second is None)
            if first and second:
                assert first.counts.tolist() == second.counts.tolist()
                assert first.sums.tolist() == second.sums.tolist()


class TestGoodput:
    @pytest.mark.parametrize(
        ("given", "good"),
        [
            ({}, True),
            ({"ttft_ns": 500 * MS}, True),
            ({"ttft_ns": 500 * MS + 1}, False),
            ({"tpot_ns": 30.001 * MS}, False),
            ({"tpot_ns": None}, True),
            ({"stream": False, "ttft_ns": 9 * SECOND}, True),
            ({"outcome": "timeout"}, False),
            ({"outcome": "rejected"}, False),
            ({"outcome": "aborted"}, False),
            ({"outcome": "bad_request"}, None),
            ({"outcome": "client_gone", "ttft_ns": 100 * MS}, None),
            ({"outcome": "client_gone", "ttft_ns": None, "left_ns": 400 * MS}, None),
            ({"outcome": "client_gone", "ttft_ns": None, "left_ns": 501 * MS}, False),
        ],
    )
    def test_an_answer_is_judged_by_the_exact_limits(self, given: dict[str, Any], good: bool | None) -> None:
        limits = metrics.limits_of(GOALS)[0]
        assert metrics.verdict(request(**given), limits) is good

    def test_the_share_of_good_answers_is_of_those_that_were_judged(self) -> None:
        rows = [request(), request(ttft_ns=SECOND), failed(), request(outcome="bad_request")]
        assert view(aggregate(*rows, goodput=GOALS)).traffic(0, 0).goodput == pytest.approx(1 / 3)

    def test_a_class_has_its_own_goal(self) -> None:
        batch = request(ttft_ns=9 * SECOND, tags={"workload_class": "batch"})
        assert view(aggregate(batch, goodput=GOALS)).traffic(0, 0).goodput == 1
        assert view(aggregate(request(), goodput=GOALS[1:])).traffic(0, 0).goodput is None


class TestCosts:
    def cost(self, amount: float | None, missing: str = "") -> RowCost:
        return RowCost(
            amount=amount, waste_amount=0.0, host_ns=SECOND, waste_host_ns=0, currency="USD",
            basis="" if missing else "occupancy", missing=missing,
        )  # fmt: skip

    def test_costs_come_later_and_an_unknown_one_is_not_nothing(self) -> None:
        rows = [request(cost=self.cost(0.5)), request(cost=self.cost(0.25)), request(cost=self.cost(None, "no_price"))]
        made = aggregate(*rows)
        assert view(made).traffic(0, 0).cost is None
        made.add_costs(rows, NOW + 2 * SECOND)
        found = View(made, NOW + 2 * SECOND, 60 * SECOND)
        assert found.traffic(0, 0).cost == 0.75
        assert found.traffic(0, 0).cost_unknown_count == 1
        assert found.traffic(0, 0).request_count == 3, "a request is not counted again with its cost"
        table = found.slices("feature_name")
        assert table is not None
        assert table.rows[0].cost_per_response == 0.375

    def test_cost_per_response_is_what_all_cost_over_the_good_answers(self) -> None:
        rows = [request(cost=self.cost(0.5)), request(cost=self.cost(0.25)), request(cost=self.cost(None, "gap"))]
        rows += [failed(cost=self.cost(0.75)), *[failed(outcome="rejected", cost=self.cost(0.0))] * 3]
        made = aggregate(*rows)
        made.add_costs(rows, NOW)
        table = view(made).slices("feature_name")
        assert table is not None
        assert table.rows[0].cost_per_response == pytest.approx(1.5 / 2), "as `ringrouter report` has it"
        priced = view(made).histograms(["priced"])["priced"]
        assert dict(zip(priced.buckets.tolist(), priced.counts.tolist(), strict=True)) == {
            metrics.OUTCOME_WORDS.index("ok"): 2,
            metrics.OUTCOME_WORDS.index("host_error"): 1,
            metrics.OUTCOME_WORDS.index("rejected"): 3,
        }

    def test_without_a_good_answer_there_is_no_cost_per_response(self) -> None:
        rows = [failed(cost=self.cost(0.75))]
        made = aggregate(*rows)
        made.add_costs(rows, NOW)
        table = view(made).slices("feature_name")
        assert table is not None
        assert table.rows[0].cost_per_response is None

    def test_a_cost_counts_under_the_slices_of_its_request(self) -> None:
        made = aggregate(request(cost=self.cost(1.0)))
        made.add_costs([request(cost=self.cost(1.0))], NOW)
        assert view(made).hosts({})[0].cost == 1.0


class TestViews:
    def test_traffic_is_over_the_time_that_was_covered(self) -> None:
        made = aggregate(*[request()] * 30, failed())
        traffic = view(made).traffic(3, 2)
        assert traffic.request_count == 31
        assert traffic.requests_per_s == pytest.approx(31 / 60)
        assert traffic.tokens_out_per_s == pytest.approx(6000 / 60)
        assert list(traffic.outcomes.items()) == [("ok", 30), ("host_error", 1)]
        assert (traffic.running_count, traffic.waiting_count) == (3, 2)

    def test_a_young_observer_covers_less(self) -> None:
        assert view(aggregate(request()), 3600).covered_ns == 60 * SECOND

    def test_a_request_counts_when_it_ended_not_when_it_was_read(self) -> None:
        made = aggregate(request(end_wall_ns=NOW - 300 * SECOND), request())
        assert view(made, 60).traffic(0, 0).request_count == 1
        assert view(made, 600).traffic(0, 0).request_count == 2

    def test_a_clock_that_runs_ahead_makes_no_future(self) -> None:
        assert view(aggregate(request(end_wall_ns=NOW + 100 * SECOND))).traffic(0, 0).request_count == 1

    def test_percentiles_are_in_their_units(self) -> None:
        found = {each.name: each for each in view(aggregate(request())).metrics()}
        assert (found["ttft"].unit, found["ttft"].n, found["ttft"].p95) == ("ns", 1, 100 * MS)
        assert (found["early_tps"].unit, found["early_tps"].p50) == ("events/s", 99.5)
        assert found["ttfo"].p50 is None

    def test_stages_come_in_the_order_of_the_path(self) -> None:
        assert [stage.name for stage in view(aggregate(request())).stages()] == list(STAGES)

    def test_hosts_are_those_that_worked_or_work(self) -> None:
        hosts = view(aggregate(request(), failed(host="gpu-1"))).hosts({"gpu-2": 4})
        assert [(h.name, h.request_count, h.failed_count, h.running_count) for h in hosts] == [
            ("gpu-0", 1, 0, 0), ("gpu-1", 1, 1, 0), ("gpu-2", 0, 0, 4),
        ]  # fmt: skip

    def test_slices_name_the_stage_that_took_longest(self) -> None:
        rows = [request(queue_ns=5 * MS, host_first_byte_ns=90 * MS)] * 2
        rows += [request(queue_ns=95 * MS, tags={"feature_name": "chat"}), request(tags={})]
        table = view(aggregate(*rows)).slices("feature_name")
        assert table is not None
        assert [(s.value, s.request_count, s.longest_stage) for s in table.rows] == [
            ("search", 2, "host_first_byte"), ("chat", 1, "queue"), ("", 1, ""),
        ]  # fmt: skip
        assert not table.is_overflowed
        assert view(aggregate()).slices("nothing") is None

    def test_a_slice_may_spend_its_time_in_decoding(self) -> None:
        rows = [request(host_first_byte_ns=90 * MS, decode_ns=400 * MS, tail_ns=1 * MS)] * 2
        table = view(aggregate(*rows)).slices("feature_name")
        assert table is not None
        assert table.rows[0].longest_stage == "decode"

    def test_a_folded_slices_decoding_is_not_its_egress(self) -> None:
        rows = [request(stream=False, folded=True, egress_ns=905 * MS, decode_ns=890 * MS, tail_ns=15 * MS)]
        table = view(aggregate(*rows)).slices("feature_name")
        assert table is not None
        assert table.rows[0].longest_stage == "decode"

    def test_who_was_left_by_the_client_did_not_fail(self) -> None:
        rows = [request(), failed(), failed(outcome="client_stalled"), *[failed(outcome="client_gone")] * 3]
        made = view(aggregate(*rows))
        table = made.slices("feature_name")
        assert table is not None
        for each in (*table.rows, *made.hosts({})):
            assert (each.request_count, each.failed_count, each.left_count) == (6, 2, 3)

    def test_the_early_pace_of_a_slice_is_that_of_streams(self) -> None:
        rows = [request(early_tps=50.0), *[request(stream=False, folded=True, early_tps=900.0)] * 5]
        table = view(aggregate(*rows)).slices("feature_name")
        assert table is not None
        assert table.rows[0].early_tps_p50 == pytest.approx(50.0, rel=0.005)

    def test_what_counts_events_says_so(self) -> None:
        units = {each.name: each.unit for each in view(aggregate(request())).metrics()}
        assert (units["early_tps"], units["visible_2s"]) == ("events/s", "events")

    def test_a_client_that_sends_the_word_for_the_rest_overflows_nothing(self) -> None:
        made = aggregate(request(tags={"feature_name": OTHER_VALUE}), request())
        table = view(made).slices("feature_name")
        assert table is not None
        assert not table.is_overflowed

    def test_an_overflow_is_over_when_its_window_is(self) -> None:
        many = [request(tags={"feature_name": f"f{i}"}, end_wall_ns=NOW - 50 * SECOND) for i in range(20)]
        made = aggregate(
            *many, request(tags={"feature_name": "f0"}), slices=Slices(tags=["feature_name"], values_max=8)
        )
        found = {window_s: view(made, window_s).slices("feature_name") for window_s in (10, 60)}
        assert {window_s: table and table.is_overflowed for window_s, table in found.items()} == {10: False, 60: True}

    def test_overflow_shows(self) -> None:
        rows = [request(tags={"feature_name": f"f{i}"}) for i in range(20)]
        made = aggregate(*rows, slices=Slices(tags=["feature_name", "channel"], values_max=8))
        table = view(made).slices("feature_name")
        assert table is not None
        assert table.is_overflowed
        assert table.rows[0].value == OTHER_VALUE
        assert table.rows[0].request_count == 13
        other = view(made).slices("channel")
        assert other is not None
        assert not other.is_overflowed

    def test_the_slices_of_every_entry_add_up_to_the_total(self) -> None:
        tags = [{"feature_name": f"f{i % 30}", "device_type": f"d{i % 4}", "user_id": f"u{i}"} for i in range(300)]
        slices = Slices(tags=["feature_name", "feature_name,device_type"], values_max=16, top=["user_id"], top_count=20)
        made = aggregate(*[request(tags=each) for each in tags], slices=slices)
        for name in ("feature_name", "feature_name,device_type", "user_id", "host"):
            table = view(made).slices(name)
            assert table is not None
            assert sum(row.request_count for row in table.rows) == 300, name

    def test_windows_are_written_as_a_log_that_other_tools_read(self, tmp_path: Path) -> None:
        rows = [request(), request(end_wall_ns=NOW - 30 * SECOND, tags={"feature_name": "chat"}, ttft_ns=7 * MS)]
        path = tmp_path / "windows.hlog"
        path.write_text(view(aggregate(*rows)).hlog(["ttft", "e2e"], "feature_name"))
        reader = HistogramLogReader(str(path), HdrHistogram(1, VALUE_MAX, 2))
        found = {}
        while (interval := reader.get_next_interval_histogram()) is not None:
            found[interval.tag] = (interval.get_total_count(), interval.get_start_time_stamp())
        reader.close()
        assert {tag: n for tag, (n, _) in found.items()} == {
            "ttft_search": 1, "e2e_search": 1, "ttft_chat": 1, "e2e_chat": 1,
        }  # fmt: skip
        assert found["ttft_chat"][1] < found["ttft_search"][1]

    def test_a_spectrum_is_in_milliseconds(self) -> None:
        assert view(aggregate(request())).hgrm("ttft").splitlines()[2].split()[0] == "100.14"

    def test_of_nothing_nothing_is_said(self) -> None:
        empty = view(Aggregate(Slices(), (), NOW))
        assert empty.traffic(0, 0).request_count == 0
        assert empty.traffic(0, 0).goodput is None
        assert empty.hosts({}) == []
        assert all(each.n == 0 for each in empty.metrics())


def test_memory_is_flat_over_a_hundred_thousand_users() -> None:
    made = Aggregate(Slices(), (), NOW)
    now_ns = NOW
    base = request()
    sizes = []
    for step in range(50):
        now_ns += SECOND
        rows = []
        for user in range(step * 2000, (step + 1) * 2000):
            tags = {"feature_name": "search", "user_id": f"user-{user}", "session_id": f"session-{user}"}
            rows.append(msgspec.structs.replace(base, end_wall_ns=now_ns, tags=tags))
        made.add(rows, NO_PACE, now_ns)
        made.tick(now_ns)
        if step in {24, 49}:
            del rows
            sizes.append(sys.getallocatedblocks())
    assert made.row_count == 100_000
    assert len(made.slicer.ids()) < 400
    assert sizes[1] - sizes[0] < 5_000, "50,000 further users take no room"
    assert made.windows.byte_count < 2_000_000


def test_every_metric_has_a_name_of_its_own_and_is_documented() -> None:
    names = [metric.name for metric in metrics.catalogue(GOALS)]
    assert len(set(names)) == len(names)
    assert 500 * MS in metrics.catalogue(GOALS)[names.index("ttft")].bounds
