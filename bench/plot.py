"""A picture of the latency distributions: one row for each mode, one line for each peer.

The percentile axis is that of HdrHistogram's plots: equal distances for 90, 99 and 99.9 %, so that the tail shows.
This is the only module that uses matplotlib; without it there is no picture, and everything else is as always.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import hgrm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEADINGS = {
    "ttft_over": "first token, less the host's time",
    "tok": "further tokens",
    "over": "whole answer, less the host's time",
}
NINES_MAX = 4
"""The axis ends at 99.99 %: a run has some ten thousand tokens."""
OWN_NAME = "ringrouter"


def draw(runs: Sequence[dict[str, Any]], file: Path) -> str:
    """Draw the distributions into ``file``; returns a line that says so, or why there is no picture."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - a second to load, and optional
    except ImportError:
        return f"{file}: not drawn, matplotlib is missing: pip install 'ringrouter[bench]', or '.[bench]' in a clone"
    modes = list(dict.fromkeys(run["mode"] for run in runs))
    peers = list(dict.fromkeys(run["peer"] for run in sorted(runs, key=lambda run: str(run["peer"]))))
    figure = Figure(figsize=(13, 3.6 * len(modes)), layout="constrained")
    axes = figure.subplots(len(modes), 2, squeeze=False)
    for row, mode in zip(axes, modes, strict=True):
        of_mode = [run for run in runs if run["mode"] == mode]
        kinds = [kind for kind in hgrm.KINDS if hgrm.merged(of_mode, kind)]
        for axis, kind in zip(row, kinds, strict=False):
            _draw_axis(axis, of_mode, kind, peers, f"{mode}: {HEADINGS[kind]}")
        for axis in row[len(kinds) :]:
            axis.set_visible(False)
    figure.savefig(file, dpi=110)
    return f"{file}: their picture"


def _draw_axis(axis: Axes, runs: Sequence[dict[str, Any]], kind: str, peers: Sequence[str], title: str) -> None:
    for index, peer in enumerate(peers):
        buckets = hgrm.merged([run for run in runs if run["peer"] == peer], kind)
        if not buckets:
            continue
        shown = [row for row in hgrm.rows(buckets) if row.level < 100]
        is_own = peer.startswith(OWN_NAME)
        axis.plot(
            [100 / (100 - row.level) for row in shown],
            [row.value_us for row in shown],
            label=peer,
            color=f"C{index}",
            linewidth=2.2 if is_own else 1.1,
            linestyle="-" if peer != "direct" else ":",
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(1, 10**NINES_MAX)
    axis.set_xticks([1, 2, *(10**n for n in range(1, NINES_MAX + 1))])
    axis.set_xticklabels(
        ["0", "50 %", "90 %", *(f"99{'.' * (n > 2)}{'9' * (n - 2)} %" for n in range(2, NINES_MAX + 1))]
    )
    axis.set_ylabel("µs")
    axis.set_title(title, fontsize=10)
    axis.grid(visible=True, which="both", alpha=0.25)
    axis.legend(fontsize=8)
