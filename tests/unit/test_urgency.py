"""How urgent a call for several is: never less than the most urgent, never refused for the deadline of one alone."""

from __future__ import annotations

import pytest

from router.admission import BATCH, INTERACTIVE, REALTIME
from router.caches.urgency import CALLS_MAX, LEAST_URGENT, Urgency, of_all
from router.request import NO_TERMS, Terms


def terms(workload: int = 0, deadline_ns: int = 0, *, serves_late: bool = False) -> Terms:
    own = Terms()
    own.workload, own.deadline_ns, own.serves_late = workload, deadline_ns, serves_late
    return own


@pytest.mark.parametrize(
    ("every", "wanted"),
    [
        ([], LEAST_URGENT),
        ([NO_TERMS], Urgency(INTERACTIVE, 0, serves_late=True)),
        ([terms(BATCH)], Urgency(BATCH, 0, serves_late=True)),
        ([terms(BATCH), NO_TERMS, terms(REALTIME)], Urgency(REALTIME, 0, serves_late=True)),
        ([terms(BATCH, 7)], Urgency(BATCH, 7, serves_late=False)),
        ([terms(BATCH, 7), terms(BATCH, 7)], Urgency(BATCH, 7, serves_late=False)),
        ([terms(BATCH, 7), terms(BATCH, 7, serves_late=True)], Urgency(BATCH, 7, serves_late=True)),
        ([terms(BATCH, 7), terms(REALTIME, 5)], Urgency(REALTIME, 5, serves_late=True)),
        ([terms(BATCH, 7), terms(BATCH)], Urgency(BATCH, 7, serves_late=True)),
        ([terms(BATCH), terms(BATCH, 7)], Urgency(BATCH, 7, serves_late=True)),
    ],
)
def test_the_most_urgent_decides_and_a_deadline_refuses_only_where_it_is_everybodys(
    every: list[Terms], wanted: Urgency
) -> None:
    assert of_all(every) == wanted
    assert of_all(reversed(every)) == wanted
    request = Terms()
    wanted.put(request)
    assert (request.workload, request.deadline_ns, request.serves_late) == wanted


def test_the_more_urgent_always_find_a_call_that_the_less_urgent_may_not_begin() -> None:
    assert list(CALLS_MAX) == sorted(set(CALLS_MAX), reverse=True)
