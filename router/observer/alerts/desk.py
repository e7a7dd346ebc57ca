"""Where findings become alerts: asks everybody who has some, keeps the ledger, has evidence collected, and tells.

Each evaluation, every ten seconds of the configuration's time::

    sources   objectives, regressions, what must be up      findings; what is explained by another is left out
    ledger    which of them are alerts, new or over         :mod:`router.observer.alerts.ledger`
    explain   evidence for what fires                       :mod:`router.observer.alerts.evidence`
    tell      to the sinks, on disk before it is saved that it was told

After a restart some of what fired cannot be judged at once: it stays for as long as its source needs (``holds_ns``).
What is to be told is given away before the ledger is saved: a kill in between tells it twice, never not at all. A
source that fails keeps its last findings: what cannot be seen just now is not over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from ringbuffer import RingError, find_current
from router.config import Config
from router.observer.alerts.changes import Changes
from router.observer.alerts.courier import SinkState
from router.observer.alerts.inhibit import inhibited
from router.observer.alerts.ledger import Ledger, Step
from router.observer.alerts.ledger_file import LedgerFile
from router.observer.alerts.model import Alert, Cause, Change, Evidence, Finding
from router.observer.alerts.watch import (
    MINUTE_EVALUATIONS,
    SINK_FAILS_EVALUATIONS,
    ObserverSight,
    RouterSight,
    SinkSight,
    Watch,
)
from router.observer.follow import RouterView
from router.observer.prometheus import PREFIX, Reading
from router.observer.rows import RequestRow
from router.telemetry.host_rows import HostModels, read_hosts, read_models

SCHEMA: Final = "ringrouter.alerts/1"
DIRECTORY: Final = "alerts"
EVALUATE_NS: Final = 10_000_000_000
EXPLAIN_AGAIN_NS: Final = 60_000_000_000
"""How old evidence may become while its alert fires: the first is made of the first bad requests only."""
EXPLAINED_AGAIN_MAX: Final = 2
"""Alerts whose evidence is made anew at one evaluation: it takes a moment, and the rings go on."""
EXPLAIN_NS_MAX: Final = 500_000_000
"""No evidence is begun at an evaluation that has spent so long on it: an outage of a hundred groups is a hundred alerts
at once, and what the rings hold is overwritten meanwhile."""

Source = Callable[[int], Sequence[Finding]]
"""Returns the findings of now; takes calendar time."""
Explain = Callable[[Finding, int, Sequence[Change]], Evidence | None]
"""Returns the evidence of a finding, from calendar time and what was changed lately."""


class AlertsPage(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of ``/alerts.json``."""

    schema: str
    wall_ns: int
    evaluated_wall_ns: int | None
    """When it was last looked; ``None`` before the first time."""
    active: list[Alert]
    """The worst, then the oldest first."""
    recent: list[Alert]
    """Those that ended, the newest first."""
    sinks: list[SinkState]
    untold_count: int
    """Findings for which there was no room."""
    problem: str = ""
    """What was not remembered over the last restart, or cannot be over the next one; empty when all is well."""


