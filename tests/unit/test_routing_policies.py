"""The routing policies one by one: what each prefers, what it learns, what it forgets, and how much it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from router.config import HostConfig, RoutingConfig
from router.routing import NO_HOST, Candidate, PolicyId, Reason, make
from router.routing.policy import Ask, Policy
from router.routing.prefixes import Prefixes
from router.routing.prompt import chain
from router.routing.sticky import Sticky
from router.routing.ttft_model import TtftModel, features
from router.routing.turns import LeastOutstanding

MS = 1_000_000
S = 1_000_000_000


def host(host_id: int, busy: int = 0, slots: int = 8, *, usable: bool = True, tried: bool = False) -> Candidate:
    return host_id, busy, slots, usable, tried


def config_of(host_id: int, **keys: Any) -> HostConfig:
    return HostConfig(name=f"gpu-{host_id}", url="http://127.0.0.1:1", **keys)


def policy_of(hosts: dict[int, HostConfig] | None = None, **keys: Any) -> Policy:
    policy = make(
        RoutingConfig(**{"block_bytes": 256} | keys), hosts or {i: config_of(i) for i in range(1, 9)}, Random(1)
    )
    assert policy is not None
    return policy


def ask_of(text: str, now_ns: int = 0, session: bytes = b"") -> Ask:
    prompt = text.encode()
    return Ask(now_ns, len(prompt) // 4, chain(prompt, 256, 1024), session)


def serve(policy: Policy, host_id: int, ask: Ask, ttft_ns: int = 100 * MS) -> None:
    """Have a host answer a request whole."""
    policy.sent(host_id, ask)
    policy.first_token(host_id, ask, ttft_ns)
    policy.ended(host_id, ask)


def told(policy: Policy) -> dict[int, tuple[int, float]]:
    return {host_id: (reason, round(score, 3)) for host_id, reason, score in policy.verdicts()}


def test_the_default_makes_no_policy_at_all() -> None:
    assert make(RoutingConfig(), {}, Random(1)) is None


def test_smooth_weighted_round_robin_spreads_as_nginx_does() -> None:
    policy = policy_of(policy="weighted", weights={"gpu-1": 5})
    hosts = [host(1), host(2), host(3)]
    assert [policy.choose(hosts, Ask(0)) for _ in range(7)] == [0, 0, 1, 0, 2, 0, 0]
    assert told(policy) == {1: (Reason.CHOSEN, 7), 2: (Reason.NOT_ITS_TURN, 0), 3: (Reason.NOT_ITS_TURN, 0)}


def test_weights_of_a_model_stand_before_those_of_the_host_and_count_when_they_change() -> None:
    hosts = {1: config_of(1, weight=3), 2: config_of(2)}
    policy = policy_of(hosts, policy="weighted")
    free = [host(1), host(2)]
    assert [policy.choose(free, Ask(0)) for _ in range(4)].count(0) == 3
    hosts[1] = config_of(1, weight=1)
    assert [policy.choose(free, Ask(0)) for _ in range(4)].count(0) == 2


# ---------------------------------------------------------------- power of two choices
def p2c_with(times_ms: dict[int, int], now_ns: int = 0, decay_s: float = 10) -> Policy:
    policy = policy_of(policy="p2c_ewma", decay_s=decay_s)
    for host_id, ms in times_ms.items():
        policy.first_token(host_id, Ask(now_ns - ms * MS), ms * MS)
    return policy


def test_two_choices_compare_time_times_outstanding() -> None:
    policy = p2c_with({1: 100, 2: 40})
    assert policy.choose([host(1, 0), host(2, 1)], Ask(0)) == 1, "40 ms x 2 beats 100 ms x 1"
    assert told(policy) == {2: (Reason.CHOSEN, 0.08), 1: (Reason.SLOWER, 0.1)}
    assert policy.choose([host(1, 0), host(2, 2)], Ask(0)) == 0, "40 ms x 3 does not"


def test_a_peak_counts_at_once_and_sinks_with_time() -> None:
    policy = p2c_with({1: 50, 2: 60})
    free = [host(1), host(2)]
    assert policy.choose(free, Ask(0)) == 0
    policy.first_token(1, Ask(-1000 * MS), 1000 * MS)
    assert policy.choose(free, Ask(0)) == 1, "one slow answer is believed at once"
    policy.first_token(2, Ask(40 * S - 60 * MS), 60 * MS)
    assert policy.choose(free, Ask(40 * S)) == 0, "after four time constants it counts for less than 60 ms"


def test_only_two_are_drawn_and_the_others_are_told_so() -> None:
    policy = p2c_with(dict.fromkeys(range(1, 9), 50))
    policy.choose([host(i) for i in range(1, 9)], Ask(0))
    reasons = [reason for reason, _ in told(policy).values()]
    assert sorted(reasons) == [Reason.CHOSEN, Reason.SLOWER] + [Reason.NOT_DRAWN] * 6


@pytest.mark.parametrize("keys", [{"policy": "p2c_ewma"}, {"policy": "least_predicted_ttft", "samples_min": 3}])
def test_chance_is_that_of_the_generator_given(keys: dict[str, Any]) -> None:
    def choices_with(seed: int) -> list[int]:
        policy = make(RoutingConfig(explore=0.5, **keys), {}, Random(seed))
        assert policy is not None
        chosen = []
        for number in range(60):
            ask = Ask(number * S)
            chosen.append(policy.choose([host(i) for i in range(1, 9)], ask))
            serve(policy, chosen[-1] + 1, ask, 10 * MS * (chosen[-1] + 1))
        return chosen

    assert choices_with(1) == choices_with(1)
    assert choices_with(1) != choices_with(2)


def test_hosts_without_a_time_are_compared_by_load() -> None:
    policy = p2c_with({1: 10})
    assert policy.choose([host(1, 4), host(2, 1)], Ask(0)) == 1
    policy.first_token(2, Ask(0), 900 * MS)
    assert policy.choose([host(1, 4), host(2, 1)], Ask(0)) == 0
    policy.forget(2)
    assert policy.choose([host(1, 4), host(2, 1)], Ask(0)) == 1


# ---------------------------------------------------------------- the model of the time to the first token
def test_the_model_finds_what_the_time_is_made_of() -> None:
    random, model = Random(3), TtftModel()
    for _ in range(200):
        tokens, busy = random.randrange(8000), random.randrange(16)
        model.learn(features(tokens, busy), 0.020 + tokens * 0.0002 + busy * 0.004 + random.gauss(0, 0.001))
    for tokens, busy in ((0, 0), (4000, 4), (8000, 16)):
        assert model.predict(features(tokens, busy)) == pytest.approx(0.020 + tokens * 0.0002 + busy * 0.004, abs=0.01)


def test_one_stalled_request_does_not_bend_the_line() -> None:
    random, model = Random(4), TtftModel()
    for _ in range(100):
        tokens = random.randrange(4000)
        model.learn(features(tokens, 2), 0.05 + tokens * 0.0001 + random.gauss(0, 0.002))
    before = model.predict(features(2000, 2))
    model.learn(features(2000, 2), 60.0)
    assert model.predict(features(2000, 2)) < before * 1.2


def test_a_host_that_became_slow_is_believed_after_some_answers() -> None:
    model = TtftModel()
    for _ in range(100):
        model.learn(features(1000, 2), 0.1)
    for _ in range(25):
        model.learn(features(1000, 2), 2.0)
    assert model.predict(features(1000, 2)) > 1.0


def test_what_does_not_vary_is_not_learned_from_noise() -> None:
    """Prompts of nearly one length say nothing of how long others take: their noise must not become a slope."""
    model = TtftModel()
    for _ in range(5000):
        model.learn(features(1000, 2), 0.1)
    for number in range(30):
        model.learn(features(1000 + number % 2, 2), 0.1 + 0.01 * (number % 2))
    assert model.predict(features(1000, 2)) == pytest.approx(0.105, abs=0.01)
    assert 0 <= model.predict(features(9000, 2)) < 1
    assert model.predict(features(0, 0)) >= 0, "never a time before the request"


def learned(times_ms: dict[int, int], explore: float = 0.0) -> Policy:
    policy = policy_of(policy="least_predicted_ttft", samples_min=5, explore=explore)
    for host_id, ms in times_ms.items():
        for _ in range(5):
            ask = Ask(0, 400)
            policy.choose([host(host_id)], ask)
            serve(policy, host_id, ask, ms * MS)
    return policy


def test_the_shortest_time_foretold_is_chosen_and_kept_with_the_request() -> None:
    policy, ask = learned({1: 300, 2: 100}), Ask(0, 400)
    assert policy.choose([host(1), host(2, 6)], ask) == 1
    assert ask.predicted_ttft_ns == pytest.approx(100 * MS, rel=0.3)
    reasons = {host_id: reason for host_id, (reason, _) in told(policy).items()}
    assert reasons == {2: Reason.CHOSEN, 1: Reason.SLOWER}


def test_least_outstanding_decides_until_each_has_its_samples() -> None:
    policy, ask = learned({1: 10}), Ask(0, 400)
    assert policy.choose([host(1, 3), host(2, 2)], ask) == 1
    assert ask.predicted_ttft_ns == 0
    assert told(policy)[1] == (Reason.BUSIER, 0.375)


def test_what_a_host_has_to_read_and_what_it_holds_are_foretold() -> None:
    policy = policy_of(policy="least_predicted_ttft", samples_min=5, explore=0)
    for number in range(40):
        for host_id in (1, 2):
            ask = ask_of(f"{number} " + "x" * (256 * (number % 8 + 1)))
            policy.choose([host(host_id)], ask)
            serve(policy, host_id, ask, int((0.02 + ask.prompt_tokens * 0.001) * S))
    long = "y" * 4096
    serve(policy, 2, ask_of(long))
    assert policy.choose([host(1), host(2)], ask_of(long)) == 1, "it holds the prompt"
    policy.emptied(2)
    policy.sent(2, ask_of("z" * 4096))
    assert policy.choose([host(1), host(2)], ask_of(long)) == 0, "it has another one to read first, and holds nothing"


def test_a_slow_host_is_seen_again() -> None:
    policy = learned({1: 3000, 2: 50}, explore=0.1)
    chosen = []
    for number in range(200):
        ask = Ask(number * MS, 400)
        index = policy.choose([host(1), host(2)], ask)
        chosen.append(index)
        policy.sent(index + 1, ask)
        policy.ended(index + 1, ask)
    assert 5 <= chosen.count(0) <= 40


# ---------------------------------------------------------------- prefixes
SYSTEM = "You are a helpful assistant. " * 40


def test_a_chain_of_blocks_tells_where_two_prompts_part() -> None:
    one, other = chain(b"a" * 512 + b"b" * 512, 256, 100), chain(b"a" * 512 + b"c" * 512, 256, 100)
    assert one[:2] == other[:2]
    assert not set(one[2:]) & set(other[2:])
    assert one[2] != one[3], "equal blocks at different places differ"
    assert chain(b"a" * 255, 256, 100) == [], "what is left over is no block"
    assert len(chain(b"a" * 10_000, 256, 7)) == 7
    assert chain(memoryview(b"ab" * 300), 256, 9) == chain(b"ab" * 300, 256, 9)


def prefixes(tokens_max: int = 6400, keep_s: int = 600) -> Prefixes:
    return Prefixes(64, tokens_max, keep_s * S)


def test_the_longest_held_beginning_is_found() -> None:
    held = prefixes()
    held.sent(1, ask_of("s" * 2560))
    for shared in (0, 1, 4, 9, 10):
        ask = ask_of("s" * (256 * shared) + "t" * 2560)
        assert held.held_tokens(1, ask) == 64 * shared
    assert held.held_tokens(2, ask_of("s" * 2560)) == 0


def test_the_last_token_is_always_read() -> None:
    held = prefixes()
    held.sent(1, ask_of("s" * 2560))
    again = ask_of("s" * 2560)
    assert held.held_tokens(1, again) == 639
    held.sent(1, again)
    assert (again.held_tokens, again.new_tokens) == (639, 1)


def test_blocks_are_bounded_and_the_least_recently_used_go_first_from_their_ends() -> None:
    held = prefixes(tokens_max=640)
    held.sent(1, ask_of("a" * 1536))
    held.sent(1, ask_of("b" * 2048))
    assert held.block_count(1) == 10
    assert held.held_tokens(1, ask_of("b" * 2048 + "x" * 256)) == 512
    assert held.held_tokens(1, ask_of("a" * 1536 + "x" * 256)) == 128, "its end is gone, its beginning is not"
    for number in range(500):
        held.sent(1, ask_of(f"{number:03} " * 1000))
    assert held.block_count(1) == 10


def test_what_was_not_asked_for_again_is_not_counted_on() -> None:
    held = prefixes(keep_s=60)
    held.sent(1, ask_of(SYSTEM))
    assert held.held_tokens(1, ask_of(SYSTEM, 59 * S)) > 0
    assert held.held_tokens(1, ask_of(SYSTEM, 60 * S)) == 0


def test_what_is_to_be_read_is_taken_back_exactly_once() -> None:
    held, ask = prefixes(), ask_of("s" * 2560)
    held.sent(1, ask)
    assert held.reading_tokens(1) == 640
    held.read(ask)
    held.read(ask)
    assert held.reading_tokens(1) == 0
    held.sent(1, ask_of("t" * 2560))
    held.forget(1)
    held.read(ask)
    assert held.reading_tokens(1) == 0


def test_what_a_host_had_to_read_is_not_taken_from_the_next_one_of_its_id() -> None:
    held, before, after = prefixes(), ask_of("s" * 2560), ask_of("t" * 256)
    held.sent(1, before)
    held.forget(1)
    held.sent(1, after)
    held.read(before)
    assert held.reading_tokens(1) == 64, "that of the request that is there"
    held.read(after)
    assert held.reading_tokens(1) == 0


def test_a_conversation_stays_where_its_beginning_is() -> None:
    policy = policy_of(policy="prefix_affinity")
    free = [host(1), host(2), host(3)]
    talk = SYSTEM
    first = policy.choose(free, ask_of(talk))
    serve(policy, first + 1, ask_of(talk))
    for turn in range(5):
        talk += f"user: question {turn}. assistant: an answer of some length to it. " * 8
        ask = ask_of(talk, turn * S)
        assert policy.choose(free, ask) == first
        reason, share = told(policy)[first + 1]
        assert reason == Reason.CHOSEN
        assert share > 0.4
        serve(policy, first + 1, ask)
        assert ask.held_tokens > 0


def test_cold_prompts_are_spread() -> None:
    policy = policy_of(policy="prefix_affinity")
    chosen = []
    for number in range(30):
        ask = ask_of(f"{number} {SYSTEM}")
        index = policy.choose([host(1), host(2), host(3)], ask)
        chosen.append(index)
        serve(policy, index + 1, ask)
    assert [chosen.count(i) for i in range(3)] == [10, 10, 10]


def test_a_host_with_much_to_read_loses_even_what_it_holds() -> None:
    policy = policy_of(policy="prefix_affinity")
    serve(policy, 1, ask_of(SYSTEM))
    assert policy.choose([host(1), host(2)], ask_of(SYSTEM)) == 0
    policy.sent(1, ask_of("z" * 100_000))
    assert policy.choose([host(1, 1), host(2)], ask_of(SYSTEM)) == 1
    assert told(policy)[1][0] == Reason.FEWER_HELD


def test_the_load_bound_wins_over_everything() -> None:
    policy = policy_of(policy="prefix_affinity", load_bound=1.25, idle_share=0)
    serve(policy, 1, ask_of(SYSTEM))
    assert policy.choose([host(1, 5), host(2, 3)], ask_of(SYSTEM)) == 0, "5/8 is below 1.25 x 9/16"
    assert policy.choose([host(1, 6), host(2, 2)], ask_of(SYSTEM)) == 1, "6/8 is not"
    assert told(policy)[1] == (Reason.ABOVE_BOUND, pytest.approx(0.75 / (9 / 16), abs=1e-3))


def test_a_nearly_idle_host_is_not_above_the_bound() -> None:
    policy = policy_of(policy="prefix_affinity", idle_share=0.25)
    serve(policy, 1, ask_of(SYSTEM))
    assert policy.choose([host(1, 1), host(2, 0), host(3, 0)], ask_of(SYSTEM)) == 0


def test_a_further_attempt_is_told_what_its_own_host_holds_by_then() -> None:
    policy = policy_of(policy="prefix_affinity")
    ask = ask_of(SYSTEM)
    assert policy.choose([host(1), host(2)], ask) == 0
    policy.sent(1, ask)
    policy.ended(1, ask)
    serve(policy, 2, ask_of(SYSTEM))
    policy.sent(2, ask)  # as a session's host, which the policy was not asked about
    assert ask.held_tokens > 0


def test_a_host_that_was_emptied_or_is_gone_is_not_counted_on() -> None:
    for lose in (lambda p: p.emptied(1), lambda p: p.forget(1)):
        policy = policy_of(policy="prefix_affinity")
        serve(policy, 1, ask_of(SYSTEM))
        lose(policy)
        policy.choose([host(1), host(2)], ask_of(SYSTEM))
        assert {score for _, score in told(policy).values()} == {0.0}


# ---------------------------------------------------------------- sessions
def sticky(**keys: Any) -> Sticky:
    policy = policy_of(sticky="session_id", **keys)
    assert isinstance(policy, Sticky)
    return policy


def test_a_session_stays_and_moves_with_its_host() -> None:
    policy = sticky()
    ask = Ask(0, session=b"ann")
    assert policy.choose([host(1, 1), host(2, 0)], ask) == 1
    policy.sent(2, ask)
    assert policy.choose([host(1, 0), host(2, 1)], Ask(S, session=b"ann")) == 1, "it stays, though the other is idle"
    assert told(policy) == {2: (Reason.STICKY, 0.125), 1: (Reason.NOT_ITS_SESSION, 0.0)}
    assert policy.choose([host(1, 0), host(2, 1)], Ask(S, session=b"bob")) == 0
    moved = Ask(2 * S, session=b"ann")
    assert policy.choose([host(1, 0), host(2, 1, usable=False)], moved) == 0
    policy.sent(1, moved)
    assert policy.choose([host(1, 1), host(2, 0)], Ask(3 * S, session=b"ann")) == 0, "it has moved"


@pytest.mark.parametrize(
    "own", [host(2, 8), host(2, 7), host(2, 1, tried=True)], ids=["full", "above the bound", "failed it"]
)
def test_a_session_moves_when_its_host_is_no_good(own: Candidate) -> None:
    policy = sticky()
    policy.sent(2, Ask(0, session=b"ann"))
    assert policy.choose([host(1, 1), own], Ask(S, session=b"ann")) == 0


def test_sessions_are_bounded_and_forgotten_when_silent() -> None:
    policy = sticky(sessions_max=100, session_idle_s=60)
    for number in range(1000):
        policy.sent(1, Ask(0, session=b"%d" % number))
    assert policy.session_count() == 100
    assert policy.choose([host(1, 1), host(2)], Ask(59 * S, session=b"999")) == 0
    assert policy.choose([host(1, 1), host(2)], Ask(60 * S, session=b"999")) == 1
    for number in range(60):
        policy.sent(1, Ask(61 * S, session=b"new%d" % number))
    assert policy.session_count() == 60, "the silent ones went, two with each that came"


def test_a_session_is_not_kept_at_a_host_that_lost_it() -> None:
    policy = sticky()
    policy.sent(2, Ask(0, session=b"ann"))
    policy.emptied(2)
    assert policy.choose([host(1), host(2, 1)], Ask(S, session=b"ann")) == 0


def test_without_a_session_the_policy_decides() -> None:
    policy = sticky(policy="round_robin")
    assert [policy.choose([host(1), host(2)], Ask(0)) for _ in range(3)] == [0, 1, 0]
    assert policy.number == PolicyId.ROUND_ROBIN


# ---------------------------------------------------------------- orders
def choices(policy: Policy, rounds: Sequence[list[Candidate]]) -> list[int]:
    return [policy.choose(candidates, Ask(0)) for candidates in rounds]


def test_hosts_are_used_in_the_order_of_their_cost() -> None:
    hosts = {1: config_of(1, cost_per_hour=4.0), 2: config_of(2, cost_per_hour=1.0), 3: config_of(3, cost_per_hour=1.0)}
    policy = policy_of(hosts, order="cost")
    rounds = [[host(1), host(2, 5), host(3, 7)], [host(1), host(2, 8), host(3, 8)], [host(1), host(2, 8), host(3, 7)]]
    assert choices(policy, rounds) == [1, 0, 2]
    assert told(policy) == {3: (Reason.CHOSEN, 0.875), 1: (Reason.LATER_IN_ORDER, 4.0), 2: (Reason.FULL, 1.0)}


def test_a_host_without_a_priority_stands_where_it_is_in_the_file() -> None:
    hosts = {1: config_of(1), 2: config_of(2), 3: config_of(3, priority=0)}
    policy = policy_of(hosts, order="priority")
    rounds = [[host(1), host(2), host(3)], [host(1), host(2), host(3, 8)], [host(1, 8), host(2), host(3, usable=False)]]
    assert choices(policy, rounds) == [2, 0, 1]


def test_equal_ones_are_left_to_the_policy_and_a_session_wins_over_the_order() -> None:
    hosts = {i: config_of(i, priority=i // 2) for i in (1, 2, 3)}
    policy = policy_of(hosts, policy="round_robin", order="priority", sticky="user_id")
    free = [host(1), host(2), host(3)]
    assert choices(policy, [[host(1, 8), *free[1:]]] * 3) == [1, 2, 1]
    ask = Ask(0, session=b"ann")
    policy.sent(3, ask)
    assert policy.choose(free, ask) == 2


def test_a_wrapped_default_is_a_policy_of_its_own() -> None:
    policy = LeastOutstanding()
    assert choices(policy, [[host(1, 2), host(2, 1)], [host(1, 8), host(2, 8)]]) == [1, NO_HOST]
    assert told(policy) == {2: (Reason.CHOSEN, 0.125), 1: (Reason.BUSIER, 0.25)}
