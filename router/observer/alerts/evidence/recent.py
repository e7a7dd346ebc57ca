"""The requests of the last two hours, in bounded memory: evidence does not need the journal; pure.

Above :data:`ROWS_MAX` requests every second one is forgotten, and each that is left stands for two; later ones are
taken at the same rate, until there is room again. Shares and means stay right, by their weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from router.observer.alerts.evidence.table import NO_ROWS, Table, Values, dimensions_of, joined, table_of
from router.observer.catalogue import Limits
from router.observer.rows import RequestRow

KEEP_NS: Final = 2 * 3600 * 1_000_000_000
"""An hour that is wrong, and the hour before it."""
ROWS_MAX: Final = 200_000
"""About 50 MB at 250 bytes each."""
_CHUNK_ROWS: Final = 4096
_WAITING_ROWS_MAX: Final = 512
"""Rows that wait to become columns: a few at a time cost as much as hundreds."""


class Recent:
    """Requests by when they ended. ``entries`` is ``observer.slices.tags``, ``goodput`` the limits of good answers."""

    def __init__(
        self, entries: Sequence[str] = (), goodput: Sequence[Limits] = (), rows_max: int = ROWS_MAX, seed: int = 1
    ) -> None:
        self.values = Values(dimensions_of(entries))
        self._limits = {each.workload_class: each for each in goodput}
        self._rows_max = rows_max
        self._waiting: list[RequestRow] = []
        self._chunks: deque[Table] = deque()
        self._count = 0
        self._one_in = 1
        self._random = np.random.default_rng(seed)

    def __len__(self) -> int:
        return self._count + len(self._waiting)

    @property
    def one_in(self) -> int:
        """One request in so many is kept now."""
        return self._one_in

    def add(self, rows: Sequence[RequestRow], wall_ns: int) -> None:
        """Take rows of users, with their cost."""
        self._waiting += rows
        if len(self._waiting) >= _WAITING_ROWS_MAX:
            self._take_waiting(wall_ns)

    def add_table(self, table: Table, wall_ns: int) -> None:
        """Take requests that are columns already; their codes are those of :attr:`values`."""
        if self._one_in > 1:
            table = _thinned(table, self._one_in, self._random)
        if not len(table):
            return
        if self._chunks and len(self._chunks[-1]) < _CHUNK_ROWS:
            table = joined([self._chunks.pop(), table])
        self._chunks.append(table)
        self._count = sum(map(len, self._chunks))
        self._expire(wall_ns)
        while self._count > self._rows_max:
            self._thin()
        if self._one_in > 1 and self._count < self._rows_max // 4:
            self._one_in //= 2

    def add_earlier(self, table: Table, values: Values, wall_ns: int) -> None:
        """Take requests whose codes are those of other values with the same dimensions."""
        codes = np.empty_like(table.codes)
        for at in range(len(self.values.dimensions)):
            used, places = np.unique(table.codes[:, at], return_inverse=True)
            moved = [self.values.code(at, values.text(at, code)) for code in used.tolist()]
            codes[:, at] = np.array(moved, dtype=np.int16)[places]
        self.add_table(replace(table, codes=codes), wall_ns)

    def between(self, begin_wall_ns: int, end_wall_ns: int) -> Table:
        """Return the requests that ended in ``[begin, end)``, in that order."""
        self._take_waiting(end_wall_ns)
        chunks = [
            chunk
            for chunk in self._chunks
            if chunk.end_wall_ns.max() >= begin_wall_ns and chunk.end_wall_ns.min() < end_wall_ns
        ]
        if not chunks:
            return NO_ROWS
        table = joined(chunks)
        inside = np.flatnonzero((table.end_wall_ns >= begin_wall_ns) & (table.end_wall_ns < end_wall_ns))
        return table.take(inside[np.argsort(table.end_wall_ns[inside], kind="stable")])

    def _take_waiting(self, wall_ns: int) -> None:
        if not self._waiting:
            return
        rows, self._waiting = self._waiting, []
        for dimension in range(len(self.values.dimensions)):
            if self.values.is_full(dimension):
                used = {int(code) for chunk in self._chunks for code in np.unique(chunk.codes[:, dimension])}
                self.values.keep_only(dimension, used)
        self.add_table(table_of(rows, self.values, self._limits), wall_ns)

    def _expire(self, wall_ns: int) -> None:
        while self._chunks and self._chunks[0].end_wall_ns.max() < wall_ns - KEEP_NS:
            self._count -= len(self._chunks.popleft())

    def _thin(self) -> None:
        """Forget every second request, at random."""
        self._chunks = deque(_thinned(chunk, 2, self._random) for chunk in self._chunks)
        self._count = sum(map(len, self._chunks))
        self._one_in *= 2


def _thinned(table: Table, one_in: int, random: np.random.Generator) -> Table:
    kept = table.take(random.random(len(table)) < 1 / one_in)
    kept.weight[:] *= one_in
    return kept
