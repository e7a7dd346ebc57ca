"""What the keeper publishes: whole or not at all, and seen when it has changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from router.caches import published
from router.caches.published import PublishedError, PublishedPrompts, PublishedTools, Subscription
from tests.support import published as pub


def subscription(directory: Path) -> Subscription[PublishedTools]:
    return Subscription(directory / "keep.tools", published.TOOLS, PublishedTools)


def test_a_value_is_read_once_for_each_publication(tmp_path: Path) -> None:
    reader = subscription(tmp_path)
    assert reader.poll() is None, "nothing is published"
    first = pub.tools(pub.tool("a.one", [0.6, 0.8]))
    pub.publish_tools(tmp_path, first)
    assert reader.poll() == first
    assert reader.version == 1
    assert reader.poll() is None, "nothing new"
    second = pub.tools(pub.tool("a.two"))
    assert pub.publish_tools(tmp_path, second) == 2
    assert reader.poll() == second
    (tmp_path / "keep.tools").unlink()
    assert reader.poll() is None, "what was read stays with the reader"
    assert [path.name for path in tmp_path.iterdir()] == [], "nothing is left beside it"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-1], "it is damaged"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "it is damaged"),
        (lambda data: data[:20], "not written by the keeper"),
        (lambda data: b"X" + data[1:], "not written by the keeper"),
        (lambda data: b"", "not written by the keeper"),
    ],
)
def test_what_is_not_whole_is_refused_once_and_the_next_is_read(tmp_path: Path, damage: object, reason: str) -> None:
    path, reader = tmp_path / "keep.tools", subscription(tmp_path)
    pub.publish_tools(tmp_path, pub.tools(pub.tool("a.one")))
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(PublishedError, match=reason):
        reader.poll()
    assert reader.poll() is None, "it is told once"
    pub.publish_tools(tmp_path, pub.tools(pub.tool("a.two")))
    value = reader.poll()
    assert value is not None
    assert [tool.name for tool in value.tools] == ["a.two"]


def test_another_kind_is_refused(tmp_path: Path) -> None:
    pub.publish_prompts(tmp_path, pub.prompt("p", "text"))
    with pytest.raises(PublishedError, match="kind 2, expected 1"):
        Subscription(tmp_path / "keep.prompts", published.TOOLS, PublishedTools).poll()
    value = Subscription(tmp_path / "keep.prompts", published.PROMPTS, PublishedPrompts).poll()
    assert value is not None
    assert value.prompts[0].text == "text"


def test_a_reader_finds_the_old_value_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that dies before the rename leaves what was there."""
    reader = subscription(tmp_path)
    pub.publish_tools(tmp_path, pub.tools(pub.tool("a.one")))
    assert reader.poll() is not None

    def fail(self: Path, target: Path) -> Path:
        raise OSError("killed here")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="killed here"):
        pub.publish_tools(tmp_path, pub.tools(pub.tool("a.two")))
    assert reader.poll() is None
    assert os.listdir(tmp_path) == ["keep.tools"]


def test_what_a_killed_writer_left_goes_with_the_next_publication(tmp_path: Path) -> None:
    left = tmp_path / "keep.tools.4194305"
    left.write_bytes(b"RRKEEP01 a part")
    (tmp_path / "keep.toolsmith").write_bytes(b"of somebody else")
    pub.publish_tools(tmp_path, pub.tools(pub.tool("a.one")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keep.tools", "keep.toolsmith"]
