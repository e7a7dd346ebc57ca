"""Another configuration while the router runs (SIGHUP): hosts come, go and drain, and no stream notices."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic_ns

import pytest

from tests.faults.client import Client
from tests.faults.stage import QUIET, SHORT_TICK, Stage, host_entry
from tests.support import scripted_host as sh
from tests.support.scripted_host import ScriptedHost, chunk

SLOW_START = "slow_start_s = 0\n"
BASE = QUIET + SLOW_START + SHORT_TICK
TAIL = sh.chunked(sh.STREAM)[3:]


class Reloaded:
    """A router whose file is written anew, with hosts a, b and c at hand."""

    def __init__(self, stage: Stage, hosts: dict[str, ScriptedHost]) -> None:
        self.stage = stage
        self.hosts = hosts

    def write(self, toml: str) -> None:
        """Write another file and have it read; wait until that is done, for better or worse."""
        before = self._count()
        path = self.stage.router.config_path
        begin = path.read_text(encoding="utf-8").partition("\n[health]")[0]
        path.write_text(f"{begin}\n{toml}", encoding="utf-8")
        self.stage.router.signal(signal.SIGHUP)
        self.stage.wait(lambda: self._count() > before, "the file is read")

    def _count(self) -> int:
        counted = self.stage.counter("config_reloads") + self.stage.counter("config_reload_errors")
        logged = len(self.log("configuration reloaded")) + len(self.log("configuration not reloaded"))
        return min(counted, logged)

    def entry(self, name: str, more: str = "", slots: int = 1) -> str:
        """Return the table of a host with further keys."""
        table, facts = host_entry(self.hosts[name], slots=slots).split("[hosts.facts]")
        return f"{table}{more}\n[hosts.facts]{facts}"

    def log(self, event: str) -> list[dict[str, object]]:
        """Return the lines of the router's log of one kind."""
        whole, _, _ = self.stage.router.log_text().rpartition("\n")  # of the last line a part may be there
        lines = (json.loads(line) for line in whole.splitlines() if line.startswith("{"))
        return [line for line in lines if line["event"] == event]

    def changes(self) -> list[str]:
        """Return what was logged as changed."""
        return [str(line["change"]) for line in self.log("configuration change")]

    def models(self) -> set[str]:
        """Return the models that the router lists."""
        client = self.stage.client()
        client.get("/v1/models")
        return {each["id"] for each in client.answer().json()["data"]}

    def ready(self) -> dict[str, str]:
        """Return how the router says that its hosts are."""
        client = self.stage.client()
        client.get("/ready")
        hosts: dict[str, str] = client.answer().json()["hosts"]
        return hosts

    def streams(self, name: str, model: str = "m", more: str = "") -> tuple[Client, sh.Gate]:
        """Begin a stream of which the first token is sent and the rest waits for a gate."""
        gate = self.stage.gate()
        self.hosts[name].script(sh.stream_head(), chunk(sh.ROLE), chunk(sh.token("one")), gate, *TAIL)
        client = self.stage.client()
        client.chat(model=model, more=more)
        gate.wait_reached()
        return client, gate

    def answered_by(self, model: str = "m") -> str:
        """Return which host answers a request now."""
        client = self.stage.client()
        client.chat(model=model, stream=False)
        answer = client.answer()
        return answer.headers["x-ringrouter-host"] if answer.status == 200 else str(answer.status)


@pytest.fixture
def router(directory: Path, request: pytest.FixtureRequest) -> Iterator[Reloaded]:
    with ExitStack() as stack:
        hosts = {name: stack.enter_context(ScriptedHost(name)) for name in "abc"}
        own = directory / f"{abs(hash(request.node.name))}"
        own.mkdir()
        reloaded = Reloaded(Stage(own, list(hosts.values()), BASE, models=["m"]), hosts)
        reloaded.stage.router._toml += reloaded.entry("a")
        with reloaded.stage:
            yield reloaded
            reloaded.stage.settle()


def test_a_host_that_comes_is_used_at_once(router: Reloaded) -> None:
    client, gate = router.streams("a")
    router.write(BASE + router.entry("a") + router.entry("b"))
    router.stage.wait(lambda: router.stage.counter("hosts_healthy") == 2, "the new host is probed")
    assert router.answered_by() == "b"
    assert router.changes() == ["hosts.b added"]
    gate.open()
    assert client.answer().text == "one two three"
    router.stage.finished(2)


