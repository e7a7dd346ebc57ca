"""The C of the rings on AArch64, where no order comes for free: its instructions, and its function in an emulator."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.ordering.harness_build import FLAGS, HERE, MODES, RING_HEADER, compile_harness, run_harness, taken, tool

COUNT = 50_000
GCC_PACKAGE = "gcc-aarch64-linux-gnu"
ORDERS = {
    "list_publish_words": ["dmb ish", "stlr", "stlr"],  # SYNC B, C, A
    "list_publish_bytes": ["dmb ish", "stlr", "stlr"],
    "list_copy_record": ["ldar", "dmb ishld"],  # SYNC C, B
    "list_spin": ["ldar"],  # SYNC A
    "list_release": ["stlr"],  # SYNC D
    "list_refresh_minimum": ["dmb ish", "ldar", "ldar"],  # SYNC E, F, D
    "list_write_row": ["dmb ish", "stlr"],  # SYNC B, C
    "list_copy_row": ["ldar", "dmb ishld"],  # SYNC C, B
}
"""What orders memory in each function, in the order of its instructions."""


@pytest.fixture(scope="session")
def compiler() -> str:
    return tool("aarch64-linux-gnu-gcc", GCC_PACKAGE)


@pytest.fixture(scope="session")
def listing(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The instructions of every function of listing.c."""
    compiled = tmp_path_factory.mktemp("aarch64") / "listing.o"
    flags = ["-O2", "-march=armv8-a", "-c", f"-I{RING_HEADER.parent}"]
    subprocess.run([compiler, *FLAGS, *flags, str(HERE / "listing.c"), "-o", str(compiled)], check=True)
    objdump = tool("aarch64-linux-gnu-objdump", "binutils-aarch64-linux-gnu")
    text = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", str(compiled)], check=True, capture_output=True, text=True
    ).stdout
    functions = re.findall(r"^[0-9a-f]+ <(\w+)>:\n((?:.+\n)+)", text, re.MULTILINE)
    return {name: [" ".join(line.split("\t", 1)[1].split()) for line in body.splitlines()] for name, body in functions}


@pytest.mark.parametrize("function", ORDERS)
def test_each_order_of_the_table_is_an_instruction(listing: dict[str, list[str]], function: str) -> None:
    found = [re.sub(r"^(stlr|ldar|ldapr)\b.*", r"\1", each) for each in listing[function]]
    assert [each for each in found if re.match(r"stlr|ldar|ldapr|dmb", each)] == ORDERS[function]


@pytest.mark.parametrize("function", ["list_publish_words", "list_write_row"])
def test_the_payload_is_stored_between_the_mark_and_the_sequence_word(
    listing: dict[str, list[str]], function: str
) -> None:
    code = listing[function]
    fence = code.index("dmb ish")
    close = next(i for i, each in enumerate(code) if each.startswith("stlr"))
    assert any(each.startswith("str ") for each in code[:fence]), "the mark comes before the fence"
    assert any(re.match(r"st[rp] ", each) for each in code[fence:close]), "the payload comes behind it"


@pytest.mark.parametrize("mode", MODES)
def test_the_rings_work_on_aarch64(compiler: str, tmp_path: Path, mode: str) -> None:
    emulator = tool("qemu-aarch64", "qemu-user")
    program = compile_harness(compiler, RING_HEADER.parent, tmp_path / "harness", "-O2", "-static")
    count = taken(run_harness([emulator, program], mode, COUNT))
    assert count > 0
    if mode == "gating":
        assert count == COUNT
