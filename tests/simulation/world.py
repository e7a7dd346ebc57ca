"""One run: the router as it is built to serve, between scripted hosts and clients, on a virtual clock.

What the router itself does with the world is replaced, and nothing else: the clock, the event loop, connections, and
two system calls on their sockets. Rings are real ones, in a directory that is thrown away.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import pkgutil
import shutil
import sys
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, Final
from zlib import crc32

import msgspec

import router
import router.attempt as attempt_module
import router.hosts.connection as connection_module
from router import dispatching
from router.config import parse, timeout_s_min
from router.daemon import Daemon
from router.errors import ConfigError, RequestError
from router.hosts.health import HealthMonitor
from router.ingress.http import ClientConnection
from router.ingress.shapes import NoIntake
from router.ingress.submission import is_refusal
from router.telemetry import records
from router.telemetry.counters import Counter
from router.watch import Watch
from tests.simulation import inside
from tests.simulation.clients import ClientPeer, SimClient
from tests.simulation.hosts import MS, SimHost
from tests.simulation.invariants import Inspector
from tests.simulation.network import Network, Transport, kernel
from tests.simulation.scenario import Reload, Scenario
from tests.simulation.virtual_loop import Clock, VirtualLoop

_LIMIT_NS: Final = 900_000 * MS
"""No run is longer: what is not over then hangs."""
_SETTLE_NS: Final = 2500 * MS
"""After which nothing that was cancelled may still be in use: graces of hosts, answers that nobody wants."""
_OTHER_PROCESSES: Final = ("cli", "client", "embedded", "observer", "supervisor", "__main__", "config_reference")
_real_clock: Final = time.monotonic_ns
_QUIET: Final = """
[rings]
requests = 256
tokens = 1024
done = 64
names = 256
[log]
level = "error"
"""


class Result(msgspec.Struct):
    """What came of a run."""

    seed: int
    trace_hash: str
    violations: list[str]
    events: list[str]
    """What happened, line by line; empty unless it was asked for."""
    callback_count: int
    virtual_s: float
    asked: int
    outcomes: dict[str, int]
    ttft_ms: list[float]
    done: list[dict[str, Any]]
    """The done records."""
    counters: dict[int, int]
    """The router's counters at its end, by their ids."""


class _Log:
    """Takes the router's messages; an error in them is one of the run."""

    def __init__(self, report: Callable[[str], None], trace: Callable[[str], None]) -> None:
        self._report = report
        self._trace = trace

    def debug(self, event: str, **values: Any) -> None:
        """Leave it out."""

    def info(self, event: str, **values: Any) -> None:
        self._trace(f"log {event} {values.get('host', '')}")

    warning = info

    def error(self, event: str, **values: Any) -> None:
        self._report(f"the router logged {event!r}: {values}")


class _NoMemory:
    """Gives no memory back to the system: that takes longer than a run."""

    def second(self, *, busy: bool) -> None:
        """Do nothing."""


class _InOrder(dict[Any, None]):
    """A set that is walked through in the order of entry: a set's own order comes from addresses in memory."""

    def add(self, item: Any) -> None:
        """Take in an item."""
        self[item] = None

    def discard(self, item: Any) -> None:
        """Leave an item out."""
        self.pop(item, None)


