"""Two real llama.cpp hosts: chats stay where their beginning is held; hosts go and come back under load."""

# ruff: noqa: T201 - what was counted stands in the report of a failure

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import openai
import pytest

from ringbuffer import find_current
from router.embedded.hosts import CHAT
from router.telemetry.reader import DoneReader
from tests.support.processes import RouterProcess
from tests.support.real_hosts import Hosts, health, sdk
from tests.support.waiting import shared_memory_directory, wait_until

CLIENT_COUNT = 4
ANSWER_TOKENS = 10
LIMIT_S = 1.0
"""Silence after which the router takes a host for lost."""
ENDED_S_MAX = 20.0
"""Two attempts that fall silent, the wait for a slot in between, and a machine that does much else."""
PHASE_S = 30.0
SYSTEM = "You help with the garden. " * 20
QUESTIONS = ("When do I sow peas?", "And beans?", "What about the frost?")
RULES = """
[health]
interval_s = 0.25
timeout_s = 0.5
slow_start_s = 1

[timeouts]
first_token_s = {limit_s}
idle_s = {limit_s}

[models."{model}".routing]
policy = "{policy}"
"""


@contextmanager
def routed(hosts: Hosts, policy: str, limit_s: float = LIMIT_S) -> Iterator[RouterProcess]:
    """Start a router in front of the hosts that routes by this policy."""
    rules = RULES.format(policy=policy, limit_s=limit_s, model=CHAT.model)
    with shared_memory_directory() as directory, RouterProcess(directory, hosts.toml() + rules) as router:
        wait_until(lambda: set(health(router).values()) == {"healthy"}, "both hosts are healthy")
        yield router


@pytest.fixture(scope="module")
def both() -> Iterator[Hosts]:
    with ExitStack() as stack:
        yield Hosts(stack)


# ---------------------------------------------------------------- held beginnings
class Chat:
    """A conversation behind the long system prompt, one turn after the other."""

    def __init__(self, client: openai.OpenAI, subject: str) -> None:
        self._client = client
        self._messages: list[Any] = [{"role": "system", "content": f"{SYSTEM} Today: {subject}."}]
        self.hosts: list[str] = []
        self.prompt_tokens = 0
        self.cached_tokens = 0

    def say(self, text: str) -> None:
        self._messages.append({"role": "user", "content": text})
        raw = self._client.chat.completions.with_raw_response.create(
            model=CHAT.model, messages=self._messages, max_tokens=ANSWER_TOKENS, temperature=0, seed=1
        )
        answer = raw.parse()
        self._messages.append({"role": "assistant", "content": answer.choices[0].message.content or ""})
        usage = answer.usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None, "this host reports what it held"
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += usage.prompt_tokens_details.cached_tokens or 0
        self.hosts.append(raw.headers["x-ringrouter-host"])


def read_tokens(hosts: Hosts, policy: str, subjects: tuple[str, str, str]) -> tuple[int, list[set[str]]]:
    """Hold three chats in turns through a router; return the prompt tokens that the hosts had to read, and each chat's
    hosts.
    """
    with routed(hosts, policy, limit_s=60) as router, sdk(router) as client:
        chats = [Chat(client, subject) for subject in subjects]
        for question in QUESTIONS:
            for chat in chats:
                chat.say(question)
    print(policy, [(chat.prompt_tokens, chat.cached_tokens, chat.hosts) for chat in chats])
    return sum(chat.prompt_tokens - chat.cached_tokens for chat in chats), [set(chat.hosts) for chat in chats]


def test_prefix_affinity_keeps_chats_where_their_beginning_is_held() -> None:
    """With three chats and two hosts round robin sends the turns of each to both."""
    with ExitStack() as stack:
        hosts = Hosts(stack, "--slots", "4", "--ctx", "1024")
        by_turns, hosts_by_turns = read_tokens(hosts, "round_robin", ("peas", "roses", "wells"))
        by_prefix, hosts_by_prefix = read_tokens(hosts, "prefix_affinity", ("snails", "pears", "fences"))
    assert all(len(names) == 2 for names in hosts_by_turns), "otherwise there is nothing to compare with"
    assert all(len(names) == 1 for names in hosts_by_prefix), "no chat has moved"
    assert by_prefix < 0.75 * by_turns, "the hosts themselves say that they had less to read"


# ---------------------------------------------------------------- hosts that go and come back
class Ended(NamedTuple):
    """How a request ended for its client: ``error`` is the router's code, empty for a complete answer."""

    request_id: str
    seconds: float
    host: str
    error: str
    text_events: int
    finished: bool


