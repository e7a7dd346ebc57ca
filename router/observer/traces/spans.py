"""The spans of one finished request, from its row; pure.

::

    chat MODEL            server     recv … done      what our client saw; child of the caller's span
    ├─ receive            internal   recv … deq       upload, ingress, handoff
    ├─ queue              internal   deq … admitted   the waiting room
    ├─ route              internal   admitted … routed1
    ├─ chat MODEL         client     routed … end     one for each attempt, the failed ones first
    ├─ respond            internal   tok1 … outN      the answer goes out: first token, stalls, last token
    └─ execute_tool       internal   before recv      inferred: the client's tools since the answer that called them

The times are those of the stages (:mod:`router.stamps`), so that what is between two spans is a stage, too: ``retry``
between attempts, the rest in the events of an attempt. The ids follow from the row
(:mod:`router.telemetry.trace_ids`): the same row makes the same spans wherever and whenever.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any, Final

import msgspec

from router.observer.catalogue import egress_ns
from router.observer.rows import RequestRow, RowAttempt
from router.observer.traces import conventions as names
from router.stamps import STAGES
from router.telemetry import trace_ids

Value = str | bool | int | float | list[str]

SERVER: Final = "server"
CLIENT: Final = "client"
INTERNAL: Final = "internal"
_MS: Final = 1e-6
_S: Final = 1e-9
_USER_HASH_CHARS: Final = 32
"""128 bits: no two users of anybody are the same."""
_FAILED: Final = frozenset({"rejected", "host_error", "timeout", "aborted"})
"""Outcomes that make a server's span an error. A client that left or asked for what cannot be is none, as in the
conventions for HTTP; ``error.type`` says so all the same."""


class SpanEvent(msgspec.Struct, frozen=True):
    """Something that happened in a span."""

    name: str
    wall_ns: int
    attributes: dict[str, Value] = {}


class SpanLink(msgspec.Struct, frozen=True):
    """Another span that belongs to it and is not its parent."""

    trace_id: str
    span_id: str
    attributes: dict[str, Value] = {}


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """One span. Times are since 1970, UTC; ids are hexadecimal; ``parent_id`` is empty for the root of a trace."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    start_wall_ns: int
    end_wall_ns: int
    attributes: dict[str, Value] = {}
    events: tuple[SpanEvent, ...] = ()
    links: tuple[SpanLink, ...] = ()
    error: str | None = None
    """Why it failed, in a word; ``None`` when it did not."""
    has_remote_parent: bool = False
    flags: int = 1
    """Of W3C Trace Context."""


class Naming(msgspec.Struct, frozen=True, kw_only=True):
    """What is known beside a row."""

    user_id: str = "off"
    """``hash``, ``plain`` or ``off``."""
    user_key: bytes = b""
    providers: Mapping[str, str] = {}
    """Kind of each host by its name."""
    has_proxies: bool = False
    """Clients come through proxies: what the kernel says of a connection is not of the client's."""


def is_sampled(row: RequestRow, ratio: float) -> bool:
    """Return whether a trace is kept at its beginning: as its caller has decided, else for a share of all."""
    if row.span_id:
        return bool(row.trace_flags & trace_ids.SAMPLED)
    return trace_ids.is_within(bytes.fromhex(row.trace_id), ratio)


def server_span_id(row: RequestRow) -> str:
    """Return the id of the span of the whole request."""
    return trace_ids.span_id(trace_ids.life_of(row.instance, row.generation), row.request_seq, trace_ids.SERVER).hex()


def spans_of(row: RequestRow, naming: Naming, more: Mapping[str, Value] | None = None) -> list[Span]:
    """Return the spans of a request, the whole first. ``more`` are further attributes of that one.

    A row of the journal of an earlier version may lack a trace id: it then gets its own.
    """
    return list(_Maker(row, naming).spans(more or {}))


def user_hash(user_id: str, key: bytes) -> str:
    """Return the keyed hash (HMAC-SHA-256, the first 128 bits) that stands for a user."""
    return hmac.new(key, user_id.encode(), sha256).hexdigest()[:_USER_HASH_CHARS]


