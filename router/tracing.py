"""Tells hosts which span of a trace their work is part of: the attempt that asks them; pure.

Only where traces are exported (``observer.traces.endpoint``); else a caller's own lines are passed on. The ids follow
from what the attempt's record holds (:mod:`router.telemetry.trace_ids`), so that the observer exports the same span.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from router.telemetry import trace_ids

if TYPE_CHECKING:
    from router.request import Request

_GIVEN: Final = re.compile(
    rb"traceparent: (?!ff|00[^\r]{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})"
    rb"(?:-[^\r]*)?\r\n(.*)",
    re.DOTALL,
)
"""The caller's lines as :func:`router.ingress.submission.trace_headers` makes them; valid is what
:mod:`router.telemetry.tags` takes, too. (Version ff is none, and version 00 has nothing behind its flags.)"""


class Tracer:
    """Makes the lines for the requests of one life of a router."""

    def __init__(self, instance: str, generation: int, sample_ratio: float) -> None:
        self._life = trace_ids.life_of(instance, generation)
        self._sample_ratio = sample_ratio

    def lines(self, request: Request) -> bytes:
        """Return ``traceparent`` for the attempt under way, and the caller's ``tracestate``.

        The trace and its flags are the caller's. Without a valid ``traceparent`` the trace is the request's own;
        whether it is flagged as sampled ``observer.traces.sample_ratio`` says.
        """
        span = trace_ids.attempt_span_id(self._life, request.seq, request.routed).hex().encode()
        given = _GIVEN.fullmatch(request.trace_headers) if request.trace_headers else None
        if given is not None:
            return b"traceparent: 00-%b-%b-%b\r\n%b" % (given[1], span, given[2], given[3])
        trace = trace_ids.trace_id(self._life, request.seq)
        flags = trace_ids.SAMPLED if trace_ids.is_within(trace, self._sample_ratio) else 0
        return b"traceparent: 00-%b-%b-%02x\r\n" % (trace.hex().encode(), span, flags)
