"""The path of requests and tokens inside one process, without sockets: what a router does is counted, not timed.

    python -m bench.gate_path counts DIRECTORY    calls, allocations and blocks kept, as JSON
    python -m bench.gate_path phases DIRECTORY    streams between marks, to be run under callgrind
    python -m bench.gate_path cold DIRECTORY      the steps of a stream, each with caches that have forgotten everything
    python -m bench.gate_path times DIRECTORY     how long these steps take when one stream follows the other, in µs

The router is built as it is built to serve, and its connections get transports that only collect what is written.
DIRECTORY, on tmpfs, takes the rings.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import monotonic_ns
from types import FrameType
from typing import Any, NamedTuple

from bench.build import BuildError, library
from bench.config import MODEL, config_text
from bench.gate_lockstep import HOST_COUNT, REQUEST, STREAM_END, stream_parts
from router.config import parse
from router.daemon import Daemon
from router.hosts.connection import HostConnection
from router.hosts.host import Host
from router.hosts.kinds import facts_of
from router.ingress.http import ClientConnection
from router.log import set_up

CONNECTIONS_PER_HOST = 4
"""More than the router wants to have in reserve, so that it never connects: there is nothing to connect to."""
STREAMS = 20
COLD_STEPS = ("nothing", "request", "first", "token", "last")
"""What is fed in apart, in the order in which it comes."""
COLD_ROUNDS = 5
TIMED_STREAMS = 5000
WARM_UP_STREAMS = 100
"""The interpreter specializes an instruction after some tens of runs, and again when it has met other types."""
SHORT_TOKENS, LONG_TOKENS = 2, 102
"""Tokens of a stream in the two loads whose difference is what tokens cost."""
KEPT_STREAMS = 200


class Transport:
    """Takes what is written and keeps it until it is looked at."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.write = self.written.append  # in C, as a transport's own write is

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        """Do nothing: everything is taken at once."""

    def get_write_buffer_size(self) -> int:
        """Return 0: everything is taken at once."""
        return 0

    def get_extra_info(self, name: str) -> None:
        """Return None: there is no socket."""

    def is_closing(self) -> bool:
        """Return False."""
        return False

    def abort(self) -> None:
        """Fail: no step of the load ends a connection."""
        raise AssertionError("the router closed a connection that it should keep")

    close = abort


class MarkingTransport(Transport):
    """Marks each write, so that what comes before it is counted apart from what comes after."""

    def __init__(self, mark: Callable[[], None]) -> None:
        super().__init__()

        def write(data: bytes) -> None:
            self.written.append(data)
            mark()

        self.write = write


class TokenPath:
    """One router with one client; streams are fed through it in the steps in which reads come."""

    def __init__(self, directory: Path, transport: Callable[[], Transport] = Transport) -> None:
        self._transport = transport
        urls = [f"http://127.0.0.1:{1 + index}" for index in range(HOST_COUNT)]  # never connected to
        config = parse(config_text("127.0.0.1:0", urls, directory))
        self._parts = {count: list(stream_parts(count)) for count in (SHORT_TOKENS, LONG_TOKENS)}
        self._cold_parts = list(stream_parts(len(COLD_STEPS) - 2))
        self._daemon = Daemon(config, set_up(config.log))
        self._hosts = [pair for host in self._daemon.roster.hosts for pair in self._connected(host)]
        self._client = ClientConnection(self._daemon.surfaces.http)
        self._answer = transport()
        self._client.connection_made(self._answer)  # type: ignore[arg-type]
        self.run(WARM_UP_STREAMS, SHORT_TOKENS)  # memos are filled, and code that specializes itself has done so
        self.run(2, LONG_TOKENS)
        gc.collect()
        gc.freeze()  # as the router does

    def _connected(self, host: Host) -> list[tuple[HostConnection, Transport]]:
        """Do what a probe and connections do, without either."""
        host.facts = facts_of(host.kind, host.config)
        host.models = {MODEL: MODEL}
        self._daemon.loop.models[MODEL].hosts.append(host)
        made = [(HostConnection(self._daemon.fleet, host), self._transport()) for _ in range(CONNECTIONS_PER_HOST)]
        for connection, transport in made:
            connection.connection_made(transport)  # type: ignore[arg-type]
            self._daemon.fleet.keep(connection)
        self._daemon.loop.recovery.standing.set_health(host, healthy=True, now=monotonic_ns())
        return made

    def run(self, stream_count: int, token_count: int) -> None:
        """Feed streams of either length through, one after the other."""
        parts = self._parts[token_count]
        for _ in range(stream_count):
            self._client.data_received(REQUEST)
            connection = self._asked_host()
            for part in parts:
                connection.data_received(part)
            self._check_answer(parts)
        self._daemon.loop.flush()  # what the tick would write

    def run_cold(self, forget: Callable[[], None], mark: Callable[[], None]) -> None:
        """Feed one stream through, with a mark before and behind each of its steps, and the caches empty before it."""

        def step(function: Callable[..., object], *arguments: bytes) -> None:
            forget()
            mark()
            function(*arguments)
            mark()

        step(bytes)
        step(self._client.data_received, REQUEST)
        connection = self._asked_host()
        for part in self._cold_parts:
            step(connection.data_received, part)
        self._check_answer(self._cold_parts)

    def timed(self) -> Iterator[tuple[str, int]]:
        """Feed one stream through; yield each step with the nanoseconds it took."""
        began = monotonic_ns()
        yield "nothing", monotonic_ns() - began
        began = monotonic_ns()
        self._client.data_received(REQUEST)
        yield "request", monotonic_ns() - began
        connection = self._asked_host()
        for step, part in zip(COLD_STEPS[2:], self._cold_parts, strict=True):
            began = monotonic_ns()
            connection.data_received(part)
            yield step, monotonic_ns() - began
        self._check_answer(self._cold_parts)

    def _asked_host(self) -> HostConnection:
        for connection, transport in self._hosts:
            if transport.written:
                transport.written.clear()
                return connection
        raise AssertionError(f"no host was asked; the client got {self._answer.written}")

    def _check_answer(self, parts: list[bytes]) -> None:
        """Whatever is counted, the client must have got the host's tokens, each at once, and the end."""
        written = self._answer.written
        assert written[1:-1] == parts[1:-1]
        assert written[-1].endswith(STREAM_END)
        written.clear()

    def close(self) -> None:
        """Release the rings."""
        self._daemon.telemetry.close()


