"""Samples in, rows out: rates, lags, ages. Pure: no clock, no file, no printing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from ringbuffer.errors import VersionMismatch, WrongEndianness
from ringbuffer.generation import WriterState
from ringbuffer.layout import Kind
from ringbuffer.sample import ReaderSample, Sample, SegmentSample

SCHEMA: Final = "ringbuffer.stats/1"

EXIT_OK: Final = 0
EXIT_NO_RING: Final = 1
EXIT_USAGE: Final = 2
EXIT_DEAD: Final = 3
EXIT_HUNG: Final = 4
EXIT_VERSION: Final = 5

_WORST_FIRST: Final[tuple[WriterState, ...]] = ("dead", "restarted", "hung", "alive")
_EXIT_CODES: Final[dict[WriterState, int]] = {
    "alive": EXIT_OK,
    "hung": EXIT_HUNG,
    "dead": EXIT_DEAD,
    "restarted": EXIT_DEAD,
}
_NS_PER_S: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ReaderRow:
    """A reader's distance from the writer. ``lag_percent`` is of the ring: at 100 a lossy reader begins to lose."""

    name: str
    gates: bool
    pid: int
    state: str
    lag: int
    lag_percent: float
    age_s: float
    lost: int


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """One segment. A field is None where the word has no meaning for that kind, or needs two samples."""

    name: str
    kind: str
    path: str
    layout_version: tuple[int, int]
    record_schema: tuple[int, int]
    pid: int
    state: WriterState
    heartbeat_age_s: float
    slot_count: int
    slot_size: int
    published: int | None
    rate_per_s: float | None
    free: int | None
    full_count: int | None
    dropped_count: int | None
    laps: int | None
    readers: tuple[ReaderRow, ...]


@dataclass(frozen=True, slots=True)
class CounterRow:
    """One counter."""

    id: int
    name: str
    unit: str
    label: str
    value: int


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the stats command shows; ``state`` is that of the writer in the worst shape."""

    path: str
    state: WriterState | None
    segments: tuple[SegmentRow, ...]
    counters: tuple[CounterRow, ...]
    errors: tuple[str, ...]
    exit_code: int


def build_report(before: Sample | None, after: Sample) -> Report:
    """Compare two samples of the same path; without ``before`` there are no rates."""
    earlier = {each.inode: each for each in before.segments} if before is not None else {}
    states = {each.state for each in after.segments}
    state = next((each for each in _WORST_FIRST if each in states), None)
    return Report(
        path=str(after.path),
        state=state,
        segments=tuple(_segment_row(earlier.get(each.inode), each) for each in after.segments),
        counters=tuple(
            CounterRow(spec.id, spec.name, spec.unit, spec.label, value)
            for each in after.segments
            for spec, value in each.counters
        ),
        errors=tuple(f"{path.name}: {error}" for path, error in after.errors),
        exit_code=_exit_code(state, after),
    )


def as_json(report: Report) -> dict[str, Any]:
    """Return a report as plain values, with the ``schema`` that names their shape."""
    return {"schema": SCHEMA, **asdict(report)}


def _exit_code(state: WriterState | None, sample: Sample) -> int:
    if any(isinstance(error, VersionMismatch | WrongEndianness) for _, error in sample.errors):
        return EXIT_VERSION
    return EXIT_NO_RING if state is None else _EXIT_CODES[state]


def _segment_row(before: SegmentSample | None, now: SegmentSample) -> SegmentRow:
    header = now.header
    kind = header.kind
    counts_records = kind in (Kind.BROADCAST, Kind.GATING, Kind.APPEND)
    is_gating = kind is Kind.GATING
    return SegmentRow(
        name=header.name,
        kind=kind.name.lower(),
        path=str(now.path),
        layout_version=header.layout_version,
        record_schema=header.record_schema,
        pid=header.writer_pid,
        state=now.state,
        heartbeat_age_s=_age_s(now, now.heartbeat_ns),
        slot_count=header.slot_count,
        slot_size=header.slot_size,
        published=now.published if counts_records else None,
        rate_per_s=_rate(before, now) if counts_records else None,
        free=_free(now),
        full_count=now.full_count if is_gating else None,
        dropped_count=now.dropped_count if is_gating else None,
        laps=now.published // header.slot_count if kind in (Kind.BROADCAST, Kind.GATING) else None,
        readers=tuple(_reader_row(now, reader) for reader in now.readers),
    )


def _age_s(now: SegmentSample, heartbeat_ns: int) -> float:
    return max(0, now.taken_ns - heartbeat_ns) / _NS_PER_S


def _rate(before: SegmentSample | None, now: SegmentSample) -> float | None:
    if before is None or now.taken_ns <= before.taken_ns:
        return None
    return (now.published - before.published) * _NS_PER_S / (now.taken_ns - before.taken_ns)


def _free(now: SegmentSample) -> int | None:
    """Return the slots that can be filled at once; None for a lossy ring, which overwrites, and for counters."""
    count = now.header.slot_count
    if now.header.kind is Kind.APPEND:
        return count - now.published
    if now.header.kind is Kind.TABLE:
        return count - now.rows_in_use
    if now.header.kind is Kind.GATING:
        return count - max((now.published - each.position for each in now.readers if each.gates), default=0)
    return None


def _reader_row(now: SegmentSample, reader: ReaderSample) -> ReaderRow:
    lag = max(0, now.published - reader.position)
    return ReaderRow(
        name=reader.name,
        gates=reader.gates,
        pid=reader.pid,
        state="alive" if reader.is_alive else "dead",
        lag=lag,
        lag_percent=100 * lag / now.header.slot_count,
        age_s=_age_s(now, reader.heartbeat_ns),
        lost=reader.lost,
    )
