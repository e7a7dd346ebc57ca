"""What hosts and models cost: the price of a host's time, or of a model's tokens; pure.

A host with ``cost_per_hour`` is paid for by its time, whoever uses it. A model of any other host is paid for by the
token when ``observer.prices`` has an entry for it. What has neither price has no cost, which is not a cost of 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from router.config import Config, Price

_NS_PER_HOUR: Final = 3_600_000_000_000
_TOKENS_PER_PRICE: Final = 1_000_000


class TokenCounts(NamedTuple):
    """Tokens of one answer. ``cached`` are part of ``prompt``, ``reasoning`` of ``answer``."""

    prompt: int
    answer: int
    cached: int = 0
    reasoning: int = 0


def tokens_amount(price: Price, tokens: TokenCounts) -> float:
    """Return what an answer costs by the token; cached and reasoning tokens at their own price where there is one.

    A host that reports more cached tokens than the prompt has, or more reasoning than the answer, is not believed
    beyond the whole.
    """
    cached, reasoning = min(tokens.cached, tokens.prompt), min(tokens.reasoning, tokens.answer)
    cached_price = price.input if price.cached_input is None else price.cached_input
    reasoning_price = price.output if price.reasoning is None else price.reasoning
    millionths = (
        (tokens.prompt - cached) * price.input
        + cached * cached_price
        + (tokens.answer - reasoning) * price.output
        + reasoning * reasoning_price
    )
    return millionths / _TOKENS_PER_PRICE


class Prices:
    """The price table. ``hour_costs`` is the cost of an hour by host; ``models`` are prices per million tokens."""

    def __init__(self, currency: str, hour_costs: Mapping[str, float], models: Sequence[Price] = ()) -> None:
        self.currency = currency
        self._ns_costs = {host: cost / _NS_PER_HOUR for host, cost in hour_costs.items()}
        self._exact = {price.model: price for price in models if "*" not in price.model}
        # Of two patterns that match, the one that says more of the name is meant.
        patterns = sorted(
            (p for p in models if "*" in p.model), key=lambda p: len(p.model.replace("*", "")), reverse=True
        )
        self._patterns = [(_pattern(price.model), price) for price in patterns]

    def ns_cost(self, host: str) -> float | None:
        """Return what a nanosecond of a host costs; ``None`` for a host that is not paid for by its time."""
        return self._ns_costs.get(host)

    def of_model(self, model: str) -> Price | None:
        """Return the price of a model's tokens: the entry of this name, else the pattern with the longest text."""
        if found := self._exact.get(model):
            return found
        return next((price for pattern, price in self._patterns if pattern.fullmatch(model)), None)


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, text.split("*"))), re.DOTALL)


def prices_of(config: Config) -> Prices:
    """Return the price table that a configuration describes."""
    hour_costs = {host.name: host.cost_per_hour for host in config.hosts if host.cost_per_hour is not None}
    return Prices(config.observer.currency, hour_costs, config.observer.prices)
