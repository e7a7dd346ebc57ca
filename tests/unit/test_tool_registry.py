"""Tools filled into requests: which ones an entry means, and that nothing else of a body changes."""

from __future__ import annotations

import json
import random
import re
import time
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router.caches import tools as tools_module
from router.caches.tool_shapes import for_messages, for_responses
from router.caches.tools import ToolRegistry, matches, plain_offset_of, replace_part, select
from router.errors import RequestError
from tests.support import published as pub

NAMES = ("weather.now", "weather.soon", "calendar.create", "calendar.delete", "mail.send")
TOOLSETS = {"office": ["calendar.*", "mail.send"], "gone": ["weather.never"]}


class Body(msgspec.Struct):
    tools: msgspec.Raw = msgspec.Raw(b"")


def registry(*names: str) -> ToolRegistry:
    return ToolRegistry(pub.tools(*(pub.tool(name) for name in names or NAMES)), TOOLSETS)


def filled(body: bytes, known: ToolRegistry | None = None) -> bytes:
    raw = msgspec.json.decode(body, type=Body).tools
    spliced = (known or registry()).splice(bytes(raw))
    return body if spliced is None else replace_part(body, raw, "tools", spliced.array)


def names_in(array: bytes) -> list[str]:
    return [entry["function"]["name"] for entry in json.loads(array)]


def entry(**fields: Any) -> dict[str, Any]:
    return {"type": "ringrouter", **fields}


def array_of(*entries: dict[str, Any]) -> bytes:
    return json.dumps(entries).encode()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"names": ["weather.now"]}, ["weather__now"]),
        ({"names": ["weather.*", "calendar.create"]}, ["weather__now", "weather__soon", "calendar__create"]),
        ({"names": ["calendar.create", "weather.*"]}, ["calendar__create", "weather__now", "weather__soon"]),
        ({"names": ["*.create", "calendar.*"]}, ["calendar__create", "calendar__delete"]),
        ({"names": ["*"]}, [name.replace(".", "__") for name in NAMES]),
        ({"toolset": "office"}, ["calendar__create", "calendar__delete", "mail__send"]),
    ],
)
def test_an_entry_stands_for_the_tools_it_names_each_once(fields: dict[str, Any], expected: list[str]) -> None:
    spliced = registry().splice(array_of(entry(**fields)))
    assert spliced is not None
    assert names_in(spliced.array) == expected
    assert spliced.tool_count == len(expected)
    assert spliced.tool_bytes == len(spliced.array) - len(expected) - 1, "all but brackets and commas"


def test_the_clients_own_tools_stay_where_they_are_byte_for_byte() -> None:
    own = b'{"type" : "function",  "function": {"name": "mine", "parameters": {"x": 1e0, "y": "\\u00e9"}}}'
    body = b'{"model":"m" , "tools": [' + own + b', {"type":"ringrouter","names":["mail.send"]} ,' + own + b'],"n":1}'
    result = filled(body)
    assert result.startswith(b'{"model":"m" , "tools": [' + own + b",")
    assert result.endswith(b"," + own + b'],"n":1}')
    assert names_in(bytes(msgspec.json.decode(result, type=Body).tools)) == ["mine", "mail__send", "mine"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"names": ["weather.never"]}, "tools[0].names: no tool is called weather.never (tools: weather.now,"),
        ({"names": ["mail.send", "x.*", "y"]}, "no tool is called x.*, y (tools:"),
        ({"toolset": "gone"}, "tools[0].toolset: no tool is called weather.never"),
        ({"toolset": "none"}, "tools[0].toolset: no toolset is called 'none' (toolsets: office, gone)"),
        ({}, "tools[0]: expected names or toolset, one of them"),
        ({"names": ["*"], "toolset": "office"}, "expected names or toolset"),
        ({"names": ["*"], "nearest": -1}, "tools[0].nearest = -1: expected 1 to 1024"),
        ({"names": "*"}, "tools[0]: Expected array, got str at names"),
        ({"names": ["*"], "more": 1}, "unknown field more"),
        ({"names": ["*.x"] * 17}, "at most 16 names with a * are allowed"),
        ({"names": ["x"] * 257}, "tools[0].names has 257 entries, at most 256"),
    ],
)
def test_what_cannot_be_filled_in_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError) as refused:
        registry().splice(array_of(entry(**fields)))
    assert named in refused.value.message
    assert refused.value.param == "tools"


def test_too_many_entries_are_refused() -> None:
    with pytest.raises(RequestError, match="at most 8 entries"):
        registry().splice(array_of(*[entry(names=["mail.send"])] * 9))


@pytest.mark.parametrize(
    "raw", [b"", b"null", b"{}", b"[]", b'[{"type":"function"}]', b'[{"type":"f","x":"ringrouter"}]']
)
def test_what_names_none_of_ours_is_left_alone(raw: bytes) -> None:
    assert registry().splice(raw) is None


