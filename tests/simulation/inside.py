"""What the checks must look up inside the router: the only place that names its inner parts beside the world itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from router.hosts.host import Host
    from router.loop import Loop
    from router.request import Request

STALE_RETRIES_MAX: Final = 2
OUT_OF_ORDER: Final[frozenset[tuple[str, str]]] = frozenset()
"""Pairs of stamps of which the first may come before the second."""


def slots_now(host: Host) -> int:
    """Return how many slots of a host may be in use."""
    return host.facts.slot_count


def queue_of(loop: Loop, host: Host) -> list[Any]:
    """Return the attempts that wait for a connection to a host."""
    queue = getattr(host, "queue", None)
    return queue if queue is not None else loop.fleet._queues[host.host_id]  # type: ignore[attr-defined]


def deadlines(request: Request) -> list[tuple[int, str]]:
    """Return by when a waiting request must have its first token, if it said so."""
    deadline = getattr(request, "deadline_ns", 0)
    return [(deadline, "deadline")] if deadline else []