class Load:
    """Clients that ask for streams again and again until :meth:`stop`; what they met is in ``ended``."""

    def __init__(self, router: RouterProcess) -> None:
        self._router = router
        self._stopping = threading.Event()
        self.asking: dict[int, str] = {}
        """By client: the request that it reads now."""
        self.ended: list[Ended] = []
        self.broken: list[BaseException] = []
        self._threads = [threading.Thread(target=self._ask_on, args=(number,)) for number in range(CLIENT_COUNT)]
        for thread in self._threads:
            thread.start()

    def _ask_on(self, client_number: int) -> None:
        count = 0
        try:
            with sdk(self._router) as client:
                while not self._stopping.is_set():
                    count += 1
                    request_id = self.asking[client_number] = f"{client_number}-{count}"
                    self.ended.append(ask(client, request_id))
        except BaseException as error:  # shown by the test, which this thread cannot fail
            self.broken.append(error)

    def stop(self) -> list[Ended]:
        """Let every client end its last request; fail if one hangs."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(ENDED_S_MAX)
        assert not any(thread.is_alive() for thread in self._threads), "a stream hangs"
        assert not self.broken, self.broken
        return self.ended

    def wait_ended(self, request_ids: set[str]) -> None:
        """Wait until these requests have ended, one way or another."""
        wait_until(lambda: request_ids <= {each.request_id for each in self.ended}, "a stream hangs", ENDED_S_MAX)

    def wait_served(self, by: str, count: int = 2) -> None:
        """Wait until this host has answered so many more requests."""
        before = len(self.ended)
        wait_until(
            lambda: self.broken or sum(e.host == by and not e.error for e in self.ended[before:]) >= count,
            f"answers of {by}; {Counter((e.host, e.error) for e in self.ended)}",
            PHASE_S,
        )


def ask(client: openai.OpenAI, request_id: str) -> Ended:
    """Ask for one stream and read it to its end, whatever that is. Other errors than the router's are raised."""
    begin_s = time.monotonic()
    host, error, finished, text_events = "", "", False, 0
    try:
        raw = client.chat.completions.with_raw_response.create(
            model=CHAT.model,
            messages=[{"role": "user", "content": f"Tell me a story about number {request_id}."}],
            max_tokens=ANSWER_TOKENS,
            stream=True,
            extra_body={"ignore_eos": True},
            extra_headers={"x-request-id": request_id},
        )
        host = raw.headers["x-ringrouter-host"]
        for chunk in raw.parse():
            for choice in chunk.choices:
                text_events += bool(choice.delta.content)
                finished = finished or choice.finish_reason is not None
    except (openai.APIConnectionError, openai.APIResponseValidationError):
        raise  # not the router's word
    except openai.APIError as caught:
        error = str(caught.code)
    return Ended(request_id, time.monotonic() - begin_s, host, error, text_events, finished)


def records(router: RouterProcess, count: int) -> dict[str, dict[str, Any]]:
    """Return the done records by request id, as soon as there are so many."""
    found: dict[str, dict[str, Any]] = {}
    with DoneReader(find_current(router.instance_dir), "oldest") as reader:

        def all_there() -> bool:
            for record in reader.poll():
                assert record["request_id"] not in found, "one record a request"
                found[record["request_id"]] = record
            return len(found) >= count

        wait_until(all_there, f"{count} done records")
    return found


def kill(hosts: Hosts, router: RouterProcess) -> None:
    hosts["first"].kill()


def stop(hosts: Hosts, router: RouterProcess) -> None:
    hosts["first"].signal(signal.SIGSTOP)


def start_again(hosts: Hosts, router: RouterProcess) -> None:
    hosts["first"].start()


def go_on(hosts: Hosts, router: RouterProcess) -> None:
    hosts["first"].signal(signal.SIGCONT)


Act = Callable[[Hosts, RouterProcess], None]


@pytest.mark.parametrize("policy", ["least_outstanding", "prefix_affinity"])
@pytest.mark.parametrize(
    ("lose", "give_back"), [(kill, start_again), (stop, go_on)], ids=["killed and started", "stopped and continued"]
)
def test_no_stream_hangs_and_no_failure_is_hidden_when_a_host_goes_and_comes_back(
    both: Hosts, lose: Act, give_back: Act, policy: str
) -> None:
    with routed(both, policy) as router:
        load = Load(router)
        try:
            load.wait_served("first")
            load.wait_served("second")
            lose(both, router)
            load.wait_ended(set(load.asking.values()))
            wait_until(lambda: health(router)["first"] != "healthy", "the lost host is marked", PHASE_S)
            load.wait_served("second", 4)
            give_back(both, router)
            load.wait_served("first", 3)
        finally:
            both.signal(signal.SIGCONT)
            ended = load.stop()
        check_accounts(ended, records(router, len(ended)))


def check_accounts(ended: list[Ended], done: dict[str, dict[str, Any]]) -> None:
    """Check what each client met against what the router wrote down."""
    errors = Counter(each.error or "ok" for each in ended)
    print(f"{len(ended)} requests: {dict(errors)}; longest {max(each.seconds for each in ended):.2f} s")
    assert len(done) == len(ended), "nothing lost, nothing twice"
    for each in ended:
        record = done[each.request_id]
        assert each.seconds <= ENDED_S_MAX, each
        assert each.finished != bool(each.error), f"whole, or ended by an error: {each}"
        assert (record["outcome"] == "ok") == each.finished, (each, record["outcome"])
        assert record["error"] == (each.error or "none"), (each, record["error"])
        assert record["n_content"] == each.text_events, each
        if each.finished:
            assert record["host"] == each.host
