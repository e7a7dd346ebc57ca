"""Requests are found by id in the journal, in Parquet and in the rings, and drawn."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import msgspec
import pytest

from router import cli
from router.cli import trace_drawing
from router.config import JournalConfig
from router.observer import columns, parquet, segments
from router.observer.journal import Journal
from router.observer.process import Observer
from router.observer.rows import RequestRow, RowCost, RowStall
from router.observer.traces import find
from router.observer.traces.page import SCHEMA, TooManySearchesError, TracePage, page_of
from tests.observer.test_traces_spans import CALLER, NAMING, changed, row
from tests.support.request_rows import attempt

MS = 1_000_000
T0_WALL_NS = 1_700_000_000_000_000_000
COST = RowCost(0.25, None, 5, None, "USD", "occupancy", "")


def told(seq: int, **given: Any) -> RequestRow:
    tags = {"request_id": f"r-{seq}", "user_id": "ann", "tier": "gold"}
    values = {"tags": tags, "cost": COST, "trace_id": f"{seq:032x}"} | given
    return changed(row(), request_seq=seq, done_seq=seq, **values)


def written(directory: Path, rows: list[RequestRow]) -> Path:
    journal = Journal(directory, JournalConfig())
    journal.append(rows)
    journal.close()
    (path,) = segments.segment_paths(directory)
    return path


@pytest.mark.parametrize("wanted", ["trace", "request"])
def test_what_an_observer_did_not_keep_of_a_trace_comes_from_disk(wanted: str) -> None:
    kept, other = changed(told(1, cost=None), **CALLER), changed(told(2), **CALLER)
    traces = SimpleNamespace(find=lambda _: [kept], naming=NAMING, breaches=lambda _: ())
    searched = []

    def search(identity: str) -> tuple[list[RequestRow], str]:
        searched.append(identity)
        return [changed(told(1), **CALLER), other], find.JOURNAL

    one: Any = SimpleNamespace(
        _pipeline=SimpleNamespace(traces=traces), _searching=asyncio.Lock(), _search=search, _search_count=0
    )
    page = asyncio.run(Observer.trace(one, "ab" * 16 if wanted == "trace" else "r-1"))
    assert page is not None
    if wanted == "trace":
        assert [(each.request_seq, each.cost) for each in page.requests] == [(1, None), (2, COST.amount)]
        assert page.source == find.JOURNAL
    else:
        assert (len(page.requests), page.source, searched) == (1, "observer", []), "it has all of it"


def test_a_flood_of_unknown_ids_is_refused_and_not_queued() -> None:
    traces = SimpleNamespace(find=lambda _: [], naming=NAMING, breaches=lambda _: ())
    one: Any = SimpleNamespace(
        _pipeline=SimpleNamespace(traces=traces), _searching=asyncio.Lock(), _search=lambda _: ([], ""), _search_count=0
    )

    async def ask(count: int) -> list[TracePage | BaseException | None]:
        return await asyncio.gather(*(Observer.trace(one, f"r-{i}") for i in range(count)), return_exceptions=True)

    refused = [isinstance(each, TooManySearchesError) for each in asyncio.run(ask(50))]
    assert refused == [False] * 8 + [True] * 42
    assert asyncio.run(ask(1)) == [None], "afterwards all is as before"


class TestJournal:
    def test_by_request_and_by_trace_as_it_was(self, tmp_path: Path) -> None:
        rows = [told(1), told(2), changed(told(3), **CALLER), changed(told(4), **CALLER)]
        written(tmp_path, rows)
        assert find.in_journal("r-2", tmp_path) == [rows[1]]
        assert find.in_journal(rows[0].trace_id, tmp_path) == [rows[0]]
        assert find.in_journal("ab" * 16, tmp_path) == rows[2:]
        assert find.in_journal("r-9", tmp_path) == []
        assert find.in_journal("gold", tmp_path) == [], "only ids are looked for"

    def test_in_parquet_as_it_was(self, tmp_path: Path) -> None:
        full = told(
            1, tool_ns=7, tool_after="ab-cd", stalls=(RowStall(5, 3),), calls_tools=True,
            attempts=(attempt("gpu-0", 5, 9),), n_in=None,
        )  # fmt: skip
        path = written(tmp_path, [full, told(2, cost=None)])
        parquet.convert(tmp_path, path)
        path.unlink()
        assert find.in_journal("r-1", tmp_path) == [full]
        assert find.in_journal("r-2", tmp_path) == [told(2, cost=None)]

    def test_a_callers_trace_is_whole_though_half_of_it_is_in_parquet(self, tmp_path: Path) -> None:
        early, late = changed(told(1), **CALLER), changed(told(2), **CALLER)
        path = written(tmp_path, [early])
        parquet.convert(tmp_path, path)
        path.unlink()
        written(tmp_path, [late])
        assert [each.request_seq for each in find.in_journal("ab" * 16, tmp_path)] == [1, 2]

    def test_of_more_than_are_shown_the_newest_are(self, tmp_path: Path) -> None:
        count = find.ROWS_PER_ID_MAX + 40
        rows = [changed(told(seq, start_wall_ns=T0_WALL_NS + seq), **CALLER) for seq in range(count)]
        path = written(tmp_path, rows)
        parquet.convert(tmp_path, path)
        path.unlink()
        found = [each.request_seq for each in find.in_journal("ab" * 16, tmp_path)]
        assert found == list(range(40, count))

    def test_in_parquet_of_an_earlier_version(self, tmp_path: Path) -> None:
        parquet.convert(tmp_path, written(tmp_path, [told(1, tool_ns=7, cost=None)]))
        (path,) = segments.parquet_paths(tmp_path)
        older = path.with_suffix(".tmp")
        duckdb.sql(
            f"COPY (SELECT * EXCLUDE (tool_ns, tool_after, calls_tools, stalls, decision) "
            f"FROM read_parquet('{path}')) TO '{older}' (FORMAT parquet)"
        )
        older.replace(path)
        for segment in segments.segment_paths(tmp_path):
            segment.unlink()
        assert find.in_journal("r-1", tmp_path) == [told(1, cost=None)]

    def test_a_damaged_file_is_passed_over(self, tmp_path: Path) -> None:
        parquet.convert(tmp_path, written(tmp_path, [told(1)]))
        (path,) = segments.parquet_paths(tmp_path)
        damaged = path.with_name(path.name.replace("-0000", "-9000"))
        shutil.copy(path, damaged)
        raw = bytearray(damaged.read_bytes())
        raw[4:-8] = bytes(len(raw) - 12)
        damaged.write_bytes(raw)
        for segment in segments.segment_paths(tmp_path):
            segment.unlink()
        assert [each.request_id for each in find.in_journal("r-1", tmp_path)] == ["r-1"]

    def test_lines_that_cannot_be_read_are_passed_over(self, tmp_path: Path) -> None:
        path = written(tmp_path, [told(1)])
        with path.open("ab") as file:
            file.write(b'{"request_id": "r-1", "trace\n' + columns.encode_line(told(1))[:-5])
        assert [each.request_seq for each in find.in_journal("r-1", tmp_path)] == [1]

    def test_where_there_is_no_journal_there_is_nothing(self, tmp_path: Path) -> None:
        assert find.in_journal("r-1", tmp_path / "none") == []
        assert find.in_rings("r-1", [tmp_path / "none"]) == []


class TestDrawing:
    def page(self, *rows: RequestRow) -> TracePage:
        return page_of("r-1", "journal", rows, NAMING, lambda _: ["fast"])

    @pytest.mark.parametrize("width", [10, 72, 200])
    def test_every_span_has_a_bar_in_its_place(self, width: int) -> None:
        one = changed(told(1), tool_ns=100 * MS, stalls=(RowStall(120 * MS, 110 * MS),))
        lines = list(trace_drawing.lines(self.page(one), width))
        assert max(map(len, lines)) <= max(width, trace_drawing.WIDTH_MIN) + 40
        text = "\n".join(lines)
        for word in ("receive", "queue", "route", "→ gpu-1", "respond", "client's tools (inferred)", "stall of 110 ms"):
            assert word in text
        assert "missed: fast" in text
        assert "0.25 USD" in text
        tools = next(line for line in lines if "inferred" in line)
        host = next(line for line in lines if "→ gpu-1" in line)
        assert tools.index("░") < host.index("▓"), "what came first stands to the left"
        room = max(width, trace_drawing.WIDTH_MIN) - trace_drawing._LEFT - trace_drawing._TIME_WIDTH - 1
        assert tools.count("░") == pytest.approx(room * 100 / (100 + one.duration_ns / MS), abs=2)

    def test_many_requests_are_cut_and_counted(self) -> None:
        lines = list(trace_drawing.lines(self.page(*(told(seq) for seq in range(60))), 100))
        assert any("60 requests" in line for line in lines)
        assert sum("receive" in line for line in lines) == trace_drawing.REQUESTS_SHOWN_MAX

    def test_the_page_is_json_with_a_schema(self) -> None:
        page = self.page(told(1))
        again = msgspec.json.decode(msgspec.json.encode(page), type=TracePage)
        assert again == page
        assert page.schema == SCHEMA
        assert "ann" not in msgspec.json.encode(page).decode(), "users are hashed here too"


class TestCommand:
    def run(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
        status = cli.main(["trace", *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    def test_without_an_observer_the_journal_is_read(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        written(tmp_path / segments.JOURNAL, [told(1)])
        status, out, _ = self.run(capsys, "r-1", "--data-dir", str(tmp_path), "--run-dir", str(tmp_path))
        assert status == 0
        assert "request r-1" in out
        assert "found in: journal" in out

    def test_what_is_not_kept_is_said_in_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        status, out, err = self.run(capsys, "nobody", "--data-dir", str(tmp_path), "--run-dir", str(tmp_path))
        assert (status, out) == (1, "")
        assert err.count("\n") == 1
        assert "'nobody'" in err

    def test_an_id_that_records_hold_cut_is_found_whole(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        whole = "é" * 40
        written(tmp_path / segments.JOURNAL, [told(1, tags={"request_id": find.as_recorded(whole)})])
        status, out, _ = self.run(capsys, whole, "--data-dir", str(tmp_path), "--run-dir", str(tmp_path))
        assert (status, "é" * 32 in out, "é" * 33 in out) == (0, True, False)

    @pytest.mark.parametrize("where", ["--data-dir", "--url"])
    def test_an_id_that_is_no_text_is_not_kept(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
    ) -> None:
        value = str(tmp_path) if where == "--data-dir" else "127.0.0.1:9"
        status, out, err = self.run(capsys, "\udcff", where, value)
        assert (status, out) == (1 if where == "--data-dir" else 2, "")
        assert err.count("\n") == 1

    def test_without_the_extra_one_line_says_what_to_install(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr("router.observer.traces.book", raising=False)
        monkeypatch.setitem(sys.modules, "router.observer.traces.book", None)
        status, _, err = self.run(capsys, "r-1")
        assert status == 2
        assert "pip install 'ringrouter[observer]'" in err

    def test_an_observer_that_was_named_and_is_not_there_is_an_error(self, capsys: pytest.CaptureFixture[str]) -> None:
        status, _, err = self.run(capsys, "r-1", "--url", "127.0.0.1:9")
        assert status == 2
        assert "no observer answers" in err
