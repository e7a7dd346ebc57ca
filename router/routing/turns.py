"""Policies that look at nothing but whose turn it is and how many slots are busy; pure.

* Least outstanding: :mod:`router.routing.least_outstanding` as an object, for what wraps a policy.
* Round robin: the hosts in their order, each once.
* Weighted: smooth weighted round robin, as nginx does it: in each turn every host that can take the request earns its
  weight, the one with the most credit is chosen and pays what all have earned. Over a cycle of as many turns as the
  weights sum up to, each host is chosen exactly as often as its weight says, spread as evenly as can be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from router.routing.candidates import NO_HOST, Candidate, PolicyId, Reason, Verdict
from router.routing.eligible import CHOSEN, load, takeable, tell
from router.routing.least_outstanding import choose, explain

if TYPE_CHECKING:
    from router.config import HostConfig
    from router.routing.policy import Ask

_NOT_ITS_TURN: Final = int(Reason.NOT_ITS_TURN)


class Unlearned:
    """What policies have in common that learn nothing of what becomes of a request."""

    wants_prompt = False
    wants_session = False

    def sent(self, host_id: int, ask: Ask) -> None:
        """Nothing to learn."""

    def first_token(self, host_id: int, ask: Ask, ttft_ns: int) -> None:
        """Nothing to learn."""

    def ended(self, host_id: int, ask: Ask) -> None:
        """Nothing to learn."""

    def emptied(self, host_id: int) -> None:
        """It does not matter what a host holds."""

    def forget(self, host_id: int) -> None:
        """Nothing to forget."""


class LeastOutstanding(Unlearned):
    """The host with the smallest share of its slots in use."""

    number = int(PolicyId.LEAST_OUTSTANDING)

    def __init__(self) -> None:
        self._turn = 0
        self._last: Sequence[Candidate] = ()

    def choose(self, candidates: Sequence[Candidate], ask: Ask) -> int:
        """Return the index of the least loaded candidate."""
        chosen = choose(candidates, self._turn)
        if chosen != NO_HOST:
            self._turn = chosen + 1
            self._last = candidates
        return chosen

    def verdicts(self) -> list[Verdict]:
        """Return the share of slots in use of each."""
        return explain(self._last, self._turn - 1)


class RoundRobin(Unlearned):
    """The hosts in their order; one that cannot take the request is passed over."""

    number = int(PolicyId.ROUND_ROBIN)

    def __init__(self) -> None:
        self._turn = 0
        self._last: Sequence[Candidate] = ()
        self._free: list[int] = []

    def choose(self, candidates: Sequence[Candidate], ask: Ask) -> int:
        """Return the index of the next candidate."""
        free = takeable(candidates)
        if not free:
            return NO_HOST
        turn = self._turn % len(candidates)
        chosen = next((i for i in free if i >= turn), free[0])
        self._turn, self._last, self._free = chosen + 1, candidates, free
        return chosen

    def verdicts(self) -> list[Verdict]:
        """Return the share of slots in use of each; those whose turn it was not stand in their order."""
        candidates = self._last
        scores = {i: load(candidates[i]) for i in self._free}
        return tell(candidates, self._turn - 1, CHOSEN, _NOT_ITS_TURN, scores)


class Weighted(Unlearned):
    """Smooth weighted round robin. Its credits are as many as hosts it has seen and not been told to forget."""

    number = int(PolicyId.WEIGHTED)

    def __init__(self, hosts: Mapping[int, HostConfig], weights: Mapping[str, int]) -> None:
        self._hosts = hosts
        self._weights = weights
        self._credits: dict[int, int] = {}
        self._last: Sequence[Candidate] = ()
        self._scores: dict[int, float] = {}
        self._chosen = NO_HOST

    def choose(self, candidates: Sequence[Candidate], ask: Ask) -> int:
        """Return the index of the candidate with the most credit."""
        free = takeable(candidates)
        if not free:
            return NO_HOST
        credits_, scores = self._credits, self._scores
        scores.clear()
        total = 0
        best = free[0]
        for index in free:
            host_id = candidates[index][0]
            weight = self._weight(host_id)
            total += weight
            credit = credits_[host_id] = credits_.get(host_id, 0) + weight
            scores[index] = credit
            if credit > scores[best]:
                best = index
        credits_[candidates[best][0]] -= total
        self._last, self._chosen = candidates, best
        return best

    def _weight(self, host_id: int) -> int:
        host = self._hosts.get(host_id)
        if host is None:
            return 1
        return self._weights.get(host.name, host.weight)

    def verdicts(self) -> list[Verdict]:
        """Return the credit of each, the most first."""
        scores = dict(sorted(self._scores.items(), key=lambda score: -score[1]))
        return tell(self._last, self._chosen, CHOSEN, _NOT_ITS_TURN, scores)

    def forget(self, host_id: int) -> None:
        """Its credit is void."""
        self._credits.pop(host_id, None)
