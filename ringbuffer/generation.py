"""Generations: each start of a writer gets a fresh directory, and the symlink ``current`` points to the newest one.

::

    INSTANCE/writer.lock        flock for the writer's life: at most one writer per instance; holds its pid as text
    INSTANCE/current            symlink to the generation whose segments are complete
    INSTANCE/81236512345678/    a generation, named by CLOCK_MONOTONIC ns; flock on the directory for the writer's life
    INSTANCE/81236512345678/readers/   positions of lossy readers

Nothing is ever repaired: a restarted writer builds everything anew, and a reader finishes the old generation before it
moves on. The generation before the current one is kept for it, and for the post-mortem.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import time
from pathlib import Path
from typing import Final, Literal

from ringbuffer import segment
from ringbuffer.errors import Missing, RingError, WriterAlive, named
from ringbuffer.layout import Kind
from ringbuffer.readers import READERS_DIRECTORY
from ringbuffer.segment import HUNG_AFTER_S

WriterState = Literal["alive", "hung", "dead", "restarted"]

CURRENT: Final = "current"
LOCK_FILE: Final = "writer.lock"
DIRECTORY_MODE: Final = 0o750
READERS_MODE: Final = 0o770
"""Readers of the same group may leave their positions there."""
_NS_PER_S: Final = 1_000_000_000


class Generation:
    """One life of a writer: its directory, and the locks that tell others it is alive."""

    def __init__(self, instance_dir: Path, path: Path, lock_descriptors: tuple[int, ...]) -> None:
        self.instance_dir = instance_dir
        self.path = path
        self._lock_descriptors = lock_descriptors

    @classmethod
    def create(cls, instance_dir: Path, *, lock: int = -1) -> Generation:
        """Make a new generation directory and hold its locks until :meth:`close` or the end of the process.

        ``lock`` is the lock of the instance where the writer before this one has passed its descriptor on
        (:attr:`lock`): both hold it then, each with a generation of its own, until the older one ends.
        Raises WriterAlive with the pid when a live writer holds the instance, AccessDenied, NoSpace.
        """
        try:
            instance_dir.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
            instance_lock = lock if lock >= 0 else _lock_instance(instance_dir)
        except OSError as error:
            raise named(error, f"{instance_dir} cannot be written") from error
        try:
            path, generation_lock = _make_directory(instance_dir)
        except OSError as error:
            os.close(instance_lock)
            raise named(error, f"{instance_dir} cannot hold a generation") from error
        return cls(instance_dir, path, (instance_lock, generation_lock))

    @property
    def lock(self) -> int:
        """The descriptor of the instance's lock, to be passed to the next writer; -1 after :meth:`close`."""
        return self._lock_descriptors[0] if self._lock_descriptors else -1

    def activate(self) -> None:
        """Point ``current`` here: all segments are ready. Then delete all but this generation and the one before.

        A generation whose writer still lives stays too: it has handed over and finishes what it began.

        Raises Missing, AccessDenied, NoSpace, else RingError.
        """
        keep = {self.path.name, _current_name(self.instance_dir)}
        temporary = self.instance_dir / f".{CURRENT}.tmp"
        try:
            _write_pid(self.lock)
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(self.path.name)
            temporary.replace(self.instance_dir / CURRENT)
            entries = list(self.instance_dir.iterdir())
        except OSError as error:
            raise named(error, f"{self.instance_dir / CURRENT} cannot be set") from error
        for entry in entries:
            if _number(entry.name.removeprefix(".").removesuffix(".tmp")) is None or entry.name in keep:
                continue
            with contextlib.suppress(RingError):  # another has deleted it
                if not segment.is_locked(entry):
                    shutil.rmtree(entry, ignore_errors=True)

    def drop_unborn(self) -> None:
        """Delete what a newer writer has left that ended before it became the current one. One that lives stays."""
        own = generation_number(self.path) or 0
        with contextlib.suppress(OSError):
            for entry in list(self.instance_dir.iterdir()):
                number = _number(entry.name.removeprefix(".").removesuffix(".tmp"))
                if number is None or number <= own or entry.name == _current_name(self.instance_dir):
                    continue
                with contextlib.suppress(RingError):  # another has deleted it
                    if not segment.is_locked(entry):
                        shutil.rmtree(entry, ignore_errors=True)

    def close(self) -> None:
        """Give up the locks; the files stay. Closing twice does nothing."""
        for descriptor in self._lock_descriptors:
            os.close(descriptor)
        self._lock_descriptors = ()


_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EINVAL})
"""Why a link cannot be read that is not there; the last for a file that is no link."""


