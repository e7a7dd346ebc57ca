"""Finds finished requests by request id or trace id, without an observer: in its journal, else in the routers' rings.

Reads files only: the command does it, and the observer in a thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ringbuffer import RingError, find_generations
from router.observer import parquet, segments
from router.observer.columns import cost_column
from router.observer.rows import Origin, RequestRow, RowCost, RowKey, row_of
from router.observer.traces.kept import ROWS_PER_ID_MAX
from router.telemetry import records as rec
from router.telemetry import snapshot, trace_ids

if TYPE_CHECKING:
    import duckdb

SEALED_FILES_MAX: Final = 72
"""Parquet files that are searched, the newest: three days of them. For older requests there is ``ringrouter query``."""
JOURNAL: Final = "journal"
RINGS: Final = "rings"

_WHATS: Final = frozenset({"done"})
_decode: Final = msgspec.json.Decoder(RequestRow).decode
_FIELDS: Final = {field.name for field in msgspec.structs.fields(RequestRow)} - {"cost", "message"}


def as_recorded(identity: str) -> str:
    """Return an id as records have it, in which a long one is cut."""
    return identity.encode("utf-8", "replace")[: rec.TEXT_BYTES].decode("utf-8", "ignore")


def in_journal(identity: str, directory: Path) -> list[RequestRow]:
    """Return the rows of a journal's directory with a request id or a trace id; empty where there is no journal."""
    rows = list(_in_segments(identity, reversed(segments.segment_paths(directory))))
    if not rows or may_be_more(identity, rows):
        rows += _in_parquet(identity, segments.parquet_paths(directory)[-SEALED_FILES_MAX:])
    return merged(rows)


def may_be_more(identity: str, rows: Iterable[RequestRow]) -> bool:
    """Return whether these rows are of a caller's trace, which may have others elsewhere that were not kept or are
    older.
    """
    return any(row.span_id and row.trace_id == identity for row in rows)


def in_rings(identity: str, instance_dirs: Iterable[Path]) -> list[RequestRow]:
    """Return the rows of routers' done rings; what cannot be read is left out."""
    rows: list[RequestRow] = []
    for instance in instance_dirs:
        try:
            generations = find_generations(instance)
        except (RingError, OSError):
            continue
        for directory in generations:
            rows += _in_generation(identity, instance.name, directory)
    return merged(rows)


def _in_generation(identity: str, instance: str, directory: Path) -> list[RequestRow]:
    try:
        copy = snapshot.take(directory, _WHATS)
    except (RingError, OSError):
        return []
    generation = int(directory.name)
    origin = Origin(instance, generation, copy.names, copy.header.wall_ns)
    life = trace_ids.life_of(instance, generation)
    return [
        row_of(record, origin, seq)
        for seq, record in copy.decoded("done")
        if record["request_id"] == identity
        or record["trace_id"] == identity
        or trace_ids.trace_id(life, record["request_seq"]).hex() == identity
    ]


def _in_segments(identity: str, paths: Iterable[Path]) -> Iterator[RequestRow]:
    quoted = msgspec.json.encode(identity)
    for path in paths:
        try:
            with path.open("rb") as file:
                found = [line for line in file if quoted in line]
        except FileNotFoundError:  # it was converted meanwhile
            continue
        for line in found:
            row = _row(line)
            if row is not None and identity in (row.request_id, row.trace_id):
                yield row


def _row(line: bytes) -> RequestRow | None:
    try:
        return _decode(line)
    except ValueError:  # the end of a file that is being written, or damage
        return None


def _in_parquet(identity: str, paths: Sequence[Path]) -> list[RequestRow]:
    whole = [path for path in paths if parquet.is_whole(path)]
    if not whole:
        return []
    import duckdb  # noqa: PLC0415 - it wrote them

    with parquet.connect() as connection:
        try:
            records = _records(connection, identity, whole)
        except duckdb.Error:
            readable = [path for path in whole if parquet.damage_of(connection, path, whole=True) is None]
            records = _records(connection, identity, readable) if readable else []
    return [row for record in records if (row := row_of_wide(record)) is not None]


def _records(connection: duckdb.DuckDBPyConnection, identity: str, paths: Sequence[Path]) -> list[dict[str, Any]]:
    cursor = connection.execute(
        f"SELECT * FROM ({parquet.parquet_table(paths)}) "  # noqa: S608 - own names
        f"WHERE request_id = $1 OR trace_id = $1 ORDER BY start_wall_ns DESC LIMIT {ROWS_PER_ID_MAX}",
        [identity],
    )
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]


def row_of_wide(record: Mapping[str, Any]) -> RequestRow | None:
    """Make the row of a record of the wide table (:mod:`router.observer.columns`), of any version of it; ``None`` for
    one that cannot be a row.
    """
    values = {name: record[name] for name in _FIELDS if record.get(name) is not None or name in _NULLABLE & set(record)}
    cost = {field.name: record.get(cost_column(field.name)) for field in msgspec.structs.fields(RowCost)}
    if cost["currency"] is not None:
        values["cost"] = cost
    try:
        return msgspec.convert(values | {"message": ""}, RequestRow, strict=False)
    except msgspec.ValidationError:
        return None


_NULLABLE: Final = {
    field.name for field in msgspec.structs.fields(RequestRow) if field.required and "None" in str(field.type)
}


def merged(rows: Iterable[RequestRow]) -> list[RequestRow]:
    """Return the newest rows, each once (the last of two), in the order in which they began."""
    by_key: dict[RowKey, RequestRow] = {row.key: row for row in rows}
    return sorted(by_key.values(), key=lambda row: (row.start_wall_ns, row.key))[-ROWS_PER_ID_MAX:]
