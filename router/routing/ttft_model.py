"""The time to a host's first token as a linear function that is learned while it serves; pure.

    ttft = a + b * tokens_before + c * busy

``tokens_before`` are the tokens that the host still has to read before this request's first token: of requests sent
that have no first token yet, and of this one, less what it is thought to hold. ``busy`` are the requests it works on,
each of which makes every step of the host longer. The three are found by recursive least squares with forgetting, the
standard recursion (Ljung, "System Identification", 1999, §11.2; Haykin, "Adaptive Filter Theory", §9):

    k = P x / (f + x' P x)      w += k * (y - x' w)      P = (P - k x' P) / f

Three things keep it from going astray. An error counts at most :data:`ERROR_MAX` times the usual one, or as much as
what was foretold (Huber's rule), so that one stalled request does not bend the line; only when :data:`RUN_MAX` in a row
are that far off on the same side has the host changed, and it is learned anew. With forgetting, P would grow without
bound while nothing varies, so its trace is bounded. And what is foretold is never less than :data:`FLOOR_SHARE` of the
shortest time seen lately, wherever the line leads.
"""

from __future__ import annotations

from typing import Final

FORGETTING: Final = 0.98
"""Weight of a sample after one more: the last 50 count for most."""
ERROR_MAX: Final = 4.0
RUN_MAX: Final = 3
FLOOR_SHARE: Final = 0.1
_LEARNED_SHARE: Final = 0.1
"""Of the usual error, an exponentially weighted mean, what one sample makes up."""
_FLOOR_GROWTH: Final = 1.01
"""Of the shortest time with each sample, so that it is of the last hundred."""
_P_UNKNOWN: Final = (10.0, 0.0, 0.0, 10.0, 0.0, 10.0)
"""Variance of what is not known yet, in units of the features, which are of the order of one."""
_TRACE_MAX: Final = 100.0
_TOKENS_UNIT: Final = 1000.0
_BUSY_UNIT: Final = 16.0

Features = tuple[float, float, float]


def features(tokens_before: int, busy: int) -> Features:
    """Return what the time depends on, each of the order of one."""
    return 1.0, tokens_before / _TOKENS_UNIT, busy / _BUSY_UNIT


class TtftModel:
    """The function of one host: a dozen numbers. Times are in seconds."""

    __slots__ = ("_error", "_floor_s", "_p", "_run", "_w", "sample_count")

    def __init__(self) -> None:
        self.sample_count = 0
        self._w = (0.0, 0.0, 0.0)
        self._p = _P_UNKNOWN
        """Upper half of the symmetric matrix, row by row."""
        self._error = 0.0
        self._run = 0
        """Samples in a row that were far off, negative where they were shorter."""
        self._floor_s = 0.0

    def predict(self, x: Features) -> float:
        """Return the expected time."""
        a, b, c = self._w
        return max(a + b * x[1] + c * x[2], self._floor_s * FLOOR_SHARE)

    def learn(self, x: Features, ttft_s: float) -> None:
        """Take in one sample."""
        a, b, c = self._w
        expected_s = a + b * x[1] + c * x[2]
        error = ttft_s - expected_s
        if self.sample_count:
            if self.sample_count >= len(x):  # before that it knows of no usual error
                error = self._bounded(error, max(ERROR_MAX * self._error, expected_s))
            self._error += _LEARNED_SHARE * (abs(error) - self._error)
            self._floor_s = min(self._floor_s * _FLOOR_GROWTH, ttft_s)
        else:
            self._error, self._floor_s = abs(error), ttft_s
        self.sample_count += 1
        self._update(x, error)

    def _bounded(self, error: float, bound: float) -> float:
        """Return an error that is not too large, or all of it when it is one of several."""
        if -bound <= error <= bound:
            self._run = 0
            return error
        side = 1 if error > 0 else -1
        self._run = self._run + side if self._run * side > 0 else side
        if abs(self._run) < RUN_MAX:
            return bound * side
        self._run = 0
        self._p = _P_UNKNOWN
        return error

    def _update(self, x: Features, error: float) -> None:
        _, x1, x2 = x  # the first is 1
        p00, p01, p02, p11, p12, p22 = self._p
        px0 = p00 + p01 * x1 + p02 * x2
        px1 = p01 + p11 * x1 + p12 * x2
        px2 = p02 + p12 * x1 + p22 * x2
        gain = 1.0 / (FORGETTING + px0 + x1 * px1 + x2 * px2)
        a, b, c = self._w
        step = gain * error
        self._w = a + px0 * step, b + px1 * step, c + px2 * step
        trace = p00 + p11 + p22 - gain * (px0 * px0 + px1 * px1 + px2 * px2)
        grow = 1.0 / FORGETTING if trace < _TRACE_MAX * FORGETTING else 1.0
        self._p = (
            (p00 - gain * px0 * px0) * grow,
            (p01 - gain * px0 * px1) * grow,
            (p02 - gain * px0 * px2) * grow,
            (p11 - gain * px1 * px1) * grow,
            (p12 - gain * px1 * px2) * grow,
            (p22 - gain * px2 * px2) * grow,
        )
