"""The router process: builds all parts, runs them on one uvloop, and takes them down in order."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from functools import partial
from pathlib import Path
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

import uvloop

import ringbuffer
from ringbuffer import RingError
from router import native
from router.config import (
    Config,
    check_exposure,
    check_has_hosts,
    connect_s_max,
    is_tmpfs,
    run_dir,
    timeout_s_min,
    tmpfs_run_dir,
    uses_caches,
)
from router.config.changes import changes, taken_over
from router.descriptors import fit_descriptors
from router.errors import ConfigError, ErrorKind
from router.hosts.fleet import Fleet
from router.hosts.health import HealthMonitor
from router.hosts.host import Host
from router.hosts.standing_log import StandingLog
from router.ingress.surfaces import Surfaces
from router.listeners import Listeners
from router.log import log_unhandled, set_up
from router.loop import Loop
from router.roster import Roster
from router.routing import Reason
from router.service import inherited
from router.service.changeover import Changeover, unless_stopped
from router.service.notify import Notifier
from router.service.pulse import EXTENSION_S, Pulse
from router.service.succession import Succession
from router.telemetry.counters import Counter
from router.telemetry.writer import Telemetry
from router.wait_strategy import stay_awake
from router.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.caches.assembly import Caches
    from router.config import HostConfig
    from router.hosts.shared_slots import SlotTable
    from router.wait_strategy import StayAwake

_MS_NS: Final = 1_000_000
_NS: Final = 1_000_000_000
_STOP_POLL_S: Final = 0.02


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
        self._config_path = config_path
        passed = passed or inherited.Inherited()
        self.run_dir = _usable_run_dir(run_dir(config), log)
        self.telemetry = Telemetry(self.run_dir / config.listen.instance, config, lock=passed.lock)
        self.listeners = Listeners(config, passed, self.run_dir)
        self._slots: SlotTable | None = None
        self.roster = Roster(config, self.telemetry, log, self._host_maker())
        self.fleet = Fleet(self.roster.hosts, self.telemetry.counters, connect_s_max(config))
        self.loop = self._make_loop()
        self.loop.recovery.random.seed(self.telemetry.generation.path.name)
        self.fleet.loop = self.loop
        self.roster.attach(self.loop)
        self._standing_log = StandingLog(log, self.telemetry, self.roster)
        self.loop.on_standing = self._note_standing  # type: ignore[method-assign]
        self.loop.on_drained = self._standing_log.drained  # type: ignore[method-assign]
        self.surfaces = Surfaces(config, self.loop, log, ready=self.roster.is_ready)
        self.pulse = Pulse(self.loop, notifier or Notifier({}))
        self._stop = asyncio.Event()
        self._succession = Succession(passed, self.listeners, self.telemetry, self.pulse, self._stop, log)
        self._changeover = Changeover(
            config_path, self._succession, self.telemetry, self.pulse, self._stop, log,
            take_over=self.take_over, note_reload=self.surfaces.note_reload,
        )  # fmt: skip
        self._caches: Caches | None = None
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

    # ------------------------------------------------------------ start
    async def run(self) -> None:
        """Serve until a signal says stop, then drain."""
        event_loop = asyncio.get_running_loop()
        event_loop.set_exception_handler(self._note_unhandled)
        self._handle_signals(event_loop)
        self._build_watches()
        await self._start_caches()
        self._health.start()
        self._watch.start()
        # Else the first clients would hear that no host can serve them.
        await unless_stopped(self._health.all_seen(), self._stop)
        awake = None if self._stop.is_set() else await self._serve(event_loop)
        await self._stop.wait()
        await self._changeover.settle()
        if awake is not None:
            awake.stop()
        await self._shut_down()

    def _handle_signals(self, event_loop: asyncio.AbstractEventLoop) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            event_loop.add_signal_handler(number, self._stop.set)
        event_loop.add_signal_handler(signal.SIGUSR2, self._changeover.begin_upgrade)
        if self._config_path is not None and not _is_terminal():
            event_loop.add_signal_handler(signal.SIGHUP, self._changeover.begin_reload)

    def _build_watches(self) -> None:
        """Build what looks after requests and hosts; both need the event loop to run."""
        self._watch = Watch(
            self.loop,
            threshold_ns=int(self.config.loop.cycle_threshold_ms * _MS_NS),
            shortest_s=timeout_s_min(self.config),
            clients_under_way=self.surfaces.check,
        )
        self._health = HealthMonitor(self.loop, self.config.health, self.roster.probed, self.log)
        self.loop.on_blocked = self._watch.look_closer  # type: ignore[method-assign]
        self.loop.on_host_added = self._health.watch  # type: ignore[method-assign]
        self._watch.on_second = self._each_second

    async def _start_caches(self) -> None:
        if uses_caches(self.config.cache):
            from router.caches.assembly import Caches  # noqa: PLC0415 - only who has caches configured loads it

            self._caches = Caches(self.config, self.loop, self.run_dir, self.log)
            await self._caches.start()

    async def _serve(self, event_loop: asyncio.AbstractEventLoop) -> StayAwake | None:
        """Begin to serve and say so; return what keeps the loop awake, where that was asked for."""
        nearest = self._caches.nearest if self._caches is not None else None
        await self.surfaces.serve(self.listeners, nearest, self._changeover.begin_reload)
        awake = stay_awake(event_loop, self.config.loop.wait, self.config.loop.spin_us)
        if awake is not None:
            self.telemetry.publish_token = awake.watching(self.telemetry.publish_token)
            self.telemetry.native_publish = None
            awake.start()
        gc.collect()
        gc.freeze()  # what exists now lives as long as the process: no later collection looks at it
        self.log.info(
            "serving",
            http=[each.where for each in self.listeners.http],
            zeromq=self.surfaces.zeromq_endpoints,
            from_systemd=[each.where for each in (*self.listeners.http, *self.listeners.zeromq) if not each.address],
            rings=str(self.telemetry.generation.path),
            ring_backend=ringbuffer.BACKEND,
            scanner=native.BACKEND,
            wait=self.config.loop.wait,
            pid=os.getpid(),
        )
        self._changeover.serving()
        self._succession.say_serving()
        return awake

    # ------------------------------------------------------------ while it runs
    def take_over(self, wanted: Config) -> str:
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
        self.surfaces.configure(config)
        self.fleet.connect_timeout_s = connect_s_max(config)
        self._health.configure(config.health)
        self._watch.configure(timeout_s_min(config))
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

    def _each_second(self, now: int) -> None:
        if self._slots is not None:
            grace_ms = max(host.facts.cancel_grace_ms for host in self.roster.hosts)
            self._slots.reap(now, int(grace_ms * _MS_NS))
        self.pulse.beat(now)

    def _note_standing(self, host: Host, old_bar: int) -> None:
        self._standing_log.changed(host)
        if old_bar == Reason.UNHEALTHY and host.healthy:
            self.roster.came_back(host)

    def _note_unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an exception that escaped a callback, and count it among the errors that ``stats`` shows."""
        log_unhandled(self.log, context)
        self.telemetry.errors.note(f"internal error: {type(context.get('exception')).__name__}", monotonic_ns())

    # ------------------------------------------------------------ stop
    async def _shut_down(self) -> None:
        """Stop accepting, stop admitting, drain, then hosts, then rings."""
        self.log.info("stopping", in_flight=len(self.loop.in_flight), drain_s=self.config.timeouts.drain_s)
        is_relieved = self._succession.is_relieved
        self.surfaces.stop_accepting()
        self.listeners.close(for_good=not is_relieved)
        if self._caches is not None and not is_relieved:
            self._caches.drain()
        await self._drain()
        self.loop.stopping = True
        self._end_requests()
        await asyncio.sleep(0)
        self._end_requests()  # whose end waits for a client that does not take it
        self.surfaces.close()
        if self._caches is not None:
            self._caches.stop()
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
        if self._succession.is_relieved:
            self.surfaces.close_after_answers()
        else:
            self.pulse.notifier.stopping(f"draining {len(self.loop.in_flight)} requests, {drain_s:g} s at most")
            self.pulse.notifier.extend(EXTENSION_S)
            self.loop.stopping = True
            self.surfaces.close_idle()
        while self._is_needed() and monotonic_ns() < until:
            await asyncio.sleep(_STOP_POLL_S)
        self.surfaces.http.close_idle()

    def _is_needed(self) -> bool:
        """Whether something runs, clients of a router that was relieved may still ask something, or the process before
        this one still drains.
        """
        may_ask = self._succession.is_relieved and bool(self.surfaces.http.connections)
        return bool(self.loop.in_flight) or may_ask or self._succession.is_awaited()

    def _end_requests(self) -> None:
        text = "the router was stopped; ask again"
        for request in list(self.loop.in_flight.values()):
            self.loop.time_out(request, ErrorKind.SHUTTING_DOWN, text, monotonic_ns())


