"""Which request continues an answer that called tools, and how long the tools took; the ids of traces."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from router.observer import columns
from router.observer.assemble import STALLS_TOLD_MAX, Assembler, Words
from router.observer.rows import STALL_NS, RequestRow, RowStall
from router.observer.traces import tool_turns
from router.observer.traces.tool_turns import ANSWERS_PER_PLACE_MAX, WAIT_NS_MAX, ToolTurns
from router.telemetry import trace_ids
from router.telemetry.records import Kind, TokenFlag
from tests.support.request_rows import row

S = 1_000_000_000
TRACE, CALLER = "ab" * 16, "cd" * 8


def call(seq: int, begin_s: float, end_s: float, **given: Any) -> RequestRow:
    """A request of session ``s`` whose answer called tools."""
    return turn(seq, begin_s, end_s, calls_tools=True, **given)


def turn(seq: int, begin_s: float, end_s: float, session: str = "s", **given: Any) -> RequestRow:
    tags = {"session_id": session} if session else {}
    times = {"recv_mono_ns": round(begin_s * S), "done_mono_ns": round(end_s * S)}
    return row(request_seq=seq, tags=tags, endpoint="chat", trace_id=f"{seq:032x}", **times, **given)


def pair(*rows: RequestRow) -> list[RequestRow]:
    paired = list(rows)
    ToolTurns().pair(paired)
    return paired


class TestPairs:
    def test_the_next_request_of_a_session_carries_the_results(self) -> None:
        first, second = pair(call(1, 0, 1), turn(2, 3.5, 4))
        assert (first.tool_ns, second.tool_ns) == (None, round(2.5 * S))
        span = trace_ids.span_id(trace_ids.life_of("main", 1), 1, trace_ids.SERVER).hex()
        assert second.tool_after == f"{1:032x}-{span}"

    def test_a_chain_of_calls_is_paired_link_by_link(self) -> None:
        assert [each.tool_ns for each in pair(call(1, 0, 1), call(2, 2, 3), turn(3, 6, 7))] == [None, S, 3 * S]

    def test_what_the_session_continued_the_trace_does_not_continue_again(self) -> None:
        def traced(one: RequestRow) -> RequestRow:
            return msgspec.structs.replace(one, trace_id=TRACE, span_id=CALLER)

        rows = pair(traced(call(1, 0, 1)), turn(2, 2, 3), traced(turn(3, 4, 5, session="")))
        assert [each.tool_ns for each in rows] == [None, S, None]

    def test_over_several_batches(self) -> None:
        turns = ToolTurns()
        first, second = [call(1, 0, 1)], [turn(2, 2, 3)]
        turns.pair(first)
        turns.pair(second)
        assert second[0].tool_ns == S
        assert turns.place_count == 0, "it is continued once"

    def test_a_restarted_observer_knows_what_it_meets_again(self) -> None:
        rows = [turn(2, 2, 3)]
        ToolTurns().pair(rows, [call(1, 0, 1)])
        assert rows[0].tool_ns == S

    def test_by_the_callers_trace_without_a_session(self) -> None:
        rows = [call(1, 0, 1, session=""), turn(2, 2, 3, session=""), turn(3, 4, 5, session="")]
        joined = [_in_trace(each) for each in rows]
        assert [each.tool_ns for each in pair(*joined)] == [None, S, None]
        assert [each.tool_ns for each in pair(*rows)] == [None, None, None], "a trace of one's own binds nobody"

    @pytest.mark.parametrize(
        "second",
        [
            pytest.param(turn(2, 2, 3, session="other"), id="another session"),
            pytest.param(turn(2, 2, 3, session=""), id="no session"),
            pytest.param(turn(2, 2, 3, model="n"), id="another model"),
            pytest.param(turn(2, 0.5, 3), id="it came while the answer was under way"),
            pytest.param(turn(2, 1 + WAIT_NS_MAX / S + 1, 2000), id="too late"),
            pytest.param(turn(2, 2, 3, n_in=10), id="a shorter prompt holds no results"),
        ],
    )
    def test_what_does_not_continue_an_answer(self, second: RequestRow) -> None:
        assert pair(call(1, 0, 1, n_in=10), second)[1].tool_ns is None

    def test_an_answer_without_calls_is_not_continued(self) -> None:
        assert pair(turn(1, 0, 1), turn(2, 2, 3))[1].tool_ns is None

    def test_of_parallel_agents_each_answer_is_continued_once(self) -> None:
        rows = pair(call(1, 0, 1, n_in=100), call(2, 0, 2, n_in=500), turn(3, 3, 4, n_in=150), turn(4, 5, 6, n_in=600))
        assert [each.tool_ns for each in rows] == [None, None, 2 * S, 3 * S]


def _in_trace(each: RequestRow) -> RequestRow:
    return msgspec.structs.replace(each, trace_id=TRACE, span_id=CALLER)


class TestBounds:
    def test_sessions_heard_of_longest_ago_are_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tool_turns, "PLACES_MAX", 3)
        turns = ToolTurns()
        turns.pair([call(seq, seq, seq + 0.5, session=f"s{seq}") for seq in range(10)])
        assert turns.place_count == 3
        rows = [turn(20, 20, 21, session="s9"), turn(21, 20, 21, session="s6")]
        turns.pair(rows)
        assert [each.tool_ns is None for each in rows] == [False, True]

    def test_a_session_waits_for_few_results(self) -> None:
        turns = ToolTurns()
        turns.pair([call(seq, 0, seq + 1) for seq in range(50)])
        rows = [turn(100 + index, 100, 101) for index in range(50)]
        turns.pair(rows)
        assert sum(each.tool_ns is not None for each in rows) == ANSWERS_PER_PLACE_MAX


class TestIds:
    def test_they_are_the_same_wherever_they_are_made(self) -> None:
        life = trace_ids.life_of("main", 77)
        assert trace_ids.trace_id(life, 5).hex() == "fe59ab8075db71cb4618d703b0e9673f"
        assert trace_ids.span_id(life, 5, trace_ids.SERVER).hex() == "c493c1370663760c"

    def test_no_two_are_the_same(self) -> None:
        lives = [trace_ids.life_of(name, generation) for name in ("main", "b") for generation in (1, 11, 111)]
        traces = {trace_ids.trace_id(life, seq) for life in lives for seq in range(200)}
        spans = {trace_ids.span_id(life, seq, part) for life in lives for seq in range(200) for part in ("server", "q")}
        attempts = {trace_ids.attempt_span_id(life, seq, ns) for life in lives for seq in range(20) for ns in (1, 12)}
        assert (len(traces), len(spans), len(attempts)) == (1200, 2400, 240)

    @pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 1.0])
    def test_a_ratio_keeps_that_share(self, ratio: float) -> None:
        life = trace_ids.life_of("main", 1)
        kept = sum(trace_ids.is_within(trace_ids.trace_id(life, seq), ratio) for seq in range(4000))
        assert abs(kept / 4000 - ratio) <= 0.03
        assert ratio not in {0.0, 1.0} or kept == 4000 * ratio


class TestWhatTheRingTells:
    def words(self, *events: tuple[int, Kind, int]) -> Words:
        rows = [
            [seq, t_ns, 1, kind | (TokenFlag.HOST_EVENT if kind < Kind.BLOCKED else 0) << 8, 0, gap_ns, 0, 0]
            for seq, (t_ns, kind, gap_ns) in enumerate(events)
        ]
        return np.array(rows, np.uint64).reshape(-1, 8)

    @pytest.mark.parametrize(
        ("kinds", "expected"),
        [
            ([Kind.TEXT, Kind.TOOL_CALL], True),
            ([Kind.TOOL_CALL, Kind.TEXT], False),
            ([Kind.TEXT], False),
            ([Kind.REASONING, Kind.TOOL_CALL, Kind.TOOL_CALL, Kind.FINISH, Kind.USAGE], True),
        ],
    )
    def test_an_answer_calls_tools_when_that_is_its_last_content(self, kinds: list[Kind], expected: bool) -> None:
        assembler = Assembler()
        assembler.add(self.words(*((S + index, kind, int(index > 0)) for index, kind in enumerate(kinds))))
        content = sum(Kind.TEXT <= kind <= Kind.TOOL_CALL for kind in kinds)
        assert assembler.take(1, len(kinds), content).summary.calls_tools is expected

    def stalls(self, gaps: list[int], n_content: int | None = None) -> tuple[RowStall, ...]:
        times = np.cumsum([S, *gaps]).tolist()
        assembler = Assembler()
        assembler.add(self.words(*((t, Kind.TEXT, g) for t, g in zip(times, [0, *gaps], strict=True))))
        count = len(gaps) + 1 if n_content is None else n_content
        return assembler.take(1, count, count).summary.stalls

    def test_stalls_are_told_with_when_they_ended(self) -> None:
        gaps = [5, 2 * STALL_NS, 7, STALL_NS, 3 * STALL_NS]
        assert self.stalls(gaps) == (
            RowStall(2 * STALL_NS + 5, 2 * STALL_NS),
            RowStall(6 * STALL_NS + 12, 3 * STALL_NS),
        )

    def test_the_longest_ones_in_their_order(self) -> None:
        found = self.stalls([STALL_NS + n for n in range(1, 41)])
        assert [each.gap_ns - STALL_NS for each in found] == list(range(41 - STALLS_TOLD_MAX, 41))

    def test_none_where_events_were_lost(self) -> None:
        assert self.stalls([2 * STALL_NS], n_content=9) == ()


def test_lines_of_earlier_versions_are_rows_without_the_new_fields() -> None:
    line = msgspec.json.decode(columns.encode_line(row(request_seq=4)))
    for name in ("calls_tools", "tool_ns", "tool_after", "stalls", "decision"):
        del line[name]
    old = msgspec.convert(line, RequestRow)
    assert (old.tool_ns, old.calls_tools, old.stalls, old.decision) == (None, False, (), None)
