"""Finished requests as columns: what evidence is computed from; pure.

A row of the table is a request, and 250 bytes:

    end_wall_ns  int64      when it ended                weight   float32  requests that it stands for (sampling)
    numbers      float32[]  :data:`NUMBERS`, NaN: not known         outcome  int8     position in ``OUTCOME_WORDS``
    codes        int16[]    its value of each dimension  is_stream  bool    good  int8  verdict of ``observer.goodput``
    request_id   bytes64    trace_id  bytes32

The values of dimensions are kept once, in :class:`Values`. A free text about a user (``user_id``, ``session_id``) is no
dimension and is never here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from router.observer.catalogue import OUTCOME_WORDS, Limits, egress_ns, verdict
from router.observer.rows import STAGE_FIELDS, RequestRow
from router.stamps import STAGES
from router.telemetry.records import OTHER_VALUE, TEXT_BYTES, TEXT_TAGS

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]
Codes = NDArray[np.int16]
Ints = NDArray[np.int64]

TOOL_STAGE: Final = "tool"
"""Between an answer that called tools and the request with their results: it is the caller's, and in no sum."""
EVIDENCE_STAGES: Final = (*STAGES, TOOL_STAGE)
TTFT_STAGES: Final = frozenset(STAGES[: STAGES.index("egress") + 1])
NUMBERS: Final = (
    *("ttft", "ttfc", "ttfo", "tpot", "e2e", "duration", "stall_max", "router_overhead", "cancel_latency"),
    *("host_ttft", "host_ttfc", "host_e2e", "early_tps", "visible_2s", "waited", "left", "n_in", "n_out", "cost"),
    *(f"stage.{name}" for name in EVIDENCE_STAGES),
)
"""Columns of ``numbers``: metrics of the catalogue in their units inside (pace: thousandths per second), how long
a client that left had waited for its first token and in all, tokens, cost in money, and the stages."""
PLACE: Final = {name: place for place, name in enumerate(NUMBERS)}
OK: Final = OUTCOME_WORDS.index("ok")
BAD_REQUEST: Final = OUTCOME_WORDS.index("bad_request")
GONE: Final = (OUTCOME_WORDS.index("client_gone"), OUTCOME_WORDS.index("client_stalled"))
_OUTCOME_CODES: Final = {word: code for code, word in enumerate(OUTCOME_WORDS)}
_UNKNOWN_OUTCOME: Final = len(OUTCOME_WORDS) - 1
VALUES_MAX: Final = 4096
"""Values of a dimension at a time, as many as a router interns per tag; later ones are ``__other__``."""
DIMENSIONS: Final = (
    *("host", "feature_name", "prompt_version", "model", "device_type", "channel", "network_type", "workload_class"),
    *("variant", "endpoint"),
)
"""What requests are told apart by, whatever the configuration says: what people change and what differs by user. Of two
slices that are the same requests the one that stands first here is named."""
DIMENSIONS_MAX: Final = 16
"""Pairs of dimensions grow with the square: 120 of them are looked at."""
_FIELDS: Final = frozenset({"model", "host", "endpoint", "instance"})
_PLAIN: Final = attrgetter(
    *("ttft_ns", "ttfc_ns", "ttfo_ns", "tpot_ns", "e2e_ns", "duration_ns", "stall_max_ns", "router_overhead_ns"),
    *("cancel_latency_ns", "host_ttft_ns", "host_ttfc_ns", "host_e2e_ns"),
)
_STAGES: Final = attrgetter(*(field for _, field in STAGE_FIELDS))
_EGRESS: Final = STAGES.index("egress")


def dimensions_of(entries: Iterable[str]) -> tuple[str, ...]:
    """Return the dimensions of evidence: the usual ones and those of ``observer.slices.tags``, at most 16.

    Never a free text: alerts are sent to others, and who a user is does not belong there.
    """
    own = (name for entry in entries for name in entry.split(",") if name and name not in TEXT_TAGS)
    return tuple(dict.fromkeys((*DIMENSIONS, *own)))[:DIMENSIONS_MAX]


