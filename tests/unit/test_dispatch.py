"""The native way of a request to its host beside the plain one: both come to the same, whatever the request is like."""

from __future__ import annotations

import contextlib
import gc
import itertools
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic_ns
from types import FrameType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import router.attempt as attempt_module
import router.loop as loop_module
from bench.config import MODEL
from bench.gate_path import CONNECTIONS_PER_HOST, TokenPath, Transport
from ringbuffer import BroadcastReader, TableReader
from router import dispatching, native
from router.hosts.connection import HostConnection
from router.hosts.host import Host
from router.hosts.spares import SpareTarget
from router.ingress.http import ClientConnection
from router.ingress.shapes import NoIntake
from router.mould import slot_names
from router.request import NO_TERMS, Request, new_request
from router.routing import Candidate
from router.telemetry import records as rec
from router.telemetry.counters import Counter
from router.token_state import PlainTokenState
from router.tracing import Tracer
from tests.support.waiting import shared_memory_directory

needs_native = pytest.mark.skipif(native.dispatch is None, reason="the native code is not compiled here")
TIMES = ("recv", "body_ns", "pub", "deq", "admitted", "routed1", "routed", "conn_ns", "sent_ns")
"""In the order in which they come."""
OTHER_TIMES = {"done_ns", "left_ns", "cancel_latency_ns", "blocked_ns"}
MINUTE_NS = 60_000_000_000


class HostTransport(Transport):
    """A host's socket, which may be closed, take nothing more, or fail."""

    def __init__(self) -> None:
        super().__init__()
        self.is_open = True
        self.connection: Any = None
        self.blocks = self.fails = False
        self.write = self._write

    def _write(self, data: bytes) -> None:
        self.written.append(data)
        if self.blocks:
            self.connection.pause_writing()
        if self.fails:
            raise ZeroDivisionError("planted")

    def is_closing(self) -> bool:
        return not self.is_open

    def abort(self) -> None:
        self.is_open = False

    close = abort


