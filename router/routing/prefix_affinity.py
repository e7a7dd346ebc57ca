"""Prefix affinity with bounded load: where a request has least to wait for before its first token; pure.

Of the hosts that can take a request and are not above the load bound (:func:`router.routing.eligible.within_bound`) it
goes to the one with the smallest

    cost = tokens the host still has to read + 2 * tokens of this prompt that it is not thought to hold

so a host that holds the prompt wins until so much waits to be read there that to read the prompt anew elsewhere is
clearly sooner: then it goes there, and from then on two hosts hold it. That keeps a popular beginning from making a hot
spot, together with the bound, which wins over everything. What has to be read counts twice (:data:`NEW_WEIGHT`) because
others pay for it too: it delays whoever comes next, slows the answers under way and takes the place of what the host
held. A prompt that nobody holds goes where least is to be read, and of
equal hosts to the one with the smallest share of its slots in use, in turns.

Cost in tokens needs no rate of the host: hosts of one model mostly read alike. Where they do not, use the policy that
learns (:mod:`router.routing.predicted`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from router.routing.candidates import NO_HOST, Candidate, PolicyId, Reason, Verdict
from router.routing.eligible import CHOSEN, least_loaded, takeable, tell, within_bound

if TYPE_CHECKING:
    from router.routing.policy import Ask
    from router.routing.prefixes import Prefixes

NEW_WEIGHT: Final = 2
"""How much a token that must be read weighs beside one that waits to be read. With 1, of prompts of 6,000 tokens a host
held 66 % where 79 % are possible, and first tokens came later at the 99th percentile; from 2 to 8 little changes."""
_FEWER_HELD: Final = int(Reason.FEWER_HELD)


class PrefixAffinity:
    """Keeps, for each host, what it is thought to hold."""

    number = int(PolicyId.PREFIX_AFFINITY)
    wants_prompt = True
    wants_session = False

    def __init__(self, prefixes: Prefixes, load_bound: float, idle_share: float) -> None:
        self._prefixes = prefixes
        self._load_bound = load_bound
        self._idle_share = idle_share
        self._turn = 0
        self._last: Sequence[Candidate] = ()
        self._free: list[int] = []
        self._held: dict[int, int] = {}
        self._costs: dict[int, int] = {}
        self._prompt_tokens = 0
        self._chosen = NO_HOST

    def choose(self, candidates: Sequence[Candidate], ask: Ask) -> int:
        """Return the index of the candidate with the least to read, none above the load bound."""
        free = takeable(candidates)
        if not free:
            return NO_HOST
        within = within_bound(candidates, free, self._load_bound, self._idle_share)
        prompt_tokens, reading_tokens = ask.prompt_tokens, self._prefixes.reading_tokens
        held_by_host = ask.held = self._prefixes.held(ask)
        held: dict[int, int] = {}
        costs: dict[int, int] = {}
        for index in within:
            host_id = candidates[index][0]
            held[index] = tokens = held_by_host.get(host_id, 0)
            costs[index] = reading_tokens(host_id) + NEW_WEIGHT * (prompt_tokens - tokens)
        least = min(costs.values())
        cheapest = [i for i, cost in costs.items() if cost == least]
        chosen = cheapest[0] if len(cheapest) == 1 else least_loaded(candidates, cheapest, self._turn)
        self._turn = chosen + 1
        self._last, self._free, self._chosen = candidates, free, chosen
        self._held, self._costs, self._prompt_tokens = held, costs, prompt_tokens
        return chosen

    def verdicts(self) -> list[Verdict]:
        """Return the share of the prompt that each was thought to hold, those above the bound first."""
        costs, whole = self._costs, max(self._prompt_tokens, 1)
        scores = {i: self._held[i] / whole for i in sorted(costs, key=costs.__getitem__)}
        above = [i for i in self._free if i not in costs]
        return tell(self._last, self._chosen, CHOSEN, _FEWER_HELD, scores, above)

    def sent(self, host_id: int, ask: Ask) -> None:
        """From now on the host holds the prompt."""
        self._prefixes.sent(host_id, ask)

    def first_token(self, host_id: int, ask: Ask, ttft_ns: int) -> None:
        """The host has read the prompt."""
        self._prefixes.read(ask)

    def ended(self, host_id: int, ask: Ask) -> None:
        """Whatever it did not read, it will not."""
        self._prefixes.read(ask)

    def emptied(self, host_id: int) -> None:
        """It has every prompt to read again."""
        self._prefixes.emptied(host_id)

    def forget(self, host_id: int) -> None:
        """What it held is of no use any more."""
        self._prefixes.forget(host_id)
