"""How many idle connections a host should have, pure: the most requests that began in any 50 ms of the last 10 s.

Never more than ran at the same time: where connections are used again, short answers give theirs back.
"""

from __future__ import annotations

from collections import deque
from typing import Final

_BUCKET_NS: Final = 50_000_000
_WINDOW_BUCKETS: Final = 200
_NO_PEAK: Final = (0, 0)


class SpareTarget:
    """Counts starts in buckets of 50 ms and keeps the largest of the last 10 s. Explicit time."""

    __slots__ = ("_bucket", "_count", "_peaks", "largest")

    def __init__(self) -> None:
        self._bucket = 0
        self._count = 0
        # Buckets in order with falling counts: the first is the largest of the window, later ones wait for it to age.
        self._peaks: deque[tuple[int, int]] = deque()
        self.largest = 1
        """What :meth:`target` returned last or would return now, whichever is more, where slots are free."""

    def start(self, now_ns: int, running: int) -> None:
        """Count one request that takes a connection; ``running`` is how many run at the host, this one included."""
        bucket = now_ns // _BUCKET_NS
        if bucket != self._bucket:
            self._bucket, self._count = bucket, 0
        count = self._count = self._count + 1
        wanted = count if count < running else running  # min() is a call, and this is the path
        peaks = self._peaks
        last = peaks[-1] if peaks else _NO_PEAK
        if last[1] == wanted and last[0] == bucket:
            return
        while peaks and peaks[-1][1] <= wanted:
            peaks.pop()
        peaks.append((bucket, wanted))
        if wanted > self.largest:  # noqa: PLR1730 - the same
            self.largest = wanted

    def target(self, now_ns: int, free_slots: int) -> int:
        """Return how many idle connections to hold, between 1 and ``free_slots`` (0 when no slot is free)."""
        oldest = now_ns // _BUCKET_NS - _WINDOW_BUCKETS
        peaks = self._peaks
        while peaks and peaks[0][0] < oldest:
            peaks.popleft()
        self.largest = max(peaks[0][1] if peaks else 1, 1)
        return min(self.largest, free_slots)
