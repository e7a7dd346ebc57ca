"""Hosts used in an order, by priority or by cost, around any other policy; pure.

Of the hosts that can take a request only those come into question that rank first; a host of a later rank is asked when
none before it has a free slot. Among equal ones the policy decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Final

from router.routing.candidates import NO_HOST, Candidate, Reason, Verdict
from router.routing.eligible import takeable

if TYPE_CHECKING:
    from router.config import HostConfig
    from router.routing.policy import Ask, Policy

_LATER_IN_ORDER: Final = int(Reason.LATER_IN_ORDER)


class Ordered:
    """Masks what comes later, keeps nothing."""

    def __init__(self, policy: Policy, hosts: Mapping[int, HostConfig], *, by_cost: bool) -> None:
        self._policy = policy
        self._hosts = hosts
        self._by_cost = by_cost
        self._later: dict[int, float] = {}
        self.number = policy.number
        self.wants_prompt = policy.wants_prompt
        self.wants_session = policy.wants_session

    def rank(self, host_id: int) -> float:
        """Return where a host stands: its cost an hour, or its priority, which is its place in the file if it has none.

        A host whose cost is not known comes last.
        """
        host = self._hosts.get(host_id)
        if host is None:
            return inf
        if self._by_cost:
            return inf if host.cost_per_hour is None else host.cost_per_hour
        return host_id if host.priority is None else host.priority

    def choose(self, candidates: Sequence[Candidate], ask: Ask) -> int:
        """Return the index that the policy chooses among the candidates of the first rank."""
        free = takeable(candidates)
        if not free:
            return NO_HOST
        ranks = {i: self.rank(candidates[i][0]) for i in free}
        first = min(ranks.values())
        self._later = {candidates[i][0]: rank for i, rank in ranks.items() if rank > first}
        if not self._later:
            return self._policy.choose(candidates, ask)
        later = self._later
        masked = [(h, busy, slots, usable and h not in later, tried) for h, busy, slots, usable, tried in candidates]
        return self._policy.choose(masked, ask)

    def verdicts(self) -> list[Verdict]:
        """Return what the policy says; of those of a later rank their rank."""
        later = self._later
        return [
            (host_id, _LATER_IN_ORDER, later[host_id]) if host_id in later else (host_id, reason, score)
            for host_id, reason, score in self._policy.verdicts()
        ]

    def sent(self, host_id: int, ask: Ask) -> None:
        """For the policy."""
        self._policy.sent(host_id, ask)

    def first_token(self, host_id: int, ask: Ask, ttft_ns: int) -> None:
        """For the policy."""
        self._policy.first_token(host_id, ask, ttft_ns)

    def ended(self, host_id: int, ask: Ask) -> None:
        """For the policy."""
        self._policy.ended(host_id, ask)

    def emptied(self, host_id: int) -> None:
        """For the policy."""
        self._policy.emptied(host_id)

    def forget(self, host_id: int) -> None:
        """For the policy."""
        self._policy.forget(host_id)
