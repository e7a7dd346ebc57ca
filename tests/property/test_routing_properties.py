"""What every routing policy must hold, whatever the hosts and the requests: drawn at random, with plain values."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.config import HostConfig, RoutingConfig
from router.routing import NO_HOST, Candidate, Reason, make
from router.routing.eligible import mean_load, takeable
from router.routing.policy import Ask, Policy
from router.routing.prefixes import Prefixes
from router.routing.turns import LeastOutstanding

NAMES = ("least_outstanding", "round_robin", "weighted", "p2c_ewma", "least_predicted_ttft", "prefix_affinity")
WRAPPED = [
    {"policy": name, "sticky": sticky, "order": order}
    for name in NAMES
    for sticky in ("", "session_id")
    for order in ("none", "priority", "cost")
]
HOSTS_MAX = 8
MS = 1_000_000

hosts_drawn = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 16), st.booleans(), st.booleans()), min_size=1, max_size=HOSTS_MAX
)
"""Of each host: busy (there may be more than slots), slots, whether it can be used, whether it failed the request."""


def settings_of_hosts() -> dict[int, HostConfig]:
    return {
        host_id: HostConfig(
            name=f"gpu-{host_id}",
            url="http://127.0.0.1:1",
            weight=1 + host_id % 3,
            priority=host_id % 2,
            cost_per_hour=float(host_id % 3),
        )
        for host_id in range(1, HOSTS_MAX + 1)
    }


def policy_of(**keys: Any) -> Policy:
    routing = RoutingConfig(**({"samples_min": 3} | keys))
    policy = make(routing, settings_of_hosts(), Random(7))
    if policy is None:
        return LeastOutstanding()
    return policy


def candidates_of(drawn: Sequence[tuple[int, int, bool, bool]]) -> list[Candidate]:
    return [(host_id, *values) for host_id, values in enumerate(drawn, 1)]


def asks(count: int, seed: int) -> list[Ask]:
    """Requests of a few sessions whose prompts begin with one of a few beginnings."""
    random = Random(seed)
    out = []
    for number in range(count):
        beginning = random.randrange(4)
        blocks = [beginning * 1000 + i for i in range(random.randrange(1, 12))]
        out.append(Ask(number * MS, len(blocks) * 64 + 10, blocks, b"s%d" % random.randrange(6)))
    return out


def carry_out(policy: Policy, candidates: Sequence[Candidate], chosen: int, ask: Ask, *, ends: bool) -> None:
    host_id = candidates[chosen][0]
    policy.verdicts()
    policy.sent(host_id, ask)
    if ends:
        policy.first_token(host_id, ask, (50 + 10 * host_id) * MS)
        policy.ended(host_id, ask)


@pytest.mark.parametrize("keys", WRAPPED, ids=lambda keys: "-".join(v for v in keys.values() if v not in {"", "none"}))
@settings(max_examples=40, deadline=None)
@given(rounds=st.lists(hosts_drawn, min_size=1, max_size=12), seed=st.integers(0, 99))
def test_a_choice_is_always_one_that_can_be_carried_out(
    keys: dict[str, str], rounds: list[list[tuple[int, int, bool, bool]]], seed: int
) -> None:
    policy = policy_of(**keys)
    for drawn, ask in zip(rounds, asks(len(rounds), seed), strict=True):
        candidates = candidates_of(drawn)
        free = takeable(candidates)
        chosen = policy.choose(candidates, ask)
        assert (chosen == NO_HOST) == (not free), "a host with a free slot is never left idle while a request waits"
        if chosen == NO_HOST:
            continue
        _, busy, slots, usable, tried = candidates[chosen]
        assert usable, "never a host that cannot be used"
        assert busy < slots, "never a host without a free slot"
        untried = [c for c in candidates if c[3] and not c[4]]
        assert not tried or not untried, "never one that failed the request while another can be used"
        told = policy.verdicts()
        assert sorted(host_id for host_id, _, _ in told) == [c[0] for c in candidates], "something is said of each"
        assert told[0][0] == candidates[chosen][0], "the chosen one is told of first"
        carry_out(policy, candidates, chosen, ask, ends=seed % 2 == 0)


@pytest.mark.parametrize("sticky", ["", "session_id"])
@settings(max_examples=150, deadline=None)
@given(
    rounds=st.lists(hosts_drawn, min_size=1, max_size=16),
    seed=st.integers(0, 99),
    bound=st.floats(1, 4),
    idle_share=st.floats(0, 1),
)
def test_no_host_above_the_bound_gets_a_request_while_one_below_it_can_take_it(
    sticky: str, rounds: list[list[tuple[int, int, bool, bool]]], seed: int, bound: float, idle_share: float
) -> None:
    policy = policy_of(policy="prefix_affinity", sticky=sticky, load_bound=bound, idle_share=idle_share)
    for drawn, ask in zip(rounds, asks(len(rounds), seed), strict=True):
        candidates = candidates_of(drawn)
        chosen = policy.choose(candidates, ask)
        if chosen == NO_HOST:
            continue
        share_max = max(bound * mean_load(candidates), idle_share)
        below = [i for i in takeable(candidates) if candidates[i][1] / candidates[i][2] < share_max - 1e-9]
        if below:
            assert candidates[chosen][1] / candidates[chosen][2] < share_max + 1e-9
        above = {host_id for host_id, reason, _ in policy.verdicts() if reason == Reason.ABOVE_BOUND}
        assert not above & {candidates[i][0] for i in below}, "what is told agrees with the bound"
        carry_out(policy, candidates, chosen, ask, ends=False)


@settings(max_examples=100, deadline=None)
@given(
    slots=st.lists(st.integers(1, 12), min_size=2, max_size=6),
    seed=st.integers(0, 999),
    bound=st.floats(1, 2),
    popular=st.floats(0, 1),
)
def test_a_popular_beginning_makes_no_hot_spot(slots: list[int], seed: int, bound: float, popular: float) -> None:
    """Requests come and stay: at no time is a host fuller than the bound allowed when its last request came."""
    random = Random(seed)
    policy = policy_of(policy="prefix_affinity", load_bound=bound, idle_share=0.0)
    busy = [0] * len(slots)
    for number in range(sum(slots)):
        beginning = 0 if random.random() < popular else random.randrange(1, 50)
        ask = Ask(number, 640, [beginning * 100 + i for i in range(10)])
        candidates: list[Candidate] = [(i + 1, busy[i], slots[i], True, False) for i in range(len(slots))]
        share_max = bound * mean_load(candidates)
        chosen = policy.choose(candidates, ask)
        assert busy[chosen] < share_max * slots[chosen] + 1e-9
        policy.sent(chosen + 1, ask)
        busy[chosen] += 1
    assert busy == slots, "every slot can be used"


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, HOSTS_MAX), cycles=st.integers(1, 5))
def test_round_robin_gives_each_host_the_same(count: int, cycles: int) -> None:
    policy = policy_of(policy="round_robin")
    candidates: list[Candidate] = [(i + 1, 0, 4, True, False) for i in range(count)]
    chosen = [policy.choose(candidates, Ask(i)) for i in range(count * cycles)]
    assert chosen == [*range(count)] * cycles


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(st.integers(1, 9), min_size=1, max_size=6), cycles=st.integers(1, 3))
def test_weights_are_kept_exactly_over_each_cycle(weights: list[int], cycles: int) -> None:
    names = {f"gpu-{i + 1}": weight for i, weight in enumerate(weights)}
    policy = policy_of(policy="weighted", weights=names)
    candidates: list[Candidate] = [(i + 1, 0, 4, True, False) for i in range(len(weights))]
    total = sum(weights)
    for cycle in range(cycles):
        chosen = [policy.choose(candidates, Ask(cycle * total + i)) for i in range(total)]
        assert [chosen.count(i) for i in range(len(weights))] == weights


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(rounds=st.lists(hosts_drawn, min_size=5, max_size=20), seed=st.integers(0, 99))
def test_the_same_seed_and_the_same_requests_give_the_same_choices(
    name: str, rounds: list[list[tuple[int, int, bool, bool]]], seed: int
) -> None:
    def run() -> list[Any]:
        policy = policy_of(policy=name, sticky="session_id")
        out: list[Any] = []
        for drawn, ask in zip(rounds, asks(len(rounds), seed), strict=True):
            candidates = candidates_of(drawn)
            chosen = policy.choose(candidates, ask)
            out.append(chosen)
            if chosen != NO_HOST:
                out.append(policy.verdicts())
                carry_out(policy, candidates, chosen, ask, ends=True)
        return out

    assert run() == run()


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["send", "send", "send", "send", "lose", "wait"]), st.integers(1, 5), st.integers(0, 40)
        ),
        max_size=40,
    ),
    blocks_max=st.integers(1, 30),
)
def test_what_hosts_hold_is_what_a_plain_mirror_of_each_holds(
    steps: list[tuple[str, int, int]], blocks_max: int
) -> None:
    """Beside one list of blocks for each host, in the order of their use, which is looked through block by block."""
    prefixes = Prefixes(64, 64 * blocks_max, 100)
    mirrors: dict[int, list[tuple[int, int]]] = {host_id: [] for host_id in range(1, 6)}
    now = 0
    for what, host_id, number in steps:
        now += 30 if what == "wait" else 1
        blocks = [number % 3 * 1000 + i for i in range(number % 7)] + [number * 10_000 + i for i in range(number % 4)]
        ask = Ask(now, 10**6, blocks)
        for each, mirror in mirrors.items():
            fresh = {block for block, then in mirror if then > now - 100}
            count = next((i for i, block in enumerate(blocks) if block not in fresh), len(blocks))
            assert prefixes.held_tokens(each, ask) == 64 * count
            assert prefixes.block_count(each) <= blocks_max
        if what == "lose":
            prefixes.emptied(host_id)
            mirrors[host_id] = []
        elif what == "send":
            prefixes.sent(host_id, ask)
            sent = blocks[:blocks_max]
            kept = [(block, then) for block, then in mirrors[host_id] if block not in sent and then > now - 100]
            mirrors[host_id] = (kept + [(block, now) for block in reversed(sent)])[-blocks_max:]
