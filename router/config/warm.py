"""The sections of warm state: system prompts sent ahead, and answers kept."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from router.config.base import Section, above_zero, between, named
from router.config.tools import ToolPattern
from router.config_schema import shown
from router.errors import ConfigError


class WarmPrompt(Section, frozen=True):
    """`[[cache.warm]]`: a system prompt that each host of a model should hold before anybody asks."""

    name: Annotated[str, named("Name in records, as tag feature_name.")]
    model: Annotated[str, Meta(min_length=1, description="Model whose hosts get it, as clients name it.")]
    file: Annotated[
        str,
        Meta(
            pattern=r"\A/.*\Z",
            extra={"allowed": "an absolute path"},
            description="Text of the system prompt, exactly as clients send it; UTF-8; read anew when it changes.",
        ),
    ]
    prompt_version: Annotated[str, Meta(max_length=64, description="Its version, as the tag of that name.")] = ""
    tools: Annotated[
        list[ToolPattern],
        Meta(
            max_length=64,
            description="Tools (docs/caches.md) that stand in the prompt too: most chat templates put them before the "
            "system prompt, so that without them nothing of it would be warm.",
        ),
    ] = msgspec.field(default_factory=list)
    keep_s: Annotated[
        float,
        between(
            0, 86_400, "Sent again to a host that has been idle for so long; 0 = only at start, recovery and change."
        ),
    ] = 0.0


class ResponseCache(Section, frozen=True):
    """`[cache.responses]`: whole answers kept for requests at temperature 0 that ask for it (docs/caches.md)."""

    enabled: Annotated[bool, Meta(description="Answers are kept at all.")] = False
    features: Annotated[
        list[str],
        Meta(
            max_length=256,
            description="Requests with one of these tags `feature_name` are as if they had asked by "
            "`x-ringrouter-cache: on`.",
        ),
    ] = msgspec.field(default_factory=list)
    total_bytes: Annotated[
        int, between(64 * 1024, 1 << 36, "Memory of all answers kept; the least lately used go first.")
    ] = 64 << 20
    answer_bytes: Annotated[int, between(1024, 1 << 30, "One answer; a larger one is not kept.")] = 1 << 20
    body_bytes: Annotated[
        int, between(1024, 1 << 26, "Body of a request; a larger one is not looked up: its key would take too long.")
    ] = 256 * 1024
    ttl_s: Annotated[float, above_zero(31_536_000, "Age at which an answer is not given any more.")] = 3600.0


def check_warm(prompts: list[WarmPrompt], responses: ResponseCache, source_names: list[str]) -> None:
    """Check what one value alone cannot show; raises :class:`ConfigError`."""
    names: list[str] = []
    for index, prompt in enumerate(prompts):
        if prompt.name in names:
            raise ConfigError(
                f"cache.warm[{index}].name = {shown(prompt.name)}: expected names that differ, this one stands twice"
            )
        names.append(prompt.name)
        for place, pattern in enumerate(prompt.tools):
            source = pattern.partition(".")[0]
            if "*" not in source and source not in source_names:
                raise ConfigError(
                    f"cache.warm[{index}].tools[{place}] = {shown(pattern)}: "
                    f"expected one of the sources ({', '.join(source_names) or 'none'}) before the dot"
                )
    if responses.features and not responses.enabled:
        raise ConfigError("cache.responses.features is given without cache.responses.enabled = true")
    if responses.answer_bytes > responses.total_bytes:
        raise ConfigError(
            f"cache.responses.answer_bytes = {responses.answer_bytes}: "
            f"expected at most cache.responses.total_bytes ({responses.total_bytes})"
        )
