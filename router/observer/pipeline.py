"""The observer's parts in the order in which a request passes them; :meth:`Pipeline.turn` takes them round once.

Costs settle a second or more after a row was read, and only then the row is written: until it is on disk the position
in the rings stays before it, so that a killed observer reads it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from router.config import Config, data_dir
from router.observer.aggregate import Aggregate
from router.observer.alerts.desk import Desk
from router.observer.alerts.evidence import Recent, evidence
from router.observer.alerts.evidence.history import History
from router.observer.alerts.evidence.refill import Refill
from router.observer.alerts.evidence.regressions import BLOCK_NS, WINDOW_BLOCKS, Regressions
from router.observer.alerts.model import Cause, Change, Evidence, Finding
from router.observer.alerts.watch import ObserverSight
from router.observer.batch import of_users
from router.observer.catalogue import limits_of
from router.observer.cost import CostMeter
from router.observer.follow import Follower
from router.observer.in_flight import InFlight
from router.observer.journal import Journal
from router.observer.prices import prices_of
from router.observer.prometheus import PREFIX, Reading
from router.observer.rows import RequestRow, RowKey
from router.observer.segments import JOURNAL
from router.observer.slo.accounts import SloAccounts
from router.observer.slo.objectives import boundaries
from router.observer.slo.readings import readings_of
from router.observer.slowest import Slowest
from router.observer.traces.book import TraceBook
from router.observer.traces.sampling import no_breaches
from router.observer.traces.tool_turns import ToolTurns

BEHIND_RECORDS: Final = 4096
"""With more records than this unread the next turn comes at once."""
BASELINE: Final = "baseline"
"""Directory of what slices took in the last days."""
_TICK_NS: Final = 1_000_000_000


class Pipeline:
    """All that happens to a request, without HTTP.

    Raises :class:`router.observer.positions.FollowError` when another observer uses the data directory, and ``OSError``
    when it cannot be used.
    """

    def __init__(self, config: Config, run_dir: Path, wall_ns: int) -> None:
        observer = config.observer
        self.run_dir = run_dir
        self.data_dir = data_dir(config)
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.slice_names = tuple(dict.fromkeys((*observer.slices.tags, *observer.slices.top)))
        """What can be asked for, as ``observer.slices`` has it."""
        self.aggregate = Aggregate(observer.slices, observer.goodput, wall_ns, boundaries(config.slo))
        self.slowest = Slowest()
        self.cost = CostMeter(prices_of(config), [host.name for host in config.hosts])
        durable: dict[RowKey, int] = {}
        self.journal: Journal | None = None
        # It takes the lock of the directory, so it comes before the journal is touched.
        self.follower = Follower(run_dir, self.data_dir, observer.instances or None, durable, self._sealed)
        self.journal = Journal(self.data_dir / JOURNAL, observer.journal) if observer.journal.enabled else None
        if self.journal is not None:
            durable.update(self.journal.durable())
        self._tool_turns = ToolTurns()
        self.slo: SloAccounts | None = None
        if config.slo:
            self.slo = SloAccounts(config, self.data_dir, self.journal.directory if self.journal else None, wall_ns)
        self.traces = TraceBook(config, self.data_dir, self.slo.book.breaches if self.slo else no_breaches)
        self.recent = Recent(observer.slices.tags, limits_of(observer.goodput))
        self.desk = self._desk(config, wall_ns) if observer.alerts.enabled else None
        self._refill: Refill | None = None
        if self.desk is not None and self.journal is not None:
            self._refill = Refill(self.journal.directory, self.recent, wall_ns)
        self._in_flight = InFlight(run_dir, observer.instances)
        self._position_problem = ""
        self._ticked_ns = 0

    def _sealed(self, instance: str, generation: int, done_seq: int) -> Mapping[RowKey, int]:
        return {} if self.journal is None else self.journal.sealed(instance, generation, done_seq)

    # ------------------------------------------------------------ one step
    def turn(self, now_ns: int, wall_ns: int) -> None:
        """Read what is new and take everything one step on. ``now_ns`` is monotonic, ``wall_ns`` since 1970.

        A step that raises takes none of the later ones with it, for the rows of this turn are nowhere else; what it
        raised is raised at the end.
        """
        sightings = self._in_flight.look(now_ns)  # before the rows, so that what is in neither has a row to come
        batch = self.follower.poll(now_ns)
        known = self.follower.take_known()
        with Steps() as steps:
            steps.take(self.follower.raise_fault)
            steps.take(self._tool_turns.pair, batch.rows, known)
            rows, pace = of_users(batch.rows, batch.pace)
            steps.take(self.aggregate.add, rows, pace, wall_ns)
            if self.slo is not None:
                steps.take(self.slo.add, rows, wall_ns)
            steps.take(self.slowest.add, rows, now_ns)
            steps.take(self.cost.add, batch.rows, sightings, now_ns, known)
            steps.take(self._settle, now_ns, wall_ns)
            if self.desk is not None:
                steps.take(self.desk.add, batch.rows, wall_ns)
                if self.desk.is_due(now_ns):
                    steps.take(self._evaluate, self.desk, now_ns, wall_ns)
            if now_ns - self._ticked_ns >= _TICK_NS:
                self._ticked_ns = now_ns
                steps.take(self.aggregate.tick, wall_ns)
                if self.slo is not None:
                    steps.take(self.slo.tick, wall_ns)

    def _desk(self, config: Config, wall_ns: int) -> Desk:
        """Put together where alerts come from and what explains them."""
        currency, scale = config.observer.currency, config.observer.time_scale

        def explain(finding: Finding, wall_ns: int, changes: Sequence[Change]) -> Evidence:
            return evidence(finding, self.recent, wall_ns, changes, currency)

        desk = Desk(config, self.run_dir, self.data_dir)
        if self.slo is not None:
            desk.sources["slo"] = self.slo.findings
        history = History(self.data_dir / BASELINE if scale == 1 else None, scale)
        blind_blocks = WINDOW_BLOCKS if self.journal is None else 1  # the journal has what was before the start
        desk.holds_ns[Cause.REGRESSION] = round(blind_blocks * BLOCK_NS / scale)
        self._regressions = Regressions(self.recent, history, wall_ns, scale)
        desk.sources["regressions"] = self._regressions.evaluate
        desk.explain = explain
        return desk

    def _evaluate(self, desk: Desk, now_ns: int, wall_ns: int) -> None:
        if self._refill is not None:
            self._refill.take(wall_ns)
            if self._refill.is_over:
                self._refill = None
                self._regressions.recall()
        follower = self.follower
        dropped_count = 0 if self.journal is None else self.journal.dropped_count
        sight = ObserverSight(
            lost_request_count=follower.lost_request_count,
            lost_event_count=follower.lost_event_count,
            dropped_row_count=dropped_count,
            journal=self.journal_state,
            ledger=desk.lost,
        )
        desk.evaluate(follower.routers(), sight, now_ns, wall_ns)

    def settle(self, now_ns: int, wall_ns: int) -> None:
        """Take on what has been read, and read no more rows."""
        self.cost.add((), self._in_flight.look(now_ns), now_ns)
        self._settle(now_ns, wall_ns)

    def _settle(self, now_ns: int, wall_ns: int) -> None:
        settled = self.cost.settled(now_ns)
        with Steps() as steps:
            steps.take(self.aggregate.add_costs, of_users(settled)[0], wall_ns)
            if self.desk is not None:
                steps.take(self.recent.add, of_users(settled)[0], wall_ns)
            steps.take(self.traces.add, of_users(settled)[0], wall_ns)
            steps.take(self._write, settled, now_ns, wall_ns)

    def _write(self, settled: Sequence[RequestRow], now_ns: int, wall_ns: int) -> None:
        if self.journal is not None:
            self.journal.append(settled, now_ns)
            settled = self.journal.tick(now_ns, wall_ns)
        self._commit(settled if self.slo is None else self.slo.settle(settled))
        if self.slo is not None:
            self.slo.save_when_due(now_ns, wall_ns)

    def _commit(self, rows: Sequence[RequestRow]) -> None:
        try:
            self.follower.commit(rows)
            self._position_problem = ""
        except OSError as error:  # it is kept and saved with the next ones
            self._position_problem = f"{self.data_dir} cannot be written: {error.strerror or error}"

    def close(self, wall_ns: int) -> None:
        """Write what there is, with what is known of its cost, and let another observer go on."""
        if self._refill is not None:
            self._refill.close()
        rows = self.cost.flush()
        durable: Sequence[RequestRow] = rows
        if self.journal is not None:
            self.journal.append(rows)
            durable = self.journal.close()
        if self.slo is not None:
            durable = self.slo.close(durable, wall_ns)
        self._commit(durable)
        self.follower.close()
        self._in_flight.close()
        self.aggregate.add_costs(of_users(rows)[0], wall_ns)
        self.traces.add(of_users(rows)[0], wall_ns)
        self.traces.close()

    # ------------------------------------------------------------ how it fares
    @property
    def is_behind(self) -> bool:
        """Whether more waits in the rings than comes in a turn."""
        return self.follower.lag_records > BEHIND_RECORDS

    @property
    def journal_state(self) -> str:
        """``on``, ``off``, or what is wrong with the disk."""
        if self.journal is None:
            return self._position_problem or "off"
        return self.journal.problem or self._position_problem or "on"

    def problems(self) -> list[str]:
        """Return what is lost or cannot be done now, one line each."""
        found = [f"router {instance} cannot be read: {why}" for instance, why in self.follower.problems.items()]
        if self.journal_state not in {"on", "off"}:
            found.append(f"journal: {self.journal_state}")
        if self.journal is not None and self.journal.dropped_count:
            found.append(f"journal: {self.journal.dropped_count:,} rows were given up since the start")
        if self.slo is not None and self.slo.problem:
            found.append(f"objectives: {self.slo.problem}")
        if self.follower.lost_request_count:
            found.append(f"{self.follower.lost_request_count:,} requests were overwritten before they were read")
        if self.follower.lost_event_count:
            found.append(f"{self.follower.lost_event_count:,} token events were overwritten before they were read")
        if self.desk is not None and self.desk.problem:
            found.append(f"alerts: {self.desk.problem}")
        return found + self.traces.problems()

    def readings(self) -> Iterator[Reading]:
        """Yield numbers of the observer itself, for ``/metrics``."""
        follower = self.follower
        yield _counter("observed_events", "Token events read", follower.event_count)
        yield _counter(
            "lost_requests", "Finished requests overwritten before they were read", follower.lost_request_count
        )
        yield _counter("lost_events", "Token events overwritten before they were read", follower.lost_event_count)
        yield _gauge("unread_records", "Records in the rings that are not read yet", follower.lag_records)
        yield _gauge("unsettled_requests", "Requests whose cost is not known yet", self.cost.pending_count)
        if self.journal is not None:
            yield _counter("journal_rows", "Rows written to the journal", self.journal.row_count)
            yield _counter("journal_dropped_rows", "Rows that the disk did not take", self.journal.dropped_count)
        yield from self._host_readings()
        if self.slo is not None:
            yield from readings_of(self.slo.latest, self.slo.book.folded_count)
        if self.desk is not None:
            yield from self.desk.readings()
            yield _gauge("evidence_requests", "Requests kept as evidence, of the last two hours", len(self.recent))
            left_out_count = self._regressions.slices.left_out_count
            yield _counter("baseline_left_out", "Times that a slice found no place in the baseline", left_out_count)
        yield from self.traces.readings()

    def _host_readings(self) -> Iterator[Reading]:
        meaning = (
            "Where the hosts' time went: charged to requests, idle, used by requests whose charge is not known, gap"
        )
        for host, time in self.cost.host_times().items():
            for use, ns in (
                ("charged", time.attributed_ns),
                ("idle", time.idle_ns),
                ("lost", time.lost_ns),
                ("gap", time.gap_ns),
            ):
                yield Reading(PREFIX + "host_seconds", "counter", meaning, (("host", host), ("use", use)), ns / 1e9)


class Steps:
    """Takes steps one after the other, also those behind one that raises, and raises the first error at the end; errors
    of later steps are its notes.
    """

    def __init__(self) -> None:
        self._errors: list[Exception] = []

    def take(self, step: Callable[..., None], *args: Any) -> None:
        """Take a step, and keep what it raises."""
        try:
            step(*args)
        except Exception as error:  # whatever it is, the next step is to be taken
            self._errors.append(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._errors:
            first, *later = self._errors
            for error in later:
                first.add_note(f"after it: {error!r}")
            raise first


def _counter(name: str, meaning: str, value: float) -> Reading:
    return Reading(PREFIX + name, "counter", meaning, (), value)


def _gauge(name: str, meaning: str, value: float) -> Reading:
    return Reading(PREFIX + name, "gauge", meaning, (), value)
