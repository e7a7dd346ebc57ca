"""``python -m ringbuffer stats`` on segments that were damaged after they were made: what is damaged is named in one
line, the rest is shown, and nothing ever ends in a traceback or takes for ever.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest

import ringbuffer as rb
from ringbuffer import cli, sample, stats
from ringbuffer.layout import (
    CONSUMER_BYTES,
    CONSUMER_HANDED,
    CONSUMER_HEARTBEAT,
    CONSUMER_PID,
    CONSUMER_RELEASED,
    EXTRA_OFFSET,
    HEARTBEAT_OFFSET,
    PAGE_BYTES,
    PUBLISHED_OFFSET,
)
from tests.support.segment_damage import damage

SCHEMA = (1, 0)
CASES = 200
DAMAGES_MAX = 4
LOOK_S_MAX = 5.0
"""A look takes a millisecond or two; no number in a file may make it take thousands of times as long."""


def make(directory: Path) -> None:
    """Make a small dead generation of every kind of segment."""
    generation = rb.Generation.create(directory)
    path = generation.path
    tokens = rb.BroadcastWriter.create(
        path / "tokens", slot_count=16, slot_size=64, record_schema=SCHEMA, name="tokens"
    )
    work = rb.GatingProducer.create(path / "work", slot_count=8, slot_size=64, record_schema=SCHEMA, name="work")
    rb.GatingConsumer.register(path / "work", "worker")
    table = rb.TableWriter.create(path / "table", row_count=4, row_size=64, record_schema=SCHEMA, name="table")
    names = rb.AppendWriter.create(path / "names", row_count=4, row_size=64, record_schema=SCHEMA, name="names")
    counters = rb.CountersWriter.create(path / "counters", [rb.CounterSpec(3, "n", "things", "things counted")])
    errors = rb.DistinctErrorsWriter.create(path / "errors", row_count=4)
    position = rb.ReaderPosition.create(path, "observer", "tokens")
    for n in range(20):
        tokens.publish(n, n, n, n, n, n, n)
        work.try_publish(n, n, n, n, n, n, n)
    table.write(1, b"row")
    names.append(b"name")
    counters.add(3)
    errors.note("a fault", time.monotonic_ns())
    position.store(3)
    generation.activate()
    for each in (tokens, work, table, names, counters, errors):
        each.close()
    position.segment.close()
    generation.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "main"
    make(directory)
    return directory


@pytest.fixture
def copy(tmp_path: Path, whole: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "main", symlinks=True))


def files_of(instance: Path) -> list[Path]:
    return sorted(path for path in rb.find_current(instance).rglob("*") if path.is_file())


def run_stats(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["stats", *map(str, arguments)])
    return code, *capsys.readouterr()


def set_word(path: Path, offset: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(value.to_bytes(8, "little"))


def test_whatever_is_damaged_stats_says_so_and_shows_the_rest(
    tmp_path: Path, whole: Path, backend: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "RATE_WINDOW_S", 0)
    for seed in range(CASES):
        rng = random.Random(seed)
        instance = Path(shutil.copytree(whole, tmp_path / str(seed), symlinks=True))
        generation = rb.find_current(instance)
        files = files_of(instance)
        done = [damage(rng, path) for path in rng.sample(files, rng.randrange(1, DAMAGES_MAX))]
        began_s = time.monotonic()
        code, out, err = run_stats(capsys, instance, *files, "--json")
        text = run_stats(capsys, instance, *files)
        assert time.monotonic() - began_s < LOOK_S_MAX, (seed, done)
        assert code in {1, 3, 5}, (seed, done, code)
        assert text[0] == code, (seed, done)
        assert all(line.startswith("ringbuffer: ") for line in (err + text[2]).splitlines()), (seed, done, err)
        assert all(json.loads(line)["schema"] == stats.SCHEMA for line in out.splitlines()), (seed, done)
        assert all(line.isprintable() for line in text[1].splitlines()), (seed, done, text[1])
        look_through_the_api(generation, files, (seed, done))
        shutil.rmtree(instance)


def look_through_the_api(generation: Path, files: list[Path], case: object) -> None:
    """Read everything as a program would: nothing is raised but the errors of the package."""
    for path in files:
        for attach in (
            lambda path: rb.BroadcastReader.attach(path, "oldest").poll(1000),
            lambda path: list(rb.TableReader.attach(path).rows()),
            lambda path: rb.AppendReader.attach(path).read_from(0),
            lambda path: rb.CountersReader.attach(path).read(),
            lambda path: rb.DistinctErrorsReader.attach(path).read(),
            rb.writer_state,
        ):
            try:
                attach(path)
            except rb.RingError:
                continue
            except Exception as error:
                raise AssertionError(case) from error


class TestWhatIsNamed:
    """The damage that was met in practice, each with the line it gets."""

    @pytest.mark.parametrize(
        ("name", "offset", "value", "said"),
        [
            ("names", PUBLISHED_OFFSET, 10**12, "names says that 1000000000000 rows are written, it has 4"),
            ("errors", PUBLISHED_OFFSET, 5, "errors says that 5 rows are written, it has 4"),
            ("errors", PAGE_BYTES + 8, 2**63, f"errors has an error at {2**63} ns, the limit is {2**63 - 1}"),
            ("counters", 3 * PAGE_BYTES, 1024, "counters has a broken catalogue: id is 1024, must be below 1024"),
            ("tokens", 0x28, 8, "tokens has a broken header: slot_size is 8, must be a multiple of 8, 16 to 1048576"),
            ("tokens", 0x58, 2**64 - 1, f"tokens has a broken header: anchor_wall_ns is {2**64 - 1}, must be at most"),
            ("tokens", 0x18, 9, "tokens is of kind 9, known are 1 to 7"),
            ("readers/observer", 0x28, 16, "observer has a broken header: slot_size is 16, READER_POSITION needs 64"),
        ],
    )
    def test_it_has_its_line_and_hides_nothing_else(
        self, copy: Path, capsys: pytest.CaptureFixture[str], name: str, offset: int, value: int, said: str
    ) -> None:
        set_word(rb.find_current(copy) / name, offset, value)
        code, out, _ = run_stats(capsys, copy)
        assert code == 3
        (line,) = [line for line in out.splitlines() if line.startswith("cannot be read: ")]
        assert line.startswith(f"cannot be read: {Path(name).name}: /")
        assert said in line
        others = {"tokens", "work", "table", "names"} - {name}
        assert others <= {line.partition(":")[0] for line in out.splitlines()}

    def test_a_ring_by_itself_is_an_error(self, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        names = rb.find_current(copy) / "names"
        set_word(names, PUBLISHED_OFFSET, 10**12)
        assert run_stats(capsys, names) == (
            1,
            "",
            f"ringbuffer: {names} says that {10**12} rows are written, it has 4\n",
        )

    def test_words_that_move_may_be_anything(
        self, copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cli, "RATE_WINDOW_S", 0)
        generation = rb.find_current(copy)
        row = EXTRA_OFFSET
        assert row + CONSUMER_BYTES <= PAGE_BYTES
        for offset in (HEARTBEAT_OFFSET, PUBLISHED_OFFSET, *(row + each for each in (
            CONSUMER_PID, CONSUMER_RELEASED, CONSUMER_HEARTBEAT, CONSUMER_HANDED,
        ))):  # fmt: skip
            for value in (0, 2**63, 2**64 - 1):
                set_word(generation / "work", offset, value)
                code, out, _ = run_stats(capsys, generation / "work")
                assert code == 3
                assert out.startswith("work: gating")

    def test_a_folder_of_positions_that_cannot_be_read_is_named_once(
        self, copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = sample.segment_files

        def refuse(directory: Path) -> list[Path]:
            if directory.name == "readers":
                raise rb.AccessDenied(f"{directory} cannot be read: Permission denied")
            return real(directory)

        monkeypatch.setattr(sample, "segment_files", refuse)
        seen = sample.take(copy)
        assert len(seen.segments) == 6
        assert [path.name for path, _ in seen.errors] == ["readers"]

    def test_names_that_are_no_text_can_be_shown(
        self, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        odd = tmp_path / "odd\udcff\n\x1b[2J"
        copy.rename(odd)
        set_word(rb.find_current(odd) / "names", PUBLISHED_OFFSET, 10**12)
        _, out, _ = run_stats(capsys, odd, "--json")
        assert r"/odd\xff\n\x1b[2J/" in json.loads(out)["path"]
        out.encode()
        _, out, _ = run_stats(capsys, odd, "/nowhere")
        assert r"/odd\xff\n\x1b[2J/" in out.splitlines()[0]
