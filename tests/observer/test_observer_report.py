"""``ringrouter query`` and ``ringrouter report``: what they say of a journal, and how they refuse."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import re
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from router import cli
from router.cli.report import as_text, names_of, since_wall_ns
from router.config import JournalConfig
from router.observer import parquet, segments
from router.observer.journal import Journal
from router.observer.query import JournalReader, QueryError
from router.observer.report import BEFORE_NS, StageChange, StageMean, UnknownCost, make_report
from router.observer.rows import RequestRow, RowCost
from tests.support.request_rows import row

MS = 1_000_000
HOUR = 3_600_000_000_000
NOW = 1_763_899_200 * 1_000_000_000
SINCE = NOW - HOUR
TEXT = "2025-11-23 12:00:00+00"


def answered(seq: int, end_wall_ns: int, feature: str | None = "search", **given: Any) -> RequestRow:
    values: dict[str, Any] = {
        "stream": True,
        "ttft_ns": 100 * MS,
        "tpot_ns": 10.0 * MS,
        "early_tps": 100.0,
        "e2e_ns": 900 * MS,
        "queue_ns": 5 * MS,
        "decode_ns": 800 * MS,
        "n_out": 10,
        "tags": {} if feature is None else {"feature_name": feature},
        "cost": RowCost(0.5, 0.0, 1, 0, "EUR", "occupancy", ""),
    }
    values |= given
    return row(request_seq=seq, end_wall_ns=end_wall_ns, start_wall_ns=end_wall_ns - 900 * MS, **values)


def write(directory: Path, rows: list[RequestRow]) -> Path:
    journal = Journal(directory / "journal", JournalConfig(fsync_s=0))
    journal.append(rows)
    journal.close()
    return directory / "journal"


def nearest_rank(values: list[int], percent: int) -> int:
    return sorted(values)[math.ceil(percent * len(values) / 100) - 1]


class TestReport:
    def test_percentiles_are_by_nearest_rank_of_good_streamed_answers(self, tmp_path: Path) -> None:
        pick = random.Random(1)
        times = [pick.randrange(1, 10**9) for _ in range(137)]
        rows = [answered(i, SINCE + i, ttft_ns=t, e2e_ns=2 * t, tpot_ns=t / 7) for i, t in enumerate(times)]
        rows.append(answered(1000, SINCE, ttft_ns=10**12, outcome="host_error", error="no_finish"))
        rows.append(answered(1001, SINCE, ttft_ns=10**12, e2e_ns=1, stream=False))
        total = make_report(write(tmp_path, rows), (), SINCE, NOW).total
        assert (total.ttft_p50_ns, total.ttft_p95_ns) == (nearest_rank(times, 50), nearest_rank(times, 95))
        assert total.tpot_p50_ns == pytest.approx(nearest_rank([*times, 70 * MS], 50) / 7)
        assert total.e2e_p95_ns == nearest_rank([*(2 * t for t in times), 1], 95)
        assert (total.n, total.ok_count, total.ttft_n, total.error_count) == (139, 138, 137, 1)
        assert total.most_frequent_error == "no_finish"

    def test_groups_come_the_largest_first_and_requests_without_the_tag_are_one(self, tmp_path: Path) -> None:
        rows = [answered(i, SINCE, feature) for i, feature in enumerate(["a", "b", "b", None, None, None])]
        report = make_report(write(tmp_path, rows), ("feature_name",), SINCE, NOW)
        found = [(group.values["feature_name"], group.n) for group in report.groups]
        assert found == [(None, 3), ("b", 2), ("a", 1)]
        assert report.total.n == 6
        assert report.total.values == {}

    def test_two_tags_one_of_them_the_users_own(self, tmp_path: Path) -> None:
        tags = [{"feature_name": f, "tier": t} for f, t in (("a", "gold"), ("a", "free"), ("b", "gold"), ("b", "gold"))]
        rows = [answered(i, SINCE, tags=each) for i, each in enumerate(tags)]
        journal = write(tmp_path, rows)
        report = make_report(journal, ("tier", "feature_name"), SINCE, NOW)
        assert report.groups[0].values == {"tier": "gold", "feature_name": "b"}
        assert [group.n for group in report.groups] == [2, 1, 1]
        chosen = make_report(journal, ("tier",), SINCE, NOW, [("feature_name", "a")])
        assert chosen.total.n == 2

    def test_the_stage_that_changed_most_is_found_against_the_hour_before(self, tmp_path: Path) -> None:
        before = [answered(i, SINCE - 1 - i, queue_ns=20 * MS) for i in range(3)]
        older = [answered(10, SINCE - BEFORE_NS - 1, queue_ns=10**12)]
        now = [answered(20 + i, SINCE + i, queue_ns=(430 + i) * MS, decode_ns=790 * MS) for i in range(3)]
        broken = [answered(30, SINCE, queue_ns=10**12, outcome="timeout")]
        report = make_report(write(tmp_path, [*older, *before, *now, *broken]), ("feature_name",), SINCE, NOW)
        for group in (report.total, *report.groups):
            change = group.changed_most
            assert change is not None
            assert (change.stage, change.mean_ns, change.before_mean_ns) == ("queue", 431 * MS, 20 * MS)
            assert (group.n, group.before_ok_count) == (4, 3)

    def test_a_folded_answers_slower_decoding_is_a_change_of_decode(self, tmp_path: Path) -> None:
        folded = {"stream": False, "folded": True}
        before = answered(0, SINCE - 1, egress_ns=61 * MS, decode_ns=60 * MS, **folded)
        now = answered(1, SINCE, egress_ns=826 * MS, decode_ns=820 * MS, **folded)
        total = make_report(write(tmp_path, [before, now]), (), SINCE, NOW).total
        assert total.changed_most == StageChange("decode", 820 * MS, 60 * MS, "before")
        assert total.longest_stage == StageMean("decode", 820 * MS)

    def test_a_new_version_is_compared_with_the_other_ones_of_its_feature(self, tmp_path: Path) -> None:
        def of(seq: int, end_wall_ns: int, feature: str, version: str, queue_ms: int) -> RequestRow:
            tags = {"feature_name": feature, "prompt_version": version}
            return answered(seq, end_wall_ns, tags=tags, queue_ns=queue_ms * MS)

        rows = [of(0, SINCE - 9, "search", "v1", 10), of(1, SINCE + 1, "search", "v1", 30)]
        rows += [of(2, SINCE + 5, "search", "v2", 420), of(3, SINCE + 6, "search", "v2", 440)]
        rows += [of(4, SINCE + 2, "chat", "v1", 7000), of(5, SINCE + 3, "chat", "v1", 7000)]
        rows.append(msgspec.structs.replace(of(6, SINCE + 7, "search", "v1", 9000), outcome="timeout"))
        report = make_report(write(tmp_path, rows), ("feature_name", "prompt_version"), SINCE, NOW)
        changes = {tuple(group.values.values()): group.changed_most for group in report.groups}
        assert changes == {
            ("search", "v1"): StageChange("queue", 30 * MS, 10 * MS, "before"),
            ("search", "v2"): StageChange("queue", 430 * MS, 20 * MS, "other versions"),
            ("chat", "v1"): None,
        }
        assert "queue +410 ms (20.0 ms in other versions)" in "\n".join(as_text(report))
        alone = make_report(tmp_path / "journal", ("prompt_version",), SINCE, NOW, [("feature_name", "search")])
        assert {group.values["prompt_version"]: group.changed_most for group in alone.groups} == {
            version: changes["search", version] for version in ("v1", "v2")
        }
        assert all(
            group.changed_most is None
            for group in make_report(tmp_path / "journal", ("feature_name",), SINCE, NOW).groups
            if group.values["feature_name"] == "chat"
        )

    def test_every_group_tells_its_longest_stage_and_since_when_it_is_there(self, tmp_path: Path) -> None:
        rows = [answered(0, SINCE - 5, "chat"), answered(1, SINCE + 5, "chat", queue_ns=900 * MS)]
        rows += [answered(2 + i, SINCE + 7 * 10**9 + i) for i in range(3)]
        report = make_report(write(tmp_path, rows), ("feature_name",), SINCE, NOW)
        search, chat = report.groups
        assert search.longest_stage == StageMean("decode", 800 * MS)
        assert chat.longest_stage == StageMean("queue", 900 * MS)
        assert (search.first_wall_ns, chat.first_wall_ns) == (SINCE + 7 * 10**9, SINCE - 5)
        heads, first, second, *_ = as_text(report)[2:]
        at, behind = heads.index("first seen"), heads.index("longest stage")
        began = datetime.fromtimestamp(SINCE / 1e9 + 7).strftime("%m-%d %H:%M:%S")
        assert [line[at:behind].strip() for line in (first, second)] == [began, "before"]
        assert first[behind:].startswith("decode 800 ms")

    def test_why_costs_are_not_known_and_where_is_told(self, tmp_path: Path) -> None:
        def unknown(seq: int, missing: str, host: str, end_wall_ns: int = SINCE) -> RequestRow:
            return answered(seq, end_wall_ns, host=host, cost=RowCost(None, None, None, None, "EUR", "", missing))

        rows = [unknown(0, "no_price", "gpu1"), unknown(1, "no_price", "gpu1"), unknown(2, "gap", "gpu0")]
        rows += [answered(3, SINCE, cost=None), answered(4, SINCE), unknown(5, "gap", "gpu9", SINCE - 1)]
        report = make_report(write(tmp_path, rows), (), SINCE, NOW)
        assert report.unknown_costs == [
            UnknownCost("no_price", "gpu1", 2),
            UnknownCost("", "", 1),
            UnknownCost("gap", "gpu0", 1),
        ]
        assert as_text(report)[-4:] == [
            "the cost of 4 requests is not known and not in these numbers",
            "  2 at gpu1: neither hosts.cost_per_hour nor observer.prices covers it (no_price)",
            "  1 at no host: written before it was known",
            "  1 at gpu0: nobody knows what ran beside it (gap)",
        ]

    def test_without_an_hour_before_nothing_has_changed(self, tmp_path: Path) -> None:
        report = make_report(write(tmp_path, [answered(0, SINCE)]), (), SINCE, NOW)
        assert report.total.changed_most is None

    def test_cost_per_response_has_the_failed_ones_in_it_and_the_unknown_beside_it(self, tmp_path: Path) -> None:
        wasted = RowCost(1.0, 1.0, 1, 1, "EUR", "occupancy", "")
        unknown = RowCost(None, None, None, None, "EUR", "", "gap")
        rows = [
            answered(0, SINCE),
            answered(1, SINCE),
            answered(2, SINCE, outcome="client_gone", cost=wasted),
            answered(3, SINCE, cost=unknown),
            answered(4, SINCE, cost=None),
        ]
        total = make_report(write(tmp_path, rows), (), SINCE, NOW).total
        assert (total.cost, total.cost_per_response, total.waste_share) == (2.0, 1.0, 0.5)
        assert (total.cost_unknown_count, total.client_gone_count, total.error_count) == (2, 1, 0)

    def test_no_known_cost_is_none_and_not_0(self, tmp_path: Path) -> None:
        total = make_report(write(tmp_path, [answered(0, SINCE, cost=None)]), (), SINCE, NOW).total
        assert (total.cost, total.cost_per_response, total.waste_share) == (None, None, None)

    def test_nothing_in_the_time_is_a_report_too(self, tmp_path: Path) -> None:
        report = make_report(write(tmp_path, [answered(0, SINCE - 10)]), ("feature_name",), SINCE, NOW)
        assert (report.total.n, report.groups) == (0, [])
        assert as_text(report)[-1].endswith(": 0")

    def test_a_name_that_no_request_has_is_refused(self, tmp_path: Path) -> None:
        journal = write(tmp_path, [answered(0, SINCE, tags={"tier": "gold"})])
        with pytest.raises(QueryError, match=r"featur: expected one of model, .*feature_name.*, tier"):
            make_report(journal, ("featur",), SINCE, NOW)

    def test_the_text_names_what_it_leaves_out_and_steers_no_terminal(self, tmp_path: Path) -> None:
        rows = [answered(0, SINCE, "\x1b[31mred"), answered(1, SINCE, cost=None)]
        text = "\n".join(as_text(make_report(write(tmp_path, rows), ("feature_name",), SINCE, NOW)))
        assert "?[31mred" in text
        assert "\x1b" not in text
        assert "the cost of 1 requests is not known" in text
        assert "0.5 EUR" in text
        assert "100 ms" in text


class TestQuery:
    @pytest.fixture
    def journal(self, tmp_path: Path) -> Path:
        return write(tmp_path, [answered(i, NOW + i) for i in range(5)])

    @pytest.mark.parametrize(
        ("sql", "said"),
        [
            ("SELEC 1", 'syntax error at or near "SELEC"'),
            ("SELECT nope FROM requests", "nope"),
            ("SELECT 1; SELECT 2", "expected one statement, found 2"),
            ("", "expected one statement, found 0"),
            ("COPY requests TO 'x'", "COPY is not allowed: the journal is only read"),
            ("DROP VIEW requests", "DROP is not allowed"),
            ("SET threads = 8", "SET is not allowed"),
            ("ATTACH 'x'", "ATTACH is not allowed"),
            ("SELECT * FROM read_csv('/etc/passwd')", "Cannot access file"),
            ("SELECT * FROM read_text('/etc/passwd')", "Cannot access file"),
            ("SELECT * FROM glob('/etc/*')", "Cannot access file"),
            ("SELECT 1/0 + 'x'::INT", "Could not convert"),
        ],
    )
    def test_what_it_does_not_take_ends_in_one_line(self, journal: Path, sql: str, said: str) -> None:
        reader = JournalReader(journal)
        with pytest.raises(QueryError) as caught:
            list(reader.ask(sql))
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        reader.close()

    def test_times_are_utc_and_compare_with_now(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TZ", "America/New_York")
        time.tzset()
        try:
            journal = write(tmp_path, [answered(0, time.time_ns()), answered(1, time.time_ns() - 2 * HOUR)])
            reader = JournalReader(journal)
            sql = "SELECT request_seq FROM requests WHERE end_time > now() - INTERVAL 1 HOUR"
            assert list(reader.ask(sql)) == [(0,)]
            ((zoned,),) = reader.ask('SELECT now() AS "a ""b"')
            assert str(zoned).endswith("+00")
        finally:
            monkeypatch.undo()
            time.tzset()

    @pytest.mark.parametrize(
        ("sql", "columns", "wanted"),
        [
            ("SELECT {'at': moment} AS a, [moment] AS b FROM t", ["a", "b"], ({"at": TEXT}, [TEXT])),
            ("SELECT map {'k': moment} AS m FROM t", ["m"], ({"k": TEXT},)),
            ("SELECT moment AS t, moment AS t, 1 AS n FROM t", ["t", "t", "n"], (TEXT, TEXT, 1)),
            ("SELECT moment FROM t -- of now", ["moment"], (TEXT,)),
        ],
    )
    def test_times_with_a_zone_come_as_text_wherever_they_are(
        self, journal: Path, sql: str, columns: list[str], wanted: tuple[Any, ...]
    ) -> None:
        reader = JournalReader(journal)
        answer = reader.ask(f"WITH t AS (SELECT TIMESTAMPTZ '{TEXT}' AS moment) {sql}")
        assert (answer.columns, list(answer)) == (columns, [wanted])
        reader.close()

    @pytest.mark.parametrize("damage", ["empty", "cut", "a directory", "one column"])
    def test_a_damaged_file_is_left_out_and_told(
        self, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rows = [answered(i, NOW + i // 2 * HOUR, ("search", "chat")[i % 2]) for i in range(6)]
        journal = write(tmp_path, rows)
        for segment in segments.segment_paths(journal):
            parquet.convert(journal, segment)
            segment.unlink()
        path = segments.parquet_paths(journal)[1]
        whole = path.read_bytes()
        path.unlink()
        if damage == "a directory":
            path.mkdir()
        elif damage == "one column":
            path.write_bytes(whole)
            with parquet.connect() as connection:
                ((at, size),) = connection.execute(
                    "SELECT coalesce(dictionary_page_offset, data_page_offset), total_compressed_size "
                    f"FROM parquet_metadata('{path}') WHERE path_in_schema = 'feature_name'"
                ).fetchall()
            path.write_bytes(whole[:at] + b"\xaa" * size + whole[at + size :])
        else:
            path.write_bytes(b"" if damage == "empty" else whole[:3000])
        reader = JournalReader(journal)
        found = list(reader.ask("SELECT request_seq, feature_name FROM requests ORDER BY 1"))
        assert found == [(0, "search"), (1, "chat"), (4, "search"), (5, "chat")]
        reader.close()
        told = capsys.readouterr().err
        assert told.startswith(f"left out: {path} cannot be read: ")
        assert told.count("\n") == 1
        assert make_report(journal, ("feature_name",), NOW, NOW + 3 * HOUR).total.n == 4

    def test_a_line_that_is_no_row_counts_as_none(self, journal: Path) -> None:
        (segment,) = segments.segment_paths(journal)
        with segment.open("ab") as lines:
            lines.write(b'{"instance":"zz"}\n{"instance":"zz","generation":1,"request_seq":1}\n[]\ngarbage\n')
        assert list(JournalReader(journal).ask("SELECT count(*) FROM requests")) == [(5,)]

    def test_a_question_may_take_a_share_of_the_free_memory(
        self, journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        memory = tmp_path / "meminfo"
        memory.write_text("MemTotal: 16777216 kB\nMemAvailable:    8388608 kB\nBuffers: 1 kB\n")
        monkeypatch.setattr(parquet, "_MEMORY", memory)
        assert list(JournalReader(journal).ask("SELECT current_setting('memory_limit')")) == [("4.0 GiB",)]
        memory.write_text("MemTotal: 16777216 kB\n")
        assert list(JournalReader(journal).ask("SELECT current_setting('memory_limit')")) == [("512.0 MiB",)]

    def test_a_question_that_takes_too_much_memory_says_what_to_do(
        self, journal: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(parquet, "query_memory_bytes", lambda: 32 << 20)
        reader = JournalReader(journal)
        with pytest.raises(QueryError, match="choose fewer requests, by --since or by end_time"):
            reader.ask("SELECT median(value) FROM range(10000000) AS t(value)")
        reader.close()

    def test_only_the_hours_that_are_asked_for_are_read(self, tmp_path: Path) -> None:
        journal = write(tmp_path, [answered(i, NOW + i * HOUR) for i in range(5)])
        for path in segments.segment_paths(journal)[:3]:
            parquet.convert(journal, path)
        reader = JournalReader(journal, NOW + HOUR + 1)
        assert list(reader.ask("SELECT count(*) FROM requests")) == [(4,)]

    def test_a_journal_without_rows_has_its_columns(self, tmp_path: Path) -> None:
        Journal(tmp_path, JournalConfig()).close()
        answer = JournalReader(tmp_path).ask("SELECT * FROM requests")
        assert {"ttft_ns", "feature_name", "cost_amount", "start_time"} <= set(answer.columns)
        assert list(answer) == []

    def test_what_an_older_version_did_not_write_is_null(self, tmp_path: Path) -> None:
        journal = write(tmp_path, [answered(0, NOW)])
        old = segments.parquet_path(journal, segments.Name("2025-11-23T11", 99))
        segments.make_directory(old.parent)
        with parquet.connect() as connection:
            connection.execute(
                f"COPY (SELECT 'main' AS instance, 7::BIGINT AS request_seq) TO '{old}' (FORMAT parquet)"
            )
        found = list(JournalReader(journal).ask("SELECT request_seq, ttft_ns FROM requests ORDER BY 1"))
        assert found == [(0, 100 * MS), (7, None)]


class TestCommands:
    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        now = time.time_ns()
        rows = [answered(i, now - i * MS, feature) for i, feature in enumerate(("search", "search", "chat"))]
        write(tmp_path, [*rows, answered(9, now - HOUR - MS, "search", queue_ns=1)])
        return tmp_path

    def test_report_as_text_json_and_csv(self, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        command = ["report", "--data-dir", str(data), "--by", "feature_name,prompt_version", "--since", "1h"]
        assert cli.main(command) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[2].split()[:3] == ["feature_name", "prompt_version", "requests"]
        assert [line.split()[:3] for line in lines[3:6]] == [
            ["search", "–", "2"],
            ["chat", "–", "1"],
            ["all", "3", "100"],
        ]
        assert lines[3].endswith("queue +5.00 ms (0.00 µs before)")
        assert cli.main([*command, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["schema"] == "ringrouter.report/1"
        assert said["groups"][0]["values"] == {"feature_name": "search", "prompt_version": None}
        assert said["groups"][0]["changed_most"]["stage"] == "queue"
        assert said["groups"][0]["longest_stage"] == {"stage": "decode", "mean_ns": 800 * MS}
        assert cli.main([*command, "--csv"]) == 0
        records = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert [(each["feature_name"], each["n"], each["ttft_p50_ns"]) for each in records] == [
            ("search", "2", "100000000"),
            ("chat", "1", "100000000"),
        ]
        assert [each["longest_stage_stage"] for each in records] == ["decode", "decode"]
        assert [each["changed_most_against"] for each in records] == ["before", ""]

    @pytest.mark.parametrize("command", ["report", "query"])
    def test_what_a_client_chose_does_nothing_in_a_spreadsheet_or_terminal(
        self, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        features = ["=cmd|'/c calc'!A1", "+1", "-1", "@sum(a1)", "red\x1b[31m\x00", 'a\r\nb, "c"', "café = 1"]
        now = time.time_ns()
        write(tmp_path, [answered(i, now - (i + 1) * MS, feature) for i, feature in enumerate(features)])
        more = ["--by", "feature_name"]
        if command == "query":
            more = ["SELECT feature_name, -1 AS n, [feature_name] AS list FROM requests ORDER BY request_seq"]
        assert cli.main([command, "--data-dir", str(tmp_path), "--csv", *more]) == 0
        out = capsys.readouterr().out
        assert "\r" not in out
        assert out.count("\n") == 1 + len(features)
        assert "\x1b" not in out
        assert "\x00" not in out
        records = list(csv.DictReader(io.StringIO(out)))
        assert {record["feature_name"] for record in records} == {
            *("'=cmd|'/c calc'!A1", "'+1", "'-1", "'@sum(a1)", "red?[31m?", 'a??b, "c"', "café = 1"),
        }
        assert records[0]["n"] in {"-1", "1"}, "a number is a number"

    def test_query_as_text_json_and_csv(self, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        sql = """SELECT feature_name, count(*) AS n, sum(ttft_ns) AS t, any_value(tags) AS tags, NULL AS no
            FROM requests GROUP BY 1 ORDER BY 1"""
        assert cli.main(["query", "--data-dir", str(data), sql]) == 0
        heads, first, second = (line.split() for line in capsys.readouterr().out.splitlines())
        assert heads == ["feature_name", "n", "t", "tags", "no"]
        assert (first[0], first[1], first[-1], second[0]) == ("chat", "1", "–", "search")
        assert cli.main(["query", "--data-dir", str(data), "--json", sql]) == 0
        objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert objects[1] == {
            "schema": "ringrouter.query/1",
            "feature_name": "search",
            "n": 3,
            "t": 300 * MS,
            "tags": {"feature_name": "search"},
            "no": None,
        }
        assert cli.main(["query", "--data-dir", str(data), "--csv", sql]) == 0
        (record, *_) = csv.DictReader(io.StringIO(capsys.readouterr().out))
        assert (record["n"], json.loads(record["tags"]), record["no"]) == ("1", {"feature_name": "chat"}, "")

    def test_the_statement_can_come_by_standard_input(
        self, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO("SELECT count(*) AS n\nFROM requests;\n"))
        assert cli.main(["query", "--data-dir", str(data), "--csv", "-"]) == 0
        assert capsys.readouterr().out.split() == ["n", "4"]

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            (["--by", "Feature"], "--by Feature: expected names of tags"),
            (["--by", "a,a"], "--by a,a: expected at most 4 names that differ"),
            (["--by", "tags'"], "--by tags': expected names of tags"),
            (["--since", "1y"], "--since 1y: expected a span such as 30m"),
            (["--since", "2999-01-01"], "--since 2999-01-01: expected a span such as 30m"),
            (["--by", "nothing"], "nothing: expected one of model"),
            (["--where", "nothing=1"], "nothing: expected one of model"),
        ],
    )
    def test_bad_input_ends_in_one_line(
        self, data: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["report", "--data-dir", str(data), *more]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"ringrouter: {said}")
        assert error.count("\n") == 1

    @pytest.mark.parametrize("command", [["report"], ["query", "SELECT 1"]])
    def test_no_journal_is_said_in_one_line(
        self, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main([*command, "--data-dir", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error == (f"ringrouter: there is no journal in {tmp_path / 'journal'}: has 'ringrouter observe' run?\n")

    def test_without_duckdb_it_says_what_to_install(
        self, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "duckdb", None)
        assert cli.main(["query", "--data-dir", str(data), "SELECT 1"]) == 2
        assert capsys.readouterr().err == "ringrouter: DuckDB is not installed: pip install 'ringrouter[observer]'\n"

    def test_spans_and_times(self) -> None:
        assert since_wall_ns("30m", NOW) == NOW - HOUR // 2
        assert since_wall_ns("1.5h", NOW) == NOW - 3 * HOUR // 2
        assert since_wall_ns("2025-11-23T11:00:00+00:00", NOW) == NOW - HOUR
        assert names_of("") == []
        assert names_of("a,b_1") == ["a", "b_1"]


def test_the_document_names_every_column() -> None:
    text = (Path(__file__).parents[2] / "docs" / "journal.md").read_text(encoding="utf-8")
    table = text.partition("### Columns")[2].partition("\n## ")[0]
    named = set(
        re.findall(r"`([a-z0-9_]+)`", "".join(line.split("|")[1] for line in table.splitlines() if "|" in line))
    )
    with parquet.connect() as connection:
        columns = {str(column[0]) for column in connection.execute(f"DESCRIBE {parquet.empty_table()}").fetchall()}
    assert named == columns
