"""Requests as Chrome trace events: valid whatever the records say, and exact about stages and tokens."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import done_records
import pytest
from fake_router import HOST_ID, MODEL_ID, FakeRouter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringbuffer import DistinctError
from router.errors import ErrorKind
from router.stamps import STAMPS
from router.telemetry import records as rec
from router.telemetry.chrome_trace import Trace, rows
from router.telemetry.reader import Names, resolve, resolve_token
from tests.support.trace_format import check_events

MS = 1_000_000
ORIGIN = 1_000 * MS
END = 9_000 * MS


@pytest.fixture
def names(run_dir: Path) -> Names:
    fake = FakeRouter(run_dir / "main")
    found = Names(fake.directory)
    fake.die()
    return found


def finished(names: Names, seq: int, **given: Any) -> dict[str, Any]:
    defaults = {
        "request_seq": seq,
        "stamps": done_records.stamps(ORIGIN + 100 * MS),
        "outcome": rec.Outcome.OK,
        "endpoint": rec.Endpoint.CHAT,
        "phase": rec.Phase.DONE,
        "host": HOST_ID,
        "model": MODEL_ID,
    }
    return resolve(rec.decode_done(done_records.payload(**{**defaults, **given})), names)


def token(names: Names, seq: int, t_ns: int, kind: rec.Kind = rec.Kind.TEXT, index: int = 0) -> dict[str, Any]:
    record = {"t_ns": t_ns, "request_seq": seq, "kind": kind, "flags": 1, "host": HOST_ID, "choice": 0}
    more = {"n_tokens": 0, "event_index": index, "bytes": 100, "gap_ns": 0, "client_unsent_bytes": 0}
    return resolve_token({**record, **more}, names)


def drawn(
    requests: Iterable[dict[str, Any]], tokens: Iterable[dict[str, Any]] = (), errors: Iterable[DistinctError] = ()
) -> list[dict[str, Any]]:
    trace = Trace(list(requests), list(tokens), errors, origin_ns=ORIGIN, end_ns=END)
    events = list(trace.events("ringrouter main"))
    check_events(events)
    return events


def of(events: list[dict[str, Any]], cat: str) -> list[dict[str, Any]]:
    return [event for event in events if event.get("cat") == cat]


def test_the_stages_of_a_request_cut_it_up_without_a_gap(names: Names) -> None:
    request = finished(names, 7)
    events = drawn([request])
    (whole,) = of(events, "request")
    stages = of(events, "stage")
    assert whole["name"] == "chat chat #7"
    assert (whole["ts"], whole["dur"]) == (100_000.0, 302_000.0)
    shown = {each["name"]: round(each["dur"] * 1000) for each in stages}
    assert shown == {name: ns for name, ns in request["stages_ns"].items() if ns and name != "egress"}
    ends = [each["ts"] + each["dur"] for each in stages]
    assert [each["ts"] for each in stages] == pytest.approx([whole["ts"], *ends[:-1]])
    assert whole["args"]["ttft_ns"] == 101 * MS
    begin, end = of(events, "egress")
    assert (begin["ts"], end["ts"]) == (200_000.0, 201_000.0)


def test_every_token_is_an_instant_in_the_row_of_its_request(names: Names) -> None:
    first, second = finished(names, 1), finished(names, 2)
    tokens = [token(names, seq, ORIGIN + (200 + n) * MS, index=n) for n in range(3) for seq in (1, 2)]
    events = drawn([first, second], tokens)
    row = {event["args"]["request_seq"]: event["tid"] for event in of(events, "request")}
    assert row == {1: 0, 2: 1}, "what runs at the same time stands in different rows"
    seen = [(event["args"]["request_seq"], event["tid"], event["ts"]) for event in of(events, "token")]
    assert seen == [(each["request_seq"], row[each["request_seq"]], (each["t_ns"] - ORIGIN) / 1000) for each in tokens]


def test_requests_one_after_the_other_share_a_row(names: Names) -> None:
    later = finished(names, 2, stamps=done_records.stamps(ORIGIN + 500 * MS))
    assert {event["tid"] for event in of(drawn([finished(names, 1), later]), "request")} == {0}


def test_attempts_stand_at_their_hosts(names: Names) -> None:
    at = ORIGIN + 105 * MS
    failed = (HOST_ID, ErrorKind.HOST_STATUS, 503, at, at, at, at, at + 10 * MS)
    stamps = list(done_records.stamps(ORIGIN + 100 * MS))
    stamps[STAMPS.index("routed")] = at + 20 * MS
    events = drawn([finished(names, 4, failed_attempts=[failed], stamps=stamps)])
    attempts = of(events, "attempt")
    assert [each["name"] for each in attempts] == ["#4: host_status", "#4"]
    assert (attempts[0]["ts"], attempts[0]["dur"]) == (105_000.0, 10_000.0)
    assert attempts[0]["args"] == {"request_seq": 4, "error": "host_status", "status": 503}
    process = next(event for event in events if event["ph"] == "M" and event["pid"] == attempts[0]["pid"])
    assert process["args"]["name"] == "host gpu-0"


def test_a_request_whose_only_attempt_failed_has_no_second_one(names: Names) -> None:
    stamps = done_records.stamps(ORIGIN + 100 * MS)
    routed = stamps[STAMPS.index("routed")]
    failed = (HOST_ID, ErrorKind.HOST_CLOSED, 0, routed, routed, routed, 0, routed + MS)
    events = drawn([finished(names, 4, failed_attempts=[failed], outcome=rec.Outcome.HOST_ERROR)])
    assert [each["name"] for each in of(events, "attempt")] == ["#4: host_closed"]
    assert of(events, "stage")[-1]["name"] == "until it ended"


def test_what_is_in_flight_goes_to_the_end_of_the_drawing(names: Names) -> None:
    stamps = [ORIGIN + 100 * MS] * 4 + [0] * 11
    events = drawn([finished(names, 3, stamps=stamps, outcome=0, phase=rec.Phase.WAITING, host=0)])
    (whole,) = of(events, "request")
    assert whole["name"] == "chat chat #3 (in flight: waiting)"
    assert whole["ts"] + whole["dur"] == (END - ORIGIN) / 1000
    assert [each["name"] for each in of(events, "stage")] == ["still in waiting"]


def test_tokens_whose_request_is_gone_are_drawn_all_the_same(names: Names) -> None:
    events = drawn([], [token(names, 5, ORIGIN + 10 * MS), token(names, 5, ORIGIN + 30 * MS)])
    (whole,) = of(events, "request")
    assert (whole["name"], whole["ts"], whole["dur"]) == ("#5 (record overwritten)", 10_000.0, 20_000.0)


def test_distinct_errors_stand_at_their_first_and_last_time() -> None:
    once = DistinctError("host a: host_closed", 1, ORIGIN + MS, ORIGIN + MS)
    often = DistinctError("host b: host_closed", 9, ORIGIN + 2 * MS, ORIGIN + 8 * MS)
    errors = of(drawn([], [], [once, often]), "error")
    assert [(each["name"][5], each["ts"], each["args"]["count"]) for each in errors] == [
        ("a", 1000.0, 1), ("b", 2000.0, 9), ("b", 8000.0, 9),
    ]  # fmt: skip


def test_nothing_at_all_is_a_valid_trace() -> None:
    assert [event["ph"] for event in drawn([])] == ["M"]


TIME = st.integers(ORIGIN, ORIGIN + 60 * MS)
MAYBE = st.one_of(st.just(0), TIME)


@st.composite
def requests(draw: st.DrawFn, seq: int) -> dict[str, Any]:
    """Any record, stamps in any order and with any holes: after a crash a row may be in any state."""
    recv = draw(TIME)
    failed = [
        (HOST_ID, draw(st.sampled_from(ErrorKind)), 500, draw(TIME), *(draw(MAYBE) for _ in range(3)), draw(TIME))
        for _ in range(draw(st.integers(0, 3)))
    ]
    return {
        "request_seq": seq,
        "stamps": [recv, *(draw(MAYBE) for _ in STAMPS[1:])],
        "outcome": draw(st.sampled_from(rec.Outcome)),
        "phase": draw(st.sampled_from(rec.Phase)),
        "host": draw(st.sampled_from([0, HOST_ID])),
        "failed_attempts": failed,
    }


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 6).flatmap(lambda count: st.tuples(*(requests(seq) for seq in range(count)))),
    st.lists(st.tuples(st.integers(0, 8), TIME), max_size=20),
)
def test_whatever_the_records_say_the_trace_is_valid(
    names: Names, given_requests: tuple[dict[str, Any], ...], given_tokens: list[tuple[int, int]]
) -> None:
    resolved = [finished(names, **{"seq": each["request_seq"], **each}) for each in map(dict, given_requests)]
    tokens = [token(names, seq, t_ns) for seq, t_ns in given_tokens]
    events = drawn(resolved, tokens)
    assert len(of(events, "token")) == len(tokens)
    assert {each["args"]["request_seq"] for each in of(events, "request")} == {
        *(each["request_seq"] for each in resolved),
        *(seq for seq, _ in given_tokens),
    }


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=40))
def test_rows_are_as_few_as_they_can_be(given_spans: list[tuple[int, int]]) -> None:
    spans = {key: (begin, begin + length) for key, (begin, length) in enumerate(given_spans)}
    row_of = rows(spans)
    at_once = max((sum(begin <= t < end for begin, end in spans.values()) for t, _ in spans.values()), default=0)
    empty = any(begin == end for begin, end in spans.values())
    assert len(set(row_of.values())) <= at_once + empty
