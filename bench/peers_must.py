"""What ringrouter must reach beside its peers, and whether a run shows it: one row for each criterion and mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from bench import report
from bench.harness import Run
from bench.peers_known import KNOWN
from bench.peers_ratios import Quantity, Spread, best, by_round, ratio, spread

OWN = "ringrouter"
ROUNDS_MIN = 7
"""Calm rounds below which a verdict is marked as resting on too few."""

TTFT = Quantity("added TTFT p50", report.ttft_us)
TOKEN = Quantity("added token p50", report.token_us)
CPU = Quantity("CPU/token", report.cpu_us, is_added=False)
ANSWERS = Quantity("answers/s", report.rate, is_added=False, is_more_better=True)
WHOLE_TTFT_P99 = Quantity(
    "whole TTFT p99", lambda run: run["ttft"]["p99"] if run["ttft"]["n"] else None, is_added=False
)

STREAMED_MODES = ("low", "s64", "burst64", "s256", "s1000", "s5000", "sat-tok", "close64", "prompt200k")
"""All streamed modes but ``slots8``, where a router that queues is charged with the wait that others leave to hosts."""
STEADY_MODES = ("low", "s64", "s256")
CPU_MODES = ("s64", "burst64", "s256", "s1000")

AT_REST_MAX_MB = 45
IDLE_STREAM_MAX_KB = 30
READY_MAX_MS = 400
SYSTEM_CALLS_MAX = 3.2
SAME = 1.01
"""No difference: the load generator's buckets are 0.8 % wide."""
HEADINGS = ("criterion", "mode", "measured (min–max)", "limit", "aim", "reached", "calm rounds")
LEGEND = """\
Ratios are of one round each, median of the calm rounds (less than 2 % stolen, no stop of the machine over 50 ms).
added: less direct's. best LLM router, better of nginx and haproxy: the one with the best median in that mode, named."""


class Finding(NamedTuple):
    """One criterion: its name, mode, value, limit and aim; ``value`` None where it was not measured."""

    criterion: str
    mode: str
    value: Spread | None
    limit: float
    aim: float | None = None
    is_least: bool = False

    def holds(self, bound: float) -> bool:
        """Whether the value is on the right side of a bound."""
        assert self.value is not None
        return self.value.median >= bound if self.is_least else self.value.median <= bound

    @property
    def is_reached(self) -> bool | None:
        """Whether the limit is kept; None where nothing was measured."""
        return None if self.value is None else self.holds(self.limit)


def findings(runs: Sequence[Run], footprint: Mapping[str, Sequence[float]]) -> list[Finding]:
    """Judge a run; ``footprint`` as :func:`bench.peers_footprint.measure` returns it, empty when it was not taken."""
    measured = {run["mode"] for run in runs}
    return [
        *_first_tokens(runs, measured),
        *_tokens(runs, measured),
        *_cpu(runs, measured),
        _number(
            "system calls per token (counted by the gate)",
            SYSTEM_CALLS_MAX,
            footprint.get("system_calls_per_token", ()),
        ),
        *_answers(runs, measured),
        *_hosts_that_close(runs, measured),
        *_hosts_with_slots(runs, measured),
        *_many_streams(runs, measured),
        _number("anonymous memory of an idle stream, KB", IDLE_STREAM_MAX_KB, footprint.get("idle_stream_kb", ())),
        _number("anonymous memory at rest, MB", AT_REST_MAX_MB, footprint.get("at_rest_mb", ())),
        *_long_prompts(runs, measured),
        _number("start to ready, ms", READY_MAX_MS, footprint.get("ready_ms", ())),
        *_wait_strategies(runs, measured),
    ]


def table(found: Sequence[Finding]) -> str:
    """Return the findings as a Markdown table."""
    return report.aligned([HEADINGS, *map(_row, found)])


def _row(found: Finding) -> tuple[str, ...]:
    sign = "≥" if found.is_least else "≤"
    aim = "" if found.aim is None else f"{sign} {found.aim:g}"
    name, mode, limit = found.criterion, found.mode, f"{sign} {found.limit:g}"
    if found.value is None:
        return name, mode, "-", limit, aim, "not measured, or in no calm round", "-"
    verdict = "yes" if found.is_reached else "NO"
    if found.is_reached and found.aim is not None:
        verdict += ", and the aim" if found.holds(found.aim) else ", not the aim"
    few = " (too few)" if found.mode and found.value.rounds < ROUNDS_MIN else ""
    return name, mode, str(found.value), limit, aim, verdict, f"{found.value.rounds}{few}" if found.mode else "-"


def _routers(runs: Sequence[Run]) -> list[str]:
    return [name for name in {run["peer"] for run in runs} if name in KNOWN and KNOWN[name].kind == "router"]


