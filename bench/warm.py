"""What a system prompt sent ahead saves: ``python -m bench.warm``, with the model hosts of ``make hosts``.

A real host, a router and a keeper of their own. In each round a system prompt of about 1,500 tokens that the host has
never seen is asked with at once (cold), and another one after it was sent ahead (warm); the time is the client's, from
its request to the first token. Then the same for an answer at temperature 0 that the router has kept; and for a
question with 20 tools, of which all or the nearest 3 are sent, cold each time.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench import machine
from ringbuffer import find_current
from router.caches import published
from router.caches.published import PublishedTools, Subscription
from router.embedded.hosts import CHAT, EMBEDDING, HostPythonMissingError, find_host_python
from router.telemetry.reader import DoneReader
from tests.support.processes import HostProcess, KeeperProcess, RouterProcess
from tests.support.waiting import wait_until

WORDS = ("order", "customer", "refund", "parcel", "account", "invoice", "address", "answer", "policy", "ticket")
PROMPT_WORDS = 900
"""Makes about 1,500 tokens of this model."""
SUBJECTS = (
    *("weather", "calendar", "mail", "maps", "music", "news", "stocks", "recipes", "flights", "hotels", "invoices"),
    *("tickets", "parcels", "translation", "photos", "contacts", "alarms", "shopping", "football", "movies"),
)
NEAREST = 3
_WAIT_S = 120.0


def tool(subject: str) -> dict[str, Any]:
    """Return a function about a subject, as long as they usually are."""
    properties = {
        "query": {"type": "string", "description": f"What to look for among {subject}, in the words of the user."},
        "limit": {"type": "integer", "description": "How many results to return at most, ten if not given."},
        "language": {"type": "string", "description": "Language of the results, as a code of two letters."},
    }
    parameters = {"type": "object", "properties": properties, "required": ["query"]}
    return {"name": f"find_{subject}", "description": f"Find information about {subject}.", "parameters": parameters}


def prompt(number: int) -> str:
    """Return a system prompt unlike any other, from its first word on."""
    dice = random.Random(number)
    lines = [f"Rule {number}-{line}: " + " ".join(dice.choices(WORDS, k=9)) + "." for line in range(PROMPT_WORDS // 11)]
    return "\n".join(lines)


class Stand:
    """Host, router and keeper."""

    def __init__(self, directory: Path, threads: int) -> None:
        self.prompt_file = directory / "prompt.txt"
        self.prompt_file.write_text("You help.", encoding="utf-8")
        self.host = HostProcess(directory, CHAT, "--slots", "2", "--threads", str(threads), "--ctx", "4096")
        self.embedder = HostProcess(directory, EMBEDDING)
        tools = directory / "tools.json"
        tools.write_text(json.dumps([tool(subject) for subject in SUBJECTS]), encoding="utf-8")
        toml = (
            f'[cache]\ndir = "{directory}/cache"\n[cache.responses]\nenabled = true\n'
            f'[cache.tools]\nselect_model = "{EMBEDDING.model}"\nselect_wait_ms = 1000\n'
            f'[[cache.tools.sources]]\nname = "all"\nfile = "{tools}"\n{self.embedder.toml()}'
            f'[[cache.warm]]\nname = "bench"\nmodel = "{CHAT.model}"\nfile = "{self.prompt_file}"\n{self.host.toml()}'
        )
        self.router = RouterProcess(directory, toml)
        self.keeper = KeeperProcess(self.router)

    def send_ahead(self, text: str) -> None:
        """Change the prompt's file and wait until the host has answered what was sent ahead."""
        with DoneReader(find_current(self.router.instance_dir), "latest") as reader:
            self.prompt_file.write_text(text, encoding="utf-8")

            def is_warm() -> bool:
                return any(record["tags"].get("workload_class") == "warm" for record in reader.poll())

            wait_until(is_warm, "it is sent ahead", _WAIT_S)

    def has_vectors(self) -> bool:
        """Whether the keeper has published the tools with theirs."""
        reader = Subscription(self.router.run_dir / "keep.tools", published.TOOLS, PublishedTools)
        value = reader.poll()
        return value is not None and len(value.tools) == len(SUBJECTS) and all(each.vector for each in value.tools)

    def ask(self, text: str, more: str = "", **fields: Any) -> tuple[float, int, int]:
        """Ask with a system prompt; return milliseconds to the first token, prompt tokens, and those from the cache."""
        body = json.dumps({
            "model": CHAT.model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 4,
            "temperature": 0,
            "messages": [{"role": "system", "content": text}, {"role": "user", "content": "Where is my parcel?"}],
            **fields,
        }).encode()  # fmt: skip
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-length: {len(body)}\r\n{more}\r\n"
        with socket.create_connection(("127.0.0.1", self.router.port)) as client:
            begin_s = time.perf_counter()
            client.sendall(head.encode() + body)
            data, first_s = b"", 0.0
            while b"data: [DONE]" not in data:
                data += client.recv(65536)
                if not first_s and b'"content":"' in data.replace(b'"content":""', b""):
                    first_s = time.perf_counter()
        usage: dict[str, Any] = json.loads(data.partition(b'"usage":')[2].partition(b"}}")[0] + b"}}")
        cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
        return (first_s - begin_s) * 1000, usage["prompt_tokens"], cached


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the host")
    parser.add_argument("--only-tools", action="store_true", help="leave the prompts out")
    args = parser.parse_args()
    try:
        find_host_python()
    except HostPythonMissingError as error:
        print(error, file=sys.stderr)
        return 2
    cold, warm, kept, tokens = [], [], [], [0, 0]
    few: list[tuple[float, int]] = []
    many: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="rr-bench-") as name:
        stand = Stand(Path(name), args.threads)
        with stand.host, stand.embedder, stand.keeper, stand.router:
            stand.ask("You help.")
            for number in range(0 if args.only_tools else args.rounds):
                cold.append(stand.ask(prompt(2 * number))[0])
                text = prompt(2 * number + 1)
                stand.send_ahead(text)
                ms, *tokens = stand.ask(text)
                warm.append(ms)
                stand.ask(text, "x-ringrouter-cache: on\r\n")
                kept.append(stand.ask(text, "x-ringrouter-cache: on\r\n")[0])
            wait_until(stand.has_vectors, "the tools have vectors", _WAIT_S)
            time.sleep(2)  # the router looks once a second
            for _ in range(args.rounds):
                for times, nearest in ((many, 0), (few, NEAREST)):
                    entry = {"type": "ringrouter", "names": ["*"], "nearest": nearest}
                    times.append(stand.ask("You help.", tools=[entry], cache_prompt=False)[:2])
    print("; ".join(machine.facts()))
    if cold:
        print(f"system prompt and question: {tokens[0]:,} tokens, of which a warm host had {tokens[1]:,}")
    for what, times in (("cold", cold), ("sent ahead", warm), ("answer kept", kept)) if cold else ():
        print(f"{what:<12} TTFT {median(times):>9.1f} ms median of {len(times)}, {min(times):.1f} to {max(times):.1f}")
    for what, rows in ((f"{len(SUBJECTS)} tools", many), (f"nearest {NEAREST}", few)):
        times = [ms for ms, _ in rows]
        print(f"{what:<12} TTFT {median(times):>9.1f} ms median of {len(rows)}, {rows[0][1]:,} tokens of prompt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
