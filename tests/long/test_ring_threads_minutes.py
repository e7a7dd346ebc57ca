"""The C of the rings in two threads for longer: natively, under ThreadSanitizer and as AArch64 in an emulator."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ordering.harness_build import (
    MODES,
    RING_HEADER,
    SANITIZED,
    compile_harness,
    run_harness,
    sanitizing_compiler,
    taken,
    tool,
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
COUNT = 50_000_000
EMULATED_COUNT = 5_000_000
SANITIZED_COUNT = 2_000_000


@pytest.mark.parametrize("mode", MODES)
def test_native(tmp_path: Path, mode: str) -> None:
    program = compile_harness(tool("gcc", "gcc"), RING_HEADER.parent, tmp_path / "harness", "-O2")
    assert taken(run_harness([program], mode, COUNT)) > 0


@pytest.mark.parametrize("mode", MODES)
def test_emulated(tmp_path: Path, mode: str) -> None:
    compiler = tool("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu")
    program = compile_harness(compiler, RING_HEADER.parent, tmp_path / "harness", "-O2", "-static")
    assert taken(run_harness([tool("qemu-aarch64", "qemu-user"), program], mode, EMULATED_COUNT)) > 0


@pytest.mark.parametrize("mode", MODES)
def test_sanitized(tmp_path: Path, mode: str) -> None:
    program = compile_harness(sanitizing_compiler(tmp_path), RING_HEADER.parent, tmp_path / "harness", *SANITIZED)
    assert taken(run_harness([program], mode, SANITIZED_COUNT)) > 0
