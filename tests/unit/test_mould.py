"""Objects that begin alike: as new as those of a constructor, and nobody else's."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from router import native
from router.mould import mould, slot_names
from router.request import Request, new_request
from router.telemetry.records import Endpoint

needs_native = pytest.mark.skipif(native.steps is None, reason="the native code is not compiled here")


class Base:
    __slots__ = ("text",)

    def __init__(self) -> None:
        self.text = "text"


class Pair(Base):
    __slots__ = ("number", "other")

    def __init__(self) -> None:
        super().__init__()
        self.number = 1 << 70
        self.other: Any = None


def test_each_is_new_and_alike() -> None:
    make = mould(Pair)
    one, other = make(), make()
    assert type(one) is Pair
    assert one is not other
    assert (one.text, one.number, one.other) == ("text", 1 << 70, None)
    one.number = 5
    assert (other.number, make().number) == (1 << 70, 1 << 70)


def test_the_names_of_a_class_and_of_those_above_it() -> None:
    assert sorted(slot_names(Pair)) == ["number", "other", "text"]


def test_a_request_begins_as_its_class_says() -> None:
    nothing: Any = None
    made = new_request()
    begun = Request(nothing, Endpoint.CHAT, "", b"", nothing, nothing, nothing, 0, 0)
    for name in {field.name for field in fields(Request)} | set(slot_names(Request)):
        assert getattr(made, name) == getattr(begun, name), name


def _growth(make: Callable[[], object]) -> int:
    """Return how many references to a value the making of a hundred objects leaves behind."""
    before = sys.getrefcount(_VALUE)
    made = [make() for _ in range(100)]
    held = sys.getrefcount(_VALUE) - before
    assert held == 100, "each holds it"
    made.clear()
    gc.collect()
    return sys.getrefcount(_VALUE) - before


_VALUE = object()


def test_nothing_is_kept_of_what_was_made() -> None:
    def make() -> Pair:
        pair = Pair()
        pair.other = _VALUE
        return pair

    assert _growth(mould(make)) == 0


def test_a_circle_is_collected() -> None:
    make = mould(Pair)
    before = sum(isinstance(each, Pair) for each in gc.get_objects())
    for _ in range(10):
        pair = make()
        pair.other = pair
    del pair
    gc.collect()
    assert sum(isinstance(each, Pair) for each in gc.get_objects()) == before


@needs_native
@pytest.mark.parametrize("value", [[], {}, set(), bytearray()])
def test_a_value_that_may_change_is_refused(value: object) -> None:
    def make() -> Pair:
        pair = Pair()
        pair.other = value
        return pair

    with pytest.raises(ValueError, match="other"):
        mould(make)


@needs_native
@pytest.mark.parametrize(("names", "error"), [(["missing"], AttributeError), ([5], TypeError), (["size"], ValueError)])
def test_what_is_no_slot_is_refused(names: list[Any], error: type[Exception]) -> None:
    class Odd(Pair):
        __slots__ = ("__dict__",)

    odd = Odd()
    odd.size = 5
    with pytest.raises(error):
        native.steps.Mould(odd, names)
