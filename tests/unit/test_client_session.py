"""The client's requests without a socket: what is sent when, what is granted, what ends and how."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from router.client import ConnectionLost, NotConnected, ProtocolError, RouterError, TimedOut, protocol
from router.client.exchange import NEVER_NS, Done, Exchange, Phase, Pong
from router.client.session import (
    AHEAD_AT,
    BUFFERED_MAX,
    OUTSTANDING_MAX,
    REQUESTS_MAX,
    RESEND_BYTES_MAX,
    SENDS_MAX,
    SILENCE_NS,
    Session,
)

S = 1_000_000_000
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
STAMPS = list(range(100, 115))


def error_body(**fields: Any) -> bytes:
    return msgspec.json.encode({"error": {"message": "no", "type": "t", "param": None, "code": "c", **fields}})


class Bench:
    """A session with a clock that the test moves, and the routers' side of it."""

    def __init__(self, link_count: int = 1, connect_timeout_s: float = 5) -> None:
        self.now_ns = 1000 * S
        self.endpoints = [f"ipc:///run/{index}" for index in range(link_count)]
        self.session = Session(self.endpoints, round(connect_timeout_s * S), self.now_ns)
        self.sent: list[tuple[int, dict[str, Any], bytes]] = []

    def connect(self, link: int = 0) -> None:
        self.session.connected(link, self.now_ns)

    def ask(self, *, accepted: bool = True, body: Any = None, **options: Any) -> Exchange:
        options = {"streamed": True, **options}
        exchange = self.session.submit(protocol.request("chat", body or {"model": "m"}, **options), self.now_ns)
        if accepted:
            self.accept(exchange)
        return exchange

    def accept(self, exchange: Exchange) -> None:
        self.say(exchange, "accepted", 7, 42)

    def say(self, exchange: Exchange, kind: str, *more: Any, body: bytes | None = None, version: int = 1) -> None:
        self.raw(exchange.link, [version, kind, exchange.id, *more], body)

    def raw(self, link: int, header: Any, body: bytes | None = None) -> None:
        frames = [msgspec.msgpack.encode(header)]
        self.session.received(link, frames if body is None else [*frames, body], self.now_ns)

    def events(self, exchange: Exchange, count: int = 1, first: int | None = None, kind: int = 4) -> None:
        first_index = exchange.event_count if first is None else first
        listed = [[kind, self.now_ns - 5, len(EVENT)] for _ in range(count)]
        self.say(exchange, "events", first_index, listed, body=EVENT * count)

    def done(self, exchange: Exchange, **facts: Any) -> None:
        given = {"status": 200, "host": "h", "events": exchange.event_count, "usage": None, "stamps": STAMPS}
        self.say(exchange, "done", given | facts)

    def take(self, exchange: Exchange, count: int) -> None:
        self.session.taken(exchange, count)

    def output(self) -> list[tuple[int, dict[str, Any]]]:
        """Return what is to be sent now: link and header."""
        return [(link, msgspec.msgpack.decode(frames[0])) for link, frames in self.session.take_output()]

    def grants(self) -> dict[str, int]:
        """Return the credit that is given back now."""
        found: dict[str, int] = {}
        for _, header in self.output():
            assert header["verb"] == "credit"
            for request_id, count in header["grants"]:
                assert request_id not in found, "one grant for each stream"
                found[request_id] = count
        return found

    def wait(self, seconds: float, *, turns: bool = True) -> None:
        """Let time pass with the turns that a client makes, or in one go."""
        end_ns = self.now_ns + round(seconds * S)
        while turns and self.now_ns + S // 2 < end_ns:
            self.now_ns += S // 2
            self.turn()
        self.now_ns = end_ns
        self.turn()

    def turn(self) -> None:
        self.session.look(self.now_ns)
        self.session.tick(self.now_ns)
        for link, reason in self.session.take_condemned():
            self.session.lost(link, reason, self.now_ns)


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.connect()
    return bench


