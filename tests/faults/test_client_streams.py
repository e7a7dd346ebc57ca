"""Both clients over real sockets: what they send, what they give back, and what leaving a loop does."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from router.client import AsyncClient, Client, ProtocolError, RouterError, TimedOut
from tests.support import scripted_router as wire
from tests.support.machine_delays import MachineDelays
from tests.support.scripted_router import ScriptedRouter, accept, answer, reply, text

Run = Callable[[Coroutine[Any, Any, Any]], Any]
Read = Callable[..., list[str | RouterError]]


@pytest.fixture
def router(directory: Path) -> Iterator[ScriptedRouter]:
    with ScriptedRouter(f"ipc://{directory}/zmq.sock") as router:
        yield router


@pytest.fixture
def client(router: ScriptedRouter) -> Iterator[Client]:
    with Client(router.endpoint) as client:
        yield client


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine on one of the event loops."""
    runner: Run = request.param
    return runner


def begun(*events: tuple[int, bytes]) -> wire.Script:
    """Return a script that answers with these events and then does not go on."""

    def script(ask: wire.Ask) -> None:
        ask.accept()
        if events:
            ask.events(*events)

    return script


class TestClient:
    def test_tokens_come_with_text_kind_and_times(self, client: Client, router: ScriptedRouter) -> None:
        delays = MachineDelays()
        stream = client.chat("m", "Say hello.", max_tokens=5, tags={"feature_name": "test"}, traceparent="00-x")
        tokens = list(stream)
        ask = router.wait_ask()
        assert [(token.text, token.kind, token.index) for token in tokens] == [
            ("Hel", "text", 1),
            ("lo", "text", 2),
            ("!", "text", 3),
        ]
        assert all(0 <= token.transport_ns < delays.allowed_ns(10**9) for token in tokens)
        assert ask.json() == {"model": "m", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 5}
        assert ask.header["tags"] == {"feature_name": "test"}
        assert ask.header["traceparent"] == "00-x"
        assert (stream.text, stream.finish_reason, stream.host) == ("Hello!", "stop", "scripted")
        assert stream.usage == wire.USAGE_NUMBERS
        assert stream.request_id == ask.id
        assert stream.request_seq == 0
        assert stream.timing is not None
        assert sum(list(stream.timing.stage_ns.values())[:11]) == stream.timing.ttft_ns

    def test_every_event_can_be_had(self, client: Client) -> None:
        events = list(client.chat("m", "x").events())
        assert [token.kind for token in events] == ["head", "text", "text", "text", "finish"]
        assert [token.index for token in events] == [0, 1, 2, 3, 4]

    def test_tokens_can_be_taken_one_by_one(self, client: Client) -> None:
        stream = client.chat("m", "x")
        assert [next(stream).text, next(stream).text] == ["Hel", "lo"]
        assert stream.text == "Hello", "exactly what was taken"
        assert [token.text for token in stream] == ["!"]
        with pytest.raises(StopIteration):
            next(stream)

    def test_whole_answers_embeddings_models_and_pings(self, client: Client, router: ScriptedRouter) -> None:
        chat = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}]}
        router.script(
            reply(chat),
            reply({"data": [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}]}),
            reply({"data": [{"index": 0, "embedding": "AACAPwAAAEA="}]}),
        )
        whole = client.chat("m", "x", stream=False)
        assert (whole.json, whole.text, whole.host) == (chat, "hi", "scripted")
        assert whole.usage == wire.USAGE_NUMBERS
        assert router.asks[0].json()["stream"] is False
        assert client.embeddings("e", ["a", "b"]).vectors == [[1.0], [2.0]]
        assert client.embeddings("e", "a", encoding_format="base64").vectors == [[1.0, 2.0]]
        assert router.asks[1].json() == {"model": "e", "input": ["a", "b"]}
        assert client.models() == ["one", "two"]
        assert client.ping().generation == 42
        assert client.ask("m", [{"role": "user", "content": "x"}]) == "Hello!"

    def test_an_error_names_what_was_wrong(self, client: Client, router: ScriptedRouter) -> None:
        router.script(lambda ask: ask.error(404, "model_not_found", "no such model", param="model"))
        with pytest.raises(RouterError, match="no such model") as caught:
            client.ask("m", "x")
        assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")

    def test_without_usage_the_time_of_a_token_is_that_of_an_event_with_content(
        self, client: Client, router: ScriptedRouter
    ) -> None:
        def script(ask: wire.Ask) -> None:
            ask.accept()
            ask.events(wire.ROLE, text("a"), (wire.COMMENT, b": ping\n\n"), text("b"), text("c"), wire.STOP)
            ask.done(usage=None)

        router.script(script)
        stream = client.chat("m", "x")
        stream.answer()
        timing = stream.timing
        assert timing is not None
        assert timing.tpot_ns == (timing.stamps["tokN"] - timing.stamps["tok1"]) / 2, "two tokens after the first"

    def test_an_odd_usage_is_none(self, client: Client, router: ScriptedRouter) -> None:
        def script(ask: wire.Ask) -> None:
            ask.accept()
            ask.events(text("a"), text("b"))
            ask.done(usage="many")

        router.script(script)
        stream = client.chat("m", "x")
        stream.answer()
        assert stream.usage is None
        assert stream.timing is not None

    def test_an_error_in_the_middle_comes_after_what_was_said(self, client: Client, router: ScriptedRouter) -> None:
        def script(ask: wire.Ask) -> None:
            ask.accept()
            ask.events(text("a"), text("b"))
            ask.error(502, "host_closed")

        router.script(script)
        stream = client.chat("m", "x")
        seen = []
        with pytest.raises(RouterError) as caught:
            seen.extend(token.text for token in stream)
        assert caught.value.delivered == 2
        assert stream.text == "ab"
        assert stream.error is caught.value
        assert stream.timing is None


