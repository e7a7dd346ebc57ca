"""Folding: what hosts streamed becomes what they would have answered."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router.hosts.fold import Fold, FoldError
from tests.captures import capture, payloads

BOUND = 1 << 20


def fold(*events: dict[str, Any], chat: bool = True) -> dict[str, Any]:
    folded = Fold(chat=chat, answer_bytes_max=BOUND)
    for event in events:
        folded.add(json.dumps(event).encode())
    return json.loads(folded.answer())


def delta(index: int = 0, finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": fields, "finish_reason": finish_reason}]}


def usage(count: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"completion_tokens": count}}


def riding(count: int) -> dict[str, Any]:
    return {"usage": {"completion_tokens": count}}


def message(*events: dict[str, Any]) -> dict[str, Any]:
    return fold(*events)["choices"][0]["message"]


# ------------------------------------------------------------ against what hosts answered
def stable(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer less what differs from request to request."""
    answer = {key: value for key, value in answer.items() if key not in {"id", "created", "timings"}}
    answer["usage"] = {key: value for key, value in answer["usage"].items() if key != "prompt_tokens_details"}
    for choice in answer["choices"]:
        for call in choice.get("message", {}).get("tool_calls", ()):
            assert len(call.pop("id")) == 32
    return answer


@pytest.mark.parametrize("name", ["tool_call_stream", "tool_call_stream_auto"])
def test_a_streamed_tool_call_folds_into_the_plain_answer_of_the_same_host(name: str) -> None:
    plain = json.loads(capture("llamacpp/tool_call_nonstream").body)
    folded = fold(*payloads(f"llamacpp/{name}"))
    if "usage" not in folded:  # this stream was asked for without it
        folded["usage"] = plain["usage"]
    assert stable(folded) == stable(plain)


