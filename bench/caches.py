"""What a cached embedding costs: ``python -m bench.caches [--requests 3000]``.

A router whose store holds the texts, and beside it, in the same run and turn by turn: a bare uvloop protocol that
answers a request of the same bytes with an answer of the same bytes, and a bare libzmq socket that does so. What the
router takes longer is what a hit costs: reading and decoding the request, the look-up, the JSON of 384 numbers, and the
records. Of *a few texts* that JSON is remembered. Then questions for the nearest of 10,000 and of 100,000 vectors,
which the keeper answers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import random
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic_ns, time
from typing import Any, NamedTuple

import msgspec
import numpy as np
import zmq

from bench import machine
from router.keep.tables import FORMAT, Manifest, write_table
from tests.support.embedding_host import EmbeddingHost
from tests.support.keeper import AskedKeeper, command
from tests.support.processes import RouterProcess, host_toml
from tests.support.waiting import wait_until

DIMENSIONS = 384
TEXTS = 512
"""In turn, so that of none the text of its numbers is remembered (:func:`router.caches.entries.float_text`)."""
FEW = 64
HTTP_US_MAX = 100.0
ZEROMQ_US_MAX = 60.0
NEAREST_COUNTS = (10_000, 100_000)
NEAREST_ASKED = 60
_WARM_UP = 200
_US_NS = 1000


class Cost(NamedTuple):
    """Times of one kind of request, in microseconds."""

    p50: float
    p99: float


def cost(times_ns: list[int]) -> Cost:
    """Return the quantiles of times."""
    ordered = sorted(times_ns)
    return Cost(ordered[len(ordered) // 2] / _US_NS, ordered[len(ordered) * 99 // 100] / _US_NS)


# ---------------------------------------------------------------- the bare ones
def serve_uvloop(pipe: Connection, answer: bytes, request_bytes: int) -> None:
    """Answer each ``request_bytes`` with the same bytes, and do nothing else."""
    import asyncio  # noqa: PLC0415

    import uvloop  # noqa: PLC0415

    class Echo(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self._write = transport.write  # type: ignore[attr-defined]
            self._count = 0

        def data_received(self, data: bytes) -> None:
            self._count += len(data)
            while self._count >= request_bytes:
                self._count -= request_bytes
                self._write(answer)

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)

    uvloop.run(run())


def serve_libzmq(pipe: Connection, endpoint: str, answer: list[bytes]) -> None:
    """Answer each message with the same frames."""
    context = zmq.Context()
    sock = context.socket(zmq.ROUTER)
    sock.bind(endpoint)
    pipe.send(True)
    while not pipe.poll(0):
        if sock.poll(200):
            identity, *_ = sock.recv_multipart()
            sock.send_multipart([identity, *answer])
    sock.close(0)
    context.term()


@contextlib.contextmanager
def bare(target: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """Run a bare server in a process of its own; yield what it says first."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()  # or its end would never be noticed
    try:
        yield ours.recv()
    finally:
        ours.send(None)
        process.join(5)
        process.kill()


