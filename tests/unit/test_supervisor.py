"""`ringrouter run`: children are restarted, ended in order, and never left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from router import config
from router.embedded import child, hosts, plan
from tests.support.processes import Program
from tests.support.waiting import free_port, wait_until

# A stand-in of a host and of the router: each writes its pid to NAME.pid and its end to `ends`, in its order.
CHILD = """
import os, signal, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
name, directory, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(b'{"data": [], "hosts": {}}')
server = HTTPServer(("127.0.0.1", port), Handler) if port else None
if "--ready-fd" in sys.argv:
    os.write(int(sys.argv[sys.argv.index("--ready-fd") + 1]), b"READY\\n")
def end(*_):
    with open(f"{directory}/ends", "a") as ends:
        ends.write(name + "\\n")
    os._exit(0)
signal.signal(signal.SIGTERM, end)
with open(f"{directory}/{name}.pid.new", "w") as file:
    file.write(str(os.getpid()))
os.rename(f"{directory}/{name}.pid.new", f"{directory}/{name}.pid")
print(name, "started", flush=True)
if server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
while True:
    signal.pause()
"""

SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from router import config
from router.embedded import hosts
from router.embedded.plan import Plan
from router import supervisor
supervisor.HOST_STOP_S = 0.5 if "--hasty" in sys.argv else 10
directory, port = Path(sys.argv[1]), sys.argv[2]
def command(name, port):
    return [sys.executable, str(directory / "child.py"), name, str(directory), port]
parsed = config.parse(f'''
version = 1
[listen]
http = "127.0.0.1:{port}"
run_dir = "{directory}"
[timeouts]
drain_s = 10
''')
embedded = {host: command(host.name, "0") for host in (hosts.CHAT, hosts.EMBEDDING)}
observer = command("observer", "0") if "--observer" in sys.argv else None
plan = Plan(parsed, command("router", port), directory, embedded, observer)
sys.exit(asyncio.run(supervisor.Supervisor(plan).run()))
"""

NAMES = ("router", "chat", "embedding")


class Supervised(Program):
    """A supervisor process over three stand-ins, or four with an observer."""

    def __init__(self, directory: Path, child_program: str = CHILD, *options: str) -> None:
        self.directory = directory
        (directory / "child.py").write_text(child_program)
        (directory / "supervisor.py").write_text(SUPERVISOR)
        command = [sys.executable, str(directory / "supervisor.py"), str(directory), str(free_port()), *options]
        super().__init__("supervisor", command, directory / "supervisor.log")

    def wait_up(self) -> dict[str, int]:
        """Wait until all is up and shown; return the children's pids."""
        wait_until(lambda: "The router stays up" in self.log_text(), "the demonstration to be over")
        return {name: self.child_pid(name) for name in NAMES}

    def child_pid(self, name: str) -> int:
        path = self.directory / f"{name}.pid"
        return int(path.read_text()) if path.exists() else 0

    def ends(self) -> list[str]:
        path = self.directory / "ends"
        return path.read_text().split() if path.exists() else []


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_router_first_and_then_the_hosts(directory: Path, stop_signal: signal.Signals) -> None:
    with Supervised(directory) as supervisor:
        pids = supervisor.wait_up()
        supervisor.signal(stop_signal)
        assert supervisor.wait(60) == 0, "a stop by signal is a success"
    ends = supervisor.ends()
    assert ends[0] == "router", "streams end in order only if the router ends before its hosts"
    assert sorted(ends) == sorted(NAMES)
    assert not [name for name, pid in pids.items() if is_alive(pid)]


def test_the_router_alone_knows_that_it_is_watched(directory: Path) -> None:
    with Supervised(directory) as supervisor:
        pids = supervisor.wait_up()
        said = {name: b"RINGROUTER_SUPERVISED=1" in Path(f"/proc/{pids[name]}/environ").read_bytes() for name in NAMES}
    assert said == {"router": True, "chat": False, "embedding": False}, "its successor would be nobody's child"


def test_a_killed_supervisor_leaves_nothing_behind(directory: Path) -> None:
    with Supervised(directory) as supervisor:
        pids = supervisor.wait_up()
        assert all(is_alive(pid) for pid in pids.values())
        supervisor.kill()
        wait_until(lambda: not any(is_alive(pid) for pid in pids.values()), "the kernel to kill the children")


