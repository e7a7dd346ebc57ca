"""The protocols of :mod:`ringbuffer` as programs of the explorer, each order named by its letter of the table there.

The smallest ring shows every fault that a larger one has: one slot, so that the next record always overwrites the one
being read, and two payload words, so that a record can be torn. Record n holds n + 1 in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.ordering.explorer import Fence, Load, Registers, Require, Step, Store, Swap, Threads


@dataclass(frozen=True)
class Protocol:
    """Threads on a memory, and what must hold of their registers at the end of every execution."""

    name: str
    structure: str
    memory: Mapping[str, int]
    threads: Threads
    holds: Callable[[tuple[Registers, ...]], bool]


def overwrite_slot(n: int) -> tuple[Step, ...]:
    """Publish record n: ``open_slot``, the payload, ``close_slot``."""
    return (
        Store("slot", 0),
        Fence("release", sync="B"),
        Store("p1", n + 1),
        Store("p2", n + 1),
        Store("slot", n + 1, release=True, sync="C"),
        Store("published", n + 1, release=True, sync="A"),
    )


def copy_record(n: int) -> tuple[Step, ...]:
    """Read record n without gating: ``copy_record``."""
    return (
        Load("published", "published", acquire=True, sync="A"),
        Require(lambda r: r["published"] > n),
        Load("mark", "slot", acquire=True, sync="C"),
        Load("p1", "p1"),
        Load("p2", "p2"),
        Fence("acquire", sync="B"),
        Load("mark_again", "slot"),
    )


def is_delivered(r: Registers, n: int) -> bool:
    return r["mark"] == r["mark_again"] == n + 1


def is_whole(r: Registers, n: int) -> bool:
    return r["p1"] == r["p2"] == n + 1


RECORD_0 = {"published": 1, "slot": 1, "p1": 1, "p2": 1}

LOSSY_OVERTAKEN = Protocol(
    "a lossy reader overtaken by the writer delivers no torn record",
    "ring",
    RECORD_0,
    (overwrite_slot(1), copy_record(0)),
    lambda ends: is_whole(ends[1], 0) or not is_delivered(ends[1], 0),
)
LOSSY_NEWEST = Protocol(
    "a lossy reader counts no record as lost that was not overwritten",
    "ring",
    RECORD_0,
    (overwrite_slot(1), copy_record(1)),
    lambda ends: is_delivered(ends[1], 1) and is_whole(ends[1], 1),
)
GATING = Protocol(
    "no record is overwritten before its consumer has released it",
    "ring",
    {**RECORD_0, "released": 0, "state": 1},
    (
        (
            Load("state", "state", acquire=True, sync="F"),
            Load("released", "released", acquire=True, sync="D"),
            Require(lambda r: r["released"] == 1),
            *overwrite_slot(1),
        ),
        (
            Load("published", "published", acquire=True),
            Load("mark", "slot", acquire=True),
            Load("p1", "p1"),
            Load("p2", "p2"),
            Store("released", 1, release=True, sync="D"),
        ),
    ),
    lambda ends: ends[1]["mark"] == 1 and is_whole(ends[1], 0),
)
GATING_DELIVERS = Protocol(
    "a consumer finds every record that is published, and finds it whole",
    "ring",
    {**RECORD_0, "released": 1},
    (
        overwrite_slot(1),
        (
            Load("published", "published", acquire=True, sync="A"),
            Require(lambda r: r["published"] == 2),
            Load("mark", "slot", acquire=True, sync="C"),
            Load("p1", "p1"),
            Load("p2", "p2"),
        ),
    ),
    lambda ends: ends[1]["mark"] == 2 and is_whole(ends[1], 1),
)
STALE = 9
"""What the row's last owner left in ``released``."""
JOINING = Protocol(
    "a consumer that joins is seen by the producer, or sees what the producer has published",
    "ring",
    {"published": 0, "state": 0, "released": STALE},
    (
        (
            Store("published", 1, release=True),
            Fence("full", sync="E"),
            Load("state", "state", acquire=True, sync="F"),
            Load("released", "released", acquire=True),
        ),
        (
            Load("first_look", "published", acquire=True),
            Store("released", "first_look"),
            Store("state", 1, release=True, sync="F"),
            Fence("full", sync="E"),
            Load("begin", "published", acquire=True),
            Store("released", "begin", release=True),
        ),
    ),
    lambda ends: ends[1]["begin"] >= (1 if ends[0]["state"] == 0 else ends[0]["released"]),
)
LEAVING = Protocol(
    "no record is overwritten before the consumer that leaves has read it",
    "ring",
    {**RECORD_0, "state": 1},
    (
        (Load("state", "state", acquire=True, sync="F"), Require(lambda r: r["state"] == 0), *overwrite_slot(1)),
        (Load("mark", "slot", acquire=True), Load("p1", "p1"), Load("p2", "p2"), Store("state", 0, True, sync="F")),
    ),
    lambda ends: ends[1]["mark"] == 1 and is_whole(ends[1], 0),
)
ROW_1, ROW_1_OPEN, ROW_2 = 4 | 2, 4 | 2 | 1, 8 | 2
TABLE = Protocol(
    "no row is read while it is rewritten",
    "table",
    {"row": ROW_1, "p1": 1, "p2": 1},
    (
        (
            Store("row", ROW_1_OPEN),
            Fence("release", sync="B"),
            Store("p1", 2),
            Store("p2", 2),
            Store("row", ROW_2, release=True, sync="C"),
        ),
        (
            Load("word", "row", acquire=True, sync="C"),
            Load("p1", "p1"),
            Load("p2", "p2"),
            Fence("acquire", sync="B"),
            Load("word_again", "row"),
        ),
    ),
    lambda ends: (
        ends[1]["word"] == ROW_1_OPEN
        or ends[1]["word"] != ends[1]["word_again"]
        or ends[1]["p1"] == ends[1]["p2"] == (1 if ends[1]["word"] == ROW_1 else 2)
    ),
)
APPEND = Protocol(
    "a row that counts as appended is there",
    "append-only table",
    {"row": 0, "p1": 0, "published": 0},
    (
        (
            Store("row", 1),
            Fence("release"),
            Store("p1", 1),
            Store("row", 4 | 2, release=True, sync="C"),
            Store("published", 1, release=True, sync="A"),
        ),
        (
            Load("published", "published", acquire=True, sync="A"),
            Require(lambda r: r["published"] == 1),
            Load("word", "row", acquire=True, sync="C"),
            Load("p1", "p1"),
        ),
    ),
    lambda ends: ends[1]["word"] == 4 | 2 and ends[1]["p1"] == 1,
)
HEADER = Protocol(
    "a header that has its magic is complete",
    "header",
    {"magic": 0, "slot_count": 0},
    (
        (Store("slot_count", 8), Store("magic", 1, release=True, sync="M")),
        (
            Load("magic", "magic", acquire=True, sync="M"),
            Require(lambda r: r["magic"] == 1),
            Load("slot_count", "slot_count"),
        ),
    ),
    lambda ends: ends[1]["slot_count"] == 8,
)

DOORBELL = Protocol(
    "a consumer that clears its bell sees what it was rung for, or is rung again",
    "doorbell",
    {"published": 0, "bell": 0},
    (
        (Store("published", 1, release=True), Swap("rung", "bell", 1, locked=True, sync="G")),
        (Swap("rung", "bell", 0, locked=True, sync="G"), Load("published", "published", acquire=True)),
    ),
    lambda ends: ends[1]["rung"] == 0 or ends[1]["published"] == 1,
)

SPARE = {("ring", "C"), ("append-only table", "C")}
"""Edges that another one covers: who learnt from ``published`` that a record is there has its payload by SYNC A. The
sequence word is checked all the same, and costs nothing more; only in a table does all hang on it."""

PROTOCOLS = (
    LOSSY_OVERTAKEN, LOSSY_NEWEST, GATING, GATING_DELIVERS, JOINING, LEAVING, TABLE, APPEND, HEADER, DOORBELL,
)  # fmt: skip
