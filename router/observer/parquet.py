"""Turns a segment into a Parquet file, compressed with zstd; and reads both as one table. DuckDB does the work.

A file gets its name only when it is whole and on the disk, and only then its segment may go. Whoever is killed on the
way leaves a ``.tmp`` that nobody reads, or a segment beside its Parquet file, which stands for it from then on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from router.observer import columns
from router.observer.rows import RowKey
from router.observer.segments import make_directory, name_of, parquet_path, sync_directory

if TYPE_CHECKING:
    import duckdb

MEMORY_BYTES_MIN: Final = 512 << 20
"""Memory of DuckDB for a conversion, beside an observer that is to stay small; a query may have more."""
QUERY_MEMORY_SHARE: Final = 0.5
"""Part of the memory that is available to the machine's programs which one question may take: percentiles hold every
value, and cannot go through a temporary file."""
_MEMORY: Final = Path("/proc/meminfo")
TEMPORARY_SUFFIX: Final = ".tmp"


_MAGIC: Final = b"PAR1"
"""What a Parquet file begins and ends with."""
_NEEDED: Final = ("instance", "generation", "request_seq", "end_wall_ns")
"""What makes a line a row: whose it is, and when it ended."""


def quoted(text: str) -> str:
    """Return a string literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def segments_table(paths: Sequence[Path]) -> str:
    """Return the SELECT that reads segments as the wide table; lines that cannot be read are left out."""
    files = _listed(paths)
    types = ", ".join(f"{quoted(name)}: {quoted(kind)}" for name, kind in columns.json_columns().items())
    return (
        f"SELECT {columns.projection()} FROM read_json([{files}], format = 'newline_delimited', "  # noqa: S608 - own names
        f"ignore_errors = true, maximum_object_size = {columns.LINE_BYTES_MAX}, columns = {{{types}}}) "
        f"WHERE {' AND '.join(f'{name} IS NOT NULL' for name in _NEEDED)}"
    )


def empty_table() -> str:
    """Return the SELECT of the wide table without a row."""
    fields = ", ".join(f"NULL::{kind} AS {name}" for name, kind in columns.json_columns().items())
    return f"SELECT {columns.projection()} FROM (SELECT {fields}) WHERE false"  # noqa: S608 - own names


def parquet_table(paths: Sequence[Path]) -> str:
    """Return the SELECT that reads Parquet files, of older versions too: what they lack is NULL."""
    return f"SELECT * FROM read_parquet([{_listed(paths)}], union_by_name = true, hive_partitioning = false)"  # noqa: S608 - own names


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(quoted(str(path)) for path in paths)


def connect(memory_bytes: int = MEMORY_BYTES_MIN) -> duckdb.DuckDBPyConnection:
    """Return a DuckDB of this process alone, in memory, with one thread; raises ImportError without the package."""
    import duckdb  # noqa: PLC0415 - 60 MB of code that most commands do without

    return duckdb.connect(":memory:", config={"threads": 1, "memory_limit": f"{memory_bytes >> 20}MiB"})


def query_memory_bytes() -> int:
    """Return how much memory a question may take now: a share of what is available, and what a conversion has."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _MEMORY.read_text(), re.MULTILINE)
    available = int(found[1]) << 10 if found else 0
    return max(MEMORY_BYTES_MIN, int(available * QUERY_MEMORY_SHARE))


def keys_in(paths: Sequence[Path], instance: str, generation: int, done_seq: int) -> dict[RowKey, int]:
    """Return the keys of a life's rows in Parquet files, each with its ``done_seq``: those from ``done_seq`` on, those
    without one, and the last. Files that cannot be read are left out; otherwise DuckDB's own errors.
    """
    whole = [path for path in paths if is_whole(path)]
    if not whole:
        return {}
    import duckdb  # noqa: PLC0415 - it wrote them

    with connect() as connection:
        try:
            found = _numbers_in(connection, whole, instance, generation, done_seq)
        except duckdb.Error:
            readable = [path for path in whole if damage_of(connection, path, whole=True) is None]
            found = _numbers_in(connection, readable, instance, generation, done_seq) if readable else []
    return {(instance, generation, request_seq): row_seq for request_seq, row_seq in found}


def _numbers_in(
    connection: duckdb.DuckDBPyConnection, paths: Sequence[Path], instance: str, generation: int, done_seq: int
) -> list[tuple[int, int]]:
    return connection.execute(
        f"WITH own AS (SELECT request_seq, done_seq FROM ({parquet_table(paths)}) "  # noqa: S608 - own names
        "WHERE instance = ? AND generation = ?) SELECT request_seq, done_seq FROM own "
        "WHERE done_seq < 0 OR done_seq >= least(?, (SELECT max(done_seq) FROM own))",
        [instance, generation, done_seq],
    ).fetchall()


def damage_of(connection: duckdb.DuckDBPyConnection, path: Path, *, whole: bool = False) -> str | None:
    """Return in one line why a Parquet file cannot be read; ``None`` when it can. ``whole`` reads all of it, else its
    description alone.
    """
    import duckdb  # noqa: PLC0415 - it is there when this is called

    table = parquet_table([path])
    try:
        connection.execute(f"SELECT bit_xor(hash(read)) FROM ({table}) AS read" if whole else f"DESCRIBE {table}")  # noqa: S608 - own names
    except duckdb.Error as error:
        return " ".join(str(error).split())
    return None


def is_whole(path: Path) -> bool:
    """Return whether a Parquet file has its beginning and its end: a look that takes no time and no DuckDB."""
    try:
        with path.open("rb") as file:
            begin = file.read(len(_MAGIC))
            file.seek(-len(_MAGIC), os.SEEK_END)
            return begin == file.read() == _MAGIC
    except OSError:
        return False


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
