"""Stamps and stages: the sums are exact whatever happened, and in whatever order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.stamps import (
    STAGES,
    STAMPS,
    e2e_ns,
    normalise,
    router_overhead_ns,
    stages,
    tpot_ns,
    ttft_ns,
)

ANY_STAMPS = st.lists(st.integers(0, 2**63 - 1), min_size=len(STAMPS), max_size=len(STAMPS))


def at(**given: int) -> list[int]:
    return [given.get(name, 0) for name in STAMPS]


@given(ANY_STAMPS)
def test_no_stage_is_negative(stamps: list[int]) -> None:
    assert all(length >= 0 for length in stages(stamps).values())


@given(ANY_STAMPS)
def test_ttft_and_e2e_are_exactly_the_differences_of_their_stamps(stamps: list[int]) -> None:
    whole = dict(zip(STAMPS, normalise(stamps), strict=True))
    stage_ns = stages(stamps)
    assert ttft_ns(stage_ns) == whole["out1"] - whole["recv"]
    assert e2e_ns(stage_ns) == whole["outN"] - whole["recv"]


@given(ANY_STAMPS)
def test_normalising_twice_changes_nothing(stamps: list[int]) -> None:
    assert normalise(normalise(stamps)) == normalise(stamps)


@given(ANY_STAMPS)
def test_the_overhead_is_what_neither_client_queue_retry_nor_host_took(stamps: list[int]) -> None:
    stage_ns = stages(stamps)
    router = ("ingress", "handoff", "route", "connect", "send", "egress")
    assert router_overhead_ns(stage_ns) == sum(stage_ns[name] for name in router)


def test_stages_come_in_the_order_of_their_names() -> None:
    assert tuple(stages([0] * len(STAMPS))) == STAGES


def test_a_stamp_that_did_not_happen_takes_its_predecessors_value() -> None:
    stage_ns = stages(at(recv=100, body=110, pub=120, done=500))
    assert stage_ns["upload"] == 10
    assert stage_ns["ingress"] == 10
    assert sum(stage_ns.values()) == 20


def test_a_stamp_that_runs_backwards_takes_its_predecessors_value() -> None:
    assert stages(at(recv=100, body=90, pub=120))["upload"] == 0


def test_tokens_go_on_arriving_while_the_client_does_not_take_the_first() -> None:
    stage_ns = stages(at(recv=0, sent=10, hfb=20, tok1=30, out1=900, tokN=400, outN=950))
    assert stage_ns["egress"] == 870
    assert stage_ns["decode"] == 370
    assert stage_ns["tail"] == 550


def test_tpot_divides_by_the_tokens_after_the_first() -> None:
    assert tpot_ns(100, 1100, n_out=11, n_first=1) == 100


def test_tpot_has_no_meaning_for_one_token_or_one_moment() -> None:
    assert tpot_ns(100, 1100, n_out=1, n_first=1) is None
    assert tpot_ns(100, 100, n_out=5, n_first=1) is None