class TestSending:
    def test_a_request_waits_for_the_connection(self) -> None:
        bench = Bench()
        exchange = bench.ask(accepted=False)
        assert exchange.phase is Phase.QUEUED
        assert bench.output() == []
        bench.connect()
        ((link, header),) = bench.output()
        assert (link, header["verb"], header["id"]) == (0, "chat", exchange.id)
        assert exchange.phase is Phase.SENT

    def test_requests_go_round_the_endpoints_that_are_connected(self) -> None:
        bench = Bench(link_count=3)
        bench.connect(0)
        bench.connect(2)
        exchanges = [bench.ask(accepted=False) for _ in range(4)]
        assert [exchange.link for exchange in exchanges] in ([0, 2, 0, 2], [2, 0, 2, 0])

    def test_an_id_in_use_is_refused_and_one_that_is_free_again_is_not(self, bench: Bench) -> None:
        exchange = bench.ask(request_id="a")
        with pytest.raises(ValueError, match="no running request"):
            bench.ask(request_id="a")
        bench.session.cancel(exchange)
        with pytest.raises(ValueError, match="no running request"):
            bench.ask(request_id="a")
        bench.say(exchange, "error", {"status": 499}, body=error_body())
        bench.ask(request_id="a")

    def test_the_requests_of_a_client_are_bounded(self, bench: Bench) -> None:
        for _ in range(REQUESTS_MAX):
            bench.ask(accepted=False)
        with pytest.raises(RouterError, match="4096 requests open") as caught:
            bench.ask(accepted=False)
        assert caught.value.status == 429


class TestEvents:
    def test_they_come_in_order_and_once(self, bench: Bench) -> None:
        exchange = bench.ask()
        bench.events(exchange, 2)
        bench.events(exchange, 3)
        bench.done(exchange)
        assert [len(arrival.events) for arrival in exchange.inbox] == [2, 3]
        assert exchange.over
        assert isinstance(exchange.result, Done)
        assert exchange.result.stamps == STAMPS
        assert not bench.session.busy

    @pytest.mark.parametrize("first", [0, 1, 3], ids=["repeated", "repeated in part", "missing"])
    def test_a_gap_or_a_repetition_breaks_the_request_off_and_cancels_it(self, bench: Bench, first: int) -> None:
        exchange, other = bench.ask(), bench.ask()
        bench.output()
        bench.events(exchange, 2)
        bench.events(exchange, 1, first=first)
        assert isinstance(exchange.error, ProtocolError)
        assert f"event {first} came where 2 was due" in str(exchange.error)
        assert len(exchange.inbox) == 1, "what came before can still be read"
        assert [(h["verb"], h["id"]) for _, h in bench.output()] == [("cancel", exchange.id)]
        bench.events(other)
        assert other.error is None, "nobody else's request is touched"

    def test_sizes_that_do_not_fit_the_body_are_an_error(self, bench: Bench) -> None:
        exchange = bench.ask()
        bench.say(exchange, "events", 0, [[4, 1, 5]], body=b"123456")
        assert isinstance(exchange.error, ProtocolError)

    def test_an_end_that_counts_other_events_is_an_error(self, bench: Bench) -> None:
        exchange = bench.ask()
        bench.events(exchange, 2)
        bench.done(exchange, events=3)
        assert isinstance(exchange.error, ProtocolError)
        assert "2 of 3 events" in str(exchange.error)

    def test_events_before_the_request_was_accepted_are_an_error(self, bench: Bench) -> None:
        exchange = bench.ask(accepted=False)
        bench.events(exchange)
        assert isinstance(exchange.error, ProtocolError)

    def test_what_comes_for_a_request_that_is_over_or_unknown_is_left(self, bench: Bench) -> None:
        exchange = bench.ask()
        bench.done(exchange)
        before = exchange.result
        bench.events(exchange)
        bench.done(exchange, host="other")
        bench.raw(0, [1, "accepted", "nobody", 1, 1])
        assert exchange.result is before
        assert not exchange.inbox
        assert bench.session.take_condemned() == []

    def test_the_first_content_is_noted_with_both_its_times(self, bench: Bench) -> None:
        exchange = bench.ask()
        bench.events(exchange, kind=3)
        assert exchange.first_token == (0, 0)
        bench.events(exchange)
        first = exchange.first_token
        assert first == (bench.now_ns - 5, bench.now_ns)
        bench.now_ns += 9
        bench.events(exchange)
        assert exchange.first_token == first

    def test_only_events_with_content_count_as_tokens(self, bench: Bench) -> None:
        exchange = bench.ask()
        for kind, count in ((3, 1), (4, 5), (9, 2), (5, 1), (6, 2), (7, 1)):
            bench.events(exchange, count, kind=kind)
        assert (exchange.event_count, exchange.content_count) == (12, 8)

    def test_who_waits_is_woken_by_events_and_by_the_end(self, bench: Bench) -> None:
        exchange = bench.ask()
        calls = itertools.count()
        exchange.wake = lambda: next(calls) and None
        bench.events(exchange)
        bench.done(exchange)
        assert next(calls) == 2


