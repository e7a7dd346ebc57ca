"""What a done record says of the decisions about a request, in words; pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from router.telemetry.records import Lever
from router.telemetry.units import duration

WORKLOADS: Final = {1: "realtime", 2: "interactive", 3: "batch"}
_US_NS: Final = 1000

Record = Mapping[str, Any]
"""A finished request, or one in flight, as :func:`router.telemetry.reader.resolve` describes it."""


def candidate_words(candidate: Mapping[str, Any], record: Record) -> str:
    """Return why a host was taken or not. ``candidate`` has the number of requests that ran there as ``running``."""
    reason, score = candidate["reason"], candidate["score"]
    said = _REASONS.get(reason)
    text = said if said is not None else reason.replace("_", " ")
    figure = _figure(reason, score, record)
    running = candidate.get("running")
    load = "" if running is None else f"{_count(running, 'other request')} ran there"
    return "; ".join(part for part in (f"{text}: {figure}" if figure else text, load) if part)


_REASONS: Final = {
    "chosen": "chosen",
    "busier": "more of its slots were busy",
    "full": "it had no free slot",
    "unhealthy": "it was not healthy",
    "tried": "it had failed this request already",
    "breaker_open": "its circuit breaker was open",
    "ejected": "it was left out as an outlier",
    "draining": "it was being taken out of service",
    "sticky": "chosen, because its session was there before",
    "explored": "chosen to learn how fast it is now",
    "pinned": "chosen, because the client asked for it",
    "above_bound": "it was above the load bound",
    "fewer_held": "it would have had more to read first",
    "slower": "a longer time to the first token was expected",
    "not_its_turn": "it was not its turn",
    "not_drawn": "it was none of the two that were drawn",
    "later_in_order": "a host before it in the order could take it",
    "not_its_session": "its session was at another host",
}


def _figure(reason: str, score: float, record: Record) -> str:
    """Return what the score says, in its unit; empty where the reason alone says it."""
    if reason in _BY_REASON:
        return _BY_REASON[reason](score, record)
    if reason in _BY_POLICY_REASONS:
        return _BY_POLICY.get(record["policy"], _load)(score, record)
    return ""


def _load(score: float, _: Record) -> str:
    return f"{score:.0%} of its slots busy"


def _held(score: float, record: Record) -> str:
    n_in = record["n_in"]
    if n_in:
        return f"it was thought to hold {round(score * n_in):,} of {n_in:,} prompt tokens"
    return f"it was thought to hold {score:.0%} of the prompt"


def _seconds(score: float, record: Record) -> str:
    if not record["predicted_ttft_us"]:  # too few samples: the shares of slots were compared
        return _load(score, record)
    return f"first token expected after {duration(score * 1e9)}"


_BY_POLICY_REASONS: Final = frozenset(
    {"chosen", "explored", "busier", "slower", "fewer_held", "not_its_turn", "pinned"}
)
"""Reasons whose score is in the unit of the policy."""
_Figure = Callable[[float, Record], str]
_BY_REASON: Final[dict[str, _Figure]] = {
    "busier": _load,
    "full": _load,
    "sticky": _load,
    "not_its_session": _load,
    "above_bound": lambda score, _: f"{score:.2f} times the mean load",
    "later_in_order": lambda score, _: f"it ranks {score:g}",
}
_BY_POLICY: Final[dict[str, _Figure]] = {
    "weighted": lambda score, _: f"credit {score:g}",
    "p2c_ewma": lambda score, _: f"time to the first token times requests there {duration(score * 1e9)}",
    "least_predicted_ttft": _seconds,
    "prefix_affinity": _held,
}


def waiting_words(record: Record) -> str:
    """Return how long a request waited, for what, and in which class."""
    queue_ns = record["stages_ns"]["queue"]
    ahead = record["waiting_ahead"]
    workload = WORKLOADS.get(record["workload"], "")
    parts = [f"{duration(queue_ns)} in the waiting room" if record["stamps"]["admitted"] else "it was never admitted"]
    if ahead:
        parts.append(f"{_count(ahead, 'request')} before it when it came")
    if workload:
        parts.append(f"class {workload}")
    return ", ".join(parts)


def deadline_words(record: Record) -> str:
    """Return what became of a deadline, empty for a request without one."""
    due_ns, stamps = record["deadline_ns"], record["stamps"]
    predicted = record["predicted_ttft_us"]
    foretold = f"the first token was foretold after {duration(predicted * _US_NS)}" if predicted else ""
    if not due_ns:
        return foretold
    allowed = f"first token due {duration(due_ns - stamps['recv'])} after it came"
    first_ns = stamps["tok1"]
    if first_ns:
        late_ns = first_ns - due_ns
        kept = f"missed by {duration(late_ns)}" if late_ns > 0 else f"met with {duration(-late_ns)} to spare"
    else:
        kept = "there was none"
    return "; ".join(part for part in (f"{allowed}, {kept}", foretold) if part)


def lever_words(record: Record) -> str:
    """Return what the router changed of the request, empty for nothing."""
    levers = Lever(record["levers"])
    parts = []
    if Lever.MAX_TOKENS in levers:
        asked = record["asked_max_tokens"]
        parts.append(f"max_tokens {record['max_tokens']:,} ({f'asked {asked:,}' if asked else 'none was asked for'})")
    if Lever.TEMPERATURE in levers:
        asked_temperature = record["asked_temperature"]
        asked = f"asked {asked_temperature:g}" if asked_temperature >= 0 else "none was asked for"
        parts.append(f"temperature {record['temperature']:g} ({asked})")
    if Lever.MODEL in levers:
        parts.append(f"model {record['model']}")
    return ", ".join(parts)


def attempt_words(attempt: Mapping[str, Any]) -> str:
    """Return what became of an attempt that failed."""
    status = f" {attempt['status']}" if attempt["status"] else ""
    took = duration(attempt["ended"] - attempt["routed"])
    got = "the answer had begun" if attempt["hfb"] else "before any answer"
    return f"{attempt['host']}: {attempt['error']}{status} after {took}, {got}"


def outcome_words(record: Record) -> str:
    """Return how a request ended and how long that took."""
    if record["outcome"] == "none":
        return f"in flight: {record['phase']}"
    first = f", first token after {duration(record['ttft_ns'])}" if record["ttft_ns"] is not None else ""
    whole_ns = record["stamps"]["done"] - record["stamps"]["recv"]
    error = "" if record["error"] == "none" else f" ({record['error']})"
    return f"{record['outcome']}{error} after {duration(whole_ns)}{first}"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
