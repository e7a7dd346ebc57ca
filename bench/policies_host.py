"""A model host that batches continuously, in virtual time: how long it reads and generates, and what it still holds.

It works in steps, as vLLM, SGLang and llama.cpp do. A step generates one token for every request that is being answered
and, within what the step may hold, reads on in the prompts that have come, first come first served. It takes

    fixed + sequences * for each + tokens read * for each,    all divided by the host's speed

A prompt's beginning that the host holds is not read again. What it holds are the blocks of prompts and answers, the
least recently used forgotten first, the end of a prompt before its beginning. Steps in which nothing changes are taken
together, so that the cost of a simulated answer does not depend on its length.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any, NamedTuple

BLOCK_TOKENS = 64
"""What the host's cache holds or forgets as one."""

FOREVER_NS = 1 << 62


class HostKind(NamedTuple):
    """What a host can do. Times in ns; ``held_tokens`` is how much of prompts and answers it keeps."""

    slot_count: int
    step_ns: int
    sequence_ns: int
    token_ns: int
    step_tokens: int
    held_tokens: int


ACCELERATOR = HostKind(32, 10_000_000, 150_000, 100_000, 512, 200_000)
"""A model of some 8 billion parameters on one accelerator: reads 8,400 tokens/s beside nothing else, 100 tokens/s for
one answer and 68 for each of 32. These are an assumption of the usual order, not measured."""

SMALL = HostKind(4, 3_000_000, 4_700_000, 3_300_000, 64, 8192)
"""llama.cpp's server with a model of 135 million parameters and four slots on two cores, as measured: 300 tokens/s are
read, an answer alone gets a token each 7.7 ms, one of four each 22 ms."""


class Job:
    """One request at a host. Whoever sends it reads ``first_ns`` and ``end_ns`` (0: not yet) and ``held_tokens``.

    ``blocks`` are the whole blocks of the prompt, ``all_blocks`` those of prompt and answer together.
    """

    __slots__ = (
        "all_blocks", "answer_tokens", "blocks", "end_ns", "first_ns", "held_tokens", "left_tokens", "owner",
        "prompt_tokens",
    )  # fmt: skip

    def __init__(
        self, owner: Any, prompt_tokens: int, answer_tokens: int, blocks: Sequence[int], all_blocks: Sequence[int]
    ) -> None:
        self.owner = owner
        self.prompt_tokens = prompt_tokens
        self.answer_tokens = answer_tokens
        self.blocks = blocks
        self.all_blocks = all_blocks
        self.held_tokens = 0
        self.left_tokens = -1
        self.first_ns = 0
        self.end_ns = 0


class Host:
    """One host. :meth:`begin` starts steps and says when they end, :meth:`finish` ends them; in between it works.

    ``queue`` are the requests that wait inside the host because all of its slots are taken: none, when the router
    never sends more than there are slots.
    """

    def __init__(self, kind: HostKind, speed: float = 1.0) -> None:
        self.kind = kind
        self.speed = speed
        self.version = 0
        """Grows with every change of plan: what was announced before is no longer so."""
        self.end_ns = FOREVER_NS
        self.queue: deque[Job] = deque()
        self.read_tokens = 0
        """All that it has read, and that it did not have to: for the account."""
        self._reading: deque[Job] = deque()
        self._answering: list[tuple[int, int, Job]] = []
        """A heap by the step in which each answer ends."""
        self._step = 0
        self._begin_ns = 0
        self._step_ns = 0
        self._steps = 0
        self._read_now: list[tuple[Job, int]] = []
        self._count = 0
        self._held: OrderedDict[int, None] = OrderedDict()
        self._held_max = kind.held_tokens // BLOCK_TOKENS

    @property
    def is_working(self) -> bool:
        """Whether steps are under way."""
        return self._steps > 0

    @property
    def running_count(self) -> int:
        """Requests that hold a slot."""
        return len(self._reading) + len(self._answering)

    def add(self, job: Job, now_ns: int) -> None:
        """Take a request; it begins with the next step."""
        if self.running_count < self.kind.slot_count:
            self._reading.append(job)
            if self._steps > 1:
                self._shorten(now_ns)
        else:
            self.queue.append(job)

    def _shorten(self, now_ns: int) -> None:
        """End with the step that is under way what was planned for many."""
        done = (now_ns - self._begin_ns) // self._step_ns + 1
        if done < self._steps:
            self._steps = done
            self.end_ns = self._begin_ns + done * self._step_ns
            self.version += 1

    def begin(self, now_ns: int) -> None:
        """Plan the next steps: one where prompts are read, else all up to the end of the next answer."""
        kind = self.kind
        self._read_now.clear()
        chunk_tokens = self._fill(kind.step_tokens - len(self._answering))
        duration_ns = kind.step_ns + kind.sequence_ns * len(self._answering) + kind.token_ns * chunk_tokens
        self._step_ns = max(1, int(duration_ns / self.speed))
        if self._read_now:
            self._steps = 1
        elif self._answering:
            self._steps = self._answering[0][0] - self._step
        else:
            self._steps = 0
        self._begin_ns = now_ns
        self.end_ns = now_ns + self._steps * self._step_ns if self._steps else FOREVER_NS
        self.version += 1

    def _fill(self, room_tokens: int) -> int:
        """Choose what is read in the next step; return how many tokens that is."""
        taken = 0
        for job in self._reading:
            if taken >= room_tokens:
                break
            if job.left_tokens < 0:
                job.held_tokens = min(self.held_tokens(job.blocks), job.prompt_tokens - 1)
                job.left_tokens = job.prompt_tokens - job.held_tokens
            tokens = min(job.left_tokens, room_tokens - taken)
            self._read_now.append((job, tokens))
            taken += tokens
        return taken

    def finish(self, now_ns: int) -> tuple[list[Job], list[Job]]:
        """End the planned steps; return the requests that got their first token, and those whose answer is complete."""
        self._step += self._steps
        self._steps = 0
        first: list[Job] = []
        ended: list[Job] = []
        for job, tokens in self._read_now:
            self.read_tokens += tokens
            job.left_tokens -= tokens
            if not job.left_tokens:
                self._reading.popleft()  # prompts are read in order, so it is the first one
                job.first_ns = now_ns
                first.append(job)
                self._hold(job.blocks)
                self._count += 1
                heapq.heappush(self._answering, (self._step + job.answer_tokens - 1, self._count, job))
        self._read_now.clear()
        answering = self._answering
        while answering and answering[0][0] <= self._step:
            job = heapq.heappop(answering)[2]
            job.end_ns = now_ns
            self._hold(job.all_blocks)
            ended.append(job)
        while self.queue and self.running_count < self.kind.slot_count:
            self._reading.append(self.queue.popleft())
        return first, ended

    def held_tokens(self, blocks: Sequence[int]) -> int:
        """Return how many tokens of a prompt need not be read."""
        held = self._held
        count = 0
        for block in blocks:
            if block not in held:
                break
            count += 1
        return count * BLOCK_TOKENS

    def _hold(self, blocks: Sequence[int]) -> None:
        held, move = self._held, self._held.move_to_end
        for block in reversed(blocks):
            held[block] = None
            move(block)
        while len(held) > self._held_max:
            held.popitem(last=False)

    def die(self) -> list[Job]:
        """Lose everything; return the requests that were there."""
        lost = [*self.queue, *self._reading, *(job for _, _, job in self._answering)]
        self.queue.clear()
        self._reading.clear()
        self._answering.clear()
        self._read_now.clear()
        self._held.clear()
        self._steps = 0
        self.end_ns = FOREVER_NS
        self.version += 1
        return lost
