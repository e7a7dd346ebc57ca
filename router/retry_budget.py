"""The retry budget of one model, pure: retries must stay a small part of the work, or they make an overload worse.

As Finagle's ``RetryBudget``: in the last 10 s at most a share of the requests that were answered, and a number per
second besides, so that a model with little traffic has retries too. Only answers count, so that the budget falls when
most requests fail, which is when retries do harm. Attempts that went wrong on a kept connection before the host's first
byte are not counted: they are no retries of work.
"""

from __future__ import annotations

from collections import deque
from typing import Final

_NS: Final = 1_000_000_000
WINDOW_S: Final = 10


class RetryBudget:
    """Says whether a retry may be made. ``share`` of the answers, and ``per_s`` a second, over :data:`WINDOW_S`."""

    def __init__(self, share: float, per_s: float) -> None:
        self._share = share
        self._per_s = per_s
        self._begins: deque[tuple[int, int]] = deque(maxlen=WINDOW_S + 1)
        """Time, and answers until then: the beginnings of the seconds of the window."""
        self._retries: deque[int] = deque()

    def configure(self, share: float, per_s: float) -> None:
        """Go on with other limits."""
        self._share, self._per_s = share, per_s

    def second(self, now_ns: int, answers: int) -> None:
        """Note how many requests were answered by now; once a second."""
        self._begins.append((now_ns, answers))

    def take(self, now_ns: int, answers: int) -> bool:
        """Take one retry if there is one left; ``answers`` as for :meth:`second`."""
        oldest_ns = now_ns - WINDOW_S * _NS
        retries = self._retries
        while retries and retries[0] < oldest_ns:
            retries.popleft()
        before = next((count for begin_ns, count in self._begins if begin_ns >= oldest_ns), 0)
        if self._begins and self._begins[-1][0] < oldest_ns:
            before = self._begins[-1][1]
        if len(retries) >= self._share * max(answers - before, 0) + self._per_s * WINDOW_S:
            return False
        retries.append(now_ns)
        return True
