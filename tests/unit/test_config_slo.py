"""``[[slo]]``: what is taken, what a preset stands for, and rules that cannot fire with their arithmetic."""

from __future__ import annotations

import pytest

from router import config
from router.cli.check import describe
from router.cli.doctor import objectives
from router.config import SloConfig
from router.config.changes import changes
from router.config.slo import (
    DURATIONS,
    METRICS,
    PACES,
    SHARES,
    default_rules,
    expanded,
    group_capacity,
    needed_ratio,
    slo_warnings,
)
from router.errors import ConfigError
from router.observer.catalogue import NS, Source, catalogue

E2E = 'metric = "e2e"\nthreshold_ms = 4000\n'
RULE = "[[slo.windows]]\nlong_s = 3600\nshort_s = 300\n"


def parsed(text: str) -> list[SloConfig]:
    return config.parse(f"version = 1\n{text}").slo


def slo(text: str, name: str = "a") -> SloConfig:
    (found,) = parsed(f'[[slo]]\nname = "{name}"\n{text}')
    return found


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parsed(text if text.startswith("[") else f'[[slo]]\nname = "a"\n{text}')
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_p90_objective_with_a_14_4_fold_rule_is_refused_with_the_arithmetic() -> None:
    said = refusal(f"{E2E}objective = 90\n{RULE}factor = 14.4\n")
    assert "slo[0].windows[0].factor = 14.4" in said
    assert "14.4 x (1 - 0.9) = 1.44: 144% of requests would have to be bad, it can never fire" in said
    assert "a factor of 9" in said


@pytest.mark.parametrize(
    ("objective", "factor", "is_allowed"),
    [(90, 9, True), (90, 9.01, False), (95, 14.4, True), (95, 18.1, False), (99.9, 900, True), (50, 1.8, True)],
)
def test_a_rule_may_need_nine_tenths_of_requests_and_no_more(objective: float, factor: float, is_allowed: bool) -> None:
    text = f"{E2E}objective = {objective}\n{RULE}factor = {factor}\n"
    if is_allowed:
        assert slo(text).rules[0].factor == factor
    else:
        assert "would have to be bad" in refusal(text)


def test_more_than_half_is_warned_of_by_check_and_doctor() -> None:
    text = f'version = 1\n[[slo]]\nname = "a"\n{E2E}objective = 95\n{RULE}factor = 14.4\n'
    settings = config.parse(text)
    (warning,) = slo_warnings(settings.slo)
    assert "fires only when 72% of requests are bad (14.4 x (1 - 0.95))" in warning
    assert f"warning: {warning}" in list(describe(settings))
    (finding,) = objectives(settings)
    assert (finding.level, finding.what) == ("warning", warning)
    assert not list(slo_warnings(parsed(f'[[slo]]\nname = "a"\n{E2E}objective = 99')))


def test_a_rule_that_fires_only_after_the_whole_budget_is_spent_is_warned_of() -> None:
    text = f"{E2E}objective = 95\n[[slo.windows]]\nlong_s = 259200\nshort_s = 21600\nfactor = 3\n"
    (warning,) = slo_warnings([slo(text)])
    assert "after 129% of the budget of 7 days" in warning


def test_the_usual_rules_are_those_of_the_sre_workbook_for_thirty_days() -> None:
    found = slo(f"{E2E}objective = 99.9")
    pairs = [(rule.long_s, rule.short_s, rule.factor, str(rule.severity)) for rule in found.rules]
    assert pairs == [
        (3600, 300, 14.4, "page"),
        (21_600, 1800, 6, "page"),
        (86_400, 7200, 3, "ticket"),
        (259_200, 21_600, 1, "ticket"),
    ]
    assert found.period_s == 30 * 86_400
    spent = [rule.factor * rule.long_s / found.period_s for rule in found.rules]
    assert spent == pytest.approx([0.02, 0.05, 0.1, 0.1])
    assert all(rule.long_s == 12 * rule.short_s for rule in found.rules)


@pytest.mark.parametrize(("days", "count"), [(1, 3), (2.9, 3), (3, 4)])
def test_of_the_usual_rules_those_that_look_back_longer_than_the_period_are_left_out(days: float, count: int) -> None:
    assert len(slo(f"{E2E}objective = 99\nwindow_days = {days}").rules) == count


def test_up_to_97_percent_the_rules_need_a_share_that_can_happen_and_the_period_is_a_week() -> None:
    found = slo(f"{E2E}objective = 95")
    assert found.period_s == 7 * 86_400
    assert [(rule.factor, rule.long_s, rule.short_s) for rule in found.rules] == [(3, 3600, 300), (1.5, 21_600, 1800)]
    assert [needed_ratio(found, rule) for rule in found.rules] == [0.15, 0.075]


@pytest.mark.parametrize("objective", [50, 60, 75, 80, 90, 97, 97.1, 99, 99.999])
def test_rules_that_nobody_chose_are_never_refused_and_burn_more_than_is_allowed(objective: float) -> None:
    found = SloConfig(name="a", metric="e2e", threshold_ms=1.0, objective=objective)
    for rule in default_rules(objective):
        assert rule.factor >= 1
        assert needed_ratio(found, rule) <= 0.9


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("interactive", [("c-ttft", "ttft", 500.0), ("c-tpot", "tpot", 30.0)]),
        ("conversational", [("c-ttft", "ttft", 2000.0), ("c-tpot", "tpot", 100.0)]),
    ],
)
def test_a_preset_stands_for_two_objectives(preset: str, expected: list[tuple[str, str, float]]) -> None:
    parts = expanded([slo(f'preset = "{preset}"\nwhere = {{ workload_class = "chat" }}', "c")])
    assert [(part.name, part.metric, part.threshold_ms) for part in parts] == expected
    assert all(part.target == 99 and part.where == {"workload_class": "chat"} for part in parts)
    own = expanded([slo(f'preset = "{preset}"\nobjective = 95', "c")])
    assert all(part.target == 95 and part.period_s == 7 * 86_400 for part in own)


