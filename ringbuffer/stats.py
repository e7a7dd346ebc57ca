"""Samples in, rows out: rates, lags, ages, and what they mean in words. Pure: no clock, no file, no printing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

from ringbuffer.errors import RingError, VersionMismatch, WrongEndianness
from ringbuffer.generation import WriterState
from ringbuffer.layout import Kind
from ringbuffer.sample import CounterSample, ReaderSample, Sample, SegmentSample

SCHEMA: Final = "ringbuffer.stats/1"

EXIT_OK: Final = 0
EXIT_NO_RING: Final = 1
EXIT_USAGE: Final = 2
EXIT_DEAD: Final = 3
EXIT_HUNG: Final = 4
EXIT_VERSION: Final = 5

_WORST_FIRST: Final[tuple[WriterState, ...]] = ("dead", "restarted", "hung", "alive")
EXIT_CODES: Final[dict[WriterState, int]] = {
    "alive": EXIT_OK,
    "hung": EXIT_HUNG,
    "dead": EXIT_DEAD,
    "restarted": EXIT_DEAD,
}
"""What each state of a writer is as an exit code."""
_WORST_CODE_FIRST: Final = (EXIT_VERSION, EXIT_DEAD, EXIT_HUNG, EXIT_NO_RING, EXIT_OK)
_NS_PER_S: Final = 1_000_000_000
_SOON_S: Final = 60.0
"""What is further away than this is not foretold: a rate over one short window says nothing about it."""

ReaderState = Literal["alive", "hung", "dead"]
SELECTABLE: Final = ("segment", "reader", "counter", "error")
"""What a report can be narrowed to, each by name; an error by its text."""


@dataclass(frozen=True, slots=True)
class ReaderRow:
    """A reader's distance from the writer. ``lag_percent`` is of the ring: at 100 a lossy reader begins to lose.

    ``state``: ``hung`` is a live process that has had something to do and done nothing for as long as makes a writer
    hung: a consumer that holds records in hand, or for which the same record waited over several samples for so long;
    a lossy reader that has not looked at the ring. ``overwritten`` records of the lag are gone; ``lost`` were gone when
    this reader came to them. ``rate_per_s`` is None without two samples.
    """

    name: str
    gates: bool
    pid: int
    state: ReaderState
    lag: int
    lag_percent: float
    age_s: float
    lost: int
    overwritten: int
    rate_per_s: float | None


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """One segment. A field is None where the word has no meaning for that kind, or needs two samples.

    ``holds_s`` is how long a lossy ring keeps a record at its present rate: the pause that a reader can afford.
    ``process_state`` is the kernel's word for the process of a hung writer, such as ``T (stopped)``, else empty.
    """

    name: str
    kind: str
    path: str
    layout_version: tuple[int, int]
    record_schema: tuple[int, int]
    pid: int
    state: WriterState
    process_state: str
    heartbeat_age_s: float
    slot_count: int
    slot_size: int
    published: int | None
    rate_per_s: float | None
    holds_s: float | None
    free: int | None
    full_count: int | None
    dropped_count: int | None
    laps: int | None
    readers: tuple[ReaderRow, ...]


@dataclass(frozen=True, slots=True)
class CounterRow:
    """One counter; ``rate_per_s`` is its change between the samples, None without two."""

    id: int
    name: str
    unit: str
    label: str
    value: int
    rate_per_s: float | None


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """One distinct error: how often it was observed, and when first and last, ns since 1970."""

    text: str
    count: int
    first_wall_ns: int
    last_wall_ns: int


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the stats command shows; ``state`` is that of the writer in the worst shape.

    ``distinct_errors`` is None where no segment keeps any; the latest comes last. ``errors`` are files that could not
    be read, with the reason.
    """

    path: str
    state: WriterState | None
    segments: tuple[SegmentRow, ...]
    counters: tuple[CounterRow, ...]
    distinct_errors: tuple[ErrorRow, ...] | None
    errors: tuple[str, ...]
    exit_code: int


def continued(before: Sample | None, now: Sample) -> Sample:
    """Return ``now`` with what only looks before it tell: since when a record waits for each reader.

    Whoever looks again and again keeps this as what was before the next look.
    """
    earlier = {each.inode: each for each in before.segments} if before is not None else {}
    return replace(now, segments=tuple(_continued(earlier.get(each.inode), each) for each in now.segments))


def _continued(before: SegmentSample | None, now: SegmentSample) -> SegmentSample:
    readers = (replace(each, waiting_since_ns=_waiting_since_ns(before, now, each)) for each in now.readers)
    return replace(now, readers=tuple(readers))


def _waiting_since_ns(before: SegmentSample | None, now: SegmentSample, reader: ReaderSample) -> int | None:
    if reader.position >= now.published:
        return None
    earlier = _earlier(before, reader)
    if before is None or earlier is None or not earlier.position == reader.position < before.published:
        return now.taken_ns
    return before.taken_ns if earlier.waiting_since_ns is None else earlier.waiting_since_ns


