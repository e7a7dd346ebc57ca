"""``ringrouter keys``: makes keys and hashes them, and lists those of a configuration."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from router import config
from router.cli import EXIT_OK, fail
from router.config import Config, KeyConfig
from router.config.base import NAME, NAME_ALLOWED
from router.config_schema import shown
from router.errors import ConfigError
from router.keys import tokens

SCHEMA = "ringrouter.keys/1"
_LIMITS = ("requests_per_minute", "in_flight", "tokens_per_minute", "tokens_per_day")
_LINE_CHARS_MAX = 4096


def run(args: argparse.Namespace) -> int:
    """Do what was asked; 2 and one line where that cannot be."""
    actions = {"new": _new, "hash": _hash, "list": _list, "curve": _curve}
    try:
        return actions[args.action](args)
    except ConfigError as error:
        return fail(error)


def _new(args: argparse.Namespace) -> int:
    """Make a key; it is shown once, here."""
    if not re.fullmatch(NAME, args.name):
        return fail(f"name {shown(args.name)}: expected {NAME_ALLOWED['allowed']}")
    token = tokens.new_token()
    table = _table(args, tokens.hash_of(token))
    if args.file is not None:
        problem = _append(args.file, args.name, table)
        if problem:
            return fail(problem)
    if args.json:
        print(json.dumps({"schema": SCHEMA, "name": args.name, "key": token, "hash": tokens.hash_of(token)}))
        return EXIT_OK
    print(token)
    # The key alone on standard output, so that `ringrouter keys new ci > ci.key` keeps it.
    print(f"\nThis key is shown only now. What the router is to know of it{_where(args)}:\n", file=sys.stderr)
    print(table, file=sys.stderr, end="")
    return EXIT_OK


def _where(args: argparse.Namespace) -> str:
    return f" is in {args.file}; SIGHUP has it read" if args.file is not None else ""


def _table(args: argparse.Namespace, hashed: str) -> str:
    lines = ["[[keys]]", f"name = {json.dumps(args.name)}", f"hash = {json.dumps(hashed)}"]
    if args.role != "client":
        lines.append(f"role = {json.dumps(args.role)}")
    if args.model:
        lines.append(f"models = {json.dumps(args.model, ensure_ascii=False)}")
    lines += [f"{name} = {value}" for name in _LIMITS if (value := getattr(args, name))]
    return "".join(f"{line}\n" for line in lines)


def _append(path: Path, name: str, table: str) -> str:
    """Write a key behind the others of a file, which only its owner and group may read; return what is in the way."""
    try:
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        text = f"{before.rstrip()}\n\n{table}" if before.strip() else table
        settings = config.parse(f"version = 1\n{text.replace('version = 1', '')}", need_keys=False)
        names = [key.name for key in settings.keys]
        if names.count(name) > 1:
            return f"{path}: a key is called {shown(name)} already"
        twin = path.with_name(f".{path.name}.new")
        descriptor = os.open(twin, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o640)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if before:
            owner = path.stat()
            twin.chmod(owner.st_mode & 0o7755)
            if os.geteuid() == 0:
                os.chown(twin, owner.st_uid, owner.st_gid)
        twin.replace(path)  # a router that reads it now sees all of it or nothing
    except ConfigError as error:
        return f"{path}: {error}"
    except (OSError, UnicodeDecodeError) as error:
        return f"{path}: {getattr(error, 'strerror', None) or error}"
    return ""


def _hash(args: argparse.Namespace) -> int:
    """Hash a key from standard input: as an argument it would stand in the list of processes and in the history."""
    if sys.stdin.isatty():
        print("key: ", end="", file=sys.stderr, flush=True)
    token = sys.stdin.readline(_LINE_CHARS_MAX).strip()
    if not token or len(token.encode()) > tokens.TOKEN_BYTES_MAX:
        return fail(f"expected a key of 1 to {tokens.TOKEN_BYTES_MAX} bytes on standard input")
    if not token.isascii() or not token.isprintable() or " " in token:
        return fail("expected a key of printable ASCII without blanks on standard input")
    if not token.startswith(tokens.PREFIX):
        print(
            "ringrouter: this key is not of `ringrouter keys new`; one that can be guessed is no protection",
            file=sys.stderr,
        )
    hashed = tokens.hash_of(token)
    print(json.dumps({"schema": SCHEMA, "hash": hashed}) if args.json else hashed)
    return EXIT_OK


def _list(args: argparse.Namespace) -> int:
    settings = config.load(args.config)
    if args.json:
        print(json.dumps({"schema": SCHEMA, "keys": [_facts(key) for key in settings.keys]}))
        return EXIT_OK
    for line in _lines(settings):
        print(line)
    return EXIT_OK


def _facts(key: KeyConfig) -> dict[str, Any]:
    """Return what may be shown of a key: neither its hash nor its public key is needed to know which one it is."""
    return {
        "name": key.name,
        "role": key.role,
        "shown_by": [kind for kind in ("hash", "curve") if getattr(key, kind)],
        "models": key.models,
        "tags": key.tags,
        "tags_default": key.tags_default,
        **{name: getattr(key, name) or None for name in _LIMITS},
    }


def _lines(settings: Config) -> Iterator[str]:
    if not settings.keys:
        yield "no keys: whoever reaches the router may ask it"
        return
    rows = [("NAME", "ROLE", "SHOWN BY", "MODELS", "LIMITS")]
    for key in settings.keys:
        facts = _facts(key)
        limits = ", ".join(f"{name} {facts[name]}" for name in _LIMITS if facts[name]) or "none"
        rows.append((key.name, key.role, "+".join(facts["shown_by"]), " ".join(key.models), limits))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _curve(args: argparse.Namespace) -> int:
    """Make a pair of CURVE keys: the secret one into a file that only its owner can read, the public one shown."""
    import zmq  # noqa: PLC0415 - the other actions start without

    public, secret = (part.decode("ascii") for part in zmq.curve_keypair())
    text = (
        "# CURVE keys of ringrouter. Whoever reads this file can be who it belongs to.\n"
        f'public = "{public}"\nsecret = "{secret}"\n'
    )
    try:
        descriptor = os.open(args.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return fail(f"{args.file}: there is a file already; keys are not written over")
    except OSError as error:
        return fail(f"{args.file}: {error.strerror or error}")
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
    print(json.dumps({"schema": SCHEMA, "public": public, "file": str(args.file)}) if args.json else public)
    return EXIT_OK
