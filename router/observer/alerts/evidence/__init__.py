"""Evidence: where a finding comes from, in which stage, since when, at what cost; and what got worse than it was.

The map:

    table        requests as columns; ``recent`` keeps those of the last two hours
    refill       those that ended before the observer started, from the journal
    judge        which of them count for an objective, and which are bad
    onset        since when they are
    expected     what a request would have taken before; ``slices`` which slice deviates from that
    stages       which stage takes longer; ``examples`` requests that show it; ``sentence`` says it
    collect      all of these: :func:`evidence`

    cells        sums of five minutes by slice, metric and input length; ``history`` those of eight days, by the hour
    comparison   how far slices are from what they were in the same hours; ``regressions`` which of them to tell
"""

from router.observer.alerts.evidence.collect import evidence
from router.observer.alerts.evidence.recent import Recent

__all__ = ["Recent", "evidence"]