class Requests(TokenPath):
    """A router whose client asks once for each case; what that has come to is told, but no time."""

    def __init__(self, directory: Path, *, is_native: bool) -> None:
        with patch.object(dispatching, "_dispatch", dispatching._dispatch if is_native else None):
            super().__init__(directory)
        self.loop = loop = self._daemon.loop
        self.model = loop.models[MODEL]
        self.hosts = self.model.hosts
        self.telemetry = loop.telemetry
        self.faults: list[str] = []
        self.topped_up: list[tuple[str, int]] = []
        self.ended: list[Request] = []
        self.spare_calls = 0
        self._daemon.surfaces.http.intake = NoIntake()  # makes ids of its own; tests/unit/test_shapes.py is about it
        self._daemon.surfaces.http.next_id = map("rr-{}".format, itertools.count()).__next__
        loop.fleet.request = lambda attempt: attempt.host.queue.append(attempt)  # type: ignore[method-assign]
        loop.fleet.top_up = self._top_up  # type: ignore[method-assign]
        self._write_done = self.telemetry.done
        self.telemetry.done = self._keep  # type: ignore[method-assign]
        path = self.telemetry.generation.path
        self._tokens = BroadcastReader.attach(path / "tokens.ring", join="latest")
        self._rows = TableReader.attach(path / "inflight.tab")

    def _top_up(self, host: Host, now: int) -> None:
        self.topped_up.append((host.name, len(host.idle)))
        assert now > 0

    def _keep(self, request: Request) -> None:
        self.ended.append(request)
        self._write_done(request)

    def get_running_loop(self) -> Any:
        """Stand in for asyncio: there is no event loop, and what it would log is kept."""
        return SimpleNamespace(call_exception_handler=lambda context: self.faults.append(repr(context["exception"])))

    def begin(self) -> None:
        """Put all into the state in which each case begins."""
        self._client = ClientConnection(self._daemon.surfaces.http)
        self._answer = HostTransport()
        self._client.connection_made(self._answer)  # type: ignore[arg-type]
        self.transports = []
        self.model.turn = 0
        for host in self.hosts:
            host.idle, host.queue, host.running, host.spares = [], [], 0, SpareTarget()
            self.loop.recovery.standing.set_health(host, healthy=True, now=0)
            for _ in range(CONNECTIONS_PER_HOST):
                connection, transport = HostConnection(self._daemon.fleet, host), HostTransport()
                transport.connection = connection
                connection.connection_made(transport)  # type: ignore[arg-type]
                self._daemon.fleet.keep(connection)
                self.transports.append(transport)

    def ask(self, data: bytes, states: list[str]) -> dict[str, Any]:
        """Feed a request through in the given states of router and hosts; return all that it came to."""
        self.begin()
        with contextlib.ExitStack() as stack, patch.object(loop_module, "asyncio", self):
            for state in states:
                STATES[state](self, stack)
            self._client.data_received(data)
            request = self._client.request
            told = self._told(request, states)
            self._client.eof_received()
            self._client.connection_lost(None)
            for host in self.hosts:
                host.queue.clear()
            self.loop.flush()
        told["left"] = (len(self.loop.in_flight), len(self.loop._published), len(self.telemetry.free_rows))
        told["ended"] = [(r.outcome, r.error, r.message, r.packed_candidates) for r in self.ended]
        self.ended.clear()
        self.faults.clear()
        self.topped_up.clear()
        self._tokens.poll(1 << 10)
        return told

    def _told(self, request: Request | None, states: list[str]) -> dict[str, Any]:
        events = [rec.decode_token(payload) for _, payload in self._tokens.poll(1 << 10)]
        told = {
            "to hosts": [transport.written for transport in self.transports],
            "closed": [transport.is_open for transport in self.transports],
            "hosts": [
                (h.running, len(h.idle), len(h.queue), [*h.heads], h.spares._count, [p for _, p in h.spares._peaks])
                for h in self.hosts
            ],
            "largest": [h.spares.largest for h in self.hosts],
            "turn": self.model.turn,
            "events": [[each[name] for name in each if name != "t_ns"] for each in events],
            "faults": [*self.faults],
            "topped up": [*self.topped_up],
            "backlog": (self.loop.backlog, self.telemetry.loop_reader.lag),
            "in flight": (len(self.loop.in_flight), self.loop.waiting_count),
            "written": [data.partition(b"server-timing")[0] for data in self._answer.written],
        }
        if request is not None:
            assert in_order(request), [(name, getattr(request, name)) for name in TIMES]
            told["request"] = {name: self._value(name, getattr(request, name)) for name in NAMES}
            told["record"] = self._request_record(request.seq)
            told["stream head"] = self._client._stream_head
            if request.row >= 0:
                row = rec.decode_done(self._rows.read(request.row) or b"")
                row["stamps"] = [*map(bool, row["stamps"])]
                told["row"] = {name: bool(row[name]) if name.endswith("_ns") else row[name] for name in row}
        return told

    def _request_record(self, seq: int) -> list[int]:
        """Return the words of a request record, of its times whether there is one."""
        ring = self.telemetry.requests.segment
        first = ring.slots_word + seq % ring.header.slot_count * ring.slot_words
        words = [ring.words.load_relaxed(first + index) for index in range(8)]
        return [words[0], *map(bool, words[1:4]), *words[4:]]

    def _value(self, name: str, value: Any) -> Any:
        if name in TIMES or name in OTHER_TIMES:
            return bool(value)
        if name == "attempt" and value is not None:
            owned = {"_loop": self.loop, "host": self.loop.host_of[value.host.host_id], "request": self._client.request}
            assert all(getattr(value, key) is owner for key, owner in owned.items())
            return {key: bool(v) if key == "last_read_ns" else plain(v) for key, v in slots_of(value).items()}
        return plain(value)


NAMES = sorted({*slot_names(Request), *vars(PlainTokenState)["__slots__"]})


def slots_of(owner: Any) -> dict[str, Any]:
    return {name: getattr(owner, name) for name in slot_names(type(owner))}


def plain(value: Any) -> Any:
    """Return what can be compared between two routers."""
    if isinstance(value, dict | int | str | bytes | float | tuple | list | None):
        return value
    return "no terms" if value is NO_TERMS else type(value).__name__


def in_order(request: Request) -> bool:
    happened = [getattr(request, name) for name in TIMES if getattr(request, name)]
    return happened == sorted(happened)


# ---------------------------------------------------------------- what requests and routers may be like

