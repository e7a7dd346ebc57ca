"""Findings about what must be up: hosts, routers, the observer's own eyes, and the sinks of alerts; pure.

A host is down when every living router that has it keeps requests from it because its probes fail or its breaker is
open (``hosts.tab``), or when all its answers of the last minute failed by its own fault. It wakes somebody when no
other host serves, or a model has no host left at a router (``models.json``). A router is down when it died without
having said that it stops, or lives and makes no progress.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from router.errors import ErrorKind
from router.observer.alerts.model import Cause, Finding, Severity
from router.observer.rows import RequestRow
from router.routing import Reason
from router.telemetry.host_rows import HostModels, HostRow
from router.verdicts import blames_host

MINUTE_EVALUATIONS: Final = 6
"""Evaluations that make a minute: as long a host must fail altogether to be down by its answers."""
FAILED_MIN: Final = 5
"""Fewer failed answers say nothing of a host."""
LOST_FOR_EVALUATIONS: Final = 60
"""How long a loss is told: the numbers of the last ten minutes are not complete."""
SINK_FAILS_EVALUATIONS: Final = 6
MODELS_NAMED_MAX: Final = 5
"""Models without a host that a sentence names; of more it says how many."""
_DRAINING: Final = int(Reason.DRAINING)
_BARS: Final = {int(Reason.UNHEALTHY): "its probes fail", int(Reason.BREAKER_OPEN): "its breaker is open"}
_BY_WORD: Final = {kind.name.lower(): kind for kind in ErrorKind}


class RouterSight(NamedTuple):
    """One router at an evaluation."""

    instance: str
    state: str
    """As :class:`router.observer.follow.RouterView` has it."""
    has_said_stop: bool
    """It ended because it was told to."""
    hosts: Sequence[HostRow]
    models: HostModels = HostModels()


class ObserverSight(NamedTuple):
    """What the observer has missed since its start, and whether it can write now."""

    lost_request_count: int
    lost_event_count: int
    dropped_row_count: int
    journal: str
    """``on``, ``off``, or what is wrong."""
    ledger: str = ""
    """What of the alerts of the last life is not known; empty for nothing."""


class SinkSight(NamedTuple):
    """One sink: since when it fails (``None``: it does not), and what was dropped since the start."""

    name: str
    failing_since_wall_ns: int | None
    error: str
    dropped_count: int
    spooled_count: int


class Watch:
    """Tells what is down; :meth:`findings` once per evaluation, :meth:`add` with all rows in between."""

    def __init__(self, period_ns: int) -> None:
        self._period_ns = period_ns
        self._answers: dict[str, deque[list[int]]] = {}
        """Of each host, by evaluation: answers that went well, and failures that the host is to blame for."""
        self._since: dict[tuple[str, str], int] = {}
        self._losses: dict[str, tuple[int, int]] = {}
        """Of each thing that can be lost: the last count, and the evaluations that it is still told."""

    def add(self, rows: Iterable[RequestRow]) -> None:
        """Count the answers of hosts."""
        for row in rows:
            for attempt in row.attempts:
                if attempt.outcome == "ok" and row.outcome == "ok":
                    self._of(attempt.host)[0] += 1
                elif attempt.outcome == "failed" and _is_hosts_fault(attempt.error, attempt.status):
                    self._of(attempt.host)[1] += 1

    def _of(self, host: str) -> list[int]:
        counts = self._answers.get(host)
        if counts is None:
            counts = self._answers[host] = deque([[0, 0]], MINUTE_EVALUATIONS)
        return counts[-1]

    def findings(
        self, routers: Sequence[RouterSight], observer: ObserverSight, sinks: Sequence[SinkSight], wall_ns: int
    ) -> list[Finding]:
        """Return what is down now."""
        found = [
            *self._hosts(routers, wall_ns),
            *self._routers(routers, wall_ns),
            *self._losses_of(observer, wall_ns),
            *self._sinks(sinks, wall_ns),
        ]
        for counts in self._answers.values():
            counts.append([0, 0])
        self._answers = {host: counts for host, counts in self._answers.items() if any(map(any, counts))}
        seen = {(str(finding.cause), next(iter(finding.labels.values()), "")) for finding in found}
        self._since = {key: since for key, since in self._since.items() if key in seen}
        return found

    # ------------------------------------------------------------ hosts
    def _hosts(self, routers: Sequence[RouterSight], wall_ns: int) -> Iterator[Finding]:
        living = [router for router in routers if router.state == "alive"]
        rows = [(router.instance, row) for router in living for row in router.hosts if not row.is_removed]
        names = dict.fromkeys(row.name for _, row in rows)
        down = {name: said for name in names if (said := self._why_down(name, rows))}
        drained = {name for name in names if all(row.bar == _DRAINING for _, row in rows if row.name == name)}
        others = [name for name in names if name not in down and name not in drained]
        unserved = _unserved(living, {*down, *drained})
        for name, said in down.items():
            usable = f"{len(others)} of {len(names)} hosts still serve" if others else "no other host serves"
            models = sorted(model for model, hosts in unserved.items() if name in hosts)
            if models:
                usable += f"; {_without_host(models)}"
            yield self._finding(
                Cause.HOST_DOWN,
                Severity.PAGE if models or not others else Severity.TICKET,
                {"host": name},
                f"host {name} is down: {said[0]}; {usable}",
                wall_ns,
                where={"host": name},
                facts=tuple(said[1:]),
            )

    def _why_down(self, name: str, rows: Sequence[tuple[str, HostRow]]) -> list[str]:
        """Return why a host is down, in sentences; nothing for one that is not."""
        of_host = [(instance, row) for instance, row in rows if row.name == name]
        if all(row.bar in _BARS for _, row in of_host):
            return [f"{_BARS[row.bar]} ({row.text}), says router {instance}" for instance, row in of_host]
        counts = self._answers.get(name, ())
        ok_count, failed_count = sum(ok for ok, _ in counts), sum(failed for _, failed in counts)
        if ok_count or failed_count < FAILED_MIN:
            return []
        return [f"all {failed_count} answers of the last minute failed"]

    # ------------------------------------------------------------ routers
    def _routers(self, routers: Sequence[RouterSight], wall_ns: int) -> Iterator[Finding]:
        for router in routers:
            if router.state == "hung":
                said = f"router {router.instance} is hung: it lives and makes no progress"
            elif router.state == "dead" and not router.has_said_stop:
                said = f"router {router.instance} is dead: it ended without having been told to"
            else:
                continue
            yield self._finding(Cause.ROUTER_DOWN, Severity.PAGE, {"router": router.instance}, said, wall_ns)

    # ------------------------------------------------------------ the observer and its sinks
    def _losses_of(self, observer: ObserverSight, wall_ns: int) -> Iterator[Finding]:
        lost = (
            ("requests", observer.lost_request_count, "requests were overwritten before they were read"),
            ("events", observer.lost_event_count, "token events were overwritten before they were read"),
            ("rows", observer.dropped_row_count, "rows of the journal were given up"),
        )
        for what, count, words in lost:
            if self._is_told(what, count):
                said = f"the observer does not see everything: {count:,} {words} since its start"
                yield self._finding(Cause.LOSSY, Severity.TICKET, {"what": what}, said, wall_ns)
        if self._is_told("alerts", int(bool(observer.ledger))):
            said = f"the observer does not know what fired before its start: {observer.ledger}"
            yield self._finding(Cause.LOSSY, Severity.TICKET, {"what": "alerts"}, said, wall_ns)
        if observer.journal not in {"on", "off"}:
            said = f"the journal cannot be written: {observer.journal}"
            yield self._finding(Cause.LOSSY, Severity.TICKET, {"what": "journal"}, said, wall_ns)

    def _is_told(self, what: str, count: int) -> bool:
        """Take how often something was lost since the start; return whether it was lately."""
        known, left = self._losses.get(what, (0, 0))
        left = LOST_FOR_EVALUATIONS if count > known else max(0, left - 1)
        self._losses[what] = count, left
        return left > 0

    def _sinks(self, sinks: Sequence[SinkSight], wall_ns: int) -> Iterator[Finding]:
        for sink in sinks:
            since_ns = sink.failing_since_wall_ns
            if since_ns is None or wall_ns - since_ns < SINK_FAILS_EVALUATIONS * self._period_ns:
                continue
            said = f"alerts cannot be delivered to {sink.name}: {sink.error}; {sink.spooled_count:,} wait"
            if sink.dropped_count:
                said += f", {sink.dropped_count:,} were dropped"
            yield self._finding(Cause.SINK_DOWN, Severity.TICKET, {"sink": sink.name}, said, wall_ns)

    def _finding(
        self,
        cause: Cause,
        severity: Severity,
        labels: dict[str, str],
        summary: str,
        wall_ns: int,
        *,
        where: dict[str, str] | None = None,
        facts: tuple[str, ...] = (),
    ) -> Finding:
        since_ns = self._since.setdefault((str(cause), next(iter(labels.values()))), wall_ns)
        return Finding(
            cause=cause,
            severity=severity,
            labels=labels,
            summary=summary,
            since_wall_ns=since_ns,
            where=where or {},
            facts=facts,
        )


def _unserved(routers: Iterable[RouterSight], away: Collection[str]) -> dict[str, set[str]]:
    """Return the models that some router has no host for that is not ``away``, each with the hosts that it had."""
    found: dict[str, set[str]] = {}
    for router in routers:
        untold = {host for host, models in router.models.hosts.items() if not models}
        hosts_of: dict[str, set[str]] = {model: set() for model in router.models.configured}
        for host, models in router.models.hosts.items():
            for model in models:
                hosts_of.setdefault(model, set()).add(host)
        for model, hosts in hosts_of.items():
            could = hosts or untold  # what no host has is at one that has not told what it has, if anywhere
            if could and could.issubset(away):
                found.setdefault(model, set()).update(could)
    return found


def _without_host(models: Sequence[str]) -> str:
    named = ", ".join(models[:MODELS_NAMED_MAX])
    if len(models) == 1:
        return f"model {named} has no host left"
    more = f" and {len(models) - MODELS_NAMED_MAX} more" if len(models) > MODELS_NAMED_MAX else ""
    return f"models {named}{more} have no host left"


def _is_hosts_fault(error: str, status: int) -> bool:
    kind = _BY_WORD.get(error)
    return kind is not None and (kind == ErrorKind.CONNECT_FAILED or blames_host(kind, status))