class TestLeaving:
    """Whoever leaves the loop leaves the request."""

    def ask(self, client: Client, router: ScriptedRouter) -> tuple[Any, wire.Ask]:
        router.script(begun(wire.ROLE, text("a"), text("b")))
        return client.chat("m", "x"), router.wait_ask()

    def test_by_break(self, client: Client, router: ScriptedRouter) -> None:
        stream, ask = self.ask(client, router)
        for _ in stream:
            break
        router.wait_cancelled(ask)
        assert stream.text == "a"
        assert list(stream) == []

    def test_by_an_exception(self, client: Client, router: ScriptedRouter) -> None:
        stream, ask = self.ask(client, router)

        def read() -> None:
            for _ in stream:
                raise KeyError

        with pytest.raises(KeyError):
            read()
        router.wait_cancelled(ask)

    def test_by_close_inside_the_loop(self, client: Client, router: ScriptedRouter) -> None:
        stream, ask = self.ask(client, router)
        seen = []
        for token in stream:
            seen.append(token.text)
            stream.close()
        assert seen == ["a"]
        router.wait_cancelled(ask)

    def test_by_the_end_of_with(self, client: Client, router: ScriptedRouter) -> None:
        stream, ask = self.ask(client, router)
        with stream:
            next(stream)
        router.wait_cancelled(ask)

    def test_by_throwing_the_stream_away(self, client: Client, router: ScriptedRouter) -> None:
        stream, ask = self.ask(client, router)
        next(stream)
        del stream
        router.wait_cancelled(ask)

    def test_by_a_cycle_that_is_collected_in_another_thread(self, client: Client, router: ScriptedRouter) -> None:
        stream, ask = self.ask(client, router)
        gc.disable()  # or it could be collected here, by chance
        try:
            stream.cycle = stream
            del stream
            collector = threading.Thread(target=gc.collect)
            collector.start()
            collector.join()
        finally:
            gc.enable()
        assert not ask.cancelled.is_set(), "sockets are not touched by a thread that they do not belong to"
        client.ping()
        router.wait_cancelled(ask)

    def test_by_closing_the_client(self, router: ScriptedRouter) -> None:
        with Client(router.endpoint) as client:
            stream, _ = self.ask(client, router)
        with pytest.raises(RouterError, match="the client was closed"):
            list(stream)
        with pytest.raises(RuntimeError, match="closed"):
            client.ping()

    def test_one_stream_without_touching_the_others(self, client: Client, router: ScriptedRouter) -> None:
        left, ask = self.ask(client, router)
        other = client.chat("m", "x")
        for _ in left:
            break
        router.wait_cancelled(ask)
        assert other.answer() == "Hello!"


