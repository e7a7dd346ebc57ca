"""Which tools are nearest to a question: the same natively and in Python, and all of them where it cannot be told."""

from __future__ import annotations

import json
import math
import random
import struct

import pytest

from router import native
from router.caches import selection
from router.caches.selection import last_question, nearest, packed, plain_dots, vector_in
from router.caches.tools import plain_offset_of
from tests.support import published as pub


def vector(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


TOOLS = [pub.tool("a.one", [1.0, 0.0]), pub.tool("a.two", [0.0, 1.0]), pub.tool("a.three", [0.6, 0.8])]


@pytest.mark.parametrize(
    ("query", "count", "expected"),
    [
        (vector(1.0, 0.1), 1, ["a.one"]),
        (vector(0.1, 1.0), 2, ["a.two", "a.three"]),
        (vector(1.0, 0.1), 2, ["a.one", "a.three"]),
        (vector(-1.0, 0.0), 1, ["a.two"]),
    ],
)
def test_the_nearest_stand_in_the_order_of_the_candidates(query: bytes, count: int, expected: list[str]) -> None:
    chosen = nearest(query, TOOLS, count)
    assert chosen is not None
    assert [tool.name for tool in chosen] == expected


def test_a_tool_of_which_nothing_is_known_is_among_them() -> None:
    chosen = nearest(vector(1.0, 0.0), [*TOOLS, pub.tool("a.new")], 2)
    assert chosen is not None
    assert [tool.name for tool in chosen] == ["a.one", "a.new"]


@pytest.mark.parametrize("query", [b"", vector(1.0), vector(1.0, 2.0, 3.0)])
def test_what_cannot_be_compared_chooses_nothing(query: bytes) -> None:
    assert nearest(query, TOOLS, 1) is None


def test_without_native_code_much_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "dots", plain_dots)
    assert nearest(vector(1.0, 0.0), TOOLS, 1) is not None
    monkeypatch.setattr(selection, "_PLAIN_NUMBERS_MAX", 5)
    assert nearest(vector(1.0, 0.0), TOOLS, 1) is None


@pytest.mark.skipif(native.steps is None, reason="no native code here")
def test_native_and_plain_products_are_the_same() -> None:
    dice = random.Random(2)
    for dimensions in (0, 1, 3, 384):
        query = vector(*(dice.gauss(0, 1) for _ in range(dimensions)))
        vectors = [vector(*(dice.gauss(0, 1) for _ in range(dimensions))) for _ in range(20)]
        for one, other in zip(native.steps.dots(query, vectors), plain_dots(query, vectors), strict=True):
            assert math.isclose(one, other, rel_tol=1e-12, abs_tol=1e-12)
    for dots in (native.steps.dots, plain_dots):
        with pytest.raises(ValueError, match="another length"):
            dots(vector(1.0), [vector(1.0), vector(1.0, 2.0)])
    for wrong in ((b"", ()), ("", []), (b"",), (b"abcd", [5])):
        with pytest.raises((TypeError, ValueError)):
            native.steps.dots(*wrong)


@pytest.mark.skipif(native.steps is None, reason="no native code here")
def test_native_and_plain_offsets_are_the_same_where_the_plain_one_can_tell() -> None:
    whole = b"abcabcd"
    view = memoryview(whole)
    for begin in range(len(whole) + 1):
        for end in range(begin, len(whole) + 1):
            part = view[begin:end]
            assert native.steps.offset_of(whole, part) == begin
            assert plain_offset_of(whole, part) in {begin, -1}
    assert plain_offset_of(whole, view[3:7]) == 3
    assert plain_offset_of(whole, view[0:3]) == -1, "it stands there twice"
    assert native.steps.offset_of(whole, b"abc") == -1, "the same bytes elsewhere are no part of it"
    assert native.steps.offset_of(view[2:4], whole) == -1, "longer than the whole"
    with pytest.raises(TypeError):
        native.steps.offset_of(whole)
    with pytest.raises(TypeError):
        native.steps.offset_of(whole, 5)


@pytest.mark.parametrize(
    ("messages", "question"),
    [
        ([{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}], "one"),
        ([{"role": "user", "content": "one"}, {"role": "user", "content": "two"}], "two"),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}],
                }
            ],
            "a\nb",
        ),
        ([{"role": "system", "content": "one"}], ""),
        ([{"role": "user", "content": None}], ""),
        ([{"role": "user", "content": "é" * 2000}], "é" * 1024),
        (["nonsense"], ""),
        ({}, ""),
    ],
)
def test_the_question_is_the_end_of_the_last_user_message(messages: object, question: str) -> None:
    assert last_question(json.dumps(messages).encode()) == question


def test_vectors_are_made_of_length_one_and_what_has_no_direction_is_none() -> None:
    assert packed([3.0, 4.0]) == vector(0.6, 0.8)
    assert packed([0.0, 0.0]) == b""
    assert packed([math.inf, 1.0]) == b""
    assert vector_in(b'{"data":[{"embedding":[3,4]}]}') == vector(0.6, 0.8)
    for other in (b'{"data":[]}', b'{"data":[{"embedding":"QQ=="}]}', b"[]", b"x"):
        assert vector_in(other) == b""
