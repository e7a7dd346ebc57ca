"""``ringrouter dump``: every record once, what is not there any more counted exactly, and a trace that viewers take."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from done_records import payload, stamps
from fake_router import HOST_ID, MODEL_ID, FakeRouter

import router
from ringbuffer import BroadcastReader
from router import cli
from router.telemetry import records as rec
from router.telemetry import snapshot
from tests.support.trace_format import check_document

ROOT = Path(router.__file__).parents[1]
S = 1_000_000_000
CAPACITY = 64


@pytest.fixture
def fake(run_dir: Path) -> Iterator[FakeRouter]:
    fake = FakeRouter(run_dir / "main")
    yield fake
    fake.die()


class Router:
    """Writes what a router writes of a request, one thing at a time."""

    def __init__(self, fake: FakeRouter) -> None:
        self.fake = fake

    def publish(self, request_id: str, recv_ns: int = 0) -> int:
        now = recv_ns or time.monotonic_ns()
        w4 = MODEL_ID | rec.Endpoint.CHAT << 16 | 1 << 24 | 9 << 32
        return self.fake.requests.try_publish(now, now, now, w4, 500 | 64 << 32, crc32(request_id.encode()), 0)

    def token(self, seq: int, t_ns: int = 0, kind: rec.Kind = rec.Kind.TEXT) -> None:
        self.fake.tokens.publish(t_ns or time.monotonic_ns(), seq, kind | HOST_ID << 16, 0, 0, 0, 0)

    def run(self, seq: int, request_id: str) -> None:
        start = time.monotonic_ns()
        row = payload(
            request_seq=seq, phase=rec.Phase.DECODE, host=HOST_ID, model=MODEL_ID, request_id=request_id,
            stamps=[*stamps(start)[:11], 0, 0, 0, 0],
        )  # fmt: skip
        self.fake.inflight.write(seq % 16, row)

    def finish(self, seq: int, request_id: str, ago_s: float = 0) -> None:
        at = stamps(time.monotonic_ns() - round(ago_s * S))
        self.fake.finish(request_id, request_seq=seq, stamps=at)


@pytest.fixture
def writes(fake: FakeRouter) -> Router:
    return Router(fake)


def dumped(capsys: pytest.CaptureFixture[str], run_dir: Path, *options: str) -> tuple[int, list[dict[str, Any]], str]:
    code = cli.main(["dump", "--run-dir", str(run_dir), *options])
    said = capsys.readouterr()
    return code, [json.loads(line) for line in said.out.splitlines()], said.err


def of(records: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    return [record for record in records if record["what"] == what]


def coverage(records: list[dict[str, Any]], what: str) -> dict[str, Any]:
    (found,) = [record for record in of(records, "coverage") if record["of"] == what]
    return {key: value for key, value in found.items() if key not in {"schema", "what", "of"}}


class TestLines:
    def test_every_kind_of_record_is_there(
        self, run_dir: Path, writes: Router, capsys: pytest.CaptureFixture[str]
    ) -> None:
        writes.publish("a")
        writes.finish(0, "a")
        writes.run(1, "b")
        writes.token(0)
        writes.fake.errors.note("host gpu-0: host_closed", time.monotonic_ns())
        code, records, _ = dumped(capsys, run_dir)
        assert code == 0
        assert {record["schema"] for record in records} == {"ringrouter.dump/1"}
        kinds = [record["what"] for record in records]
        assert kinds == ["router", "requests", "inflight", "done", "tokens", "errors", *["coverage"] * 5]
        about, request, running, done, token, error = records[:6]
        assert (about["instance"], about["state"], about["pid"]) == (
            "main", "alive", writes.fake.done.segment.header.writer_pid,
        )  # fmt: skip
        assert (request["sequence"], request["model"], request["endpoint"], request["stream"]) == (
            0, "chat", "chat", True,
        )  # fmt: skip
        assert (request["connection"], request["body_bytes"], request["max_tokens"]) == (9, 500, 64)
        assert (running["request_seq"], running["request_id"], running["phase"]) == (1, "b", "decode")
        assert (done["sequence"], done["request_id"], done["ttft_ns"]) == (0, "a", 101_000_000)
        assert (token["sequence"], token["kind"], token["host"]) == (0, "text", "gpu-0")
        assert (error["text"], error["count"]) == ("host gpu-0: host_closed", 1)

    def test_records_have_their_calendar_time(
        self, run_dir: Path, writes: Router, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before_ns = time.time_ns()
        writes.token(0)
        after_ns = time.time_ns()
        _, records, _ = dumped(capsys, run_dir)
        slack_ns = S  # the anchor reads two clocks, one after the other
        assert before_ns - slack_ns <= of(records, "tokens")[0]["wall_ns"] <= after_ns + slack_ns
        about = records[0]
        token = of(records, "tokens")[0]
        assert token["wall_ns"] == token["t_ns"] + about["wall_minus_monotonic_ns"]

    def test_only_some_kinds(self, run_dir: Path, writes: Router, capsys: pytest.CaptureFixture[str]) -> None:
        writes.token(0)
        writes.finish(0, "a")
        _, records, _ = dumped(capsys, run_dir, "--what", "tokens,done")
        assert [record["what"] for record in records] == ["router", "done", "tokens", "coverage", "coverage"]

    def test_what_was_overwritten_is_counted(
        self, run_dir: Path, writes: Router, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for n in range(CAPACITY + 36):
            writes.token(n)
        _, records, _ = dumped(capsys, run_dir, "--what", "tokens")
        assert [record["sequence"] for record in of(records, "tokens")] == list(range(36, CAPACITY + 36))
        assert coverage(records, "tokens") == {
            "published": CAPACITY + 36, "overwritten": 36, "lost_while_reading": 0, "damaged": 0, "read": CAPACITY,
            "shown": CAPACITY,
        }  # fmt: skip

    @pytest.mark.parametrize("meanwhile", [1, 10, CAPACITY, 3 * CAPACITY])
    def test_what_a_live_router_overwrites_meanwhile_is_counted(
        self, run_dir: Path, writes: Router, monkeypatch: pytest.MonkeyPatch, meanwhile: int
    ) -> None:
        """The router goes on between two looks at its ring; the copy ends where the ring ended when it began."""
        for n in range(100):
            writes.token(n)
        poll = BroadcastReader.poll

        def slow_poll(reader: BroadcastReader, count: int) -> list[tuple[int, bytes]]:
            records = poll(reader, min(count, 7))
            for n in range(meanwhile):
                writes.token(n)
            return records

        monkeypatch.setattr(BroadcastReader, "poll", slow_poll)
        copy = snapshot.take(writes.fake.directory, frozenset({"tokens"})).rings["tokens"]
        sequences = [sequence for sequence, _ in copy.records]
        assert copy.published == 100
        assert copy.overwritten == 36
        assert all(36 <= sequence < 100 for sequence in sequences)
        assert len(set(sequences)) == len(sequences)
        assert copy.overwritten + copy.lost_while_reading + len(copy.records) == copy.published
        assert (copy.lost_while_reading > 0) == (meanwhile > 1), "7 are read while 1 is written"

    def test_a_request_that_ends_meanwhile_is_there_once(
        self, run_dir: Path, writes: Router, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        writes.run(3, "a")
        in_flight = snapshot._in_flight

        def then_it_ends(directory: Path) -> tuple[list[bytes], int]:
            found = in_flight(directory)
            writes.finish(3, "a")
            writes.fake.inflight.clear(3)
            return found

        monkeypatch.setattr(snapshot, "_in_flight", then_it_ends)
        _, records, _ = dumped(capsys, run_dir)
        assert (len(of(records, "inflight")), len(of(records, "done"))) == (0, 1)

    def test_looking_changes_no_file(self, run_dir: Path, writes: Router, capsys: pytest.CaptureFixture[str]) -> None:
        def state() -> dict[str, bytes]:
            return {str(path): path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}

        writes.finish(0, "a")
        before = state()
        dumped(capsys, run_dir)
        assert state() == before


class TestSelection:
    @pytest.fixture(autouse=True)
    def traffic(self, writes: Router) -> None:
        """Request 0 "a" finished, 1 "b" finished, 2 "a" again and running, each with two tokens."""
        for request_id in "aba":
            writes.publish(request_id)
        writes.finish(0, "a", ago_s=100)
        writes.finish(1, "b", ago_s=50)
        writes.run(2, "a")
        now = time.monotonic_ns()
        for ago_s in (90, 40, 1):
            for seq in range(3):
                writes.token(seq, now - ago_s * S)
        writes.fake.errors.note("an error", now - 60 * S)

    def test_one_request_with_all_that_is_of_it(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        _, records, err = dumped(capsys, run_dir, "--request-id", "b")
        assert err == ""
        assert [record["sequence"] for record in of(records, "requests")] == [1]
        assert [record["request_id"] for record in of(records, "done")] == ["b"]
        assert {record["request_seq"] for record in of(records, "tokens")} == {1}
        assert (of(records, "inflight"), of(records, "errors")) == ([], [])
        assert (coverage(records, "tokens")["read"], coverage(records, "tokens")["shown"]) == (9, 3)

    def test_an_id_that_was_used_twice_is_both_requests(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _, records, _ = dumped(capsys, run_dir, "--request-id", "a", "--what", "tokens")
        assert {record["request_seq"] for record in of(records, "tokens")} == {0, 2}

    def test_a_request_whose_own_record_is_gone_is_known_by_its_checksum(
        self, run_dir: Path, writes: Router, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for n in range(CAPACITY):
            writes.finish(100 + n, "later")
        _, records, err = dumped(capsys, run_dir, "--request-id", "b")
        assert err == ""
        assert of(records, "done") == []
        assert {record["request_seq"] for record in of(records, "tokens")} == {1}

    def test_a_long_id_is_found_by_what_was_kept_of_it(
        self, run_dir: Path, writes: Router, capsys: pytest.CaptureFixture[str]
    ) -> None:
        long = "ü" * 50
        writes.finish(50, long[:32])
        _, records, _ = dumped(capsys, run_dir, "--request-id", long, "--what", "done")
        assert [record["request_seq"] for record in of(records, "done")] == [50]

    def test_an_id_that_nobody_knows_is_said(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, records, err = dumped(capsys, run_dir, "--request-id", "x")
        assert code == 0
        assert "nothing here is of request 'x'" in err
        assert [record["what"] for record in records if record["what"] not in {"router", "coverage"}] == []

    def test_since_a_while(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        _, records, _ = dumped(capsys, run_dir, "--since", "75s")
        assert [record["request_id"] for record in of(records, "done")] == ["b"]
        assert [record["request_seq"] for record in of(records, "tokens")] == [0, 1, 2, 0, 1, 2]
        assert len(of(records, "inflight")) == 1, "what runs, runs now"
        assert len(of(records, "errors")) == 1
        _, records, _ = dumped(capsys, run_dir, "--since", "0.5m")
        assert len(of(records, "tokens")) == 3
        assert of(records, "errors") == []

    def test_since_a_calendar_time(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        then = datetime.fromtimestamp(time.time() - 75).isoformat()
        _, records, _ = dumped(capsys, run_dir, "--since", then)
        assert len(of(records, "tokens")) == 6

    def test_the_end_of_a_dead_router_is_what_since_counts_from(
        self, run_dir: Path, writes: Router, capsys: pytest.CaptureFixture[str]
    ) -> None:
        writes.fake.beat_at(time.monotonic_ns() - 3600 * S)
        writes.fake.die()
        code, records, _ = dumped(capsys, run_dir, "--since", "30s", "--what", "tokens")
        assert code == 3
        assert len(of(records, "tokens")) == 3

    def test_the_newest_of_each_kind(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        _, records, _ = dumped(capsys, run_dir, "--limit", "1")
        assert [record["sequence"] for record in of(records, "tokens")] == [8]
        assert [record["request_id"] for record in of(records, "done")] == ["b"]
        _, records, _ = dumped(capsys, run_dir, "--limit", "2", "--request-id", "b", "--what", "tokens")
        assert [record["sequence"] for record in of(records, "tokens")] == [4, 7], "of those that are wanted"
        _, records, _ = dumped(capsys, run_dir, "--limit", "0")
        assert {record["what"] for record in records} == {"router", "coverage"}


class TestTrace:
    def test_it_is_valid_and_shows_requests_stages_and_tokens(
        self, run_dir: Path, writes: Router, capsys: pytest.CaptureFixture[str]
    ) -> None:
        writes.finish(0, "a")
        writes.run(1, "b")
        writes.token(0)
        writes.token(1)
        writes.fake.errors.note("an error", time.monotonic_ns())
        assert cli.main(["dump", "--run-dir", str(run_dir), "--format", "chrome"]) == 0
        document = json.loads(capsys.readouterr().out)
        events = check_document(document)
        shown = [event["args"]["request_id"] for event in events if event.get("cat") == "request"]
        assert shown == ["a", "b"]
        assert {"host_first_byte", "decode"} <= {event["name"] for event in events if event.get("cat") == "stage"}
        assert sum(event.get("cat") == "token" for event in events) == 2
        assert sum(event.get("cat") == "error" for event in events) == 1
        assert events[0]["args"]["name"].startswith("ringrouter main, pid ")
        other = document["otherData"]
        assert (other["schema"], other["state"]) == ("ringrouter.dump/1", "alive")
        assert other["problems"] == []
        assert other["coverage"]["tokens"] == {
            "published": 2, "overwritten": 0, "lost_while_reading": 0, "damaged": 0, "read": 2,
        }  # fmt: skip

    def test_it_can_be_of_one_request(self, run_dir: Path, writes: Router, capsys: pytest.CaptureFixture[str]) -> None:
        for seq, request_id in enumerate("ab"):
            writes.finish(seq, request_id)
            writes.token(seq)
        cli.main(["dump", "--run-dir", str(run_dir), "--format", "chrome", "--request-id", "b"])
        events = check_document(json.loads(capsys.readouterr().out))
        assert {event["args"]["request_seq"] for event in events if event.get("cat") in {"request", "token"}} == {1}


class TestWhich:
    def test_the_generation_before_a_restart(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        first = FakeRouter(run_dir / "main")
        first.finish("old")
        first.die()
        second = FakeRouter(run_dir / "main")
        second.finish("new")
        code, records, _ = dumped(capsys, run_dir, "--what", "done")
        assert (code, of(records, "done")[0]["request_id"]) == (0, "new")
        for name in ("previous", first.directory.name):
            code, records, _ = dumped(capsys, run_dir, "--what", "done", "--generation", name)
            assert (code, of(records, "done")[0]["request_id"]) == (3, "old"), "its router is not alive"
            assert records[0]["state"] == "restarted"
        second.die()

    def test_a_generation_that_is_not_there_is_1(
        self, run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name, message in (("previous", "no generation before"), ("7", "no generation 7; there are")):
            code, _, err = dumped(capsys, run_dir, "--generation", name)
            assert code == 1
            assert message in err


class TestExitCodes:
    def test_no_ring_is_1(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert dumped(capsys, run_dir)[0] == 1

    @pytest.mark.parametrize(
        "options",
        [
            ["--what", "tokens,fish"],
            ["--what", ""],
            ["--what", "requests", "--format", "chrome"],
            ["--since", "soon"],
            ["--since", "3 s"],
        ],
    )
    def test_what_cannot_be_understood_is_2(
        self, run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str], options: list[str]
    ) -> None:
        code, records, err = dumped(capsys, run_dir, *options)
        assert (code, records) == (2, [])
        assert options[0] in err

    def test_a_dead_router_is_3_and_shown(
        self, run_dir: Path, writes: Router, capsys: pytest.CaptureFixture[str]
    ) -> None:
        writes.run(0, "a")
        writes.token(0)
        writes.fake.die()
        code, records, _ = dumped(capsys, run_dir)
        assert code == 3
        assert (len(of(records, "inflight")), len(of(records, "tokens"))) == (1, 1)

    def test_a_hung_router_is_4(self, run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]) -> None:
        fake.beat_at(time.monotonic_ns() - 60 * S)
        assert dumped(capsys, run_dir)[0] == 4

    def test_another_layout_is_5(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        fake = FakeRouter(run_dir / "main", schema=(rec.RECORD_SCHEMA[0] + 1, 0))
        assert dumped(capsys, run_dir)[0] == 5
        fake.die()


def test_a_router_that_keeps_no_errors_has_none(
    run_dir: Path, fake: FakeRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    (fake.directory / "errors").unlink()
    code, records, _ = dumped(capsys, run_dir, "--what", "errors")
    assert code == 0
    assert coverage(records, "errors") == {"read": 0, "shown": 0}


def test_dumping_loads_no_event_loop(run_dir: Path, fake: FakeRouter) -> None:
    program = (
        "import sys; from router.cli import main; main(sys.argv[1:]);"
        "sys.stderr.write(' '.join({'uvloop', 'zmq', 'aiohttp', 'asyncio'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, "dump", "--run-dir", str(run_dir)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stderr == ""


@pytest.mark.parametrize("command", ["dump", "stats"])
def test_an_interrupt_is_130(
    run_dir: Path, fake: FakeRouter, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(snapshot if command == "dump" else time, "take" if command == "dump" else "sleep", interrupt)
    assert cli.main([command, "--run-dir", str(run_dir)]) == 130
    assert capsys.readouterr() == ("", "")
