"""Requests like earlier ones: taken by native code as the plain twin takes them, and only those."""

from __future__ import annotations

import gc
import json
import random
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import router.ingress.shapes as shapes_module
import router.ingress.submission as submission_module
from bench.config import MODEL
from bench.gate_lockstep import REQUEST
from bench.gate_path import TokenPath, Transport
from router import native
from router.errors import ErrorKind, RequestError
from router.http1 import Head
from router.ingress.http import ClientConnection
from router.ingress.route import Route
from router.ingress.shapes import NoIntake, make_intake
from router.messages import add_field, decode_body
from router.mould import slot_names
from router.request import NO_TERMS, Request, Terms, new_request
from router.telemetry.counters import Counter
from router.telemetry.records import Endpoint
from router.token_state import PlainTokenState
from tests.support.stream_damage import damage
from tests.support.waiting import shared_memory_directory

needs_native = pytest.mark.skipif(native.intake is None, reason="the native code is not compiled here")
PREFIX = "rr-00000000-"
FIELDS = [*slot_names(Request), *PlainTokenState.__slots__]
OWN = {"egress", "recv", "body_ns", "model", "fields", "terms"}
SHAPES_MAX, LEARNED_OF = 64, 8
"""As in the native code."""


class ClosingTransport(Transport):
    """A client's socket that may be closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def abort(self) -> None:
        self.closed = True

    close = write_eof = abort

    def is_closing(self) -> bool:
        return self.closed


class Submitted(NamedTuple):
    """What the loop got, as it was then."""

    fields: dict[str, Any]
    body: dict[str, Any]
    model: str
    terms: list[Any] | None
    is_ordered: bool
    words: tuple[int, ...]


class Ingress(TokenPath):
    """A router whose loop takes requests and does nothing with them."""

    def __init__(self, directory: Path, *, is_native: bool) -> None:
        super().__init__(directory)
        self.server = self._daemon.surfaces.http
        self.loop = self._daemon.loop
        self.server.intake = make_intake(self.loop, ClientConnection(self.server)) if is_native else NoIntake()
        self.server.next_id = self.server.intake.next_id  # its first id is the first
        self.submitted: list[Submitted] = []
        self.failing: list[RequestError] = []
        self.loop.submit = self._submit  # type: ignore[method-assign]
        self.server.heads.forget()
        self.server.intake.forget(self.server.limits.head_bytes, self.server.limits.body_bytes)
        self.connect()

    def connect(self) -> None:
        self.client = ClientConnection(self.server)
        self.transport = ClosingTransport()
        self.client.connection_made(self.transport)  # type: ignore[arg-type]
        self.client.number = 7

    def _submit(self, request: Request, w4: int, w5: int, w6: int) -> None:
        self.submitted.append(
            Submitted(
                {name: getattr(request, name) for name in FIELDS if name not in OWN},
                {k: v for k, v in msgspec.structs.asdict(request.fields).items() if not isinstance(v, msgspec.Raw)},
                request.model.name,
                None if request.terms is NO_TERMS else [getattr(request.terms, name) for name in Terms.__slots__],
                request.egress is self.client
                and self.client.request is request
                and 0 < self.client.recv_ns == request.recv <= request.body_ns,
                (w4, w5, w6),
            )
        )
        if self.failing:
            raise self.failing.pop()

    def read(self, data: bytes) -> dict[str, Any]:
        """Give the router one read of a new client's; return what has come of it but times."""
        before = self.loop.counters.get(Counter.REQUESTS)
        self.client.data_received(data)
        client = self.client
        found = {
            "submitted": self.submitted[:],
            "written": self.transport.written[:],
            "closed": self.transport.closed,
            "counted": self.loop.counters.get(Counter.REQUESTS) - before,
            "client": (client.raw, client.request_id, client.request is None, client._close_after),
            "left": (client._buffer, bytes(client._body), client._head is None, client.since_ns > 0),
        }
        self.submitted.clear()
        client.request = None
        client.connection_lost(None)
        self.connect()
        return found


