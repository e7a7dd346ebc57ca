"""Two real llama.cpp hosts behind routing policies: chats with a long shared system prompt, turn after turn.

    make hosts
    python -m bench.affinity
    python -m bench.affinity --rounds 5 --chats 6 --turns 4 --into docs/routing.md

In each round every policy gets the same load in a router of its own, one after the other; the hosts run on, and a text
of its own at the beginning of every run's prompts keeps what one run left there from helping another. Times are the
client's, from the request's first byte to the first event with text. First turns, for which nobody holds anything but
the system prompt, are told apart from later ones. Compare within one run only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bench import machine, report
from bench.config import router_command, router_environment
from bench.policies_run import percentile
from bench.processes import free_port
from router.embedded.child import spawn
from router.embedded.hosts import CHAT, HostPythonMissingError, find_host_python

POLICIES = {
    "round robin": 'policy = "round_robin"',
    "least outstanding": 'policy = "least_outstanding"',
    "sticky sessions": 'policy = "least_outstanding"\nsticky = "session_id"',
    "prefix affinity": 'policy = "prefix_affinity"',
}
HOST_COUNT = 2
SLOT_COUNT = 4
READY_S = 60.0
ANSWER_S = 120.0
ANSWER_TOKENS = 12
PAUSE_S = 0.5
"""Mean time between an answer and the chat's next turn."""
SYSTEM = "You are the assistant of a small library and answer in one short sentence. "
SYSTEM_REPEATS = 20
"""About 300 tokens, which one thread reads in one to two seconds."""
QUESTIONS = (
    "Which book do you recommend to somebody who likes the sea?",
    "Who wrote it, and when was that?",
    "Is there another one by the same author?",
    "What should I read after these two?",
    "Do you have it in large print?",
    "How long may I keep it?",
)
BESIDE = "I ask because my daughter has to write a report for school until Friday, and she would rather read it. "
BESIDE_REPEATS = 3
"""About 70 tokens more for each question."""


class Answer(NamedTuple):
    """One turn: seconds to its first text, tokens of its prompt, how many of those the host held, and its text."""

    turn: int
    ttft_s: float
    prompt_tokens: int
    held_tokens: int
    text: str


def main() -> int:
    """Measure, print the table, write it into a page if one is named; 1 when that is not possible."""
    arguments = _arguments()
    facts = "\n".join(f"* {fact}" for fact in machine.facts())
    try:
        answers = measure(arguments.policies, arguments.rounds, arguments.chats, arguments.turns)
    except (HostPythonMissingError, RuntimeError, OSError) as error:
        print(f"bench.affinity: {error}", file=sys.stderr)
        return 1
    load = f"{arguments.chats} chats of {arguments.turns} turns at a time, {arguments.rounds} rounds"
    hosts = f"{HOST_COUNT} llama.cpp hosts with {CHAT.model}, {SLOT_COUNT} slots and one thread each"
    text = f"{facts}\n* {hosts}; {load}\n\n{table(answers)}"
    print(text)
    if arguments.into is not None:
        page = arguments.into.read_text(encoding="utf-8")
        arguments.into.write_text(report.filled(page, {"affinity": text}), encoding="utf-8")
    return 0


def measure(policies: Sequence[str], rounds: int, chat_count: int, turn_count: int) -> dict[str, list[Answer]]:
    """Return all answers by policy."""
    answers: dict[str, list[Answer]] = {policy: [] for policy in policies}
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="ringrouter-bench-", dir="/dev/shm"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        sockets = [stack.enter_context(_host(directory, number)) for number in range(HOST_COUNT)]
        for round_number in range(rounds):
            for policy in policies:
                with _router(directory, sockets, policy) as port:
                    got = talk(port, chat_count, turn_count, f"{policy} {round_number}")
                answers[policy] += got
                print(f"round {round_number + 1}  {policy:18s} {_line(got)}", file=sys.stderr, flush=True)
    return answers