def test_a_host_that_goes_ends_its_streams_first(router: Reloaded) -> None:
    client, gate = router.streams("a")
    router.write(BASE + router.entry("b"))
    router.stage.wait(lambda: router.stage.counter("hosts_healthy") == 1, "the new host is probed")
    assert router.answered_by() == "b"
    assert not router.log("host removed"), "a stream runs there"
    gate.open()
    assert client.answer().ended, "its stream has come to its proper end"
    records = router.stage.finished(2)
    assert [(record["host"], record["outcome"]) for record in records] == [("b", "ok"), ("a", "ok")]
    router.stage.wait(lambda: router.log("host removed"), "the host is gone")
    router.hosts["a"].wait(lambda: not router.hosts["a"].open_count, "its connections are closed")
    assert router.ready() == {"b": "healthy"}
    assert sorted(router.changes()) == ["hosts.a removed", "hosts.b added"]


def test_a_host_that_drains_gets_nothing_new_and_can_come_back(router: Reloaded) -> None:
    both = router.entry("a") + router.entry("b")
    router.write(BASE + both)
    router.stage.wait(lambda: router.stage.counter("hosts_healthy") == 2, "both are there")
    client, gate = router.streams("a", more="x-ringrouter-host: a\r\n")
    router.write(BASE + router.entry("a", "drain = true") + router.entry("b"))
    assert {router.answered_by() for _ in range(4)} == {"b"}
    assert router.ready() == {"a": "draining, 1 running", "b": "healthy"}
    gate.open()
    assert client.answer().ended
    router.stage.wait(lambda: router.log("host drained"), "it is drained")
    assert router.ready()["a"] == "drained"
    router.write(BASE + router.entry("a") + router.entry("b", "drain = true"))
    assert router.answered_by() == "a"
    router.write(BASE + both)
    assert router.ready() == {"a": "healthy", "b": "healthy"}
    router.stage.finished(6)


def test_what_runs_for_too_long_at_a_host_that_drains_is_broken_off(router: Reloaded) -> None:
    client, _ = router.streams("a")
    short = "[timeouts]\ndrain_s = 0.3\n"
    router.write(BASE + short + router.entry("a", "drain = true") + router.entry("b"))
    began_ns = monotonic_ns()
    error = client.answer().stream_error
    assert (error["code"], error["delivered_events"]) == ("host_drained", 1)
    assert monotonic_ns() - began_ns < router.stage.allowed_ns(600_000_000)
    (record,) = router.stage.finished(1)
    assert (record["error"], record["outcome"], record["n_content"]) == ("host_drained", "host_error", 1)
    assert router.hosts["a"].exchanges[0].wait_gone(), "the host is told in the same callback"


def test_what_has_not_begun_goes_on_elsewhere_when_its_host_is_drained(router: Reloaded) -> None:
    gate = router.stage.gate()
    router.hosts["a"].script(gate)
    client = router.stage.client()
    client.chat()
    gate.wait_reached()
    router.write(BASE + "[timeouts]\ndrain_s = 0.2\n" + router.entry("a", "drain = true") + router.entry("b"))
    answer = client.answer()
    assert (answer.status, answer.headers["x-ringrouter-host"], answer.text) == (200, "b", "one two three")
    (record,) = router.stage.finished(1)
    assert [(each["host"], each["error"]) for each in record["failed_attempts"]] == [("a", "host_drained")]


def test_more_slots_are_used_at_once(router: Reloaded) -> None:
    streams = [router.streams("a")]
    waiting = router.stage.client()
    waiting.chat()
    router.stage.wait_phase("waiting")
    router.write(BASE + router.entry("a", slots=2))
    answer = waiting.answer()
    assert (answer.status, answer.text) == (200, "one two three")
    assert router.changes() == ["hosts.a.slots: 1 -> 2"]
    streams[0][1].open()
    router.stage.finished(2)


