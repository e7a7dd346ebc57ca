"""Keys at the HTTP port of a router: who is refused and how, what a key may use, and how exact its limits are."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from router.client import Client, RouterError
from router.keys.tokens import new_token
from tests.faults.client import Answer
from tests.faults.keyed import KeyedStage, key_table
from tests.faults.stage import QUIET, SHORT_TICK, host_entry
from tests.support import scripted_host as sh
from tests.support.processes import host_toml
from tests.support.scripted_host import ScriptedHost, chunk
from tests.support.waiting import free_port, wait_until

NAMES = ("ci", "ops", "viewer", "small", "tagged", "slow", "pair", "thrifty", "anthropic")
TOKENS = {name: new_token() for name in NAMES}
TAIL = sh.chunked(sh.STREAM)[3:]
KEYS = (
    key_table("ci", TOKENS["ci"])
    + key_table("ops", TOKENS["ops"], role='"operator"')
    + key_table("viewer", TOKENS["viewer"], role='"read-only"')
    + key_table("small", TOKENS["small"], models='["tiny*"]')
    + key_table(
        "tagged",
        TOKENS["tagged"],
        tags='{ feature_name = "forced", user_id = "team" }',
        tags_default='{ channel = "default", prompt_version = "v1" }',
    )
    + key_table("slow", TOKENS["slow"], requests_per_minute="5")
    + key_table("pair", TOKENS["pair"], in_flight="2")
    + key_table("thrifty", TOKENS["thrifty"], tokens_per_minute="25")
    + key_table("anthropic", TOKENS["anthropic"])
)


@pytest.fixture(scope="module")
def running_stage(directory: Path) -> Iterator[KeyedStage]:
    with ExitStack() as stack:
        host = stack.enter_context(ScriptedHost("a", models=["m", "tiny-1"]))
        other = stack.enter_context(ScriptedHost("b", models=["other"]))
        cache = "[cache.responses]\nenabled = true\n"
        toml = QUIET + SHORT_TICK + cache + host_entry(host, slots=16) + host_entry(other) + KEYS
        yield stack.enter_context(KeyedStage(directory, [host, other], toml, models=["m"]))


def ask(stage: KeyedStage, token: str, **fields: Any) -> Answer:
    client = stage.client(token)
    client.chat(stream=False, **fields)
    return client.answer()


# ---------------------------------------------------------------- who is refused
@pytest.mark.parametrize(
    "head",
    [
        "",
        f"authorization: Bearer {new_token()}\r\n",
        "authorization: Bearer \r\n",
        f"authorization: Basic {TOKENS['ci']}\r\n",
        f"authorization: Bearer {TOKENS['ci']}x\r\n",
        f"authorization: Bearer {TOKENS['ci'][:-1]}\r\n",
        f"authorization: Bearer {'r' * 5000}\r\n",
        "x-api-key: nonsense\r\n",
    ],
    ids=["none", "unknown", "empty", "basic", "longer", "shorter", "far too long", "another header"],
)
def test_without_a_key_nothing_is_told(stage: KeyedStage, head: str) -> None:
    before = stage.counter("keys_refused")
    client = stage.client("")
    for path in ("/v1/models", "/v1/models/m", "/metrics", "/v1/nothing"):
        client.send(f"GET {path} HTTP/1.1\r\nhost: t\r\n{head}\r\n".encode())
        answer = client.answer()
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert set(answer.json()) == {"error"}
    client.chat(more=head)
    assert client.answer().status == 401
    assert stage.counter("keys_refused") == before + 5
    assert not stage.hosts[0].running_count
    client.get("/health")
    assert client.answer().json() == {"status": "ok"}, "the connection stays usable, and balancers need no key"
    client.get("/ready")
    assert client.answer().json() == {"status": "ready"}, "without names of hosts"


def test_a_body_is_not_collected_for_nobody(stage: KeyedStage) -> None:
    client = stage.client("")
    client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\ncontent-length: 30000000\r\n\r\n")
    answer = client.answer()
    assert (answer.status, answer.headers["connection"]) == (401, "close")
    chunked = stage.client("")
    chunked.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n")
    assert chunked.answer().status == 401
    waiting = stage.client("")
    waiting.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n")
    answer = waiting.answer()
    assert (answer.status, answer.interim) == (401, [])


@pytest.mark.parametrize("framing", ["content-length: 30000000", "transfer-encoding: chunked"])
@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_what_is_open_to_all_takes_no_body(stage: KeyedStage, path: str, framing: str) -> None:
    client = stage.client("")
    client.send(f"GET {path} HTTP/1.1\r\nhost: t\r\n{framing}\r\n\r\n".encode())
    assert client.answer().status == 401
    empty = stage.client("")
    empty.send(f"GET {path} HTTP/1.1\r\nhost: t\r\ncontent-length: 0\r\n\r\n".encode())
    assert empty.answer().status == 200


def test_other_dialects_refuse_in_their_words(stage: KeyedStage) -> None:
    client = stage.client("")
    client.post({"model": "m", "messages": [], "max_tokens": 1}, "/v1/messages")
    answer = client.answer()
    assert answer.status == 401
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("head", ["authorization: bearer {}", "AUTHORIZATION: Bearer  {}", "x-api-key: {}"])
def test_a_key_can_be_shown_in_the_usual_ways(stage: KeyedStage, head: str) -> None:
    client = stage.client("")
    client.chat(stream=False, more=head.format(TOKENS["anthropic"]) + "\r\n")
    assert client.answer().status == 200
    record = stage.last_finished()
    assert record["key"] == "anthropic"


def test_the_host_does_not_get_the_key(stage: KeyedStage) -> None:
    assert ask(stage, TOKENS["ci"]).status == 200
    assert TOKENS["ci"] not in str(stage.hosts[0].exchanges[-1].headers)
    stage.last_finished()


# ---------------------------------------------------------------- roles and models
def test_roles(stage: KeyedStage) -> None:
    answer = ask(stage, TOKENS["viewer"])
    assert (answer.status, answer.error["code"], answer.error["type"]) == (403, "forbidden", "permission_error")
    assert "viewer" in answer.error["message"]
    viewer, plain = stage.client(TOKENS["viewer"]), stage.client(TOKENS["ci"])
    viewer.get("/ready")
    assert viewer.answer().json()["hosts"] == {"a": "healthy", "b": "healthy"}
    plain.get("/ready")
    assert "hosts" not in plain.answer().json()
    assert ask(stage, TOKENS["ops"]).status == 200
    stage.last_finished()


def test_a_key_sees_and_uses_its_models_only(stage: KeyedStage) -> None:
    client = stage.client(TOKENS["small"])
    client.get("/v1/models")
    assert [each["id"] for each in client.answer().json()["data"]] == ["tiny-1"]
    client.get("/v1/models/m")
    answer = client.answer()
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    client.get("/v1/models/tiny-1")
    assert client.answer().json()["id"] == "tiny-1"
    assert ask(stage, TOKENS["small"], model="tiny-1").status == 200
    answer = ask(stage, TOKENS["small"], model="m")
    assert (answer.status, answer.error["param"]) == (403, "model")
    answer = ask(stage, TOKENS["small"], model="nothing")
    assert answer.status == 404
    assert "tiny-1" not in answer.error["message"]
    assert "(models:" not in answer.error["message"]
    stage.last_finished()


@pytest.mark.parametrize("name", ["Model", "MODEL", "mod\\u0045l"])
def test_a_model_cannot_be_named_twice(stage: KeyedStage, name: str) -> None:
    """Ollama takes the last of all spellings: what the router has checked must be what the host reads."""
    body = f'{{"model": "tiny-1", "messages": [], "stream": false, "{name}": "m"}}'.encode()
    before = len(stage.hosts[0].exchanges)
    for token, status in (("small", 400), ("ci", 200)):
        client = stage.client("")
        length = f"content-length: {len(body)}\r\nauthorization: Bearer {TOKENS[token]}\r\n\r\n"
        client.send(f"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\n{length}".encode() + body)
        answer = client.answer()
        assert (answer.status, answer.status == 200 or answer.error["param"]) == (status, status == 200 or "model")
    assert len(stage.hosts[0].exchanges) == before + 1
    stage.last_finished()


def test_errors_do_not_name_models_of_others(stage: KeyedStage) -> None:
    for more, status in (("", 400), ("x-ringrouter-model: nothing\r\n", 404)):
        client = stage.client("")
        client.post({"content": "x"}, "/v1/responses", more=f"authorization: Bearer {TOKENS['small']}\r\n{more}")
        answer = client.answer()
        assert answer.status == status
        assert "m," not in answer.error["message"]
        assert "tiny-1" not in answer.error["message"]


def test_kept_answers_are_of_one_key(stage: KeyedStage) -> None:
    """docs/caches.md: holders of different keys never see each other's answers."""
    on = "x-ringrouter-cache: on\r\n"
    found = [
        ask(stage, TOKENS[name], temperature=0, seed=7, more=on).headers["x-ringrouter-cache"]
        for name in ("ci", "ops", "ci", "ops")
    ]
    assert found == ["miss", "miss", "hit", "hit"]
    stage.finished(4)


