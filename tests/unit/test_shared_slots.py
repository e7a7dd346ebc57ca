"""The table of shared slots: exact between processes, through kills, whatever the interleaving."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import pytest

import ringbuffer
from router.config import HostConfig
from router.errors import ConfigError
from router.hosts import shared_slots
from router.hosts.shared_slots import SlotTable
from router.sharing import SharedHost

SLOT_COUNT = 3

pytestmark = pytest.mark.skipif(ringbuffer.BACKEND != "c", reason="sharing needs the C extension")


# ---------------------------------------------------------------- the protocol, every interleaving
def steps(state: dict[str, int], me: str, other: str, slot_count: int) -> Iterator[None]:
    """One router that takes a slot if it may and keeps it; each yield is a place where the other may run."""
    state[me] += 1  # store, then the fence: the load below cannot come before it
    yield
    total = state[me] + state[other]
    yield
    if total > slot_count:
        state[me] -= 1
    else:
        state[f"{me} has"] += 1
    yield


def rounds(count: int, state: dict[str, int], me: str, other: str, slot_count: int) -> Iterator[None]:
    for _ in range(count):
        yield from steps(state, me, other, slot_count)


@pytest.mark.parametrize(("slot_count", "takes"), [(1, 1), (1, 2), (2, 2), (3, 2)])
def test_in_no_interleaving_do_two_routers_hold_more_than_the_slots(slot_count: int, takes: int) -> None:
    outcomes = set()
    step_count = 3 * takes
    for places in itertools.combinations(range(2 * step_count), step_count):
        state = {"a": 0, "b": 0, "a has": 0, "b has": 0}
        first, second = rounds(takes, state, "a", "b", slot_count), rounds(takes, state, "b", "a", slot_count)
        for position in range(2 * step_count):
            next(first if position in places else second)
            assert state["a has"] + state["b has"] <= slot_count
        outcomes.add((state["a has"], state["b has"]))
    assert (min(takes, slot_count), slot_count - min(takes, slot_count)) in outcomes  # and it can be had in full


# ---------------------------------------------------------------- real processes
def hammer(directory: Path, seconds: float, inside: Synchronized[int], worst: Synchronized[int]) -> None:
    """Take and give a slot as fast as possible; ``inside`` counts all that hold one, under a lock of its own."""
    table = SlotTable(directory)
    column = table.column("http://host")
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        if table.take(column, 1, SLOT_COUNT):
            with inside.get_lock():
                inside.value += 1
                worst.value = max(worst.value, inside.value)
            with inside.get_lock():
                inside.value -= 1
        table.give(column, 0)
    table.close()


def test_processes_that_fight_for_slots_never_hold_more_than_there_are(directory: Path) -> None:
    context = multiprocessing.get_context("fork")
    inside, worst = context.Value("i", 0), context.Value("i", 0)
    workers = [context.Process(target=hammer, args=(directory, 0.7, inside, worst)) for _ in range(SLOT_COUNT + 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
        assert worker.exitcode == 0
    assert worst.value <= SLOT_COUNT
    assert worst.value >= 1


def hold(directory: Path, ready: int) -> None:
    table = SlotTable(directory)
    assert table.take(table.column("http://host"), SLOT_COUNT, SLOT_COUNT)
    os.write(ready, b"x")
    signal.pause()


def test_what_a_killed_router_held_counts_until_the_grace_is_over(directory: Path) -> None:
    table = SlotTable(directory)
    column = table.column("http://host")
    read_end, write_end = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(directory, write_end))
    process.start()
    assert os.read(read_end, 1) == b"x"
    assert not table.take(column, 1, SLOT_COUNT)
    table.give(column, 0)
    assert table.reap(0, 0) == 0  # it lives
    assert table.total(column) == SLOT_COUNT
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(10)
    assert table.reap(1_000, grace_ns=500) == 0  # its hosts may still work
    assert table.total(column) == SLOT_COUNT
    assert table.reap(1_600, grace_ns=500) == 1
    assert table.take(column, 1, SLOT_COUNT)
    table.close()
    os.close(read_end)
    os.close(write_end)


# ---------------------------------------------------------------- rows and columns
def test_hosts_have_the_same_column_for_every_router_and_rows_are_used_again(directory: Path) -> None:
    first, second = SlotTable(directory), SlotTable(directory)
    assert first.row != second.row
    assert [first.column("http://a"), first.column("http://b")] == [0, 1]
    assert [second.column("http://b"), second.column("http://a")] == [1, 0]
    row = second.row
    second.close()
    third = SlotTable(directory)
    assert third.row == row
    third.close()
    first.close()


def test_a_router_that_closes_while_something_may_run_leaves_its_row_to_the_others(directory: Path) -> None:
    first, second = SlotTable(directory), SlotTable(directory)
    column = second.column("http://a")
    second.take(column, 2, SLOT_COUNT)
    second.close()
    assert first.total(column) == 2
    first.reap(0, 0)
    assert first.total(column) == 0
    first.close()


def test_while_another_waits_nobody_goes_beyond_an_even_share(directory: Path) -> None:
    first, second = SlotTable(directory), SlotTable(directory)
    column = first.column("http://a")
    assert first.room(column, 4) == 4
    first.take(column, 3, 4)
    assert (first.room(column, 4), second.room(column, 4)) == (1, 1)
    second.say_waiting(column, 0, waiting=True)
    assert (first.room(column, 4), second.room(column, 4)) == (-1, 1)
    second.say_waiting(column, 0, waiting=False)
    assert first.room(column, 4) == 1
    first.close()
    second.close()


def test_too_many_hosts_are_refused_with_the_limit(directory: Path) -> None:
    table = SlotTable(directory)
    for number in range(shared_slots.COLUMNS_MAX):
        assert table.column(f"http://{number}") == number
    with pytest.raises(ConfigError, match="at most 64 hosts"):
        table.column("http://one-more")
    table.close()


def test_columns_are_free_again_when_a_router_starts_alone(directory: Path) -> None:
    first = SlotTable(directory)
    assert [first.column(f"http://{number}") for number in range(3)] == [0, 1, 2]
    second = SlotTable(directory)  # not alone: the first one's stay
    assert second.column("http://2") == 2
    first.close()
    second.close()
    third = SlotTable(directory)
    assert third.column("http://2") == 0
    third.close()


def shared_host(table: SlotTable, name: str, url: str = "http://127.0.0.1:1") -> SharedHost:
    host = SharedHost(HostConfig(name=name, url=url, kind="vllm", slots=SLOT_COUNT), 1, 0, table)
    host.take_facts("vllm", {"m": "m"}, 0)
    return host


def test_hosts_of_one_address_count_together(directory: Path) -> None:
    table, other = SlotTable(directory), SlotTable(directory)
    old = shared_host(table, "a")
    old.running = 2
    new = shared_host(table, "b")  # as when a reload brings another name for what still runs
    assert other.total(new.column) == 2
    new.running = 1
    assert new.take()
    assert other.total(new.column) == SLOT_COUNT
    new.running = 2
    assert not new.take()
    new.running -= 1
    old.running = 0
    assert other.total(new.column) == 1
    table.close()
    other.close()


def test_a_table_of_another_version_is_refused(directory: Path) -> None:
    SlotTable(directory).close()
    path = directory / shared_slots.TABLE_NAME
    path.write_bytes(b"\x07" * 8 + path.read_bytes()[8:])
    with pytest.raises(ConfigError, match="another version"):
        SlotTable(directory)


def test_without_the_c_extension_it_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_slots.ringbuffer, "BACKEND", "plain")
    with pytest.raises(ConfigError, match=r"loop\.slots_shared"):
        SlotTable(directory)
