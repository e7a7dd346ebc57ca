"""What is told of one trace, by ``/traces/ID.json`` and ``ringrouter trace``: its requests with their spans; pure.

Durations are nanoseconds, ``None`` stands for what is not known. The spans are those that are exported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from router.observer.rows import RequestRow
from router.observer.traces.sampling import no_breaches
from router.observer.traces.spans import Naming, Span, Value, server_span_id, spans_of

SCHEMA: Final = "ringrouter.trace/1"
OBSERVER: Final = "observer"
"""Where rows come from that the observer has in memory; others: :mod:`router.observer.traces.find`."""


class TooManySearchesError(Exception):
    """So many traces are looked for on disk already that this one is not."""


class TracedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a trace."""

    request_id: str
    trace_id: str
    span_id: str
    """Of its whole."""
    instance: str
    request_seq: int
    started_wall_ns: int
    model: str
    host: str
    outcome: str
    error: str
    ttft_ns: int | None
    e2e_ns: int | None
    tool_ns: int | None
    """Inferred: how long its client took for tools before it."""
    tokens_in: int | None
    tokens_out: int
    cost: float | None
    currency: str
    missed: list[str]
    """Objectives that it missed."""
    stages_ns: dict[str, int | None]
    spans: list[Span]


class TracePage(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer."""

    schema: str
    id: str
    """What was asked for."""
    source: str
    """``observer``, ``journal`` or ``rings``: where the requests were found."""
    requests: list[TracedRequest]
    """In the order in which they began."""


def page_of(
    identity: str,
    source: str,
    rows: Sequence[RequestRow],
    naming: Naming,
    breaches: Callable[[RequestRow], Sequence[str]] = no_breaches,
) -> TracePage:
    """Return what is told of rows that were found by a request id or a trace id."""
    requests = [_request(row, naming, list(breaches(row))) for row in rows]
    return TracePage(schema=SCHEMA, id=identity, source=source, requests=requests)


def missed_attributes(missed: Sequence[str]) -> dict[str, Value]:
    """Return the attributes that tell of objectives that were missed."""
    return {"ringrouter.slo.missed": list(missed)} if missed else {}


def _request(row: RequestRow, naming: Naming, missed: list[str]) -> TracedRequest:
    spans = spans_of(row, naming, missed_attributes(missed))
    return TracedRequest(
        request_id=row.request_id,
        trace_id=spans[0].trace_id,
        span_id=server_span_id(row),
        instance=row.instance,
        request_seq=row.request_seq,
        started_wall_ns=row.start_wall_ns,
        model=row.model,
        host=row.host,
        outcome=row.outcome,
        error=row.error,
        ttft_ns=row.ttft_ns,
        e2e_ns=row.e2e_ns,
        tool_ns=row.tool_ns,
        tokens_in=row.n_in,
        tokens_out=row.n_out,
        cost=None if row.cost is None else row.cost.amount,
        currency="" if row.cost is None else row.cost.currency,
        missed=missed,
        stages_ns=row.stages_ns(),
        spans=spans,
    )
