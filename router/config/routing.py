"""The section that says how a model's requests are spread over its hosts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from router.config.base import Section, above_zero, between

WEIGHT_MAX = 1000
PRIORITY_MAX = 65_536


class RoutingConfig(Section, frozen=True):
    """`[models.NAME.routing]`: which host gets a request of the model (docs/routing.md)."""

    policy: Annotated[
        Literal["least_outstanding", "round_robin", "weighted", "p2c_ewma", "least_predicted_ttft", "prefix_affinity"],
        Meta(description="How a host is chosen among those that can take the request."),
    ] = "least_outstanding"
    sticky: Annotated[
        str,
        Meta(
            pattern=r"\A(|session_id|user_id|header:[a-z0-9][a-z0-9_-]{0,63})\Z",
            extra={"allowed": '`"session_id"`, `"user_id"` (tags), `"header:NAME"` in lower case, or nothing'},
            description="Requests with the same value go to the same host, as long as it can be used and is not above "
            "the load bound. Empty: `policy` alone decides.",
        ),
    ] = ""
    order: Annotated[
        Literal["none", "priority", "cost"],
        Meta(
            description="Hosts are used in this order, by `hosts.priority` or `hosts.cost_per_hour`; the next ones "
            "only when none before them has a free slot. `policy` decides among equal ones."
        ),
    ] = "none"
    weights: Annotated[
        dict[str, Annotated[int, between(1, WEIGHT_MAX, "")]],
        Meta(description="Weights of hosts for this model, by their names, in place of `hosts.weight`."),
    ] = msgspec.field(default_factory=dict)
    load_bound: Annotated[
        float,
        between(
            1, 100, "`prefix_affinity` and `sticky`: most load of a host, as a multiple of the mean of all; over it "
            "the request goes elsewhere, whatever the host holds.",
        ),
    ] = 1.5  # fmt: skip
    idle_share: Annotated[
        float,
        between(0, 1, "A host with a smaller share of its slots busy is never above the load bound."),
    ] = 0.5
    decay_s: Annotated[
        float, above_zero(86_400, "`p2c_ewma`: seconds after which a time to the first token counts for 1/e.")
    ] = 10.0
    samples_min: Annotated[
        int,
        between(
            3, 100_000, "`least_predicted_ttft`: answers of each host before it is foretold; until then least "
            "outstanding decides.",
        ),
    ] = 20  # fmt: skip
    explore: Annotated[
        float,
        between(
            0, 0.5, "`least_predicted_ttft`: share of requests that go to the host that was not seen for longest, so "
            "that one that was slow once is tried again.",
        ),
    ] = 0.02  # fmt: skip
    block_bytes: Annotated[
        int, between(16, 65_536, "Bytes of a prompt that are compared as one; a shorter prompt is never recognised.")
    ] = 256
    blocks_max: Annotated[
        int, between(1, 65_536, "Blocks of a prompt that are looked at, from its beginning; each costs about 0.3 µs.")
    ] = 1024
    cache_tokens: Annotated[
        int,
        between(
            1024, 1 << 30, "Tokens of prompts that a host is thought to keep. About 200 bytes of the router's "
            "memory for each block and host.",
        ),
    ] = 400_000  # fmt: skip
    keep_s: Annotated[
        float, above_zero(604_800, "Seconds for which a host is thought to keep what it was not asked for again.")
    ] = 600.0
    sessions_max: Annotated[
        int, between(1, 1 << 22, "Sessions that are remembered; the one longest silent is forgotten first.")
    ] = 65_536
    session_idle_s: Annotated[float, above_zero(604_800, "Seconds of silence after which a session is forgotten.")] = (
        3600.0
    )

    @property
    def is_default(self) -> bool:
        """Whether plain least outstanding decides, with nothing to remember."""
        return self.policy == "least_outstanding" and not self.sticky and self.order == "none"


def routing_contradiction(key: str, routing: RoutingConfig, hosts: dict[str, Any], serving: set[str]) -> str:
    """Return what is wrong with the routing of a model in view of the hosts, empty for nothing.

    ``key`` is where the section stands, ``hosts`` are the sections of all hosts by name, ``serving`` the names of those
    that have the model or may turn out to.
    """
    for name in routing.weights:
        if name not in serving:
            known = ", ".join(sorted(serving)) or "none"
            what = "the name of a host" if name not in hosts else "a host that has the model"
            return f"{key}.weights.{name}: expected {what} (hosts of the model: {known})"
    if routing.weights and routing.policy != "weighted":
        return f'{key}.weights has no effect with policy = "{routing.policy}": expected policy = "weighted"'
    if routing.order == "cost":
        without = sorted(name for name in serving if hosts[name].cost_per_hour is None)
        if without:
            return f'{key}.order = "cost": expected cost_per_hour of every host of the model, {without[0]} has none'
    return ""
