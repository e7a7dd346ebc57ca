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

from ringbuffer import find_current, find_generations
from router.client import Client
from tests.faults.client import Client as BareClient
from tests.support.processes import Program, RouterProcess, get, host_toml
from tests.support.scripted_host import DONE, FINISH, ROLE, Gate, ScriptedHost, chunk, stream_head, token
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
    lock = router.run_dir / "main" / "writer.lock"
    return int(wait_until(lock.read_text, "who holds the instance has written it down"))  # it is emptied before


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
    assert router.wait(60) == 0  # the first one has drained
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
    assert router.wait(60) == 0
    assert router.log_text().count('"handed over"') == 1


def test_zeromq_clients_are_served_by_the_old_one_until_it_ends_and_then_by_the_new_one(router: RouterProcess) -> None:
    endpoint = f"ipc://{router.run_dir}/main/zmq.sock"
    with Client(endpoint) as before:
        assert said(before) == "one two three"
        new = upgrade(router)
        with Client(endpoint) as after:
            assert said(after) == "one two three"
        assert said(before) == "one two three"
        assert router.wait(60) == 0
        assert said(before) == "one two three"
    assert Path(f"{router.run_dir}/main/zmq.sock").exists()
    assert alive(new)


def test_a_connection_that_is_kept_is_answered_once_more_and_then_closed(router: RouterProcess) -> None:
    with BareClient(router.port) as kept:
        kept.get("/health")
        assert kept.answer().headers.get("connection") != "close"
        upgrade(router)
        wait_until(lambda: '"handed over"' in router.log_text(), "the old one knows")
        kept.get("/health")
        answer = kept.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert kept.socket.recv(1) == b""


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


# ---------------------------------------------------------------- signals in any order
class SilentHost:
    """A host that accepts and never answers: a router that begins waits for it, and so can be met while it begins."""

    def __init__(self, router: RouterProcess) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        text = router.config_path.read_text().replace("[timeouts]", "[health]\ntimeout_s = 4\n[timeouts]")
        router.config_path.write_text(text + host_toml("silent", self.url, kind="vllm", slots=1, models=["s"]))

    def __enter__(self) -> SilentHost:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def wait_asked(self) -> None:
        """Wait until somebody has connected: the new process has read the configuration and asks its hosts."""
        self._socket.settimeout(10)
        self._socket.accept()[0].close()


def child_of(pid: int) -> int:
    """The one process that another has started."""
    found = "".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))  # of each thread
    [child] = found.split()
    return int(child)


def test_a_next_process_that_ends_late_leaves_no_rings_behind(router: RouterProcess) -> None:
    instance = router.instance_dir
    with SilentHost(router) as host:
        router.signal(signal.SIGUSR2)
        host.wait_asked()
        wait_until(lambda: len(find_generations(instance)) == 2, "it has rings of its own")
        os.kill(child_of(router.pid), signal.SIGKILL)
        wait_until(lambda: '"upgrade failed"' in router.log_text(), "it says so")
    assert find_generations(instance) == [find_current(instance)]
    assert get("127.0.0.1", router.port, "/ready")[0] == 200


def test_a_stop_while_the_next_process_begins_ends_both(router: RouterProcess) -> None:
    with SilentHost(router) as host:
        router.signal(signal.SIGUSR2)
        host.wait_asked()
        new = child_of(router.pid)
        router.signal(signal.SIGTERM)
        assert router.wait(60) == 0
    wait_until(lambda: not alive(new), "the new one ends too")
    assert '"handed over"' not in router.log_text()


def test_a_reload_while_the_next_process_begins_reaches_it(router: RouterProcess) -> None:
    with SilentHost(router) as host:
        router.signal(signal.SIGUSR2)
        host.wait_asked()
        text = router.config_path.read_text().replace('models = ["m"]', 'models = ["m", "late"]')
        router.config_path.write_text(text)
        router.signal(signal.SIGHUP)
        wait_until(lambda: writer_pid(router) != router.pid, "another process holds the instance")
        wait_until(lambda: b'"late"' in get("127.0.0.1", router.port, "/v1/models")[1], "it has read the file again")


