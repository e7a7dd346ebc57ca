"""The screens of ``ringrouter stats`` for a router that is idle, busy, hung, dead and restarted, whole.

One router goes through all of it, once. What is different in every run (times, rates, ids, what the machine had to do
with it) stands as a word in capitals in ``screens/``; every other character is compared.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringbuffer import BroadcastReader, CountersReader, find_current
from router import cli
from router.telemetry.counters import CATALOGUE
from router.telemetry.reader import DoneReader, InflightReader
from tests.faults.client import Client
from tests.faults.stage import QUIET, SHORT_TICK, host_entry
from tests.support import scripted_host as sh
from tests.support.processes import RouterProcess
from tests.support.scripted_host import ScriptedHost, chunk
from tests.support.waiting import shared_memory_directory, wait_until

SCREENS = Path(__file__).parent / "screens"
EXIT_CODES = {"idle": 0, "busy": 0, "hung": 4, "dead": 3, "restarted": 0}
HUNG_AFTER_S = "1"
"""Shorter than the default, so that the test need not wait; a heartbeat comes every second at least, just not here."""
PAUSE_S = 0.02
FLOW: list[sh.Step] = [sh.stream_head(), chunk(sh.ROLE), *[chunk(sh.token("x")), PAUSE_S] * 3000]
"""Tokens for longer than the test takes."""
PACED: list[sh.Step] = [sh.stream_head(), chunk(sh.ROLE)]
for each in (*sh.TOKENS, sh.FINISH, sh.USAGE, sh.DONE):
    PACED += [chunk(each), PAUSE_S]
PACED.append(sh.LAST_CHUNK)
REFUSED = sh.json_answer(500, {"error": {"message": "the prompt was: a secret"}})

DURATION = r"\d[\d,]*(?:\.\d+)? (?:ns|µs|ms|s)\b"
SPAN = r"\d[\d.]*[smhd](?: \d\d[smh])?\b"
REPLACED = (
    (r"\d{4}-\d\d-\d\dT\d\d:[\d:.]+[+-]\d\d:\d\d", "DATE"),
    (DURATION, "TIME"),
    (rf"(?<=up ){SPAN}|(?<=last ){SPAN}|(?<=heard of ){SPAN}", "TIME"),
    (r"[\d.,]+(?=/s over that time)|(?<![\d.])(?!0\.0)[\d.,]+(?= token events/s)", "RATE"),
    (r"(?m)^( +gpu-0 .*) \S+$", r"\1 RATE"),
    (r"(?<=tokens: )(.*\n +published) [1-9][\d,]*(?=, )", r"\1 N"),
    (r"rate/s [1-9][\d,]*(?=, laps 0, holds)", "rate/s RATE"),
    (r"[\d,]+ events behind, (?:< )?[\d.]+ %", "N events behind, PERCENT"),
    (r"\d+ cycles? over", "N cycles over"),
    (r"[\d,]+ - (client connections accepted|connections opened|longest time|times it did so)", r"N - \1"),
    (r"[1-9][\d,]* - (bytes of answers)", r"N - \1"),
    (r"(?m)  [+-][\d,]+/s$", ""),
    (r"(?m)^ *\d+:  0 - .*\n", ""),
    (r"\d+(?= x 256 B)|(?<=schema )[\d.]+", "N"),
)
"""Patterns and words, one after the other. Counters that are 0 are left out here: there will be more of them."""


def normalised(screen: str, run_dir: Path, pids: list[int]) -> str:
    """Return a screen with words for what is different in every run, and at most two spaces at a place."""
    words = {os.getpid(): "TEST"} | {pid: f"PID{number}" for number, pid in enumerate(pids)}
    screen = re.sub(r"(?<=pid )\d+", lambda found: words[int(found[0])], screen)
    for number, path in enumerate(sorted((run_dir / "main").glob("[0-9]*"), key=lambda path: int(path.name))):
        screen = screen.replace(path.name, f"GENERATION{number}")
    screen = re.sub(r"(?<=\S) {2,}", "  ", screen.replace(str(run_dir), "RUN"))
    for pattern, word in REPLACED:
        screen = re.sub(pattern, word, screen)
    return screen


class Scene:
    """The router with its clients, and what its screen shows."""

    def __init__(self, router: RouterProcess) -> None:
        self.router = router
        self.pids = [router.pid]
        self.readers: list[BroadcastReader] = []
        self._clients: list[Client] = []

    def ask(self, *, stream: bool = True) -> Client:
        """Send a request on a connection of its own."""
        client = Client(self.router.port)
        client.chat(model="chat", stream=stream)
        self._clients.append(client)
        return client

    def look(self) -> tuple[int, str]:
        """Return exit code and screen."""
        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = cli.main(["stats", "--run-dir", str(self.router.run_dir), "--hung-after", HUNG_AFTER_S])
        screen = out.getvalue()
        labels = re.findall(r"(?m)^ *\d+: +[\d,]+ - (.*\])", screen)
        assert labels == [f"{spec.label} [{spec.unit}]" for spec in CATALOGUE], "every counter, with label and unit"
        return code, normalised(screen, self.router.run_dir, self.pids)

    def wait_look(self, code: int, shows: str = "") -> tuple[int, str]:
        """Look until the exit code is this one and the screen shows something."""
        looks: list[tuple[int, str]] = []

        def is_so() -> bool:
            looks.append(self.look())
            return looks[-1][0] == code and shows in looks[-1][1]

        wait_until(is_so, f"exit code {code} and {shows!r}")
        return looks[-1]

    def wait_counters(self, **values: int) -> None:
        """Wait until counters have these values."""
        counters = CountersReader.attach(find_current(self.router.instance_dir) / "counters")

        def are_so() -> bool:
            return values.items() <= {spec.name: value for spec, value in counters.read()}.items()

        wait_until(are_so, str(values))
        counters.close()

    def close(self) -> None:
        for each in (*self._clients, *self.readers):
            each.close()


@pytest.fixture(scope="module")
def screens() -> Iterator[dict[str, tuple[int, str]]]:
    """Exit code and screen of each state."""
    with shared_memory_directory() as directory, ScriptedHost("gpu-0", models=("chat",)) as host:
        router = RouterProcess(directory, QUIET + SHORT_TICK + host_entry(host, slots=2))
        with router:
            scene = Scene(router)
            scene.wait_counters(connections_open=0)
            seen = {"idle": scene.wait_look(0)}
            make_busy(scene, host)
            seen["busy"] = scene.wait_look(0)
            router.signal(signal.SIGSTOP)
            seen["hung"] = scene.wait_look(4, "pid TEST hung")
            router.kill()
            seen["dead"] = scene.look()
            scene.close()
            router.start()
            scene.pids.append(router.pid)
            scene.wait_counters(connections_open=0)
            seen["restarted"] = scene.wait_look(0)
            yield seen


def make_busy(scene: Scene, host: ScriptedHost) -> None:
    """Finish two requests, one of them in an error; then have two run and one wait, and a reader that falls behind."""
    host.script(*PACED)
    assert scene.ask().answer().ended
    host.script(REFUSED)
    assert scene.ask(stream=False).answer().status == 500
    generation = find_current(scene.router.instance_dir)
    with DoneReader(generation, "oldest") as done:
        wait_until(lambda: done.published_count == 2, "both done records are written")
    for _ in range(2):
        host.script(*FLOW)
        scene.ask().wait_for(b'"x"')
    scene.ask()
    scene.wait_counters(in_flight=3, waiting=1, connections_open=5)
    inflight = InflightReader(generation)
    phases = ["decode", "decode", "waiting"]
    wait_until(lambda: sorted(row["phase"] for row in inflight.read()) == phases, "two run, one waits")
    inflight.close()
    scene.readers.append(
        BroadcastReader.attach(generation / "tokens.ring", "oldest", generation / "readers" / "observe")
    )


@pytest.mark.parametrize("state", EXIT_CODES)
def test_the_screen(screens: dict[str, tuple[int, str]], state: str) -> None:
    code, screen = screens[state]
    assert code == EXIT_CODES[state]
    assert screen == (SCREENS / f"{state}.txt").read_text(encoding="utf-8")


def test_a_reader_that_does_not_read_is_said_to_fall_behind(screens: dict[str, tuple[int, str]]) -> None:
    assert "observe is N events behind, PERCENT of the ring" in screens["busy"][1]


@pytest.mark.parametrize("state", EXIT_CODES)
def test_nothing_that_a_host_said_is_shown(screens: dict[str, tuple[int, str]], state: str) -> None:
    assert "secret" not in screens[state][1]
