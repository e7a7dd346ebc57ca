"""The ``ringrouter`` command: arguments here, one module for each command.

A command's module is imported when the command is run, so that ``stats`` starts without the event loop of ``serve``.
Exit codes: 0 ok, 1 no ring, 2 usage or configuration, 3 router dead, 4 router hung, 5 layout version, 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import router
from router.cli import cache_arguments, keys_arguments, slo_arguments

_TAG_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")
EXIT_OK: Final = 0
EXIT_USAGE: Final = 2
EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130
"""128 + SIGINT, as shells report it."""
HUNG_AFTER_S: Final = 5.0
"""The heartbeat comes every second; a loop that misses several is not merely slow."""

_UNWRITABLE: Final = frozenset({errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    args = _parser().parse_args(argv)
    if sys.stdout is None:  # closed by whoever started it
        return fail("standard output is closed")
    try:
        status: int = importlib.import_module(f"router.cli.{args.command}").run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has seen enough. The interpreter must not fail at its last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"ringrouter: the output cannot be written: {error.strerror}", file=sys.stderr)
        return EXIT_FAILED
    return status


def fail(message: object) -> int:
    """Print an error on standard error and return :data:`EXIT_USAGE`."""
    print(f"ringrouter: {message}", file=sys.stderr)
    return EXIT_USAGE


def fail_to_read(error: Exception) -> int:
    """Print why a router's segments cannot be read and return the exit code that says so."""
    from ringbuffer import VersionMismatch, WrongEndianness, stats  # noqa: PLC0415 - serve and check start without

    fail(f"no router to look at: {error}")
    is_version = isinstance(error, VersionMismatch | WrongEndianness)
    return stats.EXIT_VERSION if is_version else stats.EXIT_NO_RING


