"""Turns a segment into a Parquet file, compressed with zstd; and reads both as one table. DuckDB does the work.

A file gets its name only when it is whole and on the disk, and only then its segment may go. Whoever is killed on the
way leaves a ``.tmp`` that nobody reads, or a segment beside its Parquet file, which stands for it from then on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from router.observer import columns
from router.observer.rows import RowKey
from router.observer.segments import make_directory, name_of, parquet_path, sync_directory

if TYPE_CHECKING:
    import duckdb

MEMORY_LIMIT: Final = "512MB"
"""Of DuckDB, for a conversion or a query: what does not fit goes through a temporary file."""
TEMPORARY_SUFFIX: Final = ".tmp"


def quoted(text: str) -> str:
    """Return a string literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def segments_table(paths: Sequence[Path]) -> str:
    """Return the SELECT that reads segments as the wide table; lines that cannot be read are left out."""
    files = ", ".join(quoted(str(path)) for path in paths)
    types = ", ".join(f"{quoted(name)}: {quoted(kind)}" for name, kind in columns.json_columns().items())
    return (
        f"SELECT {columns.projection()} FROM read_json([{files}], format = 'newline_delimited', "  # noqa: S608 - own names
        f"ignore_errors = true, maximum_object_size = {columns.LINE_BYTES_MAX}, columns = {{{types}}}) "
        "WHERE instance IS NOT NULL"
    )


def empty_table() -> str:
    """Return the SELECT of the wide table without a row."""
    fields = ", ".join(f"NULL::{kind} AS {name}" for name, kind in columns.json_columns().items())
    return f"SELECT {columns.projection()} FROM (SELECT {fields}) WHERE false"  # noqa: S608 - own names


def parquet_table(paths: Sequence[Path]) -> str:
    """Return the SELECT that reads Parquet files, of older versions too: what they lack is NULL."""
    files = ", ".join(quoted(str(path)) for path in paths)
    return f"SELECT * FROM read_parquet([{files}], union_by_name = true, hive_partitioning = false)"  # noqa: S608 - own names


def connect() -> duckdb.DuckDBPyConnection:
    """Return a DuckDB of this process alone, in memory, with one thread; raises ImportError without the package."""
    import duckdb  # noqa: PLC0415 - 60 MB of code that most commands do without

    return duckdb.connect(":memory:", config={"threads": 1, "memory_limit": MEMORY_LIMIT})


def keys_in(paths: Sequence[Path], instance: str, generation: int, done_seq: int) -> dict[RowKey, int]:
    """Return the keys of a life's rows in Parquet files, each with its ``done_seq``: those from ``done_seq`` on, those
    without one, and the last. Files that cannot be read are left out; otherwise DuckDB's own errors.
    """
    if not paths:
        return {}
    with connect() as connection:
        whole = [path for path in paths if damage_of(connection, path) is None]
        if not whole:
            return {}
        found = connection.execute(
            f"WITH own AS (SELECT request_seq, done_seq FROM ({parquet_table(whole)}) "  # noqa: S608 - own names
            "WHERE instance = ? AND generation = ?) SELECT request_seq, done_seq FROM own "
            "WHERE done_seq < 0 OR done_seq >= least(?, (SELECT max(done_seq) FROM own))",
            [instance, generation, done_seq],
        ).fetchall()
    return {(instance, generation, int(request_seq)): int(row_seq) for request_seq, row_seq in found}


def damage_of(connection: duckdb.DuckDBPyConnection, path: Path) -> str | None:
    """Return in one line why a Parquet file cannot be opened; ``None`` when it can."""
    import duckdb  # noqa: PLC0415 - it is there when this is called

    try:
        connection.execute(f"DESCRIBE {parquet_table([path])}")
    except duckdb.Error as error:
        return " ".join(str(error).split())
    return None


def convert(directory: Path, segment: Path) -> int:
    """Write a segment's Parquet file and return how many rows it has; OSError or DuckDB's own errors on failure."""
    name = name_of(segment)
    assert name is not None
    target = parquet_path(directory, name)
    make_directory(target.parent)
    temporary = target.with_name(target.name + TEMPORARY_SUFFIX)
    try:
        row_count = _write(segment, temporary)
        _sync(temporary)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    for made in (target.parent, target.parent.parent, target.parent.parent.parent):
        sync_directory(made)
    return row_count


def _write(segment: Path, target: Path) -> int:
    with connect() as connection:
        found = connection.execute(
            f"COPY ({segments_table([segment])}) TO {quoted(str(target))} (FORMAT parquet, COMPRESSION zstd)"
        ).fetchone()
    return int(found[0]) if found else 0


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
