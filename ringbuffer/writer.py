"""What every writer of a segment shares: the heartbeat, the count of published records, and closing."""

from __future__ import annotations

from ringbuffer.segment import Segment


class SegmentWriter:
    """Base of the writers. One process, one thread writes a segment."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.name = segment.header.name

    @property
    def published(self) -> int:
        """Records published so far."""
        return self.segment.published

    def beat(self, now_ns: int) -> None:
        """Store the heartbeat: the writer is making progress at ``now_ns``, CLOCK_MONOTONIC."""
        self.segment.beat(now_ns)

    def close(self) -> None:
        """Give up the writer's lock; the file stays for readers. The object must not write after this."""
        self.segment.close()
