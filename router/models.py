"""One model as the loop sees it: who has it, who waits for it, and its time-outs in nanoseconds."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from router.config import Config, ModelConfig, model_timeouts
from router.routing import make

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

    from router.asking import Asker
    from router.config import HostConfig, RoutingConfig
    from router.hosts.host import Host
    from router.request import Request
    from router.routing.policy import Policy

_NS = 1_000_000_000


class Model:
    """State of one model. ``waiting`` is its waiting room, first come first served."""

    def __init__(self, name: str, model_id: int, config: Config) -> None:
        self.name = name
        self.model_id = model_id
        self.config = config.models.get(name, ModelConfig())
        self.hosts: list[Host] = []
        self.waiting: deque[Request] = deque()
        self.turn = 0
        self.policy: Policy | None = None
        """How its requests are routed; ``None``: plain least outstanding, whose only state is ``turn``."""
        self.asker: Asker | None = None
        """Makes what the policy is asked with; there is one where there is a policy."""
        times = model_timeouts(config, name)
        self.queue_ns = int(times.queue_s * _NS)
        self.connect_ns = int(times.connect_s * _NS)
        self.first_token_ns = int(times.first_token_s * _NS)
        self.idle_ns = int(times.idle_s * _NS)
        self.stall_ns = int(times.client_stall_s * _NS)
        self.total_ns = int(times.total_s * _NS)
        self.heartbeat_ns = int(times.heartbeat_after_s * _NS)

    def route_by(
        self,
        routing: RoutingConfig,
        hosts: Mapping[int, HostConfig],
        random: Random,
        identify: Callable[[Request], bytes],
    ) -> None:
        """Have requests routed as a configuration says, from the next one on. What was learned so far is forgotten.

        ``hosts`` and ``random`` are as :func:`router.routing.make` takes them, ``identify`` packs a request's identity.
        """
        self.policy = make(routing, hosts, random)
        self.asker = None
        if self.policy is not None:
            from router.asking import Asker  # noqa: PLC0415 - only who configures a policy loads it

            self.asker = Asker(self.policy, routing, identify)
