"""A router that is not there, goes away, hangs or comes back: every client hears of it in time and carries on."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import uvloop

from router.client import AsyncClient, Client, ConnectionLost, NotConnected, session
from tests.faults.stage import QUIET, host_entry
from tests.support import scripted_router as wire
from tests.support.machine_delays import MachineDelays
from tests.support.processes import RouterProcess
from tests.support.scripted_host import TOKENS, End, Gate, ScriptedHost, chunk, stream_head
from tests.support.scripted_router import ScriptedRouter, accept, answer, ignore, text
from tests.support.waiting import WAIT_S, free_port, shared_memory_directory, wait_until

LOST_S = 3.0
SHORT_LOST_S = 1.2
"""Longer than a router that is well is ever silent: it says each second that it is there."""
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture
def endpoint(directory: Path) -> str:
    return f"ipc://{directory}/zmq.sock"


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine on one of the event loops."""
    runner: Run = request.param
    return runner


def accept_and_say(ask: wire.Ask) -> None:
    ask.accept()
    ask.events(text("a"))


class TestNotThere:
    def test_the_error_comes_in_time_and_names_the_endpoint(self, endpoint: str) -> None:
        delays, begun_s = MachineDelays(), monotonic()
        with Client(endpoint, connect_timeout_s=0.3) as client, pytest.raises(NotConnected) as caught:
            client.ask("m", "x")
        assert 0.3 <= monotonic() - begun_s < 1 + delays.ns() / 1e9
        assert str(caught.value) == f"no router answers at {endpoint} (there is no such file) within 0.3 s"
        assert caught.value.code == "not_connected"

    def test_a_socket_that_nobody_listens_on_is_a_file_all_the_same(self, endpoint: str) -> None:
        with socket.socket(socket.AF_UNIX) as left_behind:
            left_behind.bind(endpoint.removeprefix("ipc://"))
        with Client(endpoint, connect_timeout_s=0.2) as client, pytest.raises(NotConnected) as caught:
            client.ask("m", "x")
        assert str(caught.value) == f"no router answers at {endpoint} within 0.2 s"

    def test_nor_is_it_at_a_tcp_port(self, run: Run) -> None:
        async def main() -> None:
            async with AsyncClient(f"tcp://127.0.0.1:{free_port()}", connect_timeout_s=0.3) as client:
                with pytest.raises(NotConnected, match="no router answers at tcp"):
                    await client.ping()

        run(main())

    def test_a_request_waits_for_a_router_that_is_just_starting(self, endpoint: str) -> None:
        with ExitStack() as stack:
            client = stack.enter_context(Client(endpoint))
            starter = threading.Timer(0.2, lambda: stack.enter_context(ScriptedRouter(endpoint)))
            starter.start()
            assert client.ask("m", "x") == "Hello!"
            starter.join()

    def test_a_program_that_does_not_answer_is_no_router(self, endpoint: str) -> None:
        with ScriptedRouter(endpoint) as router, Client(endpoint, connect_timeout_s=1.0) as client:
            router.script(ignore)
            with pytest.raises(NotConnected, match=r"did not accept the request within 1 s") as caught:
                client.ask("m", "x")
            assert caught.value.code == "not_accepted"
            router.wait_cancelled(router.wait_ask())


