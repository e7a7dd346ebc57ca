"""The keeper as a process, and the commands that ask it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from router.cli.keeper_client import KeeperClient, KeeperError
from tests.support.processes import READY_S, Program
from tests.support.waiting import wait_until


class KeeperProcess(Program):
    """`python -m router keep` with a router's configuration; ``start`` and ``with`` return when it answers."""

    def __init__(self, directory: Path, config_path: Path, run_dir: Path) -> None:
        self.config_path = config_path
        self.socket_path = run_dir / "keep.sock"
        command = [sys.executable, "-m", "router", "keep", "--config", str(config_path)]
        super().__init__("keeper", command, directory / "keeper.log")

    def start(self) -> Self:
        """Start it and wait until it answers."""
        super().start()
        self._wait_started(lambda: wait_until(self.status, "the keeper answers", READY_S))
        return self

    def status(self) -> dict[str, Any]:
        """Return how it does, nothing while it does not answer."""
        self.check_running()
        try:
            with KeeperClient(self.socket_path) as client:
                answer: dict[str, Any] = client.ask("status")
                return answer
        except KeeperError:
            return {}

    def entry_count(self) -> int:
        """Return how many vectors the store has."""
        return int(self.status()["embeddings"]["entries"])


def command(config_path: Path, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run `ringrouter cache …` with a configuration."""
    line = [sys.executable, "-m", "router", "cache", *arguments, "--config", str(config_path)]
    return subprocess.run(line, capture_output=True, text=True, timeout=timeout_s, check=False, env=dict(os.environ))


def json_of(done: subprocess.CompletedProcess[str], status: int = 0) -> dict[str, Any]:
    """Return what a command printed with --json; fail if it ended otherwise than expected."""
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