def test_tags_of_a_key(stage: KeyedStage) -> None:
    client = stage.client(TOKENS["tagged"])
    client.chat(
        stream=False,
        more="".join(f"x-ringrouter-tag-{name}: mine\r\n" for name in ("feature-name", "user_id", "channel")),
        user="someone",
    )
    assert client.answer().status == 200
    record = stage.last_finished()
    assert record["tags"]["feature_name"] == "forced"
    assert record["user_id"] == "team"
    assert record["tags"]["channel"] == "mine"
    assert record["tags"]["prompt_version"] == "v1"


# ---------------------------------------------------------------- limits
def test_requests_a_minute_hold_exactly_for_clients_at_once(stage: KeyedStage) -> None:
    clients = [stage.client(TOKENS["slow"]) for _ in range(12)]
    for client in clients:
        client.chat(stream=False)
    answers = [client.answer() for client in clients]
    assert Counter(answer.status for answer in answers) == {200: 5, 429: 7}
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.error["code"] == "rate_limit_exceeded"
    assert 58 <= int(refused.headers["retry-after"]) <= 60
    assert stage.counter("keys_limited") >= 7
    stage.finished(5)


def test_in_flight_holds_exactly_and_is_freed_by_every_end(stage: KeyedStage) -> None:
    gates = [stage.gate() for _ in range(2)]
    for gate in gates:
        stage.hosts[0].script(sh.stream_head(), chunk(sh.ROLE), chunk(sh.token("one")), gate, *TAIL)
    running = [stage.client(TOKENS["pair"]) for _ in range(2)]
    for client, gate in zip(running, gates, strict=True):
        client.chat()
        gate.wait_reached()
    assert [ask(stage, TOKENS["pair"]).status for _ in range(3)] == [429] * 3
    gates[0].open()
    assert running[0].answer().ended
    assert ask(stage, TOKENS["pair"]).status == 200
    running[1].close()
    stage.wait(lambda: len(stage.in_flight()) == 0, "the client that left is gone")
    assert [ask(stage, TOKENS["pair"]).status for _ in range(3)] == [200] * 3
    stage.hosts[0].script(sh.answer(400, b'{"error": "no"}'))
    assert ask(stage, TOKENS["pair"]).status == 400
    assert ask(stage, TOKENS["pair"], model="none").status == 404
    assert ask(stage, TOKENS["pair"]).status == 200
    stage.finished(8)


