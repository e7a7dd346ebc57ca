"""Two equal real model hosts that tests kill, stop and start again, and what a router thinks of them."""

from __future__ import annotations

import json
import signal
from contextlib import ExitStack

from openai import OpenAI

from router.embedded.hosts import CHAT
from tests.support.processes import HostProcess, RouterProcess, get, host_toml
from tests.support.waiting import shared_memory_directory, wait_until

ANSWER_S = 60.0


class Hosts:
    """Two equal hosts, by name; :meth:`restore` undoes what a test did to them. ``more`` are arguments of each."""

    def __init__(self, stack: ExitStack, *more: str) -> None:
        arguments = ("--slots", "2", "--threads", "1", "--batch", "64", *more)
        directories = {name: stack.enter_context(shared_memory_directory()) for name in ("first", "second")}
        self.by_name = {name: HostProcess(path, CHAT, *arguments) for name, path in directories.items()}
        for host in self.by_name.values():
            host.start()
            stack.callback(host.kill)

    def __getitem__(self, name: str) -> HostProcess:
        return self.by_name[name]

    def other(self, name: str) -> str:
        return next(each for each in self.by_name if each != name)

    def signal(self, number: signal.Signals) -> None:
        for host in self.by_name.values():
            host.signal(number)

    def toml(self) -> str:
        return "".join(
            host_toml(name, host.url, kind="llama.cpp", models=[CHAT.model]) for name, host in self.by_name.items()
        )

    def restore(self, router: RouterProcess) -> None:
        self.signal(signal.SIGCONT)
        for host in self.by_name.values():
            if not host.is_running:
                host.start()
        wait_until(lambda: all(map(is_back, health(router).values())), f"healthy hosts: {health(router)}")


def is_back(state: str) -> bool:
    """Whether a host gets requests again, all it can take or at first a few."""
    return state.startswith(("healthy", "slow start", "breaker half open"))


def health(router: RouterProcess) -> dict[str, str]:
    """Return what the router thinks of each host."""
    hosts: dict[str, str] = json.loads(get("127.0.0.1", router.port, "/ready")[1])["hosts"]
    return hosts


def sdk(router: RouterProcess) -> OpenAI:
    """Return a client that tries nothing twice."""
    return OpenAI(base_url=f"{router.base_url}/v1", api_key="any", max_retries=0, timeout=ANSWER_S)
