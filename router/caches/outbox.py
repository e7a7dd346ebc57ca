"""The router's end of the ring to the keeper: what finds no room is skipped and counted, never waited for.

``keep.ring`` in the router's generation is a gating ring of slots of :data:`SLOT_BYTES`. A record is as many slots as
it needs, published together: ``total u32, op u16, 0 u16``, then ``total`` bytes, zero padded. Ops: :data:`OP_PUT` the
length of a space's name (u16), that name (:class:`router.caches.keys.Space`), a key and an entry; :data:`OP_TOUCH` a
key that was used and is old.
"""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Final

from ringbuffer import GatingProducer, RingError

RING_NAME: Final = "keep.ring"
RECORD_SCHEMA: Final = (1, 0)
SLOT_BYTES: Final = 1024
RECORD_BYTES_MAX: Final = 128 << 10
"""Of one record: a vector of 8,192 numbers that need 64 bits each fits twice."""
HEAD: Final = struct.Struct("<IHH")
OP_PUT: Final = 1
OP_TOUCH: Final = 2
_PAYLOAD_BYTES: Final = SLOT_BYTES - 8
_CONSUMERS_MAX: Final = 2
"""The keeper, and for a moment the one after it."""


class Outbox:
    """Writes the ring; its only producer."""

    def __init__(self, generation: Path, slot_count: int) -> None:
        self.skipped_count = 0
        """Records that found no room."""
        self._slot_count = slot_count
        self._ring = GatingProducer.create(
            generation / RING_NAME,
            slot_count=slot_count,
            slot_size=SLOT_BYTES,
            record_schema=RECORD_SCHEMA,
            name="keep",
            consumers_max=_CONSUMERS_MAX,
        )

    def send(self, op: int, *parts: bytes) -> bool:
        """Publish a record made of the parts; false if it was skipped."""
        total = sum(map(len, parts))
        size = HEAD.size + total
        padding = -size % _PAYLOAD_BYTES
        if total > RECORD_BYTES_MAX or (size + padding) // _PAYLOAD_BYTES > self._slot_count:
            self.skipped_count += 1
            return False
        record = b"".join((HEAD.pack(total, op, 0), *parts, bytes(padding)))
        if self._ring.try_publish_batch(record) < 0:
            self.skipped_count += 1
            return False
        return True

    def second(self, now: int) -> None:
        """Show that this router lives, and let nobody wait for a keeper that does not."""
        self._ring.beat(now)
        with contextlib.suppress(RingError):  # the system may not tell who lives: then a full ring is skipped
            self._ring.drop_dead_consumers()

    def close(self) -> None:
        """Let the ring go; what is in it is still read."""
        self._ring.close()
