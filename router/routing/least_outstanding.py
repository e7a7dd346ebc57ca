"""Least outstanding requests, pure: the host with the most free slots for its size gets the next request."""

from __future__ import annotations

from collections.abc import Sequence

from router.routing.candidates import NO_HOST, Candidate, Reason, Verdict

# The interpreter looks members of an enum up anew each time.
_CHOSEN, _BUSIER, _FULL = int(Reason.CHOSEN), int(Reason.BUSIER), int(Reason.FULL)
_UNHEALTHY, _TRIED = int(Reason.UNHEALTHY), int(Reason.TRIED)


def choose(candidates: Sequence[Candidate], turn: int) -> int:
    """Return the index of the candidate with the smallest share of its slots in use, :data:`NO_HOST` if none can.

    Ties go round by ``turn``. A host that already failed the request is taken only when no healthy one is left that has
    not: to wait for another host beats to fail at the same one again.
    """
    best = best_tried = NO_HOST
    best_busy, best_slots, tried_busy, tried_slots = 1, 1, 1, 1  # a full host: none that can be taken is as busy
    all_tried = True
    count = len(candidates)
    for offset in range(count):
        index = (turn + offset) % count
        _, busy, slots, healthy, tried = candidates[index]
        if not healthy:
            continue
        if tried:
            if busy * tried_slots < tried_busy * slots:
                best_tried, tried_busy, tried_slots = index, busy, slots
            continue
        all_tried = False
        if busy * best_slots < best_busy * slots:
            best, best_busy, best_slots = index, busy, slots
    return best_tried if all_tried else best


def explain(candidates: Sequence[Candidate], chosen: int) -> list[Verdict]:
    """Return ``(host_id, reason, load)`` for each candidate, the chosen one first."""
    out: list[Verdict] = []
    for index, (host_id, busy, slots, healthy, tried) in enumerate(candidates):
        load = busy / slots
        if index == chosen:
            out.insert(0, (host_id, _CHOSEN, load))
        elif not healthy:
            out.append((host_id, _UNHEALTHY, load))
        elif tried:
            out.append((host_id, _TRIED, load))
        else:
            out.append((host_id, _FULL if busy >= slots else _BUSIER, load))
    return out
