"""The ZeroMQ socket at the start and the end of a router: where it is, who may use it, and what its clients hear."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from router import config
from router.errors import ConfigError
from tests.faults.stage import QUIET, SHORT_TICK, Stage, host_entry
from tests.faults.zeromq_client import ZeromqClient
from tests.support import scripted_host as sh
from tests.support.machine_delays import MachineDelays
from tests.support.processes import RouterProcess
from tests.support.scripted_host import ScriptedHost, chunk
from tests.support.waiting import free_port, shared_memory_directory, wait_until

BEGUN: list[sh.Step] = [sh.stream_head(), chunk(sh.ROLE), chunk(sh.token("a"))]


@pytest.fixture
def own_directory() -> Iterator[Path]:
    with shared_memory_directory() as path:
        yield path


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def stage_that_drains(stack: ExitStack, directory: Path, host: ScriptedHost, drain_s: float) -> Stage:
    toml = f"{QUIET}{SHORT_TICK}[timeouts]\ndrain_s = {drain_s}\n" + host_entry(host, slots=2)
    return stack.enter_context(Stage(directory, [host], toml))


def serving(router: RouterProcess) -> dict[str, Any]:
    """Return what the router said when it began to serve."""

    def said() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in router.log_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == "serving"]

    wait_until(said, "it serves")  # the first of its listeners may answer a moment before
    return said()[0]


def check_serves(endpoint: str) -> None:
    with ZeromqClient(endpoint) as client:
        assert client.finish(client.chat()).done["events"] == 5


# ------------------------------------------------------------------ the end
def test_streams_may_finish_when_the_router_is_stopped(
    own_directory: Path, host: ScriptedHost, stack: ExitStack
) -> None:
    stage = stage_that_drains(stack, own_directory, host, 10)
    path = Path(stage.zeromq_endpoint.removeprefix("ipc://"))
    gate = stage.gate()
    host.script(*BEGUN, gate, chunk(sh.token("b")), chunk(sh.FINISH), sh.LAST_CHUNK)
    client = stage.zeromq_client()
    answer = client.chat()
    client.wait_events(answer, 2)
    stage.router.signal(signal.SIGTERM)
    wait_until(lambda: not path.exists(), "the socket file is gone: nobody new finds the router")
    late = client.finish(client.chat("late"))
    assert late.error["code"] == "shutting_down"
    assert late.end is not None
    assert late.end.facts == {"status": 503, "retry_after_s": 1, "events": 0}
    gate.open()
    client.finish(answer)
    assert answer.data == sh.ROLE + sh.token("a") + sh.token("b") + sh.FINISH
    assert answer.done["status"] == 200
    assert stage.router.wait(10) == 0
    assert stage.last_finished()["outcome"] == "ok"


def test_what_does_not_finish_in_time_ends_with_an_error(
    own_directory: Path, host: ScriptedHost, stack: ExitStack
) -> None:
    stage = stage_that_drains(stack, own_directory, host, 0.2)
    client = stage.zeromq_client()
    gates = [stage.gate() for _ in range(2)]
    host.script(*BEGUN, gates[0], sh.LAST_CHUNK)
    decoding = client.chat("decoding")
    client.wait_events(decoding, 2)
    host.script(gates[1], sh.LAST_CHUNK)
    prefilling = client.chat("prefilling", stream=False)
    gates[1].wait_reached()
    waiting = client.chat("waiting")
    stage.wait_phase("waiting")
    exchanges = host.exchanges[-2:]
    stage.router.signal(signal.SIGTERM)
    client.finish()
    for answer, count in ((decoding, 2), (prefilling, 0), (waiting, 0)):
        assert answer.error["code"] == "shutting_down", answer.id
        assert answer.end is not None
        assert (answer.end.facts["status"], answer.end.facts["events"]) == (503, count)
    for exchange in exchanges:
        exchange.wait_gone()
    assert stage.router.wait(10) == 0
    assert {record["outcome"] for record in stage.finished(3)} == {"aborted"}


def test_a_held_stream_ends_with_an_error_too(own_directory: Path, host: ScriptedHost, stack: ExitStack) -> None:
    """For what no credit was given there is no time left."""
    stage = stage_that_drains(stack, own_directory, host, 0.2)
    client = stage.zeromq_client()
    host.script(*BEGUN, chunk(sh.token("b")), sh.End.HANG)
    held = client.chat("held", keys={"credit": 2})
    host.script(*BEGUN, chunk(sh.FINISH), sh.LAST_CHUNK)
    complete = client.chat("complete", keys={"credit": 2})
    client.wait_events(held, 2)
    client.wait_events(complete, 2)
    client.ping()
    stage.router.signal(signal.SIGTERM)
    client.finish()
    assert [len(answer.events) for answer in (held, complete)] == [2, 2]
    assert held.error["code"] == "shutting_down"
    assert complete.error["code"] in {"shutting_down", "client_stalled"}
    assert stage.router.wait(10) == 0
    stage.finished(2)


def test_a_router_that_is_killed_leaves_a_file_that_the_next_one_takes(
    own_directory: Path, host: ScriptedHost, stack: ExitStack
) -> None:
    router = stack.enter_context(RouterProcess(own_directory, QUIET + host_entry(host)))
    path = router.instance_dir / "zmq.sock"
    client = stack.enter_context(ZeromqClient(f"ipc://{path}"))
    client.ping()
    router.kill()
    assert path.is_socket()
    router.start()
    check_serves(f"ipc://{path}")
    assert client.finish(client.chat()).done["events"] == 5, "a socket that lives on is connected again"


def test_a_router_that_is_stopped_leaves_no_file(own_directory: Path, host: ScriptedHost) -> None:
    with RouterProcess(own_directory, QUIET + host_entry(host)) as router:
        path = router.instance_dir / "zmq.sock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o660, "who may open the file may use the router"
        with ZeromqClient(f"ipc://{path}") as client:
            client.ping()
    assert not path.exists()


# ------------------------------------------------------------------ the start
def start_fails(directory: Path, host: ScriptedHost, listen: str) -> str:
    """Start a router that cannot, and return what it says."""
    router = RouterProcess(directory, QUIET + host_entry(host), listen=listen)
    with pytest.raises(AssertionError, match="did not start"):
        router.start()
    assert router.wait(0) == 2
    lines = [json.loads(line) for line in router.log_text().splitlines()]
    reason: str = next(line for line in lines if line["event"] == "cannot start")["reason"]
    return reason


def test_a_path_where_somebody_listens_is_not_taken_away(own_directory: Path, host: ScriptedHost) -> None:
    path = own_directory / "mine.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        reason = start_fails(own_directory, host, f'zeromq = "ipc://{path}"')
        assert reason == f"listen.zeromq[0] = 'ipc://{path}': cannot listen there: another process listens there"
        listener.accept()[0].close()
        with socket.socket(socket.AF_UNIX) as again:
            again.connect(str(path))


@pytest.mark.parametrize("listen", ['zeromq = "ipc://{path}"', 'http = ["unix:{path}"]'])
def test_a_file_that_is_no_socket_stays(own_directory: Path, host: ScriptedHost, listen: str) -> None:
    path = own_directory / "important.txt"
    path.write_text("kept", encoding="utf-8")
    router = RouterProcess(own_directory, QUIET + host_entry(host), listen=listen.format(path=path))
    if listen.startswith("http"):
        router._toml = router._toml.replace(f'http = ["127.0.0.1:{router.port}"]\n', "")
    with pytest.raises(AssertionError, match="did not start"):
        router.start()
    assert "a file that is no socket is there" in router.log_text()
    assert path.read_text(encoding="utf-8") == "kept"


def test_a_path_whose_owner_answers_nobody_is_taken_all_the_same(own_directory: Path, host: ScriptedHost) -> None:
    """Its backlog is full: a start that waited for it would hang without a word."""
    path = own_directory / "mine.sock"
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        for _ in range(16):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            with suppress(BlockingIOError):
                waiting.connect(str(path))
        assert "another process listens there" in start_fails(own_directory, host, f'zeromq = "ipc://{path}"')


def test_a_directory_that_is_not_there(own_directory: Path, host: ScriptedHost) -> None:
    reason = start_fails(own_directory, host, f'zeromq = ["ipc", "ipc://{own_directory}/no/such.sock"]')
    assert reason.startswith("listen.zeromq[1] = ")
    assert "cannot listen there: No such file or directory" in reason


def test_a_port_that_is_taken(own_directory: Path, host: ScriptedHost) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert "Address already in use" in start_fails(own_directory, host, f'zeromq = "tcp://127.0.0.1:{port}"')


def test_switched_off(own_directory: Path, host: ScriptedHost) -> None:
    with RouterProcess(own_directory, QUIET + host_entry(host), listen="zeromq = []") as router:
        assert not (router.instance_dir / "zmq.sock").exists()
        assert serving(router)["zeromq"] == []
        maps = Path(f"/proc/{router.pid}/maps").read_text(encoding="ascii")
        assert "libzmq" not in maps, "only who uses ZeroMQ loads it"


def test_several_endpoints(own_directory: Path, host: ScriptedHost) -> None:
    listen = f'zeromq = ["ipc", "tcp://127.0.0.1:0", "ipc://{own_directory}/second.sock"]'
    with RouterProcess(own_directory, QUIET + host_entry(host), listen=listen) as router:
        endpoints = serving(router)["zeromq"]
        assert len(endpoints) == 3
        assert endpoints[1].startswith("tcp://127.0.0.1:")
        assert not endpoints[1].endswith(":0"), "the port that the kernel chose is said"
        for endpoint in endpoints:
            check_serves(endpoint)
        assert router.ready_status() == 200
    assert not (own_directory / "second.sock").exists()


def test_ipv6(own_directory: Path, host: ScriptedHost) -> None:
    with RouterProcess(own_directory, QUIET + host_entry(host), listen='zeromq = "tcp://[::1]:0"') as router:
        (endpoint,) = serving(router)["zeromq"]
        assert endpoint.startswith("tcp://[::1]:")
        with ZeromqClient(endpoint, ipv6=True) as client:
            client.ping()


def test_a_client_over_tcp_that_leaves_is_noticed(own_directory: Path, host: ScriptedHost) -> None:
    with RouterProcess(own_directory, QUIET + host_entry(host), listen='zeromq = "tcp://127.0.0.1:0"') as router:
        client = ZeromqClient(serving(router)["zeromq"][0])
        host.script(*BEGUN, sh.End.HANG)
        answer = client.chat()
        client.wait_events(answer, 2)
        delays, closed_ns = MachineDelays(), client.close()
        assert host.exchanges[-1].wait_gone() - closed_ns < delays.allowed_ns(100_000_000)


# ------------------------------------------------------------------ the configuration
def parse(zeromq: str) -> config.Config:
    return config.parse(f"version = 1\n[listen]\nrun_dir = '/dev/shm/x'\nzeromq = {zeromq}\n")


BAD_ENDPOINTS = [
    '""',
    '"inproc://a"',
    '"ipc://relative.sock"',
    '"/tmp/a.sock"',
    '"tcp://127.0.0.1"',
    '"tcp://127.0.0.1:99999"',
    '"tcp://:5000"',
    '"tcp://unix:/tmp/a"',
    f'"ipc:///{"x" * 107}"',
]


@pytest.mark.parametrize("endpoint", BAD_ENDPOINTS)
def test_an_endpoint_that_cannot_be(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"^listen\.zeromq\[1\] = "):
        parse(f'["ipc", {endpoint}]')


@pytest.mark.parametrize("value", ["5", "[1]", "true", "{}"])
def test_a_value_that_is_no_list_of_endpoints(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^listen\.zeromq"):
        parse(value)


def test_one_endpoint_needs_no_list() -> None:
    assert parse('"tcp://127.0.0.1:5000"').listen.zeromq == ["tcp://127.0.0.1:5000"]
    assert config.parse("version = 1").listen.zeromq == ["ipc"]


def test_check_shows_where_the_router_would_listen(own_directory: Path) -> None:
    file = own_directory / "router.toml"
    port = free_port()
    file.write_text(
        f'version = 1\n[listen]\nrun_dir = "{own_directory}"\ninstance = "two"\nzeromq = ["ipc", "tcp://127.0.0.1:{port}"]\n'
    )
    command = [sys.executable, "-m", "router", "check", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert f"ipc://{own_directory}/two/zmq.sock" in done.stdout
    assert f"tcp://127.0.0.1:{port}" in done.stdout
