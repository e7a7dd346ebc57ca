"""Routers and model hosts as processes of their own, ended with the test that started them.

The kernel kills each when the thread that started it ends: start them from pytest's own thread.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ringbuffer import CountersReader, find_current
from router.embedded.child import log_tail, spawn
from router.embedded.hosts import EmbeddedHost, find_host_python
from tests.support.unix_http import UnixConnection
from tests.support.waiting import free_port, wait_until

READY_S = 60.0
STOP_S = 25.0


class Program:
    """A process with a log; a context manager that starts and stops it."""

    def __init__(self, name: str, command: Sequence[str], log_path: Path, environment: Mapping[str, str] | None = None):
        self.name = name
        self.command = list(command)
        self.log_path = log_path
        self.environment = {**os.environ, **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} has not been started"
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> Self:
        """Start the process; return at once."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self.process = spawn(self.command, self.log_path, environment=self.environment)
        return self

    def stop(self, grace_s: float = STOP_S) -> int:
        """End it with SIGTERM and return its exit code; fail the test if it had to be killed."""
        if not self.is_running:
            return self.wait(0)
        self.signal(signal.SIGTERM)
        try:
            return self.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end {grace_s:g} s after SIGTERM:\n{self.log_end()}") from None

    def kill(self) -> int:
        """End it with SIGKILL and return its exit code."""
        self.signal(signal.SIGKILL)
        return self.wait(STOP_S)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self.is_running and self.process is not None:
            self.process.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """Wait for its end and return the exit code; raises ``subprocess.TimeoutExpired``."""
        return self.process.wait(timeout_s) if self.process is not None else 0

    def log_text(self) -> str:
        """Return all that it has printed."""
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""

    def log_end(self) -> str:
        """Return the last lines that it has printed."""
        return log_tail(self.log_path)

    def check_running(self) -> None:
        """Fail the test if the process has ended."""
        assert self.is_running, f"it ended with exit code {self.wait(0)}"

    def _wait_started(self, wait: Callable[[], object]) -> None:
        """Call ``wait``; if it fails, leave no process behind and show the end of the log."""
        try:
            wait()
        except AssertionError as error:
            self.kill()
            raise AssertionError(f"{self.name} did not start: {error}\n{self.log_end()}") from None
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, error: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.stop()
        elif self.is_running:  # the test has failed already; its own message is the one to see
            self.kill()


class RouterProcess(Program):
    """`python -m router serve` on a free port, with a run directory of its own.

    ``toml`` is the configuration behind the table ``[listen]``; ``listen`` are further lines of that table. ``start``
    and ``with`` return when /ready answers 200; with ``wait=False`` as soon as anything answers.
    """

    def __init__(
        self,
        directory: Path,
        toml: str,
        *,
        listen: str = "",
        environment: Mapping[str, str] | None = None,
        wait: bool = True,
    ) -> None:
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.run_dir = directory / "run"
        self.instance_dir = self.run_dir / "main"
        self.config_path = directory / "router.toml"
        self._toml = (
            f'version = 1\n[listen]\nhttp = ["127.0.0.1:{self.port}"]\nrun_dir = "{self.run_dir}"\n{listen}\n{toml}'
        )
        self._wait = wait
        command = [sys.executable, "-m", "router", "serve", "--config", str(self.config_path)]
        super().__init__("router", command, directory / "router.log", environment)

    def start(self) -> Self:
        """Write the configuration, start the router and wait for it; the same call starts it again after its end."""
        self.write_config()
        super().start()
        wanted = {200} if self._wait else {200, 503}
        self._wait_started(lambda: wait_until(lambda: self.ready_status() in wanted, "/ready", READY_S))
        return self

    def write_config(self) -> None:
        """Make the run directory and write the configuration."""
        self.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.config_path.write_text(self._toml, encoding="utf-8")

    def counter(self, name: str) -> int:
        """Return the value of a counter."""
        reader = CountersReader.attach(find_current(self.instance_dir) / "counters")
        try:
            return {spec.name: value for spec, value in reader.read()}[name]
        finally:
            reader.close()

    def ready_status(self) -> int:
        """Return the status of /ready, 0 while nothing answers."""
        self.check_running()
        try:
            return get("127.0.0.1", self.port, "/ready")[0]
        except OSError:
            return 0


