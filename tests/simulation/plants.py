"""Bugs that are planted into the router, by name: each is of a kind that users of routers have met.

Each is a context manager that changes the running code and puts it back. What is changed must be there, so that a plant
cannot grow over when the router changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

from msgspec.structs import replace

from router import loop as loop_module
from router.attempt import Attempt
from router.clients import Clients
from router.dialects import Failure
from router.errors import ConfigError, ErrorKind
from router.hosts import connection
from router.hosts.connection import HostConnection
from router.hosts.fleet import Fleet
from router.hosts.host import Host
from router.http1 import LAST_CHUNK
from router.ingress.http import ClientConnection
from router.loop import Loop
from router.recovery import Recovery
from router.request import Request
from router.roster import Roster
from router.telemetry.counters import Counter
from router.telemetry.records import Outcome
from router.telemetry.writer import Telemetry
from router.watch import Watch

_FAR_NS: Final = 1 << 62
Plant = Callable[[], AbstractContextManager[None]]


@contextmanager
def planted(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Put what ``make`` makes of an attribute in its place."""
    original = vars(owner)[name]
    setattr(owner, name, make(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


def _plant(owner: Any, name: str, make: Callable[[Any], Any]) -> Plant:
    return lambda: planted(owner, name, make)


def _plant_candidates(make: Callable[[Any], Any]) -> Plant:
    """Plant into what is seen of hosts, with every request decided about by that."""

    @contextmanager
    def both() -> Iterator[None]:
        with planted(Loop, "_candidates", make), planted(Loop, "place", lambda _: vars(Loop)["_admit"]):
            yield

    return both


def _nothing(_: Any) -> Any:
    return lambda *_args, **_named: None


def _slot_kept(_: Any) -> Any:
    return lambda loop, host, now: loop.pump(host, now)


def _slot_released_twice(release: Any) -> Any:
    def released(loop: Loop, host: Host, now: int) -> None:
        host.running -= 1
        release(loop, host, now)

    return released


def _one_slot_more(candidates: Any) -> Any:
    def more(loop: Loop, request: Request) -> Any:
        return [(h, busy - 1, slots, usable, tried) for h, busy, slots, usable, tried in candidates(loop, request)]

    return more


def _every_host_usable(candidates: Any) -> Any:
    def usable(loop: Loop, request: Request) -> Any:
        return [(h, busy, slots, True, tried) for h, busy, slots, _, tried in candidates(loop, request)]

    return usable


def _no_cancel(_: Any) -> Any:
    def kill(host_connection: HostConnection) -> None:
        host_connection.attempt = None
        host_connection.take = lambda data, now: None

    return kill


def _cancel_later(_: Any) -> Any:
    return lambda transport: transport.abort()


def _answered_twice(fail: Any) -> Any:
    def twice(client: ClientConnection, *args: Any) -> None:
        fail(client, *args)
        fail(client, *args)

    return twice


def _clean_cut(_: Any) -> Any:
    def cut(client: ClientConnection, request: Request, failure: Failure) -> None:
        client._close_after = True
        client._write_counted(LAST_CHUNK if client.raw else b"")

    return cut


def _silent_cut(_: Any) -> Any:
    def cut(client: ClientConnection, request: Request, failure: Failure) -> None:
        client._close_after = True

    return cut


def _without(kind: ErrorKind) -> Callable[[Any], Any]:
    """Forget one of the time-outs of phases."""

    def make(original: Any) -> Any:
        def deadline(request: Request) -> tuple[int, ErrorKind]:
            due: tuple[int, ErrorKind] = original.__func__(request)
            return due if due[1] != kind else (_FAR_NS, kind)

        return staticmethod(deadline)

    return make


def _no_total(check: Any) -> Any:
    def without(watch: Watch, request: Request, now: int) -> None:
        model = request.model
        total_ns, model.total_ns = model.total_ns, _FAR_NS
        try:
            check(watch, request, now)
        finally:
            model.total_ns = total_ns

    return without


def _miscount(leave: Any) -> Any:
    def left(loop: Loop, request: Request) -> None:
        before = loop.waiting_count
        leave(loop, request)
        loop.waiting_count = before

    return left


def _lost_record(done: Any) -> Any:
    def lost(telemetry: Telemetry, request: Request) -> None:
        if request.outcome == Outcome.CLIENT_GONE:
            telemetry.inflight.clear(request.row)
            telemetry.free_rows.append(request.row)
        else:
            done(telemetry, request)

    return lost


def _lost_row(done: Any) -> Any:
    def lost(telemetry: Telemetry, request: Request) -> None:
        done(telemetry, request)
        if request.outcome == Outcome.TIMEOUT:
            telemetry.free_rows.pop()

    return lost


def _uncounted(counters: Any) -> Any:
    """Those whose clients left are counted as something else."""
    return [Counter.HEARTBEATS if counter == Counter.CLIENTS_GONE else counter for counter in counters]


def _backdated(start: Any) -> Any:
    def started(attempt: Attempt, host_connection: HostConnection, data: bytes, now: int) -> None:
        start(attempt, host_connection, data, now)
        attempt.request.conn_ns = now - 5_000_000

    return started


def _more_attempts(make: Any) -> Any:
    def made(loop: Loop, config: Any, *args: Any) -> None:
        make(loop, config, *args)
        loop.limits = replace(config.limits, attempts=4)

    return made


def _broken_callback(end: Any) -> Any:
    def broken(loop: Loop, request: Request, now: int) -> None:
        if request.content_count == 6:
            raise ZeroDivisionError
        end(loop, request, now)

    return broken


def _lost_behind_fallback(run: Any) -> Any:
    """Take it for started although all free hosts have failed it before, as another model's."""

    def ran(loop: Loop, request: Request, now: int, candidates: Any = None) -> bool:
        return bool(run(loop, request, now, candidates)) or candidates is not None

    return ran


def _checked_too_late(add: Any) -> Any:
    """Find out that a host cannot be added when others have been changed already."""

    def added(roster: Roster, settings: Any, host_id: int, index: int) -> None:
        raise ConfigError(f"hosts[{index}]: more names than there is room for")

    return added


def _another_host_of_another_kind(change: Any) -> Any:
    """Let a host drain whose kind has changed, and begin with another one in its place."""

    def changed(roster: Roster, host: Host, settings: Any, index: int, now: int) -> None:
        if settings.kind == host.config.kind:
            change(roster, host, settings, index, now)
        else:
            roster._remove(host, now)
            roster._add(settings, host.host_id, index)

    return changed


PLANTS: Final[dict[str, Plant]] = {
    "a slot is not released": _plant(Loop, "release_slot", _slot_kept),
    "a slot is released twice": _plant(Loop, "release_slot", _slot_released_twice),
    "a host gets one request too many": _plant_candidates(_one_slot_more),
    "draining slots are not counted": _plant(Host, "drain_slot", _nothing),
    "a barred host gets requests": _plant_candidates(_every_host_usable),
    "nobody wakes those who wait": _plant(Loop, "pump", _nothing),
    "who waits for a host that is barred is forgotten": _plant(Recovery, "_release", _nothing),
    "hosts are not cancelled": _plant(HostConnection, "kill", _no_cancel),
    "hosts are cancelled a turn later": _plant(connection, "shut_down", _cancel_later),
    "a request is answered twice": _plant(ClientConnection, "fail", _answered_twice),
    "a broken stream ends in order": _plant(ClientConnection, "break_stream", _clean_cut),
    "a broken stream ends without a word": _plant(ClientConnection, "break_stream", _silent_cut),
    "a stream is retried behind its first token": _plant(Attempt, "live", lambda _: property(lambda _attempt: False)),
    "queue_s is forgotten": _plant(Watch, "_phase_deadline", _without(ErrorKind.QUEUE_TIMEOUT)),
    "connect_s is forgotten": _plant(Watch, "_phase_deadline", _without(ErrorKind.CONNECT_TIMEOUT)),
    "first_token_s is forgotten": _plant(Watch, "_phase_deadline", _without(ErrorKind.FIRST_TOKEN_TIMEOUT)),
    "idle_s is forgotten": _plant(Watch, "_phase_deadline", _without(ErrorKind.IDLE_TIMEOUT)),
    "a deadline is forgotten": _plant(Watch, "_phase_deadline", _without(ErrorKind.DEADLINE_EXCEEDED)),
    "total_s is forgotten": _plant(Watch, "_check", _no_total),
    "a client that stalls is kept": _plant(Watch, "_check_blocked", lambda _: lambda _watch, _request, _now: False),
    "a host is read on for a slow client": _plant(Clients, "pause_host", _nothing),
    "who waits is miscounted": _plant(Loop, "leave_waiting", _miscount),
    "a record is lost": _plant(Telemetry, "done", _lost_record),
    "a row is not given back": _plant(Telemetry, "done", _lost_row),
    "an outcome is not counted": _plant(loop_module, "_OUTCOME_COUNTERS", _uncounted),
    "an attempt waits on for its connection": _plant(Fleet, "withdraw", _nothing),
    "a stamp runs backwards": _plant(Attempt, "start", _backdated),
    "limits.attempts does not hold": _plant(Loop, "__init__", _more_attempts),
    "a request is lost behind a fallback": _plant(Loop, "_run", _lost_behind_fallback),
    "a reload stops half-way": _plant(Roster, "_add", _checked_too_late),
    "a part of a reload is left out": _plant(Roster, "_change_models", _nothing),
    "a host of another kind has slots of its own": _plant(Roster, "_change_host", _another_host_of_another_kind),
    "a callback raises": _plant(Loop, "end_ok", _broken_callback),
}
