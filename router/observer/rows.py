"""One wide, flat row per request: what everything behind the rings works with; pure.

Times named ``..._ns`` without further words are durations. Stamps end in ``_mono_ns`` (``CLOCK_MONOTONIC``: those of
all routers of one boot compare) or ``_wall_ns`` (since 1970, UTC). ``None`` means that it did not happen or is not
known, never zero. Definitions: docs/metrics.md; stamps and stages: :mod:`router.stamps`; the record a row is made of:
:mod:`router.telemetry.records`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple

import msgspec

from router import verdicts
from router.errors import ErrorKind
from router.routing import PolicyId, Reason
from router.stamps import EARLY_WINDOW_NS, STAGES, STAMPS, e2e_ns, router_overhead_ns, stages, tpot_ns, ttft_ns
from router.telemetry import records as rec
from router.telemetry import trace_ids
from router.telemetry.reader import Names

STALL_NS: Final = 1_000_000_000
"""A gap between two content events above this is a stall: a reader of the answer has begun to wonder."""
NO_DONE_SEQ: Final = -1
"""``done_seq`` of a row that was made from the in-flight table of a router that died."""

RowKey = tuple[str, int, int]
"""What names a request for ever: instance, generation, request_seq."""


class RowAttempt(msgspec.Struct, frozen=True):
    """One attempt at one host, in the order in which they were made. Its slot is taken from ``start`` to ``end``."""

    host: str
    start_mono_ns: int
    conn_mono_ns: int | None
    sent_mono_ns: int | None
    first_byte_mono_ns: int | None
    first_token_mono_ns: int | None
    end_mono_ns: int
    """When the router gave the slot back: the last event of the answer, the failure, the cancel."""
    outcome: str
    """``ok``; ``failed``; ``cancelled``, because the client left or stalled; ``aborted``, because the router died."""
    error: str
    """Kind of the failure, empty without one."""
    status: int
    """The host's HTTP status of a failed attempt, 0 when there was none."""
    may_drain: bool
    """The router broke off what the host may have worked on further: its slot stays taken for the host's
    ``cancel_grace_ms`` after ``end``."""


class RowCandidate(msgspec.Struct, frozen=True):
    """A host that routing looked at; the chosen one comes first. ``score`` is its share of slots in use."""

    host: str
    reason: str
    score: float


class RowCost(msgspec.Struct, frozen=True):
    """What a request cost. Amounts are money in ``currency``, ``None`` where a price is unknown, never 0 for that."""

    amount: float | None
    """All that the request brought about, waste included."""
    waste_amount: float | None
    """The part that bought nothing: attempts that failed, answers that nobody took to the end."""
    host_ns: int | None
    """The request's share of its hosts' time by processor sharing; ``None`` for hosts with a price per token."""
    waste_host_ns: int | None
    currency: str
    basis: str
    """``occupancy`` (the hosts' time), ``tokens`` (a price per token), ``mixed``, or empty when there is no amount."""
    missing: str
    """Why there is no amount: ``no_price``; ``no_usage``, a price per token whose number nobody told; ``gap``, nobody
    knows what ran beside it. Empty when there is one."""


class RowStall(msgspec.Struct, frozen=True):
    """A stall in the stream of an answer: a gap above :data:`STALL_NS` between two content events."""

    after_ns: int
    """``tok1`` until the event that ended it."""
    gap_ns: int


class RowDecision(msgspec.Struct, frozen=True, kw_only=True):
    """What the router decided of a request beyond its host. ``None``, 0 and empty: nothing of the kind."""

    deadline_ns: int | None
    """When the first token was due, after ``recv``."""
    predicted_ttft_ns: int | None
    """What was foretold for its host."""
    prefix_tokens: int
    """How much of the prompt the host was thought to hold."""
    asked_max_tokens: int | None
    """What the client had asked for where a rule set another; 0: it had not said."""
    asked_temperature: float | None
    """Likewise; -1: it had not said."""
    asked_model: str
    """The model asked for where another one answered."""
    key: str
    workload: str
    """The class in which it waited: ``realtime``, ``interactive``, ``batch``."""
    tool_count: int
    """Tools that the router spliced into the request."""
    tool_bytes: int
    cache: str
    """How a cache took part: ``hit``, ``partial``, ``miss``."""
    cache_hits: int
    cache_misses: int
    saved_ns: int
    """How much sooner the cache answered than a host would have."""


