"""The keeper as a process that is asked how it does, and the commands that ask it."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

from router import cli
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

    def _is_keeping(self) -> bool:
        return bool(self.status())  # its log may tell of the one before

    def entry_count(self) -> int:
        """Return how many vectors the store has."""
        return int(self.status()["embeddings"]["entries"])


class Done(NamedTuple):
    """What a command came to."""

    returncode: int
    stdout: str
    stderr: str


def command(config_path: Path, *arguments: str) -> Done:
    """Run `ringrouter cache …` with a configuration, in this process: a new one takes half a second to start."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = cli.main(["cache", *arguments, "--config", str(config_path)])
    return Done(status, out.getvalue(), error.getvalue())


def json_of(done: Done, status: int = 0) -> dict[str, Any]:
    """Return what a command printed with --json; fail if it ended otherwise than expected."""
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
