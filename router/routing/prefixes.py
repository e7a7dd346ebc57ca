"""What each host is thought to hold of prompts, and what it still has to read; pure and bounded.

A host's prefix cache cannot be looked into from here, so it is mirrored: the blocks of every prompt that was sent to a
host (:mod:`router.routing.prompt`), the least recently used forgotten over a bound like the host's own, and each of
them after a while. A block is only ever kept with all blocks before it: they are touched with the first one last, so
that the end of a prompt goes before its beginning, and how much of a prompt a host holds is found by bisection.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.routing.policy import Ask

_Blocks = OrderedDict[int, int]
"""Of one host: hash of a block → when it was last asked for, the oldest first."""


class Prefixes:
    """Blocks by host. ``tokens_max`` bounds each host's, ``keep_ns`` their age; ``block_tokens`` are in one block."""

    def __init__(self, block_tokens: float, tokens_max: int, keep_ns: int) -> None:
        self._block_tokens = block_tokens
        self._count_max = max(1, int(tokens_max / block_tokens))
        self._keep_ns = keep_ns
        self._hosts: dict[int, _Blocks] = {}
        self._reading: dict[int, int] = {}

    def held_tokens(self, host_id: int, ask: Ask) -> int:
        """Return how many tokens of a prompt a host is thought to hold, less than all: the last one is always read."""
        blocks = ask.blocks
        held = self._hosts.get(host_id)
        if not held or not blocks:
            return 0
        since_ns = ask.now_ns - self._keep_ns
        if held.get(blocks[0], since_ns) <= since_ns:
            return 0
        count = _known(held, blocks, since_ns)
        return min(int(count * self._block_tokens), max(ask.prompt_tokens - 1, 0))

    def reading_tokens(self, host_id: int) -> int:
        """Return how many tokens a host still has to read of prompts that were sent to it."""
        return self._reading.get(host_id, 0)

    def sent(self, host_id: int, ask: Ask) -> None:
        """A host gets a prompt: from now on it holds it, and has the rest of it to read."""
        ask.held_tokens = self.held_tokens(host_id, ask)
        ask.new_tokens = ask.prompt_tokens - ask.held_tokens
        self._reading[host_id] = self._reading.get(host_id, 0) + ask.new_tokens
        if ask.blocks:
            self._touch(self._hosts.setdefault(host_id, OrderedDict()), ask)

    def _touch(self, held: _Blocks, ask: Ask) -> None:
        now_ns, move = ask.now_ns, held.move_to_end
        for block in reversed(ask.blocks[: self._count_max]):
            held[block] = now_ns
            move(block)
        while len(held) > self._count_max:
            held.popitem(last=False)

    def read(self, host_id: int, ask: Ask) -> None:
        """A host has read a prompt, or will not: called for each that was sent, more than once does nothing."""
        tokens, ask.new_tokens = ask.new_tokens, 0
        if tokens and host_id in self._reading:
            self._reading[host_id] -= tokens

    def emptied(self, host_id: int) -> None:
        """A host holds nothing any more. What it has to read is taken back by whoever was sent there."""
        self._hosts.pop(host_id, None)

    def forget(self, host_id: int) -> None:
        """A host is gone."""
        self._hosts.pop(host_id, None)
        self._reading.pop(host_id, None)

    def block_count(self, host_id: int) -> int:
        """Return how many blocks are remembered of a host."""
        return len(self._hosts.get(host_id, ()))


def _known(held: _Blocks, blocks: Sequence[int], since_ns: int) -> int:
    """Return how many blocks from the first on are held and young enough; the first one is."""
    low, high = 1, len(blocks) + 1
    while high - low > 1:
        middle = (low + high) // 2
        if held.get(blocks[middle - 1], since_ns) > since_ns:
            low = middle
        else:
            high = middle
    return low
