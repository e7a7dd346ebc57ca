"""The router process: builds all parts, runs them on one uvloop, and takes them down in order."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import sys
from contextlib import suppress
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
from router.listeners import Listener, Listeners
from router.log import log_unhandled, set_up
from router.loop import Loop
from router.roster import Roster
from router.routing import Reason
from router.service import handover, inherited
from router.service.notify import Notifier
from router.service.pulse import EXTENSION_S, Pulse
from router.telemetry.counters import Counter
from router.telemetry.writer import Telemetry
from router.wait_strategy import stay_awake
from router.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from router.caches.front import Front
    from router.caches.intake import Intake
    from router.caches.warm import Warmer
    from router.config import HostConfig
    from router.hosts.shared_slots import SlotTable
    from router.ingress.access import HttpAccess
    from router.ingress.admin import AdminServer
    from router.ingress.zeromq.access import ZmqAccess
    from router.ingress.zeromq.server import ZmqServer
    from router.keys.registry import Registry

_MS_NS: Final = 1_000_000
_NS: Final = 1_000_000_000
_STOP_POLL_S: Final = 0.02
_SETTLE_S: Final = 5.0
"""For an upgrade to end that is under way at a stop."""
_OTHER_DESCRIPTORS: Final = 256
"""Rings, listeners, probes, logs, and spare connections to hosts."""


class Daemon:
    """One router. :meth:`run` returns when it was told to stop and has drained."""

    def __init__(
        self,
        config: Config,
        log: Any,
        *,
        passed: inherited.Inherited | None = None,
        notifier: Notifier | None = None,
        config_path: Path | None = None,
    ) -> None:
        """``passed`` are the sockets that this process was started with, ``notifier`` tells the service manager."""
        self.config = config
        self.log = log
        self._passed = passed or inherited.Inherited()
        self._notifier = notifier or Notifier({})
        self._config_path = config_path
        self.run_dir = _usable_run_dir(run_dir(config), log)
        self.telemetry = Telemetry(self.run_dir / config.listen.instance, config, lock=self._passed.lock)
        self.listeners = Listeners(config, self._passed, self.run_dir)
        self._slots: SlotTable | None = None
        self.roster = Roster(config, self.telemetry, log, self._host_maker())
        self.fleet = Fleet(self.roster.hosts, self.telemetry.counters, _longest_connect_s(config))
        self.loop = self._make_loop()
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
        self.pulse = Pulse(self.loop, self._notifier)
        self._stop = asyncio.Event()
        self._serving = asyncio.Event()
        self._servers: list[asyncio.Server] = []
        self._changing: asyncio.Task[None] | None = None
        """A reload or an upgrade under way."""
        self._relieved = False
        """Another process has taken over."""
        self._handing_over = False
        """A new process has been started for it."""
        self._successor_pid = 0
        """Which one."""
        self._predecessor_pid = os.getppid() if self._passed.from_process else 0
        """Who handed over to this one and drains now."""
        self.zeromq: ZmqServer | None = None
        self._zeromq_endpoints: list[str] = []
        self._was_ready = False
        self._beside: list[Intake | Warmer] = []
        self._front: Front | None = None
        self._watch: Watch
        self._health: HealthMonitor

    def _host_maker(self) -> Callable[[HostConfig, int, int], Host]:
        """Return what makes a host; where slots are shared with other routers, one that shares them."""
        if not self.config.loop.slots_shared:
            return Host
        from router.hosts.shared_slots import SlotTable  # noqa: PLC0415 - only several routers load it
        from router.sharing import SharedHost  # noqa: PLC0415 - the same

        self._slots = SlotTable(self.run_dir)
        return partial(SharedHost, table=self._slots)

    def _make_loop(self) -> Loop:
        if self._slots is None:
            return Loop(self.config, self.roster.hosts, self.fleet, self.telemetry)
        from router.sharing import SharingLoop  # noqa: PLC0415 - only several routers load it

        return SharingLoop(self.config, self.roster.hosts, self.fleet, self.telemetry, table=self._slots)

    # ------------------------------------------------------------ life
    async def run(self) -> None:
        """Serve until a signal says stop, then drain."""
        event_loop = asyncio.get_running_loop()
        event_loop.set_exception_handler(self._note_unhandled)
        for number in (signal.SIGTERM, signal.SIGINT):
            event_loop.add_signal_handler(number, self._stop.set)
        event_loop.add_signal_handler(signal.SIGUSR2, self._begin, self.upgrade)
        if self._config_path is not None and not _is_terminal():
            event_loop.add_signal_handler(signal.SIGHUP, self._begin, self.reload)
        self._watch = Watch(
            self.loop,
            threshold_ns=int(self.config.loop.cycle_threshold_ms * _MS_NS),
            shortest_s=_shortest_timeout_s(self.config),
            clients_under_way=self._check_clients,
        )
        self._health = HealthMonitor(self.loop, self.config.health, self.roster.probed, self.log)
        self.loop.on_blocked = self._watch.look_closer  # type: ignore[method-assign]
        self.loop.on_host_added = self._health.watch  # type: ignore[method-assign]
        self._watch.on_second = self._each_second
        await self._start_front()
        await self._start_tools_and_answers()
        self._health.start()
        self._watch.start()
        await self._first_of(self._health.all_seen())  # else the first clients would hear that no host can serve them
        awake = None if self._stop.is_set() else await self._serve_all(event_loop)
        await self._stop.wait()
        if self._handing_over and self._changing is not None:  # it is given up, and the new process ended
            await asyncio.wait((self._changing,), timeout=_SETTLE_S)
        if awake is not None:
            awake.stop()
        await self._shut_down()

    async def _serve_all(self, event_loop: asyncio.AbstractEventLoop) -> Any:
        """Begin to serve and say so; return what keeps the loop awake, where that was asked for."""
        await self._serve()
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
            from_systemd=[each.where for each in (*self.listeners.http, *self.listeners.zeromq) if not each.address],
            rings=str(self.telemetry.generation.path),
            ring_backend=ringbuffer.BACKEND,
            scanner=native.BACKEND,
            wait=self.config.loop.wait,
            pid=os.getpid(),
        )
        self._say_serving()
        return awake

    async def _first_of(self, work: Coroutine[Any, Any, Any]) -> None:
        """Wait for something, or for the signal to stop."""
        tasks = [asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()

    def _say_serving(self) -> None:
        """Tell the service manager, and the process before this one, that this one serves."""
        self._serving.set()
        status = self.pulse.text(monotonic_ns())
        if not self._passed.from_process:
            self._notifier.ready(status)
            return
        self.telemetry.generation.activate()
        self._notifier.took_over(status)
        handover.say_ready(self._passed.ready)

    # ------------------------------------------------------------ reload and upgrade
    def _begin(self, change: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begin a reload or an upgrade, behind one that is under way: the file may have changed since that began."""
        if self._successor_pid:
            self._pass_on(change)
            return
        if self._stop.is_set():
            self.log.warning("signal ignored", reason="the stop is under way")
            return
        self._changing = asyncio.ensure_future(self._change(self._changing, change))
        self._changing.add_done_callback(self._changed)

    async def _change(self, before: asyncio.Task[None] | None, change: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if before is not None:
            await asyncio.wait((before,))
        await self._first_of(self._serving.wait())  # who is not ready yet must not say that a reload is over
        if self._successor_pid:
            self._pass_on(change)
        elif not self._stop.is_set():
            await change()

    def _pass_on(self, change: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Let the process that has taken over read the configuration again: it may have read it before it changed."""
        if change == self.reload:
            with suppress(ProcessLookupError):
                os.kill(self._successor_pid, signal.SIGHUP)

    def _changed(self, task: asyncio.Task[None]) -> None:
        if self._changing is task:
            self._changing = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log_unhandled(self.log, {"message": "reload or upgrade", "exception": error})

    async def reload(self) -> None:
        """Take over what the configuration file says now; one that cannot be used changes nothing."""
        assert self._config_path is not None
        self._notifier.reloading()
        try:
            wanted = await asyncio.to_thread(load, self._config_path)  # the disk must not hold up a token
            if self._stop.is_set():
                return  # what would be changed is being taken down
            _check_has_hosts(wanted)
            status = self._take_over(_fit_descriptors(wanted, self.log))
            self._note_reload("")
        except ConfigError as error:
            self._note_reload(str(error))
            status = f"reload refused, the old configuration stays: {error}"
            self.log.error("configuration not reloaded", reason=str(error))
            self.telemetry.errors.note("the configuration was not reloaded; the log says why", monotonic_ns())
            self.telemetry.counters.add(Counter.CONFIG_RELOAD_ERRORS)
            self.telemetry.changes.note("refused", [status], monotonic_ns())
        if not self._stop.is_set():
            self.pulse.hold(monotonic_ns())
            self._notifier.ready(status)

    def _take_over(self, wanted: Config) -> str:
        """Go on with another configuration, in this call; return what to tell of it. Raises :class:`ConfigError` before
        anything has changed.
        """
        found = changes(self.config, wanted)
        config = taken_over(self.config, wanted)
        check_exposure(config)  # keys may go together with an address that stays until the restart
        if self._slots is not None:
            self._slots.claim(host.url for host in config.hosts)
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
        self._health.configure(config.health)
        self._watch.configure(_shortest_timeout_s(config))
        for each in found:
            if each.needs:
                self.log.warning("configuration change needs a restart", change=each.text, of=each.needs)
            else:
                self.log.info("configuration change", change=each.text)
        self.log.info("configuration reloaded", changes=len(found))
        self.telemetry.counters.add(Counter.CONFIG_RELOADS)
        self.telemetry.changes.note("reload", [each.text for each in found], monotonic_ns())
        self.telemetry.changes.keep(config)
        waiting = sum(1 for each in found if each.needs == "router")
        return f"reloaded; {waiting} changes need an upgrade (SIGUSR2) or a restart" if waiting else "reloaded"

    async def upgrade(self) -> None:
        """Start the program anew and let it take over; when that fails this process goes on."""
        reason = await self._hand_over("upgrade")
        if reason:
            self.log.error("upgrade failed", reason=reason)
            self.pulse.hold(monotonic_ns())
            self._notifier.status(f"upgrade failed, this process goes on: {reason}")

    async def _hand_over(self, why: str) -> str:
        """Let a new process take over; return why it did not."""
        self.log.info("handing over", why=why)
        self._notifier.status("handing over to a new process")
        self._handing_over = True
        try:
            handover.check_possible()
            pid = await handover.hand_over(self.listeners, self.telemetry.generation.lock, self._stop)
        except handover.HandoverError as error:
            return str(error)
        finally:
            self._handing_over = False
        self._successor_pid = pid
        self._relieved = self.pulse.paused = True
        self.log.info("handed over", to_pid=pid)
        self._stop.set()
        return ""

    def _each_second(self, now: int) -> None:
        if self._slots is not None:
            grace_ms = max(host.facts.cancel_grace_ms for host in self.roster.hosts)
            self._slots.reap(now, int(grace_ms * _MS_NS))
        self.pulse.beat(now)

    def _note_unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an exception that escaped a callback, and count it among the errors that ``stats`` shows."""
        log_unhandled(self.log, context)
        self.telemetry.errors.note(f"internal error: {type(context.get('exception')).__name__}", monotonic_ns())

    async def _shut_down(self) -> None:
        """Stop accepting, stop admitting, drain, then hosts, then rings."""
        self.log.info("stopping", in_flight=len(self.loop.in_flight), drain_s=self.config.timeouts.drain_s)
        for server in self._servers:
            server.close()
        self.listeners.close(for_good=not self._relieved)
        if self._front is not None and not self._relieved:
            self._front.drain()
        await self._drain()
        self.loop.stopping = True
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
        await self._health.stop()
        await self.fleet.close()
        self._watch.stop()
        self.loop.flush()
        self.telemetry.changes.note("stop", ["router stopped"], monotonic_ns())
        self.telemetry.close()
        if self._slots is not None:
            self._slots.close()
        self.log.info("stopped")

    async def _drain(self) -> None:
        """Let run what runs, for ``timeouts.drain_s`` at most.

        When another process has taken over, this one goes on serving the clients it has: each HTTP connection until
        its next answer, ZeroMQ clients until nothing of theirs runs.
        """
        drain_s = self.config.timeouts.drain_s
        until = self.pulse.draining_until_ns = monotonic_ns() + int(drain_s * _NS)
        if self._relieved:
            self.server.close_after_answers()
            if self.admin is not None:
                self.admin.close_after_answers()
        else:
            self._notifier.stopping(f"draining {len(self.loop.in_flight)} requests, {drain_s:g} s at most")
            self._notifier.extend(EXTENSION_S)
            self.loop.stopping = True
            if self.zeromq is not None:
                self.zeromq.stop_listening()
            self.server.close_idle()
        while (self.loop.in_flight or self._has_clients() or self._is_followed()) and monotonic_ns() < until:
            await asyncio.sleep(_STOP_POLL_S)
        self.server.close_idle()

    def _has_clients(self) -> bool:
        """Whether clients of a router that was relieved may still ask something."""
        return self._relieved and bool(self.server.connections)

    def _note_reload(self, error: str) -> None:
        if self.admin is not None:
            self.admin.reload_error = error

    def _access(self, config: Config) -> HttpAccess | None:
        """Take over the keys of a configuration; return what asks for them, ``None`` where there are none."""
        if (config.keys or config.listen.has_curve) and self.keys is None:
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

    def _is_followed(self) -> bool:
        """Whether the router before this one still drains. When a service's main process ends, systemd kills all others
        of it: this one waits for that one.
        """
        return bool(self._predecessor_pid) and os.getppid() == self._predecessor_pid

    # ------------------------------------------------------------ serving
    async def _serve(self) -> None:
        """Begin to accept."""
        uids = self._uids()
        for listener in self.listeners.http:
            await self._serve_at(listener, self.server, uids)
        if self.listeners.admin:
            self._make_admin()
            assert self.admin is not None
            for listener in self.listeners.admin:
                await self._serve_at(listener, self.admin, uids)
        if self.listeners.zeromq or self.listeners.left_to_libzmq:
            self._serve_zeromq()

    async def _serve_at(self, listener: Listener, server: HttpServer, uids: frozenset[int]) -> None:
        event_loop = asyncio.get_running_loop()
        client: Callable[[], ClientConnection] = partial(ClientConnection, server)
        start = event_loop.create_server
        if listener.where.startswith("unix:"):
            start = event_loop.create_unix_server  # type: ignore[assignment]
            if uids:
                from router.ingress.peers import CheckedConnection  # noqa: PLC0415 - only who has it configured loads it

                client = partial(CheckedConnection, server, uids)
        # A descriptor of its own, so that ours is there to be handed over.
        self._servers.append(await start(client, sock=listener.sock.dup(), backlog=self.config.listen.backlog))

    def _make_admin(self) -> None:
        from router.ingress.admin import AdminServer  # noqa: PLC0415 - only who has it configured loads it

        self.admin = AdminServer(self.config, self.loop, reload=partial(self._begin, self.reload), log=self.log)
        self.admin.configure(self.config, self.server.access)
        self.admin.registry = self.keys
        self.admin.ready = self._is_ready

    def _uids(self) -> frozenset[int]:
        """Return the users that may connect to unix sockets, none where the mode of the file decides."""
        if not self.config.listen.unix_users:
            return frozenset()
        from router.ingress.peers import allowed_uids  # noqa: PLC0415 - only who has it configured loads it

        return allowed_uids(self.config)

    def _serve_zeromq(self) -> None:
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
        for listener in self.listeners.zeromq:
            self._zeromq_endpoints.append(self.zeromq.adopt(listener.sock, listener.endpoint))
        for endpoint in self.listeners.left_to_libzmq:
            try:
                bound = self.zeromq.bind(zeromq_endpoint(self.config, endpoint))
            except OSError as error:
                raise ConfigError(
                    f"listen.zeromq = {endpoint!r}: cannot listen there: {error.strerror or error}"
                ) from None
            self._zeromq_endpoints.append(bound)
        if self._front is not None:
            self.zeromq.nearest = self._front.nearest
        self.zeromq.start()

    def _guard_zeromq(self, server: ZmqServer) -> None:
        """Have a server let in only whom the configuration lets in; raises :class:`ConfigError`."""
        server.access = self._zeromq_access(self.config)
        server.admit_users(self._uids())
        if not self.config.listen.has_curve:
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
        return [listener.where for listener in self.listeners.http]

    # ------------------------------------------------------------ hosts
    def _log_standing(self, host: Host, old_bar: int) -> None:
        bar, name, reason = host.bar, host.name, host.last_error
        if not bar:
            self.log.info("host healthy", host=name)
        elif bar == Reason.DRAINING:
            self.log.info("host draining", host=name, running=host.running)
        elif bar == Reason.BREAKER_OPEN:
            self.log.warning("host breaker open", host=name, reason=reason)
        elif bar == Reason.EJECTED:
            self.log.warning("host left out", host=name, reason=reason)
        else:
            self.log.warning("host unhealthy", host=name, reason=reason)
        if bar and bar != Reason.DRAINING:
            self.telemetry.errors.note(f"host {name}: {_BARRED.get(bar, 'unhealthy')}", monotonic_ns())
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
        if host.removed:
            self.log.info("host removed", host=host.name)
        else:
            self.log.info("host drained", host=host.name)


_BARRED: Final[dict[int, str]] = {
    Reason.BREAKER_OPEN: "breaker open",
    Reason.EJECTED: "left out",
}


def _longest_connect_s(config: Config) -> float:
    """Return the longest time that any request gives a connect."""
    return max([config.timeouts.connect_s, *(model_timeouts(config, name).connect_s for name in config.models)])


def _shortest_timeout_s(config: Config) -> float:
    """Return the shortest of all time-outs: what the tick must never sleep past."""
    times = [model_timeouts(config, name) for name in config.models] + [config.timeouts]
    named: list[float] = [getattr(t, key) for t in times for key in t.__struct_fields__ if key != "drain_s"]
    return min(value for value in named if value > 0)


def _is_terminal() -> bool:
    """Whether somebody sits at a terminal: its end, which is a SIGHUP too, is to end the router."""
    return sys.stdin is not None and sys.stdin.isatty()


def _check_has_hosts(config: Config) -> None:
    if not config.hosts:
        raise ConfigError("hosts: none is configured, so every request would be refused")


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


async def _run(config: Config, log: Any, notifier: Notifier, config_path: Path | None) -> None:
    await Daemon(config, log, passed=inherited.take(), notifier=notifier, config_path=config_path).run()


def serve(config: Config, config_path: Path | None = None) -> int:
    """Run a router in the foreground; returns the exit status. Start-up errors are one line, never a trace.

    ``config_path`` is where the configuration came from: SIGHUP reads it again.
    """
    log = set_up(config.log)
    notifier = Notifier()
    try:
        _check_has_hosts(config)
        if ringbuffer.BACKEND == "plain":
            log.warning("the rings run without the C extension: slower, x86-64 only, the same layout")
        if native.BACKEND == "plain":
            log.warning("streams are scanned without the C extension: more time for each request, the same answers")
        uvloop.run(_run(_fit_descriptors(config, log), log, notifier, config_path))
    except (ConfigError, RingError, OSError) as error:
        log.error("cannot start", reason=str(error))
        notifier.status(f"cannot start: {error}")
        return 2
    return 0
