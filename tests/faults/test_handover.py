"""A router hands over to the next one, without a service manager: on TCP, a unix socket and ZeroMQ."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from router.client import Client
from tests.support.processes import RouterProcess, get, host_toml
from tests.support.scripted_host import ScriptedHost
from tests.support.waiting import shared_memory_directory, wait_until


@pytest.fixture
def host() -> Iterator[ScriptedHost]:
    with ScriptedHost("gpu") as host:
        yield host


@pytest.fixture
def directory() -> Iterator[Path]:
    with shared_memory_directory() as path:
        yield path


@pytest.fixture
def router(directory: Path, host: ScriptedHost) -> Iterator[RouterProcess]:
    toml = "[timeouts]\ndrain_s = 4\n" + host_toml(host.name, host.url, kind="vllm", slots=8, models=["m"])
    found = RouterProcess(directory, toml, listen='zeromq = ["ipc"]\n')
    with found:
        yield found
        for pid in {writer_pid(found), found.pid}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not any(alive(pid) for pid in {writer_pid(found)}), "the last router ends")


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def writer_pid(router: RouterProcess) -> int:
    """The pid of whoever holds the instance, the newest one."""
    return int((router.run_dir / "main" / "writer.lock").read_text())


def said(client: Client) -> str:
    """Ask one thing; return the answer."""
    return "".join(token.text for token in client.chat("m", "hello"))


def upgrade(router: RouterProcess) -> int:
    """Have the router hand over; return the pid of the new one."""
    before = writer_pid(router)
    os.kill(before, signal.SIGUSR2)
    wait_until(lambda: writer_pid(router) != before, "another process holds the instance")
    return writer_pid(router)


def test_the_next_process_has_the_same_sockets_and_rings_of_its_own(router: RouterProcess) -> None:
    generation = os.readlink(router.run_dir / "main" / "current")
    new = upgrade(router)
    assert new != router.pid
    assert os.readlink(router.run_dir / "main" / "current") != generation
    assert get("127.0.0.1", router.port, "/ready")[0] == 200
    assert router.wait(10) == 0  # the first one has drained
    assert get("127.0.0.1", router.port, "/ready")[0] == 200
    assert (router.run_dir / "main" / generation).is_dir()  # for who has not read it to its end


def test_two_upgrades_in_a_row(router: RouterProcess) -> None:
    first = upgrade(router)
    second = upgrade(router)
    assert len({router.pid, first, second}) == 3
    assert get("127.0.0.1", router.port, "/ready")[0] == 200


def test_a_second_signal_while_one_is_under_way_is_ignored(router: RouterProcess) -> None:
    os.kill(router.pid, signal.SIGUSR2)
    os.kill(router.pid, signal.SIGUSR2)
    wait_until(lambda: writer_pid(router) != router.pid, "another process holds the instance")
    assert router.wait(10) == 0
    assert router.log_text().count('"handed over"') == 1


def test_zeromq_clients_are_served_by_the_old_one_until_it_ends_and_then_by_the_new_one(router: RouterProcess) -> None:
    endpoint = f"ipc://{router.run_dir}/main/zmq.sock"
    with Client(endpoint) as before:
        assert said(before) == "one two three"
        new = upgrade(router)
        with Client(endpoint) as after:
            assert said(after) == "one two three"
        assert said(before) == "one two three"
        assert router.wait(10) == 0
        assert said(before) == "one two three"
    assert Path(f"{router.run_dir}/main/zmq.sock").exists()
    assert alive(new)


def test_a_connection_that_is_kept_is_answered_once_more_and_then_closed(router: RouterProcess) -> None:
    ask = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", router.port), timeout=10) as kept:
        kept.sendall(ask)
        assert b"connection: close" not in kept.recv(4096).lower()
        upgrade(router)
        wait_until(lambda: '"handed over"' in router.log_text(), "the old one knows")
        kept.sendall(ask)
        answer = kept.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer.lower()
        assert kept.recv(4096) == b""


def test_clients_that_keep_asking_notice_nothing(router: RouterProcess) -> None:
    statuses: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            statuses.append(get("127.0.0.1", router.port, "/v1/models")[0])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        upgrade(router)
    stop.set()
    for thread in threads:
        thread.join()
    assert len(statuses) > 50
    assert set(statuses) == {200}
