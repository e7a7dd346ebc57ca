"""A state of the observer with something in every part of it."""

from __future__ import annotations

from typing import Any

import msgspec

from router.observer.state import (
    SCHEMA,
    Health,
    Host,
    Quantiles,
    Slice,
    SliceTable,
    SlowRequest,
    Source,
    State,
    Traffic,
)

MS = 1e6


def state(**changes: Any) -> State:
    """Return the example, with fields of the whole changed."""
    example = State(
        schema=SCHEMA,
        wall_ns=1_700_000_000_000_000_000,
        window_s=60.0,
        covered_s=60.0,
        currency="EUR",
        observer=health(),
        sources=[source()],
        traffic=Traffic(
            request_count=600,
            requests_per_s=10.0,
            outcomes={"ok": 597, "host_error": 3},
            tokens_in_per_s=800.0,
            tokens_out_per_s=1234.0,
            running_count=7,
            waiting_count=2,
            goodput=0.987,
            cost=1.5,
        ),
        metrics=[Quantiles(name="ttft", unit="ns", n=597, mean=20 * MS, p50=18 * MS, p95=40 * MS, p99=55 * MS)],
        stages=[
            Quantiles(name="queue", unit="ns", n=600, mean=5 * MS, p50=1 * MS, p95=30 * MS, p99=50 * MS),
            Quantiles(name="host_first_token", unit="ns", n=600, mean=15 * MS, p50=14 * MS, p95=20 * MS, p99=25 * MS),
        ],
        hosts=[
            Host(
                name="gpu0",
                running_count=7,
                request_count=600,
                failed_count=3,
                tokens_out_per_s=1234.0,
                ttft_p50_ns=18 * MS,
                ttft_p95_ns=40 * MS,
                tpot_p50_ns=5 * MS,
                cost=1.5,
            )
        ],
        slice_names=["feature_name", "device_type"],
        slices=slices("feature_name", "search", "chat"),
        slowest=[
            SlowRequest(
                request_id="req-1",
                ended_wall_ns=1_700_000_000_000_000_000,
                model="small",
                host="gpu0",
                outcome="ok",
                ttft_ns=55 * MS,
                e2e_ns=900 * MS,
                longest_stage="decode",
                longest_stage_ns=800_000_000,
                tokens_out=160,
                tags={"feature_name": "search"},
            )
        ],
    )
    return msgspec.structs.replace(example, **changes)


def slices(by: str, *values: str, is_overflowed: bool = False) -> SliceTable:
    """Return slices of a tag."""
    return SliceTable(by=by, rows=[_slice(value) for value in values], is_overflowed=is_overflowed)


def _slice(value: str) -> Slice:
    return Slice(
        value=value,
        request_count=300,
        failed_count=1,
        ttft_p50_ns=18 * MS,
        ttft_p95_ns=40 * MS,
        tpot_p50_ns=5 * MS,
        early_tps_p50=190.0,
        e2e_p95_ns=950 * MS,
        cost_per_response=0.0025,
        longest_stage="host_first_token",
    )


def source(**changes: Any) -> Source:
    """Return a router that is well."""
    example = Source(
        instance="main", generation="12345", state="alive", running_count=7, waiting_count=2, lag_records=0
    )
    return msgspec.structs.replace(example, **changes)


def health(**changes: Any) -> Health:
    """Return an observer that is well."""
    example = Health(
        pid=4242,
        version="0.1.0",
        up_s=90.0,
        row_count=900,
        event_count=90_000,
        lost_request_count=0,
        lost_event_count=0,
        turn_max_ms=4.0,
        fault_count=0,
        journal="on",
    )
    return msgspec.structs.replace(example, **changes)
