"""Tools that requests name and the router fills in; pure.

In ``tools`` of a request an entry ``{"type": "ringrouter", "names": ["weather.*", "calendar.create"]}`` or
``{"type": "ringrouter", "toolset": "NAME"}`` stands for tools that the keeper has published. Their JSON is put in its
place byte for byte, in the shape of the request's API; nothing else of the body is touched or encoded again. Apps send
the same entries again and again, so what an array of tools becomes is remembered (:data:`_MEMO_BYTES_MAX`), and the
usual splice is a look-up and a join.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from router import native
from router.caches.published import PublishedTool, PublishedTools
from router.caches.tool_shapes import Reshape
from router.errors import UNDECODABLE, ErrorKind, RequestError
from router.messages import edit_body

_MEMO_BYTES_MAX: Final = 16 << 20
"""Of arrays and what they become; then all is forgotten."""
_MEMO_PLACE_BYTES: Final = 512
"""What an entry takes beside its two arrays: its place, and the objects of the splice."""
_NAMES_MAX: Final = 256
"""Names in one entry."""
_PATTERNS_MAX: Final = 16
"""Of them, those with a `*`: each is compared with every tool."""
_ENTRIES_MAX: Final = 8
"""Of ours in one request."""
_SHOWN_MAX: Final = 20
_NEAREST_MAX: Final = 1024
MARK: Final = b'"ringrouter"'


class Spliced(NamedTuple):
    """What an array of tools becomes."""

    array: bytes
    tool_count: int
    """Tools that were filled in."""
    tool_bytes: int
    nearest: int = 0
    """How many of ``candidates`` are asked for, 0 = all."""
    candidates: Sequence[PublishedTool] = ()
    remaining: tuple[bytes, bytes] = (b"", b"")
    """What stands before and behind the candidates in ``array``."""


class _Kind(msgspec.Struct):
    type: Any = None


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    names: list[str] = []
    toolset: str = ""
    nearest: int = 0


_decode_array: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_kind: Final = msgspec.json.Decoder(_Kind).decode
_decode_entry: Final = msgspec.json.Decoder(_Entry).decode


def plain_offset_of(whole: bytes, part: Any) -> int:
    """Return where a part of a buffer begins in it; -1 if that cannot be told.

    Without the buffers' addresses it can be told only of what stands there once.
    """
    data = bytes(part)
    offset = whole.find(data)
    return offset if offset >= 0 and whole.find(data, offset + 1) < 0 else -1


_native_offset: Final = getattr(native.steps, "offset_of", None)
offset_of: Final[Callable[[bytes, Any], int]] = plain_offset_of if _native_offset is None else _native_offset
"""As :func:`plain_offset_of`, by the address and so always exact, where there is native code."""


def replace_part(body: bytes, part: Any, field: str, value: bytes) -> bytes:
    """Return a JSON object with the value of a field, which is ``part`` of it, replaced by another."""
    offset = offset_of(body, part)
    if offset < 0:
        return edit_body(body, {}, {field: value})
    view = memoryview(body)
    return b"".join((view[:offset], value, view[offset + memoryview(part).nbytes :]))


class ToolRegistry:
    """All published tools by name, and the toolsets of the configuration; ``reshape`` makes an API's tools of them."""

    def __init__(
        self, published: PublishedTools, toolsets: Mapping[str, Sequence[str]], reshape: Reshape | None = None
    ) -> None:
        self.published = published
        self.tools = {tool.name: tool for tool in published.tools}
        self._toolsets = toolsets
        self._reshape = reshape
        self._shaped: dict[str, PublishedTool] = {} if reshape is not None else self.tools
        """Those that were asked for, in the shape of this registry."""
        self._memo: dict[bytes, Spliced | None] = {}
        self._memo_bytes = 0

    def splice(self, array: bytes) -> Spliced | None:
        """Return what the array of a request's ``tools`` becomes, ``None`` where it names none of ours.

        Raises :class:`RequestError` that names what is wrong or not known.
        """
        try:
            return self._memo[array]
        except KeyError:
            pass
        if MARK not in array:
            return None
        spliced = self._make(array)
        size = _MEMO_PLACE_BYTES + len(array) + (len(spliced.array) if spliced is not None else 0)
        if self._memo_bytes + size > _MEMO_BYTES_MAX:
            self._memo.clear()
            self._memo_bytes = 0
        if size <= _MEMO_BYTES_MAX:
            self._memo[array] = spliced
            self._memo_bytes += size
        return spliced

    def match(self, patterns: Sequence[str], key: str) -> list[PublishedTool]:
        """Return the tools that names and patterns stand for, each once, in the order of the patterns.

        Raises :class:`RequestError` that names those that stand for none.
        """
        found: dict[str, PublishedTool] = {}
        unknown = []
        for pattern in patterns:
            names = [pattern] if pattern in self.tools else self._matching(pattern)
            if not names:
                unknown.append(pattern)
            for name in names:
                found[name] = self._shaped.get(name) or self._in_shape(name)
        if unknown:
            raise _bad(f"{key}: no tool is called {_shown(unknown)} (tools: {_shown(list(self.tools))})", key)
        return list(found.values())

    def _in_shape(self, name: str) -> PublishedTool:
        tool = self.tools[name]
        assert self._reshape is not None, "all are there as they are published"
        tool = self._shaped[name] = msgspec.structs.replace(tool, body=self._reshape(tool.body))
        return tool

    def _matching(self, pattern: str) -> list[str]:
        return [name for name in self.tools if matches(pattern, name)] if "*" in pattern else []

    # ------------------------------------------------------------ one array
    def _make(self, array: bytes) -> Spliced | None:
        try:
            elements = _decode_array(array)
        except UNDECODABLE:
            return None  # not an array: for the host to judge
        parts: list[bytes] = []
        used: dict[str, PublishedTool] = {}
        candidates: list[PublishedTool] = []
        nearest = place = entry_count = 0
        for index, element in enumerate(elements):
            if not _is_ours(element):
                parts.append(bytes(element))
                continue
            entry_count += 1
            if entry_count > _ENTRIES_MAX:
                raise _bad(f"tools: at most {_ENTRIES_MAX} entries of type ringrouter are allowed", "tools")
            entry = _entry(element, f"tools[{index}]")
            tools = [t for t in self._named(entry, f"tools[{index}]") if t.name not in used]
            used.update({tool.name: tool for tool in tools})
            if entry.nearest:
                if nearest:
                    raise _bad("tools: nearest may stand in one entry only", "tools")
                nearest, place, candidates = entry.nearest, len(parts), tools
            parts += [tool.body for tool in tools]
        if not used:
            return None
        whole = b"[%b]" % b",".join(parts)
        size = sum(len(tool.body) for tool in used.values())
        if nearest >= len(candidates):
            return Spliced(whole, len(used), size)
        behind = parts[place + len(candidates) :]
        before = b"[" + b"".join(part + b"," for part in parts[:place])
        after = b"".join(b"," + part for part in behind) + b"]"
        return Spliced(whole, len(used), size, nearest, candidates, (before, after))

    def _named(self, entry: _Entry, key: str) -> list[PublishedTool]:
        if entry.toolset:
            patterns = self._toolsets.get(entry.toolset)
            if patterns is None:
                known = _shown(list(self._toolsets)) or "none"
                raise _bad(f"{key}.toolset: no toolset is called {entry.toolset[:100]!r} (toolsets: {known})", "tools")
            return self.match(patterns, f"{key}.toolset")
        return self.match(entry.names, f"{key}.names")