def test_who_is_stopped_waits_for_the_one_before_it(router: RouterProcess, host: ScriptedHost) -> None:
    gate = Gate()
    host.script(stream_head(), chunk(ROLE), chunk(token("one")), gate, *map(chunk, (FINISH, DONE)), b"0\r\n\r\n")
    body = b'{"model": "m", "messages": [], "stream": true}'
    with socket.create_connection(("127.0.0.1", router.port), timeout=10) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        gate.wait_reached()
        new = upgrade(router)
        os.kill(new, signal.SIGTERM)
        wait_until(lambda: router.log_text().count('"stopping"') == 2, "it is told")
        with suppress(AssertionError):
            wait_until(lambda: not alive(new), "nothing", timeout_s=0.5)
        assert alive(new)  # with it systemd would take its cgroup down, and the stream
        gate.open()
        text = b"".join(iter(lambda: client.recv(65536), b""))
    assert b"[DONE]" in text
    assert router.wait(60) == 0
    wait_until(lambda: not alive(new), "both end")


def test_where_nobody_would_watch_the_next_process_there_is_none(directory: Path, host: ScriptedHost) -> None:
    toml = host_toml(host.name, host.url, kind="vllm", slots=8, models=["m"])
    with RouterProcess(directory, toml, environment={"RINGROUTER_SUPERVISED": "1"}) as router:
        router.signal(signal.SIGUSR2)
        wait_until(lambda: '"upgrade failed"' in router.log_text(), "it says so")
        assert "`ringrouter run` watches this process and no other" in router.log_text()
        assert get("127.0.0.1", router.port, "/ready")[0] == 200
        assert writer_pid(router) == router.pid


@pytest.fixture
def manager(directory: Path) -> Iterator[socket.socket]:
    """Takes what is said to the service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(directory / "notify"))
        sock.settimeout(10)
        yield sock


def messages_until(manager: socket.socket, wanted: str) -> list[str]:
    found = [manager.recv(4096).decode()]
    while wanted not in found[-1]:
        found.append(manager.recv(4096).decode())
    return found


def with_manager(directory: Path, host: ScriptedHost, manager: socket.socket, more: str = "") -> RouterProcess:
    toml = host_toml(host.name, host.url, kind="vllm", slots=8, models=["m"]) + more
    return RouterProcess(directory, toml, environment={"NOTIFY_SOCKET": manager.getsockname()}, wait=False)


def test_a_stop_in_the_middle_of_a_reload_is_the_last_word(
    directory: Path, host: ScriptedHost, manager: socket.socket
) -> None:
    with with_manager(directory, host, manager) as router:
        messages_until(manager, "READY=1")
        text = router.config_path.read_text()
        router.config_path.unlink()
        os.mkfifo(router.config_path)  # read only when somebody has written
        router.signal(signal.SIGHUP)
        messages_until(manager, "RELOADING=1")
        router.signal(signal.SIGTERM)
        messages_until(manager, "STOPPING=1")
        router.config_path.write_text(text)
        assert router.wait(60) == 0
        manager.setblocking(False)
        later = []
        with suppress(BlockingIOError):
            while True:
                later.append(manager.recv(4096).decode())
    assert not [message for message in later if "READY=1" in message]
    assert "configuration reloaded" not in router.log_text()


def test_a_reload_before_it_serves_does_not_say_that_it_does(
    directory: Path, host: ScriptedHost, manager: socket.socket
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        more = host_toml("silent", url, kind="vllm", slots=1, models=["s"])
        router = with_manager(directory, host, manager, more)
        router.write_config()
        Program.start(router)
        silent.accept()[0].close()
        router.signal(signal.SIGHUP)
        first = messages_until(manager, "READY=1")
        assert not [message for message in first if "RELOADING=1" in message]
        messages_until(manager, "RELOADING=1")
        assert "reloaded" in messages_until(manager, "READY=1")[-1]
        router.stop()