def test_every_metric_that_can_be_named_is_one_of_the_catalogue_in_the_unit_of_its_threshold() -> None:
    known = {metric.name: metric for metric in catalogue()}
    assert set(METRICS) - {"availability"} <= set(known)
    assert len(METRICS) == len(set(METRICS)) == len(DURATIONS) + len(PACES) + len(SHARES)
    for name in DURATIONS:
        assert known[name].unit is NS
        assert known[name].source is Source.ROW
    left = {name for name, m in known.items() if m.unit is NS and m.source is Source.ROW} - set(DURATIONS)
    assert left <= {"cancel_latency", "tool_turn"}, "durations that no host and no router is to blame for"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("objective = 99", "slo[0].metric is missing"),
        ('metric = "speed"\nobjective = 99', 'slo[0].metric = "speed": expected one of ttft'),
        ('metric = "icl"\nthreshold_ms = 5\nobjective = 99', 'slo[0].metric = "icl"'),
        ('metric = "e2e"\nobjective = 99', 'threshold_ms is missing: metric = "e2e" needs it'),
        ('metric = "early_tps"\nobjective = 99', 'at_least is missing: metric = "early_tps" needs it'),
        (f"{E2E}at_least = 3\nobjective = 99", "at_least has no meaning"),
        ('metric = "visible_2s"\nthreshold_ms = 3\nat_least = 3\nobjective = 99', "threshold_ms has no meaning"),
        ('metric = "availability"\nthreshold_ms = 3\nobjective = 99', "neither threshold_ms nor at_least"),
        ('metric = "goodput"\nobjective = 99', "observer.goodput"),
        (E2E, "slo[0].objective is missing"),
        (f"{E2E}objective = 49", "slo[0].objective = 49: expected a number between 50 and 99.999"),
        (f"{E2E}objective = 100", "between 50 and 99.999"),
        ('preset = "interactive"\nmetric = "e2e"', "metric stands beside preset"),
        ('preset = "fast"', "slo[0].preset"),
        (f"{E2E}objective = 99\nwhere = {{ colour = 'red' }}", "slo[0].where.colour: expected a tag or one of model"),
        (f"{E2E}objective = 99\nwhere = {{ model = [] }}", "where.model = []: expected at least one value"),
        (f"{E2E}objective = 99\nwhere = {{ model = 3 }}", "slo[0].where.model = 3"),
        (f"{E2E}objective = 99\ngroup_by = ['colour']", 'slo[0].group_by[0] = "colour"'),
        (f"{E2E}objective = 99\ngroup_by = ['user_id']", "a tag with few values, this one has no bound"),
        (f"{E2E}objective = 99\ngroup_by = ['model', 'model']", "it stands twice"),
        (f"{E2E}objective = 99\ngroup_by = ['model', 'host', 'channel']", "slo[0].group_by"),
        (f"{E2E}objective = 99\nwindow_days = 40", "slo[0].window_days"),
        (f"{E2E}objective = 99\n[[slo.windows]]\nlong_s = 300\nshort_s = 300\nfactor = 2", "less than long_s (300)"),
        (f"{E2E}objective = 99\nwindow_days = 1\n{RULE.replace('3600', '90000')}factor = 2", "most window_days (1 d)"),
        (f"{E2E}objective = 99\n{RULE}factor = 0", "slo[0].windows[0].factor = 0"),
        (f"{E2E}objective = 99\nthreshhold = 3", "did you mean"),
        (f'[[slo]]\nname = "a"\n{E2E}objective = 99\n[[slo]]\nname = "a"\n{E2E}objective = 99', "slo[1].name"),
        (f'[[slo]]\nname = "a"\npreset = "interactive"\n[[slo]]\nname = "a-ttft"\n{E2E}objective = 99', '"a-ttft" too'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line_with_its_key(text: str, expected: str) -> None:
    assert expected in refusal(text)


def test_all_groups_together_are_bounded() -> None:
    entry = f"{E2E}objective = 99\ngroup_by = ['model']\ngroups_max = 256\n"
    said = refusal("".join(f'[[slo]]\nname = "a{i}"\n{entry}' for i in range(8)))
    assert "2,064 groups: expected at most 2,048" in said
    assert group_capacity(slo(entry)) == 258
    assert group_capacity(slo(f"{E2E}objective = 99")) == 1


def test_a_change_of_an_objective_is_told_by_its_name_and_needs_the_observer_anew() -> None:
    before = config.parse(f'version = 1\n[[slo]]\nname = "a"\n{E2E}objective = 99')
    after = config.parse(
        f'version = 1\n[[slo]]\nname = "b"\npreset = "interactive"\n[[slo]]\nname = "a"\n{E2E}objective = 95'
    )
    found = {change.text: change.needs for change in changes(before, after)}
    assert found["slo.a.objective: 99.0 -> 95.0"] == "observer"
    assert "slo.b added" in found
