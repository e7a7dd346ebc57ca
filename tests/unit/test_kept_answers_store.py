"""Kept answers: which requests share one, how old it may be, and that memory stays in its bound."""

from __future__ import annotations

import json
import random
import tracemalloc
from typing import Any

import pytest

from router.caches import responses as module
from router.caches.responses import Answer, Responses, is_finished, key_of, size_of

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


def key(
    body: dict[str, Any] | bytes = BODY,
    *,
    model: str = "m",
    endpoint: int = 1,
    streams: bool = True,
    **headers: str,
) -> bytes | None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return key_of(data, model, endpoint, named, streams=streams)


def answer(size: int, made_ns: int = 0) -> Answer:
    return Answer(bytes(size), b"application/json", b"", None, 1, made_ns, 5)


@pytest.mark.parametrize(
    "same",
    [
        {**BODY, "user": "ann"},
        {**BODY, "metadata": {"feature_name": "x"}},
        {**BODY, "stream": True},
        {**BODY, "safety_identifier": "s", "prompt_cache_key": "k"},
        dict(reversed(BODY.items())),
        json.dumps(BODY, indent=2).encode(),
        json.dumps(BODY).replace("hi", "\\u0068i").encode(),
    ],
)
def test_what_does_not_change_the_answer_does_not_change_the_key(same: dict[str, Any] | bytes) -> None:
    assert key(same) == key()


@pytest.mark.parametrize(
    "other",
    [
        {"body": {**BODY, "model": "n"}},
        {"body": {**BODY, "seed": 1}},
        {"body": {**BODY, "messages": [{"role": "user", "content": "hi "}]}},
        {"body": {**BODY, "max_tokens": 5}},
        {"body": {**BODY, "tools": []}},
        {"model": "n"},
        {"endpoint": 2},
        {"streams": False},
        {"authorization": "Bearer b"},
        {"x_api_key": "b"},
    ],
)
def test_what_may_change_the_answer_or_who_may_see_it_changes_the_key(other: dict[str, Any]) -> None:
    assert key(**other) != key()


@pytest.mark.parametrize("body", [b"[1]", b"{", b'"x"', b"[" * 100_000])
def test_a_body_without_a_canonical_form_has_no_key(body: bytes) -> None:
    assert key(body) is None


def test_an_answer_is_given_until_it_is_too_old() -> None:
    kept = Responses(1 << 20, ttl_ns=100)
    kept.put(b"k", answer(10, made_ns=1000))
    assert kept.get(b"k", 1099) is not None
    assert kept.get(b"k", 1100) is None
    assert (kept.count, kept.used_bytes, kept.expired_count) == (0, 0, 1)


def test_the_old_ones_go_without_being_asked_for() -> None:
    kept = Responses(1 << 20, ttl_ns=100)
    for number in range(10):
        kept.put(b"%d" % number, answer(10, made_ns=number))
    kept.expire(104, 256)
    assert (kept.count, kept.expired_count) == (5, 5)
    kept.expire(1000, 3)
    assert kept.count == 2, "so many in one turn"


def test_the_least_lately_used_makes_room() -> None:
    size = size_of(answer(1000))
    kept = Responses(3 * size, ttl_ns=1000)
    for name in (b"a", b"b", b"c"):
        kept.put(name, answer(1000))
    kept.get(b"a", 1)
    kept.put(b"d", answer(1000))
    assert [name for name in (b"a", b"b", b"c", b"d") if kept.get(name, 1)] == [b"a", b"c", b"d"]
    assert kept.evicted_count == 1


def test_an_answer_larger_than_everything_is_not_kept_and_nothing_goes_for_it() -> None:
    kept = Responses(3 * size_of(answer(1000)), ttl_ns=1000)
    kept.put(b"a", answer(1000))
    assert not kept.put(b"b", answer(10_000))
    assert kept.count == 1


def test_random_use_stays_in_the_bound_and_is_counted_exactly() -> None:
    dice = random.Random(3)
    bound = 100_000
    kept = Responses(bound, ttl_ns=50)
    recordings: list[int] = []
    for now in range(20_000):
        act = dice.random()
        if act < 0.5:
            kept.put(b"%d" % dice.randrange(400), answer(dice.randrange(8000), made_ns=now))
        elif act < 0.7:
            kept.get(b"%d" % dice.randrange(400), now)
        elif act < 0.85:
            size = dice.randrange(6000)
            if kept.reserve(size):
                recordings.append(size)
        elif recordings:
            kept.release(recordings.pop(dice.randrange(len(recordings))))
        if act > 0.99:
            kept.expire(now, 50)
        assert kept.used_bytes <= bound
        assert kept.recording_bytes == sum(recordings)
        assert kept.used_bytes == sum(recordings) + sum(size_of(each) for each, _ in kept._answers.values())


def test_an_entry_takes_the_memory_that_is_counted_for_it() -> None:
    """Measured: what the interpreter allocates for 2,000 entries is at most what is counted, and not far below."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = Responses(1 << 30, ttl_ns=1 << 60)
        for number in range(2000):
            made = Answer(
                bytes(bytearray(500)),
                bytes(bytearray(30)),
                bytes(bytearray(14)),
                bytes(bytearray(80)),
                1,
                10**15 + number,
                10**9,
            )
            kept.put(number.to_bytes(module._KEY_BYTES, "little"), made)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.8 * kept.used_bytes < taken <= kept.used_bytes, (taken, kept.used_bytes)


@pytest.mark.parametrize(
    ("body", "finished"),
    [
        (b'{"choices":[{"finish_reason":"stop"}]}', True),
        (b'{"choices":[{"finish_reason":"stop"},{"finish_reason":null}]}', False),
        (b'{"choices":[{}]}', False),
        (b'{"choices":[]}', False),
        (b"{}", False),
        (b'{"error":{}}', False),
        (b"not json", False),
    ],
)
def test_only_an_answer_that_says_why_it_ended_is_finished(body: bytes, finished: bool) -> None:
    assert is_finished(body) == finished
