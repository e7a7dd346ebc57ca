"""Real hosts that are killed, stopped or told to end in the middle of an answer, and what the SDK's user gets."""

# ruff: noqa: T201 - what was measured stands in the report of a failure

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import openai
import pytest

from ringbuffer import find_current
from router.embedded.hosts import CHAT
from router.telemetry.reader import TokenReader
from tests.support.machine_delays import MachineDelays
from tests.support.processes import RouterProcess
from tests.support.real_hosts import ANSWER_S, Hosts, health, is_back, sdk
from tests.support.records import done_record
from tests.support.waiting import shared_memory_directory, wait_until

LIMIT_S = 1.0
"""The time-outs of the impatient router."""
LATE_S_MAX = 0.25
"""The router's own bound is 50 ms, which scripted hosts check; here real models share its cores."""
NS = 1e9

HEALTH = "\n[health]\ninterval_s = 0.25\ntimeout_s = 0.5\n"
# 6 batches of prefill: enough time to kill the host in the middle of it.
LONG_PROMPT = "word " * 384
SHORT_PROMPT = "Tell me a long story."
ANSWER_TOKENS = 24
# The same answer from any host, however often it is asked.
SAME: dict[str, Any] = {
    "model": CHAT.model,
    "temperature": 0,
    "seed": 1,
    "extra_body": {"ignore_eos": True, "cache_prompt": False},
}


@pytest.fixture(scope="module")
def both() -> Iterator[Hosts]:
    with ExitStack() as stack:
        yield Hosts(stack)


def _router(hosts: Hosts, timeouts: str) -> Iterator[RouterProcess]:
    with shared_memory_directory() as directory, RouterProcess(directory, hosts.toml() + HEALTH + timeouts) as router:
        yield router


@pytest.fixture(scope="module")
def patient_router(both: Hosts) -> Iterator[RouterProcess]:
    """A router with the time-outs that it comes with."""
    yield from _router(both, "")


@pytest.fixture(scope="module")
def impatient_router(both: Hosts) -> Iterator[RouterProcess]:
    """A router that takes a host for lost after a second of silence."""
    yield from _router(both, f"[timeouts]\nfirst_token_s = {LIMIT_S}\nidle_s = {LIMIT_S}\n")


@pytest.fixture
def patient(both: Hosts, patient_router: RouterProcess) -> Iterator[RouterProcess]:
    both.restore(patient_router)
    yield patient_router
    both.restore(patient_router)


@pytest.fixture
def impatient(both: Hosts, impatient_router: RouterProcess) -> Iterator[RouterProcess]:
    both.restore(impatient_router)
    yield impatient_router
    both.restore(impatient_router)


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=1) as executor:
        yield executor


def ask(router: RouterProcess, request_id: str, **fields: Any) -> tuple[str, str]:
    """Return the text of a whole completion, streamed or not, and the host that answered."""
    with sdk(router) as client:
        raw = client.completions.with_raw_response.create(
            **{**SAME, "max_tokens": ANSWER_TOKENS, **fields}, extra_headers={"x-request-id": request_id}
        )
        answer = raw.parse()
        chunks: list[Any] = list(answer) if fields.get("stream") else [answer]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["length"]
    return "".join(choice.text for choice in choices), raw.headers["x-ringrouter-host"]


class Events:
    """The events that a router gets from its hosts, from now on."""

    def __init__(self, router: RouterProcess) -> None:
        self._reader = TokenReader(find_current(router.instance_dir))

    def close(self) -> None:
        self._reader.close()

    def wait(self, kind: str, event_count: int = 1) -> str:
        """Wait until so many events of this kind have come; return the name of the host of the last one."""
        seen: list[dict[str, Any]] = []

        def enough() -> bool:
            seen.extend(record for record in self._reader.poll() if record["kind"] == kind)
            return len(seen) >= event_count

        wait_until(enough, f"{event_count} events {kind}", ANSWER_S)
        return str(seen[-1]["host"])


def error_of(answer: Future[Any], kind: type[openai.APIError]) -> openai.APIError:
    """Return the error in which a request ends; fail if it is another, or none."""
    error = answer.exception(ANSWER_S)
    assert isinstance(error, kind), repr(error)
    return error


# ---------------------------------------------------------------- killed
@pytest.mark.parametrize(
    ("stream", "kind", "prompt"),
    [(True, "head", LONG_PROMPT), (False, "head", LONG_PROMPT), (False, "text", SHORT_PROMPT)],
    ids=["streamed, in the prefill", "plain, in the prefill", "plain, in the decoding"],
)
def test_a_host_killed_before_anything_reached_the_client_is_replaced(
    both: Hosts, patient: RouterProcess, executor: ThreadPoolExecutor, stream: bool, kind: str, prompt: str
) -> None:
    request_id = f"killed {stream} {kind}"
    undisturbed, _ = ask(patient, f"{request_id}, before", prompt=prompt)
    with closing(Events(patient)) as events:
        answer = executor.submit(ask, patient, request_id, prompt=prompt, stream=stream)
        killed = events.wait(kind)
        both[killed].kill()
        text, host = answer.result(ANSWER_S)
    assert host == both.other(killed)
    assert text == undisturbed, "the whole answer, and nothing twice"
    record = done_record(patient, request_id)
    assert record["outcome"] == "ok"
    assert record["host"] == host
    assert record["attempt_count"] == 2
    assert record["n_out"] == ANSWER_TOKENS
    (failed,) = record["failed_attempts"]
    assert (failed["host"], failed["error"]) == (killed, "host_closed")
    assert record["stages_ns"]["retry"] > 0


