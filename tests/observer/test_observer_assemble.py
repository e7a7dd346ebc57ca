"""The assembler alone: its bounds, what stays exact beyond them, and what it lets go."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.observer import assemble
from router.observer.assemble import NO_TOKEN_SEQ, Assembler, Words, nearest_rank
from router.observer.rows import STALL_NS
from router.telemetry.records import Kind, TokenFlag

MS = 1_000_000


class Ring:
    """Numbers token records as the ring does."""

    def __init__(self) -> None:
        self.next_seq = 0

    def words(self, *events: tuple[int, int, Kind, int]) -> Words:
        """Return events, (request_seq, time, kind, gap) each, as the ring holds them."""
        rows = []
        for request_seq, t_ns, kind, gap_ns in events:
            flags = 0 if kind in {Kind.DISPATCHED, Kind.BLOCKED, Kind.DRAINED, Kind.DONE} else TokenFlag.HOST_EVENT
            rows.append([self.next_seq, t_ns, request_seq, kind | flags << 8, 0, gap_ns, 0, 0])
            self.next_seq += 1
        return np.array(rows, np.uint64).reshape(-1, 8)


def stream(request_seq: int, gaps: Iterable[int], t_ns: int = 10**9) -> list[tuple[int, int, Kind, int]]:
    """Events of an answer with these gaps."""
    events = [(request_seq, t_ns, Kind.DISPATCHED, 0), (request_seq, t_ns, Kind.TEXT, 0)]
    for gap_ns in gaps:
        t_ns += gap_ns
        events.append((request_seq, t_ns, Kind.TEXT, gap_ns))
    return [*events, (request_seq, t_ns, Kind.DONE, 0)]


@pytest.mark.parametrize("kept_count", [0, 1, 4, 9, 10, 11])
def test_beyond_the_bound_of_a_request_the_sums_are_still_exact(
    monkeypatch: pytest.MonkeyPatch, kept_count: int
) -> None:
    monkeypatch.setattr(assemble, "GAPS_PER_REQUEST_MAX", kept_count)
    gaps = [5 * MS, 7 * MS, 2 * STALL_NS, 1, 3 * MS, STALL_NS, 8 * STALL_NS, 2, 9 * MS, 4]
    events = stream(1, gaps)
    ring, assembler = Ring(), Assembler()
    assembler.add(ring.words(*events[:6]))
    assembler.add(ring.words(*events[6:]))
    pace = assembler.take(1, 11, 11)
    assert pace.gaps.tolist() == gaps[:kept_count]
    summary = pace.summary
    assert (summary.gap_count, summary.kept_count) == (10, min(kept_count, 10))
    assert (summary.stall_count, summary.stall_ns) == (2, 10 * STALL_NS)
    if kept_count:
        assert summary.max_ns == 8 * STALL_NS
        assert summary.mean_ns == sum(gaps) / 10
    assert not summary.lossy


def test_all_requests_together_keep_no_more_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "KEPT_BYTES_MAX", 1000)
    ring, assembler = Ring(), Assembler()
    for request_seq in range(50):
        assembler.add(ring.words(*stream(request_seq, range(1, 10))[:-1]))
        assert assembler.kept_bytes <= 1000
    assert sum(len(assembler.take(seq, 10, 10).gaps) for seq in range(50)) == 1000 // 8
    assert (assembler.kept_bytes, assembler.open_count) == (0, 0)


def test_a_retry_gives_its_bytes_back() -> None:
    ring, assembler = Ring(), Assembler()
    assembler.add(ring.words(*stream(1, [5, 6, 7])[:-1]))
    assembler.add(ring.words((1, 10**9, Kind.DISPATCHED, 0)))
    assert assembler.kept_bytes == 0
    assembler.add(ring.words((1, 10**9 + 1, Kind.TEXT, 0), (1, 10**9 + 9, Kind.TEXT, 8)))
    assert assembler.take(1, 6, 2).gaps.tolist() == [8]
    assert assembler.kept_bytes == 0


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=60))
def test_summaries_are_those_of_the_plain_definition(gaps: list[int]) -> None:
    ring, assembler = Ring(), Assembler()
    assembler.add(ring.words(*stream(3, gaps)))
    summary = assembler.take(3, len(gaps) + 1, len(gaps) + 1).summary
    ascending = sorted(gaps)
    assert summary.p50_ns == ascending[-(-len(gaps) // 2) - 1]
    assert summary.p95_ns == next(g for g in ascending if sum(x <= g for x in gaps) * 100 >= 95 * len(gaps))
    assert summary.mean_ns == pytest.approx(sum(gaps) / len(gaps))
    assert summary.stall_count == sum(gap > STALL_NS for gap in gaps)
    assert summary.stall_ns == sum(gap for gap in gaps if gap > STALL_NS)
    assert summary.max_ns == ascending[-1]


def test_ranks_of_a_hundred() -> None:
    hundred = np.arange(1, 101, dtype=np.int64)
    assert [nearest_rank(hundred, percent) for percent in (1, 50, 95, 100)] == [1, 50, 95, 100]
    assert nearest_rank(hundred[:1], 95) == 1


def test_one_that_is_not_known_is_lossy_only_if_it_had_events() -> None:
    assembler = Assembler()
    assert assembler.take(5, 0, 0).summary.lossy is False
    pace = assembler.take(5, 3, 2)
    assert (pace.summary.lossy, pace.first_token_seq) == (True, NO_TOKEN_SEQ)


def test_an_end_lets_go_of_all_that_ended_before() -> None:
    ring, assembler = Ring(), Assembler()
    for request_seq in range(5):
        assembler.add(ring.words(*stream(request_seq, [1, 2])))
    assembler.take(3, 3, 3)
    assert assembler.open_count == 1, "only the one that ended later is kept"
    assert assembler.take(4, 3, 3).gaps.tolist() == [1, 2]


def test_strangers_are_let_go_the_second_time() -> None:
    ring, assembler = Ring(), Assembler()
    assembler.add(ring.words(*stream(1, [1])[:-1], *stream(2, [1])[:-1], *stream(3, [1])))
    for expected in (3, 2, 2):
        assembler.forget_strangers({2})
        assert assembler.open_count == expected, "2 is alive, 3 has ended"


@pytest.mark.parametrize("apart", [1, 1 << 15, 1 << 20, 1 << 40])
def test_requests_are_told_apart_however_far_their_numbers_are(apart: int) -> None:
    rng = random.Random(apart)
    ring, assembler = Ring(), Assembler()
    streams = {i * apart: stream(i * apart, [rng.randrange(100) for _ in range(5)]) for i in range(4)}
    waiting = {seq: list(events) for seq, events in streams.items()}
    mixed = []
    while any(waiting.values()):
        seq = rng.choice([seq for seq, events in waiting.items() if events])
        mixed.append(waiting[seq].pop(0))
    ended = [event[0] for event in mixed if event[2] == Kind.DONE]
    assembler.add(ring.words(*mixed))
    for seq in ended:
        assert assembler.take(seq, 6, 6).gaps.tolist() == [event[3] for event in streams[seq][2:-1]]


def test_the_first_open_one_says_where_to_begin_anew() -> None:
    ring, assembler = Ring(), Assembler()
    assert assembler.first_open_seq is None
    assembler.add(ring.words(*stream(1, [1])))
    begin = ring.next_seq
    assembler.add(ring.words(*stream(2, [1])[:-1]))
    assert assembler.first_open_seq == 0
    assert assembler.take(1, 2, 2).first_token_seq == 0
    assert assembler.first_open_seq == begin
