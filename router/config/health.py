"""The sections that say when a host gets no requests, and how it gets them again (docs/operations.md)."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from router.config.base import Section, above_zero, between


class BreakerConfig(Section, frozen=True):
    """`[health.breaker]`: a host whose requests fail gets none for a while, whatever its health path says."""

    failures: Annotated[
        int, between(0, 1000, "Failed requests in a row that open a host's circuit breaker; 0 = never.")
    ] = 5
    share: Annotated[
        float,
        between(0, 1, "Share of a host's requests in `window_s` that must have failed to open it; 0 = never."),
    ] = 0.5
    requests_min: Annotated[int, between(1, 10_000, "Requests in `window_s` before their share is looked at.")] = 20
    window_s: Annotated[int, between(1, 300, "Seconds over which that share is taken.")] = 10
    open_s: Annotated[
        float, above_zero(3600, "How long it stays open the first time, give or take a fifth; twice as long each time.")
    ] = 1.0
    open_s_max: Annotated[float, above_zero(3600, "At most so long.")] = 30.0
    trial_requests: Annotated[
        int,
        between(1, 100, "Requests let through at once when that time is over; as many good answers close the breaker."),
    ] = 3


class OutliersConfig(Section, frozen=True):
    """`[health.outliers]`: a host that does far worse than its peers with the same model is left out for a while."""

    interval_s: Annotated[
        float, between(0, 3600, "Hosts are compared by what they did in this many seconds; 0 = never.")
    ] = 10.0
    hosts_min: Annotated[int, between(2, 1000, "Hosts of a model with `requests_min` requests, or none is judged.")] = 3
    requests_min: Annotated[int, between(1, 100_000, "Requests of a host in `interval_s` before it is judged.")] = 20
    failed_share: Annotated[
        float,
        between(0.01, 1, "Share of failed requests by which a host must exceed the median of its peers."),
    ] = 0.3
    ttft_factor: Annotated[
        float,
        between(1.5, 1000, "Multiple of its peers' median time to the first token that a host's median must exceed."),
    ] = 5.0
    deviations: Annotated[
        float,
        between(0, 100, "It must also exceed it by so many standard deviations of its peers, estimated by their MAD."),
    ] = 6.0
    share_max: Annotated[float, between(0, 1, "Largest share of a model's hosts left out at a time.")] = 0.34
    eject_s: Annotated[
        float, above_zero(3600, "How long a host is left out the first time; one time more each further time.")
    ] = 30.0
    eject_s_max: Annotated[float, above_zero(86_400, "At most so long.")] = 300.0


class Health(Section, frozen=True):
    """`[health]`: active probes and passive marking."""

    interval_s: Annotated[float, between(0.05, 3600, "Between two probes of a host's health path.")] = 2.0
    timeout_s: Annotated[float, between(0.05, 600, "A probe without an answer counts as failed.")] = 2.0
    fail_after: Annotated[
        int,
        between(1, 1000, "Probes, or connects, that fail in a row and mark a host unhealthy until a probe succeeds."),
    ] = 2
    slow_start_s: Annotated[
        float,
        between(0, 3600, "A host that comes back gets its slots bit by bit over this time; 0 = all at once."),
    ] = 10.0
    slow_start_share: Annotated[
        float, between(0.001, 1, "Share of its slots with which a host that comes back begins, one at least.")
    ] = 0.1
    breaker: Annotated[BreakerConfig, Meta(description="Circuit breaker of each host.")] = msgspec.field(
        default_factory=BreakerConfig
    )
    outliers: Annotated[OutliersConfig, Meta(description="Comparison of a model's hosts.")] = msgspec.field(
        default_factory=OutliersConfig
    )
