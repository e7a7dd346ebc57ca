"""The newest vectors, in the router itself: bounded in bytes, the longest unused go first."""

from __future__ import annotations

from sys import getsizeof
from typing import Final

from router.caches.entries import made_s

_PLACE_BYTES: Final = 160
"""What an entry takes beside its two strings: its place in a dictionary that may be one third full, and a pair."""


class MemoryMap:
    """Entries by key. ``used_bytes`` is never above ``bytes_max``; ``evicted_count`` left to make room."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.used_bytes = 0
        self.evicted_count = 0
        self._entries: dict[bytes, bytes] = {}
        self._used: set[bytes] = set()
        """Keys that were found since they were put in."""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> bytes | None:
        """Return an entry, which then is the last to go."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._entries[key] = entry
            self._used.add(key)
        return entry

    def peek(self, key: bytes) -> bytes | None:
        """Return an entry without counting that as use."""
        return self._entries.get(key)

    def keys(self) -> list[bytes]:
        """Return the keys, the longest unused first."""
        return list(self._entries)

    def put(self, key: bytes, entry: bytes) -> list[tuple[bytes, bytes]]:
        """Put an entry in; return those that left for it and had been of use."""
        self.drop(key)
        size = cost_bytes(key, entry)
        if size > self.bytes_max:
            return []
        gone = []
        while self.used_bytes + size > self.bytes_max:
            oldest = next(iter(self._entries))
            if oldest in self._used:
                gone.append((oldest, self._entries[oldest]))
            self.drop(oldest)
            self.evicted_count += 1
        self._entries[key] = entry
        self.used_bytes += size
        return gone

    def drop(self, key: bytes) -> None:
        """Forget an entry, if it is there."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._used.discard(key)
            self.used_bytes -= cost_bytes(key, entry)

    def drop_all(self, prefix: bytes, until_s: int) -> int:
        """Forget all entries made until then whose keys begin so; return how many."""
        keys = [key for key, entry in self._entries.items() if key.startswith(prefix) and made_s(entry) <= until_s]
        for key in keys:
            self.drop(key)
        return len(keys)


def cost_bytes(key: bytes, entry: bytes) -> int:
    """Return the memory that an entry takes."""
    return getsizeof(key) + getsizeof(entry) + _PLACE_BYTES
