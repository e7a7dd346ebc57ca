"""Builds payloads of done records for tests from what a test cares about; everything else is zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from router.stamps import STAMPS
from router.telemetry import records as rec

MS = 1_000_000


def stamps(start_ns: int, *, first_ms: int = 100, last_ms: int = 300, queue_ms: int = 0) -> tuple[int, ...]:
    """Stamps of an answer: 1 ms for each step of the router, the first and last token at the given times."""
    at = start_ns
    steps = []
    for name in STAMPS[:9]:
        at += {"recv": 0, "admitted": queue_ms * MS + MS}.get(name, MS)
        steps.append(at)
    first, last = start_ns + first_ms * MS, start_ns + last_ms * MS
    return (*steps, first - MS, first, first + MS, last, last + MS, last + 2 * MS)


def _pack(fields: Sequence[tuple[str, str, int]], layout: Any, given: Mapping[str, Any]) -> bytes:
    values: list[Any] = []
    for name, _, count in fields:
        value = given.get(name, 0 if count == 1 else (0,) * count)
        values += [value] if count == 1 else value
    return bytes(layout.pack(*values))


def payload(
    *,
    candidates: Sequence[tuple[int, int, float]] = (),
    failed_attempts: Sequence[tuple[int, ...]] = (),
    message: str = "",
    tag_ids: Mapping[int, int] | None = None,
    trace_id: bytes = b"",
    **given: Any,
) -> bytes:
    """Return a payload of ``done.ring``; the keywords are the names of :func:`router.telemetry.records.decode_done`."""
    flat: list[float] = [value for candidate in candidates for value in candidate]
    flat += [0] * (3 * rec.CANDIDATE_COUNT - len(flat))
    attempts = b"".join(rec.FAILED_ATTEMPT.pack(*attempt) for attempt in failed_attempts)
    ids = [(tag_ids or {}).get(position, 0) for position in range(rec.TAG_SLOT_COUNT)]
    texts = [given.get(name, "").encode() for name in rec.TEXT_TAGS]
    return b"".join((
        _pack(rec._FIELDS, rec.HEAD, given),
        _pack(rec._REST_FIELDS, rec.REST, given),
        rec.CANDIDATES.pack(*flat),
        attempts.ljust(rec.FAILED_ATTEMPT_COUNT * rec.FAILED_ATTEMPT.size, b"\0"),
        rec.MESSAGE.pack(message.encode()),
        rec.IDENTITY.pack(*ids, *texts, trace_id, b"", 0),
        _pack(rec.DECISION_FIELDS, rec.DECISION, given),
    ))  # fmt: skip


def name(kind: int, value_id: int, text: str) -> bytes:
    """Return a row of ``names.tab``."""
    raw = text.encode()
    return rec.NAME.pack(kind, value_id, len(raw), raw)
