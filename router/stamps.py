"""The stamps of a request and the durations between them.

One clock, ``CLOCK_MONOTONIC`` in nanoseconds (``time.monotonic_ns``), so that stamps of several processes of one
machine compare. Every duration the project reports is a difference of two stamps named here.

    recv     request head read                 conn   host connection in hand
    body     last request byte read            sent   last request byte written to the host
    pub      request ring slot published       hfb    first response byte from the host
    deq      the loop took it off the ring     tok1   first event with content (text, reasoning, tool call)
    admitted left the waiting room             out1   its bytes were taken by the client's socket
    routed1  first routing decision            tokN   last content event
    routed   the decision that answered        outN   its bytes were taken
                                               done   terminal event, error or cancel
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

STAMPS: Final = (
    "recv",
    "body",
    "pub",
    "deq",
    "admitted",
    "routed1",
    "routed",
    "conn",
    "sent",
    "hfb",
    "tok1",
    "out1",
    "tokN",
    "outN",
    "done",
)
"""Names of the stamps in the order in which a request passes them."""

# The stages of the time to first token, each with the stamp that ends it. Consecutive, so they sum exactly.
_TTFT_STAGES: Final = (
    ("upload", "body"),
    ("ingress", "pub"),
    ("handoff", "deq"),
    ("queue", "admitted"),
    ("route", "routed1"),
    ("retry", "routed"),
    ("connect", "conn"),
    ("send", "sent"),
    ("host_first_byte", "hfb"),
    ("host_first_token", "tok1"),
    ("egress", "out1"),
)
STAGES: Final = (*(name for name, _ in _TTFT_STAGES), "decode", "tail")
"""Names of the stages in order; the first eleven sum to ``ttft``."""

EARLY_WINDOW_NS: Final = 2_000_000_000
"""The window of ``early_tps`` and ``visible_2s``: the first two seconds, which decide whether a user stays."""


def normalise(stamps: Sequence[int]) -> list[int]:
    """Return the stamps without holes: what did not happen (0) or would run backwards takes its predecessor's value.

    The predecessor of ``tokN`` is ``tok1`` (tokens go on arriving whether or not the client takes the first one);
    ``outN`` follows both ``out1`` and ``tokN``. ``stamps`` are nanoseconds in the order of :data:`STAMPS`.
    """
    recv, body, pub, deq, admitted, routed1, routed, conn, sent, hfb, tok1, out1, tok_n, out_n, done = stamps
    body = max(body, recv)
    pub = max(pub, body)
    deq = max(deq, pub)
    admitted = max(admitted, deq)
    routed1 = max(routed1, admitted)
    routed = max(routed, routed1)
    conn = max(conn, routed)
    sent = max(sent, conn)
    hfb = max(hfb, sent)
    tok1 = max(tok1, hfb)
    out1 = max(out1, tok1)
    tok_n = max(tok_n, tok1)
    out_n = max(out_n, out1, tok_n)
    return [
        recv,
        body,
        pub,
        deq,
        admitted,
        routed1,
        routed,
        conn,
        sent,
        hfb,
        tok1,
        out1,
        tok_n,
        out_n,
        max(done, out_n),
    ]


def stages(stamps: Sequence[int]) -> dict[str, int]:
    """Return every stage in nanoseconds by name, from stamps in the order of :data:`STAMPS`."""
    at = dict(zip(STAMPS, normalise(stamps), strict=True))
    out: dict[str, int] = {}
    before = at["recv"]
    for name, stamp in _TTFT_STAGES:
        out[name] = at[stamp] - before
        before = at[stamp]
    out["decode"] = at["tokN"] - at["tok1"]
    out["tail"] = at["outN"] - at["tokN"]
    return out


def ttft_ns(stage_ns: Mapping[str, int]) -> int:
    """Time to first token: ``out1 − recv``, the exact sum of the stages up to ``egress``."""
    return sum(stage_ns[name] for name, _ in _TTFT_STAGES)


def e2e_ns(stage_ns: Mapping[str, int]) -> int:
    """End-to-end latency: ``outN − recv = ttft − egress + decode + tail``."""
    return ttft_ns(stage_ns) - stage_ns["egress"] + stage_ns["decode"] + stage_ns["tail"]


def router_overhead_ns(stage_ns: Mapping[str, int]) -> int:
    """What the router itself added to the time to first token: ``ttft − upload − queue − retry − (tok1 − sent)``."""
    host = stage_ns["host_first_byte"] + stage_ns["host_first_token"]
    return ttft_ns(stage_ns) - stage_ns["upload"] - stage_ns["queue"] - stage_ns["retry"] - host


def tpot_ns(tok1: int, tok_n: int, n_out: int, n_first: int) -> float | None:
    """Time per output token: ``(tokN − tok1) / (n_out − n_first)`` in nanoseconds, ``None`` where it has no meaning."""
    rest = n_out - n_first
    if rest <= 0 or tok_n <= tok1:
        return None
    return (tok_n - tok1) / rest
