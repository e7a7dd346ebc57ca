"""What `ringrouter run` shows when everything is up: one request through the router, and where its time went."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

from ringbuffer import RingError, find_current
from router import config as config_module
from router.config import Config
from router.embedded import hosts
from router.keys.environment import bearer
from router.telemetry import waterfall
from router.telemetry.reader import DoneReader

QUESTION: Final = "Why is the sky blue? Answer in two sentences."
ANSWER_TOKENS_MAX: Final = 96
ANSWER_S: Final = 60.0
"""A slow machine may take this long for the whole answer; after that the demonstration gives up, not the router."""
TEXT_FIELDS: Final = ("reasoning_content", "reasoning", "content")
START_S: Final = 30.0
"""The router answers within a second; a busy machine may make it longer."""
HOSTS_S: Final = 5.0
"""Enough for the first probes of hosts that are up."""
RECORD_S: Final = 2.0
"""The record is written before the client sees the end of its answer, so this is only a bound."""
POLL_S: Final = 0.05
WIDTH_MAX: Final = 100


class DemonstrationError(Exception):
    """The router or its host did not answer the demonstration's request; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """What the router says of itself: whether it can serve every model, and the state of each host in words."""

    ready: bool
    hosts: dict[str, str]


class RouterClient:
    """An HTTP client of the router that a configuration describes."""

    def __init__(self, config: Config) -> None:
        place = config_module.split_address(config.listen.http[0], "listen.http")
        if isinstance(place, str):
            self.base_url = "http://localhost"
            self.socket_path: str | None = place
        else:
            host, port = place
            self.base_url = f"http://{reachable(host)}:{port}"
            self.socket_path = None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> RouterClient:
        connector = aiohttp.UnixConnector(self.socket_path) if self.socket_path else aiohttp.TCPConnector()
        timeout = aiohttp.ClientTimeout(total=ANSWER_S)
        self._session = aiohttp.ClientSession(self.base_url, connector=connector, timeout=timeout, headers=bearer())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """The open session; only inside ``async with``."""
        assert self._session is not None, "used outside `async with`"
        return self._session

    async def readiness(self) -> Readiness | None:
        """Ask the router whether it can serve; None when nothing answers."""
        try:
            async with self.session.get("/ready") as response:
                return Readiness(response.status == 200, (await response.json())["hosts"])
        except aiohttp.ClientError:
            return None

    async def models(self) -> list[str]:
        """Return the names of the models that the router serves."""
        async with self.session.get("/v1/models") as response:
            return [model["id"] for model in (await response.json())["data"]]

    async def answer(self, model: str, request_id: str) -> AsyncIterator[str]:
        """Ask :data:`QUESTION` and yield the answer piece by piece; raises :class:`DemonstrationError`."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": ANSWER_TOKENS_MAX,
            "temperature": 0,
            "stream": True,
        }
        headers = {"x-request-id": request_id}
        async with self.session.post("/v1/chat/completions", json=body, headers=headers) as response:
            if response.status != 200:
                raise DemonstrationError(error_message(await response.read()) or f"HTTP status {response.status}")
            async for line in response.content:
                for piece in content_of(line):
                    yield piece


def reachable(listen_host: str) -> str:
    """Return an address that reaches a listener on ``listen_host``, as a URL spells it."""
    if listen_host in ("0.0.0.0", "::", ""):  # noqa: S104 - compared, not bound
        return "127.0.0.1" if listen_host != "::" else "[::1]"
    return f"[{listen_host}]" if ":" in listen_host else listen_host


def content_of(line: bytes) -> list[str]:
    """Return the pieces of text in one line of an event stream; raises :class:`DemonstrationError` at an error."""
    data = line.removeprefix(b"data:").strip()
    if not line.startswith(b"data:") or data == b"[DONE]":
        return []
    if message := error_message(data):
        raise DemonstrationError(message)
    deltas = (choice.get("delta") or {} for choice in msgspec.json.decode(data).get("choices", []))
    return [text for delta in deltas for field in TEXT_FIELDS if (text := delta.get(field))]


def error_message(body: bytes) -> str:
    """Return the message of an error object in OpenAI's shape, or nothing."""
    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return ""


async def wait_ready(config: Config) -> Readiness:
    """Wait until the router can serve every model, or says for :data:`HOSTS_S` that it cannot.

    Raises :class:`DemonstrationError` when nothing answers for :data:`START_S`.
    """
    deadline_s = time.monotonic() + START_S
    seen: Readiness | None = None
    async with RouterClient(config) as client:
        while time.monotonic() < deadline_s:
            state = await client.readiness()
            if state is not None and state.ready:
                return state
            if state is not None and seen is None:
                deadline_s = time.monotonic() + HOSTS_S
            seen = state or seen
            await asyncio.sleep(POLL_S)
    if seen is None:
        raise DemonstrationError(f"nothing answers at {config.listen.http[0]} after {START_S:g} s")
    return seen


async def show(config: Config, readiness: Readiness) -> None:
    """Print where the router is, one streamed answer with its waterfall, and what to try next."""
    client = RouterClient(config)
    instance_dir = config_module.run_dir(config) / config.listen.instance
    show_addresses(client, config, instance_dir)
    if not readiness.ready:
        show_hosts(config, readiness)
        return
    async with client:
        try:
            model = preferred_model(await client.models())
            await show_answer(client, model, instance_dir)
        except (DemonstrationError, aiohttp.ClientError, msgspec.DecodeError, RingError, TimeoutError) as error:
            say(f"\nThe request through the router failed: {error}")
            say(f"The router stays up; its log is in {instance_dir.parent}/logs\n")
            return
    show_next_steps(client, config, model)


