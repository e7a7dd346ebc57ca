"""A published tool in the words of other APIs than OpenAI's chats; pure.

Its JSON Schema is passed on byte for byte; only what stands around it differs:

* chats, Ollama: ``{"type": "function", "function": {"name", "description", "parameters", …}}``, as it is published;
* OpenAI's responses: the same without the inner object (https://platform.openai.com/docs/api-reference/responses).
  There a tool is strict that does not say; in chats it is not, so that is said;
* Anthropic's messages: ``{"name", "description", "input_schema"}`` (https://docs.claude.com/en/api/messages).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from router.dialects import ANTHROPIC, RESPONSES, Dialect

Reshape = Callable[[bytes], bytes]


class _Tool(msgspec.Struct):
    function: dict[str, msgspec.Raw]


class _Named(msgspec.Struct, omit_defaults=True):
    name: Any
    description: Any = None
    input_schema: Any = None


_decode: Final = msgspec.json.Decoder(_Tool).decode
_encode: Final = msgspec.json.Encoder().encode


def for_responses(body: bytes) -> bytes:
    """Return a tool as `/v1/responses` takes it."""
    return _encode({"type": "function", "strict": False, **_decode(body).function})


def for_messages(body: bytes) -> bytes:
    """Return a tool as `/v1/messages` takes it."""
    function = _decode(body).function
    return _encode(_Named(function["name"], function.get("description"), function.get("parameters")))


def reshape_of(dialect: Dialect) -> Reshape | None:
    """Return what makes tools of a dialect of those that are published, ``None`` where they are as they should be."""
    if dialect is RESPONSES:
        return for_responses
    return for_messages if dialect is ANTHROPIC else None