@pytest.fixture(scope="module")
def make() -> Iterator[Callable[..., Ingress]]:
    made: list[Ingress] = []
    with shared_memory_directory() as directory, pytest.MonkeyPatch.context() as patch:
        for module in (shapes_module, submission_module):
            patch.setattr(module, "id_prefix", lambda: PREFIX)

        def build(*, is_native: bool = True) -> Ingress:
            made.append(Ingress(directory / str(len(made)), is_native=is_native))
            return made[-1]

        yield build
        for each in made:
            each.close()


@pytest.fixture(scope="module")
def both(make: Callable[..., Ingress]) -> tuple[Ingress, Ingress]:
    return make(), make(is_native=False)


@pytest.fixture
def path(make: Callable[..., Ingress]) -> Ingress:
    return make()


HEADS = [
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nContent-Length: %d\r\nx-ringrouter-tag-user-id: u\r\n\r\n",
    b"POST /v1/chat/completions?x=1 HTTP/1.0\r\ncontent-length: %d\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nconnection: close\r\ncontent-length: 0%d\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nx-ringrouter-timing: 1\r\ncontent-length: %d\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nx-request-id: mine\r\ncontent-length: %d\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\ntraceparent: 00-1-2-01\r\ncontent-length: %d\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nx-ringrouter-class: batch\r\ncontent-length: %d\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nx-ringrouter-host: gpu0\r\ncontent-length: %d\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\ndate: Sun, 22 Nov 2026 00:00:00 GMT\r\ncontent-length: %d\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n",
    b"GET /health HTTP/1.1\r\ncontent-length: %d\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: %d\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\nx: %d\r\n\r\n",
]
HEADS_LEARNED = 5
"""As many of these, the first, leave requests as they are."""
MESSAGES = [
    b'[{"role":"user","content":"hi"}]',
    b"[]",
    '[{"content":"ä€\U0001f600 \\" \\u00e4","n":[1.5e3,null,true,{}]}]'.encode(),
    b"[" * 30 + b"]" * 30,
    b"[" * 70 + b"]" * 70,
    b'["\xff"]',
    b"[1,]",
    b"[] ",
    b'[],"n":2,"messages":[]',
    b"null",
    b'"text"',
]
BODIES = [
    b'{"model":"' + MODEL.encode() + b'","stream":true,"messages":%b}',
    b'{"model":"' + MODEL.encode() + b'","messages":%b}',
    b'{"messages":%b,"model":"' + MODEL.encode() + b'","max_tokens":300,"temperature":0.5,"n":2}',
    b' {"model":"' + MODEL.encode() + b'","stream":false,"messages": %b ,"logprobs":true}',
    b'{"model":"' + MODEL.encode() + b'","messages":%b,"max_tokens":5000000000,"temperature":1e300}',
    b'{"model":"' + MODEL.encode() + b'","messages":%b,"user":"u"}',
    b'{"model":"' + MODEL.encode() + b'","messages":%b,"metadata":{"x":1}}',
    b'{"model":"' + MODEL.encode() + b'","messages":%b,"tools":[]}',
    b'{"model":"other","messages":%b}',
    b'{"messages":%b}',
    b'{"model":"' + MODEL.encode() + b'","prompt":"a","messages":%b}',
]


def whole(head: bytes, body: bytes, *, more: int = 0) -> bytes:
    return head % (len(body) + more) + body


usual_reads = st.builds(
    whole,
    st.sampled_from(HEADS[:HEADS_LEARNED]),
    st.builds(bytes.__mod__, st.sampled_from(BODIES[:5]), st.sampled_from(MESSAGES[:4])),
)
odd_reads = st.builds(
    whole,
    st.sampled_from(HEADS),
    st.builds(bytes.__mod__, st.sampled_from(BODIES), st.sampled_from(MESSAGES)),
    more=st.sampled_from([0, 0, 0, 1, -1, 100]),
)
damaged_reads = st.builds(lambda read, seed: damage(read, random.Random(seed)), usual_reads, st.integers(0, 1 << 30))
cut_reads = st.builds(lambda read, size: read[:size], usual_reads, st.integers(1, 400))
doubled_reads = st.builds(bytes.__add__, usual_reads, usual_reads)
reads = st.lists(usual_reads | usual_reads | odd_reads | damaged_reads | cut_reads | doubled_reads, max_size=12)