def test_tokens_are_counted_when_an_answer_ends(stage: KeyedStage) -> None:
    gate = stage.gate()
    stage.hosts[0].script(sh.stream_head(), chunk(sh.ROLE), chunk(sh.token("one")), gate, *TAIL)
    stream = stage.client(TOKENS["thrifty"])
    stream.chat()
    gate.wait_reached()
    statuses = [ask(stage, TOKENS["thrifty"]).status for _ in range(4)]
    assert statuses == [200, 200, 200, 429], "10 tokens each, and 25 are the limit"
    gate.open()
    assert stream.answer().ended
    refused = ask(stage, TOKENS["thrifty"])
    assert refused.status == 429
    assert "40 tokens" in refused.error["message"]
    assert 59 <= int(refused.headers["retry-after"]) <= 62
    stage.finished(4)


# ---------------------------------------------------------------- another configuration
def reload(stage: KeyedStage, toml: str) -> None:
    before = stage.counter("config_reloads") + stage.counter("config_reload_errors")
    path = stage.router.config_path
    path.write_text(toml, encoding="utf-8")
    stage.router.signal(signal.SIGHUP)
    stage.wait(
        lambda: stage.counter("config_reloads") + stage.counter("config_reload_errors") > before, "the file is read"
    )


def test_keys_come_and_go_with_a_reload(stage: KeyedStage) -> None:
    before = stage.router.config_path.read_text(encoding="utf-8")
    gate = stage.gate()
    stage.hosts[0].script(sh.stream_head(), chunk(sh.ROLE), chunk(sh.token("one")), gate, *TAIL)
    kept = stage.client(TOKENS["pair"])
    kept.chat()
    gate.wait_reached()
    same = stage.client(TOKENS["ci"])
    same.chat(stream=False)
    assert same.answer().status == 200
    fresh = new_token()
    changed = before.replace(key_table("ci", TOKENS["ci"]), key_table("new", fresh)).replace(
        "in_flight = 2", "in_flight = 1"
    )
    assert changed != before
    reload(stage, changed)
    same.chat(stream=False)
    assert same.answer().status == 401, "on the same connection, with the same head"
    assert ask(stage, fresh).status == 200
    assert ask(stage, TOKENS["pair"]).status == 429, "what runs counts"
    reload(stage, before.replace('name = "pair"', 'name = "pair"\nrole = "god"'))
    assert ask(stage, fresh).status == 200, "a bad file changes nothing"
    reload(stage, before)
    same.chat(stream=False)
    assert same.answer().status == 200
    gate.open()
    assert kept.answer().ended
    stage.finished(5)