def _against(
    runs: Sequence[Run],
    mode: str,
    others: Sequence[str],
    what: str,
    quantity: Quantity,
    limit: float,
    *,
    aim: float | None = None,
) -> Finding:
    """Compare with the best of some peers."""
    other = best(runs, mode, others, quantity)
    value = ratio(runs, mode, OWN, other, quantity) if other else None
    name = f"{quantity.name} / {what}" + (f" ({other})" if other and len(others) > 1 else "")
    return Finding(name, mode, value, limit, aim, quantity.is_more_better)


def _number(name: str, limit: float, values: Sequence[float]) -> Finding:
    return Finding(name, "", spread(values), limit)


def _first_tokens(runs: Sequence[Run], measured: set[str]) -> Iterator[Finding]:
    for mode in (mode for mode in STREAMED_MODES if mode in measured):
        yield _against(runs, mode, _routers(runs), "best LLM router", TTFT, 0.6)
    for mode in (mode for mode in STEADY_MODES if mode in measured):
        yield _against(runs, mode, ("nginx", "haproxy"), "better of nginx, haproxy", TTFT, 1.3, aim=1.0)


def _tokens(runs: Sequence[Run], measured: set[str]) -> Iterator[Finding]:
    for mode in (mode for mode in STEADY_MODES if mode in measured):
        yield _against(runs, mode, ("haproxy",), "haproxy", TOKEN, 1.3, aim=1.0)
    if "burst64" in measured:
        yield _against(runs, "burst64", _routers(runs), "best LLM router", TOKEN, 1.0)


def _cpu(runs: Sequence[Run], measured: set[str]) -> Iterator[Finding]:
    for mode in (mode for mode in CPU_MODES if mode in measured):
        yield _against(runs, mode, ("nginx",), "nginx", CPU, 1.35, aim=1.0)
        yield _against(runs, mode, _routers(runs), "best LLM router", CPU, 0.9)


def _answers(runs: Sequence[Run], measured: set[str]) -> Iterator[Finding]:
    if "sat-req" in measured:
        yield _against(runs, "sat-req", _routers(runs), "best LLM router", ANSWERS, 2.0)


def _counted(runs: Sequence[Run], mode: str, name: str, count: Callable[[Run], int]) -> Finding:
    """Sum what must not happen in any round, stolen time or not."""
    own = [run for run in runs if (run["mode"], run["peer"]) == (mode, OWN)]
    total = sum(map(count, own))
    return Finding(name, mode, Spread(total, total, total, len(own)) if own else None, 0)


def _error_count(run: Run) -> int:
    return sum(run["errors"].values())


def _hosts_that_close(runs: Sequence[Run], measured: set[str]) -> Iterator[Finding]:
    if "close64" in measured:
        yield _counted(runs, "close64", "errors", _error_count)
        yield _counted(runs, "close64", "requests that clients sent again", lambda run: int(run["retried"]))
        yield _against(runs, "close64", ("haproxy",), "haproxy", TTFT, 1.2)


def _hosts_with_slots(runs: Sequence[Run], measured: set[str]) -> Iterator[Finding]:
    if "slots8" in measured:
        yield _counted(runs, "slots8", "requests that waited inside a host", _waiting_in_hosts)
        yield _against(runs, "slots8", ("direct",), "direct", WHOLE_TTFT_P99, SAME)


def _waiting_in_hosts(run: Run) -> int:
    return max(int(address["max_waiting"]) for address in run["host"]["addresses"])


def _many_streams(runs: Sequence[Run], measured: set[str]) -> Iterator[Finding]:
    if "s5000" in measured:
        yield _counted(runs, "s5000", "errors", _error_count)
        yield _against(runs, "s5000", ("nginx",), "nginx", TOKEN, 1.5)


def _long_prompts(runs: Sequence[Run], measured: set[str]) -> Iterator[Finding]:
    if "prompt200k" in measured:
        added_us = by_round(runs, "prompt200k", OWN, TTFT)
        yield Finding("added TTFT p50, µs", "prompt200k", spread(added_us.values()), 1000)


def _wait_strategies(runs: Sequence[Run], measured: set[str]) -> Iterator[Finding]:
    """Yield the aims of the wait strategies that never sleep, where these were measured beside the others."""
    peers = {run["peer"] for run in runs}
    for own in (name for name in ("ringrouter-adaptive", "ringrouter-spin") if name in peers):
        if "low" in measured:
            yield Finding(f"{own}: added token p50 / relay-c", "low", ratio(runs, "low", own, "relay-c", TOKEN), 1.0)
        if "sat-req" in measured:
            value = ratio(runs, "sat-req", own, "nginx", ANSWERS)
            yield Finding(f"{own}: answers/s / nginx", "sat-req", value, 0.6, is_least=True)