HEADS = {
    "plain": b"",
    "an id": b"x-request-id: given-1\r\n",
    "a long id": b"x-request-id: %b\r\n" % (b"long" * 20),
    "an id that is not taken": "x-request-id: gegeben-ü\r\n".encode(),
    "a trace": b"traceparent: 00-%b-%b-01\r\n" % (b"4b" * 16, b"12" * 8),
    "tags": b"x-ringrouter-tag-feature-name: gate\r\nx-ringrouter-tag-user-id: someone\r\n",
    "the last": b"connection: close\r\n",
    "timing": b"x-ringrouter-timing: 1\r\n",
    "a deadline": b"x-ringrouter-deadline-ms: 60000\r\n",
    "a class": b"x-ringrouter-class: interactive\r\n",
}
CHAT = b"/v1/chat/completions"
MESSAGES: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Was ist ü?" * 5}]}
DEEP = b'{"model":"%b","messages":[],"stream":null,"x":%b}' % (MODEL.encode(), b"[" * 1200 + b"]" * 1200)


def chat(**fields: Any) -> tuple[bytes, bytes]:
    return CHAT, msgspec.json.encode(MESSAGES | fields)


BODIES = {
    "a stream": chat(stream=True),
    "blank space": (CHAT, b" \n " + chat(stream=True)[1]),
    "with usage": chat(stream=True, stream_options={"include_usage": True}),
    "without usage": chat(stream=True, stream_options={"include_usage": False}),
    "no stream options": chat(stream=True, stream_options=None),
    "with progress": chat(stream=True, return_progress=True),
    "whole": chat(stream=False),
    "silent": chat(),
    "null": chat(stream=None),
    "a user": chat(stream=True, user="someone"),
    "metadata": chat(stream=True, metadata={"feature_name": "body"}),
    "numbers": chat(stream=True, n=3, max_tokens=70, temperature=0.5),
    "log probabilities": chat(logprobs=True),
    "large": chat(stream=True, x="y" * 70_000),
    "deep": (CHAT, DEEP),
    "text": (b"/v1/completions", msgspec.json.encode({"model": MODEL, "prompt": "x", "stream": True})),
    "vectors": (b"/v1/embeddings", msgspec.json.encode({"model": MODEL, "input": "x"})),
    "another name": chat(stream=True, model="alias"),
    "another name, whole": chat(model="alias"),
    "nobody's": chat(stream=True, model="nobody's"),
}

State = Callable[[Requests, contextlib.ExitStack], object]


def with_facts(**facts: Any) -> State:
    def state(path: Requests, stack: contextlib.ExitStack) -> None:
        for host in path.hosts:
            stack.enter_context(patch.object(host, "facts", msgspec.structs.replace(host.facts, **facts)))

    return state


def with_hosts(**values: Any) -> State:
    def state(path: Requests, stack: contextlib.ExitStack) -> None:
        for host in path.hosts:
            stack.enter_context(patch.multiple(host, **values))

    return state


def with_loop(**values: Any) -> State:
    return lambda path, stack: stack.enter_context(patch.multiple(path.loop, **values))


def of_each_host(change: Callable[[Host], None]) -> State:
    def state(path: Requests, stack: contextlib.ExitStack) -> None:
        for host in path.hosts:
            change(host)

    return state


def with_connections(change: Callable[[HostConnection], None]) -> State:
    def state(path: Requests, stack: contextlib.ExitStack) -> None:
        for host in path.hosts:
            for connection in host.idle:
                change(connection)

    return state


def with_transports(**values: bool) -> State:
    def state(path: Requests, stack: contextlib.ExitStack) -> None:
        for transport in path.transports:
            vars(transport).update(values)

    return state


def with_value(owner: Callable[[Requests], Any], name: str, value: Any) -> State:
    return lambda path, stack: stack.enter_context(patch.object(owner(path), name, value))


def in_flight_full(path: Requests, stack: contextlib.ExitStack) -> None:
    limits = msgspec.structs.replace(path.loop.limits, in_flight=0)
    stack.enter_context(patch.object(path.loop, "limits", limits))


def ring_full(path: Requests, stack: contextlib.ExitStack) -> None:
    """Fill the ring; afterwards all of it is taken off."""
    ring, reader = path.telemetry.requests, path.telemetry.loop_reader
    while ring.try_publish(1, 2, 3, 4, 5, 6, 7) >= 0:
        pass
    stack.callback(lambda: reader.release(ring.segment.published))


