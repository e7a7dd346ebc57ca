"""Headers of the ZeroMQ protocol: what the document says byte by byte, and that nothing else is understood."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.errors import WIRE, ErrorKind, RequestError
from router.ingress.zeromq import messages
from router.ingress.zeromq.messages import Header, as_headers, id_of, read_header
from router.stamps import STAMPS
from router.telemetry.records import Kind

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "zeromq.md").read_text(encoding="utf-8")
IDENTITY = b"\0abcd"
pack = msgspec.msgpack.encode
unpack = msgspec.msgpack.decode


def read(header: Any, *more: bytes) -> Header:
    return read_header([IDENTITY, header if isinstance(header, bytes) else pack(header), *more])


def frames_of_the_document() -> list[tuple[str, bytes]]:
    """Return the frames of the worked example, each with its direction."""
    example = DOCUMENT.split("## An exchange, byte by byte")[1]
    found = re.findall(r"^([<>]) ((?:[0-9a-f]{2} ?)+)$", example, re.MULTILINE)
    return [(direction, bytes.fromhex(digits)) for direction, digits in found]


# ------------------------------------------------------------------ the document
def test_the_example_of_the_document_is_what_is_spoken() -> None:
    (_, ask), (_, body), (_, accepted), (_, events), (_, event), (_, grant), (_, done) = frames_of_the_document()
    assert read(ask, body) == Header(v=1, verb="chat", id="1")
    assert messages.accepted("1", 7, 1_000_000_000) == accepted
    assert messages.events("1", 0, [(4, 1_000_500_000, len(event))]) == events
    assert read(grant).grants == [("1", 1)]
    stamps = (0,) * len(STAMPS)
    assert messages.done("1", status=200, host="a", event_count=1, usage=None, stamps=stamps) == done
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")


def test_the_document_names_every_key_verb_kind_and_bound() -> None:
    for key in Header.__struct_fields__:
        assert f"`{key}`" in DOCUMENT, f"key {key}"
    for verb in {*messages.API_VERBS, *messages.OTHER_VERBS}:
        assert f"`{verb}`" in DOCUMENT, f"verb {verb}"
    kinds = re.findall(r"\| (\d+) \| ([a-z ]+)", DOCUMENT.split("### events")[1].split("### done")[0])
    assert {int(number) for number, _ in kinds} >= {3, 4}
    for kind in (
        Kind.HEAD,
        Kind.TEXT,
        Kind.REASONING,
        Kind.TOOL_CALL,
        Kind.FINISH,
        Kind.USAGE,
        Kind.KEEPALIVE,
        Kind.ERROR,
    ):
        assert f"| {int(kind)} | " in DOCUMENT, f"kind {kind}"
    assert f"1 to {messages.CREDIT_MAX:,} ({messages.CREDIT_FIRST})" in DOCUMENT
    assert f"| header | {messages.HEADER_BYTES_MAX // 1024} KiB |" in DOCUMENT
    assert ", ".join(STAMPS) in DOCUMENT.replace("\n", " ")


@pytest.mark.parametrize(
    "kind",
    [
        ErrorKind.BAD_MESSAGE,
        ErrorKind.BAD_CREDIT,
        ErrorKind.DUPLICATE_REQUEST,
        ErrorKind.CANCELLED,
        ErrorKind.CLIENT_STALLED,
    ],
)
def test_the_document_names_the_codes_of_its_own(kind: ErrorKind) -> None:
    assert f"| {WIRE[kind].status} | `{WIRE[kind].code}` |" in DOCUMENT


# ------------------------------------------------------------------ to the router
def test_defaults() -> None:
    header = read({"v": 1, "verb": "completion", "id": "a b~"})
    assert (header.credit, header.tags, header.grants) == (256, {}, [])
    assert (header.traceparent, header.tracestate, header.baggage) == ("", "", "")


@pytest.mark.parametrize("verb", ["credit", "ping"])
def test_who_needs_no_id(verb: str) -> None:
    assert read({"v": 1, "verb": verb}).id == ""


@pytest.mark.parametrize("credit", [1, messages.CREDIT_MAX])
def test_credit_at_its_bounds(credit: int) -> None:
    assert read({"v": 1, "verb": "chat", "id": "1", "credit": credit}).credit == credit


def test_a_header_of_the_greatest_size() -> None:
    empty = len(pack({"v": 1, "verb": "chat", "id": "1", "tags": {"t": "x" * 300}})) - 300
    size = messages.HEADER_BYTES_MAX - empty
    assert read({"v": 1, "verb": "chat", "id": "1", "tags": {"t": "x" * size}}).tags["t"] == "x" * size
    with pytest.raises(RequestError, match="16385 bytes, at most 16384"):
        read({"v": 1, "verb": "chat", "id": "1", "tags": {"t": "x" * (size + 1)}})


def test_keys_may_come_in_any_order() -> None:
    assert read({"tags": {}, "id": "1", "verb": "chat", "v": 1}) == read({"v": 1, "verb": "chat", "id": "1"})


def test_tags_and_trace_as_headers() -> None:
    header = read({
        "v": 1, "verb": "chat", "id": "1", "tags": {"feature_name": "é"}, "traceparent": "00-1", "baggage": "a=b",
    })  # fmt: skip
    assert as_headers(header) == {
        b"x-ringrouter-tag-feature_name": "é".encode(),
        b"traceparent": b"00-1",
        b"baggage": b"a=b",
    }


@pytest.mark.parametrize("name", ["traceparent", "tracestate", "baggage"])
@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "a\nb", "\0", "\x7f", "é"])
def test_what_becomes_a_header_line_has_no_line_end(name: str, value: str) -> None:
    with pytest.raises(RequestError) as caught:
        read({"v": 1, "verb": "chat", "id": "1", name: value})
    assert (caught.value.kind, caught.value.param) == (ErrorKind.BAD_MESSAGE, name)


SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
)


def check_refused_or_read(frames: list[bytes]) -> None:
    with suppress(RequestError):  # and nothing else
        header = read_header(frames)
        assert header.v == 1
        assert 1 <= header.credit <= messages.CREDIT_MAX
        assert b"\n" not in b"".join(v for k, v in as_headers(header).items() if not k.startswith(b"x-"))
    name = id_of(frames)
    assert name == "" or (len(name) <= 64 and name.isascii() and name.isprintable())


@settings(deadline=None)
@given(st.lists(st.binary(max_size=100), max_size=5))
def test_any_bytes(frames: list[bytes]) -> None:
    check_refused_or_read([IDENTITY, *frames])


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*Header.__struct_fields__, "other"]), VALUES), st.booleans())
def test_any_values(more: dict[str, Any], good: bool) -> None:
    check_refused_or_read([IDENTITY, pack({"v": 1, "verb": "chat", "id": "1", **more} if good else more)])


@settings(deadline=None)
@given(st.data())
def test_a_good_header_that_was_damaged(data: st.DataObject) -> None:
    raw = bytearray(pack({"v": 1, "verb": "chat", "id": "1", "credit": 7, "tags": {"a": "b"}, "grants": [("1", 2)]}))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    check_refused_or_read([IDENTITY, bytes(raw)])


@pytest.mark.parametrize("step", [b"\x91", b"\x81\x01", b"\x81\xa1a"])
@pytest.mark.parametrize("key", [b"\x81\xa1v", b"\x81\xa2id", b"\x82\xa1v\x01\xa6grants", b"\x81\xa4else"])
def test_nesting_of_any_depth(key: bytes, step: bytes) -> None:
    for depth in [*range(1, 100, 9), *range(300, 1100, 3), 5000]:
        check_refused_or_read([IDENTITY, key + step * depth + b"\x01"])


# ------------------------------------------------------------------ from the router
def test_messages_of_the_router() -> None:
    assert unpack(messages.error("1", 503, 1, 4)) == [
        1, "error", "1", {"status": 503, "retry_after_s": 1, "events": 4},
    ]  # fmt: skip
    assert unpack(messages.ALIVE) == [1, "alive", ""]
    assert unpack(messages.pong("p", "0.1", 5, 6)) == [1, "pong", "p", {"version": "0.1", "generation": 5, "t_ns": 6}]
    done = messages.done("1", status=200, host="a", event_count=3, usage={"n": 1}, stamps=tuple(range(15)))
    assert unpack(done)[3] == {"status": 200, "host": "a", "events": 3, "usage": {"n": 1}, "stamps": [*range(15)]}


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(3, 10), st.integers(0, 2**63), st.integers(0, 2**32)), min_size=1))
def test_events_are_read_as_they_were_written(marks: list[tuple[int, int, int]]) -> None:
    assert unpack(messages.events("x" * 64, 2**40, marks)) == [1, "events", "x" * 64, 2**40, [list(m) for m in marks]]
