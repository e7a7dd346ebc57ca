"""What was decided about a request is written field by field, by whoever decided it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from router.telemetry import records as rec
from router.telemetry.decision import note


def noted(*values: dict[str, Any]) -> dict[str, Any]:
    request: Any = SimpleNamespace(packed_decision=b"")
    for each in values:
        note(request, **each)
    assert len(request.packed_decision) == rec.DECISION.size
    fields = [name for name, _, _ in rec.DECISION_FIELDS]
    return {k: v for k, v in zip(fields, rec.DECISION.unpack(request.packed_decision), strict=True) if v}


def test_fields_add_up_and_the_last_value_of_one_stays() -> None:
    assert noted({"tool_count": 3}, {"cache": rec.CacheUse.HIT, "saved_us": 5}, {"tool_count": 4}) == {
        "tool_count": 4,
        "cache": 1,
        "saved_us": 5,
    }


def test_what_is_more_than_a_field_holds_is_cut() -> None:
    most = noted({"tool_count": 1 << 20, "saved_us": 1 << 40, "deadline_ns": 1 << 70, "cache_hits": 65_535})
    assert most == {"tool_count": 65_535, "saved_us": (1 << 32) - 1, "deadline_ns": (1 << 64) - 1, "cache_hits": 65_535}
    assert noted({"cache_misses": -5}) == {}


def test_a_float_is_kept() -> None:
    assert noted({"asked_temperature": 0.5}) == {"asked_temperature": 0.5}
