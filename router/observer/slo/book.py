"""All objectives: counts each request exactly once, says how they fare, and can be written down; pure.

A request is counted when its row is read, in the cell of its end, against the exact threshold. Rows may be handed out
again after a kill: those that were counted and are not durable elsewhere yet are *open*, and their keys are written
down with the counts. The next life passes over a row whose key it finds there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from typing import Final

import msgspec

from router.config import Config
from router.observer.alerts.model import Burn, Severity
from router.observer.batch import of_users
from router.observer.rows import RequestRow, RowKey
from router.observer.slices import Values
from router.observer.slo import burn
from router.observer.slo.burn import Sum
from router.observer.slo.cells import Cells
from router.observer.slo.groups import Groups, Life
from router.observer.slo.objectives import NS_PER_S, Objective, objectives_of
from router.observer.slo.status import SloStatus, State
from router.telemetry.records import OWN_CLASSES

SCHEMA: Final = "ringrouter.slo-counts/1"
EVALUATE_S: Final = 10.0
"""Between two evaluations: the width of a cell."""
OPEN_MAX: Final = 65_536
"""Rows that may be open: far above what waits for its cost and for a disk; beyond it the oldest are forgotten."""
PASSED_OVER_NS: Final = 3600 * NS_PER_S
"""How long a book looks for the rows that another life had open: they come with the first looks at the rings."""
_STATES: Final = {state: rank for rank, state in enumerate(State)}


class Counts(msgspec.Struct, frozen=True):
    """What one objective has counted."""

    name: str
    definition: str
    newest: list[int]
    values: list[Values]
    lives: list[Life]
    cells: bytes


class BookState(msgspec.Struct, frozen=True):
    """A book on paper."""

    schema: str
    wall_ns: int
    counts: list[Counts]
    open: list[RowKey]
    """Rows that are counted and may be handed out again."""


class _Tally:
    """One objective and its counts."""

    def __init__(self, objective: Objective, wall_ns: int) -> None:
        self.objective = objective
        self.cells = Cells(objective.time_scale, wall_ns)
        longest_ns = max(rule.long_ns for rule in objective.rules)
        self.groups = Groups(len(objective.group_by), objective.groups_max, longest_ns, self.cells.clear)
        self.windows = burn.windows_of(objective)
        self._new: dict[tuple[int, int], list[int]] = {}

    def count(self, row: RequestRow, end_ns: int, *, is_good: bool) -> None:
        """Take a row; :meth:`flush` puts it into its cells."""
        cell = end_ns // self.cells.width_ns
        numbers = [0]
        if self.objective.group_by:
            numbers.append(self.groups.number(self.objective.group_of(row), end_ns))
        for number in numbers:
            self.groups.note(number, end_ns)
            found = self._new.get((number, cell))
            if found is None:
                found = self._new[number, cell] = [0, 0]
            found[0] += not is_good
            found[1] += 1

    def flush(self) -> None:
        """Put what was taken into the cells."""
        for (number, cell), (bad, total) in self._new.items():
            self.cells.add(number, cell * self.cells.width_ns, bad, total)
        self._new.clear()


class SloBook:
    """The counts of all objectives of a configuration. Memory is bounded: :data:`router.config.slo.GROUPS_MAX`."""

    def __init__(self, config: Config, wall_ns: int) -> None:
        self.time_scale = config.observer.time_scale
        self.objectives = objectives_of(config.slo, config.observer.goodput, self.time_scale)
        self._tallies = [_Tally(objective, wall_ns) for objective in self.objectives]
        self._open: dict[RowKey, None] = {}
        self._passed_over: set[RowKey] = set()
        self._begun_ns = wall_ns

    @property
    def evaluate_every_ns(self) -> int:
        """Time between two evaluations."""
        return round(EVALUATE_S * NS_PER_S / self.time_scale)

    # ------------------------------------------------------------ counting
    def add(self, rows: Sequence[RequestRow], wall_ns: int, *, is_durable: bool = False) -> None:
        """Count finished requests, each key once. ``is_durable``: they will not be handed out again."""
        self.advance(wall_ns)
        for row in of_users(rows)[0]:
            key = row.key
            if key in self._passed_over:
                self._passed_over.discard(key)
            else:
                self._count(row, min(row.end_wall_ns, wall_ns))
            if not is_durable:
                self._open[key] = None
        for tally in self._tallies:
            tally.flush()
        while len(self._open) > OPEN_MAX:
            del self._open[next(iter(self._open))]

    def _count(self, row: RequestRow, end_ns: int) -> None:
        for tally in self._tallies:
            objective = tally.objective
            if not objective.where or objective.counts(row):
                is_good = objective.judge(row)
                if is_good is not None:
                    tally.count(row, end_ns, is_good=is_good)

    def commit(self, rows: Iterable[RequestRow]) -> None:
        """These rows are durable: nobody hands them out again."""
        for row in rows:
            self._open.pop(row.key, None)

    def advance(self, wall_ns: int) -> None:
        """Make room for the present."""
        for tally in self._tallies:
            tally.cells.advance(wall_ns)
        if self._passed_over and wall_ns - self._begun_ns > PASSED_OVER_NS:
            self._passed_over.clear()

    def breaches(self, row: RequestRow) -> tuple[str, ...]:
        """Return the names of the objectives that count a row as bad."""
        if row.tags.get("workload_class") in OWN_CLASSES:
            return ()
        return tuple(each.name for each in self.objectives if each.counts(row) and each.judge(row) is False)

    # ------------------------------------------------------------ how they fare
    def evaluate(self, wall_ns: int) -> list[SloStatus]:
        """Return how each objective fares: all its requests, then its groups, the worst first."""
        self.advance(wall_ns)
        found: list[SloStatus] = []
        for tally in self._tallies:
            total, *groups = _statuses(tally, wall_ns)
            found += [total, *sorted(groups, key=_badness)]
        return found

    @property
    def folded_count(self) -> int:
        """Requests that were counted as ``__other__`` of their objective."""
        return sum(tally.groups.folded_count for tally in self._tallies)

    # ------------------------------------------------------------ on paper
    def written(self, wall_ns: int) -> BookState:
        """Return a copy of all counts and of what is open."""
        return BookState(
            SCHEMA, wall_ns, [_counts(tally) for tally in self._tallies], [*self._passed_over, *self._open]
        )

    def restore(self, state: BookState) -> None:
        """Go on from what another life has counted; an objective that was defined otherwise then begins anew.

        Raises ValueError when the counts do not fit together.
        """
        by_name = {counts.name: counts for counts in state.counts}
        for tally in self._tallies:
            counts = by_name.get(tally.objective.name)
            if counts is not None and counts.definition == tally.objective.definition:
                tally.cells.restore(counts.newest, counts.cells)
                tally.groups.restore(counts.values, counts.lives)
        self._passed_over = set(state.open)


def _counts(tally: _Tally) -> Counts:
    groups = tally.groups
    return Counts(
        name=tally.objective.name,
        definition=tally.objective.definition,
        newest=tally.cells.newest(),
        values=list(groups.values),
        lives=[copy(life) for life in groups.lives],
        cells=tally.cells.copied(len(groups.values)),
    )


def _statuses(tally: _Tally, wall_ns: int) -> list[SloStatus]:
    """Return the status of each group by its number, all requests first."""
    sums = {window: tally.cells.sums(window, wall_ns).tolist() for window in tally.windows}
    statuses = []
    for number, values in enumerate(tally.groups.values):
        of_group = {window: Sum(*found[number]) for window, found in sums.items()}
        statuses.append(_status(tally, number, values, of_group, wall_ns))
    return statuses


def _status(tally: _Tally, number: int, values: Values, sums: dict[int, Sum], wall_ns: int) -> SloStatus:
    objective, life = tally.objective, tally.groups.lives[number]
    burns, period = _burns(tally, number, sums, wall_ns), sums[objective.period_ns]
    counted_ns = min(objective.period_ns, max(0, wall_ns - life.begin_ns)) if life.begin_ns else 0
    left = burn.budget_left(objective, period, counted_ns)
    state = burn.state_of(objective, burns, period, left)
    return SloStatus(
        slo=objective.name,
        description=objective.description,
        metric=objective.metric,
        threshold=objective.threshold,
        threshold_text=objective.threshold_text,
        objective=objective.percent,
        where={name: "|".join(wanted) for name, wanted in objective.where.items()},
        group=dict(zip(objective.group_by, values, strict=True)) if values else {},
        alerts=bool(values) or not objective.group_by,
        state=state,
        severity=burn.severity_of(burns),
        since_wall_ns=_since(tally, number, burns, wall_ns) or None,
        burns=burns,
        period_s=objective.told_s(objective.period_ns),
        bad=period.bad,
        total=period.total,
        good_ratio=1 - period.bad / period.total if period.total else None,
        budget_left=left,
        counted_s=objective.told_s(counted_ns),
        outlooks=burn.outlooks_of(objective, sums, left),
        last_wall_ns=life.seen_ns or None,
    )


def _burns(tally: _Tally, number: int, sums: dict[int, Sum], wall_ns: int) -> tuple[Burn, ...]:
    """Return how the rules stand. What was told by a page that is over is not told again by slower rules, whose windows
    still have it: they are judged by what came after.
    """
    objective, life = tally.objective, tally.groups.lives[number]
    burns = burn.burns_of(objective, sums)
    if any(each.is_firing and each.severity is Severity.PAGE for each in burns):
        life.paged_ns = wall_ns
    elif not any(each.is_firing for each in burns):
        life.paged_ns = 0
    elif life.paged_ns:
        times, counts = tally.cells.series(number, max(1, wall_ns - life.paged_ns), wall_ns)
        after = Sum(*map(int, counts[times > life.paged_ns].sum(axis=0)))
        return burn.without_told(objective, burns, after)
    return burns


def _since(tally: _Tally, number: int, burns: Sequence[Burn], wall_ns: int) -> int:
    """Return about when a burn began, the same as long as it goes on; 0 when no rule fires."""
    life, rules = tally.groups.lives[number], tally.objective.rules
    firing = [rule.long_ns for rule, each in zip(rules, burns, strict=True) if each.is_firing]
    if not firing:
        life.since_ns = 0
    elif not life.since_ns:
        times, counts = tally.cells.series(number, min(firing), wall_ns)
        life.since_ns = burn.onset_ns(times, counts, tally.objective.budget_ratio)
    return life.since_ns


def _badness(status: SloStatus) -> tuple[int, float, str]:
    """Order groups: the worst state first, then what burns fastest or has the least budget left."""
    left = 1.0 if status.budget_left is None else status.budget_left
    return _STATES[status.state], left, "\x1f".join(status.group.values())