# ---------------------------------------------------------------- clients
class HttpClient:
    """A blocking client on one connection."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes) -> bytes:
        """Return a whole answer with a content-length."""
        self._socket.sendall(request)
        data = self._socket.recv(1 << 18)
        head_end = data.index(b"\r\n\r\n") + 4
        length = int(data[:head_end].lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(data) < head_end + length:
            data += self._socket.recv(1 << 18)
        return data

    def time_ns(self, request: bytes, size: int = 0) -> int:
        """Return how long an answer takes; of ``size`` bytes where it has no head."""
        begin = monotonic_ns()
        self._socket.sendall(request)
        got = len(self._socket.recv(1 << 18))
        while got < size:
            got += len(self._socket.recv(1 << 18))
        return monotonic_ns() - begin


def post(body: dict[str, Any], path: str = "/v1/embeddings") -> bytes:
    """Return the bytes of a request."""
    raw = json.dumps(body).encode()
    return b"POST %b HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        path.encode(), len(raw), raw,
    )  # fmt: skip


def text(number: int) -> str:
    """Return a text of about 25 words."""
    dice = random.Random(number)
    return f"{number:06d} " + " ".join(dice.choices(("alpha", "beta", "gamma", "delta", "omega"), k=24))


# ---------------------------------------------------------------- the stand
class Stand:
    """A host, a router and a keeper, with all texts in the store."""

    def __init__(self, directory: Path, host: EmbeddingHost) -> None:
        self.directory = directory
        toml = (
            f'[cache]\ndir = "{directory}/cache"\n[cache.embeddings]\nenabled = true\n[cache.nearest]\nenabled = true\n'
            + host_toml("e1", host.url, kind="openai", slots=8, models=["m"])
        )
        self.router = RouterProcess(directory, toml, listen='zeromq = ["ipc"]')
        self.router.write_config()
        self.keeper = AskedKeeper(self.router)
        self.zeromq_endpoint = f"ipc://{self.router.instance_dir}/zmq.sock"

    def fill(self) -> None:
        """Have all texts in the store, and a router that has them from there."""
        path = self.directory / "texts.txt"
        path.write_text("".join(f"{text(n)}\n" for n in range(TEXTS)), encoding="utf-8")
        done = command(self.router.config_path, "warm", str(path), "--model", "m")
        if done.returncode:
            raise RuntimeError(done.stderr)
        self.router.stop()
        self.router.start()


def measure_http(stand: Stand, count: int, form: str, text_count: int) -> tuple[Cost, Cost, int]:
    """Return the costs of a hit and of the bare answer, and the bytes of the answer."""
    requests = [post({"model": "m", "input": text(n), "encoding_format": form}) for n in range(text_count)]
    client = HttpClient(stand.router.port)
    answers = [client.ask(request) for request in requests]
    if any(b"x-ringrouter-cache: hit" not in answer for answer in answers):
        raise RuntimeError("a text is not in the cache")
    sizes = {len(request) for request in requests}
    if len(sizes) != 1:
        requests = [request for request in requests if len(request) == len(requests[0])]
    size = len(answers[0])
    with bare(serve_uvloop, answers[0], len(requests[0])) as port:
        echo = HttpClient(port)
        hits: list[int] = []
        echoes: list[int] = []
        for n in range(count + _WARM_UP):
            request = requests[n % len(requests)]
            echoes.append(echo.time_ns(request, size))
            hits.append(_timed_hit(client, request))
    return cost(hits[_WARM_UP:]), cost(echoes[_WARM_UP:]), size


def _timed_hit(client: HttpClient, request: bytes) -> int:
    begin = monotonic_ns()
    client.ask(request)
    return monotonic_ns() - begin


def measure_zeromq(stand: Stand, count: int, text_count: int) -> tuple[Cost, Cost]:
    """Return the costs of a hit and of the bare answer over ZeroMQ."""
    context = zmq.Context()
    router = context.socket(zmq.DEALER)
    router.connect(stand.zeromq_endpoint)
    questions = [json.dumps({"model": "m", "input": text(n)}).encode() for n in range(text_count)]

    def ask(number: int) -> list[bytes]:
        header = msgspec.msgpack.encode({"v": 1, "verb": "embeddings", "id": f"{number}"})
        router.send_multipart([header, questions[number % text_count]])
        while True:
            frames = router.recv_multipart()
            if msgspec.msgpack.decode(frames[0])[1] == "done":
                return frames

    sample = ask(0)
    endpoint = f"ipc://{stand.directory}/bare-{text_count}.sock"
    hits: list[int] = []
    pings: list[int] = []
    with bare(serve_libzmq, endpoint, sample):
        ping = context.socket(zmq.DEALER)
        ping.connect(endpoint)
        for n in range(count + _WARM_UP):
            header = msgspec.msgpack.encode({"v": 1, "verb": "embeddings", "id": f"{n}"})
            begin = monotonic_ns()
            ping.send_multipart([header, questions[n % text_count]])
            msgspec.msgpack.decode(ping.recv_multipart()[0])
            pings.append(monotonic_ns() - begin)
            begin = monotonic_ns()
            ask(n)
            hits.append(monotonic_ns() - begin)
        ping.close(0)
    router.close(0)
    context.term()
    return cost(hits[_WARM_UP:]), cost(pings[_WARM_UP:])


def measure_nearest(stand: Stand, count: int) -> Cost:
    """Return what the ten nearest of so many vectors cost, asked with a vector."""
    dice = np.random.default_rng(count)
    vectors = dice.standard_normal((count, DIMENSIONS), dtype=np.float32)
    name = f"t{count}"
    manifest = Manifest(FORMAT, name, "1", "m", "", DIMENSIONS, count, int(time()))
    write_table(stand.directory / "cache" / "tables", manifest, vectors, [{"id": n} for n in range(count)])
    client = HttpClient(stand.router.port)
    question = post(
        {"table": name, "vector": [float(v) for v in vectors[count // 2]], "k": 10}, "/v1/ringrouter/nearest"
    )
    wait_until(lambda: client.ask(question).startswith(b"HTTP/1.1 200"), f"table {name}", 60)
    found = json.loads(client.ask(question).partition(b"\r\n\r\n")[2])["data"]
    if found[0]["id"] != count // 2:
        raise RuntimeError("the nearest of a row is not the row itself")
    return cost([_timed_hit(client, question) for _ in range(NEAREST_ASKED)])


def main() -> int:
    """Measure and print; 1 when a hit costs more than it may."""
    parser = argparse.ArgumentParser(prog="python -m bench.caches", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=3000, help="of each kind (3000)")
    parser.add_argument("--directory", type=Path, help="where the store is; a fresh one in /dev/shm by default")
    arguments = parser.parse_args()
    for fact in machine.facts():
        print(fact)
    failed = False
    with (
        tempfile.TemporaryDirectory(dir=arguments.directory or "/dev/shm") as directory,
        EmbeddingHost("e1", dimensions=DIMENSIONS) as host,
    ):
        stand = Stand(Path(directory), host)
        with stand.keeper, stand.router:
            stand.fill()
            print(f"\n{'one text of 384 numbers':<40}{'p50':>9}{'p99':>9}   us")
            for form, text_count in (("float", TEXTS), ("float", FEW), ("base64", TEXTS)):
                hit, echo, size = measure_http(stand, arguments.requests, form, text_count)
                few = ", a few texts" if text_count == FEW else ""
                print(f"{f'HTTP, {form}, {size:,} bytes{few}':<40}{hit.p50:>9.1f}{hit.p99:>9.1f}")
                print(f"{'  bare uvloop':<40}{echo.p50:>9.1f}{echo.p99:>9.1f}")
                print(f"{'  a hit costs':<40}{hit.p50 - echo.p50:>9.1f}{'':>9}   at most {HTTP_US_MAX:g}")
                failed = failed or hit.p50 - echo.p50 > HTTP_US_MAX
            for text_count in (TEXTS, FEW):
                hit, ping = measure_zeromq(stand, arguments.requests, text_count)
                few = ", a few texts" if text_count == FEW else ""
                print(f"{f'ZeroMQ, float{few}':<40}{hit.p50:>9.1f}{hit.p99:>9.1f}")
                print(f"{'  bare libzmq':<40}{ping.p50:>9.1f}{ping.p99:>9.1f}")
                print(f"{'  a hit costs':<40}{hit.p50 - ping.p50:>9.1f}{'':>9}   at most {ZEROMQ_US_MAX:g}")
                failed = failed or hit.p50 - ping.p50 > ZEROMQ_US_MAX
            print(f"\n{'the ten nearest of':<28}{'p50':>9}{'p99':>9}   ms")
            for count in NEAREST_COUNTS:
                found = measure_nearest(stand, count)
                print(f"{f'{count:,}':<28}{found.p50 / 1000:>9.2f}{found.p99 / 1000:>9.2f}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