class World:
    """Everything of one run."""

    def __init__(self, scenario: Scenario, directory: Path, *, keeps_events: bool = False) -> None:
        self.scenario = scenario
        self.directory = directory
        self.clock = Clock(scenario.step_ns)
        self.loop = VirtualLoop(self.clock)
        self.begin_ns = self.clock.now_ns
        self.violations: list[str] = []
        self.events: list[str] = []
        self._keeps_events = keeps_events
        self._hash = hashlib.blake2b(digest_size=8)
        self.network = Network(self.loop, self.trace)
        self.done: list[dict[str, Any]] = []
        self.counters: dict[int, int] = {}
        self.refused: Tally[Counter] = Tally()
        asks = {ask.id: ask for client in scenario.clients for ask in client.asks}
        serials: dict[str, int] = {}
        self.hosts = {h.name: SimHost(h, self.loop, asks, serials, self.report) for h in scenario.hosts}
        self.clients = [SimClient(plan, self.loop, self._connect, self._leaving) for plan in scenario.clients]
        self.is_stopped = False
        self.is_told_to_stop = False
        """The router was stopped while there were clients."""
        self.daemon: Daemon
        self.inspector: Inspector

    # ------------------------------------------------------------ what happened
    def trace(self, what: str) -> None:
        """Note something that happened, in the order in which it did."""
        line = f"{self.clock.now_ns - self.begin_ns} {what}"
        self._hash.update(line.encode())
        if self._keeps_events:
            self.events.append(line)

    def report(self, what: str) -> None:
        """Note that something did not hold."""
        if len(self.violations) < 20:
            self.violations.append(f"{(self.clock.now_ns - self.begin_ns) / MS:.3f} ms: {what}")
            self.trace(f"violation {what}")

    # ------------------------------------------------------------ the router
    def build(self) -> None:
        """Build the router; its loop must run."""
        config = parse(router_toml(self.scenario, self.directory))
        daemon = self.daemon = Daemon(config, _Log(self.report, self.trace))
        self.loop.connector = self._host_connector
        ids = count(1)
        daemon.surfaces.http.intake = NoIntake()  # the native one reads the real clock, and makes other ids
        daemon.surfaces.http.next_id = lambda: f"own-{next(ids)}"
        daemon.surfaces.http._created = 0  # what the list of models says of the time of day
        self._put_in_order(daemon)
        self._listen_in()
        self.watch = Watch(
            daemon.loop,
            threshold_ns=int(config.loop.cycle_threshold_ms * MS),
            shortest_s=timeout_s_min(config),
            clients_under_way=daemon.surfaces.check,
        )
        daemon.loop.on_blocked = self.watch.look_closer  # type: ignore[method-assign]
        self.watch._memory = _NoMemory()  # type: ignore[assignment]
        self.health = HealthMonitor(daemon.loop, config.health, daemon.roster.probed, daemon.log)
        daemon.loop.on_host_added = self.health.watch  # type: ignore[method-assign]
        self.inspector = Inspector(self)
        self.loop.after = self.inspector.after
        daemon._watch, daemon._health = self.watch, self.health
        self.health.start()
        self.watch.start()

    @staticmethod
    def _put_in_order(daemon: Daemon) -> None:
        """Have nothing depend on where objects lie in memory."""
        for owner, name in (
            (daemon.surfaces.http, "connections"),
            (daemon.surfaces.http, "_reading"),
            (daemon.fleet, "_trailing"),
            (daemon.fleet, "_tasks"),
        ):
            assert getattr(owner, name) == set()
            setattr(owner, name, _InOrder())

    def _listen_in(self) -> None:
        """Take note of each record that is written."""
        telemetry = self.daemon.telemetry
        publish_token, publish_done = telemetry.publish_token, telemetry.done_ring.publish_record

        def token(now: int, seq: int, w3: int, w4: int, gap: int, unsent: int, w7: int) -> Any:
            self.inspector.token(now, seq, w3 & 0xFF, w3 >> 8 & 0xFF)
            return publish_token(now, seq, w3, w4, gap, unsent, w7)

        def done(payload: bytes) -> Any:
            self.trace(f"done {crc32(payload):08x}")
            self.done.append(records.decode_done(payload))
            return publish_done(payload)

        self._count_refusals()
        close = telemetry.close

        def closing() -> None:
            if self.is_stopped:
                self.inspector.at_close()
            self.counters = {int(counter): telemetry.counters.get(counter) for counter in Counter}
            close()

        telemetry.close = closing  # type: ignore[method-assign]
        telemetry.publish_token = token  # type: ignore[assignment]
        telemetry.native_publish = None  # or native code would publish unheard
        telemetry.done_ring = _Ring(telemetry.done_ring, done)  # type: ignore[assignment]

    def _count_refusals(self) -> None:
        """Count what is refused before it is a request of the loop: it has no record."""
        server = self.daemon.surfaces.http
        refuse, refused = server._refuse, server.refused

        def count_refusal(connection: ClientConnection, head: Any, error: RequestError) -> None:
            self.refused[Counter.REQUESTS_REFUSED if is_refusal(error) else Counter.REQUESTS_BAD] += 1
            refuse(connection, head, error)

        def count_bad() -> None:
            self.refused[Counter.REQUESTS_BAD] += 1
            refused()

        server._refuse = count_refusal  # type: ignore[method-assign]
        server.refused = count_bad  # type: ignore[method-assign]

    async def _host_connector(self, factory: Callable[[], asyncio.BaseProtocol], address: Any) -> Transport:
        host = self.hosts.get(address[0].removesuffix(".sim"))
        if host is None:
            raise OSError(113, "No route to host")
        transport: Transport = await host.accept(self.network, factory)
        return transport

    def _connect(self, peer: ClientPeer) -> Transport | None:
        if self.is_stopped:
            return None
        plan = peer.client.plan
        connection = ClientConnection(self.daemon.surfaces.http)
        return self.network.connect(connection, peer, int(plan.latency_ms * MS), plan.room)

    def _leaving(self, transport: Transport) -> Callable[[], None]:
        return self.inspector.leaving(transport)

    # ------------------------------------------------------------ a run
    def start(self) -> None:
        """Have everything begin."""
        for host in self.hosts.values():
            host.start(self.begin_ns)
        for client in self.clients:
            client.start(self.begin_ns)
        for at_ms, for_ms in self.scenario.stalls:
            self.loop.at(self.begin_ns + int(at_ms * MS), self._stall, int(for_ms * MS))
        for reload in self.scenario.reloads:
            self.loop.at(self.begin_ns + int(reload.at_ms * MS), self._reload, reload)
        if self.scenario.stop_ms:
            self.loop.at(self.begin_ns + int(self.scenario.stop_ms * MS), self.stop)
        self.inspector.start()

    def _stall(self, for_ns: int) -> None:
        """Let time pass in which nothing of the router runs."""
        self.trace("stall")
        self.clock.now_ns += for_ns
        self.inspector.stalled(for_ns)

    def _reload(self, reload: Reload) -> None:
        if not self.is_stopped:
            self.trace("reload")
            scenario = msgspec.structs.replace(self.scenario, toml=reload.toml, hosts=reload.hosts)
            before = inside.in_force(self.daemon)
            try:
                self.daemon.take_over(parse(router_toml(scenario, self.directory)))
            except ConfigError as error:
                self.trace(f"reload refused: {error}")
                if inside.in_force(self.daemon) != before:
                    self.report(f"a reload was refused ({error}), and something of it holds")
                return
            for what in inside.half_taken(self.daemon):
                self.report(f"a reload was taken over, and {what}")
            self.inspector.reloaded()

    def stop(self) -> None:
        """Stop the router as a signal does."""
        if not self.is_stopped:
            self.is_stopped = True
            self.is_told_to_stop = bool(self.scenario.stop_ms)
            self.trace("stop")
            task = self.loop.create_task(self.daemon._shut_down())
            task.add_done_callback(self._note_stopped)

    def _note_stopped(self, task: asyncio.Task[None]) -> None:
        self.is_down = True
        if task.exception() is not None:
            self.report(f"the router did not stop in order: {task.exception()!r}")

    is_down = False

    def clients_are_done(self) -> bool:
        """Whether nobody wants anything any more."""
        return self.is_down or (
            all(client.is_done for client in self.clients) and not self.daemon.loop.in_flight and not self.is_stopped
        )

    def run(self) -> Result:
        """Run to the end."""
        limit_ns = self.begin_ns + _LIMIT_NS
        asyncio._set_running_loop(self.loop)
        try:
            self.build()
        finally:
            asyncio._set_running_loop(None)
        self.start()
        try:
            if not self.loop.run(self.clients_are_done, limit_ns):
                self.report("the run does not end: " + self.inspector.what_hangs())
            if not self.violations:
                self._settle(limit_ns)
        finally:
            self._close()
        return self._result()

    def _settle(self, limit_ns: int) -> None:
        """Let what is still under way end, look at what is left, and stop the router."""
        if not self.is_stopped:
            quiet_ns = self.clock.now_ns + _SETTLE_NS
            self.loop.run(lambda: self.clock.now_ns >= quiet_ns, quiet_ns)
            self.inspector.at_rest()
            self.stop()
        if not self.loop.run(lambda: self.is_down, limit_ns):
            self.report("the router does not stop")
        far_ns = self.clock.now_ns + 20_000 * MS
        self.loop.run(lambda: all(client.is_done for client in self.clients), far_ns)
        self.inspector.at_end()

    def _close(self) -> None:
        for context in self.loop.faults:
            error = context.get("exception")
            self.report(f"an exception escaped: {context.get('message')}: {error!r} at {_where(error)}")
        self.daemon.listeners.close(for_good=True)
        if not self.is_down:
            self.daemon.telemetry.close()
        self.loop.close()

    def _result(self) -> Result:
        answers = [answer for client in self.clients for answer in client.answers]
        outcomes: dict[str, int] = {}
        for record in self.done:
            name = records.Outcome(record["outcome"]).name.lower()
            outcomes[name] = outcomes.get(name, 0) + 1
        ttft = [(a.first_ns - a.sent_ns) / MS for a in answers if a.first_ns and a.status == 200]
        return Result(
            self.scenario.seed, self._hash.hexdigest(), self.violations, self.events, self.loop.callback_count,
            (self.clock.now_ns - self.begin_ns) / 1e9, len(answers), outcomes, ttft, self.done, self.counters,
        )  # fmt: skip


