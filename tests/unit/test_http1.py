"""HTTP/1.1 framing: what is taken, what is refused, and that cuts do not matter."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import native
from router.http1 import (
    ChunkedDecoder,
    EofDecoder,
    HeadMemo,
    LengthDecoder,
    ProtocolError,
    chunk,
    declared_length,
    parse_request_head,
    parse_response_head,
    plain_split_head,
    response_decoder,
    split_head,
)


# ------------------------------------------------------------ request heads
def request(*lines: bytes, version: bytes = b"1.1", method: bytes = b"POST") -> bytes:
    return b"\r\n".join([method + b" /v1/models?x=1 HTTP/" + version, *lines, b"", b""])


def test_a_request_head_gives_its_parts() -> None:
    head = parse_request_head(request(b"Host: a", b"X-Request-ID:  7 ", b"content-length: 12"))
    assert (head.method, head.url, head.minor) == (b"POST", b"/v1/models?x=1", 1)
    assert head.headers == {b"host": b"a", b"x-request-id": b"7", b"content-length": b"12"}
    assert head.length == 12
    assert not head.chunked
    assert head.keep_alive


def test_chunked_is_found_behind_other_codings() -> None:
    head = parse_request_head(request(b"Transfer-Encoding: gzip, Chunked"))
    assert head.chunked
    assert head.length is None


@pytest.mark.parametrize("method", [b"GET", b"POST"])
@pytest.mark.parametrize("body", [b"content-length: 0", b"content-length: 5", b"x: y"])
@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [
        (b"1.1", b"x-none: 1", True),
        (b"1.1", b"Connection: close", False),
        (b"1.0", b"x-none: 1", False),
        (b"1.0", b"Connection: keep-alive", True),
    ],
)
def test_keep_alive_is_what_the_client_said_with_and_without_a_body(
    method: bytes, body: bytes, version: bytes, connection: bytes, kept: bool
) -> None:
    head = parse_request_head(request(body, connection, version=version, method=method))
    assert head.keep_alive is kept
    assert head.minor == int(version[-1:])


def test_an_upgrade_is_ignored() -> None:
    head = parse_request_head(request(b"Connection: Upgrade", b"Upgrade: websocket", method=b"GET"))
    assert head.method == b"GET"


@pytest.mark.parametrize(
    "lines",
    [
        [b"content-length: 3", b"transfer-encoding: chunked"],
        [b"transfer-encoding: chunked", b"content-length: 3"],
        [b"content-length: 3", b"content-length: 3"],
        [b"content-length: 3", b"content-length: 4"],
        [b"content-length: 3, 3"],
        [b"content-length: +3"],
        [b"content-length: -3"],
        [b"content-length: 0x3"],
        [b"content-length: 3 3"],
        [b"content-length:"],
        [b"content-length: 99999999999999999999999"],
        [b"transfer-encoding: gzip"],
        [b"transfer-encoding: xchunked"],
        [b"transfer-encoding: chunked, gzip"],
        [b"transfer-encoding: chunked, chunked"],
        [b"transfer-encoding: chunked", b"transfer-encoding: gzip"],
        [b"x: folded", b" line"],
        [b"x: a\x00b"],
        [b"x\x00: b"],
        [b"x : b"],
        [b": b"],
        [b"no colon"],
        [b"x: bare\rreturn"],
    ],
)
def test_an_ambiguous_or_broken_head_is_refused(lines: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        parse_request_head(request(*lines))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n\r\n",
        b"GET /\r\n\r\n",
        b"get / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/0.9\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /a b HTTP/1.1\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\nx: y\n\n",
        b"GET / HTTP/1.1\r\nx: y\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_request_head(data)


@given(st.binary(max_size=80))
def test_noise_is_refused_or_parsed_and_nothing_else(noise: bytes) -> None:
    for parse in (parse_request_head, parse_response_head):
        for data in (noise, b"GET / HTTP/1.1\r\n" + noise, b"HTTP/1.1 200 OK\r\n" + noise + b"\r\n\r\n"):
            try:
                parse(data)
            except ProtocolError:
                continue


# ------------------------------------------------------------ response heads
def response(*lines: bytes, status: bytes = b"1.1 200 OK") -> bytes:
    return b"\r\n".join([b"HTTP/" + status, *lines, b"", b""])


def test_a_response_head_gives_its_parts() -> None:
    head = parse_response_head(response(b"Content-Type: text/event-stream", b"Transfer-Encoding: chunked"))
    assert (head.status, head.reason, head.minor) == (200, b"OK", 1)
    assert head.chunked
    assert head.headers[b"content-type"] == b"text/event-stream"


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        (response(b"content-length: 3"), True),
        (response(b"content-length: 0", b"connection: close"), False),
        (response(b"connection: close", status=b"1.1 204 No Content"), False),
        (response(), False),
        (response(b"content-length: 3", status=b"1.0 200 OK"), False),
    ],
)
def test_keep_alive_of_a_response(data: bytes, kept: bool) -> None:
    assert parse_response_head(data).keep_alive is kept


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        response(status=b"2.0 200 OK"),
        response(status=b"1.1 20x OK"),
        response(status=b"1.1 99999 OK"),
        response(b"content-length: 3", b"transfer-encoding: chunked"),
        response(b"content-length: 3", b"content-length: 3"),
        response(b"content-length: three"),
        response(b"transfer-encoding: gzip"),
        response(b"transfer-encoding: xchunked"),
        response(b"x: folded", b" line"),
        response(b"x: a\x00"),
        b"HTTP/1.1 200 OK\r\nx: y\r\n",
    ],
)
def test_what_is_no_response_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_response_head(data)


@pytest.mark.parametrize(
    ("data", "kind", "ended"),
    [
        (response(b"transfer-encoding: chunked"), ChunkedDecoder, False),
        (response(b"content-length: 3"), LengthDecoder, False),
        (response(b"content-length: 0"), LengthDecoder, True),
        (response(), EofDecoder, False),
        (response(status=b"1.1 204 No Content"), LengthDecoder, True),
        (response(b"content-length: 9", status=b"1.1 304 Not Modified"), LengthDecoder, True),
        (response(status=b"1.1 100 Continue"), LengthDecoder, True),
    ],
)
def test_the_body_of_a_response_is_framed_as_its_head_says(data: bytes, kind: type, ended: bool) -> None:
    head = parse_response_head(data)
    decoder = response_decoder(head, declared_length(head))
    assert type(decoder) is kind
    assert decoder.ended is ended
    assert decoder.length_is_framed is (kind is not EofDecoder)


# ------------------------------------------------------------ chunks
BODY = b"5\r\nhello\r\nA;name=value;x\r\n, 10 bytes\r\n1 \t\r\n!\r\n000\r\nTrailer: x\r\nAnother: y\r\n\r\nbehind"


def test_a_chunked_body_with_extensions_and_trailers() -> None:
    decoder = ChunkedDecoder()
    assert decoder.feed(BODY) == b"hello, 10 bytes!"
    assert decoder.ended
    assert decoder.surplus == b"behind"


@given(st.lists(st.integers(0, len(BODY)), max_size=8))
def test_a_chunked_body_cut_anywhere(cuts: list[int]) -> None:
    decoder = ChunkedDecoder()
    places = [0, *sorted(cuts), len(BODY)]
    payload = b"".join(decoder.feed(BODY[start:end]) for start, end in pairwise(places))
    assert (payload, decoder.ended, decoder.surplus) == (b"hello, 10 bytes!", True, b"behind")


def test_a_chunked_body_byte_by_byte_knows_its_boundaries() -> None:
    decoder = ChunkedDecoder()
    boundaries = []
    for position, byte in enumerate(b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", 1):
        decoder.feed(bytes([byte]))
        if decoder.at_boundary:
            boundaries.append(position)
        assert decoder.ended is (position == 18)
    assert boundaries == [7, 13]


@pytest.mark.parametrize(
    "framed",
    [
        b"x\r\n",
        b"\r\n",
        b"0x5\r\nhello\r\n",
        b"+5\r\nhello\r\n",
        b"-5\r\nhello\r\n",
        b"5_0\r\n",
        b" 5\r\nhello\r\n",
        b"5\nhello\n",
        b"5\r\nhello!\r\n",
        b"5\r\nhello\n",
        b"5\r\nhelloX5\r\n",
        b"1111111111111111\r\n",
        b"5;" + b"x" * 5000,
        b"5;" + b"x" * 5000 + b"\r\n",
        b"0\r\n" + b"x" * 5000,
        b"5\rhello",
        b"5;a\rb\r\nhello\r\n",
        b"0\r\na: b\n\r\n",
    ],
)
def test_broken_chunk_framing_is_refused_in_one_read_and_byte_by_byte(framed: bytes) -> None:
    with pytest.raises(ProtocolError):
        ChunkedDecoder().feed(framed + b"\r\n")
    with pytest.raises(ProtocolError):
        feed_bytes(ChunkedDecoder(), framed + b"\r\n")


def feed_bytes(decoder: ChunkedDecoder, data: bytes) -> None:
    for byte in data:
        decoder.feed(bytes([byte]))


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_noise_in_a_chunked_body_is_refused_or_taken_and_nothing_else(reads: list[bytes]) -> None:
    decoder = ChunkedDecoder()
    try:
        for read in reads:
            decoder.feed(read)
    except ProtocolError:
        return


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=6))
def test_what_is_framed_comes_back(payloads: list[bytes]) -> None:
    decoder = ChunkedDecoder()
    assert decoder.feed(b"".join(map(chunk, payloads)) + b"0\r\n\r\n") == b"".join(payloads)
    assert decoder.ended


# ------------------------------------------------------------ other bodies
def test_a_length_body_takes_its_bytes_and_no_more() -> None:
    decoder = LengthDecoder(5)
    assert decoder.feed(b"hel") == b"hel"
    assert not decoder.ended
    assert decoder.feed(b"lo, you") == b"lo"
    assert decoder.ended
    assert decoder.surplus == b", you"
    assert decoder.feed(b"!") == b""
    assert decoder.surplus == b", you!"


def test_an_eof_body_takes_everything() -> None:
    decoder = EofDecoder()
    assert decoder.feed(b"abc") == b"abc"
    assert not decoder.ended
    assert decoder.surplus == b""


# ------------------------------------------------------------ heads that were parsed before
POST = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nX-Y: z\r\n\r\n"


WHOLE = 1 << 16
BACKENDS = [plain_split_head, *([split_head] if native.BACKEND == "c" else [])]


@pytest.fixture(params=BACKENDS, ids=["plain", "c"][: len(BACKENDS)])
def memo(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> HeadMemo:
    monkeypatch.setattr("router.http1.split_head", request.param)
    known = HeadMemo(parse_request_head)
    known.take(POST, 0, WHOLE)
    return known


def test_a_known_head_is_given_again_with_its_own_length(memo: HeadMemo) -> None:
    first = memo.take(POST, 0, WHOLE)
    other = memo.take(b"..." + POST.replace(b": 5", b": 1234") + b"body", 3, WHOLE)
    assert first is not None
    assert other is not None
    assert other[0] is first[0], "nothing is parsed again"
    assert first[1:] == (5, len(POST))
    assert other[1:] == (1234, len(POST) + 6)
    assert (other[0].method, other[0].url, other[0].keep_alive) == (b"POST", b"/v1/x", True)


@pytest.mark.parametrize(
    "length", [b"", b"+5", b"5 5", b"0x5", b"5\r\nTransfer-Encoding: chunked", b"99999999999999999999", b"5\0"]
)
def test_an_odd_length_is_judged_by_the_parser_and_never_remembered(memo: HeadMemo, length: bytes) -> None:
    try:
        taken = memo.take(POST.replace(b": 5", b": " + length), 0, WHOLE)
    except ProtocolError:
        taken = None
    assert taken is None
    assert len(memo.known) == 1


@pytest.mark.parametrize("name", [b"Content-Length", b"content-LENGTH"])
def test_a_second_length_is_not_known(memo: HeadMemo, name: bytes) -> None:
    assert memo.take(POST.replace(b"X-Y: z", name + b": 6"), 0, WHOLE) is None


@pytest.mark.parametrize("date", [b"x\nTransfer-Encoding: chunked", b"x\0y", b"x\ry", b"", b"1" * 41])
def test_a_date_hides_nothing(memo: HeadMemo, date: bytes) -> None:
    head = POST.replace(b"X-Y: z", b"date: Sun, 22 Nov 2026 00:00:00 GMT")
    first, second = memo.take(head, 0, WHOLE), memo.take(head.replace(b"22", b"23").replace(b"5", b"6"), 0, WHOLE)
    assert first is not None
    assert second is not None
    assert second[0] is first[0]
    assert second[1] == 6
    assert memo.take(head.replace(b"Sun, 22 Nov 2026 00:00:00 GMT", date), 0, WHOLE) is None


def test_only_a_head_that_is_complete_within_the_limit_is_taken(memo: HeadMemo) -> None:
    for size in range(len(POST)):
        assert memo.take(POST[:size], 0, WHOLE) is None
        assert memo.take(POST, 0, size) is None
    assert memo.take(POST, 0, len(POST)) is not None
    assert memo.take(POST, len(POST), WHOLE) is None
    assert memo.take(POST, len(POST) + 5, WHOLE) is None


def test_a_head_that_is_no_head_is_refused(memo: HeadMemo) -> None:
    with pytest.raises(ProtocolError):
        memo.take(b"nonsense\r\n\r\n", 0, WHOLE)


def test_a_head_that_is_new_each_time_is_not_remembered() -> None:
    known = HeadMemo(parse_request_head, unlike=(b"traceparent",))
    head = POST.replace(b"X-Y", b"TraceParent")
    assert known.take(head, 0, WHOLE) is not None
    assert known.known == {}


def test_the_memory_is_bounded(memo: HeadMemo) -> None:
    for number in range(2000):
        memo.take(POST.replace(b"z", b"%d" % number), 0, WHOLE)
    assert len(memo.known) <= 512


PIECES = [
    b"POST / HTTP/1.1", b"\r\n", b"\r", b"\n", b"content-length:", b"Content-Length: 12", b"date: x 1",
    b"Date:", b" ", b"7", b"a: b", b"\r\n\r\n", b"date: Sun, 22 Nov 2026 00:00:00 GMT", b"\0",
    b"transfer-encoding: chunked",
]  # fmt: skip


@pytest.mark.skipif(native.BACKEND != "c", reason="the native code is not compiled here")
@given(st.lists(st.sampled_from(PIECES), max_size=14).map(b"".join), st.integers(0, 9), st.integers(0, 200))
def test_both_split_heads_alike(data: bytes, position: int, limit: int) -> None:
    assert split_head(data, position, limit) == plain_split_head(data, position, limit)
