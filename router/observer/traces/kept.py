"""The traces of the last hour by their ids, in bounded memory, so that each can be opened by itself; pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Final

from router.observer.rows import RequestRow, RowKey

KEEP_NS: Final = 3_600_000_000_000
ROWS_PER_ID_MAX: Final = 256
"""Requests shown of one trace, or under one request id: the newest ones."""


class KeptRows:
    """Keeps at most ``most`` rows, the newest, for :data:`KEEP_NS` after they ended."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._rows: OrderedDict[RowKey, RequestRow] = OrderedDict()
        self._by_id: dict[str, deque[RowKey]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, rows: Iterable[RequestRow], wall_ns: int) -> None:
        """Keep rows, each once."""
        for row in rows:
            if row.key not in self._rows:
                for each in _ids(row):
                    self._by_id.setdefault(each, deque(maxlen=ROWS_PER_ID_MAX)).append(row.key)
            self._rows[row.key] = row
        self._forget(wall_ns - KEEP_NS)

    def find(self, identity: str) -> list[RequestRow]:
        """Return the requests with a request id or a trace id, in the order in which they began."""
        found = [self._rows[key] for key in self._by_id.get(identity, ()) if key in self._rows]
        return sorted(found, key=lambda row: row.start_wall_ns)

    def _forget(self, oldest_wall_ns: int) -> None:
        while self._rows:
            key, row = next(iter(self._rows.items()))
            if len(self._rows) <= self._most and row.end_wall_ns >= oldest_wall_ns:
                return
            del self._rows[key]
            for each in _ids(row):
                self._drop(each, key)

    def _drop(self, identity: str, key: RowKey) -> None:
        keys = self._by_id.get(identity)
        if keys is None:
            return
        if key in keys:
            keys.remove(key)
        if not keys:
            del self._by_id[identity]


def _ids(row: RequestRow) -> set[str]:
    return {identity for identity in (row.request_id, row.trace_id) if identity}
