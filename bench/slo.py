"""What objectives cost the observer: counting a row, an evaluation, the copy for the file, and the file.

    python -m bench.slo

Rows are those of :mod:`bench.journal`, a thousand at a time, over a month of calendar time, half of them good. Times
are of the processor, medians of rounds.
"""

from __future__ import annotations

import statistics
import sys
import time
import zlib
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from bench import machine
from bench.journal import made_rows
from router import config
from router.observer.rows import RequestRow
from router.observer.slo.book import SloBook

ROUNDS: Final = 60
ROWS_PER_ROUND: Final = 1000
STEP_NS: Final = 12 * 3600 * 10**9
BEGIN_NS: Final = 1_763_899_200 * 10**9
SHAPES: Final = ((1, 0), (5, 0), (5, 10), (20, 50), (7, 256))
"""Objectives, and groups of each."""


class Cost(NamedTuple):
    """Of one shape."""

    row_us: float
    evaluate_ms: float
    copy_ms: float
    file_ms: float
    file_bytes: int
    group_count: int


def book_of(objective_count: int, group_count: int) -> SloBook:
    """Return a book of objectives of the time to the first token, with so many groups each."""
    grouped = f'group_by = ["host"]\ngroups_max = {group_count}\n' if group_count else ""
    entries = (
        f'[[slo]]\nname = "o{i}"\nmetric = "e2e"\nthreshold_ms = 500\nobjective = 99\n{grouped}'
        for i in range(objective_count)
    )
    return SloBook(config.parse("version = 1\n" + "".join(entries)), BEGIN_NS)


def measure(objective_count: int, group_count: int, rows: list[RequestRow]) -> Cost:
    """Count a month of rows and evaluate."""
    book, wall_ns = book_of(objective_count, group_count), BEGIN_NS
    took_us = []
    for number in range(ROUNDS):
        wall_ns += STEP_NS
        batch = [
            replace(row, request_seq=number * ROWS_PER_ROUND + i, end_wall_ns=wall_ns - i * 10**8,
                    host=f"h{i % max(1, group_count)}", e2e_ns=(i % 2) * 10**9)
            for i, row in enumerate(rows)
        ]  # fmt: skip
        took_us.append(1e3 * timed_ms(lambda batch=batch, now_ns=wall_ns: book.add(batch, now_ns)) / len(batch))
        book.commit(batch)
    evaluate_ms = statistics.median(timed_ms(lambda: book.evaluate(wall_ns)) for _ in range(9))
    copy_ms = statistics.median(timed_ms(lambda: book.written(wall_ns)) for _ in range(9))
    written = book.written(wall_ns)
    file_ms = statistics.median(timed_ms(lambda: zlib.compress(msgspec.msgpack.encode(written), 1)) for _ in range(5))
    file_bytes = len(zlib.compress(msgspec.msgpack.encode(written), 1))
    return Cost(statistics.median(took_us), evaluate_ms, copy_ms, file_ms, file_bytes, len(book.evaluate(wall_ns)))


def timed_ms(work: Callable[[], object]) -> float:
    """Return what a piece of work takes of the processor."""
    begin_s = time.process_time()
    work()
    return 1e3 * (time.process_time() - begin_s)


def main() -> int:
    """Print the table."""
    rows = list(made_rows(ROWS_PER_ROUND, BEGIN_NS))
    print("\n".join(machine.facts()))
    print("objectives  groups  us/row  evaluate ms  copy ms  file ms (in a thread)  file bytes")
    for objective_count, group_count in SHAPES:
        cost = measure(objective_count, group_count, rows)
        print(
            f"{objective_count:10}  {cost.group_count:6,}  {cost.row_us:6.1f}  {cost.evaluate_ms:11.1f}  "
            f"{cost.copy_ms:7.1f}  {cost.file_ms:21.1f}  {cost.file_bytes:10,}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
