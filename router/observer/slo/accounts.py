"""Book, store and journal together: what the pipeline asks, and how no request is counted twice or not at all.

A row is counted when it is read, and written down later. What a killed observer had counted is found again like this::

    counted, and in the last file            the file's counts have it
    counted after it, and in the journal     the journal's segments beyond the file's ``extents`` are read again
    counted, and in neither                  the follower hands it out again: its position waits for the journal
    in the file, and handed out again        the file names it as open: it is passed over, by its key

Without a journal the file stands in its place: the position in the rings waits until the file that has a row counted is
on the disk. What was counted and then given up by a journal whose disk takes nothing is lost by a kill, up to the last
file; so is, after a power cut, what the disk had not been made to keep.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from router.config import Config
from router.observer import segments
from router.observer.alerts.model import Finding
from router.observer.rows import RequestRow
from router.observer.slo.book import SCHEMA, SloBook
from router.observer.slo.findings import findings_of
from router.observer.slo.status import SCHEMA as PAGE_SCHEMA
from router.observer.slo.status import SloPage, SloStatus
from router.observer.slo.store import File, Store

SAVE_EVERY_NS: Final = 10_000_000_000
"""Between two files; far below the minute for which the journal keeps a segment beside its Parquet file."""
HELD_MAX: Final = 2048
"""Rows that wait for a file before one is written at once, without a journal."""
HELD_TOO_LONG: Final = 16_384
"""Rows that wait for a file that cannot be written until they are let go: what is in front of them in the rings would
be overwritten before another life could read it."""
_ROWS_AT_ONCE: Final = 4096


class SloAccounts:
    """The counts of all objectives, over kills and restarts. ``journal`` is its directory, ``None`` without one."""

    def __init__(self, config: Config, data_dir: Path, journal: Path | None, wall_ns: int) -> None:
        self.book = SloBook(config, wall_ns)
        self._journal = journal
        self._store = Store(data_dir)
        self._held: list[RequestRow] = []
        """Rows that wait for a file that has them; only without a journal."""
        self._in_file: list[RequestRow] = []
        """Rows of the file that is being written, likewise."""
        self._saved_ns = 0
        self._is_new = False
        self._statuses: list[SloStatus] = []
        self._evaluated_ns: int | None = None
        self._load(wall_ns)
        self._store.save_now(self._file(wall_ns))

    def _load(self, wall_ns: int) -> None:
        file = self._store.load()
        try:
            if file is not None:
                self.book.restore(file.book)
        except ValueError as error:
            self._store.put_aside(error)
            file = None
        if file is None:
            return
        if self._journal is not None:
            for rows in _rows_behind(self._journal, file.extents):
                self.book.add(rows, wall_ns, is_durable=True)

    # ------------------------------------------------------------ the turn
    def add(self, rows: Sequence[RequestRow], wall_ns: int) -> None:
        """Count rows that were just read."""
        if rows:
            self._is_new = True
            self.book.add(rows, wall_ns)

    def settle(self, rows: Sequence[RequestRow]) -> Sequence[RequestRow]:
        """Take rows that are durable in the journal, or settled without one; return those the position may pass."""
        if self._journal is not None:
            self.book.commit(rows)
            self._store.ended()
            return rows
        self._held += rows
        return self._in_file_now()

    def _in_file_now(self) -> list[RequestRow]:
        """Return, once, the rows that the file on the disk has, and those that have waited for too long."""
        has_ended = self._store.ended()
        if has_ended is None:
            return []
        passed, self._in_file = self._in_file, []
        if not has_ended:
            self._held = passed + self._held
            too_many = max(0, len(self._held) - HELD_TOO_LONG)
            passed, self._held = self._held[:too_many], self._held[too_many:]
        self.book.commit(passed)
        return passed

    def save_when_due(self, now_ns: int, wall_ns: int) -> None:
        """Have the file written when it is time. ``now_ns`` is monotonic. Raises OSError when the journal is away."""
        is_due = now_ns - self._saved_ns >= SAVE_EVERY_NS or len(self._held) >= HELD_MAX
        if self._store.is_saving or not is_due or not (self._is_new or self._held):
            return
        self._saved_ns = now_ns
        file = self._file(wall_ns)
        self._is_new = False
        self._in_file, self._held = self._held, []
        self._store.begin(file)

    def close(self, rows: Sequence[RequestRow], wall_ns: int) -> Sequence[RequestRow]:
        """Write the file; return the rows that the position may pass, of these and of those that waited."""
        self._store.wait()
        waiting = [*self._in_file, *self._held, *rows]
        if self._journal is not None:
            self.book.commit(rows)
        is_saved = self._store.save_now(self._file(wall_ns))
        self._store.close()
        return waiting if is_saved or self._journal is not None else []

    def _file(self, wall_ns: int) -> File:
        extents = {} if self._journal is None else _extents(self._journal)
        return File(SCHEMA, self.book.written(wall_ns), extents)

    # ------------------------------------------------------------ how they fare
    def statuses(self, wall_ns: int) -> list[SloStatus]:
        """Return how all objectives fare, worked out anew at most twice in the time between two evaluations."""
        age_ns = None if self._evaluated_ns is None else wall_ns - self._evaluated_ns
        if age_ns is None or not 0 <= age_ns < self.book.evaluate_every_ns // 2:
            self._statuses, self._evaluated_ns = self.book.evaluate(wall_ns), wall_ns
        return self._statuses

    def tick(self, wall_ns: int) -> None:
        """Keep :attr:`latest` up to date."""
        if self._evaluated_ns is None or abs(wall_ns - self._evaluated_ns) >= self.book.evaluate_every_ns:
            self.statuses(wall_ns)

    @property
    def latest(self) -> list[SloStatus]:
        """How all objectives fared at the last evaluation."""
        return self._statuses

    def findings(self, wall_ns: int) -> list[Finding]:
        """Return what is wrong with the objectives now."""
        return list(findings_of(self.statuses(wall_ns), wall_ns))

    def page(self, wall_ns: int, name: str = "") -> SloPage:
        """Return the answer of ``/slo.json``, with ``name`` of one objective; raises ValueError for an unknown one."""
        names = [objective.name for objective in self.book.objectives]
        if name and name not in names:
            raise ValueError(f"name={name[:80]}: expected one of {', '.join(names)}")
        return SloPage(
            schema=PAGE_SCHEMA,
            wall_ns=wall_ns,
            time_scale=self.book.time_scale,
            problem=self.problem,
            statuses=[each for each in self.statuses(wall_ns) if not name or each.slo == name],
        )

    @property
    def problem(self) -> str:
        """What is lost, or cannot be written just now; empty when all is well."""
        return self._store.problem or self._store.lost


def no_objectives(wall_ns: int, name: str = "") -> SloPage:
    """Return the answer of ``/slo.json`` of an observer without objectives; raises ValueError when one is named."""
    if name:
        raise ValueError(f"name={name[:80]}: there are no objectives, see [[slo]] of the configuration")
    return SloPage(schema=PAGE_SCHEMA, wall_ns=wall_ns, time_scale=1, problem="", statuses=[])


def _extents(journal: Path) -> dict[str, int]:
    """Return how long each segment is."""
    found = {}
    for path in segments.segment_paths(journal):
        with contextlib.suppress(FileNotFoundError):
            found[path.name] = path.stat().st_size
    return found


def _rows_behind(journal: Path, extents: dict[str, int]) -> Iterator[list[RequestRow]]:
    """Yield the rows of the segments beyond what is known of them; lines that cannot be read are passed over."""
    decode = msgspec.json.Decoder(RequestRow).decode
    rows: list[RequestRow] = []
    for path in segments.segment_paths(journal):
        with path.open("rb") as lines:
            lines.seek(extents.get(path.name, 0))
            for line in lines:
                with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                    rows.append(decode(line))
                if len(rows) >= _ROWS_AT_ONCE:
                    yield rows
                    rows = []
    yield rows
