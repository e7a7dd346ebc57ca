"""The proxies of docs/security.md in front of a router: TLS, streams that are not held, and whom the log names."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from router.keys.tokens import new_token
from tests.faults.client import TIMEOUT_S, Answer, Client
from tests.faults.keyed import SETTLER, KeyedStage
from tests.faults.stage import QUIET, SHORT_TICK, host_entry
from tests.support import scripted_host as sh
from tests.support.processes import Program
from tests.support.scripted_host import ScriptedHost, chunk
from tests.support.waiting import free_port, wait_until

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
CLIENT = "127.0.0.77"
TAIL = sh.chunked(sh.STREAM)[3:]
CLIENT_COUNT = 4
"""As many as the host has slots."""
SHORT_STREAM_COUNT = 100
"""A proxy that reads the request's body while it passes the answer on cuts a few of these."""
GAP_S = 0.02
"""Between the first token and the rest: what it cuts must not be there yet."""


def example(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def running_stage(directory: Path) -> Iterator[KeyedStage]:
    with ExitStack() as stack:
        host = stack.enter_context(ScriptedHost("a"))
        stage = KeyedStage(directory, [host], QUIET + SHORT_TICK + host_entry(host), models=["m"])
        stage.router._toml = stage.router._toml.replace("[listen]\n", '[listen]\ntrusted_proxies = ["127.0.0.1"]\n', 1)
        yield stack.enter_context(stage)


def certificate(directory: Path) -> Path:
    """Return a file with a key and a certificate for localhost that it has signed itself."""
    parts = [directory / "key.pem", directory / "crt.pem"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-keyout", str(parts[0]), "-out", str(parts[1])],
        check=True, capture_output=True,
    )  # fmt: skip
    both = directory / "both.pem"
    both.write_text("".join(part.read_text() for part in parts))
    return both


class TlsClient(Client):
    """A client of a proxy that speaks TLS, at an address of its own."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.socket.close()
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S, (CLIENT, 0))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # it has signed itself
        self.socket = context.wrap_socket(self.socket, server_hostname="localhost")


@pytest.mark.skipif(not shutil.which("haproxy") or not shutil.which("openssl"), reason="no haproxy or no openssl here")
def test_streams_through_haproxy(running_stage: KeyedStage, directory: Path) -> None:
    stage, port = running_stage, free_port()
    text = (
        example("haproxy")
        .replace(":443", f"127.0.0.1:{port}")
        .replace("127.0.0.1:8400", f"127.0.0.1:{stage.router.port}")
    )
    text = text.replace("/etc/haproxy/ringrouter.pem", str(certificate(directory)))
    config = directory / "haproxy.cfg"
    config.write_text(text)
    checked = subprocess.run(["haproxy", "-c", "-f", str(config)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with Program("haproxy", ["haproxy", "-db", "-f", str(config)], directory / "haproxy.log"):
        wait_until(lambda: _answers(port), "the proxy listens")
        check_streams(stage, port)
        check_whole(stage, port)


def check_streams(stage: KeyedStage, port: int) -> None:
    """Check that tokens come when the host sends them, and that the log names whom the proxy names."""
    gate = stage.gate()
    stage.hosts[0].script(sh.stream_head(), chunk(sh.ROLE), chunk(sh.token("one")), gate, *TAIL)
    with TlsClient(port) as client:
        client.chat(more=f"authorization: Bearer {SETTLER}\r\n")
        client.wait_for(b'"one"')
        gate.wait_reached()
        gate.open()
        answer = client.answer()
        assert answer.ended, "the first token came while the host had not ended"
        assert answer.text == "one two three"
    with TlsClient(port) as client:
        client.chat(more=f"authorization: Bearer {new_token()}\r\nx-forwarded-for: 6.6.6.6\r\n")
        assert client.answer().status == 401
    wait_until(lambda: _refused(stage), "the refusal is logged")
    assert _refused(stage)[-1]["client"] == CLIENT, "whom the proxy names, and not whom the client names"


def check_whole(stage: KeyedStage, port: int) -> None:
    """Check that answers arrive to their end that begin as soon as the request has come."""
    for _ in range(SHORT_STREAM_COUNT):
        stage.hosts[0].script(sh.stream_head(), chunk(sh.ROLE), chunk(sh.token("one")), GAP_S, *TAIL)
    with ThreadPoolExecutor(CLIENT_COUNT) as clients:
        answers = list(clients.map(lambda _: stream(port), range(SHORT_STREAM_COUNT)))
    assert all(answer.ended for answer in answers)
    assert [answer.text for answer in answers] == ["one two three"] * SHORT_STREAM_COUNT
    assert all(answer.data[-1] == "[DONE]" for answer in answers)


def stream(port: int) -> Answer:
    """Return the answer to a request on a connection of its own."""
    with TlsClient(port) as client:
        client.chat(more=f"authorization: Bearer {SETTLER}\r\n")
        return client.answer()


def caddy_version() -> tuple[int, ...]:
    """Return the numbers of Caddy's version."""
    said = subprocess.run(["caddy", "version"], capture_output=True, text=True, check=True).stdout
    found = re.match(r"v?(\d+)\.(\d+)\.(\d+)", said)
    assert found is not None, said
    return tuple(int(part) for part in found.groups())


def _answers(port: int) -> bool:
    try:
        with TlsClient(port) as client:
            client.get("/health")
            return client.answer().json() == {"status": "ok"}
    except (OSError, AssertionError, ValueError):
        return False


def _refused(stage: KeyedStage) -> list[dict[str, str]]:
    lines = [json.loads(line) for line in stage.router.log_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "client refused"]


@pytest.mark.skipif(not shutil.which("caddy"), reason="caddy is not installed")
def test_streams_through_caddy(running_stage: KeyedStage, directory: Path) -> None:
    stage, port = running_stage, free_port()
    text = example("caddy").replace("127.0.0.1:8400", f"127.0.0.1:{stage.router.port}")
    text = text.replace("llm.example.com {", f"https://localhost:{port}, https://test:{port} {{\n\ttls internal")
    if caddy_version() < (2, 6, 4):
        text = text.replace("request_buffers 32MiB", "buffer_requests")
    file = directory / "Caddyfile"
    file.write_text("{\n\tadmin off\n\tskip_install_trust\n\tauto_https disable_redirects\n}\n" + text)
    command = ["caddy", "run", "--adapter", "caddyfile", "--config", str(file)]
    own = {"XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory), "HOME": str(directory)}
    with Program("caddy", command, directory / "caddy.log", own):
        wait_until(lambda: _answers(port), "the proxy listens")
        check_streams(stage, port)
        check_whole(stage, port)
