"""Scripted model hosts: they accept, answer probes, work on requests in slots, and get into every kind of trouble."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from random import Random
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tests.simulation.answers import Job, Step, steps
from tests.simulation.network import Peer
from tests.simulation.scenario import Ask, Fate, Host, HostEvent

if TYPE_CHECKING:
    from tests.simulation.network import Network
    from tests.simulation.virtual_loop import VirtualLoop

MS: Final = 1_000_000
_ROOM: Final = 256 * 1024
_decode: Final = msgspec.json.Decoder().decode
_OWNERS: Final = {"llama.cpp": "llamacpp", "vllm": "vllm", "sglang": "sglang", "ollama": "library"}


class SimHost:
    """One host. ``jobs`` is what it works on, ``attempts`` what has come to it."""

    def __init__(
        self,
        plan: Host,
        loop: VirtualLoop,
        asks: dict[str, Ask],
        serials: dict[str, int],
        report: Callable[[str], None],
    ) -> None:
        self.plan = plan
        self.loop = loop
        self.asks = asks
        self.slots = self._slots_most = plan.slots
        self.peers: dict[HostPeer, None] = {}
        self.jobs: dict[Work, None] = {}
        self.attempts: dict[str, list[tuple[int, Job]]] = {}
        """By request: the jobs that have come, with their times, at this host."""
        self.is_deaf = self.is_down = self.is_sick = self.is_failing = False
        self.frozen: list[Callable[[], None]] | None = None
        self.slowness = 1.0
        self.is_deaf_to_whole = plan.kind == "llama.cpp" or "cancels_whole_answers = false" in plan.toml
        """It is said not to notice that nobody waits for a whole answer: the router gives up waiting at total_s."""
        self._serials = serials
        """By request: how many attempts have come to any host. The router does not say, so the hosts count together."""
        self._report = report
        self._changed: list[asyncio.Future[None]] = []

    def start(self, begin_ns: int) -> None:
        """Have the events of its life happen."""
        for event in self.plan.events:
            self.loop.at(begin_ns + int(event.at_ms * MS), self.turn, event)

    def turn(self, event: HostEvent) -> None:
        """Have one of them happen."""
        what = event.what
        self.is_deaf = what == "deaf"
        self.is_sick = what == "sick"
        self.is_failing = what == "failing"
        self.slowness = event.value if what == "slow" else 1.0
        if what in {"down", "slots"}:
            self._drop_all()
        self.is_down = what == "down"
        if what == "slots":
            self.slots = int(event.value)
            self._slots_most = max(self._slots_most, self.slots)
        if what == "frozen" or self.frozen is not None:
            for work in self.jobs:  # nobody can tell it to stop
                work.is_excused = True
        waiting, self.frozen = self.frozen, [] if what == "frozen" else None
        for callback in waiting or ():
            self.loop.soon(callback)
        for future in self._changed:
            if not future.done():
                future.set_result(None)
        self._changed.clear()

    def _drop_all(self) -> None:
        for work in list(self.jobs):
            work.stop()
        for peer in list(self.peers):
            peer.reset()
        self.peers.clear()

    async def accept(self, network: Network, factory: Callable[[], asyncio.BaseProtocol]) -> Any:
        """Take a connection of the router, as the host's kernel does: a frozen host's as well."""
        latency_ns = int(self.plan.latency_ms * MS)
        await asyncio.sleep(2 * latency_ns / 1e9)
        while self.is_deaf:
            future = self.loop.create_future()
            self._changed.append(future)
            await future
        if self.is_down:
            raise ConnectionRefusedError(111, "Connection refused")
        peer = HostPeer(self)
        self.peers[peer] = None
        return network.connect(factory(), peer, latency_ns, _ROOM)

    # ------------------------------------------------------------ work
    def begin(self, peer: HostPeer, path: str, body: dict[str, Any]) -> None:
        """A request for tokens is in."""
        request_id = str(body.get("ask", ""))
        ask = self.asks[request_id]
        serial = self._serials.get(request_id, 0)
        self._serials[request_id] = serial + 1
        fate = ask.fates[min(serial, len(ask.fates) - 1)] if ask.fates else Fate()
        job = Job(body, path, fate, request_id, serial)
        self.attempts.setdefault(request_id, []).append((self.loop.clock.now_ns, job))
        if self.is_failing:
            peer.finish()
            return
        work = Work(self, peer, job)
        work.is_excused = peer.is_over  # it was cancelled while the host was frozen
        self.jobs[work] = None
        self._check_slots()
        work.go_on()

    def _check_slots(self) -> None:
        """From the host's own view: work that nobody can blame the router for does not count."""
        at_work = sum(1 for work in self.jobs if not work.is_excused)
        if at_work > self._slots_most:
            self._report(f"host {self.plan.name} works on {at_work} requests at once and has {self._slots_most} slots")

    @property
    def speed(self) -> float:
        """By how much everything takes longer now."""
        return self.slowness * (1.0 + self.plan.slope * max(len(self.jobs) - 1, 0))

    def page(self, path: str) -> bytes:
        """Return the answer to a probe."""
        if self.is_sick:
            return b"HTTP/1.1 503 X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        if path == "/v1/models":
            owner = _OWNERS.get(self.plan.kind, "somebody")
            body = msgspec.json.encode({"data": [{"id": name, "owned_by": owner} for name in self.plan.models]})
        else:
            body = msgspec.json.encode({"status": "ok", "total_slots": self.slots})
        return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)


