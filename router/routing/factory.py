"""Makes the policy that a model is configured with; pure."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import TYPE_CHECKING, Final

from router.routing.order import Ordered
from router.routing.p2c import P2cEwma
from router.routing.policy import BYTES_PER_TOKEN
from router.routing.predicted import LeastPredictedTtft
from router.routing.prefix_affinity import PrefixAffinity
from router.routing.prefixes import Prefixes
from router.routing.sticky import Sticky
from router.routing.turns import LeastOutstanding, RoundRobin, Weighted

if TYPE_CHECKING:
    from router.config import HostConfig, RoutingConfig
    from router.routing.policy import Policy

_NS: Final = 1_000_000_000


def build(routing: RoutingConfig, hosts: Mapping[int, HostConfig], random: Random) -> Policy:
    """Return the policy with what is wrapped around it: the order of the hosts, then the sessions."""
    policy = _policy(routing, hosts, random)
    if routing.order != "none":
        policy = Ordered(policy, hosts, by_cost=routing.order == "cost")
    if routing.sticky:
        idle_ns = int(routing.session_idle_s * _NS)
        policy = Sticky(policy, routing.sessions_max, idle_ns, routing.load_bound, routing.idle_share)
    return policy


def _policy(routing: RoutingConfig, hosts: Mapping[int, HostConfig], random: Random) -> Policy:
    match routing.policy:
        case "round_robin":
            return RoundRobin()
        case "weighted":
            return Weighted(hosts, routing.weights)
        case "p2c_ewma":
            return P2cEwma(routing.decay_s, random)
        case "least_predicted_ttft":
            return LeastPredictedTtft(_prefixes(routing), routing.samples_min, routing.explore, random)
        case "prefix_affinity":
            return PrefixAffinity(_prefixes(routing), routing.load_bound, routing.idle_share)
        case "least_outstanding":
            return LeastOutstanding()


def _prefixes(routing: RoutingConfig) -> Prefixes:
    return Prefixes(routing.block_bytes / BYTES_PER_TOKEN, routing.cache_tokens, int(routing.keep_s * _NS))
