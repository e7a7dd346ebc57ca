"""Bad input is answered clearly, in OpenAI's shape, and leaves nothing behind."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.client import CHAT, Client, chat_body, request
from tests.faults.stage import QUIET, SHORT_TICK, Stage, host_entry
from tests.support import scripted_host as sh
from tests.support.scripted_host import ScriptedHost, chunk
from tests.support.waiting import wait_until

MIB = 1 << 20
HEAD_BYTES_MAX = 4096
BODY_BYTES_MAX = MIB
PIPELINED_BYTES_MAX = 64 * 1024
CONNECTIONS_MAX = 40
CONFIG = f"""
[limits]
head_bytes = {HEAD_BYTES_MAX}
body_bytes = {BODY_BYTES_MAX}
pipelined_bytes = {PIPELINED_BYTES_MAX}
connections = {CONNECTIONS_MAX}
"""
MEMORY_BYTES_MAX = 5 * MIB


@pytest.fixture(scope="module")
def running_stage(directory: Path, host: ScriptedHost) -> Iterator[Stage]:
    with Stage(directory, [host], QUIET + SHORT_TICK + CONFIG + host_entry(host, slots=2)) as stage:
        yield stage


# ---------------------------------------------------------------- bodies: the connection goes on
NESTED = b"[" * 100_000 + b"]" * 100_000
BODIES: dict[str, tuple[bytes, str | None, str]] = {
    "empty": (b"", None, "empty"),
    "not JSON": (b"hello", None, "not JSON"),
    "cut off": (b'{"model":"m","messages":[', None, "not JSON"),
    "something behind it": (b'{"model":"m","messages":[]} {}', None, "not JSON"),
    "an array": (b"[1]", None, "object"),
    "null": (b"null", None, "object"),
    "no model": (b'{"messages":[]}', "model", "missing"),
    "model is a number": (b'{"model":1,"messages":[]}', "model", "str"),
    "no messages": (b'{"model":"m"}', "messages", "missing"),
    "messages is null": (b'{"model":"m","messages":null}', "messages", "missing"),
    "messages is a text": (b'{"model":"m","messages":"hi"}', "messages", "array"),
    "stream is a text": (b'{"model":"m","messages":[],"stream":"yes"}', "stream", "bool"),
    "stream_options is a list": (b'{"model":"m","messages":[],"stream_options":[]}', "stream_options", "object"),
    "include_usage is a number": (
        b'{"model":"m","messages":[],"stream_options":{"include_usage":1}}',
        "stream_options.include_usage",
        "bool",
    ),
    "max_tokens is a text": (b'{"model":"m","messages":[],"max_tokens":"9"}', "max_tokens", "int"),
    "temperature is out of range": (b'{"model":"m","messages":[],"temperature":1e999}', "temperature", "range"),
    "n is a fraction": (b'{"model":"m","messages":[],"n":1.5}', "n", "int"),
    "user is an object": (b'{"model":"m","messages":[],"user":{}}', "user", "str"),
    "metadata is a list": (b'{"model":"m","messages":[],"metadata":[1]}', "metadata", "object"),
    "not UTF-8": (b'{"model":"m","messages":[{"content":"\xff"}]}', None, "UTF-8: byte 37"),
    "UTF-8 cut off": ('{"model":"m","messages":["é'.encode()[:-1], None, "UTF-8"),
    "half a surrogate pair": (b'{"model":"\\ud800","messages":[]}', None, "JSON"),
    "a byte order mark": (b'\xef\xbb\xbf{"model":"m","messages":[]}', None, "JSON"),
    "nested without end": (b'{"model":"m","messages":' + NESTED + b"}", None, "nested"),
    "nested metadata": (b'{"model":"m","messages":[],"metadata":{"a":' + NESTED + b"}}", None, "nested"),
}


@pytest.mark.parametrize(("body", "param", "text"), BODIES.values(), ids=BODIES.keys())
def test_a_bad_body_is_a_400_that_names_the_field(stage: Stage, body: bytes, param: str | None, text: str) -> None:
    client = stage.client()
    for _ in range(2):
        client.post(body, more="x-request-id: abc")
        answer = client.answer()
        assert (answer.status, answer.error["type"], answer.error["code"]) == (
            400,
            "invalid_request_error",
            "bad_request",
        )
        assert answer.error["param"] == param
        assert text in answer.error["message"]
        assert len(answer.error["message"]) < 300
        assert answer.headers["x-request-id"] == "abc"
    client.chat()
    assert client.answer().text == "one two three", "the connection goes on"
    stage.finished(1)


def test_a_body_that_can_just_be_decoded_and_not_be_edited_is_refused_too(stage: Stage) -> None:
    """Editing a body nests deeper than decoding it: between the two lie depths that only the one can take."""
    client = stage.client()
    for depth in range(900, 1010, 2):
        nested = b'{"model":"m","messages":[' + b"[" * depth + b"]" * depth + b'],"stream":true,"stream_options":{}}'
        client.post(nested)
        answer = client.answer()
        assert answer.status == 200 or (answer.status, answer.error["code"]) == (400, "bad_request")
    client.chat()
    assert client.answer().text == "one two three", "the router goes on"
    wait_until(lambda: not stage.in_flight(), "every request has ended")


EXTREMES = [
    {"temperature": 1e300},
    {"temperature": -1e39},
    {"temperature": 10**400},
    {"max_tokens": 10**400},
    {"max_tokens": -5},
    {"max_tokens": 1e300},
    {"max_completion_tokens": 2**63},
    {"n": 2**70},
    {"user": "\0\u2028" * 100},
    {"metadata": {"feature_name": "x" * 500, "user_id": "é" * 100, "": "", "odd": [1, {"a": None}]}},
]


@pytest.mark.parametrize("fields", EXTREMES, ids=lambda fields: "-".join(fields) + str(fields)[-12:])
def test_extreme_values_are_the_hosts_to_judge(stage: Stage, host: ScriptedHost, fields: dict[str, object]) -> None:
    client = stage.client()
    client.chat(**fields)
    assert client.answer().text == "one two three"
    seen = host.exchanges[-1].json()
    assert {name: seen[name] for name in fields} == fields
    (record,) = stage.finished(1)
    assert record["outcome"] == "ok"


@pytest.mark.parametrize("name", ["nobody", "", "x" * 100_000, 'a"\\\r\nb', "\x00", "é🙂"])
def test_an_unknown_model_is_a_404(stage: Stage, name: str) -> None:
    client = stage.client()
    client.chat(model=name)
    answer = client.answer()
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
    assert len(answer.body) < 2000
    client.get("/v1/models/" + "y" * 1000)
    assert client.answer().status == 404
    client.chat()
    assert client.answer().ended
    stage.finished(1)


# ---------------------------------------------------------------- paths and methods
def test_pages(stage: Stage) -> None:
    client = stage.client()
    for path in ("/health", "/ready", "/v1/models", "/v1/models/m", "/models", "/v1/models?x=1"):
        client.get(path)
        answer = client.answer()
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json()
    client.get("/v1/models")
    assert [model["id"] for model in client.answer().json()["data"]] == ["m"]
    client.get("/metrics")
    answer = client.answer()
    assert answer.status == 404
    assert b"observe" in answer.body, "it points to where the metrics are"


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/nothing", CHAT, "/metrics"])
def test_head_answers_without_a_body(stage: Stage, path: str) -> None:
    client = stage.client()
    client.get(path, "HEAD")
    client.get("/health")
    head = client.answer(without_body=True)
    assert head.status in {200, 404, 405}
    assert int(head.headers["content-length"]) > 0
    assert client.answer().json() == {"status": "ok"}, "the next answer begins right behind the head"


@pytest.mark.parametrize("path", ["/", "/v1/chat", "/v1/chat/completions/", "/%00", "/" + "x" * 3000])
def test_an_unknown_path_is_a_404(stage: Stage, path: str) -> None:
    client = stage.client()
    client.get(path)
    assert client.answer().error["code"] == "not_found"
    client.post(b"{}", path)
    assert client.answer().status == 404
    client.get("/health")
    assert client.answer().status == 200


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", CHAT, "POST"),
        ("DELETE", CHAT, "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("PUT", "/health", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_a_405_that_names_the_right_one(stage: Stage, method: str, path: str, allow: str) -> None:
    client = stage.client()
    client.get(path, method)
    answer = client.answer()
    assert (answer.status, answer.error["code"], answer.headers["allow"]) == (405, "method_not_allowed", allow)
    client.get("/health")
    assert client.answer().status == 200


# ---------------------------------------------------------------- framing: the connection ends
HOST_LINE = b"host: test\r\n"
FRAMES: dict[str, tuple[bytes, int, str]] = {
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "bad_request"),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400, "bad_request"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "bad_request"),
    "HTTP/3.0": (b"GET / HTTP/3.0\r\n\r\n", 400, "bad_request"),
    "a header without colon": (b"GET / HTTP/1.1\r\nhello\r\n\r\n", 400, "bad_request"),
    "a space before the colon": (b"GET / HTTP/1.1\r\nhost : a\r\n\r\n", 400, "bad_request"),
    "a NUL in a header": (b"GET / HTTP/1.1\r\nhost: a\0b\r\n\r\n", 400, "bad_request"),
    "length and chunks": (
        b"POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "bad_request",
    ),
    "two lengths": (b"POST / HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd", 400, "bad_request"),
    "a negative length": (b"POST / HTTP/1.1\r\ncontent-length: -3\r\n\r\n", 400, "bad_request"),
    "a length that is none": (b"POST / HTTP/1.1\r\ncontent-length: 1e3\r\n\r\n", 400, "bad_request"),
    "an endless length": (b"POST / HTTP/1.1\r\ncontent-length: " + b"9" * 30 + b"\r\n\r\n", 400, "bad_request"),
    "a coding that is not chunked": (b"POST / HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n", 400, "bad_request"),
    "a chunk size that is none": (
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        400,
        "bad_request",
    ),
    "a negative chunk size": (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n", 400, "bad_request"),
    "a chunk longer than its size": (
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc\r\n",
        400,
        "bad_request",
    ),
    "an endless chunk size": (
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + b"0" * 9000,
        400,
        "bad_request",
    ),
    "an endless request line": (b"GET /" + b"x" * 2 * HEAD_BYTES_MAX, 431, "head_too_large"),
    "an endless header": (b"GET / HTTP/1.1\r\nx: " + b"y" * 2 * HEAD_BYTES_MAX, 431, "head_too_large"),
    "many headers": (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * HEAD_BYTES_MAX, 431, "head_too_large"),
    "a long head that is whole": (
        b"GET / HTTP/1.1\r\nx: " + b"y" * HEAD_BYTES_MAX + b"\r\n\r\n",
        431,
        "head_too_large",
    ),
    "a body too long by its length": (
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % (BODY_BYTES_MAX + 1),
        413,
        "body_too_large",
    ),
    "a body too long by its chunks": (
        b"POST /v1/chat/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + chunk(b" " * 1024) * 1025,
        413,
        "body_too_large",
    ),
}


@pytest.mark.parametrize("cut", [None, 1, 1000], ids=["one write", "single bytes first", "two writes"])
@pytest.mark.parametrize(("data", "status", "code"), FRAMES.values(), ids=FRAMES.keys())
def test_what_cannot_be_read_is_refused_and_the_connection_ends(
    stage: Stage, data: bytes, status: int, code: str, cut: int | None
) -> None:
    client = stage.client()
    if cut == 1:
        for byte in data[:60]:
            client.send(bytes([byte]))
    elif cut:
        client.send(data[:cut])
    client.send(data[60:] if cut == 1 else data[cut or 0 :])
    answer = client.answer()
    assert (answer.status, answer.error["code"], answer.error["type"]) == (status, code, "invalid_request_error")
    assert answer.headers["connection"] == "close"
    assert client.read_to_end() == b""


@pytest.mark.parametrize("size", [BODY_BYTES_MAX + 1, 8 * MIB])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_sends_everything_first_still_reads_why(stage: Stage, size: int, chunked: bool) -> None:
    """The router must take what a client still sends: a socket closed with bytes unread resets the connection."""
    head = b"transfer-encoding: chunked\r\n" if chunked else b"content-length: %d\r\n" % size
    body = chunk(b"x" * size) + sh.LAST_CHUNK if chunked else b"x" * size
    client = stage.client()
    client.send(b"POST /v1/chat/completions HTTP/1.1\r\n" + head + b"\r\n" + body)
    answer = client.answer()
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    assert str(BODY_BYTES_MAX) in answer.error["message"]
    assert client.read_to_end() == b""


def test_a_body_of_just_the_limit_is_taken(stage: Stage, host: ScriptedHost) -> None:
    rest = BODY_BYTES_MAX - len(json.dumps(chat_body(pad="")))
    body = json.dumps(chat_body(pad="x" * rest)).encode()
    assert len(body) == BODY_BYTES_MAX
    client = stage.client()
    client.post(body)
    assert client.answer().text == "one two three"
    assert len(host.exchanges[-1].json()["pad"]) == rest
    stage.finished(1)


def test_a_chunked_request_is_taken(stage: Stage, host: ScriptedHost) -> None:
    body = json.dumps(chat_body()).encode()
    parts = b"".join(chunk(body[at : at + 7]) for at in range(0, len(body), 7))
    end = b"0;ext=1\r\nx-trailer: 1\r\n\r\n"
    head = f"POST {CHAT} HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    client = stage.client()
    client.send((head + parts + end) * 2)
    for _ in range(2):
        assert client.answer().text == "one two three"
    assert host.exchanges[-1].json()["messages"] == chat_body()["messages"]
    stage.finished(2)


def test_a_head_and_body_in_many_segments_are_one_request(stage: Stage) -> None:
    data = request(chat_body(pad="x" * 200), more="x-request-id: dribble")
    client = stage.client()
    for byte in data:
        client.send(bytes([byte]))
    answer = client.answer()
    assert answer.text == "one two three"
    assert answer.headers["x-request-id"] == "dribble"
    stage.finished(1)


def test_expect_100_continue(stage: Stage) -> None:
    body = json.dumps(chat_body(stream=False)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\ncontent-length: {len(body)}\r\nexpect: 100-continue\r\n\r\n".encode()
    client = stage.client()
    client.send(head)
    assert client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(body)
    assert client.answer().json() == sh.PLAIN
    client.send(head + body)
    answer = client.answer()
    assert answer.interim == [], "who does not wait is not told to go on"
    assert answer.status == 200
    client.send(head.replace(str(len(body)).encode(), str(BODY_BYTES_MAX + 1).encode()))
    refused = client.answer()
    assert (refused.interim, refused.status) == ([], 413), "refused before the body is sent"
    stage.finished(2)


# ---------------------------------------------------------------- HTTP/1.0
@pytest.mark.parametrize("keep", [False, True])
def test_http_1_0_gets_plain_answers_with_a_length(stage: Stage, keep: bool) -> None:
    client = stage.client()
    more = "connection: keep-alive" if keep else ""
    client.post(chat_body(stream=False), more=more, version="1.0")
    answer = client.answer()
    assert answer.json() == sh.PLAIN
    assert "content-length" in answer.headers
    assert "transfer-encoding" not in answer.headers
    assert answer.headers["connection"] == ("keep-alive" if keep else "close")
    if keep:
        client.post(chat_body(stream=False), more=more, version="1.0")
        assert client.answer().status == 200
    else:
        assert client.read_to_end() == b""
    stage.finished(1 + keep)


@pytest.mark.parametrize("keep", ["", "connection: keep-alive"])
def test_http_1_0_streams_end_with_the_connection(stage: Stage, keep: str) -> None:
    client = stage.client()
    client.post(chat_body(), more=keep, version="1.0")
    answer = client.answer()
    assert answer.headers["connection"] == "close"
    assert not {"transfer-encoding", "content-length"} & set(answer.headers)
    assert answer.data[-1] == "[DONE]"
    assert answer.text == "one two three"
    stage.finished(1)


def test_http_1_0_errors(stage: Stage) -> None:
    client = stage.client()
    client.post(b"{", version="1.0")
    answer = client.answer()
    assert answer.status == 400
    assert client.read_to_end() == b""


def test_connection_close_is_respected(stage: Stage) -> None:
    for body in (chat_body(), chat_body(stream=False), b"{"):
        client = stage.client()
        client.post(body, more="connection: close")
        answer = client.answer()
        assert answer.headers["connection"] == "close"
        assert client.read_to_end() == b""
    stage.finished(2)


# ---------------------------------------------------------------- pipelining
def test_a_thousand_pipelined_requests_are_answered_in_order(stage: Stage) -> None:
    client = stage.client()
    lines = [b"GET /v1/models/%d HTTP/1.1\r\nx-request-id: %d\r\n\r\n" % (i, i) for i in range(1000)]
    client.send(b"".join(lines))
    assert [client.answer().headers["x-request-id"] for _ in lines] == [str(i) for i in range(1000)]


def test_pipelined_chats_run_one_after_another_in_order(stage: Stage, host: ScriptedHost) -> None:
    count = 200
    client = stage.client()
    client.send(
        b"".join(request(chat_body(stream=bool(i % 2), seed=i), more=f"x-request-id: {i}") for i in range(count))
    )
    before = len(host.exchanges)
    for number in range(count):
        answer = client.answer()
        assert answer.headers["x-request-id"] == str(number)
        assert answer.ended
    assert len(host.exchanges) >= before
    assert [exchange.json()["seed"] for exchange in host.exchanges[-count:]] == list(range(count))
    assert host.running_count_max == 1 or stage.finished(count)
    stage.finished(count)


def test_a_flood_behind_a_running_request_ends_the_connection(stage: Stage, host: ScriptedHost) -> None:
    gate = stage.gate()
    host.script(gate, *sh.chunked(sh.STREAM))
    client = stage.client()
    client.chat()
    gate.wait_reached()
    before = stage.memory_bytes()
    flood = b"GET /health HTTP/1.1\r\n\r\n" * 1000
    for _ in range(100):
        client.send(flood)
    assert stage.memory_bytes() - before < MEMORY_BYTES_MAX, "what is sent ahead is bounded"
    gate.open()
    assert client.answer().text == "one two three", "the running request is answered all the same"
    refused = client.answer()
    assert (refused.status, refused.error["code"]) == (400, "pipeline_too_long")
    assert str(PIPELINED_BYTES_MAX) in refused.error["message"]
    stage.finished(1)


def test_a_client_that_asks_and_never_reads_is_bounded(stage: Stage) -> None:
    """Small answers pile up too; the router takes no further request until the client has taken the last answer."""
    before = stage.memory_bytes()
    client = stage.client(receive_buffer_bytes=4096)
    flood = b"GET /v1/models HTTP/1.1\r\n\r\n" * 1000
    for _ in range(1000):
        client.send(flood)
    assert stage.memory_bytes() - before < MEMORY_BYTES_MAX


# ---------------------------------------------------------------- connections
def test_over_the_limit_of_connections(stage: Stage) -> None:
    clients = [stage.client() for _ in range(CONNECTIONS_MAX)]
    wait_until(lambda: stage.connections_open() == CONNECTIONS_MAX, "all are accepted")
    refused_before = stage.counter("connections_refused")
    for _ in range(3):
        client = stage.client()
        client.get("/health")
        answer = client.answer()
        assert (answer.status, answer.error["code"]) == (503, "too_many_connections")
        client.close()
    assert stage.counter("connections_refused") == refused_before + 3
    clients.pop().close()
    wait_until(lambda: stage.connections_open() == CONNECTIONS_MAX - 1, "one has gone")
    client = stage.client()
    client.chat()
    assert client.answer().ended
    stage.finished(1)


def drop_at_once(client: Client) -> None:
    client.close()


def drop_half_a_head(client: Client) -> None:
    client.send(b"POST / HT")
    client.close()


def drop_half_a_body(client: Client) -> None:
    client.send(b"POST / HTTP/1.1\r\ncontent-length: 100000\r\n\r\n" + b"x" * 50_000)
    client.close()


def drop_after_asking(client: Client) -> None:
    client.chat()
    client.close()


def drop_by_reset(client: Client) -> None:
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.chat()
    client.close()


DROPS = [drop_at_once, drop_half_a_head, drop_half_a_body, drop_after_asking, drop_by_reset]


@pytest.mark.parametrize("drop", DROPS)
def test_clients_that_drop_the_connection_leave_nothing(stage: Stage, drop: Callable[[Client], None]) -> None:
    for _ in range(30):
        drop(stage.client())
    wait_until(lambda: not stage.connections_open(), "no connection")


def test_memory_comes_back_after_all_of_it(stage: Stage) -> None:
    def everything() -> None:
        for data, _, _ in FRAMES.values():
            client = stage.client()
            client.send(data)
            client.answer()
            client.close()
        for body, _, _ in BODIES.values():
            client = stage.client()
            client.post(body)
            client.answer()
            client.close()
        wait_until(lambda: not stage.connections_open(), "no connection")

    everything()
    before = stage.memory_bytes()
    for _ in range(10):
        everything()
    assert stage.memory_bytes() - before < MEMORY_BYTES_MAX
