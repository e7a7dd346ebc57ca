"""``python -m ringbuffer stats PATH``: what a ring, a generation or an instance is doing, for people and for scripts.

Exit codes: 0 ok, 1 no ring, 2 usage, 3 writer dead, 4 writer hung, 5 layout version.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from ringbuffer import sample, stats
from ringbuffer.errors import RingError, VersionMismatch, WrongEndianness
from ringbuffer.segment import HUNG_AFTER_S
from ringbuffer.stats import Report, SegmentRow

RATE_WINDOW_S: Final = 0.2
"""Time between the two samples of a single report: long enough for a rate, short enough to wait for."""
CLEAR_SCREEN: Final = "\x1b[2J\x1b[H"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(arguments)
    exit_code = stats.EXIT_OK
    try:
        for report in _reports(options.path, options.watch, options.hung_after):
            exit_code = report.exit_code
            _show(report, as_json=options.json, watching=options.watch is not None)
    except RingError as error:
        print(f"ringbuffer: {error}", file=sys.stderr)
        is_version = isinstance(error, VersionMismatch | WrongEndianness)
        return stats.EXIT_VERSION if is_version else stats.EXIT_NO_RING
    except KeyboardInterrupt:
        pass  # the usual end of --watch
    except BrokenPipeError:
        # Whoever read the output has gone; the interpreter must not meet the broken pipe again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exit_code


def format_report(report: Report) -> list[str]:
    """Return a report as lines of text."""
    lines: list[str] = []
    for row in report.segments:
        lines += format_segment(row)
    lines += [f"{row.id:>4}: {row.value:>20,} - {row.label} [{row.unit}]" for row in report.counters]
    lines += [f"cannot be read: {error}" for error in report.errors]
    return lines


def format_segment(row: SegmentRow) -> list[str]:
    """Return a segment as one header line, one line of figures if it has any, and one line per reader."""
    layout, schema = (".".join(map(str, version)) for version in (row.layout_version, row.record_schema))
    head = f"{row.name}: {row.kind}, layout {layout}, schema {schema}, pid {row.pid} {row.state}"
    lines = [f"{head}, heartbeat {format_age(row.heartbeat_age_s)} ago, {row.slot_count:,} x {row.slot_size:,} B"]
    figures = (
        ("published", row.published),
        ("rate/s", row.rate_per_s),
        ("free", row.free),
        ("full", row.full_count),
        ("consumers dropped", row.dropped_count),
        ("laps", row.laps),
    )
    shown = [f"{name} {value:,.0f}" for name, value in figures if value is not None]
    if shown:
        lines.append("      " + ", ".join(shown))
    for reader in row.readers:
        kind = "consumer" if reader.gates else "reader"
        lost = "" if reader.gates else f", lost {reader.lost:,}"
        lines.append(
            f"      {kind} {reader.name}: pid {reader.pid} {reader.state}, lag {reader.lag:,} "
            f"({reader.lag_percent:.1f} %), age {format_age(reader.age_s)}{lost}"
        )
    return lines


def format_age(seconds: float) -> str:
    """Return a duration in ms below one second, else in s."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:,.1f} s"


def _reports(path: Path, watch_s: float | None, hung_after_s: float) -> Iterator[Report]:
    """Yield one report, or one every ``watch_s`` seconds for ever."""
    before = sample.take(path, hung_after_s)
    while True:
        time.sleep(RATE_WINDOW_S if watch_s is None else watch_s)
        now = sample.take(path, hung_after_s)
        yield stats.build_report(before, now)
        if watch_s is None:
            return
        before = now


def _show(report: Report, *, as_json: bool, watching: bool) -> None:
    if as_json:
        print(json.dumps(stats.as_json(report)), flush=True)
        return
    if watching:
        print(CLEAR_SCREEN if sys.stdout.isatty() else "--")
    print("\n".join(format_report(report)), flush=True)


def _seconds(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ringbuffer", description="Look into rings in shared memory, read-only.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("stats", help="show what rings, tables and counters are doing", epilog=__doc__)
    command.add_argument("path", type=Path, metavar="PATH", help="a segment, a generation or an instance directory")
    command.add_argument("--watch", type=_seconds, metavar="SECONDS", help="repeat at this interval")
    command.add_argument("--json", action="store_true", help="one JSON object per report")
    command.add_argument(
        "--hung-after",
        type=_seconds,
        default=HUNG_AFTER_S,
        metavar="SECONDS",
        help="heartbeat age from which a live writer counts as hung (default: %(default)s)",
    )
    return parser
