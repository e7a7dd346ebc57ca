"""Histograms as files that other tools read: ``.hlog`` and ``.hgrm``; pure.

``.hlog`` is HdrHistogram's interval log, version 1.2: comments, a legend, and a line
``Tag=NAME,START,LENGTH,MAX,HISTFAAA…`` for each interval with its whole histogram in the V2 compressed encoding: base64
of a cookie, a length and a zlib stream, in which counts stand as ZigZag LEB128 and runs of empty buckets as negative
numbers. ``.hgrm`` is the percentile spectrum that HdrHistogram's plotter draws. Formats:
``HistogramLogWriter``, ``AbstractHistogram.encodeIntoCompressedByteBuffer`` and ``outputPercentileDistribution`` of
https://github.com/HdrHistogram/HdrHistogram.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Final, NamedTuple

import numpy as np

from router.observer.hist import BUCKET_COUNT, SUB_BUCKET_BITS, VALUE_MAX, Histogram, highest_of, middle_of

_ENCODING_COOKIE: Final = 0x1C849303 | 0x10
_COMPRESSION_COOKIE: Final = 0x1C849304 | 0x10
_OUTER: Final = struct.Struct(">II")
"""cookie, bytes of the zlib stream."""
_PAYLOAD: Final = struct.Struct(">IIIIQQd")
"""cookie, bytes of the counts, normalising offset, significant digits, lowest and highest value, ratio to a double."""
_SIGNIFICANT_DIGITS: Final = 2
_TICKS_PER_HALF_DISTANCE: Final = 5
"""Lines of a spectrum for each halving of the distance to 100 %, as the reference library writes them."""
_TAG_FORBIDDEN: Final = str.maketrans({",": "_", " ": "_", "\r": "_", "\n": "_"})
"""Characters that end a tag in the log's grammar."""


class Interval(NamedTuple):
    """One line of a log: what was recorded from ``start_ns`` (since 1970, UTC) on for ``length_ns``."""

    start_ns: int
    length_ns: int
    histogram: Histogram


def encode(histogram: Histogram) -> str:
    """Return the V2 compressed encoding, base64 as it stands in a log; any HdrHistogram library decodes it."""
    counts = _varints(histogram)
    head = _PAYLOAD.pack(_ENCODING_COOKIE, len(counts), 0, _SIGNIFICANT_DIGITS, 1, VALUE_MAX, 1.0)
    packed = zlib.compress(head + counts)
    return base64.b64encode(_OUTER.pack(_COMPRESSION_COOKIE, len(packed)) + packed).decode("ascii")


def _varints(histogram: Histogram) -> bytes:
    """Encode the counts up to the last bucket that is not empty."""
    out = bytearray()
    following = 0
    for bucket, count in zip(histogram.buckets.tolist(), histogram.counts.tolist(), strict=True):
        if bucket > following:
            _put_varint(out, 2 * (bucket - following) - 1)  # ZigZag of a negative number
        _put_varint(out, 2 * count)
        following = bucket + 1
    return bytes(out)


def _put_varint(out: bytearray, value: int) -> None:
    """Append seven bits at a time, the lowest first. Nine bytes at most: no count here needs 57 bits."""
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def hlog(series: Iterable[tuple[str, Iterable[Interval]]], start_ns: int, max_value_ratio: float = 1e6) -> str:
    """Return a whole log: for each tag its intervals, oldest first.

    ``start_ns`` is when recording began (since 1970, UTC); the starts in the log are seconds since then.
    ``max_value_ratio`` divides the largest value, which people read: 1e6 makes milliseconds of nanoseconds. Commas and
    blanks in a tag become ``_``.
    """
    at = datetime.fromtimestamp(start_ns / 1e9, UTC).isoformat(" ", "milliseconds")
    lines = [
        "#[Histogram log format version 1.2]",
        f"#[StartTime: {start_ns / 1e9:.3f} (seconds since epoch), {at}]",
        '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"',
    ]
    for tag, intervals in series:
        name = tag.translate(_TAG_FORBIDDEN)
        for start, length_ns, histogram in intervals:
            times = f"{(start - start_ns) / 1e9:.3f},{length_ns / 1e9:.3f}"
            lines.append(f"Tag={name},{times},{histogram.maximum / max_value_ratio:.3f},{encode(histogram)}")
    return "\n".join(lines) + "\n"


def hgrm(histogram: Histogram, unit_ratio: float = 1e6) -> str:
    """Return the percentile spectrum; values are divided by ``unit_ratio``, 1e6 for milliseconds of nanoseconds."""
    lines = [f"{'Value':>12} {'Percentile':>14} {'TotalCount':>10} {'1/(1-Percentile)':>14}", ""]
    for value, percent, count in _spectrum(histogram):
        line = f"{value / unit_ratio:12.2f} {percent / 100:.12f} {count:10d}"
        lines.append(line if percent >= 100 else f"{line} {1 / (1 - percent / 100):14.2f}")
    middles = middle_of(histogram.buckets)
    n = histogram.n
    mean = float((middles * histogram.counts.astype(np.float64)).sum() / n) if n else 0.0
    deviation = math.sqrt(float(((middles - mean) ** 2 * histogram.counts).sum() / n)) if n else 0.0
    largest = float(highest_of(histogram.buckets[-1:])[0]) if n else 0.0
    return "\n".join(
        [
            *lines,
            f"#[Mean    = {mean / unit_ratio:12.2f}, StdDeviation   = {deviation / unit_ratio:12.2f}]",
            f"#[Max     = {largest / unit_ratio:12.2f}, TotalCount     = {n:12.2f}]",
            f"#[Buckets = {(BUCKET_COUNT >> SUB_BUCKET_BITS) - 1:12d}, SubBuckets     = {2 << SUB_BUCKET_BITS:12d}]",
            "",
        ]
    )


def _spectrum(histogram: Histogram) -> Iterator[tuple[int, float, int]]:
    """Yield (value, percent, values up to it), five lines for each halving of the distance to 100 %."""
    n, level, below = histogram.n, 0.0, 0
    highest = highest_of(histogram.buckets).tolist()
    for value, count in zip(highest, histogram.counts.tolist(), strict=True):
        below += count
        while level <= 100.0 * below / n:
            yield value, level, below
            if below == n:
                yield value, 100.0, below
                return
            level += (100.0 - level) / (2 * _TICKS_PER_HALF_DISTANCE)
