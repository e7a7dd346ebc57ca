"""Readers of a router's records that are killed or stopped at any moment: no client notices.

What a token may be late by depends on the machine, so it is compared within one run. Streams without readers alternate
with streams during which each kind of reader gets each signal at a random moment. A block that a reader causes comes
every time, the machine's own pauses do not: for each kind and signal the smallest lateness over all rounds counts,
beside that of streams without readers at moments drawn in the same way. Rounds go on until the two agree.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from time import monotonic_ns, sleep
from typing import NamedTuple

import pytest

from ringbuffer import find_current
from tests.faults.stage import MS, QUIET, SHORT_TICK, Stage, host_entry
from tests.support import scripted_host as sh
from tests.support.scripted_host import ScriptedHost, chunk, token

TOKEN_COUNT = 400
PACE_S = 0.005
PACE_NS = round(PACE_S * 1000) * MS
HIT_WITHIN_S = 0.8 * TOKEN_COUNT * PACE_S
WINDOW_NS = 50 * MS
"""How long after a signal tokens count as those that come behind it."""
MARGIN_NS = 20 * MS
"""What readers may cost more than none, as they want a core now and then too; a router that waited for one of them
would wait for a time-out, or for ever."""
ROUNDS_MAX = 10
PLANTED_S = 0.3
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


Hit = tuple[str, signal.Signals]
"""A kind of reader, and the signal it gets."""
HITS: tuple[Hit, ...] = tuple((kind, number) for kind in KINDS for number in SIGNALS)


class Round(NamedTuple):
    """When the tokens of a stream came, and when each hit was; without readers the moments are only looked at."""

    token_ns: list[int]
    hit_ns: dict[Hit, int]

    def lateness_ns(self, hit: Hit) -> int:
        """Return how late the latest token was of those that came, or were waited for, behind a hit."""
        begin_ns = self.hit_ns[hit]
        pairs = zip(self.token_ns, self.token_ns[1:], strict=False)
        gaps = [after - before for before, after in pairs if after >= begin_ns and before <= begin_ns + WINDOW_NS]
        return max(gaps) - PACE_NS


def smallest_lateness_ns(rounds: Iterable[Round]) -> dict[Hit, int]:
    return {hit: min(each.lateness_ns(hit) for each in rounds) for hit in HITS}


def blocks(without: Sequence[Round], disturbed: Sequence[Round]) -> dict[Hit, int]:
    """Return the hits behind which tokens were later in every round than they ever are without readers."""
    bound_ns = max(smallest_lateness_ns(without).values()) + MARGIN_NS
    return {hit: late_ns for hit, late_ns in smallest_lateness_ns(disturbed).items() if late_ns > bound_ns}


class Hits:
    """A thread that at random moments, in random order, does something for each hit, and notes when."""

    def __init__(self, rng: random.Random, strike: Callable[[Hit], None]) -> None:
        self._rng = rng
        self._strike = strike
        self._thread = threading.Thread(target=self._run)
        self._stop = threading.Event()
        self.hit_ns: dict[Hit, int] = {}

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        order = self._rng.sample(HITS, len(HITS))
        moments_s = sorted(self._rng.uniform(0, HIT_WITHIN_S) for _ in order)
        began_ns = monotonic_ns()
        for hit, moment_s in zip(order, moments_s, strict=True):
            if self._stop.wait(max(0.0, moment_s - (monotonic_ns() - began_ns) / 1e9)):
                return
            self.hit_ns[hit] = monotonic_ns()
            self._strike(hit)

    def end(self) -> None:
        self._stop.set()
        self._thread.join()


class Readers:
    """One reader for each hit; all have begun to read."""

    def __init__(self, stage: Stage) -> None:
        self._processes = {
            hit: subprocess.Popen(KINDS[hit[0]](stage, number), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for number, hit in enumerate(HITS)
        }

    def __enter__(self) -> Readers:
        for process in self._processes.values():
            assert process.stdout is not None
            assert process.stdout.readline(), "each prints a line as soon as it reads"
        return self

    def strike(self, hit: Hit) -> None:
        self._processes[hit].send_signal(hit[1])

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.kill()  # those that are stopped as well
            process.communicate()


def stream(stage: Stage, host: ScriptedHost, strike: Callable[[Hit], None]) -> Round:
    """Read a paced stream while the hits come."""
    texts = [f"t{number} " for number in range(TOKEN_COUNT)]
    pieces = [step for text in texts for step in (PACE_S, chunk(token(text)))]
    host.script(sh.stream_head(), chunk(sh.ROLE), *pieces, *map(chunk, (sh.FINISH, sh.DONE)), sh.LAST_CHUNK)
    seed = int.from_bytes(os.urandom(4), "big")
    hits = Hits(random.Random(seed), strike)
    client = stage.client()
    client.chat()
    client.wait_for(b'""')  # the role comes first
    hits.start()
    try:
        token_ns = [client.wait_for(f'"{text}"'.encode()) for text in texts]
        answer = client.answer()
    finally:
        hits.end()
    assert answer.text == "".join(texts), f"seed {seed}: every token came once and in order"
    assert answer.ended
    assert hits.hit_ns.keys() == set(HITS), "all were hit while the tokens came"
    record = stage.last_finished()
    assert (record["outcome"], record["n_events"]) == ("ok", TOKEN_COUNT + 3)
    return Round(token_ns, hits.hit_ns)


def look_for_blocks(
    stage: Stage, host: ScriptedHost, rounds_max: int, plant: Callable[[Hit], None] | None = None
) -> dict[Hit, int]:
    """Return what is left of the blocks when no more were found, or after so many rounds; ``plant`` makes some."""
    without, disturbed = [], []
    found: dict[Hit, int] = {}
    for _ in range(rounds_max):
        without.append(stream(stage, host, lambda _: None))
        with Readers(stage) as readers:

            def strike(hit: Hit, readers: Readers = readers) -> None:
                readers.strike(hit)
                if plant is not None:
                    plant(hit)

            disturbed.append(stream(stage, host, strike))
        found = blocks(without, disturbed)
        if not found:
            break
    return found


def begin(stage: Stage) -> None:
    stage.client().chat(stream=False)  # so that `tail` has a line to begin with
    stage.last_finished()


def test_a_killed_or_stopped_reader_delays_no_token(stage: Stage, host: ScriptedHost) -> None:
    begin(stage)
    found = look_for_blocks(stage, host, ROUNDS_MAX)
    assert not found, f"milliseconds later, every time: { {hit: ns / MS for hit, ns in found.items()} }"
    assert "error" not in stage.router.log_text().lower()


def test_a_block_that_one_of_them_causes_is_found(stage: Stage, host: ScriptedHost) -> None:
    """As if the router waited for a lock of a reader that was killed: it stands still for a moment."""
    begin(stage)
    planted: Hit = ("with-position", signal.SIGKILL)

    def stand_still(hit: Hit) -> None:
        if hit == planted:
            stage.router.signal(signal.SIGSTOP)
            sleep(PLANTED_S)
            stage.router.signal(signal.SIGCONT)

    rounds = (look_for_blocks(stage, host, 1, stand_still) for _ in range(ROUNDS_MAX))
    assert any(planted in found for found in rounds), "unless the machine itself stood still as long before"
