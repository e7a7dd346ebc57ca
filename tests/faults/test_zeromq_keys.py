"""Keys and CURVE over ZeroMQ: who comes in, who is refused in the handshake, and what a message may."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec
import pytest
import zmq

from router import cli
from router.client import AsyncClient, Client, NotConnected, RouterError
from router.keys.tokens import new_token
from tests.faults.keyed import SETTLER, KeyedStage, key_table
from tests.faults.stage import QUIET, SHORT_TICK, host_entry
from tests.support.scripted_host import ScriptedHost
from tests.support.waiting import free_port, wait_until

TOKEN = new_token()
TWO = new_token()


class Keys:
    """CURVE keys in files: of the router, of a client that is known, and of one that is not."""

    def __init__(self, directory: Path) -> None:
        self.files = {name: directory / f"{name}.key" for name in ("router", "known", "stranger")}
        for file in self.files.values():
            assert cli.main(["keys", "curve", str(file)]) == 0
        self.public = {name: self._read(file) for name, file in self.files.items()}

    @staticmethod
    def _read(file: Path) -> str:
        line = next(line for line in file.read_text().splitlines() if line.startswith("public"))
        return line.partition('"')[2].rstrip('"')


@pytest.fixture(scope="module")
def keys(directory: Path) -> Keys:
    return Keys(directory)


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def running_stage(directory: Path, keys: Keys, port: int) -> Iterator[KeyedStage]:
    with ExitStack() as stack:
        host = stack.enter_context(ScriptedHost("a", models=["m", "tiny"]))
        listen = (
            f'zeromq = ["ipc", "tcp://127.0.0.1:{port}"]\ncurve_key_file = "{keys.files["router"]}"\n'
            'unix_users = ["65534"]\n'
        )
        toml = (
            QUIET
            + SHORT_TICK
            + host_entry(host)
            + key_table("ci", TOKEN, models='["m"]')
            + key_table("two", TWO, requests_per_minute="2")
            + key_table("remote", curve=f'"{keys.public["known"]}"', tags='{ feature_name = "far" }')
        )
        stage = KeyedStage(directory, [host], toml, models=["m"])
        stage.router._toml = stage.router._toml.replace("[listen]\n", f"[listen]\n{listen}", 1)
        yield stack.enter_context(stage)


def curve_client(keys: Keys, port: int, name: str = "known", server: str = "router", timeout_s: float = 5.0) -> Client:
    return Client(
        f"tcp://127.0.0.1:{port}",
        connect_timeout_s=timeout_s,
        server_key=keys.public[server],
        curve_key_file=keys.files[name],
    )


# ---------------------------------------------------------------- a key in the header
def test_a_message_without_a_key_is_refused(stage: KeyedStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RINGROUTER_KEY", raising=False)
    before = stage.counter("keys_refused")
    for key in ("", new_token()):
        with Client(stage.zeromq_endpoint, key=key) as client:
            for ask in (lambda: client.ask("m", "hi"), client.models, client.ping):
                with pytest.raises(RouterError) as caught:
                    ask()
                assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert stage.counter("keys_refused") == before + 6
    assert not stage.hosts[0].running_count


def test_a_key_opens_what_it_may(stage: KeyedStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGROUTER_KEY", TOKEN)
    with Client(stage.zeromq_endpoint) as client:
        assert client.ask("m", "hi") == "one two three"
        assert client.models() == ["m"]
        with pytest.raises(RouterError) as caught:
            client.ask("tiny", "hi")
        assert (caught.value.status, caught.value.code) == (403, "forbidden")
    assert stage.last_finished()["key"] == "ci"


def test_limits_hold_over_zeromq_too(stage: KeyedStage) -> None:
    with Client(stage.zeromq_endpoint, key=TWO) as client:
        streams = [client.chat("m", "hi") for _ in range(5)]
        assert [stream.answer() for stream in streams[:2]] == ["one two three"] * 2
        for stream in streams[2:]:
            with pytest.raises(RouterError) as caught:
                stream.answer()
            assert caught.value.code == "rate_limit_exceeded"
            assert 58 <= caught.value.retry_after_s <= 60
    stage.finished(2)


# ---------------------------------------------------------------- CURVE
def test_a_known_curve_key_comes_in(stage: KeyedStage, keys: Keys, port: int) -> None:
    with curve_client(keys, port) as client:
        assert client.ask("m", "hi") == "one two three"
    record = stage.last_finished()
    assert record["key"] == "remote"
    assert record["tags"]["feature_name"] == "far"


async def ask_async(endpoint: str, keys: Keys) -> str:
    async with AsyncClient(endpoint, server_key=keys.public["router"], curve_key_file=keys.files["known"]) as client:
        return await client.ask("m", "hi")


def test_the_asynchronous_client_too(stage: KeyedStage, keys: Keys, port: int) -> None:
    assert asyncio.run(ask_async(f"tcp://127.0.0.1:{port}", keys)) == "one two three"
    stage.last_finished()


@pytest.mark.parametrize(("name", "server"), [("stranger", "router"), ("known", "stranger")])
def test_a_wrong_curve_key_gets_no_message(stage: KeyedStage, keys: Keys, port: int, name: str, server: str) -> None:
    before = stage.counter("curve_refused")
    with curve_client(keys, port, name, server, timeout_s=0.5) as client, pytest.raises(NotConnected):
        client.ping()
    stage.wait(lambda: stage.counter("curve_refused") > before, "it is counted")
    with curve_client(keys, port) as client:
        client.ping()


def test_without_encryption_nobody_comes_in_over_tcp(stage: KeyedStage, port: int) -> None:
    before = stage.counter("curve_refused")
    with Client(f"tcp://127.0.0.1:{port}", key=TOKEN, connect_timeout_s=0.5) as client, pytest.raises(NotConnected):
        client.ping()
    stage.wait(lambda: stage.counter("curve_refused") > before, "it is counted")
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
        raw.settimeout(20)
        with suppress(ConnectionResetError):
            while raw.recv(1000):
                pass


def test_a_curve_client_cannot_speak_for_another_key_in_plain(stage: KeyedStage, keys: Keys, port: int) -> None:
    with Client(
        f"tcp://127.0.0.1:{port}",
        key=TOKEN,
        server_key=keys.public["router"],
        curve_key_file=keys.files["known"],
    ) as client:
        client.ask("m", "hi")
    assert stage.last_finished()["key"] == "remote", "who was let in is who asks"


def ask_as(identity: bytes, stage: KeyedStage, key: str) -> str:
    """Return what kind of message answers a client that chooses its identity; empty while another one has it."""
    raw = zmq.Context.instance().socket(zmq.DEALER)
    try:
        raw.set(zmq.ROUTING_ID, identity)
        raw.set(zmq.LINGER, 0)
        raw.connect(stage.zeromq_endpoint)
        raw.send(msgspec.msgpack.encode({"v": 1, "verb": "models", "id": "1", "key": key}))
        return str(msgspec.msgpack.decode(raw.recv_multipart()[0])[1]) if raw.poll(500) else ""
    finally:
        raw.close()


def test_own_identities_do_not_borrow_a_key(stage: KeyedStage) -> None:
    assert wait_until(lambda: ask_as(b"me", stage, TOKEN), "an answer") == "done"
    assert wait_until(lambda: ask_as(b"me", stage, ""), "an answer, once the one before is gone") == "error"


def zmtp_ready(**properties: str) -> bytes:
    """Return what a client without encryption says first: its greeting, and READY with properties of its own choice
    (https://rfc.zeromq.org/spec/23/).
    """
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in properties.items()]
    command = b"\x05READY" + b"".join(
        bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value for name, value in named
    )
    return greeting + b"\x04" + bytes([len(command)]) + command


def receive_until(raw: socket.socket, end: bytes) -> bytes:
    answer = b""
    while end not in answer:
        received = raw.recv(4096)
        assert received, f"the connection has ended behind {answer!r}"
        answer += received
    return answer


def test_a_plain_client_cannot_say_that_it_has_a_curve_key(stage: KeyedStage, keys: Keys) -> None:
    """libzmq takes any property of a client's handshake into what it says of its messages, ``User-Id`` included."""
    message = msgspec.msgpack.encode({"v": 1, "verb": "models", "id": "1"})
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(20)
        raw.connect(stage.zeromq_endpoint.removeprefix("ipc://"))
        raw.sendall(zmtp_ready(Socket_Type="DEALER", User_Id=keys.public["known"]))
        receive_until(raw, b"READY")  # a message that comes before it ends the connection
        raw.sendall(b"\x00" + bytes([len(message)]) + message)
        assert b"invalid_api_key" in receive_until(raw, b"}")


# ---------------------------------------------------------------- other users of this machine
OTHER_USER = """
import os, sys
sys.path.insert(0, sys.argv[3])
from router.client import Client
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
try:
    with Client(sys.argv[1], key=sys.argv[4], connect_timeout_s=1.0) as client:
        print("in", client.models())
except Exception as error:
    print(type(error).__name__)
"""


def as_user(uid: int, stage: KeyedStage) -> str:
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", OTHER_USER, stage.zeromq_endpoint, str(uid), root, TOKEN]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert not found.stderr, found.stderr
    return found.stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_refused_by_mode_and_by_list(stage: KeyedStage) -> None:
    path = Path(stage.zeromq_endpoint.removeprefix("ipc://"))
    for directory in [path.parent, *path.parent.parents][:3]:
        directory.chmod(0o755)
    assert as_user(1, stage) == "NotConnected", "its mode is 0660"
    path.chmod(0o666)
    assert as_user(1, stage) == "NotConnected", "the list has another user"
    assert as_user(65534, stage) == "in ['m']", "who is on the list comes in"
    path.chmod(0o660)


def test_no_secret_is_told(stage: KeyedStage, keys: Keys) -> None:
    text = stage.router.log_text()
    for file in keys.files.values():
        secret = next(line for line in file.read_text().splitlines() if line.startswith("secret")).partition('"')[2][
            :-1
        ]
        assert secret not in text
    assert TOKEN not in text
    assert SETTLER not in text
