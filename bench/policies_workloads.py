"""What is asked of the fleet of the policy study: sessions with turns, prompts that share their beginnings, and fleets.

A session begins at random (a Poisson process) and consists of turns: a prompt, an answer, a pause, and then the same
prompt with the answer and something new behind it. Everything random comes from the generator that is given, so that
the same seed asks the same of every policy.
"""

from __future__ import annotations

from bisect import bisect
from itertools import accumulate
from math import log
from random import Random
from typing import NamedTuple

from bench.policies_host import ACCELERATOR, BLOCK_TOKENS, SMALL, HostKind

_NS = 1_000_000_000
_SPREAD = 0.6
"""Sigma of the log-normal lengths: the 95th percentile is 2.7 times the median."""
_GROUP_BITS = 24
"""A block's number is its text's number and its place in the text, which has fewer than 2 ** 24 blocks."""


class Traffic(NamedTuple):
    """Sessions of one kind. Lengths are means in tokens.

    ``shared_count`` texts of ``shared_tokens`` begin the prompts, the k-th asked for in proportion to 1 / k; 0: none.
    ``share``: of all sessions. ``is_batch``: of the class that waits behind everything else.
    """

    turns: float
    shared_count: int
    shared_tokens: int
    new_tokens: int
    answer_tokens: int
    pause_s: float
    share: float = 1.0
    is_batch: bool = False


class Workload(NamedTuple):
    """Traffic, the fleet it meets, and what its users want: a first token and then tokens within these times.

    ``speeds`` has one entry for each host. Every ``outage_every_s`` the last host dies, for ``outage_s``; 0: never.
    """

    name: str
    meaning: str
    traffic: tuple[Traffic, ...]
    speeds: tuple[float, ...]
    ttft_s: float
    token_s: float
    kind: HostKind = ACCELERATOR
    outage_every_s: float = 0.0
    outage_s: float = 0.0


_CHAT = Traffic(turns=5, shared_count=8, shared_tokens=1500, new_tokens=60, answer_tokens=200, pause_s=10)
_EQUAL = (1.0,) * 6

WORKLOADS = (
    Workload(
        "chat", "conversations of 5 turns, 8 system prompts of 1,500 tokens, 6 hosts",
        (_CHAT,), _EQUAL, 1.0, 0.05,
    ),
    Workload(
        "agents", "tool loops of 15 turns that grow by 600 tokens each, 4 openings of 3,000 tokens, 6 hosts",
        (Traffic(turns=15, shared_count=4, shared_tokens=3000, new_tokens=600, answer_tokens=80, pause_s=2),),
        _EQUAL, 2.0, 0.05,
    ),
    Workload(
        "documents", "questions to one of 400 documents of 6,000 tokens, a few of which are asked for often, 6 hosts",
        (Traffic(turns=1, shared_count=400, shared_tokens=6000, new_tokens=80, answer_tokens=150, pause_s=0),),
        _EQUAL, 3.0, 0.05,
    ),
    Workload(
        "mixed", "chat as above with batch work of 2,000 new tokens in and 500 out, which waits behind it, 6 hosts",
        (
            _CHAT._replace(share=0.7),
            Traffic(turns=1, shared_count=2, shared_tokens=500, new_tokens=2000, answer_tokens=500, pause_s=0,
                    share=0.3, is_batch=True),
        ),
        _EQUAL, 1.0, 0.05,
    ),
    Workload(
        "slow", "chat as above; one of the 6 hosts has 0.4 of the others' speed",
        (_CHAT,), (1.0, 1.0, 1.0, 1.0, 1.0, 0.4), 1.0, 0.05,
    ),
    Workload(
        "flapping", "chat as above; one of the 6 hosts dies every 40 s and is back 6 s later with nothing held",
        (_CHAT,), _EQUAL, 1.0, 0.05, outage_every_s=40, outage_s=6,
    ),
    Workload(
        "nothing shared", "single questions of 600 tokens that have nothing in common, 6 hosts",
        (Traffic(turns=1, shared_count=0, shared_tokens=0, new_tokens=600, answer_tokens=200, pause_s=0),),
        _EQUAL, 1.0, 0.05,
    ),
    Workload(
        "small hosts", "chat on 2 hosts of 4 slots that hold 8,192 tokens, 3 system prompts of 400 tokens",
        (Traffic(turns=4, shared_count=3, shared_tokens=400, new_tokens=25, answer_tokens=40, pause_s=5),),
        (1.0, 1.0), 3.0, 0.05, kind=SMALL,
    ),
)  # fmt: skip


