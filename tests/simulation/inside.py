"""What the checks must look up inside the router: the only place that names its inner parts beside the world itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from router.hosts.host import Host
    from router.request import Request

STALE_RETRIES_MAX: Final = 2


def queue_of(host: Host) -> list[Any]:
    """Return the attempts that wait for a connection to a host."""
    return host.queue


def deadlines(request: Request) -> list[tuple[int, str]]:
    """Return by when a waiting request must have its first token, if it said so."""
    return [(request.deadline_ns, "deadline")] if request.deadline_ns and not request.serves_late else []


def may_go(request: Request, host: Host) -> bool:
    """Return whether a host could take a waiting request: one that has not failed it, unless all have."""
    if (request.path and request.path not in host.facts.paths) or (request.pin and request.pin != host.host_id):
        return False
    return host.host_id not in request.tried
