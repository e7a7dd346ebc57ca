"""Least predicted time to the first token; pure.

Each host has a model of its own (:mod:`router.routing.ttft_model`), learned from the answers that pass: what it has to
read before this prompt is done (less what it is thought to hold of it) and how many requests it works on. The request
goes where the time foretold is shortest. Until each host in question has ``samples_min`` samples, least outstanding
decides, which gives every host its samples.

A share ``explore`` of the requests goes to the host that was not chosen for longest: a host that was slow once would
otherwise never be seen again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Final

from router.routing.candidates import NO_HOST, Candidate, PolicyId, Reason, Verdict
from router.routing.eligible import CHOSEN, least_loaded, load, takeable, tell
from router.routing.ttft_model import Features, TtftModel, features

if TYPE_CHECKING:
    from router.routing.policy import Ask
    from router.routing.prefixes import Prefixes

_NS: Final = 1e9
_TTFT_S_MAX: Final = 4000.0
"""Foretold at most: what a record's microseconds hold."""
_EXPLORED, _SLOWER, _BUSIER = int(Reason.EXPLORED), int(Reason.SLOWER), int(Reason.BUSIER)


class LeastPredictedTtft:
    """Keeps a model and what it is thought to hold of each host that it has seen and not been told to forget."""

    number = int(PolicyId.LEAST_PREDICTED_TTFT)
    wants_prompt = True
    wants_session = False

    def __init__(self, prefixes: Prefixes, samples_min: int, explore: float, random: Random) -> None:
        self._prefixes = prefixes
        self._samples_min = samples_min
        self._explore = explore
        self._random = random.random
        self._models: dict[int, TtftModel] = {}
        self._sent_ns: dict[int, int] = {}
        self._turn = 0
        self._last: Sequence[Candidate] = ()
        self._scores: dict[int, float] = {}
        self._reasons = CHOSEN, _BUSIER
        self._chosen = NO_HOST

    def choose(self, candidates: Sequence[Candidate], ask: Ask) -> int:
        """Return the index of the candidate with the shortest time foretold."""
        free = takeable(candidates)
        if not free:
            return NO_HOST
        ask.predicted_ttft_ns = 0
        held = ask.held = self._prefixes.held(ask)
        if not all(self._is_known(candidates[i][0]) for i in free):
            chosen = least_loaded(candidates, free, self._turn)
            scores = {i: load(candidates[i]) for i in free}
            self._reasons = CHOSEN, _BUSIER
        else:
            scores = {i: self._predict_s(candidates[i], ask, held) for i in free}
            if self._explore and len(free) > 1 and self._random() < self._explore:
                chosen = min(free, key=lambda i: self._sent_ns.get(candidates[i][0], 0))
                self._reasons = _EXPLORED, _SLOWER
            else:
                chosen = self._fastest(candidates, scores)
                self._reasons = CHOSEN, _SLOWER
            ask.predicted_ttft_ns = int(min(scores[chosen], _TTFT_S_MAX) * _NS)
        ask.features = self._features(candidates[chosen], ask, held)
        self._turn = chosen + 1
        self._last, self._chosen, self._scores = candidates, chosen, scores
        return chosen

    def _is_known(self, host_id: int) -> bool:
        model = self._models.get(host_id)
        return model is not None and model.sample_count >= self._samples_min

    def _fastest(self, candidates: Sequence[Candidate], scores: dict[int, float]) -> int:
        shortest = min(scores.values())
        return least_loaded(candidates, [i for i, score in scores.items() if score <= shortest], self._turn)

    def _features(self, candidate: Candidate, ask: Ask, held: Mapping[int, int]) -> Features:
        host_id, busy, _, _, _ = candidate
        new = ask.prompt_tokens - held.get(host_id, 0)
        return features(self._prefixes.reading_tokens(host_id) + new, busy)

    def _predict_s(self, candidate: Candidate, ask: Ask, held: Mapping[int, int]) -> float:
        """Return the time to the first token that is foretold of a host that has a model."""
        return self._models[candidate[0]].predict(self._features(candidate, ask, held))

    def verdicts(self) -> list[Verdict]:
        """Return the seconds foretold, the shortest first; shares of slots in use until there are enough samples."""
        winning, losing = self._reasons
        scores = dict(sorted(self._scores.items(), key=lambda score: score[1]))
        return tell(self._last, self._chosen, winning, losing, scores)

    def sent(self, host_id: int, ask: Ask) -> None:
        """A host gets a prompt to read."""
        self._sent_ns[host_id] = ask.now_ns
        self._prefixes.sent(host_id, ask)

    def first_token(self, host_id: int, ask: Ask, ttft_ns: int) -> None:
        """Learn from the time that it took."""
        self._prefixes.read(ask)
        if len(ask.features) == len(Features.__args__):  # type: ignore[attr-defined]
            self._models.setdefault(host_id, TtftModel()).learn(ask.features, ttft_ns / _NS)  # type: ignore[arg-type]
            ask.features = ()

    def ended(self, host_id: int, ask: Ask) -> None:
        """Whatever it did not read, it will not."""
        self._prefixes.read(ask)

    def emptied(self, host_id: int) -> None:
        """It has every prompt to read again."""
        self._prefixes.emptied(host_id)

    def forget(self, host_id: int) -> None:
        """Its model is of no use any more."""
        self._models.pop(host_id, None)
        self._sent_ns.pop(host_id, None)
        self._prefixes.forget(host_id)
