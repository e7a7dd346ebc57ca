"""SIGKILL at every step of creating and publishing: what readers find then, and that a successor can begin."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

import ringbuffer as rb
from ringbuffer.segment import is_locked
from tests.crash.crash_child import BATCH, BEFORE, SCHEMA, SLOT_COUNT, record_of

CHILD = Path(__file__).with_name("crash_child.py")
PACKAGE = Path(rb.__file__).parent
ROOT = PACKAGE.parent
STEP_SOURCE = """
#include <signal.h>
#include <unistd.h>
int64_t ring_steps_left;
static inline void ring_step(void) {
    if (ring_steps_left > 0 && --ring_steps_left == 0) {
        kill(getpid(), SIGKILL);
    }
}
"""


class Mortal:
    """The program whose forks are killed."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, CHILD, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    def play(self, role: str, step: int, path: Path) -> bool:
        """Let a fork play a role up to a step; tell whether it was killed there, or has come to its end before."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{role} {step} {path}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        assert answer in {"killed", "done"}, f"{role}, step {step}: {answer}"
        return answer == "killed"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="session")
def counting_extension(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The C extension, built so that each store to a shared word is a step."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed (Debian package gcc)")
    directory = tmp_path_factory.mktemp("stepped")
    for each in (PACKAGE / "_words.c", *PACKAGE.glob("*.h")):
        shutil.copy(each, directory)
    source = (PACKAGE / "_ring.h").read_text(encoding="utf-8")
    for order in ("relaxed", "release"):
        store = f"atomic_store_explicit(word, value, memory_order_{order});"
        assert store in source
        source = source.replace(store, f"ring_step(); {store}")
    first_function = "/* ----------------------------------------------------------------- words */"
    assert first_function in source
    (directory / "_ring.h").write_text(source.replace(first_function, STEP_SOURCE))
    library = directory / "_words.so"
    flags = ["-std=c11", "-O1", "-fPIC", "-shared", "-DPy_LIMITED_API=0x030b0000", "-D_GNU_SOURCE"]
    include = f"-I{sysconfig.get_paths()['include']}"
    subprocess.run([compiler, *flags, include, str(directory / "_words.c"), "-o", str(library)], check=True)
    return str(library)


@pytest.fixture(scope="module")
def mortal(request: pytest.FixtureRequest) -> Iterator[Mortal]:
    kind, backend = request.param.split("-")
    if backend == "c":
        pytest.importorskip("ringbuffer._words", reason="the C extension was not built: no compiler")
    extension = [request.getfixturevalue("counting_extension")] if kind == "stores" else []
    child = Mortal(backend, kind, *extension)
    yield child
    child.close()


@pytest.fixture
def every_step(mortal: Mortal, tmp_path: Path) -> Callable[[str], Iterator[tuple[Path, bool]]]:
    """Play a role again and again, killed one step later each time; the last time it comes to its end."""

    def play(role: str) -> Iterator[tuple[Path, bool]]:
        for step in count(1):
            directory = tmp_path / str(step)
            directory.mkdir()
            killed = mortal.play(role, step, directory)
            yield directory, killed
            if not killed:
                assert step > 2, "there are steps to be killed at"
                return
            shutil.rmtree(directory)

    return play


Steps = Callable[[str], Iterator[tuple[Path, bool]]]
in_lines = pytest.mark.parametrize("mortal", ["lines-plain", "lines-c"], indirect=True)
"""Python does it, on both backends."""
in_words = pytest.mark.parametrize("mortal", ["lines-plain", "stores-c"], indirect=True)
"""The backend does it: every line of the plain one, every store of the other."""


def create_successor(path: Path) -> None:
    """Create a ring where a dead writer's is, or was to be, and read from it."""
    inode = path.stat().st_ino if path.exists() else 0
    writer = rb.BroadcastWriter.create(path, slot_count=8, slot_size=64, record_schema=SCHEMA, name="successor")
    assert path.stat().st_ino != inode, "a successor builds a file of its own: nothing is repaired"
    reader = rb.BroadcastReader.attach(path, join="oldest")
    assert writer.publish(7, 0, 0, 0, 0, 0, 0) == 0, "its sequence begins anew"
    assert [sequence for sequence, _ in reader.poll(9)] == [0]
    assert is_locked(path)
    writer.close()


@in_lines
def test_a_ring_is_there_whole_or_not_at_all(every_step: Steps) -> None:
    seen = set()
    for directory, killed in every_step("create_ring"):
        path = directory / "ring"
        seen.add(path.exists())
        if path.exists():
            reader = rb.BroadcastReader.attach(path)
            assert (reader.header.slot_count, reader.header.name, reader.poll(9)) == (SLOT_COUNT, "tokens", [])
            assert rb.writer_state(path) == "dead"
        else:
            assert killed
            with pytest.raises(rb.Missing):
                rb.BroadcastReader.attach(path)
        create_successor(path)
    assert seen == {True, False}


