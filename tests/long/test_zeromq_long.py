"""Ten million events to ZeroMQ clients: none is lost, none comes twice, none is torn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import msgspec
import pytest
import zmq

from bench.config import MODEL
from bench.processes import MockHosts
from tests.support.processes import RouterProcess, host_toml
from tests.support.waiting import shared_memory_directory

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
GAPS_US = (0, 0, 0, 100)
"""Between the tokens of each client's streams: in some, reads of the router hold hundreds of events, in others few."""
STREAMS_AT_ONCE = 25
"""Of each client."""
TOKENS_PER_STREAM = 10_000
STREAMS_PER_CLIENT = 250
EVENTS_MIN = 10_000_000
GRANT_STREAM, GRANT_CLIENT = 128, 2048
SILENCE_S = 30.0
pack, unpack = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode


@pytest.fixture
def directory() -> Iterator[Path]:
    with shared_memory_directory() as path:
        yield path


class Reader:
    """A client with so many streams at once, each begun anew until all have been read; grants at half."""

    def __init__(self, endpoint: str, gap_us: int) -> None:
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)
        self.event_count = 0
        self.done_count = 0
        asked = {"model": MODEL, "messages": [], "max_tokens": TOKENS_PER_STREAM, "user": f"[[mock itl={gap_us}]]"}
        self._body = json.dumps(asked).encode()
        self._begun_count = 0
        self._next: dict[str, int] = {}
        """The index that the next event of each stream must have."""
        self._ungranted: dict[str, int] = {}
        self._ungranted_count = 0
        for _ in range(STREAMS_AT_ONCE):
            self._begin()

    def _begin(self) -> None:
        request_id = f"{self._begun_count}"
        self._begun_count += 1
        self._next[request_id] = self._ungranted[request_id] = 0
        self.socket.send_multipart([pack({"v": 1, "verb": "chat", "id": request_id}), self._body])

    def read(self) -> None:
        """Read one message."""
        header, *rest = self.socket.recv_multipart()
        _, kind, request_id, *more = unpack(header)
        if kind == "events":
            self._take(request_id, *more, *rest)
        elif kind == "done":
            count = self._next.pop(request_id)
            assert more[0]["events"] == count == TOKENS_PER_STREAM + 2, "a role and a finish besides"
            self._ungranted_count -= self._ungranted.pop(request_id)
            self.event_count += count
            self.done_count += 1
            if self._begun_count < STREAMS_PER_CLIENT:
                self._begin()
        else:
            assert kind in {"accepted", "alive"}, (kind, more, rest)

    def _take(self, request_id: str, first_index: int, marks: list[tuple[int, int, int]], body: bytes) -> None:
        assert first_index == self._next[request_id], "no event is lost or repeated"
        count = len(marks)
        assert sum(mark[2] for mark in marks) == len(body)
        assert body.count(b"data: ") == count, "each event is whole"
        self._next[request_id] += count
        self._ungranted[request_id] += count
        self._ungranted_count += count
        if self._ungranted_count >= GRANT_CLIENT:
            self._grant(list(self._ungranted))
        elif self._ungranted[request_id] >= GRANT_STREAM:
            self._grant([request_id])

    def _grant(self, request_ids: list[str]) -> None:
        grants = [(request_id, count) for request_id in request_ids if (count := self._ungranted[request_id])]
        self.socket.send(pack({"v": 1, "verb": "credit", "grants": grants}))
        for request_id, count in grants:
            self._ungranted[request_id] = 0
            self._ungranted_count -= count


@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="the mock host is compiled C")
def test_ten_million_events(directory: Path) -> None:
    streams = len(GAPS_US) * STREAMS_AT_ONCE
    with MockHosts([f"unix:{directory}/mock.sock"]) as mock:
        toml = host_toml("mock", mock.urls[0], kind="openai", slots=streams, models=[MODEL])
        with RouterProcess(directory, toml) as router:
            readers = [Reader(f"ipc://{router.instance_dir}/zmq.sock", gap_us) for gap_us in GAPS_US]
            begun_s = monotonic()
            poller = zmq.Poller()
            for reader in readers:
                poller.register(reader.socket, zmq.POLLIN)
            by_socket = {reader.socket: reader for reader in readers}
            while any(reader.done_count < STREAMS_PER_CLIENT for reader in readers):
                ready = poller.poll(round(SILENCE_S * 1000))
                assert ready, "the router has fallen silent"
                for one, _ in ready:
                    by_socket[one].read()
            took_s = monotonic() - begun_s
            event_count = sum(reader.event_count for reader in readers)
            for reader in readers:
                reader.socket.close(0)
    assert event_count >= EVENTS_MIN
    print(f"{event_count:,} events in {took_s:.0f} s: {event_count / took_s:,.0f} a second")  # noqa: T201 - shown by -s