class KeeperProcess(Program):
    """`python -m router keep` for a router, with its configuration; it may run before and after it."""

    def __init__(self, router: RouterProcess, environment: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "router", "keep", "--config", str(router.config_path)]
        self._router = router
        super().__init__("keeper", command, router.config_path.with_name("keeper.log"), environment)

    def start(self) -> Self:
        """Start it and wait until it says that it keeps."""
        self._router.write_config()
        super().start()
        self._wait_started(lambda: wait_until(self._is_keeping, "it keeps", READY_S))
        return self

    def _is_keeping(self) -> bool:
        self.check_running()
        return "keeping" in self.log_text()


class HostProcess(Program):
    """One of the embedded model hosts, on a unix socket in ``directory``; ``more`` overrides its arguments."""

    def __init__(self, directory: Path, host: EmbeddedHost, *more: str) -> None:
        self.model = host.model
        self.socket_path = directory / f"{host.name}.sock"
        self.url = f"unix://{self.socket_path}"
        command = host.command(find_host_python(), self.socket_path, *more)
        super().__init__(host.name, command, directory / f"{host.name}.log")

    def start(self) -> Self:
        """Start the host and wait until its model is loaded."""
        read_fd, write_fd = os.pipe()
        try:
            command = [*self.command, "--ready-fd", str(write_fd)]
            self.process = spawn(command, self.log_path, pass_fds=(write_fd,), environment=self.environment)
        finally:
            os.close(write_fd)
        try:
            self._wait_started(lambda: wait_ready_line(read_fd))
        finally:
            os.close(read_fd)
        return self

    def toml(self, **keys: Any) -> str:
        """Return the ``[[hosts]]`` table of this host; ``keys`` are further ones of it."""
        return host_toml(self.name, self.url, kind="llama.cpp", models=[self.model], **keys)

    def busy_slot_count(self) -> int:
        """Return how many requests it runs now. While it is asked this, it notices clients that left later."""
        status, body = get_unix(self.socket_path, "/slots")
        assert status == 200, f"/slots answered {status}"
        return sum(slot["is_processing"] for slot in json.loads(body))

    def generated_token_count(self) -> int:
        """Return how many tokens it has generated since its start, by its own metrics."""
        _, body = get_unix(self.socket_path, "/metrics")
        line = next(line for line in body.decode().splitlines() if line.startswith("llamacpp:tokens_predicted_total"))
        return int(float(line.split()[1]))


def wait_ready_line(read_fd: int) -> None:
    """Wait until a host has written its READY line; fail if it ends before or takes too long."""
    readable, _, _ = select.select([read_fd], [], [], READY_S)
    assert readable, f"no READY line within {READY_S:g} s"
    assert os.read(read_fd, 4096), "it ended before it was ready"


def host_toml(name: str, url: str, **keys: Any) -> str:
    """Return a ``[[hosts]]`` table; the values of ``keys`` are strings, numbers, booleans or lists of them."""
    values = {"name": name, "url": url, **keys}  # JSON of these is TOML too
    return "\n[[hosts]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def get(host: str, port: int, path: str, timeout_s: float = 5.0) -> tuple[int, bytes]:
    """Return status and body of a GET; raises ``OSError`` when nothing answers."""
    return _get(http.client.HTTPConnection(host, port, timeout=timeout_s), path)


def get_unix(socket_path: Path, path: str, timeout_s: float = 5.0) -> tuple[int, bytes]:
    """Return status and body of a GET on a unix socket; raises ``OSError`` when nothing answers."""
    return _get(UnixConnection(socket_path, timeout_s), path)


def _get(connection: http.client.HTTPConnection, path: str) -> tuple[int, bytes]:
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException as error:
        raise ConnectionError(f"GET {path}: {error!r}") from error
    finally:
        connection.close()