def others_first(path: Requests, stack: contextlib.ExitStack) -> None:
    """Something is on the ring that the request comes behind, as in a turn within a turn."""
    sequence = path.telemetry.requests.try_publish(1, 2, 3, 4, 5, 6, 7)
    other = new_request()
    other.seq, other.model, other.egress = sequence, path.model, SimpleNamespace(blocked=False)
    path.loop._published[sequence] = other
    taken: list[int] = []
    take = path.loop.take

    def in_front(request: Request, now: int) -> None:
        taken.append(request.seq)
        if request is other:
            del path.loop.in_flight[sequence]
        else:
            take(request, now)

    stack.enter_context(patch.object(path.loop, "take", in_front))
    stack.callback(lambda: taken == [*range(sequence, path.telemetry.loop_reader.position)] or pytest.fail(f"{taken}"))
    stack.callback(path.loop.drain)  # where the request was refused before it came to the ring


def somebody_in_front(path: Requests, stack: contextlib.ExitStack) -> None:
    take = path.loop.take

    def in_front(request: Request, now: int) -> None:
        request.max_tokens = 4711
        take(request, now)

    stack.enter_context(patch.object(path.loop, "take", in_front))


def no_rows(path: Requests, stack: contextlib.ExitStack) -> None:
    """All rows are those of requests that have ended, until their records are written."""
    rows = path.telemetry.free_rows
    kept = rows[:]
    rows.clear()
    flush = path.loop.flush

    def give_back() -> None:
        if not rows:
            rows.extend(kept)
        flush()

    stack.enter_context(patch.object(path.loop, "flush", give_back))


def peaks(path: Requests, stack: contextlib.ExitStack) -> None:
    """There were bursts: some long ago, some larger than one request."""
    for host in path.hosts:
        host.spares._peaks = deque([(1, 9), (2, 3), (3, 1)])


def broken_fleet(path: Requests, stack: contextlib.ExitStack) -> None:
    """It should make spares and cannot."""
    for host in path.hosts:
        host.spares.largest = 99
    stack.enter_context(patch.object(path.loop.fleet, "top_up", None))


def fresh(path: Requests, stack: contextlib.ExitStack) -> None:
    """Nothing was ever asked on the connections, and none is too old for that."""
    with_facts(idle_close_s=1e9)(path, stack)
    with_connections(lambda each: setattr(each, "idle_since", 0))(path, stack)


class FixedTracer(Tracer):
    """Of which no line depends on when it was made."""

    def lines(self, request: Request) -> bytes:
        return b"traceparent: %d\r\n" % request.attempt_count


class Last:
    """A routing policy that chooses the last host."""

    number = 3

    def choose(self, candidates: list[Candidate], ask: Any) -> int:
        return len(candidates) - 1

    def sent(self, host_id: int, ask: Any) -> None:
        pass

    ended = gone = sent

    def verdicts(self) -> list[tuple[int, int, float]]:
        return [(1, 1, 0.0)]


def with_policy(path: Requests, stack: contextlib.ExitStack) -> None:
    policy = Last()
    asker = SimpleNamespace(ask=lambda *_: SimpleNamespace(policy=policy, held_tokens=0, predicted_ttft_ns=0))
    stack.enter_context(patch.multiple(path.model, policy=policy, asker=asker))


STATES: dict[str, State] = {
    "usual": lambda path, stack: None,
    "ids for hosts": with_facts(request_id_header=True),
    "odd ids": lambda path, stack: stack.enter_context(
        patch.object(path._daemon.surfaces.http, "next_id", lambda: f"rr-ü-{path.loop.counters.get(Counter.REQUESTS)}")
    ),
    "traces for hosts": with_facts(trace_headers=True),
    "a tracer": with_hosts(tracer=FixedTracer("r", 1, 1.0)),
    "progress": with_facts(progress=True),
    "no usage": with_facts(include_usage=False),
    "folded": with_facts(cancels_whole_answers=False),
    "renamed": with_hosts(models={MODEL: "other"}),
    "not its model": with_hosts(models={}),
    "aliased": lambda path, stack: stack.enter_context(patch.dict(path.loop.by_name, {"alias": path.model})),
    "no heads yet": of_each_host(lambda host: host.heads.clear()),
    "no connection": of_each_host(lambda host: host.idle.clear()),
    "one connection": of_each_host(lambda host: host.idle.__delitem__(slice(1, None))),
    "old connections": with_connections(lambda each: setattr(each, "idle_since", each.idle_since - MINUTE_NS)),
    "closed connections": with_transports(is_open=False),
    "lost connections": with_connections(lambda each: setattr(each, "transport", None)),
    "used connections": with_connections(lambda each: setattr(each, "used", True)),
    "fresh connections": fresh,
    "slow hosts": with_transports(blocks=True),
    "writes that fail": with_transports(fails=True),
    "full": of_each_host(lambda host: setattr(host, "running", host.slots)),
    "busy": with_value(lambda path: path.hosts[0], "running", 2),
    "barred": with_hosts(usable=False, bar=4),
    "one barred": lambda path, stack: stack.enter_context(patch.multiple(path.hosts[0], usable=False, bar=6)),
    "bursts": peaks,
    "no rows": no_rows,
    "stopping": with_loop(stopping=True),
    "in flight full": in_flight_full,
    "ring full": ring_full,
    "others first": others_first,
    "somebody in front": somebody_in_front,
    "published by Python": with_value(lambda path: path.telemetry, "native_publish", None),
    "no shared hosts": lambda path, stack: stack.enter_context(patch.object(path.model, "hosts", [])),
    "a broken pick": with_value(lambda path: path.hosts[0], "slots", 0),
    "a broken egress": lambda path, stack: stack.enter_context(
        patch.object(ClientConnection, "prepare", side_effect=ZeroDivisionError("planted"))
    ),
    "a broken fleet": broken_fleet,
    "somebody waits": lambda path, stack: stack.enter_context(patch.object(path.model.waiting, "size", 1)),
    "a policy": with_policy,
}  # fmt: skip