class TestWholeAnswers:
    """``answer`` gives all of an answer or an error, whatever was done to the stream before."""

    @pytest.fixture(params=["Client", "AsyncClient on asyncio", "AsyncClient on uvloop"])
    def read(self, request: pytest.FixtureRequest, router: ScriptedRouter) -> Read:
        """Take a token and leave the loop if told to, then ask for the answer so often; return what came of each."""

        def read(times: int = 1, *, leave: bool = False, **options: Any) -> list[str | RouterError]:
            with Client(router.endpoint) as client:
                stream, found = client.chat("m", "x", **options), []
                for _ in stream if leave else ():
                    break
                for _ in range(times):
                    try:
                        found.append(stream.answer())
                    except RouterError as error:
                        found.append(error)
                return found

        async def read_on_loop(times: int = 1, *, leave: bool = False, **options: Any) -> list[str | RouterError]:
            async with AsyncClient(router.endpoint) as client:
                stream, found = client.chat("m", "x", **options), []
                if leave:
                    async for _ in stream:
                        break
                for _ in range(times):
                    try:
                        found.append(await stream.answer())
                    except RouterError as error:
                        found.append(error)
                return found

        if request.param == "Client":
            return read
        runner = uvloop.run if "uvloop" in request.param else asyncio.run
        return lambda *given, **options: runner(read_on_loop(*given, **options))

    def test_it_may_be_asked_for_again(self, read: Read) -> None:
        assert read(3) == ["Hello!"] * 3

    def test_of_a_stream_that_was_left_there_is_none(self, read: Read, router: ScriptedRouter) -> None:
        router.script(begun(text("a"), text("b")))
        for error in read(2, leave=True):
            assert isinstance(error, RouterError)
            assert (str(error), error.code) == ("the stream was left before its end", "left")
            assert error.request_id == router.asks[0].id

    def test_nor_if_the_rest_had_come_already(self, read: Read, router: ScriptedRouter) -> None:
        def script(ask: wire.Ask) -> None:
            ask.accept()
            ask.events(text("a"), text("b"))
            ask.done()

        router.script(script)
        (error,) = read(leave=True)
        assert isinstance(error, RouterError)
        assert error.code == "left"

    def test_an_answer_that_was_broken_off_is_an_error_each_time(self, read: Read, router: ScriptedRouter) -> None:
        def script(ask: wire.Ask) -> None:
            ask.accept()
            ask.events(text("a"))
            ask.error(502, "host_closed")

        router.script(script)
        errors = read(2)
        assert [error.code for error in errors if isinstance(error, RouterError)] == ["host_closed"] * 2

    def test_so_is_one_that_took_too_long(self, read: Read, router: ScriptedRouter) -> None:
        router.script(begun(text("a")))
        assert [type(error) for error in read(2, timeout_s=0.1)] == [TimedOut] * 2


class TestThreads:
    def test_a_client_belongs_to_one_thread(self, client: Client) -> None:
        client.ping()
        caught: list[BaseException] = []

        def ask() -> None:
            try:
                client.ping()
            except RuntimeError as error:
                caught.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        assert "belongs to another thread" in str(caught[0])

    def test_it_may_be_made_in_another_thread_than_it_is_used(self, router: ScriptedRouter) -> None:
        client, answers = Client(router.endpoint), []

        def ask() -> None:
            with client:
                answers.append(client.ask("m", "x"))

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        assert answers == ["Hello!"]

    def test_a_client_belongs_to_one_event_loop(self, router: ScriptedRouter) -> None:
        client = AsyncClient(router.endpoint)
        loop = asyncio.new_event_loop()
        loop.run_until_complete(client.ping())
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(client.ping())
        client.close()
        loop.close()


class TestManyStreams:
    def test_one_stream_is_read_while_others_are_not(self, client: Client, router: ScriptedRouter) -> None:
        """Forty answers of 250 events that wait for their reader are more than a router sends ahead to one client."""

        def flood(ask: wire.Ask) -> None:
            ask.accept()
            ask.events(*[text("x")] * 250)

        router.script(*[flood] * 40)
        streams = [client.chat("m", "x") for _ in range(40)]
        read = client.chat("m", "x")
        assert read.answer() == "Hello!"
        floods = router.asks[:40]
        router.wait(lambda: sum(250 - ask.granted for ask in floods) < 4096, "credit for the one that is read")
        for ask in floods:
            router.do(ask.done)
        assert [len(stream.answer()) for stream in streams] == [250] * 40

    def test_a_stream_that_is_not_read_is_not_granted(self, client: Client, router: ScriptedRouter) -> None:
        def flood(ask: wire.Ask) -> None:
            ask.accept()
            ask.events(*[text("x")] * 16)

        router.script(flood)
        stream = client.chat("m", "x", credit=16)
        for _ in range(20):
            client.ping()
        ask = router.wait_ask()
        assert ask.header["credit"] == 16
        assert ask.granted == 0
        for _ in range(8):
            next(stream)
        client.ping()
        assert ask.granted == 0, "events of one message count when the message is read"
        for _ in range(8):
            next(stream)
        router.do(ask.done)
        list(stream)
        router.wait(lambda: any(m["verb"] == "credit" for m in router.messages), "a grant")

    def test_a_thousand_short_streams(self, client: Client) -> None:
        streams = [client.chat("m", str(number)) for number in range(1000)]
        assert [stream.answer() for stream in streams] == ["Hello!"] * 1000

    def test_a_thousand_short_streams_on_a_loop(self, router: ScriptedRouter, run: Run) -> None:
        async def main() -> list[str]:
            async with AsyncClient(router.endpoint) as client:
                return await asyncio.gather(*[client.ask("m", str(number)) for number in range(1000)])

        assert run(main()) == ["Hello!"] * 1000

    def test_a_long_stream_is_granted_as_it_is_read(self, router: ScriptedRouter, run: Run) -> None:
        count = 5000

        async def main() -> list[int]:
            async with AsyncClient(router.endpoint) as client:
                return [token.index async for token in client.chat("m", "x")]

        router.script(answer(*[text("x")] * count))
        assert run(main()) == list(range(count))
        ask = router.asks[0]
        assert any(message["verb"] == "credit" for message in router.messages)
        assert ask.sent_count == count


