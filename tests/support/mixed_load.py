"""A router without sockets under all that clients, hosts and its operator do, in an order that a seed tells.

    python -m tests.support.mixed_load SEED STEPS DIRECTORY    what came of it, as JSON

What happens depends on the seed alone, so it comes to the same in a process with native code and in one without
(``RINGROUTER_SCANNER=plain``): the same bytes to each client, the same end of each request.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
from pathlib import Path
from time import monotonic_ns
from typing import Any

from bench.config import MODEL, config_text
from bench.gate_lockstep import HOST_COUNT, REQUEST
from bench.gate_path import TokenPath
from router import native
from router.config import parse
from router.hosts.connection import HostConnection
from router.ingress.http import ClientConnection
from router.request import Request
from tests.captures import capture, stream_names
from tests.support.fed_streams import VARYING, SlowTransport, cut
from tests.support.stream_damage import damage

CLIENTS_MAX = 9
SPARES = 2
ROUNDS = 4
"""Behind each of them all must be as before the first."""
SLOTS = 3
QUIET = "\n[health.breaker]\nfailures = 0\nshare = 0\n"
"""However many of its answers are damaged, a host stays in service."""


def _asked(**changes: Any) -> bytes:
    body: dict[str, Any] = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "x" * 40}]}
    data = json.dumps({name: value for name, value in (body | changes).items() if value is not None}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: mixed\r\ncontent-type: application/json\r\n"
    return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(data), data)


def _with(line: bytes, request: bytes = REQUEST) -> bytes:
    return request.replace(b"\r\n", b"\r\n%b\r\n" % line, 1)


WHOLE_REQUEST = _asked(stream=False)
USUAL = (REQUEST, REQUEST, _asked(), WHOLE_REQUEST, _asked(messages=[{"role": "user", "content": "Gr\u00fc\u00dfe"}]))
ODD = (
    _asked(n=2), _asked(stream_options={"include_usage": True}), _asked(user="somebody"), _asked(model="other"),
    _asked(model="alias"), _with(b"x-request-id: given"), _with(b"x-request-id: caf\xc3\xa9", WHOLE_REQUEST),
    _with(b"connection: close"), _with(b"connection: close", WHOLE_REQUEST), _asked(messages="none"), _asked(model=7),
    REQUEST.replace(b"P/1.1\r\n", b"P/1.0\r\n", 1), WHOLE_REQUEST.replace(b"P/1.1\r\n", b"P/1.0\r\n", 1),
    b"GET /health HTTP/1.1\r\nhost: mixed\r\n\r\n", b"GET /nothing HTTP/1.1\r\n\r\n", REQUEST.replace(b"{", b"[", 1),
    b"no request\r\n\r\n",
)  # fmt: skip
BODY = json.dumps(
    {"choices": [{"index": 0, "message": {"content": "four"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 5}}
).encode()


def _whole(body: bytes, status: bytes = b"200 OK", line: bytes = b"") -> bytes:
    head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n"
    return head % (status, line, len(body)) + body


class Wire(SlowTransport):
    """A socket that may take no more with its next write."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks_next = False
        self.lost = False

    def _write(self, data: bytes) -> None:
        self.written.append(data)
        if self.blocks_next:
            self.blocks_next = False
            self.unsent = 1 << 20
            self.on_block()

    write_eof = SlowTransport.abort


class HostWire(Wire):
    """The same to a host."""

    def get_extra_info(self, name: str) -> Any:
        return None

    def drop(self) -> None:
        """Release what only clients need."""
        self._socket.close()
        self._far_end.close()


