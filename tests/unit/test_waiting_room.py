"""Who is next in a waiting room: classes, shares of keys, deadlines, starvation."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import pytest

from router.admission import BATCH, INTERACTIVE, REALTIME, STARVE_EVERY, Turns, WaitingRoom, next_of

S = 1_000_000_000
_numbers = count(1)


@dataclass
class Waiter:
    name: str
    workload: int = 0
    deadline_ns: int = 0
    share_key: str = ""
    deq: int = 0
    seq: int = 0

    def __post_init__(self) -> None:
        self.seq = next(_numbers)


def anybody(_: Waiter) -> bool:
    return True


def room_of(*waiters: Waiter, starve_s: tuple[int, int, int] = (5, 15, 60), waiting: int = -1) -> WaitingRoom:
    room = WaitingRoom()
    room.configure(is_fair=True, starve_ns=[s * S for s in starve_s], waiting_max=[-1, -1, waiting])
    for waiter in waiters:
        room.add(waiter)
    return room


def order_of(room: WaitingRoom, limit: int = 1000) -> str:
    """Start everybody; return their names in that order."""
    names = []
    while room and len(names) < limit:
        waiter = next_of([room], anybody, 0, for_starving=False)
        room.start(waiter)
        names.append(waiter.name)
    return " ".join(names)


def test_equals_are_served_in_the_order_in_which_they_came() -> None:
    assert order_of(room_of(*(Waiter(str(i)) for i in range(5)))) == "0 1 2 3 4"


def test_one_without_a_class_is_interactive() -> None:
    room = room_of(Waiter("a"), Waiter("b", INTERACTIVE), Waiter("c"))
    assert order_of(room) == "a b c"
    assert room_of(Waiter("a")).count(INTERACTIVE) == 1


def test_classes_go_before_one_another() -> None:
    room = room_of(
        Waiter("b1", BATCH), Waiter("i1"), Waiter("r1", REALTIME), Waiter("b2", BATCH), Waiter("r2", REALTIME)
    )
    assert [room.count(number) for number in (REALTIME, INTERACTIVE, BATCH)] == [2, 1, 2]
    assert order_of(room) == "r1 r2 i1 b1 b2"


def test_the_earliest_deadline_goes_first_and_none_goes_last() -> None:
    room = room_of(
        Waiter("never"),
        Waiter("late", deadline_ns=30),
        Waiter("soon", deadline_ns=10),
        Waiter("soon too", deadline_ns=10),
    )
    assert order_of(room) == "soon soon too late never"


def test_a_deadline_does_not_lift_a_request_out_of_its_class() -> None:
    assert order_of(room_of(Waiter("batch", BATCH, deadline_ns=1), Waiter("other"))) == "other batch"


def test_keys_take_turns() -> None:
    flood = [Waiter(f"a{i}", share_key="a") for i in range(4)]
    assert order_of(room_of(*flood, Waiter("b0", share_key="b"), Waiter("b1", share_key="b"))) == "a0 b0 a1 b1 a2 a3"


def test_a_key_that_comes_back_again_and_again_is_not_before_those_that_wait() -> None:
    room = room_of(*(Waiter(f"a{i}", share_key="a") for i in range(8)))
    started = []
    room.add(Waiter("b", share_key="b"))
    while len(started) < 8:
        waiter = next_of([room], anybody, 0, for_starving=False)
        room.start(waiter)
        started.append(waiter.share_key)
        if waiter.share_key == "b":
            room.add(Waiter("b", share_key="b"))
    assert started.count("a") == started.count("b") == 4


def test_a_new_key_does_not_get_the_turns_it_was_not_there_for() -> None:
    room = room_of(*(Waiter(f"a{i}", share_key="a") for i in range(10)))
    assert order_of(room, 5) == "a0 a1 a2 a3 a4"
    for i in range(3):
        room.add(Waiter(f"b{i}", share_key="b"))
    assert order_of(room, 6) in {"b0 a5 b1 a6 b2 a7", "a5 b0 a6 b1 a7 b2"}


def test_deadlines_count_within_a_round_of_keys() -> None:
    room = room_of(
        Waiter("a late", share_key="a", deadline_ns=90),
        Waiter("a soon", share_key="a", deadline_ns=50),
        Waiter("b soon", share_key="b", deadline_ns=10),
        Waiter("b too", share_key="b", deadline_ns=20),
    )
    assert order_of(room) == "b soon a soon b too a late"


def test_one_that_was_put_back_goes_first() -> None:
    room = room_of(Waiter("a"), Waiter("b"), Waiter("soon", deadline_ns=1))
    back, back_too = Waiter("back"), Waiter("back too")
    room.add(back, first=True)
    room.add(back_too, first=True)
    assert order_of(room) == "back too back soon a b"


def test_who_cannot_be_served_is_passed_over_and_keeps_the_place() -> None:
    room = room_of(Waiter("x"), Waiter("a"), Waiter("y", share_key="k"), Waiter("b"))

    def not_x_or_y(waiter: Waiter) -> bool:
        return waiter.name not in "xy"

    chosen = next_of([room], not_x_or_y, 0, for_starving=False)
    assert chosen.name == "a"
    room.start(chosen)
    assert next_of([room], anybody, 0, for_starving=False).name in {"x", "y"}
    assert next_of([room], lambda _: False, 0, for_starving=False) is None


def test_one_that_leaves_is_out_and_a_stranger_is_an_error() -> None:
    a, b = Waiter("a"), Waiter("b", share_key="k")
    room = room_of(a, b)
    room.remove(a)
    assert len(room) == 1
    assert list(room) == [b]
    with pytest.raises(KeyError):
        room.remove(a)
    assert len(room) == 1
    room.remove(b)
    assert not room


def test_leaving_does_not_count_for_the_share() -> None:
    a = [Waiter(f"a{i}", share_key="a") for i in range(3)]
    room = room_of(*a, Waiter("b", share_key="b"))
    room.remove(a[0])
    assert order_of(room) == "a1 b a2"


def test_the_starving_get_their_turn_and_no_more() -> None:
    room = room_of(*(Waiter(f"b{i}", BATCH, deq=0) for i in range(100)))
    for i in range(100):
        room.add(Waiter(f"r{i}", REALTIME, deq=99 * S))
    turns, now, started = Turns(), 100 * S, []
    for _ in range(40):
        waiter = next_of([room], anybody, now, for_starving=turns.is_for_starving(1))
        room.start(waiter)
        turns.started(1)
        started.append(waiter.workload)
    assert started.count(BATCH) == 40 // STARVE_EVERY, "the backlog does not shut out what is urgent"
    assert started[:STARVE_EVERY] == [REALTIME] * (STARVE_EVERY - 1) + [BATCH]


def test_nobody_starves_before_the_limit() -> None:
    room = room_of(Waiter("b", BATCH, deq=0), Waiter("r", REALTIME, deq=59 * S))
    assert next_of([room], anybody, 60 * S, for_starving=True).name == "r"
    assert next_of([room], anybody, 60 * S + 1, for_starving=True).name == "b"


def test_one_without_a_deadline_does_not_starve_behind_those_with_one() -> None:
    room = room_of(Waiter("old", deq=0), *(Waiter(f"d{i}", deq=20 * S, deadline_ns=i + 1) for i in range(9)))
    assert next_of([room], anybody, 21 * S, for_starving=True).name == "old"


def test_of_several_models_the_class_then_the_deadline_then_the_wait_decides() -> None:
    one = room_of(Waiter("one", deq=1), Waiter("one batch", BATCH, deq=0))
    two = room_of(Waiter("two", deq=2))
    assert next_of([one, two], anybody, 3, for_starving=False).name == "one"
    two.add(Waiter("two soon", deq=3, deadline_ns=9))
    assert next_of([one, two], anybody, 3, for_starving=False).name == "two soon"


def test_starving_counts_across_models_and_hosts_apart() -> None:
    busy = room_of(*(Waiter(f"r{i}", REALTIME, deq=99 * S) for i in range(50)))
    forgotten = room_of(*(Waiter(f"b{i}", BATCH, deq=0) for i in range(50)))
    turns = Turns()
    started: dict[int, list[int]] = {1: [], 2: []}
    for turn in range(40):
        host_id = 1 + turn % 2
        starving = turns.is_for_starving(host_id)
        waiter = next_of([busy, forgotten], anybody, 100 * S, for_starving=starving)
        (busy if waiter.workload == REALTIME else forgotten).start(waiter)
        turns.started(host_id)
        started[host_id].append(waiter.workload)
    assert [each.count(BATCH) for each in started.values()] == [5, 5]


def test_the_bound_of_a_class() -> None:
    room = room_of(Waiter("a", BATCH), Waiter("b", BATCH), waiting=2)
    assert room.is_full(BATCH)
    assert not room.is_full(INTERACTIVE)
    assert room_of(waiting=0).is_full(BATCH)
    assert not room_of().is_full(BATCH)


@pytest.mark.parametrize(
    ("workload", "deadline_ns", "key", "expected"),
    [
        (REALTIME, 0, "", 1),  # the realtime one
        (INTERACTIVE, 0, "", 4),  # and those with and without a deadline
        (INTERACTIVE, 15, "", 2),  # of the same key only the sooner one
        (BATCH, 0, "", 5),
    ],
)
def test_how_many_are_ahead(workload: int, deadline_ns: int, key: str, expected: int) -> None:
    room = room_of(
        Waiter("r", REALTIME),
        Waiter("soon", deadline_ns=10),
        Waiter("late", deadline_ns=20),
        Waiter("i"),
        Waiter("b", BATCH),
    )
    assert room.ahead_of(workload, deadline_ns, key) == expected


def test_a_flood_of_another_key_is_not_ahead() -> None:
    room = room_of(*(Waiter(f"a{i}", share_key="a") for i in range(100)))
    assert room.ahead_of(0, 0, "a") == 100
    assert room.ahead_of(0, 0, "b") == 1


def test_what_is_remembered_of_keys_is_bounded() -> None:
    room = room_of(Waiter("stays", share_key="stays", deadline_ns=1 << 60))
    line = room.lines[INTERACTIVE - 1]
    for i in range(5000):
        waiter = Waiter("x", share_key=f"k{i}")
        room.add(waiter)
        room.start(waiter)
    assert len(line._rounds) <= 4096
    assert len(line._flows) == len(line._places) == 1
