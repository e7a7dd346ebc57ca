"""The life of alerts: from findings, seen or not seen at each evaluation, to what is to be told; pure.

::

    finding seen ──► pending ──seen again──► firing ──not seen resolve_after times──► resolved
                        └──not seen──► forgotten            └──worse──► escalated, still firing

A finding is told when it is seen at two evaluations in a row: what is true for a moment only wakes nobody. Findings
with one fingerprint are one alert. While it fires its severity only rises. An alert that comes back soon after it was
resolved must stay away twice as long the next time, and so on: what flaps is one long alert.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from router.observer.alerts.model import Alert, Evidence, Finding, Severity

SCHEMA: Final = "ringrouter.alert-ledger/1"
SEEN_TO_FIRE: Final = 2
ACTIVE_MAX: Final = 500
"""Alerts at once; further findings are counted and not told. Whoever has so many has one problem, not 501."""
RECENT_MAX: Final = 100
FLAP_NS: Final = 3_600_000_000_000
"""An alert that comes back within an hour flaps."""
FLAP_DOUBLINGS_MAX: Final = 5

Event = Literal["firing", "escalated", "resolved"]
_RANK: Final = {Severity.INFO: 0, Severity.TICKET: 1, Severity.PAGE: 2}


class Step(NamedTuple):
    """Something to be told. Of ``escalated`` the alert has the new severity, ``before`` the one it had."""

    event: Event
    alert: Alert
    before: Severity | None = None


class _Entry(msgspec.Struct):
    """A finding that is watched; ``alert`` once it fires."""

    finding: Finding
    seen_count: int = 1
    quiet_count: int = 0
    flap_count: Annotated[int, msgspec.Meta(ge=0, le=FLAP_DOUBLINGS_MAX)] = 0
    alert: Alert | None = None


class _File(msgspec.Struct):
    schema: str
    entries: dict[str, _Entry]
    recent: list[Alert]
    flaps: dict[str, int]


def fingerprint(finding: Finding) -> str:
    """Return what names the thing that a finding is about: 16 hexadecimal digits."""
    parts = [str(finding.cause), *(f"{name}\x1f{value}" for name, value in sorted(finding.labels.items()))]
    return hashlib.blake2b("\x1e".join(parts).encode(), digest_size=8).hexdigest()


class Ledger:
    """All alerts that fire, the last :data:`RECENT_MAX` that ended, and what may become one.

    ``time_scale`` divides the time in which an alert counts as flapping, as it does all other times of alerts.
    """

    def __init__(self, resolve_after: int, time_scale: float = 1.0) -> None:
        self._resolve_after = resolve_after
        self._flap_ns = round(FLAP_NS / time_scale)
        self._entries: dict[str, _Entry] = {}
        self._flaps: dict[str, int] = {}
        """How often an alert that has ended had come back, by fingerprint; only of those in ``recent``."""
        self.recent: list[Alert] = []
        """Those that ended, the newest last."""
        self.untold_count = 0
        """Findings that found no place, at the evaluations so far."""

    def active(self) -> list[Alert]:
        """Return what fires, the worst and then the oldest first."""
        found = [entry.alert for entry in self._entries.values() if entry.alert is not None]
        return sorted(found, key=lambda alert: (-_RANK[alert.finding.severity], alert.starts_wall_ns))

    def update(self, findings: Iterable[Finding], wall_ns: int) -> list[Step]:
        """Take the findings of one evaluation; return what is to be told, resolved alerts last."""
        seen = _merged(findings)
        steps: list[Step] = []
        for key, finding in seen.items():
            step = self._see(key, finding, wall_ns)
            if step is not None:
                steps.append(step)
        for key in [key for key in self._entries if key not in seen]:
            step = self._miss(key, wall_ns)
            if step is not None:
                steps.append(step)
        return steps

    def explain(self, key: str, evidence: Evidence) -> Alert:
        """Give an alert that fires its evidence; return the alert."""
        entry = self._entries[key]
        assert entry.alert is not None, f"{key} does not fire"
        entry.alert = replace(entry.alert, evidence=evidence)
        return entry.alert

    def _see(self, key: str, finding: Finding, wall_ns: int) -> Step | None:
        entry = self._entries.get(key)
        if entry is None:
            if len(self._entries) >= ACTIVE_MAX:
                self.untold_count += 1
                return None
            self._entries[key] = _Entry(finding)
            return None
        entry.seen_count += 1
        entry.quiet_count = 0
        if entry.alert is None:
            return self._fire(key, entry, finding, wall_ns) if entry.seen_count >= SEEN_TO_FIRE else None
        before = entry.alert.finding.severity
        is_worse = _RANK[finding.severity] > _RANK[before]
        entry.finding = finding if is_worse else replace(finding, severity=before)
        entry.alert = replace(entry.alert, finding=entry.finding, updated_wall_ns=wall_ns)
        return Step("escalated", entry.alert, before) if is_worse else None

    def _fire(self, key: str, entry: _Entry, finding: Finding, wall_ns: int) -> Step:
        entry.finding = finding
        entry.flap_count = self._flap_count(key, wall_ns)
        starts_ns = min(finding.since_wall_ns, wall_ns)
        entry.alert = Alert(fingerprint=key, finding=finding, starts_wall_ns=starts_ns, updated_wall_ns=wall_ns)
        return Step("firing", entry.alert)

    def _flap_count(self, key: str, wall_ns: int) -> int:
        ended = next((each for each in reversed(self.recent) if each.fingerprint == key), None)
        if ended is None or ended.ends_wall_ns is None or wall_ns - ended.ends_wall_ns > self._flap_ns:
            return 0
        return min(self._flaps.get(key, 0) + 1, FLAP_DOUBLINGS_MAX)

    def _miss(self, key: str, wall_ns: int) -> Step | None:
        entry = self._entries[key]
        if entry.alert is None:
            del self._entries[key]
            return None
        entry.quiet_count += 1
        if entry.quiet_count < self._resolve_after << entry.flap_count:
            return None
        del self._entries[key]
        ended = replace(entry.alert, updated_wall_ns=wall_ns, ends_wall_ns=wall_ns)
        self.recent = [*self.recent, ended][-RECENT_MAX:]
        self._flaps[key] = entry.flap_count
        kept = {alert.fingerprint for alert in self.recent}
        self._flaps = {known: count for known, count in self._flaps.items() if known in kept}
        return Step("resolved", ended)

    # ------------------------------------------------------------ over restarts
    def dump(self) -> bytes:
        """Return all of it, for :meth:`load`."""
        return msgspec.json.encode(_File(SCHEMA, self._entries, self.recent, self._flaps))

    def load(self, raw: bytes) -> None:
        """Go on from what :meth:`dump` returned; raises ``ValueError`` for anything else."""
        file = msgspec.json.decode(raw, type=_File)  # its errors are ValueErrors
        if file.schema != SCHEMA:
            raise ValueError(f"schema {file.schema!r}, expected {SCHEMA!r}")
        for key, entry in file.entries.items():
            if key != fingerprint(entry.finding) or (entry.alert is not None and entry.alert.fingerprint != key):
                raise ValueError(f"entry {key!r} is not of the finding that it holds")
        self._entries, self.recent, self._flaps = file.entries, file.recent, file.flaps


def _merged(findings: Iterable[Finding]) -> dict[str, Finding]:
    """Return the findings by fingerprint, the worst of each, the worst first."""
    worst_first: Sequence[Finding] = sorted(findings, key=lambda each: -_RANK[each.severity])
    merged: dict[str, Finding] = {}
    for finding in worst_first:
        merged.setdefault(fingerprint(finding), finding)
    return merged
