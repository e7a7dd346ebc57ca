"""The keeper as a process that is asked how it does, and the commands that ask it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from router.cli.keeper_client import KeeperClient, KeeperError
from tests.support.processes import KeeperProcess, RouterProcess


class AskedKeeper(KeeperProcess):
    """`python -m router keep` for a router; its status is what the keeper answers."""

    def __init__(self, router: RouterProcess) -> None:
        super().__init__(router)
        self.socket_path = router.run_dir / "keep.sock"

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
    return subprocess.run(line, capture_output=True, text=True, timeout=timeout_s, check=False)


def json_of(done: subprocess.CompletedProcess[str], status: int = 0) -> dict[str, Any]:
    """Return what a command printed with --json; fail if it ended otherwise than expected."""
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
