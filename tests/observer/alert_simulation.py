"""Regressions, burn rates and evidence under simulated traffic: months in which nothing is wrong, and planted causes.

The rows are columns from the start (:mod:`tests.observer.traffic`); what is run on them is the observer's own code.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from router.config import SloConfig
from router.observer.alerts.evidence import evidence
from router.observer.alerts.evidence.history import History
from router.observer.alerts.evidence.judge import judge, values_of
from router.observer.alerts.evidence.recent import Recent
from router.observer.alerts.evidence.regressions import BLOCK_NS, LATE_NS, Regressions
from router.observer.alerts.evidence.slices import mask_of
from router.observer.alerts.evidence.table import Table, Values
from router.observer.alerts.model import Cause, Evidence, Finding, Severity
from router.observer.slo.burn import Sum, burns_of, windows_of
from router.observer.slo.cells import BAD, TOTAL, Cells
from router.observer.slo.objectives import Objective, objectives_of
from tests.observer.traffic import DAY, FEATURES, HOSTS, HOUR, MONDAY_WALL_NS, Plant, S, Traffic

# In a quiet month they are met with room: at most 0.7 % of a feature's requests are bad on the worst days.
SLOS = (
    SloConfig(name="chat", preset="conversational", group_by=["feature_name"]),
    SloConfig(name="up", metric="availability", objective=99.0, group_by=["feature_name"]),
    SloConfig(name="whole", metric="e2e", threshold_ms=15_000, objective=95.0, group_by=["feature_name"]),
)
KINDS = ("host_prefill", "host_decode", "prompt", "tool")
EVALUATE_NS = 60 * S


class World:
    """An observer's memory, and the traffic that it sees."""

    def __init__(self, seed: int, per_s: float, begin_wall_ns: int = MONDAY_WALL_NS) -> None:
        self.recent = Recent()
        self.history = History()
        self.regressions = Regressions(self.recent, self.history, begin_wall_ns)
        self.traffic = Traffic(self.recent.values, seed, per_s, begin_wall_ns)
        self.now_wall_ns = begin_wall_ns

    def jump(self, wall_ns: int) -> None:
        """Pass over a time in which nobody looked."""
        self.now_wall_ns = wall_ns

    def run(self, length_ns: int) -> Iterator[tuple[Table, list[Finding]]]:
        """Let time pass; yields the requests of every five minutes and what has regressed then."""
        for wall_ns, table in self.traffic.blocks(self.now_wall_ns, self.now_wall_ns + length_ns, BLOCK_NS):
            self.recent.add_table(table, wall_ns)
            self.now_wall_ns = wall_ns
            yield table, self.regressions.evaluate(wall_ns + LATE_NS)


