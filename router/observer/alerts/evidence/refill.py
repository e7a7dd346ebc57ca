"""What ended in the two hours before the observer started, from the journal: a breach soon after has a before.

It is read by a thread, once, and at most :data:`ROWS_MAX` requests of it, chosen at random, each of which stands for
several then. Requests that ended while no observer ran may come twice, from the rings too: a share hardly moves by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import structlog

from router.observer import parquet
from router.observer.alerts.evidence.recent import KEEP_NS, Recent
from router.observer.alerts.evidence.table import NUMBERS, Table, Values, outcome_code
from router.observer.columns import TAG_COLUMNS
from router.observer.query import VIEW, JournalReader, QueryError
from router.observer.rows import STAGE_FIELDS
from router.telemetry.records import OWN_CLASSES, TEXT_BYTES

ROWS_MAX: Final = 20_000
_SEED: Final = 1
_LEFT: Final = "coalesce(nullif(left_ns, 0), duration_ns)"
_EXPRESSIONS: Final = {
    "early_tps": "early_tps * 1000",
    "waited": f"coalesce(ttft_ns, {_LEFT})",
    "left": _LEFT,
    "cost": "cost_amount",
    "stage.egress": "CASE WHEN folded THEN greatest(0, egress_ns - coalesce(decode_ns, 0)) ELSE egress_ns END",
    "stage.tool": "tool_ns",
    **{name: name for name in ("visible_2s", "n_in", "n_out")},
}
"""Columns of a table that are not the field of the same name; the same as :mod:`router.observer.alerts.evidence.table`
reads off a row."""
_FIELDS: Final = frozenset({"model", "host", "endpoint", "instance"})

_log = structlog.get_logger("evidence")


class Earlier(NamedTuple):
    """Requests with values of their own: codes of another thread cannot be those of now."""

    table: Table
    values: Values


class Refill:
    """Reads in a thread; :meth:`take` gives what came of it to the others, once."""

    def __init__(self, journal: Path, recent: Recent, wall_ns: int) -> None:
        self._recent = recent
        self._worker = ThreadPoolExecutor(1, "evidence")
        self._reading: Future[Earlier | None] | None = self._worker.submit(
            read_earlier, journal, recent.values.dimensions, wall_ns
        )

    @property
    def is_over(self) -> bool:
        """Whether everything that there was is taken."""
        return self._reading is None

    def take(self, wall_ns: int) -> None:
        """Give the requests to the recent ones, if they are read."""
        if self._reading is None or not self._reading.done():
            return
        error, found = self._reading.exception(), None
        if error is None:
            found = self._reading.result()
        else:
            _log.warning("earlier_requests_not_read", error=str(error))
        self._reading = None
        self._worker.shutdown()
        if found is not None:
            self._recent.add_earlier(found.table, found.values, wall_ns)

    def close(self) -> None:
        """Wait for the thread."""
        self._worker.shutdown()


def read_earlier(journal: Path, dimensions: Sequence[str], wall_ns: int) -> Earlier | None:
    """Return the requests of users that ended in the two hours before ``wall_ns``; ``None`` without any."""
    try:
        reader = JournalReader(journal, wall_ns - KEEP_NS)
    except QueryError:  # no journal yet, or no DuckDB
        return None
    try:
        own = ", ".join(parquet.quoted(name) for name in sorted(OWN_CLASSES))
        wanted = (
            f"FROM {VIEW} WHERE end_wall_ns >= {wall_ns - KEEP_NS} AND end_wall_ns < {wall_ns} "
            f"AND coalesce(workload_class, '') NOT IN ({own})"
        )
        (count,) = next(iter(reader.ask(f"SELECT count(*) {wanted}")))
        sql = f"SELECT * FROM (SELECT {_columns(dimensions)} {wanted})"  # noqa: S608 - names of tags are quoted
        rows = list(reader.ask(f"{sql} USING SAMPLE reservoir({ROWS_MAX} ROWS) REPEATABLE ({_SEED})"))
    finally:
        reader.close()
    return _earlier(rows, dimensions, max(1.0, count / ROWS_MAX)) if rows else None


def _columns(dimensions: Sequence[str]) -> str:
    stages = {f"stage.{name}": field for name, field in STAGE_FIELDS} | _EXPRESSIONS
    numbers = [_EXPRESSIONS.get(name) or stages.get(name) or f"{name}_ns" for name in NUMBERS]
    texts = [name if name in _FIELDS or name in TAG_COLUMNS else f"tags[{parquet.quoted(name)}]" for name in dimensions]
    columns = ["end_wall_ns", "outcome", "stream", "request_id", "trace_id", *texts, *numbers]
    return ", ".join(f"{column} AS c{place}" for place, column in enumerate(columns))


def _earlier(rows: list[tuple[Any, ...]], dimensions: Sequence[str], weight: float) -> Earlier:
    values = Values(dimensions)
    first_text, first_number = 5, 5 + len(dimensions)
    codes = [[values.code(at, text or "") for at, text in enumerate(each[first_text:first_number])] for each in rows]
    table = Table(
        end_wall_ns=np.array([each[0] for each in rows], dtype=np.int64),
        numbers=np.array([each[first_number:] for each in rows], dtype=np.float32),
        codes=np.array(codes, dtype=np.int16),
        outcome=np.array([outcome_code(each[1]) for each in rows], dtype=np.int8),
        good=np.full(len(rows), -1, dtype=np.int8),
        is_stream=np.array([each[2] for each in rows], dtype=np.bool_),
        weight=np.full(len(rows), weight, dtype=np.float32),
        request_id=np.array([(each[3] or "").encode("utf-8", "replace") for each in rows], dtype=f"S{TEXT_BYTES}"),
        trace_id=np.array([(each[4] or "").encode("ascii", "replace") for each in rows], dtype="S32"),
    )
    return Earlier(table, values)
