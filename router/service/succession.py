"""The processes before and after this one: who handed over to it, and whom it hands over to."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from router.service import handover

if TYPE_CHECKING:
    import asyncio

    from router.listeners import Listeners
    from router.service.inherited import Inherited
    from router.service.pulse import Pulse
    from router.telemetry.writer import Telemetry


class Succession:
    """One process among those that serve the same addresses one after another."""

    def __init__(
        self,
        passed: Inherited,
        listeners: Listeners,
        telemetry: Telemetry,
        pulse: Pulse,
        stop: asyncio.Event,
        log: Any,
    ) -> None:
        """``passed`` is what this process was started with; ``stop`` is set once another one has taken over."""
        self._passed = passed
        self._listeners = listeners
        self._telemetry = telemetry
        self._pulse = pulse
        self._stop = stop
        self._log = log
        self._predecessor_pid = os.getppid() if passed.from_process else 0
        self._successor_pid = 0
        self.is_handing_over = False
        """A new process has been started, and has not taken over yet."""

    @property
    def is_relieved(self) -> bool:
        """Whether another process has taken over."""
        return bool(self._successor_pid)

    def is_awaited(self) -> bool:
        """Whether the router before this one still drains. When a service's main process ends, systemd kills all others
        of it: this one waits for that one.
        """
        return bool(self._predecessor_pid) and os.getppid() == self._predecessor_pid

    def say_serving(self) -> None:
        """Tell the service manager, and the process before this one, that this one serves."""
        status = self._pulse.text(monotonic_ns())
        if not self._passed.from_process:
            self._pulse.notifier.ready(status)
            return
        self._telemetry.generation.activate()
        self._pulse.notifier.took_over(status)
        handover.say_ready(self._passed.ready)

    def pass_reload_on(self) -> None:
        """Let the process that has taken over read the configuration again: it may have read it before it changed."""
        with suppress(ProcessLookupError):
            os.kill(self._successor_pid, signal.SIGHUP)

    async def upgrade(self) -> None:
        """Start the program anew and let it take over; when that fails this process goes on."""
        reason = await self._hand_over()
        if reason:
            await asyncio.to_thread(self._telemetry.generation.drop_unborn)
            self._log.error("upgrade failed", reason=reason)
            self._pulse.hold(monotonic_ns())
            self._pulse.notifier.status(f"upgrade failed, this process goes on: {reason}")

    async def _hand_over(self) -> str:
        """Let a new process take over; return why it did not."""
        self._log.info("handing over", why="upgrade")
        self._pulse.notifier.status("handing over to a new process")
        self.is_handing_over = True
        try:
            handover.check_possible()
            pid = await handover.hand_over(self._listeners, self._telemetry.generation.lock, self._stop)
        except handover.HandoverError as error:
            return str(error)
        finally:
            self.is_handing_over = False
        self._successor_pid = pid
        self._pulse.paused = True
        self._log.info("handed over", to_pid=pid)
        self._stop.set()
        return ""
