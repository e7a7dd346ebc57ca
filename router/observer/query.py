"""Asks the journal in SQL: one view, ``requests``, over all Parquet files and the segments that are not sealed yet.

DuckDB runs inside the asking process, which only reads. The statement can see the journal's files and nothing else of
the machine, and nothing it says can write. A Parquet file that cannot be read is left out, and standard error says so:
one damaged hour is no reason to know nothing of the others.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from router.observer import parquet, segments

if TYPE_CHECKING:
    import duckdb

VIEW: Final = "requests"
_FETCH_ROWS: Final = 1024
_READING: Final = frozenset({"SELECT", "EXPLAIN"})
_WITH_ZONE: Final = "TIMESTAMP WITH TIME ZONE"
_OF_FILES: Final = ("Error", "IOException", "InvalidInputException", "InternalException", "SerializationException")
"""Names of DuckDB's errors that can come of a damaged file."""


class QueryError(Exception):
    """The journal cannot be asked this; the message is one line. ``kind`` is the name of DuckDB's error, if any."""

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


class Answer:
    """Names and DuckDB types of the columns, and the rows, which are fetched as they are taken."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection) -> None:
        self._cursor = cursor
        description = cursor.description or []
        self.columns = [str(column[0]) for column in description]

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        while rows := _told(self._cursor.fetchmany, _FETCH_ROWS):
            yield from rows


class JournalReader:
    """Reads the journal in ``directory``, or what ended since ``since_wall_ns``, to the hour.

    Raises QueryError where there is no journal or DuckDB is not installed.
    """

    def __init__(self, directory: Path, since_wall_ns: int | None = None) -> None:
        self._paths = _paths(directory, since_wall_ns)
        try:
            self._connection = parquet.connect(parquet.query_memory_bytes())
        except ImportError:
            raise QueryError("DuckDB is not installed: pip install 'ringrouter[observer]'") from None
        _told(self._define)

    def ask(self, sql: str, parameters: Sequence[Any] | None = None) -> Answer:
        """Run one statement that reads; QueryError says in one line what is wrong with it."""
        try:
            return Answer(_told(self._execute, sql, parameters))
        except QueryError as error:
            if error.kind not in _OF_FILES or not self._leave_out_damaged(whole=True):
                raise
        return Answer(_told(self._execute, sql, parameters))

    def close(self) -> None:
        """Let go of the files."""
        self._connection.close()

    def _define(self) -> None:
        """Make the view, and take from the connection what the statement is not to have."""
        run = self._connection.execute
        run("SET TimeZone = 'UTC'")  # so that start_time > now() - INTERVAL 1 HOUR means what it says
        try:
            self._make_view()
        except QueryError:
            if not self._leave_out_damaged():
                raise
        run(f"SET allowed_paths = [{', '.join(parquet.quoted(str(path)) for path in self._paths)}]")
        run("SET enable_external_access = false")
        run("SET lock_configuration = true")

    def _make_view(self) -> None:
        _told(self._connection.execute, f"CREATE OR REPLACE TEMP VIEW {VIEW} AS {_table(self._paths)}")

    def _leave_out_damaged(self, *, whole: bool = False) -> bool:
        """Make the view without the Parquet files that cannot be read, and say which; false when all can be."""
        damage = {path: parquet.damage_of(self._connection, path, whole=whole) for path in _sealed(self._paths)}
        damaged = [path for path, what in damage.items() if what is not None]
        for path in damaged:
            sys.stderr.write(f"left out: {path} cannot be read: {damage[path]}\n")
        self._paths = [path for path in self._paths if path not in damaged]
        self._make_view()
        return bool(damaged)

    def _execute(self, sql: str, parameters: Sequence[Any] | None) -> duckdb.DuckDBPyConnection:
        statements = self._connection.extract_statements(sql)
        if len(statements) != 1:
            raise QueryError(f"expected one statement, found {len(statements)}")
        kind = statements[0].type.name
        if kind not in _READING:
            raise QueryError(f"{kind} is not allowed: the journal is only read")
        if kind == "SELECT":
            sql = self._without_zones(sql.rstrip().rstrip(";"), parameters)
        return self._connection.execute(sql, parameters)

    def _without_zones(self, sql: str, parameters: Sequence[Any] | None) -> str:
        """Let times with a zone come as text, also those inside of lists and the like: handing them over takes a
        package that is needed for nothing else.
        """
        described = [(str(name), str(kind)) for name, kind, *_ in self._described(sql, parameters)]
        if not any(_WITH_ZONE in kind for _, kind in described):
            return sql
        # By place and not by name: two columns may have the same.
        places = [f"column_{index}" for index in range(len(described))]
        casts = ", ".join(
            f"CAST({place} AS {kind.replace(_WITH_ZONE, 'VARCHAR')}) AS {_identifier(name)}"
            for place, (name, kind) in zip(places, described, strict=True)
        )
        return f"SELECT {casts} FROM ({sql}\n) AS answer({', '.join(places)})"  # noqa: S608 - the user's own statement

    def _described(self, sql: str, parameters: Sequence[Any] | None) -> list[tuple[Any, ...]]:
        return self._connection.execute(f"DESCRIBE {sql}", parameters).fetchall()


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _paths(directory: Path, since_wall_ns: int | None) -> list[Path]:
    """Return the files to read. The segments are listed first: one that is sealed meanwhile is then listed twice, and
    left out here, instead of being missed.
    """
    found = segments.segment_paths(directory)
    sealed = segments.parquet_paths(directory)
    if not found and not sealed and not (directory / segments.WAL).is_dir():
        raise QueryError(f"there is no journal in {directory}: has 'ringrouter observe' run?")
    sealed_names = {segments.name_of(path) for path in sealed}
    paths = [*sealed, *(path for path in found if segments.name_of(path) not in sealed_names)]
    if since_wall_ns is None:
        return paths
    hour = segments.hour_of(since_wall_ns)
    return [path for path in paths if (name := segments.name_of(path)) is not None and name.hour >= hour]


def _table(paths: Sequence[Path]) -> str:
    """Return the SELECT over all files; the empty list makes an empty table with all columns."""
    sealed = _sealed(paths)
    live = [path for path in paths if path.suffix != ".parquet"]
    parts = [parquet.segments_table(live) if live else parquet.empty_table()]
    if sealed:
        parts.append(parquet.parquet_table(sealed))
    return " UNION ALL BY NAME ".join(f"({part})" for part in parts)


def _sealed(paths: Sequence[Path]) -> list[Path]:
    return [path for path in paths if path.suffix == ".parquet"]


def _told(call: Any, *args: Any) -> Any:
    """Call DuckDB and turn its errors into one line each."""
    import duckdb  # noqa: PLC0415 - it is there when this is called

    try:
        return call(*args)
    except duckdb.OutOfMemoryException:
        raise QueryError(
            "this takes more memory than half of what the machine has free: choose fewer requests, by --since or by "
            "end_time, and fewer percentiles"
        ) from None
    except duckdb.Error as error:
        raise QueryError(_one_line(str(error)), type(error).__name__) from None


def _one_line(text: str) -> str:
    """Return what DuckDB says, without the picture of the statement below it."""
    said = text.partition("\nLINE ")[0]
    return " ".join(said.split())
