"""Records packed out of an object's attributes: both packers alike, and every field where the layout has it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.request import new_request
from router.telemetry import records as rec
from router.telemetry.packing import Packer, PlainPacker, packer

Make = Callable[..., Packer]
both = pytest.mark.parametrize("make", [PlainPacker, packer])
FIELDS = [("a", "Q", 3), ("b", "I", 11), ("c", "H", 15), ("d", "B", 17), ("e", "f", 20), ("f", "5s", 24)]


@both
def test_each_field_stands_where_it_should(make: Make) -> None:
    source = SimpleNamespace(a=1 << 40, b=7, c=8, d=True, e=0.5, f=b"xyz")
    expected = b"\0\0\0" + struct.pack("<QIHB2xf5s", 1 << 40, 7, 8, 1, 0.5, b"xyz") + b"\0"
    assert make(30, FIELDS).pack(source) == expected


@given(
    numbers=st.tuples(*[st.integers(0, 1 << 70)] * 4), share=st.floats(0, 2.0**60, width=32), text=st.binary(max_size=9)
)
def test_both_pack_alike_and_store_the_largest_for_what_is_too_large(
    numbers: tuple[int, int, int, int], share: float, text: bytes
) -> None:
    source = SimpleNamespace(**dict(zip("abcd", numbers, strict=True)), e=share, f=text)
    record = packer(30, FIELDS).pack(source)
    assert record == PlainPacker(30, FIELDS).pack(source)
    assert struct.unpack_from("<Q", record, 3)[0] == min(numbers[0], (1 << 64) - 1)
    assert record[17] == min(numbers[3], 255)


@both
@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("a", -1, OverflowError),
        ("d", -(1 << 80), OverflowError),
        ("b", "1", TypeError),
        ("e", "1", (TypeError, struct.error)),
        ("f", "text", (TypeError, struct.error)),
    ],
)
def test_what_does_not_fit_is_an_error(make: Make, name: str, value: Any, error: type[Exception]) -> None:
    source = SimpleNamespace(a=1, b=1, c=1, d=1, e=1.0, f=b"")
    setattr(source, name, value)
    with pytest.raises(error):
        make(30, FIELDS).pack(source)


@both
def test_an_attribute_that_is_missing_is_an_error(make: Make) -> None:
    with pytest.raises(AttributeError):
        make(30, FIELDS).pack(SimpleNamespace(a=1))


@pytest.mark.parametrize(
    ("code", "offset"), [("Q", 23), ("Q", -1), ("31s", 0), ("x", 0), ("", 0), ("QQ", 0), ("0s", 0)]
)
def test_the_native_packer_takes_no_field_outside_of_the_record(code: str, offset: int) -> None:
    if packer is PlainPacker:
        pytest.skip("the native code is not compiled here")
    with pytest.raises(ValueError, match="field a"):
        packer(30, [("a", code, offset)])


class Source:
    """Some of it in slots, some not; a subclass has more of both."""

    __slots__ = ("a", "b", "d", "e", "f")
    c = 5


class OtherSource(Source):
    pass


@given(
    numbers=st.tuples(*[st.integers(0, 1 << 70)] * 3), share=st.floats(0, 2.0**60, width=32), text=st.binary(max_size=9)
)
def test_what_lies_in_slots_is_packed_as_what_is_asked_for(
    numbers: tuple[int, int, int], share: float, text: bytes
) -> None:
    probe, sources = Source(), (Source(), OtherSource())
    for source in (probe, *sources):
        source.a, source.b, source.d = numbers
        source.e, source.f = share, text
    made = packer(30, FIELDS, probe)
    assert probe.a == numbers[0], "a probe has afterwards what it had before"
    for source in sources:
        assert made.pack(source) == PlainPacker(30, FIELDS).pack(source)


@both
def test_a_slot_without_a_value_is_an_error(make: Make) -> None:
    probe, source = Source(), Source()
    for each in (probe, source):
        each.a = each.b = each.d = 1
        each.e, each.f = 0.5, b""
    made = make(30, FIELDS, probe)
    del source.b
    with pytest.raises(AttributeError, match="b"):
        made.pack(source)
    source.b = -1
    with pytest.raises(OverflowError):
        made.pack(source)


def test_a_probe_must_have_every_attribute() -> None:
    if packer is PlainPacker:
        pytest.skip("the native code is not compiled here")
    with pytest.raises(AttributeError):
        packer(30, FIELDS, Source())


def test_requests_are_packed_alike_by_both() -> None:
    request = new_request()
    for number, (name, code, _) in enumerate(rec.DONE_SOURCE):
        setattr(request, name, b"%d" % number if code.endswith("s") else number + 1)
    for fields in (rec.DONE_SOURCE, rec.INFLIGHT_SOURCE):
        made = packer(rec.DONE_PAYLOAD_BYTES, fields, new_request()).pack(request)
        assert made == PlainPacker(rec.DONE_PAYLOAD_BYTES, fields).pack(request)


def test_the_done_record_is_covered_but_for_what_is_reserved() -> None:
    covered = sorted((offset, offset + struct.calcsize("<" + code)) for _, code, offset in rec.DONE_SOURCE)
    assert covered[0][0] == 0
    assert [end for _, end in covered[:-1]] == [start for start, _ in covered[1:]]
    assert covered[-1][1] == rec.DONE_PAYLOAD_BYTES