# ---------------------------------------------------------------- what must not be told
def test_no_key_is_in_a_log_or_in_shared_memory(stage: KeyedStage) -> None:
    wrong = new_token()
    assert ask(stage, TOKENS["ci"]).status == 200
    assert ask(stage, wrong).status == 401
    stage.last_finished()
    stage.wait(lambda: "client refused" in stage.router.log_text(), "the refusal is logged")
    files = [path for path in stage.router.run_dir.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) > 5
    for token in (TOKENS["ci"], wrong):
        assert token not in stage.router.log_text()
        for path in files:
            assert token.encode() not in path.read_bytes(), path


def test_what_the_router_has_no_room_for_does_not_count(directory: Path) -> None:
    own = directory / "full"
    own.mkdir()
    with ScriptedHost("a") as host:
        toml = "[limits]\nin_flight = 1\n" + QUIET + SHORT_TICK + host_entry(host)
        with KeyedStage(own, [host], toml + key_table("ci", TOKENS["ci"], requests_per_minute="2")) as stage:
            gate = stage.gate()
            host.script(sh.stream_head(), chunk(sh.ROLE), chunk(sh.token("one")), gate, *TAIL)
            running = stage.client(TOKENS["ci"])
            running.chat()
            gate.wait_reached()
            assert [ask(stage, TOKENS["ci"]).error["code"] for _ in range(3)] == ["overloaded"] * 3
            gate.open()
            assert running.answer().ended
            assert ask(stage, TOKENS["ci"]).status == 200
            assert ask(stage, TOKENS["ci"]).error["code"] == "rate_limit_exceeded"
            for client in stage._clients:
                client.close()


# ---------------------------------------------------------------- names of hosts
@pytest.mark.parametrize(("host", "model"), [("nowhere", "m"), ("b", "m")])
def test_only_an_operator_is_told_which_hosts_there_are(stage: KeyedStage, host: str, model: str) -> None:
    told = {}
    for name in ("ci", "ops"):
        client = stage.client(TOKENS[name])
        client.chat(model=model, more=f"x-ringrouter-host: {host}\r\n")
        answer = client.answer()
        assert (answer.status, answer.error["param"]) == (400, "x-ringrouter-host")
        told[name] = answer.error["message"]
    assert told["ci"] == "x-ringrouter-host: no host of this name can answer the request"
    assert "(hosts" in told["ops"]
    assert " a" in told["ops"]


def test_only_a_key_that_may_look_is_told_how_hosts_are(directory: Path) -> None:
    own = directory / "absent"
    own.mkdir()
    toml = "[cache.embeddings]\nenabled = true\n" + QUIET + SHORT_TICK
    absent = host_toml("gone", f"http://127.0.0.1:{free_port()}", models=["elsewhere (far)"])
    keys = key_table("ci", TOKENS["ci"]) + key_table("ops", TOKENS["ops"], role='"operator"')
    with ScriptedHost("a") as host:
        stage = KeyedStage(own, [host], toml + host_entry(host) + absent + keys)
        stage.router._wait = False  # one model has no host that can serve
        told, kept = _told_and_kept(stage)
    assert told["ci"] == ["no host can serve 'elsewhere (far)' now"] * 3
    assert len(told["ops"]) == 3
    for text in told["ops"] + kept:
        assert text.startswith("no host can serve 'elsewhere (far)' now (gone: ")


def _told_and_kept(stage: KeyedStage) -> tuple[dict[str, list[str]], list[str]]:
    """Return what each key is told, and the messages of all done records; the cache's calls have records too."""
    with stage:
        wait_until(lambda: stage.counter("hosts_healthy") == 1, "one of two hosts is there")
        told = {name: _no_host_texts(stage, TOKENS[name]) for name in ("ci", "ops")}
        kept = [record["message"] for record in stage.finished(8)]
        for client in stage._clients:
            client.close()
    return told, kept


def _no_host_texts(stage: KeyedStage, token: str) -> list[str]:
    """Return what a client with a key is told over HTTP, through the cache of embeddings, and over ZeroMQ."""
    model = "elsewhere (far)"
    answers = [ask(stage, token, model=model)]
    client = stage.client(token)
    body = {"model": model, "input": "a text"}
    client.post(body, "/v1/embeddings", more=f"authorization: Bearer {token}\r\n")
    answers.append(client.answer())
    assert [(answer.status, answer.error["code"]) for answer in answers] == [(503, "no_host")] * 2
    with Client(stage.zeromq_endpoint, key=token) as zeromq, pytest.raises(RouterError) as caught:
        zeromq.ask(model, "hi")
    assert (caught.value.status, caught.value.code) == (503, "no_host")
    return [*(answer.error["message"] for answer in answers), caught.value.message]
