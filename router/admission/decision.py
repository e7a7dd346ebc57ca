"""Admission, pure: whether a request may run now, must wait, or is refused.

Values in, a decision out; no clock, no I/O, no log.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from router.routing import Candidate


class Admission(IntEnum):
    """What becomes of a request that came in."""

    RUN = 1
    WAIT = 2
    REFUSE_FULL = 3
    """The waiting room is full."""
    REFUSE_NO_HOST = 4
    """No healthy host has the model."""


def slots_of(candidates: Iterable[Candidate]) -> int:
    """Return how many slots the hosts have that can be used."""
    return sum(slots for _, _, slots, usable, _ in candidates if usable)


def is_idle(candidates: Iterable[Candidate]) -> bool:
    """Return whether one of the hosts that can be used has nothing to do: what it would take is best found out."""
    return any(usable and not busy and slots > 0 for _, busy, slots, usable, _ in candidates)


_RUN: Final = Admission.RUN  # members of an enum are looked up anew each time, and most requests run


def admit(waiting: int, waiting_max: int, healthy_hosts: int, free_slots: int) -> Admission:
    """Decide about one request of a model.

    ``waiting`` requests stand before it, ``free_slots`` are free at the model's healthy hosts. Who waits goes first: a
    new request runs at once only when nobody waits.
    """
    if not healthy_hosts:
        return Admission.REFUSE_NO_HOST
    if free_slots > 0 and not waiting:
        return _RUN
    return Admission.WAIT if waiting < waiting_max else Admission.REFUSE_FULL
