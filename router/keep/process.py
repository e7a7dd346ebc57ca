"""The keeper's process: starts the parts that are configured, answers at its socket, and ends them in order.

One thread and one loop; what takes long (a commit to disk, a product with a large table) runs in threads. One keeper
serves all routers of a run directory: a lock in ``cache.dir`` keeps a second one away from the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import time
from pathlib import Path
from typing import Any, Final

import router
from router.config import Config, cache_dir, keeper_socket
from router.errors import ConfigError
from router.keep.link import Link
from router.keep.part import KeepError, Part
from router.log import log_unhandled, set_up

STATUS_EVERY_S: Final = 1.0
LOCK_NAME: Final = "keeper.lock"
EXIT_OK: Final = 0
EXIT_USAGE: Final = 2


class Keeper:
    """One keeper. :meth:`run` returns when it was told to stop and its parts have ended."""

    def __init__(self, config: Config, run_dir: Path, log: Any) -> None:
        self.config = config
        self.run_dir = run_dir
        self.log = log
        self._stop = asyncio.Event()
        self._started_ns = time.monotonic_ns()
        self.parts = make_parts(config, run_dir, log)
        verbs = {name: verb for part in self.parts for name, verb in part.verbs.items()}
        self._hear_changes()
        self.link = Link(keeper_socket(config, run_dir), {**verbs, "status": self._status_verb}, log)

    async def run(self) -> None:
        """Keep until a signal says stop; raises :class:`KeepError` and :class:`OSError` when it cannot start."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: log_unhandled(self.log, context))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._refresh)
        lock = take_lock(cache_dir(self.config))
        started: list[Part] = []
        try:
            for part in self.parts:
                started.append(part)
                await part.start()
            await self.link.listen()
            self.log.info("keeping", parts=[part.name for part in self.parts], rings=str(self.run_dir), pid=os.getpid())
            await self._serve()
            self.log.info("stopping")
        finally:
            await self.link.close()
            for part in reversed(started):
                await part.stop()
            os.close(lock)

    def _refresh(self) -> None:
        """Have what comes from elsewhere asked for again; the configuration is read at the start only."""
        self.log.info("refreshing", reason="SIGHUP")
        for part in self.parts:
            if hasattr(part, "refresh"):
                part.refresh()

    def _hear_changes(self) -> None:
        for part in self.parts:
            if hasattr(part, "on_change"):
                part.on_change = lambda: self.link.tell(self.status())

    async def _serve(self) -> None:
        while not self._stop.is_set():
            self.link.tell(self.status())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), STATUS_EVERY_S)

    def status(self) -> dict[str, Any]:
        """Return how the keeper and its parts do."""
        own = {
            "pid": os.getpid(),
            "version": router.__version__,
            "up_s": (time.monotonic_ns() - self._started_ns) / 1e9,
        }
        return {"keeper": own, **{part.name: part.status() for part in self.parts}}

    async def _status_verb(self, _: Any) -> dict[str, Any]:
        return self.status()


def make_parts(config: Config, run_dir: Path, log: Any) -> list[Part]:
    """Return the parts that are configured, in the order in which they start; each is loaded only if it is.

    Raises ``ModuleNotFoundError`` for what an extra brings.
    """
    cache = config.cache
    parts: list[Part] = []
    if cache.embeddings.enabled:
        from router.keep.embeddings import EmbeddingKeeper  # noqa: PLC0415 - only who keeps vectors loads it

        parts.append(EmbeddingKeeper(config, run_dir, log))
    if cache.nearest.enabled:
        from router.keep.nearest import Nearest  # noqa: PLC0415 - the same

        parts.append(Nearest(config, log))
    if cache.tools.sources:
        from router.keep.tools import ToolKeeper  # noqa: PLC0415 - the same

        parts.append(ToolKeeper(config, run_dir, log))
    if cache.warm:
        from router.keep.warm import PromptKeeper  # noqa: PLC0415 - the same

        parts.append(PromptKeeper(config, run_dir, log))
    return parts


def take_lock(directory: Path) -> int:
    """Make the directory and lock it; return the descriptor that holds the lock. Raises :class:`KeepError`."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise KeepError(f"another keeper writes in {directory} (cache.dir)") from None
    return descriptor


def serve(config: Config, run_dir: Path) -> int:
    """Run a keeper in the foreground; return the exit status. Start-up errors are one line, never a trace."""
    log = set_up(config.log)
    try:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        asyncio.run(_run(config, run_dir, log))
    except (ConfigError, KeepError, OSError) as error:
        log.error("cannot start", reason=str(error))
        return EXIT_USAGE
    return EXIT_OK


async def _run(config: Config, run_dir: Path, log: Any) -> None:
    await Keeper(config, run_dir, log).run()
