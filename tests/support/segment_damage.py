"""Damages the files of a router or of a ring, in reproducible ways: programs must be able to look all the same."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

WORD_BYTES: Final = 8
HEADER_BYTES: Final = 0x600
"""Where the header and the first consumer rows are: damage is worst there."""
EXTREMES: Final = (0, 1, 2, 8, 2**31, 2**32 - 1, 10**12, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def damage(rng: random.Random, path: Path) -> str:
    """Damage a file; return what was done, in words."""
    how = rng.choice((_word, _word, _word, _header_word, _header_word, _bytes, _block, _cut, _grow, _replace))
    return f"{path.name}: {how(rng, path)}"


def _write(path: Path, offset: int, raw: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(raw)


def _value(rng: random.Random) -> int:
    return rng.choice((*EXTREMES, rng.getrandbits(64), rng.randrange(2**20)))


def _word_at(rng: random.Random, path: Path, end: int) -> str:
    offset = rng.randrange(max(1, end // WORD_BYTES)) * WORD_BYTES
    value = _value(rng)
    _write(path, offset, value.to_bytes(WORD_BYTES, "little"))
    return f"word at {offset:#x} = {value:#x}"


def _word(rng: random.Random, path: Path) -> str:
    return _word_at(rng, path, path.stat().st_size)


def _header_word(rng: random.Random, path: Path) -> str:
    return _word_at(rng, path, HEADER_BYTES)


def _bytes(rng: random.Random, path: Path) -> str:
    count = rng.randrange(1, 32)
    offset = rng.randrange(max(1, path.stat().st_size))
    _write(path, offset, rng.randbytes(count))
    return f"{count} bytes at {offset:#x}"


def _block(rng: random.Random, path: Path) -> str:
    """Fill whole slots, sequence words included or not, with one byte."""
    offset, count = rng.randrange(max(1, path.stat().st_size)), rng.randrange(64, 4096)
    filling = rng.choice((b"\xff", b"\0", b"\x1b", b"\x80"))
    _write(path, offset, filling * count)
    return f"{count} times {filling!r} at {offset:#x}"


def _cut(rng: random.Random, path: Path) -> str:
    size = rng.choice((0, 7, 8, 100, 4095, 4096, rng.randrange(path.stat().st_size + 1)))
    with path.open("r+b") as file:
        file.truncate(size)
    return f"cut to {size} bytes"


def _grow(rng: random.Random, path: Path) -> str:
    count = rng.choice((1, 4096, 100_000))
    with path.open("ab") as file:
        file.write(rng.randbytes(count))
    return f"{count} bytes more"


def _replace(rng: random.Random, path: Path) -> str:
    path.unlink()
    what = rng.choice(("nothing", "a folder", "a loop", "notes", "noise"))
    if what == "a folder":
        path.mkdir()
    elif what == "a loop":
        path.symlink_to(path.name)
    elif what in {"notes", "noise"}:
        path.write_bytes(b"some notes\n" if what == "notes" else rng.randbytes(8192))
    return f"replaced by {what}"
