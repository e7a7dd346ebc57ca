"""``ringrouter dump``: the records of a router, live or dead, as JSON lines or as Chrome trace events. Read-only.

Exit codes: 0 ok, 1 no ring or not all of what was asked for, 2 usage, 3 router dead, 4 hung, 5 layout version. What a
dead router left is printed all the same, as it is what one looks for then. So is what can be read of damaged segments;
the rest is named.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple
from zlib import crc32

import msgspec

from ringbuffer import (
    Corrupt,
    DistinctError,
    Missing,
    RingError,
    find_current,
    find_generations,
    writer_state,
)
from ringbuffer import stats as ring_stats
from router.cli import fail, fail_to_read
from router.cli.location import instance_dir
from router.errors import ConfigError
from router.telemetry import records as rec
from router.telemetry import snapshot
from router.telemetry.chrome_trace import Trace
from router.telemetry.reader import resolve
from router.telemetry.snapshot import RINGS, Snapshot

SCHEMA: Final = "ringrouter.dump/1"
WHATS: Final = ("requests", "inflight", "done", "tokens", "errors")
"""What can be printed, in the order in which it is."""
DRAWN: Final = ("inflight", "done", "tokens", "errors")
"""What a trace shows; a record of the request ring tells nothing that the others do not."""
CURRENT: Final = "current"
PREVIOUS: Final = "previous"
_WITH_IDS: Final = frozenset({"requests", "inflight", "done"})
"""Where the id of a request stands that its tokens are found by."""
_SPAN: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|d)")
_UNIT_NS: Final = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9}
_ENCODE: Final = msgspec.json.Encoder().encode

Record = dict[str, Any]


class _UsageError(ValueError):
    """An option that cannot be used."""


class Wanted(NamedTuple):
    """Which records to show. ``seqs`` None = of every request; ``limit`` None = all, else the newest of each kind."""

    seqs: frozenset[int] | None
    since_ns: int
    limit: int | None

    def newest(self, records: list[Any]) -> list[Any]:
        """Return as many as there may be, the last ones."""
        return records if self.limit is None else records[max(0, len(records) - self.limit) :]


class Dump(NamedTuple):
    """One generation of a router and what to show of it."""

    directory: Path
    state: str
    copy: Snapshot
    wanted: Wanted
    whats: tuple[str, ...]

    def payloads(self, what: str) -> list[tuple[int, bytes]]:
        """Return (sequence, payload) of the wanted records of a ring; none when the ring is not wanted."""
        if what not in self.whats:
            return []
        kind, wanted = RINGS[what], self.wanted
        if wanted.seqs is None and not wanted.since_ns:
            return wanted.newest(self.copy.rings[what].records)
        chosen = []
        for sequence, payload in self.copy.rings[what].records:
            record = kind.decode(payload)
            seq = record.get("request_seq", sequence)  # a record of the request ring is known by its place there
            if kind.time_ns(record) >= wanted.since_ns and (wanted.seqs is None or seq in wanted.seqs):
                chosen.append((sequence, payload))
        return wanted.newest(chosen)

    def in_flight(self) -> list[Record]:
        """Return the wanted requests in flight, whenever they began."""
        if "inflight" not in self.whats:
            return []
        seqs = self.wanted.seqs
        decoded = sorted(map(rec.decode_done, self.copy.in_flight), key=lambda record: record["request_seq"])
        chosen = [record for record in decoded if seqs is None or record["request_seq"] in seqs]
        return [resolve(record, self.copy.names) for record in self.wanted.newest(chosen)]

    def errors(self) -> list[DistinctError]:
        """Return the wanted distinct errors; they are of no request."""
        if self.wanted.seqs is not None:
            return []
        return self.wanted.newest([error for error in self.copy.errors if error.last_ns >= self.wanted.since_ns])

    def problems(self) -> list[Record]:
        """Say what could not be read, and what was left out of what was."""
        reasons = {what: str(error) for what, error in self.copy.unread.items()} | self.copy.damage
        return [{"of": what, "reason": ring_stats.shown(reason)} for what, reason in reasons.items()]

    def exit_code(self) -> int:
        """Return the exit code: one that shows all tells how the router is."""
        if self.copy.unread or self.copy.damage:
            return ring_stats.worst(map(ring_stats.error_exit_code, self.copy.unread.values()))
        return ring_stats.EXIT_CODES[self.state]  # type: ignore[index]

    def about(self) -> Record:
        """Say whose records these are and when they were read."""
        header, copy = self.copy.header, self.copy
        return {
            "instance": ring_stats.shown(self.directory.parent.name),
            "generation": ring_stats.shown(self.directory.name),
            "pid": header.writer_pid,
            "state": self.state,
            "record_schema": header.record_schema,
            "boot_id": str(header.boot_id),
            "clock": "CLOCK_MONOTONIC",
            "started_ns": header.created_mono_ns,
            "last_heartbeat_ns": copy.last_heartbeat_ns,
            "last_sign_ns": copy.last_sign_ns,
            "taken_ns": copy.taken_ns,
            "wall_minus_monotonic_ns": header.wall_ns(0),
        }


def run(args: argparse.Namespace) -> int:
    """Print the records."""
    if args.json and args.format == "chrome":
        return fail("--json asks for JSON lines, --format chrome for a trace: only one of them")
    try:
        whats = _whats(args)
        directory = _generation(instance_dir(args), args.generation)
        state = writer_state(directory)
        copy = snapshot.take(directory, frozenset(whats) | (_WITH_IDS if args.request_id else frozenset()))
        dump = Dump(directory, state, copy, _wanted(args, copy, state), whats)
    except (ConfigError, _UsageError) as error:
        return fail(error)
    except RingError as error:
        return fail_to_read(error)
    for problem in dump.problems():
        fail("{of}: {reason}".format_map(problem))
    if args.format == "chrome":
        _print_trace(dump)
    else:
        for record in lines(dump):
            sys.stdout.write(_ENCODE({"schema": SCHEMA} | record).decode() + "\n")
    return dump.exit_code()


# ---------------------------------------------------------------- options
def _whats(args: argparse.Namespace) -> tuple[str, ...]:
    possible = DRAWN if args.format == "chrome" else WHATS
    if args.what is None:
        return possible
    asked = args.what.split(",")
    unknown = [what for what in asked if what not in possible]
    if unknown:
        raise _UsageError(f"--what {args.what}: {unknown[0]!r} is none of {', '.join(possible)}")
    return tuple(what for what in possible if what in asked)


def _generation(instance: Path, name: str) -> Path:
    """Return the directory of the generation that was asked for; raises Missing."""
    current = find_current(instance)
    if name == CURRENT:
        return current
    others = find_generations(instance)
    if name == PREVIOUS:
        if current not in others:
            raise Corrupt(f"{instance}/current points to {current.name!r}, a generation is named by a number")
        before = others[: others.index(current)]
        if not before:
            raise Missing(f"{instance} has no generation before the current one")
        return before[-1]
    found = [path for path in others if path.name == name]
    if not found:
        raise Missing(f"{instance} has no generation {name}; there are {', '.join(path.name for path in others)}")
    return found[0]


def _wanted(args: argparse.Namespace, copy: Snapshot, state: str) -> Wanted:
    since_ns = 0
    if args.since is not None:
        since_ns = _since_ns(args.since, _end_ns(copy, state), copy.header.wall_ns(0))
    seqs = None
    if args.request_id:
        by_id = {request_id: _seqs_of(request_id, copy) for request_id in args.request_id}
        for request_id, found in by_id.items():
            if not found:
                fail(f"nothing here is of request {request_id!r}: overwritten, or never here")
        seqs = frozenset().union(*by_id.values())
    return Wanted(seqs, since_ns, args.limit)


def _end_ns(copy: Snapshot, state: str) -> int:
    """Return the time up to which the records tell: now, or of a dead router its last sign of life."""
    return copy.taken_ns if state in {"alive", "hung"} else copy.last_sign_ns


def _since_ns(text: str, now_ns: int, wall_minus_monotonic_ns: int) -> int:
    """Return the monotonic time of ``30s`` before ``now_ns``, or of a calendar time."""
    span = _SPAN.fullmatch(text)
    if span is not None:
        return max(0, now_ns - round(float(span[1]) * _UNIT_NS[span[2]]))
    try:
        wall_s = datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        expected = "a span such as 30s, 5m, 2h or a time such as 2025-01-31T08:15:00"
        raise _UsageError(f"--since {text}: expected {expected}") from None
    return max(0, round(wall_s * 1e9) - wall_minus_monotonic_ns)


def _seqs_of(request_id: str, copy: Snapshot) -> set[int]:
    """Return the sequences of the requests with an id; clients may use one id more than once.

    A request whose own record is gone is still known by the checksum of its id in the request ring.
    """
    kept = rec.TEXT_BYTES
    raw = request_id.encode("utf-8", "replace")
    shown = raw[:kept].decode("utf-8", "ignore")
    checksum = crc32(raw)
    ids = {record["request_seq"]: record["request_id"] for record in copy.in_flight_decoded()}
    ids |= {record["request_seq"]: record["request_id"] for _, record in copy.decoded("done")}
    by_checksum = {seq for seq, record in copy.decoded("requests") if record["request_id_crc32"] == checksum}
    return {seq for seq, known in ids.items() if known == shown} | {seq for seq in by_checksum if seq not in ids}


# ---------------------------------------------------------------- JSON lines
def lines(dump: Dump) -> Iterator[Record]:
    """Yield what the router is, what cannot be read of it, the records by kind, oldest first, and at last how complete
    each kind is.
    """
    yield {"what": "router"} | dump.about()
    yield from ({"what": "problem"} | problem for problem in dump.problems())
    coverage = []
    for what in dump.whats:
        shown_count = 0
        for record in _READ[what](dump, what):
            shown_count += 1
            yield {"what": what} | record
        coverage.append({"what": "coverage", "of": what} | _coverage(dump.copy, what) | {"shown": shown_count})
    yield from coverage


def _ring_records(dump: Dump, what: str) -> Iterator[Record]:
    kind, copy = RINGS[what], dump.copy
    for sequence, payload in dump.payloads(what):
        record = kind.decode(payload)
        wall_ns = copy.header.wall_ns(kind.time_ns(record))
        yield {"sequence": sequence, "wall_ns": wall_ns} | kind.resolve(record, copy.names)


def _in_flight_records(dump: Dump, _: str) -> Iterator[Record]:
    wall_ns = dump.copy.header.wall_ns
    return ({"wall_ns": wall_ns(record["stamps"]["recv"])} | record for record in dump.in_flight())


def _error_records(dump: Dump, _: str) -> Iterator[Record]:
    wall_ns = dump.copy.header.wall_ns
    for error in dump.errors():
        times = {"first_wall_ns": wall_ns(error.first_ns), "last_wall_ns": wall_ns(error.last_ns)}
        yield {"text": error.text, "count": error.count, "first_ns": error.first_ns, "last_ns": error.last_ns} | times


_READ: Final[dict[str, Callable[[Dump, str], Iterable[Record]]]] = {
    **dict.fromkeys(RINGS, _ring_records),
    "inflight": _in_flight_records,
    "errors": _error_records,
}


def _coverage(copy: Snapshot, what: str) -> Record:
    """Say what became of all that the router wrote; of rings ``published`` is the sum of the other four.

    What could not be read has nothing but ``read``: how much there was is not known.
    """
    if what in copy.unread:
        return {"read": 0}
    if what in RINGS:
        ring = copy.rings[what]
        return {
            "published": ring.published,
            "overwritten": ring.overwritten,
            "lost_while_reading": ring.lost_while_reading,
            "damaged": ring.damaged,
            "read": len(ring.records),
        }
    if what == "inflight":
        return {"read": len(copy.in_flight), "torn": copy.torn_count}
    return {"read": len(copy.errors)}


# ---------------------------------------------------------------- Chrome trace events
class _Resolved:
    """Records that are decoded anew each time they are gone through: as payloads they take a tenth of the memory."""

    def __init__(self, dump: Dump, what: str) -> None:
        self._kind = RINGS[what]
        self._names = dump.copy.names
        self._payloads = dump.payloads(what)

    def __iter__(self) -> Iterator[Record]:
        decode, resolved, names = self._kind.decode, self._kind.resolve, self._names
        return (resolved(decode(payload), names) for _, payload in self._payloads)


class _Both:
    """One after the other, each time they are gone through."""

    def __init__(self, first: Iterable[Record], second: Iterable[Record]) -> None:
        self._parts = first, second

    def __iter__(self) -> Iterator[Record]:
        return (record for part in self._parts for record in part)


def _print_trace(dump: Dump) -> None:
    started_ns = dump.copy.header.created_mono_ns
    end_ns = _end_ns(dump.copy, dump.state)
    requests = _Both(_Resolved(dump, "done"), dump.in_flight())
    trace = Trace(requests, _Resolved(dump, "tokens"), dump.errors(), origin_ns=started_ns, end_ns=end_ns)
    about = dump.about()
    title = f"ringrouter {about['instance']}, pid {about['pid']}, {dump.state}"
    write, before = sys.stdout.write, '{"traceEvents": [\n'
    for event in trace.events(title):
        write(before + _ENCODE(event).decode())
        before = ",\n"
    coverage = {what: _coverage(dump.copy, what) for what in dump.whats}
    other = {"schema": SCHEMA} | about | {"coverage": coverage, "problems": dump.problems()}
    write(f'\n],\n"displayTimeUnit": "ms",\n"otherData": {_ENCODE(other).decode()}}}\n')
