"""Durations, spans and rates as people read them."""

from __future__ import annotations

import pytest

from router.telemetry.units import duration, rate, span


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, "–"),
        (0, "0 µs"),
        (850, "0.85 µs"),
        (8_200, "8.20 µs"),
        (9_996, "10.0 µs"),
        (99_960, "100 µs"),
        (999_499, "999 µs"),
        (999_500, "1.00 ms"),
        (12_340_000, "12.3 ms"),
        (1_250_000_000, "1.25 s"),
        (4_321_000_000_000, "4,321 s"),
    ],
)
def test_a_duration_has_three_digits_and_the_unit_that_fits(ns: int | None, text: str) -> None:
    assert duration(ns) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0.4s"), (9.96, "10s"), (59, "59s"), (252, "4m 12s"), (7_500, "2h 05m"), (273_600, "3d 04h")],
)
def test_a_span_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert span(seconds * 1e9) == text


@pytest.mark.parametrize(
    ("per_second", "text"), [(None, "–"), (0.5, "0.5"), (37.42, "37.4"), (1204.4, "1,204"), (2.5e6, "2.5e+06")]
)
def test_a_rate_has_a_decimal_only_where_it_matters(per_second: float | None, text: str) -> None:
    assert rate(per_second) == text
