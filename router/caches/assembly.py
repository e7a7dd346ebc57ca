"""All caches of one router, as its configuration has them: built, started and stopped together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from router.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from router.caches.front import Front
    from router.caches.intake import Intake
    from router.caches.nearest import NearestFront
    from router.caches.warm import Warmer
    from router.config import Config
    from router.loop import Loop


class Caches:
    """Loads of the caches' modules those that the configuration needs. Raises :class:`ConfigError`."""

    def __init__(self, config: Config, loop: Loop, run_dir: Path, log: Any) -> None:
        parts = config, loop, run_dir, log
        cache = config.cache
        self._front = _front(*parts) if cache.embeddings.enabled or cache.nearest.enabled else None
        self._beside: list[Intake | Warmer] = []
        if cache.tools.sources or cache.responses.enabled:
            from router.caches.intake import Intake  # noqa: PLC0415 - only who has it configured loads it

            self._beside.append(Intake(loop, config, run_dir, log))
        if cache.warm:
            from router.caches.warm import Warmer  # noqa: PLC0415 - the same

            self._beside.append(Warmer(loop, config, run_dir, log))

    @property
    def nearest(self) -> NearestFront | None:
        """Makes requests of questions for what is nearest, where that is configured."""
        return self._front.nearest if self._front is not None else None

    async def start(self) -> None:
        """Read what a keeper has published, so that it is there with the first request."""
        for part in (self._front, *self._beside):
            if part is not None:
                await part.start()

    def drain(self) -> None:
        """Ask for what still waits for company: the router admits nothing any more."""
        if self._front is not None:
            self._front.drain()

    def stop(self) -> None:
        """Let everything go."""
        for part in (*self._beside, self._front):
            if part is not None:
                part.stop()


def _front(config: Config, loop: Loop, run_dir: Path, log: Any) -> Front:
    from router.caches.front import Front  # noqa: PLC0415 - only who has it configured loads it

    try:
        return Front(config, loop, run_dir, log)
    except ModuleNotFoundError as error:
        raise ConfigError(f"cache.embeddings needs {error.name}: pip install 'ringrouter[keep]'") from None
