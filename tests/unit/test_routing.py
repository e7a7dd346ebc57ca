"""Admission and least outstanding: pure decisions over plain values."""

from __future__ import annotations

import pytest

from router.admission import Admission, admit
from router.routing import NO_HOST, Candidate, Reason, choose, explain


@pytest.mark.parametrize(
    ("waiting", "healthy", "free", "expected"),
    [
        (0, 1, 1, Admission.RUN),
        (0, 1, 0, Admission.WAIT),
        (1, 1, 1, Admission.WAIT),
        (4, 1, 0, Admission.REFUSE_FULL),
        (0, 0, 0, Admission.REFUSE_NO_HOST),
    ],
)
def test_admission(waiting: int, healthy: int, free: int, expected: Admission) -> None:
    assert admit(waiting, 4, healthy, free) == expected


def host(host_id: int, busy: int, slots: int = 4, *, healthy: bool = True, tried: bool = False) -> Candidate:
    return host_id, busy, slots, healthy, tried


def test_the_least_loaded_for_its_size_is_chosen() -> None:
    assert choose([host(1, 2, 4), host(2, 3, 8)], 0) == 1


def test_ties_go_round() -> None:
    hosts = [host(1, 0), host(2, 0), host(3, 0)]
    assert [choose(hosts, turn) for turn in range(4)] == [0, 1, 2, 0]


@pytest.mark.parametrize("hosts", [[], [host(1, 4)], [host(1, 0, healthy=False)], [host(1, 5)]])
def test_none_is_chosen_where_none_can(hosts: list[Candidate]) -> None:
    assert choose(hosts, 0) == NO_HOST


def test_a_host_that_failed_the_request_is_taken_only_when_no_other_is_healthy() -> None:
    assert choose([host(1, 0, tried=True), host(2, 3)], 0) == 1
    assert choose([host(1, 0, tried=True), host(2, 4)], 0) == NO_HOST, "rather wait for the other one"
    assert choose([host(1, 0, tried=True), host(2, 0, healthy=False)], 0) == 0


def test_the_explanation_begins_with_the_chosen_one() -> None:
    hosts = [host(1, 4), host(2, 0, healthy=False), host(3, 1), host(4, 2), host(5, 0, tried=True)]
    assert choose(hosts, 0) == 2
    assert [(host_id, reason) for host_id, reason, _ in explain(hosts, 2)] == [
        (3, Reason.CHOSEN),
        (1, Reason.FULL),
        (2, Reason.UNHEALTHY),
        (4, Reason.BUSIER),
        (5, Reason.TRIED),
    ]