def test_a_host_that_gets_a_model_takes_what_waits_for_it(router: Reloaded) -> None:
    other = router.entry("b").replace("['m']", "['other']")
    router.write(BASE + router.entry("a") + other)
    router.stage.wait(lambda: router.stage.counter("hosts_healthy") == 2, "both are there")
    _client, gate = router.streams("a")
    waiting = router.stage.client()
    waiting.chat()
    router.stage.wait_phase("waiting")
    router.write(BASE + router.entry("a") + router.entry("b").replace("['m']", "['other', 'm']"))
    assert waiting.answer().headers["x-ringrouter-host"] == "b"
    gate.open()
    router.stage.finished(2)


def test_a_host_with_another_address_is_another_host_under_the_same_name(router: Reloaded) -> None:
    _client, gate = router.streams("a")
    router.write(BASE + router.entry("a").replace(router.hosts["a"].url, router.hosts["b"].url))
    router.stage.wait(lambda: router.stage.counter("hosts_healthy") == 1, "the new one is probed")
    assert router.answered_by() == "a"
    assert len(router.hosts["b"].exchanges) == 1
    gate.open()
    records = router.stage.finished(2)
    assert [record["host"] for record in records] == ["a", "a"]


def test_a_model_that_no_host_has_any_more_is_unknown(router: Reloaded) -> None:
    _client, gate = router.streams("a")
    waiting = router.stage.client()
    waiting.chat()
    router.stage.wait_phase("waiting")
    router.write(BASE + router.entry("b").replace("'m'", "'other'"))
    answer = waiting.answer()
    assert (answer.status, answer.error["code"]) == (503, "no_host")
    assert "no host has 'm' any more" in answer.error["message"]
    assert router.answered_by() == "404"
    gate.open()
    assert router.stage.finished(2)[-1]["outcome"] == "ok", "what runs is not touched"
    router.write(BASE + router.entry("a"))
    router.stage.wait(lambda: "m" in router.models(), "the model is there again")


def test_a_host_that_comes_back_brings_back_its_model_while_others_wait(router: Reloaded) -> None:
    """Its model was forgotten: nobody else has it."""
    other = router.entry("b").replace("['m']", "['other']")
    router.write(BASE + router.entry("a", slots=2) + other)
    router.stage.wait(lambda: router.stage.counter("hosts_healthy") == 2, "both are there")
    _, gate = router.streams("a")
    _, gate_of_other = router.streams("b", model="other")
    waiting = router.stage.client()
    waiting.chat(model="other")
    router.stage.wait_phase("waiting")
    router.write(BASE + other)
    assert "m" not in router.models()
    router.write(BASE + router.entry("a", slots=2) + other)
    assert router.stage.counter("config_reloads") == 3
    assert "m" in router.models()
    gate.open()
    gate_of_other.open()
    assert waiting.answer().status == 200
    assert router.answered_by() == "a"
    router.stage.finished(4)


def test_a_host_of_another_kind_still_works_on_what_runs_there(router: Reloaded) -> None:
    _client, gate = router.streams("a")
    router.write(BASE + router.entry("a").replace('kind = "openai"', 'kind = "vllm"'))
    assert router.changes() == ['hosts.a.kind: "openai" -> "vllm"']
    waiting = router.stage.client()
    waiting.chat()
    router.stage.wait_phase("waiting")
    assert len(router.hosts["a"].exchanges) == 1, "its one slot is taken"
    gate.open()
    assert waiting.answer().status == 200
    router.stage.finished(2)


def test_the_place_in_the_file_is_the_priority_also_of_hosts_that_came_later(router: Reloaded) -> None:
    order = '[models.m.routing]\norder = "priority"\n'
    router.write(BASE + order + router.entry("b", slots=4) + router.entry("a", slots=4))
    router.stage.wait(lambda: router.stage.counter("hosts_healthy") == 2, "both are there")
    assert [router.answered_by() for _ in range(3)] == ["b", "b", "b"]
    router.write(BASE + order + router.entry("a", slots=4) + router.entry("b", slots=4))
    assert [router.answered_by() for _ in range(3)] == ["a", "a", "a"]
    router.stage.finished(6)
    router.write(BASE + router.entry("a"))  # scores of the check at the end are shares of slots


def test_what_a_host_is_is_logged_once_however_often_it_is_asked(router: Reloaded) -> None:
    router.hosts["c"].health_status = 500
    router.write(BASE + router.entry("a") + router.entry("c"))
    router.hosts["c"].wait(lambda: router.hosts["c"].probe_count >= 4, "it is probed again and again")
    assert [line["host"] for line in router.log("host probed")] == ["a", "c"]


