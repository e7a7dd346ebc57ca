"""The default policy in one step, for the usual request: which host it goes to, and what is to be told of the choice.

The same as :func:`router.routing.choose` and :func:`router.routing.explain` of candidates that are made for them, which
are what judges the native code here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from router import native
from router.config import HostConfig
from router.hosts.host import Host
from router.routing import NO_HOST, Candidate, choose, explain
from router.telemetry.decision import pack_verdicts


def plain_pick(hosts: Sequence[Host], turn: int) -> tuple[int, bytes]:
    """Return the index of the host that gets a request which no host has failed, and its verdicts as records have them.

    :data:`router.routing.NO_HOST` and nothing where no host can take it. ``turn`` breaks ties.
    """
    candidates: list[Candidate] = [(h.host_id, h.running + len(h.draining), h.slots, h.usable, False) for h in hosts]
    chosen = choose(candidates, turn)
    if chosen == NO_HOST:
        return NO_HOST, b""
    bars = {h.host_id: h.bar for h in hosts}
    return chosen, pack_verdicts(explain(candidates, chosen), bars)


def _probe() -> Host:
    return Host(HostConfig(name="probe", url="http://127.0.0.1:1"), 0, 0)


pick: Final[Callable[[Sequence[Host], int], tuple[int, bytes]]] = (
    plain_pick if native.steps is None else native.steps.Picker(_probe()).pick
)
"""As :func:`plain_pick`, in one call where there is native code."""
