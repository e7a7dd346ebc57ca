"""The scanner on invented hosts: any spacing, line ends, framing, order of events and cuts; and on noise."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from router.hosts.scanner import StreamError, StreamScanner
from router.http1 import BodyDecoder, ChunkedDecoder, EofDecoder, LengthDecoder, ProtocolError
from router.telemetry.records import Kind, TokenFlag
from tests.captures import capture, dechunk, stream_names

TRAPS = (
    "",
    " ",
    'say "hi"',
    "ends in a backslash\\",
    '\\"',
    '"finish_reason":"stop"',
    "data: [DONE]",
    "data: [DONE]\n\n",
    "\n\n",
    "\r\n\r\ndata: {}",
    '"}}]}\n\ndata: [DONE]',
    '","content":"x',
    "0\r\n\r\n",
    "🎉 é 漢字",
    "\u2028",
    "</tool_call>",
)


class Made(NamedTuple):
    """One event as a host might write it, and what the scanner must say of it."""

    wire: bytes
    kind: int
    choice: int = 0
    finish: bool = False
    usage: bool = False
    progress: bool = False


class Style(NamedTuple):
    """How a host writes its events."""

    separators: tuple[str, str]
    sorted_keys: bool
    ascii_only: bool
    newline: bytes
    field: bytes
    lines_before: bytes

    def write(self, body: dict[str, Any]) -> bytes:
        data = json.dumps(
            body, separators=self.separators, sort_keys=self.sorted_keys, ensure_ascii=self.ascii_only
        ).encode()
        before = self.lines_before + self.newline if self.lines_before else b""
        return before + self.field + data + self.newline + self.newline


STYLES = st.builds(
    Style,
    separators=st.sampled_from([(",", ":"), (", ", ": ")]),
    sorted_keys=st.booleans(),
    ascii_only=st.booleans(),
    newline=st.sampled_from([b"\n", b"\n", b"\r\n"]),
    field=st.sampled_from([b"data: ", b"data:"]),
    lines_before=st.sampled_from([b"", b"", b"event: message", b"id: 7", b": note"]),
)


@st.composite
def events(draw: st.DrawFn, style: Style) -> Made:
    """Draw one event: usually a token like the one before it, sometimes anything else."""
    shape = draw(st.sampled_from("tttttttttttttttttttttrrnfFuUpcehx"))
    index = draw(st.sampled_from([0] * 9 + [1, 2]))
    text = draw(st.one_of(st.sampled_from(["a", " b", "…"]), st.sampled_from(TRAPS), st.text(max_size=8)))
    body: dict[str, Any] = {"id": "c1", "object": "chat.completion.chunk"}
    choice: dict[str, Any] = {"index": index, "finish_reason": None}
    body["choices"] = [choice]
    made: dict[str, Any] = {"choice": index}
    if shape == "t":
        choice["delta"] = {"content": text}
        kind = Kind.TEXT if text else Kind.HEAD
    elif shape == "r":
        choice["delta"] = {draw(st.sampled_from(["reasoning", "reasoning_content"])): text}
        kind = Kind.REASONING if text else Kind.HEAD
    elif shape == "n":
        choice["delta"] = {"content": None, "tool_calls": [{"index": 0, "function": {"arguments": text}}]}
        kind = Kind.TOOL_CALL
    elif shape == "f":
        choice |= {"delta": {}, "finish_reason": "stop"}
        kind, made["finish"] = Kind.FINISH, True
    elif shape == "F":  # vLLM: the reason rides on the last content event
        choice |= {"delta": {"content": text}, "finish_reason": "length"}
        kind, made["finish"] = (Kind.TEXT if text else Kind.FINISH), True
    elif shape == "u":
        body |= {"choices": [], "usage": {"completion_tokens": 3}}
        kind, made = Kind.USAGE, {"usage": True}
    elif shape == "U":  # running usage on a token
        choice["delta"] = {"content": text}
        body["usage"] = {"completion_tokens": 3}
        kind, made["usage"] = (Kind.TEXT if text else Kind.HEAD), True
    elif shape == "p":
        choice["delta"] = {"role": "assistant", "content": None}
        body["prompt_progress"] = {"total": 9, "processed": 3}
        kind, made["progress"] = Kind.HEAD, True
    elif shape == "c":
        end = draw(st.sampled_from([b"\n\n", b"\r\n\r\n"]))
        return Made(draw(st.sampled_from([b":", b": keep-alive", b": a\n: b"])) + end, Kind.KEEPALIVE)
    elif shape == "e":
        body = {"error": {"message": text, "code": 500}}
        kind, made = Kind.ERROR, {}
    elif shape == "h":
        choice["delta"] = {"role": "assistant", "content": ""}
        kind = Kind.HEAD
    else:  # a field more behind an otherwise familiar token
        choice |= {"delta": {"content": text}, "logprobs": {"content": [{"token": text}]}}
        kind = Kind.TEXT if text else Kind.HEAD
    return Made(style.write(body), int(kind), **made)


@st.composite
def framings(draw: st.DrawFn, wires: list[bytes]) -> tuple[bytes, BodyDecoder]:
    """Frame a body: in chunks of whole events, in chunks cut anywhere, by length, or by the end of the connection."""
    body = b"".join(wires)
    shape = draw(st.sampled_from(["events", "events", "anywhere", "length", "eof"]))
    if shape == "length":
        return body, LengthDecoder(len(body))
    if shape == "eof":
        return body, EofDecoder()
    if shape == "events":
        offsets = [0]
        for wire in wires:
            offsets.append(offsets[-1] + len(wire))
        cuts = [offset for offset in offsets[1:-1] if draw(st.integers(0, 4))]
    else:
        cuts = sorted(set(draw(st.lists(st.integers(1, max(1, len(body) - 1)), max_size=8))))
    form = draw(st.sampled_from([b"%x\r\n%b\r\n"] * 4 + [b"%X\r\n%b\r\n", b"%x;ext=1\r\n%b\r\n", b"%08x\r\n%b\r\n"]))
    pieces = [body[start:end] for start, end in pairwise([0, *cuts, len(body)])]
    return b"".join(form % (len(piece), piece) for piece in pieces if piece) + b"0\r\n\r\n", ChunkedDecoder()


def is_removed(event: Made, drop_usage: bool, drop_progress: bool) -> bool:
    return (event.kind == Kind.USAGE and drop_usage) or (event.progress and drop_progress)


@given(data=st.data())
@settings(max_examples=600, deadline=None)
def test_any_host_in_any_reads(data: st.DataObject) -> None:
    styles = st.sampled_from([data.draw(STYLES)] * 9 + [data.draw(STYLES)])  # seldom another than the host's own
    made = data.draw(st.lists(styles.flatmap(events), max_size=14))
    done = data.draw(st.sampled_from([[], [b"data: [DONE]\n\n"], [b"data:[DONE]\r\n\r\n"]]))
    framed, decoder = data.draw(framings([event.wire for event in made] + done))
    drop_usage, drop_progress, raw = data.draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    scanner = StreamScanner(decoder, raw=raw, drop_usage=drop_usage, drop_progress=drop_progress)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(framed)), max_size=10)))
    if data.draw(st.booleans()) and isinstance(decoder, ChunkedDecoder):
        cuts = [offset for offset in range(1, len(framed)) if framed[:offset].endswith(b"\r\n")]

    forwarded = b"".join(
        dechunk(out)[0] if raw else out
        for out in (scanner.feed(framed[start:end]) for start, end in pairwise([0, *cuts, len(framed)]))
    )

    kept = [event for event in made if not is_removed(event, drop_usage, drop_progress)]
    assert forwarded == b"".join(event.wire for event in kept)
    assert scanner.sentinel == (done[0] if done else None)
    found = [
        (code & 0xFF, code >> 32, bool(code >> 8 & TokenFlag.FINISH), bool(code >> 8 & TokenFlag.USAGE))
        for code, _ in scanner.events
        if code & 0xFF != Kind.SENTINEL
    ]
    assert found == [(event.kind, event.choice, event.finish, event.usage) for event in made]
    assert [bool(code >> 8 & TokenFlag.REMOVED) for code, _ in scanner.events][: len(made)] == [
        event not in kept for event in made
    ]
    assert sum(size for _, size in scanner.events) == sum(map(len, [event.wire for event in made] + done))
    begun = {event.choice for event in made if event.kind in CHOICE_KINDS}
    ended = {event.choice for event in made if event.finish}
    error = any(event.kind == Kind.ERROR for event in made)
    assert scanner.succeeded is (bool(ended) and len(ended) >= max(begun) + 1 and not error)
    assert scanner.ended is not isinstance(decoder, EofDecoder)
    assert scanner.finish() == b""


CHOICE_KINDS = {Kind.TEXT, Kind.REASONING, Kind.TOOL_CALL, Kind.FINISH, Kind.HEAD}


@given(reads=st.lists(st.binary(max_size=60), max_size=6), chunked=st.booleans(), raw=st.booleans())
@settings(max_examples=300, deadline=None)
def test_noise_is_refused_or_passed_on_but_never_breaks_the_scanner(
    reads: list[bytes], chunked: bool, raw: bool
) -> None:
    feed_all(StreamScanner(ChunkedDecoder() if chunked else EofDecoder(), raw=raw), reads)


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_a_damaged_capture_never_breaks_the_scanner(data: st.DataObject) -> None:
    framed = bytearray(capture(data.draw(st.sampled_from(stream_names()))).framed)
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, len(framed) - 1))
        damage = data.draw(
            st.one_of(st.binary(max_size=4), st.sampled_from([b'"', b"\\", b"[" * 3000, b"\xff", b"\n"]))
        )
        framed[position : position + data.draw(st.integers(0, 4))] = damage
    cuts = sorted(data.draw(st.lists(st.integers(0, len(framed)), max_size=8)))
    reads = [bytes(framed[start:end]) for start, end in pairwise([0, *cuts, len(framed)])]
    drop_usage, keep_payloads = data.draw(st.tuples(st.booleans(), st.booleans()))
    feed_all(StreamScanner(ChunkedDecoder(), drop_usage=drop_usage, keep_payloads=keep_payloads), reads)


def feed_all(scanner: StreamScanner, reads: list[bytes]) -> None:
    try:
        for read in reads:
            scanner.feed(read)
    except (StreamError, ProtocolError):
        return
    scanner.finish()
