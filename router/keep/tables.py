"""Tables of vectors on disk: made once, never changed, replaced as a whole.

``DIR/NAME/VERSION/`` has ``manifest.json``, ``vectors.f32`` (count × dimensions numbers of 32 bits, little-endian, each
row of length 1), ``items.jsonl`` (one object a line: ``id``, and ``metadata`` if there is any) and ``items.idx`` (u64:
where each line begins, and where the last one ends). ``DIR/NAME/current`` is a symbolic link to the version in use; it
is replaced by a rename, so that a reader has the old table or the new one.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from router.errors import UNDECODABLE

FORMAT: Final = "ringrouter table 1"
NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
CURRENT: Final = "current"
VERSIONS_KEPT: Final = 2
"""The one in use, and the one before it, which a keeper may still have mapped."""
_ROWS_CHECKED: Final = 4096
_TOLERANCE: Final = 1e-3
"""By how much the length of a row may differ from 1."""


class TableError(Exception):
    """A table that cannot be used or made; the message says why."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a table says of itself."""

    format: str
    name: str
    version: str
    model: str
    revision: str
    dimensions: int
    count: int
    made_s: int


class Table:
    """One version of a table, mapped read-only."""

    def __init__(self, path: Path) -> None:
        """Map a version; raises :class:`TableError`."""
        try:
            self.manifest = msgspec.json.decode((path / "manifest.json").read_bytes(), type=Manifest)
        except OSError as error:
            raise TableError(f"{path}: {error.strerror}") from None
        except UNDECODABLE as error:
            raise TableError(f"{path}/manifest.json: {error}") from None
        manifest = self.manifest
        if manifest.format != FORMAT:
            raise TableError(f"{path}: its format is {manifest.format[:80]!r}, not {FORMAT!r}")
        self.vectors = _mapped(path / "vectors.f32", "<f4", manifest.count * manifest.dimensions).reshape(
            manifest.count, manifest.dimensions
        )
        self._offsets = _mapped(path / "items.idx", "<u8", manifest.count + 1)
        items = path / "items.jsonl"
        if items.stat().st_size != int(self._offsets[-1]) or np.any(np.diff(self._offsets.astype(np.int64)) <= 0):
            raise TableError(f"{items} is not what items.idx says")
        self._items = np.memmap(items, dtype=np.uint8, mode="r")
        for begin in range(0, manifest.count, _ROWS_CHECKED):
            lengths = np.linalg.norm(self.vectors[begin : begin + _ROWS_CHECKED], axis=1)
            if not np.all(np.abs(lengths - 1.0) < _TOLERANCE):
                raise TableError(f"{path}/vectors.f32: rows from {begin} on are not of length 1")

    def nearest(self, vector: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
        """Return the ``k`` rows nearest by cosine, the nearest first, each with it; of equal ones the first row."""
        length = float(np.linalg.norm(vector))
        scores = self.vectors @ (vector / np.float32(length))
        k = min(k, len(scores))
        if k < len(scores):
            # All that are as near as the last one are looked at, so that ties do not depend on how they were cut.
            least = np.partition(scores, len(scores) - k)[len(scores) - k]
            rows = np.flatnonzero(scores >= least)
        else:
            rows = np.arange(len(scores))
        order = rows[np.lexsort((rows, -scores[rows]))][:k]
        return [(int(row), float(scores[row])) for row in order]

    def item(self, row: int) -> bytes:
        """Return the JSON of an item."""
        return bytes(self._items[int(self._offsets[row]) : int(self._offsets[row + 1])]).rstrip(b"\n")


def _mapped(path: Path, kind: str, count: int) -> NDArray[Any]:
    size = count * np.dtype(kind).itemsize
    try:
        found = path.stat().st_size
    except OSError as error:
        raise TableError(f"{path}: {error.strerror}") from None
    if count < 1 or found != size:
        raise TableError(f"{path} has {found} bytes, expected {size}")
    return np.memmap(path, dtype=kind, mode="r")


def table_names(directory: Path) -> Iterator[tuple[str, str]]:
    """Yield name and current version of every table of a directory."""
    try:
        entries = sorted(os.listdir(directory))
    except OSError:
        return
    for name in entries:
        if NAME_PATTERN.fullmatch(name):
            try:
                yield name, os.readlink(directory / name / CURRENT)
            except OSError:
                continue  # half made, or none of ours


def write_table(
    directory: Path, manifest: Manifest, vectors: NDArray[np.float32], items: Sequence[dict[str, Any]]
) -> Path:
    """Write a version of a table and put it in use; return its directory. Raises :class:`TableError` and OSError."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.all(np.isfinite(lengths)) or np.any(lengths == 0):
        row = int(np.flatnonzero(~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)))[0])
        raise TableError(f"the vector of item {items[row].get('id')!r} has no direction")
    home = directory / manifest.name
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    making = home / f".making-{os.getpid()}"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(mode=0o700)
    try:
        _write_synced(making / "vectors.f32", (vectors / lengths).astype("<f4").tobytes())
        lines = [msgspec.json.encode(item) + b"\n" for item in items]
        offsets = np.concatenate(([0], np.cumsum([len(line) for line in lines]))).astype("<u8")
        _write_synced(making / "items.jsonl", b"".join(lines))
        _write_synced(making / "items.idx", offsets.tobytes())
        _write_synced(making / "manifest.json", msgspec.json.encode(manifest) + b"\n")
        Table(making)
        path = making.rename(home / manifest.version)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    _point(home, manifest.version)
    _forget_old(home, manifest.version)
    return path


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _point(home: Path, version: str) -> None:
    link = home / f".{CURRENT}-{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(version)
    link.replace(home / CURRENT)
    descriptor = os.open(home, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _forget_old(home: Path, version: str) -> None:
    versions = sorted(p for p in home.iterdir() if p.is_dir() and not p.is_symlink() and not p.name.startswith("."))
    old = [path for path in versions if path.name != version]
    for path in old[: max(0, len(old) - (VERSIONS_KEPT - 1))]:
        shutil.rmtree(path, ignore_errors=True)
