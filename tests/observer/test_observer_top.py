"""``ringrouter top``: what the page says, its keys, and how it behaves without an observer."""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from router import cli
from router.cli import EXIT_FAILED, top, top_tables
from router.cli.report import COLUMNS
from router.cli.top_page import Page
from router.observer import client
from router.observer.client import ObserverError
from router.observer.state import State
from tests.support.observer_states import health, slices, source, state
from tests.support.waiting import free_port


def cells(shown: State, title: str) -> list[list[str]]:
    (table,) = [table for table in top_tables.tables(shown) if table.title.startswith(title)]
    return table.rows


class TestTables:
    def test_the_headline_says_what_goes_through_and_what_it_costs(self) -> None:
        (line,) = top_tables.headline(state())
        assert "10.0 requests/s" in line
        assert "99.5 % ok, 0.5 % host_error" in line
        assert "800 tokens/s in, 1,234 out" in line
        assert "7 running, 2 waiting" in line
        assert "98.7% good" in line
        assert "1.50 EUR/min" in line

    def test_an_unknown_cost_is_not_shown_as_none_at_all(self) -> None:
        traffic = msgspec.structs.replace(state().traffic, cost=None, goodput=None)
        (line,) = top_tables.headline(state(traffic=traffic))
        assert "EUR" not in line
        assert "good" not in line
        assert top_tables.money(None) == "–"
        assert top_tables.money(0.0) == "0"

    @pytest.mark.parametrize(
        ("changes", "warning"),
        [
            ({"sources": []}, "! no router has been found yet"),
            ({"sources": [source(state="dead")]}, "! router main is dead"),
            ({"observer": health(lost_event_count=12)}, "! lost since the observer's start: 0 requests, 12 token"),
            ({"observer": health(journal="no space left on device")}, "! journal: no space left on device"),
            ({"observer": health(fault_count=2)}, "! 2 faults inside the observer"),
        ],
    )
    def test_what_is_not_as_it_should_be_stands_below(self, changes: dict[str, Any], warning: str) -> None:
        assert top_tables.headline(state(**changes))[1].startswith(warning)

    def test_stages_carry_their_share_of_the_mean(self) -> None:
        queue, first_token = cells(state(), "stages")
        assert queue[0] == "queue"
        assert queue[-1].split() == ["25%", "█" * 5]
        assert first_token[0] == "host first token"
        assert first_token[-1].split() == ["75%", "█" * 15]

    def test_a_slice_tells_its_pace_and_its_cost(self) -> None:
        search, _ = cells(state(), "by feature_name")
        assert search == [
            *("search", "300", "0.3 %", "–", "18.0 ms", "40.0 ms", "5.00 ms", "190/s", "950 ms", "0.0025"),
            "host first token",
        ]

    def test_the_page_and_the_report_call_the_cost_the_same(self) -> None:
        (table,) = [table for table in top_tables.tables(state()) if table.title.startswith("by ")]
        assert ("cost/response", ">") in table.columns
        assert ("cost/response", ">") in COLUMNS

    def test_bad_requests_are_counted_apart(self) -> None:
        (line,) = top_tables.headline(state(sources=[source(), source(bad_request_count=0)]))
        assert "bad" not in line
        sources = [source(bad_request_count=1200), source(bad_request_count=34)]
        (line,) = top_tables.headline(state(sources=sources))
        assert line.endswith("bad requests since the router's start: 1,234")
        assert "99.5 % ok, 0.5 % host_error" in line

    def test_an_overflowed_table_says_so(self) -> None:
        tables = top_tables.tables(state(slices=slices("plan", "a", is_overflowed=True)))
        assert any(table.title.startswith("by plan") and "__other__" in table.title for table in tables)

    def test_the_slowest_requests_can_be_found_again(self) -> None:
        (row,) = cells(state(), "slowest")
        assert row[-1] == "req-1"
        assert row[3] == "decode 800 ms"

    def test_several_routers_have_a_table_of_their_own(self) -> None:
        assert not [t for t in top_tables.tables(state()) if t.title == "routers"]
        rows = cells(state(sources=[source(), source(instance="two", lag_records=1200)]), "routers")
        assert rows[1] == ["two", "alive", "7", "2", "1,200"]

    def test_a_young_observer_says_how_much_it_covers(self) -> None:
        assert top_tables.covered(state()) == "last 1m 00s"
        assert top_tables.covered(state(covered_s=7.0)) == "last 7.0s of 1m 00s"

    @pytest.mark.parametrize(
        ("part", "total", "shown"),
        [(0, 5, "0 %"), (5, 5, "100 %"), (1, 9_999, "<0.1 %"), (9_998, 9_999, ">99.9 %"), (1, 3, "33.3 %")],
    )
    def test_a_share_never_rounds_to_all_or_nothing(self, part: int, total: int, shown: str) -> None:
        assert top_tables.share(part, total) == shown

    def test_tags_cannot_steer_the_terminal(self) -> None:
        text = top_tables.as_text(state(slices=slices("feature_name", "a\x1b[2Jb\nc")))
        assert "\x1b" not in text
        assert "a?[2Jb?c" in text


