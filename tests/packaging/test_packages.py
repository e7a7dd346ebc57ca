"""What is shipped: a wheel with both extensions for every Python from 3.11 on, sources that need no compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from bench.build import compiler

ROOT = Path(__file__).resolve().parents[2]
EXTENSIONS = {
    "ringbuffer/_words.abi3.so", "router/_answer.abi3.so", "router/_dispatch.abi3.so", "router/_intake.abi3.so",
    "router/_relay.abi3.so", "router/_scan.abi3.so", "router/_steps.abi3.so",
}  # fmt: skip
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
USE = """
import os, sys
from ringbuffer import BACKEND, BroadcastReader, BroadcastWriter
ring = sys.argv[1]
writer = BroadcastWriter.create(ring, slot_count=8, slot_size=64, record_schema=(1, 0), name="a")
reader = BroadcastReader.attach(ring)
writer.publish_batch(bytes(56 * 3))
print(BACKEND, reader.poll_into(bytearray(64 * 8)))
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the packages are built from, without anything that was built before."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for package in ("ringbuffer", "router"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copytree(ROOT / "systemd", copy / "systemd")
    return copy


def build(what: str, sources: Path, into: Path, **environment: str) -> Path:
    done = subprocess.run(
        [sys.executable, "-c", BUILD, f"build_{what}", str(into)],
        check=False,
        capture_output=True,
        text=True,
        cwd=sources,
        timeout=280,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return into / done.stdout.splitlines()[-1]


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def backend_of(wheel: Path, tmp_path: Path) -> str:
    """Return what the program above prints when nothing but the wheel and the standard library is there."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, sys.argv.pop())\n{USE}",
         str(tmp_path / "a.ring"), str(tmp_path / "installed")],
        check=True, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    return done.stdout.strip()


def test_the_wheel_holds_both_extensions_for_the_stable_abi_and_no_c(sources: Path, tmp_path: Path) -> None:
    if compiler() is None:
        pytest.skip("there is no C compiler (Debian package gcc)")
    wheel = build("wheel", sources, tmp_path)
    assert "-cp311-abi3-linux_" in wheel.name
    names = names_in(wheel)
    assert {name for name in names if name.endswith(".so")} == EXTENSIONS
    assert [name for name in names if name.endswith((".c", ".h"))] == []
    assert "ringbuffer/py.typed" in names
    units = {name.rpartition("/")[2] for name in names if "/share/ringrouter/systemd/" in name}
    assert units == {path.name for path in (ROOT / "systemd").iterdir()}  # what `service install` puts in place
    assert backend_of(wheel, tmp_path) == "c 3"


def test_the_source_package_builds_and_works_without_a_compiler(sources: Path, tmp_path: Path) -> None:
    archive = build("sdist", sources, tmp_path)
    with tarfile.open(archive) as packed:
        members = {name.partition("/")[2] for name in packed.getnames()}
    shutil.unpack_archive(archive, tmp_path)
    c_sources = {
        str(path.relative_to(ROOT)) for package in ("ringbuffer", "router") for path in (ROOT / package).glob("*.[ch]")
    }
    assert c_sources <= members, "who has a compiler gets the extensions from it"
    wheel = build("wheel", tmp_path / archive.name.removesuffix(".tar.gz"), tmp_path, CC="false")
    assert [name for name in names_in(wheel) if name.endswith(".so")] == []
    assert backend_of(wheel, tmp_path) == "plain 3"
