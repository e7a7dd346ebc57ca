"""Whatever stands at a path, and whatever the system says about it, has one name of its own."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ringbuffer import (
    AccessDenied,
    BroadcastReader,
    BroadcastWriter,
    ForeignFile,
    GatingConsumer,
    GatingProducer,
    Generation,
    Missing,
    NoSpace,
    ReaderPosition,
    RingError,
    find_current,
    find_generations,
    process,
    sample,
    segment,
    writer_state,
)
from ringbuffer.generation import segment_files

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = (1, 0)
ON_A_FULL_FILE_SYSTEM = """
import sys
from pathlib import Path
import ringbuffer as rb

folder = Path(sys.argv[1])
make = lambda name, count: rb.BroadcastWriter.create(
    folder / name, slot_count=count, slot_size=64, record_schema=(1, 0), name=name)
first = make("first", 1024)
try:
    make("second", 16384)
except rb.NoSpace as error:
    assert "second needs 1052672 bytes" in str(error), error
else:
    raise SystemExit("1 MiB fitted into what is left of 512 KiB")
assert [path.name for path in folder.iterdir()] == ["first"], "nothing is left behind"
(folder / "filler").touch()
try:
    with open(folder / "filler", "wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
except OSError:
    pass
for n in range(5000):
    first.publish(n, 0, 0, 0, 0, 0, 0)
print(first.published)
"""


def test_a_full_file_system_is_an_error_at_create_and_never_a_signal_later(tmp_path: Path) -> None:
    """The file system is real: a tmpfs of 512 KiB in a mount namespace of its own."""
    script = 'mount -t tmpfs -o size=512k ring "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh", str(tmp_path), sys.executable]
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare (Debian package util-linux)")
    probe = subprocess.run(
        [*command[:4], "-c", script, "sh", str(tmp_path), "true", ""], check=False, capture_output=True
    )
    if probe.returncode:
        pytest.skip(f"no mount namespaces here: {probe.stderr.decode().strip()}")
    done = subprocess.run(
        [*command, ON_A_FULL_FILE_SYSTEM], check=False, capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "5000\n", "a ring that was created can be filled on a file system that is full by now"


def test_paths_that_lead_nowhere_are_missing_and_those_that_lead_elsewhere_are_foreign(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    neighbour = socket.socket(socket.AF_UNIX)
    neighbour.bind(str(tmp_path / "socket"))
    with pytest.raises(Missing):
        BroadcastReader.attach(tmp_path / "file" / "a.ring")
    for name in ("loop", "socket"):
        with pytest.raises(ForeignFile, match=name):
            BroadcastReader.attach(tmp_path / name)
    neighbour.close()


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EACCES, AccessDenied), (errno.EROFS, AccessDenied), (errno.EMFILE, RingError)]
)
def test_every_refusal_of_the_system_is_an_error_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[RingError]
) -> None:
    def refuse(path: Path, *_: object) -> int:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "open", refuse)
    for attempt in (
        lambda: BroadcastReader.attach(tmp_path / "a.ring"),
        lambda: BroadcastWriter.create(tmp_path / "a.ring", slot_count=4, slot_size=64, record_schema=SCHEMA, name="a"),
        lambda: Generation.create(tmp_path / "instance"),
    ):
        with pytest.raises(RingError, match=os.strerror(number)) as caught:
            attempt()
        assert type(caught.value) is kind


def test_a_consumer_that_may_not_lock_the_table_is_told_so(
    producer: GatingProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse_the_lock(path: Path, flags: int, mode: int = 0o777) -> int:
        if str(path).endswith(".lock"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse_the_lock)
    with pytest.raises(AccessDenied, match=r"requests\.ring\.lock"):
        GatingConsumer.register(producer.segment.path, "loop")


def test_a_mapping_that_the_system_refuses_is_an_error_of_the_package(
    broadcast: BroadcastWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> mmap.mmap:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(segment.mmap, "mmap", refuse)
    with pytest.raises(RingError, match="cannot be mapped: Cannot allocate memory"):
        BroadcastReader.attach(broadcast.segment.path)


def test_a_generation_that_finds_no_room_leaves_its_instance_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.mkdir

    def no_space(self: Path, *arguments: object, **options: object) -> None:
        if self.name.endswith(".tmp"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", no_space)
    with pytest.raises(NoSpace, match="cannot hold a generation"):
        Generation.create(tmp_path / "instance")
    monkeypatch.setattr(Path, "mkdir", real)
    Generation.create(tmp_path / "instance").close()


def test_a_folder_that_cannot_be_listed_has_a_name_too(tmp_path: Path) -> None:
    with pytest.raises(Missing):
        segment_files(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(Missing):
        segment_files(tmp_path / "file")


TOO_LONG = "n" * 300


@pytest.mark.parametrize(
    "look",
    [sample.take, writer_state, find_current, find_generations, Generation.create, BroadcastReader.attach],
    ids=lambda each: each.__qualname__,
)
def test_a_name_that_is_too_long_is_said_to_be(tmp_path: Path, look: Callable[[Path], object]) -> None:
    with pytest.raises(RingError, match="File name too long"):
        look(tmp_path / TOO_LONG)


@pytest.mark.parametrize("look", [sample.take, writer_state], ids=lambda each: each.__qualname__)
def test_a_place_that_may_not_be_looked_at_is_denied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: Callable[[Path], object]
) -> None:
    def refuse(path: Path, **_: object) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(AccessDenied, match="cannot be looked at: Permission denied"):
        look(tmp_path)


@pytest.mark.parametrize("refused", ["mmap", "rename", "boot_id"])
def test_what_the_system_refuses_while_creating_is_an_error_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    owner = {"mmap": segment.mmap, "rename": Path, "boot_id": process}[refused]
    monkeypatch.setattr(owner, refused, refuse)
    with pytest.raises(RingError, match=r"a\.ring cannot be created: Too many open files") as caught:
        BroadcastWriter.create(tmp_path / "a.ring", slot_count=4, slot_size=64, record_schema=SCHEMA, name="a")
    assert isinstance(caught.value.__cause__, OSError)
    assert list(tmp_path.iterdir()) == []


def test_without_a_descriptor_no_consumer_is_taken_for_dead(
    producer: GatingProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = GatingConsumer.register(producer.segment.path, "loop")

    def refuse(*_: object) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refuse)
        with pytest.raises(RingError, match="/stat cannot be read: Too many open files"):
            producer.drop_dead_consumers()
    assert producer.drop_dead_consumers() == []
    assert producer.dropped_count == 0
    consumer.close()


@pytest.mark.parametrize("call", ["symlink_to", "iterdir"])
def test_a_generation_that_cannot_be_shown_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    generation = Generation.create(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Path, call, refuse)
        with pytest.raises(NoSpace, match="current cannot be set"):
            generation.activate()
    generation.close()


def test_a_generation_that_cannot_be_made_whole_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "chmod", refuse)
        with pytest.raises(NoSpace, match="cannot hold a generation"):
            Generation.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["writer.lock"]


def test_an_instance_whose_lock_cannot_be_written_is_left_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", refuse)
        with pytest.raises(NoSpace, match="cannot be written"):
            Generation.create(tmp_path)
    Generation.create(tmp_path).close()


def test_a_position_whose_folder_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="readers cannot be made"):
        ReaderPosition.create(tmp_path / "none", "observer")


def test_a_link_that_leads_in_a_circle_is_not_a_segment_and_hides_none(
    tmp_path: Path, broadcast: BroadcastWriter
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("none")
    seen = sample.take(tmp_path)
    assert [each.header.name for each in seen.segments] == ["tokens"]
    assert seen.errors == ()
