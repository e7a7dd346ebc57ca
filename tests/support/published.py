"""Tools and prompts as a keeper would publish them, for routers that run without one."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from router.caches import published
from router.caches.published import PublishedPrompt, PublishedPrompts, PublishedSource, PublishedTool, PublishedTools


def function(name: str, text: str = "Does it.") -> dict[str, Any]:
    """Return an OpenAI tool."""
    parameters = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
    return {"type": "function", "function": {"name": name, "description": text, "parameters": parameters}}


def tool(name: str, vector: Sequence[float] = ()) -> PublishedTool:
    """Return a tool as it is published; ``name`` is SOURCE.TOOL."""
    body = json.dumps(function(name.replace(".", "__")), separators=(",", ":")).encode()
    return PublishedTool(name, body, struct.pack(f"<{len(vector)}f", *vector))


def tools(*every: PublishedTool, age_s: float = 0.0, state: str = "ok") -> PublishedTools:
    """Return what a keeper with one source would publish."""
    fetched_wall_ns = time.time_ns() - int(age_s * 1e9)
    return PublishedTools([PublishedSource("weather", "stdio", state, len(every), fetched_wall_ns)], list(every), "v")


def publish_tools(run_dir: Path, value: PublishedTools) -> int:
    """Publish tools to the routers below a directory."""
    return published.publish(run_dir / "keep.tools", published.TOOLS, value)


def publish_prompts(run_dir: Path, *prompts: PublishedPrompt) -> int:
    """Publish prompts to the routers below a directory."""
    return published.publish(run_dir / "keep.prompts", published.PROMPTS, PublishedPrompts(list(prompts)))


def prompt(
    name: str, text: str, *, model: str = "m", keep_s: float = 0.0, tools: Sequence[str] = ()
) -> PublishedPrompt:
    """Return a prompt as it is published."""
    return PublishedPrompt(name, model, text, "7", list(tools), keep_s, blake2b(text.encode(), digest_size=8).digest())
