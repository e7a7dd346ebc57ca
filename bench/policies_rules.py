"""The rules that the policy study compares: the router's own policies, made as its configuration makes them, and rules
that others route by, stated here anew.

The others' rules come in two forms. Behind the router's waiting room they choose among the hosts that have a free slot,
so that the rule alone differs. ``queued in hosts`` sends at once whatever is running, as routers without a waiting room
do, and what a host has no slot for waits inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import NamedTuple

from bench.policies_host import BLOCK_TOKENS
from router.config import HostConfig, RoutingConfig
from router.routing import NO_HOST, Candidate, Verdict
from router.routing.eligible import takeable
from router.routing.factory import build
from router.routing.policy import BYTES_PER_TOKEN, Ask, Policy
from router.routing.turns import Unlearned

HostSettings = Mapping[int, HostConfig]

MATCH_MIN = 0.3
LOAD_DIFFERENCE = 64
LOAD_RATIO = 1.5
HELD_NS = 120_000_000_000
"""Defaults of the cache-aware rule."""


class Rule(NamedTuple):
    """A way to choose hosts. ``queues_in_hosts``: it does not wait for a free slot.

    ``host_blocks`` is how many of a host's blocks are one for the rule, which sees no more of a prompt than that.
    """

    name: str
    make: Callable[[HostSettings, Random], Policy]
    queues_in_hosts: bool = False
    host_blocks: int = 1

    def blocks(self, blocks: Sequence[int]) -> Sequence[int]:
        """Return a prompt's blocks as the rule sees them: a host's last one stands for all up to it."""
        return blocks[self.host_blocks - 1 :: self.host_blocks]


class _Chooses(Unlearned):
    """A rule of others: says nothing for the record."""

    number = 0

    def __init__(self, random: Random) -> None:
        self._random = random

    def verdicts(self) -> list[Verdict]:
        return []


class AtRandom(_Chooses):
    """Any host that can take the request."""

    def choose(self, candidates: Sequence[Candidate], ask: Ask) -> int:  # noqa: ARG002 - a rule's interface
        free = takeable(candidates)
        return self._random.choice(free) if free else NO_HOST


class TwoChoices(_Chooses):
    """Of two hosts drawn at random the one with fewer requests outstanding."""

    def choose(self, candidates: Sequence[Candidate], ask: Ask) -> int:  # noqa: ARG002 - a rule's interface
        free = takeable(candidates)
        if not free:
            return NO_HOST
        drawn = self._random.sample(free, min(2, len(free)))
        return min(drawn, key=lambda index: candidates[index][1])


class CacheAware(_Chooses):
    """The rule of SMG (the former SGLang router) with its defaults, in words of our own.

    For each host the prompts that were sent there are remembered, for 120 s after they were last used. While the loads
    are balanced (the most requests outstanding are no more than 64 and no more than 1.5 times above the fewest), a
    request goes to the host that remembers most of its prompt, if that is more than 0.3 of it, else to the one with the
    fewest outstanding; when they are not balanced, to that one always.
    """

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self._seen: dict[int, dict[int, int]] = {}

    def choose(self, candidates: Sequence[Candidate], ask: Ask) -> int:
        free = takeable(candidates)
        if not free:
            return NO_HOST
        loads = [candidates[index][1] for index in free]
        fewest = min(free, key=lambda index: candidates[index][1])
        if max(loads) - min(loads) > LOAD_DIFFERENCE and max(loads) > LOAD_RATIO * min(loads):
            return fewest
        matched = {index: self._matched(candidates[index][0], ask) for index in free}
        best = max(free, key=matched.__getitem__)
        return best if matched[best] > MATCH_MIN * ask.prompt_tokens else fewest

    def _matched(self, host_id: int, ask: Ask) -> int:
        """Return how many tokens of the prompt a host has seen before."""
        seen = self._seen.get(host_id)
        if not seen:
            return 0
        count = 0
        for block in ask.blocks:
            seen_ns = seen.get(block)
            if seen_ns is None or seen_ns < ask.now_ns - HELD_NS:
                break
            count += 1
        return count * BLOCK_TOKENS

    def sent(self, host_id: int, ask: Ask) -> None:
        self._seen.setdefault(host_id, {}).update(dict.fromkeys(ask.blocks, ask.now_ns))

    def emptied(self, host_id: int) -> None:
        self._seen.pop(host_id, None)


def ours(name: str, **keys: object) -> Rule:
    """Return a policy of the router with these keys of ``[models.NAME.routing]``."""
    routing = RoutingConfig(**keys)  # type: ignore[arg-type]
    host_blocks = max(1, routing.block_bytes // BYTES_PER_TOKEN // BLOCK_TOKENS)
    return Rule(name, lambda hosts, random: build(routing, hosts, random), host_blocks=host_blocks)


def _others(kind: Callable[[Random], Policy]) -> Callable[[HostSettings, Random], Policy]:
    return lambda _, random: kind(random)


BASELINES = ("random", "round robin", "p2c", "cache-aware", "cache-aware, queued in hosts")
"""What the recommended policy must not be worse than."""
RECOMMENDED = "prefix affinity"

RULES = (
    Rule("random", _others(AtRandom)),
    ours("round robin", policy="round_robin"),
    Rule("p2c", _others(TwoChoices)),
    Rule("cache-aware", _others(CacheAware)),
    Rule("cache-aware, queued in hosts", _others(CacheAware), queues_in_hosts=True),
    ours("least outstanding", policy="least_outstanding"),
    ours("weighted", policy="weighted"),
    ours("p2c ewma", policy="p2c_ewma"),
    ours("least predicted TTFT", policy="least_predicted_ttft"),
    ours("sticky sessions", policy="least_outstanding", sticky="session_id"),
    ours("prefix affinity", policy="prefix_affinity"),
    ours("prefix affinity, sticky", policy="prefix_affinity", sticky="session_id"),
)


def host_settings(speeds: Sequence[float]) -> dict[int, HostConfig]:
    """Return hosts as the configuration would have them, their weights in proportion to their speeds."""
    return {
        number: HostConfig(name=f"host-{number}", url="http://127.0.0.1:1", weight=round(10 * speed))
        for number, speed in enumerate(speeds, 1)
    }
