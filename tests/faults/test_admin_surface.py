"""The admin surface: apart from the clients' port, open to whom the roles and the modes of files let in."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from router.keys.tokens import new_token
from tests.faults.keyed import KeyedStage, key_table
from tests.faults.stage import QUIET, SHORT_TICK, host_entry
from tests.support.scripted_host import ScriptedHost
from tests.support.waiting import free_port

ROLES = {role: new_token() for role in ("client", "read-only", "operator")}
PORT = free_port()


@pytest.fixture(scope="module")
def running_stage(directory: Path) -> Iterator[KeyedStage]:
    with ExitStack() as stack:
        hosts = [stack.enter_context(ScriptedHost(name)) for name in "ab"]
        listen = f'admin = ["unix:{directory}/admin.sock", "127.0.0.1:{PORT}"]\nunix_users = ["65534"]\n'
        keys = "".join(key_table(role, token, role=f'"{role}"') for role, token in ROLES.items())
        toml = QUIET + "slow_start_s = 0\n" + SHORT_TICK + "".join(host_entry(host) for host in hosts) + keys
        stage = KeyedStage(directory, hosts, toml, models=["m"])
        begin, port = f'http = ["127.0.0.1:{stage.router.port}"]', stage.router.port
        both = f'http = ["127.0.0.1:{port}", "unix:{directory}/http.sock"]'
        stage.router._toml = stage.router._toml.replace(begin, both, 1).replace("[listen]\n", f"[listen]\n{listen}", 1)
        yield stack.enter_context(stage)


def admin(stage: KeyedStage, method: str, path: str, token: str = "") -> tuple[int, dict[str, Any]]:
    """Ask over TCP with a key, over the unix socket without one."""
    if token:
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)
    else:
        connection = http.client.HTTPConnection("localhost", timeout=10)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(stage.router.config_path.with_name("admin.sock")))
    connection.request(method, path, headers={"authorization": f"Bearer {token}"} if token not in {"", "none"} else {})
    response = connection.getresponse()
    found = response.status, json.loads(response.read())
    connection.close()
    return found


LOOKS = [("GET", "/v1/ringrouter/status"), ("GET", "/v1/ringrouter/keys"), ("GET", "/ready")]
CHANGES = [("POST", "/v1/ringrouter/reload"), ("POST", "/v1/ringrouter/hosts/a/drain")]


@pytest.mark.parametrize(("method", "path"), LOOKS + CHANGES)
def test_roles_are_enforced(stage: KeyedStage, method: str, path: str) -> None:
    for token in ("none", new_token()):
        status, answer = admin(stage, method, path, token)
        assert (status, answer["error"]["code"], set(answer)) == (401, "invalid_api_key", {"error"})
    assert admin(stage, method, path, ROLES["client"])[0] == 403
    may_look = (method, path) in LOOKS
    assert admin(stage, method, path, ROLES["read-only"])[0] == (200 if may_look else 403)
    if may_look:
        assert admin(stage, method, path, ROLES["operator"])[0] == 200
        assert admin(stage, method, path)[0] == 200, "the socket's mode says who opens it"


def test_the_surfaces_are_apart(stage: KeyedStage) -> None:
    client = stage.client(ROLES["operator"])
    client.get("/v1/ringrouter/status")
    assert client.answer().status == 404
    client.post({}, "/v1/ringrouter/reload", more=f"authorization: Bearer {ROLES['operator']}\r\n")
    assert client.answer().status == 404
    assert admin(stage, "GET", "/v1/models", ROLES["operator"])[0] == 404
    assert admin(stage, "POST", "/v1/chat/completions", ROLES["operator"])[0] == 404
    assert stat.S_IMODE(stage.router.config_path.with_name("admin.sock").stat().st_mode) == 0o600


def test_the_state_in_detail(stage: KeyedStage) -> None:
    client = stage.client(ROLES["client"])
    status, state = admin(stage, "GET", "/v1/ringrouter/status")
    assert (status, state["status"], state["schema"]) == (200, "ready", "ringrouter.admin/1")
    assert [(each["host"], each["condition"], each["held"]) for each in state["hosts"]] == [
        ("a", "healthy", False),
        ("b", "healthy", False),
    ]
    client.chat(stream=False)
    assert client.answer().status == 200
    used = {each["name"]: each for each in admin(stage, "GET", "/v1/ringrouter/keys")[1]["keys"]}
    assert used["client"]["in_flight"] == {"used": 0, "limit": None}
    stage.last_finished()


def test_a_host_is_held_over_a_reload(stage: KeyedStage) -> None:
    status, host = admin(stage, "POST", "/v1/ringrouter/hosts/a/drain", ROLES["operator"])
    assert (status, host["held"], host["condition"]) == (200, True, "drained")
    before = stage.counter("config_reloads")
    assert admin(stage, "POST", "/v1/ringrouter/reload", ROLES["operator"])[0] == 202
    stage.wait_counter("config_reloads", before + 1)
    for _ in range(3):
        client = stage.client(ROLES["client"])
        client.chat(stream=False)
        assert client.answer().headers["x-ringrouter-host"] == "b"
    _, host = admin(stage, "POST", "/v1/ringrouter/hosts/a/undrain")
    assert (host["held"], host["condition"]) == (False, "healthy")
    assert admin(stage, "POST", "/v1/ringrouter/hosts/nope/drain")[0] == 404
    assert admin(stage, "GET", "/v1/ringrouter/hosts/a/drain")[0] == 405
    stage.finished(3)


def test_who_is_gone_already_is_nobody_of_this_machine(stage: KeyedStage) -> None:
    """A connection that was reset before it is looked at has no address any more, and is no unix socket for that."""
    before = stage.counter("keys_refused")
    stage.router.signal(signal.SIGSTOP)
    try:
        gone = socket.create_connection(("127.0.0.1", PORT), timeout=10)
        gone.sendall(b"POST /v1/ringrouter/hosts/a/drain HTTP/1.1\r\nhost: x\r\n\r\n")
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.close()
    finally:
        stage.router.signal(signal.SIGCONT)
    stage.wait(
        lambda: stage.counter("keys_refused") > before or "host held" in stage.router.log_text(), "it is answered"
    )
    _, state = admin(stage, "GET", "/v1/ringrouter/status")
    assert [each["held"] for each in state["hosts"]] == [False, False]


def test_a_bad_reload_is_told(stage: KeyedStage) -> None:
    path = stage.router.config_path
    good = path.read_text()
    path.write_text(good.replace('role = "client"', 'role = "boss"'))
    before = stage.counter("config_reload_errors")
    assert admin(stage, "POST", "/v1/ringrouter/reload")[0] == 202
    stage.wait_counter("config_reload_errors", before + 1)
    stage.wait(
        lambda: "boss" in (admin(stage, "GET", "/v1/ringrouter/status")[1]["config"]["last_error"] or ""), "it is told"
    )
    path.write_text(good)
    admin(stage, "POST", "/v1/ringrouter/reload")
    stage.wait(
        lambda: admin(stage, "GET", "/v1/ringrouter/status")[1]["config"]["last_error"] is None, "it is taken over"
    )


def test_an_address_that_stays_open_keeps_its_keys(stage: KeyedStage) -> None:
    path = stage.router.config_path
    good = path.read_text()
    path.write_text(good.partition("[[keys]]")[0].replace(f', "127.0.0.1:{PORT}"', ""))
    before = stage.counter("config_reload_errors")
    admin(stage, "POST", "/v1/ringrouter/reload")
    stage.wait_counter("config_reload_errors", before + 1)
    client = stage.client("")
    client.chat()
    assert client.answer().status == 401, "the admin surface over TCP is there until the restart, and so are the keys"
    path.write_text(good)


AS_USER = """
import os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
try:
    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
    s.sendall(b"GET /health HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n")
    print(s.recv(4096).split(b"\\r\\n")[0].decode())
except OSError as error:
    print(type(error).__name__)
"""


def as_user(uid: int, path: Path) -> str:
    command = [sys.executable, "-c", AS_USER, str(path), str(uid)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_of_a_unix_socket(stage: KeyedStage) -> None:
    path = stage.router.config_path.with_name("http.sock")
    path.parent.chmod(0o755)
    assert as_user(1, path) == "PermissionError", "its mode is 0660"
    path.chmod(0o666)
    before = stage.counter("peers_refused")
    assert as_user(1, path) == "HTTP/1.1 403 Forbidden"
    assert as_user(65534, path) == "HTTP/1.1 200 OK"
    assert as_user(0, path) == "HTTP/1.1 200 OK"
    stage.wait_counter("peers_refused", before + 1)
    stage.forget_refused(3)
    assert as_user(65534, path.with_name("admin.sock")) == "PermissionError", "its mode is 0600"
