"""The router process: builds all parts, runs them on one uvloop, and takes them down in order."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import socket
from pathlib import Path
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

import msgspec
import uvloop

import ringbuffer
from ringbuffer import RingError
from router import native
from router.config import Config, is_tmpfs, model_timeouts, run_dir, split_address, tmpfs_run_dir, zeromq_endpoint
from router.errors import ConfigError, ErrorKind
from router.hosts.fleet import Fleet
from router.hosts.health import HealthMonitor
from router.hosts.host import Host
from router.ingress.http import ClientConnection
from router.ingress.server import HttpServer
from router.ingress.unix_path import make_free
from router.log import log_unhandled, set_up
from router.loop import Loop
from router.models import Model
from router.telemetry import records as rec
from router.telemetry.writer import Telemetry
from router.wait_strategy import stay_awake
from router.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router.caches.front import Front
    from router.caches.intake import Intake
    from router.caches.warm import Warmer
    from router.ingress.zeromq.server import ZmqServer

_MS_NS: Final = 1_000_000
_STOP_POLL_S: Final = 0.02
_OTHER_DESCRIPTORS: Final = 256
"""Rings, listeners, probes, logs, and spare connections to hosts."""


class Daemon:
    """One router. :meth:`run` returns when it was told to stop and has drained."""

    def __init__(self, config: Config, log: Any) -> None:
        self.config = config
        self.log = log
        self.run_dir = _usable_run_dir(run_dir(config), log)
        self.telemetry = Telemetry(self.run_dir / config.listen.instance, config)
        self.hosts = self._make_hosts()
        names = {name for host in config.hosts for name in _names(host.models)}
        connect_s = max([config.timeouts.connect_s, *(model_timeouts(config, n).connect_s for n in names)])
        self.fleet = Fleet(self.hosts, self.telemetry.counters, connect_s)
        self.loop = Loop(config, self.hosts, self.fleet, self.telemetry)
        self.fleet.loop = self.loop
        self.loop.on_health = self._log_health  # type: ignore[method-assign]
        self.server = HttpServer(config, self.loop)
        self.server.ready = self._is_ready
        self._stop = asyncio.Event()
        self._listeners: list[asyncio.Server] = []
        self._socket_files: list[str] = []
        self.zeromq: ZmqServer | None = None
        self._zeromq_endpoints: list[str] = []
        self._was_ready = False
        self._beside: list[Intake | Warmer] = []
        self._front: Front | None = None
        for host in self.hosts:
            for name in _names(host.config.models):
                self._model(name)

    def _make_hosts(self) -> list[Host]:
        hosts = []
        for index, config in enumerate(self.config.hosts):
            host_id = self.telemetry.names.intern(rec.NAME_HOST, config.name)
            hosts.append(Host(config, host_id, index))
        return hosts

    # ------------------------------------------------------------ life
    async def run(self) -> None:
        """Serve until a signal says stop, then drain."""
        event_loop = asyncio.get_running_loop()
        event_loop.set_exception_handler(self._note_unhandled)
        for number in (signal.SIGTERM, signal.SIGINT):
            event_loop.add_signal_handler(number, self._stop.set)
        watch = Watch(
            self.loop,
            threshold_ns=int(self.config.loop.cycle_threshold_ms * _MS_NS),
            shortest_s=self._shortest_timeout_s(),
            clients_under_way=self._check_clients,
        )
        self.loop.on_blocked = watch.look_closer  # type: ignore[method-assign]
        health = HealthMonitor(self.loop, self.config.health, self._probed, self.log)
        await self._start_front()
        await self._listen()
        self._listen_zeromq()
        await self._start_tools_and_answers()
        health.start()
        watch.start()
        awake = stay_awake(event_loop, self.config.loop.wait, self.config.loop.spin_us)
        if awake is not None:
            self.telemetry.publish_token = awake.watching(self.telemetry.publish_token)
            awake.start()
        gc.collect()
        gc.freeze()  # what exists now lives as long as the process: no later collection looks at it
        self.log.info(
            "serving",
            http=self.addresses(),
            zeromq=self._zeromq_endpoints,
            rings=str(self.telemetry.generation.path),
            ring_backend=ringbuffer.BACKEND,
            scanner=native.BACKEND,
            wait=self.config.loop.wait,
            pid=os.getpid(),
        )
        await self._stop.wait()
        if awake is not None:
            awake.stop()
        await self._shut_down(watch, health)

    def _note_unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an exception that escaped a callback, and count it among the errors that ``stats`` shows."""
        log_unhandled(self.log, context)
        self.telemetry.errors.note(f"internal error: {type(context.get('exception')).__name__}", monotonic_ns())

    async def _shut_down(self, watch: Watch, health: HealthMonitor) -> None:
        """Stop accepting, stop admitting, drain, then hosts, then rings."""
        self.log.info("stopping", in_flight=len(self.loop.in_flight), drain_s=self.config.timeouts.drain_s)
        for listener in self._listeners:
            listener.close()
        for path in self._socket_files:
            Path(path).unlink(missing_ok=True)
        if self.zeromq is not None:
            self.zeromq.stop_listening()
        if self._front is not None:
            self._front.drain()
        self.loop.stopping = True
        self.server.close_idle()
        until = monotonic_ns() + int(self.config.timeouts.drain_s * 1e9)
        while self.loop.in_flight and monotonic_ns() < until:
            await asyncio.sleep(_STOP_POLL_S)
        text = "the router was stopped; ask again"
        for request in list(self.loop.in_flight.values()):
            self.loop.time_out(request, ErrorKind.SHUTTING_DOWN, text, monotonic_ns())
        await asyncio.sleep(0)
        for request in list(self.loop.in_flight.values()):  # whose end waits for a client that does not take it
            self.loop.time_out(request, ErrorKind.SHUTTING_DOWN, text, monotonic_ns())
        for connection in list(self.server.connections):
            connection.close_idle()
        if self.zeromq is not None:
            self.zeromq.close()
        for part in self._beside:
            part.stop()
        if self._front is not None:
            self._front.stop()
        await health.stop()
        await self.fleet.close()
        watch.stop()
        self.loop.flush()
        self.telemetry.close()
        self.log.info("stopped")

    def _shortest_timeout_s(self) -> float:
        """Return the shortest of all time-outs: what the tick must never sleep past."""
        config = self.config
        times = [model_timeouts(config, name) for name in config.models] + [config.timeouts]
        named: list[float] = [getattr(t, key) for t in times for key in t.__struct_fields__ if key != "drain_s"]
        return min(value for value in named if value > 0)

    # ------------------------------------------------------------ listening
    async def _listen(self) -> None:
        event_loop = asyncio.get_running_loop()
        for address in self.config.listen.http:
            where = split_address(address, "listen.http")
            try:
                if isinstance(where, str):
                    listener = await event_loop.create_unix_server(
                        self._client, sock=_unix_socket(where), backlog=self.config.listen.backlog
                    )
                    self._socket_files.append(where)
                else:
                    listener = await event_loop.create_server(
                        self._client, where[0], where[1], backlog=self.config.listen.backlog
                    )
            except OSError as error:
                raise ConfigError(
                    f"listen.http = {address!r}: cannot listen there: {error.strerror or error}"
                ) from None
            self._listeners.append(listener)

    def _listen_zeromq(self) -> None:
        endpoints = self.config.listen.zeromq
        if not endpoints:
            return
        from router.ingress.zeromq.server import ZmqServer  # noqa: PLC0415 - only who uses ZeroMQ loads it

        self.zeromq = ZmqServer(
            self.loop,
            body_bytes_max=self.config.limits.body_bytes,
            backlog=self.config.listen.backlog,
            generation_ns=int(self.telemetry.generation.path.name),
            models=self.server.models_page,
            other_connections=lambda: len(self.server.connections),
        )
        self.server.other_connections = lambda zeromq=self.zeromq: zeromq.connection_count  # type: ignore[misc]
        for index, endpoint in enumerate(endpoints):
            key = f"listen.zeromq[{index}]"
            try:
                bound = self.zeromq.bind(zeromq_endpoint(self.config, endpoint, key, self.run_dir))
            except OSError as error:
                raise ConfigError(f"{key} = {endpoint!r}: cannot listen there: {error.strerror or error}") from None
            self._zeromq_endpoints.append(bound)
        if self._front is not None:
            self.zeromq.nearest = self._front.nearest
        self.zeromq.start()

    async def _start_front(self) -> None:
        """Start what answers requests for embeddings and for what is nearest, as far as it is configured."""
        cache = self.config.cache
        if cache.embeddings.enabled or cache.nearest.enabled:
            from router.caches.front import Front  # noqa: PLC0415 - only who has it configured loads it

            try:
                self._front = Front(self.config, self.loop, self.run_dir, self.log)
            except ModuleNotFoundError as error:
                raise ConfigError(f"cache.embeddings needs {error.name}: pip install 'ringrouter[keep]'") from None
            self.server.nearest = self._front.nearest
            await self._front.start()

    async def _start_tools_and_answers(self) -> None:
        """Start what fills tools in, keeps answers and sends prompts ahead, as far as it is configured."""
        cache = self.config.cache
        if cache.tools.sources or cache.responses.enabled:
            from router.caches.intake import Intake  # noqa: PLC0415 - only who has it configured loads it

            self._beside.append(Intake(self.loop, self.config, self.run_dir, self.log))
        if cache.warm:
            from router.caches.warm import Warmer  # noqa: PLC0415 - the same

            self._beside.append(Warmer(self.loop, self.config, self.run_dir, self.log))
        for part in self._beside:
            await part.start()

    def _check_clients(self, now: int) -> bool:
        """Look after clients of all kinds; return whether one needs a closer look."""
        if self.zeromq is not None:
            self.zeromq.check(now)
        return self.server.check(now)

    def _client(self) -> ClientConnection:
        return ClientConnection(self.server)

    def addresses(self) -> list[str]:
        """Return where the router listens, with the ports that the kernel chose for port 0."""
        out = []
        for listener in self._listeners:
            for sock in listener.sockets:
                name = sock.getsockname()
                out.append(f"unix:{name}" if isinstance(name, str) else f"http://{name[0]}:{name[1]}")
        return out

    # ------------------------------------------------------------ hosts
    def _probed(self, host: Host) -> None:
        for model in self.loop.models.values():
            if host in model.hosts and model.name not in host.models:
                model.hosts.remove(host)  # it was started anew without it
        for name in host.models:
            model = self._model(name)
            if host not in model.hosts:
                model.hosts.append(host)
        self.log.info(
            "host probed", host=host.name, kind=host.kind, slots=host.facts.slot_count, models=sorted(host.models)
        )

    def _model(self, name: str) -> Model:
        model = self.loop.models.get(name)
        if model is None:
            model = Model(name, self.telemetry.names.intern(rec.NAME_MODEL, name), self.config)
            self.loop.models[name] = model
        return model

    def _log_health(self, host: Host) -> None:
        if host.healthy:
            self.log.info("host healthy", host=host.name)
        else:
            self.log.warning("host unhealthy", host=host.name, reason=host.last_error)
            self.telemetry.errors.note(f"host {host.name}: unhealthy", monotonic_ns())
        if not self._was_ready and self._is_ready():
            self._was_ready = True
            self.log.info("ready", models=sorted(self.loop.models))

    def _is_ready(self) -> bool:
        """Whether every model has a host that can serve it."""
        models = self.loop.models.values()
        return bool(models) and all(any(h.healthy for h in m.hosts) for m in models)