class Cost(NamedTuple):
    """What is counted, for one token and for one request without its tokens."""

    per_token: float
    per_request: float


def cost(short: float, long: float) -> Cost:
    """Take apart what :data:`STREAMS` streams of each length have cost."""
    per_token = (long - short) / (STREAMS * (LONG_TOKENS - SHORT_TOKENS))
    return Cost(per_token, short / STREAMS - SHORT_TOKENS * per_token)


def _calls(path: TokenPath, token_count: int) -> tuple[int, int]:
    """Return the calls of Python functions and of C functions in :data:`STREAMS` streams."""
    counts = {"call": 0, "c_call": 0, "return": 0, "c_return": 0, "c_exception": 0}

    def count(frame: FrameType, event: str, argument: Any) -> None:  # noqa: ARG001 - the interface of setprofile
        counts[event] += 1

    sys.setprofile(count)
    path.run(STREAMS, token_count)
    sys.setprofile(None)
    return counts["call"], counts["c_call"]


def _allocations(path: TokenPath) -> Cost:
    """Return how often memory was asked for; raises :class:`BuildError` where that cannot be counted."""
    counter = ctypes.PyDLL(str(library("allocations")))
    total: Callable[[], int] = counter.allocations_total
    counter.allocations_total.restype = ctypes.c_ulong
    counter.allocations_start()
    marks = [total()]
    for token_count in (SHORT_TOKENS, LONG_TOKENS):
        path.run(STREAMS, token_count)
        marks.append(total())
    return cost(marks[1] - marks[0], marks[2] - marks[1])


def _kept_blocks(path: TokenPath) -> float:
    """Return how many blocks of memory each stream has left behind."""
    gc.collect()
    before = sys.getallocatedblocks()
    path.run(KEPT_STREAMS, SHORT_TOKENS)
    gc.collect()
    return (sys.getallocatedblocks() - before) / KEPT_STREAMS


def counts(path: TokenPath) -> dict[str, Any]:
    """Return what each kind of thing costs; for what cannot be counted here the reason stands in its place."""
    short, long = (_calls(path, tokens) for tokens in (SHORT_TOKENS, LONG_TOKENS))
    found: dict[str, Any] = {
        "python_calls": cost(short[0], long[0]),
        "c_calls": cost(short[1], long[1]),
        "kept_blocks": _kept_blocks(path),
    }
    try:
        found["allocations"] = _allocations(path)  # last: from here on every allocation is dearer
    except (BuildError, OSError) as error:
        found["allocations"] = str(error)
    return found


def phases(path: TokenPath) -> None:
    """Run streams of either length, with a mark before and behind each load."""
    mark = ctypes.PyDLL(str(library("phase"))).mark_phase
    mark()
    for token_count in (SHORT_TOKENS, LONG_TOKENS):
        path.run(STREAMS, token_count)
        mark()


def times(path: TokenPath) -> str:
    """Return the time of each step when all is in the caches: medians, in microseconds. Reported, never gated."""
    taken: dict[str, list[int]] = {step: [] for step in COLD_STEPS}
    for _ in range(TIMED_STREAMS):
        for step, took_ns in path.timed():
            taken[step].append(took_ns)
    return ", ".join(f"{step} {median(took) / 1e3:.2f}" for step, took in taken.items())


def cold(directory: Path) -> None:
    """Run streams of three tokens, each step with empty caches."""
    mark = ctypes.PyDLL(str(library("phase"))).mark_phase
    forget = ctypes.PyDLL(str(library("forget"))).forget_all
    is_on = False
    path = TokenPath(directory, lambda: MarkingTransport(lambda: mark() if is_on else None))
    is_on = True
    for _ in range(COLD_ROUNDS):
        path.run_cold(forget, mark)
    is_on = False
    path.close()


def main() -> int:
    """Do what the command line says."""
    what, directory = sys.argv[1:]
    if what == "cold":
        cold(Path(directory))
        return 0
    path = TokenPath(Path(directory))
    if what == "counts":
        print(json.dumps(counts(path)))
    elif what == "times":
        print(times(path))
    else:
        phases(path)
    path.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