class TestMessages:
    def test_new_types_and_longer_arrays_are_ignored(self, bench: Bench) -> None:
        exchange = bench.ask()
        bench.say(exchange, "weather", {"sun": True})
        bench.say(exchange, "events", 0, [[4, 1, len(EVENT)]], "new", body=EVENT)
        bench.raw(0, [1, "alive", ""])
        assert exchange.error is None
        assert exchange.event_count == 1

    @pytest.mark.parametrize(
        "header",
        [
            [2, "events", "x"],
            "text",
            [1],
            [1, "accepted", "ID"],
            [1, "done", "ID", {"status": "?"}],
            [1, "error", "ID", 3],
        ],
        ids=["version", "no array", "short", "no numbers", "status", "facts"],
    )
    def test_what_cannot_be_understood_ends_everything_on_that_connection(self, header: Any) -> None:
        bench = Bench(link_count=2)
        bench.connect(0)
        bench.connect(1)
        exchanges = [bench.ask() for _ in range(2)]
        victim = next(each for each in exchanges if each.link == 0)
        other = next(each for each in exchanges if each.link == 1)
        header = [victim.id if part == "ID" else part for part in header] if isinstance(header, list) else header
        bench.raw(0, header, b"{}")
        assert isinstance(victim.error, ProtocolError)
        assert other.error is None
        assert [link for link, _ in bench.session.take_condemned()] == [0]

    def test_bytes_that_are_no_messagepack_are_an_error(self, bench: Bench) -> None:
        exchange = bench.ask()
        bench.session.received(0, [b"\xc1 no"], bench.now_ns)
        assert isinstance(exchange.error, ProtocolError)

    def test_another_version_is_named(self, bench: Bench) -> None:
        exchange = bench.ask()
        bench.say(exchange, "alive", version=2)
        assert "speaks version 2 of the protocol, this client version 1" in str(exchange.error)

    def test_an_error_has_all_that_the_router_says(self, bench: Bench) -> None:
        exchange = bench.ask()
        bench.events(exchange, 2)
        facts = {"status": 503, "retry_after_s": 4, "events": 2}
        bench.say(exchange, "error", facts, body=error_body(message="full", code="overloaded", param="model"))
        error = exchange.error
        assert error is not None
        assert type(error) is RouterError
        assert (error.status, error.code, error.type, error.param) == (503, "overloaded", "t", "model")
        assert (str(error), error.delivered, error.retry_after_s) == ("full", 2, 4.0)
        assert error.request_id == exchange.id

    @pytest.mark.parametrize(
        "body", [b"plain words", b'{"error": "plain words"}', b'{"error": {"message": "plain words"}}']
    )
    def test_an_error_of_a_host_in_another_shape_keeps_its_words(self, bench: Bench, body: bytes) -> None:
        exchange = bench.ask(accepted=False)
        bench.say(exchange, "error", {"status": 500}, body=body)
        assert "plain words" in str(exchange.error)

    @pytest.mark.parametrize("odd", [3, True, ["a"], {"a": 1}, 1.5])
    @pytest.mark.parametrize("field", ["type", "param", "code"])
    def test_an_error_of_a_host_with_an_odd_field_keeps_its_words(self, bench: Bench, field: str, odd: Any) -> None:
        exchange = bench.ask(accepted=False)
        bench.say(exchange, "error", {"status": 500}, body=error_body(message="plain words", **{field: odd}))
        assert str(exchange.error) == "plain words"
        assert getattr(exchange.error, field) == str(odd)

    @pytest.mark.parametrize(
        "usage",
        [
            "many",
            [1],
            3,
            {"completion_tokens": "x"},
            {"completion_tokens": -1},
            {"prompt_tokens": 1.5},
            {"total_tokens": True},
            {"total_tokens": {}},
        ],
        ids=repr,
    )
    def test_a_usage_whose_totals_are_no_counts_is_none(self, bench: Bench, usage: Any) -> None:
        exchange = bench.ask()
        bench.done(exchange, usage=usage)
        assert isinstance(exchange.result, Done)
        assert exchange.result.usage is None

    @pytest.mark.parametrize("usage", [{"completion_tokens": 3, "cost": 0.5, "prompt_tokens_details": None}, {}])
    def test_a_usage_keeps_all_that_the_host_adds(self, bench: Bench, usage: Any) -> None:
        exchange = bench.ask()
        bench.done(exchange, usage=usage)
        assert isinstance(exchange.result, Done)
        assert exchange.result.usage == usage

    def test_a_pong_ends_a_ping(self, bench: Bench) -> None:
        exchange = bench.session.submit(protocol.request("ping"), bench.now_ns)
        bench.say(exchange, "pong", {"version": "1", "generation": 2, "t_ns": 3})
        assert exchange.result == Pong("1", 2, 3)


