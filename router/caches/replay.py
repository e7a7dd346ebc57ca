"""A kept answer given again: as a stream where it was one, whole where it was whole."""

from __future__ import annotations

from time import monotonic_ns
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final, cast

from router.hosts.scanner import StreamScanner
from router.http1 import LengthDecoder, chunk
from router.telemetry.decision import note
from router.telemetry.records import CacheUse

if TYPE_CHECKING:
    from router.caches.responses import Answer
    from router.loop import Loop
    from router.request import CountingEgress, Request

_NS: Final = 1_000_000_000
_WITHOUT_ERROR: Final = SimpleNamespace(scanner=SimpleNamespace(error=None))
"""What an egress asks of an attempt at a stream's end."""


def replay(loop: Loop, request: Request, answer: Answer, now: int) -> int:
    """Answer a request in this turn; return by how many nanoseconds that was sooner than the host was.

    In its records no host has it and no event is told: like a whole answer it comes in one piece.
    """
    request.admitted = request.routed1 = request.routed = now
    saved_ns = max(answer.took_ns - (monotonic_ns() - now), 0)
    note(request, cache=CacheUse.HIT, cache_hits=1, saved_us=saved_ns // 1000)
    request.tok1 = request.tok_n = request.ttfc = request.ttfo = now
    request.status = 200
    request.usage = answer.usage
    request.choice_count = answer.choice_count
    extra = b"x-ringrouter-cache: hit\r\nage: %d\r\n" % ((now - answer.made_ns) // _NS)
    if answer.sentinel or request.stream:
        _stream(request, answer, extra, now)
    else:
        request.egress.whole(request, 200, answer.content_type, answer.body, extra)
    loop.end_ok(request, monotonic_ns())
    return saved_ns


def _stream(request: Request, answer: Answer, extra: bytes, now: int) -> None:
    egress, body = request.egress, answer.body
    request.committed = True
    if egress.counts_events:
        scanner = StreamScanner(LengthDecoder(len(body)), raw=False)
        scanner.feed(body)
        counting = cast("CountingEgress", egress)
        counting.accepted(request)
        counting.note(scanner.events, now)
    egress.begin_stream(request, chunk(body) if egress.raw else body, answer.content_type, extra)
    request.attempt = _WITHOUT_ERROR
    egress.end_stream(request, b"", answer.sentinel)
    request.attempt = None
    if not egress.blocked:
        request.out1 = request.out_n = monotonic_ns()
