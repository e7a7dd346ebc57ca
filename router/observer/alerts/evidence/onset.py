"""Since when something is wrong: the moment at which the share of bad requests most likely rose; pure."""

from __future__ import annotations

from typing import Final

import numpy as np

from router.observer.alerts.evidence.table import Bools, Doubles, Floats, Ints

BAD_MIN: Final = 3
"""Bad requests behind the moment: fewer are no rise."""


def onset_ns(end_wall_ns: Ints, is_bad: Bools, weight: Floats) -> int | None:
    """Return when the share of bad requests rose: the end of the first request behind the rise; ``None`` for no rise.

    Of all splits of the requests, which are in the order of time, it is the one under which two shares, the later one
    larger, are likelier than one share by the largest factor: the likelihood-ratio estimate of a change point.
    """
    if end_wall_ns.size < 2 * BAD_MIN or int(is_bad.sum()) < BAD_MIN:
        return None
    bad = np.cumsum(np.where(is_bad, weight, 0.0))
    total = np.cumsum(weight, dtype=np.float64)
    before_bad, before = bad[:-1], total[:-1]
    after_bad, after = bad[-1] - before_bad, total[-1] - before
    gain = _likelihood(before_bad, before) + _likelihood(after_bad, after) - _likelihood(bad[-1:], total[-1:])
    enough = bad[-1] - before_bad >= BAD_MIN
    gain[~enough | (after_bad / after <= before_bad / before)] = 0.0
    best = int(np.argmax(gain))
    return int(end_wall_ns[best + 1]) if gain[best] > 0 else None


def _likelihood(bad: Doubles, total: Doubles) -> Doubles:
    """Return the logarithm of the likelihood of the share that fits best."""
    good = total - bad
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(bad * np.log(bad / total)) + np.nan_to_num(good * np.log(good / total))
