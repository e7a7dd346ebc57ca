"""The words of a buffer."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from ringbuffer._plain.arguments import as_index, as_word
from ringbuffer.layout import WORD_BYTES

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_fence_lock: Final = threading.Lock()


def full_fence() -> None:
    """Let nothing cross, not even a load over an earlier store.

    Taking a free lock is a ``lock cmpxchg``, and every locked instruction of x86-64 is a full fence.
    """
    with _fence_lock:
        pass


class Words:
    """The 8-byte words of a buffer, by index. Stores into a read-only buffer raise TypeError."""

    def __init__(self, buffer: Buffer) -> None:
        view = memoryview(buffer)
        self._words = view[: len(view) // WORD_BYTES * WORD_BYTES].cast("Q")

    def load_acquire(self, index: int) -> int:
        """Return word ``index``; later accesses stay behind it."""
        return self._words[as_index(index, len(self._words))]

    def load_relaxed(self, index: int) -> int:
        """Return word ``index``."""
        return self.load_acquire(index)

    def store_release(self, index: int, value: int) -> None:
        """Store word ``index``; earlier accesses stay before it."""
        index, value = as_index(index, len(self._words)), as_word(value)
        if self._words.readonly:
            raise TypeError("cannot store into a read-only mapping")
        self._words[index] = value

    def store_relaxed(self, index: int, value: int) -> None:
        """Store word ``index``."""
        self.store_release(index, value)

    def fence(self) -> None:
        """Full fence: nothing crosses it, not even a load over a store."""
        full_fence()
