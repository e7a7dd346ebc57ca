"""What the log says of hosts: that one may get requests again or no more, and that all models are served."""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

from router.routing import Reason

if TYPE_CHECKING:
    from router.hosts.host import Host
    from router.roster import Roster
    from router.telemetry.writer import Telemetry

_BARRED: Final[dict[int, str]] = {
    Reason.BREAKER_OPEN: "breaker open",
    Reason.EJECTED: "left out",
}


class StandingLog:
    """Writes a line for each change of a host's standing, and notes those for the worse among the errors."""

    def __init__(self, log: Any, telemetry: Telemetry, roster: Roster) -> None:
        self._log = log
        self._telemetry = telemetry
        self._roster = roster
        self._was_ready = False

    def changed(self, host: Host) -> None:
        """A host may get requests again, no more, or for another reason not."""
        bar, name, reason = host.bar, host.name, host.last_error
        if not bar:
            self._log.info("host healthy", host=name)
        elif bar == Reason.DRAINING:
            self._log.info("host draining", host=name, running=host.running)
        elif bar == Reason.BREAKER_OPEN:
            self._log.warning("host breaker open", host=name, reason=reason)
        elif bar == Reason.EJECTED:
            self._log.warning("host left out", host=name, reason=reason)
        else:
            self._log.warning("host unhealthy", host=name, reason=reason)
        if bar and bar != Reason.DRAINING:
            self._telemetry.errors.note(f"host {name}: {_BARRED.get(bar, 'unhealthy')}", monotonic_ns())
        if not self._was_ready and self._roster.is_ready():
            self._was_ready = True
            self._log.info("ready", models=sorted(self._roster.loop.models))

    def drained(self, host: Host) -> None:
        """Nothing runs any more at a host that is taken out of service."""
        if host.removed:
            self._log.info("host removed", host=host.name)
        else:
            self._log.info("host drained", host=host.name)