class IclSummary(NamedTuple):
    """The gaps between the content events of one request, from ``tokens.ring``; ``None`` where there are no gaps."""

    gap_count: int = 0
    mean_ns: float | None = None
    p50_ns: int | None = None
    p95_ns: int | None = None
    max_ns: int | None = None
    stall_count: int = 0
    """Gaps above :data:`STALL_NS`."""
    stall_ns: int = 0
    """The sum of those gaps."""
    blocked_ns: int = 0
    """Time in which the client's socket did not take what was written."""
    kept_count: int = 0
    """How many of the gaps are in the arrays for histograms; fewer than ``gap_count`` for an extremely long answer."""
    host_end_mono_ns: int = 0
    """When the last event of the host's stream came; 0 without one."""
    lossy: bool = False
    """Events of this request were overwritten before they were read: the gaps are not complete."""
    stalls: tuple[RowStall, ...] = ()
    """The longest stalls in the order in which they came; none of a request that is ``lossy``."""
    calls_tools: bool = False
    """The last content event was a call of a tool."""


NO_ICL: Final = IclSummary()


class RequestRow(msgspec.Struct, frozen=True, kw_only=True):
    """One finished request. ``key`` names it for ever; a row never changes, except that its cost is filled in."""

    # ---- which
    instance: str
    generation: int
    """Start of the router's life: the name of its directory, monotonic ns."""
    request_seq: int
    done_seq: int
    """Sequence in ``done.ring``, :data:`NO_DONE_SEQ` for a request of a router that died."""
    start_wall_ns: int
    """``recv`` as calendar time."""
    end_wall_ns: int
    """``done`` as calendar time."""
    recv_mono_ns: int
    done_mono_ns: int
    trace_id: str
    """The caller's (``traceparent``), else one of its own (:mod:`router.telemetry.trace_ids`)."""
    span_id: str
    """The caller's span, which this request is a part of; empty without one."""
    trace_flags: int
    tags: dict[str, str]
    """Every tag that was given: the built-in ones, the user's own, and the free texts ``user_id``, ``session_id``,
    ``request_id``, ``batch_id``."""

    # ---- what
    endpoint: str
    model: str
    host: str
    """The host of the last attempt; empty for none."""
    stream: bool
    folded: bool
    flags: tuple[str, ...]
    outcome: str
    error: str
    """Empty without one."""
    status: int
    message: str
    policy: str
    max_tokens: int
    temperature: float
    candidates: tuple[RowCandidate, ...]
    attempts: tuple[RowAttempt, ...]
    attempt_count: int
    """All attempts; ``attempts`` holds the last failed ones and the last one."""
    retries: int
    waiting_ahead: int
    """Requests that waited in front of it when it began to wait."""

    # ---- how long: at the client's edge
    ttft_ns: int | None
    e2e_ns: int | None
    ttfc_ns: int | None
    """Until the first chunk with choices was with the client. The router holds role-only chunks back until the first
    content, so that this is TTFT unless the answer has no content."""
    ttfo_ns: int | None
    """Until the first content that is not reasoning."""
    tpot_ns: float | None
    early_tps: float | None
    """Tokens per second in (tok1, tok1 + 2 s], or in the shorter time that the answer took."""
    visible_2s: int
    """Tokens with the client two seconds after its request; 0 is a value here: it saw nothing."""
    stall_max_ns: int | None
    router_overhead_ns: int | None
    duration_ns: int
    """``done − recv``, whatever happened."""

    # ---- how long: at the host's edge
    host_ttft_ns: int | None
    """``tok1 − sent``."""
    host_ttfc_ns: int | None
    """First chunk with choices, after ``sent``."""
    host_e2e_ns: int | None
    """``tokN − sent``."""

    # ---- the stages, in order; the first eleven sum to TTFT
    upload_ns: int | None
    ingress_ns: int | None
    handoff_ns: int | None
    queue_ns: int | None
    route_ns: int | None
    retry_ns: int | None
    connect_ns: int | None
    send_ns: int | None
    host_first_byte_ns: int | None
    host_first_token_ns: int | None
    egress_ns: int | None
    decode_ns: int | None
    tail_ns: int | None

    # ---- the gaps between content events
    icl_count: int
    icl_mean_ns: float | None
    icl_p50_ns: int | None
    icl_p95_ns: int | None
    stall_count: int
    stall_ns: int
    blocked_ns: int
    lossy: bool
    """Some of its events were lost: ``icl_*``, ``stall_count``, ``stall_ns`` and ``blocked_ns`` are not complete."""

    # ---- how much
    n_in: int | None
    n_out: int
    n_out_estimated: bool
    """The host reported no usage: ``n_out`` is the number of content events, and the other counts are not known."""
    n_cached: int | None
    n_reasoning: int | None
    n_content: int
    n_events: int
    n_choices: int
    bytes_in: int
    bytes_out: int
    tokens_saved: int | None
    """Of a request that was cancelled at the host: what it could still have generated, by ``max_tokens``."""
    cancel_latency_ns: int | None
    """From learning that the client had left until the host's connection was shut down."""
    left_ns: int | None
    """``left − recv``: when the client was seen to have left."""

    # ---- what the host says itself; None where it says nothing
    host_prompt_ms: float | None
    host_predicted_ms: float | None
    host_queue_ms: float | None
    host_reported_ttft_ms: float | None
    host_cache_n: int | None
    host_prompt_n: int | None
    host_predicted_n: int | None
    host_timing_source: str
    """``timings`` (llama.cpp), ``metrics`` (vLLM), ``durations`` (Ollama), or empty."""

    # ---- the client's connection, by TCP_INFO; None without TCP
    rtt_us: int | None
    rttvar_us: int | None
    min_rtt_us: int | None
    retrans: int | None
    total_retrans: int | None
    snd_cwnd: int | None
    unacked: int | None

    cost: RowCost | None = None
    """Filled in once it has settled; ``None`` until then."""

    # ---- since later versions: rows of earlier ones have none of it
    calls_tools: bool = False
    """The answer ended in calls of tools, which the client was to run."""
    tool_ns: int | None = None
    """How long the client took for tools before this request: since the end of the answer that called them. Inferred
    (:mod:`router.observer.traces.tool_turns`); no part of ``ttft`` or ``e2e``."""
    tool_after: str = ""
    """That answer: its trace id, ``-``, the id of its request's span."""
    stalls: tuple[RowStall, ...] = ()
    """The longest stalls (at most 16) in the order in which they came."""
    decision: RowDecision | None = None

    @property
    def key(self) -> RowKey:
        """Return what names this request for ever."""
        return self.instance, self.generation, self.request_seq

    @property
    def request_id(self) -> str:
        """Return the id that the client knows this request by."""
        return self.tags.get("request_id", "")

    def stages_ns(self) -> dict[str, int | None]:
        """Return every stage by its name, in order; the first eleven sum to TTFT."""
        return {name: getattr(self, field) for name, field in STAGE_FIELDS}

    def with_cost(self, cost: RowCost) -> RequestRow:
        """Return this row with its cost."""
        return msgspec.structs.replace(self, cost=cost)