class Desk:
    """All alerts of an observer. Raises OSError when its directory cannot be made.

    ``sources`` and ``explain`` are set by whoever has them, ``tell`` and ``sinks`` by whoever delivers.
    """

    def __init__(self, config: Config, run_dir: Path, data_dir: Path) -> None:
        scale = config.observer.time_scale
        self.directory = data_dir / DIRECTORY
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.period_ns = round(EVALUATE_NS / scale)
        self.ledger = Ledger(config.observer.alerts.resolve_after, scale)
        self.watch = Watch(self.period_ns)
        self.changes = Changes(self.directory, scale)
        self.sources: dict[str, Source] = {}
        self.holds_ns: dict[Cause, int] = {
            Cause.HOST_DOWN: MINUTE_EVALUATIONS * self.period_ns,
            Cause.SINK_DOWN: (SINK_FAILS_EVALUATIONS + 1) * self.period_ns,
        }
        """How long after a start nothing can be said of these: until then what fired before goes on."""
        self.explain: Explain = lambda _finding, _wall_ns, _changes: None
        self.tell: Callable[[Sequence[Step]], None] = lambda _steps: None
        self.sinks: Callable[[], Sequence[SinkSight]] = tuple
        self.evaluated_wall_ns: int | None = None
        self._run_dir = run_dir
        self._explain_again_ns = round(EXPLAIN_AGAIN_NS / scale)
        self._explained_ns: dict[str, int] = {}
        self._explaining_ns = 0
        """Spent on evidence at this evaluation."""
        self._evaluated_ns: int | None = None
        self._last: dict[str, Sequence[Finding]] = {}
        self._errors: list[Exception] = []
        self._unsaved = ""
        """Why what was seen in the traffic cannot be written."""
        self._file = LedgerFile(self.directory)
        self._file.load(self.ledger)
        self._before = self.ledger.active()
        """What fired when this observer began."""
        self._begun_ns: int | None = None

    def add(self, rows: Sequence[RequestRow], wall_ns: int) -> None:
        """Take finished requests, those of the routers themselves too: their hosts are as real."""
        self.watch.add(rows)
        self.changes.add(rows, wall_ns)

    def is_due(self, now_ns: int) -> bool:
        """Whether an evaluation is due at a monotonic time."""
        return self._evaluated_ns is None or now_ns - self._evaluated_ns >= self.period_ns

    # ------------------------------------------------------------ one evaluation
    def evaluate(self, routers: Sequence[RouterView], observer: ObserverSight, now_ns: int, wall_ns: int) -> None:
        """Look once. What a source or the evidence raised is raised at the end, when all else is done."""
        self._evaluated_ns, self.evaluated_wall_ns = now_ns, wall_ns
        self._explaining_ns = 0

        def watched(wall_ns: int) -> Sequence[Finding]:
            self.changes.read(self._run_dir, [each.instance for each in routers], wall_ns - now_ns)
            return self.watch.findings(self._sights(routers), observer, self.sinks(), wall_ns)

        found = [*self._asked("watch", watched, wall_ns)]
        for name, source in self.sources.items():
            found += self._asked(name, source, wall_ns)
        steps = self.ledger.update([*inhibited(found), *self._held(now_ns)], wall_ns)
        steps = [self._explained(step, wall_ns) for step in steps]
        self._explain_again(wall_ns)
        self.tell(steps)
        self._save()
        errors, self._errors = self._errors, []
        if errors:
            raise errors[0]

    def _asked(self, name: str, source: Source, wall_ns: int) -> Sequence[Finding]:
        try:
            self._last[name] = source(wall_ns)
        except Exception as error:  # whatever it is, the other sources are to be asked
            self._errors.append(error)
        return self._last.get(name, ())

    def _held(self, now_ns: int) -> list[Finding]:
        """Return what fired before the start and cannot be judged yet; a fresh finding of the same comes before it."""
        if self._begun_ns is None:
            self._begun_ns = now_ns
        age_ns = now_ns - self._begun_ns
        findings = (alert.finding for alert in self._before)
        return [each for each in findings if age_ns < self.holds_ns.get(each.cause, 0)]

    def _sights(self, routers: Sequence[RouterView]) -> list[RouterSight]:
        found = []
        for each in routers:
            try:
                generation = find_current(self._run_dir / each.instance)
                hosts, models = read_hosts(generation), read_models(generation)
                has_said_stop = self.changes.has_said_stop(generation)
            except RingError:  # it is going away just now
                hosts, models, has_said_stop = [], HostModels(), each.state != "hung"
            found.append(RouterSight(each.instance, each.state, has_said_stop, hosts, models))
        return found

    def _explained(self, step: Step, wall_ns: int) -> Step:
        if step.event == "resolved":
            self._explained_ns.pop(step.alert.fingerprint, None)
            return step
        if self._explaining_ns >= EXPLAIN_NS_MAX:  # told without; it has its turn at one of the next evaluations
            return step
        return step._replace(alert=self._with_evidence(step.alert, wall_ns))

    def _explain_again(self, wall_ns: int) -> None:
        oldest_first = sorted(self.ledger.active(), key=lambda alert: self._explained_ns.get(alert.fingerprint, 0))
        for alert in oldest_first[:EXPLAINED_AGAIN_MAX]:
            is_old = wall_ns - self._explained_ns.get(alert.fingerprint, 0) >= self._explain_again_ns
            if is_old and self._explaining_ns < EXPLAIN_NS_MAX:
                self._with_evidence(alert, wall_ns)

    def _with_evidence(self, alert: Alert, wall_ns: int) -> Alert:
        self._explained_ns[alert.fingerprint] = wall_ns
        begin_ns = time.monotonic_ns()
        try:
            evidence = self.explain(alert.finding, wall_ns, self.changes.recent(wall_ns))
        except Exception as error:  # an alert without its evidence is better than none
            self._errors.append(error)
            return alert
        finally:
            self._explaining_ns += time.monotonic_ns() - begin_ns
        return alert if evidence is None else self.ledger.explain(alert.fingerprint, evidence)

    # ------------------------------------------------------------ over restarts
    def _save(self) -> None:
        self._file.save(self.ledger)
        try:
            self.changes.save()
            self._unsaved = ""
        except OSError as error:
            self._unsaved = f"{self.directory} cannot be written: {error.strerror or error}"

    @property
    def lost(self) -> str:
        """What was found of the last life and could not be used, and what follows; empty for nothing."""
        return self._file.lost

    @property
    def problem(self) -> str:
        """What cannot be written now, else what was lost at the start; empty when all is well."""
        return self._file.problem or self._unsaved or self._file.lost

    # ------------------------------------------------------------ answers
    def page(self, wall_ns: int, sinks: Iterable[SinkState] = (), fingerprint: str = "") -> AlertsPage:
        """Return what ``/alerts.json`` answers, with ``fingerprint`` only the alerts that have it."""

        def wanted(alerts: Iterable[Alert]) -> list[Alert]:
            return [each for each in alerts if not fingerprint or each.fingerprint == fingerprint]

        return AlertsPage(
            schema=SCHEMA,
            wall_ns=wall_ns,
            evaluated_wall_ns=self.evaluated_wall_ns,
            active=wanted(self.ledger.active()),
            recent=wanted(reversed(self.ledger.recent)),
            sinks=list(sinks),
            untold_count=self.ledger.untold_count,
            problem=self.problem,
        )

    def readings(self) -> Iterator[Reading]:
        """Yield how many alerts fire, for ``/metrics``."""
        counts: dict[tuple[str, str], int] = {}
        for alert in self.ledger.active():
            key = str(alert.finding.cause), str(alert.finding.severity)
            counts[key] = counts.get(key, 0) + 1
        meaning = "Alerts that fire"
        for (cause, severity), count in sorted(counts.items()):
            yield Reading(f"{PREFIX}alerts_active", "gauge", meaning, (("cause", cause), ("severity", severity)), count)
        meaning = "Findings for which there was no room"
        yield Reading(f"{PREFIX}alerts_untold", "counter", meaning, (), self.ledger.untold_count)
