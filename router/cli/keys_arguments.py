"""The arguments of ``ringrouter keys``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser], positive: Callable[[str], int]) -> None:
    """Add the command and its actions; ``positive`` reads a whole number of 1 or more."""
    keys = commands.add_parser("keys", help="make keys for clients, hash them, list those of a configuration")
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    new = actions.add_parser("new", help="make a key: it is printed once, with the table for the configuration")
    new.add_argument("name", metavar="NAME", help="what it is called in limits, records and logs")
    new.add_argument("--role", choices=("client", "operator", "read-only"), default="client")
    new.add_argument(
        "--model", action="append", default=[], metavar="PATTERN", help="only these models; may be repeated"
    )
    new.add_argument("--requests-per-minute", type=positive, metavar="N", default=0)
    new.add_argument("--in-flight", type=positive, metavar="N", default=0, help="requests at once")
    new.add_argument("--tokens-per-minute", type=positive, metavar="N", default=0, help="in and out")
    new.add_argument("--tokens-per-day", type=positive, metavar="N", default=0)
    new.add_argument("--file", type=Path, metavar="FILE", help="append the table to this file of keys")
    hashed = actions.add_parser("hash", help="print the hash of a key that is read from standard input")
    listed = actions.add_parser("list", help="list the keys of a configuration, their roles and limits")
    listed.add_argument("--config", type=Path, metavar="FILE", required=True, help="the router's configuration")
    curve = actions.add_parser("curve", help="make CURVE keys for ZeroMQ over TCP, of the router or of a client")
    curve.add_argument("file", type=Path, metavar="FILE", help="where the secret key goes; must not be there yet")
    for action in (new, hashed, listed, curve):
        action.add_argument("--json", action="store_true", help="for programs")