class TestCredit:
    def test_nothing_is_granted_below_half(self, bench: Bench) -> None:
        exchange = bench.ask()
        bench.output()
        bench.events(exchange, 200)
        bench.take(exchange, 127)
        assert bench.grants() == {}
        bench.take(exchange, 1)
        assert bench.grants() == {exchange.id: 128}
        bench.take(exchange, 72)
        assert bench.grants() == {}

    def test_what_the_user_has_not_taken_is_not_granted(self, bench: Bench) -> None:
        exchange = bench.ask()
        bench.output()
        bench.events(exchange, 256)
        assert bench.grants() == {}, "back-pressure reaches the host"

    @pytest.mark.parametrize("credit", [1, 2, 3, 4096])
    def test_a_stream_of_any_credit_gets_on(self, bench: Bench, credit: int) -> None:
        exchange = bench.ask(credit=credit)
        bench.output()
        left = credit
        for _ in range(5000):
            assert left > 0, "a stream whose events are taken is never without credit"
            bench.events(exchange)
            bench.take(exchange, 1)
            left += bench.grants().get(exchange.id, 0) - 1
            assert left <= credit

    def test_many_streams_below_half_are_granted_at_2048_in_sum(self, bench: Bench) -> None:
        exchanges = [bench.ask() for _ in range(600)]
        bench.output()
        for exchange in exchanges[:-1]:
            bench.events(exchange, 4)
            bench.take(exchange, 4)
            if exchange is exchanges[510]:
                assert bench.grants() == {}, "2,044 events are below half"
            elif exchange is exchanges[511]:
                granted = bench.grants()
                assert sum(granted.values()) == OUTSTANDING_MAX - 4, "all that was taken when the sum was reached"

    def test_grants_are_sent_together_and_messages_stay_small(self, bench: Bench) -> None:
        exchanges = [bench.ask(request_id=f"{number:064}", credit=1) for number in range(300)]
        bench.output()
        for exchange in exchanges:
            bench.events(exchange)
            bench.take(exchange, 1)
        messages = bench.session.take_output()
        assert len(messages) == 3
        assert all(len(frames[0]) < 16 * 1024 for _, frames in messages)

    def test_streams_that_nobody_reads_do_not_starve_the_one_that_is_read(self, bench: Bench) -> None:
        """All streams share 4,096 events at the router; 16 that are not read would use them up."""
        unread, read = [bench.ask() for _ in range(40)], bench.ask()
        bench.session.wait(read)
        bench.output()
        left = 4096
        for exchange in unread:
            bench.events(exchange, 200)
            left += sum(bench.grants().values()) - 200
            assert left >= 4096 - AHEAD_AT, "there is always credit for the one that is read"

    def test_one_that_begins_to_wait_when_all_credit_is_used_up_gets_some(self, bench: Bench) -> None:
        unread, read = [bench.ask() for _ in range(16)], bench.ask()
        bench.output()
        for exchange in unread:
            bench.events(exchange, 256)
        assert bench.grants() == {}, "nobody waits: the hosts are held"
        assert bench.session.wait(read), "there is something to send"
        assert sum(bench.grants().values()) == 4096
        bench.session.stop_waiting(read)
        bench.events(unread[0], 256)
        assert bench.grants() == {}

    def test_what_was_granted_ahead_is_not_granted_again(self, bench: Bench) -> None:
        unread, read = bench.ask(credit=4096), bench.ask()
        bench.session.wait(read)
        bench.output()
        bench.events(unread, AHEAD_AT)
        assert bench.grants() == {unread.id: AHEAD_AT}
        bench.take(unread, AHEAD_AT)
        assert bench.grants() == {}

    def test_what_is_held_for_its_user_is_bounded(self, bench: Bench) -> None:
        """The stream with most events gives way, the others and the one that is read go on."""
        most, some, read = bench.ask(credit=4096), bench.ask(), bench.ask()
        bench.session.wait(read)
        bench.output()
        bench.events(some, 10)
        for _ in range(BUFFERED_MAX // 1024 + 4):
            bench.events(most, 1024)
            bench.output()
        assert isinstance(most.error, RouterError)
        assert most.error.code == "not_read"
        assert "read streams as they come" in str(most.error)
        assert not most.inbox
        assert some.error is None
        assert read.error is None
        assert bench.session._buffered == 10

    def test_nothing_is_granted_to_a_request_that_is_over(self, bench: Bench) -> None:
        exchange = bench.ask()
        bench.output()
        bench.events(exchange, 200)
        bench.done(exchange)
        bench.take(exchange, 200)
        assert bench.grants() == {}


class TestLeaving:
    def test_a_request_that_was_sent_is_cancelled_and_ends_with_the_routers_answer(self, bench: Bench) -> None:
        exchange = bench.ask()
        bench.output()
        bench.events(exchange, 3)
        bench.session.cancel(exchange)
        bench.session.cancel(exchange)
        assert [h["verb"] for _, h in bench.output()] == ["cancel"]
        bench.events(exchange, 1)
        assert not exchange.inbox
        bench.say(exchange, "error", {"status": 499}, body=error_body(code="cancelled"))
        assert exchange.error is None, "who left does not hear of it"
        assert not bench.session.busy

    def test_one_that_was_not_sent_is_forgotten(self) -> None:
        bench = Bench()
        exchange = bench.ask(accepted=False)
        bench.session.cancel(exchange)
        bench.connect()
        assert bench.output() == []
        assert not bench.session.busy

    def test_one_that_is_over_is_left_alone(self, bench: Bench) -> None:
        exchange = bench.ask()
        bench.done(exchange)
        bench.output()
        bench.session.cancel(exchange)
        assert bench.output() == []

    def test_one_whose_connection_is_lost_meanwhile_is_forgotten(self, bench: Bench) -> None:
        exchange = bench.ask()
        bench.session.cancel(exchange)
        bench.session.lost(0, "went", bench.now_ns)
        assert exchange.error is None
        assert not bench.session.busy


class TestLoss:
    def test_what_was_accepted_ends_and_what_was_not_is_sent_again(self, bench: Bench) -> None:
        accepted, sent = bench.ask(), bench.ask(accepted=False)
        bench.events(accepted, 2)
        bench.output()
        bench.session.lost(0, "closed the connection", bench.now_ns)
        assert isinstance(accepted.error, ConnectionLost)
        assert str(accepted.error) == (
            "the router at ipc:///run/0 closed the connection after it had accepted the request (2 events had come)"
        )
        assert len(accepted.inbox) == 1, "what came can still be read"
        assert sent.phase is Phase.QUEUED
        bench.connect()
        assert [h["id"] for _, h in bench.output()] == [sent.id], "the same id"

    def test_requests_are_sent_again_in_their_order(self, bench: Bench) -> None:
        first, second = bench.ask(accepted=False), bench.ask(accepted=False)
        bench.output()
        bench.session.lost(0, "went", bench.now_ns)
        third = bench.ask(accepted=False)
        bench.connect()
        assert [h["id"] for _, h in bench.output()] == [first.id, second.id, third.id]

    def test_another_endpoint_takes_over(self) -> None:
        bench = Bench(link_count=2)
        bench.connect(0)
        exchange = bench.ask(accepted=False)
        bench.connect(1)
        bench.output()
        bench.session.lost(0, "went", bench.now_ns)
        assert [link for link, _ in bench.output()] == [1]
        assert exchange.link == 1

    def test_nothing_is_sent_to_a_connection_that_is_gone(self, bench: Bench) -> None:
        exchange = bench.ask(credit=2)
        bench.output()
        bench.events(exchange, 2)
        bench.take(exchange, 2)
        bench.session.lost(0, "went", bench.now_ns)
        assert bench.output() == []

    def test_a_request_that_breaks_every_connection_is_given_up(self, bench: Bench) -> None:
        exchange = bench.ask(accepted=False)
        for _ in range(SENDS_MAX):
            assert exchange.error is None
            bench.session.lost(0, "closed the connection", bench.now_ns)
            bench.connect()
        assert isinstance(exchange.error, NotConnected)
        assert exchange.error.code == "not_accepted"
        assert str(exchange.error) == (
            "the router at ipc:///run/0 closed the connection before it had accepted the request, 3 times"
        ), "a small body is not over a limit"

    def test_a_body_over_every_limit_is_not_sent_again(self, bench: Bench) -> None:
        exchange = bench.ask(accepted=False, body={"text": "x" * RESEND_BYTES_MAX})
        bench.session.lost(0, "closed the connection", bench.now_ns)
        assert isinstance(exchange.error, NotConnected)
        assert exchange.error.code == "not_accepted"
        size = sum(map(len, exchange.request.frames))
        assert str(exchange.error) == (
            "the router at ipc:///run/0 closed the connection before it had accepted the request, once; "
            f"the request has {size:,} bytes, probably more than limits.body_bytes of the router"
        )

    def test_one_that_was_sent_to_a_router_that_never_comes_back_says_so(self, bench: Bench) -> None:
        exchange = bench.ask(accepted=False)
        bench.session.lost(0, "closed the connection", bench.now_ns)
        bench.wait(5)
        assert isinstance(exchange.error, NotConnected)
        assert exchange.error.code == "not_accepted"
        assert str(exchange.error).endswith("; the connection was lost once with the request on its way")


class TestTime:
    def test_three_seconds_of_silence_are_a_loss(self, bench: Bench) -> None:
        accepted = bench.ask()
        bench.wait(2.99)
        assert accepted.error is None
        bench.wait(0.01)
        assert isinstance(accepted.error, ConnectionLost)
        assert "was silent for 3 s" in str(accepted.error)

    def test_any_message_ends_a_silence(self, bench: Bench) -> None:
        accepted = bench.ask()
        for _ in range(10):
            bench.wait(2)
            bench.raw(0, [1, "alive", ""])
        assert accepted.error is None

    def test_an_idle_router_may_be_silent(self, bench: Bench) -> None:
        bench.wait(100)
        exchange = bench.ask()
        bench.wait(2.9)
        assert exchange.error is None

    def test_after_a_pause_of_the_client_silence_begins_anew(self, bench: Bench) -> None:
        exchange = bench.ask()
        bench.wait(60, turns=False)
        assert exchange.error is None, "the router may have said a lot that was not read"
        bench.wait(3)
        assert isinstance(exchange.error, ConnectionLost)

    def test_a_silent_router_is_left_before_the_time_to_connect_is_over(self, bench: Bench) -> None:
        exchange = bench.ask(accepted=False)
        bench.output()
        bench.wait(3)
        assert exchange.phase is Phase.QUEUED
        bench.connect()
        assert [h["id"] for _, h in bench.output()] == [exchange.id]

    def test_without_a_router_a_request_fails_in_time_and_says_where(self) -> None:
        bench = Bench(link_count=2)
        exchange = bench.ask(accepted=False)
        bench.wait(4.99)
        assert exchange.error is None
        bench.wait(0.01)
        assert isinstance(exchange.error, NotConnected)
        assert str(exchange.error) == "no router answers at ipc:///run/0, ipc:///run/1 within 5 s"
        assert exchange.error.code == "not_connected"

    def test_a_request_that_is_not_accepted_says_what_the_router_complained_of(self, bench: Bench) -> None:
        exchange = bench.ask(accepted=False)
        bench.raw(0, [1, "error", "", {"status": 400}], error_body(message="not MessagePack"))
        for _ in range(5):
            bench.wait(1)
            bench.raw(0, [1, "alive", ""])
        assert isinstance(exchange.error, NotConnected)
        assert "did not accept the request within 5 s; it said: not MessagePack" in str(exchange.error)

    def test_the_whole_time_is_limited(self, bench: Bench) -> None:
        exchange = bench.ask(timeout_s=1.5)
        bench.events(exchange)
        bench.output()
        bench.wait(1.49)
        assert exchange.error is None
        bench.wait(0.01)
        assert isinstance(exchange.error, TimedOut)
        assert isinstance(exchange.error, TimeoutError)
        assert "timeout_s = 1.5 s (1 events had come)" in str(exchange.error)
        assert [h["verb"] for _, h in bench.output()] == ["cancel"]

    def test_the_time_to_the_first_token_is_limited(self, bench: Bench) -> None:
        late, early = bench.ask(first_token_timeout_s=1), bench.ask(first_token_timeout_s=1)
        bench.events(late, kind=3)
        bench.events(early)
        bench.wait(1)
        assert isinstance(late.error, TimedOut)
        assert "no first token" in str(late.error)
        assert early.error is None

    def test_it_is_said_when_the_next_look_is_due(self, bench: Bench) -> None:
        assert bench.session.due_ns == NEVER_NS
        bench.ask(timeout_s=0.2)
        assert bench.session.due_ns == bench.now_ns + S // 5
        bench.wait(0.2)
        bench.wait(SILENCE_NS / S)
        assert not bench.session.busy
        bench.wait(1)
        assert bench.session.due_ns == NEVER_NS


def test_closing_ends_everything_with_words() -> None:
    bench = Bench()
    waiting = bench.ask(accepted=False)
    bench.session.shut(bench.now_ns)
    assert isinstance(waiting.error, ConnectionLost)
    assert "the client was closed" in str(waiting.error)