def _where(error: BaseException | None) -> str:
    """Return where an exception was raised."""
    trace = error.__traceback__ if error is not None else None
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}" if trace is not None else "?"


class _Ring:
    """A ring whose records are seen as they are published."""

    def __init__(self, ring: Any, publish_record: Callable[[bytes], Any]) -> None:
        self._ring = ring
        self.publish_record = publish_record

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ring, name)


def router_toml(scenario: Scenario, directory: Path) -> str:
    """Return the router's configuration for a scenario."""
    hosts = "".join(
        f'\n[[hosts]]\nname = "{h.name}"\nurl = "http://{h.name}.sim:80"\nkind = "{h.kind}"\n{h.toml}\n'
        for h in scenario.hosts
    )
    listen = f'[listen]\nhttp = "127.0.0.1:0"\nzeromq = []\nrun_dir = "{directory}"\n'
    return f"version = 1\n{listen}{_QUIET}{scenario.toml}{hosts}"


@cache
def _router_modules() -> list[ModuleType]:
    """Load whatever the router may load while it runs, so that its clock can be replaced everywhere."""
    for info in pkgutil.walk_packages(router.__path__, "router."):
        if info.name.split(".")[1] not in _OTHER_PROCESSES:
            importlib.import_module(info.name)
    return [module for name, module in sorted(sys.modules.items()) if name.split(".")[0] == "router"]


