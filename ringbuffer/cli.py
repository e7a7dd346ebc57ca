"""``python -m ringbuffer stats PATH``: what a ring, a generation or an instance is doing, for people and for scripts.

Exit codes: 0 ok, 1 no ring, 2 usage, 3 writer dead, 4 writer hung, 5 layout version; of several paths the worst. 130
when it was interrupted, the usual end of ``--watch``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from ringbuffer import sample, stats
from ringbuffer.errors import RingError
from ringbuffer.sample import Sample
from ringbuffer.segment import HUNG_AFTER_S
from ringbuffer.stats import CounterRow, ErrorRow, ReaderRow, Report, SegmentRow

RATE_WINDOW_S: Final = 0.2
"""Time between the two samples of a single report: long enough for a rate, short enough to wait for."""
EXIT_INTERRUPTED: Final = 130
"""128 + SIGINT, as shells report it."""
_SECONDS_MAX: Final = 86_400
CLEAR_SCREEN: Final = "\x1b[2J\x1b[H"
_NO_NOUNS: Final[Mapping[str, str]] = {}
_NOUN: Final = "records"

Look = Report | RingError
"""A report of one path, or why there is none."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(arguments)
    if sys.stdout is None:
        print("ringbuffer: standard output is closed", file=sys.stderr)
        return stats.EXIT_USAGE
    exit_code = stats.EXIT_OK
    try:
        for looks in _looks(options.path, options.watch, options.hung_after):
            _show(looks, options)
            exit_code = stats.worst(map(_exit_code, looks))
            if not any(isinstance(look, Report) for look in looks):
                break
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone; the interpreter must not meet the broken pipe again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk, say; the segments' own errors are of this package
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"ringbuffer: the output cannot be written: {error.strerror}", file=sys.stderr)
        return stats.EXIT_USAGE
    return exit_code


def format_report(report: Report, nouns: Mapping[str, str] = _NO_NOUNS) -> list[str]:
    """Return a report as lines of text; ``nouns`` says what the ring of a name holds, in the plural."""
    lines: list[str] = []
    for row in report.segments:
        lines += format_segment(row, nouns.get(row.name, _NOUN))
    lines += [format_counter(row) for row in report.counters]
    return lines + format_errors(report)


def format_segment(row: SegmentRow, noun: str = _NOUN) -> list[str]:
    """Return a segment as one header line, one line of figures if it has any, and one line per reader."""
    layout, schema = (".".join(map(str, version)) for version in (row.layout_version, row.record_schema))
    process_state = f", process {row.process_state}" if row.process_state else ""
    head = f"{row.name}: {row.kind}, layout {layout}, schema {schema}, pid {row.pid} {row.state}"
    size = f"{row.slot_count:,} x {row.slot_size:,} B"
    lines = [f"{head}, heartbeat {format_age(row.heartbeat_age_s)} ago{process_state}, {size}"]
    figures = (
        ("published", row.published),
        ("rate/s", row.rate_per_s),
        ("free", row.free),
        ("full", row.full_count),
        ("consumers dropped", row.dropped_count),
        ("laps", row.laps),
    )
    shown = [f"{name} {value:,.0f}" for name, value in figures if value is not None]
    if row.holds_s is not None:
        shown.append(f"holds {format_age(row.holds_s)} at this rate")
    if shown:
        lines.append("      " + ", ".join(shown))
    lines += [_reader(reader, row, noun) for reader in row.readers]
    return [stats.shown(line) for line in lines]


def _reader(reader: ReaderRow, ring: SegmentRow, noun: str) -> str:
    kind, taken = ("consumer", "released") if reader.gates else ("reader", "looked")
    rate = "" if reader.rate_per_s is None else f", {reader.rate_per_s:,.0f}/s"
    lost = "" if reader.gates else f", lost {reader.lost:,}"
    return (
        f"      {stats.explain(reader, ring, noun)}; {kind}, pid {reader.pid} {reader.state}, "
        f"{taken} {format_age(reader.age_s)} ago{rate}{lost}"
    )


def format_counter(row: CounterRow) -> str:
    """Return a counter as a line: id, value, label, unit, and its change while it changes."""
    rate = f"  {row.rate_per_s:+,.0f}/s" if row.rate_per_s else ""
    return stats.shown(f"{row.id:>4}: {row.value:>20,} - {row.label} [{row.unit}]{rate}")


