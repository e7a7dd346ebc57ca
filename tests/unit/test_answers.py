"""The native way of the usual answer beside its plain twins: the same reads come to the same bytes and records."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench.gate_lockstep import REQUEST, stream_parts
from router import native
from router.answers import answers
from router.hosts.connection import HostConnection
from router.hosts.whole import native_report_of, plain_report_of
from tests.captures import capture, stream_names
from tests.support.fed_streams import Streams, cut
from tests.support.stream_damage import damage
from tests.support.waiting import shared_memory_directory

needs_native = pytest.mark.skipif(answers is None, reason="there is no native code in this process")
pytestmark = needs_native
SEEDS = 80
MakePath = Callable[[bool], Streams]


@pytest.fixture
def paths() -> Iterator[MakePath]:
    """Make routers that answer natively where they can, or wholly by Python."""
    made: list[Streams] = []
    with shared_memory_directory() as directory:

        def make(has_answers: bool) -> Streams:
            made.append(Streams(directory / str(len(made)), is_native=has_answers, has_answers=has_answers))
            return made[-1]

        yield make
        for path in made:
            path.close()


def asked(**changes: Any) -> bytes:
    """Return a request with other fields in its body."""
    head, _, body = REQUEST.partition(b"\r\n\r\n")
    fields = {name: value for name, value in (json.loads(body) | changes).items() if value is not None}
    new = json.dumps(fields).encode()
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
    return b"\r\n".join((*lines, b"content-length: %d" % len(new), b"", new))


def with_header(request: bytes, line: bytes) -> bytes:
    first, _, rest = request.partition(b"\r\n")
    return b"\r\n".join((first, line, rest))


TIMED = with_header(REQUEST, b"x-ringrouter-timing: 1")
NUMBER = re.compile(rb"[0-9a-f.]+")
REQUESTS = [
    REQUEST,
    REQUEST,
    asked(stream_options=None),
    asked(n=2),
    TIMED,
    with_header(REQUEST, b"connection: close"),
    REQUEST.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1),
]


def reads_of(rng: random.Random, *, is_damaged: bool) -> list[bytes]:
    """Return the reads of some host's answer, as they come or as nobody would send them."""
    answer = capture(rng.choice(stream_names()))
    body = answer.framed
    if is_damaged:
        kept = rng.randrange(len(body))
        body = body[:kept] + damage(body[kept:], rng)
    reads = cut(body, rng)
    if rng.random() < 0.2:  # all at once
        reads = [b"".join(reads)]
    elif rng.random() < 0.3:  # several tokens in a read
        reads = [b"".join(reads[at : at + 3]) for at in range(0, len(reads), 3)]
    head = answer.head.replace(b"\r\n", b"\r\nconnection: close\r\n", 1) if rng.random() < 0.1 else answer.head
    if rng.random() < 0.3:
        return [head, *reads]
    return [head + reads[0], *reads[1:]]


@pytest.mark.parametrize("is_damaged", [False, True])
def test_native_and_plain_answers_come_to_the_same(paths: MakePath, is_damaged: bool) -> None:
    native_path, plain_path = paths(True), paths(False)
    for seed in range(SEEDS):
        rng = random.Random(seed)
        reads = reads_of(rng, is_damaged=is_damaged)
        blocks_at = {rng.randrange(1, 12) for _ in range(rng.choice((0, 0, 1, 2)))}
        drains_at = {rng.randrange(len(reads)) for _ in range(rng.randrange(3))}
        request = rng.choice(REQUESTS)
        found = [path.stream(reads, blocks_at, drains_at, request) for path in (native_path, plain_path)]
        if request == TIMED:  # a comment tells times, in as many digits as they need
            for each in found:
                each["written"], each["counts"][2] = NUMBER.sub(b"", each["written"]), 0
        for part in found[0]:
            assert found[0][part] == found[1][part], f"seed {seed}: {part}"
        assert found[0]["ordered"]


WHOLE = json.dumps(
    {
        "id": "chatcmpl-1",
        "choices": [{"index": 0, "message": {"content": "four", "tool_calls": None}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 1},
    }
).encode()
BODIES = [
    WHOLE,
    WHOLE.replace(b'"stop"', b'"tool_calls"'),
    WHOLE.replace(b'"stop"', b'"tool\\u005fcalls"'),
    WHOLE.replace(b'"stop"', b"null"),
    WHOLE.replace(b'"usage"', b'"timings": {"a": [1, 2]}, "metrics": null, "usage"'),
    WHOLE.replace(b'"usage"', b'"choices": [], "usage"'),
    WHOLE + b"\n",
    json.dumps(json.loads(WHOLE), indent=1).encode(),
    b'{"choices": [{}, {"finish_reason": "length", "finish_reason": "tool_calls"}]}',
    b'{"choices": null, "usage": {}}',
    b"{}",
    b"[1]",
    b"no JSON \xff",
]
WHOLE_REQUESTS = [
    asked(stream=False, stream_options=None),
    with_header(asked(stream=False, stream_options=None), b"x-request-id: caf\xc3\xa9-1"),
    with_header(asked(stream=False, stream_options=None), b"connection: close"),
    with_header(asked(stream=False, stream_options=None), b"x-ringrouter-timing: 1"),
    asked(stream=False, stream_options=None).replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1),
    REQUEST,
]
WHOLE_HEADS = [
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n",
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n",
]


