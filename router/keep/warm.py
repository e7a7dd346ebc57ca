"""System prompts read from their files, published for the routers that send them ahead (:mod:`router.caches.warm`)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgspec

from router.caches import published
from router.caches.published import PublishedPrompt, PublishedPrompts, publish
from router.config import Config
from router.config.caches import published_prompts
from router.config.warm import WarmPrompt
from router.keep.part import Verb

LOOK_S: Final = 1.0
TEXT_BYTES_MAX: Final = 1 << 20
_Seen = tuple[int, int, int] | str


class PromptKeeper:
    """The part of the keeper that keeps system prompts."""

    name = "warm"

    def __init__(self, config: Config, run_dir: Path, log: Any) -> None:
        self._config = config.cache.warm
        self._path = published_prompts(run_dir)
        self._log = log
        self._seen: dict[str, _Seen] = {}
        self._prompts: dict[str, PublishedPrompt] = {}
        self._problems: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def verbs(self) -> Mapping[str, Verb]:
        """None."""
        return {}

    async def start(self) -> None:
        """Read the prompts, and look once a second whether they have changed."""
        self._look()
        self._publish()
        self._task = asyncio.create_task(self._follow(), name="prompts")

    async def stop(self) -> None:
        """Look no more; what is published stays."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def status(self) -> dict[str, Any]:
        """Return how many prompts are published, and which cannot be read."""
        problem = {"problem": "; ".join(self._problems.values())} if self._problems else {}
        return {"prompts": len(self._prompts), **problem}

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if self._look():
                self._publish()

    def _look(self) -> bool:
        """Read what has changed; return whether anything has."""
        changed = False
        for prompt in self._config:
            path = Path(prompt.file)
            try:
                status = path.stat()
                seen: _Seen = (status.st_ino, status.st_mtime_ns, status.st_size)
                if self._seen.get(prompt.name) == seen:
                    continue
                if status.st_size > TEXT_BYTES_MAX:
                    raise ValueError(f"it has {status.st_size} bytes, at most {TEXT_BYTES_MAX} are allowed")
                value = _prompt(prompt, path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                self._note_problem(prompt, str((error.strerror if isinstance(error, OSError) else None) or error))
                continue
            self._problems.pop(prompt.name, None)
            self._seen[prompt.name] = seen
            changed = changed or self._prompts.get(prompt.name) != value
            self._prompts[prompt.name] = value
        return changed

    def _note_problem(self, prompt: WarmPrompt, reason: str) -> None:
        if self._seen.get(prompt.name) != reason:
            self._log.warning("a prompt cannot be read, the one before stays", prompt=prompt.name, reason=reason)
        self._seen[prompt.name] = reason
        self._problems[prompt.name] = f"{prompt.name}: {prompt.file}: {reason}"

    def _publish(self) -> None:
        value = PublishedPrompts([self._prompts[p.name] for p in self._config if p.name in self._prompts])
        try:
            publish(self._path, published.PROMPTS, value)
        except OSError as error:
            self._log.error("prompts cannot be published", path=str(self._path), reason=error.strerror or str(error))


def _prompt(config: WarmPrompt, text: str) -> PublishedPrompt:
    digest = blake2b(msgspec.json.encode((config.model, text, config.prompt_version, config.tools)), digest_size=16)
    return PublishedPrompt(
        config.name, config.model, text, config.prompt_version, list(config.tools), config.keep_s, digest.digest()
    )