def _earlier(before: SegmentSample | None, reader: ReaderSample) -> ReaderSample | None:
    """Return what an earlier sample has of a reader; None when there was none, or another process, of that name."""
    known = before.readers if before is not None else ()
    same = (reader.name, reader.pid, reader.gates)
    return next((each for each in known if (each.name, each.pid, each.gates) == same), None)


def build_report(before: Sample | None, after: Sample) -> Report:
    """Compare two samples of the same path; without ``before`` there are no rates."""
    after = continued(before, after)
    earlier = {each.inode: each for each in before.segments} if before is not None else {}
    states = {each.state for each in after.segments}
    state = next((each for each in _WORST_FIRST if each in states), None)
    return Report(
        path=shown(str(after.path)),
        state=state,
        segments=tuple(_segment_row(earlier.get(each.inode), each) for each in after.segments),
        counters=tuple(row for each in after.segments for row in _counter_rows(earlier.get(each.inode), each)),
        distinct_errors=_error_rows(after),
        errors=tuple(shown(f"{path.name}: {error}") for path, error in after.errors),
        exit_code=_exit_code(state, after),
    )


def shown(text: str) -> str:
    """Return a text that came from a file or its name as one line that can be written anywhere.

    Bytes of a name that are no UTF-8 become ``\\xNN``, control characters what Python writes for them.
    """
    readable = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if readable.isprintable():
        return readable
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in readable)


def as_json(report: Report) -> dict[str, Any]:
    """Return a report as plain values, with the ``schema`` that names their shape."""
    return {"schema": SCHEMA, **asdict(report)}


def parse_selection(text: str) -> tuple[str, str]:
    """Return what and pattern of ``WHAT=PATTERN``; ValueError when WHAT is none of :data:`SELECTABLE`."""
    what, sign, pattern = text.partition("=")
    if not (sign and pattern and what in SELECTABLE):
        raise ValueError(f"{text!r}: expected NAME=PATTERN, NAME one of {', '.join(SELECTABLE)}")
    return what, pattern


def select(report: Report, selections: Sequence[tuple[str, str]]) -> Report:
    """Keep what one of the ``(what, pattern)`` names, all of it when there is none; state and exit code stay.

    Patterns are those of a shell (``*``, ``?``, ``[…]``). A reader is shown below its ring.
    """
    if not selections:
        return report

    def named(what: str, name: str) -> bool:
        return any(each == what and fnmatchcase(name, pattern) for each, pattern in selections)

    segments = []
    for row in report.segments:
        readers = tuple(reader for reader in row.readers if named("reader", reader.name))
        if named("segment", row.name):
            segments.append(row)
        elif readers:
            segments.append(replace(row, readers=readers))
    kept = tuple(row for row in report.distinct_errors or () if named("error", row.text))
    asked_for_errors = any(what == "error" for what, _ in selections)
    return replace(
        report,
        segments=tuple(segments),
        counters=tuple(row for row in report.counters if named("counter", row.name)),
        distinct_errors=kept if asked_for_errors else None,
    )


def explain(reader: ReaderRow, ring: SegmentRow, noun: str = "records") -> str:
    """Say in words where a reader is and what comes of it; ``noun`` names what the ring holds, in the plural."""
    if not reader.lag:
        return f"{reader.name} is up to date"
    records = noun.removesuffix("s") if reader.lag == 1 else noun
    text = f"{reader.name} is {reader.lag:,} {records} behind, {_percent(reader.lag_percent)} of the ring"
    if reader.overwritten:
        text += f", {reader.overwritten:,} of them overwritten already"
    elif reader.gates:
        text += f", {ring.slot_count - reader.lag:,} more fill it"
    return text + _foretell(reader, ring)


def worst(exit_codes: Iterable[int]) -> int:
    """Return the exit code that stands for several; EXIT_NO_RING for none."""
    found = set(exit_codes)
    return next((code for code in _WORST_CODE_FIRST if code in found), EXIT_NO_RING)


def error_exit_code(error: RingError) -> int:
    """Return the exit code for a path that could not be read."""
    return EXIT_VERSION if isinstance(error, VersionMismatch | WrongEndianness) else EXIT_NO_RING


def _foretell(reader: ReaderRow, ring: SegmentRow) -> str:
    """Say when the reader will have caught up, or when the ring will be full for it, if that is soon."""
    if reader.rate_per_s is None or ring.rate_per_s is None or reader.overwritten or reader.state == "dead":
        return ""
    gain_per_s = reader.rate_per_s - ring.rate_per_s
    if not gain_per_s:
        return ""
    if gain_per_s > 0:
        what, left = "caught up", reader.lag
    else:
        what, left = "full" if reader.gates else "losing", ring.slot_count - reader.lag
    seconds = left / abs(gain_per_s)
    return f", {what} in {seconds:.1f} s at this rate" if seconds < _SOON_S else ""


def _percent(percent: float) -> str:
    return "< 0.1 %" if percent < 0.1 else f"{percent:.1f} %"


def _exit_code(state: WriterState | None, sample: Sample) -> int:
    if any(error_exit_code(error) == EXIT_VERSION for _, error in sample.errors):
        return EXIT_VERSION
    return EXIT_NO_RING if state is None else EXIT_CODES[state]