def fail_to_ask(error: Exception) -> int:
    """Print why an observer tells nothing and return the exit code that says so: a wrong question is wrong usage."""
    from router.errors import ConfigError  # noqa: PLC0415 - likewise
    from router.observer.client import RefusedError  # noqa: PLC0415 - likewise

    fail(error)
    return EXIT_USAGE if isinstance(error, ConfigError | RefusedError) else EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ringrouter", description="A router in front of language-model hosts.")
    parser.add_argument("--version", action="version", version=f"ringrouter {router.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_starters(commands)
    _add_observers(commands)
    _add_observe(commands)
    _add_keep(commands)
    cache_arguments.add_commands(commands)
    keys_arguments.add_commands(commands, _positive)
    _add_top(commands)
    slo_arguments.add_commands(commands, _seconds)
    _add_report(commands)
    _add_query(commands)
    _add_trace(commands)
    _add_ask(commands)
    _add_service(commands)
    doctor = commands.add_parser("doctor", help="look at everything a router needs, and say what to do")
    doctor.add_argument(
        "--config", type=Path, metavar="FILE", help="the router's configuration (/etc/ringrouter/ringrouter.toml)"
    )
    doctor.add_argument("--json", action="store_true", help="for programs")
    check = commands.add_parser("check", help="check a configuration file and print what it would serve")
    check.add_argument("file", type=Path, metavar="FILE")
    check.add_argument(
        "--against",
        type=Path,
        metavar="OLD",
        help="print only what differs from this file, as a router that runs with it would log when it reloads",
    )
    return parser


def _add_starters(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = commands.add_parser("serve", help="run the router")
    serve.add_argument("--config", type=Path, metavar="FILE", help="configuration (docs/configuration.md)")
    serve.add_argument("--instance", metavar="NAME", help="instead of listen.instance, for several with one file")
    run = commands.add_parser("run", help="run the router with embedded models, to try it out")
    run.add_argument("--config", type=Path, metavar="FILE", help="serve the hosts of this configuration instead")
    run.add_argument("--port", type=_port, metavar="N", help="HTTP port in front of the embedded models; 0 = any")


def _add_dump(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    dump = commands.add_parser("dump", help="print the records of a router, live or dead")
    _add_location(dump)
    dump.add_argument("--what", metavar="KINDS", help="of requests,inflight,done,tokens,errors; without it all")
    dump.add_argument("--request-id", action="append", metavar="ID", help="only this request; may be repeated")
    dump.add_argument("--since", metavar="WHEN", help="30s, 5m, 2h before now or a dead router's end, or an ISO time")
    dump.add_argument("--limit", type=_count, metavar="N", help="only the newest N of each kind")
    dump.add_argument(
        "--generation",
        default="current",
        metavar="NAME",
        help="the name of a generation, or 'previous': the router before a restart",
    )
    dump.add_argument(
        "--format",
        choices=("json", "chrome"),
        default="json",
        help="json: one object a line; chrome: a trace for chrome://tracing and ui.perfetto.dev",
    )


def _add_observers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    stats = commands.add_parser("stats", help="show rings, latencies and counters of a router")
    _add_location(stats)
    stats.add_argument(
        "--watch",
        type=_seconds,
        nargs="?",
        const=1.0,
        metavar="SECONDS",
        help="again and again, by default each second",
    )
    stats.add_argument("--all", action="store_true", help="every router below that directory")
    stats.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME=PATTERN",
        help="only what matches, e.g. counter='zeromq_*'; NAME is segment, reader, counter or error; may be repeated",
    )
    stats.add_argument(
        "--hung-after",
        type=_seconds,
        default=HUNG_AFTER_S,
        metavar="SECONDS",
        help="heartbeat age from which a live router counts as hung (%(default)g)",
    )
    _add_dump(commands)
    explain = commands.add_parser("explain", help="say why a request went where it went, and what it waited for")
    explain.add_argument("request_id", metavar="REQUEST_ID", help="the x-request-id of its answer")
    _add_location(explain)
    tail = commands.add_parser("tail", help="show finished requests as they end")
    _add_location(tail)
    tail.add_argument("-n", type=_count, default=10, metavar="N", dest="last", help="begin with the last N (10)")
    tail.add_argument("--no-follow", action="store_false", dest="follow", help="print those and end")
    tail.add_argument(
        "--where",
        type=_name_and_value,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="only requests with this tag, model, host, outcome, ...; may be repeated, all must hold",
    )


def _add_observe(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    observe = commands.add_parser("observe", help="make metrics, costs and a journal of what the routers here do")
    where = observe.add_mutually_exclusive_group()
    where.add_argument("--config", type=Path, metavar="FILE", help="the router's configuration")
    where.add_argument("--run-dir", type=Path, metavar="DIR", help="directory of the rings")
    observe.add_argument("--data-dir", type=Path, metavar="DIR", help="directory of the journal")
    observe.add_argument("--http", metavar="ADDRESS", help="host:port or unix:/path of /metrics and /state.json")


def _add_keep(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    keep = commands.add_parser("keep", help="write and fetch what the routers here answer from: vectors, tools")
    keep.add_argument("--config", type=Path, metavar="FILE", help="the router's configuration")
    keep.add_argument("--run-dir", type=Path, metavar="DIR", help="directory of the rings, in place of listen.run_dir")


def _add_top(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    top = commands.add_parser("top", help="show traffic, percentiles, stages, hosts and the slowest requests, live")
    where = top.add_mutually_exclusive_group()
    where.add_argument("--config", type=Path, metavar="FILE", help="the router's configuration")
    where.add_argument("--url", metavar="ADDRESS", help="the observer's host:port or unix:/path (127.0.0.1:8401)")
    top.add_argument("--by", default="", metavar="TAG", help="slice by this tag, e.g. feature_name")
    top.add_argument("--window", type=_window, metavar="SECONDS", help="10, 60, 600 or 3600 (60)")
    how = top.add_mutually_exclusive_group()
    how.add_argument("--once", action="store_true", help="print the page once and end")
    how.add_argument("--json", action="store_true", help="print it once for programs")


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = commands.add_parser("report", help="compare features, versions, devices: latency, pace, errors, cost")
    report.add_argument(
        "--by", default="", metavar="TAG[,TAG]", help="one row for each value, e.g. feature_name,prompt_version"
    )
    report.add_argument("--since", default="1h", metavar="WHEN", help="30m, 1h, 7d before now, or an ISO time (1h)")
    report.add_argument(
        "--where",
        type=_name_and_value,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="only requests with this tag, model, host or outcome; may be repeated, all must hold",
    )
    _add_journal(report)


def _add_query(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    query = commands.add_parser("query", help="ask the journal of finished requests in SQL")
    query.add_argument("sql", metavar="SQL", help="of the table `requests`; - reads standard input")
    _add_journal(query)


def _add_trace(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    trace = commands.add_parser("trace", help="draw what happened to a request, or to all requests of a trace")
    trace.add_argument("id", metavar="ID", help="a request id (x-request-id of its answer) or a trace id")
    where = trace.add_mutually_exclusive_group()
    where.add_argument("--config", type=Path, metavar="FILE", help="the router's configuration")
    where.add_argument("--url", metavar="ADDRESS", help="only ask the observer at this host:port or unix:/path")
    trace.add_argument("--data-dir", type=Path, metavar="DIR", help="directory of the journal, without an observer")
    trace.add_argument("--run-dir", type=Path, metavar="DIR", help="directory of the rings, without an observer")
    trace.add_argument("--json", action="store_true", help="for programs: every span")
    trace.set_defaults(instance=None)


def _add_journal(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--config", type=Path, metavar="FILE", help="the router's configuration")
    where.add_argument("--data-dir", type=Path, metavar="DIR", help="directory of the journal")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="for programs")
    how.add_argument("--csv", action="store_true", help="for spreadsheets")


def _add_ask(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    ask = commands.add_parser("ask", help="ask a model one thing through the router")
    ask.add_argument("prompt", metavar="TEXT", help="what to ask; - reads standard input")
    _add_location(ask)
    ask.add_argument("--endpoint", metavar="URL", help="the router's ZeroMQ socket: ipc:///PATH or tcp://HOST:PORT")
    ask.add_argument("--model", metavar="NAME", help="the model to ask; without it the first that can chat")
    ask.add_argument("--system", metavar="TEXT", help="instructions that come before the question")
    ask.add_argument("--max-tokens", type=_positive, metavar="N", help="end the answer there")
    ask.add_argument("--temperature", type=_temperature, metavar="T", help="0 = always the likeliest token")
    ask.add_argument(
        "--tag",
        type=_name_and_value,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="label the request, e.g. feature_name=search; may be repeated",
    )
    ask.add_argument("--server-key", metavar="KEY", help="public CURVE key of a router at another machine")
    ask.add_argument("--curve-key-file", type=Path, metavar="FILE", help="your own keys (ringrouter keys curve)")
    ask.add_argument(
        "--waterfall",
        action=argparse.BooleanOptionalAction,
        help="show on standard error where the time went; by default when that is a terminal",
    )


def _add_service(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    service = commands.add_parser("service", help="install, uninstall or upgrade the router as a service of systemd")
    actions = service.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, what in (("install", "put the units in place"), ("uninstall", "stop the units and take them away")):
        action = actions.add_parser(name, help=f"{what}; shows each change first")
        action.add_argument("--user", action="store_true", help="for your own manager instead of the system's")
        action.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")
        action.add_argument("--force", action="store_true", help="also files that were changed by hand")
    upgrade = actions.add_parser("upgrade", help="let a new process take over without refusing anybody")
    upgrade.add_argument("--user", action="store_true", help="of your own manager instead of the system's")
    upgrade.add_argument("--instance", metavar="NAME", help="ringrouter@NAME instead of ringrouter")


def _add_location(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--config", type=Path, metavar="FILE", help="the router's configuration")
    where.add_argument("--run-dir", type=Path, metavar="DIR", help="directory of the rings")
    parser.add_argument("--instance", metavar="NAME", help="name of the router below that directory")
    parser.add_argument("--json", action="store_true", help="for programs")


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 0 to 65535")
    return int(text)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 0 or more")
    return int(text)


def _positive(text: str) -> int:
    count = _count(text)
    if not count:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 1 or more")
    return count


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 0 to 100")
    return value


def _name_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not _TAG_NAME.fullmatch(name):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VALUE with a name of a-z, 0-9 and _")
    return name, value


def _window(text: str) -> float:
    from router.observer.state import WINDOWS_S  # noqa: PLC0415 - the other commands start without

    shown = [f"{window_s:g}" for window_s in WINDOWS_S]
    try:
        return WINDOWS_S[WINDOWS_S.index(float(text))]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected one of {', '.join(shown)}") from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.05 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds between 0.05 and 3600")
    return seconds
