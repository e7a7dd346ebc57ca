"""What ``/state.json`` says: the observer's numbers of one window, for ``ringrouter top`` and for programs.

Durations are nanoseconds, rates are per second of the window, ``None`` stands for what is not known (never 0). Requests
that failed are counted and have no latency. A percentile carries the ``n`` it was taken from.
"""

from __future__ import annotations

from typing import Final

import msgspec

SCHEMA: Final = "ringrouter.state/1"
WINDOWS_S: Final = (10.0, 60.0, 600.0, 3600.0)
"""What ``?window=`` takes: a length for each that the observer keeps apart, and an hour of them."""


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all parts: values that never change."""


class Quantiles(_Part, frozen=True):
    """Percentiles of ``n`` values of one metric, in ``unit``: ``ns``, ``events``, ``events/s`` or ``requests``."""

    name: str
    unit: str
    n: int
    mean: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


class Traffic(_Part, frozen=True):
    """What went through in the window, and what is under way now."""

    request_count: int
    requests_per_s: float
    outcomes: dict[str, int]
    """Finished requests by outcome, the most frequent first."""
    tokens_in_per_s: float
    tokens_out_per_s: float
    running_count: int
    waiting_count: int
    goodput: float | None = None
    """Share of requests that met every limit of ``observer.goodput``; ``None`` without limits or requests."""
    cost: float | None = None
    """Of the answers whose cost is known, in ``currency``."""
    cost_unknown_count: int = 0


class Host(_Part, frozen=True):
    """One model host in the window; ``name`` is empty for requests that reached none."""

    name: str
    running_count: int
    request_count: int
    failed_count: int
    """Neither answered nor left by their client."""
    tokens_out_per_s: float
    ttft_p50_ns: float | None
    ttft_p95_ns: float | None
    tpot_p50_ns: float | None
    cost: float | None = None
    left_count: int = 0
    """Left by their client."""


class Slice(_Part, frozen=True):
    """Requests with one value of a tag, or one pair of values of two."""

    value: str
    request_count: int
    failed_count: int
    """Neither answered nor left by their client."""
    ttft_p50_ns: float | None
    ttft_p95_ns: float | None
    tpot_p50_ns: float | None
    early_tps_p50: float | None
    """Content events per second, of streams."""
    e2e_p95_ns: float | None
    cost_per_response: float | None
    """What all its requests cost, of those whose cost is known, over the good answers among these."""
    longest_stage: str
    """The stage with the largest mean over its answers, ``decode`` too; empty when there is none. Of a folded answer
    the host's decoding is ``decode`` and not ``egress``."""
    left_count: int = 0
    """Left by their client."""


class SliceTable(_Part, frozen=True):
    """The slices of one entry of ``observer.slices``, the busiest first."""

    by: str
    rows: list[Slice]
    is_overflowed: bool
    """Values beyond the bound are counted together as ``__other__``."""


class SlowRequest(_Part, frozen=True):
    """One of the slowest requests of the window."""

    request_id: str
    ended_wall_ns: int
    model: str
    host: str
    outcome: str
    ttft_ns: float | None
    e2e_ns: float | None
    longest_stage: str
    longest_stage_ns: int
    tokens_out: int
    tags: dict[str, str]


class Source(_Part, frozen=True):
    """One router that is observed."""

    instance: str
    generation: str
    state: str
    """``alive``, ``hung``, ``dead``, or ``gone`` when its rings are no longer there."""
    running_count: int
    waiting_count: int
    lag_records: int
    """Records written and not read yet, all rings together."""
    bad_request_count: int | None = None
    """Requests since the router's start that could not be understood, and are in no other number of this answer, and
    those that ended with the outcome ``bad_request``; ``None`` when the observer does not tell."""


class Health(_Part, frozen=True):
    """How the observer itself is doing."""

    pid: int
    version: str
    up_s: float
    row_count: int
    """Finished requests read since the start."""
    event_count: int
    """Token events read since the start."""
    lost_request_count: int
    lost_event_count: int
    """Overwritten before they were read, exactly."""
    turn_max_ms: float
    """The longest that one turn of its loop took."""
    fault_count: int
    journal: str
    """``on``, ``off``, or why it cannot be written now."""


class State(_Part, frozen=True):
    """The whole answer."""

    schema: str
    wall_ns: int
    window_s: float
    """Length asked for; a younger observer covers less."""
    covered_s: float
    """Length that the numbers are of."""
    currency: str
    observer: Health
    sources: list[Source]
    traffic: Traffic
    metrics: list[Quantiles]
    stages: list[Quantiles]
    """In the order of the path, those up to the first token first."""
    hosts: list[Host]
    slice_names: list[str]
    """What ``?by=`` takes."""
    slices: SliceTable | None
    slowest: list[SlowRequest]
