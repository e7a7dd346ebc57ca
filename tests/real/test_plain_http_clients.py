"""Plain HTTP of every style in front of real models: the standard library, aiohttp, curl, and bytes on a socket.

What is streamed is compared event by event with what the host sends to the same request, past the router.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from router.embedded.hosts import CHAT
from tests.support.processes import HostProcess, RouterProcess, get
from tests.support.records import done_record
from tests.support.unix_http import UnixConnection
from tests.support.waiting import shared_memory_directory

ANSWER_S = 60.0
CHAT_PATH = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
# Without its prompt cache the host computes the same request in the same way, however often it is asked.
PLAIN: dict[str, Any] = {
    "model": CHAT.model, "messages": [{"role": "user", "content": "Say hello"}], "max_tokens": 8, "temperature": 0,
    "seed": 1, "cache_prompt": False,
}  # fmt: skip
STREAM = PLAIN | {"stream": True, "stream_options": {"include_usage": True}}
STREAM_BYTES = json.dumps(STREAM).encode()
LARGE = PLAIN | {"padding": "x" * 2_000_000}
"""Above a megabyte curl waits for 100 Continue; a field that nobody knows passes."""


def curl_can(feature: str) -> bool:
    """Return whether there is a curl with this feature."""
    if shutil.which("curl") is None:
        return False
    return feature in subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
needs_curl_with_http2 = pytest.mark.skipif(not curl_can("HTTP2"), reason="this curl knows no HTTP/2")


@pytest.fixture(scope="module")
def unix_path() -> Iterator[Path]:
    with shared_memory_directory() as directory:
        yield directory / "http.sock"


@pytest.fixture(scope="module")
def unix_router(llama_host: HostProcess, unix_path: Path) -> Iterator[RouterProcess]:
    """A router that listens on a unix socket too."""
    with shared_memory_directory() as directory:
        router = RouterProcess(directory, llama_host.toml())
        both = f'http = ["127.0.0.1:{router.port}", "unix:{unix_path}"]'
        router._toml = router._toml.replace(f'http = ["127.0.0.1:{router.port}"]', both)
        with router:
            yield router


@pytest.fixture(scope="module")
def expected(llama_host: HostProcess) -> list[Any]:
    """The events of the host itself."""
    return comparable(events_of(post(UnixConnection(llama_host.socket_path, ANSWER_S), STREAM)))


@pytest.fixture(scope="module")
def expected_text(expected: list[Any]) -> str:
    return text_of(expected)


@pytest.fixture
def connection(router: RouterProcess) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", router.port, timeout=ANSWER_S)
    yield connection
    connection.close()


def post(connection: http.client.HTTPConnection, body: Any, **headers: str) -> http.client.HTTPResponse:
    connection.request("POST", CHAT_PATH, json.dumps(body), JSON | headers)
    response = connection.getresponse()
    assert response.status == 200, response.read()
    return response


def events_of(lines: Iterable[bytes]) -> list[Any]:
    """Return the events of a stream, read line by line; fail if it has no proper end or anything else in it."""
    events = [line.rstrip(b"\n") for line in lines]
    assert events[1::2] == [b""] * (len(events) // 2), "each event ends in a blank line"
    data = events[0::2]
    assert all(line.startswith(b"data: ") for line in data), data
    assert data[-1] == b"data: [DONE]"
    return [json.loads(line.removeprefix(b"data: ")) for line in data[:-1]]


def comparable(events: list[Any]) -> list[Any]:
    """Return events without what differs each time."""
    return [{k: v for k, v in event.items() if k not in {"id", "created", "timings"}} for event in events]


def text_of(events: list[Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


def content_of(body: bytes | str) -> str:
    """Return the text of a plain answer."""
    content: str = json.loads(body)["choices"][0]["message"]["content"]
    return content


# ---------------------------------------------------------------- the standard library
def test_a_stream_is_read_line_by_line(
    router: RouterProcess, connection: http.client.HTTPConnection, expected: list[Any]
) -> None:
    response = post(connection, STREAM, **{"x-request-id": "line by line"})
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["transfer-encoding"] == "chunked"
    assert response.headers["content-encoding"] is None
    assert comparable(events_of(response)) == expected
    assert done_record(router, "line by line")["outcome"] == "ok"


def test_one_connection_serves_streams_plain_answers_errors_and_pages(
    router: RouterProcess, connection: http.client.HTTPConnection, expected: list[Any], expected_text: str
) -> None:
    before = router.counter("connections_accepted")
    for _ in range(2):
        assert comparable(events_of(post(connection, STREAM))) == expected
        assert content_of(post(connection, PLAIN).read()) == expected_text
        connection.request("POST", CHAT_PATH, "{", JSON)
        refused = connection.getresponse()
        assert (refused.status, json.loads(refused.read())["error"]["code"]) == (400, "bad_request")
        connection.request("GET", "/v1/models")
        assert CHAT.model in connection.getresponse().read().decode()
        connection.request("HEAD", "/health")
        head = connection.getresponse()
        assert (head.status, head.read()) == (200, b"")
    assert router.counter("connections_accepted") == before + 1


def test_urllib_gets_answers_and_errors(router: RouterProcess, expected: list[Any], expected_text: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(body: Any) -> Any:
        request = urllib.request.Request(router.base_url + CHAT_PATH, json.dumps(body).encode(), JSON)
        return opener.open(request, timeout=ANSWER_S)  # it says `Connection: close`

    with ask(PLAIN) as response:
        assert content_of(response.read()) == expected_text
        assert response.headers["connection"] == "close"
    with ask(STREAM) as response:
        assert comparable(events_of(response)) == expected
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(PLAIN | {"model": "gpt-9"})
    with caught.value as error:
        assert error.code == 404
        assert json.load(error)["error"]["code"] == "model_not_found"


def test_a_body_may_come_in_chunks(connection: http.client.HTTPConnection, expected: list[Any]) -> None:
    pieces = [STREAM_BYTES[:1], STREAM_BYTES[1:40], STREAM_BYTES[40:]]
    connection.request("POST", CHAT_PATH, iter(pieces), JSON, encode_chunked=True)
    assert comparable(events_of(connection.getresponse())) == expected


# ---------------------------------------------------------------- bytes on a socket
class RawClient:
    """A client that writes its own HTTP; a context manager."""

    def __init__(self, router: RouterProcess) -> None:
        self._port = router.port
        self._socket = socket.create_connection(("127.0.0.1", router.port), ANSWER_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def send_alone(self, data: bytes) -> None:
        """Send bytes and wait until the router has read them.

        It answers a request on another connection, which came later: in that turn of its loop, or one before, it has
        read what lay here.
        """
        self.send(data)
        assert get("127.0.0.1", self._port, "/health")[0] == 200

    def response(self) -> http.client.HTTPResponse:
        response = http.client.HTTPResponse(self._socket)
        response.begin()
        return response

    def rest(self) -> bytes:
        """Return all that comes until the router closes."""
        return b"".join(iter(lambda: self._socket.recv(65536), b""))


def head(*lines: str, version: str = "1.1", length: int = len(STREAM_BYTES)) -> bytes:
    fields = [f"POST {CHAT_PATH} HTTP/{version}", "Host: localhost", f"Content-Length: {length}", *lines]
    return ("\r\n".join(fields) + "\r\n\r\n").encode()


def test_head_and_body_may_come_in_two_segments_or_in_many(router: RouterProcess, expected: list[Any]) -> None:
    with RawClient(router) as client:
        client.send_alone(head())
        client.send(STREAM_BYTES)
        assert comparable(events_of(client.response())) == expected
        whole = head() + STREAM_BYTES
        cuts = [0, 1, 10, len(head()) - 2, len(head()) + 1, len(whole) - 1, len(whole)]
        for start, end in pairwise(cuts):
            client.send_alone(whole[start:end])
        assert comparable(events_of(client.response())) == expected


def test_two_requests_may_be_sent_at_once(router: RouterProcess, expected: list[Any], expected_text: str) -> None:
    plain = json.dumps(PLAIN).encode()
    with RawClient(router) as client:
        client.send(head() + STREAM_BYTES + head(length=len(plain)) + plain + head() + STREAM_BYTES)
        assert comparable(events_of(client.response())) == expected
        assert content_of(client.response().read()) == expected_text
        assert comparable(events_of(client.response())) == expected


def test_a_stream_to_http_1_0_has_no_chunks_and_ends_with_its_connection(
    router: RouterProcess, expected: list[Any]
) -> None:
    for lines in ([], ["Connection: Keep-Alive"]):  # ApacheBench without and with -k
        with RawClient(router) as client:
            client.send(head("User-Agent: ApacheBench/2.3", *lines, version="1.0") + STREAM_BYTES)
            answer, _, body = client.rest().partition(b"\r\n\r\n")
        assert answer.split(b" ", 2)[1] == b"200"
        assert b"transfer-encoding" not in answer.lower()
        assert b"connection: keep-alive" not in answer.lower(), "nothing else would tell where the stream ends"
        assert comparable(events_of(body.splitlines())) == expected


def test_a_plain_answer_to_http_1_0_has_a_length_and_keeps_the_connection_if_asked(
    router: RouterProcess, expected_text: str
) -> None:
    body = json.dumps(PLAIN).encode()
    with RawClient(router) as client:
        for _ in range(2):
            client.send(head("Connection: Keep-Alive", version="1.0", length=len(body)) + body)
            response = client.response()
            assert response.headers["connection"].lower() == "keep-alive", "ApacheBench -k looks for it"
            assert int(response.headers["content-length"]) > 0
            assert content_of(response.read()) == expected_text
        client.send(head(version="1.0", length=len(body)) + body)
        assert content_of(client.response().read()) == expected_text
        assert client.rest() == b"", "without it the router closes"


# ---------------------------------------------------------------- aiohttp
def test_aiohttp_reads_streams_and_plain_answers_at_once(router: RouterProcess, expected_text: str) -> None:
    async def streamed(session: aiohttp.ClientSession) -> str:
        async with session.post(CHAT_PATH, json=STREAM) as response:
            return text_of(events_of([line async for line in response.content]))

    async def plain(session: aiohttp.ClientSession) -> str:
        async with session.post(CHAT_PATH, json=PLAIN) as response:
            return content_of(await response.read())

    async def run() -> list[str]:
        async with aiohttp.ClientSession(router.base_url, raise_for_status=True) as session:
            alone = [await streamed(session), await plain(session)]
            return alone + await asyncio.gather(*(ask(session) for ask in (streamed, plain) * 3))

    texts = asyncio.run(run())
    assert texts[:2] == [expected_text] * 2
    assert all(texts), texts


def test_aiohttp_on_a_unix_socket(unix_router: RouterProcess, unix_path: Path, expected: list[Any]) -> None:
    async def run() -> list[bytes]:
        connector = aiohttp.UnixConnector(str(unix_path))
        async with (
            aiohttp.ClientSession("http://localhost", connector=connector, raise_for_status=True) as session,
            session.post(CHAT_PATH, json=STREAM) as response,
        ):
            return [line async for line in response.content]

    assert comparable(events_of(asyncio.run(run()))) == expected


def test_a_stream_that_aiohttp_leaves_is_cancelled(router: RouterProcess) -> None:
    async def run() -> None:
        asked = STREAM | {"max_tokens": 1500, "ignore_eos": True}
        async with aiohttp.ClientSession(router.base_url) as session:
            async with session.post(CHAT_PATH, json=asked, headers={"x-request-id": "aiohttp left"}) as response:
                await response.content.readline()
            record = await asyncio.to_thread(done_record, router, "aiohttp left")  # while the session lives
        assert record["outcome"] == "client_gone"
        assert record["n_content"] < 1500

    asyncio.run(run())


# ---------------------------------------------------------------- curl
# Nothing of the user's own: no ~/.curlrc, no proxy.
CURL = ["curl", "--disable", "--noproxy", "*", "--silent", "--show-error", "--max-time", str(ANSWER_S)]
CURL_POST = [*CURL, "--header", "Content-Type: application/json", "--data-binary", "@-"]


def curl(*arguments: str, body: Any, exit_code: int = 0) -> tuple[bytes, str]:
    """Return what curl writes and what it says on the way."""
    done = subprocess.run(
        [*CURL_POST, *arguments], input=json.dumps(body).encode(), capture_output=True, check=False, timeout=ANSWER_S
    )
    assert done.returncode == exit_code, (done.returncode, done.stderr)
    return done.stdout, done.stderr.decode()


@needs_curl
@pytest.mark.parametrize(
    ("option", "sent"),
    [
        ("--no-buffer", "Accept: */*"),
        ("--http1.0", "HTTP/1.0"),
        pytest.param("--http2", "Upgrade: h2c", marks=needs_curl_with_http2),  # an offer, which a server may pass over
        ("--compressed", "Accept-Encoding: "),  # the same, and a stream stays as it is
    ],
)
def test_curl_streams(router: RouterProcess, expected: list[Any], option: str, sent: str) -> None:
    body, said = curl(option, "--verbose", router.base_url + CHAT_PATH, body=STREAM)
    assert sent in said, "otherwise this tests nothing"
    assert comparable(events_of(body.splitlines())) == expected


@needs_curl
def test_curl_waits_for_100_continue_before_a_large_body(router: RouterProcess, expected_text: str) -> None:
    body, said = curl("--verbose", "--expect100-timeout", str(ANSWER_S), router.base_url + CHAT_PATH, body=LARGE)
    assert "Expect: 100-continue" in said, "otherwise this tests nothing"
    assert "HTTP/1.1 100 Continue" in said
    assert content_of(body) == expected_text


@needs_curl
def test_curl_sends_no_body_that_is_too_large(router: RouterProcess) -> None:
    head = "Content-Length: 33554433"
    options = ("--verbose", "--expect100-timeout", str(ANSWER_S), "--header", "Expect: 100-continue", "--header", head)
    body, said = curl(*options, router.base_url + CHAT_PATH, body=PLAIN)
    assert "HTTP/1.1 413" in said
    assert "100 Continue" not in said
    assert json.loads(body)["error"]["code"] == "body_too_large"


@needs_curl
def test_curl_reuses_its_connection(router: RouterProcess, expected: list[Any]) -> None:
    written = ("--write-out", "%{stderr}%{http_code} %{num_connects}\n")
    body, said = curl(*written, *[router.base_url + CHAT_PATH] * 3, body=STREAM)
    assert said.splitlines() == ["200 1", "200 0", "200 0"]
    lines = body.splitlines()
    third = len(lines) // 3
    assert [comparable(events_of(lines[start : start + third])) for start in (0, third, 2 * third)] == [expected] * 3


@needs_curl
def test_curl_on_a_unix_socket(unix_router: RouterProcess, unix_path: Path, expected: list[Any]) -> None:
    body, _ = curl("--no-buffer", "--unix-socket", str(unix_path), "http://localhost" + CHAT_PATH, body=STREAM)
    assert comparable(events_of(body.splitlines())) == expected


@needs_curl
def test_curl_fails_on_an_error_status(router: RouterProcess) -> None:
    body, _ = curl("--fail-with-body", router.base_url + CHAT_PATH, body=PLAIN | {"model": "gpt-9"}, exit_code=22)
    assert json.loads(body)["error"]["code"] == "model_not_found"


@needs_curl
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
def test_a_stream_is_cancelled_when_curl_ends(router: RouterProcess, number: signal.Signals) -> None:
    request_id = f"curl {number.name}"
    body = json.dumps(STREAM | {"max_tokens": 1500, "ignore_eos": True}).encode()
    command = [*CURL_POST, "--no-buffer", "--header", f"x-request-id: {request_id}", router.base_url + CHAT_PATH]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(body)
        process.stdin.close()
        assert process.stdout.readline().startswith(b"data: ")
        process.send_signal(number)
    record = done_record(router, request_id)
    assert record["outcome"] == "client_gone"
    assert record["n_content"] < 1500
