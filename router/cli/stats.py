"""``ringrouter stats``: is the router well, how fast is it, and what runs where? Read-only.

Exit codes: 0 ok, 1 no ring, 2 usage, 3 router dead, 4 hung, 5 layout version; of several routers the worst. What a dead
router left behind is shown all the same: the rings are the flight recorder.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from ringbuffer import (
    Missing,
    RingError,
    VersionMismatch,
    WrongEndianness,
    find_current,
    find_generations,
    sample,
)
from ringbuffer import stats as ring_stats
from ringbuffer.cli import CLEAR_SCREEN, RATE_WINDOW_S, format_age, format_counter, format_errors, format_report
from ringbuffer.sample import Sample
from ringbuffer.stats import CounterRow
from router.cli import EXIT_OK, fail, fail_to_read
from router.cli.location import all_instance_dirs, instance_dir
from router.errors import ConfigError
from router.telemetry.counters import Counter
from router.telemetry.host_rows import FILE, HostRow, read_hosts
from router.telemetry.reader import DoneReader, InflightReader, Names
from router.telemetry.summary import Group, Percentiles, Summary, summarise
from router.telemetry.units import ABSENT, duration, rate, span

SCHEMA: Final = "ringrouter.stats/1"
NOUNS: Final[Mapping[str, str]] = {"requests": "requests", "tokens": "events", "done": "requests"}
"""What the rings hold, for sentences."""
_GAUGES: Final = frozenset({
    Counter.CONNECTIONS_OPEN,
    Counter.IN_FLIGHT,
    Counter.WAITING,
    Counter.CYCLE_NS_MAX,
    Counter.HOSTS_HEALTHY,
})  # fmt: skip
"""Counters that stand for a level, not for a count."""


class Previous(msgspec.Struct, frozen=True, kw_only=True):
    """The router before the one that runs, as it left its rings."""

    pid: int
    path: str
    silent_ns: int
    """From its last heartbeat to the start of the one after it."""
    in_flight_count: int
    """What it had not finished."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is shown. ``rings`` is the part that knows nothing of the router."""

    instance: str
    uptime_ns: int
    """From the start until now, or until the last heartbeat of a router that is dead."""
    rings: ring_stats.Report
    router: Summary
    hosts: tuple[HostRow, ...]
    """How each host is, in words too."""
    token_events_per_s: float | None
    """Records of the token ring, between two looks a moment apart."""
    previous: Previous | None
    problems: tuple[str, ...]
    """What could not be read, and what was left out of what was, beside the errors of ``rings``."""

    @property
    def pid(self) -> int:
        """Process id of the router."""
        return self.rings.segments[0].pid

    @property
    def heartbeat_age_s(self) -> float:
        """Seconds since the last heartbeat."""
        return min(segment.heartbeat_age_s for segment in self.rings.segments)


Opened = TypeVar("Opened")


class Records:
    """The records of one generation, as far as they can be read; ``problems`` says by file why one cannot.

    Raises :class:`RingError` when they are of another version, for then nothing here is understood.
    """

    def __init__(self, directory: Path) -> None:
        self.problems: dict[str, str] = {}
        self._directory = directory
        names = self._open("names.tab", lambda: Names(directory)) or Names(None)
        self.done_reader = self._open("done.ring", lambda: DoneReader(directory, "oldest", names=names))
        self.inflight_reader = self._open("inflight.tab", lambda: InflightReader(directory, names))
        self.done: deque[dict[str, Any]] = deque(maxlen=self.done_reader.slot_count if self.done_reader else 0)

    def _open(self, file: str, attach: Callable[[], Opened]) -> Opened | None:
        try:
            return attach()
        except (VersionMismatch, WrongEndianness):
            raise
        except RingError as error:
            self.problems[file] = f"{file} cannot be read: {error}"
            return None

    def read(self, now_ns: int) -> Summary:
        """Read on and sum up what there is."""
        published_count = 0
        if self.done_reader is not None:
            before = -1
            while self.done_reader.position != before:
                before = self.done_reader.position
                self.done.extend(self.done_reader.poll())
            published_count = self.done_reader.published_count
        in_flight = self.inflight_reader.read() if self.inflight_reader is not None else []
        return summarise(self.done, in_flight, published_count=published_count, now_ns=now_ns)

    def hosts(self) -> list[HostRow]:
        """Return how each host is."""
        return self._open(FILE, lambda: read_hosts(self._directory)) or []

    def damage(self) -> list[str]:
        """Say what was left out because it cannot be true."""
        readers = (self.done_reader, self.inflight_reader)
        return [reader.damage.text for reader in readers if reader is not None and reader.damage.count]

    def close(self) -> None:
        """Unmap everything."""
        for reader in (self.inflight_reader, self.done_reader):
            if reader is not None:
                reader.close()


