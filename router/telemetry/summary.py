"""What finished requests and the in-flight table amount to. Pure: values in, values out.

Percentiles are by nearest rank: the p-th percentile of n values is the value at rank ``ceil(p / 100 · n)`` of the
sorted list, always one that was measured, never an interpolation. Requests that failed have no latency; they are
counted beside the percentiles, not left out in silence.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from router.telemetry.records import OWN_CLASSES

PERCENTS: Final = (50, 95, 99)


class Percentiles(msgspec.Struct, frozen=True):
    """Nearest-rank percentiles of ``n`` values, in the unit of the values; ``None`` when there are none."""

    n: int
    p50: float | None
    p95: float | None
    p99: float | None


class Window(msgspec.Struct, frozen=True):
    """What the records at hand cover: ``n`` of ``published_count``, the oldest ending ``length_ns`` ago."""

    n: int
    published_count: int
    overwritten_count: int
    length_ns: int


class Group(msgspec.Struct, frozen=True):
    """One model at one host; ``host`` is empty for requests that have none (yet)."""

    host: str
    model: str
    running_count: int
    waiting_count: int
    ok_count: int
    failed_count: int
    ttft_ns: Percentiles
    tpot_ns: Percentiles
    tokens_per_s: float | None


class Summary(msgspec.Struct, frozen=True):
    """The router's part of ``ringrouter stats``."""

    window: Window
    outcomes: dict[str, int]
    """Finished requests by outcome, the most frequent first."""
    ttft_ns: Percentiles
    """Streamed answers only: a whole answer has its first token when it has its last."""
    tpot_ns: Percentiles
    e2e_ns: Percentiles
    router_overhead_ns: Percentiles
    tokens_out: int
    """Tokens generated for the requests of the window, of failed ones too."""
    tokens_per_s: float | None
    running_count: int
    waiting_count: int
    groups: list[Group]


def nearest_rank(ordered: Sequence[float], percent: float) -> float | None:
    """Return a percentile of values in ascending order; ``None`` for no values."""
    if not ordered:
        return None
    return ordered[max(1, math.ceil(percent * len(ordered) / 100)) - 1]


def percentiles(values: Iterable[float | None]) -> Percentiles:
    """Return n, p50, p95 and p99 of the values that are there."""
    ordered = sorted(value for value in values if value is not None)
    return Percentiles(len(ordered), *(nearest_rank(ordered, percent) for percent in PERCENTS))


def summarise(
    done: Sequence[Mapping[str, Any]],
    inflight: Sequence[Mapping[str, Any]],
    *,
    published_count: int,
    now_ns: int,
) -> Summary:
    """Sum up finished requests (oldest first, as :class:`router.telemetry.reader.DoneReader` gives them) and what runs.

    ``published_count`` is how many records the router ever wrote into this ring; ``now_ns`` is of the records' clock.
    """
    length_ns = max(0, now_ns - done[0]["stamps"]["done"]) if done else 0
    ok = _answered(done)
    tokens_out = sum(request["n_out"] for request in done)
    return Summary(
        window=Window(len(done), published_count, max(0, published_count - len(done)), length_ns),
        outcomes=dict(Counter(request["outcome"] for request in done).most_common()),
        ttft_ns=_ttft(ok),
        tpot_ns=percentiles(request["tpot_ns"] for request in ok),
        e2e_ns=percentiles(request["e2e_ns"] for request in ok),
        router_overhead_ns=percentiles(request["router_overhead_ns"] for request in ok),
        tokens_out=tokens_out,
        tokens_per_s=_per_second(tokens_out, length_ns),
        running_count=sum(not _waits(request) for request in inflight),
        waiting_count=sum(_waits(request) for request in inflight),
        groups=_groups(done, inflight, length_ns),
    )


def _answered(done: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the requests that ended well and for which somebody waited."""
    answered = (request for request in done if request["outcome"] == "ok")
    return [request for request in answered if request.get("tags", {}).get("workload_class") not in OWN_CLASSES]


def _ttft(ok: Iterable[Mapping[str, Any]]) -> Percentiles:
    return percentiles(request["ttft_ns"] for request in ok if "stream" in request["flags"])


def _waits(request: Mapping[str, Any]) -> bool:
    return bool(request["phase"] == "waiting")


def _per_second(count: int, length_ns: int) -> float | None:
    return count / (length_ns / 1e9) if length_ns else None


def _groups(done: Iterable[Mapping[str, Any]], inflight: Iterable[Mapping[str, Any]], length_ns: int) -> list[Group]:
    finished: defaultdict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    present: defaultdict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for request in done:
        finished[request["host"], request["model"]].append(request)
    for request in inflight:
        present[request["host"], request["model"]].append(request)
    return [_group(key, finished[key], present[key], length_ns) for key in sorted({*finished, *present})]


def _group(
    key: tuple[str, str], done: list[Mapping[str, Any]], inflight: list[Mapping[str, Any]], length_ns: int
) -> Group:
    ok_count = sum(request["outcome"] == "ok" for request in done)
    ok = _answered(done)
    waiting_count = sum(_waits(request) for request in inflight)
    return Group(
        host=key[0],
        model=key[1],
        running_count=len(inflight) - waiting_count,
        waiting_count=waiting_count,
        ok_count=ok_count,
        failed_count=len(done) - ok_count,
        ttft_ns=_ttft(ok),
        tpot_ns=percentiles(request["tpot_ns"] for request in ok),
        tokens_per_s=_per_second(sum(request["n_out"] for request in done), length_ns),
    )
