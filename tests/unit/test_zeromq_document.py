"""docs/zeromq.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from router.errors import WIRE, ErrorKind
from router.ingress.zeromq import messages
from router.ingress.zeromq.messages import API_VERBS, OTHER_VERBS, Header
from router.stamps import STAMPS
from router.telemetry.records import Kind

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "zeromq.md").read_text(encoding="utf-8")
_encode = msgspec.msgpack.encode
EVENT = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'


def test_the_exchange_is_byte_by_byte_what_the_code_reads_and_writes() -> None:
    shown = [(line[0], bytes.fromhex(line[2:])) for line in re.findall(r"^[<>] [0-9a-f ]+$", PAGE, re.MULTILINE)]
    assert shown == [
        (">", _encode({"v": 1, "verb": "chat", "id": "1"})),
        (">", b'{"model":"m","messages":[]}'),
        ("<", messages.accepted("1", 7, 1_000_000_000)),
        ("<", messages.events("1", 0, [(int(Kind.TEXT), 1_000_500_000, len(EVENT))])),
        ("<", EVENT),
        (">", _encode({"v": 1, "verb": "credit", "grants": [["1", 1]]})),
        ("<", messages.done("1", status=200, host="a", event_count=1, usage=None, stamps=(0,) * len(STAMPS))),
    ]
    assert messages.read_header([b"identity", shown[0][1], shown[1][1]]) == Header(v=1, verb="chat", id="1")
    assert messages.read_header([b"identity", shown[5][1]]).grants == [("1", 1)]


def test_every_verb_and_key_is_described() -> None:
    for name in (*API_VERBS, *OTHER_VERBS, *Header.__struct_fields__):
        assert f"`{name}`" in PAGE, name


def test_the_kinds_are_the_numbers_of_the_token_records() -> None:
    for kind, words in {
        Kind.HEAD: "no content",
        Kind.TEXT: "text",
        Kind.REASONING: "reasoning",
        Kind.TOOL_CALL: "part of a tool call",
        Kind.FINISH: "a finish reason",
        Kind.USAGE: "usage",
        Kind.KEEPALIVE: "a comment",
        Kind.ERROR: "an error",
    }.items():
        assert f"| {int(kind)} | {words}" in PAGE, kind.name


def test_the_stamps_stand_in_their_order() -> None:
    assert ", ".join(STAMPS) in PAGE


def test_the_error_codes_are_those_of_the_wire() -> None:
    rows = re.findall(r"^\| (\d{3}) \| `([a-z_]+)` \|", PAGE, re.MULTILINE)
    own = {kind for kind in ErrorKind if kind in WIRE and (str(WIRE[kind].status), WIRE[kind].code) in rows}
    assert len(own) == len(rows), "each row is a code of the wire"
    assert {ErrorKind.BAD_MESSAGE, ErrorKind.BAD_CREDIT, ErrorKind.DUPLICATE_REQUEST, ErrorKind.CANCELLED} <= own


def test_the_bounds_are_those_of_the_code() -> None:
    assert f"{messages.HEADER_BYTES_MAX // 1024} KiB" in PAGE
    assert f"{messages.CREDIT_MAX:,}" in PAGE
    assert f"({messages.CREDIT_FIRST})" in PAGE
