"""What changes a router that runs: its configuration is read again, or a new process takes over. One at a time."""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

from router.config import check_has_hosts, load
from router.descriptors import fit_descriptors
from router.errors import ConfigError
from router.log import log_unhandled
from router.telemetry.counters import Counter

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from router.config import Config
    from router.service.pulse import Pulse
    from router.service.succession import Succession
    from router.telemetry.writer import Telemetry

_SETTLE_S: Final = 5.0
"""For an upgrade to end that is under way at a stop."""


class Changeover:
    """Begins reloads and upgrades, each behind one that is under way: the file may have changed since that began."""

    def __init__(
        self,
        path: Path | None,
        succession: Succession,
        telemetry: Telemetry,
        pulse: Pulse,
        stop: asyncio.Event,
        log: Any,
        *,
        take_over: Callable[[Config], str],
        note_reload: Callable[[str], None],
    ) -> None:
        """``path`` is the configuration's file, ``take_over`` goes on with another configuration and returns what to
        tell of it, ``note_reload`` is told why it was refused, empty when it was not.
        """
        self._path = path
        self._take_over = take_over
        self._note_reload = note_reload
        self._succession = succession
        self._telemetry = telemetry
        self._pulse = pulse
        self._stop = stop
        self._log = log
        self._serving = asyncio.Event()
        self._under_way: asyncio.Task[None] | None = None

    def serving(self) -> None:
        """The router serves: what was asked for until now can begin."""
        self._serving.set()

    def begin_reload(self) -> None:
        """Begin to read the configuration again."""
        self._begin(self.reload)

    def begin_upgrade(self) -> None:
        """Begin to let a new process take over."""
        self._begin(self._succession.upgrade)

    async def settle(self) -> None:
        """Wait at a stop for an upgrade that is under way: it is given up, and the new process ended."""
        if self._succession.is_handing_over and self._under_way is not None:
            await asyncio.wait((self._under_way,), timeout=_SETTLE_S)

    # ------------------------------------------------------------ one behind another
    def _begin(self, change: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if self._succession.is_relieved:
            self._pass_on(change)
            return
        if self._stop.is_set():
            self._log.warning("signal ignored", reason="the stop is under way")
            return
        self._under_way = asyncio.ensure_future(self._change(self._under_way, change))
        self._under_way.add_done_callback(self._changed)

    async def _change(self, before: asyncio.Task[None] | None, change: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if before is not None:
            await asyncio.wait((before,))
        # Who is not ready yet must not say that a reload is over.
        await unless_stopped(self._serving.wait(), self._stop)
        if self._succession.is_relieved:
            self._pass_on(change)
        elif not self._stop.is_set():
            await change()

    def _pass_on(self, change: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if change == self.reload:
            self._succession.pass_reload_on()

    def _changed(self, task: asyncio.Task[None]) -> None:
        if self._under_way is task:
            self._under_way = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log_unhandled(self._log, {"message": "reload or upgrade", "exception": error})

    # ------------------------------------------------------------ reload
    async def reload(self) -> None:
        """Take over what the configuration file says now; one that cannot be used changes nothing."""
        assert self._path is not None
        self._pulse.notifier.reloading()
        try:
            wanted = await asyncio.to_thread(load, self._path)  # the disk must not hold up a token
            if self._stop.is_set():
                return  # what would be changed is being taken down
            check_has_hosts(wanted)
            status = self._take_over(fit_descriptors(wanted, self._log))
            self._note_reload("")
        except ConfigError as error:
            status = self._refused(str(error))
        if not self._stop.is_set():
            self._pulse.hold(monotonic_ns())
            self._pulse.notifier.ready(status)

    def _refused(self, reason: str) -> str:
        """Make known why a configuration was not taken over; return what to tell of it."""
        self._note_reload(reason)
        self._log.error("configuration not reloaded", reason=reason)
        self._telemetry.errors.note("the configuration was not reloaded; the log says why", monotonic_ns())
        self._telemetry.counters.add(Counter.CONFIG_RELOAD_ERRORS)
        status = f"reload refused, the old configuration stays: {reason}"
        self._telemetry.changes.note("refused", [status], monotonic_ns())
        return status


async def unless_stopped(work: Coroutine[Any, Any, Any], stop: asyncio.Event) -> None:
    """Wait for something, or for the stop."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
