"""The usual request from the ring to its host in one native call, with what that needs of a loop.

The same as :meth:`router.loop.Loop.submit` with all that it calls, which are what judges the native code, and what is
used without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET

from router import native, outbound
from router.config import HostConfig
from router.hosts.connection import HostConnection
from router.hosts.host import Host
from router.hosts.spares import SpareTarget
from router.mould import mould
from router.picking import pick
from router.request import NO_TERMS, Request, new_request
from router.telemetry.records import TEXT_BYTES, Kind, Phase
from router.telemetry.writer import row_packer

if TYPE_CHECKING:
    from router.attempt import Attempt
    from router.loop import Loop

DRAIN_MAX: Final = 64
"""Requests taken off the ring in one turn."""
_dispatch: Final = native.dispatch and native.dispatch.Dispatch


def dispatcher(
    loop: Loop, published: dict[int, Request], make_attempt: Callable[[], Attempt]
) -> Callable[[Request, int, int, int], None] | None:
    """Return a function for the loop's ``submit``; ``None`` where there is no native code for this machine.

    ``published`` are the requests that are not yet taken off the ring; ``make_attempt`` makes an attempt that is
    nobody's yet. The loop's ``take`` of now is what the native code stands in for: it looks whether that is still what
    takes each request.
    """
    if _dispatch is None:
        return None
    telemetry = loop.telemetry
    parts = (
        loop, loop.take, loop.submit, loop.in_flight, published,
        telemetry, telemetry.free_rows, telemetry.requests.try_publish, telemetry.loop_reader.poll,
        telemetry.loop_reader.release, telemetry.inflight.write, row_packer.pack,
        pick, mould(make_attempt), NO_TERMS, Phase.CONNECTING, Phase.PREFILL, Phase.DONE, UNSET,
    )  # fmt: skip
    constants = (
        int(Kind.OPEN), int(Kind.DISPATCHED), outbound.USAGE_ADDED, DRAIN_MAX, TEXT_BYTES, outbound.USAGE_FIELD_BEFORE,
    )  # fmt: skip
    try:
        submit: Callable[[Request, int, int, int], None] = _dispatch(parts, _probes(make_attempt()), constants).submit
    except NotImplementedError:  # objects do not lie in memory as it expects
        return None
    return submit


def _probes(attempt: Attempt) -> tuple[object, ...]:
    """Return an object of each class whose slots are reached natively, nobody else's."""
    nothing: Any = None
    host = Host(HostConfig(name="probe", url="http://127.0.0.1:1"), 0, 0)
    return new_request(), attempt, host, HostConnection(nothing, host), SpareTarget()
