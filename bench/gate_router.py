"""Routers for the gate: alone, or with every system call counted."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.build import program
from bench.closing import Closing
from bench.config import config_text, router_command, router_environment
from bench.gate_lockstep import SILENCE_S, Hosts
from bench.processes import STOP_LIMIT_S, free_port

_POLL_S = 0.002
CANNOT_TRACE_STATUS = 125
"""Exit status of ``c/syscalls.c`` where the system does not let it trace its child."""


class CannotTraceError(RuntimeError):
    """System calls cannot be counted here; the message says why."""


class GateRouter(Closing):
    """A router in front of scripted hosts, ready when it is made; a context manager that ends it."""

    def __init__(
        self, hosts: Hosts, *, wrapper: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="ringrouter-gate-", dir="/dev/shm"))
        run_dir = self._directory / "run"
        self.target = f"127.0.0.1:{free_port()}"
        self.zeromq_endpoint = f"ipc://{run_dir}/main/zmq.sock"
        self.log = self._directory / "log"
        config_file = self._directory / "gate.toml"
        config_file.write_text(config_text(self.target, hosts.urls, run_dir), encoding="utf-8")
        begin_s = time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*wrapper, *router_command(config_file)],
                env=router_environment() | {"PYTHONHASHSEED": "0"} | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            self._wait_ready(hosts)
        except BaseException:
            self.close()
            raise
        self.ready_s = time.monotonic() - begin_s
        """From the start of the process to the answer that it is ready."""

    def _wait_ready(self, hosts: Hosts) -> None:
        deadline_s = time.monotonic() + SILENCE_S
        while not self._is_ready():
            hosts.answer_probes(_POLL_S)
            if self.process.poll() == CANNOT_TRACE_STATUS:
                raise CannotTraceError(self.log_end())
            if self.process.poll() is not None:
                raise RuntimeError(f"the router ended with {self.process.returncode}:\n{self.log_end()}")
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"the router was not ready in {SILENCE_S:g} s:\n{self.log_end()}")

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection(self.target, timeout=SILENCE_S)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def log_end(self) -> str:
        """Return the last lines that the router wrote."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])

    def close(self) -> None:
        """End the router and remove its directory."""
        self.process.terminate()
        try:
            self.process.communicate(timeout=STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        shutil.rmtree(self._directory, ignore_errors=True)


class CountedRouter(GateRouter):
    """A router whose system calls are counted, those of its threads included."""

    def __init__(self, hosts: Hosts) -> None:
        super().__init__(hosts, wrapper=[str(program("syscalls"))])

    def system_calls(self) -> tuple[Counter[str], Counter[str]]:
        """Return how many calls were begun until now, by name: those of the router's thread, and of the others."""
        assert self.process.stdout is not None
        self.process.send_signal(signal.SIGUSR1)
        own, others = json.loads(self.process.stdout.readline())
        return Counter(own), Counter(others)