def _is_terminal() -> bool:
    """Whether somebody sits at a terminal: its end, which is a SIGHUP too, is to end the router."""
    return sys.stdin is not None and sys.stdin.isatty()


def _usable_run_dir(path: Path, log: Any) -> Path:
    """Return a directory on tmpfs for the rings: the one asked for, else one in /dev/shm, said aloud."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if is_tmpfs(path):
        return path
    other = tmpfs_run_dir()
    other.mkdir(mode=0o700, parents=True, exist_ok=True)
    log.warning("run_dir is not on tmpfs, using another directory", run_dir=str(path), instead=str(other))
    return other


async def _run(config: Config, log: Any, notifier: Notifier, config_path: Path | None) -> None:
    await Daemon(config, log, passed=inherited.take(), notifier=notifier, config_path=config_path).run()


def serve(config: Config, config_path: Path | None = None) -> int:
    """Run a router in the foreground; returns the exit status. Start-up errors are one line, never a trace.

    ``config_path`` is where the configuration came from: SIGHUP reads it again.
    """
    log = set_up(config.log)
    notifier = Notifier()
    try:
        check_has_hosts(config)
        if ringbuffer.BACKEND == "plain":
            log.warning("the rings run without the C extension: slower, x86-64 only, the same layout")
        if native.BACKEND == "plain":
            log.warning("streams are scanned without the C extension: more time for each request, the same answers")
        uvloop.run(_run(fit_descriptors(config, log), log, notifier, config_path))
    except (ConfigError, RingError, OSError) as error:
        log.error("cannot start", reason=str(error))
        notifier.status(f"cannot start: {error}")
        return 2
    return 0
