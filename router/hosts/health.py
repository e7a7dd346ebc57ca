"""Watching the hosts: first the interview, then the health path at an interval. One task per host, off the path."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from router.hosts.probe import ProbeError, check_health, interview

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.config import Health
    from router.hosts.host import Host
    from router.loop import Loop

_DOWN_INTERVAL_S = 0.25
"""Between two probes of a host that is down: it may be starting, and requests wait for it."""
_FIRST_LOOK_S = 5.0
"""At most, at the start: a host that takes so long must not keep the others' clients waiting."""


class HealthMonitor:
    """Runs the probes and tells the loop what they found."""

    def __init__(self, loop: Loop, config: Health, on_probed: Callable[[Host], None], log: Any) -> None:
        self._loop = loop
        self._config = config
        self._on_probed = on_probed
        self._log = log
        self._tasks: dict[Host, asyncio.Task[None]] = {}
        self._unseen: set[Host] = set()
        self._all_seen = asyncio.Event()

    def start(self) -> None:
        """Begin probing every host."""
        self._unseen = set(self._loop.hosts)
        for host in self._loop.hosts:
            self.watch(host)

    def configure(self, config: Health) -> None:
        """Go on with other settings, each host from its next probe on."""
        self._config = config

    def watch(self, host: Host) -> None:
        """Probe a host until it is removed; one that is probed already is not probed twice."""
        before = self._tasks.get(host)
        if before is None or before.done():
            task = self._tasks[host] = asyncio.create_task(self._watch(host), name=f"health-{host.name}")
            task.add_done_callback(partial(self._forget, host))

    def _forget(self, host: Host, task: asyncio.Task[None]) -> None:
        if self._tasks.get(host) is task:
            del self._tasks[host]

    async def all_seen(self) -> None:
        """Wait until each host has been probed once, with whatever result, or has taken too long for its answer."""
        if self._unseen:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_seen.wait(), min(self._config.timeout_s, _FIRST_LOOK_S))

    async def stop(self) -> None:
        """End all probes."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, host: Host) -> None:
        while not host.removed:
            try:
                await self._probe(host)
            except Exception as error:
                self._log.error("internal error", what="probe", host=host.name, type=type(error).__name__)
            self._unseen.discard(host)
            if not self._unseen:
                self._all_seen.set()
            interval_s = self._config.interval_s
            await asyncio.sleep(interval_s if host.healthy else min(interval_s, _DOWN_INTERVAL_S))

    async def _probe(self, host: Host) -> None:
        timeout_s = self._config.timeout_s
        try:
            if not (host.healthy and host.probed):  # it may have been started anew, with other slots and models
                await interview(host, timeout_s)
                self._on_probed(host)
            await check_health(host, timeout_s)
        except ProbeError as error:
            self._failed(host, error)
        else:
            host.probe_failures = 0
            self._loop.recovery.standing.set_health(host, healthy=True, now=monotonic_ns())

    def _failed(self, host: Host, error: ProbeError) -> None:
        """Count a failed probe, apart from failed requests: a host can answer the one and not the other."""
        host.last_error = str(error)
        if error.own_fault:
            return
        host.probe_failures += 1
        if host.probe_failures >= self._config.fail_after:
            self._loop.recovery.standing.set_health(host, healthy=False, now=monotonic_ns())
