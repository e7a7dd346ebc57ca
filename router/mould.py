"""Objects that begin alike: made by a copy instead of a constructor's many assignments."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from router import native

T = TypeVar("T")


def mould(make: Callable[[], T]) -> Callable[[], T]:
    """Return a function that comes to the same as ``make``, which returns a new object with slots that is always alike.

    With native code ``make`` is called once, and its object is copied from then on. So no value in it may be one that
    changes: ``ValueError`` for lists, dictionaries and sets.
    """
    if native.steps is None:
        return make
    pattern = make()
    made: Callable[[], T] = native.steps.Mould(pattern, slot_names(type(pattern))).make
    return made


def slot_names(kind: type) -> list[str]:
    """Return the names of all slots of a class and those above it."""
    return [name for each in kind.__mro__ for name in each.__dict__.get("__slots__", ())]
