"""What a host says in an answer that is no stream, or in an error: pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from router import native
from router.errors import UNDECODABLE


class _Whole(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw(b"")
    timings: msgspec.Raw = msgspec.Raw(b"")
    metrics: msgspec.Raw = msgspec.Raw(b"")
    choices: list[msgspec.Raw] = []


_decode_whole: Final = msgspec.json.Decoder(_Whole).decode


class _Choice(msgspec.Struct):
    finish_reason: object = None


class _Finished(msgspec.Struct):
    choices: list[_Choice] = []


_TOOL_CALLS: Final = b'"tool_calls"'
_decode_finished: Final = msgspec.json.Decoder(_Finished).decode


Report = tuple[bytes | None, bytes | None, bytes | None, int, bool]


def plain_report_of(body: bytes) -> Report:
    """Return usage, timings and metrics of a whole answer as JSON, the number of its choices, and whether it ended in
    calls of tools.
    """
    try:
        whole = _decode_whole(body)
    except UNDECODABLE:
        return None, None, None, 0, _TOOL_CALLS in body and _calls_tools(body)
    parts = bytes(whole.usage) or None, bytes(whole.timings) or None, bytes(whole.metrics) or None
    return *parts, len(whole.choices), _TOOL_CALLS in body and _calls_tools(body)


native_report_of: Final[Callable[[bytes], Report | None] | None] = native.scan and native.scan.whole_report
"""The same of an answer of the usual shape, ``None`` for any other; there is none without native code."""


def report_of(body: bytes) -> Report:
    """Return what :func:`plain_report_of` does."""
    found = native_report_of(body) if native_report_of is not None else None
    return found or plain_report_of(body)


def _calls_tools(body: bytes) -> bool:
    """Whether a whole answer ended in calls of tools. Every answer of some hosts names them, most have none."""
    try:
        return any(choice.finish_reason == "tool_calls" for choice in _decode_finished(body).choices)
    except UNDECODABLE:
        return False


def error_text(raw: bytes) -> str:
    """Return the message in a host's error object, or the object itself."""
    try:
        decoded = msgspec.json.decode(raw)
    except UNDECODABLE:
        return raw[:200].decode("utf-8", "replace")
    if isinstance(decoded, dict) and isinstance(decoded.get("error"), dict):
        decoded = decoded["error"]
    if isinstance(decoded, dict) and isinstance(decoded.get("message"), str):
        return str(decoded["message"])[:500]
    if isinstance(decoded, str):
        return decoded[:500]
    return raw[:200].decode("utf-8", "replace")
