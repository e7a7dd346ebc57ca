"""What the clients of a router notice of its observer: of one that runs, and of one that is killed every second.

    python -m bench.observer_tail
    python -m bench.observer_tail --rounds 5 --streams 64 --seconds 10

The same load three times a round: without an observer, beside one, and beside one that gets SIGKILL each second and is
started again at once. Every answer must be right. Medians of the rounds; compare within one run only.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import machine
from bench.config import router_environment
from bench.processes import MockHosts, RouterProcess, free_port, run_load
from router.observer import client
from router.observer.client import ObserverError

KILL_EVERY_S = 1.0
START_POLL_S = 0.05
COLUMNS = (("ttft_over", "p50"), ("ttft_over", "p99"), ("tok", "p50"), ("tok", "p90"), ("tok", "p99"))


class Observer:
    """``ringrouter observe`` beside a router, with a data directory on tmpfs."""

    def __init__(self, run_dir: Path) -> None:
        self._data_dir = Path(tempfile.mkdtemp(prefix="ringrouter-bench-", dir="/dev/shm"))
        self.address = f"127.0.0.1:{free_port()}"
        options = ["--run-dir", str(run_dir), "--data-dir", str(self._data_dir), "--http", self.address]
        self._command = [sys.executable, "-m", "router", "observe", *options]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, env=router_environment(), stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def wait_up(self) -> None:
        """Return when it answers."""
        while True:
            try:
                client.state(self.address)
                return
            except ObserverError:
                if self._process.poll() is not None:
                    raise RuntimeError(f"{' '.join(self._command)} ended with {self._process.returncode}") from None
                threading.Event().wait(START_POLL_S)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._data_dir, ignore_errors=True)


@contextmanager
def no_observer(_: Path) -> Iterator[None]:
    yield


@contextmanager
def running(run_dir: Path) -> Iterator[None]:
    observer = Observer(run_dir)
    try:
        observer.wait_up()
        yield
    finally:
        observer.close()


@contextmanager
def killed(run_dir: Path) -> Iterator[None]:
    observer = Observer(run_dir)
    stop = threading.Event()

    def kill_again_and_again() -> None:
        while not stop.wait(KILL_EVERY_S):
            observer.kill()
            observer.start()

    killer = threading.Thread(target=kill_again_and_again)
    try:
        observer.wait_up()
        killer.start()
        yield
    finally:
        stop.set()
        if killer.ident is not None:
            killer.join()
        observer.close()


SETTINGS = {"no observer": no_observer, "observer": running, "observer killed": killed}


def main() -> int:
    """Print the table; 1 when an answer was wrong."""
    arguments = _arguments()
    print("\n".join(machine.facts()))
    load = f"mode=stream conc={arguments.streams} n=64 ttft=20000 itl=20000 dur={arguments.seconds} warm=0.5"
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SETTINGS}
    with MockHosts(["127.0.0.1:0"]) as hosts, RouterProcess(hosts.urls) as router:
        router.wait_ready()
        for _ in range(arguments.rounds):
            for name, observed in SETTINGS.items():
                with observed(router.run_dir):
                    runs[name].append(run_load(router.target, load))
    print("\n| µs | " + " | ".join(f"{kind} {percentile}" for kind, percentile in COLUMNS) + " | errors |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    for name, of_name in runs.items():
        print(f"| {name} | {' | '.join(_cells(of_name))} |")
    return int(any(_error_count(run) for of_name in runs.values() for run in of_name))


def _cells(runs: list[dict[str, Any]]) -> list[str]:
    medians = (statistics.median(run[kind][percentile] for run in runs) for kind, percentile in COLUMNS)
    return [*(f"{median:,.0f}" for median in medians), str(sum(map(_error_count, runs)))]


def _error_count(run: dict[str, Any]) -> int:
    return sum(run["errors"].values())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.observer_tail", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="loads of each kind (3)")
    parser.add_argument("--streams", type=int, default=32, help="streams at a time (32)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each load (6)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