@pytest.mark.parametrize("head", WHOLE_HEADS)
def test_native_and_plain_whole_answers_come_to_the_same(paths: MakePath, head: bytes) -> None:
    native_path, plain_path = paths(True), paths(False)
    for body in BODIES:
        answer = head % len(body) + body
        for request in WHOLE_REQUESTS:
            for reads, blocks_at in (
                ([answer], set()), ([answer], {1}), ([answer + b"x"], set()), ([answer[:-3], answer[-3:]], set()),
                ([answer[: -len(body)], body], set()),
            ):  # fmt: skip
                found = [path.stream(reads, blocks_at, set(), request) for path in (native_path, plain_path)]
                for part in found[0]:
                    assert found[0][part] == found[1][part], (part, request, reads)


def test_a_whole_answer_needs_python_only_to_be_read(paths: MakePath) -> None:
    reads = [WHOLE_HEADS[0] % len(WHOLE) + WHOLE]
    path = paths(True)
    path.stream(reads, set(), set(), WHOLE_REQUESTS[0])
    assert calls_of(path, reads, WHOLE_REQUESTS[0]) == ["HostConnection.data_received"]


@pytest.mark.parametrize("is_damaged", [False, True])
def test_native_and_plain_reports_of_whole_answers_are_the_same(is_damaged: bool) -> None:
    assert native_report_of is not None
    rng = random.Random(7)
    taken = 0
    for turn in range(3000):
        body = BODIES[turn % len(BODIES)]
        body = damage(body, rng) if is_damaged else body
        found = native_report_of(body)
        taken += found is not None
        assert found is None or found == plain_report_of(body), body
    assert taken > 20, "some are of the usual shape all the same"


def test_a_report_of_what_is_no_bytes_is_refused() -> None:
    assert native.scan is not None
    with pytest.raises(TypeError):
        native.scan.whole_report("{}")


def calls_of(path: Streams, reads: list[bytes], request: bytes = REQUEST) -> list[str]:
    """Return which functions of the path's own ran in Python while an answer was fed."""
    seen: list[str] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.endswith(("attempt.py", "connection.py", "ingress/http.py")):
            seen.append(frame.f_code.co_qualname)

    receive = HostConnection.data_received

    def received(self: HostConnection, data: bytes) -> None:
        sys.setprofile(note)
        try:
            receive(self, data)
        finally:
            sys.setprofile(None)

    with pytest.MonkeyPatch.context() as context:
        context.setattr(HostConnection, "data_received", received)
        path.stream(reads, set(), set(), request)
    return seen


def test_a_usual_stream_needs_python_only_to_be_read(paths: MakePath) -> None:
    """Else the comparison above would compare the plain twin with itself."""
    reads = list(stream_parts(5))
    path = paths(True)
    path.stream(reads, set(), set())  # the head is remembered from here on
    seen = calls_of(path, reads)
    assert seen == ["HostConnection.data_received"] * len(reads) + ["Attempt._take_read"]


def test_references_are_given_back(paths: MakePath) -> None:
    reads = list(stream_parts(5))
    path = paths(True)
    counts = []
    for _ in range(4):
        path.stream(reads, set(), set())
        counts.append([sys.getrefcount(each) for each in (path.loop, path.loop.telemetry.native_publish)])
    assert counts[1] == counts[3]


@pytest.mark.parametrize("name", ["begin", "take"])
def test_misuse_is_refused(name: str) -> None:
    method = getattr(answers, name)
    for wrong in ((), (1, 2), (None, "text", 1), (None, b"", None), (None, b"", 1, 2)):
        with pytest.raises(TypeError):
            method(*wrong)
    assert method(object(), b"HTTP/1.1 200 OK\r\n\r\n", 1) is False, "what it does not know is left to Python"


def test_nothing_is_taken_before_it_is_told() -> None:
    assert native.answer is not None
    new = native.answer.Answers()
    assert new.begin(object(), b"", 1) is False
    assert new.take(object(), b"", 1) is False
    for probes, tools, error in (
        ({}, {}, KeyError),
        ([], {}, TypeError),
        ({"connection": object()}, {}, AttributeError),
    ):
        with pytest.raises(error):
            new.know(probes, tools)
    assert new.take(object(), b"", 1) is False