@needs_native
@given(given_reads=reads, refused=st.sets(st.integers(0, 11), max_size=2))
@settings(max_examples=150)
def test_native_and_plain_intake_come_to_the_same(
    both: tuple[Ingress, Ingress], given_reads: list[bytes], refused: set[int]
) -> None:
    for index, data in enumerate(given_reads):
        found = []
        for each in both:
            each.failing = [RequestError(ErrorKind.OVERLOADED, "there is no room")] * (index in refused)
            found.append(each.read(data))
            each.failing.clear()
        assert found[0] == found[1], data
        assert all(submitted.is_ordered for submitted in found[0]["submitted"])


def known(path: Ingress, data: bytes) -> dict[str, Any]:
    """Have a request's shape learned; return what came of the last of three."""
    rounds = [path.read(data) for _ in range(3)]
    assert is_known(path, data)
    return rounds[-1]


def is_known(path: Ingress, data: bytes) -> bool:
    """Whether native code takes a read; the router has it then."""
    taken: bool = path.server.intake.take(path.client, data)
    path.client.request = None
    path.client.request_id = ""
    path.submitted.clear()
    return taken


@needs_native
@pytest.mark.parametrize("head", HEADS[:HEADS_LEARNED])
@pytest.mark.parametrize("body", BODIES[:5])
def test_requests_that_say_nothing_special_are_taken_natively(path: Ingress, head: bytes, body: bytes) -> None:
    """Else the comparison above would compare the plain twin with itself."""
    known(path, whole(head, body % MESSAGES[0]))
    for messages in MESSAGES[:4]:
        assert is_known(path, whole(head, body % messages))
    for messages in MESSAGES[4:]:
        assert not is_known(path, whole(head, body % messages)), messages


@needs_native
@pytest.mark.parametrize(
    "data",
    [*(whole(head, BODIES[0] % MESSAGES[0]) for head in HEADS[HEADS_LEARNED:])]
    + [whole(HEADS[0], body % MESSAGES[0]) for body in BODIES[5:10]],
)
def test_others_are_not(path: Ingress, data: bytes) -> None:
    for _ in range(4):
        path.read(data)
    assert not is_known(path, data)


@needs_native
def test_each_byte_counts(both: tuple[Ingress, Ingress]) -> None:
    data = whole(HEADS[0], BODIES[2] % MESSAGES[0])
    known(both[0], data)
    for _ in range(4):
        both[1].read(data)  # ids go on in step
    for position in range(len(data)):
        changed = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        assert both[0].read(changed) == both[1].read(changed), changed


@needs_native
def test_requests_with_keys_and_models_with_rules_are_for_the_plain_way(path: Ingress) -> None:
    data = whole(HEADS[0], BODIES[0] % MESSAGES[0])

    class Access:
        """As one of keys is: whoever asks has an account."""

        def route(self, head: Head) -> Route:
            route = Route(head)
            route.is_special = True
            return route

    model = path.loop.by_name[MODEL]
    for access, model.has_rules in ((Access(), False), (None, True)):
        path.server.configure(path._daemon.config, access)  # type: ignore[arg-type]
        for _ in range(3):
            path.read(data)
        assert not is_known(path, data)


@needs_native
def test_what_the_loop_changes_is_not_learned(path: Ingress) -> None:
    """Caches put tools into bodies, and where no host can answer another model does."""
    body = BODIES[0] % MESSAGES[0]
    edited, other = add_field(body, b'"a":1'), path._daemon.roster._model("other")
    submit = path.loop.submit

    def change(request: Request, *words: int) -> None:
        submit(request, *words)
        request.body, request.model, request.max_tokens = edited, other, 7

    path.loop.submit = change  # type: ignore[method-assign]
    data = whole(HEADS[0], body)
    for _ in range(3):
        path.read(data)
    found = path.read(data)["submitted"][0]
    assert (found.model, found.fields["body"], found.fields["max_tokens"]) == (MODEL, body, 0)
    assert is_known(path, data)
    assert not is_known(path, whole(HEADS[0], edited))


