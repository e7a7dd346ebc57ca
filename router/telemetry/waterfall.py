"""Draws where the time of one request went, for a plain terminal.

Each stage (:mod:`router.stamps`) is a bar on one time axis that begins when the request was read. Who held the request
shows in the fill: the router, the model host, or neither (the client's network, the waiting room, a failed attempt).
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from router.stamps import STAGES, STAMPS, normalise
from router.telemetry.units import duration, rate

WIDTH_MIN: Final = 60
"""Narrower terminals get lines of this length: a bar needs some room to say anything."""
_LABEL_WIDTH: Final = 18
_TIME_WIDTH: Final = 9
_LEFT: Final = 2 + _LABEL_WIDTH + _TIME_WIDTH + 2
_TICK_CHARS: Final = 11
"""Least distance of two ticks: the longest label and a space."""

_FILL: Final = {"router": "█", "host": "▓", "other": "░"}
_COLOUR: Final = {"router": "36", "host": "32", "other": "33", "failed": "31", "strong": "1", "faint": "2"}
_HELD_BY: Final = dict.fromkeys(STAGES, "router") | {
    "upload": "other",
    "queue": "other",
    "retry": "other",
    "host_first_byte": "host",
    "host_first_token": "host",
    "decode": "host",
    "tail": "other",
}
# Each stage ends at the stamp of the same position after the first and begins where the one before ended, but for
# decode, which does not wait until the client has taken the first token.
_ENDS_AT: Final = dict(zip(STAGES, STAMPS[1:-1], strict=True))
_BEGINS_AT: Final = dict(zip(STAGES, STAMPS[:-2], strict=True)) | {"decode": "tok1"}


class _Bar(NamedTuple):
    label: str
    begin_ns: int
    end_ns: int
    held_by: str
    happened: bool


class _Paint:
    """Adds terminal colours, or nothing."""

    def __init__(self, colour: bool) -> None:
        self._colour = colour

    def __call__(self, name: str, text: str) -> str:
        return f"\x1b[{_COLOUR[name]}m{text}\x1b[0m" if self._colour and text else text


def render(done: Mapping[str, Any], width: int = 80, colour: bool = False) -> str:
    """Return the waterfall of a finished request, as :class:`router.telemetry.reader.DoneReader` gives it.

    ``width`` is that of the terminal in columns, at least :data:`WIDTH_MIN`; ``colour`` adds ANSI colours. The text has
    several lines and no line end at its end.
    """
    paint = _Paint(colour)
    width = max(width, WIDTH_MIN)
    room = width - _LEFT
    bars = _bars(done)
    total_ns = max(1, *(bar.end_ns for bar in bars))
    egress = bars[STAGES.index("egress")]
    first_column = _column(egress.end_ns, total_ns, room) if egress.happened else None
    title = "strong" if done["outcome"] == "ok" else "failed"
    lines = [*(paint(title, line) for line in _wrapped(_title(done), width)), "", *_axis(total_ns, room, paint)]
    lines += [_bar_line(bar, total_ns, room, first_column, paint) for bar in bars]
    if first_column is not None:
        lines.append(_first_token_line(first_column, room, paint))
    lines += ["", _legend(paint), "", *_facts(done), *_troubles(done, width)]
    return "\n".join(line.rstrip() for line in lines)


def _bars(done: Mapping[str, Any]) -> list[_Bar]:
    stamps: Mapping[str, int] = done["stamps"]
    at = dict(zip(STAMPS, normalise([stamps[name] for name in STAMPS]), strict=True))
    recv = at["recv"]
    bars = [
        _Bar(
            stage.replace("_", " "),
            at[_BEGINS_AT[stage]] - recv,
            at[_ENDS_AT[stage]] - recv,
            _HELD_BY[stage],
            stamps[_ENDS_AT[stage]] > 0,
        )
        for stage in STAGES
    ]
    if done["outcome"] != "ok":
        bars.append(_Bar("until it ended", at["outN"] - recv, at["done"] - recv, "other", happened=True))
    return bars


def _title(done: Mapping[str, Any]) -> str:
    where = f"at {done['host']}" if done["host"] else "at no host"
    how = [flag for flag in ("stream", "folded") if flag in done["flags"]]
    outcome = done["outcome"] if done["outcome"] == "ok" else f"{done['outcome']}: {done['error']}"
    return " · ".join(part for part in (done["endpoint"], done["model"], where, *how, outcome) if part)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width - 2, initial_indent="  ", subsequent_indent="    ")


def _column(ns: int, total_ns: int, room: int) -> int:
    """Return the column of a time on the axis, 0 to ``room``."""
    return round(ns * room / total_ns)


def _axis(total_ns: int, room: int, paint: _Paint) -> list[str]:
    """Draw labels and ticks at round times."""
    step = _round_step(total_ns * _TICK_CHARS / room)
    labels, line = [" "] * (room + _TICK_CHARS), ["─"] * room
    for tick in range(int(total_ns // step) + 1):
        column = _column(round(tick * step), total_ns, room)
        text = _tick_text(tick * step)
        if column >= room or (tick and column + len(text) > room):
            break
        line[column] = "┬" if column else "┌"
        labels[column : column + len(text)] = text
    indent = " " * _LEFT
    return [paint("faint", indent + "".join(labels).rstrip()), paint("faint", indent + "".join(line))]


def _round_step(least_ns: float) -> float:
    """Return the smallest of 1, 2, 5, 10, 20, ... that is at least ``least_ns``."""
    power = 10.0 ** math.floor(math.log10(max(least_ns, 1.0)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least_ns)


def _tick_text(ns: float) -> str:
    if not ns:
        return "0"
    scale, unit = next(
        (scale, unit) for scale, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1, "ns")) if ns >= scale
    )
    return f"{ns / scale:g} {unit}"


def _bar_line(bar: _Bar, total_ns: int, room: int, first_column: int | None, paint: _Paint) -> str:
    length_ns = bar.end_ns - bar.begin_ns
    left = f"  {bar.label:<{_LABEL_WIDTH}}{duration(length_ns if bar.happened else None):>{_TIME_WIDTH}}  "
    cells = [" "] * (room + 1)
    if first_column is not None:
        cells[first_column] = "┊"
    begin, end = _column(bar.begin_ns, total_ns, room), _column(bar.end_ns, total_ns, room)
    if not length_ns:
        return paint("faint", left) + "".join(cells[:room])
    if begin == end:  # too short for a cell: still visible
        begin = min(begin, room - 1)
        end = begin + 1
        fill = "▏"
    else:
        fill = _FILL[bar.held_by] * (end - begin)
    return left + "".join(cells[:begin]) + paint(bar.held_by, fill) + "".join(cells[end:room])


def _first_token_line(column: int, room: int, paint: _Paint) -> str:
    text = "first token with the client"
    column = min(column, room - 1)
    if column + 2 + len(text) <= room:
        return " " * (_LEFT + column) + paint("strong", f"▲ {text}")
    return " " * (_LEFT + column - len(text) - 1) + paint("strong", f"{text} ▲")


def _legend(paint: _Paint) -> str:
    names = (("router", "router"), ("host", "model host"), ("other", "client, waiting, retries"))
    return "  " + "   ".join(f"{paint(key, _FILL[key])} {name}" for key, name in names) + "   ▏ too short to draw"


def _facts(done: Mapping[str, Any]) -> list[str]:
    """List what the bars add up to, each with what it means."""
    rows = [
        ("TTFT", duration(done["ttft_ns"]), "the client's wait for its first token"),
        ("TPOT", duration(done["tpot_ns"]), _tpot_meaning(done["tpot_ns"])),
        ("E2E", duration(done["e2e_ns"]), "the client's wait for its last token"),
        ("first 2 s", _tokens(done["visible_2s"]), _early_meaning(done)),
        ("router overhead", duration(done["router_overhead_ns"]), _overhead_meaning(done)),
        (
            "prompt",
            _tokens(done["n_in"]),
            f"{done['n_cached']:,} of them from the host's cache" if done["n_cached"] else "",
        ),
        ("answer", _tokens(done["n_out"]), _answer_meaning(done)),
    ]
    if done.get("cache", "none") != "none":  # a client knows its own request without what the router decided
        rows.append(("cache", done["cache"], _cache_meaning(done)))
    if done.get("tool_count"):
        rows.append(("tools", f"{done['tool_count']:,}", f"filled in by the router: {done['tool_bytes']:,} bytes"))
    return [f"  {name:<15}{value:>12}   {meaning}" for name, value, meaning in rows]


def _troubles(done: Mapping[str, Any], width: int) -> list[str]:
    """List the attempts that failed and what was said of the end."""
    texts = [f"a try at {attempt['host']} failed: {attempt['error']}" for attempt in done["failed_attempts"]]
    if done["message"]:
        texts.append(done["message"])
    return [line for text in texts for line in _wrapped(text, width)]


def _tokens(count: int) -> str:
    return f"{count:,} token{'' if count == 1 else 's'}"


def _tpot_meaning(tpot_ns: float | None) -> str:
    meaning = "for each token after the first"
    return f"{meaning}: {rate(1e9 / tpot_ns)} tokens/s" if tpot_ns else meaning


def _early_meaning(done: Mapping[str, Any]) -> str:
    pace = f"; pace {rate(done['early_tps'])} tokens/s" if done["early_tps"] is not None else ""
    return f"with the client by then{pace}"


def _overhead_meaning(done: Mapping[str, Any]) -> str:
    overhead_ns, ttft_ns = done["router_overhead_ns"], done["ttft_ns"]
    if overhead_ns is None or not ttft_ns:
        return "the router's own share of TTFT"
    return f"the router's own share of TTFT: {100 * overhead_ns / ttft_ns:.2g} %"


def _cache_meaning(done: Mapping[str, Any]) -> str:
    hits, misses, saved_us = done["cache_hits"], done["cache_misses"], done["saved_us"]
    found = f"{hits:,} of {hits + misses:,} found" if hits + misses > 1 else ""
    saved = f"{duration(saved_us * 1000)} sooner than a host" if saved_us else ""
    return ", ".join(part for part in (found, saved) if part)


def _answer_meaning(done: Mapping[str, Any]) -> str:
    if "n_out_estimated" in done["flags"]:
        return "events counted: the host reported no usage"
    return f"{done['n_reasoning']:,} of them reasoning" if done["n_reasoning"] else ""
