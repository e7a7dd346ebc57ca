"""Spare connections: the most starts in any 50 ms of the last 10 s, within bounds."""

from __future__ import annotations

from router.hosts.spares import SpareTarget

MS = 1_000_000


def test_one_is_kept_before_anything_happened() -> None:
    assert SpareTarget().target(0, 8) == 1


def test_none_is_kept_for_a_host_without_a_free_slot() -> None:
    assert SpareTarget().target(0, 0) == 0


def test_the_largest_burst_counts() -> None:
    spares = SpareTarget()
    for at in (0, 10, 20, 1000, 1001, 1002, 1003, 2000):
        spares.start(at * MS, 64)
    assert spares.target(2001 * MS, 64) == 4


def test_a_burst_is_forgotten_after_ten_seconds_and_the_next_largest_counts() -> None:
    spares = SpareTarget()
    for at in (0, 1, 2, 3, 5000, 5001):
        spares.start(at * MS, 64)
    assert spares.target(9_000 * MS, 64) == 4
    assert spares.target(10_100 * MS, 64) == 2
    assert spares.target(16_000 * MS, 64) == 1


def test_never_more_than_ran_at_once() -> None:
    spares = SpareTarget()
    for at in range(40):
        spares.start(at * MS, 3)
    assert spares.target(50 * MS, 64) == 3


def test_never_more_than_the_free_slots() -> None:
    spares = SpareTarget()
    for at in range(10):
        spares.start(at * MS, 64)
    assert spares.target(20 * MS, 4) == 4
