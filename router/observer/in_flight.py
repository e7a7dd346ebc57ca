"""What runs at the hosts now, by every router's in-flight table.

A request's charge depends on what runs beside it, and that is known only once it has ended: here it is known while it
runs. A request is in ``inflight.tab`` until its record is in ``done.ring``. So a look that reads the table first and
then how many records there are misses none: what is not in the table has a record before that count.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ringbuffer import BroadcastReader, RingError, TableReader, find_current, writer_state
from router.telemetry import records as rec
from router.telemetry.reader import Names

LOOK_EVERY_NS: Final = 250_000_000
"""Between two looks: a table of 4,096 rows takes two milliseconds. An attempt that failed sooner may not be seen before
its request has ended; no host does much work in that time."""

# request_seq · routed · sent · host, at their places in the head of a done record.
_RUNNING: Final = struct.Struct("<Q48xQ8xQ88xH")


class Running(NamedTuple):
    """A request in flight. Stamps are monotonic ns, 0 = has not happened in the present attempt."""

    request_seq: int
    host: str
    routed_ns: int
    sent_ns: int


class Sighting(NamedTuple):
    """One look at one live router. All that was sent to a host before ``taken_ns`` is in ``running`` or has a record in
    ``done.ring`` before ``done_count``.
    """

    instance: str
    generation: int
    taken_ns: int
    done_count: int
    running: tuple[Running, ...]


class _Router:
    """The segments of one generation."""

    def __init__(self, instance: str, directory: Path) -> None:
        self.instance = instance
        self.directory = directory
        self.generation = int(directory.name)
        self.names = Names(directory)
        self.table = TableReader.attach(directory / "inflight.tab", record_schema=rec.RECORD_SCHEMA)
        self.done_ring = BroadcastReader.attach(directory / "done.ring", record_schema=rec.RECORD_SCHEMA)

    def look(self, now_ns: int) -> Sighting:
        found = [_RUNNING.unpack_from(payload) for _, payload in self.table.rows()]
        done_count = self.done_ring.position + self.done_ring.lag
        running = tuple(Running(seq, self.names.host(host), routed, sent) for seq, routed, sent, host in found)
        return Sighting(self.instance, self.generation, now_ns, done_count, running)

    def close(self) -> None:
        self.names.close()
        self.table.close()
        self.done_ring.close()


class InFlight:
    """Looks at the current generation of every router below ``run_dir``, or of those named in ``instances``."""

    def __init__(self, run_dir: Path, instances: Sequence[str] = ()) -> None:
        self._run_dir = run_dir
        self._instances = tuple(instances)
        self._routers: dict[str, _Router] = {}
        self._looked_ns = 0

    def look(self, now_ns: int) -> list[Sighting]:
        """Return a sighting of each live router as of ``now_ns``, the time of this call.

        Empty when the last look was less than :data:`LOOK_EVERY_NS` ago.
        """
        if now_ns - self._looked_ns < LOOK_EVERY_NS:
            return []
        self._looked_ns = now_ns
        names = self._instances or sorted(link.parent.name for link in self._run_dir.glob("*/current"))
        return [sighting for name in names if (sighting := self._look_at(name, now_ns)) is not None]

    def close(self) -> None:
        """Unmap all segments."""
        for router in self._routers.values():
            router.close()
        self._routers.clear()

    def _look_at(self, instance: str, now_ns: int) -> Sighting | None:
        try:
            directory = find_current(self._run_dir / instance)
            known = self._routers.get(instance)
            if known is None or known.directory != directory:
                if known is not None:
                    known.close()
                known = self._routers[instance] = _Router(instance, directory)
            # A dead router's table shows what ran when it died, for ever.
            if writer_state(directory) not in {"alive", "hung"}:
                return None
            return known.look(now_ns)
        except RingError:  # not there yet, or deleted meanwhile
            self._forget(instance)
            return None

    def _forget(self, instance: str) -> None:
        router = self._routers.pop(instance, None)
        if router is not None:
            router.close()
