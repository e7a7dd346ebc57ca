"""Streams fed through a router without sockets, by native code or by its plain twins; what each came to is compared."""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Callable
from contextlib import ExitStack
from enum import IntEnum
from pathlib import Path
from typing import Any
from unittest.mock import patch

import router.attempt as attempt_module
import router.hosts.connection as connection_module
from bench.gate_lockstep import REQUEST
from bench.gate_path import CONNECTIONS_PER_HOST, TokenPath, Transport
from ringbuffer import BroadcastReader
from router.answers import answers
from router.config import BreakerConfig, Health
from router.hosts.connection import HostConnection
from router.ingress.http import ClientConnection
from router.mould import slot_names
from router.request import Request
from router.telemetry import records as rec
from router.token_state import plain_record_events, record_events

FIELDS = ("event_index", "content_count", "bytes_out", "early_tokens", "visible_tokens")
TIMES = ("tok1", "out1", "tok_n", "out_n", "stall_max_ns")

CLIENT_FIELDS = ("_buffer", "_close_after", "_stream_head", "blocked", "request", "request_id")
CONNECTION_FIELDS = ("_paused", "attempt", "blocked", "take", "used")
OTHERS = {
    "body_ns", "cancel_latency_ns", "conn_ns", "done_ns", "egress", "identities", "identity", "last_out_ns", "left_ns",
    "model", "request_id", "seq", "taken_bytes", "terms", "ask", "failed_attempts", "check_ns",
    "packed_candidates", "packed_attempts", "blocked_ns", "bytes_out", "headers", "host", "tried",
}  # fmt: skip
"""Of a request what differs from one to the next, or is compared otherwise."""
VARYING = re.compile(rb"dur=[0-9.]+|(?<=x-request-id: )(?!caf)[^\r]+|(?<=x-ringrouter-host: )[^\r]+")
"""What differs from one head to the next: times, ids that the router gave, and which host answered."""
STAMPS = {
    "recv", "pub", "deq", "admitted", "routed1", "routed", "sent_ns", "hfb", "tok1", "out1", "tok_n", "out_n", "ttfc",
    "ttfo", "stall_max_ns",
}  # fmt: skip


def _shown(request: Request) -> dict[str, Any]:
    """Return what stands in a request, of times whether they were taken."""
    names = [name for name in slot_names(Request) if name not in OTHERS]
    found = {name: getattr(request, name) for name in names}
    found |= {name: bool(found[name]) for name in STAMPS & found.keys()}
    return {name: (type(value), value) if isinstance(value, IntEnum) else value for name, value in found.items()}