class _Maker:
    """Makes the spans of one row."""

    def __init__(self, row: RequestRow, naming: Naming) -> None:
        self._row = row
        self._naming = naming
        self._life = trace_ids.life_of(row.instance, row.generation)
        self._trace_id = row.trace_id or trace_ids.trace_id(self._life, row.request_seq).hex()
        self._operation = names.OPERATIONS.get(row.endpoint, row.endpoint or "request")
        self._name = f"{self._operation} {row.model}".rstrip()
        self._at = _times(row)

    def id_of(self, part: str) -> str:
        return trace_ids.span_id(self._life, self._row.request_seq, part).hex()

    def spans(self, more: Mapping[str, Value]) -> Iterator[Span]:
        row, at = self._row, self._at
        yield self._server(more)
        if row.tool_ns is not None:
            yield self._tools(row.tool_ns)
        yield self._internal("receive", "recv", "deq", {"ringrouter.bytes_in": row.bytes_in})
        if row.queue_ns is not None:
            yield self._internal("queue", "deq", "admitted", self._queue_attributes())
        if row.route_ns is not None:
            yield self._internal("route", "admitted", "routed1", self._route_attributes())
        for attempt in row.attempts:
            yield self._attempt(attempt, is_last=attempt is row.attempts[-1])
        if row.host_first_token_ns is not None and "outN" in at:
            yield self._respond()

    def _span(self, part: str, name: str, kind: str, start_ns: int, end_ns: int, **more: Any) -> Span:
        row = self._row
        more = {"parent_id": self.id_of(trace_ids.SERVER), "span_id": self.id_of(part)} | more
        return Span(
            trace_id=self._trace_id,
            name=name,
            kind=kind,
            start_wall_ns=row.start_wall_ns + start_ns,
            end_wall_ns=row.start_wall_ns + max(start_ns, end_ns),
            flags=row.trace_flags | trace_ids.SAMPLED,
            **more,
        )

    def _internal(self, name: str, begin: str, end: str, attributes: dict[str, Any]) -> Span:
        known = {name: value for name, value in attributes.items() if value not in (None, "", [])}
        return self._span(name, name, INTERNAL, self._at[begin], self._at[end], attributes=known)

    # ------------------------------------------------------------ the whole
    def _server(self, more: Mapping[str, Value]) -> Span:
        row = self._row
        failed = row.outcome in _FAILED
        return self._span(
            trace_ids.SERVER,
            self._name,
            SERVER,
            0,
            row.duration_ns,
            parent_id=row.span_id,
            has_remote_parent=bool(row.span_id),
            attributes=_without_nothing(self._server_attributes()) | dict(more),
            events=tuple(self._server_events()),
            links=_links(row.tool_after),
            error=(row.error or row.outcome) if failed else None,
        )

    def _server_attributes(self) -> dict[str, Value | None]:
        row = self._row
        asked = row.decision.asked_model if row.decision is not None else ""
        return {
            names.OPERATION: self._operation,
            names.PROVIDER: self._naming.providers.get(row.host, names.OWN.rstrip(".")),
            names.REQUEST_MODEL: asked or row.model,
            names.RESPONSE_MODEL: row.model if row.outcome == "ok" else None,
            names.REQUEST_STREAM: row.stream,
            names.REQUEST_MAX_TOKENS: row.max_tokens or None,
            names.REQUEST_TEMPERATURE: _shortest(row.temperature) if row.temperature else None,
            names.TIME_TO_FIRST_CHUNK: _scaled(row.ttfc_ns, _S) if row.stream else None,
            names.CONVERSATION_ID: row.tags.get("session_id"),
            names.ERROR_TYPE: (row.error or row.outcome) if row.outcome != "ok" else None,
            names.HTTP_STATUS: row.status or None,
            **self._token_attributes(),
            **self._tag_attributes(),
            **self._time_attributes(),
            **self._network_attributes(),
            **self._decision_attributes(),
            **self._cost_attributes(),
            "ringrouter.instance": row.instance,
            "ringrouter.generation": str(row.generation),
            "ringrouter.request.seq": row.request_seq,
            "ringrouter.endpoint": row.endpoint,
            "ringrouter.host": row.host,
            "ringrouter.outcome": row.outcome,
            "ringrouter.policy": row.policy,
            "ringrouter.attempts": row.attempt_count,
            "ringrouter.flags": list(row.flags) or None,
            "ringrouter.bytes_out": row.bytes_out,
            "ringrouter.lossy": row.lossy or None,
            "ringrouter.calls_tools": row.calls_tools or None,
        }

    def _token_attributes(self) -> dict[str, Value | None]:
        row = self._row
        return {
            names.INPUT_TOKENS: row.n_in,
            names.OUTPUT_TOKENS: row.n_out if row.n_out or not row.n_out_estimated else None,
            names.CACHED_TOKENS: row.n_cached or None,
            names.REASONING_TOKENS: row.n_reasoning or None,
            "ringrouter.usage.estimated": row.n_out_estimated or None,
        }

    def _tag_attributes(self) -> dict[str, Value | None]:
        out: dict[str, Value | None] = {}
        for tag, value in self._row.tags.items():
            if tag not in {"user_id", "model_name"}:
                out[names.TAG_NAMES.get(tag, f"ringrouter.tag.{tag}")] = value
        network = self._row.tags.get("network_type", "")
        if network in names.CONNECTION_TYPES:
            out[names.CONNECTION_TYPE] = network
        return out | self._user_attributes()

    def _user_attributes(self) -> dict[str, Value | None]:
        user, naming = self._row.tags.get("user_id"), self._naming
        if not user or naming.user_id == "off":
            return {}
        if naming.user_id == "plain":
            return {names.USER_ID: user}
        hashed = user_hash(user, naming.user_key)
        return {names.USER_ID: hashed, names.USER_HASH: hashed}

    def _time_attributes(self) -> dict[str, Value | None]:
        """Return every stage and what clients and hosts measure, in milliseconds (tokens per second for paces)."""
        row = self._row
        stages = row.stages_ns() | {"egress": egress_ns(row)}
        reported = {name: getattr(row, f"host_{name}") for name in _HOST_REPORTED}
        return {
            **{f"ringrouter.stage.{name}_ms": _scaled(stages[name], _MS) for name in STAGES},
            "ringrouter.ttft_ms": _scaled(row.ttft_ns, _MS),
            "ringrouter.ttfo_ms": _scaled(row.ttfo_ns, _MS),
            "ringrouter.tpot_ms": _scaled(row.tpot_ns, _MS),
            "ringrouter.e2e_ms": _scaled(row.e2e_ns, _MS),
            "ringrouter.router_overhead_ms": _scaled(row.router_overhead_ns, _MS),
            "ringrouter.stall_max_ms": _scaled(row.stall_max_ns, _MS),
            "ringrouter.early_tps": None if row.early_tps is None else round(row.early_tps, 3),
            "ringrouter.client.blocked_ms": _scaled(row.blocked_ns, _MS) if row.blocked_ns else None,
            "ringrouter.tool_ms": _scaled(row.tool_ns, _MS),
            **{
                f"ringrouter.host.reported.{name}": _shortest(value) if isinstance(value, float) else value
                for name, value in reported.items()
            },
            "ringrouter.host.reported.source": row.host_timing_source,
        }

    def _network_attributes(self) -> dict[str, Value | None]:
        """Return the client's network by TCP_INFO: nothing behind a proxy, whose connection that is."""
        row = self._row
        if row.rtt_us is None or self._naming.has_proxies:
            return {}
        return {
            "ringrouter.client.rtt_ms": row.rtt_us / 1000,
            "ringrouter.client.rtt_min_ms": None if row.min_rtt_us is None else row.min_rtt_us / 1000,
            "ringrouter.client.retransmits": row.total_retrans,
            "ringrouter.client.network_share": network_share(row),
        }

    def _decision_attributes(self) -> dict[str, Value | None]:
        decision = self._row.decision
        if decision is None:
            return {}
        return {
            "ringrouter.deadline_ms": _scaled(decision.deadline_ns, _MS),
            "ringrouter.predicted_ttft_ms": _scaled(decision.predicted_ttft_ns, _MS),
            "ringrouter.prefix_tokens": decision.prefix_tokens or None,
            "ringrouter.asked.max_tokens": decision.asked_max_tokens,
            "ringrouter.asked.temperature": decision.asked_temperature,
            "ringrouter.asked.model": decision.asked_model,
            "ringrouter.key": decision.key,
            "ringrouter.workload.waited_as": decision.workload,
            "ringrouter.tools.spliced": decision.tool_count or None,
            "ringrouter.cache.use": decision.cache,
            "ringrouter.cache.hits": decision.cache_hits or None,
            "ringrouter.cache.misses": decision.cache_misses or None,
            "ringrouter.cache.saved_ms": _scaled(decision.saved_ns, _MS) if decision.saved_ns else None,
        }

    def _cost_attributes(self) -> dict[str, Value | None]:
        cost = self._row.cost
        if cost is None:
            return {}
        return {
            "ringrouter.cost.amount": cost.amount,
            "ringrouter.cost.waste": cost.waste_amount or None,
            "ringrouter.cost.currency": cost.currency if cost.amount is not None else None,
            "ringrouter.cost.basis": cost.basis,
            "ringrouter.cost.missing": cost.missing,
        }

    def _server_events(self) -> Iterator[SpanEvent]:
        row, decision, at = self._row, self._row.decision, self._at
        if row.tags.get("experiment"):
            flag = {names.FLAG_KEY: row.tags["experiment"], names.FLAG_VARIANT: row.tags.get("variant", "")}
            yield SpanEvent(names.FLAG_EVALUATION, row.start_wall_ns, _without_nothing(flag))
        if decision is not None and decision.tool_count:
            spliced: dict[str, Value] = {
                "ringrouter.tools": decision.tool_count,
                "ringrouter.bytes": decision.tool_bytes,
            }
            yield SpanEvent("tools.spliced", row.start_wall_ns + at["deq"], spliced)
        if decision is not None and decision.cache:
            counts = {"ringrouter.cache.hits": decision.cache_hits, "ringrouter.cache.misses": decision.cache_misses}
            yield SpanEvent(f"cache.{decision.cache}", row.start_wall_ns + at["deq"], dict(counts))
        if row.left_ns is not None:
            latency = {"ringrouter.cancel_latency_ms": _scaled(row.cancel_latency_ns, _MS)}
            yield SpanEvent("client.left", row.start_wall_ns + row.left_ns, _without_nothing(latency))

    # ------------------------------------------------------------ its parts
    def _queue_attributes(self) -> dict[str, Value | None]:
        decision = self._row.decision
        return {
            "ringrouter.queue.ahead": self._row.waiting_ahead,
            "ringrouter.workload.class": decision.workload if decision is not None else "",
        }

    def _route_attributes(self) -> dict[str, Value | None]:
        row = self._row
        return {
            "ringrouter.policy": row.policy,
            "ringrouter.candidates": [f"{each.host} {each.reason} {each.score:.3f}" for each in row.candidates],
        }

    def _attempt(self, attempt: RowAttempt, *, is_last: bool) -> Span:
        row = self._row
        answered = is_last and attempt.outcome == "ok"
        attributes: dict[str, Value | None] = {
            names.OPERATION: self._operation,
            names.PROVIDER: self._naming.providers.get(attempt.host, "unknown"),
            names.REQUEST_MODEL: row.model,
            names.REQUEST_STREAM: row.stream or row.folded,
            names.SERVER_ADDRESS: attempt.host,
            names.ERROR_TYPE: attempt.error or (None if attempt.outcome == "ok" else attempt.outcome),
            names.HTTP_STATUS: attempt.status or None,
            "ringrouter.attempt.outcome": attempt.outcome,
        }
        if answered:
            attributes |= self._token_attributes()
            attributes[names.RESPONSE_MODEL] = row.model
            attributes[names.TIME_TO_FIRST_CHUNK] = _scaled(row.host_ttfc_ns, _S)
        span_id = trace_ids.attempt_span_id(self._life, row.request_seq, attempt.start_mono_ns).hex()
        begin_ns, end_ns = (ns - row.recv_mono_ns for ns in (attempt.start_mono_ns, attempt.end_mono_ns))
        return self._span(
            "",
            self._name,
            CLIENT,
            begin_ns,
            end_ns,
            span_id=span_id,
            attributes=_without_nothing(attributes),
            events=tuple(self._attempt_events(attempt)),
            error=(attempt.error or attempt.outcome) if attempt.outcome in {"failed", "aborted"} else None,
        )

    def _attempt_events(self, attempt: RowAttempt) -> Iterator[SpanEvent]:
        for name, mono_ns in (
            ("connected", attempt.conn_mono_ns),
            ("sent", attempt.sent_mono_ns),
            ("first_byte", attempt.first_byte_mono_ns),
            ("first_token", attempt.first_token_mono_ns),
        ):
            if mono_ns:
                yield SpanEvent(name, self._row.start_wall_ns + mono_ns - self._row.recv_mono_ns)

    def _respond(self) -> Span:
        row, at = self._row, self._at
        begin_ns = row.start_wall_ns
        events = [SpanEvent("first_token", begin_ns + at["tok1"])]
        events += [
            SpanEvent("stall", begin_ns + at["tok1"] + stall.after_ns, {"ringrouter.gap_ms": stall.gap_ns * _MS})
            for stall in row.stalls
        ]
        events.append(SpanEvent("last_token", begin_ns + at["tokN"]))
        attributes = {
            names.OUTPUT_TOKENS: row.n_out,
            "ringrouter.events": row.n_content,
            "ringrouter.stalls": row.stall_count or None,
            "ringrouter.first_token_sent_ms": _scaled(egress_ns(row), _MS),
        }
        return self._span(
            "respond", "respond", INTERNAL, at["tok1"], at["outN"], attributes=_without_nothing(attributes),
            events=tuple(events),
        )  # fmt: skip

    def _tools(self, tool_ns: int) -> Span:
        """The client's tools: a sibling of the request in its caller's trace, else a part of it that lies before it."""
        row = self._row
        return self._span(
            "tools",
            names.EXECUTE_TOOL,
            INTERNAL,
            -tool_ns,
            0,
            parent_id=row.span_id or self.id_of(trace_ids.SERVER),
            has_remote_parent=bool(row.span_id),
            attributes={names.OPERATION: names.EXECUTE_TOOL, names.INFERRED: True},
            links=_links(row.tool_after),
        )


