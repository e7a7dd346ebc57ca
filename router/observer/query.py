"""Asks the journal in SQL: one view, ``requests``, over all Parquet files and the segments that are not sealed yet.

DuckDB runs inside the asking process, which only reads. The statement can see the journal's files and nothing else of
the machine, and nothing it says can write.
"""

from __future__ import annotations

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


class QueryError(Exception):
    """The journal cannot be asked this; the message is one line."""


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
        paths = _paths(directory, since_wall_ns)
        try:
            self._connection = parquet.connect()
        except ImportError:
            raise QueryError("DuckDB is not installed: pip install 'ringrouter[observer]'") from None
        _told(self._define, paths)

    def ask(self, sql: str, parameters: Sequence[Any] | None = None) -> Answer:
        """Run one statement that reads; QueryError says in one line what is wrong with it."""
        return Answer(_told(self._execute, sql, parameters))

    def close(self) -> None:
        """Let go of the files."""
        self._connection.close()

    def _define(self, paths: list[Path]) -> None:
        """Make the view, and take from the connection what the statement is not to have."""
        run = self._connection.execute
        run("SET TimeZone = 'UTC'")  # so that start_time > now() - INTERVAL 1 HOUR means what it says
        run(f"CREATE TEMP VIEW {VIEW} AS {_table(paths)}")
        run(f"SET allowed_paths = [{', '.join(parquet.quoted(str(path)) for path in paths)}]")
        run("SET enable_external_access = false")
        run("SET lock_configuration = true")

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
        """Let times with a zone come as text: handing them over takes a package that is needed for nothing else."""
        described = self._connection.execute(f"DESCRIBE {sql}", parameters).fetchall()
        zoned = [str(column[0]) for column in described if column[1] == _WITH_ZONE]
        if not zoned:
            return sql
        casts = ", ".join(f"CAST({name} AS VARCHAR) AS {name}" for name in map(_identifier, zoned))
        return f"SELECT * REPLACE ({casts}) FROM ({sql})"  # noqa: S608 - the user's own statement


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
    sealed = [path for path in paths if path.suffix == ".parquet"]
    live = [path for path in paths if path.suffix != ".parquet"]
    parts = [parquet.segments_table(live) if live else parquet.empty_table()]
    if sealed:
        parts.append(parquet.parquet_table(sealed))
    return " UNION ALL BY NAME ".join(f"({part})" for part in parts)


def _told(call: Any, *args: Any) -> Any:
    """Call DuckDB and turn its errors into one line each."""
    import duckdb  # noqa: PLC0415 - it is there when this is called

    try:
        return call(*args)
    except duckdb.Error as error:
        raise QueryError(_one_line(str(error))) from None


def _one_line(text: str) -> str:
    """Return what DuckDB says, without the picture of the statement below it."""
    said = text.partition("\nLINE ")[0]
    return " ".join(said.split())