@pytest.mark.parametrize("name", NAMES)
def test_a_child_that_ends_is_started_again(directory: Path, name: str) -> None:
    with Supervised(directory) as supervisor:
        pids = supervisor.wait_up()
        os.kill(pids[name], signal.SIGKILL)
        wait_until(lambda: supervisor.child_pid(name) not in (pids[name], 0), "a new process")
        assert is_alive(supervisor.child_pid(name))
        others = [other for other in NAMES if other != name]
        assert all(supervisor.child_pid(other) == pids[other] for other in others), "only the one that ended"
    said = supervisor.log_text()
    assert f"{name} ended" in said
    assert "killed by SIGKILL" in said
    assert f"{directory}/{name}.log" in said, "the message names the log"


def test_a_child_that_ignores_sigterm_is_killed_after_its_time(directory: Path) -> None:
    with Supervised(directory, CHILD, "--hasty") as supervisor:
        pids = supervisor.wait_up()
        os.kill(pids["chat"], signal.SIGSTOP)  # a stopped process takes no SIGTERM
        supervisor.signal(signal.SIGTERM)
        assert supervisor.wait(60) == 0
    assert not is_alive(pids["chat"])


def test_a_second_signal_does_not_wait(directory: Path) -> None:
    with Supervised(directory) as supervisor:
        pids = supervisor.wait_up()
        os.kill(pids["router"], signal.SIGSTOP)
        supervisor.signal(signal.SIGINT)
        wait_until(lambda: "stopping" in supervisor.log_text(), "the first signal to be taken")

        def ended_after_another_signal() -> bool:
            supervisor.signal(signal.SIGINT)
            return not supervisor.is_running

        wait_until(ended_after_another_signal, "an end at once", timeout_s=9.0)  # the drain alone would take longer
    assert not any(is_alive(pid) for pid in pids.values())


def test_a_host_that_cannot_start_ends_the_start_with_its_log(directory: Path) -> None:
    with Supervised(directory, "raise SystemExit('the model file is broken')") as supervisor:
        assert supervisor.wait(60) == 1
    said = supervisor.log_text()
    assert "chat ended before it was ready (exit code 1)" in said
    assert f"{directory}/chat.log" in said
    assert "the model file is broken" in said


def test_a_router_that_cannot_start_ends_the_hosts_too(directory: Path) -> None:
    broken = CHILD.replace("server = HTTP", "assert not port, 'no room for rings'\nserver = HTTP")
    with Supervised(directory, broken) as supervisor:
        assert supervisor.wait(60) == 1
    assert "the router ended (exit code 1)" in supervisor.log_text()
    assert "no room for rings" in supervisor.log_text()
    assert sorted(supervisor.ends()) == ["chat", "embedding"]


def test_the_observer_ends_after_the_router_whose_last_records_it_reads(directory: Path) -> None:
    with Supervised(directory, CHILD, "--observer") as supervisor:
        supervisor.wait_up()
        wait_until(lambda: supervisor.child_pid("observer"), "the observer to be up")
        supervisor.signal(signal.SIGTERM)
        assert supervisor.wait(60) == 0
    assert supervisor.ends()[0] == "router"
    assert sorted(supervisor.ends()) == sorted([*NAMES, "observer"])


def test_an_observer_that_dies_is_started_again(directory: Path) -> None:
    with Supervised(directory, CHILD, "--observer") as supervisor:
        supervisor.wait_up()
        pid = wait_until(lambda: supervisor.child_pid("observer"), "the observer to be up")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: supervisor.child_pid("observer") not in (pid, 0), "a new process")


def test_an_observer_that_cannot_run_here_is_said_once_and_all_else_goes_on(directory: Path) -> None:
    broken = CHILD.replace("def end(", "if name == 'observer':\n    print('no room'); sys.exit(2)\ndef end(")
    with Supervised(directory, broken, "--observer") as supervisor:
        pids = supervisor.wait_up()
        wait_until(lambda: "there is no observer here" in supervisor.log_text(), "the message")
        assert all(is_alive(pid) for pid in pids.values())
    assert supervisor.log_text().count("no room") == 1


def test_the_observer_of_the_embedded_set_takes_the_next_port_or_any_other() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        address = plan.observer_address(f"127.0.0.1:{port - 1}")
    assert address.startswith("127.0.0.1:")
    assert address not in {f"127.0.0.1:{port}", "127.0.0.1:0"}
    free = free_port()
    assert plan.observer_address(f"127.0.0.1:{free - 1}") == f"127.0.0.1:{free}"


def test_back_off_doubles_to_its_bound_and_begins_anew_after_a_steady_run() -> None:
    back_off = child.BackOff()
    delays = [back_off.delay_s(up_s=1.0) for _ in range(7)]
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert back_off.delay_s(up_s=child.STEADY_AFTER_S) == child.BACK_OFF_FIRST_S
    assert back_off.delay_s(up_s=1.0) == 2 * child.BACK_OFF_FIRST_S


