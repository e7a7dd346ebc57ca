"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from router import cli, config

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_configuration_is_valid() -> None:
    (example,) = blocks("toml")
    assert [host.name for host in config.parse(example).hosts] == ["gpu0", "gpu1"]


def test_the_two_processes_of_the_ring_example_understand_each_other(tmp_path: Path) -> None:
    write, read = (b for b in blocks("python") if "ringbuffer" in b)
    ring = str(tmp_path / "demo.ring")
    for program in (write, read):
        assert "/dev/shm/demo.ring" in program
    hold = write.replace("/dev/shm/demo.ring", ring) + "\nimport sys\nprint(flush=True)\nsys.stdin.readline()\n"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdout.readline()
        program = read.replace("/dev/shm/demo.ring", ring)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100)
        writer.stdin.write("\n")
        writer.stdin.flush()
    assert done.stdout.splitlines()[0].startswith("0 0100000000000000")
    assert done.stdout.splitlines()[-1] == "0 records lost"


def test_every_command_and_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^\s+make ([a-z-]+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    parser_text = cli._parser().format_help()
    for command in set(re.findall(r"^\s+ringrouter ([a-z]+)", README, re.MULTILINE)):
        assert command in parser_text, command


def test_every_linked_file_exists() -> None:
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in path:
            assert (ROOT / path).exists(), path
