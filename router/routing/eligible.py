"""Which candidates can take a request at all, and which of those are not above the load bound; pure.

Every policy chooses among :func:`takeable`, so that none can send a request to a host that is full or cannot be used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from router.routing.candidates import NO_HOST, Candidate, Reason, Verdict

# The interpreter looks members of an enum up anew each time.
CHOSEN: Final = int(Reason.CHOSEN)
_FULL, _UNHEALTHY, _TRIED = int(Reason.FULL), int(Reason.UNHEALTHY), int(Reason.TRIED)
ABOVE_BOUND: Final = int(Reason.ABOVE_BOUND)


def takeable(candidates: Sequence[Candidate]) -> list[int]:
    """Return the indices of the candidates that the request may be sent to now, in their order.

    Those that can be used, have a free slot and did not fail the request. One that failed it comes into question only
    when every host that can be used has: to wait for another host beats to fail at the same one again.
    """
    free = [i for i, (_, busy, slots, usable, tried) in enumerate(candidates) if usable and not tried and busy < slots]
    if free:
        return free
    if any(usable and not tried for _, _, _, usable, tried in candidates):
        return free
    return [i for i, (_, busy, slots, usable, _) in enumerate(candidates) if usable and busy < slots]


def mean_load(candidates: Sequence[Candidate]) -> float:
    """Return the share of all slots of usable hosts that would be in use with this request, 0 where there is none."""
    busy_count, slot_count = 1, 0
    for _, busy, slots, usable, _ in candidates:
        if usable:
            busy_count += busy
            slot_count += slots
    return busy_count / slot_count if slot_count else 0.0


def within_bound(
    candidates: Sequence[Candidate], free: Sequence[int], load_bound: float, idle_share: float
) -> list[int]:
    """Return those of the takeable indices whose hosts are not above the load bound; all where every one is.

    A host is below it while ``busy < max(load_bound * mean, idle_share) * slots``, with the mean share of slots in use
    of all usable hosts, this request counted (bounded loads: Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing with
    Bounded Loads", 2017, with slots as capacities). The least loaded host is always below it, since no load is above
    the mean everywhere.
    """
    share_max = max(load_bound * mean_load(candidates), idle_share)
    within = [i for i in free if candidates[i][1] < share_max * candidates[i][2]]
    return within or list(free)


def least_loaded(candidates: Sequence[Candidate], among: Sequence[int], turn: int) -> int:
    """Return the index with the smallest share of its slots in use, ties going round by ``turn``; of at least one."""
    count = len(candidates)
    best, best_busy, best_slots = NO_HOST, 1, 1
    for index in sorted(among, key=lambda i: (i - turn) % count) if turn % count else among:
        _, busy, slots, _, _ = candidates[index]
        if best == NO_HOST or busy * best_slots < best_busy * slots:
            best, best_busy, best_slots = index, busy, slots
    return best


def load(candidate: Candidate) -> float:
    """Return the share of a host's slots in use."""
    return candidate[1] / candidate[2]


def barred(candidate: Candidate) -> Verdict:
    """Return why a candidate could not be taken that was not :func:`takeable`."""
    host_id, busy, slots, usable, _ = candidate
    reason = _UNHEALTHY if not usable else _FULL if busy >= slots else _TRIED
    return host_id, reason, load(candidate)


def tell(
    candidates: Sequence[Candidate],
    chosen: int,
    winning: int,
    losing: int,
    scores: Mapping[int, float],
    above: Sequence[int] = (),
) -> list[Verdict]:
    """Return the verdicts of a choice: the chosen one, those above the load bound, those that lost, the others.

    ``scores`` are of the candidates that were compared, by index and with the nearest rivals first; the chosen one's
    reason is ``winning``, that of the others ``losing``. ``above`` are the indices of those that the load bound left
    out; their score is their load as a multiple of the mean.
    """
    out: list[Verdict] = [(candidates[chosen][0], winning, scores.get(chosen, load(candidates[chosen])))]
    if above:
        mean = mean_load(candidates)
        out += [(candidates[i][0], ABOVE_BOUND, load(candidates[i]) / mean) for i in above]
    out += [(candidates[i][0], losing, score) for i, score in scores.items() if i != chosen]
    told = {chosen, *scores, *above}
    out += [barred(candidate) for i, candidate in enumerate(candidates) if i not in told]
    return out
