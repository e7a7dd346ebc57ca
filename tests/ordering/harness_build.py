"""Building and running the C harness: natively, with a sanitizer, and for another processor."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import ringbuffer

HERE = Path(__file__).parent
RING_HEADER = Path(ringbuffer.__file__).with_name("_ring.h")
MODES = ("gating", "joining", "lossy", "table")
FLAGS = ("-std=c11", "-Wall", "-Wextra", "-pthread")
SANITIZED = ("-O1", "-g", "-fsanitize=thread", "-Wno-tsan")
RUN_S_MAX = 300


def tool(name: str, package: str) -> str:
    """Return the path of a program, or skip the test and name the Debian package that has it."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (Debian package {package})")
    return path


def sanitizing_compiler(directory: Path) -> str:
    """Return a compiler whose thread sanitizer links and runs here, or skip the test."""
    compiler = tool("gcc", "gcc")
    (directory / "probe.c").write_text("int main(void) { return 0; }\n", encoding="utf-8")
    probe = str(directory / "probe")
    built = subprocess.run([compiler, "-fsanitize=thread", f"{probe}.c", "-o", probe], capture_output=True, check=False)
    if built.returncode != 0:
        pytest.skip("gcc has no thread sanitizer here (Debian package libtsan2)")
    if subprocess.run([probe], capture_output=True, check=False).returncode != 0:
        pytest.skip("the thread sanitizer cannot lay out its memory on this kernel")
    return compiler


def plant(directory: Path, changes: Mapping[str, str]) -> Path:
    """Write the header of the rings into ``directory``, changed, and return that; each change must find its text."""
    source = RING_HEADER.read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in source, f"the header has no {old!r} to change"
        source = source.replace(old, new)
    (directory / RING_HEADER.name).write_text(source, encoding="utf-8")
    return directory


def compile_harness(compiler: str, include: Path, program: Path, *flags: str) -> Path:
    """Compile the harness against the header in ``include``; return the program."""
    command = [compiler, *FLAGS, *flags, f"-I{include}", str(HERE / "harness.c"), "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return program


def run_harness(command: Sequence[str | Path], mode: str, count: int) -> subprocess.CompletedProcess[str]:
    """Run a harness, or a program that runs it, in one mode over ``count`` records."""
    return subprocess.run([*command, mode, str(count)], capture_output=True, text=True, check=False, timeout=RUN_S_MAX)


def taken(done: subprocess.CompletedProcess[str]) -> int:
    """Return how many records the reader of a harness that ended well has taken."""
    assert done.returncode == 0, done.stderr[-4000:]
    return int(done.stdout.split()[0])