def _segment_row(before: SegmentSample | None, now: SegmentSample) -> SegmentRow:
    header = now.header
    kind = header.kind
    counts_records = kind in (Kind.BROADCAST, Kind.GATING, Kind.APPEND, Kind.ERRORS)
    is_gating = kind is Kind.GATING
    rate_per_s = _rate(before, now, now.published - before.published) if before and counts_records else None
    return SegmentRow(
        name=header.name,
        kind=kind.name.lower(),
        path=shown(str(now.path)),
        layout_version=header.layout_version,
        record_schema=header.record_schema,
        pid=header.writer_pid,
        state=now.state,
        process_state=now.process_state,
        heartbeat_age_s=_age_s(now, now.heartbeat_ns),
        slot_count=header.slot_count,
        slot_size=header.slot_size,
        published=now.published if counts_records else None,
        rate_per_s=rate_per_s,
        holds_s=header.slot_count / rate_per_s if rate_per_s and rate_per_s > 0 and kind is Kind.BROADCAST else None,
        free=_free(now),
        full_count=now.full_count if is_gating or kind is Kind.ERRORS else None,
        dropped_count=now.dropped_count if is_gating else None,
        laps=now.published // header.slot_count if kind in (Kind.BROADCAST, Kind.GATING) else None,
        readers=tuple(_reader_row(before, now, each) for each in now.readers),
    )


def _counter_rows(before: SegmentSample | None, now: SegmentSample) -> Iterable[CounterRow]:
    earlier = {spec.id: value for spec, value in before.counters} if before is not None else {}
    return (_counter_row(before, now, earlier, each) for each in now.counters)


def _counter_row(
    before: SegmentSample | None, now: SegmentSample, earlier: dict[int, int], counter: CounterSample
) -> CounterRow:
    spec, value = counter
    rate_per_s = _rate(before, now, value - earlier[spec.id]) if before is not None and spec.id in earlier else None
    return CounterRow(spec.id, spec.name, spec.unit, spec.label, value, rate_per_s)


def _error_rows(sample: Sample) -> tuple[ErrorRow, ...] | None:
    logs = [(each.header, each.distinct_errors) for each in sample.segments if each.distinct_errors is not None]
    if not logs:
        return None
    rows = [
        ErrorRow(error.text, error.count, header.wall_ns(error.first_ns), header.wall_ns(error.last_ns))
        for header, log in logs
        for error in log
    ]
    return tuple(sorted(rows, key=lambda row: row.last_wall_ns))


def _age_s(now: SegmentSample, heartbeat_ns: int) -> float:
    return max(0, now.taken_ns - heartbeat_ns) / _NS_PER_S


def _rate(before: SegmentSample | None, now: SegmentSample, change: int) -> float | None:
    if before is None or now.taken_ns <= before.taken_ns:
        return None
    return change * _NS_PER_S / (now.taken_ns - before.taken_ns)


def _free(now: SegmentSample) -> int | None:
    """Return the slots that can be filled at once; None for a lossy ring, which overwrites, and for counters."""
    count = now.header.slot_count
    if now.header.kind in (Kind.APPEND, Kind.ERRORS):
        return count - now.published
    if now.header.kind is Kind.TABLE:
        return count - now.rows_in_use
    if now.header.kind is Kind.GATING:
        return count - max((_lag(now, each) for each in now.readers if each.gates), default=0)
    return None


def _lag(now: SegmentSample, reader: ReaderSample) -> int:
    return max(0, now.published - reader.position)


def _reader_row(before: SegmentSample | None, now: SegmentSample, reader: ReaderSample) -> ReaderRow:
    lag = _lag(now, reader)
    slot_count = now.header.slot_count
    earlier = _earlier(before, reader)
    return ReaderRow(
        name=reader.name,
        gates=reader.gates,
        pid=reader.pid,
        state=_reader_state(now, reader),
        lag=lag,
        lag_percent=100 * lag / slot_count,
        age_s=_age_s(now, reader.heartbeat_ns),
        lost=reader.lost,
        overwritten=max(0, lag - slot_count),
        rate_per_s=None if earlier is None else _rate(before, now, reader.position - earlier.position),
    )


def _reader_state(now: SegmentSample, reader: ReaderSample) -> ReaderState:
    """A reader without work takes nothing either, so a heartbeat alone tells nothing. A lossy one beats with every look
    at the ring; a consumer when it releases, and when it is handed records after it had none.
    """
    if not reader.is_alive:
        return "dead"
    has_stood_still = _age_s(now, reader.heartbeat_ns) > now.hung_after_s
    return "hung" if has_stood_still and _has_work(now, reader) else "alive"


def _has_work(now: SegmentSample, reader: ReaderSample) -> bool:
    """Tell whether a reader that has stood still had something to do all that time."""
    if reader.waiting_since_ns is None:
        return False
    if not reader.gates or reader.position < reader.handed:
        return True
    return _age_s(now, reader.waiting_since_ns) > now.hung_after_s
