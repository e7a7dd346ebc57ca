"""What one look at the rings brings: rows, the gaps between their tokens, and what was lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.observer.rows import RequestRow
from router.telemetry.records import OWN_CLASSES


class PaceArrays(NamedTuple):
    """Every gap between content events of the finished requests of a batch, one place per gap.

    ``row``: index into ``Batch.rows``, ascending, int32. ``gap_ns``: nanoseconds, int64, in the order of the events
    within a row; events that came in one read of the host's socket are 0 apart. A request's gaps come with its row, all
    at once and exactly once, so that they can be counted under its tags.
    """

    row: NDArray[np.int32]
    gap_ns: NDArray[np.int64]


NO_PACE: Final = PaceArrays(np.empty(0, np.int32), np.empty(0, np.int64))


Lost = Literal["requests", "tokens", "inflight"]


class Loss(NamedTuple):
    """Records that were overwritten, or torn by the death of their router, before they were read; counted exactly."""

    instance: str
    generation: int
    what: Lost
    """``requests``: rows that will never come (done.ring). ``tokens``: events; the rows they touch are ``lossy``.
    ``inflight``: requests that ran when the router died and whose entry cannot be read."""
    record_count: int
    first_seq: int
    """Sequence of the first of them; -1 for ``inflight``. With instance, generation and ``what`` it names the loss: one
    that was not passed by a commit is found again after a restart."""
    begin_mono_ns: int
    """Nothing was lost before: the time of the last record read. 0 when none was."""
    end_mono_ns: int
    """Nothing was lost behind: the time of the next record read, or of the look that found the loss."""


class Batch(NamedTuple):
    """What one :meth:`router.observer.follow.Follower.poll` brings, rows in the order in which they ended."""

    rows: list[RequestRow]
    pace: PaceArrays
    losses: Sequence[Loss]


EMPTY: Final = Batch([], NO_PACE, ())


def of_users(rows: Sequence[RequestRow], pace: PaceArrays = NO_PACE) -> tuple[Sequence[RequestRow], PaceArrays]:
    """Return the rows that users have asked for, with their gaps: nobody waited for the others."""
    kept = [index for index, row in enumerate(rows) if row.tags.get("workload_class") not in OWN_CLASSES]
    if len(kept) == len(rows):
        return rows, pace
    places = np.full(len(rows), -1, np.int32)
    places[kept] = np.arange(len(kept), dtype=np.int32)
    moved = places[pace.row]
    is_kept = moved >= 0
    return [rows[index] for index in kept], PaceArrays(moved[is_kept], pace.gap_ns[is_kept])
