"""What a finished request costs behind the rings: its cost worked out, its row written, converted and asked for.

    python -m bench.journal
    python -m bench.journal --rows 200000

The rows are made of done records as the router writes them, with the tags of 7 features, 3 prompt versions and 5,000
users, at 2,000 requests a second on 4 hosts, beside 64 that always run. Times are of the processor.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bench import machine
from router.config import JournalConfig
from router.observer import parquet, segments
from router.observer.cost import CostMeter
from router.observer.in_flight import Running, Sighting
from router.observer.journal import Journal
from router.observer.prices import Prices
from router.observer.report import make_report
from router.observer.rows import Origin, RequestRow, row_of
from router.telemetry import records as rec

REQUESTS_PER_S = 2000
BATCH_ROWS = REQUESTS_PER_S // 10
HOSTS = ("gpu0", "gpu1", "gpu2", "gpu3")
RUNNING_COUNT = 64
BEGIN_NS = 10**12
S = 10**9
T = TypeVar("T")


class _Names:
    """What ``names.tab`` would say."""

    def host(self, host_id: int) -> str:
        return HOSTS[host_id - 1]

    def model(self, _: int) -> str:
        return "chat"

    def tags(self, ids: Sequence[int]) -> dict[str, str]:
        return {"feature_name": f"feature-{ids[0]}", "prompt_version": f"v{ids[1]}", "device_type": "phone"}


def made_rows(count: int, wall_ns: int) -> Iterator[RequestRow]:
    """Yield rows of requests that ended well, one after the other, the last one at ``wall_ns``."""
    pick = random.Random(1)
    empty = rec.decode_done(bytes(rec.DONE_PAYLOAD_BYTES))
    length_ns = count * S // REQUESTS_PER_S
    origin = Origin("main", BEGIN_NS, _Names(), lambda t_ns: wall_ns - BEGIN_NS - length_ns + t_ns)  # type: ignore[arg-type]
    for seq in range(count):
        end_ns = BEGIN_NS + (seq + 1) * S // REQUESTS_PER_S
        yield row_of(empty | _fields(seq, end_ns, pick), origin, seq)


def _fields(seq: int, end_ns: int, pick: random.Random) -> dict[str, Any]:
    recv_ns = max(BEGIN_NS, end_ns - round(pick.lognormvariate(0, 1) * 0.2 * S))
    times = sorted(pick.randrange(recv_ns, end_ns + 1) for _ in range(13))
    return {
        "request_seq": seq,
        "stamps": (recv_ns, *times, end_ns),
        "outcome": int(rec.Outcome.OK),
        "flags": int(rec.DoneFlag.STREAM),
        "endpoint": int(rec.Endpoint.CHAT),
        "host": 1 + seq % len(HOSTS),
        "model": 1,
        "n_in": 500,
        "n_out": 200,
        "n_first": 1,
        "tag_ids": (seq % 7, seq % 3),
        "user_id": f"user-{pick.randrange(5000)}",
        "request_id": f"{pick.getrandbits(128):032x}",
        "trace_id": f"{pick.getrandbits(128):032x}",
    }


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """Call and return the result and the seconds of processor time it took, all threads together."""
    begin = time.process_time()
    result = call()
    return result, time.process_time() - begin


def settle(rows: Sequence[RequestRow]) -> list[RequestRow]:
    """Give every row its cost, a batch ten times a second."""
    meter = CostMeter(Prices("USD", dict.fromkeys(HOSTS, 2.5)), HOSTS)
    running = tuple(Running(2**40 + i, HOSTS[i % len(HOSTS)], BEGIN_NS, BEGIN_NS + i) for i in range(RUNNING_COUNT))
    settled: list[RequestRow] = []
    for begin in range(0, len(rows), BATCH_ROWS):
        batch = rows[begin : begin + BATCH_ROWS]
        now_ns = batch[-1].done_mono_ns
        sighting = Sighting("main", BEGIN_NS, now_ns, begin + len(batch), running)
        meter.add(batch, [sighting], now_ns)
        settled += meter.settled(now_ns)
    return settled + meter.flush()


def append(directory: Path, rows: Sequence[RequestRow]) -> None:
    """Write the rows as the observer does, in batches, forced to the disk once a second."""
    journal = Journal(directory, JournalConfig())
    for begin in range(0, len(rows), BATCH_ROWS):
        journal.append(rows[begin : begin + BATCH_ROWS], begin * S // REQUESTS_PER_S)
    journal.close()


def measure(directory: Path, count: int) -> None:
    """Take rows through all of it and print what each part took."""
    wall_ns = time.time_ns()
    rows = list(made_rows(count, wall_ns))
    gc.freeze()  # the observer never holds so many
    settled, took_s = timed(lambda: settle(rows))
    print(f"cost        {took_s / count * 1e6:8.1f} µs a row")
    _, took_s = timed(lambda: append(directory, settled))
    print(f"write       {took_s / count * 1e6:8.1f} µs a row")
    paths = segments.segment_paths(directory)
    written = sum(path.stat().st_size for path in paths)
    print(f"segment     {written / count:8.0f} bytes a row")

    def ask() -> int:
        return make_report(directory, ("feature_name", "prompt_version"), wall_ns - 3600 * S, wall_ns + 1).total.n

    found, took_s = timed(ask)
    print(f"report      {took_s:8.2f} s for {found:,} rows in segments")
    _, took_s = timed(lambda: [parquet.convert(directory, path) for path in paths])
    print(f"convert     {count / took_s:8,.0f} rows/s")
    sealed = sum(path.stat().st_size for path in segments.parquet_paths(directory))
    print(f"Parquet     {sealed / count:8.0f} bytes a row")
    found, took_s = timed(ask)
    print(f"report      {took_s:8.2f} s for {found:,} rows in Parquet")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.journal", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=40_000, help="finished requests (default: 40,000)")
    arguments = parser.parse_args()
    for fact in machine.facts():
        print(fact)
    with tempfile.TemporaryDirectory(prefix="rr-bench-") as directory:
        measure(Path(directory), arguments.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
