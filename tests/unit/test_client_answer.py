"""Tokens, what they add up to, times, and what a request looks like on the wire."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest

from router import config
from router.client import (
    AsyncClient,
    Client,
    ConnectionLost,
    RouterError,
    TimedOut,
    Token,
    ToolCall,
    default_endpoint,
    endpoint,
    protocol,
)
from router.client.answer import Answer, event_data, read_tokens
from router.client.exchange import Arrival, Exchange
from router.client.timing import timing
from router.ingress.zeromq import messages
from router.stamps import STAMPS
from tests import captures
from tests.support import scripted_router as wire

CAPTURES = Path(captures.__file__).parent


def tokens_of(*events: tuple[int, bytes]) -> tuple[list[Token], Answer]:
    """Read events that came in one message."""
    answer, exchange = Answer(), Exchange(protocol.request("chat", streamed=True), 0, 0)
    listed = [(kind, number + 1, len(raw)) for number, (kind, raw) in enumerate(events)]
    exchange.inbox.append(Arrival(listed, b"".join(raw for _, raw in events), 99))
    taken: list[int] = []
    found = []
    for token in read_tokens(exchange, answer, lambda _, count: taken.append(count)):
        if token is None:
            break
        found.append(token)
    assert sum(taken) == len(events), "every event counts as taken, once"
    return found, answer


class TestTokens:
    def test_a_token_has_its_text_its_kind_its_times_and_the_hosts_bytes(self) -> None:
        raw = wire.chunk({"content": "Grüße"})
        tokens, answer = tokens_of(wire.ROLE, (wire.TEXT, raw), wire.STOP)
        assert [(token.kind, token.index, token.t_ns) for token in tokens] == [
            ("head", 0, 1),
            ("text", 1, 2),
            ("finish", 2, 3),
        ]
        assert (tokens[1].text, tokens[1].raw, tokens[1].received_ns, tokens[1].transport_ns) == ("Grüße", raw, 99, 97)
        assert tokens[1].json()["choices"][0]["delta"] == {"content": "Grüße"}
        assert answer.choice(0).text == "Grüße"
        assert answer.choice(0).finish_reason == "stop"

    def test_reasoning_is_no_text(self) -> None:
        thought = wire.chunk({"reasoning_content": "hm"})
        tokens, answer = tokens_of((wire.REASONING, thought), wire.text("yes"))
        assert [(token.kind, token.text) for token in tokens] == [("reasoning", "hm"), ("text", "yes")]
        assert (answer.choice(0).reasoning, answer.choice(0).text) == ("hm", "yes")

    def test_an_event_with_text_and_reasoning_gives_both(self) -> None:
        tokens, _ = tokens_of((wire.REASONING, wire.chunk({"reasoning": "a", "content": "b"})))
        assert [(token.kind, token.text, token.index) for token in tokens] == [("reasoning", "a", 0), ("text", "b", 0)]

    def test_completions_have_their_text_elsewhere(self) -> None:
        raw = b'data: {"choices":[{"index":0,"text":"abc","finish_reason":"length"}]}\n\n'
        ((token,), answer) = tokens_of((wire.TEXT, raw))
        assert token.text == answer.choice(0).text == "abc"
        assert answer.choice(0).finish_reason == "length"

    def test_several_choices_in_one_event_are_kept_apart(self) -> None:
        parts = [{"index": index, "delta": {"content": text}} for index, text in ((1, "b"), (0, "a"))]
        tokens, answer = tokens_of((wire.TEXT, b"data: " + json.dumps({"choices": parts}).encode() + b"\n\n"))
        assert [(token.choice, token.text) for token in tokens] == [(1, "b"), (0, "a")]
        assert (answer.choice(0).text, answer.choice(1).text) == ("a", "b")

    def test_tool_calls_are_put_together(self) -> None:
        def piece(index: int, **fields: Any) -> tuple[int, bytes]:
            return wire.TOOL_CALL, wire.chunk({"tool_calls": [{"index": index, **fields}]})

        tokens, answer = tokens_of(
            piece(0, id="c0", type="function", function={"name": "look", "arguments": ""}),
            piece(0, function={"arguments": '{"city":'}),
            piece(1, id="c1", function={"name": "go", "arguments": "{}"}),
            piece(0, function={"arguments": '"Oslo"}'}),
        )
        assert answer.choice(0).tool_calls == [ToolCall("c0", "look", '{"city":"Oslo"}'), ToolCall("c1", "go", "{}")]
        assert [token.text for token in tokens] == ["", '{"city":', "{}", '"Oslo"}']
        assert {token.kind for token in tokens} == {"tool_call"}

    @pytest.mark.parametrize(
        "raw",
        [
            b": ping\n\n",
            b"data: no json\n\n",
            b'data: {"choices":"?"}\n\n',
            b'data: {"choices":[{"delta":{"content":["parts"]}}]}\n\n',
            b"data: \xff\n\n",
        ],
        ids=["comment", "no JSON", "no choices", "parts", "no UTF-8"],
    )
    def test_what_cannot_be_read_is_a_token_all_the_same(self, raw: bytes) -> None:
        ((token,), answer) = tokens_of((wire.COMMENT, raw))
        assert (token.text, token.raw) == ("", raw)
        assert not answer.choice(0).text

    def test_a_kind_of_a_newer_router_is_other(self) -> None:
        ((token,), _) = tokens_of((77, wire.chunk({})))
        assert token.kind == "other"

    @pytest.mark.parametrize(
        ("raw", "data"),
        [
            (b'data: {"a":1}\n\n', b'{"a":1}'),
            (b'data:{"a":1}\r\n\r\n', b'{"a":1}'),
            (b'event: x\ndata: {"a":\ndata: 1}\n\n', b'{"a":1}'),
            (b": comment\n\n", b""),
        ],
    )
    def test_the_data_of_an_event_is_found_in_every_form(self, raw: bytes, data: bytes) -> None:
        assert event_data(raw).split() == data.split() or json.loads(event_data(raw)) == json.loads(data)

    @pytest.mark.parametrize(
        "name", ["llamacpp/chat_stream_usage", "llamacpp/chat_stream_n2", "vllm/chat_stream_usage"]
    )
    def test_recorded_answers_of_hosts_spell_what_json_says(self, name: str) -> None:
        raw = (CAPTURES / f"{name}.raw").read_bytes()
        events = [line for line in raw.split(b"\n") if line.startswith(b"data: {")]
        _, answer = tokens_of(*((wire.TEXT, event.rstrip() + b"\n\n") for event in events))
        wanted: dict[int, str] = {}
        for event in events:
            for choice in json.loads(event[6:])["choices"]:
                text = choice["delta"].get("content") or ""
                wanted[choice["index"]] = wanted.get(choice["index"], "") + text
        assert wanted
        assert {index: choice.text for index, choice in answer.choices.items()} == wanted


class TestTiming:
    STAMPS = tuple(range(1000, 1000 + 10 * len(STAMPS), 10))

    def made(self, **given: Any) -> Any:
        defaults = {"token_count": 4, "streamed": True, "same_clock": True, "asked_ns": 900}
        return timing(self.STAMPS, **{**defaults, "first_token": (1100, 1150), "ended_ns": 1300, **given})

    def test_stages_sum_to_what_they_are_stages_of(self) -> None:
        times = self.made()
        stages = list(times.stage_ns.values())
        assert sum(stages[:11]) == times.ttft_ns == 110
        assert (
            times.e2e_ns == times.ttft_ns - times.stage_ns["egress"] + times.stage_ns["decode"] + times.stage_ns["tail"]
        )
        assert times.tpot_ns == (times.stamps["tokN"] - times.stamps["tok1"]) / 3

    def test_the_way_between_client_and_router_is_shown_apart(self) -> None:
        times = self.made()
        assert (times.request_transport_ns, times.first_token_transport_ns) == (100, 50)
        assert (times.client_ttft_ns, times.client_e2e_ns) == (250, 400)

    def test_another_machines_clock_is_not_compared(self) -> None:
        times = self.made(same_clock=False)
        assert (times.request_transport_ns, times.first_token_transport_ns) == (None, None)
        assert times.client_ttft_ns == 250, "this is the client's own clock"

    def test_without_a_token_there_is_no_time_to_it(self) -> None:
        times = timing(
            [1000] * 9 + [0] * 5 + [2000],
            token_count=0,
            streamed=False,
            same_clock=True,
            asked_ns=900,
            first_token=(0, 0),
            ended_ns=2100,
        )
        assert (times.ttft_ns, times.tpot_ns, times.e2e_ns, times.client_ttft_ns) == (None, None, None, None)


class TestRequest:
    def test_the_header_has_what_was_given_and_nothing_else(self) -> None:
        request = protocol.request("chat", {"a": 1}, request_id="x", streamed=True, tags={"t": "v"}, baggage=None)
        assert msgspec.msgpack.decode(request.frames[0]) == {
            "v": 1,
            "verb": "chat",
            "id": "x",
            "credit": 256,
            "tags": {"t": "v"},
        }
        assert json.loads(request.frames[1]) == {"a": 1}

    @pytest.mark.parametrize("character", [" ", "!", "~", "\t", "\n", "\x00", "\x1f", "\x7f", "\xa0", "ä"], ids=repr)
    def test_an_id_may_have_what_the_router_allows(self, character: str) -> None:
        try:
            allowed = protocol.request("ping", request_id=f"a{character}").request_id == f"a{character}"
        except ValueError:
            allowed = False
        assert allowed == messages._is_id(f"a{character}")

    def test_ids_are_made_up_where_none_is_given(self) -> None:
        assert len({protocol.request("ping").request_id for _ in range(100)}) == 100

    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"request_id": ""}, "request_id"),
            ({"request_id": "ä"}, "request_id"),
            ({"request_id": "x" * 65}, "request_id"),
            ({"credit": 0}, "credit"),
            ({"credit": 4097}, "credit"),
            ({"timeout_s": 0}, "timeout_s"),
            ({"first_token_timeout_s": float("nan"), "streamed": True}, "first_token_timeout_s"),
            ({"first_token_timeout_s": 1.0}, "first_token_timeout_s: expected a stream"),
            ({"tags": {"t": "x" * 17_000}}, "tags"),
        ],
    )
    def test_what_the_protocol_does_not_allow_is_refused_before_it_is_sent(
        self, fields: dict[str, Any], named: str
    ) -> None:
        with pytest.raises(ValueError, match=named):
            protocol.request("chat", {}, **fields)

    @pytest.mark.parametrize(
        "bad",
        [
            "ipc://relative",
            "http://127.0.0.1:1",
            "tcp://127.0.0.1",
            "tcp://127.0.0.1:0",
            "tcp://:5",
            f"ipc:///{'x' * 107}",
        ],
    )
    @pytest.mark.parametrize("kind", [Client, AsyncClient])
    def test_an_endpoint_that_is_none_is_named(self, kind: type[Client] | type[AsyncClient], bad: str) -> None:
        with pytest.raises(ValueError, match=r"expected"):
            kind(bad)


class TestErrors:
    def test_they_can_be_caught_as_what_python_calls_them(self) -> None:
        assert issubclass(TimedOut, TimeoutError)
        assert issubclass(ConnectionLost, ConnectionError)
        assert issubclass(ConnectionLost, RouterError)

    def test_they_survive_the_way_to_another_process(self) -> None:
        error = pickle.loads(pickle.dumps(TimedOut("late", code="timed_out", delivered=3)))
        assert isinstance(error, TimedOut)
        assert (str(error), error.code, error.delivered) == ("late", "timed_out", 3)


class TestDefaultEndpoint:
    @pytest.mark.parametrize(
        "environment",
        [
            {},
            {"XDG_RUNTIME_DIR": "/run/user/5"},
            {"RUNTIME_DIRECTORY": "/run/a:/run/b", "XDG_RUNTIME_DIR": "/run/user/5"},
        ],
        ids=["neither", "XDG", "systemd"],
    )
    def test_it_is_where_a_router_without_a_configuration_listens(
        self, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
    ) -> None:
        for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        settings = config.parse("version = 1")
        assert default_endpoint("never-there") == (
            config.zeromq_endpoint(settings, "ipc").replace("/main/", "/never-there/")
        )

    def test_a_tcp_endpoint_on_this_machine_has_this_machines_clock(self) -> None:
        assert endpoint.same_clock("tcp://127.0.0.1:5")
        assert endpoint.same_clock("ipc:///x")
        assert not endpoint.same_clock("tcp://10.0.0.1:5")
