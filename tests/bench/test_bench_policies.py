"""The policy study: its hosts keep time, its runs repeat, its verdicts need evidence."""

from __future__ import annotations

import json
import subprocess
import sys
from math import inf
from pathlib import Path
from random import Random

import pytest

from bench import policies, policies_report
from bench.policies_host import BLOCK_TOKENS, FOREVER_NS, Host, HostKind, Job
from bench.policies_report import COMPARED, verdict
from bench.policies_rules import BASELINES, RECOMMENDED, RULES, CacheAware
from bench.policies_run import Outcome, Run, capacity, percentile
from bench.policies_workloads import WORKLOADS, Traffic, Workload
from router.routing import NO_HOST
from router.routing.policy import Ask

MS = 1_000_000
KIND = HostKind(slot_count=2, step_ns=10 * MS, sequence_ns=MS, token_ns=100_000, step_tokens=100, held_tokens=640)
RULE = {rule.name: rule for rule in RULES}
CHAT = Workload(
    "test chat", "a small one", (Traffic(4, 2, 640, 64, 20, 1.0),), (1.0, 1.0, 0.5), 1.0, 0.1,
    kind=KIND._replace(slot_count=8, held_tokens=6400), outage_every_s=30, outage_s=3,
)  # fmt: skip


def job(prompt_tokens: int, answer_tokens: int, text: int = 1) -> Job:
    blocks = [text << 20 | place for place in range((prompt_tokens + answer_tokens) // BLOCK_TOKENS)]
    return Job(None, prompt_tokens, answer_tokens, blocks[: prompt_tokens // BLOCK_TOKENS], blocks)


def work(host: Host, now_ns: int, until_ns: int = FOREVER_NS) -> int:
    """Let a host work until it has nothing to do or this time; return when it ended."""
    if not host.is_working:
        host.begin(now_ns)
    while host.end_ns <= min(until_ns, FOREVER_NS - 1):
        now_ns = host.end_ns
        host.finish(now_ns)
        host.begin(now_ns)
    return now_ns


# ---------------------------------------------------------------- the host
def test_a_host_reads_in_chunks_and_then_generates_one_token_a_step() -> None:
    host, alone = Host(KIND), job(250, 5)
    host.add(alone, 0)
    work(host, 0)
    assert alone.first_ns == (3 * 10 + 25) * MS, "three steps, 250 tokens"
    assert alone.end_ns - alone.first_ns == 4 * 11 * MS, "four more tokens"


def test_a_slow_host_takes_longer_by_its_speed() -> None:
    host, alone = Host(KIND, speed=0.5), job(250, 5)
    host.add(alone, 0)
    work(host, 0)
    assert alone.end_ns == 2 * (3 * 10 + 25 + 4 * 11) * MS


def test_what_is_held_is_not_read_again_and_the_last_token_always_is() -> None:
    host = Host(KIND)
    first, again = job(640, 1), job(640, 1)
    host.add(first, 0)
    now_ns = work(host, 0)
    host.add(again, now_ns)
    work(host, now_ns)
    assert (first.held_tokens, again.held_tokens) == (0, 639)
    assert host.read_tokens == 641


def test_the_end_of_a_prompt_is_forgotten_before_its_beginning() -> None:
    host = Host(KIND)
    for text in (1, 2):
        host.add(job(384, 1, text), 0)
    work(host, 0)
    assert host.held_tokens(job(384, 1, 2).blocks) == 384
    assert host.held_tokens(job(384, 1, 1).blocks) == 256, "ten blocks in all"


def test_a_request_that_comes_in_the_middle_of_many_steps_begins_with_the_next_one() -> None:
    host, early, late = Host(KIND), job(100, 50), job(100, 1, text=2)
    host.add(early, 0)
    work(host, 0, until_ns=20 * MS)
    arrived_ns = early.first_ns + 5 * 11 * MS + MS
    host.add(late, arrived_ns)
    work(host, arrived_ns)
    begun_ns = early.first_ns + 6 * 11 * MS
    assert late.first_ns - begun_ns == 2 * 11 * MS + 10 * MS, "two steps: room for 99 tokens beside an answer"
    assert early.end_ns == late.first_ns + (49 - 6 - 2) * 11 * MS, "two of its steps took longer, none was lost"


def test_more_requests_than_slots_wait_in_the_host_and_all_are_lost_when_it_dies() -> None:
    host = Host(KIND)
    jobs = [job(100, 10, text) for text in range(3)]
    for each in jobs:
        host.add(each, 0)
    assert list(host.queue) == jobs[2:]
    work(host, 0, until_ns=50 * MS)
    assert set(host.die()) == set(jobs)
    assert not host.is_working
    assert host.held_tokens(jobs[0].blocks) == 0


# ---------------------------------------------------------------- runs
def run_of(rule: str, seed: int = 1, rate: float = 20.0) -> Run:
    run = Run(CHAT, RULE[rule], rate, seed, 600)
    run.run()
    return run


@pytest.mark.parametrize("rule", RULE)
def test_every_request_ends_and_every_slot_is_given_back(rule: str) -> None:
    run = run_of(rule)
    assert len(run.requests) > 600
    assert all(request.ended_ns for request in run.requests)
    assert any(request.attempts > 1 or request.failed for request in run.requests), "the host that died had some"
    assert not any(run.busy)
    assert not run.waiting


def test_a_seed_gives_the_same_run_again_and_asks_every_rule_the_same() -> None:
    one, again, other = run_of("prefix affinity"), run_of("prefix affinity"), run_of("random", seed=1)
    times = [[(r.deq, r.first_ns, r.host) for r in run.requests] for run in (one, again)]
    assert times[0] == times[1]
    first_session = one.requests[0].session.number
    assert [r.job.prompt_tokens for r in one.requests if r.session.number == first_session] == [
        r.job.prompt_tokens for r in other.requests if r.session.number == first_session
    ]


def test_prefix_affinity_has_less_read_than_round_robin() -> None:
    outcomes = {name: Run(CHAT, RULE[name], 10.0, 3, 600).run() for name in ("prefix affinity", "round robin")}
    read_shares = {name: 1 - outcome.held_share for name, outcome in outcomes.items()}
    assert read_shares["prefix affinity"] < 0.75 * read_shares["round robin"]


def test_capacity_is_the_rate_at_which_answers_are_just_good_enough() -> None:
    found = capacity(CHAT, RULE["round robin"], 100)
    shares = [Run(CHAT, RULE["round robin"], rate, 0, 100).run().good_share for rate in (found, 1.3 * found)]
    assert shares[0] >= 0.9 > shares[1]


def test_the_cache_aware_rule_follows_the_prompt_unless_the_loads_are_far_apart() -> None:
    rule = CacheAware(Random(1))
    ask = Ask(10, 200, (1, 2, 3))
    rule.sent(2, ask)
    hosts = [(1, 0, 999, True, False), (2, 60, 999, True, False)]
    assert rule.choose(hosts, ask) == 1, "192 of 200 tokens were seen there"
    assert rule.choose(hosts, Ask(10, 2000, (1, 2, 3))) == 0, "too little of it"
    assert rule.choose([hosts[0], (2, 65, 999, True, False)], ask) == 0, "more than 64 apart"
    assert rule.choose(hosts, Ask(10 + 121_000_000_000, 200, (1, 2, 3))) == 0, "too long ago"
    assert rule.choose([(1, 9, 9, True, False)], ask) == NO_HOST


# ---------------------------------------------------------------- verdicts
def outcomes(*p95_s: float) -> list[Outcome]:
    return [Outcome(1.0, seconds, 3.0, 0.99, 0.5, 1.0, 0.0, 100) for seconds in p95_s]


def test_a_verdict_needs_a_difference_that_all_seeds_agree_on_and_that_matters() -> None:
    p95 = COMPARED[1]
    base = outcomes(1.0, 2.0, 1.5, 1.2)
    assert verdict(outcomes(0.5, 1.0, 0.8, 0.6), base, p95) == -1
    assert verdict(outcomes(1.2, 2.4, 1.8, 1.5), base, p95) == 1
    assert verdict(outcomes(0.5, 4.0, 1.0, 2.0), base, p95) == 0, "the seeds do not agree"
    assert verdict(outcomes(1.01, 2.02, 1.515, 1.212), base, p95) == 0, "1 % is nothing"
    assert verdict(outcomes(inf, inf, inf, inf), base, p95) == 1
    assert verdict(outcomes(inf, inf), outcomes(inf, inf), p95) == 0
    assert verdict(outcomes(0.1), outcomes(1.0), p95) == 0, "one seed proves nothing"


def test_what_is_worse_stands_in_the_table() -> None:
    results = {
        ("chat", 80, RECOMMENDED): outcomes(1.2, 1.3, 1.1),
        ("chat", 80, "random"): outcomes(1.0, 1.05, 0.9),
    }
    (found,) = policies_report.comparisons(results, RECOMMENDED, ["random"])
    assert found.worse == ("p95",)
    assert "WORSE p95" in policies_report.comparison_table([found])


def test_percentiles_are_of_the_nearest_rank() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99)] == [50, 95, 99]
    assert percentile([7.0], 0.99) == 7


# ---------------------------------------------------------------- the command
def test_the_recommended_policy_is_no_worse_than_any_baseline_in_a_short_study() -> None:
    plan = policies.Plan(["agents", "documents"], [*BASELINES, RECOMMENDED], [80], 4, 500, 2)
    results, _ = policies.study(plan)
    found = policies_report.comparisons(results, RECOMMENDED, BASELINES)
    assert [each for each in found if each.worse] == []
    assert sum(bool(each.better) for each in found) >= len(found) / 2


def test_the_command_fills_a_page_and_writes_json(tmp_path: Path) -> None:
    page, document = tmp_path / "page.md", tmp_path / "out.json"
    names = ("policies-short", "policies", "policies-compared")
    page.write_text("".join(f"<!-- measured {name} -->\n<!-- end -->\n" for name in names), encoding="utf-8")
    options = ["--workloads", "small hosts", "--rules", "random;round robin;prefix affinity", "--loads", "50"]
    short = ["--seeds", "2", "--requests", "100", "--processes", "1", "--into", str(page), "--json", str(document)]
    done = command(*options, *short)
    assert done.returncode in {0, 1}, done.stderr
    text = page.read_text(encoding="utf-8")
    assert "50 % load" in text
    assert "| prefix affinity" in text
    written = json.loads(document.read_text(encoding="utf-8"))
    assert written["schema"] == "ringrouter.policies/1"
    assert len(written["runs"]) == 3 * 2


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--workloads", "chess"], "--workloads: 'chess' is none of chat, agents"),
        (["--rules", "best"], "--rules: 'best' is none of random, round robin"),
        (["--loads", "80,much"], "--loads: 'much' is not a whole number of percent between 1 and 300"),
        (["--seeds", "0"], "--seeds: 0 is less than 1"),
    ],
)
def test_wrong_arguments_are_named_in_one_line(options: list[str], complaint: str) -> None:
    done = command(*options)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1


def command(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.policies", *options], capture_output=True, text=True, check=False, timeout=60
    )


def test_workloads_are_what_they_say() -> None:
    assert [workload.name for workload in WORKLOADS][:6] == ["chat", "agents", "documents", "mixed", "slow", "flapping"]
    assert {*BASELINES, RECOMMENDED} <= set(RULE)