class Burns:
    """The rules of objectives, counted in the observer's cells from columns; a group for each feature, one for all."""

    def __init__(self, values: Values, wall_ns: int) -> None:
        self._values = values
        self._objectives: list[Objective] = objectives_of(SLOS)
        self._cells = [Cells(1.0, wall_ns) for _ in self._objectives]
        self._firing: set[tuple[str, int]] = set()
        self.alerts: list[str] = []

    def add(self, table: Table, begin_wall_ns: int, end_wall_ns: int) -> None:
        """Count requests by the minute, and look each minute."""
        at = self._values.dimensions.index("feature_name")
        minutes = (table.end_wall_ns - begin_wall_ns) // EVALUATE_NS
        group_count = self._values.count(at)
        for objective, cells in zip(self._objectives, self._cells, strict=True):
            counts, is_bad = judge(table, objective.metric, objective.threshold)
            keys = minutes * group_count + table.codes[:, at]
            size = int((end_wall_ns - begin_wall_ns) // EVALUATE_NS) * group_count
            totals = np.bincount(keys[counts], minlength=size).reshape(-1, group_count)
            bad = np.bincount(keys[is_bad], minlength=size).reshape(-1, group_count)
            for minute, (of_total, of_bad) in enumerate(zip(totals, bad, strict=True)):
                wall_ns = begin_wall_ns + minute * EVALUATE_NS
                cells.advance(wall_ns)
                cells.add(0, wall_ns, int(of_bad.sum()), int(of_total.sum()))
                for group in np.flatnonzero(of_total).tolist():
                    cells.add(group, wall_ns, int(of_bad[group]), int(of_total[group]))
                self._look(objective, cells, wall_ns + EVALUATE_NS)

    def _look(self, objective: Objective, cells: Cells, wall_ns: int) -> None:
        cells.advance(wall_ns)
        firing: set[tuple[str, int]] = set()
        if self._is_possible(objective, cells, wall_ns):
            sums = {window: cells.sums(window, wall_ns) for window in windows_of(objective)}
            for group in range(len(next(iter(sums.values())))):
                own = {window: Sum(int(found[group][BAD]), int(found[group][TOTAL])) for window, found in sums.items()}
                if any(burn.is_firing for burn in burns_of(objective, own)):
                    firing.add((objective.name, group))
        for name, group in sorted(firing - self._firing):
            self.alerts.append(f"{name} group {group} at {(wall_ns - MONDAY_WALL_NS) / DAY:.3f} d")
        self._firing = {key for key in self._firing if key[0] != objective.name} | firing

    @staticmethod
    def _is_possible(objective: Objective, cells: Cells, wall_ns: int) -> bool:
        """Say whether some short window burns fast enough: both must, so that the long ones need not be summed."""
        for rule in objective.rules:
            short = cells.sums(rule.short_ns, wall_ns)
            if (short[:, BAD] > rule.needed_ratio * short[:, TOTAL]).any():
                return True
        return False


def quiet(seed: int, days: float, per_s: float = 1.0, *, with_burns: bool = True) -> list[str]:
    """Return every alert of a time in which nothing was planted."""
    world = World(seed, per_s)
    burns = Burns(world.recent.values, world.now_wall_ns)
    alerts: list[str] = []
    told: set[str] = set()
    for table, findings in world.run(int(days * DAY)):
        if with_burns:
            burns.add(table, world.now_wall_ns - BLOCK_NS, world.now_wall_ns)
        now = {str(finding.labels) for finding in findings}
        alerts += [f"{labels} at {(world.now_wall_ns - MONDAY_WALL_NS) / DAY:.3f} d" for labels in sorted(now - told)]
        told = now
    return alerts + burns.alerts


class Outcome(NamedTuple):
    """What became of a plant."""

    plant: Plant
    finding: Finding | None
    evidence: Evidence | None
    others: int
    """Findings beside it."""
    after_s: float
    """From the onset until it was found."""

    @property
    def is_right(self) -> bool:
        """Whether the slice and the stage that are named are those that were planted, and nothing else is told."""
        if self.finding is None or self.evidence is None or not self.evidence.slices or not self.evidence.stages:
            return False
        named = self.evidence.slices[0].where
        return (
            self.finding.labels == self.plant.where
            and named == self.plant.where
            and self.evidence.stages[0].stage == self.plant.stage
            and not self.others
        )


def lived(seed: int, days: float = 3.0, per_s: float = 1.0) -> World:
    """Return a world that has a baseline of some days."""
    world = World(seed, per_s)
    for _ in world.run(int(days * DAY)):
        pass
    return world


def random_plant(random: np.random.Generator, kind: str, begin_wall_ns: int) -> Plant:
    """Return a plant of a kind, of any size that is worth telling."""
    if kind.startswith("host"):
        return Plant(kind, str(random.choice(HOSTS)), begin_wall_ns, float(random.uniform(1.7, 3.0)))
    if kind == "tool":
        tools = [each.name for each in FEATURES if each.tool_share]
        return Plant(kind, str(random.choice(tools)), begin_wall_ns, float(random.uniform(1.7, 3.0)))
    name = str(random.choice([each.name for each in FEATURES if each.tokens_in >= 400]))
    return Plant(kind, name, begin_wall_ns, float(random.uniform(2.0, 3.0)), float(random.uniform(0.5, 1.0)))


def planted(world: World, kind: str, seed: int, wait_ns: int = 90 * 60 * S) -> Outcome:
    """Plant something into a copy of a world at some time of the next day, and return which regression is told."""
    world, plant = _with_plant(world, kind, seed)
    for _, findings in world.run(wait_ns):
        if findings:
            told = evidence(findings[0], world.recent, world.now_wall_ns, currency="USD")
            after_s = (world.now_wall_ns - plant.begin_wall_ns) / S
            return Outcome(plant, findings[0], told, len(findings) - 1, after_s)
    return Outcome(plant, None, None, 0, float("inf"))


def breached(world: World, kind: str, seed: int) -> Outcome:
    """Plant something likewise, and return how an objective that burns by it is explained a quarter of an hour later.

    It is about all requests where a host is slow, else about those of the feature, as a group of an objective is. Its
    threshold is what 97 of 100 of these did not exceed before.
    """
    world, plant = _with_plant(world, kind, seed)
    for _ in world.run(20 * 60 * S):
        pass
    metric = {"host_decode": "tpot", "tool": "tool"}.get(kind, "ttft")
    where = {} if kind.startswith("host") else {"feature_name": plant.value}
    before = world.recent.between(0, plant.begin_wall_ns)
    before = before.take(mask_of(before, where, world.recent.values))
    found = Finding(
        cause=Cause.BURN,
        severity=Severity.PAGE,
        labels=plant.where,  # what is asked for; the evidence does not look at labels
        summary="It burns.",
        since_wall_ns=world.now_wall_ns - 300 * S,
        metric=metric,
        threshold=float(np.nanquantile(values_of(before, metric), 0.97)),
        objective=97.0,
        where=where,
    )
    return Outcome(plant, found, evidence(found, world.recent, world.now_wall_ns, currency="USD"), 0, 0.0)


def _with_plant(world: World, kind: str, seed: int) -> tuple[World, Plant]:
    """Return a copy of a world, at some time of its next day and with an hour behind it, in which something begins."""
    world = copy.deepcopy(world)
    random = np.random.default_rng(seed)
    world.traffic.reseed(seed)
    begin = world.now_wall_ns + int(random.integers(0, 12)) * HOUR // 4 + 9 * HOUR
    world.jump(begin - 70 * 60 * S)
    for _ in world.run(70 * 60 * S):
        pass
    plant = random_plant(random, kind, begin + int(random.integers(0, 300)) * S)
    world.traffic.plants.append(plant)
    return world, plant
