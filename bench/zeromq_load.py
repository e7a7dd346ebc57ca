"""The other side of a ZeroMQ measurement, a process of its own: a client with paced streams, a ping, or an echo.

    python -m bench.zeromq_load streams ENDPOINT --streams 64 --tokens 32 --interval-us 20000 --seconds 3
    python -m bench.zeromq_load ping ENDPOINT --interval-us 2000 --seconds 3
    python -m bench.zeromq_load echo ENDPOINT

Each prints one JSON object. The client is bare pyzmq, in the way of docs/zeromq.md, and trusts the mock host's stamps:
``~t`` and ``~r`` in a token's text are CLOCK_MONOTONIC nanoseconds, so its times are one-way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec
import zmq

from bench.config import MODEL

SILENCE_MS = 5000
PING_HEADER_BYTES = 40
PING_BODY_BYTES = 238
"""What an events message of one token of the mock host has, so that both sides move the same."""
_STAMP_DIGITS = 19
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


@dataclass
class Times:
    """Nanoseconds measured, and what went wrong."""

    ttft_over_ns: list[int] = field(default_factory=list)
    """Request sent → first token read, less the host's own time."""
    token_ns: list[int] = field(default_factory=list)
    """Host's write → client's read, every token but the first."""
    token_count: int = 0
    stream_count: int = 0
    errors: list[str] = field(default_factory=list)

    def as_json(self, seconds: float) -> dict[str, Any]:
        """Return percentiles in µs and rates."""
        return {
            "ttft_over": _percentiles(self.ttft_over_ns),
            "tok": _percentiles(self.token_ns),
            "tok_s": self.token_count / seconds,
            "streams": self.stream_count,
            "errors": self.errors[:5],
            "error_count": len(self.errors),
        }


def _percentiles(values: list[int]) -> dict[str, float]:
    if len(values) < 2:
        return {"n": len(values)}
    cuts = statistics.quantiles(values, n=100)
    return {"n": len(values), "p50": cuts[49] / 1e3, "p90": cuts[89] / 1e3, "p99": cuts[98] / 1e3}


class Streams:
    """Keeps a number of streams going on one socket."""

    def __init__(self, socket: zmq.Socket[bytes], arguments: argparse.Namespace) -> None:
        self._socket = socket
        pace = f"n={arguments.tokens} ttft={arguments.interval_us} itl={arguments.interval_us} sync=0"
        content = f"0000000000 [[mock {pace}]] " + "x" * arguments.prompt_bytes
        self._body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": content}]}).encode()
        self._sent_ns: dict[str, int] = {}
        self._index: dict[str, int] = {}
        self._unread = 0
        self._granted: dict[str, int] = {}
        self._count = 0
        self.token_count = 0
        """Of all tokens, the warm-up's included."""
        self.times = Times()
        self.measuring = False

    def start(self) -> None:
        """Begin one more stream."""
        self._count += 1
        name = str(self._count)
        header = _encode({"v": 1, "verb": "chat", "id": name})
        self._index[name] = 0
        self._sent_ns[name] = time.monotonic_ns()
        self._socket.send_multipart((header, self._body))

    def take(self, frames: list[bytes], now: int) -> str:
        """Take one message; return the name of a stream that has ended, else an empty text."""
        _, kind, name, *more = _decode(frames[0])
        if kind == "events":
            self._events(name, more[0], more[1], frames[1], now)
        elif kind == "done":
            self.times.stream_count += 1
            return str(name)
        elif kind == "error":
            self.times.errors.append(frames[1].decode()[:200])
            return str(name)
        return ""

    def _events(self, name: str, first_index: int, marks: list[list[int]], body: bytes, now: int) -> None:
        times = self.times
        if first_index != self._index[name]:
            times.errors.append(f"stream {name}: index {first_index}, expected {self._index[name]}")
        self._index[name] = first_index + len(marks)
        self._granted[name] = self._granted.get(name, 0) + len(marks)
        self._unread += len(marks)
        if self._granted[name] >= 128 or self._unread >= 2048:
            self._grant()
        tokens = sum(mark[0] == 4 for mark in marks)
        times.token_count += tokens
        self.token_count += tokens
        if not tokens or not self.measuring:
            return
        received = body.find(b"~r")
        at = body.find(b"~t")
        written = int(body[at + 2 : at + 2 + _STAMP_DIGITS])
        if received >= 0:
            host_ns = written - int(body[received + 2 : received + 2 + _STAMP_DIGITS])
            times.ttft_over_ns.append(now - self._sent_ns[name] - host_ns)
        else:
            times.token_ns.append(now - written)

    def _grant(self) -> None:
        grants = [[name, count] for name, count in self._granted.items() if count]
        self._socket.send(_encode({"v": 1, "verb": "credit", "grants": grants}))
        self._granted.clear()
        self._unread = 0


