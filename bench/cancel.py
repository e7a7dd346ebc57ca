"""How soon a host learns that a client has left: ``python -m bench.cancel``.

A client, a router and a host with real sockets on the loopback interface. The client asks for a stream and closes its
socket: in the *prefill*, while the host is silent, or in the *decode*, after its first token. Measured is the time from
the client's ``close()`` to the moment at which the host reads the end of the router's connection (FIN to FIN), of many
requests one after the other. The time has two wake-ups in it that are the kernel's, the router's and the host's. Exit
status 1: the 99th percentile of a phase is over ``--limit-ms``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import queue
import selectors
import socket
import sys
import threading
import time
import urllib.request
from time import monotonic_ns
from typing import Final, NamedTuple, Self

from bench import machine, report
from bench.config import MODEL
from bench.processes import READY_LIMIT_S, RouterProcess

PHASES: Final = ("prefill", "decode")
LIMIT_MS: Final = 5.0
WARM_COUNT: Final = 20
_WAIT_S: Final = 10.0
_READ_BYTES: Final = 1 << 16
_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_PAGE: Final = json.dumps({"object": "list", "data": [{"id": MODEL, "owned_by": "bench"}]}).encode()
_BODY: Final = json.dumps({"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "x"}]}).encode()
_REQUEST: Final = b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-length: %d\r\n\r\n%b" % (
    len(_BODY),
    _BODY,
)


class Times(NamedTuple):
    """Of one phase, in milliseconds."""

    phase: str
    request_count: int
    p50: float
    p99: float
    most: float


class Host:
    """A host that never ends an answer, and notes when each of its connections ends; a context manager."""

    def __init__(self) -> None:
        self.talks = False
        """Whether it sends a first token at once, or nothing."""
        self.asked: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.left: queue.SimpleQueue[int] = queue.SimpleQueue()
        """When a request came, and when the router left while it was under way."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._selector = selectors.DefaultSelector()
        self._busy: set[socket.socket] = set()
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join(_WAIT_S)
        self._listener.close()

    def _run(self) -> None:
        while not self._ended:
            for key, _ in self._selector.select(0.1):
                if key.fileobj is self._listener:
                    connection, _ = self._listener.accept()
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._selector.register(connection, selectors.EVENT_READ)
                elif isinstance(key.fileobj, socket.socket):
                    self._read(key.fileobj)

    def _read(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(_READ_BYTES)
        except ConnectionResetError:
            data = b""
        now = monotonic_ns()
        if not data:
            if connection in self._busy:
                self._busy.discard(connection)
                self.left.put(now)
            self._selector.unregister(connection)
            connection.close()
        elif data.startswith(b"GET"):
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(_PAGE), _PAGE))
        elif data.startswith(b"POST"):
            self._busy.add(connection)
            if self.talks:
                connection.sendall(_HEAD + _token("a"))
            self.asked.put(now)


def _token(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    event = b"data: %b\n\n" % json.dumps({"object": "chat.completion.chunk", "choices": [choice]}).encode()
    return b"%x\r\n%b\r\n" % (len(event), event)


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.cancel", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=500, help="requests of each phase (default: 500)")
    parser.add_argument("--limit-ms", type=float, default=LIMIT_MS, help="most of the 99th percentile (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args()
    with Host() as host, RouterProcess([host.url]) as router:
        _wait_ready(router)
        times = [measure(host, router.target, phase, args.count) for phase in PHASES]
    if args.json:
        print(json.dumps({"machine": machine.facts(), "phases": [each._asdict() for each in times]}, indent=2))
    else:
        print(page(times))
    return 1 if any(each.p99 > args.limit_ms for each in times) else 0


def _wait_ready(router: RouterProcess) -> None:
    until_s = time.monotonic() + READY_LIMIT_S
    while time.monotonic() < until_s:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{router.target}/ready", timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"the router was not ready in {READY_LIMIT_S:g} s:\n{router.log_end()}")


def measure(host: Host, target: str, phase: str, count: int) -> Times:
    """Leave so many requests in a phase, one after the other, and return how long the host did not know."""
    host.talks = phase == "decode"
    spans_ms = sorted([_leave(host, target) for _ in range(WARM_COUNT + count)][WARM_COUNT:])
    return Times(phase, count, _quantile(spans_ms, 0.5), _quantile(spans_ms, 0.99), spans_ms[-1])


def _leave(host: Host, target: str) -> float:
    name, _, port = target.rpartition(":")
    with socket.create_connection((name, int(port)), timeout=_WAIT_S) as client:
        client.sendall(_REQUEST)
        host.asked.get(timeout=_WAIT_S)
        if host.talks:
            received = b""
            while b'"a"' not in received:
                received += client.recv(_READ_BYTES)
        closed_ns = monotonic_ns()
    return (host.left.get(timeout=_WAIT_S) - closed_ns) / 1e6


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def page(times: list[Times]) -> str:
    """Return the table with what was measured on."""
    rows = [("phase", "requests", "p50, ms", "p99, ms", "most, ms")]
    rows += [(t.phase, f"{t.request_count:,}", f"{t.p50:.3f}", f"{t.p99:.3f}", f"{t.most:.3f}") for t in times]
    return "\n".join([*(f"* {fact}" for fact in machine.facts()), "", report.aligned(rows)])


if __name__ == "__main__":
    sys.exit(main())