def test_an_entry_quoted_elsewhere_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = json.dumps([entry(names=["mail.send"])])
    body = f'{{"metadata":{{"same":{asked}}},"messages":[{{"content":{json.dumps(asked)}}}],"tools":{asked}}}'.encode()
    expected = body[: body.rindex(b"[{")]
    assert filled(body).startswith(expected)
    monkeypatch.setattr(tools_module, "offset_of", plain_offset_of)
    result = json.loads(filled(body))
    assert result["metadata"]["same"] == json.loads(asked)
    assert names_in(json.dumps(result["tools"]).encode()) == ["mail__send"]


def test_nearest_leaves_the_other_candidates_out_and_the_rest_in() -> None:
    own = pub.function("mine")
    spliced = registry().splice(array_of(own, entry(names=["*"], nearest=2), own, entry(names=["mail.send"])))
    assert spliced is not None
    assert len(names_in(spliced.array)) == len(NAMES) + 2, "until they are selected all stand there"
    chosen = [tool for tool in spliced.candidates if tool.name in {"weather.soon", "mail.send"}]
    assert names_in(select(spliced, chosen).array) == ["mine", "weather__soon", "mail__send", "mine"]
    assert select(spliced, chosen).tool_count == 2
    assert select(spliced, chosen).tool_bytes == sum(len(tool.body) for tool in chosen)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    known = registry()
    one = array_of(entry(names=["mail.send"]))
    place = tools_module._MEMO_PLACE_BYTES
    size = place + len(one) + len(known.splice(one).array)  # type: ignore[union-attr]
    monkeypatch.setattr(tools_module, "_MEMO_BYTES_MAX", 10 * size)
    for count in range(100):
        known.splice(array_of(entry(names=["mail.send"]), pub.function(f"f{count:02}")))
        remembered = sum(place + len(k) + (len(v.array) if v else 0) for k, v in known._memo.items())
        assert remembered == known._memo_bytes <= 10 * size


@given(st.text("ab.", max_size=12), st.text("ab*.", max_size=8))
@example("ab", "*ab*b")
def test_a_pattern_matches_as_its_regular_expression_would(name: str, pattern: str) -> None:
    form = ".*".join(re.escape(part) for part in pattern.split("*"))
    assert matches(pattern, name) == bool(re.fullmatch(form, name))


def test_a_pattern_of_many_stars_takes_no_time() -> None:
    begin = time.thread_time()
    assert not matches("*a" * 60 + "b", "a" * 128)
    assert time.thread_time() - begin < 0.1, "a regular expression would go on for years"


def test_any_body_keeps_all_but_its_tools() -> None:
    dice = random.Random(5)
    known = registry()
    for _ in range(200):
        fields = [
            f'"k{i}":{json.dumps(dice.choice([1, "x[", [{"type": "ringrouter"}], None, {"a": "]"}]))}' for i in range(4)
        ]
        asked = json.dumps([entry(names=[dice.choice(NAMES)])])
        fields.insert(dice.randrange(5), f'"tools"{dice.choice(["", " "])}:{asked}')
        body = ("{" + ", ".join(fields) + "}").encode()
        before, after = json.loads(body), json.loads(filled(body, known))
        assert list(before) == list(after)
        assert {k: v for k, v in before.items() if k != "tools"} == {k: v for k, v in after.items() if k != "tools"}
        assert len(after["tools"]) == 1
        assert after["tools"][0]["type"] == "function"


# ---------------------------------------------------------------- other APIs
def test_a_tool_in_the_words_of_other_apis_has_the_same_schema_byte_for_byte() -> None:
    schema = b'{"type":"object",  "properties":{"n":{"const":1e2}}}'
    body = b'{"type":"function","function":{"name":"a__b","description":"Does.","parameters":%b}}' % schema
    response = for_responses(body)
    assert schema in response
    assert json.loads(response) == {
        "type": "function", "strict": False, "name": "a__b", "description": "Does.", "parameters": json.loads(schema),
    }  # fmt: skip
    message = for_messages(body)
    assert schema in message
    assert json.loads(message) == {"name": "a__b", "description": "Does.", "input_schema": json.loads(schema)}
    short = b'{"type":"function","function":{"name":"a","strict":true,"parameters":{}}}'
    assert json.loads(for_responses(short)) == {"type": "function", "strict": True, "name": "a", "parameters": {}}
    assert json.loads(for_messages(short)) == {"name": "a", "input_schema": {}}


def test_a_registry_of_another_api_has_every_tool_in_its_shape_and_leaves_the_published_ones_alone() -> None:
    published = pub.tools(*(pub.tool(name, [1.0, 0.0]) for name in NAMES))
    plain = ToolRegistry(published, TOOLSETS)
    shaped = ToolRegistry(published, TOOLSETS, for_messages)
    array = array_of({"name": "mine"}, entry(toolset="office"), entry(names=["weather.now"], nearest=1))
    for known in (plain, shaped):
        spliced = known.splice(array)
        assert spliced is not None
        assert [each.get("function", each)["name"] for each in json.loads(spliced.array)] == [
            "mine", "calendar__create", "calendar__delete", "mail__send", "weather__now",
        ]  # fmt: skip
    two = shaped.splice(array_of(entry(names=["weather.*"], nearest=1)))
    assert two is not None
    assert json.loads(select(two, two.candidates[1:]).array) == [json.loads(for_messages(published.tools[1].body))]
    assert two.candidates[1].vector == published.tools[1].vector