def test_limits_time_outs_and_names_change_live(router: Reloaded) -> None:
    more = '[models.m]\naliases = ["alias"]\n[models.m.timeouts]\nqueue_s = 1.5\n[limits]\nwaiting = 1\n'
    router.write(BASE + more + router.entry("a"))
    _client, gate = router.streams("a", model="alias")
    first, second = router.stage.client(), router.stage.client()
    first.chat()
    router.stage.wait_phase("waiting")
    second.chat()
    assert second.answer().status == 429
    assert first.answer().error["code"] == "queue_timeout"
    gate.open()
    router.stage.finished(3)


BAD_FILES = {
    "hosts[0].slots = 0: expected a whole number between 1 and 65_536": "slots = 0",
    'models.m.fallback[0] = "m": expected a chain without a loop, this one is m -> m': '[models.m]\nfallback = ["m"]',
    "not TOML": "[",
}


@pytest.mark.parametrize(("reason", "bad"), BAD_FILES.items(), ids=["value", "loop", "syntax"])
def test_a_bad_file_changes_nothing_and_is_named_in_one_line(router: Reloaded, reason: str, bad: str) -> None:
    _client, gate = router.streams("a")
    entry = router.entry("a")
    text = entry.replace("slots = 1", bad) if bad.startswith("slots") else f"{entry}{bad}\n"
    router.write(BASE + "[limits]\nwaiting = 0\n" + text)
    assert router.stage.counter("config_reload_errors") == 1
    assert router.stage.counter("config_reloads") == 0
    (line,) = router.log("configuration not reloaded")
    assert reason in str(line["reason"])
    waiting = router.stage.client()
    waiting.chat()
    router.stage.wait_phase("waiting")
    gate.open()
    assert waiting.answer().status == 200
    router.stage.finished(2)


def test_what_needs_a_restart_is_said_and_everything_else_taken_over(router: Reloaded) -> None:
    more = "[rings]\ntokens = 2048\n[limits]\nin_flight = 7\nwaiting = 9\n"
    router.write(BASE + more + router.entry("a"))
    needing = {str(line["change"]) for line in router.log("configuration change needs a restart")}
    assert needing == {"rings.tokens: 262144 -> 2048", "limits.in_flight: 4096 -> 7"}
    assert router.changes() == ["limits.waiting: 1024 -> 9"]
    assert router.answered_by() == "a"
    router.stage.finished(1)


def test_the_same_file_again_changes_nothing(router: Reloaded) -> None:
    _client, gate = router.streams("a")
    for _ in range(3):
        router.write(BASE + router.entry("a"))
    assert router.changes() == []
    assert router.stage.counter("config_reloads") == 3
    gate.open()
    router.stage.finished(1)


def test_many_signals_at_once_end_with_the_last_file(router: Reloaded) -> None:
    for _ in range(20):
        router.stage.router.signal(signal.SIGHUP)
    router.write(BASE + "[limits]\nwaiting = 3\n" + router.entry("a"))
    router.stage.wait(lambda: "limits.waiting: 1024 -> 3" in router.changes(), "the last file counts")
    assert router.answered_by() == "a"
    router.stage.finished(1)


def test_hosts_are_told_of_traces_from_the_reload_on_that_exports_them(router: Reloaded) -> None:
    def told() -> str | None:
        router.answered_by()
        return router.hosts["a"].exchanges[-1].headers.get("traceparent")

    entry = router.entry("a").replace("[hosts.facts]", "[hosts.facts]\ntrace_headers = true")
    exported = '[observer.traces]\nendpoint = "http://key:canary@127.0.0.1:9/v1/traces"\nsample_ratio = 1.0\n'
    router.write(BASE + entry)
    assert told() is None
    router.write(BASE + exported + entry)
    traceparent = told()
    assert traceparent is not None
    assert traceparent.startswith("00-")
    assert traceparent.endswith("-01")
    router.write(BASE + entry)
    assert told() is None
    assert "canary" not in router.stage.router.log_text(), "the address of a collector may hold a secret"
    router.stage.finished(3)
