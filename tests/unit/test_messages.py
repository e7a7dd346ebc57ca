"""Bodies of chats that differ in their messages only are decoded once: and come to the same as if each were."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router import messages as module
from router import native
from router.errors import RequestError
from router.messages import decode_body, messages_of, plain_decode_body
from router.telemetry.records import Endpoint
from tests.support.stream_damage import damage

needs_native = pytest.mark.skipif(native.scan is None, reason="the native code is not compiled here")
BODY = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"%b"}]}'


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    module._known_rests.clear()
    yield
    module._known_rests.clear()


def decoded(body: bytes, decode: Any) -> Any:
    """Return all that a body comes to: its fields and its messages, or what is said of it."""
    try:
        fields = decode(Endpoint.CHAT, body)
    except RequestError as error:
        return error.kind, error.message, error.param
    shown = {name: getattr(fields, name) for name in fields.__struct_fields__ if name not in {"messages", "tools"}}
    messages = messages_of(body) if not bytes(fields.messages) else fields.messages
    return shown, bytes(messages).strip(), bytes(fields.tools)


texts = st.text(max_size=12)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), texts),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
chats = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["m", "n", "ü"]) | values,
        "messages": st.lists(values, max_size=3) | values,
        "stream": st.booleans() | st.none() | values,
        "max_tokens": st.integers(0, 9) | values,
        "temperature": st.floats(0, 2) | values,
        "user": texts | values,
        "metadata": st.dictionaries(texts, texts, max_size=2) | values,
        "tools": st.lists(values, max_size=2),
        "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans()}),
        "vendor": values,
    },
)
styles = st.sampled_from([{"separators": (",", ":")}, {}, {"ensure_ascii": False}, {"indent": 1}])


@given(
    chat=chats, style=styles, others=st.lists(st.lists(values, max_size=2), max_size=2), seed=st.none() | st.integers()
)
@example(chat={"model": "m", "messages": []}, style={}, others=[[1], ["x"]], seed=None)
def test_each_comes_to_what_it_would_alone(chat: Any, style: Any, others: list[Any], seed: int | None) -> None:
    for messages in (chat.get("messages"), *others, chat.get("messages")):
        body = json.dumps(chat | {"messages": messages}, **style).encode("utf-8", "surrogatepass")
        if seed is not None:
            body = damage(body, random.Random(seed))
        assert decoded(body, decode_body) == decoded(body, plain_decode_body)


@needs_native
@pytest.mark.parametrize(
    "byte", [b"\0", b"\x1f", b" ", b"!", b"#", b"[", b"]", b"\x7f", b"\x80", b"\xff", b"\\n", b"\\x", b'"']
)
def test_each_byte_of_a_string_is_looked_at(byte: bytes) -> None:
    """Strings are scanned several bytes at a time."""
    decode_body(Endpoint.CHAT, BODY % b"a")
    for size in range(40):
        for position in range(size + 1):
            body = BODY % (b"x" * position + byte + b"x" * (size - position))
            assert decoded(body, decode_body) == decoded(body, plain_decode_body), body


@needs_native
def test_the_second_of_a_kind_is_not_decoded() -> None:
    first, second = (decode_body(Endpoint.CHAT, BODY % text) for text in (b"a", "ü".encode()))
    assert second is decode_body(Endpoint.CHAT, BODY % b"c")
    assert first == msgspec.structs.replace(second, messages=first.messages)  # type: ignore[attr-defined]
    assert messages_of(BODY % b"x") == b'[{"role":"user","content":"x"}]'


@pytest.mark.parametrize(
    "body",
    [
        BODY.replace(b'"model"', b'"user":"u","model"'),
        BODY.replace(b'"model"', b'"metadata":{"a":"b"},"model"'),
        BODY.replace(b'"model"', b'"tools":[{}],"model"'),
        BODY.replace(b'"model"', b'"x":"' + b"y" * 600 + b'","model"'),
        b'{"model":"m","messages":{}}',
        b'{"model":"m","messages":[],"messages":[]}',
        b'{"model":"m","mess\\u0061ges":[],"messages":[]}',
        b'{"model":"m","messages":[]}x',
        b'{"messages":[]}',
        b'{"model":"m"}',
        b"[]",
        b"",
    ],
)
def test_what_is_of_its_own_is_not_remembered(body: bytes) -> None:
    body = body.replace(b"%b", b"a")
    for _ in range(2):
        assert decoded(body, decode_body) == decoded(body, plain_decode_body)
    assert not module._known_rests


@needs_native
def test_as_many_are_remembered_as_there_is_room_for() -> None:
    for number in range(2 * module._RESTS_MAX + 5):
        decode_body(Endpoint.CHAT, BODY.replace(b"%b", b"a").replace(b'"m"', b'"m%d"' % number))
        assert len(module._known_rests) <= module._RESTS_MAX
    assert len(module._known_rests) == 5


@needs_native
def test_what_requests_share_cannot_be_changed() -> None:
    fields: Any = decode_body(Endpoint.CHAT, BODY % b"a")
    with pytest.raises(AttributeError):
        fields.model = "other"


@needs_native
@pytest.mark.parametrize("body", [BODY % b"a", b"{", b'{"messages":[', b"\xff", BODY[:-1]])
def test_a_body_is_cut_where_its_messages_stand_or_not_at_all(body: bytes) -> None:
    found = native.scan.split_body(body)
    if found is not None:
        rest, start, end = found
        assert rest == body[:start] + body[end:]
        assert body[start:end].startswith(b"[")
    with pytest.raises(TypeError):
        native.scan.split_body("text")