class TestGone:
    def test_what_was_accepted_ends_at_once_and_the_next_request_is_answered(self, endpoint: str) -> None:
        with ScriptedRouter(endpoint) as router, Client(endpoint) as client:
            router.script(accept_and_say)
            stream = client.chat("m", "x")
            assert next(stream).text == "a"
            router.die()
            delays, begun_s = MachineDelays(), monotonic()
            with pytest.raises(ConnectionLost, match="after it had accepted the request \\(1 events had come\\)"):
                next(stream)
            assert monotonic() - begun_s < 1 + delays.ns() / 1e9
            with router:
                assert client.ask("m", "x") == "Hello!"

    def test_a_restart_while_nothing_runs_goes_unseen(self, endpoint: str) -> None:
        with ScriptedRouter(endpoint) as router, Client(endpoint) as client:
            client.ping()
            router.die()
            with router:
                router.script(accept_and_say)
                stream = client.chat("m", "x")
                assert next(stream).text == "a"

    def test_what_was_not_accepted_is_sent_again_with_its_id(self, endpoint: str, run: Run) -> None:
        router = ScriptedRouter(endpoint)

        async def main() -> list[Any]:
            async with AsyncClient(endpoint) as client:
                accepted, sent = client.chat("m", "x"), client.chat("m", "x", request_id="mine")
                await asyncio.to_thread(router.wait_ask, 2)
                await client.ping()
                router.die()
                with router:
                    return await asyncio.gather(accepted.answer(), sent.answer(), return_exceptions=True)

        router.script(accept, ignore)
        with router:
            accepted, sent = run(main())
        assert isinstance(accepted, ConnectionLost)
        assert sent == "Hello!"
        assert [ask.id for ask in router.asks if ask.verb == "chat"][1:] == ["mine", "mine"]

    def test_an_acceptance_that_was_not_read_yet_counts(self, endpoint: str) -> None:
        """All that stood in the dead router's last words: the request runs once, and its events are not lost."""
        with ScriptedRouter(endpoint) as router, Client(endpoint) as client:
            router.script(accept_and_say)
            stream = client.chat("m", "x")
            ask = router.wait_ask()
            router.do(lambda: ask.events(*[text("b")] * 100))
            assert client.ping(), "its answer came after them"
            router.die()
            with router:
                with pytest.raises(ConnectionLost, match="101 events"):
                    list(stream)
                assert stream.text == "a" + "b" * 100
                assert len(router.asks) == 2, "it is not asked again"

    def test_what_it_said_before_it_went_is_read(self, endpoint: str) -> None:
        """More messages than are read in one turn wait when the client learns that the connection is closed."""
        with ScriptedRouter(endpoint) as router, Client(endpoint) as client:
            router.script(answer(*[text("a")] * 500))
            stream = client.chat("m", "x")
            ask = router.wait_ask()
            router.die(linger_ms=5000)
            assert ask.over
            assert stream.answer() == "a" * 500

    def test_a_silent_router_is_lost_after_three_seconds(self, endpoint: str) -> None:
        async def main() -> float:
            async with AsyncClient(endpoint) as client:
                stream = client.chat("m", "x")
                assert (await anext(stream)).text == "a"
                begun_s = monotonic()
                router.is_silent = True
                with pytest.raises(ConnectionLost, match="was silent for 3 s"):
                    await anext(stream)
                return monotonic() - begun_s

        with ScriptedRouter(endpoint) as router:
            router.script(accept_and_say)
            delays = MachineDelays()
            assert LOST_S - 2 * wire.ALIVE_S < uvloop.run(main()) < LOST_S + 0.2 + delays.ns() / 1e9


class TestSeveralRouters:
    def test_requests_go_round_and_stay(self, directory: Path) -> None:
        endpoints = [f"ipc://{directory}/{name}.sock" for name in "ab"]
        with ScriptedRouter(endpoints[0]) as first, ScriptedRouter(endpoints[1]) as second:
            with Client(*endpoints) as client:
                wait_until(lambda: client.ping() and first.messages and second.messages, "both are connected")
                streams = [client.chat("m", "x") for _ in range(10)]
                assert [stream.answer() for stream in streams] == ["Hello!"] * 10
            for router in (first, second):
                assert sum(ask.verb == "chat" for ask in router.asks) == 5

    def test_one_that_dies_leaves_the_other(self, directory: Path, run: Run) -> None:
        endpoints = [f"ipc://{directory}/{name}.sock" for name in "ab"]
        routers = [ScriptedRouter(endpoint) for endpoint in endpoints]

        async def main() -> None:
            async with AsyncClient(*endpoints) as client:
                while not all(router.messages for router in routers):
                    await client.ping()
                for router in routers:
                    router.script(accept_and_say)
                streams = [client.chat("m", "x") for _ in range(2)]
                for stream in streams:
                    await anext(stream)
                reading = [asyncio.ensure_future(anext(stream)) for stream in streams]
                routers[0].die()
                lost, stays = await asyncio.wait(reading, timeout=WAIT_S, return_when=asyncio.FIRST_COMPLETED)
                assert [type(each.exception()) for each in lost] == [ConnectionLost]
                assert [await client.ask("m", "x") for _ in range(4)] == ["Hello!"] * 4
                assert [each.done() for each in stays] == [False]
                for each in stays:
                    each.cancel()

        with routers[0], routers[1]:
            run(main())