class TestAsyncClient:
    def test_it_does_what_the_other_one_does(self, router: ScriptedRouter, run: Run) -> None:
        router.script(reply({"choices": [{"text": "abc"}]}), reply({"data": [{"index": 0, "embedding": [1.0]}]}))

        async def main() -> None:
            async with AsyncClient(router.endpoint) as client:
                whole = await client.completion("m", "x", stream=False)
                assert whole.text == "abc"
                assert (await client.embeddings("e", "a")).vectors == [[1.0]]
                assert await client.models() == ["one", "two"]
                assert (await client.ping()).generation == 42
                stream = client.chat("m", "x")
                assert [token.text async for token in stream] == ["Hel", "lo", "!"]
                assert stream.text == "Hello!"
                assert stream.timing is not None
                kinds = [token.kind async for token in client.chat("m", "x").events()]
                assert kinds == ["head", "text", "text", "text", "finish"]
                one = client.chat("m", "x")
                assert (await anext(one)).text == "Hel"
                assert (await anext(one)).text == "lo"
                assert await one.answer() == "Hello!"

        run(main())

    def test_leaving_the_loop_leaves_the_request(self, router: ScriptedRouter, run: Run) -> None:
        async def by_break(client: AsyncClient) -> None:
            stream = client.chat("m", "x")
            async for _ in stream:
                break
            await client.ping()
            with pytest.raises(StopAsyncIteration):
                await anext(stream)

        async def by_with(client: AsyncClient) -> None:
            async with client.chat("m", "x") as stream:
                await anext(stream)

        async def by_throwing_it_away(client: AsyncClient) -> None:
            await anext(client.chat("m", "x"))
            await client.ping()

        async def by_task(client: AsyncClient) -> None:
            async def read() -> None:
                async for _ in client.chat("m", "x"):
                    begun_reading.set()

            begun_reading = asyncio.Event()
            task = asyncio.create_task(read())
            await begun_reading.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        async def by_time(client: AsyncClient) -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await client.chat("m", "x", stream=False)

        ways = [by_break, by_with, by_throwing_it_away, by_task, by_time]
        router.script(*[begun(text("a"))] * len(ways))

        async def main() -> None:
            async with AsyncClient(router.endpoint) as client:
                for way in ways:
                    await way(client)
                    await client.ping()

        run(main())
        asks = [ask for ask in router.asks if ask.verb == "chat"]
        assert [ask.cancelled.is_set() for ask in asks] == [True] * len(ways)

    def test_two_tasks_cannot_read_one_stream(self, router: ScriptedRouter, run: Run) -> None:
        router.script(accept)

        async def main() -> None:
            async with AsyncClient(router.endpoint) as client:
                stream = client.chat("m", "x")
                first = asyncio.ensure_future(anext(stream))
                await asyncio.sleep(0)
                with pytest.raises((RuntimeError, ValueError)):
                    await anext(stream)
                first.cancel()

        run(main())

    def test_closing_tells_whoever_waits(self, router: ScriptedRouter, run: Run) -> None:
        router.script(accept)

        async def main() -> None:
            client = AsyncClient(router.endpoint)
            task = asyncio.create_task(client.ask("m", "x"))
            await client.ping()
            client.close()
            with pytest.raises(RouterError, match="the client was closed"):
                await task

        run(main())