STAGE_FIELDS: Final = tuple((name, f"{name}_ns") for name in STAGES)
"""Each stage and the field of a row that holds it."""

_ENDS_AT: Final = dict(
    zip(
        STAGES,
        ("body", "pub", "deq", "admitted", "routed1", "routed", "conn", "sent", "hfb", "tok1", "out1", "tokN", "outN"),
        strict=True,
    )
)
_WORKLOADS: Final = ("", "realtime", "interactive", "batch")
_TIMING_SOURCES: Final = ("", "timings", "metrics", "durations")
_CANCELLED: Final = frozenset({int(rec.Outcome.CLIENT_GONE), int(rec.Outcome.CLIENT_STALLED)})


class Origin(NamedTuple):
    """Where a record was read, and how to read its ids and stamps."""

    instance: str
    generation: int
    names: Names
    wall_ns: Callable[[int], int]
    """Turns a stamp into calendar time: :meth:`ringbuffer.Header.wall_ns`."""


def row_of(record: Mapping[str, Any], origin: Origin, done_seq: int, icl: IclSummary = NO_ICL) -> RequestRow:
    """Make the row of a record as :func:`router.telemetry.records.decode_done` returns it.

    ``icl`` is what ``tokens.ring`` says of the same request. Ids that are not in ``names.tab`` become ``#ID``.
    """
    at = dict(zip(STAMPS, record["stamps"], strict=True))
    names, flags = origin.names, record["flags"]
    attempts = _attempts(record, at, names, icl)
    done_mono_ns = max(at["done"], at["recv"])
    estimated = bool(flags & rec.DoneFlag.N_OUT_ESTIMATED)
    return RequestRow(
        instance=origin.instance,
        generation=origin.generation,
        request_seq=record["request_seq"],
        done_seq=done_seq,
        start_wall_ns=origin.wall_ns(at["recv"]),
        end_wall_ns=origin.wall_ns(done_mono_ns),
        recv_mono_ns=at["recv"],
        done_mono_ns=done_mono_ns,
        **_trace(record, origin),
        tags=_tags(record, names),
        endpoint=_word(rec.Endpoint, record["endpoint"]),
        model=names.model(record["model"]),
        host=names.host(record["host"]),
        stream=bool(flags & rec.DoneFlag.STREAM),
        folded=bool(flags & rec.DoneFlag.FOLDED),
        flags=tuple(flag.name.lower() for flag in rec.DoneFlag if flags & flag and flag.name),
        outcome=_word(rec.Outcome, record["outcome"]),
        error=_word(ErrorKind, record["error"]),
        status=record["status"],
        message=record["message"],
        policy=_word(PolicyId, record["policy"]),
        max_tokens=record["max_tokens"],
        temperature=record["temperature"],
        candidates=tuple(
            RowCandidate(names.host(host), _word(Reason, reason), score) for host, reason, score in record["candidates"]
        ),
        attempts=attempts,
        attempt_count=record["attempt_count"],
        retries=max(0, record["attempt_count"] - 1),
        waiting_ahead=record["waiting_ahead"],
        duration_ns=done_mono_ns - at["recv"],
        calls_tools=icl.calls_tools or bool(flags & rec.DoneFlag.CALLS_TOOLS),
        decision=_decision(record, at, names),
        n_in=None if estimated else record["n_in"],
        n_out=record["n_out"],
        n_out_estimated=estimated,
        n_cached=None if estimated else record["n_cached"],
        n_reasoning=None if estimated else record["n_reasoning"],
        n_content=record["n_content"],
        n_events=record["n_events"],
        n_choices=record["n_choices"],
        bytes_in=record["bytes_in"],
        bytes_out=record["bytes_out"],
        tokens_saved=record["tokens_saved"] if record["cancel_latency_ns"] else None,
        cancel_latency_ns=record["cancel_latency_ns"] or None,
        left_ns=record["left_ns"] - at["recv"] if record["left_ns"] else None,
        **_durations(record, at),
        **_pace(icl),
        **_host_report(record),
        **_tcp_info(record),
    )


