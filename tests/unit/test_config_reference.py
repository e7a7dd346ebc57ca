"""docs/configuration.md is what the structs say, and its examples work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from router import config_reference
from router.config import Config, host_address, parse

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_equals_the_rendering() -> None:
    assert PAGE.read_text(encoding="utf-8") == config_reference.render(), (
        "run: python -m router.config_reference > docs/configuration.md"
    )


def test_the_module_prints_the_page() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "router.config_reference"], capture_output=True, check=True, cwd=PAGE.parents[1]
    )
    assert printed.stdout.decode() == config_reference.render()


@pytest.mark.parametrize("example", [config_reference.EXAMPLE_LLAMA, config_reference.EXAMPLE_VLLM])
def test_the_examples_parse_and_stand_in_the_page(example: str) -> None:
    assert parse(example).hosts
    assert f"```toml\n{example}```" in config_reference.render()


def test_the_vllm_example_maps_a_name_and_uses_a_socket() -> None:
    hosts = parse(config_reference.EXAMPLE_VLLM).hosts
    assert [host.models for host in hosts] == [{"chat": "meta-llama/Llama-3.1-8B-Instruct"}] * 2
    assert host_address(hosts[0].url, "") == "/run/vllm/gpu-0.sock"


def all_structs(kind: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    info = msgspec.inspect.multi_type_info([kind])
    found: list[type[msgspec.Struct]] = []

    def visit(node: object) -> None:
        if isinstance(node, msgspec.inspect.StructType):
            found.append(node.cls)
            for field in node.fields:
                visit(field.type)
        for name in ("type", "item_type", "value_type"):
            if (inner := getattr(node, name, None)) is not None:
                visit(inner)

    visit(info[0])
    return found


def test_every_field_of_every_struct_has_a_row_with_a_meaning() -> None:
    rows = [line for line in config_reference.render().splitlines() if line.startswith("| `")]
    structs = all_structs(Config)
    plain = [
        field.encode_name
        for struct in structs
        for field in msgspec.structs.fields(struct)
        if config_reference._struct_in(field.type) is None
    ]
    assert len(structs) == 39
    assert [row.split("`")[1] for row in rows] == plain
    for row in rows:
        assert all(cell.strip() for cell in row.strip("|").split("|")), f"a cell is empty: {row}"
