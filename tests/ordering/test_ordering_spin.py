"""The model of ring.pml in spin: it holds, and without any one of its orders it does not."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import ringbuffer
from tests.ordering.harness_build import HERE, tool

NEEDED = {
    "LOSSY": ("A1", "A2", "B1", "B2"),
    "TABLE": ("B1", "B2", "C1", "C2"),
    "JOINING": ("E1", "E2", "F1", "F2"),
    "GATING": ("D1", "D2"),
    "DOORBELL": ("G1", "G2"),
    "HEADER": ("M1", "M2"),
}
"""The orders that each protocol needs: the letter, and the end that stores (1) or loads (2)."""


def error_count(directory: Path, *defines: str) -> int:
    """Search every execution; return how many errors spin found, which stops at the first."""
    spin, compiler = tool("spin", "spin"), tool("gcc", "gcc")
    flags = [f"-D{each}" for each in defines]
    subprocess.run([spin, *flags, "-a", str(HERE / "ring.pml")], cwd=directory, check=True, capture_output=True)
    subprocess.run([compiler, "-O0", "-w", "-DSAFETY", "pan.c", "-o", "pan"], cwd=directory, check=True)
    report = subprocess.run([directory / "pan"], cwd=directory, check=False, capture_output=True, text=True).stdout
    found = re.search(r"errors: (\d+)", report)
    assert found is not None, report
    assert "max search depth too small" not in report, "the search is complete"
    return int(found[1])


@pytest.mark.parametrize("protocol", NEEDED)
def test_the_protocol_holds_in_every_execution(tmp_path: Path, protocol: str) -> None:
    assert error_count(tmp_path, protocol) == 0


@pytest.mark.parametrize(("protocol", "end"), [(name, end) for name, ends in NEEDED.items() for end in ends])
def test_without_any_one_order_it_breaks(tmp_path: Path, protocol: str, end: str) -> None:
    assert error_count(tmp_path, protocol, f"WEAK_{end}") > 0


def test_every_ordering_of_the_package_is_in_the_model() -> None:
    letters = set(re.findall(r"^SYNC (\w) ", ringbuffer.__doc__ or "", re.MULTILINE))
    assert {end for ends in NEEDED.values() for end in ends} >= {f"{letter}{end}" for letter in letters for end in "12"}
