"""One model as the loop sees it: who has it, who waits for it, and its time-outs in nanoseconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.admission import CLASS_NAMES, CLASS_NUMBERS, WaitingRoom
from router.config import Config, LeverRules, ModelConfig, fallback_chain, model_timeouts
from router.retry_budget import RetryBudget
from router.routing import make

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

    from router.admission.predict import Forecast
    from router.asking import Asker
    from router.config import HostConfig, RoutingConfig
    from router.hosts.host import Host
    from router.request import Request
    from router.routing.policy import Policy

_NS = 1_000_000_000
_NO_LEVERS = LeverRules()


class Model:
    """State of one model. ``waiting`` is its waiting room."""

    def __init__(self, name: str, model_id: int, config: Config) -> None:
        self.name = name
        self.model_id = model_id
        self.config = config.models.get(name, ModelConfig())
        self.hosts: list[Host] = []
        self.waiting = WaitingRoom()
        self.forecast: Forecast | None = None
        """Tells how long a first token takes; there is one since the first request with a deadline."""
        self.turn = 0
        self.fallback: tuple[str, ...] = ()
        """Names of the models that answer when no host of this one can, in their order."""
        self.retry_budget = RetryBudget(config.limits.retry_share, config.limits.retries_per_s)
        self.is_compared = False
        """Whether it has so many hosts that what each does is noted, to find one that is far worse than the others."""
        self.policy: Policy | None = None
        """How its requests are routed; ``None``: plain least outstanding, whose only state is ``turn``."""
        self.asker: Asker | None = None
        """Makes what the policy is asked with; there is one where there is a policy."""
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Take over what a configuration says of this model, from now on."""
        self.config = config.models.get(self.name, ModelConfig())
        self.fallback = fallback_chain(config, self.name)
        self.retry_budget.configure(config.limits.retry_share, config.limits.retries_per_s)
        admission = self.config.admission
        classes = [admission.of(name) for name in CLASS_NAMES]
        self.waiting.configure(
            is_fair=admission.fair_share,
            starve_ns=[int(admission.starve_s(name) * _NS) for name in CLASS_NAMES],
            waiting_max=[-1 if c.waiting is None else c.waiting for c in classes],
        )
        self.default_class = CLASS_NUMBERS[admission.default_class]
        self.has_rules = admission.settles or self.config.levers != _NO_LEVERS
        """Whether a request may get a class, a deadline or a limit that it did not ask for."""
        times = model_timeouts(config, self.name)
        self.queue_ns = int(times.queue_s * _NS)
        self.connect_ns = int(times.connect_s * _NS)
        self.first_token_ns = int(times.first_token_s * _NS)
        self.idle_ns = int(times.idle_s * _NS)
        self.stall_ns = int(times.client_stall_s * _NS)
        self.total_ns = int(times.total_s * _NS)
        self.heartbeat_ns = int(times.heartbeat_after_s * _NS)

    def served_count(self) -> int:
        """Return how many requests its hosts have answered, of whatever model: what retries are measured by."""
        return sum(host.served_count for host in self.hosts)

    def folds(self, *, log_probabilities: bool) -> bool:
        """Return whether a not-streamed answer of this model is folded from a stream.

        One with log probabilities is not: llama.cpp leaves the stop token's out of a stream, so that the plain answer
        could not be made from it.
        """
        if self.config.fold != "auto":
            return self.config.fold == "always"
        return not log_probabilities and any(not host.facts.cancels_whole_answers for host in self.hosts)

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