class TestBrokenProtocol:
    @pytest.mark.parametrize("first", [0, 2, 9], ids=["repeated", "one missing", "many missing"])
    def test_a_gap_between_events_is_no_answer(self, client: Client, router: ScriptedRouter, first: int) -> None:
        def script(ask: wire.Ask) -> None:
            ask.accept()
            ask.events(text("a"))
            ask.events(text("b"), first_index=first)

        router.script(script)
        stream = client.chat("m", "x")
        with pytest.raises(ProtocolError, match=f"event {first} came where 1 was due"):
            list(stream)
        assert stream.text == "a"
        router.wait_cancelled(router.asks[0])

    def test_an_end_before_the_last_events_is_no_end(self, client: Client, router: ScriptedRouter) -> None:
        def script(ask: wire.Ask) -> None:
            ask.accept()
            ask.events(text("a"))
            ask.done(events=2)
            ask.events(text("b"))

        router.script(script)
        with pytest.raises(ProtocolError, match="after 1 of 2 events"):
            client.ask("m", "x")
        assert client.ask("m", "x") == "Hello!", "the client goes on"

    def test_another_version_is_named_and_the_client_recovers(self, client: Client, router: ScriptedRouter) -> None:
        router.script(lambda ask: ask.send("accepted", 1, 1, version=2))
        with pytest.raises(ProtocolError, match="version 2"):
            client.ask("m", "x")
        assert client.ask("m", "x") == "Hello!"

    def test_bytes_that_mean_nothing_are_an_error(self, client: Client, router: ScriptedRouter) -> None:
        router.script(lambda ask: router.send([ask.identity, b"\xc1", b"\x00"]))
        with pytest.raises(ProtocolError):
            client.ask("m", "x")
        assert client.ask("m", "x") == "Hello!"

    def test_a_whole_answer_that_is_no_json_is_an_error(self, client: Client, router: ScriptedRouter) -> None:
        def script(ask: wire.Ask) -> None:
            ask.accept()
            ask.done(b"<html>", events=0)

        router.script(script)
        with pytest.raises(ProtocolError, match="not JSON"):
            client.chat("m", "x", stream=False)

    @pytest.mark.parametrize("value", [[1, 2], "words", 3, None], ids=repr)
    def test_nor_is_one_that_is_no_object(self, client: Client, router: ScriptedRouter, value: Any) -> None:
        router.script(reply(value))
        with pytest.raises(ProtocolError, match="no JSON object") as caught:
            client.chat("m", "x", stream=False)
        assert (caught.value.code, caught.value.request_id) == ("protocol_error", router.asks[0].id)

    @pytest.mark.parametrize(
        "value",
        [{}, {"choices": {}}, {"choices": ["x"]}, {"choices": [{"message": ["x"]}]}, {"usage": "many"}],
        ids=repr,
    )
    def test_one_of_another_shape_has_no_text(self, client: Client, router: ScriptedRouter, value: Any) -> None:
        def script(ask: wire.Ask) -> None:
            ask.accept()
            ask.done(json.dumps(value).encode(), events=0, usage=None)

        router.script(script)
        whole = client.chat("m", "x", stream=False)
        assert (whole.json, whole.text, whole.usage) == (value, "", None)

    @pytest.mark.parametrize(
        "value",
        [
            {},
            {"data": 3},
            {"data": ["x"]},
            {"data": [{}]},
            {"data": [{"embedding": 3}]},
            {"data": [{"embedding": "A"}]},
        ],
        ids=repr,
    )
    def test_embeddings_of_another_shape_are_an_error(self, client: Client, router: ScriptedRouter, value: Any) -> None:
        router.script(reply(value))
        with pytest.raises(ProtocolError, match="no vectors"):
            _ = client.embeddings("e", "a").vectors


class TestTimeOuts:
    def test_the_first_token_is_late(self, client: Client, router: ScriptedRouter) -> None:
        router.script(begun(wire.ROLE))
        client.ping()  # it is connected
        with pytest.raises(TimedOut, match="no first token"):
            client.chat("m", "x", first_token_timeout_s=0.05).answer()
        router.wait_cancelled(router.wait_ask(2))

    def test_the_whole_answer_is_late(self, router: ScriptedRouter, run: Run) -> None:
        router.script(begun(text("a")))

        async def main() -> None:
            async with AsyncClient(router.endpoint) as client:
                await client.ping()  # it is connected
                stream = client.chat("m", "x", timeout_s=1.0)
                assert (await anext(stream)).text == "a"
                with pytest.raises(TimedOut, match="not complete"):
                    await anext(stream)
                await client.ping()

        run(main())
        router.wait_cancelled(router.asks[1])