def _trace(record: Mapping[str, Any], origin: Origin) -> dict[str, Any]:
    """Return the caller's trace, or the request's own where it sent none that is valid."""
    if record["trace_id"].strip("0") and record["span_id"].strip("0"):
        return {name: record[name] for name in ("trace_id", "span_id", "trace_flags")}
    life = trace_ids.life_of(origin.instance, origin.generation)
    own = trace_ids.trace_id(life, record["request_seq"]).hex()
    return {"trace_id": own, "span_id": "", "trace_flags": 0}


def _decision(record: Mapping[str, Any], at: Mapping[str, int], names: Names) -> RowDecision | None:
    """Return the part of the record since 1.2; ``None`` where nothing of it is set."""
    if not any(record.get(name) for name, _, _ in rec.DECISION_FIELDS):
        return None
    levers = record["levers"]
    return RowDecision(
        deadline_ns=record["deadline_ns"] - at["recv"] if record["deadline_ns"] else None,
        predicted_ttft_ns=record["predicted_ttft_us"] * 1000 or None,
        prefix_tokens=record["prefix_tokens"],
        asked_max_tokens=record["asked_max_tokens"] if levers & rec.Lever.MAX_TOKENS else None,
        asked_temperature=record["asked_temperature"] if levers & rec.Lever.TEMPERATURE else None,
        asked_model=names.model(record["asked_model"]),
        key=names.text(rec.NAME_KEY, record["key"]),
        workload=_WORKLOADS[record["workload"]] if record["workload"] < len(_WORKLOADS) else "",
        tool_count=record["tool_count"],
        tool_bytes=record["tool_bytes"],
        cache=_word(rec.CacheUse, record["cache"]),
        cache_hits=record["cache_hits"],
        cache_misses=record["cache_misses"],
        saved_ns=record["saved_us"] * 1000,
    )