class Source:
    """Looks at one router again and again, keeping what it has read; follows it into a new generation."""

    def __init__(self, instance: Path, hung_after_s: float) -> None:
        self._instance = instance
        self._hung_after_s = hung_after_s
        self._before: Sample | None = None
        self._directory: Path | None = None
        self._previous: Previous | None = None
        self._records: Records | None = None

    def look(self) -> Report:
        """Return what the router shows now, with rates since the last look; raises :class:`RingError`."""
        directory = find_current(self._instance)
        now = ring_stats.continued(self._before, sample.take(directory, self._hung_after_s))
        if not now.segments:
            raise now.errors[0][1] if now.errors else Missing(f"there is no segment in {directory}")
        records = self._records_of(directory, now)
        before, self._before = self._before, now
        now_ns = time.monotonic_ns()
        summary = records.read(now_ns)
        rings = _without_gauge_rates(ring_stats.build_report(before, now))
        return Report(
            instance=self._instance.name,
            uptime_ns=_uptime_ns(now, now_ns),
            rings=rings,
            router=summary,
            hosts=tuple(records.hosts()),
            token_events_per_s=_rate_of(rings, "tokens"),
            previous=self._previous,
            problems=tuple(map(ring_stats.shown, _problems(directory, now, records))),
        )

    def _records_of(self, directory: Path, now: Sample) -> Records:
        """Return the records of a generation, opened anew when it is not the one of the last look."""
        if directory != self._directory or self._records is None:
            self.close()
            self._records = Records(directory)
            self._previous = _previous(directory, now)
            self._directory = directory
        return self._records

    def close(self) -> None:
        """Unmap everything."""
        if self._records is not None:
            self._records.close()
        self._records = None


Look = Report | RingError
"""A report of one router, or why there is none."""


