"""Regressions: a host, model, feature or prompt version that is worse than it was itself; pure but for its baseline.

Every five minutes the requests of these are summed up (:mod:`router.observer.alerts.evidence.cells`) and the last half
hour is compared with the same hours of the last days (:mod:`router.observer.alerts.evidence.comparison`). A slice has
regressed when the median of the half hour's shifts is large (:data:`SHIFT_MIN`), far beyond the noise
(:data:`SIGMAS`), and most of the half hour was: minutes that are slow, and a day that is, wake nobody.

One fault shows in many slices: of those that regressed the one that explains most is told, and another only if it has
regressed without the requests of that one too.

It is *observational*: nobody was assigned by lot, and something else may have changed at the same time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from router.observer.alerts.evidence.cells import KINDS, METRICS, SLICES_MAX, Names, Slices, Sums, grown, sums_of
from router.observer.alerts.evidence.comparison import (
    Baseline,
    Levels,
    baseline_of,
    joined_levels,
    levels_of,
    whatever_length,
)
from router.observer.alerts.evidence.history import History
from router.observer.alerts.evidence.judge import AVAILABILITY
from router.observer.alerts.evidence.recent import Recent
from router.observer.alerts.evidence.slices import SAME, mask_of
from router.observer.alerts.evidence.table import Bools, Doubles, Ints, Table
from router.observer.alerts.model import Cause, Finding, Severity

BLOCK_NS: Final = 300 * 1_000_000_000
LATE_NS: Final = 15 * 1_000_000_000
"""So long after its end five minutes are summed up: costs settle a second or more after a request's end."""
WINDOW_BLOCKS: Final = 6
BLOCKS_MIN: Final = 4
"""Of the window's blocks so many must have requests, and be worse by half of :data:`SHIFT_MIN`."""
BLOCK_COUNT_MIN: Final = 8.0
WINDOW_COUNT_MIN: Final = 60.0
SHIFT_MIN: Final = {metric: float(np.log(1.25)) for metric in METRICS} | {AVAILABILITY: 0.05}
"""Smallest shift that is told: a quarter more, or five percentage points of failures more."""
SIGMAS: Final = 6.0
STAY: Final = 0.5
"""A regression that is told is over when its shift is below this share of what it had to be."""
FINDINGS_MAX: Final = 5
OBSERVATIONAL: Final = "Observational: nobody was assigned by lot, something else may have changed at the same time."
_MEDIAN_ERROR: Final = np.pi / 2
"""Variance of a median over that of a mean."""
_PREFERENCE: Final = {"cost": 0.5, "e2e": 0.7}
"""Of a slice's metrics the one with the largest shift is told; end to end and cost follow from what takes long."""


class Shift(NamedTuple):
    """How slices are shifted in the window, arrays of slices × metrics."""

    median: Doubles
    sigmas: Doubles
    requests: Doubles
    is_lasting: Bools
    since_block: Ints
    """Blocks since it began."""


