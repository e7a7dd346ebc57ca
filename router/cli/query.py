"""``ringrouter query``: one SQL statement over the journal.

Exit codes: 0 ok, 2 usage, configuration, no journal, or a statement that DuckDB does not take.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable
from decimal import Decimal
from itertools import islice
from typing import Any, Final

import msgspec

from router.cli import EXIT_OK, fail
from router.cli.location import journal_dir
from router.cli.top_tables import Table, text_rows
from router.errors import ConfigError
from router.observer.query import Answer, JournalReader, QueryError
from router.observer.segments import JOURNAL
from router.telemetry.units import ABSENT

SCHEMA: Final = "ringrouter.query/1"
TEXT_ROWS_MAX: Final = 1000
"""Rows of a table on a terminal, which must be known to the last before the first is printed; --json and --csv have
no end.
"""
_INT_MAX: Final = 1 << 63
_FORMULA: Final = ("=", "+", "-", "@")
"""What a spreadsheet begins a formula with."""


def run(args: argparse.Namespace) -> int:
    """Print the answer."""
    sql = sys.stdin.read() if args.sql == "-" else args.sql
    try:
        reader = JournalReader(journal_dir(args) / JOURNAL)
        show = _show_json if args.json else _show_csv if args.csv else _show_text
        show(reader.ask(sql))
    except (ConfigError, QueryError) as error:
        return fail(error)
    return EXIT_OK


def _show_json(answer: Answer) -> None:
    for values in answer:
        record = dict(zip(answer.columns, map(_plain, values), strict=True))
        sys.stdout.write(msgspec.json.encode({"schema": SCHEMA} | record, enc_hook=str).decode() + "\n")


def _show_csv(answer: Answer) -> None:
    write_csv([answer.columns])
    write_csv(answer)


def _show_text(answer: Answer) -> None:
    rows = iter(answer)
    shown = list(islice(rows, TEXT_ROWS_MAX))
    sides = [">" if _is_number(column) else "<" for column in zip(*shown, strict=True)] or ["<"] * len(answer.columns)
    cells = [[_text(value) for value in values] for values in shown]
    for line in text_rows(Table("", list(zip(answer.columns, sides, strict=True)), cells)):
        print(line)
    if next(rows, None) is not None:
        print(f"... only the first {TEXT_ROWS_MAX:,} rows; --json and --csv print all")


def _is_number(column: tuple[Any, ...]) -> bool:
    return all(value is None or isinstance(value, int | float | Decimal) for value in column)


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it: sums of 128 bits and decimals become floating-point numbers."""
    if isinstance(value, Decimal) or (isinstance(value, int) and abs(value) >= _INT_MAX):
        return float(value)
    return value


def write_csv(records: Iterable[Iterable[Any]]) -> None:
    """Write records to standard output, each a line that ends in a line feed alone, as other programs here end theirs.

    Clients choose the values of tags: a text that a spreadsheet would take for a formula begins with ``'``, and what
    steers a terminal is ``?``. ``--json`` has every text as it was.
    """
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerows(map(_csv_cell, record) for record in records)


def _csv_cell(value: Any) -> Any:
    if isinstance(value, dict | list):
        value = msgspec.json.encode(value, enc_hook=str).decode()
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _text(value: Any) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, float):
        return f"{value:,.6g}"
    return printable(str(value))


def printable(text: str) -> str:
    """Return a text without what steers a terminal: clients choose the values of tags."""
    return "".join(character if character.isprintable() else "?" for character in text)
