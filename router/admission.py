"""Admission, pure: whether a request may run now, must wait, or is refused.

Values in, a decision out; no clock, no I/O, no log.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Admission(IntEnum):
    """What becomes of a request that came in."""

    RUN = 1
    WAIT = 2
    REFUSE_FULL = 3
    """The waiting room is full."""
    REFUSE_NO_HOST = 4
    """No healthy host has the model."""


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