@contextmanager
def virtual_time(clock: Clock) -> Iterator[None]:
    """Have everything in the router read this clock."""
    read = clock.read
    patched = [m for m in _router_modules() if getattr(m, "monotonic_ns", None) is _real_clock]
    relay, attempt_module._relay = attempt_module._relay, None  # type: ignore[misc]  # it reads the real clock
    dispatch, dispatching._dispatch = dispatching._dispatch, None  # type: ignore[misc]  # so does this
    answers = attempt_module._answers
    attempt_module._answers = connection_module._answers = None  # type: ignore[misc]  # they as well
    for module in patched:
        module.monotonic_ns = read  # type: ignore[attr-defined]
    time.monotonic_ns = read
    try:
        yield
    finally:
        time.monotonic_ns = _real_clock
        attempt_module._relay = relay  # type: ignore[misc]
        dispatching._dispatch = dispatch  # type: ignore[misc]
        attempt_module._answers = connection_module._answers = answers  # type: ignore[misc]
        for module in patched:
            module.monotonic_ns = _real_clock  # type: ignore[attr-defined]


def simulate(scenario: Scenario, directory: Path, *, keeps_events: bool = False) -> Result:
    """Run a scenario to its end and return what came of it."""
    rings = directory / "rings"
    shutil.rmtree(rings, ignore_errors=True)
    world = World(scenario, rings, keeps_events=keeps_events)
    with virtual_time(world.clock), kernel(world.network):
        result = world.run()
    shutil.rmtree(rings, ignore_errors=True)
    return result