# ---------------------------------------------------------------- the real router
@pytest.fixture(scope="module")
def started(host: ScriptedHost) -> Iterator[RouterProcess]:
    with shared_memory_directory() as directory, RouterProcess(directory, QUIET + host_entry(host)) as router:
        yield router


@pytest.fixture
def router(started: RouterProcess, host: ScriptedHost) -> Iterator[RouterProcess]:
    """The module's router, running."""
    if not started.is_running:
        started.start()
    yield started
    started.signal(signal.SIGCONT)
    host.forget_scripts()


def socket_of(router: RouterProcess) -> str:
    return f"ipc://{router.instance_dir}/zmq.sock"


def hang(host: ScriptedHost) -> None:
    """Let the next answer begin and never end."""
    host.script(stream_head(), chunk(TOKENS[0]), End.HANG)


class TestRealRouter:
    def test_killed_it_is_an_error_within_three_seconds_and_carries_on_after_its_restart(
        self, router: RouterProcess, host: ScriptedHost
    ) -> None:
        hang(host)
        with Client(socket_of(router)) as client:
            stream = client.chat("m", "x")
            assert next(stream).text == "one"
            router.kill()
            delays, begun_s = MachineDelays(), monotonic()
            with pytest.raises(ConnectionLost):
                next(stream)
            assert monotonic() - begun_s < LOST_S + delays.ns() / 1e9
            router.start()
            assert client.ask("m", "x") == "one two three"

    def test_killed_and_restarted_while_the_loop_runs(
        self, router: RouterProcess, host: ScriptedHost, run: Run
    ) -> None:
        hang(host)

        async def main() -> None:
            async with AsyncClient(socket_of(router), connect_timeout_s=20) as client:
                stream = client.chat("m", "x")
                assert (await anext(stream)).text == "one"
                router.kill()
                delays, begun_s = MachineDelays(), monotonic()
                with pytest.raises(ConnectionLost):
                    await anext(stream)
                assert monotonic() - begun_s < LOST_S + delays.ns() / 1e9
                waiting = client.chat("m", "x")
                router.start()
                assert await waiting.answer() == "one two three"

        run(main())

    def test_stopped_it_is_lost_when_it_was_silent_for_too_long(
        self, router: RouterProcess, host: ScriptedHost, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(session, "SILENCE_NS", round(SHORT_LOST_S * 1e9))
        hang(host)
        with Client(socket_of(router)) as client:
            stream = client.chat("m", "x")
            assert next(stream).text == "one"
            router.signal(signal.SIGSTOP)
            delays, begun_s = MachineDelays(), monotonic()
            with pytest.raises(ConnectionLost):
                next(stream)
            assert monotonic() - begun_s < SHORT_LOST_S + 0.2 + delays.ns() / 1e9
            router.signal(signal.SIGCONT)
            assert client.ask("m", "x") == "one two three"

    def test_leaving_the_loop_cancels_at_the_host(self, router: RouterProcess, host: ScriptedHost) -> None:
        hang(host)
        with Client(socket_of(router)) as client:
            for _ in client.chat("m", "x"):
                break
            host.exchanges[-1].wait_gone()
            assert client.ask("m", "x") == "one two three"

    def test_a_slow_host_is_waited_for(self, router: RouterProcess, host: ScriptedHost) -> None:
        gate = Gate()
        host.script(gate, stream_head(), *map(chunk, TOKENS), End.CLOSE)
        with Client(socket_of(router)) as client:
            stream = client.chat("m", "x")
            opener = threading.Timer(LOST_S + 0.5, gate.open)
            opener.start()
            assert next(stream).text == "one", "`alive` tells that the router is there"
            opener.join()

    def test_a_request_over_the_routers_limit_says_so(self, router: RouterProcess) -> None:
        with Client(socket_of(router)) as client:
            with pytest.raises(NotConnected, match="before it had accepted the request, once") as caught:
                client.ask("m", "x" * 40_000_000)
            assert caught.value.code == "not_accepted"
            assert "probably more than limits.body_bytes of the router" in str(caught.value)
            assert client.ask("m", "x") == "one two three", "the client goes on"