def test_a_host_killed_in_the_middle_of_a_stream_is_an_error_in_the_stream(both: Hosts, patient: RouterProcess) -> None:
    texts: list[str] = []
    with sdk(patient) as client, closing(Events(patient)) as events:
        stream = client.completions.create(
            **SAME, prompt=SHORT_PROMPT, max_tokens=1500, stream=True, extra_headers={"x-request-id": "mid-stream"}
        )
        killed = events.wait("text", 3)
        both[killed].kill()
        with pytest.raises(openai.APIError) as caught:
            texts.extend(choice.text for chunk in stream for choice in chunk.choices)
    error = caught.value
    assert (error.code, error.type) == ("host_closed", "host_error")
    assert not isinstance(error, openai.APIConnectionError), "told by the router, not guessed from a lost connection"
    record = done_record(patient, "mid-stream")
    assert record["outcome"] == "host_error"
    assert record["error"] == "host_closed"
    assert record["status"] == 200
    assert record["attempt_count"] == 1, "what a client has seen the beginning of is not begun anew"
    assert isinstance(error.body, dict)
    assert error.body["delivered_events"] == record["n_content"] == len(texts) >= 3
    text, host = ask(patient, "after mid-stream", prompt=SHORT_PROMPT)
    assert text
    assert host == both.other(killed)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_all_hosts_killed_one_after_another_is_an_error_with_a_status(
    both: Hosts, patient: RouterProcess, executor: ThreadPoolExecutor, stream: bool
) -> None:
    request_id = f"all killed {stream}"
    with closing(Events(patient)) as events:
        answer = executor.submit(ask, patient, request_id, prompt=LONG_PROMPT, stream=stream)
        killed = events.wait("head")
        both[killed].kill()
        assert events.wait("head") == both.other(killed)
        both[both.other(killed)].kill()
        error = error_of(answer, openai.InternalServerError)
    assert isinstance(error, openai.InternalServerError)
    assert error.status_code == 502
    assert error.type == "host_error"
    assert error.request_id == request_id
    record = done_record(patient, request_id)
    assert record["outcome"] == "host_error"
    assert [failed["host"] for failed in record["failed_attempts"][:2]] == [killed, both.other(killed)]
    assert record["n_content"] == 0


# ---------------------------------------------------------------- silent
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_hosts_that_are_silent_from_the_start_end_in_a_time_out(
    both: Hosts, impatient: RouterProcess, stream: bool
) -> None:
    request_id = f"silent {stream}"
    both.signal(signal.SIGSTOP)
    delays = MachineDelays()
    with pytest.raises(openai.InternalServerError) as caught:
        ask(impatient, request_id, prompt=SHORT_PROMPT, stream=stream)
    assert caught.value.status_code == 504
    assert (caught.value.code, caught.value.type) == ("first_token_timeout", "timeout_error")
    assert "timeouts.first_token_s" in caught.value.message
    record = done_record(impatient, request_id)
    assert record["outcome"] == "timeout"
    check_time_out(request_id, record["stamps"]["done"] - record["stamps"]["sent"], delays)


def check_time_out(name: str, after_ns: int, delays: MachineDelays) -> None:
    """Check that a time-out came after its limit, and soon but for what the machine was late by."""
    late_s = after_ns / NS - LIMIT_S
    print(f"{name}: {late_s * 1000:.1f} ms late")
    assert 0 <= late_s <= LATE_S_MAX + delays.ns() / NS


def test_a_host_that_falls_silent_in_a_stream_ends_it_and_gets_no_more_until_it_answers(
    both: Hosts, impatient: RouterProcess
) -> None:
    with sdk(impatient) as client, closing(Events(impatient)) as events:
        stream = client.completions.create(
            **SAME, prompt=SHORT_PROMPT, max_tokens=1500, stream=True, extra_headers={"x-request-id": "stopped"}
        )
        stopped = events.wait("text", 3)
        both[stopped].signal(signal.SIGSTOP)
        delays = MachineDelays()
        with pytest.raises(openai.APIError) as caught:
            list(stream)
    assert (caught.value.code, caught.value.type) == ("idle_timeout", "timeout_error")
    record = done_record(impatient, "stopped")
    assert record["outcome"] == "timeout"
    check_time_out("stopped in a stream", record["stamps"]["done"] - record["stamps"]["tokN"], delays)
    wait_until(lambda: health(impatient)[stopped] != "healthy", "the silent host is marked")
    hosts = {ask(impatient, f"beside {number}", prompt=SHORT_PROMPT, max_tokens=2)[1] for number in range(3)}
    assert hosts == {both.other(stopped)}
    both[stopped].signal(signal.SIGCONT)
    wait_until(lambda: is_back(health(impatient)[stopped]), "the host that answers again is taken back")
    wait_until(lambda: both[stopped].busy_slot_count() == 0, "it has given up the stream that was cancelled")


def test_a_host_told_to_end_in_a_stream_ends_and_its_client_is_told(both: Hosts, impatient: RouterProcess) -> None:
    """On SIGTERM llama.cpp stops generating but keeps the connection open and silent, until the other side leaves."""
    with sdk(impatient) as client, closing(Events(impatient)) as events:
        stream = client.completions.create(**SAME, prompt=SHORT_PROMPT, max_tokens=1500, stream=True)
        told = events.wait("text", 3)
        both[told].signal(signal.SIGTERM)
        with pytest.raises(openai.APIError) as caught:
            list(stream)
    assert caught.value.code in {"idle_timeout", "host_closed"}
    assert both[told].wait(ANSWER_S) == 0, "the host could end: the router had left it"
