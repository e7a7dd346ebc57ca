"""The circuit breaker, the retry budget and slow start: pure, over explicit time."""

from __future__ import annotations

from random import Random

import pytest

from router.config import BreakerConfig
from router.hosts.breaker import Breaker, BreakerState
from router.hosts.slow_start import slots_now
from router.retry_budget import WINDOW_S, RetryBudget

S = 1_000_000_000


def no_jitter() -> float:
    return 0.5


def breaker(**settings: float) -> Breaker:
    return Breaker(BreakerConfig(**settings), no_jitter)  # type: ignore[arg-type]


def fail(each: Breaker, now: int, served: int = 0) -> bool:
    return each.failed(now, now, served)


def test_failures_in_a_row_open_it() -> None:
    each = breaker(failures=3)
    assert [fail(each, t * S) for t in (1, 2, 3)] == [False, False, True]
    assert each.state is BreakerState.OPEN


def test_an_answer_between_ends_the_row() -> None:
    each = breaker(failures=3, share=0)
    assert not any(fail(each, t * S, served) for t, served in ((1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (6, 2)))
    assert fail(each, 7 * S, 2)


@pytest.mark.parametrize(("failures", "opens"), [(9, False), (10, True)])
def test_a_share_of_the_window_opens_it(failures: int, opens: bool) -> None:
    each = breaker(failures=0, share=0.5, requests_min=20)
    each.second(0, 0)
    served = 20 - failures
    assert [fail(each, S, served) for _ in range(failures)][-1] is opens


def test_what_is_before_the_window_does_not_count() -> None:
    each = breaker(failures=0, share=0.5, requests_min=20, window_s=10)
    each.second(0, 0)
    for _ in range(9):
        fail(each, S, 0)
    for second in range(1, 30):
        each.second(second * S, second)
    assert not any(fail(each, 30 * S, 29) for _ in range(9)), "18 failures, but 9 in each window"


def test_too_few_requests_open_nothing() -> None:
    each = breaker(failures=0, share=0.5, requests_min=20)
    each.second(0, 0)
    assert not any(fail(each, S) for _ in range(19))
    assert fail(each, S)


def test_it_lets_trials_through_when_its_time_is_over_and_closes_after_as_many_answers() -> None:
    each = breaker(failures=1, open_s=2, trial_requests=3)
    fail(each, 10 * S)
    assert not each.try_again(12 * S - 1)
    assert each.try_again(12 * S)
    assert each.state is BreakerState.HALF_OPEN
    assert [each.served(13 * S, 13 * S) for _ in range(3)] == [False, False, True]
    assert each.state is BreakerState.CLOSED


def test_each_opening_takes_twice_as_long_up_to_the_limit() -> None:
    each = breaker(failures=1, open_s=1, open_s_max=5)
    now, lengths = S, []
    for _ in range(5):
        fail(each, now)
        lengths.append((each.until_ns - now) // S)
        now = each.until_ns
        assert each.try_again(now)
    assert lengths == [1, 2, 4, 5, 5]


def test_the_time_begins_anew_once_it_was_closed() -> None:
    each = breaker(failures=1, open_s=1, trial_requests=1)
    fail(each, S)
    each.try_again(2 * S)
    fail(each, 2 * S)
    each.try_again(4 * S)
    each.served(5 * S, 5 * S)
    fail(each, 6 * S)
    assert each.until_ns == 7 * S


def test_what_began_before_it_opened_is_no_news() -> None:
    each = breaker(failures=1, open_s=1, trial_requests=1)
    fail(each, 10 * S)
    until_ns = each.until_ns
    assert not each.failed(10 * S + 5, 9 * S, 0)
    assert each.until_ns == until_ns, "streams that break together with the first open it once"
    each.try_again(11 * S)
    assert not each.failed(12 * S, 9 * S, 0)
    assert each.state is BreakerState.HALF_OPEN
    assert not each.served(12 * S, 9 * S), "an old stream that ends well is no trial"


def test_a_host_that_was_gone_is_tried_at_once() -> None:
    each = breaker(failures=1, open_s=60, open_s_max=60)
    fail(each, S)
    each.restarted(2 * S)
    assert each.state is BreakerState.HALF_OPEN


def test_jitter_is_a_fifth_at_most_and_the_same_for_the_same_seed() -> None:
    def lengths(seed: int) -> list[int]:
        random = Random(seed)
        out = []
        for _ in range(100):
            each = Breaker(BreakerConfig(failures=1, open_s=10), random.random)
            fail(each, 0)
            out.append(each.until_ns)
        return out

    found = lengths(1)
    assert lengths(1) == found
    assert lengths(2) != found
    assert 8 * S <= min(found) < 9 * S
    assert 11 * S < max(found) <= 12 * S


def test_other_settings_leave_an_open_one_open() -> None:
    each = breaker(failures=1, open_s=10)
    fail(each, 0)
    each.configure(BreakerConfig(failures=3, open_s=1))
    assert not each.try_again(10 * S - 1)
    assert each.try_again(10 * S)


# ---------------------------------------------------------------- retries
def test_a_model_with_little_traffic_has_some_retries() -> None:
    budget = RetryBudget(0.2, 3)
    assert [budget.take(S, 0) for _ in range(31)] == [True] * 30 + [False]


def test_retries_are_a_share_of_the_requests_of_the_window() -> None:
    budget = RetryBudget(0.2, 0)
    budget.second(0, 1000)
    assert [budget.take(S, 1050) for _ in range(11)] == [True] * 10 + [False]
    assert budget.take(S, 1055), "one more for five requests more"


def test_what_is_before_the_window_does_not_count_for_retries() -> None:
    budget = RetryBudget(0.2, 0)
    for second in range(100):
        budget.second(second * S, min(second, 50) * 100)
    assert not budget.take(99 * S, 5000), "nothing came in the last ten seconds"
    budget.second(99 * S, 5000)
    assert budget.take(99 * S, 5010)


def test_a_retry_is_forgotten_after_the_window() -> None:
    budget = RetryBudget(0, 0.1)
    assert budget.take(S, 0)
    assert not budget.take(2 * S, 0)
    assert budget.take((WINDOW_S + 2) * S, 0)


def test_retries_are_bounded_however_many_are_asked_for() -> None:
    budget = RetryBudget(0.5, 0)
    taken = 0
    for second in range(60):
        budget.second(second * S, second * 10)
        taken += sum(budget.take(second * S + i, second * 10 + i % 10) for i in range(100))
    assert taken <= 0.5 * 600 + 1


# ---------------------------------------------------------------- slow start
def test_slots_come_in_a_straight_line() -> None:
    slots = [slots_now(100, 10 * S, (10 + t) * S, 10 * S, 0.1) for t in range(11)]
    assert slots == [10, 19, 28, 37, 46, 55, 64, 73, 82, 91, 100]


@pytest.mark.parametrize("slot_count", [1, 2, 3])
def test_a_host_that_comes_back_has_one_slot_at_least(slot_count: int) -> None:
    assert slots_now(slot_count, S, S, 10 * S, 0.001) == 1


def test_without_a_time_all_slots_are_there_at_once() -> None:
    assert slots_now(8, S, S, 0, 0.1) == 8