def test_a_log_over_its_bound_is_moved_and_its_writer_goes_on(directory: Path) -> None:
    path = directory / "chat.log"
    with path.open("ab", buffering=0) as writer:
        writer.write(b"x" * (child.LOG_BYTES_MAX + 1))
        child.bound_log(path)
        assert path.stat().st_size == 0
        writer.write(b"more\n")
    assert path.read_bytes() == b"more\n", "no hole where the old text was"
    assert (directory / "chat.log.1").stat().st_size == child.LOG_BYTES_MAX + 1


def test_a_log_within_its_bound_stays(directory: Path) -> None:
    path = directory / "chat.log"
    path.write_text("short\n")
    child.bound_log(path)
    child.bound_log(directory / "absent.log")
    assert path.read_text() == "short\n"
    assert not (directory / "chat.log.1").exists()


def test_a_port_in_use_is_said_with_the_way_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(child.RunError, match=rf"port {port} of 127\.0\.0\.1 cannot be used.*--port"):
            plan.free_port("127.0.0.1", port)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_does_not_exist_is_an_error(port: int) -> None:
    with pytest.raises(child.RunError, match=str(port)):
        plan.free_port("127.0.0.1", port)


def test_a_configuration_with_a_taken_port_is_refused_before_anything_starts(directory: Path) -> None:
    path = directory / "mine.toml"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path.write_text(user_config(f"127.0.0.1:{port}", directory))
        with pytest.raises(child.RunError, match=f"port {port} .*cannot be used"):
            plan.user_plan(path)


def test_a_configuration_with_any_port_is_refused_since_run_could_not_find_the_router(directory: Path) -> None:
    path = directory / "mine.toml"
    path.write_text(user_config("127.0.0.1:0", directory))
    with pytest.raises(child.RunError, match="must know the port"):
        plan.user_plan(path)


def test_a_configuration_without_hosts_is_refused(directory: Path) -> None:
    path = directory / "mine.toml"
    path.write_text("version = 1\n")
    with pytest.raises(child.RunError, match=r"no \[\[hosts\]\]"):
        plan.user_plan(path)


def user_config(address: str, directory: Path) -> str:
    return f"""
version = 1
[listen]
http = "{address}"
run_dir = "{directory}"
[[hosts]]
name = "a"
url = "http://127.0.0.1:9"
"""


def test_a_second_run_in_the_same_directory_is_refused_with_the_pid_of_the_first(directory: Path) -> None:
    fd = plan.lock_run_dir(directory)
    try:
        with pytest.raises(child.RunError, match=f"pid {os.getpid()}"):
            plan.lock_run_dir(directory)
    finally:
        os.close(fd)
    os.close(plan.lock_run_dir(directory))


def test_the_written_configuration_serves_both_models_on_unix_sockets(directory: Path) -> None:
    sockets = {hosts.CHAT: directory / "chat.sock", hosts.EMBEDDING: directory / "embedding.sock"}
    parsed = config.parse(hosts.config_text(directory, "127.0.0.1:8400", "127.0.0.1:8401", sockets, drain_s=10))
    assert parsed.listen.http == ["127.0.0.1:8400"]
    assert parsed.listen.run_dir == str(directory)
    assert parsed.timeouts.drain_s == 10
    assert parsed.observer.http == "127.0.0.1:8401"
    assert [(host.url, host.kind, host.models) for host in parsed.hosts] == [
        (f"unix://{directory}/chat.sock", "llama.cpp", ["smollm2-135m"]),
        (f"unix://{directory}/embedding.sock", "llama.cpp", ["all-minilm-l6-v2"]),
    ]


def test_the_host_python_is_the_one_that_the_environment_names() -> None:
    assert hosts.find_host_python({hosts.HOST_PYTHON_VARIABLE: sys.executable}) == Path(sys.executable)


def test_a_host_python_that_is_not_there_is_an_error_with_its_name() -> None:
    with pytest.raises(hosts.HostPythonMissingError, match="RINGROUTER_HOST_PYTHON = '/no/python'"):
        hosts.find_host_python({hosts.HOST_PYTHON_VARIABLE: "/no/python"})


def test_run_without_models_says_how_to_get_them(directory: Path) -> None:
    program = "import sys; from router.supervisor import run; sys.exit(run(None, port=0))"
    environment = {**os.environ, "RINGROUTER_HOST_PYTHON": "/no/python", "XDG_RUNTIME_DIR": str(directory)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 2
    assert done.stderr.startswith("ringrouter run: RINGROUTER_HOST_PYTHON")
    assert not any(directory.iterdir()), "nothing is made before it is known that it can run"