class SlowTransport(Transport):
    """A client's or a host's socket that takes no more from a given write on, until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.is_open = True
        self.paused = False
        self.blocks_at: set[int] = set()
        self.unsent = 0
        self.on_block: Callable[[], None] = lambda: None
        self.write = self._write  # type: ignore[assignment]
        self._socket, self._far_end = socket.socketpair()

    def _write(self, data: bytes) -> None:
        self.written.append(data)
        if len(self.written) in self.blocks_at:
            self.unsent = 1 << 20
            self.on_block()

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, name: str) -> Any:
        return self._socket if name == "socket" else None

    def is_closing(self) -> bool:
        return not self.is_open

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def abort(self) -> None:
        self.is_open = False

    close = abort


class Streams(TokenPath):
    """A router whose requests are kept when they end, with everything that was written and recorded."""

    def __init__(self, directory: Path, *, is_native: bool, has_answers: bool = False) -> None:
        """``is_native``: tokens are relayed by native code; ``has_answers``: and what is more than a token."""
        super().__init__(directory)
        self._in_use = [
            (attempt_module, "_relay", attempt_module._relay if is_native else None),
            (attempt_module, "record_events", record_events if is_native else plain_record_events),
            (attempt_module, "_answers", answers if has_answers else None),
            (connection_module, "_answers", answers if has_answers else None),
        ]
        self._daemon.fleet.top_up = lambda *_: None  # type: ignore[method-assign]
        self.loop = self._daemon.loop
        quiet = Health(breaker=BreakerConfig(failures=0, share=0))  # damaged streams are the hosts' faults
        self.loop.recovery.standing.configure(quiet, 0)
        self.ended: list[Request] = []
        self._write_done = self.loop.telemetry.done
        self.loop.telemetry.done = self._keep  # type: ignore[method-assign]
        self._tokens = BroadcastReader.attach(self.loop.telemetry.generation.path / "tokens.ring", join="latest")

    def _connect_anew(self) -> None:
        """Give client and hosts fresh connections: an answer may have ended the last ones."""
        self._client = ClientConnection(self._daemon.surfaces.http)
        self._answer = SlowTransport()
        self._client.connection_made(self._answer)  # type: ignore[arg-type]
        self._hosts = []
        for host in self._daemon.roster.hosts:
            host.idle.clear()
            self.loop.recovery.standing.set_health(host, healthy=True, now=0)
            for _ in range(CONNECTIONS_PER_HOST):
                connection, transport = HostConnection(self._daemon.fleet, host), SlowTransport()
                connection.connection_made(transport)  # type: ignore[arg-type]
                self._daemon.fleet.keep(connection)
                self._hosts.append((connection, transport))

    def _keep(self, request: Request) -> None:
        self.ended.append(request)
        self._write_done(request)

    def stream(
        self, reads: list[bytes], blocks_at: set[int], drains_at: set[int], asked: bytes = REQUEST
    ) -> dict[str, Any]:
        """Feed one answer through; return all that it came to but times."""
        with ExitStack() as stack:
            for module, name, value in self._in_use:
                stack.enter_context(patch.object(module, name, value))
            return self._stream(reads, blocks_at, drains_at, asked)

    def _stream(self, reads: list[bytes], blocks_at: set[int], drains_at: set[int], asked: bytes) -> dict[str, Any]:
        self._connect_anew()
        client, answer = self._client, self._answer
        assert isinstance(answer, SlowTransport)
        answer.blocks_at, answer.on_block = blocks_at, client.pause_writing
        client.data_received(asked)
        host, pauses = self._asked_host(), []
        for index, read in enumerate(reads):
            if host.transport is None or host.transport.is_closing():
                break
            host.data_received(read)
            pauses.append(host.transport.paused)  # type: ignore[attr-defined]
            if index in drains_at:
                self._drain()
        self._drain()
        host.eof_received()
        self._drain()
        client.eof_received()  # where the request has gone on to another host
        self.loop.flush()
        (request,) = self.ended
        self.ended.clear()
        events = [rec.decode_token(payload) for _, payload in self._tokens.poll(1 << 16)]
        head, _, written = b"".join(answer.written).partition(b"\r\n\r\n")
        answer.written.clear()
        request.bytes_out -= len(head)  # it says how long things took, in as many digits as that needs
        return {
            "head": VARYING.sub(b"", head),
            "written": written,
            "pauses": pauses,
            "request": _shown(request),
            "client": [getattr(client, name) for name in CLIENT_FIELDS],
            "hosts": [(h.running, h.served_count, len(h.idle), len(h.queue)) for h in self._daemon.roster.hosts],
            "connections": [[getattr(c, name) for name in CONNECTION_FIELDS] for c, _ in self._hosts],
            "loop": (len(self.loop.in_flight), self.loop.waiting_count, len(self.loop.fleet._trailing)),
            "outcome": (request.outcome, request.error, request.status),
            "counts": [getattr(request, name) for name in FIELDS],
            "happened": [bool(getattr(request, name)) for name in TIMES],
            "ordered": 0 <= request.tok1 <= request.tok_n <= request.done_ns,
            "events": [
                (
                    e["kind"],
                    e["flags"],
                    e["choice"],
                    e["event_index"],
                    e["bytes"],
                    e["gap_ns"] > 0,
                    e["client_unsent_bytes"],
                )
                for e in events
            ],
        }

    def _drain(self) -> None:
        answer = self._answer
        assert isinstance(answer, SlowTransport)
        if answer.unsent:
            answer.unsent = 0
            self._client.resume_writing()


def cut(data: bytes, rng: random.Random) -> list[bytes]:
    """Cut a body into reads: mostly one chunk each, as hosts write, sometimes anywhere."""
    reads, rest = [], data
    while rest:
        end = rest.find(b"\n\n\r\n") + 4
        if end < 4 or rng.random() < 0.1:
            end = rng.randrange(1, min(len(rest), 400) + 1)
        reads.append(rest[:end])
        rest = rest[end:]
    return reads
