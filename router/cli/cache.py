"""``ringrouter cache``: looks at the store of vectors, fills it ahead, empties it; builds tables for `nearest`.

Exit codes: 0 done, 1 not all of it (something refused, damaged, not found), 2 usage, configuration, or no keeper where
one is needed, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, Final

import msgspec

from router import config
from router.caches import entries, keys
from router.cli import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, cache_arguments, fail
from router.cli.keeper_client import KeeperClient, KeeperError, store_access
from router.cli.location import settings_of
from router.errors import ConfigError

SCHEMA: Final = 1
_PROBLEMS_SHOWN: Final = 20


def run(args: argparse.Namespace) -> int:
    """Run one of its commands."""
    from router.cli.cache_ask import AskError  # noqa: PLC0415 - the other commands start without
    from router.cli.cache_texts import TextsError  # noqa: PLC0415

    if wrong := cache_arguments.problem(args):
        return fail(wrong)
    try:
        settings = settings_of(args)
        return int(_COMMANDS[args.what](args, settings))
    except (ConfigError, KeeperError, AskError, TextsError) as error:
        return fail(error)
    except ModuleNotFoundError as error:
        extra = "observer" if error.name == "duckdb" else "keep"
        return fail(f"cache {args.what} needs {error.name}: pip install 'ringrouter[{extra}]'")


def _space(settings: config.Config, model: str, dimensions: int) -> keys.Space:
    model = config.aliases(settings).get(model, model)  # routers keep vectors under the model's own name
    return keys.Space(model, settings.cache.embeddings.revisions.get(model, ""), dimensions)


def _print_json(value: dict[str, Any]) -> None:
    print(msgspec.json.encode({"schema": SCHEMA, **value}).decode())


# ---------------------------------------------------------------- warm
def _warm(args: argparse.Namespace, settings: config.Config) -> int:
    from router.cli import cache_texts  # noqa: PLC0415
    from router.cli.cache_ask import AskError, router_of  # noqa: PLC0415
    from router.cli.cache_warm import Warmer  # noqa: PLC0415

    cache_texts.check_file(args.file)
    router = router_of(settings, args.url, args.key_env)
    status, problem = EXIT_OK, ""
    with KeeperClient(config.keeper_socket(settings, args.run_dir)) as keeper:
        warmer = Warmer(
            router, keeper, _space(settings, args.model, args.dimensions),
            batch=args.batch, parallel=args.parallel, total=cache_texts.count(args.file),
        )  # fmt: skip
        try:
            warmer.run(cache_texts.texts(args.file, args.field))
        except (AskError, KeeperError, cache_texts.TextsError) as error:
            status, problem = EXIT_FAILED, str(error)
        except KeyboardInterrupt:
            status, problem = EXIT_INTERRUPTED, "interrupted"
    account = warmer.account
    if status == EXIT_OK and (account.refused or account.dropped):
        status = EXIT_FAILED
    if args.json:
        _print_json({**account.as_json(), "problem": problem})
        return status
    _print_account(account, problem)
    return status


def _print_account(account: Any, problem: str) -> None:
    print(f"{account.texts:,} texts read: {account.durable:,} computed and on the disk, {account.present:,} were there")
    for count, what in (
        (account.repeated, "stood in the file before"),
        (account.empty, "are empty"),
        (account.refused, "were refused by the host"),
        (account.dropped, "found no room in the store (cache.embeddings.store_bytes)"),
    ):
        if count:
            print(f"{count:,} {what}")
    for reason in account.reasons:
        print(f"  {reason}")
    if account.evicted:
        print(
            f"{account.evicted:,} older vectors left the store for these: it is full (cache.embeddings.store_bytes); "
            "they may be of this file"
        )
    if problem:
        print(f"not finished: {problem}. The same command goes on from here.", file=sys.stderr)


# ---------------------------------------------------------------- stats, get, purge, verify
def _stats(args: argparse.Namespace, settings: config.Config) -> int:
    with store_access(settings, args.run_dir) as store:
        status = store.ask("status")
        own = status.get("embeddings")
        spaces = store.ask("cache.spaces") if own is not None else []
    named = [
        {"model": model, "revision": revision, "dimensions": dimensions or None, "vectors": count}
        for _, model, revision, dimensions, count in spaces
    ]
    if args.json:
        _print_json({"keeper": status.get("keeper"), "store": own, "spaces": named, "nearest": status.get("nearest")})
        return EXIT_OK
    print("keeper:  " + (f"runs, pid {status['keeper']['pid']}" if "keeper" in status else "does not run"))
    if own is not None:
        _print_store(own)
        for each in named:
            more = "".join(f", {k} {each[k]}" for k in ("revision", "dimensions") if each[k])
            print(f"  {each['model']}{more}: {each['vectors']:,} vectors")
    for name, table in ((status.get("nearest") or {}).get("tables") or {}).items():
        print(f"table:   {name}: {table['count']:,} × {table['dimensions']} of {table['model']}, {table['version']}")
    return EXIT_OK


def _print_store(own: dict[str, Any]) -> None:
    share = own["used_bytes"] / own["limit_bytes"] if own["limit_bytes"] else 0.0
    print(f"store:   {own['path']}")
    print(f"size:    {own['used_bytes'] / 1e6:,.1f} MB of {own['limit_bytes'] / 1e6:,.0f} MB ({share:.0%})")
    print(f"vectors: {own['entries']:,}")
    if "written" in own:
        names = ("written", "touched", "evicted", "dropped", "damaged")
        print("since the keeper's start: " + ", ".join(f"{own[name]:,} {name}" for name in names))
    if own.get("problem"):
        print(f"problem: {own['problem']}")


def _get(args: argparse.Namespace, settings: config.Config) -> int:
    key = keys.key_of(_space(settings, args.model, args.dimensions).space_id(), args.text)
    with store_access(settings, args.run_dir) as store:
        entry = store.ask("cache.get", key)
    if entry is None or not entries.is_whole(key, entry):
        print(f"there is no vector of this text by {args.model!r}" if entry is None else "its vector is damaged")
        return EXIT_FAILED
    vector = msgspec.json.decode(entries.float_text(entry))
    facts = {
        "key": key.hex(),
        "dimensions": len(vector),
        "tokens": entries.tokens(entry),
        "bits": 32 if entry[0] == entries.F32 else 64,
        "host_ms": entries.host_us(entry) / 1000,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(entries.made_s(entry))),
    }
    if args.json:
        _print_json({**facts, "vector": vector})
        return EXIT_OK
    for name, value in facts.items():
        print(f"{name + ':':<12}{value}")
    shown = ", ".join(f"{value:.6g}" for value in vector[:4])
    print(f"{'vector:':<12}[{shown}{', …' if len(vector) > 4 else ''}]")
    return EXIT_OK


def _purge(args: argparse.Namespace, settings: config.Config) -> int:
    with store_access(settings, args.run_dir) as store:
        if args.all:
            prefixes = [b""]
        elif args.text is not None:
            prefixes = [keys.key_of(_space(settings, args.model, args.dimensions).space_id(), args.text)]
        else:
            known = store.ask("cache.spaces")
            own_name = _space(settings, args.model, 0).model
            prefixes = [space for space, model, *_ in known if model == own_name]
        removed = sum(store.ask("cache.purge", prefix)["removed"] for prefix in prefixes)
    if args.json:
        _print_json({"removed": removed})
    else:
        print(f"{removed:,} vectors removed")
    return EXIT_OK


def _verify(args: argparse.Namespace, settings: config.Config) -> int:
    with store_access(settings, args.run_dir) as store:
        count = store.ask("status")["embeddings"]["entries"]
        problems = store.ask("cache.verify")
    if args.json:
        _print_json({"vectors": count, "problems": problems})
    elif problems:
        for problem in problems[:_PROBLEMS_SHOWN]:
            print(problem)
        print(f"{len(problems):,} things are wrong")
    else:
        print(f"{count:,} vectors, all of them whole")
    return EXIT_FAILED if problems else EXIT_OK


# ---------------------------------------------------------------- tables
def _table(args: argparse.Namespace, settings: config.Config) -> int:
    from router.cli import cache_table  # noqa: PLC0415 - it needs an extra

    return cache_table.run(args, settings, _space(settings, args.model, 0) if args.model else None)


def _tools(args: argparse.Namespace, settings: config.Config) -> int:
    from router.cli import cache_tools  # noqa: PLC0415 - only who asks for it

    return cache_tools.run(args, settings, SCHEMA)


_COMMANDS: Final = {
    "warm": _warm,
    "stats": _stats,
    "get": _get,
    "purge": _purge,
    "verify": _verify,
    "table": _table,
    "tools": _tools,
}
