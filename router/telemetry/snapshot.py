"""A copy of what one generation of a router holds in shared memory, of a live router as of a dead one.

Everything is copied at once and only then decoded: the less time passes between the first and the last record read, the
fewer are overwritten meanwhile. How many were, is counted exactly. The router does not notice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from ringbuffer import BroadcastReader, DistinctError, DistinctErrorsReader, Header, Missing, TableReader
from router.telemetry import records as rec
from router.telemetry.reader import Names, resolve, resolve_request, resolve_token

_POLL_MAX: Final = 4096


class RingKind(NamedTuple):
    """How to read the records of one ring; ``time_ns`` is that by which they are selected."""

    file: str
    decode: Callable[[bytes], dict[str, Any]]
    resolve: Callable[[Mapping[str, Any], Names], dict[str, Any]]
    time_ns: Callable[[Mapping[str, Any]], int]


RINGS: Final = {
    "requests": RingKind("requests.ring", rec.decode_request, resolve_request, lambda record: record["recv_ns"]),
    "done": RingKind("done.ring", rec.decode_done, resolve, lambda record: record["stamps"][-1]),
    "tokens": RingKind("tokens.ring", rec.decode_token, resolve_token, lambda record: record["t_ns"]),
}


class RingCopy(msgspec.Struct, frozen=True, kw_only=True):
    """The records of one ring. ``published`` = ``overwritten`` + ``lost_while_reading`` + the number of ``records``.

    ``published`` is as of the beginning of the copy: what a live router writes meanwhile is not waited for.
    """

    published: int
    overwritten: int
    """Gone before the copy began."""
    lost_while_reading: int
    records: list[tuple[int, bytes]]
    """(sequence, payload), oldest first."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The copy. Times are CLOCK_MONOTONIC; ``header`` turns them into calendar time."""

    header: Header
    names: Names
    taken_ns: int
    last_heartbeat_ns: int
    last_sign_ns: int
    """The latest time that anything in the copy tells, the heartbeat included: up to a second after it."""
    rings: dict[str, RingCopy]
    """By the names of :data:`RINGS`, those that were asked for."""
    in_flight: list[bytes]
    """Payloads of the in-flight table without those that ``done`` has."""
    torn_count: int
    """Rows of the in-flight table that the router was writing when it was stopped."""
    errors: list[DistinctError]

    def decoded(self, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (sequence, record) of a ring, ids not resolved."""
        decode = RINGS[what].decode
        return ((sequence, decode(payload)) for sequence, payload in self.rings[what].records)

    def in_flight_decoded(self) -> Iterator[dict[str, Any]]:
        """Yield the requests in flight, ids not resolved."""
        return (rec.decode_done(payload) for payload in self.in_flight)


def take(directory: Path, whats: frozenset[str]) -> Snapshot:
    """Copy ``directory``, a generation: the rings in ``whats``, ``inflight`` and ``errors``.

    Raises :class:`ringbuffer.RingError` when one of them is not there or of another version.
    """
    names = Names(directory)
    # A request is in flight until its done record is written: read in this order, none is in neither.
    in_flight, torn_count = _in_flight(directory) if "inflight" in whats else ([], 0)
    rings = {what: _copy(directory / kind.file) for what, kind in RINGS.items() if what in whats}
    if "done" in rings:
        finished = {_request_seq(payload) for _, payload in rings["done"].records}
        in_flight = [payload for payload in in_flight if _request_seq(payload) not in finished]
    done_ring = BroadcastReader.attach(directory / RINGS["done"].file, record_schema=rec.RECORD_SCHEMA)
    last_heartbeat_ns = done_ring.segment.heartbeat_ns
    return Snapshot(
        header=done_ring.header,
        names=names,
        taken_ns=time.monotonic_ns(),
        last_heartbeat_ns=last_heartbeat_ns,
        last_sign_ns=max([last_heartbeat_ns, *_latest(rings), *map(_latest_stamp, in_flight)]),
        rings=rings,
        in_flight=in_flight,
        torn_count=torn_count,
        errors=_errors(directory) if "errors" in whats else [],
    )


def _copy(path: Path) -> RingCopy:
    ring = BroadcastReader.attach(path, "oldest", record_schema=rec.RECORD_SCHEMA)
    first, end = ring.position, ring.position + ring.lag
    records: list[tuple[int, bytes]] = []
    while ring.position < end:
        records += ring.poll(min(_POLL_MAX, end - ring.position))
    while records and records[-1][0] >= end:  # it was overtaken, and went on behind the end
        records.pop()
    ring.close()
    return RingCopy(published=end, overwritten=first, lost_while_reading=end - first - len(records), records=records)


def _in_flight(directory: Path) -> tuple[list[bytes], int]:
    table = TableReader.attach(directory / "inflight.tab", record_schema=rec.RECORD_SCHEMA)
    payloads = [payload for _, payload in table.rows()]
    table.close()
    return payloads, table.torn_count


def _errors(directory: Path) -> list[DistinctError]:
    try:
        log = DistinctErrorsReader.attach(directory / "errors")
    except Missing:
        return []  # of a router that kept none yet
    errors = log.read()
    log.close()
    return errors


def _latest(rings: Mapping[str, RingCopy]) -> Iterator[int]:
    """Yield the time of each ring's last record."""
    for what, ring in rings.items():
        if ring.records:
            yield RINGS[what].time_ns(RINGS[what].decode(ring.records[-1][1]))


def _latest_stamp(payload: bytes) -> int:
    stamps: tuple[int, ...] = rec.decode_done(payload)["stamps"]
    return max(stamps)


def _request_seq(payload: bytes) -> int:
    return int.from_bytes(payload[:8], "little")
