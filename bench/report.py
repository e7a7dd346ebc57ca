"""Tables of the raw runs: medians over the rounds, with the smallest and the largest behind them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bench.harness import Run
from bench.modes import MODES

HEADINGS = (
    "mode",
    "peer",
    "TTFT p50",
    "added",
    "token p50",
    "added",
    "CPU/token",
    "tokens/s",
    "whole TTFT, ms",
    "errors",
    "unfinished",
    "retried",
    "waiting in a host",
)
LEGEND = """\
µs unless said; median of the rounds (smallest–largest).
TTFT: from the request written to the first token read, less the host's own time. token: from the host's write to the
read, every token but the first. added: less direct's. CPU/token: the router's user and system time over the tokens.
whole TTFT: with the host's time and every wait. For whole answers (sat-req, rate200) TTFT is the answer's time over the
host's, and CPU and rate are those of answers.
retried: requests that the client had to send again because a kept connection was closed. waiting in a host: most."""

Number = float | None


def load_runs(raw_file: Path) -> list[Run]:
    """Read the lines that :func:`bench.harness.measure` wrote."""
    return [json.loads(line) for line in raw_file.read_text(encoding="utf-8").splitlines()]


def table(runs: Sequence[Run]) -> str:
    """Return one Markdown table of all modes and peers, each mode's ``direct`` first."""
    rows: list[tuple[str, ...]] = [HEADINGS]
    for mode in (name for name in MODES if any(run["mode"] == name for run in runs)):
        of_mode = [run for run in runs if run["mode"] == mode]
        direct = [run for run in of_mode if run["peer"] == "direct"]
        rows += [_row(mode, peer, of_mode, direct) for peer in sorted({run["peer"] for run in of_mode})]
    return _aligned(rows)


def _row(mode: str, peer: str, of_mode: Sequence[Run], direct: Sequence[Run]) -> tuple[str, ...]:
    runs = [run for run in of_mode if run["peer"] == peer]
    first = _ttft_us if _is_streamed(runs[0]) else _overhead_us
    return (
        mode,
        peer,
        _spread(map(first, runs)),
        _added(first, runs, direct),
        _spread(map(_token_us, runs)),
        _added(_token_us, runs, direct),
        _spread(map(_cpu_us, runs), digits=1),
        _spread(map(_rate, runs)),
        _spread((_p50_us(run, "ttft", 1e-3) for run in runs), digits=1),
        _errors(runs),
        str(sum(run["unfinished"] for run in runs)),
        str(sum(run["retried"] for run in runs)),
        str(max(address["max_waiting"] for run in runs for address in run["host"]["addresses"])),
    )


def _is_streamed(run: Run) -> bool:
    return "mode=stream" in MODES[run["mode"]].load


def _p50_us(run: Run, name: str, factor: float = 1.0) -> Number:
    return run[name]["p50"] * factor if run[name]["n"] else None


def _ttft_us(run: Run) -> Number:
    return _p50_us(run, "ttft_over")


def _overhead_us(run: Run) -> Number:
    return _p50_us(run, "over")


def _token_us(run: Run) -> Number:
    return _p50_us(run, "tok")


def _cpu_us(run: Run) -> Number:
    """CPU over all tokens (or answers) of the run, warm-up included: the CPU is that of the whole run too."""
    count = run["tokens_all"] if _is_streamed(run) else run["ok"]
    return 1e6 * run["cpu_s"] / count if run["cpu_s"] and count else None


def _rate(run: Run) -> Number:
    return float(run["tok_s"] if _is_streamed(run) else run["req_s"])


def _spread(values: Iterable[Number], digits: int = 0) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    middle = f"{statistics.median(known):,.{digits}f}"
    return middle if len(known) == 1 else f"{middle} ({min(known):,.{digits}f}–{max(known):,.{digits}f})"


def _added(value: Callable[[Run], Number], runs: Sequence[Run], direct: Sequence[Run]) -> str:
    """Return the difference of the medians: of percentiles, not a percentile of differences."""
    own = [v for run in runs if (v := value(run)) is not None]
    base = [v for run in direct if (v := value(run)) is not None]
    if runs[0]["peer"] == "direct" or not own or not base:
        return "-"
    return f"{statistics.median(own) - statistics.median(base):+,.0f}"


def _errors(runs: Sequence[Run]) -> str:
    totals: dict[str, int] = {}
    for run in runs:
        for kind, count in run["errors"].items():
            totals[kind] = totals.get(kind, 0) + count
    return ", ".join(f"{kind} {count}" for kind, count in totals.items() if count) or "0"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def disturbance(runs: Sequence[Run]) -> str:
    """Return what the machine took away during the runs: p99 and beyond is mostly that."""
    stolen = [run["steal"] for run in runs]
    stood_ms = [run["stall_ms"] for run in runs]
    return (
        f"Stolen by the hypervisor: median {statistics.median(stolen):.1f} %, largest {max(stolen):.1f} % of a run.\n"
        f"Machine stood still: median {statistics.median(stood_ms):.0f} ms, largest {max(stood_ms):.0f} ms of a run."
    )


def line(run: Run) -> str:
    """Return one run in one line, for those who wait."""
    first = _ttft_us(run) if _is_streamed(run) else _overhead_us(run)
    numbers = (("TTFT", first, "µs"), ("token", _token_us(run), "µs"), ("CPU", _cpu_us(run), "µs/token"))
    text = "  ".join(f"{name} {value:9,.1f} {unit}" for name, value, unit in numbers if value is not None)
    return f"round {run['round'] + 1}  {run['mode']:8s} {run['peer']:11s} {text}  errors {_errors([run])}"
