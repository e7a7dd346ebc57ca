"""``ringrouter explain``: why a request went where it went, from the done record; read-only.

Exit codes: 0 ok, 1 no ring, or no record of the request is kept any more, 2 usage, 5 layout version.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from ringbuffer import Missing, RingError, find_current, find_generations
from ringbuffer.stats import shown
from router.cli import EXIT_FAILED, EXIT_OK, fail, fail_to_read
from router.cli import explain_words as words
from router.cli.location import all_instance_dirs, instance_dir
from router.errors import ConfigError
from router.stamps import STAMPS
from router.telemetry import records as rec
from router.telemetry import snapshot
from router.telemetry.reader import resolve
from router.telemetry.snapshot import Snapshot
from router.telemetry.units import duration, span

SCHEMA: Final = "ringrouter.explain/1"
_WHATS: Final = frozenset({"done", "inflight"})
_STAGES_SHOWN_MAX: Final = 6
_WIDTH: Final = 10
_WRITTEN_S: Final = 0.35
"""A router's tick comes at least four times a second."""
_LOOK_EVERY_S: Final = 0.05
_SECOND_NS: Final = 1_000_000_000
_ROUTED: Final = STAMPS.index("routed")
_DONE: Final = STAMPS.index("done")

Record = dict[str, Any]


class Found(NamedTuple):
    """A request and where it was found: the newest one with its id, and how many older ones there are."""

    instance: str
    copy: Snapshot
    record: Record
    older_count: int


def run(args: argparse.Namespace) -> int:
    """Print what was decided about a request."""
    try:
        instances = [instance_dir(args)] if args.instance else all_instance_dirs(args) or [instance_dir(args)]
        copies, found = _look(instances, args.request_id)
    except ConfigError as error:
        return fail(error)
    except RingError as error:
        return fail_to_read(error)
    if not found:
        fail(f"no record of request {args.request_id!r}: overwritten, or never here")
        for instance, copy in copies:
            print(f"  {shown(instance)}: {_kept_words(copy)}", file=sys.stderr)
        return EXIT_FAILED
    for one in found:
        if args.json:
            sys.stdout.write(msgspec.json.encode({"schema": SCHEMA} | as_json(one)).decode() + "\n")
        else:
            print("\n".join(shown(line) for line in lines(one)))
    return EXIT_OK


# ---------------------------------------------------------------- finding it
def _look(instances: Sequence[Path], request_id: str) -> tuple[list[tuple[str, Snapshot]], list[Found]]:
    """Return the records of all instances, and where the request was found in them.

    Routers write the record of a request up to a quarter of a second after its end. One that seems to be in flight is
    looked at again until it would have been written.
    """
    until_s = time.monotonic() + _WRITTEN_S
    while True:
        copies = list(_copies(instances))
        found = [f for instance, copy in copies if (f := _find(instance, copy, request_id)) is not None]
        if all(one.record["outcome"] != "none" for one in found) or time.monotonic() >= until_s:
            return copies, found
        time.sleep(_LOOK_EVERY_S)


def _copies(instances: Iterable[Path]) -> Iterator[tuple[str, Snapshot]]:
    """Yield the name of each instance with its records, each generation for itself, the current one last.

    A generation of before the last restart that goes away meanwhile is left out; a current one that cannot be read is
    an error.
    """
    for instance in instances:
        current = find_current(instance)
        for directory in [path for path in find_generations(instance) if path != current]:
            try:
                yield f"{instance.name} before its restart", snapshot.take(directory, _WHATS)
            except (RingError, Missing):
                continue
        yield instance.name, snapshot.take(current, _WHATS)


def _find(instance: str, copy: Snapshot, request_id: str) -> Found | None:
    known = request_id.encode("utf-8", "replace")[: rec.TEXT_BYTES].decode("utf-8", "ignore")
    records = [record for _, record in copy.decoded("done")] + list(copy.in_flight_decoded())
    own = [record for record in records if record["request_id"] == known]
    if not own:
        return None
    newest = max(own, key=lambda record: record["request_seq"])
    record = resolve(newest, copy.names)
    record["asked_model"] = copy.names.model(newest["asked_model"])
    running = [running_at(records, host_id, newest) for host_id, _, _ in newest["candidates"]]
    for candidate, count in zip(record["candidates"], running, strict=True):
        candidate["running"] = count
        candidate["words"] = words.candidate_words(candidate, record)
    return Found(instance, copy, record, len(own) - 1)


def running_at(records: Iterable[Record], host_id: int, own: Record) -> int:
    """Return how many other requests a host worked on when this one was routed, as far as records tell.

    ``records`` are decoded, ids not resolved: whoever ran then has ended since, and stands in the ring before its end,
    or is in flight.
    """
    at_ns = own["stamps"][_ROUTED]
    return sum(_ran(record, host_id, at_ns) for record in records if record["request_seq"] != own["request_seq"])


