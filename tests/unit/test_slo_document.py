"""docs/slo.md: its example is a configuration that works, and its figures are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from router import config
from router.config.slo import DAY_S, METRICS, default_rules, expanded, slo_warnings
from router.observer.slo.findings import span
from router.observer.slo.status import State

PAGE = (Path(__file__).parents[2] / "docs" / "slo.md").read_text(encoding="utf-8")


def test_the_example_is_good_and_warns_of_nothing() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    slos = config.parse(f"version = 1\n{example}").slo
    assert [each.name for each in expanded(slos)] == ["search-ttft", "chat-ttft", "chat-tpot", "up", "p95-e2e"]
    assert not list(slo_warnings(slos))


@pytest.mark.parametrize(("objective", "period_days"), [(99, 30), (95, 7)])
def test_the_table_of_rules_is_that_of_the_code(objective: float, period_days: int) -> None:
    for rule in default_rules(objective):
        spent = rule.factor * rule.long_s / (period_days * DAY_S)
        row = f"| {rule.severity} | {span(rule.long_s)}, {span(rule.short_s)} | {rule.factor:g} | {spent * 100:.2g} % |"
        assert row in PAGE


@pytest.mark.parametrize("objective", [99.9, 99, 95, 90])
def test_the_table_of_needed_shares_is_right(objective: float) -> None:
    (row,) = re.findall(rf"^\| {objective:g} % \|.*$", PAGE, re.MULTILINE)
    shares = [float(found) for found in re.findall(r"([\d.]+) %", row)][1:]
    assert shares == pytest.approx([factor * (100 - objective) for factor in (14.4, 6, 3, 1)])


def test_every_metric_and_state_is_named() -> None:
    for name in METRICS:
        assert f"`{'stage.NAME' if name.startswith('stage.') else name}`" in PAGE
    for state in State:
        assert f"| `{state}` |" in PAGE
