"""Slow start, pure: how many of its slots a host gets that has just come back."""

from __future__ import annotations


def slots_now(slot_count: int, since_ns: int, now_ns: int, over_ns: int, first_share: float) -> int:
    """Return how many of ``slot_count`` slots may be used at ``now_ns`` by a host that came back at ``since_ns``.

    From ``first_share`` of them, one at least, in a straight line to all of them after ``over_ns``.
    """
    if now_ns - since_ns >= over_ns:
        return slot_count
    share = first_share + (1.0 - first_share) * max(now_ns - since_ns, 0) / over_ns
    return max(1, int(slot_count * share))
