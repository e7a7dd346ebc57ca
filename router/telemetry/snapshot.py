"""A copy of what one generation of a router holds in shared memory, of a live router as of a dead one.

Everything is copied at once and only then decoded: the less time passes between the first and the last record read, the
fewer are overwritten meanwhile. How many were, is counted exactly. The router does not notice. What cannot be read is
named, and the rest is there all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from ringbuffer import (
    AppendReader,
    BroadcastReader,
    Corrupt,
    CountersReader,
    DistinctError,
    DistinctErrorsReader,
    Header,
    Missing,
    RingError,
    TableReader,
)
from router.telemetry import records as rec
from router.telemetry.reader import Damage, Names, require_slots, resolve, resolve_request, resolve_token

_POLL_MAX: Final = 4096


Read = TypeVar("Read")


class RingKind(NamedTuple):
    """How to read the records of one ring; ``time_ns`` is that by which they are selected."""

    file: str
    slot_bytes: int
    decode: Callable[[bytes], dict[str, Any]]
    resolve: Callable[[Mapping[str, Any], Names], dict[str, Any]]
    time_ns: Callable[[Mapping[str, Any]], int]


RINGS: Final = {
    "requests": RingKind("requests.ring", 64, rec.decode_request, resolve_request, lambda record: record["recv_ns"]),
    "done": RingKind("done.ring", rec.DONE_SLOT_BYTES, rec.decode_done, resolve, lambda record: record["stamps"][-1]),
    "tokens": RingKind(
        "tokens.ring", rec.TOKENS_SLOT_BYTES, rec.decode_token, resolve_token, lambda record: record["t_ns"]
    ),
}
_SEGMENTS: Final[tuple[tuple[Callable[[Path], Any], str], ...]] = (
    *((BroadcastReader.attach, RINGS[what].file) for what in ("done", "tokens", "requests")),
    (TableReader.attach, "inflight.tab"),
    (AppendReader.attach, "names.tab"),
    (CountersReader.attach, "counters"),
    (DistinctErrorsReader.attach, "errors"),
)
"""How to attach to each segment: any of them tells when the router started and how its clocks compare."""


class RingCopy(msgspec.Struct, frozen=True, kw_only=True):
    """The records of one ring: ``published`` = ``overwritten`` + ``lost_while_reading`` + ``damaged`` + ``records``.

    ``published`` is as of the beginning of the copy: what a live router writes meanwhile is not waited for.
    """

    published: int
    overwritten: int
    """Gone before the copy began."""
    lost_while_reading: int
    damaged: int
    """Records that cannot be true, and are left out."""
    damage: str
    """What was left out, in words; empty for nothing."""
    records: list[tuple[int, bytes]]
    """(sequence, payload), oldest first."""


_NO_RING: Final = RingCopy(published=0, overwritten=0, lost_while_reading=0, damaged=0, damage="", records=[])


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The copy. Times are CLOCK_MONOTONIC; ``header`` turns them into calendar time."""

    header: Header
    names: Names
    taken_ns: int
    last_heartbeat_ns: int
    last_sign_ns: int
    """The latest time that anything in the copy tells, the heartbeat included: up to a second after it."""
    rings: dict[str, RingCopy]
    """By the names of :data:`RINGS`, those that were asked for; without a record where they could not be read."""
    in_flight: list[bytes]
    """Payloads of the in-flight table without those that ``done`` has."""
    torn_count: int
    """Rows of the in-flight table that the router was writing when it was stopped."""
    errors: list[DistinctError]
    unread: dict[str, RingError]
    """What could not be read, and why: names of :data:`RINGS`, ``inflight``, ``errors`` and ``names``."""
    damage: dict[str, str]
    """What was left out because it cannot be true, in words, by the same names."""

    def decoded(self, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (sequence, record) of a ring, ids not resolved."""
        decode = RINGS[what].decode
        return ((sequence, decode(payload)) for sequence, payload in self.rings[what].records)

    def in_flight_decoded(self) -> Iterator[dict[str, Any]]:
        """Yield the requests in flight, ids not resolved."""
        return (rec.decode_done(payload) for payload in self.in_flight)


def take(directory: Path, whats: frozenset[str]) -> Snapshot:
    """Copy ``directory``, a generation: the rings in ``whats``, ``inflight`` and ``errors``.

    Raises :class:`ringbuffer.RingError` when nothing of it can be read: of another version, say, or not there.
    """
    unread: dict[str, RingError] = {}
    names = _try(unread, "names", partial(Names, directory), Names(None))
    # A request is in flight until its done record is written: read in this order, none is in neither.
    table = _NO_TABLE
    if "inflight" in whats:
        table = _try(unread, "inflight", partial(_in_flight, directory / "inflight.tab"), _NO_TABLE)
    wanted = [what for what in RINGS if what in whats]
    rings = {what: _try(unread, what, partial(_copy, directory, what), _NO_RING) for what in wanted}
    finished = {_request_seq(payload) for _, payload in rings["done"].records} if "done" in rings else set()
    in_flight = [payload for payload in table.payloads if _request_seq(payload) not in finished]
    no_errors: list[DistinctError] = []
    errors = _try(unread, "errors", partial(_errors, directory), no_errors) if "errors" in whats else no_errors
    if whats <= unread.keys():
        raise unread[min(whats)]
    header, last_heartbeat_ns = _header(directory)
    damage = {"inflight": table.damage} | {what: ring.damage for what, ring in rings.items()}
    return Snapshot(
        header=header,
        names=names,
        taken_ns=time.monotonic_ns(),
        last_heartbeat_ns=last_heartbeat_ns,
        last_sign_ns=max([last_heartbeat_ns, *_latest(rings), *map(_latest_stamp, in_flight)]),
        rings=rings,
        in_flight=in_flight,
        torn_count=table.torn_count,
        errors=errors,
        unread=unread,
        damage={what: text for what, text in damage.items() if text},
    )


def _try(unread: dict[str, RingError], what: str, read: Callable[[], Read], otherwise: Read) -> Read:
    """Return what is read, or note why it cannot be."""
    try:
        return read()
    except RingError as error:
        unread[what] = error
        return otherwise


def _header(directory: Path) -> tuple[Header, int]:
    """Return header and heartbeat of the first segment that can be read."""
    errors = []
    for attach, file in _SEGMENTS:
        try:
            segment = attach(directory / file).segment
        except RingError as error:
            errors.append(error)
        else:
            return segment.header, segment.heartbeat_ns
    raise errors[0]


def _copy(directory: Path, what: str) -> RingCopy:
    kind = RINGS[what]
    path = directory / kind.file
    ring = BroadcastReader.attach(path, "oldest", record_schema=rec.RECORD_SCHEMA)
    require_slots(ring.header, path, kind.slot_bytes)
    first, end = ring.position, ring.position + ring.lag
    records: list[tuple[int, bytes]] = []
    while ring.position < end:
        records += ring.poll(min(_POLL_MAX, end - ring.position))
    while records and records[-1][0] >= end:  # it was overtaken, and went on behind the end
        records.pop()
    ring.close()
    if end and not records:
        raise Corrupt(
            f"{path} says that {end} records are published, none of its {ring.header.slot_count} slots has such"
        )
    damage = Damage(what, kind.file)
    whole = list(damage.sort_out(records))
    return RingCopy(
        published=end,
        overwritten=first,
        lost_while_reading=end - first - len(records),
        damaged=damage.count,
        damage=damage.text,
        records=whole,
    )


class _Table(NamedTuple):
    """The rows of the in-flight table."""

    payloads: list[bytes]
    torn_count: int
    damage: str


_NO_TABLE: Final = _Table([], 0, "")


def _in_flight(path: Path) -> _Table:
    table = TableReader.attach(path, record_schema=rec.RECORD_SCHEMA)
    require_slots(table.header, path, rec.DONE_SLOT_BYTES)
    damage = Damage("done", path.name)
    payloads = [payload for _, payload in damage.sort_out(table.rows())]
    table.close()
    return _Table(payloads, table.torn_count, damage.text)


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