@in_lines
def test_current_is_a_whole_generation_at_every_step(every_step: Steps) -> None:
    currents = set()
    for directory, _ in every_step("create_generation"):
        names = sorted((each.name for each in directory.iterdir() if each.name.isdigit()), key=int)
        current = rb.find_current(directory)
        currents.add(names.index(current.name))
        assert rb.writer_state(directory) == "dead"
        rb.BroadcastReader.attach(current / "ring")
        assert rb.writer_state(directory / names[0]) == ("dead" if current.name == names[0] else "restarted")
        successor = rb.Generation.create(directory)
        successor.activate()
        assert rb.find_current(directory) == successor.path
        left = {each.name for each in directory.iterdir()} - {"current", "writer.lock"}
        assert left == {current.name, successor.path.name}, "the successor keeps one generation, and no half-built one"
        successor.close()
    assert currents == {0, 1}, "killed before the switch, and after it"


@in_words
@pytest.mark.parametrize(("role", "size"), [("publish_words", 1), ("publish_record", 1), ("publish_batch", BATCH)])
def test_a_lossy_reader_gets_whole_records_and_an_exact_count(every_step: Steps, role: str, size: int) -> None:
    ends = set()
    for directory, killed in every_step(role):
        path = directory / "ring"
        reader = rb.BroadcastReader.attach(path, join=0)
        records = reader.poll(100)
        end = reader.segment.published
        assert all(payload == record_of(sequence) for sequence, payload in records), "no record is torn"
        assert len(records) + reader.lost == end == reader.position
        assert {sequence for sequence, _ in records} >= set(range(BEFORE + size - SLOT_COUNT, end))
        assert killed or end == BEFORE + size
        ends.add(end)
        create_successor(path)
        assert reader.poll(9) == [], "who has the old file goes on with it"
    assert ends == {BEFORE, BEFORE + size}, "a record, and a batch, is published in one step"


@in_words
@pytest.mark.parametrize(("role", "size"), [("gating_words", 1), ("gating_batch", BATCH), ("gating_claim", BATCH)])
def test_a_consumer_finds_all_that_was_published_and_nothing_else(every_step: Steps, role: str, size: int) -> None:
    ends = set()
    for directory, killed in every_step(role):
        path = directory / "ring"
        consumer = rb.GatingConsumer.register(path, "heir")  # begins at the end
        _, end = consumer.poll(100)
        observer = rb.BroadcastReader.attach(path, join=BEFORE - 1)
        expected = [(n, record_of(n)) for n in range(BEFORE - 1, end)]
        assert observer.poll(100) == expected, "the unreleased record is there, and all behind it"
        assert killed or end == BEFORE + size
        ends.add(end)
        consumer.close()
        create_successor(path)
    assert ends == {BEFORE, BEFORE + size}, "all of a batch, or none"


@in_lines
@pytest.mark.parametrize("role", ["register", "leave"])
def test_a_consumer_killed_while_it_comes_or_goes_gates_no_more(mortal: Mortal, tmp_path: Path, role: str) -> None:
    producer = rb.GatingProducer.create(
        tmp_path / "ring", slot_count=SLOT_COUNT, slot_size=64, record_schema=SCHEMA, name="requests", consumers_max=1
    )
    dropped = set()
    for step in count(1):
        killed = mortal.play(role, step, tmp_path)
        dropped.add(tuple(producer.drop_dead_consumers()))
        for _ in range(2 * SLOT_COUNT):
            assert producer.try_publish(0, 0, 0, 0, 0, 0, 0) >= 0, "nobody gates"
        rb.GatingConsumer.register(tmp_path / "ring", "next").close()  # the row is free, and so is its lock
        if not killed:
            break
    assert dropped == {(), ("doomed",)}
    producer.close()


@in_words
@pytest.mark.parametrize(
    ("role", "allowed"),
    [("write_row", [record_of(1), None, record_of(2)]), ("clear_row", [record_of(1), None, None])],
    ids=["write", "clear"],
)
def test_a_row_is_old_or_new_or_torn_and_counted(every_step: Steps, role: str, allowed: list[bytes | None]) -> None:
    found = []
    for directory, _ in every_step(role):
        reader = rb.TableReader.attach(directory / "ring")
        row = reader.read(1)
        if row is None and role == "write_row":
            assert reader.torn_count == 1
        found.append(row)
        assert reader.read(0) == record_of(0), "other rows do not suffer"
    stages = [each for i, each in enumerate(found) if i == 0 or each != found[i - 1]]
    assert stages == [each for i, each in enumerate(allowed) if i == 0 or each != allowed[i - 1]]


@in_lines
def test_an_appended_row_counts_when_it_is_whole(every_step: Steps) -> None:
    found = []
    for directory, _ in every_step("append_row"):
        rows = rb.AppendReader.attach(directory / "ring").read_from(0)
        assert rows == [record_of(n) for n in range(len(rows))]
        found.append(len(rows))
    assert sorted(set(found)) == [1, 2]


@in_lines
def test_distinct_errors_can_be_read_at_every_step(every_step: Steps) -> None:
    found = set()
    for directory, _ in every_step("note_errors"):
        errors = rb.DistinctErrorsReader.attach(directory / "ring").read()
        assert [each.text for each in errors] in (["first"], ["first", "second"])
        assert all((each.text, each.first_ns) in {("first", 1), ("second", 2)} for each in errors)
        found.add(tuple(each.count for each in errors))
    assert found == {(1,), (1, 1), (2, 1)}
