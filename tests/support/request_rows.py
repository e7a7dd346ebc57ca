"""Rows of requests for tests, from what a test cares about."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from router.observer.rows import RequestRow, RowAttempt

_EMPTY = {"str": "", "int": 0, "float": 0.0, "bool": False, "dict": {}, "tuple": ()}


@cache
def _defaults() -> dict[str, Any]:
    values: dict[str, Any] = {"instance": "main", "generation": 1, "done_seq": 0, "outcome": "ok", "model": "m"}
    for field in msgspec.structs.fields(RequestRow):
        if field.required and field.name not in values:
            kind = str(getattr(field.type, "__name__", field.type)).partition("[")[0]
            values[field.name] = None if "None" in str(field.type) else _EMPTY[kind]
    return values


def row(**given: Any) -> RequestRow:
    """Return a row of a request that ended well; what is not given is empty, or ``None`` where that is allowed."""
    return RequestRow(**_defaults() | given)


def attempt(host: str, sent_ns: int | None, end_ns: int, **given: Any) -> RowAttempt:
    """Return an attempt that occupied a host from ``sent_ns`` to ``end_ns`` and went well."""
    values: dict[str, Any] = {
        "host": host,
        "start_mono_ns": sent_ns or end_ns,
        "conn_mono_ns": sent_ns,
        "sent_mono_ns": sent_ns,
        "first_byte_mono_ns": sent_ns,
        "first_token_mono_ns": sent_ns,
        "end_mono_ns": end_ns,
        "outcome": "ok",
        "error": "",
        "status": 0,
        "may_drain": False,
    }
    return RowAttempt(**values | given)
