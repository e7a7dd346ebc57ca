"""``/metrics``: read by Prometheus's own parser, equal to what was counted, exact at every boundary."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from router.config import Goodput, Slices
from router.observer import catalogue as metrics
from router.observer.aggregate import Aggregate
from router.observer.batch import NO_PACE, PaceArrays
from router.observer.prometheus import Capture, Reading, capture, render, router_readings
from router.observer.rows import RequestRow
from tests.support.request_rows import row

ROOT = Path(__file__).resolve().parents[2]
SECOND = 10**9
MS = 10**6
NOW = 1_763_900_000 * SECOND
OPENMETRICS = "application/openmetrics-text;version=1.0.0"


def rows_of_all_sorts() -> list[RequestRow]:
    chance = np.random.default_rng(11)
    rows = []
    for k in range(200):
        ok = k % 7 != 0
        ttft_ns = int(chance.lognormal(17, 1.5))
        rows.append(
            row(
                end_wall_ns=NOW,
                stream=k % 5 != 0,
                endpoint="chat" if k % 3 else "completion",
                host=f"gpu-{k % 2}" if k % 11 else "",
                model="llama",
                outcome="ok" if ok else "timeout",
                error="" if ok else "idle_timeout",
                ttft_ns=ttft_ns if ok else None,
                tpot_ns=float(chance.lognormal(16, 0.5)) if ok else None,
                e2e_ns=ttft_ns + SECOND if ok else None,
                host_e2e_ns=ttft_ns if ok else None,
                duration_ns=ttft_ns + SECOND,
                queue_ns=int(chance.integers(0, MS)),
                n_in=10,
                n_out=k,
                tags={"feature_name": f"f{k % 4}", "prompt_version": f'v"{k % 3}\\\n'},
            )
        )
    return rows


def captured(rows: list[RequestRow], goodput: list[Goodput] | None = None, slices: Slices | None = None) -> Capture:
    made = Aggregate(slices or Slices(), goodput or [], NOW)
    pace = PaceArrays(np.zeros(3, np.int32), np.array([1, 2 * MS, 3 * SECOND])) if rows else NO_PACE
    made.add(rows, pace, NOW)
    return capture(made, [Reading("ringrouter_lost_records", "counter", "Lost", (("what", "tokens"),), 3)], NOW)


def families(page: Capture) -> dict[str, Family]:
    body, content_type = render(page)
    assert content_type.startswith("text/plain")
    found = list(parse(body.decode()))
    assert len({family.name for family in found}) == len(found), "each family stands once"
    return {family.name: family for family in found}


def value(family: Family, suffix: str, **labels: str) -> float:
    found = [s.value for s in family.samples if s.name == family.name + suffix and s.labels == labels]
    assert len(found) == 1, (family.name, suffix, labels, found)
    return float(found[0])


@pytest.fixture(scope="module")
def page() -> Capture:
    return captured(rows_of_all_sorts(), [Goodput(ttft_s=0.0423)])


@pytest.mark.parametrize("accept", ["", "text/plain;version=0.0.4", OPENMETRICS, "text/plain; version=1.0.0"])
def test_prometheus_own_parsers_read_the_page(page: Capture, accept: str) -> None:
    body, content_type = render(page, accept)
    read = parse_openmetrics if "openmetrics" in content_type else parse
    samples = [sample for family in read(body.decode()) for sample in family.samples]
    assert len(samples) > 1000
    assert len({(s.name, tuple(sorted(s.labels.items()))) for s in samples}) == len(samples), "a series stands twice"


def test_every_histogram_ascends_to_its_count(page: Capture) -> None:
    checked = 0
    for family in families(page).values():
        if family.type != "histogram":
            continue
        series: defaultdict[tuple[Any, ...], list[tuple[float, float]]] = defaultdict(list)
        counts = {}
        for sample in family.samples:
            labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le"))
            if sample.name.endswith("_bucket"):
                series[labels].append((float(sample.labels["le"]), sample.value))
            elif sample.name.endswith("_count"):
                counts[labels] = sample.value
        for labels, buckets in series.items():
            assert buckets == sorted(buckets)
            assert [count for _, count in buckets] == sorted(count for _, count in buckets)
            assert buckets[-1] == (math.inf, counts[labels])
            checked += 1
    assert checked > 100


def test_counts_at_every_boundary_are_exact(page: Capture) -> None:
    values = [r.ttft_ns for r in rows_of_all_sorts() if r.ttft_ns is not None and r.stream and r.outcome == "ok"]
    family = families(page)["ringrouter_ttft_seconds"]
    buckets = {s.labels["le"]: s.value for s in family.samples if s.labels.get("slice") == "all" and "le" in s.labels}
    assert "0.0423" in buckets, "a service level's limit is a boundary"
    for end, count in buckets.items():
        assert count == sum(value <= round(float(end) * 1e9) for value in values if end != "+Inf") or end == "+Inf"
    assert value(family, "_count", slice="all") == len(values)
    assert value(family, "_sum", slice="all") == pytest.approx(sum(values) / 1e9)


def test_a_value_on_a_boundary_is_below_it() -> None:
    on_it, above = (row(end_wall_ns=NOW, stream=True, ttft_ns=100 * MS + extra) for extra in (0, 1))
    family = families(captured([on_it, above]))["ringrouter_ttft_seconds"]
    assert value(family, "_bucket", slice="all", le="0.1") == 1
    assert value(family, "_bucket", slice="all", le="0.25") == 2


def test_the_conventions_names_and_boundaries_are_there(page: Capture) -> None:
    found = families(page)
    for name, bounds in {
        "gen_ai_server_time_to_first_token_seconds": metrics.OTEL_TTFT_S,
        "gen_ai_server_time_per_output_token_seconds": metrics.OTEL_TPOT_S,
        "gen_ai_server_request_duration_seconds": metrics.OTEL_DURATION_S,
        "gen_ai_client_operation_duration_seconds": metrics.OTEL_DURATION_S,
        "gen_ai_client_token_usage": metrics.OTEL_TOKENS,
    }.items():
        ends = {float(sample.labels["le"]) for sample in found[name].samples if "le" in sample.labels}
        assert ends >= {float(bound) for bound in bounds}, name
    assert metrics.OTEL_DURATION_S == (
        0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
    )  # fmt: skip


def test_the_conventions_series_add_up_to_all_requests(page: Capture) -> None:
    family = families(page)["gen_ai_server_request_duration_seconds"]
    counts = [sample for sample in family.samples if sample.name.endswith("_count")]
    assert sum(sample.value for sample in counts) == 200
    assert {sample.labels["gen_ai_operation_name"] for sample in counts} == {"chat", "text_completion"}
    assert {sample.labels.get("error_type") for sample in counts} == {None, "idle_timeout"}
    assert {sample.labels["gen_ai_provider_name"] for sample in counts} == {"openai"}


def test_what_a_host_did_names_the_host(page: Capture) -> None:
    body, _ = render(page, providers={"gpu-0": "vllm"})
    found = {family.name: family for family in parse(body.decode())}
    samples = found["gen_ai_client_operation_duration_seconds"].samples
    providers = {(s.labels["server_address"], s.labels["gen_ai_provider_name"]) for s in samples}
    assert providers == {("gpu-0", "vllm"), ("gpu-1", "openai")}


def test_the_series_of_each_slice_add_up_to_the_total(page: Capture) -> None:
    sums: defaultdict[str, float] = defaultdict(float)
    for sample in families(page)["ringrouter_requests"].samples:
        sums[sample.labels["slice"]] += sample.value
    assert set(sums) >= {"all", "feature_name", "feature_name,prompt_version", "host"}
    assert set(sums.values()) == {200}


def test_slices_carry_their_tags_as_labels(page: Capture) -> None:
    family = families(page)["ringrouter_e2e_seconds"]
    version = 'v"1\\\n'
    labels = {"slice": "feature_name,prompt_version", "feature_name": "f1", "prompt_version": version}
    expected = sum(
        r.outcome == "ok" and r.tags == {"feature_name": "f1", "prompt_version": version} for r in rows_of_all_sorts()
    )
    assert value(family, "_count", **labels) == expected > 0


def test_only_headline_metrics_have_their_buckets_under_every_slice(page: Capture) -> None:
    found = families(page)["ringrouter_stage_seconds"]
    ends: defaultdict[str, set[str]] = defaultdict(set)
    for sample in found.samples:
        if "le" in sample.labels:
            ends[sample.labels["slice"]].add(sample.labels["le"])
    assert len(ends["all"]) == len(ends["host"]) > 10
    assert ends["feature_name"] == {"+Inf"}
    assert value(found, "_count", slice="feature_name", feature_name="f0", stage="queue") > 0


def test_goodput_and_errors_are_counted_by_word(page: Capture) -> None:
    found = families(page)
    good = {s.labels["good"]: s.value for s in found["ringrouter_goodput"].samples if s.labels["slice"] == "all"}
    assert sum(good.values()) == 200
    assert value(found["ringrouter_request_errors"], "_total", slice="all", error="idle_timeout") == 29


def test_readings_of_the_process_are_on_the_page(page: Capture) -> None:
    found = families(page)
    assert value(found["ringrouter_lost_records"], "_total", what="tokens") == 3
    assert value(found["ringrouter_observed_requests"], "_total") == 200


def test_folding_shows_on_the_page() -> None:
    rows = [row(end_wall_ns=NOW, tags={"feature_name": f"f{i}"}) for i in range(50)]
    found = families(captured(rows, slices=Slices(tags=["feature_name"], values_max=8)))
    assert value(found["ringrouter_folded_requests"], "_total", entry="feature_name") == 43
    assert value(found["ringrouter_requests"], "_total", slice="feature_name", feature_name="__other__", outcome="ok")


def test_the_routers_counters_become_readings() -> None:
    readings = list(router_readings({"a": {"requests": 5, "in_flight": 2}, "b": {"requests": 7}}))
    assert [(r.name, r.kind, r.labels[0][1], r.value) for r in readings] == [
        ("ringrouter_router_requests", "counter", "a", 5),
        ("ringrouter_router_requests", "counter", "b", 7),
        ("ringrouter_router_in_flight", "gauge", "a", 2),
    ]


def test_a_users_own_tag_cannot_collide_with_our_labels() -> None:
    rows = [row(end_wall_ns=NOW, instance="main", tags={"stage": "draft"})]
    found = families(captured(rows, slices=Slices(tags=["stage", "instance"])))
    assert value(found["ringrouter_requests"], "_total", slice="tag_stage", tag_stage="draft", outcome="ok") == 1
    assert value(found["ringrouter_requests"], "_total", slice="router", router="main", outcome="ok") == 1


def test_an_empty_page_is_a_page() -> None:
    assert "ringrouter_observed_requests" in families(captured([]))


def test_the_document_names_every_family() -> None:
    document = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:ringrouter|gen_ai)_\w+)`", document))
    made = {
        name if family.type != "counter" else f"{name}_total"
        for name, family in families(captured(rows_of_all_sorts(), [Goodput(ttft_s=1)])).items()
        if name != "ringrouter_lost_records"
    }
    assert made - named == set()


class TestDashboard:
    DASHBOARD: dict[str, Any] = json.loads((ROOT / "docs" / "grafana" / "ringrouter.json").read_text(encoding="utf-8"))

    def expressions(self) -> list[str]:
        return [t["expr"] for panel in self.DASHBOARD["panels"] for t in panel.get("targets", ())]

    def test_it_asks_only_for_series_that_there_are(self, page: Capture) -> None:
        made = {sample.name for family in families(page).values() for sample in family.samples}
        made |= {f"{name}_{what}" for name in ("ringrouter_cost", "ringrouter_waste") for what in ("sum", "count")}
        asked = {name for text in self.expressions() for name in re.findall(r"\b(?:ringrouter|gen_ai)_\w+", text)}
        assert len(asked) > 15
        assert asked - made == set()

    def test_it_asks_for_one_slice_at_a_time(self) -> None:
        for text in self.expressions():
            for selector in re.findall(r"ringrouter_\w+\{([^}]*)\}", text):
                assert re.search(r'slice="', selector), text
            if "_bucket" in text:
                assert "le" in re.findall(r"sum by \(([^)]*)\)", text)[0].split(", ")

    def test_it_can_be_imported_anywhere(self) -> None:
        assert self.DASHBOARD["id"] is None
        ids = [panel["id"] for panel in self.DASHBOARD["panels"]]
        assert len(set(ids)) == len(ids)
        sources = {json.dumps(panel["datasource"]) for panel in self.DASHBOARD["panels"] if "datasource" in panel}
        assert sources == {'{"type": "prometheus", "uid": "${datasource}"}'}
