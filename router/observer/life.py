"""One life of one router: its rings and tables, read from where we were to their end, and no row twice.

The done records are read first and then the token records up to that moment: the router writes a request's token
records before its done record, so whatever ``tokens.ring`` says of a request is there when its row is made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from ringbuffer import BroadcastReader, CountersReader, RingError, TableReader
from router.observer.assemble import NO_TOKEN_SEQ, WORDS_PER_EVENT, Assembler, Gaps, Pace, Words
from router.observer.batch import Loss, Lost
from router.observer.positions import Position
from router.observer.rows import NO_DONE_SEQ, Origin, RequestRow, RowKey, row_of
from router.stamps import STAMPS
from router.telemetry import records as rec
from router.telemetry.reader import Names

ROWS_PER_POLL: Final = 1024
"""Done records taken at one look: what is behind them waits for the next one, a tenth of a second later."""
TOKENS_PER_READ: Final = 32_768
"""Token records copied at once: 2 MiB, and enough for numpy to pay."""
ROUTER_DIED: Final = "router_died"
"""``error`` of a row that was made from the in-flight table."""

_DIED: Final = "the router died before this request had ended"
_DIED_LATE: Final = "the router died before it had recorded how this request ended"
_TOK1, _TOK_N, _DONE_STAMP = STAMPS.index("tok1"), STAMPS.index("tokN"), STAMPS.index("done")
_HEAD_HOST, _HEAD_PHASE = -6, -1
"""Where host and phase stand among the values of :data:`router.telemetry.records.HEAD`, counted from its end."""
READERS: Final = "readers"
_SWEEP_EVERY_NS: Final = 1_000_000_000
_SWEEPS_AFTER_LOSS: Final = 3
"""The first may come too early to see what was lost; the other two find the same request twice, as is required."""


EARLIER_RECORDS: Final = 1024
"""Done records before the position that are read for what ran beside the ones behind it: as many as one look takes."""

Sealed = Callable[[str, int, int], Mapping[RowKey, int]]
"""Tells the rows of a life that the journal has put away, as :meth:`router.observer.journal.Journal.sealed`."""


def nothing_sealed(_instance: str, _generation: int, _done_seq: int) -> Mapping[RowKey, int]:
    """Tell that a journal has put away no rows."""
    return {}


class Finished(NamedTuple):
    """A row and the gaps between its tokens."""

    row: RequestRow
    gaps: Gaps


class HostLoads(NamedTuple):
    """What a router works on now."""

    running_by_host: dict[str, int]
    waiting_count: int


class Life:
    """Reads one generation.

    Raises :class:`ringbuffer.RingError` when its segments cannot be read. Without a position, the oldest record there
    is comes first; ``from_start`` says that those before it count as lost. ``durable``: the rows that the journal has
    although the position may not say so, each with its ``done_seq``; ``sealed`` is asked for more of them when there is
    no position.
    """

    def __init__(
        self,
        directory: Path,
        instance: str,
        position: Position | None,
        durable: Mapping[RowKey, int],
        sealed: Sealed = nothing_sealed,
        *,
        from_start: bool = False,
    ) -> None:
        self.instance = instance
        self.directory = directory
        self.generation = int(directory.name)
        self.is_over = False
        """Nothing more will come; what was handed out may still be uncommitted."""
        self.event_count = 0
        own = (instance, self.generation)
        self._durable = {key: seq for key, seq in durable.items() if key[:2] == own}
        self._names = Names(directory)
        self._inflight = TableReader.attach(directory / "inflight.tab", record_schema=rec.RECORD_SCHEMA)
        self._counters = CountersReader.attach(directory / "counters")
        boot_id = self._inflight.header.boot_id.hex
        done_seq = token_seq = 0 if from_start else None
        if position is not None and position.boot_id == boot_id:
            done_seq, token_seq = position.done_seq, position.token_seq
        else:
            oldest_seq = _oldest_seq(directory / "done.ring")
            put_away = sealed(instance, self.generation, oldest_seq)
            self._durable |= put_away
            if put_away:  # then it was followed before: what was overwritten since counts as lost, and no more
                done_seq, token_seq = min(oldest_seq, max(put_away.values()) + 1), None
        self._boot_id = boot_id
        self._done = _attach(directory, "done", done_seq)
        self._tokens = _attach(directory, "tokens", token_seq)
        self._done_expected, self._tokens_expected = self._done.position, self._tokens.position
        self._done_last_ns = self._tokens_last_ns = 0
        self._assembler = Assembler()
        self._buffer = bytearray(TOKENS_PER_READ * rec.TOKENS_SLOT_BYTES)
        self._words: Words = np.frombuffer(self._buffer, np.uint64).reshape(-1, WORDS_PER_EVENT)
        self._records: deque[tuple[int, dict[str, Any]]] = deque()
        """Done records that were read and are no rows yet."""
        self._finished: list[Finished] = []
        self._losses: list[Loss] = []
        """What was not returned yet."""
        self._uncommitted: dict[RowKey, tuple[int, int]] = {}
        self._sweep_ns = 0
        self._sweeps_due = 0
        self._origin = Origin(instance, self.generation, self._names, self._done.header.wall_ns)
        self._known = self._read_earlier()

    # ------------------------------------------------------------ reading
    def poll(self, now_ns: int, *, writer_is_gone: bool) -> tuple[list[Finished], list[Loss]]:
        """Return what has finished since the last look. ``writer_is_gone`` must have been found out before this call.

        When it raises, what was read before comes with the next call, and the record at fault no more. Without a writer
        this is all there will ever be: once the rings are empty, the requests that were in flight follow, as
        aborted, and the life is over.
        """
        losses, finished = self._losses, self._finished
        self._records += self._read_done(now_ns, losses, is_last=writer_is_gone)
        self._read_tokens(now_ns, losses, is_last=writer_is_gone)
        while self._records:
            each = self._finish(*self._records.popleft())
            if each is not None:
                finished.append(each)
        if self._sweeps_due and now_ns - self._sweep_ns >= _SWEEP_EVERY_NS:
            self._sweep(now_ns)
        if writer_is_gone and self._done.lag == 0 and self._tokens.lag == 0:
            finished += self._abort(now_ns, losses)
            self.is_over = True
        self._losses, self._finished = [], []
        return finished, losses

    def take_known(self) -> list[RequestRow]:
        """Return, once, the rows that are durable already and were met on the way: for what ran beside the others."""
        known, self._known = self._known, []
        return known

    def _read_earlier(self) -> list[RequestRow]:
        """Read the records right before the position that the ring still has."""
        count = min(EARLIER_RECORDS, self._done.position)
        if not count:
            return []
        records = BroadcastReader(self._done.segment, self._done.position - count, None).poll(count)
        return [
            row_of(rec.decode_done(payload), self._origin, seq) for seq, payload in records if seq < self._done.position
        ]

    def _read_done(self, now_ns: int, losses: list[Loss], *, is_last: bool) -> list[tuple[int, dict[str, Any]]]:
        records = []
        for seq, payload in self._done.poll(ROWS_PER_POLL):
            record = rec.decode_done(payload)
            done_ns = record["stamps"][_DONE_STAMP]
            if seq != self._done_expected:
                self._lose_requests(seq, done_ns, losses)
            self._done_expected, self._done_last_ns = seq + 1, done_ns
            records.append((seq, record))
        if is_last and self._done.lag == 0 and self._done.position > self._done_expected:
            self._lose_requests(self._done.position, now_ns, losses)
            self._done_expected = self._done.position
        return records

    def _lose_requests(self, next_seq: int, next_ns: int, losses: list[Loss]) -> None:
        """Count the done records that were overwritten, without those whose rows are durable all the same."""
        losses += [
            self._loss("requests", len(lost), lost.start, self._done_last_ns, next_ns)
            for lost in _runs(range(self._done_expected, next_seq), self._durable.values())
        ]

    def _read_tokens(self, now_ns: int, losses: list[Loss], *, is_last: bool) -> None:
        """Read up to what is published now: on a busy machine the end would otherwise run ahead of us."""
        target = self._tokens.position + self._tokens.lag
        while self._tokens.position < target:
            count = self._tokens.poll_into(self._buffer)
            if not count:
                break
            words = self._words[:count]
            self._note_token_losses(words, losses)
            self._assembler.add(words)
            self.event_count += count
            self._tokens_expected, self._tokens_last_ns = int(words[-1, 0]) + 1, int(words[-1, 1])
        if is_last and self._tokens.lag == 0 and self._tokens.position > self._tokens_expected:
            lost_count = self._tokens.position - self._tokens_expected
            losses.append(self._loss("tokens", lost_count, self._tokens_expected, self._tokens_last_ns, now_ns))
            self._tokens_expected = self._tokens.position

    def _note_token_losses(self, words: Words, losses: list[Loss]) -> None:
        seqs = words[:, 0].astype(np.int64)
        if seqs[0] == self._tokens_expected and seqs[-1] - seqs[0] == len(seqs) - 1:
            return
        before = np.concatenate(([self._tokens_expected - 1], seqs[:-1]))
        for at in np.flatnonzero(seqs - before > 1).tolist():
            begin_ns = int(words[at - 1, 1]) if at else self._tokens_last_ns
            count, first_seq = int(seqs[at] - before[at]) - 1, int(before[at]) + 1
            losses.append(self._loss("tokens", count, first_seq, begin_ns, int(words[at, 1])))

    def _finish(self, seq: int, record: dict[str, Any]) -> Finished | None:
        pace = self._assembler.take(record["request_seq"], record["n_events"], record["n_content"])
        return self._handed_out(row_of(record, self._origin, seq, pace.summary), pace)

    def _handed_out(self, row: RequestRow, pace: Pace) -> Finished | None:
        if row.key in self._durable:
            self._known.append(row)
            return None
        if row.key in self._uncommitted:  # the abort that it is part of was begun before
            return None
        self._uncommitted[row.key] = row.done_seq, pace.first_token_seq
        return Finished(row, pace.gaps)

    def _loss(self, what: Lost, record_count: int, first_seq: int, begin_ns: int, end_ns: int) -> Loss:
        self._sweeps_due = _SWEEPS_AFTER_LOSS
        return Loss(self.instance, self.generation, what, record_count, first_seq, begin_ns, end_ns)

    def _sweep(self, now_ns: int) -> None:
        """Let go of requests whose ends were lost."""
        self._sweep_ns = now_ns
        self._sweeps_due -= 1
        heads = (rec.HEAD.unpack_from(payload)[0] for _, payload in self._inflight.rows())
        self._assembler.forget_strangers(set(heads))

    # ------------------------------------------------------------ what was in flight when the router died
    def _abort(self, now_ns: int, losses: list[Loss]) -> list[Finished]:
        recorded = self._last_recorded()
        rows = [rec.decode_done(payload) for _, payload in self._inflight.rows()]
        if self._inflight.torn_count:
            losses.append(self._loss("inflight", self._inflight.torn_count, -1, self._died_ns(0), now_ns))
        finished = [self._aborted(row) for row in rows if row["request_seq"] != recorded]
        return [each for each in finished if each is not None]

    def _last_recorded(self) -> int:
        """Return the request of the last done record, -1 without one. Of all that are recorded only its row can still
        stand in the table: the router publishes a record and clears the row right after.
        """
        last = BroadcastReader(self._done.segment, max(0, self._done.position - 1), None).poll(1)
        return int(rec.decode_done(last[0][1])["request_seq"]) if last else -1

    def _died_ns(self, last_ns: int) -> int:
        return max(self._done.segment.heartbeat_ns, self._done_last_ns, last_ns)

    def _aborted(self, record: dict[str, Any]) -> Finished | None:
        request_seq = record["request_seq"]
        seen = self._assembler.open_pace(request_seq)
        stamps = list(record["stamps"])
        stamps[_TOK1] = stamps[_TOK1] or seen.tok1_mono_ns
        stamps[_TOK_N] = max(stamps[_TOK_N], seen.tok_n_mono_ns)
        stamps[_DONE_STAMP] = self._died_ns(max(seen.last_mono_ns, *stamps))
        record |= {
            "stamps": tuple(stamps),
            "outcome": int(rec.Outcome.ABORTED),
            "flags": record["flags"] | rec.DoneFlag.N_OUT_ESTIMATED,
            "n_events": seen.n_events,
            "n_content": seen.n_content,
            "n_out": seen.n_content,
            "n_first": min(1, seen.n_content),
            "message": _DIED_LATE if seen.has_ended else _DIED,
        }
        pace = self._assembler.take(request_seq, seen.n_events, seen.n_content)
        row = msgspec.structs.replace(row_of(record, self._origin, NO_DONE_SEQ, pace.summary), error=ROUTER_DIED)
        return self._handed_out(row, pace)

    # ------------------------------------------------------------ what is durable
    def commit(self, key: RowKey) -> None:
        """The row of this request is durable."""
        self._uncommitted.pop(key, None)

    @property
    def is_closed(self) -> bool:
        """Everything was read, and every row is durable."""
        return self.is_over and not self._uncommitted

    def position(self) -> Position:
        """Return where to read on when this process is no more."""
        done_seq, token_seq = self._done.position, self._tokens.position
        if self._records:
            done_seq = self._records[0][0]
        for row_seq, first_token_seq in self._uncommitted.values():
            if row_seq != NO_DONE_SEQ:
                done_seq = min(done_seq, row_seq)
            if first_token_seq != NO_TOKEN_SEQ:
                token_seq = min(token_seq, first_token_seq)
        first_open_seq = self._assembler.first_open_seq
        if first_open_seq is not None:
            token_seq = min(token_seq, first_open_seq)
        return Position(self.instance, self.generation, self._boot_id, done_seq, token_seq, self.is_closed)

    # ------------------------------------------------------------ what it does now
    @property
    def lag_records(self) -> int:
        """Records written and not read yet."""
        return self._done.lag + self._tokens.lag

    @property
    def open_count(self) -> int:
        """Requests that token records are kept of."""
        return self._assembler.open_count

    def counters(self) -> dict[str, int]:
        """Return the router's counters by name."""
        return {spec.name: value for spec, value in self._counters.read()}

    def loads(self) -> HostLoads:
        """Return what runs where and how much waits, by the in-flight table."""
        running: dict[str, int] = {}
        waiting_count = 0
        for _, payload in self._inflight.rows():
            head = rec.HEAD.unpack_from(payload)
            if head[_HEAD_PHASE] == rec.Phase.WAITING:
                waiting_count += 1
            elif head[_HEAD_HOST]:
                host = self._names.host(head[_HEAD_HOST])
                running[host] = running.get(host, 0) + 1
        return HostLoads(running, waiting_count)

    def close(self) -> None:
        """Unmap the segments and withdraw the positions in the rings."""
        for each in (self._done, self._tokens, self._inflight, self._counters, self._names):
            each.close()


