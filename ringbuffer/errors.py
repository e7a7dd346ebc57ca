"""The errors of the package, raised at the edges (create, attach, register); the path returns codes instead."""
# ruff: noqa: N818 -- the names tell the state that was found; each is caught as a RingError

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final


class RingError(Exception):
    """Base of every error of this package; the message names the file, the value and the limit."""


class Missing(RingError):
    """There is no such segment, generation or instance."""


class NotReady(RingError):
    """The file is there but its magic word is still zero: nobody has finished building it."""


class ForeignFile(RingError):
    """The file is not a segment of this package."""


class Corrupt(RingError):
    """A segment that says of itself, or holds, what cannot be true of one: it was damaged after it was made."""


class WrongEndianness(RingError):
    """The segment was written on a machine of the other byte order."""


class VersionMismatch(RingError):
    """The layout or the record schema has another major version than this reader knows."""


class WrongKind(RingError):
    """The segment is of another kind, such as a counters file where a ring was expected."""


class Truncated(RingError):
    """The file is shorter than its header says."""


class AccessDenied(RingError):
    """The permissions of the file or directory forbid what was asked."""


class NoSpace(RingError):
    """The file system cannot hold the segment. Found while creating, so that no later store can fail."""


class ConsumersFull(RingError):
    """Every consumer row of a gating ring is taken by a live process."""


class WriterAlive(RingError):
    """Another live process writes, or rings its bells, here. ``pid`` is that process, 0 when it is not known."""

    def __init__(self, path: Path, pid: int) -> None:
        super().__init__(f"{path} is in the hands of live process {pid}")
        self.pid = pid


_KINDS: Final[dict[int | None, type[RingError]]] = {
    errno.ENOENT: Missing,
    errno.ENOTDIR: Missing,
    errno.ECONNREFUSED: Missing,
    errno.EACCES: AccessDenied,
    errno.EPERM: AccessDenied,
    errno.EROFS: AccessDenied,
    errno.EISDIR: ForeignFile,
    errno.ENXIO: ForeignFile,  # a socket or a device
    errno.ELOOP: ForeignFile,
    errno.ENOTSOCK: ForeignFile,
    errno.ENOSPC: NoSpace,
    errno.EFBIG: NoSpace,
    errno.EDQUOT: NoSpace,
}


def named(error: OSError, what: str) -> RingError:
    """Return the error of this package for one of the system; ``what`` says what could not be done."""
    return _KINDS.get(error.errno, RingError)(f"{what}: {error.strerror or error}")
