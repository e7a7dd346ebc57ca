"""Evidence: what requests are kept, which are bad, which slice and stage they come from, and how it is said."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router import config
from router.config import JournalConfig, SloConfig
from router.observer.alerts import text
from router.observer.alerts.evidence import Recent, evidence
from router.observer.alerts.evidence import refill as refill_module
from router.observer.alerts.evidence.examples import examples
from router.observer.alerts.evidence.judge import judge
from router.observer.alerts.evidence.onset import onset_ns
from router.observer.alerts.evidence.recent import KEEP_NS
from router.observer.alerts.evidence.refill import Refill
from router.observer.alerts.evidence.slices import Case, candidates, cause, mask_of, ranked, where_of
from router.observer.alerts.evidence.stages import stage_deltas
from router.observer.alerts.evidence.table import Table, Values, dimensions_of, joined, table_of
from router.observer.alerts.model import Cause, Change, Evidence, Finding, Severity
from router.observer.journal import Journal
from router.observer.pipeline import Pipeline
from router.observer.rows import STAGE_FIELDS, RequestRow, RowCost
from router.observer.slo.objectives import objectives_of
from tests.observer.alert_simulation import World
from tests.observer.traffic import HOUR, MONDAY_WALL_NS, MS, Plant, S
from tests.support.alerts import alert
from tests.support.request_rows import row
from tests.support.told_requests import ToldRouter
from tests.support.waiting import shared_memory_directory, wait_until

NOW = MONDAY_WALL_NS + 12 * HOUR


def request(**given: Any) -> RequestRow:
    tags = {name: given.pop(name) for name in ("feature_name", "device_type", "prompt_version") if name in given}
    tags |= given.pop("tags", {})
    return row(**{"stream": True, "endpoint": "chat", "end_wall_ns": NOW, "tags": tags, "host": "gpu-0"} | given)


def finding(**given: Any) -> Finding:
    usual: dict[str, Any] = {"cause": Cause.BURN, "severity": Severity.PAGE, "labels": {}, "summary": "It burns."}
    usual |= {"since_wall_ns": NOW, "metric": "ttft", "threshold": 500 * MS, "objective": 99.0}
    return Finding(**usual | given)


# ---------------------------------------------------------------- what is kept
def test_a_row_becomes_columns_and_what_is_not_known_stays_unknown() -> None:
    values = Values()
    cost = RowCost(0.25, 0.0, 1, 0, "USD", "tokens", "")
    rows = [
        request(ttft_ns=7 * MS, early_tps=12.5, n_in=30, decode_ns=9 * MS, tool_ns=5 * MS, cost=cost, feature_name="f"),
        request(outcome="client_gone", left_ns=3 * MS, folded=True, egress_ns=10 * MS, decode_ns=8 * MS),
    ]
    table = table_of(rows, values)
    assert table.number("ttft")[0] == 7 * MS
    assert np.isnan(table.number("ttft")[1])
    assert table.number("early_tps")[0] == 12_500  # as the catalogue has it: thousandths
    assert table.number("cost")[0] == 0.25
    assert table.number("stage.tool")[0] == 5 * MS
    assert table.number("stage.egress")[1] == 2 * MS, "of a folded answer the host's decoding is no egress"
    assert list(table.number("waited")) == [7 * MS, 3 * MS]
    assert values.text(values.dimensions.index("feature_name"), int(table.codes[0, 1])) == "f"


def test_free_texts_about_users_are_no_dimension() -> None:
    assert "user_id" not in dimensions_of(["user_id", "session_id,region", "region"])
    assert dimensions_of(["session_id,region"])[-1] == "region"


def test_values_without_a_place_are_folded_and_places_that_are_not_used_are_given_to_others() -> None:
    values = Values(("host",), values_max=4)
    assert [values.code(0, text) for text in ("a", "b", "c")] == [2, 3, 1]
    values.keep_only(0, [3])
    assert (values.code(0, "c"), values.text(0, 2), values.code(0, "b")) == (2, "c", 3)
    assert values.known(0, "a") is None


def test_requests_are_kept_for_two_hours_in_the_order_of_their_ends() -> None:
    recent = Recent()
    for hour in range(4):
        recent.add([request(end_wall_ns=NOW + hour * HOUR + second * S) for second in (2, 1)], NOW)
        recent.between(0, NOW + hour * HOUR)  # takes them in
        recent.add_table(table_of([request(end_wall_ns=NOW)] * 5000, recent.values).take(slice(0, 0)), NOW)
    found = recent.between(NOW + HOUR, NOW + 3 * HOUR)
    assert list((found.end_wall_ns - NOW) // S) == [3601, 3602, 7201, 7202]
    big = table_of([request(end_wall_ns=NOW + 9 * HOUR)], recent.values)
    recent.add_table(joined([big] * 5000), NOW + 9 * HOUR)
    recent.add_table(joined([big] * 5000), NOW + 9 * HOUR + KEEP_NS + 1)
    recent.add_table(big, NOW + 11 * HOUR + 2)
    assert len(recent) < 10_010


def test_above_the_bound_requests_stand_for_others_and_shares_stay_right() -> None:
    recent = Recent(rows_max=20_000)
    part = table_of([request(feature_name="a")] * 1500 + [request(feature_name="b")] * 3500, recent.values)
    for second in range(100):
        recent.add_table(replace(part, end_wall_ns=part.end_wall_ns + second * S), NOW + second * S)
        assert len(recent) <= 20_000
    one_in = recent.one_in
    assert one_in >= 32
    kept = recent.between(NOW, NOW + HOUR)
    assert kept.weight.sum() == pytest.approx(500_000, rel=0.05)
    of_a = mask_of(kept, {"feature_name": "a"}, recent.values)
    assert kept.weight[of_a].sum() / kept.weight.sum() == pytest.approx(0.3, abs=0.02)
    for hour in (3, 6, 9):  # much less traffic
        recent.add_table(replace(part, end_wall_ns=part.end_wall_ns + hour * HOUR), NOW + hour * HOUR)
    assert recent.one_in < one_in


# ---------------------------------------------------------------- which are bad
ROWS = st.builds(
    request,
    outcome=st.sampled_from(["ok", "host_error", "client_gone", "client_stalled", "bad_request", "timeout"]),
    stream=st.booleans(),
    ttft_ns=st.sampled_from([None, 100 * MS, 500 * MS, 501 * MS]),
    tpot_ns=st.sampled_from([None, 10.0 * MS, 31.0 * MS]),
    e2e_ns=st.sampled_from([None, 400 * MS, 900 * MS]),
    left_ns=st.sampled_from([None, 100 * MS, 700 * MS]),
    duration_ns=st.sampled_from([50 * MS, 900 * MS]),
    early_tps=st.sampled_from([None, 4.0, 40.0]),
    queue_ns=st.sampled_from([None, 1 * MS, 600 * MS]),
)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(ROWS, min_size=1, max_size=12))
@pytest.mark.parametrize(
    ("metric", "limit"),
    [("ttft", 500), ("tpot", 30), ("e2e", 500), ("duration", 500), ("early_tps", 10), ("availability", None),
     ("stage.queue", 100)],
)  # fmt: skip
def test_what_is_bad_is_what_the_objective_counts_as_bad(metric: str, limit: float | None, rows: list[Any]) -> None:
    key = "at_least" if metric == "early_tps" else "threshold_ms"
    limits = {} if limit is None else {key: float(limit)}
    (objective,) = objectives_of([SloConfig(name="o", metric=metric, objective=99.0, **limits)])
    counts, is_bad = judge(table_of(rows, Values()), metric, objective.threshold)
    said = [None if not count else not bad for count, bad in zip(counts, is_bad, strict=True)]
    assert said == [objective.judge(each) for each in rows]


# ---------------------------------------------------------------- since when
def test_the_onset_is_where_the_share_of_bad_requests_rose() -> None:
    times = np.arange(1000, dtype=np.int64)
    bad = np.zeros(1000, dtype=bool)
    bad[::50] = True  # 2 % before
    bad[700::3] = True
    assert abs(int(onset_ns(times, bad, np.ones(1000, np.float32)) or 0) - 700) <= 3
    bad[700:] = False
    assert onset_ns(times, np.zeros(1000, bool), np.ones(1000, np.float32)) is None
    falling = np.arange(1000) < 300
    assert onset_ns(times, falling, np.ones(1000, np.float32)) is None, "fewer bad ones are no onset"


# ---------------------------------------------------------------- where
def case_of(now: list[RequestRow], before: list[RequestRow], values: Values) -> Case:
    tables = [table_of(rows, values) for rows in (now, before)]
    bad = [judge(table, "ttft", 500 * MS)[1] for table in tables]
    deviation = np.where(bad[0], 1.0, 0.0)
    return Case(tables[0], bad[0], deviation, tables[1], bad[1], float(bad[1].mean()))


def rows_of(counts: dict[tuple[str, str, str], tuple[int, int]]) -> list[RequestRow]:
    """Return rows: for (feature, device, host) so many bad ones and good ones."""
    return [
        request(feature_name=feature, device_type=device, host=host, ttft_ns=(900 if is_bad else 100) * MS)
        for (feature, device, host), (bad, good) in counts.items()
        for is_bad, count in ((True, bad), (False, good))
        for _ in range(count)
    ]


def test_slices_are_ranked_by_bad_requests_over_what_there_would_have_been() -> None:
    values = Values()
    now = rows_of({("search", "mobile", "a"): (40, 60), ("chat", "mobile", "a"): (10, 90)})
    before = rows_of({("search", "mobile", "a"): (0, 400), ("chat", "mobile", "a"): (40, 360)})
    case = case_of(now, before, values)
    found = candidates(case, values)
    (search,) = (each for each in found if where_of(each, values) == {"feature_name": "search"})
    ratio = (0 + 20 * 0.05) / (400 + 20)  # the share of all, 5 %, weighs as much as 20 requests
    assert search.excess == pytest.approx(40 - 100 * ratio)
    shown = ranked(found, None, 40.0, 200.0, values)
    assert shown[0].where == {"feature_name": "search"}
    assert (shown[0].bad, shown[0].total) == (40, 100)
    assert not any(share.where == {"device_type": "mobile"} for share in shown), "all requests are no slice"


@pytest.mark.parametrize(
    ("slow", "named"),
    [
        (lambda f, d, h: h == "a", {"host": "a"}),
        (lambda f, d, h: f == "search" and h == "a", {"host": "a", "feature_name": "search"}),
        (lambda f, d, h: f == "search" and d == "mobile", {"feature_name": "search", "device_type": "mobile"}),
    ],
)
def test_the_cause_is_neither_too_wide_nor_too_narrow(slow: Any, named: dict[str, str]) -> None:
    values = Values()
    cells = [(f, d, h) for f in ("search", "chat") for d in ("mobile", "desktop") for h in ("a", "b")]
    now = rows_of({cell: (30, 20) if slow(*cell) else (1, 49) for cell in cells})
    before = rows_of(dict.fromkeys(cells, (1, 99)))
    case = case_of(now, before, values)
    found = cause(candidates(case, values), case)
    assert found is not None
    assert where_of(found, values) == named


def test_of_two_slices_that_are_the_same_requests_the_simpler_one_is_the_cause() -> None:
    values = Values()
    # search runs on host a alone, and only there
    now = rows_of({("search", "mobile", "a"): (30, 20), ("chat", "mobile", "b"): (1, 49)})
    before = rows_of({("search", "mobile", "a"): (1, 99), ("chat", "mobile", "b"): (1, 99)})
    case = case_of(now, before, values)
    found = cause(candidates(case, values), case)
    assert found is not None
    assert where_of(found, values) == {"host": "a"}


def test_five_requests_are_enough_where_one_host_is_slow_and_the_other_is_not() -> None:
    values = Values()
    now = rows_of({("search", "m", "a"): (3, 0), ("search", "m", "b"): (0, 2)})
    case = case_of(now, rows_of({("search", "m", "a"): (0, 9), ("search", "m", "b"): (0, 9)}), values)
    found = cause(candidates(case, values), case)
    assert found is not None
    assert where_of(found, values) == {"host": "a"}


def test_a_few_requests_that_are_well_make_no_narrower_cause() -> None:
    values = Values()
    now = rows_of({("search", "m", "a"): (900, 100), ("chat", "m", "a"): (0, 20), ("chat", "m", "b"): (0, 1000)})
    before = rows_of({("search", "m", "a"): (0, 500), ("chat", "m", "a"): (0, 10), ("chat", "m", "b"): (0, 500)})
    case = case_of(now, before, values)
    found = cause(candidates(case, values), case)
    assert found is not None
    assert where_of(found, values) == {"host": "a"}


def test_when_all_requests_are_slower_no_slice_is_the_cause() -> None:
    values = Values()
    cells = [(f, d, h) for f in ("search", "chat") for d in ("mobile", "desktop") for h in ("a", "b")]
    now = rows_of({cell: (30 + 2 * (number % 2), 20) for number, cell in enumerate(cells)})
    case = case_of(now, rows_of(dict.fromkeys(cells, (1, 99))), values)
    assert cause(candidates(case, values), case) is None


def test_a_selector_of_several_values_chooses_the_requests_of_all() -> None:
    values = Values()
    table = table_of([request(host=host) for host in ("a", "b", "c")], values)
    assert list(mask_of(table, {"host": "a|c"}, values)) == [True, False, True]
    assert list(mask_of(table, {"host": "z"}, values)) == [False] * 3
    assert list(mask_of(table, {"host": "__other__"}, values)) == [True] * 3, "what was folded cannot be told apart"


# ---------------------------------------------------------------- in which stage
def prefilled(n_in: int, ns_per_token: float, values: Values) -> Table:
    prefill = int(n_in * ns_per_token)
    rows = [request(n_in=n_in, host_first_token_ns=prefill, queue_ns=MS, ttft_ns=prefill + MS) for _ in range(50)]
    return table_of(rows, values)


def test_stages_are_compared_at_the_same_input_length() -> None:
    values = Values()
    before = joined([prefilled(100, MS, values), prefilled(1000, MS, values)])
    longer = joined([prefilled(1000, MS, values)] * 2)
    (stage, *_) = [each for each in stage_deltas(longer, before, "ttft") if each.stage == "host_first_token"]
    assert stage.delta_ns == pytest.approx(0, abs=MS), "longer inputs are no slower stage"
    assert stage_deltas(longer, before, "ttft", by_length=False)[0].delta_ns == pytest.approx(450 * MS)
    slower = joined([prefilled(100, 2 * MS, values), prefilled(1000, 2 * MS, values)])
    first = stage_deltas(slower, before, "ttft")[0]
    assert (first.stage, first.now_count, first.before_count) == ("host_first_token", 100, 100)
    assert first.delta_ns == pytest.approx(550 * MS)


# ---------------------------------------------------------------- examples
def test_examples_are_the_worst_and_typical_ones_of_the_bad_requests_and_name_no_user() -> None:
    values = Values()
    user = {"user_id": "alice", "session_id": "secret"}
    rows = [
        request(ttft_ns=ttft * MS, queue_ns=ttft * MS // 2, trace_id=f"{ttft:032x}",
                tags=user | {"request_id": f"r{ttft}"}, feature_name="search",
                outcome="host_error" if ttft == 600 else "ok")
        for ttft in range(100, 1100, 100)
    ]  # fmt: skip
    table = table_of(rows, values)
    shown = examples(table, judge(table, "ttft", 450 * MS)[1], "ttft", values)
    assert [each.request_id for each in shown if each.kind == "worst"] == ["r600", "r1000", "r900"]
    typical = [each.request_id for each in shown if each.kind == "typical"]
    assert typical[0] == "r700"
    assert shown[1].stages_ns == {"queue": 500 * MS}
    assert shown[1].trace_id == f"{1000:032x}"
    assert shown[1].tags == {"feature_name": "search", "endpoint": "chat"}
    assert "alice" not in repr(shown)
    assert examples(table, np.zeros(10, bool), "ttft", values) == ()


# ---------------------------------------------------------------- all of it
def breach(plant: Plant, metric: str, threshold_ms: float, **given: Any) -> tuple[Evidence, World, int]:
    world = World(seed=5, per_s=3.0, begin_wall_ns=MONDAY_WALL_NS + 9 * HOUR)
    world.traffic.plants = [plant._replace(begin_wall_ns=MONDAY_WALL_NS + 10 * HOUR)]
    for _ in world.run(80 * 60 * S):
        pass
    onset = MONDAY_WALL_NS + 10 * HOUR
    found = finding(metric=metric, threshold=threshold_ms * MS, since_wall_ns=onset + 60 * S, **given)
    changes = [
        Change(onset - 120 * S, "main", "hosts: gpu-1.slots 4 to 8"),
        Change(onset - 7200 * S, "main", "an old one"),
    ]
    return evidence(found, world.recent, world.now_wall_ns, changes, "USD"), world, onset


def test_a_slow_host_is_named_with_its_stage_cost_and_examples() -> None:
    told, _, _ = breach(Plant("host_prefill", "gpu-1", 0, 2.5), "ttft", 500)
    assert told.slices[0].where == {"host": "gpu-1"}
    assert told.slices[0].share > 0.8
    assert told.stages[0].stage == "host_first_token"
    assert told.stages[0].delta_ns > 100 * MS
    assert told.cost_now is not None
    assert told.cost_before is not None
    assert told.cost_now > told.cost_before
    assert [each.kind for each in told.examples] == ["worst"] * 3 + ["typical"] * 2
    assert {each.host for each in told.examples} == {"gpu-1"}
    assert len({each.trace_id for each in told.examples}) == 5
    assert [change.text for change in told.changes] == ["hosts: gpu-1.slots 4 to 8"]
    assert set(told.hosts) == {"gpu-1"}
    for part in ("TTFT of host gpu-1:", "over 500 ms", "since 10:00 UTC", " in host_first_token", "feature search",
                 "device mobile", "cost per response", "USD", "hosts: gpu-1.slots 4 to 8, 09:58"):  # fmt: skip
        assert part in told.sentence


def test_a_longer_prompt_version_is_named_with_its_feature_and_that_it_is_longer() -> None:
    told, _, _ = breach(Plant("prompt", "search", 0, 2.5), "ttft", 500)
    assert told.slices[0].where == {"feature_name": "search", "prompt_version": "new"}
    assert told.stages[0].stage == "host_first_token"
    assert told.stages[0].delta_ns > 100 * MS, "of a new version the length of its prompts is part of what changed"
    assert "inputs are 2." in told.sentence
    assert told.cost_before is not None, "a version that is new is compared with what its feature cost"


def test_an_objective_about_some_requests_is_explained_by_these_alone() -> None:
    told, _, _ = breach(Plant("host_decode", "gpu-0", 0, 2.5), "tpot", 25, where={"feature_name": "search"})
    assert told.slices[0].where == {"feature_name": "search", "host": "gpu-0"}
    assert told.stages[0].stage == "decode"
    assert {each.tags["feature_name"] for each in told.examples} == {"search"}
    assert "TPOT of feature search, host gpu-0" in told.sentence


def test_without_requests_or_for_what_is_no_request_the_summary_is_told() -> None:
    assert evidence(finding(), Recent(), NOW).sentence == "It burns."
    recent = Recent()
    recent.add([request(ttft_ns=MS)], NOW)
    change = Change(NOW - 60 * S, "main", "reload")
    down = evidence(finding(cause=Cause.LOSSY), recent, NOW, [change])
    assert (down.sentence, down.changes, down.slices) == ("It burns.", (change,), ())


def test_a_host_that_is_down_is_told_with_what_failed_and_nothing_is_said_of_one_whose_requests_went_well() -> None:
    down = finding(cause=Cause.HOST_DOWN, metric="", threshold=None, objective=None, where={"host": "b"},
                   summary="Host b is down.", since_wall_ns=NOW + 50 * S)  # fmt: skip
    recent = Recent()
    for host in ("a", "b"):
        recent.add([request(end_wall_ns=NOW + i * S, host=host, ttft_ns=MS) for i in range(60)], NOW)
    assert evidence(down, recent, NOW + 90 * S).sentence == "Host b is down."
    failed = [request(end_wall_ns=NOW + i * S, host="b", outcome="host_error") for i in range(60, 90)]
    recent.add(failed, NOW + 90 * S)
    told = evidence(down, recent, NOW + 90 * S)
    assert told.sentence.startswith("Host b is down: 100 % failed (0.0 % before) since 12:01 UTC")
    assert {each.host for each in told.examples} == {"b"}


def test_a_breach_from_the_first_request_on_has_no_before() -> None:
    recent = Recent()
    slow = [request(end_wall_ns=NOW + i * S, ttft_ns=900 * MS, feature_name="f", host=f"h{i % 2}") for i in range(60)]
    recent.add(slow, NOW)
    told = evidence(finding(where={"feature_name": "f"}), recent, NOW + 60 * S)
    assert "100 % over 500 ms" in told.sentence
    assert (told.slices[0].where, told.slices[0].baseline_ratio) == ({"feature_name": "f"}, None)
    assert told.slices[0].excess == pytest.approx(60 * 0.99), "an objective of 99 % allows one in a hundred"
    (line,) = (line for line in text.lines(alert(evidence=told)) if "of the bad requests" in line)
    assert line.endswith("60 of 60 bad (none before)")
    assert "host h0: requests 30, failed 0 %, median TTFT 900 ms" in text.lines(alert(evidence=told))
    assert told.cost_before is None
    assert len(told.examples) == 5


def test_a_response_costs_what_the_failed_requests_cost_too() -> None:
    recent = Recent()
    cost = RowCost(0.1, 0.0, 1, 0, "USD", "tokens", "")
    outcomes = ["ok"] * 30 + ["host_error"] * 10
    rows = [request(end_wall_ns=NOW + i * S, ttft_ns=900 * MS, cost=cost, outcome=o) for i, o in enumerate(outcomes)]
    recent.add(rows, NOW)
    told = evidence(finding(), recent, NOW + 60 * S, currency="USD")
    assert told.cost_now == pytest.approx(4.0 / 30)
    assert "cost per response 0.13 USD" in told.sentence


# ---------------------------------------------------------------- over restarts
def journal_of(directory: Path, rows: list[RequestRow]) -> Path:
    journal = Journal(directory, JournalConfig())
    journal.append(rows)
    journal.close()
    return directory


def refilled(directory: Path, entries: tuple[str, ...] = (), wall_ns: int = NOW) -> Recent:
    recent = Recent(entries)
    for dimension in range(len(recent.values.dimensions)):
        recent.values.code(dimension, "another")  # codes of now are not those of then
    refill = Refill(directory, recent, wall_ns)
    refill.close()  # waits for the thread
    refill.take(wall_ns)
    assert refill.is_over
    return recent


def test_what_ended_before_a_restart_is_there_again_as_it_was(tmp_path: Path) -> None:
    cost = RowCost(0.25, 0.0, 1, 0, "USD", "tokens", "")
    full: dict[str, Any] = {name: 3 * MS + place for place, (_, name) in enumerate(STAGE_FIELDS)}
    rows = [
        request(**full, end_wall_ns=NOW - 60 * S, ttft_ns=7 * MS, early_tps=12.5, n_in=30, n_out=5, tool_ns=5 * MS,
                cost=cost, visible_2s=4, feature_name="f", tags={"region": "eu", "request_id": "r1"},
                trace_id="a" * 32),
        request(**full, end_wall_ns=NOW - 50 * S, outcome="client_gone", left_ns=3 * MS, folded=True, stream=False),
    ]  # fmt: skip
    others = [
        request(end_wall_ns=NOW - 60 * S, tags={"workload_class": "warm"}),
        request(end_wall_ns=NOW + 60 * S),
        request(end_wall_ns=NOW - KEEP_NS - 1),
    ]
    recent = refilled(journal_of(tmp_path, rows + others), ("region",))
    found = recent.between(0, 2 * NOW)
    expected = table_of(rows, recent.values)
    assert len(found) == 2
    for name in ("end_wall_ns", "codes", "outcome", "is_stream", "weight", "request_id", "trace_id"):
        assert (getattr(found, name) == getattr(expected, name)).all(), name
    np.testing.assert_array_equal(found.numbers, expected.numbers)
    assert mask_of(found, {"region": "eu"}, recent.values).tolist() == [True, False]


def test_of_more_requests_than_are_read_each_stands_for_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refill_module, "ROWS_MAX", 100)
    rows = [request(end_wall_ns=NOW - i * S, request_seq=i) for i in range(1, 401)]
    found = refilled(journal_of(tmp_path, rows)).between(0, NOW)
    assert len(found) == 100
    assert found.weight.sum() == 400


def test_without_a_journal_or_with_a_damaged_one_there_is_nothing_before(tmp_path: Path) -> None:
    assert len(refilled(tmp_path / "none")) == 0
    (path,) = (journal_of(tmp_path / "bad", [request(end_wall_ns=NOW - S)]) / "wal").iterdir()
    path.write_bytes(b"{nothing\n")
    assert len(refilled(tmp_path / "bad")) == 0


class Turning:
    """A pipeline whose clock is set by hand."""

    def __init__(self, directory: Path) -> None:
        text = f'version = 1\n[observer]\nhttp = "127.0.0.1:0"\ndata_dir = "{directory}/data"\n'
        self.pipeline = Pipeline(config.parse(text), directory / "run", time.time_ns())
        self._now_ns = time.monotonic_ns()

    def kept_count(self) -> float:
        """Return how many requests are kept as evidence, ten seconds later."""
        self._now_ns += 10 * S
        self.pipeline.turn(self._now_ns, time.time_ns())
        (kept,) = [each.value for each in self.pipeline.readings() if each.name == "ringrouter_evidence_requests"]
        return kept


def test_a_pipeline_keeps_requests_and_has_them_again_after_a_restart() -> None:
    with shared_memory_directory() as directory:
        router = ToldRouter(directory / "run" / "main")
        first = Turning(directory)
        for _ in range(2):
            begin_ns = time.monotonic_ns() - 100 * MS
            told = router.ask(begin_ns)
            told.dispatch(begin_ns + MS)
            told.event(begin_ns + 20 * MS)
            told.finish(begin_ns + 60 * MS)
        wait_until(lambda: first.kept_count() == 2, "the requests")
        first.pipeline.close(time.time_ns())
        again = Turning(directory)
        wait_until(lambda: again.kept_count() == 2, "the requests of before")
        assert again.kept_count() == 2
        again.pipeline.close(time.time_ns())
        router.die()
