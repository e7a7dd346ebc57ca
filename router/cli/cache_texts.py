"""Texts and items out of the files that `ringrouter cache` takes: .txt, .jsonl and .parquet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from router.errors import UNDECODABLE

KINDS: Final = (".txt", ".jsonl", ".parquet")
LINE_BYTES_MAX: Final = 32 << 20
"""No request may be longer (limits.body_bytes)."""
_ROWS_AT_ONCE: Final = 4096


class TextsError(Exception):
    """A file that cannot be used; the message names it, and the line."""


def check_file(path: Path) -> None:
    """Raise :class:`TextsError` for what is no file of a kind that is known."""
    if path.suffix not in KINDS:
        raise TextsError(f"{path}: expected a name that ends in {', '.join(KINDS)}")
    if not path.is_file():
        raise TextsError(f"{path}: there is no such file")


def count(path: Path) -> int:
    """Return how many texts a file may have: its lines, or its rows."""
    if path.suffix == ".parquet":
        return int(_duckdb().execute("SELECT count(*) FROM read_parquet(?)", [str(path)]).fetchone()[0])
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def items(path: Path, field: str) -> Iterator[dict[str, Any]]:
    """Yield each line or row as an object whose text is under ``field``; raises :class:`TextsError`."""
    if path.suffix == ".parquet":
        yield from _rows(path)
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if len(line) > LINE_BYTES_MAX:
                raise TextsError(f"{path}:{number}: {len(line)} bytes, at most {LINE_BYTES_MAX} are allowed")
            if line.strip():
                yield _item(path, number, line, field)


def _item(path: Path, number: int, line: bytes, field: str) -> dict[str, Any]:
    try:
        if path.suffix == ".txt":
            return {field: line.decode().rstrip("\r\n")}
        value = msgspec.json.decode(line)
    except UNDECODABLE as error:
        raise TextsError(f"{path}:{number}: {error}") from None
    if isinstance(value, str):
        return {field: value}
    if isinstance(value, dict):
        return value
    raise TextsError(f"{path}:{number}: expected a text, or an object with {field!r}")


def texts(path: Path, field: str) -> Iterator[str]:
    """Yield the texts of a file; raises :class:`TextsError` for one that has none under ``field``."""
    for number, item in enumerate(items(path, field), 1):
        text = item.get(field)
        if not isinstance(text, str):
            raise TextsError(f"{path}: text {number} has no text under {field!r} (--field)")
        yield text


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    duckdb = _duckdb()
    try:
        cursor = duckdb.execute("SELECT * FROM read_parquet(?)", [str(path)])
    except Exception as error:  # duckdb's errors have no base that is there without it
        raise TextsError(f"{path}: {str(error).splitlines()[0]}") from None
    names = [column[0] for column in cursor.description]
    while rows := cursor.fetchmany(_ROWS_AT_ONCE):
        for row in rows:
            yield dict(zip(names, row, strict=True))


def _duckdb() -> Any:
    import duckdb  # noqa: PLC0415 - only who has Parquet needs it

    return duckdb.connect()
