"""What a request costs: shares of its hosts' time from rows and sightings, prices by the token, waste, and gaps."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import pytest

from router import config
from router.config import Price
from router.observer.cost import CostMeter
from router.observer.in_flight import Running, Sighting
from router.observer.occupancy import BLOCK_MAX_NS, SETTLE_NS
from router.observer.prices import Prices, TokenCounts, prices_of, tokens_amount
from router.observer.rows import RequestRow, RowCost
from tests.support.request_rows import attempt, row

S = 1_000_000_000
MS = 1_000_000
HOUR_COST = 3600.0  # a second costs 1
PRICES = Prices("EUR", {"gpu": HOUR_COST, "gpu2": 2 * HOUR_COST}, [Price(model="api*", input=10.0, output=20.0)])
START = 100 * S


def look(t_ns: int, done_count: int, *running: Running, instance: str = "main", generation: int = START) -> Sighting:
    return Sighting(instance, generation, t_ns, done_count, running)


def finished(seq: int, *attempts: Any, done_seq: int | None = None, **given: Any) -> RequestRow:
    end_ns = max((a.end_mono_ns for a in attempts), default=START)
    values = {"generation": START, "request_seq": seq, "done_seq": seq if done_seq is None else done_seq}
    return row(**values, attempts=attempts, done_mono_ns=end_ns, **given)


def costs(meter: CostMeter, now_ns: int) -> dict[int, RowCost]:
    return {r.request_seq: r.cost for r in meter.settled(now_ns) if r.cost is not None}


class TestSharing:
    def test_a_request_alone_is_charged_all_its_time(self) -> None:
        meter = CostMeter(PRICES, ["gpu"])
        done = finished(0, attempt("gpu", START + S, START + 3 * S))
        meter.add([done], [look(START + 5 * S, 1)], START + 5 * S)
        (settled,) = meter.settled(START + 5 * S)
        assert settled.cost == RowCost(2.0, 0.0, 2 * S, 0, "EUR", "occupancy", "")
        assert meter.host_times()["gpu"].idle_ns == 2 * S

    def test_who_still_runs_takes_part(self) -> None:
        meter = CostMeter(PRICES)
        done = finished(0, attempt("gpu", START, START + 2 * S))
        other = Running(1, "gpu", START + S, START + S)
        meter.add([done], [look(START + 4 * S, 1, other)], START + 4 * S)
        assert costs(meter, START + 4 * S)[0].host_ns == 3 * S // 2

    def test_nothing_settles_within_a_second_of_its_end(self) -> None:
        meter = CostMeter(PRICES)
        end = START + 2 * S
        meter.add([finished(0, attempt("gpu", START, end))], [look(end + SETTLE_NS - 1, 1)], end + SETTLE_NS - 1)
        assert meter.settled(end + SETTLE_NS - 1) == []
        meter.add([], [look(end + SETTLE_NS, 1)], end + SETTLE_NS)
        assert len(meter.settled(end + SETTLE_NS)) == 1
        assert meter.pending_count == 0

    def test_the_clocks_wait_for_the_rows_that_a_sighting_counts(self) -> None:
        meter = CostMeter(PRICES)
        now = START + 5 * S
        meter.add([finished(0, attempt("gpu", START, START + 2 * S))], [look(now, 2)], now)
        assert meter.settled(now) == []
        meter.add([finished(1, attempt("gpu", START, START + 2 * S))], [], now)
        assert {seq: cost.host_ns for seq, cost in costs(meter, now).items()} == {0: S, 1: S}

    def test_two_routers_share_a_host(self) -> None:
        meter = CostMeter(PRICES)
        now = START + 5 * S
        here = finished(0, attempt("gpu", START, START + 2 * S))
        there = finished(0, attempt("gpu", START, START + 2 * S), instance="other")
        meter.add([here, there], [look(now, 1), look(now, 1, instance="other")], now)
        assert [r.cost.host_ns for r in meter.settled(now) if r.cost] == [S, S]

    def test_a_request_of_a_dead_router_is_charged_until_it_died(self) -> None:
        meter = CostMeter(PRICES)
        meter.add([], [look(START + S, 0, Running(7, "gpu", START, START))], START + S)
        assert meter.settled(START + S) == []
        died = finished(7, attempt("gpu", START, START + 2 * S, outcome="aborted"), done_seq=-1, outcome="aborted")
        meter.add([died], [], START + 3 * S)
        cost = costs(meter, START + 3 * S)[7]
        assert (cost.host_ns, cost.waste_host_ns) == (2 * S, 2 * S)


class TestWaste:
    def settle(self, done: RequestRow, prices: Prices = PRICES) -> RowCost:
        meter = CostMeter(prices)
        now = START + 60 * S
        meter.add([done], [look(now, 1)], now)
        return costs(meter, now)[done.request_seq]

    def test_a_retry_is_booked_to_its_request(self) -> None:
        failed = attempt("gpu", START, START + S, outcome="failed")
        cost = self.settle(finished(0, failed, attempt("gpu2", START + S, START + 2 * S)))
        assert (cost.amount, cost.waste_amount) == (3.0, 1.0)
        assert (cost.host_ns, cost.waste_host_ns) == (2 * S, S)

    def test_an_attempt_that_never_reached_its_host_costs_nothing(self) -> None:
        refused = attempt("gpu", None, START + S, outcome="failed")
        cost = self.settle(finished(0, refused, attempt("gpu2", START + S, START + 2 * S)))
        assert (cost.amount, cost.waste_amount) == (2.0, 0.0)

    def test_a_refused_request_cost_nothing(self) -> None:
        cost = self.settle(finished(0, outcome="rejected"))
        assert (cost.amount, cost.host_ns, cost.missing) == (0.0, 0, "")

    def test_all_of_an_answer_that_nobody_took_is_waste(self) -> None:
        left = attempt("gpu", START, START + S, outcome="cancelled")
        cost = self.settle(finished(0, left, outcome="client_gone"))
        assert (cost.amount, cost.waste_amount) == (1.0, 1.0)

    def test_a_host_without_a_price_has_time_but_no_cost(self) -> None:
        cost = self.settle(finished(0, attempt("free", START, START + S)))
        assert (cost.amount, cost.waste_amount, cost.host_ns, cost.missing) == (None, 0.0, S, "no_price")

    def test_tokens_have_their_price_and_no_host_time(self) -> None:
        cost = self.settle(finished(0, attempt("cloud", START, START + S), model="api-large", n_in=1000, n_out=100))
        assert cost.amount == pytest.approx(0.012)
        assert (cost.host_ns, cost.basis) == (None, "tokens")

    def test_tokens_that_nobody_counted_have_no_cost(self) -> None:
        cost = self.settle(finished(0, attempt("cloud", START, START + S), model="api", n_in=None, n_out=100))
        assert (cost.amount, cost.missing) == (None, "no_usage")

    def test_an_api_that_refused_costs_nothing_and_the_other_one_is_paid(self) -> None:
        refused = attempt("cloud", START, START + S, outcome="failed", status=503)
        answered = attempt("cloud2", START + S, START + 2 * S)
        cost = self.settle(finished(0, refused, answered, model="api", n_in=1_000_000, n_out=0))
        assert (cost.amount, cost.waste_amount) == (10.0, 0.0)

    def test_time_and_tokens_in_one_request_are_told(self) -> None:
        failed = attempt("gpu", START, START + S, outcome="failed")
        answered = attempt("cloud", START + S, START + 2 * S)
        cost = self.settle(finished(0, failed, answered, model="api", n_in=1_000_000, n_out=0))
        assert (cost.amount, cost.waste_amount, cost.host_ns, cost.basis) == (11.0, 1.0, S, "mixed")

    def test_an_attempt_that_only_sightings_tell_of_is_waste(self) -> None:
        meter = CostMeter(PRICES)
        meter.add([], [look(START + S, 0, Running(0, "gpu", START, START))], START + S)
        moved = Running(0, "gpu2", START + 2 * S, START + 2 * S)
        meter.add([], [look(START + 2 * S, 0, moved)], START + 2 * S)
        now = START + 9 * S
        meter.add([finished(0, attempt("gpu2", START + 2 * S, START + 3 * S))], [look(now, 1)], now)
        cost = costs(meter, now)[0]
        assert (cost.amount, cost.waste_amount) == (4.0, 2.0)

    def test_a_quick_failure_that_is_known_too_late_does_not_hide_the_cost(self) -> None:
        meter = CostMeter(PRICES)
        now = START + 20 * S
        meter.add([], [look(now, 0, Running(0, "gpu2", START + 3 * MS, START + 3 * MS))], now)
        assert meter.settled(now) == []
        refused = attempt("gpu", START, START + 2 * MS, outcome="failed", status=503)
        meter.add([finished(0, refused, attempt("gpu2", START + 3 * MS, now))], [look(now + 2 * S, 1)], now + 2 * S)
        cost = costs(meter, now + 2 * S)[0]
        assert (cost.host_ns, cost.waste_amount, cost.missing) == (20 * S - 3 * MS, 0.0, "")


class TestGaps:
    def test_lost_rows_take_the_cost_of_all_that_ran_meanwhile(self) -> None:
        meter = CostMeter(PRICES)
        meter.add([finished(0, attempt("gpu", START, START + S))], [look(START + 2 * S, 1)], START + 2 * S)
        assert costs(meter, START + 2 * S)[0].host_ns == S
        during = finished(5, attempt("gpu", START + 2 * S, START + 3 * S))
        now = START + 10 * S
        later = finished(6, attempt("gpu", START + 4 * S, START + 5 * S))
        meter.add([during, later], [look(now, 7)], now)
        found = costs(meter, now)
        assert (found[5].amount, found[5].host_ns, found[5].missing) == (None, None, "gap")
        assert found[6].host_ns == S

    def test_what_ran_before_the_first_row_that_was_read_is_not_known(self) -> None:
        meter = CostMeter(PRICES)
        now = START + 20 * S
        first = finished(100, attempt("gpu", START + S, START + 2 * S))
        second = finished(101, attempt("gpu", START + 3 * S, START + 4 * S))
        meter.add([first, second], [look(now, 102)], now)
        found = costs(meter, now)
        assert found[100].missing == "gap"
        assert found[101].host_ns == S

    def test_rows_that_are_known_already_tell_what_ran_beside_the_others(self) -> None:
        meter = CostMeter(PRICES)
        now = START + 9 * S
        before = finished(4, attempt("gpu", START, START + S))
        beside = finished(5, attempt("gpu", START + 2 * S, START + 4 * S))
        own = finished(6, attempt("gpu", START + 2 * S, START + 4 * S))
        meter.add([own], [look(now, 7)], now, [before, beside])
        assert {seq: cost.host_ns for seq, cost in costs(meter, now).items()} == {6: S}
        assert meter.pending_count == 0

    def test_rows_that_never_come_hold_nothing_up_for_ever(self) -> None:
        meter = CostMeter(PRICES)
        seen = START + 2 * S
        meter.add([finished(0, attempt("gpu", START, START + S))], [look(seen, 3)], seen)
        assert meter.settled(seen) == []
        late = seen + BLOCK_MAX_NS
        meter.add([], [look(late, 3)], late)
        assert costs(meter, late)[0].missing == "gap"

    def test_the_order_of_ends_and_that_of_records_may_differ(self) -> None:
        meter = CostMeter(PRICES)
        now = START + 5 * S
        later = finished(0, attempt("gpu", START, START + S + 5), done_seq=0)
        sooner = finished(1, attempt("gpu2", START, START + S), done_seq=1)
        meter.add([sooner, later], [look(now, 2)], now)
        assert {seq: cost.missing for seq, cost in costs(meter, now).items()} == {0: "", 1: ""}

    def test_a_request_whose_row_was_lost_runs_no_longer(self) -> None:
        meter = CostMeter(PRICES)
        meter.add([], [look(START + S, 0, Running(0, "gpu", START, START))], START + S)
        meter.add([finished(1, attempt("gpu", START + S, START + 2 * S))], [look(START + 3 * S, 2)], START + 3 * S)
        alone = finished(2, attempt("gpu", START + 4 * S, START + 5 * S))
        meter.add([alone], [look(START + 7 * S, 3)], START + 7 * S)
        found = costs(meter, START + 7 * S)
        assert found[1].missing == "gap"
        assert found[2].host_ns == S

    def test_a_dead_router_holds_up_no_other(self) -> None:
        meter = CostMeter(PRICES)
        now = START + S
        meter.add([], [look(now, 0), look(now, 0, Running(0, "gpu", START, START), instance="dead")], now)
        now += 10 * S
        meter.add([finished(0, attempt("gpu2", START, START + S))], [look(now, 1)], now)
        meter.add([], [], now)
        assert costs(meter, now)[0].host_ns == S

    def test_when_the_observer_ends_rows_leave_with_what_is_known(self) -> None:
        meter = CostMeter(PRICES)
        meter.add([finished(0, attempt("gpu", START, START + S))], [], START + S)
        (left,) = meter.flush()
        assert left.cost is not None
        assert left.cost.missing == "gap"
        assert meter.pending_count == 0


class _Life:
    """A made-up hour of two routers and two hosts: what every request did, and what the observer gets to see of it."""

    def __init__(self, seed: int, count: int = 200) -> None:
        self.random = random.Random(seed)
        self.requests: dict[str, list[RequestRow]] = {"a": [], "b": []}
        for name, requests in self.requests.items():
            made = [self._request(name, seq) for seq in range(count)]
            made.sort(key=lambda r: r.done_mono_ns)
            requests += [finished(r.request_seq, *r.attempts, done_seq=i, instance=name) for i, r in enumerate(made)]

    def _request(self, instance: str, seq: int) -> RequestRow:
        pick = self.random
        at = START + pick.randrange(20 * S)
        attempts = []
        for _ in range(pick.choice((1, 1, 1, 2))):
            end = at + int(pick.lognormvariate(0, 1) * S) + 700 * MS
            attempts.append(attempt(pick.choice(("gpu", "gpu2")), at, end, outcome="failed"))
            at = end
        attempts[-1] = attempt(attempts[-1].host, attempts[-1].sent_mono_ns, attempts[-1].end_mono_ns)
        return finished(seq, *attempts, instance=instance)

    def sighting(self, name: str, now: int) -> Sighting:
        rows = self.requests[name]
        running = []
        for r in rows:
            if r.done_mono_ns > now:
                begun = [a for a in r.attempts if a.sent_mono_ns is not None and a.sent_mono_ns <= now]
                if begun:
                    running.append(
                        Running(r.request_seq, begun[-1].host, begun[-1].start_mono_ns, begun[-1].start_mono_ns)
                    )
        return look(now, sum(r.done_mono_ns <= now for r in rows), *running, instance=name)

    def exact_ns(self) -> dict[tuple[str, int], Fraction]:
        spans = [
            (r.instance, r.request_seq, a.host, a.sent_mono_ns or 0, a.end_mono_ns)
            for rows in self.requests.values()
            for r in rows
            for a in r.attempts
        ]
        charges: dict[tuple[str, int], Fraction] = {}
        for host in ("gpu", "gpu2"):
            here = [span for span in spans if span[2] == host]
            turns = sorted([(s[3], 1, s) for s in here] + [(s[4], 0, s) for s in here])
            running: set[tuple[str, int, str, int, int]] = set()
            before = 0
            for t, is_begin, span in turns:
                for instance, seq, *_ in running:
                    charges[instance, seq] = charges.get((instance, seq), Fraction(0)) + Fraction(
                        t - before, len(running)
                    )
                before = t
                (running.add if is_begin else running.remove)(span)
        return charges


@pytest.mark.parametrize("seed", range(3))
def test_the_costs_of_a_busy_hour_are_exact_and_conserved(seed: int) -> None:
    life = _Life(seed)
    meter = CostMeter(Prices("EUR", {}), ["gpu", "gpu2"])
    given = {"a": 0, "b": 0}
    found: dict[tuple[str, int], int | None] = {}
    now, end = START, max(r.done_mono_ns for rows in life.requests.values() for r in rows) + 3 * S
    while now < end:
        sightings = [life.sighting(name, now) for name in given]
        now += life.random.randrange(20 * MS, 200 * MS)
        rows = []
        for name, count in given.items():
            new = [r for r in life.requests[name][count:] if r.done_mono_ns + 250 * MS <= now]
            given[name] += len(new)
            rows += new
        meter.add(rows, sightings, now)
        for settled in meter.settled(now):
            assert now >= settled.done_mono_ns + SETTLE_NS
            assert settled.cost is not None
            found[settled.instance, settled.request_seq] = settled.cost.host_ns
    exact = life.exact_ns()
    assert found.keys() == exact.keys()
    assert all(abs((ns or 0) - exact[key]) <= 2 for key, ns in found.items())
    times = meter.host_times()
    assert sum(ns or 0 for ns in found.values()) == sum(t.attributed_ns for t in times.values())
    assert all(t.lost_ns == 0 and t.gap_ns == 0 for t in times.values())


class TestPrices:
    def test_cached_and_reasoning_tokens_have_their_own_price_where_there_is_one(self) -> None:
        price = Price(model="m", input=10.0, output=20.0, cached_input=1.0, reasoning=30.0)
        tokens = TokenCounts(prompt=1_000_000, answer=1_000_000, cached=500_000, reasoning=250_000)
        assert tokens_amount(price, tokens) == pytest.approx(5.0 + 0.5 + 15.0 + 7.5)
        plain = Price(model="m", input=10.0, output=20.0)
        assert tokens_amount(plain, tokens) == pytest.approx(30.0)

    def test_more_of_a_part_than_of_the_whole_is_not_believed(self) -> None:
        price = Price(model="m", input=10.0, output=20.0, cached_input=1.0, reasoning=30.0)
        assert tokens_amount(price, TokenCounts(100, 10, cached=500, reasoning=50)) == pytest.approx(400e-6)

    def test_the_entry_that_says_most_of_a_name_is_its_price(self) -> None:
        table = Prices(
            "USD", {}, [Price(model=m, input=i, output=0.0) for i, m in enumerate(("*", "a*", "a-*-x", "a-1"))]
        )
        wanted = {"zzz": 0, "abc": 1, "a-9-x": 2, "a-1": 3}
        assert {name: p.input for name in wanted if (p := table.of_model(name))} == wanted

    def test_an_unknown_model_has_no_price(self) -> None:
        assert Prices("USD", {}, [Price(model="a.c", input=1.0, output=1.0)]).of_model("abc") is None

    def test_the_configuration_says_both_kinds(self) -> None:
        text = """
            version = 1
            observer.currency = "EUR"
            [[hosts]]
            name = "gpu"
            url = "http://127.0.0.1:1"
            cost_per_hour = 7.2
            [[hosts]]
            name = "cloud"
            url = "http://127.0.0.1:2"
            [[observer.prices]]
            model = "big"
            input = 1.0
            output = 2.0
        """
        table = prices_of(config.parse(text))
        assert table.currency == "EUR"
        assert table.ns_cost("gpu") == pytest.approx(2e-12)
        assert table.ns_cost("cloud") is None
        assert table.of_model("big") is not None