class Sources:
    """The routers that the options name; with ``--all`` those that are there at each look."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._sources: dict[Path, Source] = {}
        self._instances = [] if args.all else [instance_dir(args)]

    def look(self) -> list[Look]:
        """Look at each once, in the order of their names."""
        instances = all_instance_dirs(self._args) if self._args.all else self._instances
        return [self._look(instance) for instance in instances]

    def _look(self, instance: Path) -> Look:
        source = self._sources.setdefault(instance, Source(instance, self._args.hung_after))
        try:
            return source.look()
        except RingError as error:
            return error

    def close(self) -> None:
        """Unmap everything."""
        for source in self._sources.values():
            source.close()


def run(args: argparse.Namespace) -> int:
    """Print a report of each router, or one every so many seconds."""
    if args.all and args.instance:
        return fail("--all looks at every instance, --instance at one")
    try:
        selections = [ring_stats.parse_selection(text) for text in args.only]
        sources = Sources(args)
    except (ConfigError, ValueError) as error:
        return fail(error)
    except RingError as error:
        return fail_to_read(error)
    exit_code = EXIT_OK
    try:
        for looks in _looks(sources, args.watch):
            if args.watch is not None and not args.json:
                print(CLEAR_SCREEN if sys.stdout.isatty() else "--")
            exit_code = ring_stats.worst([_show(look, selections, as_json=args.json) for look in looks])
            if not looks:
                return fail_to_read(Missing("there is no instance with a current generation"))
            if all(isinstance(look, RingError) for look in looks):
                break
    except RingError as error:  # where all of them are cannot be read
        return fail_to_read(error)
    finally:
        sources.close()
    return exit_code


def _looks(sources: Sources, watch_s: float | None) -> Iterator[list[Look]]:
    """Yield one look, or one every ``watch_s`` seconds for ever; a look before the first gives it its rates."""
    sources.look()
    time.sleep(RATE_WINDOW_S)
    yield sources.look()
    while watch_s is not None:
        time.sleep(watch_s)
        yield sources.look()


def _previous(directory: Path, now: Sample) -> Previous | None:
    """Return what the generation before this one tells; None for the first, or when it cannot be read any more."""
    try:
        generations = find_generations(directory.parent)
        older = generations[: generations.index(directory)] if directory in generations else []
        left = sample.take(older[-1]) if older else None
    except RingError:
        return None
    if left is None or not left.segments:
        return None
    silent_ns = now.segments[0].header.created_mono_ns - max(segment.heartbeat_ns for segment in left.segments)
    in_flight_count = sum(each.rows_in_use for each in left.segments if each.header.name == "inflight")
    return Previous(
        pid=left.segments[0].header.writer_pid,
        path=ring_stats.shown(str(left.path)),
        silent_ns=max(0, silent_ns),
        in_flight_count=in_flight_count,
    )


def _problems(directory: Path, now: Sample, records: Records) -> list[str]:
    """Return what the operator must know that the errors of the rings do not say."""
    told = {path.name for path, _ in now.errors}
    problems = [text for file, text in records.problems.items() if file not in told]
    if directory not in find_generations(directory.parent):
        is_named = "a generation is named by a number: what came before it is not known"
        problems.append(f"current points to {directory.name!r}, {is_named}")
    return problems + records.damage()


def _uptime_ns(taken: Sample, now_ns: int) -> int:
    """Return how long the router has run, or had run at its last heartbeat."""
    lives = any(segment.state in {"alive", "hung"} for segment in taken.segments)
    end_ns = now_ns if lives else max(segment.heartbeat_ns for segment in taken.segments)
    return max(0, end_ns - taken.segments[0].header.created_mono_ns)


def _without_gauge_rates(report: ring_stats.Report) -> ring_stats.Report:
    """Leave a rate only where something is counted: that of a level says nothing."""
    counters = tuple(replace(row, rate_per_s=None) if row.id in _GAUGES else row for row in report.counters)
    return replace(report, counters=counters)


def _rate_of(rings: ring_stats.Report, name: str) -> float | None:
    return next((row.rate_per_s for row in rings.segments if row.name == name), None)


def _show(look: Look, selections: Sequence[tuple[str, str]], *, as_json: bool) -> int:
    """Print a report, or why there is none; return its exit code."""
    if isinstance(look, RingError):
        return fail_to_read(look)
    rings = ring_stats.select(look.rings, selections)
    if as_json:
        print(msgspec.json.encode(as_plain(look, rings)).decode(), flush=True)
    else:
        print("\n".join(format_selected(look, rings) if selections else format_stats(look)), flush=True)
    return look.rings.exit_code


def as_plain(report: Report, rings: ring_stats.Report) -> dict[str, Any]:
    """Return a report as plain values, with the ``schema`` that names their shape; ``rings`` is what to show of it."""
    return {
        "schema": SCHEMA,
        "instance": ring_stats.shown(report.instance),
        "pid": report.pid,
        "state": report.rings.state,
        "heartbeat_age_s": report.heartbeat_age_s,
        "uptime_ns": report.uptime_ns,
        "token_events_per_s": report.token_events_per_s,
        "previous": msgspec.to_builtins(report.previous),
        "problems": report.problems,
        "router": msgspec.to_builtins(report.router),
        "hosts": msgspec.to_builtins(report.hosts),
        "rings": ring_stats.as_json(rings),
    }


def format_stats(report: Report) -> list[str]:
    """Return a report as lines of text: the router, its rings, what they amount to, its counters, its errors."""
    rings = replace(report.rings, counters=(), distinct_errors=None, errors=())
    lines = [
        *_head(report),
        "",
        *format_report(rings, NOUNS),
        "",
        *_finished(report),
        "",
        *_in_flight(report),
        "",
        *_hosts(report.hosts),
        "",
        *_loop(report.rings.counters),
        *(format_counter(row) for row in report.rings.counters),
        "",
        *format_errors(report.rings),
    ]
    return [ring_stats.shown(line) for line in lines]


def format_selected(report: Report, rings: ring_stats.Report) -> list[str]:
    """Return how the router is, and ``rings``, the part of its report that was asked for."""
    return [*map(ring_stats.shown, _head(report)), "", *format_report(rings, NOUNS)]


def _head(report: Report) -> list[str]:
    """Say how the router is, and what an operator would ask next."""
    state = report.rings.state
    beat = f"heartbeat {format_age(report.heartbeat_age_s)} ago, up {span(report.uptime_ns)}"
    lines = [f"ringrouter {report.instance}: pid {report.pid} {state}, {beat}, {report.rings.path}"]
    process_state = next((each.process_state for each in report.rings.segments if each.process_state), "")
    if state == "hung":
        lines.append(f"      its process lives ({process_state or 'state unknown'}) but its loop makes no progress")
    elif state == "dead":
        lines.append("      its process has ended; what follows is what it left")
    if report.previous is not None:
        lines.append(_before(report.previous))
    return lines + [f"      {problem}" for problem in report.problems]


def _before(previous: Previous) -> str:
    return (
        f"      restarted: the one before it, pid {previous.pid}, was last heard of {span(previous.silent_ns)} before "
        f"this start and left {previous.in_flight_count:,} in flight, {previous.path}"
    )


def _loop(counters: Sequence[CounterRow]) -> list[str]:
    """Say how long the loop was busy with one thing."""
    values = {row.id: row.value for row in counters}
    longest_ns, long_count = values.get(Counter.CYCLE_NS_MAX), values.get(Counter.CYCLES_LONG)
    if longest_ns is None or long_count is None:
        return []
    cycles = "cycle" if long_count == 1 else "cycles"
    return [f"loop: longest cycle {duration(longest_ns)}, {long_count:,} {cycles} over loop.cycle_threshold_ms"]


def _finished(report: Report) -> list[str]:
    summary = report.router
    window = summary.window
    if not window.n:
        return ["finished requests: none yet"]
    tokens = f"{summary.tokens_out:,} tokens, {rate(summary.tokens_per_s)}/s over that time"
    overwritten = f", {window.overwritten_count:,} older ones overwritten" if window.overwritten_count else ""
    outcomes = ", ".join(f"{outcome} {count:,}" for outcome, count in summary.outcomes.items())
    return [
        f"finished requests: last {span(window.length_ns)}, n={window.n:,} of {window.published_count:,}{overwritten}",
        f"      {outcomes}",
        f"      {'of those that were ok':<24}{'p50':>10}{'p95':>10}{'p99':>10}{'n':>9}",
        _latency("TTFT, streams", summary.ttft_ns),
        _latency("TPOT", summary.tpot_ns),
        _latency("E2E", summary.e2e_ns),
        _latency("router overhead", summary.router_overhead_ns),
        f"      {tokens}; {rate(report.token_events_per_s)} token events/s now",
    ]


def _latency(label: str, values: Percentiles) -> str:
    return f"      {label:<24}{_three(values)}{values.n:>9,}"


def _three(values: Percentiles) -> str:
    return "".join(f"{duration(value):>10}" for value in (values.p50, values.p95, values.p99))


def _in_flight(report: Report) -> list[str]:
    summary = report.router
    when = "in flight" if report.rings.state in {"alive", "hung"} else "in flight when the router ended"
    lines = [f"{when}: {summary.running_count:,} running, {summary.waiting_count:,} waiting"]
    if not summary.groups:
        return lines
    host_width = max(4, *(len(group.host) for group in summary.groups))
    model_width = max(5, *(len(group.model) for group in summary.groups))
    lines.append(
        f"      {'host':<{host_width}}  {'model':<{model_width}}{'running':>8}{'waiting':>8}{'ok':>8}{'failed':>8}"
        f"{'TTFT p50':>10}{'p95':>10}{'p99':>10}{'TPOT p50':>10}{'p95':>10}{'p99':>10}{'tokens/s':>10}"
    )
    return lines + [_group(group, host_width, model_width) for group in summary.groups]


def _hosts(hosts: Sequence[HostRow]) -> list[str]:
    """Say how each host is."""
    if not hosts:
        return ["hosts: none is known"]
    usable = sum(not host.bar for host in hosts)
    lines = [f"hosts: {usable:,} of {len(hosts):,} can be used"]
    width = max(len(host.name) for host in hosts)
    for host in hosts:
        busy = f"{host.running:,} of {host.slot_count:,} slots busy"
        lines.append(f"      {host.name:<{width}}  {busy}, {host.text}{', removed' if host.is_removed else ''}")
    return lines


def _group(group: Group, host_width: int, model_width: int) -> str:
    return (
        f"      {group.host or ABSENT:<{host_width}}  {group.model or ABSENT:<{model_width}}"
        f"{group.running_count:>8,}{group.waiting_count:>8,}{group.ok_count:>8,}{group.failed_count:>8,}"
        f"{_three(group.ttft_ns)}{_three(group.tpot_ns)}{rate(group.tokens_per_s):>10}"
    )
