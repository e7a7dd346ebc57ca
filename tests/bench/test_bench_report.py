"""Tables, files of distributions and pictures say what was measured."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from bench import hgrm, plot, report


def _run(peer: str, us: float, *, mode: str = "s64", buckets: dict[str, list[float]] | None = None) -> dict[str, Any]:
    times = {name: {"n": 10, "p50": us, "p99": us} for name in ("ttft_over", "ttft", "tok", "over")}
    return times | {
        "peer": peer,
        "mode": mode,
        "round": 0,
        "errors": {"http": 0},
        "unfinished": 0,
        "retried": 0,
        "ok": 10,
        "tokens_all": 1000,
        "tok_s": 100.0,
        "req_s": 1.0,
        "cpu_s": 0.01,
        "steal": 0.5,
        "stall_ms": 0.0,
        "rss": 5e6,
        "host": {"addresses": [{"max_waiting": 0}]},
        "buckets": buckets or {"ttft_over": [us, 1], "tok": [us, 3, 2 * us, 1], "over": []},
    }


def _cells(table: str, row: int) -> dict[str, str]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return dict(zip(lines[0], lines[2 + row], strict=True))


def test_the_short_table_has_direct_first_and_what_each_peer_adds_to_it() -> None:
    runs = [_run("slow", 90), _run("direct", 10), _run("quick", 40), _run("quick", 60)]
    table = report.short_table(runs)
    assert [_cells(table, row)["peer"] for row in range(3)] == ["direct", "quick", "slow"]
    assert _cells(table, 0)["s64: TTFT"] == "10"
    assert _cells(table, 1)["s64: TTFT"] == "40"
    assert _cells(table, 2)["s64: token"] == "80"
    assert _cells(table, 1)["s64: CPU/token"] == "10.0"
    assert "low: TTFT" not in table, "a mode that was not measured has no column"


def test_failures_stand_in_the_raw_file_and_are_no_runs(tmp_path: Path) -> None:
    raw = tmp_path / "raw.jsonl"
    raw.write_text('{"peer": "a", "failed": "it died"}\n{"peer": "b", "round": 0}\n', encoding="utf-8")
    assert [run["peer"] for run in report.load_runs(raw)] == ["b"]


def test_distributions_of_rounds_are_added_up() -> None:
    runs = [_run("a", 10, buckets={"tok": [1.0, 2, 3.0, 1]}), _run("a", 10, buckets={"tok": [2.0, 5, 3.0, 1]}), {}]
    assert hgrm.merged(runs, "tok") == [(1.0, 2), (2.0, 5), (3.0, 2)]
    assert hgrm.merged(runs, "over") == []


def test_percentiles_come_nearer_to_100_by_halves_and_end_with_the_largest_value() -> None:
    rows = list(hgrm.rows([(float(value), 1) for value in range(1, 1001)]))
    levels = [row.level for row in rows]
    assert levels[:7] == [0, 10, 20, 30, 40, 50, 55]
    assert levels == sorted(levels)
    assert [row.value_us for row in rows if row.level == 50] == [500]
    assert [row.value_us for row in rows if row.level == 90] == [900]
    assert rows[-1] == hgrm.Row(1000.0, 100.0, 1000)
    assert all(row.passed >= row.level * 10 for row in rows)


def test_a_file_has_the_format_of_hdrhistogram() -> None:
    lines = hgrm.text([(1.5, 3), (2.5, 1)]).splitlines()
    assert lines[0].split() == ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
    assert lines[1] == ""
    assert lines[2].split() == ["1.500", "0.000000000000", "3", "1.00"]
    assert [line for line in lines if not line.startswith("#")][-1].split() == ["2.500", "1.000000000000", "4"]
    assert lines[-3].split() == ["#[Mean", "=", "1.750,", "StdDeviation", "=", "0.433]"]
    assert lines[-2].split() == ["#[Max", "=", "2.500,", "Total", "count", "=", "4]"]


def test_everything_is_written_for_every_mode_and_peer(tmp_path: Path) -> None:
    runs = [_run(peer, us, mode=mode) for mode in ("low", "s64") for peer, us in (("direct", 10), ("ringrouter", 50))]
    said = report.publish(runs, "the tables\n", tmp_path / "out", {"machine": ["a machine"]})
    written = {file.name for file in (tmp_path / "out" / "hgrm").iterdir()}
    assert written == {
        f"{mode}-{peer}-{kind}.hgrm"
        for mode in ("low", "s64")
        for peer in ("direct", "ringrouter")
        for kind in ("ttft", "token")
    }
    assert (tmp_path / "out" / "tables.md").read_text(encoding="utf-8") == "the tables\n"
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["machine"] == ["a machine"]
    assert summary["modes"]["low"]["ringrouter"]["token_us"] == {"median": 50, "min": 50, "max": 50}
    assert any("distributions.png" in line for line in said)


def test_measured_sections_of_a_page_are_replaced_and_nothing_else() -> None:
    page = "# A\n<!-- measured short -->\nold\n<!-- end -->\nB\n<!-- measured other -->\nkept\n<!-- end -->\n"
    filled = report.filled(page, {"short": "new | table\n"})
    assert filled == page.replace("old", "\nnew | table\n")
    assert report.filled(filled, {"short": "new | table\n"}) == filled, "as often as one likes"
    with pytest.raises(ValueError, match="no line '<!-- measured NAME -->'"):
        report.filled("# A page\n", {})


def test_without_matplotlib_a_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original = builtins.__import__

    def refuse(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    said = plot.draw([_run("direct", 10)], tmp_path / "picture.png")
    assert "not drawn" in said
    assert ".[bench]" in said
    assert not (tmp_path / "picture.png").exists()


def test_a_picture_is_drawn_where_matplotlib_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="an extra: pip install '.[bench]'")
    plot.draw([_run("direct", 10), _run("ringrouter", 50)], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
