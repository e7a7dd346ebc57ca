"""The columns of the journal: how a row is written as JSON, and the wide table that it becomes in Parquet; pure.

A segment holds one JSON object per line, the fields of :class:`router.observer.rows.RequestRow` as they are, so that
any program can read it. In Parquet, and in the view ``requests`` over both, every scalar field is a column of its own,
so are the built-in tags and the parts of the cost; the map ``tags`` has the user's own tags too. What a host says in
an error message may quote a prompt: it is never written.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import inspect

from router.observer.rows import RequestRow, RowCost
from router.telemetry.records import TAGS, TEXT_TAGS

TAG_COLUMNS: Final = (*TAGS, *TEXT_TAGS)
"""Tags that are columns; all other ones are in the map ``tags``."""
LINE_BYTES_MAX: Final = 1 << 20
"""Far above any row: tags, attempts and candidates are bounded."""
_NOT_KEPT: Final = frozenset({"message"})
_COST_PREFIXED: Final = frozenset({"amount", "waste_amount", "currency", "basis", "missing"})


def encode_line(row: RequestRow) -> bytes:
    """Return a row as one line of a segment, with its line end."""
    return msgspec.json.encode(msgspec.structs.replace(row, message="")) + b"\n"


def json_columns() -> dict[str, str]:
    """Return the DuckDB type of each field of a line."""
    return {
        field.encode_name: _type(inspect.type_info(field.type))
        for field in msgspec.structs.fields(RequestRow)
        if field.encode_name not in _NOT_KEPT
    }


def projection() -> str:
    """Return the SELECT list that makes the wide table of lines read with :func:`json_columns`."""
    parts = []
    for field in msgspec.structs.fields(RequestRow):
        if field.name not in _NOT_KEPT:
            parts += _wide(field.name)
    return ", ".join(parts)


def _wide(name: str) -> list[str]:
    """Return the columns that a field becomes."""
    if name in {"start_wall_ns", "end_wall_ns"}:
        time = name.removesuffix("_wall_ns") + "_time"
        return [f"make_timestamp({name} // 1000) AS {time}", name]
    if name == "tags":
        return [*(f"tags['{tag}'] AS {tag}" for tag in TAG_COLUMNS), "tags"]
    if name == "cost":
        fields = [field.name for field in msgspec.structs.fields(RowCost)]
        return [f"cost.{field} AS {cost_column(field)}" for field in fields]
    return [name]


def cost_column(field: str) -> str:
    """Return the column of a field of :class:`router.observer.rows.RowCost`."""
    return f"cost_{field}" if field in _COST_PREFIXED else field


def _type(kind: inspect.Type) -> str:
    """Return the DuckDB type of a field's type."""
    match kind:
        case inspect.UnionType():
            (some,) = (t for t in kind.types if not isinstance(t, inspect.NoneType))
            return _type(some)
        case inspect.StructType():
            fields = ", ".join(f'"{field.encode_name}" {_type(field.type)}' for field in kind.fields)
            return f"STRUCT({fields})"
        case inspect.VarTupleType() | inspect.ListType():
            return f"{_type(kind.item_type)}[]"
        case inspect.DictType():
            return f"MAP({_type(kind.key_type)}, {_type(kind.value_type)})"
    return _SCALARS[type(kind)]


_SCALARS: Final[dict[type[Any], str]] = {
    inspect.IntType: "BIGINT",
    inspect.FloatType: "DOUBLE",
    inspect.BoolType: "BOOLEAN",
    inspect.StrType: "VARCHAR",
}