def _ran(record: Record, host_id: int, at_ns: int) -> bool:
    """Whether a request was at a host at a time, in its last attempt or in one that failed."""
    stamps = record["stamps"]
    end_ns = stamps[_DONE] or at_ns + 1
    if record["host"] == host_id and stamps[_ROUTED] and stamps[_ROUTED] <= at_ns < end_ns:
        return True
    return any(a["host"] == host_id and a["routed"] <= at_ns < a["ended"] for a in record["failed_attempts"])


# ---------------------------------------------------------------- telling it
def lines(found: Found) -> Iterator[str]:
    """Yield what was decided, line by line."""
    record, copy = found.record, found.copy
    came_ns = record["stamps"]["recv"]
    at = _clock(copy.header.wall_ns(came_ns))
    yield f"request {record['request_id']} of {_model(record)} at {found.instance}, {at}"
    yield _line("outcome", words.outcome_words(record))
    if record["message"]:
        yield _line("message", record["message"])
    yield _line("waited", words.waiting_words(record))
    for name, text in (("deadline", words.deadline_words(record)), ("levers", words.lever_words(record))):
        if text:
            yield _line(name, text)
    yield from _routing_lines(record)
    yield from _attempt_lines(record)
    if stages := _stages_words(record):
        yield _line("time", stages)
    if found.older_count:
        yield _line("older", f"{found.older_count:,} more with this id: ringrouter dump --request-id shows them all")


def _model(record: Record) -> str:
    asked = record["asked_model"]
    return f"{record['model'] or 'no model'} (asked for {asked})" if asked else record["model"] or "no model"


def _routing_lines(record: Record) -> Iterator[str]:
    candidates = record["candidates"]
    if not candidates:
        waits = "it was not routed" if record["outcome"] != "none" else "its candidates are recorded when it ends"
        yield _line("policy", f"{record['policy']}: {waits}" if record["policy"] else waits)
        return
    yield _line("policy", record["policy"])
    width = max(len(candidate["host"]) for candidate in candidates)
    for candidate in candidates:
        yield f"  {candidate['host']:{width}}  {candidate['words']}"
    if len(candidates) == rec.CANDIDATE_COUNT:
        yield f"  ({rec.CANDIDATE_COUNT} are recorded, there may have been more)"


def _attempt_lines(record: Record) -> Iterator[str]:
    failed, count = record["failed_attempts"], record["attempt_count"]
    if not failed:
        return
    one_more = record["stamps"]["routed"] >= failed[-1]["ended"]
    for number, attempt in enumerate(failed, count - len(failed) - one_more + 1):
        yield _line(f"attempt {number}", words.attempt_words(attempt))
    if one_more:
        yield _line(f"attempt {count}", f"{record['host']}: {words.outcome_words(record)}")


def _stages_words(record: Record) -> str:
    """Return the longest stages, in their order: what it waited for."""
    stages = {name: ns for name, ns in record["stages_ns"].items() if ns > 0}
    longest = sorted(stages, key=lambda name: -stages[name])[:_STAGES_SHOWN_MAX]
    return ", ".join(f"{name} {duration(ns)}" for name, ns in stages.items() if name in longest)


def _line(name: str, text: str) -> str:
    return f"{name:{_WIDTH}} {text}"


def _clock(wall_ns: int) -> str:
    return datetime.fromtimestamp(wall_ns / _SECOND_NS).astimezone().isoformat(" ", "milliseconds")


def _kept_words(copy: Snapshot) -> str:
    """Return how far back the records of a generation go."""
    ring = copy.rings["done"]
    if not ring.records:
        return "no finished request is kept"
    oldest = rec.decode_done(ring.records[0][1])["stamps"][_DONE]
    back = span(max(0, copy.taken_ns - oldest))
    count = len(ring.records)
    kept = "1 finished request is kept" if count == 1 else f"{count:,} finished requests are kept"
    return f"{kept}, {back} back to {_clock(copy.header.wall_ns(oldest))}; {ring.overwritten:,} were overwritten"


def as_json(found: Found) -> Record:
    """Return the same for programs: the record, with words for each candidate and for what else was decided."""
    record = found.record
    return {
        "instance": found.instance,
        "wall_ns": found.copy.header.wall_ns(record["stamps"]["recv"]),
        "older_count": found.older_count,
        "outcome": words.outcome_words(record),
        "waited": words.waiting_words(record),
        "deadline": words.deadline_words(record),
        "levers": words.lever_words(record),
        "attempts": [words.attempt_words(attempt) for attempt in record["failed_attempts"]],
        "request": record,
    }
