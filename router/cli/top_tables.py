"""What ``ringrouter top`` shows, as text: the observer's state into a headline and tables. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from router.cli.top_hosts import HostState
from router.observer.state import Host, Quantiles, Slice, SlowRequest, Source, State
from router.telemetry.units import ABSENT, duration, rate, span

BAR_CHARS: Final = 20
_NO_HOSTS: Final[Mapping[str, HostState]] = {}
OVERFLOW: Final = "more values than observer.slices.values_max: the rest is in __other__"


class Table(NamedTuple):
    """A title, the heads of the columns (``<`` left, ``>`` right of each) and rows of cells."""

    title: str
    columns: Sequence[tuple[str, str]]
    rows: list[list[str]]


def headline(state: State, hosts: Mapping[str, HostState] = _NO_HOSTS) -> list[str]:
    """Return the lines above the tables: what goes through, what it costs, and what is not as it should be."""
    traffic = state.traffic
    lines = [
        "   ".join(
            [
                f"{rate(traffic.requests_per_s)} requests/s",
                _outcomes(traffic.outcomes),
                f"{rate(traffic.tokens_in_per_s)} tokens/s in, {rate(traffic.tokens_out_per_s)} out",
                f"{traffic.running_count:,} running, {traffic.waiting_count:,} waiting",
                *_money(state),
                *_bad_requests(state.sources),
            ]
        )
    ]
    barred = [f"! host {name}: {host.text}" for name, host in hosts.items() if host.is_barred]
    return [*lines, *_warnings(state), *barred]


def _outcomes(outcomes: dict[str, int]) -> str:
    total = sum(outcomes.values())
    if not total:
        return "no request ended"
    return ", ".join(f"{share(count, total)} {name}" for name, count in outcomes.items())


def _money(state: State) -> Iterator[str]:
    if state.traffic.goodput is not None:
        yield f"{state.traffic.goodput:.1%} good"
    if state.traffic.cost is not None and state.covered_s:
        yield f"{money(state.traffic.cost / state.covered_s * 60)} {state.currency}/min"


def _bad_requests(sources: Sequence[Source]) -> Iterator[str]:
    """Say how many requests could not be understood: they are of no window, and most are in no other number."""
    count = sum(source.bad_request_count or 0 for source in sources)
    if count:
        yield f"bad requests since the router's start: {count:,}"


def _warnings(state: State) -> Iterator[str]:
    observer = state.observer
    if not state.sources:
        yield "! no router has been found yet"
    for source in state.sources:
        if source.state != "alive":
            yield f"! router {source.instance} is {source.state}"
    if observer.lost_request_count or observer.lost_event_count:
        yield (
            f"! lost since the observer's start: {observer.lost_request_count:,} requests, "
            f"{observer.lost_event_count:,} token events"
        )
    if observer.journal not in {"on", "off"}:
        yield f"! journal: {observer.journal}"
    if observer.fault_count:
        yield f"! {observer.fault_count:,} faults inside the observer; its log says where"


def tables(state: State, hosts: Mapping[str, HostState] = _NO_HOSTS) -> list[Table]:
    """Return every table of the page, in its order; ``hosts`` is how hosts are, by name, as far as that is known."""
    found = [_metrics(state.metrics), _stages(state.stages), _hosts(state.hosts, hosts)]
    if state.slices is not None:
        title = f"by {state.slices.by}" + (f"   ({OVERFLOW})" if state.slices.is_overflowed else "")
        found.append(Table(title, _SLICE_COLUMNS, [_slice(row) for row in state.slices.rows]))
    found.append(Table("slowest", _SLOW_COLUMNS, [_slow(row) for row in state.slowest]))
    if len(state.sources) > 1:
        found.append(Table("routers", _SOURCE_COLUMNS, [_source(row) for row in state.sources]))
    return found


def covered(state: State) -> str:
    """Say of which time the numbers are."""
    if state.covered_s < state.window_s:
        return f"last {span(state.covered_s * 1e9)} of {span(state.window_s * 1e9)}"
    return f"last {span(state.window_s * 1e9)}"


# ---------------------------------------------------------------- the tables
_QUANTILE_COLUMNS: Final = (("n", ">"), ("mean", ">"), ("p50", ">"), ("p95", ">"), ("p99", ">"))
_SLICE_COLUMNS: Final = (
    *(("value", "<"), ("n", ">"), ("failed", ">"), ("left", ">"), ("TTFT p50", ">"), ("TTFT p95", ">")),
    *(("TPOT p50", ">"), ("early events", ">"), ("E2E p95", ">"), ("cost/response", ">"), ("longest stage", "<")),
)
_SLOW_COLUMNS: Final = (
    *(("ended", "<"), ("E2E", ">"), ("TTFT", ">"), ("most of it", "<"), ("model", "<"), ("host", "<")),
    *(("tokens", ">"), ("outcome", "<"), ("feature", "<"), ("request id", "<")),
)
_SOURCE_COLUMNS: Final = (("router", "<"), ("state", "<"), ("running", ">"), ("waiting", ">"), ("unread", ">"))


def _metrics(metrics: Sequence[Quantiles]) -> Table:
    columns = (("latency and pace", "<"), *_QUANTILE_COLUMNS)
    return Table("metrics", columns, [[metric.name, *_quantiles(metric)] for metric in metrics])


def _stages(stages: Sequence[Quantiles]) -> Table:
    total_ns = sum(stage.mean or 0.0 for stage in stages)
    columns = (("stage", "<"), *_QUANTILE_COLUMNS, ("share of the mean", "<"))
    rows = [[words(stage.name), *_quantiles(stage), _bar(stage.mean or 0.0, total_ns)] for stage in stages]
    return Table("stages", columns, rows)


def _quantiles(metric: Quantiles) -> list[str]:
    values = (metric.mean, metric.p50, metric.p95, metric.p99)
    return [f"{metric.n:,}", *(_value(value, metric.unit) for value in values)]


def _value(value: float | None, unit: str) -> str:
    if value is None or unit == "ns":
        return duration(value)
    if unit.endswith("/s"):
        return rate(value)
    return f"{value:,.0f}"


def _bar(part: float, total: float) -> str:
    if not total:
        return ""
    blocks = round(part / total * BAR_CHARS)
    return f"{part / total:>4.0%} {'█' * blocks}"


def _hosts(hosts: Sequence[Host], states: Mapping[str, HostState]) -> Table:
    columns = (
        *(("host", "<"), ("running", ">"), ("n", ">"), ("failed", ">"), ("left", ">"), ("tokens/s", ">")),
        *(("TTFT p50", ">"), ("TTFT p95", ">"), ("TPOT p50", ">"), ("cost", ">"), ("state", "<")),
    )
    seen = {host.name for host in hosts}
    rows = [[*_host(host), states[host.name].text if host.name in states else ABSENT] for host in hosts]
    rows += [_idle(name, state) for name, state in states.items() if name not in seen]
    return Table("hosts", columns, rows)


def _idle(name: str, state: HostState) -> list[str]:
    """Return the row of a host that had no request in the window."""
    return [name, f"{state.running_count:,}", "0", *([ABSENT] * 7), state.text]


def _host(host: Host) -> list[str]:
    return [
        host.name or "(none)",
        f"{host.running_count:,}",
        f"{host.request_count:,}",
        _part(host.failed_count, host.request_count),
        _part(host.left_count, host.request_count),
        rate(host.tokens_out_per_s),
        duration(host.ttft_p50_ns),
        duration(host.ttft_p95_ns),
        duration(host.tpot_p50_ns),
        money(host.cost),
    ]


def _slice(row: Slice) -> list[str]:
    return [
        row.value or "(not given)",
        f"{row.request_count:,}",
        _part(row.failed_count, row.request_count),
        _part(row.left_count, row.request_count),
        duration(row.ttft_p50_ns),
        duration(row.ttft_p95_ns),
        duration(row.tpot_p50_ns),
        f"{rate(row.early_tps_p50)}/s" if row.early_tps_p50 is not None else ABSENT,
        duration(row.e2e_p95_ns),
        money(row.cost_per_response),
        words(row.longest_stage),
    ]


def _slow(row: SlowRequest) -> list[str]:
    return [
        datetime.fromtimestamp(row.ended_wall_ns / 1e9).strftime("%H:%M:%S"),
        duration(row.e2e_ns),
        duration(row.ttft_ns),
        f"{words(row.longest_stage)} {duration(row.longest_stage_ns)}" if row.longest_stage else "",
        row.model or ABSENT,
        row.host or ABSENT,
        f"{row.tokens_out:,}",
        row.outcome,
        row.tags.get("feature_name", ""),
        row.request_id,
    ]


def _source(row: Source) -> list[str]:
    counts = (row.running_count, row.waiting_count, row.lag_records)
    return [row.instance, row.state, *(f"{count:,}" for count in counts)]


def words(stage: str) -> str:
    """Write the name of a stage as words."""
    return stage.replace("_", " ")


def _part(part: int, total: int) -> str:
    return share(part, total) if part else ABSENT


def share(part: int, total: int) -> str:
    """Write a share so that what happened never reads as 0 % and what happened not always never as 100 %."""
    percent = 100 * part / total
    if part and percent < 0.1:
        return "<0.1 %"
    if part < total and percent > 99.9:
        return ">99.9 %"
    return f"{percent:.0f} %" if percent in {0.0, 100.0} else f"{percent:.1f} %"


def money(amount: float | None) -> str:
    """Write an amount with three digits: ``0.00123``, ``1.20``, ``1,204``."""
    if amount is None:
        return ABSENT
    if amount >= 100 or not amount:
        return f"{amount:,.0f}"
    return f"{amount:.2f}" if amount >= 1 else f"{amount:.3g}"


# ---------------------------------------------------------------- as plain text
def as_text(state: State, hosts: Mapping[str, HostState] = _NO_HOSTS) -> str:
    """Return the whole page as text."""
    lines = [f"ringrouter top: {covered(state)}", "", *headline(state, hosts)]
    for table in tables(state, hosts):
        lines += ["", table.title.upper(), *text_rows(table)]
    return "\n".join(lines) + "\n"


def text_rows(table: Table) -> Iterator[str]:
    """Yield the heads of a table and then its rows, in columns."""
    heads = [name for name, _ in table.columns]
    widths = [max(len(cell) for cell in column) for column in zip(heads, *table.rows, strict=True)]
    sides = [side for _, side in table.columns]
    for cells in (heads, *table.rows):
        yield "  ".join(map(_padded, cells, sides, widths)).rstrip()


def _padded(cell: str, side: str, width: int) -> str:
    return f"{printable(cell):{side}{width}}"


def printable(text: str) -> str:
    """Return text that cannot steer a terminal: tags are what clients sent."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)
