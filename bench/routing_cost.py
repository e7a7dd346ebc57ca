"""What a routing decision costs: ``python -m bench.routing_cost --help``.

Each policy decides about requests of conversations that the hosts hold in part, with the modules that the router itself
loads. *choose* is the choice alone; *whole* is all that a request costs with the policy: its ask (for those that look
at prompts the hashes of the prompt's blocks), the choice, its verdicts for the record, and what is learned at its first
token and its end. The candidates, which every policy needs, are counted to both. Measured are many short batches in one
process, without a router. Shown are their median and the quietest tenth of them: on a machine that does other things
too, the caches are theirs. The limits are those that docs/routing.md promises, of the quietest tenth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter_ns
from typing import Final, NamedTuple

from bench import machine, report
from router.config import HostConfig, RoutingConfig
from router.hosts.host import Host
from router.routing import Candidate, choose, explain, make
from router.routing.policy import BYTES_PER_TOKEN, Ask, Policy
from router.routing.prompt import chain

POLICIES: Final = (
    "least_outstanding", "round_robin", "weighted", "p2c_ewma", "least_predicted_ttft", "prefix_affinity",
)  # fmt: skip
LIMITS_US: Final = {"least_outstanding": 10.0, "prefix_affinity": 50.0}
"""Of the whole cost."""
CONVERSATIONS: Final = 64
WARM_COUNT: Final = 24
WARM_STEP: Final = 4
"""Conversations that each host has answered before, and how many of them the next host has not: six hosts of 16 hold
each, and all hold the beginning that every second one has."""
_SLOTS: Final = 16
_BATCHES: Final = 60
_BATCH: Final = 200
_TTFT_NS: Final = 100_000_000
_STEP_NS: Final = 1_000_000


class Cost(NamedTuple):
    """Of one policy, in microseconds: the median and the quietest tenth of each."""

    policy: str
    choose_us: tuple[float, float]
    whole_us: tuple[float, float]


class Scene:
    """Hosts under some load and the prompts of conversations, every second of which begins like another one."""

    def __init__(self, host_count: int, prompt_bytes: int, seed: int = 1) -> None:
        random = Random(seed)
        self.routing = RoutingConfig()
        configs = [HostConfig(name=f"gpu-{i}", url="http://127.0.0.1:1", slots=_SLOTS) for i in range(host_count)]
        self.hosts = [Host(config, index + 1, index) for index, config in enumerate(configs)]
        self.settings = {host.host_id: host.config for host in self.hosts}
        for host in self.hosts:
            host.running = random.randrange(_SLOTS // 2)
        beginning = random.randbytes(prompt_bytes // 2).hex().encode()[: prompt_bytes // 2]
        ends = [random.randbytes(prompt_bytes).hex().encode() for _ in range(CONVERSATIONS)]
        self.prompts = [memoryview(((beginning if i % 2 else b"") + end)[:prompt_bytes]) for i, end in enumerate(ends)]
        self._now_ns = 0

    def candidates(self) -> list[Candidate]:
        """Return what routing sees of the hosts, made anew as for each request."""
        return [(host.host_id, host.running + len(host.draining), _SLOTS, True, False) for host in self.hosts]

    def ask(self, policy: Policy, number: int) -> Ask:
        """Return the next request as a policy wants it."""
        self._now_ns += _STEP_NS
        prompt = self.prompts[number % CONVERSATIONS]
        if not policy.wants_prompt:
            return Ask(self._now_ns, policy=policy)
        blocks = chain(prompt, self.routing.block_bytes, self.routing.blocks_max)
        return Ask(self._now_ns, len(prompt) // BYTES_PER_TOKEN, blocks, policy=policy)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write into a page; 1 when a limit is not kept."""
    args = _arguments(arguments)
    scene = Scene(args.hosts, args.prompt_bytes)
    costs = [_default_cost(scene), *(_policy_cost(scene, name) for name in POLICIES[1:])]
    text = _page(scene, costs, args)
    print(text)
    if args.into is not None:
        page = args.into.read_text(encoding="utf-8")
        args.into.write_text(report.filled(page, {"decision-cost": text}), encoding="utf-8")
    over = [cost for cost in costs if cost.whole_us[1] > LIMITS_US.get(cost.policy, float("inf"))]
    for cost in over:
        print(f"{cost.policy}: {cost.whole_us[1]:.1f} us, the limit is {LIMITS_US[cost.policy]:g}", file=sys.stderr)
    return 1 if over else 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.routing_cost")
    parser.add_argument("--hosts", type=_positive, default=16, metavar="N")
    parser.add_argument("--prompt-bytes", type=_positive, default=8192, metavar="N")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="write the table into this page")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 1 or more")
    return int(text)


