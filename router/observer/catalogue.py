"""Every metric of a request: its name, unit, meaning, how it is read off a row, and under which names it is exported.

Inside the observer all values are whole numbers: nanoseconds, tokens, thousandths of an event per second, billionths of
money. :class:`Unit` says what one of them is when it leaves. Definitions: docs/metrics.md.

Who is counted in a metric is part of its meaning. Latency is that of answers that were given: a request that failed is
counted by ``outcome`` and ``error`` and is, to the client, an answer that never came. Time to the first token is that
of streams: the first token of a whole answer comes with its last.

The names that begin with ``gen_ai.`` and their bucket boundaries are those of OpenTelemetry's semantic conventions for
generative AI, open-telemetry/semantic-conventions-genai, docs/gen-ai/gen-ai-metrics.md (status: development).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from operator import attrgetter
from typing import Final, NamedTuple

from router.config import Goodput
from router.errors import ErrorKind
from router.observer.rows import STAGE_FIELDS, RequestRow
from router.telemetry.records import Outcome

Read = Callable[[RequestRow], int | None]
"""Reads a value off a row; ``None`` where the row has none, or does not belong to the metric."""


class Unit(NamedTuple):
    """A unit: its name inside, and what one of it is worth in Prometheus's base unit, which names end in."""

    name: str
    worth: float
    exported: str


NS: Final = Unit("ns", 1e-9, "seconds")
TOKENS: Final = Unit("tokens", 1, "")
EVENTS: Final = Unit("events", 1, "")
PACE: Final = Unit("events/s", 1e-3, "")
REQUESTS: Final = Unit("requests", 1, "")
MONEY: Final = Unit("money", 1e-9, "")
WORD: Final = Unit("word", 1, "")
"""The position of a word in ``Metric.words``: counted by word."""

Labels = tuple[tuple[str, str], ...]


class Source(StrEnum):
    """Where a metric's values come from, and so when."""

    ROW = "row"
    GAP = "gap"
    """Every gap between two content events of a request."""
    COST = "cost"
    """The row again, a second or more later, when its cost has settled."""


class OTel(NamedTuple):
    """An OpenTelemetry name under which a metric is exported too, and its fixed attributes."""

    name: str
    attributes: Labels = ()
    is_of_host: bool = False
    """It is what a host did for us (``client``: we were its client), not what we did for ours (``server``)."""
    is_counter: bool = False
    """Only the sum is exported."""


class Metric(NamedTuple):
    """One metric. ``bounds`` are inclusive upper ends of Prometheus's buckets, in the unit inside."""

    name: str
    unit: Unit
    meaning: str
    source: Source
    read: Read
    bounds: tuple[int, ...]
    family: str
    """Prometheus name without prefix and unit."""
    labels: Labels = ()
    """Labels that tell the metrics of one family apart."""
    is_headline: bool = False
    """It has percentiles under every slice; others only under :data:`FULL_ENTRIES`, elsewhere count, sum and mean."""
    words: tuple[Labels, ...] = ()
    """Of a metric that counts words: the labels of each word by its position."""
    otel: tuple[OTel, ...] = ()


FULL_ENTRIES: Final = frozenset({"", "model", "host"})
"""Entries of slices (the total is "") under which every metric is kept as a histogram: with all metrics under all
slices there would be ten times the memory, and the series of Prometheus, for questions that the journal answers."""


