"""Which tools are nearest to what the user asked last; pure.

Tools and question are vectors of an embedding model, as bytes of little-endian f32. The tools' have length 1, so that
their inner products with the question stand in the same order as the cosines.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable, Sequence
from operator import mul
from typing import Any, Final

import msgspec

from router import native
from router.caches.published import PublishedTool
from router.errors import UNDECODABLE

_TEXT_PARTS: Final = ("text", "input_text")
"""Of chats and messages, and of responses."""
TEXT_BYTES_MAX: Final = 2048
"""Of the last message, its end: what embedding models take in one go, and where the question stands."""
_PLAIN_NUMBERS_MAX: Final = 100_000
"""Of all vectors together, where no native code is: more would hold the loop up for milliseconds."""


class _Message(msgspec.Struct):
    role: Any = None
    content: Any = None


class _Part(msgspec.Struct):
    type: Any = None
    text: Any = None


class _Datum(msgspec.Struct):
    embedding: list[float]


class _Answer(msgspec.Struct):
    data: list[_Datum]


_decode_messages: Final = msgspec.json.Decoder(str | list[_Message]).decode
_decode_answer: Final = msgspec.json.Decoder(_Answer).decode


def plain_dots(query: bytes, vectors: list[bytes]) -> list[float]:
    """Return the inner product of a vector with each of a list; raises :class:`ValueError` where lengths differ."""
    numbers = struct.unpack(f"<{len(query) // 4}f", query)
    if any(len(vector) != len(query) for vector in vectors):
        raise ValueError("vectors of another length than the query")
    return [sum(map(mul, numbers, struct.unpack(f"<{len(numbers)}f", vector))) for vector in vectors]


_native_dots: Final = getattr(native.steps, "dots", None) if sys.byteorder == "little" else None
dots: Final[Callable[[bytes, list[bytes]], list[float]]] = plain_dots if _native_dots is None else _native_dots
"""As :func:`plain_dots`, in one step where there is native code."""


def last_question(messages: Any) -> str:
    """Return the end of the last user message of an array of messages, or of a text that stands in its place; empty
    where there is none with text.
    """
    try:
        decoded = _decode_messages(messages)
    except UNDECODABLE:
        return ""
    if isinstance(decoded, str):
        return _end(decoded)
    for message in reversed(decoded):
        if message.role == "user":
            return _end(_text(message.content))
    return ""


def _end(text: str) -> str:
    return text.encode("utf-8", "replace")[-TEXT_BYTES_MAX:].decode("utf-8", "ignore")


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    try:
        parts = msgspec.convert(content, list[_Part])
    except UNDECODABLE:
        return ""
    return "\n".join(part.text for part in parts if part.type in _TEXT_PARTS and isinstance(part.text, str))


def packed(vector: Sequence[float]) -> bytes:
    """Return a vector at length 1 as bytes, empty for one that has no direction."""
    length = math.sqrt(sum(map(mul, vector, vector)))
    if not length or not math.isfinite(length):
        return b""
    return struct.pack(f"<{len(vector)}f", *(value / length for value in vector))


def vector_in(answer: bytes) -> bytes:
    """Return the first vector of a host's answer in OpenAI's shape, empty where it is none."""
    try:
        data = _decode_answer(answer).data
    except UNDECODABLE:
        return b""
    return packed(data[0].embedding) if data else b""


def nearest(query: bytes, candidates: Sequence[PublishedTool], count: int) -> list[PublishedTool] | None:
    """Return the ``count`` candidates nearest to a query, in the order in which they stand.

    A candidate without a vector is always among them: nothing is known of it. ``None`` where vectors cannot be
    compared.
    """
    known = [tool for tool in candidates if len(tool.vector) == len(query)]
    unknown = {tool.name for tool in candidates if len(tool.vector) != len(query)}
    if not query or not known:
        return None
    if dots is plain_dots and len(known) * len(query) // 4 > _PLAIN_NUMBERS_MAX:
        return None
    scores = dots(query, [tool.vector for tool in known])
    best = sorted(range(len(known)), key=scores.__getitem__, reverse=True)[: max(count - len(unknown), 0)]
    chosen = unknown | {known[index].name for index in best}
    return [tool for tool in candidates if tool.name in chosen]
