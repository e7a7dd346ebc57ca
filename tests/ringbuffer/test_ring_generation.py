from __future__ import annotations

import errno
import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

from ringbuffer import (
    AccessDenied,
    BroadcastWriter,
    Generation,
    Missing,
    WriterAlive,
    find_current,
    find_generations,
    process,
    writer_state,
)
from ringbuffer.generation import generation_number

NS_PER_S = 1_000_000_000


def start(instance: Path) -> tuple[Generation, BroadcastWriter]:
    generation = Generation.create(instance)
    writer = BroadcastWriter.create(
        generation.path / "tokens.ring", slot_count=4, slot_size=64, record_schema=(1, 0), name="tokens"
    )
    return generation, writer


def stop(generation: Generation, writer: BroadcastWriter) -> None:
    writer.close()
    generation.close()


def test_current_appears_only_when_the_generation_is_activated(tmp_path: Path) -> None:
    generation, writer = start(tmp_path / "run" / "instance")
    with pytest.raises(Missing):
        find_current(generation.instance_dir)
    generation.activate()
    assert find_current(generation.instance_dir) == generation.path
    assert (generation.instance_dir / "current").readlink() == Path(generation.path.name), "relative: it can be mounted"
    assert stat.S_IMODE((generation.path / "readers").stat().st_mode) == 0o770
    stop(generation, writer)


def test_an_instance_has_one_writer(tmp_path: Path) -> None:
    generation, writer = start(tmp_path)
    with pytest.raises(WriterAlive) as caught:
        Generation.create(tmp_path)
    assert caught.value.pid == os.getpid()
    assert find_only_generation(tmp_path) == generation.path, "the refused one left nothing"
    stop(generation, writer)
    stop(*start(tmp_path))


def find_only_generation(instance: Path) -> Path:
    (found,) = (path for path in instance.iterdir() if path.is_dir())
    return found


def test_the_generation_before_is_kept_and_older_ones_are_deleted(tmp_path: Path) -> None:
    paths = []
    for _ in range(4):
        generation, writer = start(tmp_path)
        generation.activate()
        paths.append(generation.path)
        stop(generation, writer)
    assert [path.exists() for path in paths] == [False, False, True, True]
    assert paths == sorted(paths, key=lambda path: int(path.name)), "named by their start, monotonic"


def test_generations_are_found_oldest_first_and_nothing_else_is(tmp_path: Path) -> None:
    for name in ("10", "9", "notes", ".11.tmp", "²", "12x"):
        (tmp_path / name).mkdir()
    assert [path.name for path in find_generations(tmp_path)] == ["9", "10"]
    assert [generation_number(tmp_path / name) for name in ("9", "²", "notes")] == [9, None, None]


def test_a_generation_that_was_never_activated_is_deleted_by_the_next(tmp_path: Path) -> None:
    first, writer = start(tmp_path)
    first.activate()
    stop(first, writer)
    failed, writer = start(tmp_path)
    stop(failed, writer)
    (tmp_path / ".123.tmp").mkdir()
    (tmp_path / "notes").mkdir()
    third, writer = start(tmp_path)
    third.activate()
    kept = {path.name for path in tmp_path.iterdir() if path.is_dir() and not path.is_symlink()}
    assert kept == {first.path.name, third.path.name, "notes"}
    stop(third, writer)


def test_what_a_next_writer_has_left_that_never_became_current_is_deleted_and_a_living_one_stays(
    tmp_path: Path,
) -> None:
    generation, writer = start(tmp_path)
    generation.activate()
    dead = start_next(generation)
    living = start_next(generation)
    stop(*dead)
    (tmp_path / f".{generation_number(living[0].path) + 1}.tmp").mkdir()
    generation.drop_unborn()
    assert find_generations(tmp_path) == [generation.path, living[0].path]
    assert not list(tmp_path.glob(".*"))
    living[0].activate()
    stop(*living)
    generation.drop_unborn()
    assert find_current(tmp_path) == living[0].path, "what is current is never deleted"
    stop(generation, writer)