@needs_native
def test_the_benchmark_measures_the_native_way(path: Ingress) -> None:
    known(path, REQUEST)


@needs_native
def test_a_request_that_is_not_all_there_is_not_taken(path: Ingress) -> None:
    data = whole(HEADS[0], BODIES[2] % MESSAGES[0])
    known(path, data)
    for size in range(len(data)):
        assert not is_known(path, data[:size])
    assert not is_known(path, data + b"x")
    assert not is_known(path, whole(HEADS[0], BODIES[2] % MESSAGES[0], more=1))
    assert not path.server.intake.take(path.client, bytearray(data)), "what is no bytes is for the plain twin"
    long_number = data.replace(b"content-length: ", b"content-length: 000000000000")
    assert is_known(path, long_number), "15 digits at most"
    assert not is_known(path, long_number.replace(b": 0", b": 00"))


@needs_native
def test_a_new_configuration_holds_for_known_requests(path: Ingress) -> None:
    data = whole(HEADS[0], BODIES[0] % MESSAGES[0])
    known(path, data)
    config = path._daemon.config
    body_bytes = len(BODIES[0] % MESSAGES[0]) - 1
    path.server.configure(
        msgspec.structs.replace(config, limits=msgspec.structs.replace(config.limits, body_bytes=body_bytes))
    )
    assert b"413" in path.read(data)["written"][0]
    path.server.configure(config)
    assert not is_known(path, data), "what was learned before is forgotten"
    known(path, data)
    head_bytes = len(HEADS[0])
    path.server.intake.forget(head_bytes, 1 << 20)
    known(path, data)
    longer = data.replace(b"content-length: ", b"content-length: 00")
    assert not is_known(path, longer), "its head is longer than heads may be"
    path.server.intake.forget(1 << 16, body_bytes + 1)
    known(path, data)
    assert not is_known(path, whole(HEADS[0], BODIES[0] % b'[{"role":"user","content":"hi!"}]')), "nor may its body be"


@needs_native
def test_a_model_that_is_another_by_now_is_asked(path: Ingress) -> None:
    data = whole(HEADS[0], BODIES[0] % MESSAGES[0])
    known(path, data)
    other = path._daemon.roster._model("other")
    path.loop.by_name[MODEL] = other
    assert path.read(data)["submitted"][0].model == "other"
    del path.loop.by_name[MODEL]
    assert b"is not known yet" in path.read(data)["written"][0]


@needs_native
def test_hosts_decide_anew_whether_an_answer_is_folded(path: Ingress) -> None:
    data = whole(HEADS[0], BODIES[1] % MESSAGES[0])
    model = path.loop.by_name[MODEL]
    for cancels in (True, False, True):
        for host in model.hosts:
            host.facts = msgspec.structs.replace(host.facts, cancels_whole_answers=True)
        model.hosts[-1].facts = msgspec.structs.replace(host.facts, cancels_whole_answers=cancels)
        assert known(path, data)["submitted"][0].fields["fold"] is not cancels
        path.server.intake.take(path.client, data)
        assert path.submitted[-1].fields["fold"] is not cancels
        path.client.request = None
    model.hosts.clear()
    assert path.read(data)["submitted"][0].fields["fold"] is False


@needs_native
def test_the_last_request_of_a_connection_is_told_so(path: Ingress) -> None:
    data = whole(HEADS[0], BODIES[0] % MESSAGES[0])
    known(path, data)
    path.server.close_after_answers()
    assert known(path, data)["client"][3], "the connection closes behind its answer"


@needs_native
def test_the_shapes_that_are_kept_are_bounded(path: Ingress) -> None:
    def data(number: int) -> bytes:
        return whole(HEADS[0], BODIES[0].replace(b"{", b'{"seed":%d,' % number, 1) % MESSAGES[0])

    count = SHAPES_MAX + LEARNED_OF
    for number in range(count):
        for _ in range(2):
            path.read(data(number))
    assert sum(is_known(path, data(number)) for number in range(count)) == SHAPES_MAX
    for _ in range(2 * LEARNED_OF):
        path.read(data(count))
    assert is_known(path, data(count)), "one that comes often enough takes the place of another"