def format_errors(report: Report) -> list[str]:
    """Return the distinct errors, the latest last, and what could not be read."""
    lines: list[str] = []
    if report.distinct_errors is not None:
        lines += [stats.shown(_observations(row)) for row in report.distinct_errors]
        count = len(report.distinct_errors)
        lines.append(f"{count:,} distinct error{'' if count == 1 else 's'} observed")
    return lines + [f"cannot be read: {error}" for error in report.errors]


def _observations(row: ErrorRow) -> str:
    first, last = _calendar_time(row.first_wall_ns), _calendar_time(row.last_wall_ns)
    if row.count == 1:
        return f"1 observation at {last} for: {row.text}"
    return f"{row.count:,} observations from {first} to {last} for: {row.text}"


def _calendar_time(wall_ns: int) -> str:
    """Return local time with its offset from UTC, to the millisecond."""
    return datetime.fromtimestamp(wall_ns / 1e9).astimezone().isoformat(timespec="milliseconds")


def format_age(seconds: float) -> str:
    """Return a duration in ms below one second, else in s."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:,.1f} s"


def _looks(paths: Sequence[Path], watch_s: float | None, hung_after_s: float) -> Iterator[list[Look]]:
    """Yield one look at all paths, or one every ``watch_s`` seconds for ever."""
    before = [_take(path, hung_after_s) for path in paths]
    while True:
        time.sleep(RATE_WINDOW_S if watch_s is None else watch_s)
        now = [_take(path, hung_after_s) for path in paths]
        yield [_compare(*both) for both in zip(before, now, strict=True)]
        if watch_s is None:
            return
        before = [_continued(*both) for both in zip(before, now, strict=True)]


def _take(path: Path, hung_after_s: float) -> Sample | RingError:
    try:
        return sample.take(path, hung_after_s)
    except RingError as error:
        return error


def _compare(before: Sample | RingError, now: Sample | RingError) -> Look:
    if isinstance(now, RingError):
        return now
    return stats.build_report(before if isinstance(before, Sample) else None, now)


def _continued(before: Sample | RingError, now: Sample | RingError) -> Sample | RingError:
    if isinstance(now, RingError):
        return now
    return stats.continued(before if isinstance(before, Sample) else None, now)


def _exit_code(look: Look) -> int:
    return look.exit_code if isinstance(look, Report) else stats.error_exit_code(look)


def _show(looks: Sequence[Look], options: argparse.Namespace) -> None:
    if options.watch is not None and not options.json:
        print(CLEAR_SCREEN if sys.stdout.isatty() else "--")
    for look in looks:
        if isinstance(look, RingError):
            print(f"ringbuffer: {stats.shown(str(look))}", file=sys.stderr)
            continue
        report = stats.select(look, options.only)
        if options.json:
            print(json.dumps(stats.as_json(report)), flush=True)
            continue
        title = [f"{report.path}:"] if len(looks) > 1 else []
        print("\n".join([*title, *format_report(report)]), flush=True)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= _SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0, at most {_SECONDS_MAX:,}")
    return value


def _selection(text: str) -> tuple[str, str]:
    try:
        return stats.parse_selection(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ringbuffer", description="Look into rings in shared memory, read-only.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("stats", help="show what rings, tables and counters are doing", epilog=__doc__)
    command.add_argument(
        "path", type=Path, nargs="+", metavar="PATH", help="a segment, a generation or an instance directory"
    )
    command.add_argument("--watch", type=_seconds, metavar="SECONDS", help="repeat at this interval")
    command.add_argument("--json", action="store_true", help="one JSON object per path and report")
    command.add_argument(
        "--only",
        type=_selection,
        action="append",
        default=[],
        metavar="NAME=PATTERN",
        help=f"show only what matches, e.g. counter='requests_*'; NAME is one of {', '.join(stats.SELECTABLE)}; "
        "may be repeated",
    )
    command.add_argument(
        "--hung-after",
        type=_seconds,
        default=HUNG_AFTER_S,
        metavar="SECONDS",
        help="heartbeat age from which a live writer counts as hung (default: %(default)s)",
    )
    return parser