# ---------------------------------------------------------------- clients
def talk(port: int, chat_count: int, turn_count: int, name: str) -> list[Answer]:
    """Hold so many chats at once; return their answers. Raises ``RuntimeError`` when one of them fails."""
    answers: list[Answer] = []
    failures: list[str] = []

    def chat(number: int) -> None:
        pause = random.Random(f"{name} {number}")
        messages = [{"role": "system", "content": f"This is run {name}. {SYSTEM * SYSTEM_REPEATS}"}]
        try:
            time.sleep(pause.expovariate(1 / PAUSE_S))
            for turn in range(turn_count):
                question = f"Reader {number}: {QUESTIONS[turn % len(QUESTIONS)]} {BESIDE * BESIDE_REPEATS}"
                messages.append({"role": "user", "content": question})
                answer = ask(port, messages, f"{name} {number}", turn)
                answers.append(answer)
                messages.append({"role": "assistant", "content": answer.text})
                time.sleep(pause.expovariate(1 / PAUSE_S))
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            failures.append(f"{name}, chat {number}: {error}")

    threads = [threading.Thread(target=chat, args=(number,)) for number in range(chat_count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError("; ".join(failures))
    return answers


def ask(port: int, messages: Sequence[dict[str, str]], session: str, turn: int) -> Answer:
    """Ask for one stream and read it; raises ``RuntimeError`` when it is not a whole answer."""
    body = {
        "model": CHAT.model,
        "messages": list(messages),
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    begin_s = time.monotonic()
    try:
        headers = {"content-type": "application/json", "x-ringrouter-tag-session-id": session}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"status {response.status}: {response.read(500).decode(errors='replace')}")
        return _read(response, begin_s, turn)
    finally:
        connection.close()


def _read(response: http.client.HTTPResponse, begin_s: float, turn: int) -> Answer:
    ttft_s, text, usage = 0.0, "", {"prompt_tokens": 0}
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        event: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
        if "error" in event:
            raise RuntimeError(f"an error in the stream: {event['error']}")
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            content = choice["delta"].get("content")
            if content:
                ttft_s = ttft_s or time.monotonic() - begin_s
                text += content
    if not ttft_s:
        raise RuntimeError("the stream ended without text")
    details: dict[str, int] = usage.get("prompt_tokens_details") or {}  # type: ignore[assignment]
    return Answer(turn, ttft_s, usage["prompt_tokens"], details.get("cached_tokens", 0), text)


# ---------------------------------------------------------------- hosts and router
@contextmanager
def _host(directory: Path, number: int) -> Iterator[Path]:
    """Start a host; give the path of its socket when its model is loaded."""
    socket_path, log_path = directory / f"host-{number}.sock", directory / f"host-{number}.log"
    options = ("--slots", str(SLOT_COUNT), "--ctx", "2048", "--threads", "1", "--batch", "64")
    read_fd, write_fd = os.pipe()
    try:
        command = CHAT.command(find_host_python(), socket_path, *options, "--ready-fd", str(write_fd))
        process = spawn(command, log_path, pass_fds=(write_fd,))
    finally:
        os.close(write_fd)
    try:
        readable, _, _ = select.select([read_fd], [], [], READY_S)
        if not readable or not os.read(read_fd, 4096):
            raise RuntimeError(f"a host did not start:\n{log_path.read_text(errors='replace')[-2000:]}")
        yield socket_path
    finally:
        os.close(read_fd)
        process.kill()
        process.wait()


@contextmanager
def _router(directory: Path, sockets: Sequence[Path], policy: str) -> Iterator[int]:
    """Start a router that routes by a policy; give its port when both hosts can serve."""
    port = free_port()
    run_dir = Path(tempfile.mkdtemp(prefix="run-", dir=directory))
    config_path, log_path = run_dir / "bench.toml", run_dir / "log"
    hosts = "".join(
        f'\n[[hosts]]\nname = "host-{number}"\nurl = "unix://{path}"\nkind = "llama.cpp"\nmodels = ["{CHAT.model}"]\n'
        for number, path in enumerate(sockets)
    )
    config_path.write_text(
        f'version = 1\n[listen]\nhttp = ["127.0.0.1:{port}"]\nrun_dir = "{run_dir}"\n'
        f'[models."{CHAT.model}".routing]\n{POLICIES[policy]}\n{hosts}',
        encoding="utf-8",
    )
    with log_path.open("wb") as log:
        process = subprocess.Popen(router_command(config_path), env=router_environment(), stdout=log, stderr=log)
    try:
        _wait_ready(port, process)
        yield port
    except RuntimeError as error:
        raise RuntimeError(f"{error}\n{log_path.read_text(errors='replace')[-2000:]}") from None
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(run_dir, ignore_errors=True)


def _wait_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + READY_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise RuntimeError("the router ended")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/ready")
            hosts = json.load(connection.getresponse()).get("hosts", {})
            if hosts and set(hosts.values()) == {"healthy"}:
                return
        except (OSError, http.client.HTTPException, ValueError):
            pass  # it does not listen yet
        finally:
            connection.close()
        time.sleep(0.1)
    raise RuntimeError(f"the router was not ready in {READY_S:g} s")


# ---------------------------------------------------------------- what is printed
def table(answers: dict[str, list[Answer]]) -> str:
    """Return one row for each policy."""
    rows = [("policy", "first turn p50, ms", "p95", "later turns p50, ms", "p95", "tokens held of these")]
    for policy, got in answers.items():
        first, later = [a for a in got if not a.turn], [a for a in got if a.turn]
        rows.append((policy, *_times(first), *_times(later), _held(later)))
    return report.aligned(rows)


def _times(answers: Sequence[Answer]) -> tuple[str, str]:
    times_ms = sorted(1000 * answer.ttft_s for answer in answers)
    if not times_ms:
        return "-", "-"
    return f"{percentile(times_ms, 0.5):,.0f}", f"{percentile(times_ms, 0.95):,.0f}"


def _held(answers: Sequence[Answer]) -> str:
    prompt_tokens = sum(answer.prompt_tokens for answer in answers)
    return f"{100 * sum(answer.held_tokens for answer in answers) / prompt_tokens:.0f} %" if prompt_tokens else "-"


def _line(answers: Sequence[Answer]) -> str:
    later = [answer for answer in answers if answer.turn]
    p50_ms, p95_ms = _times(later)
    return f"later turns: TTFT p50 {p50_ms} ms, p95 {p95_ms} ms, {_held(later)} held"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.affinity", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--chats", type=int, default=4, help="at a time (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=6, help="of each chat (default: %(default)s)")
    parser.add_argument("--policies", default=",".join(POLICIES), help="default: %(default)s")
    parser.add_argument("--into", type=Path, help="page whose measured section is replaced")
    arguments = parser.parse_args()
    arguments.policies = arguments.policies.split(",")
    for name in arguments.policies:
        if name not in POLICIES:
            parser.error(f"--policies: {name!r} is none of {', '.join(POLICIES)}")
    for name in ("rounds", "chats", "turns"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}: {getattr(arguments, name)} is less than 1")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
