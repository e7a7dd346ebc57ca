"""System prompts sent ahead: to each host that has the model, when it starts, recovers or the prompt changes, and never
to one that is busy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.stage import QUIET, SHORT_TICK, Stage, host_entry
from tests.support import published as pub
from tests.support import scripted_host as sh
from tests.support.scripted_host import Exchange, ScriptedHost
from tests.support.waiting import shared_memory_directory, wait_until

WARM = '[[cache.warm]]\nname = "support"\nmodel = "m"\nfile = "/nowhere"\n'
TOOLS = '[[cache.tools.sources]]\nname = "weather"\nfile = "/nowhere.json"\n'


class Stand:
    """A router and its hosts, and what was sent ahead to each."""

    def __init__(self, directory: Path, toml: str = QUIET) -> None:
        self.directory = directory
        self._toml = toml
        self.hosts = [ScriptedHost("alpha"), ScriptedHost("beta"), ScriptedHost("other", models=("n",))]
        for host in self.hosts:
            host.__enter__()

    def begin(self, *prompts: Any) -> Stage:
        (self.directory / "run").mkdir(exist_ok=True)
        pub.publish_prompts(self.directory / "run", *prompts)
        pub.publish_tools(self.directory / "run", pub.tools(pub.tool("weather.now")))
        toml = self._toml + SHORT_TICK + TOOLS + WARM + "".join(host_entry(host) for host in self.hosts)
        stage = Stage(self.directory, self.hosts, toml, models=["m"])
        stage.__enter__()
        return stage

    def end(self, stage: Stage | None) -> None:
        if stage is not None:
            stage.__exit__(None, None, None)
        for host in self.hosts:
            host.__exit__()


@pytest.fixture
def stand() -> Iterator[Stand]:
    with shared_memory_directory() as directory:
        yield Stand(directory)


def sent_to(host: ScriptedHost) -> list[Exchange]:
    """Return what was sent ahead to a host."""
    return [each for each in host.exchanges if each.json()["messages"][0]["role"] == "system"]


def texts(host: ScriptedHost) -> list[str]:
    return [each.json()["messages"][0]["content"] for each in sent_to(host)]


def test_each_host_of_the_model_gets_it_once_with_its_tools_and_one_token_to_make(stand: Stand) -> None:
    stage = None
    try:
        stage = stand.begin(pub.prompt("support", "You help.", tools=["weather.*"]), pub.prompt("sales", "You sell."))
        alpha, beta, other = stand.hosts
        stage.wait_counter("warm_sent", 4)
        wait_until(lambda: len(sent_to(alpha)) + len(sent_to(beta)) == 4, "they have come")
        assert sorted(texts(alpha)) == sorted(texts(beta)) == ["You help.", "You sell."]
        assert not other.exchanges, "it has another model"
        body = next(each for each in sent_to(alpha) if each.json()["messages"][0]["content"] == "You help.").json()
        assert (body["max_tokens"], body["temperature"], body["model"]) == (1, 0, "m")
        assert [entry["function"]["name"] for entry in body["tools"]] == ["weather__now"]
        records = stage.finished(4)
        assert {record["outcome"] for record in records} == {"ok"}
        assert {record["tags"]["workload_class"] for record in records} == {"warm"}
        assert {record["tags"]["feature_name"] for record in records} == {"support", "sales"}
        assert {record["tags"]["prompt_version"] for record in records} == {"7"}
        assert sorted(record["host"] for record in records) == ["alpha", "alpha", "beta", "beta"]
    finally:
        stand.end(stage)


def test_a_changed_prompt_goes_out_again_and_only_that_one(stand: Stand) -> None:
    stage = None
    try:
        first = pub.prompt("support", "You help.")
        stage = stand.begin(first, pub.prompt("sales", "You sell."))
        stage.wait_counter("warm_sent", 4)
        pub.publish_prompts(stage.router.run_dir, first, pub.prompt("sales", "You sell more."))
        stage.wait_counter("warm_sent", 6)
        for host in stand.hosts[:2]:
            host.wait(lambda host=host: "You sell more." in texts(host), "the new one")
            assert sorted(texts(host)) == ["You help.", "You sell more.", "You sell."]
    finally:
        stand.end(stage)


def test_a_host_that_runs_something_is_left_alone_until_it_does_not(stand: Stand) -> None:
    stage = None
    try:
        stage = stand.begin()
        alpha, beta, _ = stand.hosts
        gates = []
        for host in (alpha, beta):
            gates.append(stage.gate())
            host.script(sh.stream_head(), sh.chunk(sh.ROLE), sh.chunk(sh.TOKENS[0]), gates[-1],
                        *(sh.chunk(each) for each in (sh.FINISH, sh.DONE)), sh.LAST_CHUNK)  # fmt: skip
        clients = [stage.client(), stage.client()]
        for client in clients:
            client.chat()
            client.read_events(1)
        pub.publish_prompts(stage.router.run_dir, pub.prompt("support", "You help."))
        for count in range(2, 4):  # each is seen in another round of what is done each second
            pub.publish_tools(stage.router.run_dir, pub.tools(*(pub.tool(f"weather.t{i}") for i in range(count))))
            wait_until(lambda count=count: stage.counter("tools") == count, "the next round")
        assert stage.counter("warm_sent") == 0
        gates[0].open()
        alpha.wait(lambda: texts(alpha) == ["You help."], "the one that is idle has it")
        assert texts(beta) == []
        gates[1].open()
        stage.wait_counter("warm_sent", 2)
    finally:
        stand.end(stage)


def test_a_host_that_recovers_gets_it_again(stand: Stand) -> None:
    stand._toml = "[health]\ninterval_s = 0.1\nfail_after = 1\n"
    stage = None
    try:
        stage = stand.begin(pub.prompt("support", "You help."))
        stage.wait_counter("warm_sent", 2)
        alpha = stand.hosts[0]
        alpha.health_status = 503
        wait_until(lambda: stage.counter("hosts_healthy") == 2, "it is seen to be ill")
        alpha.health_status = 200
        stage.wait_counter("warm_sent", 3)
        alpha.wait(lambda: len(sent_to(alpha)) == 2, "it has it again")
        assert len(sent_to(stand.hosts[1])) == 1
    finally:
        stand.end(stage)


def test_an_idle_host_is_kept_warm(stand: Stand) -> None:
    stage = None
    try:
        stage = stand.begin(pub.prompt("support", "You help.", keep_s=0.5))
        stage.wait_counter("warm_sent", 6)
    finally:
        stand.end(stage)


def test_a_host_that_does_not_take_it_is_noted_and_serves_on(stand: Stand) -> None:
    stage = None
    try:
        for host in stand.hosts[:2]:
            host.script(sh.json_answer(400, {"error": {"message": "too long"}}))
        stage = stand.begin(pub.prompt("support", "You help."))
        stage.wait_counter("warm_failed", 2)
        wait_until(lambda: "too long" in stage.router.log_text(), "the log says so")
        client = stage.client()
        client.chat()
        assert client.answer().status == 200
    finally:
        stand.end(stage)