def find_current(instance_dir: Path) -> Path:
    """Return the directory of the current generation; raises Missing when there is none, AccessDenied when it may not
    be looked for.
    """
    try:
        name = os.readlink(instance_dir / CURRENT)
        is_there = (instance_dir / name).is_dir()
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise named(error, f"{instance_dir} cannot be read") from None
        is_there = False
    if not is_there:
        raise Missing(f"{instance_dir} has no current generation")
    return instance_dir / name


def find_generations(instance_dir: Path) -> list[Path]:
    """Return the directories of all generations, oldest first; raises Missing and AccessDenied."""
    try:
        numbers = {path: _number(path.name) for path in instance_dir.iterdir()}
    except OSError as error:
        raise named(error, f"{instance_dir} cannot be read") from error
    generations = {path: number for path, number in numbers.items() if number is not None}
    return sorted(generations, key=generations.__getitem__)


def generation_number(path: Path) -> int | None:
    """Return when a generation began, CLOCK_MONOTONIC ns, as its name says; None for a name that is no number."""
    return _number(path.name)


def writer_state(path: Path, hung_after_s: float = HUNG_AFTER_S) -> WriterState:
    """Tell how the writer of a segment, a generation or an instance's current generation fares.

    ``alive``: it holds its lock. ``hung``: it does, but its last heartbeat is older than ``hung_after_s``. ``dead``:
    the lock is free. ``restarted``: dead, and a newer generation is current. Raises Missing, AccessDenied and, for a
    single file, what :func:`ringbuffer.segment.attach` raises.
    """
    if is_instance(path):
        path = find_current(path)
    if segment.is_locked(path):
        return "hung" if heartbeat_age_s(path) > hung_after_s else "alive"
    return "restarted" if _is_superseded(path) else "dead"


def heartbeat_age_s(path: Path) -> float:
    """Return the seconds since the last heartbeat of a segment, or of the freshest segment of a generation."""
    is_file = stat.S_ISREG(segment.mode_at(path))
    beats = [_heartbeat_ns(path)] if is_file else [_heartbeat_or_zero(each) for each in segment_files(path)]
    # A generation without segments yet is as old as its name says.
    newest = max(beats, default=_number(path.name) or 0)
    return max(0.0, (time.monotonic_ns() - newest) / _NS_PER_S)


def segment_files(directory: Path) -> list[Path]:
    """Return the files of a generation that may be segments, by name; locks and half-built files are left out.

    Raises Missing and AccessDenied.
    """
    try:
        entries = sorted(directory.iterdir())
    except OSError as error:
        raise named(error, f"{directory} cannot be read") from error
    hidden = (".tmp", ".lock")
    return [each for each in entries if not each.name.endswith(hidden) and _may_be_segment(each)]


def is_instance(path: Path) -> bool:
    """Tell whether a path is that of an instance; raises AccessDenied, else RingError when that cannot be told."""
    return stat.S_ISLNK(segment.mode_at(path / CURRENT, follow=False))


def _may_be_segment(path: Path) -> bool:
    """Tell whether it is a file; what cannot be told is left to whoever attaches to it, and names the reason."""
    try:
        mode = segment.mode_at(path)
    except RingError:
        return True
    return stat.S_ISREG(mode)


def _heartbeat_ns(path: Path) -> int:
    return segment.attach(path, tuple(Kind)).heartbeat_ns


def _heartbeat_or_zero(path: Path) -> int:
    try:
        return _heartbeat_ns(path)
    except RingError:
        return 0


def _is_superseded(path: Path) -> bool:
    directory = path.resolve()
    if directory.is_file():
        directory = directory.parent
    current = _current_name(directory.parent)
    return generation_number(directory) is not None and current is not None and current != directory.name


def _number(name: str) -> int | None:
    return int(name) if name.isascii() and name.isdigit() else None


def _current_name(instance_dir: Path) -> str | None:
    try:
        return os.readlink(instance_dir / CURRENT)
    except OSError:
        return None


def _lock_instance(instance_dir: Path) -> int:
    path = instance_dir / LOCK_FILE
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, segment.FILE_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _write_pid(descriptor)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).strip()
        os.close(descriptor)
        raise WriterAlive(instance_dir, int(text) if text.isdigit() else 0) from None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _write_pid(lock: int) -> None:
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)


def _make_directory(instance_dir: Path) -> tuple[Path, int]:
    """Make the directory, locked before it gets its name: nobody can find it unlocked while its writer lives."""
    name = str(time.monotonic_ns())
    temporary = instance_dir / f".{name}.tmp"
    temporary.mkdir(DIRECTORY_MODE)
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, temporary, ignore_errors=True)
        readers = temporary / READERS_DIRECTORY
        readers.mkdir()
        readers.chmod(READERS_MODE)
        descriptor = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        undo.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path = temporary.rename(instance_dir / name)
        undo.pop_all()
    return path, descriptor