class Regressions:
    """Finds regressions. Raises nothing: what cannot be compared is not told."""

    def __init__(self, recent: Recent, history: History, wall_ns: int, time_scale: float = 1.0) -> None:
        self._recent = recent
        self._history = history
        self._block_ns = round(BLOCK_NS / time_scale)
        self._late_ns = round(LATE_NS / time_scale)
        self._block = (wall_ns - self._late_ns) // self._block_ns
        self._blocks: deque[Sums] = deque(maxlen=2 * WINDOW_BLOCKS)
        self._compared: deque[tuple[Levels, Levels]] = deque(maxlen=2 * WINDOW_BLOCKS)
        """The last of the blocks as they compare with the baselines of now."""
        self._known_hour = -1
        self._baselines: tuple[Baseline, Baseline] | None = None
        self._findings: list[Finding] = []
        self._told: dict[Names, Finding] = {}

    @property
    def slices(self) -> Slices:
        """The slices that are watched."""
        return self._history.slices

    def evaluate(self, wall_ns: int) -> list[Finding]:
        """Return the regressions of now. Whatever is due is done first: cheap between the five minutes."""
        block = (wall_ns - self._late_ns) // self._block_ns
        if block < self._block - 1:  # the clock was put back
            self._block = block
            self._blocks.clear()
            self._compared.clear()
        if block > self._block:
            begin = max(self._block, block - 1) * self._block_ns
            self._block = block
            self._close(self._recent.between(begin, block * self._block_ns), block * self._block_ns)
        return self._findings

    def recall(self) -> None:
        """Take what of the last hour was before this life from the recent requests, and judge anew."""
        first = self._block - len(self._blocks)
        missing = range(first - 2 * WINDOW_BLOCKS + len(self._blocks), first)
        earlier = [
            sums_of(
                self._recent.between(at * self._block_ns, (at + 1) * self._block_ns), self._recent.values, self.slices
            )
            for at in missing
        ]
        self._blocks.extendleft(reversed(earlier))
        self._compared.clear()
        self._findings = self._found(self._block * self._block_ns)

    def _close(self, table: Table, wall_ns: int) -> None:
        """Take the requests of the five minutes that end now."""
        if len(self.slices) >= SLICES_MAX:
            self._make_room()
        sums = sums_of(table, self._recent.values, self.slices)
        if len(self._blocks) == len(self._compared) == self._blocks.maxlen:
            self._compared.popleft()  # as the oldest block is
        self._blocks.append(sums)
        self._findings = self._found(wall_ns)
        self._history.add(sums, wall_ns)

    def _make_room(self) -> None:
        moved = self._history.make_room()
        if moved is not None:
            self._blocks.clear()
            self._compared.clear()
            self._known_hour = -1

    # ------------------------------------------------------------ comparing
    def _found(self, wall_ns: int) -> list[Finding]:
        baselines = self._baselines_at(wall_ns)
        if baselines is None:
            self._told.clear()
            return []
        own, of_feature = baselines
        shift, has_own = self._shift(own, of_feature)
        chosen = self._causes(shift, has_own, baselines, wall_ns)
        findings = [self._finding(number, shift, wall_ns) for number in chosen]
        self._told = {self.slices.names[number]: finding for number, finding in zip(chosen, findings, strict=True)}
        return findings

    def _baselines_at(self, wall_ns: int) -> tuple[Baseline, Baseline] | None:
        """Return the baseline of each slice, and that of the feature of each prompt version, whatever the length."""
        hour = (wall_ns - 1) // self._history.hour_ns
        size = len(self.slices)
        is_known = self._baselines is not None and len(self._baselines[0].center) == size
        if hour == self._known_hour and (is_known or self._baselines is None):
            return self._baselines
        self._known_hour = hour
        self._compared.clear()
        hours = [self._history.dense(each) for each in self._history.same_hours(wall_ns)]
        self._baselines = None
        if hours:
            parents = self._parents()
            collapsed = [whatever_length(each)[parents] for each in hours]
            self._baselines = baseline_of(hours), baseline_of(collapsed)
        return self._baselines

    def _parents(self) -> Ints:
        return np.array([self.slices.parent(number) for number in range(len(self.slices))], dtype=np.int64)

    def _shift(self, own: Baseline, of_feature: Baseline) -> tuple[Shift, Bools]:
        """Return the shift of each slice, and which slices have a baseline of their own."""
        behind = len(self._compared) - len(self._blocks)
        for block in list(self._blocks)[behind:] if behind else ():
            sums = [grown(block, len(self.slices))]
            self._compared.append((levels_of(sums, own), self._against_feature(sums, of_feature)))
        shift = _shift_of(joined_levels([each for each, _ in self._compared]), own)
        is_version = np.array([self._is_version(number) for number in range(len(self.slices))])
        is_new = is_version & np.isnan(own.center).all(axis=1)
        if is_new.any():
            other = _shift_of(joined_levels([each for _, each in self._compared]), of_feature)
            shift = Shift(*(np.where(is_new[:, None], b, a) for a, b in zip(shift, other, strict=True)))
        return shift, ~is_new

    def _against_feature(self, blocks: Sequence[Sums], of_feature: Baseline) -> Levels:
        """Return how far prompt versions are apart from what their features were; outside are the other features."""
        collapsed = [whatever_length(each) for each in blocks]
        parents = self._parents()
        return levels_of(collapsed, of_feature, [each[parents] for each in collapsed])

    # ------------------------------------------------------------ choosing
    def _causes(self, shift: Shift, has_own: Bools, baselines: tuple[Baseline, Baseline], wall_ns: int) -> list[int]:
        """Return the slices to tell, the one that explains most first."""
        limits = np.array([SHIFT_MIN[metric] for metric in METRICS])
        was_told = np.array([names in self._told for names in self.slices.names])[:, None]
        needed = np.where(was_told, STAY, 1.0)
        regressed = shift.is_lasting & (shift.median >= needed * limits) & (shift.sigmas >= needed * SIGMAS)
        regressed &= shift.requests >= WINDOW_COUNT_MIN
        gains = (shift.requests * np.where(regressed, shift.median / limits, 0.0) ** 2).max(axis=1)
        gains[0] = 0.0
        chosen: list[int] = []
        left: list[int] = np.flatnonzero(gains > 0).tolist()
        window = self._recent.between(wall_ns - WINDOW_BLOCKS * self._block_ns, wall_ns)
        while left and len(chosen) < FINDINGS_MAX:
            best = self._most(left, gains, wall_ns)
            chosen.append(best)
            window = window.take(~mask_of(window, dict(self.slices.names[best]), self._recent.values))
            left = self._unexplained(
                [each for each in left if each != best], window, regressed, limits, baselines, has_own
            )
        return chosen

    def _most(self, left: Sequence[int], gains: Doubles, wall_ns: int) -> int:
        """Return the slice that explains most.

        Of those that explain the same it is a version that was just born, else the first and simplest of their kinds.
        """
        best = max(gains[number] for number in left)
        same = [number for number in left if gains[number] >= SAME * best]
        born = [number for number in same if self._is_version(number) and not self._history.is_known(number, wall_ns)]
        return min(born or same, key=lambda number: (self._kind(number), -gains[number]))

    def _kind(self, number: int) -> int:
        return KINDS.index(tuple(name for name, _ in self.slices.names[number]))

    def _is_version(self, number: int) -> bool:
        return len(self.slices.names[number]) > 1

    def _unexplained(
        self,
        left: Sequence[int],
        window: Table,
        regressed: Bools,
        limits: Doubles,
        baselines: tuple[Baseline, Baseline],
        has_own: Bools,
    ) -> list[int]:
        """Return the slices that have regressed in the remaining requests of the window too."""
        if not left or not len(window):
            return []
        size = len(self.slices)
        sums = grown(sums_of(window, self._recent.values, self.slices), size)[:size]
        own, of_feature = baselines
        of_own = _shift_of(levels_of([sums], own), own)
        of_new = _shift_of(self._against_feature([sums], of_feature), of_feature)
        found = []
        for number in left:
            shift = of_own if has_own[number] else of_new
            still = regressed[number] & (shift.median[number] >= limits) & (shift.sigmas[number] >= SIGMAS)
            if (still & (shift.requests[number] >= WINDOW_COUNT_MIN)).any():
                found.append(number)
        return found

    # ------------------------------------------------------------ telling
    def _finding(self, number: int, shift: Shift, wall_ns: int) -> Finding:
        names = self.slices.names[number]
        where = dict(names)
        limits = np.array([SHIFT_MIN[metric] / _PREFERENCE.get(metric, 1.0) for metric in METRICS])
        scaled = np.where(shift.is_lasting[number], shift.median[number] / limits, -np.inf)
        at = int(np.argmax(scaled))
        metric, median = METRICS[at], float(shift.median[number, at])
        before = self._told.get(names)
        since = wall_ns - int(shift.since_block[number, at]) * self._block_ns
        if before is not None:
            since = min(since, before.since_wall_ns)
        what = " ".join(f"{name} {value}" for name, value in where.items())
        change = f"{median:+.1%} points" if metric == AVAILABILITY else f"{np.exp(median) - 1:+.0%}"
        against = "against the same hours of the last days, at the same input length, beside all other requests"
        compared = f"{metric} {change} {against}".replace("%", " %")
        return Finding(
            cause=Cause.REGRESSION,
            severity=Severity.TICKET,
            labels=where,
            summary=f"{what}: {compared}",
            since_wall_ns=since,
            metric=metric,
            where=where,
            facts=(f"{compared}.", OBSERVATIONAL),
        )