def start_next(before: Generation) -> tuple[Generation, BroadcastWriter]:
    """A writer that has taken the lock over."""
    generation = Generation.create(before.instance_dir, lock=os.dup(before.lock))
    name = generation.path / "tokens.ring"
    return generation, BroadcastWriter.create(name, slot_count=4, slot_size=64, record_schema=(1, 0), name="tokens")


def test_states_of_a_writer(tmp_path: Path, backend: str) -> None:
    generation, writer = start(tmp_path)
    generation.activate()
    ring = generation.path / "tokens.ring"
    writer.beat(time.monotonic_ns())
    everywhere = (tmp_path, tmp_path / "current", generation.path, ring)
    assert {writer_state(path) for path in everywhere} == {"alive"}
    writer.beat(time.monotonic_ns() - 6 * NS_PER_S)
    assert {writer_state(path) for path in everywhere} == {"hung"}
    assert {writer_state(path, hung_after_s=60) for path in everywhere} == {"alive"}
    stop(generation, writer)
    assert {writer_state(path) for path in everywhere} == {"dead"}
    second, writer = start(tmp_path)
    second.activate()
    assert writer_state(generation.path) == writer_state(ring) == "restarted"
    assert writer_state(tmp_path) == "alive"
    stop(second, writer)


def test_states_need_something_to_be_the_state_of(tmp_path: Path) -> None:
    with pytest.raises(Missing):
        writer_state(tmp_path / "none")
    with pytest.raises(Missing):
        find_current(tmp_path)
    (tmp_path / "current").symlink_to("123")
    with pytest.raises(Missing):
        writer_state(tmp_path)


def test_a_generation_without_segments_is_judged_by_its_name(tmp_path: Path) -> None:
    generation = Generation.create(tmp_path)
    assert writer_state(generation.path) == "alive"
    generation.close()
    generation.close()
    assert writer_state(generation.path) == "dead"


def test_asking_for_the_state_never_disturbs_a_start(tmp_path: Path) -> None:
    generation, writer = start(tmp_path)
    generation.activate()
    for _ in range(50):
        assert writer_state(generation.path) == "alive"
    with pytest.raises(WriterAlive):
        Generation.create(tmp_path)
    stop(generation, writer)


def test_a_program_started_by_the_writer_does_not_keep_it_alive(tmp_path: Path) -> None:
    generation, writer = start(tmp_path)
    generation.activate()
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    try:
        generation.close()
        os.close(writer.segment._lock_descriptor)  # as the kernel does at death: closed, not unlocked
        writer.segment._lock_descriptor = -1
        assert writer_state(generation.path) == "dead"
    finally:
        child.communicate()


def test_a_process_is_known_by_pid_and_start() -> None:
    ticks = process.start_ticks(os.getpid())
    assert process.is_alive(os.getpid(), ticks)
    assert not process.is_alive(os.getpid(), ticks + 1), "a reused pid is another process"
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    child_ticks = process.start_ticks(child.pid)
    assert process.is_alive(child.pid, child_ticks)
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not process.is_alive(child.pid, child_ticks), "a zombie runs no more"
    child.wait()
    assert process.start_ticks(child.pid) == 0


def test_what_may_not_be_looked_for_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "readlink", refuse)
    with pytest.raises(AccessDenied, match="cannot be read"):
        find_current(tmp_path)


def test_a_writer_hands_its_instance_to_the_next_and_finishes_its_own_generation(tmp_path: Path) -> None:
    old, writer = start(tmp_path)
    old.activate()
    generations = [old]
    for _ in range(2):  # a second one, while the first still drains
        generations.append(Generation.create(tmp_path, lock=os.dup(generations[-1].lock)))
        assert find_current(tmp_path) == generations[-2].path, "readers are led to the new one only when it is complete"
        generations[-1].activate()
    assert find_generations(tmp_path) == [each.path for each in generations], "none whose writer lives is deleted"
    assert writer_state(old.path) == "alive"
    stop(old, writer)
    generations[1].close()
    with pytest.raises(WriterAlive):
        Generation.create(tmp_path)
    generations[2].close()
    assert old.lock == -1
    last, writer = start(tmp_path)
    last.activate()
    assert find_generations(tmp_path) == [generations[2].path, last.path]
    stop(last, writer)
