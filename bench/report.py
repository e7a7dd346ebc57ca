"""Tables of the raw runs: medians over the rounds, with the smallest and the largest behind them; and their files."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import hgrm, plot
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
    """Read the lines that :func:`bench.harness.measure` wrote, without the failures."""
    lines = map(json.loads, raw_file.read_text(encoding="utf-8").splitlines())
    return [run for run in lines if "failed" not in run]


def table(runs: Sequence[Run]) -> str:
    """Return one Markdown table of all modes and peers, each mode's ``direct`` first."""
    rows: list[tuple[str, ...]] = [HEADINGS]
    for mode in (name for name in MODES if any(run["mode"] == name for run in runs)):
        of_mode = [run for run in runs if run["mode"] == mode]
        direct = [run for run in of_mode if run["peer"] == "direct"]
        rows += [_row(mode, peer, of_mode, direct) for peer in _ordered(of_mode, mode)]
    return aligned(rows)


def _ordered(runs: Sequence[Run], mode: str) -> list[str]:
    """Return the peers, ``direct`` first, then by their time to the first token (or the whole answer's) in a mode."""

    def order(peer: str) -> tuple[bool, float]:
        of_peer = (run for run in runs if run["peer"] == peer and run["mode"] == mode)
        known = [value for run in of_peer if (value := ttft_us(run) or overhead_us(run)) is not None]
        return peer != "direct", statistics.median(known) if known else float("inf")

    return sorted({run["peer"] for run in runs}, key=order)


def short_table(runs: Sequence[Run], headings: Container[str] | None = None) -> str:
    """Return one row for each peer, one column for what matters in each mode; medians only.

    ``headings`` names the columns that are wanted; None: all. A mode that was not measured has none.
    """
    wanted = [column for column in SHORT_COLUMNS if headings is None or column.heading in headings]
    columns = [column for column in wanted if any(run["mode"] == column.mode for run in runs)]
    if not columns:
        return ""
    rows: list[tuple[str, ...]] = [("peer", *(column.heading for column in columns), "RSS, MB")]
    for peer in _ordered(runs, columns[0].mode):
        cells = [_short_cell(runs, peer, column) for column in columns]
        resident_mb = max(run["rss"] for run in runs if run["peer"] == peer) / 1e6
        rows.append((peer, *cells, f"{resident_mb:,.0f}" if resident_mb else "-"))
    return aligned(rows)


def _short_cell(runs: Sequence[Run], peer: str, column: Column) -> str:
    own = _known(runs, peer, column)
    base = _known(runs, "direct", column) if column.is_added else []
    if not own:
        return "-"
    added = statistics.median(own) - (statistics.median(base) if base and peer != "direct" else 0)
    return f"{added:,.{column.digits}f}"


def _known(runs: Sequence[Run], peer: str, column: Column) -> list[float]:
    of_peer = (run for run in runs if run["mode"] == column.mode and run["peer"] == peer)
    return [value for run in of_peer if (value := column.value(run)) is not None]


def _row(mode: str, peer: str, of_mode: Sequence[Run], direct: Sequence[Run]) -> tuple[str, ...]:
    runs = [run for run in of_mode if run["peer"] == peer]
    first = ttft_us if is_streamed(runs[0]) else overhead_us
    return (
        mode,
        peer,
        _spread(map(first, runs)),
        _added(first, runs, direct),
        _spread(map(token_us, runs)),
        _added(token_us, runs, direct),
        _spread(map(cpu_us, runs), digits=1),
        _spread(map(rate, runs)),
        _spread(map(_whole_ttft_ms, runs), digits=1),
        _errors(runs),
        str(sum(run["unfinished"] for run in runs)),
        str(sum(run["retried"] for run in runs)),
        str(max(address["max_waiting"] for run in runs for address in run["host"]["addresses"])),
    )


def is_streamed(run: Run) -> bool:
    """Whether the answers were streams."""
    return "mode=stream" in MODES[run["mode"]].load


def _p50_us(run: Run, name: str, factor: float = 1.0) -> Number:
    return run[name]["p50"] * factor if run[name]["n"] else None


def ttft_us(run: Run) -> Number:
    """Return the median time to the first token less the host's own, in µs; None where nothing was streamed."""
    return _p50_us(run, "ttft_over")


def overhead_us(run: Run) -> Number:
    """Return the median time of a whole answer less the host's own, in µs; None where answers were streamed."""
    return _p50_us(run, "over")


def token_us(run: Run) -> Number:
    """Return the median time from the host's write of a token to the client's read, in µs."""
    return _p50_us(run, "tok")


def cpu_us(run: Run) -> Number:
    """Return the CPU in µs over all tokens (or answers) of the run, warm-up included: so is the CPU."""
    count = run["tokens_all"] if is_streamed(run) else run["ok"]
    return 1e6 * run["cpu_s"] / count if run["cpu_s"] and count else None


