"""Messages that are not of the protocol: a coded error or a counted drop, and nobody else's stream is touched.

Beside each test a stream of another client is under way, which must come to its end whole.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.client import chat_body
from tests.faults.stage import QUIET, SHORT_TICK, Stage, host_entry
from tests.faults.zeromq_client import Answer, ZeromqClient, cut, pack
from tests.support import scripted_host as sh
from tests.support.scripted_host import ScriptedHost, chunk
from tests.support.waiting import wait_until

BODY_BYTES = 100_000
CONNECTIONS = 100
MIB = 1 << 20
HEADER_BYTES_MAX = 16 * 1024
TOKENS = [sh.token(f"t{i}") for i in range(20)]
BODY = json.dumps(chat_body()).encode()
GOOD = {"v": 1, "verb": "chat", "id": "bad"}


@pytest.fixture(scope="module")
def host() -> Iterator[ScriptedHost]:
    with ScriptedHost("alpha", models=("m", "other")) as host:
        yield host


@pytest.fixture(scope="module")
def healthy_host() -> Iterator[ScriptedHost]:
    with ScriptedHost("beta", models=("healthy",)) as host:
        yield host


@pytest.fixture(scope="module")
def running_stage(directory: Path, host: ScriptedHost, healthy_host: ScriptedHost) -> Iterator[Stage]:
    toml = (
        f'{QUIET}{SHORT_TICK}[limits]\nbody_bytes = {BODY_BYTES}\nconnections = {CONNECTIONS}\n[tags]\nown = ["team"]\n'
        "[timeouts]\nidle_s = 600\n"  # a stream stands still beside all that hypothesis tries
    )
    with Stage(directory, [host, healthy_host], toml + host_entry(host) + host_entry(healthy_host)) as stage:
        yield stage


@pytest.fixture(autouse=True)
def stream_beside(stage: Stage, healthy_host: ScriptedHost) -> Iterator[None]:
    """A stream of another client that must be whole."""
    gate = stage.gate()
    healthy_host.script(
        sh.stream_head(), *map(chunk, TOKENS[:10]), gate, *map(chunk, TOKENS[10:]), chunk(sh.FINISH), sh.LAST_CHUNK
    )
    other = stage.zeromq_client()
    answer = other.chat("bad", "healthy")
    other.wait_events(answer, 10)
    yield
    gate.open()
    other.finish(answer)
    assert answer.data == b"".join(TOKENS) + sh.FINISH
    assert answer.done["status"] == 200
    assert not other.others, "nothing of what others did wrong comes here"


@pytest.fixture
def client(stage: Stage) -> ZeromqClient:
    return stage.zeromq_client()


# ------------------------------------------------------------------ ids
def test_an_id_that_is_in_use_is_refused_and_its_request_goes_on(
    stage: Stage, host: ScriptedHost, client: ZeromqClient
) -> None:
    gate = stage.gate()
    host.script(
        sh.stream_head(), *map(chunk, TOKENS[:5]), gate, *map(chunk, TOKENS[5:]), chunk(sh.FINISH), sh.LAST_CHUNK
    )
    answer = client.chat("1")
    client.wait_events(answer, 5)
    for verb, body in (("chat", BODY), ("embeddings", b'{"model":"m","input":"a"}'), ("chat", b"not JSON")):
        client.say(verb, body, id="1")
        refused = client.next_other()
        assert (refused.id, refused.error["code"]) == ("", "duplicate_request"), "not to be taken for its end"
        assert (refused.facts["status"], refused.error["param"]) == (409, "1")
    client.say("chat", BODY, id="1", credit=0)
    refused = client.next_other()
    assert (refused.id, refused.error["code"]) == ("", "bad_message"), "not to be taken for its end"
    gate.open()
    client.finish(answer)
    assert answer.data == b"".join(TOKENS) + sh.FINISH
    again = client.finish(client.chat("1"))
    assert again.done["events"] == 5, "behind its end an id is free"
    stage.finished(2)


def test_ids_of_two_clients_have_nothing_to_do_with_each_other(stage: Stage) -> None:
    first, second = stage.zeromq_client(), stage.zeromq_client()
    answers = [client.chat("same") for client in (first, second)]
    first.finish()
    second.finish()
    assert all(answer.done["events"] == 5 for answer in answers)
    stage.finished(2)


# ------------------------------------------------------------------ bodies
BODIES: dict[str, tuple[str, bytes, str, str | None, int]] = {
    "none": ("chat", b"", "bad_request", None, 400),
    "not JSON": ("chat", b"hello", "bad_request", None, 400),
    "half of it": ("chat", BODY[:-5], "bad_request", None, 400),
    "a list": ("chat", b"[]", "bad_request", None, 400),
    "not UTF-8": ("chat", b'{"model":"\xff"}', "bad_request", None, 400),
    "deep nesting": ("chat", b'{"model":"m","messages":' + b"[" * 20_000, "bad_request", None, 400),
    "no model": ("chat", b'{"messages":[]}', "bad_request", "model", 400),
    "a model that is a number": ("chat", b'{"model":1,"messages":[]}', "bad_request", "model", 400),
    "no messages": ("chat", b'{"model":"m"}', "bad_request", "messages", 400),
    "no prompt": ("completion", b'{"model":"m"}', "bad_request", "prompt", 400),
    "no input": ("embeddings", b'{"model":"m"}', "bad_request", "input", 400),
    "stream as text": ("chat", b'{"model":"m","messages":[],"stream":"yes"}', "bad_request", "stream", 400),
    "a model that nobody has": ("chat", b'{"model":"gpt","messages":[]}', "model_not_found", "model", 404),
    "one byte too many": ("chat", BODY + b" " * (BODY_BYTES + 1 - len(BODY)), "body_too_large", None, 413),
    "1 MiB too many": ("chat", BODY + b" " * (BODY_BYTES + MIB - len(BODY)), "body_too_large", None, 413),
}
PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions", "embeddings": "/v1/embeddings"}


@pytest.mark.parametrize(("verb", "body", "code", "param", "status"), BODIES.values(), ids=BODIES.keys())
def test_a_body_that_is_wrong_has_the_error_of_the_http_api(
    stage: Stage, client: ZeromqClient, verb: str, body: bytes, code: str, param: str | None, status: int
) -> None:
    answer = client.finish(client.ask("1", body, verb))
    assert (answer.error["code"], answer.error["param"]) == (code, param)
    assert answer.end is not None
    assert answer.end.facts == {"status": status, "retry_after_s": 0, "events": 0}
    assert answer.request_seq < 0, "what is refused was not accepted"
    if code != "body_too_large":
        http = stage.client()
        http.post(body, PATHS[verb])
        over_http = http.answer()
        assert (over_http.status, over_http.error) == (status, answer.error)


def test_a_body_of_the_greatest_size_is_taken(stage: Stage, client: ZeromqClient) -> None:
    answer = client.finish(client.ask("1", BODY + b" " * (BODY_BYTES - len(BODY))))
    assert answer.done["events"] == 5
    stage.finished(1)


def test_no_body_frame_is_an_empty_body(stage: Stage, client: ZeromqClient) -> None:
    answer = client.answers["1"] = Answer("1")
    client.say("chat", id="1")
    client.finish(answer)
    assert answer.error["code"] == "bad_request"
    assert "empty" in answer.error["message"]


def test_a_body_far_too_large_ends_the_connection(stage: Stage, host: ScriptedHost, client: ZeromqClient) -> None:
    """libzmq closes it before the router has the message; what the client had running ends. It connects anew."""
    gate = stage.gate()
    host.script(sh.stream_head(), *map(chunk, TOKENS[:5]), gate, sh.LAST_CHUNK)
    answer = client.chat("1")
    client.wait_events(answer, 5)
    client.say("chat", b"x" * (BODY_BYTES + MIB + 4096), id="2")
    host.exchanges[-1].wait_gone()
    assert stage.last_finished()["outcome"] == "client_gone"
    fresh = stage.zeromq_client()
    assert fresh.ping().id == "ping"


# ------------------------------------------------------------------ tags
def test_tag_values_are_cut_and_unknown_tags_ignored(stage: Stage, client: ZeromqClient) -> None:
    before = stage.counter("tags_cut")
    tags = {
        "feature_name": "x" * 1000,
        "team": "blue",
        "no_such_tag": "y",
        "": "z",
        "session_id": "s" * 1000,
        "a\r\n": "b",
    }
    client.finish(client.chat(keys={"tags": tags}))
    record = stage.last_finished()
    assert record["tags"]["feature_name"] == "x" * 64
    assert record["tags"]["team"] == "blue"
    assert record["session_id"] == "s" * 64
    assert stage.counter("tags_cut") > before


def test_a_tag_never_changes_what_the_router_knows(stage: Stage, client: ZeromqClient) -> None:
    client.finish(client.chat("real", keys={"tags": {"request_id": "forged", "model_name": "forged"}}))
    record = stage.last_finished()
    assert (record["request_id"], record["model"]) == ("real", "m")


# ------------------------------------------------------------------ anything
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.lists(st.binary(max_size=200), min_size=1, max_size=6))
def test_any_frames_are_answered_or_counted(stage: Stage, client: ZeromqClient, frames: list[bytes]) -> None:
    before = stage.counter("zeromq_bad")
    client.send(*frames)
    assert client.next_other().error["code"] == "bad_message"
    assert stage.counter("zeromq_bad") == before + 1


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from(["v", "verb", "id", "credit", "tags", "traceparent", "grants", "other"])
VERBS = st.sampled_from(["chat", "completion", "embeddings", "cancel", "credit", "ping"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(verb=VERBS, more=st.dictionaries(KEYS, VALUES, max_size=3), body=st.none() | st.binary(max_size=50))
def test_any_header_is_answered_or_counted(
    stage: Stage, client: ZeromqClient, verb: str, more: dict[str, Any], body: bytes | None
) -> None:
    """Each message counts as bad, as dropped, or is answered; the router is there afterwards."""
    header = pack({"v": 1, "verb": verb, "id": "fuzz", **more})
    client.send(*([header] if body is None else [header, body]))
    client.say("ping", id="behind")
    while True:
        message = client.next_other()
        if (message.type, message.id) == ("pong", "behind"):
            break
        assert message.type in {"error", "pong"}, message


def test_raw_bytes_on_the_socket_file(stage: Stage) -> None:
    path = stage.zeromq_endpoint.removeprefix("ipc://")
    greeting = b"\xff" + bytes(8) + b"\x7f\x03"
    for data in (
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        Random(5).randbytes(5000),
        b"\xff" * 100,
        greeting,
        greeting + b"\xff" * 1000,
    ):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(path)
            raw.settimeout(20)
            try:
                raw.sendall(data)
                raw.shutdown(socket.SHUT_WR)
                while raw.recv(4096):
                    pass
            except (BrokenPipeError, ConnectionResetError):
                pass
    assert stage.zeromq_client().ping()


def test_hundreds_of_clients_that_come_and_go(stage: Stage, host: ScriptedHost) -> None:
    steady = stage.zeromq_client()
    gate = stage.gate()
    host.script(sh.stream_head(), *map(chunk, TOKENS), gate, chunk(sh.FINISH), sh.LAST_CHUNK)
    answer = steady.chat()
    gate.wait_reached()
    for index in range(300):
        with ZeromqClient(stage.zeromq_endpoint) as passing:
            if index % 3 == 0:
                passing.ping()
            elif index % 3 == 1:
                passing.send(b"\xc1")
    gate.open()
    steady.finish(answer)
    assert answer.data == b"".join(TOKENS) + sh.FINISH
    stage.finished(1)


def test_of_two_clients_with_one_routing_id_the_second_is_not_heard(stage: Stage) -> None:
    first = stage.zeromq_client(routing_id=b"same")
    first.ping()
    second = stage.zeromq_client(routing_id=b"same")
    second.say("ping", id="second")
    for _ in range(20):
        first.ping()
    assert not second.has_more()


def test_connections_beyond_the_limit_are_ended(stage: Stage) -> None:
    """libzmq aborts the process when it has no descriptor left for a connection: it must not come so far."""
    path = stage.zeromq_endpoint.removeprefix("ipc://")
    before = stage.counter("connections_refused")
    raw = [socket.socket(socket.AF_UNIX) for _ in range(3 * CONNECTIONS)]
    try:
        for each in raw:
            each.connect(path)
            each.settimeout(20)
        stage.wait_counter("connections_refused", before + len(raw) - CONNECTIONS)
        ended = 0
        for each in raw[-CONNECTIONS:]:
            while data := each.recv(4096):
                assert data.startswith(b"\xff"), "a greeting at most"
            ended += 1
        assert ended == CONNECTIONS, "those who are told see the end of the connection"
    finally:
        for each in raw:
            each.close()
    stage.forget_refused(stage.counter("connections_refused") - before)
    wait_until(lambda: pings(stage), "there is room again")


def pings(stage: Stage) -> bool:
    with ZeromqClient(stage.zeromq_endpoint) as client:
        client.say("ping", id="1")
        return client.has_more(0.2)


def test_every_message_is_of_the_documented_form(stage: Stage) -> None:
    """The smallest possible client sees arrays of version, type and id."""
    dealer = zmq.Context.instance().socket(zmq.DEALER)
    dealer.connect(stage.zeromq_endpoint)
    try:
        dealer.send_multipart([msgspec.msgpack.encode({"v": 1, "verb": "chat", "id": "7"}), BODY])
        types = []
        while types[-1:] != ["done"]:
            assert dealer.poll(20_000)
            types.append(cut(dealer.recv_multipart()).type)
    finally:
        dealer.close(0)
    assert types[0] == "accepted"
    assert set(types[1:-1]) == {"events"}
    stage.finished(1)
