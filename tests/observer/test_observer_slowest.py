"""The slowest requests: by when they ended, in bounded memory, and in which stage they spent their time."""

from __future__ import annotations

from typing import Any

import pytest

from router.observer.rows import RequestRow
from router.observer.slowest import KEPT_PER_SPAN, SPAN_COUNT, SPAN_NS, Slowest, longest_stage
from tests.support.request_rows import row

SECOND = 10**9
MS = 10**6
NOW = 500_000 * SECOND + 5 * SECOND
"""Five seconds into a span."""


def ended(seq: int, ago_s: float, duration_ms: int = 100, **given: Any) -> RequestRow:
    done_mono_ns = NOW - round(ago_s * SECOND)
    return row(request_seq=seq, done_mono_ns=done_mono_ns, duration_ns=duration_ms * MS, **given)


def found(slowest: Slowest, window_s: int, now_ns: int = NOW) -> list[int]:
    return [each.request_seq for each in slowest.top(KEPT_PER_SPAN, window_s * SECOND, now_ns)]


def test_what_ended_long_ago_is_not_of_now_though_it_was_just_read() -> None:
    slowest = Slowest()
    slowest.add([ended(1, 3 * 3600, 9000), ended(2, 600, 900), ended(3, 1)], NOW)
    assert found(slowest, 60) == [3]
    assert found(slowest, 3600) == [2, 3]


def test_the_span_in_which_the_window_begins_is_in_it() -> None:
    slowest = Slowest()
    slowest.add([ended(1, 9), ended(2, 4), ended(3, 16)], NOW)
    assert sorted(found(slowest, 10)) == [1, 2]


def test_requests_may_come_in_any_order() -> None:
    slowest = Slowest()
    slowest.add([ended(1, 1, 10)], NOW)
    slowest.add([ended(2, 300, 30), ended(3, 2, 20)], NOW)
    assert found(slowest, 600) == [2, 3, 1]


def test_the_clock_of_an_earlier_boot_is_not_believed() -> None:
    slowest = Slowest()
    slowest.add([ended(1, -3600), ended(2, -0.2)], NOW)
    assert found(slowest, 60) == [2], "the other one ended while the rings were read"


def test_memory_is_bounded_by_spans_and_by_rows_of_each() -> None:
    slowest = Slowest()
    now_ns = NOW
    for step in range(SPAN_COUNT + 50):
        now_ns += SPAN_NS
        rows = [row(request_seq=100 * step + k, done_mono_ns=now_ns - k, duration_ns=k) for k in range(30)]
        slowest.add(rows, now_ns)
    kept = [len(span) for span in slowest._spans.values()]
    assert len(kept) <= SPAN_COUNT + 2
    assert max(kept) == KEPT_PER_SPAN
    assert found(slowest, 10, now_ns)[0] % 100 == 29


@pytest.mark.parametrize(
    ("stages", "longest"),
    [
        ({"queue_ns": 5 * MS, "decode_ns": 800 * MS}, ("decode", 800 * MS)),
        ({"egress_ns": 5 * MS, "queue_ns": 1}, ("egress", 5 * MS)),
        ({"folded": True, "egress_ns": 801 * MS, "decode_ns": 800 * MS}, ("decode", 800 * MS)),
        ({"folded": True, "egress_ns": 900 * MS, "decode_ns": 300 * MS}, ("egress", 600 * MS)),
        ({}, ("", 0)),
    ],
)
def test_the_longest_stage_of_a_folded_answer_is_not_its_decoding_twice(
    stages: dict[str, Any], longest: tuple[str, int]
) -> None:
    assert longest_stage(row(**stages)) == longest
