"""The stream scanner, one format and one trap at a time."""

from __future__ import annotations

import json

import pytest

from router import native
from router.hosts import scanner as scanner_module
from router.hosts.scanner import StreamError, StreamScanner, event_code
from router.http1 import BodyDecoder, ChunkedDecoder, EofDecoder, LengthDecoder, ProtocolError, chunk
from router.telemetry.records import Kind, TokenFlag
from tests.captures import capture, dechunk

DONE = b"data: [DONE]\n\n"
USAGE = b'data: {"choices":[],"usage":{"completion_tokens":2}}\n\n'


@pytest.fixture(autouse=True, params=["c", "plain"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs with the native scan and without."""
    if request.param == "plain":
        monkeypatch.setattr(scanner_module, "_scan", None)
    elif native.scan is None:
        pytest.skip("the native scan is not compiled here")


def token(text: str, *, index: int = 0, behind: str = "") -> bytes:
    return b'data: {"choices":[{"index":%d,"delta":{"content":%b}%b}],"id":"c"}\n\n' % (
        index,
        json.dumps(text).encode(),
        behind.encode(),
    )


def finish(*, index: int = 0) -> bytes:
    return b'data: {"choices":[{"index":%d,"delta":{},"finish_reason":"stop"}],"id":"c"}\n\n' % index


def scan(*events: bytes, decoder: BodyDecoder | None = None, **switches: bool) -> StreamScanner:
    """Feed each event as a chunk and a read of its own."""
    scanner = StreamScanner(decoder or ChunkedDecoder(), **switches)
    for event in events:
        scanner.feed(chunk(event) if isinstance(scanner._decoder, ChunkedDecoder) else event)
    return scanner


def kinds(scanner: StreamScanner) -> list[Kind]:
    return [Kind(code & 0xFF) for code, _ in scanner.events]


# ------------------------------------------------------------ formats
@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', Kind.TEXT),
        (b'data:{"choices":[{"delta":{"content":"a"}}]}\n\n', Kind.TEXT),
        (b'data: {"choices":[{"delta":{"content":"a"}}]}\r\n\r\n', Kind.TEXT),
        (b'data: {"choices": [{"text": "a"}]}\n\n', Kind.TEXT),
        (b'data: {"choices":[{"delta":{"refusal":"no"}}]}\n\n', Kind.TEXT),
        (b'data: {"choices":[{"delta":{"reasoning":"a"}}]}\n\n', Kind.REASONING),
        (b'data: {"choices":[{"delta":{"reasoning_content":"a","content":null}}]}\n\n', Kind.REASONING),
        (b'data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}\n\n', Kind.TOOL_CALL),
        (b'data: {"choices":[{"delta":{"function_call":{"name":"f"}}}]}\n\n', Kind.TOOL_CALL),
        (b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n', Kind.HEAD),
        (b'data: {"choices":[{"delta":{"content":null}}]}\n\n', Kind.HEAD),
        (b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n', Kind.FINISH),
        (b'data: {"choices":[{"delta":{},"finish_reason":""}]}\n\n', Kind.HEAD),
        (USAGE, Kind.USAGE),
        (b'data: {"choices":[],"usage":null}\n\n', Kind.HEAD),
        (b": keep-alive\n\n", Kind.KEEPALIVE),
        (b":\n\n", Kind.KEEPALIVE),
        (b'event: message\ndata: {"choices":[{"delta":{"content":"a"}}]}\n\n', Kind.TEXT),
        (b'data: {"choices":\ndata: [{"delta":{"content":"a"}}]}\n\n', Kind.TEXT),
        (b'data: {"error": {"message": "x", "code": 500}}\n\n', Kind.ERROR),
        (b'data: {"error":"x"}\n\n', Kind.ERROR),
        (b"event: error\ndata: it broke\n\n", Kind.ERROR),
        (b'event: error\ndata: {"message":"x"}\n\n', Kind.ERROR),
        (b'data: {"error":null,"choices":[{"delta":{"content":"a"}}]}\n\n', Kind.TEXT),
        (b"event: ping\n\n", Kind.HEAD),
        (b"data: not JSON\n\n", Kind.HEAD),
        (b"data: null\n\n", Kind.HEAD),
        (b'data: "\xff"\n\n', Kind.HEAD),
        (b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n', Kind.HEAD),
        (b'data: {"a":' + b"[" * 100_000 + b"\n\n", Kind.HEAD),
        (b'data: {"choices":7}\n\n', Kind.HEAD),
        (b'data: {"type":"message_delta","usage":{"output_tokens":4}}\n\n', Kind.USAGE),
        (DONE, Kind.SENTINEL),
        (b"data:[DONE]\r\n\r\n", Kind.SENTINEL),
    ],
)
def test_each_form_of_event_gets_its_kind_and_one_record(event: bytes, kind: Kind) -> None:
    scanner = StreamScanner(ChunkedDecoder(), drop_usage=False)
    out = scanner.feed(chunk(event))
    assert kinds(scanner) == [kind]
    assert scanner.events[0][1] == len(event)
    assert out == (b"" if kind is Kind.SENTINEL else chunk(event))


def test_a_record_code_carries_choice_and_flags() -> None:
    event = b'data: {"choices":[{"index":2,"delta":{"content":"a"},"finish_reason":"stop"}],"usage":{"x":1}}\n\n'
    flags = TokenFlag.HOST_EVENT | TokenFlag.FINISH | TokenFlag.USAGE
    assert scan(event).events[0][0] == Kind.TEXT | flags << 8 | 2 << 32 == event_code(Kind.TEXT, 6, 2)


def test_a_choice_index_beyond_all_reason_stays_in_its_field() -> None:
    scanner = scan(
        b'data: {"choices":[{"index":99999999999999999999,"delta":{"content":"a"}}]}\n\n', token("b", index=-1)
    )
    assert all(code < 1 << 48 for code, _ in scanner.events)
    assert scanner.choice_count <= 1 << 16


def test_several_events_of_one_chunk_each_have_a_record() -> None:
    scanner = scan(token("a") + token("b") + finish())
    assert kinds(scanner) == [Kind.TEXT, Kind.TEXT, Kind.FINISH]


def test_an_event_over_two_chunks_of_one_read_passes_with_its_framing() -> None:
    event = token("abc")
    read = chunk(event[:20]) + chunk(event[20:])
    scanner = StreamScanner(ChunkedDecoder())
    assert scanner.feed(read) == read
    assert kinds(scanner) == [Kind.TEXT]


def test_an_event_over_two_reads_waits_until_it_is_whole() -> None:
    event = token("abc")
    scanner = StreamScanner(ChunkedDecoder())
    assert scanner.feed(chunk(event[:-1])) == b""
    assert scanner.feed(chunk(event[-1:])) == chunk(event)


@pytest.mark.parametrize("decoder", [LengthDecoder(10_000), EofDecoder()], ids=["length", "eof"])
def test_a_body_without_chunks_is_framed_event_by_event(decoder: BodyDecoder) -> None:
    scanner = StreamScanner(decoder)
    assert scanner.feed(token("a") + token("b")[:9]) == chunk(token("a"))
    assert scanner.feed(token("b")[9:]) == chunk(token("b"))
    assert not scanner.ended


def test_a_length_body_ends_with_its_length_and_keeps_what_is_behind() -> None:
    body = token("a") + finish()
    scanner = StreamScanner(LengthDecoder(len(body)), raw=False)
    assert scanner.feed(body + b"HTTP/1.1") == body
    assert scanner.ended
    assert scanner.surplus == b"HTTP/1.1"


def test_bare_output_has_no_framing_and_counts_each_event_once() -> None:
    scanner = StreamScanner(ChunkedDecoder(), raw=False)
    for text in "abc":
        assert scanner.feed(chunk(token(text))) == token(text)
    assert scanner.feed(chunk(token("d")) + chunk(finish())) == token("d") + finish()
    assert len(scanner.events) == 5
    assert scanner.content_count == 4


def test_the_last_chunk_is_never_passed_on() -> None:
    scanner = scan(token("a"))
    assert scanner.feed(b"0\r\n\r\n") == b""
    assert scanner.ended
    scanner = scan(token("a"))
    assert dechunk(scanner.feed(chunk(token("b")) + b"0\r\nx: y\r\n\r\nmore")) == (token("b"), False)
    assert scanner.surplus == b"more"


# ------------------------------------------------------------ removal
def test_usage_asked_for_by_the_router_is_removed_and_kept() -> None:
    scanner = StreamScanner(ChunkedDecoder(), drop_usage=True)
    assert scanner.feed(chunk(finish() + USAGE)) == chunk(finish())
    assert scanner.usage == b'{"completion_tokens":2}'
    assert [bool(code >> 8 & TokenFlag.REMOVED) for code, _ in scanner.events] == [False, True]


def test_usage_in_the_middle_of_a_stream_is_removed_and_does_not_end_it() -> None:
    scanner = scan(token("a"), token("b", index=1), finish(index=1), USAGE, drop_usage=True)
    assert not scanner.succeeded, "choice 0 goes on"
    assert scanner.feed(chunk(token("c"))) == chunk(token("c"))
    scanner.feed(chunk(finish()))
    assert scanner.succeeded


def test_usage_on_a_token_stays_with_it() -> None:
    event = b'data: {"choices":[{"delta":{"content":"a"}}],"usage":{"completion_tokens":1}}\n\n'
    scanner = StreamScanner(ChunkedDecoder(), drop_usage=True)
    assert scanner.feed(chunk(event)) == chunk(event)


def test_progress_asked_for_by_the_router_is_removed_and_the_role_stays() -> None:
    role = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null}}]}\n\n'
    progress = role.replace(b"]}\n", b'],"prompt_progress":{"processed":1}}\n')
    scanner = StreamScanner(ChunkedDecoder(), drop_progress=True)
    assert scanner.feed(chunk(progress) + chunk(role)) == chunk(role)
    assert scan(progress).events[0][0] >> 8 & TokenFlag.REMOVED == 0


# ------------------------------------------------------------ text that looks like something else
@pytest.mark.parametrize(
    "text",
    [
        'a "quoted" word',
        "ends in a backslash\\",
        '\\"',
        '"finish_reason":"stop"',
        "data: [DONE]",
        "data: [DONE]\n\n",
        '"}}]}\n\ndata: [DONE]\n\n',
        "\r\n\r\n",
        "🎉",
    ],
)
def test_text_that_looks_like_framing_is_text(text: str) -> None:
    scanner = scan(token("a"), token("b"))
    for event in (token(text), token("c")):
        assert scanner.feed(chunk(event)) == chunk(event)
    assert kinds(scanner) == [Kind.TEXT] * 4
    assert scanner.sentinel is None
    assert scanner.finish_count == 0


def test_empty_content_between_tokens_is_no_content() -> None:
    scanner = scan(token("a"), token(""), token("b"))
    assert kinds(scanner) == [Kind.TEXT, Kind.HEAD, Kind.TEXT]
    assert scanner.content_count == 2


def test_a_stream_that_alternates_choices_keeps_them_apart() -> None:
    scanner = scan(*(token("x", index=index) for index in (0, 1, 0, 1, 1, 0)))
    assert [code >> 32 for code, _ in scanner.events] == [0, 1, 0, 1, 1, 0]
    assert scanner.choice_count == 2


def test_what_follows_a_familiar_token_is_still_looked_at() -> None:
    call = b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0}]}}],"id":"c"}\n\n'
    ends = token("b").replace(b"}}]", b'},"finish_reason":"stop"}]')
    scanner = scan(token("a"), token("b"), call, token("c"), ends, token("d", behind=',"logprobs":null'))
    assert kinds(scanner) == [Kind.TEXT, Kind.TEXT, Kind.TOOL_CALL, Kind.TEXT, Kind.TEXT, Kind.TEXT]
    assert scanner.finish_count == 1


def test_many_tokens_of_one_read_are_taken_without_decoding() -> None:
    scanner = scan(token("a"))
    read = b"".join(chunk(token(str(number))) for number in range(500))
    assert scanner.feed(read) == read
    assert scanner.content_count == 501
    assert scanner.events[-1] == (event_code(Kind.TEXT), len(token("499")))


@pytest.mark.parametrize("size", [b"0x%x", b"+%x", b"0_%x", b" %x", b"-%x"])
def test_a_chunk_size_that_only_python_would_read_is_refused(size: bytes) -> None:
    scanner = scan(token("a"))
    event = token("b")
    with pytest.raises(ProtocolError):
        scanner.feed(size % len(event) + b"\r\n" + event + b"\r\n")


# ------------------------------------------------------------ outcome
def test_done_without_a_finish_reason_is_no_success() -> None:
    assert not scan(token("a"), DONE).succeeded


def test_a_finish_reason_without_done_is_success() -> None:
    scanner = scan(token("a"), finish())
    assert scanner.succeeded
    assert scanner.sentinel is None


def test_one_choice_that_ends_twice_does_not_end_another() -> None:
    assert not scan(token("a"), token("b", index=1), finish(), finish()).succeeded


def test_done_behind_an_error_is_no_success() -> None:
    error = b'data: {"error": {"message": "the engine died", "code": 500}}\n\n'
    scanner = scan(token("a"), finish(), error, DONE)
    assert not scanner.succeeded
    assert scanner.error == b'{"message": "the engine died", "code": 500}'
    assert scanner.sentinel == DONE


def test_timings_and_metrics_of_the_last_events_are_kept() -> None:
    last = b'data: {"choices":[],"usage":{"a":1},"timings":{"b":2},"metrics":{"c":3}}\n\n'
    scanner = scan(token("a"), last)
    assert (scanner.usage, scanner.timings, scanner.metrics) == (b'{"a":1}', b'{"b":2}', b'{"c":3}')


# ------------------------------------------------------------ bounds and ends
def test_an_event_over_the_bound_is_refused() -> None:
    scanner = StreamScanner(ChunkedDecoder(), event_bytes_max=1000)
    for _ in range(10):
        scanner.feed(chunk(b"x" * 100))
    with pytest.raises(StreamError, match="1000 bytes"):
        scanner.feed(chunk(b"x"))


def test_a_large_event_in_small_reads_comes_out_whole() -> None:
    event = token("x" * 300_000)
    scanner = StreamScanner(ChunkedDecoder())
    framed = chunk(event)
    out = b"".join(scanner.feed(framed[start : start + 500]) for start in range(0, len(framed), 500))
    assert dechunk(out)[0] == event
    assert kinds(scanner) == [Kind.TEXT]


def test_an_event_end_cut_at_every_byte_is_found() -> None:
    event = token("a")[:-2] + b"\r\n\r\n"
    for cut in range(1, len(event)):
        scanner = StreamScanner(EofDecoder(), raw=False)
        assert scanner.feed(event[:cut]) + scanner.feed(event[cut:]) == event


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_a_last_event_that_lacks_only_its_blank_line_gets_it(ending: bytes) -> None:
    scanner = StreamScanner(EofDecoder(), raw=False)
    assert scanner.feed(finish()[:-2] + ending) == b""
    assert scanner.finish() == finish()
    assert scanner.succeeded
    assert scanner.finish() == b"", "it is taken once"


def test_done_without_its_blank_line_is_done() -> None:
    scanner = StreamScanner(EofDecoder(), raw=False)
    scanner.feed(finish() + DONE[:-1])
    assert scanner.finish() == b""
    assert scanner.sentinel == DONE


def test_an_event_cut_within_is_dropped_and_has_no_record() -> None:
    scanner = StreamScanner(EofDecoder())
    scanner.feed(token("a") + token("b")[:30])
    assert scanner.finish() == b""
    assert kinds(scanner) == [Kind.TEXT]


def test_payloads_are_kept_for_folding() -> None:
    scanner = StreamScanner(ChunkedDecoder(), keep_payloads=True)
    for event in (b":\n\n", token("a"), token("b"), USAGE, DONE):
        scanner.feed(chunk(event))
    assert scanner.payloads == [event[6:-2] for event in (token("a"), token("b"), USAGE)]


# ------------------------------------------------------------ whole captures
def test_the_engine_that_died_is_an_error_and_done_behind_it_changes_nothing() -> None:
    scanner = StreamScanner(ChunkedDecoder())
    scanner.feed(capture("vllm/midstream_engine_killed").framed)
    assert scanner.error is not None
    assert scanner.sentinel == DONE
    assert scanner.ended
    assert not scanner.succeeded


def test_the_host_that_was_killed_neither_ends_nor_succeeds() -> None:
    scanner = StreamScanner(ChunkedDecoder())
    scanner.feed(capture("llamacpp/midstream_host_killed").framed)
    assert not scanner.ended
    assert not scanner.succeeded
    assert scanner.error is None


def test_a_host_without_done_succeeds_by_its_finish_reason() -> None:
    scanner = StreamScanner(ChunkedDecoder())
    scanner.feed(capture("transformers_serve/chat_stream_usage").framed)
    assert scanner.succeeded
    assert scanner.ended
    assert scanner.sentinel is None
    assert scanner.usage is not None
