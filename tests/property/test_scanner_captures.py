"""The scanner on the streams of real hosts, cut everywhere: bytes, records and outcome do not depend on the reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.hosts.scanner import StreamScanner
from router.http1 import ChunkedDecoder
from router.telemetry.records import Kind, TokenFlag
from tests.captures import Capture, capture, data_of, dechunk, split_events, stream_names

REMOVED = TokenFlag.REMOVED.value << 8
SWITCHES = tuple(product((False, True), repeat=2))


@dataclass(frozen=True)
class Expected:
    """What must come of a stream, found out by decoding every event with the standard library."""

    forwarded: bytes
    events: list[tuple[int, bool, int]]
    content_count: int
    sentinel: bytes | None
    succeeded: bool
    error: bool


def naive_kind(event: bytes) -> tuple[int, bool, bool]:
    """Return (kind, is an event for usage alone, is an event for progress alone)."""
    data = data_of(event)
    if data is None:
        return Kind.KEEPALIVE, False, False
    if data == b"[DONE]":
        return Kind.SENTINEL, False, False
    decoded = json.loads(data)
    if decoded.get("error") is not None:
        return Kind.ERROR, False, False
    progress = decoded.get("prompt_progress") is not None
    choices = decoded.get("choices")
    if not choices:
        usage = isinstance(decoded.get("usage"), dict) and choices is not None
        return (Kind.USAGE if decoded.get("usage") else Kind.HEAD), usage, progress
    finished = any(choice.get("finish_reason") for choice in choices)
    kind = content_kind(choices[0])
    return kind or (Kind.FINISH if finished else Kind.HEAD), False, progress and not kind and not finished


def content_kind(choice: dict) -> int:
    delta = choice.get("delta") or {}
    if choice.get("text") or delta.get("content"):
        return Kind.TEXT
    if delta.get("reasoning") or delta.get("reasoning_content"):
        return Kind.REASONING
    return Kind.TOOL_CALL if delta.get("tool_calls") else 0


def naive_success(events: list[bytes]) -> tuple[bool, bool]:
    """Return whether all choices ended without an error, and whether there was one."""
    begun, ended = set(), set()
    error = False
    for data in map(data_of, events):
        if data is None or data == b"[DONE]":
            continue
        decoded = json.loads(data)
        error |= decoded.get("error") is not None
        for choice in decoded.get("choices") or ():
            begun.add(choice["index"])
            ended |= {choice["index"]} if choice.get("finish_reason") else set()
    return bool(ended) and begun == ended and not error, error


@cache
def expected_of(name: str, drop_usage: bool, drop_progress: bool) -> Expected:
    events, _ = split_events(capture(name).body)
    forwarded, records, sentinel = b"", [], None
    for event in events:
        kind, usage, progress = naive_kind(event)
        removed = (usage and drop_usage) or (progress and drop_progress)
        records.append((kind, removed, len(event)))
        if kind == Kind.SENTINEL:
            sentinel = event
        elif not removed:
            forwarded += event
    content_count = sum(kind in {Kind.TEXT, Kind.REASONING, Kind.TOOL_CALL} for kind, _, _ in records)
    return Expected(forwarded, records, content_count, sentinel, *naive_success(events))


def run(source: Capture, cuts: list[int], *, raw: bool, drop_usage: bool, drop_progress: bool) -> StreamScanner:
    """Feed a capture in pieces and check everything about the outcome."""
    scanner = StreamScanner(ChunkedDecoder(), raw=raw, drop_usage=drop_usage, drop_progress=drop_progress)
    forwarded = b""
    for start, end in pairwise([0, *cuts, len(source.framed)]):
        written = scanner.feed(source.framed[start:end])
        payload = dechunk(written)[0] if raw else written
        assert payload.endswith((b"\n\n", b"\r\n\r\n")) or not payload, "every write holds whole events only"
        forwarded += payload
    expected = expected_of(source.name, drop_usage, drop_progress)
    assert forwarded == expected.forwarded, "the client gets the host's bytes less exactly the removed events"
    found = [(code & 0xFF, code & REMOVED != 0, size) for code, size in scanner.events]
    assert found == expected.events, "every event of the host has exactly one record"
    assert scanner.content_count == expected.content_count
    assert scanner.sentinel == expected.sentinel, "[DONE] is held out"
    assert scanner.succeeded is expected.succeeded, "success is a finish_reason of every choice"
    assert (scanner.error is not None) is expected.error
    assert scanner.ended is source.ended
    assert scanner.surplus == b""
    return scanner


@pytest.mark.parametrize("name", stream_names())
def test_every_single_cut_gives_the_same_stream(name: str) -> None:
    source = capture(name)
    for cut in range(len(source.framed) + 1):
        drop_usage, drop_progress = SWITCHES[cut % 4]
        run(source, [cut], raw=cut % 8 < 6, drop_usage=drop_usage, drop_progress=drop_progress)


@pytest.mark.parametrize("raw", [True, False], ids=["framed", "bare"])
@pytest.mark.parametrize(("drop_usage", "drop_progress"), SWITCHES)
def test_one_read_and_single_bytes_give_the_same_stream(raw: bool, drop_usage: bool, drop_progress: bool) -> None:
    for name in stream_names():
        source = capture(name)
        run(source, [], raw=raw, drop_usage=drop_usage, drop_progress=drop_progress)
        run(source, list(range(1, len(source.framed))), raw=raw, drop_usage=drop_usage, drop_progress=drop_progress)


@pytest.mark.parametrize("name", stream_names())
def test_reads_at_chunk_ends_give_the_same_codes_as_a_decode_of_every_event(name: str) -> None:
    source = capture(name)
    cuts = chunk_ends(source.framed)
    fast = run(source, cuts, raw=True, drop_usage=False, drop_progress=False)
    slow = [code for event in split_events(source.body)[0] for code in decoded_code(event)]
    assert [code for code, _ in fast.events] == slow


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_any_cuts_give_the_same_stream(data: st.DataObject) -> None:
    source = capture(data.draw(st.sampled_from(stream_names())))
    places = st.one_of(st.integers(0, len(source.framed)), st.sampled_from(chunk_ends(source.framed) or [0]))
    cuts = sorted(data.draw(st.lists(places, max_size=12)))
    raw, drop_usage, drop_progress = data.draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    run(source, cuts, raw=raw, drop_usage=drop_usage, drop_progress=drop_progress)


@pytest.mark.parametrize("name", stream_names())
def test_an_aligned_read_with_nothing_to_remove_passes_with_its_framing(name: str) -> None:
    source = capture(name)
    scanner = StreamScanner(ChunkedDecoder())
    for start, end in pairwise([0, *chunk_ends(source.framed)]):
        read = source.framed[start:end]
        if b"[DONE]" not in read and split_events(dechunk(read)[0])[1] == b"":
            assert scanner.feed(read) == read
        else:
            scanner.feed(read)


def chunk_ends(framed: bytes) -> list[int]:
    """Return the offsets behind every whole chunk but the last."""
    ends, position = [], 0
    while (line_end := framed.find(b"\r\n", position)) >= 0:
        size = int(framed[position:line_end], 16)
        position = line_end + 2 + size + 2
        if not size or position > len(framed):
            break
        ends.append(position)
    return ends


def decoded_code(event: bytes) -> list[int]:
    """Return the codes that a fresh scanner gives one event, which it has to decode."""
    scanner = StreamScanner(ChunkedDecoder(), raw=False)
    scanner.feed(b"%x\r\n%b\r\n" % (len(event), event))
    return [code for code, _ in scanner.events]
