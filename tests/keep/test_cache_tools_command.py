"""`ringrouter cache tools`: what is published, by whom, how old, and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from router.caches.published import PublishedSource, PublishedTools
from router.cli import main
from tests.support import published as pub


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["cache", "tools", *arguments])
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "router.toml"
    path.write_text(
        'version = 1\n[[cache.tools.sources]]\nname = "weather"\nfile = "/nowhere.json"\n', encoding="utf-8"
    )
    return path


def where(config: Path) -> list[str]:
    return ["--config", str(config), "--run-dir", str(config.parent)]


def test_sources_and_tools_are_listed(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pub.publish_tools(config.parent, pub.tools(pub.tool("weather.now", [1.0]), age_s=90))
    status, out, _ = run(capsys, *where(config))
    assert status == 0
    source, tool = out.splitlines()
    words = source.split()
    assert words[:6] == ["weather", "stdio", "ok", "1", "tools,", "fetched"]
    assert 90 <= float(words[6]) < 100
    assert tool.split()[:2] == ["weather.now", "weather__now"]


def test_what_is_wrong_is_said_and_the_exit_status_tells(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stale = PublishedSource("weather", "http", "stale", 1, 0, "no answer", ["weather.x: it is bad"])
    pub.publish_tools(config.parent, PublishedTools([stale], [pub.tool("weather.now")]))
    status, out, _ = run(capsys, *where(config))
    assert status == 1
    assert "never fetched" in out
    assert "    no answer" in out
    assert "    refused weather.x: it is bad" in out


def test_programs_get_json(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pub.publish_tools(config.parent, pub.tools(pub.tool("weather.now", [1.0])))
    status, out, _ = run(capsys, *where(config), "--json")
    answer: dict[str, Any] = json.loads(out)
    assert status == 0
    assert (answer["schema"], answer["version"]) == (1, 1)
    assert answer["sources"][0]["name"] == "weather"
    assert answer["sources"][0]["age_s"] < 60
    assert answer["tools"][0]["function_name"] == "weather__now"
    assert answer["tools"][0]["has_vector"] is True


@pytest.mark.parametrize(
    ("damage", "said"), [(None, "no tools are published in"), (b"damaged", "it was not written by the keeper")]
)
def test_without_a_publication_one_line_says_so(
    config: Path, capsys: pytest.CaptureFixture[str], damage: bytes | None, said: str
) -> None:
    if damage is not None:
        (config.parent / "keep.tools").write_bytes(damage)
    status, out, error = run(capsys, *where(config))
    assert (status, out) == (2, "")
    assert said in error
    assert error.count("\n") == 1


def test_without_a_keeper_nothing_can_be_asked_again(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, error = run(capsys, *where(config), "--refresh")
    assert status == 2
    assert "no keeper answers" in error
