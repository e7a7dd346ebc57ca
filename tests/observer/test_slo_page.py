"""``/slo.json``, ``ringrouter slo`` and ``/metrics``: what they say of objectives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from router import config
from router.cli import main
from router.cli.slo_table import GROUPS_SHOWN, as_text
from router.config import Slices
from router.observer import prometheus
from router.observer.aggregate import Aggregate
from router.observer.batch import NO_PACE
from router.observer.slo.accounts import SloAccounts, no_objectives
from router.observer.slo.objectives import boundaries
from router.observer.slo.readings import readings_of
from router.observer.slo.status import SCHEMA, SloPage
from tests.observer.test_observer_web import Answers, with_server
from tests.support.request_rows import row

S = 1_000_000_000
MS = 1_000_000
NOW = 1_763_899_200 * S
TEXT = """
version = 1
[[slo]]
name = "chat-ttft"
description = "Readers see the first word at once."
metric = "ttft"
threshold_ms = 437
objective = 99
where = { model = "m" }
group_by = ["feature_name"]
[[slo]]
name = "up"
metric = "availability"
objective = 99.9
"""


@pytest.fixture
def accounts(tmp_path: Path) -> Any:
    made = SloAccounts(config.parse(TEXT), tmp_path, None, NOW)
    rows = [
        row(
            request_seq=i,
            end_wall_ns=NOW + i * S,
            stream=True,
            endpoint="chat",
            ttft_ns=(900 if i % 2 and i > 800 else 100) * MS,
            tags={"feature_name": "search" if i % 2 else "chat"},
        )
        for i in range(1000)
    ]
    made.add(rows, NOW + 1000 * S)
    yield made
    made.close((), NOW + 1000 * S)


@pytest.fixture
def page(accounts: SloAccounts) -> SloPage:
    return accounts.page(NOW + 1000 * S)


def test_the_page_survives_its_own_json_and_has_total_before_groups(page: SloPage) -> None:
    assert msgspec.json.decode(msgspec.json.encode(page), type=SloPage) == page
    assert page.schema == SCHEMA
    found = [(each.slo, each.group.get("feature_name"), str(each.state), each.alerts) for each in page.statuses]
    assert found == [
        ("chat-ttft", None, "firing", False),
        ("chat-ttft", "search", "firing", True),
        ("chat-ttft", "chat", "ok", True),
        ("up", None, "ok", True),
    ]


def test_the_page_is_told_in_a_terminal(page: SloPage) -> None:
    lines = as_text(page).splitlines()
    assert lines[0] == "chat-ttft   99 % of ttft <= 437 ms   model m   FIRING page"
    assert lines[1] == "  Readers see the first word at once."
    assert lines[2].startswith("  90 % good of 1,000 in 30 d (16.7 min of it counted); budget left ")
    assert "spent in 2.99 d as in the last 1 h" in lines[2], "(1 - 10 * 1,000 s / 30 d) * 30 d / 10"
    heads = lines[3].split()
    assert heads[:2] == ["feature_name", "state"]
    assert lines[4].split()[:5] == ["search", "FIRING", "page", "80", "%"]
    assert lines[5].split()[:2] == ["chat", "ok"]
    assert lines[6] == "  rules of feature_name search:"
    assert lines[8].split() == [
        *("page", "1", "h", "20", "100", "of", "500", "5", "min"),
        *("66.7", "100", "of", "150", "14.4", "14.4", "%", "fires"),
    ]
    assert "up   99.9 % of availability   ok" in lines
    assert all(line == line.rstrip() for line in lines)


def test_many_groups_are_cut_and_the_rest_is_counted(page: SloPage) -> None:
    total, group = page.statuses[:2]
    many = [msgspec.structs.replace(group, group={"feature_name": f"f{i}"}) for i in range(GROUPS_SHOWN + 3)]
    text = as_text(msgspec.structs.replace(page, statuses=[total, *many]))
    assert "  and 3 more: --json has them" in text
    assert f"f{GROUPS_SHOWN}" not in text


def test_what_is_wrong_and_what_is_scaled_is_said_first(page: SloPage) -> None:
    text = as_text(msgspec.structs.replace(page, problem="the disk is full", time_scale=360.0))
    assert text.splitlines()[:3] == ["WARNING: the disk is full", "", "time scale 360: an hour is 10 s"]


def test_an_observer_without_objectives_says_where_they_are_made() -> None:
    assert "docs/slo.md" in as_text(no_objectives(NOW))
    with pytest.raises(ValueError, match="there are no objectives"):
        no_objectives(NOW, "chat")


class Objectives(Answers):
    def __init__(self, accounts: SloAccounts) -> None:
        super().__init__()
        self._accounts = accounts

    def slo(self, name: str) -> SloPage:
        return self._accounts.page(NOW + 1000 * S, name)


def test_the_command_asks_a_running_observer(accounts: SloAccounts, capsys: pytest.CaptureFixture[str]) -> None:
    def check(address: str, _: Answers) -> None:
        assert main(["slo", "--url", address]) == 0
        assert capsys.readouterr().out == as_text(accounts.page(NOW + 1000 * S))
        assert main(["slo", "--url", address, "--name", "up", "--json"]) == 0
        (only,) = json.loads(capsys.readouterr().out)["statuses"]
        assert (only["slo"], only["total"], only["bad"]) == ("up", 1000, 0)
        assert main(["slo", "--url", address, "--name", "no&such"]) == 2
        assert "name=no&such: expected one of chat-ttft, up" in capsys.readouterr().err

    with_server(check, answers=Objectives(accounts))


def test_nobody_there_is_said_with_the_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slo", "--url", "127.0.0.1:1"]) == 1
    assert "`ringrouter observe` starts one" in capsys.readouterr().err


def test_metrics_have_every_objective_and_its_burn_by_window(accounts: SloAccounts, page: SloPage) -> None:
    text = rendered([*readings_of(page.statuses, 7)])
    gauges = {
        (sample.name.removeprefix("ringrouter_slo_"), *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("ringrouter_slo_")
    }
    search = (("feature_name", "search"), ("group_by", "feature_name"), ("slo", "chat-ttft"))
    assert gauges["objective_ratio", *search] == 0.99
    assert gauges["period_requests", *search] == 500
    assert gauges["period_bad_requests", *search] == 100
    assert gauges["good_ratio", *search] == 0.8
    assert gauges["burn_rate", *search, ("window", "1h")] == pytest.approx(20)
    assert gauges["burn_rate", *search, ("window", "5m")] == pytest.approx(100 / 150 / 0.01)
    assert gauges["state", *search, ("state", "firing")] == 1
    assert gauges["state", *search, ("state", "ok")] == 0
    assert gauges["burn_rate", ("group_by", "all"), ("slo", "up"), ("window", "3d")] == 0
    assert gauges["budget_left_ratio", ("group_by", "all"), ("slo", "up")] == 1
    assert gauges["folded_requests_total",] == 7


def test_the_buckets_of_metrics_have_the_very_share_of_the_objective(page: SloPage) -> None:
    settings = config.parse(TEXT)
    aggregate = Aggregate(Slices(), (), NOW, boundaries(settings.slo))
    rows = [row(request_seq=i, end_wall_ns=NOW, stream=True, ttft_ns=(436 + i % 3) * MS) for i in range(300)]
    aggregate.add(rows, NO_PACE, NOW)
    text = rendered([], aggregate)
    (bucket,) = (
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "ringrouter_ttft_seconds_bucket"
        and sample.labels["slice"] == "all"
        and float(sample.labels["le"]) == 0.437
    )
    assert bucket == 200


def rendered(readings: list[prometheus.Reading], aggregate: Aggregate | None = None) -> str:
    captured = prometheus.capture(aggregate or Aggregate(Slices(), (), NOW), readings, NOW)
    body, _ = prometheus.render(captured, "text/plain", {})
    return body.decode()


def test_rules_for_prometheus_name_series_that_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], page: SloPage
) -> None:
    path = tmp_path / "ringrouter.toml"
    path.write_text(TEXT)
    assert main(["slo", "export", "--config", str(path)]) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert [group["name"] for group in groups] == ["ringrouter-slo-chat-ttft", "ringrouter-slo-up"]
    first = groups[0]["rules"][0]
    assert first["labels"] == {"severity": "page"}
    assert first["expr"] == (
        'ringrouter_slo_burn_rate{slo="chat-ttft",group_by="feature_name",window="1h"} > 14.4 and ignoring(window) '
        'ringrouter_slo_burn_rate{slo="chat-ttft",group_by="feature_name",window="5m"} > 14.4'
    )
    shown = {dict(each.labels).get("window") for each in readings_of(page.statuses, 0)}
    windows = {rule["expr"].split('window="')[k].split('"')[0] for g in groups for rule in g["rules"] for k in (1, 2)}
    assert windows <= shown
    path.write_text("version = 1\n")
    assert main(["slo", "export", "--config", str(path)]) == 2
    assert "has no [[slo]]" in capsys.readouterr().err
