"""docs/operations.md names every message, counter and command; the Containerfile is as its linter would have it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from router.telemetry.counters import CATALOGUE

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
LEVELS = {"debug", "info", "warning", "error"}


def logged_events() -> set[str]:
    """Every text that a log is told in the sources."""
    found = set()
    for path in (ROOT / "router").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
                continue
            owner = ast.unparse(node.func.value)
            if node.func.attr in LEVELS and owner.split(".")[-1] in {"log", "_log"}:
                argument = node.args[0]
                assert isinstance(argument, ast.Constant), f"{path}: an event is not a fixed text: {ast.unparse(node)}"
                found.add(argument.value)
    return found


def test_every_log_event_is_explained() -> None:
    events = logged_events()
    assert len(events) > 15
    assert sorted(event for event in events if f"`{event}`" not in TEXT) == []


def test_every_counter_is_explained_as_the_program_does() -> None:
    rows = [f"| {spec.id} | `{spec.name}` | {spec.unit} | {spec.label} |" for spec in CATALOGUE]
    assert [row for row in rows if row not in TEXT.splitlines()] == []


def test_every_section_that_is_linked_is_there() -> None:
    titles = re.findall(r"^## (.+)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
    linked = set(re.findall(r"\]\(#([^)]+)\)", TEXT))
    assert len(linked) > 8
    assert linked - anchors == set()


# ---------------------------------------------------------------- the Containerfile
def instructions() -> list[tuple[str, str]]:
    """Name and arguments of each instruction, continued lines joined, comments left out."""
    text = (ROOT / "Containerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines.splitlines()) if name]


RULES = {
    "each base image has a version (DL3006, DL3007)": lambda name, rest: (
        name != "FROM" or bool(re.search(r":(?!latest)[\w.-]+", rest.split("/")[-1]))
    ),
    "no cd, WORKDIR instead (DL3003)": lambda name, rest: name != "RUN" or not re.search(r"\bcd ", rest),
    "no sudo (DL3004)": lambda name, rest: name != "RUN" or "sudo" not in rest,
    "WORKDIR is absolute (DL3000)": lambda name, rest: name != "WORKDIR" or rest.startswith("/"),
    "apt-get without recommended packages (DL3015)": lambda name, rest: (
        "apt-get install" not in rest or "--no-install-recommends" in rest
    ),
    "lists of apt are removed in the same layer (DL3009)": lambda name, rest: (
        "apt-get update" not in rest or "rm -rf /var/lib/apt/lists/*" in rest
    ),
    "apt-get asks nothing (DL3014)": lambda name, rest: "apt-get install" not in rest or " -y" in rest,
    "pip keeps no cache (DL3042)": lambda name, rest: "pip install" not in rest or "--no-cache-dir" in rest,
    "COPY, not ADD (DL3020)": lambda name, rest: name != "ADD",
    "commands in the exec form (DL3025)": lambda name, rest: name not in {"CMD", "ENTRYPOINT"} or rest.startswith("["),
    "ports are ports (DL3011)": lambda name, rest: (
        name != "EXPOSE" or all(0 < int(port) < 65536 for port in rest.split())
    ),
    "no secret in the environment": lambda name, rest: (
        name not in {"ENV", "ARG"} or not re.search(r"(?i)key|token|secret|password", rest)
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_containerfile_keeps_to(rule: str) -> None:
    assert [f"{name} {rest}" for name, rest in instructions() if not RULES[rule](name, rest)] == []


def test_the_container_runs_as_nobody_in_particular_and_copies_what_exists() -> None:
    found = instructions()
    users = [rest for name, rest in found if name == "USER"]
    assert users
    assert users[-1].split(":")[0].isdigit()
    assert users[-1].split(":")[0] != "0"
    for name, rest in found:
        if name == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
