"""Messages that are not of the protocol: each is answered with a coded error and counted.

One stream of another client is under way all the while, and must come to its end whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from time import monotonic_ns
from typing import Any

import pytest
import zmq

from tests.faults.client import chat_body
from tests.faults.stage import MS, QUIET, SHORT_TICK, Stage, host_entry
from tests.faults.zeromq_client import Message, ZeromqClient, pack
from tests.support import scripted_host as sh
from tests.support.scripted_host import ScriptedHost, chunk

MIB = 1 << 20
HEADER_BYTES_MAX = 16 * 1024
TOKENS = [sh.token(f"t{i}") for i in range(20)]
BODY = json.dumps(chat_body()).encode()
GOOD = {"v": 1, "verb": "chat", "id": "bad"}


@pytest.fixture(scope="module")
def running_stage(directory: Path, host: ScriptedHost) -> Iterator[Stage]:
    with Stage(directory, [host], QUIET + SHORT_TICK + host_entry(host)) as stage:
        yield stage


@pytest.fixture(scope="module")
def stage(running_stage: Stage, host: ScriptedHost) -> Iterator[Stage]:
    """The router, with a stream of another client under way that must be whole in the end."""
    gate = running_stage.gate()
    host.script(
        sh.stream_head(), *map(chunk, TOKENS[:10]), gate, *map(chunk, TOKENS[10:]), chunk(sh.FINISH), sh.LAST_CHUNK
    )
    other = running_stage.zeromq_client()
    answer = other.chat("bad")
    other.wait_events(answer, 10)
    yield running_stage
    gate.open()
    other.finish(answer)
    assert answer.data == b"".join(TOKENS) + sh.FINISH
    assert answer.done["status"] == 200
    assert not other.others, "nothing of what others did wrong comes here"
    running_stage.settle()


@pytest.fixture(scope="module")
def client(stage: Stage) -> ZeromqClient:
    return stage.zeromq_client()


def check_refused(
    stage: Stage, client: ZeromqClient, frames: list[bytes], request_id: str, param: str | None
) -> Message:
    """Check that a message is answered with bad_message, and that the router counts it and goes on."""
    before = stage.counter("zeromq_bad")
    client.send(*frames)
    refused = client.next_other()
    assert refused.error["code"] == "bad_message", refused
    assert refused.error["type"] == "invalid_request_error"
    assert refused.id == request_id
    assert refused.facts == {"status": 400, "retry_after_s": 0, "events": 0}
    assert refused.error["param"] == param
    assert refused.error["message"]
    assert len(refused.error["message"]) < 500, "an error is short, whatever it complains about"
    assert stage.counter("zeromq_bad") == before + 1
    client.ping()
    assert not client.others, "one message, one error"
    return refused


HEADERS: dict[str, tuple[Any, str, str | None]] = {
    "an unknown verb": ({**GOOD, "verb": "dance"}, "bad", "verb"),
    "a verb of another case": ({**GOOD, "verb": "CHAT"}, "bad", "verb"),
    "a verb of 16,000 letters": ({**GOOD, "verb": "x" * 16_000}, "bad", "verb"),
    "no verb": ({"v": 1, "id": "bad"}, "bad", None),
    "a verb that is a number": ({**GOOD, "verb": 1}, "bad", None),
    "version 2": ({**GOOD, "v": 2}, "bad", "v"),
    "version 0": ({**GOOD, "v": 0}, "bad", "v"),
    "a huge version": ({**GOOD, "v": 2**64 - 1}, "bad", "v"),
    "version '1'": ({**GOOD, "v": "1"}, "bad", "v"),
    "version true": ({**GOOD, "v": True}, "bad", None),
    "a long version": ({**GOOD, "v": "x" * 16_000}, "bad", "v"),
    "no version": ({"verb": "chat", "id": "bad"}, "bad", "v"),
    "an unknown key": ({**GOOD, "colour": "red"}, "bad", None),
    "a long unknown key": ({**GOOD, "k" * 16_000: 1}, "bad", None),
    "an id that is a number": ({**GOOD, "id": 5}, "", None),
    "no id": ({"v": 1, "verb": "chat"}, "", "id"),
    "an empty id": ({**GOOD, "id": ""}, "", "id"),
    "an id of 65 letters": ({**GOOD, "id": "x" * 65}, "", "id"),
    "an id with a line end": ({**GOOD, "id": "a\nb"}, "", "id"),
    "an id that is not ASCII": ({**GOOD, "id": "é"}, "", "id"),
    "cancel without id": ({"v": 1, "verb": "cancel"}, "", "id"),
    "models without id": ({"v": 1, "verb": "models"}, "", "id"),
    "a bad id of a ping": ({"v": 1, "verb": "ping", "id": "x" * 65}, "", "id"),
    "credit 0": ({**GOOD, "credit": 0}, "bad", "credit"),
    "credit -1": ({**GOOD, "credit": -1}, "bad", "credit"),
    "credit 4,097": ({**GOOD, "credit": 4097}, "bad", "credit"),
    "huge credit": ({**GOOD, "credit": 2**64 - 1}, "bad", "credit"),
    "credit as text": ({**GOOD, "credit": "256"}, "bad", None),
    "credit null": ({**GOOD, "credit": None}, "bad", None),
    "tags as a list": ({**GOOD, "tags": ["a"]}, "bad", None),
    "a tag that is a number": ({**GOOD, "tags": {"feature_name": 1}}, "bad", None),
    "tags by number": ({**GOOD, "tags": {1: "a"}}, "bad", None),
    "65 tags": ({**GOOD, "tags": {f"t{i}": "x" for i in range(65)}}, "bad", "tags"),
    "a traceparent of bytes": ({**GOOD, "traceparent": b"00"}, "bad", None),
    "a traceparent with a header behind it": ({**GOOD, "traceparent": "00\r\nx-evil: 1"}, "bad", "traceparent"),
    "a tracestate with a line end": ({**GOOD, "tracestate": "a\nb"}, "bad", "tracestate"),
    "baggage that is not ASCII": ({**GOOD, "baggage": "tenant_id=é"}, "bad", "baggage"),
    "a list": ([1, "chat", "bad"], "", None),
    "a number": (1, "", None),
    "nothing": (None, "", None),
}


@pytest.mark.parametrize(("header", "request_id", "param"), HEADERS.values(), ids=HEADERS.keys())
def test_a_header_that_is_wrong(
    stage: Stage, client: ZeromqClient, header: Any, request_id: str, param: str | None
) -> None:
    frames = [pack(header), BODY] if isinstance(header, dict) and header.get("verb") == "chat" else [pack(header)]
    check_refused(stage, client, frames, request_id, param)


RAW_HEADERS = {
    "truncated": pack(GOOD)[:-1],
    "surplus bytes": pack(GOOD) + b"\x00",
    "two maps": pack(GOOD) * 2,
    "a byte that MessagePack does not use": b"\xc1",
    "text that is not UTF-8": b"\x83\xa1v\x01\xa4verb\xa4chat\xa2id\xa2\xff\xfe",
    "a map that promises 4 G of keys": b"\xdf\xff\xff\xff\xff",
    "a list that promises 4 G of values": b"\x81\xa1v\xdd\xff\xff\xff\xff",
    "a text that promises 4 GB": b"\x81\xa2id\xdb\xff\xff\xff\xff",
    "deep nesting": b"\x81\xa1v" + b"\x91" * 16_000,
    "deep nesting of an id": b"\x81\xa2id" + b"\x81\x01" * 8_000,
    "a map as key": b"\x82\xa1v\x81\x81\x01\x02\x03\xa2id\x01",
    "a time that does not exist": b"\x81\xa1v\xc7\x0c\xff\xff\xff\xff\xff" + b"\x7f" * 8,
    "JSON": json.dumps(GOOD).encode(),
    "an HTTP request": b"GET / HTTP/1.1\r\n\r\n",
    "16 KiB and one byte": pack({**GOOD, "verb": "ping", "tags": {"t": "x" * (HEADER_BYTES_MAX)}}),
}


@pytest.mark.parametrize("raw", RAW_HEADERS.values(), ids=RAW_HEADERS.keys())
def test_a_header_that_cannot_be_read(stage: Stage, client: ZeromqClient, raw: bytes) -> None:
    check_refused(stage, client, [raw, BODY], "", None)


def test_nesting_at_every_depth_near_the_limit(stage: Stage, client: ZeromqClient) -> None:
    """What can just be decoded must not be too deep to be shown."""
    before = stage.counter("zeromq_bad")
    depths = range(900, 1010)
    for depth in depths:
        client.send(b"\x81\xa1v" + b"\x91" * depth + b"\x01")
    for _ in depths:
        assert client.next_other().error["code"] == "bad_message"
    assert stage.counter("zeromq_bad") == before + len(depths)


FRAMES: dict[str, list[bytes]] = {
    "one empty frame": [b""],
    "an empty frame first, as a REQ socket sends": [b"", pack(GOOD), BODY],
    "three frames": [pack(GOOD), BODY, b""],
    "four frames": [pack(GOOD), BODY, BODY, BODY],
    "a thousand frames": [pack(GOOD)] * 1000,
    "a thousand empty frames": [b""] * 1000,
}


@pytest.mark.parametrize("frames", FRAMES.values(), ids=FRAMES.keys())
def test_frames_too_few_or_too_many(stage: Stage, client: ZeromqClient, frames: list[bytes]) -> None:
    check_refused(stage, client, frames, "bad" if frames[0] else "", None)


def test_a_req_socket_is_told_to_be_a_dealer(stage: Stage) -> None:
    """Its delimiter comes back in front of no answer, so that it hears nothing; the router counts the message."""
    before = stage.counter("zeromq_bad")
    asker = zmq.Context.instance().socket(zmq.REQ)
    asker.connect(stage.zeromq_endpoint)
    try:
        asker.send(pack(GOOD))
        stage.wait_counter("zeromq_bad", before + 1)
    finally:
        asker.close(0)


@pytest.mark.parametrize("verb", ["models", "cancel", "credit", "ping"])
@pytest.mark.parametrize("body", [b"", b"{}"], ids=["empty", "not empty"])
def test_a_body_where_none_belongs(stage: Stage, client: ZeromqClient, verb: str, body: bytes) -> None:
    check_refused(stage, client, [pack({"v": 1, "verb": verb, "id": "bad"}), body], "bad", None)


def test_a_header_of_megabytes_is_not_decoded(stage: Stage, client: ZeromqClient) -> None:
    count = 300_000
    header = b"\x82\xa1v\x01\xa2id\xdd" + count.to_bytes(4, "big") + b"\x90" * count
    before = stage.memory_bytes()
    begun_ns = monotonic_ns()
    for _ in range(20):
        client.send(header)
    for _ in range(20):
        assert client.next_other().error["code"] == "bad_message"
    assert monotonic_ns() - begun_ns < stage.allowed_ns(20 * 20 * MS), "each would take some 50 ms to decode"
    assert stage.memory_bytes() - before < 16 * MIB
