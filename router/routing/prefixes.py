"""What each host is thought to hold of prompts, and what it still has to read; pure and bounded.

A host's prefix cache cannot be looked into from here, so it is mirrored: the blocks of every prompt that was sent to a
host (:mod:`router.routing.prompt`), the least recently used forgotten over a bound like the host's own, and each of
them after a while. A block is only ever kept with all blocks before it: they are touched with the first one last, so
that the end of a prompt goes before its beginning.

Who holds a block stands in one table, as a set of bits, one for each host. So how much of a prompt each host holds is
found by bisection for all hosts at once: between two blocks that the same hosts hold, every block is held by them. It
is a handful of looks into a table that is far larger than the processor's caches, where one bisection for each host
would be a hundred.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from router.routing.policy import Ask

_Blocks = OrderedDict[int, int]
"""Of one host: hash of a block → when it was last asked for, the oldest first."""
_CLEARED_MAX: Final = 64
"""Blocks let go with one request, beyond those that make room for its own: what is lost at once goes bit by bit."""


class Prefixes:
    """Blocks by host. ``tokens_max`` bounds each host's, ``keep_ns`` their age; ``block_tokens`` are in one block."""

    def __init__(self, block_tokens: float, tokens_max: int, keep_ns: int) -> None:
        self._block_tokens = block_tokens
        self._count_max = max(1, int(tokens_max / block_tokens))
        self._keep_ns = max(1, keep_ns)
        self._hosts: dict[int, _Blocks] = {}
        self._bits: dict[int, int] = {}
        """By host: its bit."""
        self._host_of: dict[int, int] = {}
        """By bit, those of lost blocks not among them."""
        self._free_bits: list[int] = []
        self._holders: dict[int, int] = {}
        """By block: the bits of the hosts that hold it."""
        self._lost: deque[tuple[int, _Blocks]] = deque()
        """Bits and blocks of hosts that hold them no more."""
        self._reading: dict[int, list[int]] = {}
        """By host: tokens that it has to read, in a list of one: a request that was sent to a host that has gone since
        takes its own back from there, and not from the host that has come under the same id."""

    # ------------------------------------------------------------ who holds what
    def held(self, ask: Ask) -> dict[int, int]:
        """Return how many tokens of a prompt each host is thought to hold, without those that hold none of it.

        Less than all of them: the last one is always read.
        """
        found: dict[int, int] = {}
        blocks = ask.blocks
        if not blocks:
            return found
        tokens_max = max(ask.prompt_tokens - 1, 0)
        since_ns = ask.now_ns - self._keep_ns
        for count, bits in self._depths(blocks):
            for host_id in self._hosts_in(bits):
                fresh = self._fresh(host_id, blocks, count, since_ns)
                if fresh:
                    found[host_id] = min(int(fresh * self._block_tokens), tokens_max)
        return found

    def _depths(self, blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yield how many blocks from the first on are held, with the bits of the hosts that hold just so many."""
        get = self._holders.get
        last = len(blocks)
        bits, count = get(blocks[0], 0), 1
        while bits:
            end_bits = get(blocks[last - 1], 0) & bits
            if end_bits == bits:
                yield last, bits
                return
            # The next block that not all of them hold: those that do not, hold just what is before it.
            low, high, high_bits = count, last, end_bits
            while high - low > 1:
                middle = (low + high) // 2
                middle_bits = get(blocks[middle - 1], 0) & bits
                if middle_bits == bits:
                    low = middle
                else:
                    high, high_bits = middle, middle_bits
            yield low, bits & ~high_bits
            bits, count = high_bits, high

    def _hosts_in(self, bits: int) -> Iterator[int]:
        while bits:
            bit = bits & -bits
            bits ^= bit
            host_id = self._host_of.get(bit)
            if host_id is not None:
                yield host_id

    def _fresh(self, host_id: int, blocks: Sequence[int], count: int, since_ns: int) -> int:
        """Return how many of the first ``count`` blocks, which a host holds, were asked for since a time."""
        held = self._hosts[host_id]
        if next(iter(held.values())) > since_ns:  # so all of them are
            return count
        low, high = 0, count + 1
        while high - low > 1:
            middle = (low + high) // 2
            if held[blocks[middle - 1]] > since_ns:
                low = middle
            else:
                high = middle
        return low

    def held_tokens(self, host_id: int, ask: Ask) -> int:
        """Return how many tokens of a prompt one host is thought to hold."""
        return self.held(ask).get(host_id, 0)

    def block_count(self, host_id: int) -> int:
        """Return how many blocks are remembered of a host."""
        return len(self._hosts.get(host_id, ()))

    # ------------------------------------------------------------ what has to be read
    def reading_tokens(self, host_id: int) -> int:
        """Return how many tokens a host still has to read of prompts that were sent to it."""
        reading = self._reading.get(host_id)
        return reading[0] if reading is not None else 0

    def sent(self, host_id: int, ask: Ask) -> None:
        """A host gets a prompt: from now on it holds it, and has the rest of it to read."""
        held = self.held(ask) if ask.held is None else ask.held
        ask.held = None
        ask.held_tokens = held.get(host_id, 0)
        ask.new_tokens = ask.prompt_tokens - ask.held_tokens
        ask.reading = reading = self._reading.setdefault(host_id, [0])
        reading[0] += ask.new_tokens
        if ask.blocks:
            self._touch(host_id, ask)
        self._clear()

    @staticmethod
    def read(ask: Ask) -> None:
        """A host has read a prompt, or will not: called for each that was sent, more than once does nothing."""
        tokens, ask.new_tokens = ask.new_tokens, 0
        if tokens:
            ask.reading[0] -= tokens

    # ------------------------------------------------------------ coming and going
    def _touch(self, host_id: int, ask: Ask) -> None:
        held = self._hosts.get(host_id)
        if held is None:
            held = self._hosts[host_id] = OrderedDict()
            self._give_bit(host_id)
        bit, holders, now_ns, move = self._bits[host_id], self._holders, ask.now_ns, held.move_to_end
        for block in reversed(ask.blocks[: self._count_max]):
            if block in held:
                move(block)
            else:
                holders[block] = holders.get(block, 0) | bit
            held[block] = now_ns
        while len(held) > self._count_max:
            self._drop(held.popitem(last=False)[0], bit)
        self._drop_old(held, bit, now_ns - self._keep_ns)

    def _drop_old(self, held: _Blocks, bit: int, since_ns: int) -> None:
        for _ in range(_CLEARED_MAX):
            block, then_ns = next(iter(held.items()))
            if then_ns > since_ns:
                return
            del held[block]
            self._drop(block, bit)

    def _drop(self, block: int, bit: int) -> None:
        bits = self._holders[block] & ~bit
        if bits:
            self._holders[block] = bits
        else:
            del self._holders[block]

    def _give_bit(self, host_id: int) -> None:
        bit = self._free_bits.pop() if self._free_bits else 1 << (len(self._bits) + len(self._lost))
        self._bits[host_id] = bit
        self._host_of[bit] = host_id

    def _clear(self) -> None:
        """Let go of some of what was lost."""
        if self._lost:
            bit, held = self._lost[0]
            for _ in range(min(len(held), _CLEARED_MAX)):
                self._drop(held.popitem(last=False)[0], bit)
            if not held:
                self._lost.popleft()
                self._free_bits.append(bit)

    def emptied(self, host_id: int) -> None:
        """A host holds nothing any more. What it has to read is taken back by whoever was sent there."""
        held = self._hosts.pop(host_id, None)
        if held is not None:
            bit = self._bits.pop(host_id)
            del self._host_of[bit]
            self._lost.append((bit, held))

    def forget(self, host_id: int) -> None:
        """A host is gone."""
        self.emptied(host_id)
        self._reading.pop(host_id, None)