def rate(run: Run) -> Number:
    """Return tokens per second, or whole answers per second where nothing is streamed."""
    return float(run["tok_s"] if is_streamed(run) else run["req_s"])


def _whole_ttft_ms(run: Run) -> Number:
    return _p50_us(run, "ttft", 1e-3)


class Column(NamedTuple):
    """A column of :func:`short_table`; ``is_added``: less ``direct``'s."""

    heading: str
    mode: str
    value: Callable[[Run], Number]
    is_added: bool = True
    digits: int = 0


SHORT_COLUMNS = (
    *(Column(f"{mode}: TTFT", mode, ttft_us) for mode in ("low", "s64", "s256", "close64", "prompt200k")),
    *(Column(f"{mode}: token", mode, token_us) for mode in ("low", "s64", "burst64", "s256", "s1000", "s5000")),
    *(Column(f"{mode}: CPU/token", mode, cpu_us, is_added=False, digits=1) for mode in ("s64", "s256")),
    Column("slots8: whole TTFT, ms", "slots8", _whole_ttft_ms, is_added=False),
    Column("sat-tok: tokens/s", "sat-tok", rate, is_added=False),
    Column("sat-req: answers/s", "sat-req", rate, is_added=False),
)
SHORT_LEGEND = """\
µs added to direct's (row direct: absolute), medians of the rounds at p50, unless the column says otherwise."""


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


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the headings first, as a Markdown table that reads well as plain text too."""
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
    first = ttft_us(run) if is_streamed(run) else overhead_us(run)
    numbers = (("TTFT", first, "µs"), ("token", token_us(run), "µs"), ("CPU", cpu_us(run), "µs/token"))
    text = "  ".join(f"{name} {value:9,.1f} {unit}" for name, value, unit in numbers if value is not None)
    return f"round {run['round'] + 1}  {run['mode']:10s} {run['peer']:13s} {text}  errors {_errors([run])}"


def filled(text: str, sections: Mapping[str, str]) -> str:
    """Return a page with its measured sections replaced: what stands between two comments, on lines of their own.

    ``<!-- measured NAME -->`` begins a section, ``<!-- end -->`` ends it. A name that ``sections`` lacks is left as it
    is; ValueError for a page without any section.
    """

    def replaced(match: re.Match[str]) -> str:
        if match["name"] not in sections:
            return match[0]
        return f"<!-- measured {match['name']} -->\n\n{sections[match['name']].strip()}\n\n<!-- end -->\n"

    result, count = _SECTION.subn(replaced, text)
    if not count:
        raise ValueError("the page has no line '<!-- measured NAME -->' with a later '<!-- end -->'")
    return result


_SECTION = re.compile(r"<!-- measured (?P<name>[a-z-]+) -->\n.*?<!-- end -->\n", re.DOTALL)


def summary(runs: Sequence[Run]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return mode → peer → quantity → median, smallest, largest and number of rounds, for programs."""
    values: dict[str, Callable[[Run], Number]] = {
        "ttft_us": ttft_us,
        "answer_us": overhead_us,
        "token_us": token_us,
        "cpu_us": cpu_us,
        "rate_per_s": rate,
        "whole_ttft_ms": _whole_ttft_ms,
        "stolen_percent": lambda run: float(run["steal"]),
    }
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for mode, peer in dict.fromkeys((run["mode"], run["peer"]) for run in runs):
        of_peer = [run for run in runs if (run["mode"], run["peer"]) == (mode, peer)]
        quantities = {name: _measured(map(value, of_peer)) for name, value in values.items()}
        result.setdefault(mode, {})[peer] = {
            **{name: found for name, found in quantities.items() if found},
            "errors": sum(sum(run["errors"].values()) for run in of_peer),
            "retried": sum(run["retried"] for run in of_peer),
            "rounds": len(of_peer),
        }
    return result


def _measured(values: Iterable[Number]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    return {"median": statistics.median(known), "min": min(known), "max": max(known)} if known else None


def publish(runs: Sequence[Run], text: str, out: Path, facts: Mapping[str, Any]) -> list[str]:
    """Write everything but the raw lines into ``out``; returns a line for each thing written, or why it is not.

    ``tables.md`` holds ``text``, ``summary.json`` the facts and :func:`summary`, ``hgrm/`` the distributions in the
    format of HdrHistogram, ``distributions.png`` their picture.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "tables.md").write_text(text, encoding="utf-8")
    summary_text = json.dumps({**facts, "modes": summary(runs)}, indent=1, ensure_ascii=False)
    (out / "summary.json").write_text(f"{summary_text}\n", encoding="utf-8")
    count = hgrm.write_all(runs, out / "hgrm")
    picture = out / "distributions.png"
    return [
        f"{out / 'tables.md'}: the tables; {out / 'summary.json'}: the same for programs",
        f"{out / 'hgrm'}: {count} distributions in HdrHistogram's format, µs",
        plot.draw(runs, picture),
    ]