class Work:
    """A job under way on a connection."""

    def __init__(self, host: SimHost, peer: HostPeer, job: Job) -> None:
        self.host = host
        self.peer = peer
        self.job = job
        self.is_over = False
        self.is_excused = False
        """It holds a slot in a way that the router cannot know."""
        keeps = host.plan.keeps
        self._steps: Iterator[Step] = steps(job, Random(f"{job.request_id}.{job.serial}"), keeps=keeps)
        peer.work = self

    def go_on(self) -> None:
        """Have the next step happen when it is due."""
        step = next(self._steps, None)
        if step is None:
            self.stop()
            self.peer.work_done()
            return
        host = self.host
        host.loop.at(host.loop.clock.now_ns + int(step[0] * host.speed), self._do, step)

    def _do(self, step: Step) -> None:
        if self.peer.work is not self:
            return
        if self.host.frozen is not None:
            self.host.frozen.append(lambda: self._do(step))
            return
        _, doing, data = step
        if doing == "stop":
            self.is_excused = True
            return
        if doing == "send":
            self.peer.send(data)
        elif doing == "fin":
            self.stop()
            self.peer.finish()
            return
        elif doing == "rst":
            self.stop()
            self.peer.reset()
            return
        else:
            self.stop()
        self.go_on()

    def stop(self) -> None:
        """The slot is free."""
        self.is_over = True
        self.host.jobs.pop(self, None)


class HostPeer(Peer):
    """A host's end of a connection."""

    def __init__(self, host: SimHost) -> None:
        super().__init__(host.loop, f"host {host.plan.name}")
        self.host = host
        self.work: Work | None = None
        self._buffer = b""

    def received(self, data: bytes) -> None:
        if self.host.frozen is not None:
            self.host.frozen.append(lambda: self.received(data))
            return
        self._buffer += data
        if self.work is None:
            self._take()

    def _take(self) -> None:
        """Take a request, if all of it is here."""
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end or self.has_ended:
            return
        lines = head.split(b"\r\n")
        method, path, _ = lines[0].decode().split(" ")
        length = next((int(line[16:]) for line in lines if line.lower().startswith(b"content-length: ")), 0)
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        if method == "GET":
            self.send(self.host.page(path))
            self.finish()
            return
        self.host.begin(self, path, _decode(rest[:length]))

    def work_done(self) -> None:
        """The answer is out."""
        self.work = None
        if self._buffer:
            self._take()

    def closed(self) -> None:
        if self.host.frozen is not None:
            self.host.frozen.append(self.closed)
            return
        self.host.peers.pop(self, None)
        self.finish()
        work = self.work
        if work is None or work.is_over:
            return
        if self.host.plan.cancel_ms < 0 or (self.host.is_deaf_to_whole and not work.job.stream):
            work.is_excused = True
            if self.host.plan.cancel_ms < 0:
                return
        delay_ns = int(self.host.plan.cancel_ms * MS)
        if not delay_ns:
            self._cancelled(work)
        else:
            self.loop.at(self.loop.clock.now_ns + delay_ns, self._cancelled, work)

    def _cancelled(self, work: Work) -> None:
        work.stop()
        self.work = None
