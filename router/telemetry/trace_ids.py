"""Ids of traces and spans that the router and the observer work out each for itself; pure.

A request whose client sent no ``traceparent`` has a trace id of its own, made from what names the request for ever: the
instance, the start of its life and ``request_seq``. So the id that a host was told is the one that the observer
exports, nothing has to be kept in between, and an observer that was started again makes the same ids. The hash is
XXH3: of a trace id the last 64 bits are evenly spread, as samplers by ratio expect (W3C Trace Context level 2,
"random trace-id"; OpenTelemetry's ``TraceIdRatioBased``).
"""

from __future__ import annotations

from typing import Final

from xxhash import xxh3_64_digest, xxh3_128_digest

SERVER: Final = "server"
"""The span of a whole request, as its client sees it."""
SAMPLED: Final = 1
"""The flag of ``traceparent`` that says that its sender keeps the trace."""
_NO_SPAN: Final = bytes(8)
_SPREAD: Final = 1 << 64


def life_of(instance: str, generation: int) -> bytes:
    """Return what all ids of one life of a router are made from; ``generation`` is the name of its directory."""
    return f"{instance}/{generation}/".encode()


def trace_id(life: bytes, request_seq: int) -> bytes:
    """Return the 16 bytes of the trace of a request that came without one."""
    return xxh3_128_digest(b"%b%d" % (life, request_seq))


def span_id(life: bytes, request_seq: int, part: str) -> bytes:
    """Return the 8 bytes of one span of a request; ``part`` says which, :data:`SERVER` the whole."""
    found = xxh3_64_digest(b"%b%d/%b" % (life, request_seq, part.encode()))
    return found if found != _NO_SPAN else b"\1" * 8  # zeros are no span


def attempt_span_id(life: bytes, request_seq: int, routed_ns: int) -> bytes:
    """Return the 8 bytes of the span of one attempt at a host.

    ``routed_ns`` is when it was decided, which is in the record of every attempt; its number is not, for the record
    keeps the last ones only.
    """
    return span_id(life, request_seq, f"attempt {routed_ns}")


def is_within(trace: bytes, ratio: float) -> bool:
    """Return whether a trace is among the share ``ratio`` (0 to 1) of all: the same answer wherever it is asked."""
    return int.from_bytes(trace[8:]) < round(ratio * _SPREAD)