ALONE = {"ring full", "others first"}
"""With others these would fill one ring twice."""


@pytest.fixture(scope="module")
def paths() -> Iterator[tuple[Requests, Requests]]:
    """A router with the native code and one without."""
    with shared_memory_directory() as directory:
        made = tuple(Requests(directory / name, is_native=name == "native") for name in ("native", "plain"))
        yield made  # type: ignore[misc]
        for path in made:
            path.close()


def request_bytes(head: str, body: str, version: bytes = b"1.1") -> bytes:
    path, data = BODIES[body]
    length = b"content-length: %d" % len(data)
    return b"POST %b HTTP/%b\r\nhost: h\r\n%b%b\r\n\r\n%b" % (path, version, HEADS[head], length, data)


def both(paths: tuple[Requests, Requests], data: bytes, *states: str) -> dict[str, Any]:
    """Ask both routers; return what it came to, which is the same."""
    native_told, plain_told = (path.ask(data, [*states]) for path in paths)
    assert native_told.keys() == plain_told.keys()
    for key in plain_told:
        assert native_told[key] == plain_told[key], key
    return native_told


@needs_native
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("body", ["a stream", "whole"])
def test_routers_in_any_state_do_the_same(paths: tuple[Requests, Requests], state: str, body: str) -> None:
    both(paths, request_bytes("plain", body), state)


@needs_native
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("states", [[], ["odd ids"]])
def test_requests_of_any_kind_come_to_the_same(
    paths: tuple[Requests, Requests], head: str, body: str, states: list[str]
) -> None:
    both(paths, request_bytes(head, body), "aliased", "ids for hosts", "traces for hosts", *states)


@needs_native
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.sampled_from([*HEADS]),
    body=st.sampled_from([*BODIES]),
    version=st.sampled_from([b"1.1", b"1.0"]),
    states=st.lists(st.sampled_from(sorted(STATES.keys() - ALONE)), min_size=1, max_size=4, unique=True),
)
def test_everything_at_once_comes_to_the_same(
    paths: tuple[Requests, Requests], head: str, body: str, version: bytes, states: list[str]
) -> None:
    both(paths, request_bytes(head, body, version), *states)


BUCKET_NS = 50_000_000
"""Of :mod:`router.hosts.spares`."""


@needs_native
def test_a_burst_asks_for_more_spares(paths: tuple[Requests, Requests]) -> None:
    data = request_bytes("plain", "a stream")
    for _ in range(20):  # until both are asked within one bucket
        bucket = monotonic_ns() // BUCKET_NS

        def burst(path: Requests, stack: contextlib.ExitStack, bucket: int = bucket) -> None:
            for host in path.hosts:
                host.running, host.spares._bucket, host.spares._count = 6, bucket, 4

        with patch.dict(STATES, burst=burst):
            told = [path.ask(data, ["burst"]) for path in paths]
        if monotonic_ns() // BUCKET_NS == bucket:
            assert told[0] == told[1]
            assert told[0]["largest"] == [5, 1]
            return
    pytest.fail("no two requests within 50 ms")


# ---------------------------------------------------------------- that it is used, and leaves nothing behind

