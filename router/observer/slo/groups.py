"""Which groups an objective has, and their numbers; pure.

Number 0 is all requests together. The others are the values of ``group_by``, as many as there are places; what finds
no place is counted as ``__other__``. A group that saw no request for longer than the longest rule looks back can fire
no more: it gives up its place when another one needs it, and only then.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from router.observer.slices import Values
from router.telemetry.records import OTHER_VALUE

ALL: Values = ()


class Life(msgspec.Struct):
    """What a group has gone through; times since 1970, 0 for what was not."""

    begin_ns: int = 0
    """The end of its first request."""
    seen_ns: int = 0
    """The end of its last request."""
    since_ns: int = 0
    """About when the burn began, while a rule fires."""
    paged_ns: int = 0
    """When a rule of the severity ``page`` fired last, until no rule fires any more."""


class Groups:
    """Numbers of groups, at most ``places_max`` beside all and ``__other__``. ``clear`` forgets a number's counts."""

    def __init__(self, width: int, places_max: int, idle_ns: int, clear: Callable[[int], None]) -> None:
        self._other = (OTHER_VALUE,) * width
        self._places_max = places_max
        self._idle_ns = idle_ns
        self._clear = clear
        self._numbers: dict[Values, int] = {}
        self.values: list[Values] = [ALL]
        self.lives: list[Life] = [Life()]
        self.folded_count = 0
        """Requests that were counted as ``__other__``."""

    def number(self, values: Values, wall_ns: int) -> int:
        """Return the number of a group."""
        found = self._numbers.get(values)
        if found is not None:
            return found
        place_count = len(self._numbers) - (self._other in self._numbers)
        if values == self._other or place_count < self._places_max:
            return self._append(values)
        held = (number for values, number in self._numbers.items() if values != self._other)
        idle = min(held, key=lambda number: self.lives[number].seen_ns)
        if wall_ns - self.lives[idle].seen_ns > self._idle_ns:
            return self._reuse(idle, values)
        self.folded_count += 1
        return self._numbers[self._other] if self._other in self._numbers else self._append(self._other)

    def note(self, number: int, end_ns: int) -> None:
        """Note the end of a request of a group."""
        life = self.lives[number]
        life.begin_ns = min(life.begin_ns, end_ns) if life.begin_ns else end_ns
        life.seen_ns = max(life.seen_ns, end_ns)

    def restore(self, values: list[Values], lives: list[Life]) -> None:
        """Take over the groups of another life, in the order of their numbers; raises ValueError when they differ."""
        if len(values) != len(lives) or not values:
            raise ValueError(f"{len(values)} groups and {len(lives)} lives: expected as many, and at least one")
        self.values, self.lives = list(values), list(lives)
        self._numbers = {held: number for number, held in enumerate(self.values) if number}

    def _append(self, values: Values) -> int:
        number = self._numbers[values] = len(self.values)
        self.values.append(values)
        self.lives.append(Life())
        return number

    def _reuse(self, number: int, values: Values) -> int:
        del self._numbers[self.values[number]]
        self._numbers[values] = number
        self.values[number], self.lives[number] = values, Life()
        self._clear(number)
        return number