def test_a_streamed_completion_folds() -> None:
    folded = fold(*payloads("llamacpp/completions_stream_usage"), chat=False)
    assert folded["object"] == "text_completion"
    assert folded["choices"] == [
        {"index": 0, "text": ", the city of New Haven", "logprobs": None, "finish_reason": "length"}
    ]
    assert folded["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert "timings" in folded


def test_streamed_log_probabilities_are_joined() -> None:
    folded = fold(*payloads("llamacpp/chat_stream_logprobs"))
    content = folded["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["I", "'m", " glad"]
    assert folded["choices"][0]["message"] == {"role": "assistant", "content": "I'm glad"}


def test_multibyte_text_comes_through() -> None:
    events = payloads("llamacpp/utf8_multibyte_stream")
    text = "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
    assert not text.isascii()
    assert fold(*events)["choices"][0]["message"]["content"] == text


def test_progress_events_leave_no_trace() -> None:
    folded = fold(*payloads("llamacpp/prefill_with_progress"))
    assert "prompt_progress" not in folded
    assert folded["choices"][0]["message"] == {"role": "assistant", "content": "\nm"}


def test_two_choices_are_in_order_and_usage_is_that_of_the_first() -> None:
    folded = fold(*payloads("llamacpp/chat_stream_n2"))
    assert [choice["index"] for choice in folded["choices"]] == [0, 1]
    assert [choice["message"]["content"] for choice in folded["choices"]] == ["Bye, K", "Hello! What can"]
    assert folded["usage"]["total_tokens"] == 36


def test_a_stream_of_another_host_folds_too() -> None:
    folded = fold(*payloads("vllm/chat_stream_n2"))
    assert folded["usage"]["completion_tokens"] == 8, "counted for both choices together"
    assert folded["system_fingerprint"].startswith("vllm")
    assert folded["choices"][0]["finish_reason"] == folded["choices"][1]["finish_reason"] == "length"
    tools = fold(*payloads("vllm/tool_call_stream_required"))["choices"][0]["message"]
    plain = json.loads(capture("vllm/tool_call_nonstream").body)["choices"][0]["message"]
    assert tools["content"] == plain["content"] == ""
    assert tools["tool_calls"][0]["function"] == plain["tool_calls"][0]["function"]


# ------------------------------------------------------------ messages
def test_content_is_empty_text_where_nothing_was_said() -> None:
    assert message(delta(role="assistant", content=None), delta(finish_reason="stop")) == {
        "role": "assistant",
        "content": "",
    }


def test_texts_are_joined_each_for_itself() -> None:
    given = message(
        delta(role="assistant", content="", reasoning_content="a", reasoning="x"),
        delta(reasoning_content="b\n", reasoning="y", content=None),
        delta(content='say "c"', refusal="n"),
        delta(content="\\", refusal="o"),
        delta(content="🎉é"),
    )
    assert given == {
        "role": "assistant",
        "reasoning_content": "ab\n",
        "reasoning": "xy",
        "content": 'say "c"\\🎉é',
        "refusal": "no",
    }


def test_a_refusal_that_is_null_throughout_stays_null() -> None:
    assert message(delta(content="a", refusal=None), delta(content="b"))["refusal"] is None


def test_tool_calls_are_joined_by_index_and_come_without_it() -> None:
    def call(index: int, **fields: Any) -> dict[str, Any]:
        return delta(tool_calls=[{"index": index, **fields}])

    given = message(
        call(1, id="b", type="function", function={"name": "g", "arguments": ""}),
        call(0, id="a", type="function", function={"name": "f"}),
        call(0, function={"arguments": '{"x":'}),
        call(1, function={"arguments": "{}"}),
        call(0, function={"arguments": '"\\""}', "name": None}, id=None),
    )
    assert given["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":"\\""}'}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_tool_calls_without_an_index_are_counted() -> None:
    calls = [{"id": "a", "function": {"name": "f"}}, {"id": "b", "function": {"name": "g"}}]
    assert [call["id"] for call in message(delta(tool_calls=calls))["tool_calls"]] == ["a", "b"]


def test_a_function_call_is_joined() -> None:
    given = message(
        delta(function_call={"name": "f", "arguments": "{"}),
        delta(function_call={"arguments": "}"}),
        delta(function_call=None),
    )
    assert given["function_call"] == {"name": "f", "arguments": "{}"}


# ------------------------------------------------------------ choices and the rest
def test_log_probabilities_that_are_null_stay_null() -> None:
    choice = {"index": 0, "text": "a", "logprobs": None, "finish_reason": None}
    assert fold({"choices": [choice]}, chat=False)["choices"][0]["logprobs"] is None


def test_every_list_of_log_probabilities_is_joined() -> None:
    def event(**logprobs: Any) -> dict[str, Any]:
        return {"choices": [{"index": 0, "text": "", "logprobs": logprobs}]}

    folded = fold(
        event(tokens=["a"], token_logprobs=[-0.1], text_offset=[0], content=[]),
        event(tokens=["b", "c"], token_logprobs=[-0.2, -3e-6], text_offset=[1, 2], content=[]),
        chat=False,
    )
    assert folded["choices"][0]["logprobs"] == {
        "tokens": ["a", "b", "c"],
        "token_logprobs": [-0.1, -0.2, -3e-6],
        "text_offset": [0, 1, 2],
        "content": [],
    }


def test_unknown_fields_are_kept_and_the_last_value_wins() -> None:
    folded = fold(
        {"service_tier": "a", "once": 1, "choices": [{"index": 0, "delta": {"new": 1}, "stop_reason": None}]},
        {"service_tier": "b", "choices": [{"index": 0, "delta": {"new": 2}, "stop_reason": 7}]},
        {"service_tier": None, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    )
    assert (folded["service_tier"], folded["once"]) == ("b", 1)
    assert folded["choices"][0]["stop_reason"] == 7
    assert folded["choices"][0]["message"]["new"] == 2


def test_a_stream_without_usage_has_none() -> None:
    assert "usage" not in fold(delta(content="a") | {"usage": None}, delta(finish_reason="stop"))


@pytest.mark.parametrize(
    ("events", "count"),
    [
        pytest.param([delta(finish_reason="stop"), usage(3)], 3, id="one choice"),
        pytest.param(
            [delta(1, "stop"), usage(5), delta(0, "stop"), usage(3)], 3, id="each choice apart, the first ends last"
        ),
        pytest.param([delta(0, "stop"), usage(3), delta(1, "stop"), usage(5)], 3, id="each choice apart"),
        pytest.param([delta(0, "stop"), delta(1, "stop"), usage(8)], 8, id="all choices together"),
        pytest.param(
            [delta(1, "stop") | riding(5), delta(0, "stop") | riding(3)],
            3,
            id="on the events that end the choices",
        ),
        pytest.param(
            [delta(content="a") | riding(1), delta(0, "stop"), usage(2)],
            2,
            id="running counts, then the sum",
        ),
        pytest.param([delta(content="a") | riding(1)], 1, id="running counts only"),
        pytest.param([usage(2), delta(content="a") | riding(1)], 2, id="a late running count"),
    ],
)
def test_usage_is_that_of_the_first_choice_or_of_all(events: list[dict[str, Any]], count: int) -> None:
    assert fold(*events)["usage"] == {"completion_tokens": count}


# ------------------------------------------------------------ errors
@pytest.mark.parametrize(
    "data",
    [
        b"null",
        b"[]",
        b"not JSON",
        b'{"choices":{}}',
        b'{"choices":[7]}',
        b'{"choices":[{"index":"a"}]}',
        b'{"choices":[{"delta":"text"}]}',
        b'{"choices":[{"delta":{"tool_calls":{}}}]}',
        b'{"choices":[{"delta":{"tool_calls":[{"function":"f"}]}}]}',
        b'{"choices":[{"logprobs":[]}]}',
        b'{"choices":[{"index":0}',
        b'{"a":' + b"[" * 100_000,
    ],
)
def test_an_event_of_another_shape_is_refused(data: bytes) -> None:
    with pytest.raises(FoldError, match="expected shape") as caught:
        Fold(chat=True, answer_bytes_max=BOUND).add(data)
    assert not caught.value.too_large


@pytest.mark.parametrize(
    "event",
    [
        delta(content="x" * 100),
        delta(tool_calls=[{"index": 0, "function": {"arguments": "x" * 100}}]),
        {"choices": [{"index": 0, "logprobs": {"content": [{"token": "x" * 100}]}}]},
    ],
)
def test_an_answer_over_its_bound_is_refused(event: dict[str, Any]) -> None:
    folded = Fold(chat=True, answer_bytes_max=1000)
    data = json.dumps(event, separators=(",", ":")).encode()
    add_times(folded, data, 7)
    assert len(folded.answer()) < 1000
    with pytest.raises(FoldError, match="1000 bytes") as caught:
        add_times(folded, data, 3)
    assert caught.value.too_large


def add_times(folded: Fold, data: bytes, count: int) -> None:
    for _ in range(count):
        folded.add(data)


def test_a_long_answer_of_many_events_stays_within_a_bound_near_its_own_size() -> None:
    events = payloads("llamacpp/chat_stream_usage")
    folded = Fold(chat=True, answer_bytes_max=1000)
    for event in events[:1] + events[1:2] * 300 + events[-1:]:
        folded.add(json.dumps(event).encode())
    assert len(folded.answer()) < 1000