def _default_cost(scene: Scene) -> Cost:
    """Return the cost of the default, which is two functions and no object."""
    turn = 0

    def choose_only(_: int) -> None:
        nonlocal turn
        turn = choose(scene.candidates(), turn) + 1

    def whole(_: int) -> None:
        nonlocal turn
        candidates = scene.candidates()
        chosen = choose(candidates, turn)
        turn = chosen + 1
        explain(candidates, chosen)

    return Cost(POLICIES[0], _times_us(choose_only), _times_us(whole))


def _policy_cost(scene: Scene, name: str) -> Cost:
    policy = make(RoutingConfig(policy=name), scene.settings, Random(1))  # type: ignore[arg-type]
    assert policy is not None
    _warm(policy, scene)
    asks = [scene.ask(policy, number) for number in range(CONVERSATIONS)]

    def choose_only(number: int) -> None:
        policy.choose(scene.candidates(), asks[number % CONVERSATIONS])

    def whole(number: int) -> None:
        ask = scene.ask(policy, number)
        candidates = scene.candidates()
        host_id = candidates[policy.choose(candidates, ask)][0]
        ask.verdicts = policy.verdicts()
        policy.sent(host_id, ask)
        policy.first_token(host_id, ask, _TTFT_NS)
        policy.ended(host_id, ask)

    return Cost(name, _times_us(choose_only), _times_us(whole))


def _warm(policy: Policy, scene: Scene) -> None:
    """Have every host answer some of the conversations, and enough of them that a policy that learns has learned."""
    for index, candidate in enumerate(scene.candidates()):
        for number in range(WARM_COUNT):
            ask = scene.ask(policy, index * WARM_STEP + number)
            policy.choose([candidate], ask)
            policy.sent(candidate[0], ask)
            policy.first_token(candidate[0], ask, _TTFT_NS)
            policy.ended(candidate[0], ask)


def _times_us(call: Callable[[int], None]) -> tuple[float, float]:
    times = []
    number = 0
    for _ in range(_BATCHES):
        begin_ns = perf_counter_ns()
        for _ in range(_BATCH):
            number += 1
            call(number)
        times.append((perf_counter_ns() - begin_ns) / _BATCH / 1000)
    return median(times), sorted(times)[_BATCHES // 10]


def _page(scene: Scene, costs: Sequence[Cost], args: argparse.Namespace) -> str:
    rows = [("policy", "choose, µs", "quietest", "whole, µs", "quietest", "limit, µs")]
    for cost in costs:
        limit = LIMITS_US.get(cost.policy)
        times = [f"{us:.1f}" for us in (*cost.choose_us, *cost.whole_us)]
        rows.append((cost.policy, *times, f"{limit:g}" if limit else ""))
    what = f"{len(scene.hosts)} hosts of {_SLOTS} slots, prompts of {args.prompt_bytes:,} bytes"
    return "\n".join([*(f"* {fact}" for fact in [*machine.facts(), what]), "", report.aligned(rows)])


if __name__ == "__main__":
    sys.exit(main())
