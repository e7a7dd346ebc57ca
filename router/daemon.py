"""The router process: builds all parts, runs them on one uvloop, and takes them down in order."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import socket
from functools import partial
from pathlib import Path
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

import msgspec
import uvloop

import ringbuffer
from ringbuffer import RingError
from router import native
from router.config import (
    Config,
    check_exposure,
    is_tmpfs,
    load,
    model_timeouts,
    run_dir,
    split_address,
    tmpfs_run_dir,
    zeromq_endpoint,
)
from router.config.changes import changes, taken_over
from router.errors import ConfigError, ErrorKind
from router.hosts.fleet import Fleet
from router.hosts.health import HealthMonitor
from router.hosts.host import Host
from router.ingress.http import ClientConnection
from router.ingress.server import HttpServer
from router.ingress.unix_path import make_free
from router.log import log_unhandled, set_up
from router.loop import Loop
from router.roster import Roster
from router.routing import Reason
from router.telemetry.counters import Counter
from router.telemetry.writer import Telemetry
from router.wait_strategy import stay_awake
from router.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.caches.front import Front
    from router.caches.intake import Intake
    from router.caches.warm import Warmer
    from router.ingress.access import HttpAccess
    from router.ingress.admin import AdminServer
    from router.ingress.zeromq.access import ZmqAccess
    from router.ingress.zeromq.server import ZmqServer
    from router.keys.registry import Registry

_MS_NS: Final = 1_000_000
_STOP_POLL_S: Final = 0.02
_CLIENT_MODE: Final = 0o660
_ADMIN_MODE: Final = 0o600
"""Modes of the files of unix sockets."""
_OTHER_DESCRIPTORS: Final = 256
"""Rings, listeners, probes, logs, and spare connections to hosts."""


class Daemon:
    """One router. :meth:`run` returns when it was told to stop and has drained."""

    def __init__(self, config: Config, log: Any, path: Path | None = None) -> None:
        """``path`` is the file that the configuration is read from again on SIGHUP; without one it stays as it is."""
        self.config = config
        self._path = path
        self._reloading: asyncio.Task[None] | None = None
        self.log = log
        self.run_dir = _usable_run_dir(run_dir(config), log)
        self.telemetry = Telemetry(self.run_dir / config.listen.instance, config)
        self.roster = Roster(config, self.telemetry, log)
        self.fleet = Fleet(self.roster.hosts, self.telemetry.counters, _longest_connect_s(config))
        self.loop = Loop(config, self.roster.hosts, self.fleet, self.telemetry)
        self.loop.recovery.random.seed(self.telemetry.generation.path.name)
        self.fleet.loop = self.loop
        self.roster.attach(self.loop)
        self.loop.on_standing = self._log_standing  # type: ignore[method-assign]
        self.loop.on_drained = self._log_drained  # type: ignore[method-assign]
        self.keys: Registry | None = None
        """Whose keys are whose; there is one since keys were configured first."""
        self.server = HttpServer(config, self.loop)
        self.server.configure(config, self._access(config))
        self.admin: AdminServer | None = None
        self.server.ready = self._is_ready
        self._stop = asyncio.Event()
        self._listeners: list[asyncio.Server] = []
        self._socket_files: list[str] = []
        self.zeromq: ZmqServer | None = None
        self._zeromq_endpoints: list[str] = []
        self._was_ready = False
        self._beside: list[Intake | Warmer] = []
        self._front: Front | None = None

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
            shortest_s=_shortest_timeout_s(self.config),
            clients_under_way=self._check_clients,
        )
        self.loop.on_blocked = watch.look_closer  # type: ignore[method-assign]
        health = HealthMonitor(self.loop, self.config.health, self.roster.probed, self.log)
        self.loop.on_host_added = health.watch  # type: ignore[method-assign]
        self._ask_reload = partial(self._begin_reload, watch, health)
        event_loop.add_signal_handler(signal.SIGHUP, self._ask_reload)
        await self._start_front()
        await self._listen()
        self._listen_zeromq()
        await self._start_tools_and_answers()
        health.start()
        watch.start()
        awake = stay_awake(event_loop, self.config.loop.wait, self.config.loop.spin_us)
        if awake is not None:
            self.telemetry.publish_token = awake.watching(self.telemetry.publish_token)
            self.telemetry.native_publish = None
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
        for connection in [*self.server.connections, *(self.admin.connections if self.admin is not None else ())]:
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

    # ------------------------------------------------------------ another configuration
    def _begin_reload(self, watch: Watch, health: HealthMonitor) -> None:
        """Read the file again; a further signal while it is read has it read once more."""
        before = self._reloading
        self._reloading = asyncio.get_running_loop().create_task(self._reload(before, watch, health))

    async def _reload(self, before: asyncio.Task[None] | None, watch: Watch, health: HealthMonitor) -> None:
        if before is not None:
            await before
        if self._path is None or self.loop.stopping:
            return
        try:
            wanted = await asyncio.to_thread(load, self._path)  # the disk must not hold up a token
            if not wanted.hosts:
                raise ConfigError(f"{self._path}: hosts: none is configured, so every request would be refused")
            self._take_over(wanted, watch, health)
            self._note_reload("")
        except ConfigError as error:
            self._note_reload(str(error))
            self.log.error("configuration not reloaded", reason=str(error))
            self.telemetry.errors.note("the configuration was not reloaded; the log says why", monotonic_ns())
            self.telemetry.counters.add(Counter.CONFIG_RELOAD_ERRORS)

    def _note_reload(self, error: str) -> None:
        if self.admin is not None:
            self.admin.reload_error = error

    def _take_over(self, wanted: Config, watch: Watch, health: HealthMonitor) -> None:
        """Go on with another configuration, in this call; raises :class:`ConfigError` before anything has changed."""
        found = changes(self.config, wanted)
        config = taken_over(self.config, wanted)
        check_exposure(config)  # keys may go together with an address that stays until the restart
        self.roster.apply(config, monotonic_ns())
        self.config = config
        access = self._access(config)
        self.server.configure(config, access)
        if self.admin is not None:
            self.admin.configure(config, access)
            self.admin.registry = self.keys
        if self.zeromq is not None:
            self.zeromq.access = self._zeromq_access(config)
        self.fleet.connect_timeout_s = _longest_connect_s(config)
        health.configure(config.health)
        watch.configure(_shortest_timeout_s(config))
        for each in found:
            if each.needs:
                self.log.warning("configuration change needs a restart", change=each.text, of=each.needs)
            else:
                self.log.info("configuration change", change=each.text)
        self.log.info("configuration reloaded", changes=len(found))
        self.telemetry.counters.add(Counter.CONFIG_RELOADS)

    def _access(self, config: Config) -> HttpAccess | None:
        """Take over the keys of a configuration; return what asks for them, ``None`` where there are none."""
        listen = config.listen
        has_curve = bool(listen.curve_key_file or listen.curve_key_credential)
        if (config.keys or has_curve) and self.keys is None:
            from router.keys.registry import Registry  # noqa: PLC0415 - only who has keys configured loads it

            self.keys = Registry(self.telemetry, self.log)
        if self.keys is not None:
            self.keys.configure(config)
        if self.keys is None or not config.keys:
            return None
        from router.ingress.access import HttpAccess  # noqa: PLC0415 - the same

        return HttpAccess(self.keys, config)

    def _zeromq_access(self, config: Config) -> ZmqAccess | None:
        """Return what asks ZeroMQ clients for their keys, ``None`` where there are none."""
        if self.keys is None or not config.keys:
            return None
        from router.ingress.zeromq.access import ZmqAccess  # noqa: PLC0415 - only who has keys configured loads it

        return ZmqAccess(self.keys)

    # ------------------------------------------------------------ listening
    async def _listen(self) -> None:
        for address in self.config.listen.http:
            self._listeners.append(await self._listen_at(address, "listen.http", self.server, _CLIENT_MODE))
        if not self.config.listen.admin:
            return
        from router.ingress.admin import AdminServer  # noqa: PLC0415 - only who has it configured loads it

        self.admin = AdminServer(self.config, self.loop, reload=self._ask_reload, log=self.log)
        self.admin.configure(self.config, self.server.access)
        self.admin.registry = self.keys
        self.admin.ready = self._is_ready
        for address in self.config.listen.admin:
            self._listeners.append(await self._listen_at(address, "listen.admin", self.admin, _ADMIN_MODE))

    async def _listen_at(self, address: str, key: str, server: HttpServer, mode: int) -> asyncio.Server:
        """Return a listener at an address of the configuration, of ``key``; raises :class:`ConfigError`."""
        event_loop = asyncio.get_running_loop()
        where = split_address(address, key)
        backlog = self.config.listen.backlog
        try:
            client: Callable[[], ClientConnection] = partial(ClientConnection, server)
            if not isinstance(where, str):
                return await event_loop.create_server(client, where[0], where[1], backlog=backlog)
            if uids := self._uids():
                from router.ingress.peers import CheckedConnection  # noqa: PLC0415 - only who has it configured loads it

                client = partial(CheckedConnection, server, uids)
            listener = await event_loop.create_unix_server(client, sock=_unix_socket(where, mode), backlog=backlog)
        except OSError as error:
            raise ConfigError(f"{key} = {address!r}: cannot listen there: {error.strerror or error}") from None
        self._socket_files.append(where)
        return listener

    def _uids(self) -> frozenset[int]:
        """Return the users that may connect to unix sockets, none where the mode of the file decides."""
        if not self.config.listen.unix_users:
            return frozenset()
        from router.ingress.peers import allowed_uids  # noqa: PLC0415 - only who has it configured loads it

        return allowed_uids(self.config)

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
        self._guard_zeromq(self.zeromq)
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

    def _guard_zeromq(self, server: ZmqServer) -> None:
        """Have a server let in only whom the configuration lets in; raises :class:`ConfigError`."""
        listen = self.config.listen
        server.access = self._zeromq_access(self.config)
        server.admit_users(self._uids())
        if not (listen.curve_key_file or listen.curve_key_credential):
            return
        from router.ingress.zeromq.access import ZmqAccess  # noqa: PLC0415 - only who has it configured loads it
        from router.ingress.zeromq.curve import read_keys  # noqa: PLC0415 - the same

        keys = read_keys(self.config)
        assert self.keys is not None, "there is a registry where there is CURVE"
        if keys is not None:
            server.encrypt(keys, server.access or ZmqAccess(self.keys))

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
        near = self.admin is not None and self.admin.check(now)
        return self.server.check(now) or near

    def addresses(self) -> list[str]:
        """Return where the router listens, with the ports that the kernel chose for port 0."""
        out = []
        for listener in self._listeners:
            for sock in listener.sockets:
                name = sock.getsockname()
                out.append(f"unix:{name}" if isinstance(name, str) else f"http://{name[0]}:{name[1]}")
        return out

    # ------------------------------------------------------------ hosts
    def _log_standing(self, host: Host, old_bar: int) -> None:
        bar = host.bar
        if not bar:
            self.log.info("host healthy", host=host.name)
        elif bar == Reason.DRAINING:
            self.log.info("host draining", host=host.name, running=host.running)
        else:
            what = _BARRED.get(bar, "host unhealthy")
            self.log.warning(what, host=host.name, reason=host.last_error)
            self.telemetry.errors.note(f"host {host.name}: {what.removeprefix('host ')}", monotonic_ns())
        if old_bar == Reason.UNHEALTHY and host.healthy:
            self.roster.came_back(host)
        if not self._was_ready and self._is_ready():
            self._was_ready = True
            self.log.info("ready", models=sorted(self.loop.models))

    def _is_ready(self) -> bool:
        """Whether every model has a host that can serve it."""
        models = self.loop.models.values()
        return bool(models) and all(any(h.usable for h in m.hosts) for m in models)

    def _log_drained(self, host: Host) -> None:
        self.log.info("host removed" if host.removed else "host drained", host=host.name)


_BARRED: Final[dict[int, str]] = {
    Reason.BREAKER_OPEN: "host breaker open",
    Reason.EJECTED: "host left out",
}


def _longest_connect_s(config: Config) -> float:
    """Return the longest time that any request gives a connect."""
    return max([config.timeouts.connect_s, *(model_timeouts(config, name).connect_s for name in config.models)])


def _shortest_timeout_s(config: Config) -> float:
    """Return the shortest of all time-outs: what the tick must never sleep past."""
    times = [model_timeouts(config, name) for name in config.models] + [config.timeouts]
    named: list[float] = [getattr(t, key) for t in times for key in t.__struct_fields__ if key != "drain_s"]
    return min(value for value in named if value > 0)


def _unix_socket(path: str, mode: int) -> socket.socket:
    """Bind a unix socket, taking the place of one that a dead process left behind."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        make_free(path)
        os.fchmod(sock.fileno(), mode)  # the file gets this mode: nobody else gets in between it and a chmod
        sock.bind(path)
        Path(path).chmod(mode)  # and what the umask took away
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


async def _run(config: Config, log: Any, path: Path | None) -> None:
    await Daemon(config, log, path).run()


def serve(config: Config, path: Path | None = None) -> int:
    """Run a router in the foreground; returns the exit status. Start-up errors are one line, never a trace.

    ``path`` is where the configuration was read, and is read again on SIGHUP.
    """
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
        uvloop.run(_run(config, log, path))
    except (ConfigError, RingError, OSError) as error:
        log.error("cannot start", reason=str(error))
        return 2
    return 0
