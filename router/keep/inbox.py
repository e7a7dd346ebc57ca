"""What routers send the keeper: the records of ``keep.ring`` of every router below the run directory.

A record is one or more slots, published together (:mod:`router.caches.outbox`). The producer skips what finds no room,
so a keeper that is slow or away costs routers nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from ringbuffer import GatingConsumer, RingError, find_current, writer_state
from router.caches.outbox import HEAD, RECORD_BYTES_MAX, RECORD_SCHEMA, RING_NAME, SLOT_BYTES

LOOK_EVERY_NS: Final = 250_000_000
"""How often new routers and generations are looked for."""
_TURN_SLOTS: Final = 4096
"""Slots taken from one ring in one turn."""
_CONSUMER: Final = "keeper"
Take = Callable[[int, bytes], None]
"""Takes a record: its op and its bytes."""


class _Ring:
    """One router's ring, and the record that is in the making."""

    def __init__(self, generation: Path) -> None:
        self.generation = generation
        self.consumer = GatingConsumer.register(generation / RING_NAME, _CONSUMER, record_schema=RECORD_SCHEMA)

    def take(self, take: Take) -> int:
        """Hand on what is there, in order; return how many slots that were."""
        consumer = self.consumer
        first, end = consumer.poll(_TURN_SLOTS)
        sequence = first
        read = consumer.read_record
        while sequence < end:
            payload = read(sequence)
            total, op, _ = HEAD.unpack_from(payload)
            if total > RECORD_BYTES_MAX:
                raise RingError(f"it has a record of {total} bytes, at most {RECORD_BYTES_MAX} are written")
            count = slot_count(total)
            if sequence + count > end:
                break  # the rest comes with the next turn
            parts = [payload[HEAD.size :], *(read(s) for s in range(sequence + 1, sequence + count))]
            sequence += count
            take(op, b"".join(parts)[:total])
        consumer.release(sequence)
        return sequence - first

    @property
    def is_over(self) -> bool:
        """Whether its writer is gone: what is in it now is all there will be."""
        try:
            return writer_state(self.generation) in {"dead", "restarted"}
        except RingError:
            return True  # deleted: others were started since


def slot_count(total: int) -> int:
    """Return how many slots a record of ``total`` bytes takes."""
    return -(-(HEAD.size + total) // (SLOT_BYTES - 8))


class Inbox:
    """Reads the rings of all routers below a run directory."""

    def __init__(self, run_dir: Path, log: Any) -> None:
        self._run_dir = run_dir
        self._log = log
        self._rings: dict[Path, _Ring] = {}
        self._over: set[Path] = set()
        self._looked_ns = 0

    @property
    def generations(self) -> list[str]:
        """The directories of the routers whose rings are read."""
        return [str(path) for path in self._rings]

    def poll(self, take: Take) -> int:
        """Hand on all records that are there; return how many slots they took."""
        now = time.monotonic_ns()
        if now - self._looked_ns >= LOOK_EVERY_NS:
            self._looked_ns = now
            self._look()
        count = 0
        for generation, ring in list(self._rings.items()):
            try:
                over = ring.is_over
                taken = ring.take(take)
            except RingError as error:
                self._log.warning("a router's ring cannot be read any more", ring=str(generation), reason=str(error))
                self._leave(generation)
                continue
            count += taken
            if over and not taken:
                self._leave(generation)
        return count

    def _look(self) -> None:
        for generation in self._generations():
            if generation in self._rings or generation in self._over:
                continue
            try:
                if writer_state(generation) in {"dead", "restarted"}:
                    continue  # nobody writes it, and what it had to say went to the keeper before this one, or to none
                self._rings[generation] = _Ring(generation)
            except RingError as error:
                if (generation / RING_NAME).exists():
                    self._over.add(generation)
                    self._log.warning("a router's ring cannot be read", ring=str(generation), reason=str(error))

    def _generations(self) -> Iterator[Path]:
        try:
            entries = sorted(entry.path for entry in os.scandir(self._run_dir) if entry.is_dir())
        except OSError:
            return
        for path in entries:
            try:
                yield find_current(Path(path))
            except RingError:
                continue

    def _leave(self, generation: Path) -> None:
        ring = self._rings.pop(generation)
        self._over.add(generation)
        ring.consumer.close()

    def close(self) -> None:
        """Gate no ring any more."""
        for ring in self._rings.values():
            ring.consumer.close()
        self._rings.clear()
