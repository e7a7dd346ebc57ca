"""Readers of a router's records that are killed or stopped at any moment: no client notices."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic_ns

import pytest

from ringbuffer import find_current
from tests.faults.stage import MS, QUIET, SHORT_TICK, Stage, host_entry
from tests.support import scripted_host as sh
from tests.support.scripted_host import ScriptedHost, chunk, token

TOKEN_COUNT = 400
PACE_S = 0.005
HIT_WITHIN_S = 0.8 * TOKEN_COUNT * PACE_S
LATE_NS_MAX = 50 * MS
"""How much later than the host's pace a token may come; a busy machine gets three tries."""
READERS_OF_A_KIND = 3
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)
BARE_READER = """
import sys, time
from pathlib import Path
from ringbuffer import BroadcastReader
ring, position = Path(sys.argv[1]), sys.argv[2:]
reader = BroadcastReader.attach(ring, join="oldest", position=Path(position[0]) if position else None)
print("ready", flush=True)
while True:
    reader.poll(1000)
    time.sleep(0.0005)
"""


@pytest.fixture(scope="module")
def host() -> Iterator[ScriptedHost]:
    with ScriptedHost("alpha") as host:
        yield host


@pytest.fixture(scope="module")
def running_stage(directory: Path, host: ScriptedHost) -> Iterator[Stage]:
    with Stage(directory, [host], QUIET + SHORT_TICK + host_entry(host)) as stage:
        yield stage


Commands = Callable[[Stage, int], list[str | Path]]


def bare(ring: str, *, with_position: bool) -> Commands:
    def command(stage: Stage, number: int) -> list[str | Path]:
        generation = find_current(stage.router.instance_dir)
        position = [generation / "readers" / f"bare-{number}"] if with_position else []
        return [sys.executable, "-c", BARE_READER, generation / ring, *position]

    return command


def router_command(*arguments: str) -> Commands:
    def command(stage: Stage, _number: int) -> list[str | Path]:
        return [sys.executable, "-m", "router", *arguments, "--config", stage.router.config_path]

    return command


KINDS: dict[str, Commands] = {
    "tail": router_command("tail", "--json"),
    "stats": router_command("stats", "--watch", "0.1"),
    "bare": bare("tokens.ring", with_position=False),
    "with-position": bare("tokens.ring", with_position=True),
    "of-requests": bare("requests.ring", with_position=True),
}


class Readers:
    """Readers that have begun to read, and a thread that sends each of them a signal at a random moment."""

    def __init__(self, stage: Stage, rng: random.Random) -> None:
        self._rng = rng
        self._processes = [
            subprocess.Popen(KINDS[kind](stage, number), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for number, kind in enumerate(list(KINDS) * READERS_OF_A_KIND)
        ]
        self._thread = threading.Thread(target=self._send_signals)
        self._stop = threading.Event()
        self.sent: list[signal.Signals] = []

    def __enter__(self) -> Readers:
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdout.readline(), "each prints a line as soon as it reads"
        return self

    def start(self) -> None:
        self._thread.start()

    def _send_signals(self) -> None:
        remaining = list(self._processes)
        self._rng.shuffle(remaining)
        moments_s = sorted(self._rng.uniform(0, HIT_WITHIN_S) for _ in remaining)
        began_ns = monotonic_ns()
        for number, (process, moment_s) in enumerate(zip(remaining, moments_s, strict=True)):
            if self._stop.wait(max(0.0, moment_s - (monotonic_ns() - began_ns) / 1e9)):
                return
            self.sent.append(SIGNALS[number % len(SIGNALS)])
            process.send_signal(self.sent[-1])

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for process in self._processes:
            process.kill()  # those that are stopped as well
            process.communicate()


def latest_gap_ns(stage: Stage, host: ScriptedHost) -> int:
    """Read a paced stream while readers are killed; return by how much the latest token was late."""
    texts = [f"t{number} " for number in range(TOKEN_COUNT)]
    pieces = [step for text in texts for step in (PACE_S, chunk(token(text)))]
    host.script(sh.stream_head(), chunk(sh.ROLE), *pieces, *map(chunk, (sh.FINISH, sh.DONE)), sh.LAST_CHUNK)
    seed = int.from_bytes(os.urandom(4), "big")
    with Readers(stage, random.Random(seed)) as readers:
        client = stage.client()
        client.chat()
        gaps_ns = []
        for text in ("", *texts):  # the role comes first
            last_ns = client.last_read_ns or monotonic_ns()
            gaps_ns.append(client.wait_for(f'"{text}"'.encode()) - last_ns)
            if not text:
                readers.start()
        answer = client.answer()
    assert answer.text == "".join(texts), f"seed {seed}: every token came once and in order"
    assert answer.ended
    assert len(readers.sent) == len(KINDS) * READERS_OF_A_KIND, "all were hit while the tokens came"
    return max(gaps_ns[1:]) - round(PACE_S * 1000) * MS


def test_a_killed_or_stopped_reader_delays_no_token(stage: Stage, host: ScriptedHost) -> None:
    stage.client().chat(stream=False)  # so that `tail` has a line to begin with
    stage.last_finished()
    late_ns = []
    for _ in range(3):
        late_ns.append(latest_gap_ns(stage, host))
        record = stage.last_finished()
        assert record["outcome"] == "ok"
        assert record["n_events"] == TOKEN_COUNT + 3
        if late_ns[-1] <= LATE_NS_MAX:
            break
    assert late_ns[-1] <= LATE_NS_MAX, f"milliseconds: {[ns / MS for ns in late_ns]}"
    assert "error" not in stage.router.log_text().lower()
