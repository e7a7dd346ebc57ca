"""The arguments of ``ringrouter cache``: the parser of all commands needs them, and not what the command loads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Describe the command and its parts to the parser."""
    cache = commands.add_parser("cache", help="look at vectors and tools, fill the store ahead, empty it; build tables")
    parts = cache.add_subparsers(dest="what", required=True, metavar="WHAT")
    warm = parts.add_parser("warm", help="compute the vectors of a file's texts ahead; goes on where it ended")
    warm.add_argument("file", type=Path, metavar="FILE", help=".txt (a text a line), .jsonl or .parquet")
    _add_router(warm, is_model_required=True)
    parts.add_parser("stats", help="how full the store is, of which models")
    get = parts.add_parser("get", help="show the vector of a text")
    get.add_argument("text", metavar="TEXT")
    get.add_argument("--model", required=True, metavar="NAME")
    purge = parts.add_parser("purge", help="remove vectors")
    purge.add_argument("--model", metavar="NAME", help="of this model")
    purge.add_argument("--text", metavar="TEXT", help="of this text and --model")
    purge.add_argument("--all", action="store_true", help="all of them")
    verify = parts.add_parser("verify", help="look at every vector")
    table = parts.add_parser("table", help="build tables for /v1/ringrouter/nearest")
    _add_table(table)
    tools = parts.add_parser("tools", help="the tools that requests can name, and how their sources do")
    tools.add_argument("--refresh", action="store_true", help="have the keeper ask all sources again")
    for each in (warm, parts.choices["stats"], get, purge, verify, table, tools):
        where = each.add_argument_group()
        where.add_argument("--config", type=Path, metavar="FILE", help="the router's configuration")
        where.add_argument("--run-dir", type=Path, metavar="DIR", help="directory of the rings and of the keeper")
        where.add_argument("--json", action="store_true", help="for programs")
    for each in (warm, get, purge):
        each.add_argument("--dimensions", type=int, default=0, metavar="N", help="as asked for; without it the model's")


def _add_router(parser: argparse.ArgumentParser, *, is_model_required: bool) -> None:
    parser.add_argument("--model", required=is_model_required, metavar="NAME", help="the model that computes them")
    parser.add_argument("--field", default="text", metavar="NAME", help="where the text is in an object or row (text)")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="texts of one request (32)")
    parser.add_argument("--parallel", type=int, default=4, metavar="N", help="requests at once (4)")
    parser.add_argument("--url", metavar="ADDRESS", help="the router's host:port or unix:/path")
    parser.add_argument("--key-env", default="", metavar="NAME", help="variable with the key that the router wants")


def _add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("build", "list"))
    parser.add_argument("name", nargs="?", metavar="NAME")
    parser.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help=".jsonl or .parquet: id, and text or vector, and metadata"
    )
    _add_router(parser, is_model_required=False)


def problem(args: argparse.Namespace) -> str:
    """Return what is wrong with the arguments together, empty if nothing is."""
    if args.what == "purge" and (args.all + (args.model is not None)) != 1:
        return "cache purge takes --all or --model"
    if args.what == "purge" and args.text is not None and args.model is None:
        return "cache purge --text takes --model too"
    if args.what in {"warm", "table"} and not (1 <= args.batch <= 2048 and 1 <= args.parallel <= 64):
        return "--batch takes 1 to 2048, --parallel 1 to 64"
    if getattr(args, "dimensions", 0) < 0:
        return "--dimensions takes a whole number, 0 or more"
    return ""
