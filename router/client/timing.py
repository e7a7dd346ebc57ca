"""Where the time of one request went: the router's stamps, and what the way between router and client added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from router.stamps import STAMPS, e2e_ns, router_overhead_ns, stages, tpot_ns, ttft_ns


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of a finished request, all nanoseconds of ``CLOCK_MONOTONIC``; the words are those of docs/metrics.md.

    ``None`` stands where a duration has no meaning: no first token, or a router on another machine (another clock).
    """

    stamps: Mapping[str, int]
    """The router's own, by name; 0 = did not happen."""
    stage_ns: Mapping[str, int]
    """Every stage by name; the first eleven sum to ``ttft_ns``."""
    ttft_ns: int | None
    """From the request read by the router to the first token sent to this client."""
    tpot_ns: float | None
    """For each token after the first."""
    e2e_ns: int | None
    """From the request read by the router to the last token sent to this client."""
    router_overhead_ns: int | None
    """What the router itself added to ``ttft_ns``."""
    asked_ns: int
    """When this client was asked."""
    first_token_ns: int
    """When this client read the first event with content; 0 = none."""
    ended_ns: int
    """When this client read the end."""
    request_transport_ns: int | None
    """From being asked to the request read by the router; the first request of a client includes connecting."""
    first_token_transport_ns: int | None
    """From the first token read from the host by the router to the same read by this client."""

    @property
    def client_ttft_ns(self) -> int | None:
        """Time to first token as this client saw it."""
        return self.first_token_ns - self.asked_ns if self.first_token_ns else None

    @property
    def client_e2e_ns(self) -> int:
        """From being asked to having read the end."""
        return self.ended_ns - self.asked_ns


def timing(
    stamps: Sequence[int],
    *,
    token_count: int,
    streamed: bool,
    same_clock: bool,
    asked_ns: int,
    first_token: tuple[int, int],
    ended_ns: int,
) -> Timing:
    """Derive everything from the stamps in the order of :data:`router.stamps.STAMPS`.

    ``first_token`` is when the router had the first event with content and when this client had it, 0 = none.
    """
    at = dict(zip(STAMPS, stamps, strict=True))
    stage_ns = stages(stamps)
    overhead_ns = router_overhead_ns(stage_ns)
    if not streamed:
        overhead_ns -= stage_ns["decode"]  # all of it goes out at the end: egress spans the host's decoding
    sent_ns, received_ns = first_token
    return Timing(
        stamps=at,
        stage_ns=stage_ns,
        ttft_ns=ttft_ns(stage_ns) if at["out1"] else None,
        tpot_ns=tpot_ns(at["tok1"], at["tokN"], token_count, 1),
        e2e_ns=e2e_ns(stage_ns) if at["outN"] else None,
        router_overhead_ns=overhead_ns if at["out1"] else None,
        asked_ns=asked_ns,
        first_token_ns=received_ns,
        ended_ns=ended_ns,
        request_transport_ns=at["recv"] - asked_ns if same_clock and at["recv"] else None,
        first_token_transport_ns=received_ns - sent_ns if same_clock and received_ns else None,
    )