class Values:
    """The values of each dimension, by code. Code 0 is what was not given, code 1 what found no place."""

    def __init__(self, dimensions: Sequence[str] = DIMENSIONS, values_max: int = VALUES_MAX) -> None:
        self.dimensions = tuple(dimensions)
        self._values_max = values_max
        self._codes: list[dict[str, int]] = [{"": 0, OTHER_VALUE: 1} for _ in self.dimensions]
        self._texts: list[list[str]] = [["", OTHER_VALUE] for _ in self.dimensions]
        self._free: list[list[int]] = [[] for _ in self.dimensions]

    def code(self, dimension: int, text: str) -> int:
        """Return the code of a value, a new one if need be."""
        known = self._codes[dimension]
        code = known.get(text)
        if code is not None:
            return code
        texts, free = self._texts[dimension], self._free[dimension]
        if free:
            code = free.pop()
            texts[code] = text
        elif len(texts) < self._values_max:
            code = len(texts)
            texts.append(text)
        else:
            return 1
        known[text] = code
        return code

    def known(self, dimension: int, text: str) -> int | None:
        """Return the code of a value; ``None`` when no request had it."""
        return self._codes[dimension].get(text)

    def text(self, dimension: int, code: int) -> str:
        """Return a value by its code."""
        return self._texts[dimension][code]

    def count(self, dimension: int) -> int:
        """Return one more than the largest code of a dimension."""
        return len(self._texts[dimension])

    def is_full(self, dimension: int) -> bool:
        """Say whether a new value would find no place."""
        return len(self._texts[dimension]) >= self._values_max and not self._free[dimension]

    def keep_only(self, dimension: int, used: Iterable[int]) -> None:
        """Give the places of all values that are not in use to others."""
        used = {0, 1, *used}
        texts, known, free = self._texts[dimension], self._codes[dimension], self._free[dimension]
        for code, text in enumerate(texts):
            if code not in used and known.get(text) == code:
                del known[text]
                free.append(code)


@dataclass(frozen=True, slots=True)
class Table:
    """Requests as columns; all have the same length."""

    end_wall_ns: Ints
    numbers: Floats
    codes: Codes
    outcome: NDArray[np.int8]
    good: NDArray[np.int8]
    is_stream: Bools
    weight: Floats
    request_id: NDArray[np.bytes_]
    trace_id: NDArray[np.bytes_]

    def __len__(self) -> int:
        return self.end_wall_ns.size

    def number(self, name: str) -> Floats:
        """Return a column of ``numbers`` by its name."""
        return self.numbers[:, PLACE[name]]

    def take(self, chosen: Any) -> Table:
        """Return some of the requests: by a mask, or by their positions."""
        return Table(*(getattr(self, name)[chosen] for name in _COLUMNS))


_COLUMNS: Final = Table.__match_args__


def joined(tables: Sequence[Table]) -> Table:
    """Return the requests of all tables, one behind the other."""
    if len(tables) == 1:
        return tables[0]
    return Table(*(np.concatenate([getattr(table, name) for table in tables]) for name in _COLUMNS))


def table_of(rows: Sequence[RequestRow], values: Values, limits: Mapping[str, Limits] | None = None) -> Table:
    """Return rows as columns. ``limits``: those of ``observer.goodput`` by workload class."""
    return Table(
        end_wall_ns=np.array([row.end_wall_ns for row in rows], dtype=np.int64),
        numbers=np.array([_numbers(row) for row in rows], dtype=np.float32).reshape(len(rows), len(NUMBERS)),
        codes=np.array([_codes(row, values) for row in rows], dtype=np.int16).reshape(
            len(rows), len(values.dimensions)
        ),
        outcome=np.array([outcome_code(row.outcome) for row in rows], dtype=np.int8),
        good=np.array([_good(row, limits or {}) for row in rows], dtype=np.int8),
        is_stream=np.array([row.stream for row in rows], dtype=np.bool_),
        weight=np.ones(len(rows), dtype=np.float32),
        request_id=np.array([row.request_id.encode("utf-8", "replace") for row in rows], dtype=f"S{TEXT_BYTES}"),
        trace_id=np.array([row.trace_id.encode("ascii", "replace") for row in rows], dtype="S32"),
    )


NO_ROWS: Final = table_of((), Values())


def outcome_code(word: str) -> int:
    """Return the code of an outcome; one that is not known (of a newer router) has the last one."""
    return _OUTCOME_CODES.get(word, _UNKNOWN_OUTCOME)


def _codes(row: RequestRow, values: Values) -> list[int]:
    tags = row.tags
    return [
        values.code(place, getattr(row, name) if name in _FIELDS else tags.get(name, ""))
        for place, name in enumerate(values.dimensions)
    ]


def _numbers(row: RequestRow) -> tuple[float | None, ...]:
    stages = list(_STAGES(row))
    stages[_EGRESS] = egress_ns(row)  # of a folded answer the row's own holds the host's decoding
    left = row.left_ns or row.duration_ns
    waited = left if row.ttft_ns is None else row.ttft_ns
    pace = None if row.early_tps is None else row.early_tps * 1000
    cost = None if row.cost is None else row.cost.amount
    return (*_PLAIN(row), pace, row.visible_2s, waited, left, row.n_in, row.n_out, cost, *stages, row.tool_ns)


def _good(row: RequestRow, limits: Mapping[str, Limits]) -> int:
    own = limits.get(row.tags.get("workload_class", ""), limits.get(""))
    good = None if own is None else verdict(row, own)
    return -1 if good is None else int(good)
