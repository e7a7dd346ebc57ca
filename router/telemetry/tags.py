"""Tags of an HTTP request: what it is for, by whom, in which version; pure.

From ``x-ringrouter-tag-NAME`` headers, the ``metadata`` and ``user`` fields of the body, and the W3C headers
``baggage`` (only known names) and ``traceparent``. Headers win over the body, the body over baggage.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from router.telemetry.records import OWN_TAG_FIRST, TAGS, TEXT_TAGS

_PREFIX: Final = b"x-ringrouter-tag-"
_TRACEPARENT: Final = re.compile(rb"(?!ff|00.{54})[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
"""W3C Trace Context §3.2.2: version ff is none, and version 00 has nothing behind its flags."""
_HEADER_BYTES_MAX: Final = 8192
"""Longer ``baggage`` is not read: the W3C lets a platform drop what exceeds 8,192 bytes."""
_MODEL_TAG: Final = TAGS.index("model_name")

Trace = tuple[bytes, bytes, int]
NO_TRACE: Final[Trace] = (b"", b"", 0)


class Tags(NamedTuple):
    """``ids``: values by position in the tag slots; ``texts``: the free-text tags in the order of TEXT_TAGS."""

    ids: dict[int, str]
    texts: list[str]
    trace: Trace


class TagReader:
    """Knows the names of all tags, the user's own included."""

    def __init__(self, own: Sequence[str]) -> None:
        self._positions = {name: position for position, name in enumerate(TAGS)}
        self._positions.update({name: OWN_TAG_FIRST + i for i, name in enumerate(own)})
        self._texts = {name: i for i, name in enumerate(TEXT_TAGS)}

    def read(
        self,
        headers: Mapping[bytes, bytes],
        model: str,
        request_id: str,
        user: str | None,
        metadata: Mapping[str, Any] | None,
    ) -> Tags:
        """Return the tags of one request."""
        ids: dict[int, str] = {}
        texts = [""] * len(TEXT_TAGS)
        texts[self._texts["request_id"]] = request_id
        if b"baggage" in headers:
            self._from_baggage(headers[b"baggage"], ids, texts)
        if user:
            self._put("user_id", user, ids, texts)
        if metadata:
            for name, value in metadata.items():
                if isinstance(value, str):
                    self._put(name, value, ids, texts)
        for header, value in headers.items():
            if header.startswith(_PREFIX):
                name = header[len(_PREFIX) :].decode("ascii", "replace").replace("-", "_")
                self._put(name, value.decode("utf-8", "replace"), ids, texts)
        ids[_MODEL_TAG] = model
        return Tags(ids, texts, _trace(headers.get(b"traceparent")))

    def _put(self, name: str, value: str, ids: dict[int, str], texts: list[str]) -> None:
        position = self._positions.get(name)
        if position is not None:
            if value:
                ids[position] = value
        elif (text := self._texts.get(name)) is not None and name != "request_id":
            texts[text] = value

    def _from_baggage(self, header: bytes, ids: dict[int, str], texts: list[str]) -> None:
        if len(header) > _HEADER_BYTES_MAX:
            return
        for member in header.decode("ascii", "replace").split(","):
            name, _, value = member.partition(";")[0].partition("=")
            self._put(name.strip(), unquote(value.strip()), ids, texts)


def _trace(traceparent: bytes | None) -> Trace:
    """Return trace id, span id and flags of a W3C ``traceparent``, zeros without a valid one."""
    if traceparent is None:
        return NO_TRACE
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return NO_TRACE
    return bytes.fromhex(found[1].decode()), bytes.fromhex(found[2].decode()), int(found[3], 16)
