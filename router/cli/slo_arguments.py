"""The arguments of ``ringrouter slo``: the parser of all commands needs them, and not what the command loads."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_commands(commands: Any, seconds: Callable[[str], float]) -> None:
    """Describe the command and its actions to the parser. ``seconds`` reads a time."""
    slo = commands.add_parser("slo", help="show objectives: budget, burn rates, time to exhaustion; alerts")
    slo.add_argument("--name", default="", metavar="SLO", help="only this objective")
    slo.add_argument(
        "--watch", type=seconds, nargs="?", const=10.0, metavar="SECONDS", help="again and again, by default each ten"
    )
    _add_where(slo, None)
    slo.add_argument("--json", action="store_true", help="for programs")
    actions = slo.add_subparsers(dest="action", metavar="ACTION")
    export = actions.add_parser("export", help="print the objectives of a configuration as rules for Prometheus")
    export.add_argument("--config", type=Path, metavar="FILE", required=True, help="the router's configuration")
    alerts = actions.add_parser("alerts", help="show alerts that fire, and those that did")
    alerts.add_argument("--fingerprint", default="", metavar="ID", help="only this one")
    alerts.add_argument("--recent", action="store_true", help="also the last hundred that ended")
    test = actions.add_parser("test-alert", help="send a test alert to every sink, and say what came back")
    test.add_argument("--sink", default="", metavar="NAME", help="only to this one")
    for action in (alerts, test):
        # What stands before the action holds unless it is said again behind it.
        _add_where(action, argparse.SUPPRESS)
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="for programs")


def _add_where(parser: argparse.ArgumentParser, default: object) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--config", type=Path, metavar="FILE", default=default, help="the router's configuration")
    where.add_argument(
        "--url", metavar="ADDRESS", default=default, help="the observer's host:port or unix:/path (127.0.0.1:8401)"
    )
