"""Reads the captures, and takes streams apart the plain way: nothing here is shared with the router."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parent


@dataclass(frozen=True)
class Capture:
    """One response: ``head`` with its blank line, ``framed`` the body as sent, ``body`` without chunk framing."""

    name: str
    head: bytes
    framed: bytes
    body: bytes
    ended: bool


@cache
def capture(name: str) -> Capture:
    """Return the capture ``HOST/NAME``."""
    raw = (_ROOT / f"{name}.raw").read_bytes()
    head, mark, framed = raw.partition(b"\r\n\r\n")
    chunked = b"transfer-encoding: chunked" in head.lower()
    body, ended = dechunk(framed) if chunked else (framed, True)
    return Capture(name, head + mark, framed, body, ended)


@cache
def stream_names() -> tuple[str, ...]:
    """Return the names of all captures of streams."""
    names = (str(path.relative_to(_ROOT).with_suffix("")) for path in sorted(_ROOT.glob("*/*.raw")))
    return tuple(name for name in names if b"text/event-stream" in capture(name).head)


def dechunk(framed: bytes) -> tuple[bytes, bool]:
    """Take the chunk framing off; tell whether the last chunk was there."""
    body = b""
    while framed:
        line, _, framed = framed.partition(b"\r\n")
        size = int(line.partition(b";")[0] or b"0", 16)
        if size == 0:
            return body, line != b"" and framed.startswith(b"\r\n")
        body += framed[:size]
        framed = framed[size + 2 :]
    return body, False


def split_events(body: bytes) -> tuple[list[bytes], bytes]:
    """Return the whole events, each with its blank line, and what is left."""
    events: list[bytes] = []
    current = b""
    for line in body.splitlines(keepends=True):
        current += line
        if line in {b"\n", b"\r\n"}:
            events.append(current)
            current = b""
    return events, current


def data_of(event: bytes) -> bytes | None:
    """Return what stands behind ``data:``, ``None`` for a comment."""
    values = [line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(values) if values else None


def payloads(name: str) -> list[dict[str, Any]]:
    """Return the JSON of each event of a capture, ``[DONE]`` left out."""
    found = (data_of(event) for event in split_events(capture(name).body)[0])
    return [json.loads(data) for data in found if data is not None and data != b"[DONE]"]