def _shift_of(levels: Levels, baseline: Baseline) -> Shift:
    """Return the shift over the last blocks."""
    limits = np.array([SHIFT_MIN[metric] for metric in METRICS])
    apart = levels.apart - baseline.center
    count, error = levels.requests, levels.error
    usable = (count >= BLOCK_COUNT_MIN) & ~np.isnan(apart)
    is_worse = usable & (apart >= STAY * limits)
    window = slice(-WINDOW_BLOCKS, None)
    told = np.where(usable, apart, np.nan)[window]
    blocks = usable[window].sum(axis=0)
    has_any = blocks > 0
    median = np.full(blocks.shape, -np.inf)
    if has_any.any():
        median[has_any] = np.nanmedian(told[:, has_any], axis=0)
    sampling = np.where(usable, error, 0.0)[window].sum(axis=0) / np.maximum(blocks, 1) ** 2
    sampling *= _MEDIAN_ERROR if len(apart) > 1 else 1.0
    sigmas = median / np.sqrt(baseline.spread**2 + sampling)
    needed = BLOCKS_MIN if len(apart) > 1 else 1
    is_lasting = is_worse[window].sum(axis=0) >= needed
    is_lasting &= is_worse[-1] | ~usable[-1]
    requests = np.where(usable, count, 0.0)[window].sum(axis=0)
    return Shift(median, sigmas, requests, is_lasting, _run_length(is_worse, usable))


def _run_length(is_worse: Bools, usable: Bools) -> Ints:
    """Return for how many blocks up to the last one it was worse; blocks without requests do not break the run."""
    length = np.zeros(is_worse.shape[1:], dtype=np.int64)
    runs = np.ones(is_worse.shape[1:], dtype=np.bool_)
    for back, (worse, has) in enumerate(zip(is_worse[::-1], usable[::-1], strict=True), start=1):
        runs &= worse | ~has
        length[runs & worse] = back
    return length