def _names(models: Sequence[str] | dict[str, str]) -> list[str]:
    return list(models)


def _unix_socket(path: str) -> socket.socket:
    """Bind a unix socket, taking the place of one that a dead process left behind."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        make_free(path)
        sock.bind(path)
        Path(path).chmod(0o660)
    except BaseException:
        sock.close()
        raise
    return sock


def _usable_run_dir(path: Path, log: Any) -> Path:
    """Return a directory on tmpfs for the rings: the one asked for, else one in /dev/shm, said aloud."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if is_tmpfs(path):
        return path
    other = tmpfs_run_dir()
    other.mkdir(mode=0o700, parents=True, exist_ok=True)
    log.warning("run_dir is not on tmpfs, using another directory", run_dir=str(path), instead=str(other))
    return other


def _fit_descriptors(config: Config, log: Any) -> Config:
    """Have descriptors for every client and every request's host; return the configuration with as many clients as
    there is room for.

    libzmq ends the whole process when it has no descriptor left for the next client, so it must not come to that.
    """
    others = config.limits.in_flight + _OTHER_DESCRIPTORS
    wanted = config.limits.connections + others
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    clients = max(soft, wanted) - others
    if clients >= config.limits.connections:
        return config
    clients = max(clients, 1)
    log.warning("too few descriptors for limits.connections", descriptors=hard, connections=clients)
    return msgspec.structs.replace(config, limits=msgspec.structs.replace(config.limits, connections=clients))


async def _run(config: Config, log: Any) -> None:
    await Daemon(config, log).run()


def serve(config: Config) -> int:
    """Run a router in the foreground; returns the exit status. Start-up errors are one line, never a trace."""
    log = set_up(config.log)
    if not config.hosts:
        log.error("cannot start", reason="hosts: none is configured, so every request would be refused")
        return 2
    if ringbuffer.BACKEND == "plain":
        log.warning("the rings run without the C extension: slower, x86-64 only, the same layout")
    if native.BACKEND == "plain":
        log.warning("streams are scanned without the C extension: more time for each request, the same answers")
    config = _fit_descriptors(config, log)
    try:
        uvloop.run(_run(config, log))
    except (ConfigError, RingError, OSError) as error:
        log.error("cannot start", reason=str(error))
        return 2
    return 0