def show_hosts(config: Config, readiness: Readiness) -> None:
    """Print why the router cannot serve every model, host by host."""
    say("Not every model has a host that answers. The router goes on trying; what it sees now:")
    for name, state in readiness.hosts.items():
        say(f"  {name}: {state}")
    say(f"\nTo see it change: {own_command()} stats{location_options(config)} --watch")


def preferred_model(models: list[str]) -> str:
    """Return the model to ask: the embedded chat model, else the first; raises :class:`DemonstrationError`."""
    if not models:
        raise DemonstrationError("the router has no model")
    return hosts.CHAT.model if hosts.CHAT.model in models else models[0]


def show_addresses(client: RouterClient, config: Config, instance_dir: Path) -> None:
    """Print where clients and readers find the router."""
    where = f"unix:{client.socket_path}" if client.socket_path else f"{client.base_url}/v1"
    current = instance_dir / "current"
    say(f"\nHTTP    {where}   (OpenAI-compatible: use it as the base URL)")
    for endpoint in config.listen.zeromq:
        say(f"ZeroMQ  {config_module.zeromq_endpoint(config, endpoint)}")
    say(f"rings   {current.resolve() if current.exists() else instance_dir}")
    if config.observer.enabled:
        say(f"metrics {observer_url(config)}/metrics   (for Prometheus)")
    say("")


async def show_answer(client: RouterClient, model: str, instance_dir: Path) -> None:
    """Print the streamed answer while it comes, then its waterfall."""
    request_id = f"run-{uuid.uuid4().hex[:12]}"
    with DoneReader(find_current(instance_dir)) as reader:
        say(f"you           {QUESTION}")
        write(f"{model:<13} ")
        async for piece in client.answer(model, request_id):
            write(piece)
        say("\n")
        record = await find_record(reader, request_id)
    width = min(WIDTH_MAX, shutil.get_terminal_size().columns)
    say(waterfall.render(record, width, colour=sys.stdout.isatty()))


async def find_record(reader: DoneReader, request_id: str) -> dict[str, Any]:
    """Return the done record of a request that has just ended; raises :class:`DemonstrationError` without one."""
    deadline_s = time.monotonic() + RECORD_S
    while time.monotonic() < deadline_s:
        for record in reader.poll():
            if record["request_id"] == request_id:
                return record
        await asyncio.sleep(POLL_S)
    raise DemonstrationError(f"its record (request id {request_id}) is not in done.ring")


def show_next_steps(client: RouterClient, config: Config, model: str) -> None:
    """Print commands to try, as they can be typed where the user stands."""
    program = own_command()
    place = location_options(config)
    at_socket = f"--unix-socket {shlex.quote(client.socket_path)} " if client.socket_path else ""
    body = f'{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Say hello."}}]}}'
    say("\nTry next, in another terminal:")
    say(f"  curl -N {at_socket}{client.base_url}/v1/chat/completions -H 'content-type: application/json' \\")
    say(f"    -d {shlex.quote(body)}")
    if config.listen.zeromq:
        say(f"  {program} ask 'Say hello.'{place}    # through the ZeroMQ socket")
    say(f"  {program} stats{place}    # rings, latencies, hosts")
    say(f"  {program} tail{place}     # every finished request, one line each")
    if config.observer.enabled:
        say(f"  {program} top{top_options(config)}      # traffic, percentiles, stages, slowest requests, live")
        say(f"  {program} report --by model{journal_options(config)}    # who is slow, in which stage, at what cost")
    say("\nCtrl-C stops everything.")


def own_command() -> str:
    """Return how the user can type this program's name: from the path, or with where it lies."""
    script = Path(sys.executable).with_name("ringrouter")
    found = shutil.which("ringrouter")
    if found and Path(found).resolve() == script.resolve():
        return "ringrouter"
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m router"
    relative = os.path.relpath(script)
    return shlex.quote(str(script) if relative.startswith("..") else relative)


def location_options(config: Config) -> str:
    """Return the options with which `ringrouter stats` finds this router; none where it looks by itself."""
    options = ""
    if config_module.run_dir(config) != config_module.default_run_dir():
        options += f" --run-dir {shlex.quote(str(config_module.run_dir(config)))}"
    if config.listen.instance != "main":
        options += f" --instance {config.listen.instance}"
    return options


def observer_url(config: Config) -> str:
    """Return where the observer answers."""
    place = config_module.split_address(config.observer.http, "observer.http")
    return f"unix:{place}" if isinstance(place, str) else f"http://{reachable(place[0])}:{place[1]}"


def top_options(config: Config) -> str:
    """Return the options with which `ringrouter top` finds the observer; none where it looks by itself."""
    usual = config.observer.http == Config(version=1).observer.http
    return "" if usual else f" --url {shlex.quote(observer_url(config))}"


def journal_options(config: Config) -> str:
    """Return the options with which `ringrouter report` finds the journal; none where it looks by itself."""
    own = config.observer.data_dir
    return f" --data-dir {shlex.quote(own)}" if own else ""


def say(text: str) -> None:
    """Print a line at once."""
    write(text + "\n")


def write(text: str) -> None:
    """Print at once, without a line end."""
    sys.stdout.write(text)
    sys.stdout.flush()
