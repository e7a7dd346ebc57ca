"""What the keeper publishes for routers: one value in one file of shared memory, replaced as a whole.

The writer makes a new file beside the old one and renames it over: a reader finds the old value or the new one, never a
part. A reader looks at the file's inode, time and size (a system call of a microsecond, of a file in memory) and reads
it only when one of them has changed. It copies: a mapping would end the process with SIGBUS if someone cut the file.

File, little-endian::

     0  magic "RRKEEP01"
     8  kind u32 (TOOLS, PROMPTS), 0 u32
    16  version u64, higher with each publication
    24  length u64 of the payload
    32  BLAKE2b of the payload, 16 bytes
    48  payload, MessagePack
"""

from __future__ import annotations

import os
import struct
from hashlib import blake2b
from pathlib import Path
from typing import Final, Generic, TypeVar

import msgspec

from router.errors import UNDECODABLE

_MAGIC: Final = b"RRKEEP01"
_HEAD: Final = struct.Struct("<8sIIQQ16s")
_DIGEST_BYTES: Final = 16
_PAYLOAD_BYTES_MAX: Final = 256 << 20
"""Above what any bound of the configuration lets the keeper publish."""
_MODE: Final = 0o640
TOOLS: Final = 1
PROMPTS: Final = 2
T = TypeVar("T")


class PublishedError(ValueError):
    """A published file is not what it should be; the message says why."""


class PublishedTool(msgspec.Struct, frozen=True, array_like=True):
    """One tool. ``name`` is SOURCE.TOOL, ``body`` the JSON that stands in a request's ``tools``."""

    name: str
    body: bytes
    vector: bytes = b""
    """Its embedding, little-endian f32 of length 1; empty where there is none."""


class PublishedSource(msgspec.Struct, frozen=True, array_like=True):
    """How one source of tools is doing. ``state`` is ``ok``, ``stale`` (its last good tools stand) or ``failed``."""

    name: str
    transport: str
    state: str
    tool_count: int
    fetched_wall_ns: int
    """When its tools were fetched, 0 = never."""
    error: str = ""
    refused: list[str] = []
    """``NAME: why`` of its tools that were left out."""


class PublishedTools(msgspec.Struct, frozen=True, array_like=True):
    """All tools of all sources, in the order of the configuration."""

    sources: list[PublishedSource] = []
    tools: list[PublishedTool] = []
    vector_model: str = ""
    """Model of the tools' embeddings."""


class PublishedPrompt(msgspec.Struct, frozen=True, array_like=True):
    """One system prompt; ``digest`` changes with whatever of it reaches a host."""

    name: str
    model: str
    text: str
    prompt_version: str
    tools: list[str]
    keep_s: float
    digest: bytes


class PublishedPrompts(msgspec.Struct, frozen=True, array_like=True):
    """All system prompts that could be read."""

    prompts: list[PublishedPrompt] = []


def publish(path: Path, kind: int, value: msgspec.Struct) -> int:
    """Replace what is published at a path; return its version. Raises :class:`OSError`."""
    payload = msgspec.msgpack.encode(value)
    for left in path.parent.glob(f"{path.name}.*"):  # by a writer that was killed: there is one writer at a time
        left.unlink(missing_ok=True)
    version = _version_at(path) + 1
    head = _HEAD.pack(_MAGIC, kind, 0, version, len(payload), blake2b(payload, digest_size=_DIGEST_BYTES).digest())
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            os.fchmod(file.fileno(), _MODE)
            file.write(head + payload)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return version


def _version_at(path: Path) -> int:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD.size)
    except OSError:
        return 0
    return int(_HEAD.unpack(head)[3]) if len(head) == _HEAD.size and head.startswith(_MAGIC) else 0


def unpack(data: bytes, kind: int, payload_type: type[T]) -> tuple[int, T]:
    """Return version and value of a published file; raises :class:`PublishedError`."""
    if len(data) < _HEAD.size or not data.startswith(_MAGIC):
        raise PublishedError("it was not written by the keeper, or by another version of it")
    _, found_kind, _, version, length, digest = _HEAD.unpack_from(data)
    payload = memoryview(data)[_HEAD.size :]
    if found_kind != kind:
        raise PublishedError(f"it is of kind {found_kind}, expected {kind}")
    if len(payload) != length or blake2b(payload, digest_size=_DIGEST_BYTES).digest() != digest:
        raise PublishedError("it is damaged")
    try:
        return version, msgspec.msgpack.decode(payload, type=payload_type)
    except UNDECODABLE as error:
        raise PublishedError(f"its content is not understood: {error}") from None


class Subscription(Generic[T]):
    """Reads what is published at a path, whenever it has changed."""

    def __init__(self, path: Path, kind: int, payload_type: type[T]) -> None:
        self.version = 0
        self._path = path
        self._kind = kind
        self._type = payload_type
        self._seen: tuple[int, int, int] | None = None

    def is_changed(self) -> bool:
        """Whether :meth:`poll` would read; without reading."""
        try:
            status = self._path.stat()
        except OSError:
            return False
        return (status.st_ino, status.st_mtime_ns, status.st_size) != self._seen

    def poll(self) -> T | None:
        """Return the value if it is new, ``None`` if not or while nothing is published.

        Raises :class:`PublishedError` once for each file that is not to be understood.
        """
        try:
            status = self._path.stat()
            seen = status.st_ino, status.st_mtime_ns, status.st_size
            if seen == self._seen:
                return None
            self._seen = seen
            if status.st_size > _PAYLOAD_BYTES_MAX:
                raise PublishedError(f"{self._path}: it has {status.st_size} bytes, at most {_PAYLOAD_BYTES_MAX}")
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise PublishedError(f"{self._path}: {error.strerror or error}") from None
        try:
            self.version, value = unpack(data, self._kind, self._type)
        except PublishedError as error:
            raise PublishedError(f"{self._path}: {error}") from None
        return value