_HOST_REPORTED: Final = (
    *("prompt_ms", "predicted_ms", "queue_ms", "reported_ttft_ms"),
    *("cache_n", "prompt_n", "predicted_n"),
)


def network_share(row: RequestRow) -> float | None:
    """Return the share of the client's network in the time to the first token that the client itself sees.

    Until its first token the client waits for ``ttft`` and one round trip (its request to us, the token to it); of that
    its network has the upload and the round trip. ``None`` where either is not known.
    """
    if row.ttft_ns is None or row.rtt_us is None:
        return None
    trip_ns = row.rtt_us * 1000
    seen_ns = row.ttft_ns + trip_ns
    return round((trip_ns + (row.upload_ns or 0)) / seen_ns, 4) if seen_ns else None


def _times(row: RequestRow) -> dict[str, int]:
    """Return when each stamp was, in ns after ``recv``: the ends of the stages. What did not happen has the time of the
    one before; ``outN`` is only there when the answer went out.
    """
    at, now_ns = {"recv": 0}, 0
    for stage, stamp in _ENDS:
        now_ns += getattr(row, f"{stage}_ns") or 0
        at[stamp] = now_ns
    at["tokN"] = at["tok1"] + (row.decode_ns or 0)
    if row.e2e_ns is not None:
        at["outN"] = row.e2e_ns
    return at


_ENDS: Final = tuple(
    zip(
        STAGES[:11],
        ("body", "pub", "deq", "admitted", "routed1", "routed", "conn", "sent", "hfb", "tok1", "out1"),
        strict=True,
    )
)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else round(value * factor, 6)


def _shortest(value: float) -> float:
    """Return a 32-bit float of a record as it was meant: 0.7, not 0.699999988."""
    return float(f"{value:.6g}")


def _without_nothing(attributes: Mapping[str, Value | None]) -> dict[str, Value]:
    return {name: value for name, value in attributes.items() if value is not None and value != ""}


def _links(after: str) -> tuple[SpanLink, ...]:
    trace_id, _, span_id = after.partition("-")
    return (SpanLink(trace_id, span_id),) if span_id else ()
