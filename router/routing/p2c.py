"""Power of two choices with peak-EWMA of the time to the first token; pure.

Two hosts are drawn at random among those that can take the request, and the one gets it of which

    cost = ewma * (outstanding + 1)

is smaller, with the requests outstanding at the host and the exponentially weighted mean of its times to the first
token. A time above the mean replaces it at once (the peak), times below let it sink with the time constant ``decay_s``,
and so does time without any: a host that was slow is tried again after a while. This is Finagle's peak-EWMA balancer
(twitter/finagle, ``PeakEwma``) with the time to the first token in place of the whole answer's, which for language
models depends on the answer's length more than on the host. Two random choices already keep the fullest of n hosts
within ln ln n of the mean (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001), and several
routers that know nothing of each other do not all run to the same host.

As long as one of the two has no time yet, the shares of their slots in use are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from random import Random
from typing import TYPE_CHECKING, Final

from router.routing.candidates import NO_HOST, Candidate, PolicyId, Reason, Verdict
from router.routing.eligible import CHOSEN, load, takeable, tell

if TYPE_CHECKING:
    from router.routing.policy import Ask

_NS: Final = 1e9
_SLOWER, _NOT_DRAWN = int(Reason.SLOWER), int(Reason.NOT_DRAWN)


class P2cEwma:
    """Keeps two numbers for each host it has seen and not been told to forget."""

    number = int(PolicyId.P2C_EWMA)
    wants_prompt = False
    wants_session = False

    def __init__(self, decay_s: float, random: Random) -> None:
        self._decay_ns = decay_s * _NS
        self._random = random.random
        self._times: dict[int, tuple[float, int]] = {}
        """By host: the mean in ns and when it was of that value."""
        self._last: Sequence[Candidate] = ()
        self._free: list[int] = []
        self._scores: dict[int, float] = {}
        self._chosen = NO_HOST

    def choose(self, candidates: Sequence[Candidate], ask: Ask) -> int:
        """Return the index of the cheaper one of two that were drawn."""
        free = takeable(candidates)
        if not free:
            return NO_HOST
        one, other = self._draw(free)
        costs = self._costs(candidates, one, other, ask.now_ns)
        chosen = one if costs[0] <= costs[1] else other
        self._last, self._free, self._chosen = candidates, free, chosen
        self._scores = {one: costs[0], other: costs[1]}
        return chosen

    def _draw(self, free: list[int]) -> tuple[int, int]:
        """Return two different ones, the same twice where there is but one."""
        count = len(free)
        if count == 1:
            return free[0], free[0]
        first = int(self._random() * count)
        second = int(self._random() * (count - 1))
        return free[first], free[second + (second >= first)]

    def _costs(self, candidates: Sequence[Candidate], one: int, other: int, now_ns: int) -> tuple[float, float]:
        first, second = self.mean_ns(candidates[one][0], now_ns), self.mean_ns(candidates[other][0], now_ns)
        if first <= 0 or second <= 0:
            return load(candidates[one]), load(candidates[other])
        return first * (candidates[one][1] + 1) / _NS, second * (candidates[other][1] + 1) / _NS

    def mean_ns(self, host_id: int, now_ns: int) -> float:
        """Return what is expected of a host now, 0 where nothing is known."""
        known = self._times.get(host_id)
        return known[0] * self._share_left(known[1], now_ns) if known is not None else 0.0

    def _share_left(self, then_ns: int, now_ns: int) -> float:
        return exp((then_ns - now_ns) / self._decay_ns) if now_ns > then_ns else 1.0

    def verdicts(self) -> list[Verdict]:
        """Return the costs of the two in seconds, or their loads where a time is not known."""
        candidates, chosen = self._last, self._chosen
        told = tell(candidates, chosen, CHOSEN, _SLOWER, self._scores)
        free = {candidates[i][0] for i in self._free if i not in self._scores}
        return [(host_id, _NOT_DRAWN, score) if host_id in free else (host_id, reason, score)
                for host_id, reason, score in told]  # fmt: skip

    def sent(self, host_id: int, ask: Ask) -> None:
        """Only the times count."""

    def first_token(self, host_id: int, ask: Ask, ttft_ns: int) -> None:
        """Take one time into the host's mean: at once where it is above it, else by the age of what is known."""
        now_ns = ask.now_ns + ttft_ns
        mean = self.mean_ns(host_id, now_ns)
        if 0 < ttft_ns <= mean:
            left = self._share_left(self._times[host_id][1], now_ns)
            known = self._times[host_id][0]
            mean = known * left + ttft_ns * (1 - left)
        else:
            mean = ttft_ns
        self._times[host_id] = mean, now_ns

    def ended(self, host_id: int, ask: Ask) -> None:
        """Only the times count."""

    def emptied(self, host_id: int) -> None:
        """Only the times count."""

    def forget(self, host_id: int) -> None:
        """Its times are of no use any more."""
        self._times.pop(host_id, None)
