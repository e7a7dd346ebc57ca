"""``stats``, ``dump`` and ``tail`` on what a router left and something damaged: what cannot be true or be read is named
in one line, the rest is shown, and no command ends in a traceback or takes for ever.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from done_records import payload, stamps
from fake_router import HOST_ID, MODEL_ID, FakeRouter

from ringbuffer import RingError, find_current
from router import cli
from router.cli import stats as stats_command
from router.telemetry import records as rec
from router.telemetry.reader import DoneReader
from tests.support.segment_damage import damage

CASES = 100
DAMAGES_MAX = 4
RUN_S_MAX = 10.0
"""A run takes some milliseconds; no number in a file may make it take thousands of times as long."""
HEADER_BYTES = 4096
PUBLISHED = 0x100
SLOT_SIZE = 0x28


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of two routers, one after the other, that are dead: the second one was at work."""
    run_dir = tmp_path_factory.mktemp("left")
    first = FakeRouter(run_dir / "main")
    first.finish("before")
    first.die()
    fake = FakeRouter(run_dir / "main")
    now = time.monotonic_ns()
    for seq in range(70):
        fake.requests.try_publish(now, now, now, MODEL_ID | rec.Endpoint.CHAT << 16, 1, 1, 0)
        fake.finish(f"r-{seq}", request_seq=seq, tag_ids={0: 1})
        fake.tokens.publish(now, seq, rec.Kind.TEXT | HOST_ID << 16, 0, 0, 0, 0)
    attempt = (HOST_ID, 3, 503, now, now, now, now, now)
    fake.finish_late("late")
    fake.finish("again", failed_attempts=[attempt], candidates=[(HOST_ID, 1, 0.5)])
    for row in range(3):
        fake.inflight.write(row, payload(request_seq=100 + row, phase=row + 1, model=1, host=row, stamps=stamps(now)))
    fake.errors.note("host gpu-0: host_closed", now)
    fake.die()
    return run_dir


@pytest.fixture
def copy(tmp_path: Path, left: Path) -> Path:
    return Path(shutil.copytree(left, tmp_path / "run", symlinks=True))


def run(capsys: pytest.CaptureFixture[str], command: str, run_dir: Path, *options: str) -> tuple[int, str, str]:
    code = cli.main([command, "--run-dir", str(run_dir), *options])
    return code, *capsys.readouterr()


def set_bytes(run_dir: Path, name: str, offset: int, raw: bytes) -> None:
    with (find_current(run_dir / "main") / name).open("r+b") as file:
        file.seek(offset)
        file.write(raw)


def set_word(run_dir: Path, name: str, offset: int, value: int) -> None:
    set_bytes(run_dir, name, offset, value.to_bytes(8, "little"))