class Turn(NamedTuple):
    """One request of a session: its prompt grows by ``new_tokens``, ``pause_ns`` follow its answer."""

    new_tokens: int
    answer_tokens: int
    pause_ns: int


class Session:
    """What one client asks, turn by turn. ``blocks`` are those of everything said so far."""

    __slots__ = ("blocks", "is_batch", "key", "number", "prompt_tokens", "turns")

    def __init__(self, number: int, traffic: Traffic, random: Random) -> None:
        self.number = number
        self.key = b"%d" % number
        self.is_batch = traffic.is_batch
        self.blocks: list[int] = []
        self.prompt_tokens = 0
        if traffic.shared_count:
            self._grow(1 + _drawn_rank(random, traffic.shared_count), traffic.shared_tokens)
        self.turns = [_turn(traffic, random) for _ in range(_geometric(random, traffic.turns))]
        self.turns.reverse()  # so that the next one is the last

    def ask(self) -> tuple[Turn, int, int]:
        """Take the next turn; return it, the number of tokens of its prompt, and of the blocks of its prompt.

        From then on ``blocks`` are those of the prompt and its answer.
        """
        turn = self.turns.pop()
        own = self.number + (1 << _GROUP_BITS)
        self._grow(own, turn.new_tokens)
        prompt_tokens, block_count = self.prompt_tokens, len(self.blocks)
        self._grow(own, turn.answer_tokens)
        return turn, prompt_tokens, block_count

    def _grow(self, text: int, tokens: int) -> None:
        self.prompt_tokens += tokens
        first = len(self.blocks)
        self.blocks += [text << _GROUP_BITS | place for place in range(first, self.prompt_tokens // BLOCK_TOKENS)]


def next_session(number: int, workload: Workload, random: Random) -> Session:
    """Draw a session."""
    shares = [traffic.share for traffic in workload.traffic]
    return Session(number, random.choices(workload.traffic, shares)[0], random)


def turns_per_session(workload: Workload) -> float:
    """Return the mean number of requests of a session."""
    return sum(traffic.share * traffic.turns for traffic in workload.traffic)


def turn_s(workload: Workload) -> float:
    """Return about how long a turn takes, its pause included, in seconds."""
    kind, traffic = workload.kind, workload.traffic[0]
    return traffic.pause_s + traffic.answer_tokens * (kind.step_ns + kind.sequence_ns * kind.slot_count / 4) / _NS


def session_s(workload: Workload) -> float:
    """Return about how long a session of the first kind lasts times the share of its kind: by Little's law the number
    of those under way for each session a second.
    """
    traffic = workload.traffic[0]
    return traffic.share * traffic.turns * turn_s(workload)


def _turn(traffic: Traffic, random: Random) -> Turn:
    pause_ns = int(random.expovariate(1 / traffic.pause_s) * _NS) if traffic.pause_s else 0
    return Turn(_length(traffic.new_tokens, random), _length(traffic.answer_tokens, random), pause_ns)


def _length(mean: int, random: Random) -> int:
    """Draw a log-normal length with this mean, at least 1 and at most 8 times the mean."""
    return max(1, min(int(random.lognormvariate(log(mean) - _SPREAD * _SPREAD / 2, _SPREAD)), 8 * mean))


def _geometric(random: Random, mean: float) -> int:
    """Draw a number of at least 1."""
    return 1 if mean <= 1 else 1 + int(random.expovariate(1.0) / -log(1 - 1 / mean))


_sums: dict[int, list[float]] = {}


def _drawn_rank(random: Random, count: int) -> int:
    """Draw a number below ``count``, k in proportion to 1 / (k + 1)."""
    if count not in _sums:
        _sums[count] = list(accumulate(1 / (rank + 1) for rank in range(count)))
    sums = _sums[count]
    return bisect(sums, random.random() * sums[-1])
