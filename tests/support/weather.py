"""A tool, and a talk in which the small model calls it."""

from __future__ import annotations

import json
from typing import Any

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather for a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def weather_talk() -> list[dict[str, Any]]:
    """Return a talk with a few calls in it: after those the small model calls the tool reliably."""
    talk: list[dict[str, Any]] = []
    for number, city in enumerate(["Rome", "Oslo", "Berlin"]):
        function = {"name": "get_weather", "arguments": json.dumps({"city": city})}
        call = {"id": f"call_{number}", "type": "function", "function": function}
        talk.append({"role": "user", "content": f"What is the weather in {city}?"})
        talk.append({"role": "assistant", "content": None, "tool_calls": [call]})
    return [*talk, {"role": "user", "content": "What is the weather in Paris?"}]
