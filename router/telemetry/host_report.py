"""What a host says of a request at its end: usage, llama.cpp's ``timings``, vLLM's ``metrics``; decoded leniently.

A field of the wrong type is left out, never an error: the answer is already at the client.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from router.errors import UNDECODABLE

_COUNT_MAX: Final = 0xFFFFFFFF
SOURCE_TIMINGS: Final = 1
"""``timings`` of llama.cpp."""
SOURCE_METRICS: Final = 2
"""``metrics`` of vLLM (``--enable-per-request-metrics``)."""


class HostReport(msgspec.Struct):
    """Counts of tokens and the host's own times in milliseconds; 0 where it said nothing."""

    has_usage: bool = False
    n_in: int = 0
    n_out: int = 0
    n_cached: int = 0
    n_reasoning: int = 0
    prompt_ms: float = 0.0
    predicted_ms: float = 0.0
    queue_ms: float = 0.0
    ttft_ms: float = 0.0
    cache_n: int = 0
    prompt_n: int = 0
    predicted_n: int = 0
    source: int = 0


class _InDetails(msgspec.Struct):
    cached_tokens: int = 0


class _OutDetails(msgspec.Struct):
    reasoning_tokens: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: _InDetails | None = None
    completion_tokens_details: _OutDetails | None = None


_decode_usage: Final = msgspec.json.Decoder(_Usage).decode


def _object(raw: bytes | None) -> dict[str, Any]:
    if not raw:
        return {}
    try:
        decoded = msgspec.json.decode(raw)
    except UNDECODABLE:
        return {}
    return decoded if isinstance(decoded, dict) else {}


def _count(value: Any) -> int:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _COUNT_MAX:
        return int(value)
    return 0


def _ms(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12:
        return float(value)
    return 0.0


def _read_usage(report: HostReport, raw: bytes) -> bool:
    """Read usage of the usual shape; false where it is another, which is then read field by field."""
    try:
        usage = _decode_usage(raw)
    except UNDECODABLE:
        return False
    if not (0 <= usage.prompt_tokens <= _COUNT_MAX and 0 <= usage.completion_tokens <= _COUNT_MAX):
        return False
    report.has_usage = True
    report.n_in, report.n_out = usage.prompt_tokens, usage.completion_tokens
    if usage.prompt_tokens_details is not None:
        report.n_cached = _count(usage.prompt_tokens_details.cached_tokens)
    if usage.completion_tokens_details is not None:
        report.n_reasoning = _count(usage.completion_tokens_details.reasoning_tokens)
    return True


def read_report(usage: bytes | None, timings: bytes | None, metrics: bytes | None) -> HostReport:
    """Decode the JSON of the three objects, each ``None`` where the host did not send it."""
    report = HostReport()
    if usage and not _read_usage(report, usage):
        given = _object(usage)
        report.has_usage = "completion_tokens" in given or "total_tokens" in given or "prompt_tokens" in given
        report.n_in = _count(given.get("prompt_tokens"))
        report.n_out = _count(given.get("completion_tokens"))
        details = given.get("prompt_tokens_details")
        report.n_cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
        details = given.get("completion_tokens_details")
        report.n_reasoning = _count(details.get("reasoning_tokens")) if isinstance(details, dict) else 0
    if given := _object(timings):
        report.source = SOURCE_TIMINGS
        report.prompt_ms, report.predicted_ms = _ms(given.get("prompt_ms")), _ms(given.get("predicted_ms"))
        report.cache_n, report.prompt_n = _count(given.get("cache_n")), _count(given.get("prompt_n"))
        report.predicted_n = _count(given.get("predicted_n"))
    elif given := _object(metrics):
        report.source = SOURCE_METRICS
        report.ttft_ms, report.queue_ms = _ms(given.get("time_to_first_token_ms")), _ms(given.get("queue_time_ms"))
        report.predicted_ms = _ms(given.get("generation_time_ms"))
    return report
