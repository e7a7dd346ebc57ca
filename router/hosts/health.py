"""Watching the hosts: first the interview, then the health path at an interval. One task per host, off the path."""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from typing import TYPE_CHECKING

from router.hosts.probe import ProbeError, check_health, interview, resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.config import Health
    from router.hosts.host import Host
    from router.loop import Loop


class HealthMonitor:
    """Runs the probes and tells the loop what they found."""

    def __init__(self, loop: Loop, config: Health, on_probed: Callable[[Host], None]) -> None:
        self._loop = loop
        self._config = config
        self._on_probed = on_probed
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin probing every host."""
        self._tasks = [asyncio.create_task(self._watch(host), name=f"health-{host.name}") for host in self._loop.hosts]

    async def stop(self) -> None:
        """End all probes."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch(self, host: Host) -> None:
        interval_s = self._config.interval_s
        while True:
            await self._probe(host)
            # A host that is down is asked more often: it may be starting, and requests wait for it.
            await asyncio.sleep(interval_s if host.healthy else min(interval_s, 0.25))

    async def _probe(self, host: Host) -> None:
        loop, timeout_s = self._loop, self._config.timeout_s
        try:
            if not host.healthy and not isinstance(host.address, str):
                await resolve(host)
            if not host.probed:
                await interview(host, timeout_s)
                self._on_probed(host)
            await check_health(host, timeout_s)
        except ProbeError as error:
            loop.host_failed(host, str(error), monotonic_ns())
        except OSError as error:
            loop.host_failed(host, f"its name cannot be resolved: {error.strerror or error}", monotonic_ns())
        else:
            loop.set_health(host, healthy=True, now=monotonic_ns())
