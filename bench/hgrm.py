"""Distributions as files in HdrHistogram's percentile format, which its plotter and other tools read.

A file has the answers of all rounds of one peer in one mode; values are in µs. The load generator counts in buckets
that are less than 0.8 % wide, so no value is nearer to the truth than that.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

TICKS_PER_HALF_DISTANCE = 5
"""Lines for each halving of the distance to 100 %, as HdrHistogram writes them by default."""
SUB_BUCKETS = 128
"""Steps for each power of two: those of ``c/histogram.h``."""

KINDS = {"ttft_over": "ttft", "tok": "token", "over": "answer"}
"""Names of the load generator's distributions → names in files: first token, further tokens, whole answers."""


class Row(NamedTuple):
    """One line: ``passed`` answers, at least ``level`` percent of all, took ``value_us`` at most."""

    value_us: float
    level: float
    passed: int


Buckets = list[tuple[float, int]]
"""Values in µs, ascending, each with how often it came."""


def merged(runs: Sequence[dict[str, Any]], kind: str) -> Buckets:
    """Add up one distribution of several runs; empty where they have none."""
    counts: collections.Counter[float] = collections.Counter()
    for run in runs:
        flat = run.get("buckets", {}).get(kind, [])
        for value_us, count in zip(flat[::2], flat[1::2], strict=True):
            counts[value_us] += count
    return sorted(counts.items())


def rows(buckets: Buckets) -> Iterator[Row]:
    """Yield the lines of a distribution that is not empty: percentiles ever nearer to 100, and 100 itself."""
    total = sum(count for _, count in buckets)
    level, passed = 0.0, 0
    for value_us, count in buckets:
        passed += count
        while 100 * passed >= level * total:
            yield Row(value_us, level, passed)
            level += _step(level)
            if passed == total:
                yield Row(value_us, 100.0, passed)
                return


def _step(level: float) -> float:
    """Return the distance of the next line: it halves whenever the distance to 100 % has halved."""
    halvings = math.floor(math.log2(100 / (100 - level))) + 1
    return 100 / (TICKS_PER_HALF_DISTANCE << halvings)


def text(buckets: Buckets) -> str:
    """Return a distribution that is not empty in HdrHistogram's percentile format."""
    lines = [f"{'Value':>12} {'Percentile':>14} {'TotalCount':>10} {'1/(1-Percentile)':>14}", ""]
    for row in rows(buckets):
        line = f"{row.value_us:12.3f} {row.level / 100:2.12f} {row.passed:10d}"
        lines.append(line if row.level == 100 else f"{line} {100 / (100 - row.level):14.2f}")
    total = sum(count for _, count in buckets)
    mean_us = sum(value * count for value, count in buckets) / total
    deviation_us = math.sqrt(sum(count * (value - mean_us) ** 2 for value, count in buckets) / total)
    lines += [
        f"#[Mean    = {mean_us:12.3f}, StdDeviation   = {deviation_us:12.3f}]",
        f"#[Max     = {buckets[-1][0]:12.3f}, Total count    = {total:12d}]",
        f"#[Buckets = {64:12d}, SubBuckets     = {SUB_BUCKETS:12d}]",
        "",
    ]
    return "\n".join(lines)


def write_all(runs: Sequence[dict[str, Any]], directory: Path) -> int:
    """Write a file for every mode, peer and kind that there is; returns how many."""
    directory.mkdir(parents=True, exist_ok=True)
    count = 0
    for mode, peer in dict.fromkeys((run["mode"], run["peer"]) for run in runs):
        of_peer = [run for run in runs if (run["mode"], run["peer"]) == (mode, peer)]
        for kind, name in KINDS.items():
            if buckets := merged(of_peer, kind):
                (directory / f"{mode}-{peer}-{name}.hgrm").write_text(text(buckets), encoding="ascii")
                count += 1
    return count