class TestCommand:
    @pytest.fixture(autouse=True)
    def _answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, float | None, str]] = []

        def answer(address: str, *, window_s: float | None = None, by: str = "") -> State:
            self.asked.append((address, window_s, by))
            return state()

        monkeypatch.setattr(client, "state", answer)
        monkeypatch.setattr(client, "get", lambda *_: msgspec.json.encode(state()))

    def test_once_prints_the_page(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["top", "--once", "--by", "device_type", "--window", "600"]) == 0
        said = capsys.readouterr().out
        assert "STAGES" in said
        assert "req-1" in said
        assert self.asked == [("127.0.0.1:8401", 600.0, "device_type")]

    def test_json_is_the_observers_own(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["top", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["schema"] == "ringrouter.state/1"

    def test_the_configuration_says_where(self, tmp_path: Path) -> None:
        path = tmp_path / "r.toml"
        path.write_text('version = 1\n[observer]\nhttp = "unix:/run/o.sock"')
        assert cli.main(["top", "--once", "--config", str(path)]) == 0
        assert cli.main(["top", "--once", "--url", "http://127.0.0.1:9/"]) == 0
        assert [address for address, _, _ in self.asked] == ["unix:/run/o.sock", "127.0.0.1:9"]

    def test_a_bad_address_is_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["top", "--once", "--url", "nowhere"]) == 2
        assert '--url = "nowhere": expected host:port' in capsys.readouterr().err

    @pytest.mark.parametrize("window", ["5", "60.5", "nan", "x", "-60"])
    def test_a_window_that_no_observer_keeps_is_refused_at_once(
        self, window: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as caught:
            cli.main(["top", "--once", "--window", window])
        assert caught.value.code == 2
        assert f"--window: '{window}': expected one of 10, 60, 600, 3600" in capsys.readouterr().err
        assert self.asked == []

    def test_the_live_page_needs_a_terminal(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["top"]) == 2
        assert "--once" in capsys.readouterr().err


def test_without_an_observer_it_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["top", "--url", f"127.0.0.1:{free_port()}"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "ringrouter observe" in said


@pytest.mark.parametrize("address", ["[::1", f"{'x' * 70}.example:80"], ids=["bracket", "long"])
def test_an_address_that_is_none_ends_in_one_line(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["top", "--once", "--url", address]) in {1, 2}
    assert capsys.readouterr().err.count("\n") == 1


class TestObserve:
    """``observe`` does not begin where there can be no rings."""

    @pytest.fixture(autouse=True)
    def _serve(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.served: list[Path] = []
        monkeypatch.setattr("os.nice", lambda _: 0)
        monkeypatch.setattr("router.observer.process.serve", lambda _, run_dir: self.served.append(run_dir) or 0)

    @pytest.mark.parametrize("place", ["file", "file/below"])
    def test_a_run_directory_that_is_none_is_refused(
        self, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").touch()
        assert cli.main(["observe", "--run-dir", str(tmp_path / place)]) == 2
        said = capsys.readouterr().err
        assert said.lower() == f"ringrouter: run directory {tmp_path / place}: not a directory\n".lower()
        assert self.served == []

    def test_one_that_is_not_there_yet_may_come(self, tmp_path: Path) -> None:
        assert cli.main(["observe", "--run-dir", str(tmp_path / "later")]) == 0
        assert self.served == [tmp_path / "later"]


def test_printing_once_needs_nothing_of_the_extra() -> None:
    program = "import sys, router.cli.top; print(*{name.split('.')[0] for name in sys.modules})"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "duckdb", "textual", "rich", "prometheus_client"} & set(found)


class TestPage:
    """The live page, without a terminal."""

    @pytest.fixture(autouse=True)
    def _answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[float | None, str]] = []
        self.trouble: ObserverError | None = None

        def answer(_: str, *, window_s: float | None = None, by: str = "") -> State:
            self.asked.append((window_s, by))
            if self.trouble is not None:
                raise self.trouble
            return state(window_s=window_s or 60.0, slices=slices(by, f"value of {by}"))

        monkeypatch.setattr(client, "state", answer)
        monkeypatch.setattr("router.cli.top_page.EVERY_S", 3600.0)

    def shown_after(self, *keys: str, size: tuple[int, int] = (120, 90)) -> str:
        async def run() -> str:
            page = Page("127.0.0.1:8401", state(), None, "")
            async with page.run_test(size=size) as pilot:
                for key in keys:
                    await pilot.press(key)
                await pilot.pause()
                self.is_wide = page.screen.has_class("-wide")
                return "\n".join(str(widget.render()) for widget in page.query("Static"))

        return asyncio.run(run())

    def test_it_begins_with_what_it_was_given(self) -> None:
        said = self.shown_after()
        assert "http://127.0.0.1:8401" in said
        assert "req-1" in said
        assert self.asked == []

    def test_s_goes_to_the_next_tag_and_shift_s_back(self) -> None:
        assert "value of device_type" in self.shown_after("s")
        assert "value of feature_name" in self.shown_after("s", "s")
        assert "value of device_type" in self.shown_after("S")

    def test_w_goes_to_the_next_window(self) -> None:
        self.shown_after("w", "w", "w")
        assert [window_s for window_s, _ in self.asked] == [600.0, 3600.0, 10.0]

    def test_space_holds_the_page(self) -> None:
        assert "paused" in self.shown_after("space")
        assert "paused" not in self.shown_after("space", "space")

    def test_an_observer_that_goes_away_is_said_and_the_last_numbers_stay(self) -> None:
        self.trouble = ObserverError("no observer answers at http://127.0.0.1:8401")
        said = self.shown_after("w")
        assert "! no observer answers" in said
        assert "req-1" in said

    def test_it_fits_any_terminal(self) -> None:
        assert "req-1" in self.shown_after(size=(20, 5))
        assert not self.is_wide
        assert "req-1" in self.shown_after(size=(240, 60))
        assert self.is_wide, "metrics and stages stand side by side"


def test_an_observer_that_goes_away_between_two_questions_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(address: str, path: str) -> bytes:
        raise ObserverError(f"no observer answers at {address}")

    monkeypatch.setattr(client, "state", lambda *_, **__: None)
    monkeypatch.setattr(client, "get", gone)
    args = argparse.Namespace(url="127.0.0.1:8401", config=None, window=None, by="", json=True, once=False)
    assert top.run(args) == EXIT_FAILED
    assert "no observer answers at 127.0.0.1:8401" in capsys.readouterr().err