def _word(kind: type[IntEnum], value: int) -> str:
    """Return the name of an enum's member in lower case; empty for 0, ``#VALUE`` for one of a newer minor version."""
    if not value:
        return ""
    try:
        return kind(value).name.lower()
    except ValueError:
        return f"#{value}"


def _tags(record: Mapping[str, Any], names: Names) -> dict[str, str]:
    tags = names.tags(record["tag_ids"])
    tags.update({name: record[name] for name in rec.TEXT_TAGS if record[name]})
    return tags


def _since(at: Mapping[str, int], begin: str, end_ns: int) -> int | None:
    """Return how long after a stamp a time was; ``None`` when either did not happen."""
    return max(0, end_ns - at[begin]) if at[begin] and end_ns else None


def _durations(record: Mapping[str, Any], at: Mapping[str, int]) -> dict[str, Any]:
    """Return all that is a difference of stamps. What did not happen is ``None``; the sums hold with 0 for it."""
    stage_ns = stages(record["stamps"])
    folded = bool(record["flags"] & rec.DoneFlag.FOLDED)
    first_ns = ttft_ns(stage_ns) if at["out1"] else None
    overhead_ns = router_overhead_ns(stage_ns) - (stage_ns["decode"] if folded else 0)  # out1 = outN there
    ttfc_ns = record["ttfc_ns"] or at["tok1"]  # not told of dialects without choices, nor of a fold in one read
    early_ns = min(EARLY_WINDOW_NS, stage_ns["decode"])
    out: dict[str, Any] = {field: stage_ns[name] if at[_ENDS_AT[name]] else None for name, field in STAGE_FIELDS}
    return out | {
        "ttft_ns": first_ns,
        "e2e_ns": e2e_ns(stage_ns) if at["outN"] else None,
        "ttfc_ns": _at_client(ttfc_ns, at, first_ns),
        "ttfo_ns": _at_client(record["ttfo_ns"], at, first_ns),
        "tpot_ns": tpot_ns(at["tok1"], at["tokN"], record["n_out"], record["n_first"]),
        "early_tps": record["early_tokens"] / (early_ns / 1e9) if early_ns else None,
        "visible_2s": record["visible_tokens"],
        "stall_max_ns": record["stall_max_ns"] or None,
        "router_overhead_ns": overhead_ns if at["out1"] else None,
        "host_ttft_ns": _since(at, "sent", at["tok1"]),
        "host_ttfc_ns": _since(at, "sent", ttfc_ns),
        "host_e2e_ns": _since(at, "sent", at["tokN"]),
    }


def _pace(icl: IclSummary) -> dict[str, Any]:
    return {
        "icl_count": icl.gap_count,
        "icl_mean_ns": icl.mean_ns,
        "icl_p50_ns": icl.p50_ns,
        "icl_p95_ns": icl.p95_ns,
        "stall_count": icl.stall_count,
        "stall_ns": icl.stall_ns,
        "blocked_ns": icl.blocked_ns,
        "lossy": icl.lossy,
        "stalls": icl.stalls,
    }


