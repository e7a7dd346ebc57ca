"""What a host says of a request at its end: usage in the words of any dialect, llama.cpp's ``timings``, vLLM's
``metrics``, Ollama's durations; decoded leniently.

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
SOURCE_DURATIONS: Final = 3
"""Durations beside the counts of Ollama's own API."""
_IN_NAMES: Final = ("prompt_tokens", "input_tokens", "prompt_eval_count", "tokens_evaluated")
_OUT_NAMES: Final = ("completion_tokens", "output_tokens", "eval_count", "tokens_predicted")
"""What the dialects call tokens of the prompt and of the answer: OpenAI's chats; Anthropic, and OpenAI's responses;
Ollama; llama.cpp's own completions."""
_NS_PER_MS: Final = 1e6


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


def _ms(value: Any, per_ms: float = 1.0) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12 * per_ms:
        return value / per_ms
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


def _first(given: dict[str, Any], names: tuple[str, ...]) -> int:
    return next((_count(given[name]) for name in names if name in given), 0)


def _detail(given: dict[str, Any], names: tuple[str, ...], field: str) -> int:
    """Return a count one level deeper, from the first of these objects that there is."""
    details: dict[str, Any] = next((given[name] for name in names if isinstance(given.get(name), dict)), {})
    return _count(details.get(field))


def _read_fields(report: HostReport, given: dict[str, Any]) -> None:
    """Read usage of any shape, field by field."""
    report.has_usage = any(name in given for name in (*_IN_NAMES, *_OUT_NAMES, "total_tokens"))
    # Anthropic counts what comes from the prompt cache, or goes there, apart from the rest of the prompt.
    cached = _count(given.get("cache_read_input_tokens"))
    n_in = _first(given, _IN_NAMES) + cached + _count(given.get("cache_creation_input_tokens"))
    report.n_in = min(n_in, _COUNT_MAX)  # each is bounded, their sum is not
    report.n_out = _first(given, _OUT_NAMES)
    report.n_cached = cached or _detail(given, ("prompt_tokens_details", "input_tokens_details"), "cached_tokens")
    out_details = ("completion_tokens_details", "output_tokens_details")
    report.n_reasoning = _detail(given, out_details, "reasoning_tokens")
    if "eval_duration" in given or "prompt_eval_duration" in given:
        report.source = SOURCE_DURATIONS
        report.prompt_ms = _ms(given.get("prompt_eval_duration"), _NS_PER_MS)
        report.predicted_ms = _ms(given.get("eval_duration"), _NS_PER_MS)


def read_report(usage: bytes | None, timings: bytes | None, metrics: bytes | None) -> HostReport:
    """Decode the JSON of the three objects, each ``None`` where the host did not send it."""
    report = HostReport()
    if usage and not _read_usage(report, usage):
        _read_fields(report, _object(usage))
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
