"""Start and stop what a measurement needs: mock hosts, the router in front of them, the load generator."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.build import program
from bench.closing import Closing
from bench.config import MODEL, UNBOUNDED_SLOTS, config_text, router_command, router_environment
from bench.machine import pinned

READY_LIMIT_S = 30.0
STOP_LIMIT_S = 10.0
ONE_STREAM = "mode=stream conc=1 n=4 ttft=0 itl=0 maxreq=1 dur=4 warm=0 drain=0.5"
"""Readiness: a streamed answer that comes through whole."""


def run_load(target: str, arguments: str, *, core: int | None = None, limit_s: float = 120) -> dict[str, Any]:
    """Run the load generator against ``HOST:PORT`` or ``unix:/path`` and return its JSON; raises ``RuntimeError``."""
    command = [str(program("loadgen")), f"target={target}", f"model={MODEL}", *arguments.split()]
    with pinned(core):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, complaint = process.communicate(timeout=limit_s)
    finally:
        process.kill()  # without effect on one that has ended
        process.wait()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {complaint.strip()}")
    result: dict[str, Any] = json.loads(output)
    return result


class MockHosts(Closing):
    """One mock host process with several addresses; a context manager that ends it."""

    def __init__(self, listen: Sequence[str], options: str = "", *, core: int | None = None) -> None:
        """Start it and wait until it listens; port 0 takes a free one. ``options`` as ``c/mockhost.c`` lists them."""
        arguments = [*(f"listen={address}" for address in listen), f"model={MODEL}", *options.split()]
        with pinned(core):
            self._process = subprocess.Popen([str(program("mockhost")), *arguments], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        lines = [self._process.stdout.readline() for _ in listen]
        self.addresses = [line.removeprefix("listening ").strip() for line in lines]
        """What the load generator and the router connect to: ``HOST:PORT`` or ``unix:/path``."""
        if not all(self.addresses):
            self.close()
            raise RuntimeError(f"mockhost {' '.join(arguments)} did not start")

    @property
    def urls(self) -> list[str]:
        """The addresses as the router's configuration takes them."""
        return [
            f"unix://{address.removeprefix('unix:')}" if address.startswith("unix:") else f"http://{address}"
            for address in self.addresses
        ]

    def get(self, path: str) -> dict[str, Any]:
        """Ask the mock host itself, e.g. ``/stats?reset=1``; the first address must be a TCP one."""
        with urllib.request.urlopen(f"http://{self.addresses[0]}{path}", timeout=5) as response:
            answer: dict[str, Any] = json.load(response)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.communicate()


class RouterSetup(NamedTuple):
    """What a router must know of its hosts; routers with different setups are different processes."""

    slots: int = UNBOUNDED_SLOTS
    close: bool = False


NO_LIMITS = RouterSetup()


class RouterProcess(Closing):
    """``ringrouter serve`` in front of mock hosts, with a run directory of its own; a context manager that ends it."""

    def __init__(self, urls: Sequence[str], setup: RouterSetup = NO_LIMITS, *, core: int | None = None) -> None:
        """Start the router; :meth:`wait_ready` says when it serves."""
        self._directory = Path(tempfile.mkdtemp(prefix="ringrouter-bench-", dir="/dev/shm"))
        self.target = f"127.0.0.1:{free_port()}"
        self.run_dir = self._directory / "run"
        self._log = self._directory / "log"
        config_file = self._directory / "bench.toml"
        config_file.write_text(
            config_text(self.target, urls, self.run_dir, slots=setup.slots, close=setup.close),
            encoding="utf-8",
        )
        with self._log.open("wb") as log, pinned(core):
            self._process = subprocess.Popen(
                router_command(config_file), env=router_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.pid = self._process.pid
        self.zeromq_endpoint = f"ipc://{self.run_dir}/main/zmq.sock"

    def wait_ready(self, *, core: int | None = None, limit_s: float = READY_LIMIT_S) -> None:
        """Return when a streamed answer comes through whole; raises ``RuntimeError`` with the end of the log."""
        deadline_s = time.monotonic() + limit_s
        last: dict[str, Any] = {}
        while time.monotonic() < deadline_s:
            if self._process.poll() is not None:
                raise RuntimeError(f"the router ended with {self._process.returncode}:\n{self.log_end()}")
            last = run_load(self.target, ONE_STREAM, core=core)
            if last["ok"] == 1:
                return
            time.sleep(0.1)
        raise RuntimeError(f"the router was not ready in {limit_s:g} s: {last.get('errors')}\n{self.log_end()}")

    def log_end(self) -> str:
        """Return the last lines that the router wrote."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-20:])

    def stats(self) -> dict[str, Any]:
        """Return what ``ringrouter stats --json`` shows of it."""
        command = [sys.executable, "-m", "router", "stats", "--run-dir", str(self.run_dir), "--json"]
        output = subprocess.run(command, env=router_environment(), stdout=subprocess.PIPE, check=True).stdout
        shown: dict[str, Any] = json.loads(output)
        return shown

    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the router and remove its run directory."""
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)


def free_port() -> int:
    """Return a port of the loopback interface that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