def records_of(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


class TestAnything:
    COMMANDS: tuple[tuple[str, ...], ...] = (
        ("stats",),
        ("stats", "--json"),
        ("stats", "--all", "--only", "segment=*"),
        ("dump",),
        ("dump", "--format", "chrome"),
        ("dump", "--request-id", "r-69", "--since", "1h", "--limit", "5", "--json"),
        ("dump", "--generation", "previous"),
        ("tail", "--no-follow", "-n", "1000", "--json"),
        ("tail", "--no-follow", "--where", "host=gpu-0"),
    )

    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stats_command, "RATE_WINDOW_S", 0)

    def test_whatever_is_damaged_every_command_says_so(
        self, tmp_path: Path, left: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for seed in range(CASES):
            rng = random.Random(seed)
            run_dir = Path(shutil.copytree(left, tmp_path / str(seed), symlinks=True))
            files = sorted(path for path in find_current(run_dir / "main").iterdir() if path.is_file())
            done = [damage(rng, path) for path in rng.sample(files, rng.randrange(1, DAMAGES_MAX))]
            self.run_all(run_dir, capsys, f"seed {seed}: {done}")
            shutil.rmtree(run_dir)

    @pytest.mark.parametrize("target", ["", "nowhere", "generation", "\udcff\n", "9" * 200, "²", "../main", "n" * 300])
    def test_wherever_current_points(self, copy: Path, capsys: pytest.CaptureFixture[str], target: str) -> None:
        current = copy / "main" / "current"
        generation = find_current(copy / "main")
        current.unlink()
        if not target:
            current.mkdir()
        else:
            if target in {"generation", "\udcff\n", "²"}:
                shutil.copytree(generation, copy / "main" / target)
            current.symlink_to(target)
        self.run_all(copy, capsys, repr(target))

    def run_all(self, run_dir: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
        for command, *options in self.COMMANDS:
            what = f"{case}, {command} {options}"
            began_s = time.monotonic()
            try:
                code, out, err = run(capsys, command, run_dir, *options)
            except Exception as error:
                raise AssertionError(what) from error
            assert time.monotonic() - began_s < RUN_S_MAX, what
            assert code in {0, 1, 3, 5}, what
            assert all(line.startswith("ringrouter: ") for line in err.splitlines()), (what, err)
            assert out or err, what
            out.encode()
            if "chrome" in options and out:
                assert json.loads(out)["traceEvents"] is not None, what
            elif "--json" in options or command == "dump":
                assert all("schema" in record for record in records_of(out)), what
            else:
                assert all(line.isprintable() for line in out.splitlines()), (what, out)


class TestStats:
    """What was met in practice, each with the line it gets."""

    @pytest.mark.parametrize(
        ("name", "offset", "value", "said"),
        [
            ("names.tab", PUBLISHED, 10**12, f"says that {10**12} rows are written, it has 64"),
            ("done.ring", SLOT_SIZE, 16, "done.ring has slots of 16 bytes, its records have 1024"),
            ("tokens.ring", SLOT_SIZE, 8, "slot_size is 8, must be a multiple of 8, 16 to 1048576"),
            ("inflight.tab", SLOT_SIZE, 64, "inflight.tab has slots of 64 bytes, its records have 1024"),
        ],
    )
    def test_a_damaged_segment_is_named_once_and_the_rest_is_shown(
        self, copy: Path, capsys: pytest.CaptureFixture[str], name: str, offset: int, value: int, said: str
    ) -> None:
        set_word(copy, name, offset, value)
        code, out, err = run(capsys, "stats", copy)
        assert (code, err) == (3, "")
        (line,) = [line for line in out.splitlines() if said in line]
        assert name in line
        assert "cannot be read" in line
        assert out.startswith("ringrouter main: pid ")
        assert "requests: gating" in out
        assert "observations from" in out or "1 observation at" in out
        if name != "done.ring":
            assert f"finished requests: last {out.partition('finished requests: last ')[2].split(',')[0]}, n=64" in out

    def test_damaged_records_are_counted_and_left_out(self, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for slot in (3, 5):
            set_bytes(copy, "done.ring", HEADER_BYTES + slot * 1024 + 8, b"\xff" * 1016)
        set_bytes(copy, "inflight.tab", HEADER_BYTES + 1024 + 8, b"\xff" * 1016)
        code, out, _ = run(capsys, "stats", copy)
        lines = out.splitlines()
        assert code == 3
        limit = f"{2**64 - 1} ns, the limit is {2**63 - 1}"
        assert f"      done.ring: 2 damaged records are left out, number 69: recv is {limit}" in lines
        assert f"      inflight.tab: 1 damaged record is left out, number 1: recv is {limit}" in lines
        assert "n=62 of 72" in out
        report = json.loads(run(capsys, "stats", copy, "--json")[1])
        assert len(report["problems"]) == 2

    @pytest.mark.parametrize("name", ["done.ring", "names.tab", "inflight.tab", "tokens.ring", "counters"])
    def test_a_missing_segment_hides_no_other(self, copy: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
        (find_current(copy / "main") / name).unlink()
        code, out, err = run(capsys, "stats", copy)
        assert (code, err) == (3, "")
        assert "requests: gating" in out
        if name in {"done.ring", "names.tab", "inflight.tab"}:
            assert f"      {name} cannot be read: " in out
        if name == "names.tab":
            assert " #1 " in out, "hosts and models are numbers then"

    def test_a_current_that_is_no_number_is_told(self, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        current = copy / "main" / "current"
        find_current(copy / "main").rename(copy / "main" / "odd")
        current.unlink()
        current.symlink_to("odd")
        code, out, _ = run(capsys, "stats", copy)
        assert code == 3
        assert (
            "      current points to 'odd', a generation is named by a number: what came before it is not known" in out
        )
        assert "finished requests: last" in out
        code, out, err = run(capsys, "dump", copy, "--generation", "previous")
        assert (code, out) == (1, "")
        assert "current points to 'odd', a generation is named by a number" in err

    def test_names_that_are_no_text_are_shown_escaped(self, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (copy / "main").rename(copy / "odd\udcff")
        for options in ((), ("--json",)):
            code, out, _ = run(capsys, "stats", copy, "--instance", "odd\udcff", *options)
            assert code == 3
            assert "odd\\xff" in (json.loads(out)["instance"] if options else out)
        code, out, _ = run(capsys, "dump", copy, "--instance", "odd\udcff")
        assert (code, records_of(out)[0]["instance"]) == (3, "odd\\xff")
        code, out, _ = run(capsys, "dump", copy, "--instance", "odd\udcff", "--format", "chrome")
        assert (code, json.loads(out)["otherData"]["instance"]) == (3, "odd\\xff")

    @pytest.mark.parametrize(("command", "options"), [("stats", ()), ("stats", ("--all",)), ("dump", ()), ("tail", ())])
    def test_a_path_that_is_too_long_is_told(
        self, copy: Path, capsys: pytest.CaptureFixture[str], command: str, options: tuple[str, ...]
    ) -> None:
        code, out, err = run(capsys, command, copy / ("n" * 300), *options)
        assert (code, out) == (1, "")
        assert err.startswith("ringrouter: no router to look at: ")
        assert "File name too long" in err

    def test_an_instance_that_may_not_be_read_hides_no_other(
        self, copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copytree(copy / "main", copy / "closed", symlinks=True)
        readlink = os.readlink

        def refuse(path: Path) -> str:
            if path.parent.name == "closed":
                raise PermissionError(13, "Permission denied", str(path))
            return readlink(path)

        monkeypatch.setattr(os, "readlink", refuse)
        code, out, err = run(capsys, "stats", copy, "--all")
        assert code == 3
        assert "closed cannot be read: Permission denied" in err
        assert out.startswith("ringrouter main: ")


class TestDump:
    @pytest.fixture
    def complete(self, copy: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
        code, out, err = run(capsys, "dump", copy)
        assert (code, err) == (3, "")
        return records_of(out)

    @pytest.mark.parametrize("how", ["missing", "truncated", "damaged"])
    @pytest.mark.parametrize(
        ("what", "file"), [("done", "done.ring"), ("tokens", "tokens.ring"), ("inflight", "inflight.tab")]
    )
    def test_what_is_not_there_is_named_and_the_rest_is_shown(
        self,
        copy: Path,
        capsys: pytest.CaptureFixture[str],
        complete: list[dict[str, Any]],
        how: str,
        what: str,
        file: str,
    ) -> None:
        path = find_current(copy / "main") / file
        if how == "missing":
            path.unlink()
        elif how == "truncated":
            path.write_bytes(path.read_bytes()[:5000])
        else:
            set_word(copy, file, SLOT_SIZE, 24)
        code, out, err = run(capsys, "dump", copy)
        records = records_of(out)
        assert code == 1, "this is not all that was asked for"
        (problem,) = [record for record in records if record["what"] == "problem"]
        assert problem["of"] == what
        assert str(path) in problem["reason"]
        assert err == f"ringrouter: {what}: {problem['reason']}\n"
        kinds = {record["what"] for record in records}
        assert kinds == {record["what"] for record in complete} - {what} | {"problem"}
        (covered,) = [record for record in records if record["what"] == "coverage" and record["of"] == what]
        assert (covered["read"], covered["shown"], "published" in covered) == (0, 0, False)
        assert records[0]["boot_id"] == complete[0]["boot_id"], "any segment tells the clocks"
        code, out, _ = run(capsys, "dump", copy, "--format", "chrome")
        assert code == 1
        assert json.loads(out)["otherData"]["problems"] == [{"of": what, "reason": problem["reason"]}]
        others = ",".join({"done", "tokens", "inflight", "requests"} - {what})
        assert run(capsys, "dump", copy, "--what", others)[0] == 3, "nothing of that is missing"
        assert run(capsys, "dump", copy, "--what", what)[:2] == (1, ""), "and here is nothing else"

    def test_without_names_there_are_numbers(self, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (find_current(copy / "main") / "names.tab").unlink()
        code, out, err = run(capsys, "dump", copy, "--what", "done", "--limit", "1")
        assert code == 1
        assert "ringrouter: names: " in err
        (done,) = [record for record in records_of(out) if record["what"] == "done"]
        assert (done["host"], done["model"]) == ("#1", "#1")

    def test_damaged_records_are_counted_and_left_out(self, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        set_bytes(copy, "done.ring", HEADER_BYTES + 3 * 1024 + 8, b"\xff" * 1016)
        set_word(copy, "tokens.ring", HEADER_BYTES + 9 * 64 + 8, 2**63)
        code, out, err = run(capsys, "dump", copy)
        assert code == 1
        said = f"done.ring: 1 damaged record is left out, number 67: recv is {2**64 - 1} ns, the limit is {2**63 - 1}"
        assert f"ringrouter: done: {said}" in err.splitlines()
        records = records_of(out)
        assert {record["of"] for record in records if record["what"] == "problem"} == {"done", "tokens"}
        for covered in (record for record in records if record["what"] == "coverage"):
            if "published" in covered:
                parts = ("overwritten", "lost_while_reading", "damaged", "read")
                assert sum(covered[part] for part in parts) == covered["published"]
                assert covered["damaged"] == (covered["of"] != "requests")

    def test_a_count_that_no_slot_bears_out_is_named(self, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        set_word(copy, "tokens.ring", PUBLISHED, 10**12)
        code, _, err = run(capsys, "dump", copy)
        assert code == 1
        assert f"says that {10**12} records are published, none of its 64 slots has such" in err

    def test_one_of_another_version_is_5(self, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        set_word(copy, "tokens.ring", 0x30, 99 << 32)
        code, out, _ = run(capsys, "dump", copy)
        assert code == 5
        assert "done" in {record["what"] for record in records_of(out)}

    def test_nothing_at_all_is_an_error(self, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for path in find_current(copy / "main").iterdir():
            if path.is_file():
                path.unlink()
        code, out, err = run(capsys, "dump", copy)
        assert (code, out) == (1, "")
        assert "no router to look at" in err

    def test_a_generation_without_any_header_is_an_error(self, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for path in find_current(copy / "main").iterdir():
            if path.is_file():
                path.unlink()
        assert run(capsys, "dump", copy, "--what", "errors")[:2] == (1, "")

    def test_json_is_the_format_that_it_has_anyway(
        self, copy: Path, capsys: pytest.CaptureFixture[str], complete: list[dict[str, Any]]
    ) -> None:
        code, out, _ = run(capsys, "dump", copy, "--json")
        assert code == 3
        assert records_of(out)[1:] == complete[1:]
        code, out, err = run(capsys, "dump", copy, "--json", "--format", "chrome")
        assert (code, out) == (2, "")
        assert err == "ringrouter: --json asks for JSON lines, --format chrome for a trace: only one of them\n"


def test_tail_leaves_damaged_requests_out_and_says_so(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_bytes(copy, "done.ring", HEADER_BYTES + 3 * 1024 + 8, b"\xff" * 1016)
    code, out, _ = run(capsys, "tail", copy, "--no-follow", "-n", "10", "--json")
    assert code == 0
    records = records_of(out)
    assert len(records) == 10
    assert "1 damaged record is left out, number 67" in records[-1]["note"]


def test_a_reader_of_small_slots_leaves_no_position(copy: Path) -> None:
    set_word(copy, "done.ring", SLOT_SIZE, 16)
    generation = find_current(copy / "main")
    with pytest.raises(RingError):
        DoneReader(generation, "oldest", "somebody")
    assert list((generation / "readers").iterdir()) == []
