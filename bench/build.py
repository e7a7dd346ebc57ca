"""Compile the measuring programs in ``c/`` on demand, into a folder that git ignores, keyed by a hash of the source."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

from bench.config import REPOSITORY

SOURCE_DIR = Path(__file__).resolve().parent / "c"
BUILD_DIR = REPOSITORY / "build" / "bench"
FLAGS = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra")


class BuildError(RuntimeError):
    """There is no C compiler, or it refused a program; the message says which."""


def compiler() -> str | None:
    """Return the C compiler: ``$CC``, else the first of cc, gcc, clang that is there; None without one."""
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))), None)


def program(name: str) -> Path:
    """Return a compiled program, ``mockhost``, ``loadgen`` or another of ``c/``; raises :class:`BuildError`."""
    return _built(name, FLAGS)


def library(name: str) -> Path:
    """Return a compiled library that this interpreter can load with ``ctypes``; raises :class:`BuildError`."""
    return _built(name, (*FLAGS, "-shared", "-fPIC", f"-I{sysconfig.get_path('include')}"))


def _built(name: str, flags: tuple[str, ...]) -> Path:
    sources = sorted(SOURCE_DIR.glob(f"{name}*.c"))
    headers = sorted(SOURCE_DIR.glob("*.h"))
    binary = BUILD_DIR / f"{name}-{_digest([*sources, *headers], flags)}"
    if binary.exists():
        return binary
    BUILD_DIR.mkdir(parents=True, exist_ok=True)
    unfinished = binary.with_name(f"{binary.name}.{os.getpid()}")
    _compile(sources, unfinished, flags)
    for outdated in BUILD_DIR.glob(f"{name}-????????????????"):
        outdated.unlink(missing_ok=True)
    unfinished.replace(binary)  # whole or not there: two processes may build at once
    return binary


def _digest(files: list[Path], flags: tuple[str, ...]) -> str:
    text = b"\0".join([" ".join(flags).encode(), *(file.read_bytes() for file in files)])
    return hashlib.sha256(text).hexdigest()[:16]


def _compile(sources: list[Path], binary: Path, flags: tuple[str, ...]) -> None:
    found = compiler()
    if found is None:
        raise BuildError("the measuring programs are written in C and there is no compiler: install gcc, or set CC")
    command = [found, *flags, "-o", str(binary), *map(str, sources)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n{result.stderr}")