def run_streams(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keep streams going for a while and return what they took."""
    socket = _connected(arguments.endpoint)
    streams = Streams(socket, arguments)
    begin = time.monotonic()
    spread_s = arguments.warm * 0.6
    started = 0
    end = begin + arguments.warm + arguments.seconds
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    while (now_s := time.monotonic()) < end:
        while started < arguments.streams and now_s >= begin + spread_s * started / arguments.streams:
            streams.start()
            started += 1
        if not streams.measuring and now_s >= begin + arguments.warm:
            streams.measuring = True
            streams.times = Times()
            measured_from = now_s
        if not poller.poll(5 if started < arguments.streams else SILENCE_MS):
            if started == arguments.streams:
                streams.times.errors.append("silence")
                break
            continue
        for _ in range(64):
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            if streams.take(frames, time.monotonic_ns()):
                streams.start()
    seconds = time.monotonic() - measured_from
    socket.close(0)
    return streams.times.as_json(seconds) | {"tokens_all": streams.token_count}


def run_ping(arguments: argparse.Namespace) -> dict[str, Any]:
    """Send a message of a token's size now and then, and return the round trips and half of them, in µs."""
    socket = _connected(arguments.endpoint)
    message = (bytes(PING_HEADER_BYTES), bytes(PING_BODY_BYTES))
    trips: list[int] = []
    end = time.monotonic() + arguments.seconds
    while time.monotonic() < end:
        begin_ns = time.monotonic_ns()
        socket.send_multipart(message)
        if not socket.poll(SILENCE_MS):
            raise SystemExit("no echo")
        socket.recv_multipart()
        trips.append(time.monotonic_ns() - begin_ns)
        time.sleep(arguments.interval_us / 1e6)
    socket.close(0)
    return {"round_trip": _percentiles(trips), "one_way": _percentiles([trip // 2 for trip in trips])}


def run_echo(arguments: argparse.Namespace) -> dict[str, Any]:
    """Send everything back, until the standard input ends."""
    socket = zmq.Context().socket(zmq.ROUTER)
    socket.bind(arguments.endpoint)
    print("listening", flush=True)
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    while True:
        ready = dict(poller.poll())
        if sys.stdin.fileno() in ready:
            return {}
        socket.send_multipart(socket.recv_multipart())


def _connected(endpoint: str) -> zmq.Socket[bytes]:
    socket = zmq.Context().socket(zmq.DEALER)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.connect(endpoint)
    return socket


def main() -> int:
    """Do what the command line says and print JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.zeromq_load", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("streams", "ping", "echo"))
    parser.add_argument("endpoint")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=16, help="of each stream")
    parser.add_argument("--interval-us", type=int, default=2000, help="between tokens, and until the first")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--warm", type=float, default=0.5, help="seconds before it counts")
    parser.add_argument("--prompt-bytes", type=int, default=1024)
    arguments = parser.parse_args()
    what = {"streams": run_streams, "ping": run_ping, "echo": run_echo}[arguments.what]
    print(json.dumps(what(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