def _at_client(stamp_ns: int, at: Mapping[str, int], first_ns: int | None) -> int | None:
    """Return when an event was with the client, from when it came: nothing goes out before the first content."""
    if not stamp_ns:
        return None
    return first_ns if stamp_ns <= at["tok1"] or at["out1"] > stamp_ns else stamp_ns - at["recv"]


def _attempts(
    record: Mapping[str, Any], at: Mapping[str, int], names: Names, icl: IclSummary
) -> tuple[RowAttempt, ...]:
    failed = [_failed_attempt(values, names) for values in record["failed_attempts"]]
    # An attempt that failed for good stands among the failed ones, and its stamps are still in the head.
    if not at["routed"] or (failed and failed[-1].start_mono_ns == at["routed"]):
        return tuple(failed)
    return (*failed, _last_attempt(record, at, names, icl))


def _failed_attempt(values: Mapping[str, int], names: Names) -> RowAttempt:
    kind = values["error"]
    return RowAttempt(
        host=names.host(values["host"]),
        start_mono_ns=values["routed"],
        conn_mono_ns=values["conn"] or None,
        sent_mono_ns=values["sent"] or None,
        first_byte_mono_ns=values["hfb"] or None,
        first_token_mono_ns=None,
        end_mono_ns=values["ended"],
        outcome="failed",
        error=_word(ErrorKind, kind),
        status=values["status"],
        may_drain=kind in verdicts.BROKEN_OFF and bool(values["sent"]),
    )


def _last_attempt(record: Mapping[str, Any], at: Mapping[str, int], names: Names, icl: IclSummary) -> RowAttempt:
    # Without a cancel the slot was free before the client had left: its answer was complete, and only to be taken.
    cancelled = record["outcome"] in _CANCELLED and bool(record["cancel_latency_ns"])
    aborted = record["outcome"] == rec.Outcome.ABORTED
    return RowAttempt(
        host=names.host(record["host"]),
        start_mono_ns=at["routed"],
        conn_mono_ns=at["conn"] or None,
        sent_mono_ns=at["sent"] or None,
        first_byte_mono_ns=at["hfb"] or None,
        first_token_mono_ns=at["tok1"] or None,
        end_mono_ns=_slot_end_ns(record, at, icl, cancelled=cancelled, aborted=aborted),
        outcome="cancelled" if cancelled else "aborted" if aborted else "ok",
        error="",
        status=0,
        may_drain=(cancelled or aborted) and bool(at["sent"]),
    )


def _slot_end_ns(
    record: Mapping[str, Any], at: Mapping[str, int], icl: IclSummary, *, cancelled: bool, aborted: bool
) -> int:
    """Return when the slot was given back: a slow client may take the last bytes long after the host was done."""
    if cancelled:
        return int(record["left_ns"])
    last_ns = max(icl.host_end_mono_ns, at["tokN"])
    if aborted or not last_ns:
        return max(at["done"], at["routed"])
    return last_ns


def _host_report(record: Mapping[str, Any]) -> dict[str, Any]:
    source = record["timing_source"]
    said = bool(source)
    return {
        "host_prompt_ms": record["prompt_ms"] or None,
        "host_predicted_ms": record["predicted_ms"] or None,
        "host_queue_ms": record["queue_ms"] if said and record["host_ttft_ms"] else None,
        "host_reported_ttft_ms": record["host_ttft_ms"] or None,
        "host_cache_n": record["cache_n"] if record["prompt_n"] or record["cache_n"] else None,
        "host_prompt_n": record["prompt_n"] or None,
        "host_predicted_n": record["predicted_n"] or None,
        "host_timing_source": _TIMING_SOURCES[source] if source < len(_TIMING_SOURCES) else f"#{source}",
    }


_TCP_FIELDS: Final[Sequence[str]] = (
    "rtt_us",
    "rttvar_us",
    "min_rtt_us",
    "retrans",
    "total_retrans",
    "snd_cwnd",
    "unacked",
)


def _tcp_info(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record[name] if record["tcp_valid"] else None for name in _TCP_FIELDS}