def _runs(numbers: range, without: Collection[int]) -> list[range]:
    """Return what is left of ``numbers`` as unbroken runs, so that each loss has the same name whoever finds it."""
    begin, runs = numbers.start, []
    for number in sorted(each for each in without if each in numbers):
        runs.append(range(begin, number))
        begin = number + 1
    runs.append(range(begin, numbers.stop))
    return [run for run in runs if run]


def _oldest_seq(path: Path) -> int:
    """Return the sequence of the oldest record that a ring has."""
    reader = _attach_at(path, None, None)
    try:
        return reader.position
    finally:
        reader.close()


def _attach(directory: Path, ring: str, position: int | None) -> BroadcastReader:
    """Attach where we were, or to the oldest record there is; seen by ``stats`` where we may write our position."""
    path, mark = directory / f"{ring}.ring", directory / READERS / f"observer-{ring}"
    try:
        return _attach_at(path, position, mark)
    except (RingError, OSError):  # the mark may not be ours to write
        return _attach_at(path, position, None)


def _attach_at(path: Path, position: int | None, mark: Path | None) -> BroadcastReader:
    try:
        return BroadcastReader.attach(
            path, "oldest" if position is None else position, mark, record_schema=rec.RECORD_SCHEMA
        )
    except ValueError:  # a position that the ring has not reached is that of another ring
        return BroadcastReader.attach(path, "oldest", mark, record_schema=rec.RECORD_SCHEMA)
