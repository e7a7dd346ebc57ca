"""Which requests an objective counts, in which group, and which of them were good."""

from __future__ import annotations

from typing import Any

import pytest

from router import config
from router.observer.alerts.model import Cause, Severity
from router.observer.catalogue import catalogue
from router.observer.rows import RequestRow
from router.observer.slo.book import SloBook
from router.observer.slo.objectives import Objective, boundaries, objectives_of
from tests.support.request_rows import row

MS = 1_000_000
S = 1_000_000_000
NOW = 1_763_899_200 * S


def objective(text: str, more: str = "") -> Objective:
    settings = config.parse(f'version = 1\n{more}[[slo]]\nname = "a"\nobjective = 99\n{text}')
    (found,) = objectives_of(settings.slo, settings.observer.goodput)
    return found


def judged(text: str, given: dict[str, Any], more: str = "") -> bool | None:
    return objective(text, more).judge(row(stream=True, endpoint="chat", **given))


TTFT = 'metric = "ttft"\nthreshold_ms = 500'
TPOT = 'metric = "tpot"\nthreshold_ms = 30'
E2E = 'metric = "e2e"\nthreshold_ms = 4000'


@pytest.mark.parametrize(
    ("text", "field", "good", "bad"),
    [
        (TTFT, "ttft_ns", 500 * MS, 500 * MS + 1),
        (TPOT, "tpot_ns", 30.0 * MS, 30.0 * MS + 1),
        (E2E, "e2e_ns", 4000 * MS, 4000 * MS + 1),
        ('metric = "stage.queue"\nthreshold_ms = 0.5', "queue_ns", MS // 2, MS // 2 + 1),
        ('metric = "early_tps"\nat_least = 20', "early_tps", 20.0, 19.999),
        ('metric = "visible_2s"\nat_least = 20', "visible_2s", 20, 19),
    ],
)
def test_the_threshold_is_exact_to_the_last_unit(text: str, field: str, good: float, bad: float) -> None:
    assert judged(text, {field: good}) is True
    assert judged(text, {field: bad}) is False


@pytest.mark.parametrize("text", [TTFT, TPOT, E2E, 'metric = "availability"'])
@pytest.mark.parametrize("outcome", ["rejected", "host_error", "timeout", "aborted"])
def test_a_request_that_failed_is_bad(text: str, outcome: str) -> None:
    assert judged(text, {"outcome": outcome}) is False


@pytest.mark.parametrize("text", [TTFT, TPOT, E2E, 'metric = "availability"', 'metric = "duration"\nthreshold_ms = 1'])
def test_the_clients_own_fault_does_not_count(text: str) -> None:
    assert judged(text, {"outcome": "bad_request", "duration_ns": S}) is None


@pytest.mark.parametrize(
    ("text", "given", "expected"),
    [
        (TTFT, {"outcome": "client_gone", "left_ns": 500 * MS}, None),
        (TTFT, {"outcome": "client_gone", "left_ns": 501 * MS}, False),
        (TTFT, {"outcome": "client_gone", "left_ns": 9000 * MS, "ttft_ns": 100 * MS}, None),
        (TTFT, {"outcome": "client_stalled", "ttft_ns": 900 * MS}, False),
        (E2E, {"outcome": "client_gone", "left_ns": 3900 * MS}, None),
        (E2E, {"outcome": "client_gone", "left_ns": 4100 * MS}, False),
        (E2E, {"outcome": "client_stalled", "left_ns": 4100 * MS}, None),
        (TPOT, {"outcome": "client_gone", "left_ns": 9000 * MS, "tpot_ns": 90.0 * MS}, None),
        ('metric = "availability"', {"outcome": "client_gone", "left_ns": 9000 * MS}, None),
    ],
)
def test_a_client_that_left_counts_only_when_it_had_waited_for_longer_than_the_limit(
    text: str, given: dict[str, Any], expected: bool | None
) -> None:
    assert judged(text, given) is expected


def test_who_cannot_have_the_metric_is_not_counted_not_even_when_failed() -> None:
    whole = row(stream=False, endpoint="chat", ttft_ns=9 * S)
    assert objective(TTFT).judge(whole) is None, "a whole answer has no time to its first token"
    assert objective(TTFT).judge(row(stream=False, endpoint="chat", outcome="host_error")) is None
    assert objective(TPOT).judge(row(endpoint="embeddings", outcome="host_error")) is None
    assert objective(E2E).judge(row(endpoint="embeddings", outcome="host_error")) is False
    assert judged(TPOT, {"tpot_ns": None}) is None, "an answer of one token"


def test_goodput_is_that_of_the_observer() -> None:
    goal = '[[observer.goodput]]\nworkload_class = "chat"\nttft_s = 0.5\n'
    text = 'metric = "goodput"'
    assert judged(text, {"ttft_ns": 400 * MS, "tags": {"workload_class": "chat"}}, goal) is True
    assert judged(text, {"ttft_ns": 600 * MS, "tags": {"workload_class": "chat"}}, goal) is False
    assert judged(text, {"ttft_ns": 600 * MS}, goal) is None, "no goal is set for it"


@pytest.mark.parametrize(
    ("where", "given", "counts"),
    [
        ('feature_name = "search"', {"tags": {"feature_name": "search"}}, True),
        ('feature_name = "search"', {"tags": {"feature_name": "chat"}}, False),
        ('feature_name = "search"', {}, False),
        ('feature_name = ""', {}, True),
        ('model = ["a", "b"]', {"model": "b"}, True),
        ('model = ["a", "b"]', {"model": "c"}, False),
        ('host = "gpu-1"\nendpoint = "chat"', {"host": "gpu-1", "endpoint": "chat"}, True),
        ('host = "gpu-1"\nendpoint = "chat"', {"host": "gpu-1", "endpoint": "embeddings"}, False),
    ],
)
def test_all_of_where_must_hold(where: str, given: dict[str, Any], counts: bool) -> None:
    assert objective(f"{E2E}\n[slo.where]\n{where}").counts(row(**given)) is counts


def test_groups_are_the_values_of_their_tags_and_what_finds_no_place_is_other() -> None:
    book = book_of('group_by = ["feature_name", "host"]\ngroups_max = 2')
    hosts = [row(request_seq=i, tags={"feature_name": "f"}, host=f"h{i % 4}", end_wall_ns=NOW) for i in range(8)]
    book.add(hosts, NOW)
    total, *groups = book.evaluate(NOW)
    assert (total.total, total.alerts, total.group) == (8, False, {})
    found = {tuple(each.group.values()): each.total for each in groups}
    assert found == {("f", "h0"): 2, ("f", "h1"): 2, ("__other__", "__other__"): 4}
    assert all(each.alerts for each in groups)
    assert book.folded_count == 4


def test_a_group_that_can_fire_no_more_gives_its_place_to_a_new_one() -> None:
    book = book_of('group_by = ["host"]\ngroups_max = 1')
    book.add([row(request_seq=1, host="old", outcome="host_error", end_wall_ns=NOW)], NOW)
    soon, late = NOW + 72 * 3600 * S, NOW + 73 * 3600 * S
    book.add([row(request_seq=2, host="new", end_wall_ns=soon)], soon)
    assert [each.group["host"] for each in book.evaluate(soon)[1:]] == ["old", "__other__"]
    book.add([row(request_seq=3, host="new", end_wall_ns=late)], late)
    found = {each.group["host"]: (each.bad, each.total) for each in book.evaluate(late)[1:]}
    assert found == {"new": (0, 1), "__other__": (0, 1)}
    assert book.evaluate(late)[0].bad == 1, "all requests together keep what it did"


def book_of(text: str, slo: str = 'metric = "availability"') -> SloBook:
    settings = config.parse(f'version = 1\n[[slo]]\nname = "a"\nobjective = 99\n{slo}\n{text}')
    return SloBook(settings, NOW)


def test_what_routers_ask_for_themselves_is_not_counted() -> None:
    book = book_of("")
    own = [row(request_seq=i, tags={"workload_class": name}) for i, name in enumerate(("cache", "tools", "warm"))]
    book.add([*own, row(request_seq=9, end_wall_ns=NOW)], NOW)
    assert book.evaluate(NOW)[0].total == 1


def test_breaches_are_the_objectives_that_count_a_row_as_bad() -> None:
    settings = config.parse(
        f'version = 1\n[[slo]]\nname = "slow"\nobjective = 99\n{TTFT}\n'
        '[[slo]]\nname = "up"\nobjective = 99\nmetric = "availability"\n'
        f'[[slo]]\nname = "other"\nobjective = 99\n{TTFT}\nwhere = {{ model = "other" }}\n'
    )
    book = SloBook(settings, NOW)

    def asked(**given: Any) -> RequestRow:
        return row(stream=True, endpoint="chat", **given)

    assert book.breaches(asked(ttft_ns=S)) == ("slow",)
    assert book.breaches(asked(outcome="timeout")) == ("slow", "up")
    assert book.breaches(asked(ttft_ns=S, model="other")) == ("slow", "other")
    assert book.breaches(asked(ttft_ns=MS)) == ()
    assert book.breaches(asked(outcome="timeout", tags={"workload_class": "warm"})) == ()


def test_a_threshold_is_a_boundary_of_its_metric_so_that_prometheus_has_the_same_share() -> None:
    settings = config.parse(
        'version = 1\n[[slo]]\nname = "a"\nobjective = 99\nmetric = "ttft"\nthreshold_ms = 437\n'
        '[[slo]]\nname = "b"\nobjective = 99\nmetric = "early_tps"\nat_least = 33\n'
        '[[slo]]\nname = "c"\nobjective = 99\nmetric = "stage.queue"\nthreshold_ms = 7.5\n'
    )
    bounds = {metric.name: metric.bounds for metric in catalogue((), boundaries(settings.slo))}
    assert 437 * MS in bounds["ttft"]
    assert 32_999 in bounds["early_tps"], "good is what is above it"
    assert 7_500_000 in bounds["stage.queue"]
    assert 437 * MS not in bounds["ttfc"]
    for metric in catalogue():
        assert set(metric.bounds) <= set(bounds[metric.name])
        assert list(bounds[metric.name]) == sorted(set(bounds[metric.name]))


def test_a_severity_of_the_configuration_is_one_of_alerts() -> None:
    assert [rule.severity for rule in objective(E2E).rules] == [Severity.PAGE] * 2 + [Severity.TICKET] * 2
    assert {str(cause) for cause in Cause} >= {"slo_burn", "slo_budget"}