# ---------------------------------------------------------------- boundaries, in base units
OTEL_TTFT_S: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
OTEL_TPOT_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
OTEL_DURATION_S: Final = tuple(round(0.01 * 2**k, 2) for k in range(14))
OTEL_TOKENS: Final = tuple(4.0**k for k in range(14))
FINER_S: Final = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075)
"""Added below the conventions' boundaries, where a small model beside the router spends all its time."""
STAGE_S: Final = (
    *(0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
_PACE_PER_S: Final = (1, 2.5, 5, 7.5, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1000)
_VISIBLE: Final = (0, 1, 5, 10, 20, 30, 40, 60, 80, 100, 150, 200, 300, 500, 1000)
_QUEUE: Final = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_MONEY: Final = tuple(factor * 10.0**power for power in range(-7, 2) for factor in (1, 2.5, 5))


def _bounds(unit: Unit, *groups: Sequence[float]) -> tuple[int, ...]:
    return tuple(sorted({round(bound / unit.worth) for group in groups for bound in group}))


# ---------------------------------------------------------------- readers
def _every(field: str) -> Read:
    """Read a field of every request."""
    get = attrgetter(field)

    def read(row: RequestRow) -> int | None:
        value = get(row)
        return None if value is None else round(value)

    return read


def _answered(field: str) -> Read:
    """Read a field of requests that were answered."""
    get = attrgetter(field)

    def read(row: RequestRow) -> int | None:
        value = get(row) if row.outcome == "ok" else None
        return None if value is None else round(value)

    return read


def _streamed(field: str) -> Read:
    """Read a field of requests that were answered by a stream."""
    get = attrgetter(field)

    def read(row: RequestRow) -> int | None:
        value = get(row) if row.stream and row.outcome == "ok" else None
        return None if value is None else round(value)

    return read


def _early_tps(row: RequestRow) -> int | None:
    is_shown = row.stream and row.outcome == "ok"
    return round(row.early_tps * 1000) if is_shown and row.early_tps is not None else None


def egress_ns(row: RequestRow) -> int | None:
    """Return the time in ``egress`` that is the router's: of a folded answer the row's own holds the host's decoding.

    Its first token goes out with its last (``out1 = outN``). :data:`router.observer.report.STAGE_SQL` says the same.
    """
    if row.egress_ns is None:
        return None
    return max(0, row.egress_ns - (row.decode_ns or 0)) if row.folded else row.egress_ns


def _egress(row: RequestRow) -> int | None:
    return egress_ns(row) if row.outcome == "ok" else None


def _stage(name: str, field: str) -> Read:
    return _egress if name == "egress" else _answered(field)


def _word(field: str, words: tuple[str, ...]) -> Read:
    """Read the position of a field's word; one that is not known (of a newer router) counts as :data:`UNKNOWN`."""
    get, positions = attrgetter(field), {word: words.index(word) for word in words}
    unknown = positions[UNKNOWN]
    return lambda row: positions.get(get(row), unknown)


def _none(_row: RequestRow) -> None:
    """Stand in for what is not read off a row."""


def _amount(row: RequestRow) -> int | None:
    return None if row.cost is None or row.cost.amount is None else round(row.cost.amount / MONEY.worth)


def _waste(row: RequestRow) -> int | None:
    return None if row.cost is None or row.cost.waste_amount is None else round(row.cost.waste_amount / MONEY.worth)


def _priced(row: RequestRow) -> int | None:
    return None if _amount(row) is None else _outcome(row)


def _host_time(row: RequestRow) -> int | None:
    return None if row.cost is None else row.cost.host_ns


def _cost_word(row: RequestRow) -> int | None:
    if row.cost is None:
        return None
    word = row.cost.missing or row.cost.basis
    return COST_WORDS.index(word) if word in COST_WORDS else 0


def _lowered(members: Sequence[Outcome] | Sequence[ErrorKind]) -> tuple[str, ...]:
    """Return the words of an enum by value, empty where a value is missing, and one for what is not among them."""
    words = {int(member): member.name.lower() for member in members if member}
    return (*(words.get(value, "") for value in range(max(words) + 1)), UNKNOWN)


UNKNOWN: Final = "unknown"
OUTCOME_WORDS: Final = _lowered(list(Outcome))
ERROR_WORDS: Final = _lowered(list(ErrorKind))
COST_WORDS: Final = ("", "occupancy", "tokens", "mixed", "no_price", "no_usage", "gap")
"""How a cost was found, or why there is none."""
_outcome: Final = _word("outcome", OUTCOME_WORDS)
_GONE: Final = frozenset({"client_gone", "client_stalled"})


# ---------------------------------------------------------------- goodput
DEFAULT_GOAL: Final = "default"
"""What the entry of ``observer.goodput`` without a workload class is called."""


class Limits(NamedTuple):
    """An entry of ``observer.goodput`` in nanoseconds; ``None`` where there is no limit."""

    workload_class: str
    ttft_ns: int | None
    tpot_ns: int | None
    e2e_ns: int | None


def limits_of(goodput: Sequence[Goodput]) -> list[Limits]:
    """Return the limits of a configuration."""
    return [Limits(each.workload_class, _ns(each.ttft_s), _ns(each.tpot_s), _ns(each.e2e_s)) for each in goodput]


def _ns(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds / NS.worth)


def verdict(row: RequestRow, limits: Limits) -> bool | None:
    """Say whether an answer was good: given, and within every limit, compared exactly.

    ``None`` for a request that was the client's own fault, and for one whose client left while all was well: nobody
    knows. A client that left after waiting for longer than the limit was not served well.
    """
    if row.outcome == "bad_request":
        return None
    if row.outcome in _GONE:
        waited_ns = row.ttft_ns if row.ttft_ns is not None else row.left_ns or row.duration_ns
        return False if row.stream and _exceeds(waited_ns, limits.ttft_ns) else None
    if row.outcome != "ok":
        return False
    late = row.stream and _exceeds(row.ttft_ns, limits.ttft_ns)
    return not (late or _exceeds(row.tpot_ns, limits.tpot_ns) or _exceeds(row.e2e_ns, limits.e2e_ns))


def _exceeds(value: float | None, limit: int | None) -> bool:
    return value is not None and limit is not None and value > limit


def _goodput_reader(limits: Sequence[Limits]) -> Read:
    """Read the position of the entry that a request belongs to, doubled, plus one when it was good."""
    by_class = {entry.workload_class: (2 * position, entry) for position, entry in enumerate(limits)}
    default = by_class.get("")

    def read(row: RequestRow) -> int | None:
        found = by_class.get(row.tags.get("workload_class", ""), default)
        if found is None:
            return None
        good = verdict(row, found[1])
        return None if good is None else found[0] + good

    return read


# ---------------------------------------------------------------- the catalogue
_NO_BOUNDS: Final[Mapping[str, Iterable[int]]] = {}


def catalogue(goodput: Sequence[Goodput] = (), boundaries: Mapping[str, Iterable[int]] = _NO_BOUNDS) -> list[Metric]:
    """Return every metric. The limits of ``goodput`` become boundaries, so that a share within one is exact; so do
    ``boundaries``, further ones by metric, in its unit inside.
    """
    limits = limits_of(goodput)
    ttft = _bounds(NS, FINER_S, OTEL_TTFT_S, _given(entry.ttft_s for entry in goodput))
    tpot = _bounds(NS, FINER_S, OTEL_TPOT_S, _given(entry.tpot_s for entry in goodput))
    duration = _bounds(NS, FINER_S[1:], OTEL_DURATION_S, (300, 600), _given(entry.e2e_s for entry in goodput))
    metrics = [
        *_latencies(ttft, tpot, duration),
        *_stages(),
        *_host_side(ttft, duration),
        *_amounts(),
        *_counts(limits),
        *_costs(),
    ]
    return [_with_bounds(metric, boundaries.get(metric.name, ())) for metric in metrics]


def _with_bounds(metric: Metric, further: Iterable[int]) -> Metric:
    bounds = tuple(sorted({*metric.bounds, *further}))
    return metric if bounds == metric.bounds else metric._replace(bounds=bounds)


def _given(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _latencies(ttft: tuple[int, ...], tpot: tuple[int, ...], duration: tuple[int, ...]) -> list[Metric]:
    """Return what the client saw."""
    row, gap = Source.ROW, Source.GAP
    gaps = _bounds(NS, FINER_S, OTEL_DURATION_S[:10])
    stage = _bounds(NS, STAGE_S)
    pace, visible = _bounds(PACE, _PACE_PER_S), _bounds(EVENTS, _VISIBLE)
    server = "gen_ai.server."
    return [
        Metric("ttft", NS, "Time to the first token, of streams", row, _streamed("ttft_ns"), ttft, "ttft",
               is_headline=True, otel=(OTel(server + "time_to_first_token"),)),
        Metric("ttfc", NS, "Time to the first chunk with choices, of streams", row, _streamed("ttfc_ns"), ttft, "ttfc"),
        Metric("ttfo", NS, "Time to the first content that is not reasoning, of streams", row, _streamed("ttfo_ns"),
               ttft, "ttfo"),
        Metric("tpot", NS, "Mean time per token after the first", row, _answered("tpot_ns"), tpot, "tpot",
               is_headline=True, otel=(OTel(server + "time_per_output_token"),)),
        Metric("e2e", NS, "Time to the last token of the answer", row, _answered("e2e_ns"), duration, "e2e",
               is_headline=True),
        Metric("icl", NS, "Each gap between two content events", gap, _none, gaps, "icl", is_headline=True,
               otel=(OTel("gen_ai.client.operation.time_per_output_chunk", is_of_host=True),)),
        Metric("stall_max", NS, "Longest gap between two content events of a request", row, _answered("stall_max_ns"),
               gaps, "stall_max"),
        Metric("early_tps", PACE, "Content events per second in the two seconds after the first token, of streams",
               row, _early_tps, pace, "early_tokens_per_second", is_headline=True),
        Metric("visible_2s", EVENTS, "Content events with the client two seconds after its request, of streams", row,
               _streamed("visible_2s"), visible, "visible_2s_tokens"),
        Metric("router_overhead", NS, "The router's own share of the time to the first token", row,
               _answered("router_overhead_ns"), stage, "router_overhead"),
        Metric("duration", NS, "Time from request to its end, whatever the end", row, _every("duration_ns"), duration,
               "request_duration", otel=(OTel(server + "request.duration"),)),
        Metric("tool_turn", NS, "Time that a client took for tools before a request, inferred", row, _every("tool_ns"),
               duration, "tool_turn"),
        Metric("cancel_latency", NS, "Time from seeing that a client left to having shut down its host's connection",
               row, _every("cancel_latency_ns"), stage, "cancel_latency"),
    ]  # fmt: skip


def _stages() -> list[Metric]:
    """Return where the time went."""
    bounds = _bounds(NS, STAGE_S)
    meaning = "Time in a stage of the path, of answered requests"
    return [
        Metric(f"stage.{name}", NS, meaning, Source.ROW, _stage(name, field), bounds, "stage", (("stage", name),))
        for name, field in STAGE_FIELDS
    ]


def _host_side(ttft: tuple[int, ...], duration: tuple[int, ...]) -> list[Metric]:
    """Return what the host that answered did, by the router's clock."""
    row, client = Source.ROW, "gen_ai.client.operation."
    return [
        Metric("host_ttft", NS, "The host's time from the request sent to its first token", row,
               _answered("host_ttft_ns"), ttft, "host_ttft"),
        Metric("host_ttfc", NS, "The host's time from the request sent to its first chunk", row,
               _streamed("host_ttfc_ns"), duration, "host_ttfc",
               otel=(OTel(client + "time_to_first_chunk", is_of_host=True),)),
        Metric("host_e2e", NS, "The host's time from the request sent to its last token", row,
               _answered("host_e2e_ns"), duration, "host_e2e", is_headline=True,
               otel=(OTel(client + "duration", is_of_host=True),)),
    ]  # fmt: skip


def _amounts() -> list[Metric]:
    """Return how much went through, of all requests: who pays pays for failed ones too."""
    row, bounds = Source.ROW, _bounds(TOKENS, OTEL_TOKENS)
    usage = "gen_ai.client.token.usage"
    return [
        Metric("tokens_in", TOKENS, "Tokens of a request, by kind", row, _every("n_in"), bounds, "tokens",
               (("kind", "in"),), otel=(OTel(usage, (("gen_ai_token_type", "input"),), is_of_host=True),
                                        _spent("input_tokens"))),
        Metric("tokens_out", TOKENS, "Tokens of a request, by kind", row, _every("n_out"), bounds, "tokens",
               (("kind", "out"),), otel=(OTel(usage, (("gen_ai_token_type", "output"),), is_of_host=True),
                                         _spent("output_tokens"))),
        Metric("tokens_cached", TOKENS, "Tokens of a request, by kind", row, _every("n_cached"), bounds, "tokens",
               (("kind", "cached"),), otel=(_spent("cache_read.input_tokens"),)),
        Metric("tokens_reasoning", TOKENS, "Tokens of a request, by kind", row, _every("n_reasoning"), bounds,
               "tokens", (("kind", "reasoning"),), otel=(_spent("reasoning.output_tokens"),)),
        Metric("tokens_saved", TOKENS, "Tokens of a request, by kind", row, _every("tokens_saved"), bounds, "tokens",
               (("kind", "saved"),)),
    ]  # fmt: skip


def _spent(kind: str) -> OTel:
    return OTel(f"gen_ai.client.inference.usage.{kind}", is_of_host=True, is_counter=True)


def _counts(limits: Sequence[Limits]) -> list[Metric]:
    """Return what is counted by word, and the depth of the queue."""
    row = Source.ROW
    verdicts = tuple(
        (("goal", entry.workload_class or DEFAULT_GOAL), ("good", good))
        for entry in limits
        for good in ("false", "true")
    )
    return [
        Metric("queue_depth", REQUESTS, "Requests that waited ahead of a request when it came", row,
               _every("waiting_ahead"), _bounds(REQUESTS, _QUEUE), "queue_depth"),
        Metric("retries", REQUESTS, "Further attempts that a request took", row, _every("retries"),
               _bounds(REQUESTS, range(4)), "retries"),
        Metric("stalls", REQUESTS, "Gaps above one second in an answer", row, _every("stall_count"),
               _bounds(REQUESTS, (0, 1, 2, 5, 10)), "stalls"),
        _worded("outcome", "requests", "Requests that ended, by outcome", row, _outcome,
                _labelled("outcome", OUTCOME_WORDS)),
        _worded("error", "request_errors", "Requests that ended, by kind of error", row, _word("error", ERROR_WORDS),
                _labelled("error", ERROR_WORDS)),
        _worded("goodput", "goodput", "Requests within all limits of their goal, and not", row, _goodput_reader(limits),
                verdicts),
    ]  # fmt: skip


def _costs() -> list[Metric]:
    """Return what is known a little later."""
    source, money, stage = Source.COST, _bounds(MONEY, _MONEY), _bounds(NS, STAGE_S)
    return [
        Metric("cost", MONEY, "Cost of a request, waste included, of those whose price is known", source, _amount,
               money, "cost"),
        Metric("waste", MONEY, "The part of a request's cost that bought nothing", source, _waste, money, "waste"),
        Metric("host_time", NS, "A request's share of its hosts' time", source, _host_time, stage, "host_time"),
        _worded("cost_basis", "request_costs", "Requests by how their cost was found, or why it was not", source,
                _cost_word, _labelled("basis", COST_WORDS)),
        _worded("priced", "priced_requests", "Requests whose cost is known, by outcome", source, _priced,
                _labelled("outcome", OUTCOME_WORDS)),
    ]  # fmt: skip


def _labelled(label: str, words: Sequence[str]) -> tuple[Labels, ...]:
    return tuple(((label, word),) for word in words)


def _worded(name: str, family: str, meaning: str, source: Source, read: Read, words: tuple[Labels, ...]) -> Metric:
    return Metric(name, WORD, meaning, source, read, tuple(range(len(words))), family, words=words)