def select(spliced: Spliced, chosen: Sequence[PublishedTool]) -> Spliced:
    """Return a splice with only the chosen ones of its candidates."""
    before, after = spliced.remaining
    array = before + b",".join(tool.body for tool in chosen) + after
    left_out = len(spliced.candidates) - len(chosen)
    size = spliced.tool_bytes - sum(len(t.body) for t in spliced.candidates) + sum(len(t.body) for t in chosen)
    return Spliced(array, spliced.tool_count - left_out, size)


def matches(pattern: str, name: str) -> bool:
    """Return whether a name fits a pattern in which ``*`` stands for any characters, in time linear in both."""
    first, *middle = pattern.split("*")
    if not middle:
        return pattern == name
    last = middle.pop()
    if len(name) < len(first) + len(last) or not (name.startswith(first) and name.endswith(last)):
        return False
    position, end = len(first), len(name) - len(last)
    for part in middle:  # the first place that fits leaves the most room for the others
        found = name.find(part, position, end)
        if found < 0:
            return False
        position = found + len(part)
    return True


def _is_ours(element: msgspec.Raw) -> bool:
    raw = bytes(element)
    if MARK not in raw:
        return False
    try:
        return bool(_decode_kind(raw).type == "ringrouter")
    except UNDECODABLE:
        return False


def _entry(element: msgspec.Raw, key: str) -> _Entry:
    try:
        entry = _decode_entry(element)
    except UNDECODABLE as error:
        text = str(error).replace("`", "").replace(" - at $.", " at ")
        raise _bad(f"{key}: {text} (an entry of type ringrouter has names or toolset, and nearest)", "tools") from None
    if bool(entry.names) == bool(entry.toolset):
        raise _bad(f"{key}: expected names or toolset, one of them", "tools")
    if len(entry.names) > _NAMES_MAX:
        raise _bad(f"{key}.names has {len(entry.names)} entries, at most {_NAMES_MAX} are allowed", "tools")
    if sum("*" in name for name in entry.names) > _PATTERNS_MAX:
        raise _bad(f"{key}.names: at most {_PATTERNS_MAX} names with a * are allowed", "tools")
    if not 0 <= entry.nearest <= _NEAREST_MAX:
        raise _bad(f"{key}.nearest = {entry.nearest}: expected 1 to {_NEAREST_MAX}", "tools")
    return entry


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_MAX} more" if len(names) > _SHOWN_MAX else ""
    return ", ".join(name[:100] for name in names[:_SHOWN_MAX]) + more


def _bad(text: str, param: str) -> RequestError:
    return RequestError(ErrorKind.BAD_REQUEST, text, param.partition("[")[0])
