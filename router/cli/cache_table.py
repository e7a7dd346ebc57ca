"""``ringrouter cache table``: builds a table for /v1/ringrouter/nearest, and puts it in use as a whole."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from router import config
from router.caches import entries, keys
from router.cli import EXIT_OK, cache_texts, fail
from router.cli.cache_ask import AskError, Router, router_of
from router.cli.cache_warm import Bar
from router.keep.tables import FORMAT, NAME_PATTERN, Manifest, Table, TableError, table_names, write_table

ITEMS_MAX: Final = 5_000_000
"""Five million vectors of 384 numbers are 7.7 GB, and a second of the keeper for each question."""
SCHEMA: Final = 1


def run(args: argparse.Namespace, settings: config.Config, space: keys.Space | None) -> int:
    """Build a table, or list those that are there."""
    directory = config.tables_dir(settings)
    try:
        if args.action == "list":
            return _list(directory, is_json=args.json)
        if args.name is None or args.file is None or space is None:
            return fail("cache table build takes a NAME, a FILE and --model")
        if not NAME_PATTERN.fullmatch(args.name):
            return fail(f"table {args.name!r}: expected 1 to 64 of A-Za-z0-9_.-, not beginning with . or -")
        return _build(args, settings, space, directory)
    except (TableError, AskError) as error:
        return fail(error)
    except OSError as error:
        return fail(f"{directory}: {error.strerror or error}")


def _list(directory: Path, *, is_json: bool) -> int:
    tables = []
    for name, version in table_names(directory):
        try:
            tables.append(Table(directory / name / version).manifest)
        except TableError as error:
            print(f"{name}: {error}", file=sys.stderr)
    if is_json:
        print(msgspec.json.encode({"schema": SCHEMA, "tables": tables}).decode())
        return EXIT_OK
    for each in tables:
        print(f"{each.name}: {each.count:,} × {each.dimensions} of {each.model}, {each.version}")
    return EXIT_OK


def _build(args: argparse.Namespace, settings: config.Config, space: keys.Space, directory: Path) -> int:
    cache_texts.check_file(args.file)
    items = list(cache_texts.items(args.file, args.field))
    kept = [_kept(item, index) for index, item in enumerate(items)]
    _check_ids(kept)
    if items and all("vector" in item for item in items):
        vectors = _given(items)
    else:
        router = router_of(settings, args.url, args.key_env)
        texts = [_text(item, index, args.field) for index, item in enumerate(items)]
        vectors = _computed(router, space, texts, batch=args.batch, parallel=args.parallel)
    now_s = time.time()
    version = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now_s)) + f".{int(now_s % 1 * 1e6):06d}"
    manifest = Manifest(
        FORMAT, args.name, version, space.model, space.revision, vectors.shape[1], len(kept), int(now_s)
    )
    path = write_table(directory, manifest, vectors, kept)
    if args.json:
        print(msgspec.json.encode({"schema": SCHEMA, "path": str(path), "table": manifest}).decode())
    else:
        print(f"{args.name}: {len(kept):,} × {vectors.shape[1]} of {space.model}, in use as {version}")
    return EXIT_OK


def _kept(item: dict[str, Any], index: int) -> dict[str, Any]:
    """Return what is kept of an item: its id, and its metadata."""
    found = item.get("id", index)
    if not isinstance(found, str | int) or isinstance(found, bool):
        raise TableError(f"item {index}: id is {type(found).__name__}, expected a text or a whole number")
    kept: dict[str, Any] = {"id": found}
    if item.get("metadata") is not None:
        kept["metadata"] = item["metadata"]
    return kept


def _check_ids(kept: Sequence[dict[str, Any]]) -> None:
    if not kept:
        raise TableError("the file has no items")
    if len(kept) > ITEMS_MAX:
        raise TableError(f"{len(kept)} items, at most {ITEMS_MAX} are allowed")
    seen: set[Any] = set()
    for item in kept:
        if item["id"] in seen:
            raise TableError(f"id {item['id']!r} stands twice")
        seen.add(item["id"])


def _text(item: dict[str, Any], index: int, field: str) -> str:
    text = item.get(field)
    if not isinstance(text, str) or not text:
        raise TableError(f"item {item.get('id', index)!r} has neither a text under {field!r} nor a vector")
    return text


def _given(items: Sequence[dict[str, Any]]) -> NDArray[np.float32]:
    try:
        vectors = np.array([item["vector"] for item in items], dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise TableError(f"the vectors are not of one length, or not of numbers: {error}") from None
    if vectors.ndim != 2 or not vectors.shape[1]:
        raise TableError("the vectors are empty, or not of one length")
    return vectors


def _computed(
    router: Router, space: keys.Space, texts: Sequence[str], *, batch: int, parallel: int
) -> NDArray[np.float32]:
    """Ask the router for the vectors of texts; raises :class:`TableError` when a host refuses one."""
    bar = Bar(len(texts), sys.stderr)
    space_id = space.space_id()
    batches = [texts[begin : begin + batch] for begin in range(0, len(texts), batch)]
    rows: list[NDArray[np.float32]] = []
    with ThreadPoolExecutor(parallel) as pool:
        for part, asked in zip(batches, pool.map(lambda b: router.vectors(space, b), batches), strict=True):
            if asked.refused:
                text, why = asked.refused[0]
                raise TableError(f"a host refuses {text[:60]!r}: {why}")
            for text in part:
                raw = entries.f32_bytes(asked.found[keys.key_of(space_id, text)])
                rows.append(np.frombuffer(raw, dtype="<f4"))
            bar.show(len(rows))
    bar.show(len(rows), last=True)
    if len({len(row) for row in rows}) != 1:
        raise TableError("the vectors are not of one length")
    return np.stack(rows).astype(np.float32)