@needs_native
def test_nothing_is_kept_of_requests(path: Ingress) -> None:
    data = whole(HEADS[0], BODIES[0] % MESSAGES[0])
    known(path, data)
    client, take = path.client, path.server.intake.take

    def refuse(*_: object) -> None:
        raise RequestError(ErrorKind.OVERLOADED, "there is no room")

    def kept_of(submit: Callable[..., None]) -> int:
        path.loop.submit = submit  # type: ignore[method-assign]
        before = 0
        for count in (10, 200):  # what is made once is there after the first
            gc.collect()
            before = sys.getallocatedblocks()
            for _ in range(count):
                with suppress(RequestError):
                    take(client, data)
            client.request = None
            gc.collect()
        return sys.getallocatedblocks() - before

    assert kept_of(lambda *_: None) < 20
    assert kept_of(refuse) < 20


@pytest.mark.parametrize("is_native", [False, pytest.param(True, marks=needs_native)])
def test_ids_are_counted(make: Callable[..., Ingress], is_native: bool) -> None:
    next_id = make(is_native=is_native).server.next_id
    first = int(next_id().removeprefix(PREFIX))
    assert [next_id() for _ in range(12)] == [f"{PREFIX}{first + 1 + index}" for index in range(12)]


@needs_native
def test_the_record_tells_the_id(path: Ingress) -> None:
    data = whole(HEADS[0], BODIES[0] % MESSAGES[0])
    known(path, data)
    for _ in range(12):
        found = path.read(data)["submitted"][0]
        assert found.words[2] == crc32(found.fields["request_id"].encode())
        assert found.words[0] >> 32 == 7
        assert found.words[1] & 0xFFFFFFFF == len(found.fields["body"])


@needs_native
def test_what_goes_in_circles_is_collected(path: Ingress) -> None:
    class Owner:
        counters = path.loop.counters
        by_name = path.loop.by_name

    owner = Owner()
    owner.intake = make_intake(owner, ClientConnection(path.server))  # type: ignore[arg-type, attr-defined]
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None


@needs_native
def test_misuse_is_refused(path: Ingress) -> None:
    intake = path.server.intake
    good: list[Any] = [new_request(), None, "m", b"a", b"b", b"c", 1, False, True, False, 1, 2]
    for position, wrong in ((0, object()), (2, b"m"), (3, "a"), (6, 2), (6, -1), (10, "x")):
        with pytest.raises((TypeError, ValueError)):
            intake.learn(*good[:position], wrong, *good[position + 1 :])
    for arguments in ((), (object(), b""), (path.client,)):
        with pytest.raises(TypeError):
            intake.take(*arguments)
    slots, loop = tuple(slot_names(Request)), path.loop
    made: list[Any] = [path.client, new_request(), slots, loop, {}, print, 1, native.scan.json, "p"]
    for position, wrong in (
        (0, object()), (1, object()), (2, ["egress"]),
        (2, ()),
        (2, ("egress", "metrics")), (2, ("workload",)), (2, (1,)), (4, []), (7, None), (8, "p" * 60)
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError, AttributeError)):
            native.intake.Intake(*made[:position], wrong, *made[position + 1 :])


def test_without_native_code_nothing_is_known() -> None:
    intake = NoIntake()
    assert not intake.take(None, b"")  # type: ignore[arg-type]
    assert not intake.may_learn()
    intake.forget(1, 1)


def test_bodies_of_the_same_form_share_what_is_decoded() -> None:
    """What is learned rests on it."""
    body = BODIES[0] % MESSAGES[0]
    first = decode_body(Endpoint.CHAT, body)
    assert shapes_module.shared_messages(first, body) is None or native.scan is not None
    if native.scan is not None:
        begin, end = shapes_module.shared_messages(decode_body(Endpoint.CHAT, body), body) or (0, 0)
        assert json.loads(body[begin:end]) == json.loads(MESSAGES[0])
