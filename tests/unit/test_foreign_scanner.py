"""The scanner of other dialects: real captures cut at every byte, and what each event is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest

from router.hosts.events import StreamError
from router.hosts.foreign import ForeignScanner, is_event_stream, is_json_lines, whole_report
from router.hosts.native_scan import same_token
from router.http1 import BodyDecoder, ChunkedDecoder, EofDecoder, LengthDecoder
from router.telemetry.host_report import SOURCE_DURATIONS, read_report
from router.telemetry.records import Kind, TokenFlag
from tests.captures import capture, data_of, dechunk, split_events

CAPTURES = (
    "llamacpp/responses_stream",
    "llamacpp/anthropic_messages_stream",
    "llamacpp/native_completion_stream",
    "vllm/responses_stream",
    "vllm/anthropic_messages_stream",
    "transformers_serve/responses_stream",
)
ANTHROPIC_KINDS = [Kind.HEAD, Kind.HEAD, *[Kind.TEXT] * 4, Kind.HEAD, Kind.FINISH, Kind.FINISH]
RESPONSES_KINDS = [*[Kind.HEAD] * 4, *[Kind.TEXT] * 4, *[Kind.HEAD] * 3, Kind.FINISH]
KINDS = {
    "responses_stream": RESPONSES_KINDS,
    "anthropic_messages_stream": ANTHROPIC_KINDS,
    "native_completion_stream": [*[Kind.TEXT] * 4, Kind.FINISH],
}


def sse(name: str, data: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), json.dumps(data).encode())


def chunked(events: Iterable[bytes], *, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events) + end


def kinds_of(scanner: ForeignScanner) -> list[Kind]:
    return [Kind(code & 0xFF) for code, _ in scanner.events]


def scan(events: list[bytes], *, lines: bool = False) -> ForeignScanner:
    """Feed whole events in one read, to their proper end."""
    scanner = ForeignScanner(ChunkedDecoder(), lines=lines)
    assert dechunk(scanner.feed(chunked(events)))[0] == b"".join(events), "the client gets the host's bytes"
    assert scanner.finish() == b""
    return scanner


def run(framed: bytes, cuts: list[int], decoder: BodyDecoder, *, raw: bool) -> tuple[ForeignScanner, bytes]:
    """Feed a body in pieces; return the scanner and what the client got, without framing."""
    scanner = ForeignScanner(decoder, raw=raw)
    forwarded = b""
    for start, end in pairwise([0, *cuts, len(framed)]):
        written = scanner.feed(framed[start:end])
        payload = dechunk(written)[0] if raw else written
        assert payload.endswith(b"\n\n") or not payload, "every write holds whole events only"
        forwarded += payload
    scanner.finish()
    return scanner, forwarded


# ---------------------------------------------------------------- captures
@pytest.mark.parametrize("name", CAPTURES)
@pytest.mark.parametrize("raw", [True, False], ids=["framed", "bare"])
def test_a_capture_cut_at_any_byte_is_the_same_stream(name: str, raw: bool) -> None:
    source = capture(name)
    sizes = [len(event) for event in split_events(source.body)[0]]
    for cut in range(len(source.framed) + 1):
        scanner, forwarded = run(source.framed, [cut], ChunkedDecoder(), raw=raw)
        assert forwarded == source.body, "the client gets the host's bytes, all and no others"
        assert [size for _, size in scanner.events] == sizes, "every event has exactly one record"
        assert kinds_of(scanner) == KINDS[name.partition("/")[2]]
        assert scanner.content_count == 4
        assert scanner.ended
        assert scanner.succeeded


@pytest.mark.parametrize("name", CAPTURES)
def test_reads_at_event_boundaries_pass_with_their_framing(name: str) -> None:
    source = capture(name)
    events = split_events(source.body)[0]
    scanner = ForeignScanner(ChunkedDecoder())
    for event in events:
        read = chunked([event], end=b"")
        assert scanner.feed(read) == read


@pytest.mark.parametrize(
    ("name", "n_in", "n_out", "n_cached"),
    [
        ("llamacpp/responses_stream", 32, 4, 31),
        ("llamacpp/anthropic_messages_stream", 32, 4, 31),  # 1 read anew and 31 from the cache
        ("llamacpp/native_completion_stream", 4, 4, 0),
        ("vllm/responses_stream", 11, 4, 0),
        ("vllm/anthropic_messages_stream", 11, 4, 0),
    ],
)
def test_the_counts_of_a_capture_are_read(name: str, n_in: int, n_out: int, n_cached: int) -> None:
    source = capture(name)
    scanner, _ = run(source.framed, [], ChunkedDecoder(), raw=True)
    report = read_report(scanner.usage, scanner.timings, scanner.metrics)
    assert report.has_usage
    assert (report.n_in, report.n_out, report.n_cached) == (n_in, n_out, n_cached)


def test_timings_of_llama_cpp_are_read_where_they_stand() -> None:
    for name in ("responses_stream", "native_completion_stream"):
        scanner, _ = run(capture(f"llamacpp/{name}").framed, [], ChunkedDecoder(), raw=True)
        assert read_report(scanner.usage, scanner.timings, None).predicted_n == 4


# ---------------------------------------------------------------- Anthropic
def test_blocks_of_thinking_and_of_tools() -> None:
    def delta(**fields: Any) -> bytes:
        return sse("content_block_delta", {"type": "content_block_delta", "index": 0, "delta": fields})

    events = [
        sse("message_start", {"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 1}}}),
        sse("ping", {"type": "ping"}),
        delta(type="thinking_delta", thinking="hm"),
        delta(type="signature_delta", signature="x"),
        delta(type="text_delta", text=""),
        delta(type="text_delta", text='"thinking_delta"'),
        delta(type="input_json_delta", partial_json=""),
        delta(type="input_json_delta", partial_json="{"),
        delta(type="some_new_delta", what="?"),
        sse("message_delta", {"delta": {"stop_reason": None}, "usage": {"output_tokens": 7}}),
        sse("message_delta", {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}}),
        sse("message_stop", {"type": "message_stop"}),
    ]
    scanner = scan(events)
    assert kinds_of(scanner) == [
        *(Kind.HEAD, Kind.KEEPALIVE, Kind.REASONING, Kind.HEAD, Kind.HEAD, Kind.TEXT, Kind.HEAD, Kind.TOOL_CALL),
        *(Kind.TEXT, Kind.USAGE, Kind.FINISH, Kind.FINISH),
    ]
    flags = [TokenFlag(code >> 8 & 0xFF) for code, _ in scanner.events]
    assert TokenFlag.USAGE in flags[9]
    assert TokenFlag.USAGE | TokenFlag.FINISH in flags[10]
    assert all(TokenFlag.HOST_EVENT in each for each in flags)
    report = read_report(scanner.usage, None, None)
    assert (report.n_in, report.n_out) == (5, 9), "the start's counts stand where the end has none"


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (sse("error", {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}), "Overloaded"),
        (b'data: {"type":"error","error":{"message":"no name"}}\n\n', "no name"),
        (sse("error", {"type": "error", "code": "x", "message": "of a response"}), "of a response"),
        (sse("response.failed", {"response": {"error": {"code": "x", "message": "failed"}}}), "failed"),
        (b'data: {"error":{"message":"plain"}}\n\n', "plain"),
        (b"event: error\ndata: no JSON\n\n", "no JSON"),
        (b'data: {"error":"a text"}\n\n', "a text"),
    ],
)
def test_an_error_event_is_an_error_and_passes(event: bytes, said: str) -> None:
    scanner = scan([event])
    assert kinds_of(scanner) == [Kind.ERROR]
    assert scanner.error is not None
    assert said in scanner.error.decode()
    assert not scanner.succeeded


# ---------------------------------------------------------------- OpenAI's responses
def test_deltas_of_responses() -> None:
    names = {
        "response.output_text.delta": Kind.TEXT,
        "response.refusal.delta": Kind.TEXT,
        "response.reasoning_text.delta": Kind.REASONING,
        "response.reasoning_summary_text.delta": Kind.REASONING,
        "response.function_call_arguments.delta": Kind.TOOL_CALL,
        "response.something_new.delta": Kind.TEXT,
    }
    scanner = scan([sse(name, {"type": name, "delta": "x"}) for name in names])
    assert kinds_of(scanner) == list(names.values())
    assert scanner.content_count == len(names)
    empty = scan([sse(name, {"type": name, "delta": ""}) for name in names])
    assert set(kinds_of(empty)) == {Kind.HEAD}


def test_a_response_that_is_incomplete_has_ended_all_the_same() -> None:
    scanner = scan([sse("response.incomplete", {"response": {"usage": {"input_tokens": 3, "output_tokens": 2}}})])
    assert kinds_of(scanner) == [Kind.FINISH]
    assert scanner.finish_count == 1
    assert read_report(scanner.usage, None, None).n_out == 2


# ---------------------------------------------------------------- Ollama and lines
OLLAMA_END = {
    "done": True,
    "done_reason": "stop",
    "message": {"role": "assistant", "content": ""},
    "prompt_eval_count": 26,
    "prompt_eval_duration": 130_000_000,
    "eval_count": 3,
    "eval_duration": 4_500_000,
}


def line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def test_lines_of_ollama() -> None:
    events = [
        line({"message": {"role": "assistant", "content": "", "thinking": "hm"}, "done": False}),
        line({"message": {"content": "Hi"}, "done": False}),
        line({"message": {"content": "", "tool_calls": [{"function": {"name": "f"}}]}, "done": False}),
        line({"response": "Hi", "done": False}),
        line({"response": "", "thinking": "hm", "done": False}),
        line({"message": {"content": ""}, "done": False}),
        b"\n",
        line({"status": "something else"}),
        b"no JSON\n",
        line(OLLAMA_END),
    ]
    scanner = scan(events, lines=True)
    assert kinds_of(scanner) == [
        *(Kind.REASONING, Kind.TEXT, Kind.TOOL_CALL, Kind.TEXT, Kind.REASONING, Kind.HEAD, Kind.KEEPALIVE),
        *(Kind.TEXT, Kind.TEXT, Kind.FINISH),
    ]
    assert scanner.succeeded
    report = read_report(scanner.usage, scanner.timings, None)
    assert (report.n_in, report.n_out, report.source) == (26, 3, SOURCE_DURATIONS)
    assert (report.prompt_ms, report.predicted_ms) == (130.0, 4.5)


@pytest.mark.parametrize("raw", [True, False], ids=["framed", "bare"])
def test_lines_cut_at_any_byte(raw: bool) -> None:
    events = [line({"response": text, "done": False}) for text in ("one", " tw\u00f6", "\n")] + [line(OLLAMA_END)]
    framed = chunked(events)
    for cut in range(len(framed) + 1):
        scanner = ForeignScanner(ChunkedDecoder(), raw=raw, lines=True)
        parts = [scanner.feed(framed[:cut]), scanner.feed(framed[cut:])]
        got = b"".join(dechunk(part)[0] if raw else part for part in parts)
        assert got == b"".join(events)
        assert [size for _, size in scanner.events] == list(map(len, events))


# ---------------------------------------------------------------- unknown, odd and broken
def test_an_event_of_an_unknown_dialect_counts_as_text() -> None:
    events = [
        sse("message.delta", {"type": "message.delta", "content": "x"}),
        b"data: plain text\n\n",
        b"data: [1]\n\n",
    ]
    scanner = scan([*events, b": comment\n\n", b"id: 7\n\n"])
    assert kinds_of(scanner) == [*[Kind.TEXT] * 3, Kind.KEEPALIVE, Kind.TEXT]
    assert scanner.succeeded, "an unknown dialect succeeds by the clean end of its body"


def test_fields_of_other_types_than_expected_do_no_harm() -> None:
    odd: list[Any] = [None, 1, "x", [], {}, [{}], {"type": []}, {"type": {"a": 1}}, {"content": {"a": 1}}]
    for value in odd:
        for name in ("content_block_delta", "message_start", "message_delta", "response.completed", "response.failed"):
            keys = ("delta", "message", "response", "usage", "error", "type", "done")
            scan([sse(name, dict.fromkeys(keys, value)), sse(name, value)])
        plain = [line(dict.fromkeys(("message", "response", "done", "stop", "eval_count"), value)), line(value)]
        scan(plain, lines=True)
    nested = b"[" * 5000 + b"]" * 5000
    scan([b'data: {"delta":%b}\n\n' % nested, b"event: message_start\ndata: %b\n\n" % nested])


def test_done_waits_for_the_very_end() -> None:
    scanner = ForeignScanner(ChunkedDecoder())
    assert (
        dechunk(scanner.feed(chunked([b'data: {"text":"x"}\n\n', b"data: [DONE]\n\n"])))[0] == b'data: {"text":"x"}\n\n'
    )
    assert scanner.sentinel == b"data: [DONE]\n\n"
    assert kinds_of(scanner) == [Kind.TEXT, Kind.SENTINEL]
    assert scanner.succeeded


@pytest.mark.parametrize(("tail", "lines"), [(b"data: last", False), (b'{"done":true}', True), (b"\n", False)])
def test_what_stands_behind_the_last_boundary_goes_out_last_and_as_it_is(tail: bytes, lines: bool) -> None:
    scanner = ForeignScanner(ChunkedDecoder(), lines=lines)
    begun = b"data: x\n\n" if not lines else b'{"done":false}\n'
    assert dechunk(scanner.feed(chunked([begun, tail])))[0] == begun
    assert scanner.finish() == b""
    assert scanner.sentinel == tail
    assert scanner.succeeded
    assert len(scanner.events) == (1 if tail == b"\n" else 2)


def test_an_answer_that_only_the_connection_ends_must_mark_its_end_where_its_dialect_does() -> None:
    text = sse("content_block_delta", {"delta": {"type": "text_delta", "text": "x"}})
    stop = sse("message_stop", {"type": "message_stop"})
    for events, whole in (([text], False), ([text, stop], True), ([b"data: unknown\n\n"], True)):
        scanner = ForeignScanner(EofDecoder())
        scanner.feed(b"".join(events))
        scanner.finish()
        assert scanner.succeeded is whole


def test_a_body_that_is_cut_off_has_not_succeeded() -> None:
    source = capture("llamacpp/anthropic_messages_stream").framed
    scanner = ForeignScanner(ChunkedDecoder())
    scanner.feed(source[: source.index(b"0\r\n\r\n")])
    assert scanner.finish_count == 1
    assert not scanner.succeeded, "success is the proper end of the body"


def test_a_body_of_known_length_is_framed_anew() -> None:
    body = b"data: a\n\ndata: b\n\n"
    scanner = ForeignScanner(LengthDecoder(len(body)))
    assert dechunk(scanner.feed(body[:11]) + scanner.feed(body[11:]))[0] == body
    assert scanner.ended


def test_an_event_without_end_is_refused() -> None:
    scanner = ForeignScanner(ChunkedDecoder(), event_bytes_max=4096)
    with pytest.raises(StreamError, match="4096"):
        scanner.feed(chunked([b"data: " + b"x" * 5000]))


def test_the_short_cut_of_the_token_path_is_never_taken() -> None:
    scanner = ForeignScanner(ChunkedDecoder())
    read = chunked([b'data: {"content":"x"}\n\n'], end=b"")
    scanner.feed(read)
    scanner.learn()
    assert not same_token(read, scanner.prefix, scanner.suffix)


# ---------------------------------------------------------------- formats and whole answers
def test_formats_are_told_by_the_content_type() -> None:
    assert is_event_stream(b"text/event-stream")
    assert is_event_stream(b"Text/Event-Stream; charset=utf-8")
    assert is_json_lines(b"application/x-ndjson")
    for other in (b"application/json", b"", b"text/event-streams", b"\xff"):
        assert not is_event_stream(other)
        assert not is_json_lines(other)


@pytest.mark.parametrize(
    ("answer", "counts"),
    [
        (
            {"type": "message", "usage": {"input_tokens": 5, "output_tokens": 2, "cache_read_input_tokens": 4}},
            (9, 2, 4),
        ),
        ({"object": "response", "usage": {"input_tokens": 5, "output_tokens": 2}}, (5, 2, 0)),
        ({"object": "list", "usage": {"prompt_tokens": 8, "total_tokens": 8}, "results": []}, (8, 0, 0)),
        ({"input_tokens": 14}, (14, 0, 0)),
        ({"response": "x", "done": True, "prompt_eval_count": 3, "eval_count": 1}, (3, 1, 0)),
        ({"content": "x", "stop": True, "tokens_evaluated": 6, "tokens_predicted": 2}, (6, 2, 0)),
    ],
)
def test_the_counts_of_whole_answers(answer: dict[str, Any], counts: tuple[int, int, int]) -> None:
    report = read_report(*whole_report(json.dumps(answer).encode()))
    assert report.has_usage
    assert (report.n_in, report.n_out, report.n_cached) == counts


@pytest.mark.parametrize("body", [b"", b"[1]", b"text", b'{"usage":1}', b"{}", b'{"usage":{"input_tokens":-1}}'])
def test_whole_answers_without_counts(body: bytes) -> None:
    report = read_report(*whole_report(body))
    assert (report.n_in, report.n_out) == (0, 0)


def test_every_event_of_the_captures_has_a_kind_that_its_own_data_confirms() -> None:
    for name in CAPTURES:
        scanner, _ = run(capture(name).framed, [], ChunkedDecoder(), raw=True)
        for event, kind in zip(split_events(capture(name).body)[0], kinds_of(scanner), strict=True):
            data = data_of(event)
            assert data is not None
            has_text = b"text_delta" in data or b"output_text.delta" in data or b'"stop":false' in data
            assert (kind == Kind.TEXT) == has_text, (name, data)
