"""Outlier ejection, pure: a host is measured by its peers, with robust numbers, and never are all left out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.config import OutliersConfig
from router.hosts.outliers import TTFTS_MAX, Deeds, eject_ns, find, median

MS = 1_000_000
CONFIG = OutliersConfig(requests_min=20, hosts_min=3, ttft_factor=5, deviations=6, failed_share=0.3, share_max=0.34)


def deeds(served: int = 50, failed: int = 0, ttft_ms: float = 100) -> Deeds:
    each = Deeds()
    each.served, each.failed = served, failed
    each.ttfts_ns.extend([int(ttft_ms * MS)] * served)
    return each


def found(*hosts: Deeds, config: OutliersConfig = CONFIG, out_count: int = 0) -> list[int]:
    return [host_id for host_id, _ in find(dict(enumerate(hosts, 1)), config, len(hosts), out_count)]


def test_hosts_alike_stay() -> None:
    assert found(deeds(), deeds(ttft_ms=120), deeds(ttft_ms=90)) == []


def test_a_host_far_slower_than_its_peers_is_found() -> None:
    hosts = {1: deeds(), 2: deeds(ttft_ms=110), 3: deeds(ttft_ms=900)}
    ((host_id, why),) = find(hosts, CONFIG, 3, 0)
    assert host_id == 3
    assert why == "half of its first tokens took over 900 ms, 105 ms at its peers"


def test_a_host_whose_requests_fail_is_found() -> None:
    hosts = {1: deeds(), 2: deeds(30, 20), 3: deeds()}
    ((host_id, why),) = find(hosts, CONFIG, 3, 0)
    assert (host_id, why) == (2, "40% of 50 requests failed, 0% at its peers")


def test_when_all_fail_none_is_worse() -> None:
    assert found(deeds(10, 40), deeds(10, 40), deeds(10, 40)) == []
    assert found(deeds(ttft_ms=9000), deeds(ttft_ms=9000), deeds(ttft_ms=9000)) == []


def test_few_slow_answers_are_not_enough() -> None:
    slow = deeds()
    slow.ttfts_ns.extend([5000 * MS] * 20)
    assert found(deeds(), deeds(), slow) == [], "half of them were as ever"


def test_peers_that_differ_much_are_a_loose_measure() -> None:
    assert found(deeds(ttft_ms=10), deeds(ttft_ms=400), deeds(ttft_ms=800), deeds(ttft_ms=2200)) == []
    assert found(deeds(ttft_ms=390), deeds(ttft_ms=400), deeds(ttft_ms=410), deeds(ttft_ms=2200)) == [4]


@pytest.mark.parametrize("count", [1, 19])
def test_a_host_with_few_requests_is_not_judged(count: int) -> None:
    assert found(deeds(), deeds(), deeds(0, count)) == []


def test_two_hosts_are_not_compared_by_default() -> None:
    assert found(deeds(), deeds(0, 50)) == []
    assert found(deeds(), deeds(0, 50), config=OutliersConfig(hosts_min=2, share_max=0.5)) == [2]


def test_no_more_than_the_share_is_left_out() -> None:
    hosts = [deeds(), deeds(), deeds(), deeds(), deeds(0, 50), deeds(10, 40)]
    assert found(*hosts) == [5, 6]
    assert found(*hosts, out_count=1) == [5], "the worst first"
    assert found(*hosts, out_count=2) == []


def test_more_requests_than_times_are_kept() -> None:
    config = OutliersConfig(requests_min=10_000)
    hosts = [deeds(20_000), deeds(20_000), deeds(20_000, ttft_ms=5000)]
    assert len(hosts[0].ttfts_ns) == TTFTS_MAX
    assert found(*hosts, config=config) == [3]


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100), st.floats(1, 1e5)), min_size=1, max_size=8))
def test_never_over_the_share_and_never_the_best(values: list[tuple[int, int, float]]) -> None:
    hosts = [deeds(*value) for value in values]
    out = found(*hosts)
    assert len(out) <= CONFIG.share_max * len(hosts)
    judged = [h for h in hosts if h.count >= CONFIG.requests_min]
    best = min((h.failed / h.count for h in judged), default=0)
    for host_id in out:
        host = hosts[host_id - 1]
        assert host.failed / host.count > best or median(host.ttfts_ns) > min(
            median(h.ttfts_ns) for h in judged if h.ttfts_ns
        )


@pytest.mark.parametrize(("times", "seconds"), [(1, 30), (2, 60), (9, 270), (11, 300), (1000, 300)])
def test_each_time_in_a_row_is_longer(times: int, seconds: int) -> None:
    assert eject_ns(times, CONFIG) == seconds * 1_000_000_000


def test_the_median() -> None:
    assert median([3, 1, 2]) == 2
    assert median([4, 1, 2, 3]) == 2.5