class MixedLoad(TokenPath):
    """One router with clients and hosts that come and go."""

    def __init__(self, directory: Path, seed: int) -> None:
        super().__init__(directory)
        self._rng = random.Random(seed)
        self._config = self._texts(directory)
        self._fleet, self._loop = self._daemon.fleet, self._daemon.loop
        self._http = self._daemon.surfaces.http
        self._fleet._connect = lambda _: None  # type: ignore[method-assign]
        self._clients: list[tuple[ClientConnection, Wire]] = []
        self._ahead: dict[ClientConnection, bytes] = {}
        self._wires: list[tuple[HostConnection, HostWire]] = []
        self._reads: dict[HostConnection, list[bytes]] = {}
        self.told: list[str] = []
        self._write_done = self._loop.telemetry.done
        self._loop.telemetry.done = self._keep  # type: ignore[method-assign]
        for host in self._daemon.roster.hosts:
            host.idle.clear()
        self._reload(0)

    @staticmethod
    def _texts(directory: Path) -> list[str]:
        """Return the configurations between which the operator changes."""
        urls = [f"http://127.0.0.1:{1 + index}" for index in range(HOST_COUNT)]
        text = config_text("127.0.0.1:0", urls, directory, slots=SLOTS) + QUIET
        text = text.replace("[hosts.facts]\n", "[hosts.facts]\nidle_close_s = 3600\n")  # else time has a say
        alias = f'\n[models.{MODEL}]\naliases = ["alias"]\n'
        return [
            text,
            text + alias,
            f'{text}\n[models.{MODEL}.routing]\npolicy = "round_robin"\n',
            text.replace("in_flight = ", "waiting = 1\nin_flight = "),
            text.replace(f"slots = {SLOTS}\n", f"slots = {SLOTS}\ndrain = true\n", 1),
        ]

    def _keep(self, request: Request) -> None:
        host = self._loop.host_of[request.host].name if request.host else ""
        how = (request.outcome, request.error, request.status, request.attempt_count, request.flags)
        counts = (request.event_index, request.content_count, request.choice_count)
        self.told.append(f"{[*map(int, how + counts)]} {host} {request.usage!r} {request.message}")
        self._write_done(request)

    # ------------------------------------------------------------ steps
    def step(self) -> None:
        """Do one thing, and what must follow from it."""
        rng = self._rng
        steps = (
            (30, self._ask), (60, self._feed), (3, self._leave), (4, self._block), (6, self._drain), (2, self._die),
            (1, self._change), (2, self._loop.flush), (3, self._go_on_asking), (1, self._block_host),
        )  # fmt: skip
        (step,) = rng.choices([each for _, each in steps], [weight for weight, _ in steps])
        step()
        self._settle()

    def _ask(self) -> None:
        rng = self._rng
        if len(self._clients) < CLIENTS_MAX and rng.random() < 0.3:
            client, wire = ClientConnection(self._http), Wire()
            wire.on_block = client.pause_writing
            client.connection_made(wire)  # type: ignore[arg-type]
            self._clients.append((client, wire))
        if not self._clients:
            return
        client, _ = rng.choice(self._clients)
        if client in self._ahead or (client.request is not None and rng.random() < 0.8):
            return
        data = rng.choice(USUAL if rng.random() < 0.7 else ODD)
        if rng.random() < 0.05:
            data += rng.choice(USUAL)  # at once
        if rng.random() < 0.05:
            data = damage(data, rng)
        if rng.random() < 0.1:
            end = rng.randrange(1, len(data))
            self._ahead[client] = data[end:]
            data = data[:end]
        client.data_received(data)

    def _go_on_asking(self) -> None:
        for client, rest in list(self._ahead.items()):
            del self._ahead[client]
            client.data_received(rest)

    def _feed(self) -> None:
        ready = [connection for connection, _ in self._wires if self._reads.get(connection)]
        if not ready:
            return
        connection = self._rng.choice(ready)
        reads = self._reads[connection]
        connection.data_received(reads.pop(0))

    def _leave(self) -> None:
        if self._clients:
            client, wire = self._rng.choice(self._clients)
            if self._rng.random() < 0.5:
                client.eof_received()
            wire.abort()

    def _block(self) -> None:
        if self._clients:
            self._rng.choice(self._clients)[1].blocks_next = True

    def _block_host(self) -> None:
        if self._wires:
            self._rng.choice(self._wires)[1].blocks_next = True

    def _drain(self) -> None:
        for owner, wire in [*self._clients, *self._wires]:
            if wire.unsent and wire.is_open:
                wire.unsent = 0
                owner.resume_writing()

    def _die(self) -> None:
        if self._wires:
            connection, wire = self._rng.choice(self._wires)
            if self._rng.random() < 0.5:
                connection.eof_received()
            wire.abort()

    def _change(self) -> None:
        self._reload(self._rng.randrange(len(self._config)))

    def _reload(self, which: int) -> None:
        config = parse(self._config[which])
        self._daemon.roster.apply(config, monotonic_ns())
        self._daemon.surfaces.configure(config)

    # ------------------------------------------------------------ what follows
    def _settle(self) -> None:
        for client, wire in [pair for pair in self._clients if not pair[1].is_open]:
            self._lose_client(client, wire)
        for connection, wire in [pair for pair in self._wires if not pair[1].is_open]:
            self._wires.remove((connection, wire))
            self._reads.pop(connection, None)
            connection.connection_lost(None)
            wire.drop()
        for host in self._daemon.roster.hosts:
            self._loop.recovery.standing.set_health(host, healthy=True, now=monotonic_ns())
            while host.queue or len(host.idle) < SPARES:
                before = len(host.queue)
                connection, wire = HostConnection(self._fleet, host), HostWire()
                wire.on_block = connection.pause_writing
                connection.connection_made(wire)  # type: ignore[arg-type]
                self._wires.append((connection, wire))
                self._fleet.keep(connection)
                if len(host.queue) == before and connection not in host.idle:
                    break  # it takes none
        for connection, wire in self._wires:
            if wire.written:
                self.told.append(VARYING.sub(b"", b"".join(wire.written)).decode("latin-1"))
                wire.written.clear()
                self._reads[connection] = self._reads_of()

    def _lose_client(self, client: ClientConnection, wire: Wire) -> None:
        self._clients.remove((client, wire))
        self._ahead.pop(client, None)
        client.connection_lost(None)
        self.told.append(VARYING.sub(b"", b"".join(wire.written)).decode("latin-1"))
        wire._socket.close()
        wire._far_end.close()

    def _reads_of(self) -> list[bytes]:
        rng = self._rng
        if rng.random() < 0.3:
            closing = b"connection: close\r\n" if rng.random() < 0.2 else b""
            status = b"200 OK" if rng.random() < 0.8 else b"500 Oh"
            data = _whole(BODY if rng.random() < 0.8 else damage(BODY, rng), status, closing)
            end = rng.randrange(1, len(data)) if rng.random() < 0.3 else len(data)
            return [data[:end], data[end:]] if end < len(data) else [data]
        answer = capture(rng.choice(stream_names()))
        reads = cut(answer.framed if rng.random() < 0.8 else damage(answer.framed, rng), rng)
        return [answer.head + reads[0], *reads[1:]] if rng.random() < 0.7 else [answer.head, *reads]

    # ------------------------------------------------------------ the end
    def end(self) -> dict[str, Any]:
        """End everything; return what is left that nothing should be left of."""
        self._reload(0)
        self._drain()
        for client, wire in list(self._clients):
            self._lose_client(client, wire)
        for _, wire in self._wires:
            wire.abort()
        self._settle()
        self._loop.flush()
        telemetry, hosts = self._loop.telemetry, self._loop.hosts
        return {
            "running": sum(host.running for host in hosts),
            "queued": sum(len(host.queue) for host in hosts),
            "in flight": len(self._loop.in_flight),
            "waiting": self._loop.waiting_count + sum(model.waiting.size for model in self._loop.models.values()),
            "backlog": self._loop.backlog + telemetry.loop_reader.lag,
            "rows": self._row_count - len(set(telemetry.free_rows)),
            "idle": sum(not wire.is_open for _, wire in self._wires),
            "clients": len(self._http.connections) - 1,  # but for that of the warm-up
        }

    @property
    def _row_count(self) -> int:
        return self._daemon.config.limits.in_flight


async def _run(seed: int, step_count: int, directory: Path) -> dict[str, Any]:
    load = MixedLoad(directory, seed)
    faults: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(repr(context)))
    told: list[str] = []
    left, blocks = [], []
    for _ in range(ROUNDS):
        for _ in range(step_count // ROUNDS):
            load.step()
            await asyncio.sleep(0)  # what was put off to the next turn
        left.append(load.end())
        told.append("\n".join(load.told))  # one block, whatever its length
        load.told.clear()
        gc.collect()
        blocks.append(sys.getallocatedblocks())
    load.close()
    return {"backend": native.BACKEND, "told": told, "left": left, "faults": faults, "blocks": blocks}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(_run(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))))
