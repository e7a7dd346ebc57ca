"""Start, pause and end peers. One that is not measured is stopped (SIGSTOP), so that it costs the others nothing."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.closing import Closing
from bench.harness import WARM_UP, Direct, Peer, Plan
from bench.machine import pinned
from bench.modes import Mode
from bench.peers_known import Known, Place
from bench.processes import ONE_STREAM, MockHosts, RouterSetup, free_port, run_load

READY_LIMIT_S = 90.0
"""Some peers import for tens of seconds on a slow machine."""
STOP_LIMIT_S = 5.0
WAKE_S = 0.15
"""After SIGCONT: what fell due while the peer was stopped is done before it is measured."""
TAGS = "hdr=x-ringrouter-tag-feature-name:bench hdr=x-ringrouter-tag-session-id:s1"
"""Sent to all peers alike; ringrouter records them."""
WARM_ANSWERS = "mode=closed conc=16 n=8 dur=0.8 warm=0"


class PeerProcess(Closing):
    """One process group of a peer, in front of the hosts; a context manager that ends it."""

    def __init__(self, known: Known, hosts: MockHosts, setup: RouterSetup, plan: Plan) -> None:
        """Start it; :meth:`wait_ready` says when it serves."""
        self._known = known
        self._load_core = plan.load_core
        self._directory = Path(tempfile.mkdtemp(prefix=f"bench-{known.name}-", dir="/dev/shm"))
        place = Place(free_port(), free_port(), self._directory, tuple(hosts.addresses), setup)
        self.target = place.listen
        self._log = self._directory / "log"
        self._process = self._start(known.command(place), plan.router_core)
        self.pid = self._process.pid
        self._reader: subprocess.Popen[bytes] | None = None

    def _start(self, command: list[str], core: int | None) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log, pinned(core):
            return subprocess.Popen(
                command,
                env={**os.environ, **self._known.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                start_new_session=True,  # a process group of its own, to be signalled as one
            )

    def wait_ready(self) -> None:
        """Return when a streamed answer has come through whole; raises ``RuntimeError`` with the end of the log."""
        deadline_s = time.monotonic() + READY_LIMIT_S
        last: dict[str, Any] = {}
        while time.monotonic() < deadline_s:
            self.check_running()
            last = run_load(self.target, f"{ONE_STREAM} {TAGS}", core=self._load_core)
            if last["ok"] == 1:
                return
            time.sleep(0.2)
        raise RuntimeError(f"not ready in {READY_LIMIT_S:g} s: {last.get('errors')}\n{self.log_end()}")

    def attach_reader(self) -> None:
        """Start a reader of ringrouter's rings beside the load."""
        script = Path(__file__).with_name("peers_reader.py")
        self._reader = self._start([sys.executable, str(script), str(self._directory / "run")], self._load_core)

    def check_running(self) -> None:
        """Raise ``RuntimeError``, with the end of its log, when the peer or its reader has ended."""
        for process in filter(None, (self._process, self._reader)):
            if process.poll() is not None:
                raise RuntimeError(f"ended with {process.returncode}:\n{self.log_end()}")

    def log_end(self) -> str:
        """Return the last lines that the peer wrote."""
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-10:])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the peer with its children, and to its reader."""
        for process in filter(None, (self._process, self._reader)):
            if process.poll() is None:
                os.killpg(process.pid, number)

    def close(self) -> None:
        """End the processes and remove their folder."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        for process in filter(None, (self._process, self._reader)):
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)


class StartedPeer:
    """A peer as the harness sees it: one process, or one for each setup that the modes ask for."""

    host_slot_factor = 1
    load_arguments = TAGS

    def __init__(self, known: Known, processes: dict[RouterSetup, PeerProcess]) -> None:
        self.name = known.name
        self._follows_setup = known.follows_setup
        self._processes = processes

    def _process(self, mode: Mode) -> PeerProcess:
        return self._processes[mode.setup if self._follows_setup else RouterSetup()]

    def target(self, mode: Mode) -> str:
        return self._process(mode).target

    def pid(self, mode: Mode) -> int | None:
        process = self._process(mode)
        process.check_running()
        return process.pid

    @contextlib.contextmanager
    def resumed(self, mode: Mode) -> Iterator[None]:
        process = self._process(mode)
        process.signal(signal.SIGCONT)
        time.sleep(WAKE_S)
        try:
            yield
        finally:
            process.signal(signal.SIGSTOP)


class TaggedDirect(Direct):
    """No peer, with the request that the peers get."""

    load_arguments = TAGS


def open_peers(
    chosen: list[Known], plan: Plan, hosts: MockHosts, stack: contextlib.ExitStack
) -> tuple[list[Peer], dict[str, str]]:
    """Start the chosen peers, stopped until they are measured; returns them, and why others are left out, by name."""
    _allow_many_descriptors()
    peers: list[Peer] = [TaggedDirect(hosts)]
    left_out: dict[str, str] = {}
    for known in chosen:
        missing = known.missing()
        try:
            if missing:
                raise RuntimeError(missing)
            peers.append(_open_peer(known, plan, hosts, stack))
        except (RuntimeError, OSError) as error:
            left_out[known.name] = str(error)
    return peers, left_out


def _open_peer(known: Known, plan: Plan, hosts: MockHosts, stack: contextlib.ExitStack) -> StartedPeer:
    setups = {mode.setup for mode in plan.modes} if known.follows_setup else {RouterSetup()}
    processes = {}
    for setup in setups:
        process = stack.enter_context(PeerProcess(known, hosts, setup, plan))
        process.wait_ready()
        if known.follows_setup:
            process.attach_reader()
        for load in (WARM_UP, WARM_ANSWERS):
            run_load(process.target, f"{load} {TAGS}", core=plan.load_core)
        process.signal(signal.SIGSTOP)
        processes[setup] = process
    return StartedPeer(known, processes)


def _allow_many_descriptors() -> None:
    """Let the peers have as many as this user may: a proxy has two for each stream."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
