"""What is foretold of a first token, and when nothing is."""

from __future__ import annotations

import pytest

from router.admission.predict import SAMPLES_MIN, Average, Forecast

MS = 1_000_000
S = 1000 * MS


def forecast(held_ms: int = 400, first_ms: int = 50, now: int = 0, count: int = SAMPLES_MIN) -> Forecast:
    seen = Forecast()
    for _ in range(count):
        seen.note_held(held_ms * MS, now)
        seen.note_first(first_ms * MS, now, whole=False)
    return seen


def test_nothing_is_foretold_from_too_little() -> None:
    assert forecast(count=SAMPLES_MIN - 1).of(-1, 4, 0, whole=False) is None
    assert forecast(count=SAMPLES_MIN - 1).of(3, 4, 0, whole=False) is None
    assert forecast().of(-1, 4, 0, whole=True) is None, "whole answers are another matter"
    assert forecast().of(3, 0, 0, whole=False) is None, "nobody has a slot"


@pytest.mark.parametrize(("ahead", "slots", "expected_ms"), [(-1, 4, 50), (0, 4, 150), (3, 4, 450), (7, 1, 3250)])
def test_a_place_in_the_queue_is_a_time(ahead: int, slots: int, expected_ms: int) -> None:
    foretold = forecast().of(ahead, slots, 0, whole=False)
    assert foretold is not None
    assert foretold.ttft_ns == expected_ms * MS


def test_the_wait_alone_is_foretold_where_the_host_is_not_known() -> None:
    seen = Forecast()
    for _ in range(SAMPLES_MIN):
        seen.note_held(S, 0)
    foretold = seen.of(1, 1, 0, whole=False)
    assert foretold is not None
    assert (foretold.wait_ns, foretold.first_ns) == (2 * S, 0)


def test_what_is_old_says_nothing() -> None:
    seen = forecast(now=0)
    assert seen.of(0, 1, 10 * S, whole=False) is not None
    assert seen.of(0, 1, 10 * S + 1, whole=False) is None
    slow = forecast(held_ms=20_000, first_ms=20_000, now=0)
    assert slow.of(0, 1, 39 * S, whole=False) is not None, "slots that are held long are seldom seen to come free"


def test_an_average_follows_what_is_new() -> None:
    average = Average()
    for _ in range(100):
        average.note(10 * MS, 0)
    for _ in range(50):
        average.note(1000 * MS, 1)
    assert 990 * MS < average.known_ns(1) <= 1000 * MS


def test_a_refusal_has_figures_and_a_time_to_come_back() -> None:
    foretold = forecast(held_ms=8000, first_ms=500).of(9, 4, 0, whole=False)
    assert foretold is not None
    text, retry_after_s = foretold.refusal(asked_ns=2 * S, left_ns=1900 * MS)
    assert text == (
        "the first token is to be expected in 20500 ms (9 requests go first, 4 slots are held 8000 ms each; "
        "a host takes 500 ms), the deadline is in 1900 ms (2000 ms after the request came)"
    )
    assert retry_after_s == 19, "by then the queue is as much shorter: 20.5 s less 1.9 s"


def test_who_could_never_be_in_time_is_told_to_come_when_nobody_waits() -> None:
    foretold = forecast(held_ms=3000, first_ms=9000).of(0, 1, 0, whole=False)
    assert foretold is not None
    assert foretold.refusal(S, S)[1] == 3


def test_a_time_to_come_back_is_bounded() -> None:
    assert forecast(held_ms=1, first_ms=1).until_next_s(4, 0) == 1
    assert forecast(held_ms=10_000).until_next_s(4, 0) == 3
    assert Forecast().until_next_s(4, 0) == 1
    assert forecast(held_ms=10_000_000).until_next_s(1, 0) == 600
