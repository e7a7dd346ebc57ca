"""The orderings of the rings on the weakest machine: together they hold, and no single one can go."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

import ringbuffer
from tests.ordering.explorer import Fence, Load, Store, Threads, outcomes, weakenings
from tests.ordering.harness_build import RING_HEADER
from tests.ordering.ring_programs import PROTOCOLS, SPARE, Protocol


def violations(protocol: Protocol, threads: Threads) -> int:
    return sum(not protocol.holds(ends) for ends in outcomes(threads, protocol.memory))


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda each: each.name)
def test_the_protocol_holds_in_every_execution(protocol: Protocol) -> None:
    ends = list(outcomes(protocol.threads, protocol.memory))
    assert ends, "at least one execution comes to its end"
    assert all(protocol.holds(each) for each in ends)


def test_without_any_one_order_a_protocol_breaks() -> None:
    caught: defaultdict[tuple[str, str, int], int] = defaultdict(int)
    for protocol in PROTOCOLS:
        for letter, thread, _, weaker in weakenings(protocol.threads):
            caught[protocol.structure, letter, thread] += violations(protocol, weaker)
    unnoticed = {(structure, letter) for (structure, letter, _), count in caught.items() if count == 0}
    assert unnoticed == SPARE, "each order, at either end, is needed by the structure that it belongs to"
    assert all(caught["table", letter, end] for _, letter in SPARE for end in (0, 1)), "a spare one is needed elsewhere"


def test_the_letters_of_the_models_are_those_of_the_table() -> None:
    table = set(re.findall(r"^SYNC (\w) ", ringbuffer.__doc__ or "", re.MULTILINE))
    ends = defaultdict(set)
    for protocol in PROTOCOLS:
        for letter, thread, _, _ in weakenings(protocol.threads):
            ends[letter].add((protocol.name, thread))
    assert set(ends) == table
    for letter, places in ends.items():
        assert {thread for _, thread in places} == {0, 1}, f"SYNC {letter} is modelled at both ends"


def test_the_machine_is_as_weak_as_it_says() -> None:
    """Each shape of reordering that some processor shows can be seen, and its cure cures it."""
    store_buffering = (
        (Store("x", 1), Load("r", "y")),
        (Store("y", 1), Load("r", "x")),
    )
    assert (0, 0) in both(store_buffering), "x86-64: a store is overtaken by a later load"
    cured = tuple((steps[0], Fence("full"), steps[1]) for steps in store_buffering)
    assert (0, 0) not in both(cured)
    half = tuple((steps[0], Fence("release"), Fence("acquire"), steps[1]) for steps in store_buffering)
    assert (0, 0) in both(half), "a release and an acquire fence are no full fence"
    message = ((Store("x", 1), Store("y", 1)), (Load("first", "y"), Load("r", "x")))
    stale = {"first": 1, "r": 0}
    assert stale in [ends[1] for ends in outcomes(message, {"x": 0, "y": 0})], (
        "AArch64: stores, or loads, change places"
    )
    released = ((Store("x", 1), Store("y", 1, release=True)), (Load("first", "y", acquire=True), Load("r", "x")))
    assert stale not in [ends[1] for ends in outcomes(released, {"x": 0, "y": 0})]
    load_buffering = ((Load("r", "x"), Store("y", 1)), (Load("r", "y"), Store("x", 1)))
    assert (1, 1) in both(load_buffering), "AArch64: a load is overtaken by a later store"


def both(threads: Threads) -> set[tuple[int, int]]:
    return {(ends[0]["r"], ends[1]["r"]) for ends in outcomes(threads, {"x": 0, "y": 0})}


def test_a_thread_sees_its_own_stores_before_others_do() -> None:
    threads = ((Store("x", 1), Load("own", "x"), Load("r", "y")), (Store("y", 1), Load("own", "y"), Load("r", "x")))
    ends = list(outcomes(threads, {"x": 0, "y": 0}))
    assert all(each["own"] == 1 for end in ends for each in end)
    assert any(end[0]["r"] == end[1]["r"] == 0 for end in ends)


EXPECTED = {
    "A": r"store_release|load_acquire",
    "B": r"atomic_thread_fence\(memory_order_(release|acquire)\)",
    "C": r"store_release|load_acquire",
    "D": r"store_release|load_acquire",
    "E": r"atomic_thread_fence\(memory_order_seq_cst\)",
    "F": r"store_release|load_acquire",
}
"""What the models say of each letter, in the words of the C source."""


def test_the_c_source_has_the_orders_of_the_models() -> None:
    labelled = [line for line in RING_HEADER.read_text(encoding="utf-8").splitlines() if "SYNC " in line]
    assert len(labelled) >= 15
    for line in labelled:
        for letter in re.findall(r"SYNC (\w)", line):
            assert re.search(EXPECTED[letter], line), f"SYNC {letter} has its order in: {line.strip()}"
