"""System prompts as the keeper publishes them: read anew when they change, and kept when a file is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from router.caches import published
from router.caches.published import PublishedPrompts, Subscription
from router.config import parse
from router.keep import warm
from router.keep.warm import PromptKeeper
from tests.support.waiting import WAIT_S

TOML = 'version = 1\n[[cache.warm]]\nname = "{name}"\nmodel = "m"\nfile = "{file}"\nprompt_version = "3"\nkeep_s = 5\n'


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "LOOK_S", 0.02)


class Stand:
    def __init__(self, directory: Path, toml: str) -> None:
        self.keeper = PromptKeeper(parse(toml), directory, structlog.get_logger())
        self._subscription = Subscription(directory / "keep.prompts", published.PROMPTS, PublishedPrompts)
        self.value = PublishedPrompts()
        self.publication_count = 0

    def poll(self) -> PublishedPrompts:
        value = self._subscription.poll()
        if value is not None:
            self.value = value
            self.publication_count += 1
        return self.value

    async def wait(self, is_so: Callable[[PublishedPrompts], object]) -> PublishedPrompts:
        try:
            async with asyncio.timeout(WAIT_S):
                while not is_so(self.poll()):
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"waited {WAIT_S:g} s in vain; published are {self.value}") from None
        return self.value


def test_a_prompt_is_published_and_again_when_its_text_changes(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("You hélp.", encoding="utf-8")

    async def test() -> None:
        stand = Stand(tmp_path, TOML.format(name="support", file=file))
        await stand.keeper.start()
        (first,) = stand.poll().prompts
        assert (first.name, first.model, first.text, first.prompt_version, first.keep_s) == (
            "support", "m", "You hélp.", "3", 5.0,
        )  # fmt: skip
        file.write_text("You help more.", encoding="utf-8")
        (second,) = (await stand.wait(lambda value: value.prompts[0].text == "You help more.")).prompts
        assert second.digest != first.digest
        file.touch()
        file.unlink()
        await stand.wait(lambda _: "No such file" in stand.keeper.status().get("problem", ""))
        assert stand.poll().prompts == [second], "the one before stays"
        file.write_text("You help more.", encoding="utf-8")
        await stand.wait(lambda _: "problem" not in stand.keeper.status())
        assert stand.publication_count == 2, "what has not changed is not published again"
        await stand.keeper.stop()

    asyncio.run(test())


@pytest.mark.parametrize(
    ("data", "problem"), [(b"\xff", "utf-8"), (b"x" * (warm.TEXT_BYTES_MAX + 1), "at most 1048576 are allowed")]
)
def test_what_is_no_prompt_is_named_and_the_others_are_published(tmp_path: Path, data: bytes, problem: str) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("You help.", encoding="utf-8")
    bad.write_bytes(data)

    async def test() -> None:
        toml = TOML.format(name="bad", file=bad) + TOML.format(name="good", file=good).partition("\n")[2]
        stand = Stand(tmp_path, toml)
        await stand.keeper.start()
        assert [prompt.name for prompt in stand.poll().prompts] == ["good"]
        status = stand.keeper.status()
        assert status["prompts"] == 1
        assert status["problem"].startswith(f"bad: {bad}: ")
        assert problem in status["problem"]
        await stand.keeper.stop()

    asyncio.run(test())


@pytest.mark.parametrize("changed", ["model", "prompt_version", "tools"])
def test_whatever_reaches_a_host_changes_the_digest(tmp_path: Path, changed: str) -> None:
    file = tmp_path / "p.txt"
    file.write_text("You help.", encoding="utf-8")
    source = '[[cache.tools.sources]]\nname = "w"\nfile = "/x.json"\n'
    before = TOML.format(name="p", file=file)
    after = {
        "model": before.replace('model = "m"', 'model = "n"'),
        "prompt_version": before.replace('"3"', '"4"'),
        "tools": before + 'tools = ["w.*"]\n' + source,
    }[changed]

    async def digest(toml: str) -> bytes:
        stand = Stand(tmp_path, toml)
        await stand.keeper.start()
        await stand.keeper.stop()
        return stand.poll().prompts[0].digest

    assert asyncio.run(digest(before)) != asyncio.run(digest(after))
