"""The parts of a router that its keeper feeds, built and ended together: vectors and what is nearest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from router.caches.embeddings import Embeddings
from router.caches.keeper_link import KeeperLink, show
from router.caches.nearest import NearestFront
from router.caches.outbox import Outbox
from router.config import Config, keeper_socket
from router.telemetry.counters import Counter

if TYPE_CHECKING:
    from router.caches.reader import StoreReader
    from router.loop import Loop

_NS: Final = 1_000_000_000


class Front:
    """What is there of it depends on the configuration."""

    def __init__(self, config: Config, loop: Loop, run_dir: Path, log: Any) -> None:
        cache = config.cache
        self._loop = loop
        self._keeper_pid = 0
        self._purge_seen_ns = 0
        """When the last purge was of which the router knows, by the wall clock: the store, not the keeper, tells."""
        self._offered_pid = 0
        self._reader: StoreReader | None = None
        self._outbox: Outbox | None = None
        if cache.embeddings.enabled:
            from router.caches.reader import StoreReader  # noqa: PLC0415 - only who keeps vectors loads LMDB

            self._reader = StoreReader(run_dir, loop.counters, log)
            self._outbox = Outbox(loop.telemetry.generation.path, cache.embeddings.ring_slots)
        self.embeddings = Embeddings(loop, cache.embeddings, self._reader, self._outbox)
        if cache.embeddings.enabled:
            self.embeddings.stand_in_front()
        self.link = KeeperLink(keeper_socket(config, run_dir), self._show)
        self.nearest: NearestFront | None = None
        if cache.nearest.enabled:
            self.nearest = NearestFront(config, loop, self.embeddings, self.link)
            self.nearest.stand_in_front()
        loop.seconds += [self.embeddings.second, self._second]

    async def start(self) -> None:
        """Map the store that is published, if one is: its hits are to be there with the first request."""
        self.link.second()
        if self._reader is not None:
            await self._reader.opened()

    def _second(self, now: int) -> None:
        self.link.second(now)
        self._loop.counters.set(Counter.KEEPER_UP, int(self.link.is_up))

    def _show(self, status: dict[str, Any]) -> None:
        """Show what the keeper says of its store among the router's counters."""
        store = status.get("embeddings")
        if isinstance(store, dict):
            self._forget(store.get("purges"))
            self._offer(status.get("keeper"), store.get("rings"))
            show(
                self._loop.counters.set,
                {
                    Counter.CACHE_STORE_ENTRIES: store.get("entries"),
                    Counter.CACHE_STORE_BYTES: store.get("used_bytes"),
                    Counter.CACHE_STORE_EVICTED: store.get("evicted"),
                    Counter.CACHE_STORE_AGE_S_MAX: store.get("oldest_age_s"),
                },
            )

    def _forget(self, purges: Any) -> None:
        """Forget in memory what was purged from the store since a keeper last told."""
        for wall_ns, prefix in purges if isinstance(purges, list) else ():
            if wall_ns > self._purge_seen_ns:
                self._purge_seen_ns = wall_ns
                self.embeddings.forget(prefix, wall_ns // _NS)

    def _offer(self, keeper: Any, rings: Any) -> None:
        """Offer a keeper that has begun to read the ring what came before it."""
        self._keeper_pid = int(keeper.get("pid", 0)) if isinstance(keeper, dict) else 0
        if not isinstance(rings, list) or str(self._loop.telemetry.generation.path) not in rings:
            return
        if self._offered_pid != self._keeper_pid:
            self._offered_pid = self._keeper_pid
            self.embeddings.offer_all()

    def drain(self) -> None:
        """Ask for what still waits for company: the router admits nothing any more."""
        self.embeddings.calls.flush()

    def stop(self) -> None:
        """Let everything go."""
        self.link.close()
        if self._outbox is not None:
            self._outbox.close()
        if self._reader is not None:
            self._reader.close()