ROUNDS = 40
PLAIN_STEPS = {
    *("submit", "drain", "place", "_go", "connect", "connected", "build", "start", "_book", "show_phase", "identify"),
}


def python_steps(path: Requests, data: bytes, *states: str) -> set[str]:
    """Return which of the plain twin's steps a request takes."""
    taken: set[str] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and "/router/" in frame.f_code.co_filename and "ingress" not in frame.f_code.co_filename:
            taken.add(frame.f_code.co_name)

    path.ask(data, [*states])  # its head is known from here on
    sys.setprofile(note)
    try:
        path.ask(data, [*states])
    finally:
        sys.setprofile(None)
    return taken & PLAIN_STEPS


@needs_native
@pytest.mark.parametrize(
    ("body", "states"),
    [
        ("a stream", ["usual"]),
        ("whole", ["usual"]),
        ("blank space", ["ids for hosts", "traces for hosts"]),
        ("large", ["used connections", "busy", "one barred"]),
        ("vectors", ["published by Python", "slow hosts"]),
    ],
)
def test_the_usual_request_takes_no_step_of_the_twin(
    paths: tuple[Requests, Requests], body: str, states: list[str]
) -> None:
    """Else the comparisons above would compare the plain twin with itself."""
    native_steps, plain_steps = (python_steps(path, request_bytes("plain", body), *states) for path in paths)
    assert native_steps == set()
    assert plain_steps == PLAIN_STEPS


@needs_native
def test_what_is_rare_takes_only_the_steps_that_it_needs(paths: tuple[Requests, Requests]) -> None:
    path, data = paths[0], request_bytes("plain", "a stream")
    assert python_steps(path, data, "renamed") == PLAIN_STEPS - {"submit", "drain", "place", "_go", "connect"}
    assert python_steps(path, data, "no rows") == {"_book", "show_phase", "identify"}
    assert python_steps(path, request_bytes("plain", "a user"), "usual") == {"identify"}


@needs_native
@pytest.mark.parametrize("state", sorted(STATES))
def test_nothing_is_kept_of_a_request(paths: tuple[Requests, Requests], state: str) -> None:
    def kept(path: Requests) -> int:
        for count in (1, ROUNDS):
            gc.collect()
            before = sys.getallocatedblocks()
            for _ in range(count):
                path.ask(data, [state])
        gc.collect()
        return sys.getallocatedblocks() - before

    data = request_bytes("plain", "a stream")
    native_kept, plain_kept = (kept(path) for path in paths)
    assert native_kept < plain_kept + ROUNDS / 2


@needs_native
def test_a_loop_that_is_let_go_is_collected() -> None:
    with shared_memory_directory() as directory:
        path = Requests(directory, is_native=True)
        path.close()
        gc.unfreeze()
        loop = weakref.ref(path.loop)
        assert "submit" in vars(path.loop)
        del path
        gc.collect()
        assert loop() is None


class Careful(loop_module.Loop):
    """A loop that places each request its own way, as one that shares its hosts does."""

    def place(self, request: Request, now: int) -> None:
        self._admit(request, now)


def test_a_loop_with_a_way_of_its_own_keeps_it(paths: tuple[Requests, Requests]) -> None:
    parts = [getattr(paths[0].loop, name) for name in ("config", "hosts", "fleet", "telemetry")]
    assert "submit" not in vars(Careful(*parts))


@needs_native
def test_misuse_is_refused(paths: tuple[Requests, Requests]) -> None:
    submit = paths[0].loop.submit
    for wrong in ((), (None, 1, 2, 3), (new_request(), 1, 2)):
        with pytest.raises(TypeError):
            submit(*wrong)
    with pytest.raises(TypeError):
        submit(new_request(), "x", 2, 3)  # type: ignore[arg-type]
    with pytest.raises(OverflowError):
        submit(new_request(), 1, 1 << 64, 3)
    assert native.dispatch is not None
    probes = dispatching._probes(attempt_module.Attempt())
    constants = (1, 2, 3, 4, 5, b"x")
    for parts, probe, constant in (
        ((), probes, constants),
        ((None,) * 19, probes, constants),
        (None, probes, constants),
        ((), probes[:4], constants),
        ((), probes, constants[:5]),
        ((), (object(),) * 5, constants),
    ):
        with pytest.raises((TypeError, AttributeError)):
            native.dispatch.Dispatch(parts, probe, constant)
