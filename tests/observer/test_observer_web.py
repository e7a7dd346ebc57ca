"""The observer's HTTP side: what it answers, what it refuses, and what its own client makes of it."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from router import cli
from router.errors import ConfigError
from router.observer import client
from router.observer.client import ObserverError, RefusedError
from router.observer.state import SCHEMA, State
from router.observer.web import Condition, WebServer
from tests.support.observer_states import slices, state
from tests.support.waiting import free_port, shared_memory_directory


class Answers:
    slice_names = ("feature_name", "device_type", "feature_name,device_type")

    def __init__(self) -> None:
        self.asked: list[tuple[float, str]] = []

    def state(self, window_s: float, by: str) -> State:
        self.asked.append((window_s, by))
        return state(window_s=window_s, slices=slices(by, "a"))

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        return b"up 1\n", f"text/plain; asked={accept}"

    def health(self) -> Condition:
        return Condition("degraded", ["journal: no space left on device"])


def with_server(
    check: Callable[[str, Answers], None], address: str = "127.0.0.1:0", answers: Answers | None = None
) -> None:
    """Run a server at ``address`` and, in a thread, ``check`` with the address it took."""
    given = answers or Answers()

    async def run() -> None:
        server = WebServer(given, address)
        taken = await server.listen()
        try:
            await asyncio.to_thread(check, taken, given)
        finally:
            await server.close()

    asyncio.run(run())


def raw_get(address: str, path: str, host: str) -> tuple[int, bytes]:
    name, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(name, int(port), timeout=5)
    try:
        connection.request("GET", path, headers={"host": host})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_the_state_comes_back_as_it_was_with_window_and_slice_asked_for() -> None:
    def check(address: str, answers: Answers) -> None:
        assert client.state(address) == state(slices=slices("", "a"))
        assert client.state(address, window_s=600.0, by="feature_name,device_type").window_s == 600.0
        assert answers.asked == [(60.0, ""), (600.0, "feature_name,device_type")]

    with_server(check)


def test_metrics_and_health_are_passed_on() -> None:
    def check(address: str, _: Answers) -> None:
        assert client.get(address, "/metrics") == b"up 1\n"
        assert json.loads(client.get(address, "/healthz")) == {
            "status": "degraded",
            "reasons": ["journal: no space left on device"],
        }
        assert b"/state.json" in client.get(address, "/")

    with_server(check)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/state.json?window=7", "window=7: expected one of 10, 60, 600, 3600"),
        ("/state.json?window=nan", "window=nan: expected one of 10, 60, 600, 3600"),
        ("/state.json?by=colour", "by=colour: expected one of feature_name; device_type; feature_name,device_type"),
        ("/nothing", "404"),
    ],
)
def test_what_cannot_be_answered_is_one_line_that_says_what_can(path: str, expected: str) -> None:
    def check(address: str, _: Answers) -> None:
        with pytest.raises(ObserverError) as caught:
            client.get(address, path)
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)

    with_server(check)


def test_a_loopback_address_does_not_answer_to_names_that_others_can_own() -> None:
    def check(address: str, _: Answers) -> None:
        port = address.rpartition(":")[2]
        for name in ("localhost", "127.0.0.1", "[::1]"):
            assert raw_get(address, "/healthz", f"{name}:{port}")[0] == 200, name
            assert raw_get(address, "/healthz", name)[0] == 200, name
        for name in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example"):
            assert raw_get(address, "/state.json", f"{name}:{port}")[0] == 403, name

    with_server(check)


def test_it_listens_at_a_unix_socket_that_is_for_its_user_alone_and_removes_it() -> None:
    with shared_memory_directory() as directory:
        path = directory / "observer.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))  # left behind by one that was killed

        def check(address: str, _: Answers) -> None:
            assert address == f"unix:{path}"
            assert path.stat().st_mode & 0o777 == 0o600
            assert client.state(address).schema == SCHEMA

        with_server(check, f"unix:{path}")
        assert not path.exists()


def test_an_address_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError) as caught:
        with_server(lambda *_: None, f"127.0.0.1:{taken.getsockname()[1]}")
    assert str(caught.value).startswith("observer.http = 127.0.0.1:")
    assert "in use" in str(caught.value)


def test_a_file_that_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("words")
    with pytest.raises(ConfigError, match="no socket"):
        with_server(lambda *_: None, f"unix:{path}")
    assert path.read_text() == "words"


@pytest.mark.parametrize("by", ["café", "a b", "a&window=7", "x\r\nhost: evil", "\udce9", "feature name"])
def test_a_tag_that_the_observer_does_not_have_is_refused_in_one_line_whatever_it_is(by: str) -> None:
    def check(address: str, _: Answers) -> None:
        with pytest.raises(RefusedError) as caught:
            client.state(address, by=by)
        assert "expected one of feature_name; device_type; feature_name,device_type" in str(caught.value)
        assert "answers 400 to /state.json?by=" in str(caught.value)
        assert "window" not in str(caught.value).partition(": by=")[0].replace("window%3D", "")

    with_server(check)


def test_to_ask_for_an_unknown_tag_is_a_wrong_use_of_top(capsys: pytest.CaptureFixture[str]) -> None:
    def check(address: str, _: Answers) -> None:
        assert cli.main(["top", "--once", "--url", address, "--by", "café"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("ringrouter: http://127.0.0.1:")
        assert "by=café: expected one of" in said
        assert said.count("\n") == 1

    with_server(check)


class TestClient:
    def test_nobody_there_is_said_with_the_way_out(self) -> None:
        with pytest.raises(ObserverError, match=r"no observer answers at http://127\.0\.0\.1:\d+ .*ringrouter observe"):
            client.state(f"127.0.0.1:{free_port()}")

    def test_a_socket_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ObserverError, match="no observer answers at unix:"):
            client.state(f"unix:{tmp_path}/none.sock")

    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            (b'{"schema": "ringrouter.state/9"}', "schema 'ringrouter.state/9': expected 'ringrouter.state/1'"),
            (b"{}", "schema ''"),
            (b"<html>", "not as an observer"),
            (b"[]", "not as an observer"),
            (msgspec.json.encode({"schema": SCHEMA}), "not as an observer"),
        ],
    )
    def test_another_programs_answer_is_refused_in_one_line(
        self, body: bytes, expected: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(client, "get", lambda *_: body)
        with pytest.raises(ObserverError) as caught:
            client.state("127.0.0.1:1")
        assert expected in str(caught.value)
