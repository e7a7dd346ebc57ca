"""Draws the requests of a trace as a waterfall for a plain terminal; pure.

Each span is a bar on one time axis that begins with the first of them. The fill shows who worked: the router, a model
host, or neither of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from router.observer.traces import conventions as names
from router.observer.traces.page import TracedRequest, TracePage
from router.observer.traces.spans import CLIENT, SERVER, Span
from router.telemetry.units import duration

WIDTH_MIN: Final = 72
"""Narrower terminals get lines of this length."""
REQUESTS_SHOWN_MAX: Final = 32
"""The newest of a trace; ``--json`` has all."""
STALLS_SHOWN_MAX: Final = 4
_LABEL_WIDTH: Final = 30
_TIME_WIDTH: Final = 10
_LEFT: Final = _LABEL_WIDTH + 2
_FILL: Final = {SERVER: "▁", CLIENT: "▓"}
_ROUTER_FILL: Final = "█"
_CLIENT_FILL: Final = "░"
_ANSWER_FILL: Final = "▒"
_FILLS: Final = {names.EXECUTE_TOOL: _CLIENT_FILL, "queue": _CLIENT_FILL, "respond": _ANSWER_FILL}
"""Of spans in which not the router works."""
_STAGES_SHOWN_MAX: Final = 4


def lines(page: TracePage, width: int) -> Iterator[str]:
    """Yield the lines of a trace for a terminal of ``width`` columns."""
    width = max(width, WIDTH_MIN)
    shown = page.requests[-REQUESTS_SHOWN_MAX:]
    begin_ns = min(span.start_wall_ns for request in shown for span in request.spans)
    end_ns = max(span.end_wall_ns for request in shown for span in request.spans)
    traces = list(dict.fromkeys(request.trace_id for request in shown))
    count = "1 request" if len(page.requests) == 1 else f"{len(page.requests):,} requests"
    yield f"trace {', '.join(traces[:3])}{' …' if len(traces) > 3 else ''}"
    yield f"{count} from {_time(begin_ns)}, {duration(end_ns - begin_ns)}, found in: {page.source}"
    if len(shown) < len(page.requests):
        yield f"the newest {len(shown)} are shown; --json has all"
    for request in shown:
        yield ""
        yield from _request_lines(request, begin_ns, max(1, end_ns - begin_ns), width)
    yield ""
    yield (
        f"{_ROUTER_FILL} the router  {_FILL[CLIENT]} a model host  {_ANSWER_FILL} the answer goes out  "
        f"{_CLIENT_FILL} waiting, or the client's tools"
    )


def _request_lines(request: TracedRequest, begin_ns: int, total_ns: int, width: int) -> Iterator[str]:
    room = width - _LEFT - _TIME_WIDTH - 1
    for span in _in_order(request.spans):
        label = _label(span) if span.kind == SERVER else f"  {_label(span)}"
        bar = _bar(span, begin_ns, total_ns, room)
        length = duration(span.end_wall_ns - span.start_wall_ns)
        yield f"{_cut(label, _LABEL_WIDTH):<{_LEFT}}{bar:<{room}} {length:>{_TIME_WIDTH}}".rstrip()
        for event in [event for event in span.events if event.name == "stall"][:STALLS_SHOWN_MAX]:
            gap_ns = round(float(str(event.attributes.get("ringrouter.gap_ms", 0))) * 1e6)
            until_ns = event.wall_ns - request.started_wall_ns
            yield f"    stall of {duration(gap_ns)}, until {duration(until_ns)}"
    yield f"  {'; '.join(_facts(request))}"
    stages = sorted(((ns, name) for name, ns in request.stages_ns.items() if ns), reverse=True)[:_STAGES_SHOWN_MAX]
    if stages:
        yield f"  longest stages: {', '.join(f'{name} {duration(ns)}' for ns, name in stages)}"
    if request.missed:
        yield f"  missed: {', '.join(request.missed)}"


def _in_order(spans: Sequence[Span]) -> list[Span]:
    """Return the whole first, then its parts by when they began."""
    whole, *parts = spans
    return [whole, *sorted(parts, key=lambda span: span.start_wall_ns)]


def _label(span: Span) -> str:
    if span.kind == CLIENT:
        where = f"→ {span.attributes.get(names.SERVER_ADDRESS, '')}"
        return f"{where} failed: {span.error}" if span.error else where
    if span.name == names.EXECUTE_TOOL:
        return "client's tools (inferred)"
    return f"{span.name}: {span.error}" if span.error else span.name


def _bar(span: Span, begin_ns: int, total_ns: int, room: int) -> str:
    first = (span.start_wall_ns - begin_ns) * room // total_ns
    end = -(-(span.end_wall_ns - begin_ns) * room // total_ns)
    first = min(first, room - 1)
    fill = _FILL.get(span.kind, _FILLS.get(span.name, _ROUTER_FILL))
    return " " * first + fill * max(1, end - first)


def _facts(request: TracedRequest) -> Iterator[str]:
    yield f"{request.outcome}{f' ({request.error})' if request.error else ''}"
    if request.request_id:
        yield f"request {request.request_id}"
    yield f"span {request.span_id}"
    if request.ttft_ns is not None:
        yield f"first token {duration(request.ttft_ns)}"
    if request.e2e_ns is not None:
        yield f"last {duration(request.e2e_ns)}"
    tokens_in = "?" if request.tokens_in is None else f"{request.tokens_in:,}"
    yield f"tokens {tokens_in} in, {request.tokens_out:,} out"
    if request.cost is not None:
        yield f"{request.cost:.6g} {request.currency}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _time(wall_ns: int) -> str:
    text = datetime.fromtimestamp(wall_ns // 1_000_000 / 1000, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
