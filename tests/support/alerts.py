"""Findings, alerts and evidence for tests, with something in every part of them."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from router.observer.alerts.ledger import fingerprint
from router.observer.alerts.model import (
    Alert,
    Burn,
    Cause,
    Change,
    Evidence,
    Example,
    Finding,
    Severity,
    SliceShare,
    StageDelta,
)

WALL_NS = 1_767_225_600_000_000_000
"""2026 begins, UTC."""
MS = 1_000_000


def finding(**changes: Any) -> Finding:
    """Return a finding about an objective."""
    example = Finding(
        cause=Cause.BURN,
        severity=Severity.PAGE,
        labels={"slo": "chat-ttft"},
        summary="chat-ttft burns 20 times too fast",
        since_wall_ns=WALL_NS,
        slo="chat-ttft",
        metric="ttft",
        threshold=500 * MS,
        objective=99.0,
        where={"feature_name": "search"},
        burns=(burn(),),
        budget_left=0.25,
        exhausted_in_s=5400.0,
    )
    return replace(example, **changes)


def burn(**changes: Any) -> Burn:
    example = Burn(
        long_s=3600.0,
        short_s=300.0,
        factor=14.4,
        needed_ratio=0.144,
        severity=Severity.PAGE,
        long_burn=20.0,
        short_burn=38.0,
        long_bad=200,
        long_total=1000,
        short_bad=38,
        short_total=100,
        is_firing=True,
    )
    return replace(example, **changes)


def evidence() -> Evidence:
    return Evidence(
        sentence="TTFT of feature search on mobile at host gpu-1: 38 % over 500 ms (1 % before)",
        slices=(
            SliceShare(
                where={"feature_name": "search", "host": "gpu-1"},
                bad=38, total=100, baseline_ratio=0.01, excess=37.0, share=0.97,
            ),
        ),
        stages=(
            StageDelta(
                stage="host_first_token", now_ns=450e6, before_ns=40e6, now_count=100, before_count=900
            ),
        ),
        cost_now=0.0021,
        cost_before=0.0008,
        currency="USD",
        examples=(example("worst", "r-1"), example("typical", "r-2")),
        changes=(Change(wall_ns=WALL_NS, instance="main", text="limits.waiting: 1024 -> 64"),),
        hosts={"gpu-1": {"running": 4.0, "failed_ratio": 0.5, "ttft_p50_ns": 450e6}},
    )  # fmt: skip


def example(kind: str, request_id: str) -> Example:
    return Example(
        kind=kind,
        request_id=request_id,
        trace_id=f"{request_id:0>32}",
        ended_wall_ns=WALL_NS,
        host="gpu-1",
        model="m",
        outcome="ok",
        ttft_ns=700 * MS,
        e2e_ns=1500 * MS,
        tokens_in=100,
        tokens_out=20,
        cost=0.002,
        stages_ns={"queue": 1 * MS, "host_first_token": 690 * MS},
        tags={"feature_name": "search"},
    )


def alert(about: Finding | None = None, **changes: Any) -> Alert:
    """Return an alert that fires, with evidence."""
    about = about or finding()
    whole = Alert(
        fingerprint=fingerprint(about),
        finding=about,
        starts_wall_ns=WALL_NS,
        updated_wall_ns=WALL_NS,
        evidence=evidence(),
    )
    return replace(whole, **changes)
