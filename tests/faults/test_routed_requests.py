"""Each routing policy between real sockets: who gets a request, what its record says, and a host that was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from router import cli
from tests.faults.client import Client
from tests.faults.stage import QUIET, SHORT_TICK, Stage, host_entry
from tests.support import scripted_host as sh
from tests.support.scripted_host import End, Gate, ScriptedHost

SLOT_COUNT = 4
POLICIES = {
    "plain": "",
    "turns": 'policy = "round_robin"',
    "weights": 'policy = "weighted"\nweights = { alpha = 3 }',
    "pairs": 'policy = "p2c_ewma"',
    "foretold": 'policy = "least_predicted_ttft"\nsamples_min = 3\nexplore = 0.0',
    "prefix": 'policy = "prefix_affinity"\nblock_bytes = 512\nload_bound = 1.25\nidle_share = 0.25',
    "talks": 'sticky = "session_id"',
    "keyed": 'policy = "round_robin"\nsticky = "header:x-conversation"',
    "cheap": 'order = "cost"',
}
NUMBERS = {
    "plain": "least_outstanding",
    "turns": "round_robin",
    "weights": "weighted",
    "pairs": "p2c_ewma",
    "foretold": "least_predicted_ttft",
    "prefix": "prefix_affinity",
    "talks": "least_outstanding",
    "keyed": "round_robin",
    "cheap": "least_outstanding",
}
SYSTEM = {"role": "system", "content": "You are a helpful assistant. " * 60}
PIN = "x-ringrouter-host: {}\r\n".format


@pytest.fixture(scope="module")
def alpha() -> Iterator[ScriptedHost]:
    with ScriptedHost("alpha", models=tuple(POLICIES)) as host:
        yield host


@pytest.fixture(scope="module")
def beta() -> Iterator[ScriptedHost]:
    with ScriptedHost("beta", models=(*POLICIES, "own", "spare")) as host:
        yield host


@pytest.fixture(scope="module")
def gone() -> Iterator[ScriptedHost]:
    with ScriptedHost("gone", models=("spare",)) as host:
        yield host


@pytest.fixture(scope="module")
def running_stage(directory: Path, alpha: ScriptedHost, beta: ScriptedHost, gone: ScriptedHost) -> Iterator[Stage]:
    routing = "".join(f"[models.{model}.routing]\n{keys}\n" for model, keys in POLICIES.items())
    hosts = (
        host_entry(alpha, slots=SLOT_COUNT, cost_per_hour=1.0)
        + host_entry(beta, slots=SLOT_COUNT, cost_per_hour=9.0)
        + host_entry(gone, slots=SLOT_COUNT, drain=True)
    )
    with Stage(directory, [alpha, beta, gone], f"{QUIET}{SHORT_TICK}{routing}{hosts}", models=["plain"]) as stage:
        yield stage


def ask(stage: Stage, model: str, more: str = "", **fields: Any) -> str:
    """Have one request answered; return the name of the host that did."""
    client = stage.client()
    client.chat(model=model, more=more, **fields)
    answer = client.answer()
    assert answer.status == 200, answer.body
    assert answer.ended
    client.close()
    return answer.headers["x-ringrouter-host"]


def hold(stage: Stage, host: ScriptedHost, count: int, model: str, more: str = "", **fields: Any) -> list[Gate]:
    """Have a host work on so many requests until their gates open."""
    gates = []
    for _ in range(count):
        gate = stage.gate()
        host.script(gate, *sh.chunked(sh.STREAM))
        stage.client().chat(model=model, more=more or PIN(host.name), **fields)
        gate.wait_reached()
        gates.append(gate)
    return gates


def let_go(stage: Stage, gates: Sequence[Gate]) -> None:
    for gate in gates:
        gate.open()
    stage.wait(lambda: not stage.in_flight(), "all are answered")


def reasons(record: dict[str, Any]) -> dict[str, str]:
    return {candidate["host"]: candidate["reason"] for candidate in record["candidates"]}


@pytest.mark.parametrize("model", POLICIES)
def test_the_record_names_the_policy_and_says_something_of_each_host(stage: Stage, model: str) -> None:
    host = ask(stage, model)
    record = stage.last_finished()
    assert record["policy"] == NUMBERS[model]
    assert record["candidates"][0]["host"] == host == record["host"]
    assert set(reasons(record)) == {"alpha", "beta"}
    assert reasons(record)[host] == "chosen"


def test_round_robin_and_weights_are_exact(stage: Stage) -> None:
    first = ask(stage, "turns")
    rest = [ask(stage, "turns") for _ in range(5)]
    assert rest == [{"alpha": "beta", "beta": "alpha"}[first], first] * 2 + [{"alpha": "beta", "beta": "alpha"}[first]]
    assert [ask(stage, "weights") for _ in range(8)].count("alpha") == 6


def test_the_slower_host_is_found_out(stage: Stage, alpha: ScriptedHost, beta: ScriptedHost) -> None:
    for model in ("foretold", "pairs"):
        for host, seconds in ((alpha, 0.08), (beta, 0.0)) * 4:
            if seconds:
                host.script(seconds, *sh.chunked(sh.STREAM))
            assert ask(stage, model, PIN(host.name)) == host.name
        assert {ask(stage, model) for _ in range(4)} == {"beta"}, model
    record = stage.finished(24)[11]
    assert record["model"] == "foretold"
    assert reasons(record) == {"beta": "chosen", "alpha": "slower"}
    assert 0 < record["predicted_ttft_us"] < 60_000
    assert record["candidates"][1]["score"] > 0.04, "seconds are foretold of the slow one"


def test_a_conversation_stays_and_new_ones_are_spread(stage: Stage) -> None:
    talks: dict[str, list[dict[str, str]]] = {name: [{"role": "user", "content": name * 400}] for name in "abcdef"}
    homes = {name: ask(stage, "prefix", messages=talk) for name, talk in talks.items()}
    assert sorted(homes.values()) == ["alpha"] * 3 + ["beta"] * 3
    for turn in range(3):
        for name, talk in talks.items():
            talk += [{"role": "assistant", "content": "one two three"}, {"role": "user", "content": f"{turn}" * 900}]
            assert ask(stage, "prefix", messages=talk) == homes[name], (name, turn)
    record = stage.finished(24)[-1]
    assert record["prefix_tokens"] == 512, "four blocks"
    assert record["candidates"][0]["score"] > 0.5
    assert reasons(record)[record["host"]] == "chosen"


def test_a_popular_beginning_goes_elsewhere_above_the_bound(
    stage: Stage, alpha: ScriptedHost, beta: ScriptedHost
) -> None:
    messages = [SYSTEM, {"role": "user", "content": "hello"}]
    home = ask(stage, "prefix", messages=messages)
    assert ask(stage, "prefix", messages=messages) == home
    host = alpha if home == "alpha" else beta
    gates = hold(stage, host, 3, "plain")
    other = ask(stage, "prefix", messages=messages)
    assert other != home
    let_go(stage, gates)
    record = next(each for each in stage.finished(6) if each["model"] == "prefix" and each["host"] == other)
    assert reasons(record) == {other: "chosen", home: "above_bound"}
    assert record["candidates"][1]["score"] == pytest.approx(0.75 / 0.5), "three of four slots, the mean is a half"


@pytest.mark.parametrize("tag", ["x-ringrouter-tag-session-id: {}\r\n", "metadata"])
def test_a_session_stays_where_it_is(stage: Stage, alpha: ScriptedHost, beta: ScriptedHost, tag: str) -> None:
    def of(session: str) -> dict[str, Any]:
        return {"metadata": {"session_id": session}} if tag == "metadata" else {"more": tag.format(session)}

    home = ask(stage, "talks", **of(f"ann-{tag[:4]}"))
    host = alpha if home == "alpha" else beta
    gates = hold(stage, host, 1, "plain")
    assert ask(stage, "talks", **of(f"ann-{tag[:4]}")) == home, "though the other host is idle"
    assert reasons(next(r for r in stage.finished(2)[1:] if r["model"] == "talks"))[home] == "sticky"
    assert ask(stage, "talks", **of(f"bob-{tag[:4]}")) != home
    host.script(End.CLOSE)
    host.script(End.CLOSE)
    host.script(End.CLOSE)
    moved = ask(stage, "talks", **of(f"ann-{tag[:4]}"))
    host.forget_scripts()
    assert moved != home, "it was tried elsewhere"
    assert ask(stage, "talks", **of(f"ann-{tag[:4]}")) == moved, "and has moved"
    let_go(stage, gates)


def test_a_session_by_a_header_of_the_users_own(stage: Stage) -> None:
    homes = {name: ask(stage, "keyed", f"x-conversation: {name}\r\n") for name in "abcd"}
    assert sorted(homes.values()) == ["alpha"] * 2 + ["beta"] * 2, "without a session yet in turns"
    assert {name: ask(stage, "keyed", f"x-conversation: {name}\r\n") for name in "abcd"} == homes


def test_cheap_hosts_first(stage: Stage, alpha: ScriptedHost) -> None:
    assert [ask(stage, "cheap") for _ in range(3)] == ["alpha"] * 3
    gates = hold(stage, alpha, SLOT_COUNT, "plain")
    assert ask(stage, "cheap") == "beta", "only when the cheap one is full"
    let_go(stage, gates)
    assert ask(stage, "cheap") == "alpha"
    record = stage.finished(4 + SLOT_COUNT + 1)[-1]
    assert reasons(record) == {"alpha": "chosen", "beta": "later_in_order"}
    assert record["candidates"][1]["score"] == 9.0


@pytest.mark.parametrize("model", POLICIES)
def test_what_failed_before_leaves_no_trace_of_load(stage: Stage, alpha: ScriptedHost, model: str) -> None:
    """Attempts that fail are told to the policy as those that succeed: nothing stays counted as being read."""
    for number in range(3):
        alpha.script(End.RESET)
        alpha.script(End.RESET)
        alpha.script(End.RESET)
        ask(stage, model, messages=[{"role": "user", "content": f"{number}" * 30_000}])
        alpha.forget_scripts()
    homes = [ask(stage, model, messages=[{"role": "user", "content": f"{n} new " * 600}]) for n in range(8)]
    if model in {"turns", "prefix", "plain", "talks", "keyed"}:
        assert 3 <= homes.count("alpha") <= 5, homes


def test_whole_answers_leave_no_trace_of_load(stage: Stage, alpha: ScriptedHost) -> None:
    """They have no first token to tell of: what their hosts had to read is read when they end."""
    for number in range(3):
        alpha.script(sh.json_answer(200, sh.PLAIN))
        ask(stage, "prefix", PIN("alpha"), stream=False, messages=[{"role": "user", "content": f"{number}w" * 30_000}])
    homes = [ask(stage, "prefix", messages=[{"role": "user", "content": f"{n} whole " * 600}]) for n in range(6)]
    assert homes.count("alpha") == 3, homes


# ---------------------------------------------------------------- a host by name
@pytest.mark.parametrize("model", ["plain", "turns", "talks", "cheap"])
def test_a_pinned_request_goes_there_and_nowhere_else(stage: Stage, model: str) -> None:
    assert [ask(stage, model, PIN("beta")) for _ in range(3)] == ["beta"] * 3
    assert [reasons(record) for record in stage.finished(3)] == [{"beta": "pinned"}] * 3


def test_it_waits_for_its_own_host_while_others_pass(stage: Stage, beta: ScriptedHost) -> None:
    gates = hold(stage, beta, SLOT_COUNT, "plain")
    waiting = stage.client()
    waiting.chat(model="plain", more=PIN("beta"))
    stage.wait_phase("waiting")
    assert ask(stage, "plain") == "alpha", "who waits for beta is not in the way of who can have alpha"
    gates.pop().open()
    assert waiting.answer().headers["x-ringrouter-host"] == "beta"
    let_go(stage, gates)


def test_a_host_that_cannot_serve_now_is_a_503_that_names_it(stage: Stage) -> None:
    assert ask(stage, "spare") == "beta"
    assert reasons(stage.last_finished()) == {"beta": "chosen", "gone": "draining"}
    client = stage.client()
    client.chat(model="spare", more=PIN("gone"))
    answer = client.answer()
    assert answer.status == 503
    assert answer.error["code"] == "no_host"
    assert "(gone: " in answer.error["message"]
    assert "beta" not in answer.error["message"], "only the host that was asked for is in question"


def test_its_failure_is_not_tried_elsewhere(stage: Stage, alpha: ScriptedHost, beta: ScriptedHost) -> None:
    error = {"error": {"message": "busy", "type": "server_error", "param": None, "code": 503}}
    beta.script(sh.json_answer(503, error))
    seen = len(alpha.exchanges)
    client = stage.client()
    client.chat(model="plain", more=PIN("beta"))
    assert client.answer().status == 503
    assert len(alpha.exchanges) == seen


@pytest.mark.parametrize(
    ("model", "name", "parts"),
    [
        ("plain", "gamma", ("x-ringrouter-host: 'gamma' is not a host here", "hosts: alpha, beta")),
        ("own", "alpha", ("host 'alpha' does not have model 'own'", "hosts that have it: beta")),
        ("plain", "x" * 300, ("x" * 100 + "' is not a host",)),
    ],
)
def test_a_host_that_never_can_is_a_bad_request(stage: Stage, model: str, name: str, parts: Sequence[str]) -> None:
    client = stage.client()
    client.chat(model=model, more=PIN(name))
    answer = client.answer()
    assert answer.status == 400
    assert answer.error["param"] == "x-ringrouter-host"
    for part in parts:
        assert part in answer.error["message"]
    client.chat(model="plain")
    assert client.answer().status == 200, "the connection is still good"


def test_a_zeromq_client_names_its_host(stage: Stage) -> None:
    client = stage.zeromq_client()
    asked = client.chat("q1", model="plain", keys={"host": "beta"})
    assert client.finish(asked).done["host"] == "beta"
    refused = client.chat("q2", model="plain", keys={"host": "gamma"})
    client.finish(refused)
    assert refused.error["code"] == "bad_request"
    assert "'gamma' is not a host here" in refused.error["message"]


def test_what_was_decided_is_explained(stage: Stage, beta: ScriptedHost, capsys: pytest.CaptureFixture[str]) -> None:
    def explained() -> list[str]:
        directory = stage.router.instance_dir.parent
        assert cli.main(["explain", "why-1", "--run-dir", str(directory)]) == 0
        return capsys.readouterr().out.splitlines()

    gates = hold(stage, beta, 1, "plain", PIN("beta") + "x-request-id: why-1\r\n")
    assert any(line.startswith("outcome    in flight: ") for line in explained())
    let_go(stage, gates)
    stage.finished(1)
    lines = explained()
    assert lines[0].startswith("request why-1 of plain at ")
    assert lines[1].startswith("outcome    ok after ")
    at = lines.index("policy     least_outstanding")
    assert (
        lines[at + 1]
        == "  beta  chosen, because the client asked for it: 0% of its slots busy; 0 other requests ran there"
    )


def test_heads_that_differ_in_the_host_alone_are_kept_apart(stage: Stage) -> None:
    """What a head says is kept with heads that repeat."""
    client: Client = stage.client()
    answered = []
    for name in ("alpha", "beta", "alpha", "beta"):
        client.chat(model="plain", more=PIN(name))
        answered.append(client.answer().headers["x-ringrouter-host"])
    assert answered == ["alpha", "beta", "alpha", "beta"]
