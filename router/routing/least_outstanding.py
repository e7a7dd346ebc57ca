"""Least outstanding requests, pure: the host with the most free slots for its size gets the next request."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple

NO_HOST: Final = -1


class Policy(IntEnum):
    """The policy that decided; the number stands in the done record."""

    LEAST_OUTSTANDING = 1


class Reason(IntEnum):
    """Why a candidate was taken or not; the number stands in the done record."""

    CHOSEN = 1
    BUSIER = 2
    FULL = 3
    UNHEALTHY = 4
    TRIED = 5
    """It failed this request already."""


class Candidate(NamedTuple):
    """What routing sees of a host. ``busy`` counts running and draining requests."""

    host_id: int
    busy: int
    slots: int
    healthy: bool
    tried: bool = False


def choose(candidates: Sequence[Candidate], turn: int) -> int:
    """Return the index of the candidate with the smallest share of its slots in use, :data:`NO_HOST` if none can.

    Ties go round by ``turn``. A host that already failed the request is taken only when no healthy one is left that has
    not: to wait for another host beats to fail at the same one again.
    """
    best, best_load = NO_HOST, 2.0
    count = len(candidates)
    untried = any(c.healthy and not c.tried for c in candidates)
    for offset in range(count):
        index = (turn + offset) % count
        _, busy, slots, healthy, tried = candidates[index]
        if not healthy or busy >= slots or (tried and untried):
            continue
        load = busy / slots
        if load < best_load:
            best, best_load = index, load
    return best


def explain(candidates: Sequence[Candidate], chosen: int) -> list[tuple[int, int, float]]:
    """Return ``(host_id, reason, load)`` for each candidate, the chosen one first."""
    out: list[tuple[int, int, float]] = []
    for index, c in enumerate(candidates):
        load = c.busy / c.slots
        if index == chosen:
            out.insert(0, (c.host_id, int(Reason.CHOSEN), load))
        elif not c.healthy:
            out.append((c.host_id, int(Reason.UNHEALTHY), load))
        elif c.tried:
            out.append((c.host_id, int(Reason.TRIED), load))
        else:
            out.append((c.host_id, int(Reason.FULL if c.busy >= c.slots else Reason.BUSIER), load))
    return out
