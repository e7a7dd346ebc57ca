"""The native scan and its Python twin come to the same: on real streams cut anywhere, made-up ones, damaged ones."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from router import native
from router.hosts import native_scan
from router.hosts import scanner as scanner_module
from router.hosts.scanner import StreamError, StreamScanner
from router.http1 import ChunkedDecoder, ProtocolError, chunk
from tests.captures import capture, dechunk, stream_names
from tests.support.stream_damage import damage

if native.BACKEND != "c":
    pytest.skip("the native scan is not compiled here", allow_module_level=True)

STATE = (
    "content_count", "finish_count", "choice_count", "first_choices", "usage", "timings", "metrics",
    "error", "sentinel", "ended", "surplus", "succeeded", "_finished",
)  # fmt: skip
FEW_MISSES = 16
SWITCHES = {"raw": st.booleans(), "drop_usage": st.booleans(), "drop_progress": st.booleans()}


class Twins:
    """One scanner with the native scan and one without, fed alike."""

    def __init__(self, **switches: bool) -> None:
        self._raw = switches.get("raw", True)
        self.native = StreamScanner(ChunkedDecoder(), **switches)
        self.plain = StreamScanner(ChunkedDecoder(), **switches)

    def feed(self, data: bytes) -> bool:
        """Feed both; return whether they could take it. All that shows of them must be equal then."""
        outs = [self._feed(self.native, data)]
        with patch.object(scanner_module, "_scan", None):
            outs.append(self._feed(self.plain, data))
        assert outs[0] == outs[1]
        assert self.native.events == self.plain.events
        self.native.events.clear()
        self.plain.events.clear()
        for name in STATE:
            assert getattr(self.native, name) == getattr(self.plain, name), name
        self.native.learn()
        self.plain.learn()
        if self.native.misses <= FEW_MISSES:  # beyond, each counts its own way whether learning is worth it
            for name in ("prefix", "suffix", "code"):
                assert getattr(self.native, name) == getattr(self.plain, name), name
        return not isinstance(outs[0], str)

    def _feed(self, scanner: StreamScanner, data: bytes) -> bytes | str:
        try:
            out = scanner.feed(data)
        except (StreamError, ProtocolError) as error:
            return str(error)
        return dechunk(out) if self._raw else out


def feed_all(twins: Twins, reads: list[bytes]) -> None:
    for read in reads:
        if not twins.feed(read):
            return


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


CHUNKED = [name for name in stream_names() if b"transfer-encoding: chunked" in capture(name).head.lower()]


@pytest.mark.parametrize("name", CHUNKED)
@settings(max_examples=25, deadline=None)
@given(places=st.lists(st.integers(0, 1 << 20), max_size=6), switches=st.fixed_dictionaries(SWITCHES))
def test_real_streams_cut_anywhere(name: str, places: list[int], switches: dict[str, bool]) -> None:
    feed_all(Twins(**switches), cut(capture(name).framed, places))


@pytest.mark.parametrize("name", CHUNKED)
def test_real_streams_chunk_by_chunk(name: str) -> None:
    """As hosts send them: this is what the native scan is for, so it must have taken most of them."""
    framed = capture(name).framed
    reads, at = [], 0
    while at < len(framed):
        line_end = framed.index(b"\r\n", at)
        end = line_end + 2 + int(framed[at:line_end], 16) + 2
        reads.append(framed[at:end])
        at = end
    feed_all(Twins(drop_usage=True, drop_progress=True), reads)
    usual = [read for read in reads if b"\r\ndata: " in read and b'"error"' not in read]
    assert len(usual) > 2 or b"\nevent: " in framed, "the other dialects' streams are not for it"
    scan = scanner_module._scan
    assert scan is not None
    assert all(scan(StreamScanner(ChunkedDecoder()), read) is not None for read in usual)


texts = st.text(max_size=12)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), texts
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
deltas = st.fixed_dictionaries(
    {},
    optional={
        "role": st.just("assistant"),
        "content": st.one_of(texts, st.none(), values),
        "refusal": st.one_of(texts, st.none()),
        "reasoning": st.one_of(texts, st.none()),
        "reasoning_content": st.one_of(texts, st.none()),
        "tool_calls": st.one_of(st.none(), st.lists(values, max_size=2), values),
        "function_call": st.one_of(st.none(), st.dictionaries(texts, values, max_size=2)),
        "vendor": values,
    },
)
choices = st.fixed_dictionaries(
    {},
    optional={
        "index": st.one_of(st.integers(0, 3), st.integers(-2, 100_000), values),
        "delta": st.one_of(deltas, st.none(), values),
        "text": st.one_of(texts, values),
        "finish_reason": st.one_of(st.none(), st.sampled_from(["stop", "length", ""]), values),
        "logprobs": values,
    },
)
objects = st.fixed_dictionaries(
    {},
    optional={
        "id": texts,
        "choices": st.one_of(st.lists(choices, max_size=3), st.none(), values),
        "usage": st.one_of(st.none(), values),
        "timings": st.one_of(st.none(), values),
        "metrics": values,
        "prompt_progress": st.one_of(st.none(), values),
        "error": st.one_of(st.none(), values),
        "extra": values,
    },
)
styles = st.sampled_from([
    {"separators": (",", ":")},
    {"separators": (", ", ": ")},
    {"separators": (",", ":"), "ensure_ascii": False},
    {"indent": 1},
])  # fmt: skip


def as_event(value: Any, style: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, **style).encode("utf-8", "surrogatepass") + b"\n\n"


events = st.one_of(
    st.builds(as_event, objects, styles),
    st.sampled_from([
        b"data: [DONE]\n\n", b": ping\n\n", b"event: error\ndata: {}\n\n", b"data:{}\r\n\r\n", b"data: [1]\n\n",
    ]),
    st.builds(lambda raw: b"data: " + raw + b"\n\n", st.binary(max_size=30)),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    chunks=st.lists(st.lists(events, min_size=1, max_size=3), max_size=5),
    ended=st.booleans(),
    switches=st.fixed_dictionaries(SWITCHES),
)
def test_made_up_streams(chunks: list[list[bytes]], ended: bool, switches: dict[str, bool]) -> None:
    reads = [chunk(b"".join(each)) for each in chunks] + ([b"0\r\n\r\n"] if ended else [])
    feed_all(Twins(**switches), reads)
    feed_all(Twins(**switches), [b"".join(reads)])


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 1 << 32))
@example(seed=0)
def test_damaged_streams(seed: int) -> None:
    rng = random.Random(seed)
    data = damage(capture(rng.choice(CHUNKED)).framed, rng)
    feed_all(Twins(drop_usage=rng.random() < 0.5), cut(data, [rng.randrange(1 << 20) for _ in range(rng.randrange(4))]))


ODD = {
    "a key twice": b'{"choices":[],"choices":[{"index":0,"delta":{"content":"a"}}]}',
    "an escaped key": b'{"ch\\u006fices":[{"index":0,"delta":{"content":"a"}}]}',
    "half a surrogate pair": b'{"choices":[{"index":0,"delta":{"content":"\\ud800"}}]}',
    "a whole pair": b'{"choices":[{"index":0,"delta":{"content":"\\ud83d\\ude00"}}]}',
    "bad UTF-8": b'{"choices":[{"index":0,"delta":{"content":"\xc0\x80"}}]}',
    "UTF-8 of a surrogate": b'{"choices":[{"index":0,"delta":{"content":"\xed\xa0\x80"}}]}',
    "beyond Unicode": b'{"choices":[{"index":0,"delta":{"content":"\xf4\x90\x80\x80"}}]}',
    "a leading zero": b'{"choices":[{"index":01,"delta":{"content":"a"}}]}',
    "minus zero": b'{"choices":[{"index":-0,"delta":{"content":"a"}}]}',
    "a fraction": b'{"choices":[{"index":1.0,"delta":{"content":"a"}}]}',
    "an exponent": b'{"choices":[{"index":1e0,"delta":{"content":"a"}}]}',
    "a large index": b'{"choices":[{"index":65536,"delta":{"content":"a"}}]}',
    "a content that is a number": b'{"choices":[{"index":0,"delta":{"content":0}}]}',
    "a content that is a list": b'{"choices":[{"index":0,"delta":{"content":[{"text":"a"}]}}]}',
    "an empty tool call list": b'{"choices":[{"index":0,"delta":{"tool_calls":[ ]}}]}',
    "two texts": b'{"choices":[{"index":0,"delta":{"content":"a","reasoning":"b"}}]}',
    "a text in a vendor's field": b'{"x":{"content":"c"},"choices":[{"index":0,"delta":{"content":"a"}}]}',
    "a comma too many": b'{"choices":[{"index":0,"delta":{"content":"a"},}]}',
    "something behind": b'{"choices":[]} x',
    "blanks everywhere": b' { "choices" : [ { "index" : 0 , "delta" : { "content" : "a" } } ] , "usage" : null } ',
    "a deep nest": b'{"x":' + b"[" * 70 + b"]" * 70 + b',"choices":[]}',
    "usage without choices": b'{"usage":{"prompt_tokens":1}}',
    "usage with null choices": b'{"choices":null,"usage":{"prompt_tokens":1}}',
    "usage that is a number": b'{"choices":[],"usage":7}',
    "two choices": b'{"choices":[{"index":1,"delta":{}},{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}',
    "an empty object": b"{}",
    "control bytes": b'{"choices":[{"index":0,"delta":{"content":"\x01"}}]}',
    "a number that is too long": b'{"x":1e999,"choices":[{"index":0,"delta":{"content":"a"}}]}',
}


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("data", ODD.values(), ids=ODD.keys())
def test_odd_objects(data: bytes, raw: bool) -> None:
    event = b"data: " + data + b"\n\n"
    usual = b'data: {"choices":[{"index":0,"delta":{"content":"b"}}]}\n\n'
    for reads in ([event, usual, usual], [usual, event, usual], [usual + event, usual]):
        feed_all(Twins(raw=raw, drop_usage=True), [chunk(read) for read in reads])


FRAMES = [
    b"5\r\ndata:\r\n", b"0\r\n\r\n", b"00\r\n\r\n", b"0\r\nx: y\r\n\r\n", b"0;a\r\n\r\n", b"0\r\n\r\nmore",
    b"fffffff\r\n", b"\r\n", b"g\r\n", b"A\r\ndata: {}\n\n\r\n", b"0a\r\ndata: {}\n\n\r\n", b"a\ndata: {}\n\n\r\n",
    b"a\r\ndata: {}\n\nxx", b"9\r\ndata: {}\n\n\r\n", b"",
]  # fmt: skip


@pytest.mark.parametrize("data", FRAMES, ids=repr)
def test_odd_frames(data: bytes) -> None:
    usual = chunk(b'data: {"choices":[{"index":0,"delta":{"content":"b"}}]}\n\n')
    for reads in ([data], [usual, data], [usual + data], [data, usual]):
        feed_all(Twins(), reads)


SCANNER = StreamScanner(ChunkedDecoder())


@pytest.mark.parametrize("arguments", [(), (SCANNER,), (SCANNER, "text"), (object(), b""), (SCANNER, b"", True)])
def test_wrong_use_is_a_type_error(arguments: tuple[Any, ...]) -> None:
    assert scanner_module._scan is not None
    with pytest.raises(TypeError, match="feed"):
        scanner_module._scan(*arguments)


def test_a_scanner_whose_attributes_are_of_other_types_is_refused() -> None:
    token = b'data: {"choices":[{"index":0,"delta":{"content":"b"}}]}\n\n'
    last = token.replace(b"}}]", b'},"finish_reason":"stop"}]')
    for name in ("events", "content_count", "choice_count", "_finished", "misses"):
        scanner = StreamScanner(ChunkedDecoder())
        setattr(scanner, name, "text")
        with pytest.raises((TypeError, AttributeError)):
            scanner.feed(chunk(token + last))


def test_events_that_nobody_has_recorded_yet_stay() -> None:
    twins = Twins()
    for _ in range(3):
        reads = [chunk(b'data: {"choices":[{"index":0,"delta":{"content":"b"}}]}\n\n')]
        twins.native.feed(reads[0])
        twins.plain.feed(reads[0])
    assert len(twins.native.events) == 3
    assert twins.native.events == twins.plain.events


PIECES = st.lists(st.sampled_from([b'"', b"a", b"\\", b"\r\n", b"{", b"0", b" "]), max_size=6).map(b"".join)


@given(
    size_line=st.one_of(
        st.none(), st.sampled_from([b"", b"0", b"00a", b"A", b"a", b"fff", b"1000", b"-1", b"0x5", b" 5"])
    ),
    prefix=PIECES.filter(bool),
    text=PIECES,
    suffix=PIECES.filter(bool),
    tail=PIECES,
)
def test_one_more_token_is_the_same_to_both(
    size_line: bytes | None, prefix: bytes, text: bytes, suffix: bytes, tail: bytes
) -> None:
    payload = prefix + text + suffix
    line = b"%x" % len(payload) if size_line is None else size_line
    data = line + b"\r\n" + payload + b"\r\n" + tail
    assert native_scan.same_token(data, b"", suffix) == native_scan.plain_same_token(data, b"", suffix) == 0
    for template in ((prefix, suffix + b"\r\n"), (prefix + b"\0", suffix), (prefix, tail or b"\n")):
        assert native_scan.same_token(data, *template) == native_scan.plain_same_token(data, *template)


def test_one_more_token_of_every_size() -> None:
    for size in (3, 9, 15, 16, 255, 256, 4095, 4096, 70_000):
        data = chunk(b"<" + b"x" * (size - 2) + b">")
        expected = size if size <= 4095 else 0
        for same_token in (native_scan.same_token, native_scan.plain_same_token):
            assert same_token(data, b"<", b">\r\n") == expected
            assert same_token(data[:-1], b"<", b">\r\n") == 0
            assert same_token(data + b"0\r\n\r\n", b"<", b">\r\n") == 0


@pytest.mark.parametrize("name", CHUNKED)
def test_what_is_one_more_token_scans_as_one(name: str) -> None:
    found = 0
    scanner = StreamScanner(ChunkedDecoder())
    for event in dechunk(capture(name).framed)[0].split(b"\n\n"):
        data = chunk(event + b"\n\n")
        size = native_scan.same_token(data, scanner.prefix, scanner.suffix)
        content_count = scanner.content_count
        try:
            out = scanner.feed(data)
        except (StreamError, ProtocolError):
            break
        if size:
            found += 1
            assert out == data
            assert scanner.events == [(scanner.code, size)]
            assert scanner.content_count == content_count + 1
        scanner.events.clear()
        scanner.learn()
    assert found >= 2 or not name.endswith(("chat_stream_usage", "chat_stream_nousage", "completions_stream_usage"))
