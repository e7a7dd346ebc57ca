"""A waiting room beside a plain list of the same requests: whatever comes and goes, both name the same one as next."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest

from router.admission import WaitingRoom, next_of

KEYS = ("", "a", "b", "c")
CLASSES = (0, 1, 2, 3)


@dataclass(eq=False)
class Waiter:
    seq: int
    workload: int
    deadline_ns: int
    share_key: str
    deq: int
    host: int = 0
    """The one that can serve it; 0 = any."""

    def may(self, host: int) -> bool:
        return self.host in {0, host}


class PlainRoom:
    """The rules of docs/admission.md, as slowly and as plainly as can be."""

    def __init__(self) -> None:
        self.waiting: list[Waiter] = []
        self.front: list[Waiter] = []
        self.rounds: dict[tuple[int, str], int] = {}
        self.current = {1: 0, 2: 0, 3: 0}

    def line(self, workload: int) -> list[Waiter]:
        return [w for w in self.waiting if (w.workload or 2) == workload]

    def add(self, waiter: Waiter, first: bool) -> None:
        if first:
            self.front.insert(0, waiter)
            return
        number = waiter.workload or 2
        if not any(w.share_key == waiter.share_key for w in self.line(number)):
            key = (number, waiter.share_key)
            self.rounds[key] = max(self.current[number], self.rounds.get(key, 0))
        self.waiting.append(waiter)

    def remove(self, waiter: Waiter, started: bool) -> None:
        if waiter in self.front:
            self.front.remove(waiter)
            return
        self.waiting.remove(waiter)
        number = waiter.workload or 2
        if started:
            key = (number, waiter.share_key)
            self.rounds[key] = min(self.rounds[key] + 1, self.current[number] + 8)
        left = self.line(number)
        if left:
            lowest = min(self.rounds[number, w.share_key] for w in left)
            self.current[number] = max(self.current[number], lowest)
        else:
            self.current[number] = 0
            self.rounds = {key: at for key, at in self.rounds.items() if key[0] != number}

    def next(self, host: int) -> Waiter | None:
        for number in (1, 2, 3):
            able = [w for w in self.front if (w.workload or 2) == number and w.may(host)]
            if able:
                return able[0]
            able = [w for w in self.line(number) if w.may(host)]
            if not able:
                continue

            def head(key: str, number: int = number) -> tuple[int, int]:
                """The deadline and the arrival of a key's first request, whoever can serve it."""
                own = [w for w in self.line(number) if w.share_key == key]
                return min((w.deadline_ns or 1 << 63, w.seq) for w in own)

            return min(
                able,
                key=lambda w, number=number: (  # type: ignore[misc]
                    self.rounds[number, w.share_key], head(w.share_key), w.deadline_ns or 1 << 63, w.seq
                ),
            )  # fmt: skip
        return None


def draw(random: Random, seq: int) -> Waiter:
    deadline = random.choice((0, 0, random.randrange(1, 50)))
    keys = KEYS if random.random() < 0.8 else KEYS[:1]
    host = random.choice((0, 0, 0, 1, 2))
    return Waiter(seq, random.choice(CLASSES), deadline, random.choice(keys), seq, host)


@pytest.mark.parametrize("seed", range(60))
def test_the_room_is_what_its_rules_say(seed: int) -> None:
    random = Random(seed)
    room, plain = WaitingRoom(), PlainRoom()
    inside: list[Waiter] = []
    for seq in range(1, 300):
        step = random.random()
        if step < 0.45 or not inside:
            waiter, first = draw(random, seq), random.random() < 0.1
            room.add(waiter, first=first)
            plain.add(waiter, first)
            inside.append(waiter)
        elif step < 0.55:
            waiter = random.choice(inside)
            room.remove(waiter)
            plain.remove(waiter, started=False)
            inside.remove(waiter)
        else:
            host = random.choice((1, 2))
            waiter = next_of([room], lambda w, host=host: w.may(host), 0, for_starving=False)
            assert waiter is plain.next(host)
            if waiter is None:
                continue
            room.start(waiter)
            plain.remove(waiter, started=True)
            inside.remove(waiter)
        assert len(room) == len(inside)
        assert sorted(w.seq for w in room) == sorted(w.seq for w in inside)
        assert room.ahead_of(3, 0, "a") <= len(room)


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_even_as_long_as_everybody_has_something(seed: int) -> None:
    random = Random(seed)
    keys = [f"k{i}" for i in range(random.randrange(2, 8))]
    room = WaitingRoom()
    seq = 0
    backlog = dict.fromkeys(keys, 0)
    served = dict.fromkeys(keys, 0)
    for _ in range(400):
        for key in keys:  # each always has one to thirty waiting
            while backlog[key] < random.randrange(1, 30):
                seq += 1
                room.add(Waiter(seq, 0, random.choice((0, seq + 5)), key, seq))
                backlog[key] += 1
        waiter = next_of([room], lambda _: True, 0, for_starving=False)
        room.start(waiter)
        backlog[waiter.share_key] -= 1
        served[waiter.share_key] += 1
        assert max(served.values()) - min(served.values()) <= 1
