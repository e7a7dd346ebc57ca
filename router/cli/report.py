"""``ringrouter report``: features, prompt versions, devices side by side, from the journal.

Exit codes: 0 ok, 2 usage, configuration, no journal.
"""

from __future__ import annotations

import argparse
import re
import time
from datetime import datetime
from typing import Any, Final

import msgspec

from router.cli import EXIT_OK, fail
from router.cli.location import journal_dir
from router.cli.query import printable, write_csv
from router.cli.top_tables import Table, money, text_rows, words
from router.errors import ConfigError
from router.observer.query import QueryError
from router.observer.report import OTHER_VERSIONS, Group, Report, StageChange, StageMean, UnknownCost, make_report
from router.observer.segments import JOURNAL
from router.telemetry.units import ABSENT, duration, rate

SCHEMA: Final = "ringrouter.report/1"
BY_MAX: Final = 4
"""Tags at once: beyond that a row stands for next to no requests."""
UNKNOWN_MAX: Final = 5
"""Reasons and hosts of unknown costs that are told as text; --json has all."""
_REASONS: Final = {
    "no_price": "neither hosts.cost_per_hour nor observer.prices covers it",
    "no_usage": "a price per token, but the host told no usage",
    "gap": "nobody knows what ran beside it",
}
_NOT_SETTLED: Final = "written before it was known"
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)")
_UNIT_NS: Final = {"s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9}
COLUMNS: Final = (
    ("requests", ">"),
    ("TTFT p50", ">"),
    ("p95", ">"),
    ("TPOT p50", ">"),
    ("early events/s", ">"),
    ("E2E p95", ">"),
    ("errors", ">"),
    ("left", ">"),
    ("cost/response", ">"),
    ("wasted", ">"),
    ("first seen", "<"),
    ("longest stage", "<"),
    ("changed most", "<"),
)


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    until_ns = time.time_ns()
    try:
        since_ns = since_wall_ns(args.since, until_ns)
        report = make_report(journal_dir(args) / JOURNAL, names_of(args.by), since_ns, until_ns, args.where)
    except (ConfigError, QueryError, ValueError) as error:
        return fail(error)
    if args.json:
        print(msgspec.json.encode({"schema": SCHEMA} | msgspec.to_builtins(report)).decode())
    elif args.csv:
        _write_csv(report)
    else:
        print("\n".join(as_text(report)))
    return EXIT_OK


def names_of(text: str) -> list[str]:
    """Split ``--by``; ValueError says in one line what is wrong with it."""
    names = text.split(",") if text else []
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"--by {text}: expected names of tags with commas between, of a-z, 0-9 and _")
    if len(names) > BY_MAX or len(set(names)) < len(names):
        raise ValueError(f"--by {text}: expected at most {BY_MAX} names that differ")
    return names


def since_wall_ns(text: str, now_ns: int) -> int:
    """Return the calendar time of ``30m`` before ``now_ns``, or of an ISO time; ValueError for anything else."""
    span = _SPAN.fullmatch(text)
    try:
        since_ns = (
            now_ns - round(float(span[1]) * _UNIT_NS[span[2]])
            if span is not None
            else round(datetime.fromisoformat(text).timestamp() * 1e9)
        )
    except (ValueError, OverflowError):
        since_ns = -1
    if not 0 <= since_ns <= now_ns:
        raise ValueError(f"--since {text}: expected a span such as 30m, 1h, 7d or a past time such as 2026-01-31T08:15")
    return since_ns


def as_text(report: Report) -> list[str]:
    """Return the report in lines: what it covers, the table, and what the table leaves out."""
    since = datetime.fromtimestamp(report.since_wall_ns / 1e9).astimezone()
    lines = [f"requests that ended since {since.isoformat(' ', 'seconds')}: {report.total.n:,}"]
    if not report.total.n:
        return lines
    rows = [_cells(group, report) for group in report.groups]
    rows.append([*(["all"] + [""] * len(report.by))[: len(report.by)], *_cells(report.total, report)])
    heads = [*((name, "<") for name in report.by), *COLUMNS]
    lines += ["", *text_rows(Table("", heads, rows))]
    if len(report.groups) < report.group_count:
        lines.append(f"... and {report.group_count - len(report.groups):,} smaller groups")
    if report.total.cost_unknown_count:
        lines += ["", f"the cost of {report.total.cost_unknown_count:,} requests is not known and not in these numbers"]
        lines += [f"  {_why_unknown(each)}" for each in report.unknown_costs[:UNKNOWN_MAX]]
    return lines


def _why_unknown(unknown: UnknownCost) -> str:
    """Write ``12 at gpu0: its host has no cost_per_hour and its model no price (no_price)``."""
    reason = _REASONS.get(unknown.missing, "for another reason")
    said = f"{reason} ({unknown.missing})" if unknown.missing else _NOT_SETTLED
    return f"{unknown.n:,} at {printable(unknown.host) or 'no host'}: {said}"


def _cells(group: Group, report: Report) -> list[str]:
    currency = f" {report.currency}" if group.cost_per_response is not None else ""
    return [
        *(ABSENT if value is None else printable(value) for value in group.values.values()),
        f"{group.n:,}",
        duration(group.ttft_p50_ns),
        duration(group.ttft_p95_ns),
        duration(group.tpot_p50_ns),
        rate(group.early_tps_p50),
        duration(group.e2e_p95_ns),
        _errors(group),
        _share(group.client_gone_count / group.n),
        f"{money(group.cost_per_response)}{currency}",
        ABSENT if group.waste_share is None else _share(group.waste_share),
        _first_seen(group, report),
        _longest(group.longest_stage),
        _change(group.changed_most),
    ]


def _share(share: float) -> str:
    return f"{100 * share:.3g} %"


def _errors(group: Group) -> str:
    share = _share(group.error_count / group.n)
    return f"{share} {group.most_frequent_error}" if group.most_frequent_error else share


def _first_seen(group: Group, report: Report) -> str:
    """Write when a group began; ``before`` when it was there in the hour before."""
    if group.first_wall_ns < report.since_wall_ns:
        return "before"
    return datetime.fromtimestamp(group.first_wall_ns / 1e9).strftime("%m-%d %H:%M:%S")


def _longest(stage: StageMean | None) -> str:
    return ABSENT if stage is None else f"{words(stage.stage)} {duration(stage.mean_ns)}"


def _change(change: StageChange | None) -> str:
    """Write a change as ``queue +410 ms (12.3 ms before)``, or ``(12.3 ms in other versions)``."""
    if change is None:
        return ABSENT
    difference = change.mean_ns - change.before_mean_ns
    if not difference:
        return "nothing (as in other versions)" if change.against == OTHER_VERSIONS else "nothing"
    sign = "+" if difference > 0 else "−"
    against = "in other versions" if change.against == OTHER_VERSIONS else "before"
    return f"{words(change.stage)} {sign}{duration(abs(difference))} ({duration(change.before_mean_ns)} {against})"


def _write_csv(report: Report) -> None:
    """Write one line for each group, or without groups one for all; durations in nanoseconds."""
    write_csv([[*report.by, *_flat(report.total)]])
    write_csv(_flat(group).values() for group in (report.groups if report.by else [report.total]))


def _flat(group: Group) -> dict[str, Any]:
    record: dict[str, Any] = msgspec.to_builtins(group)
    values: dict[str, Any] = record.pop("values")
    for of, kind in (("longest_stage", StageMean), ("changed_most", StageChange)):
        part = record.pop(of) or dict.fromkeys(kind.__struct_fields__)
        record |= {f"{of}_{name}": value for name, value in part.items()}
    return values | record
