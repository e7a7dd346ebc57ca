"""The native relay of tokens beside its plain twin: the same reads come to the same bytes, records and counts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import router.attempt as attempt_module
from bench.gate_lockstep import stream_parts
from ringbuffer import BroadcastReader, BroadcastWriter
from router import native
from router.token_state import PlainTokenState, plain_record_events, record_events
from tests.captures import capture, stream_names
from tests.support.fed_streams import Streams, cut
from tests.support.stream_damage import damage
from tests.support.waiting import shared_memory_directory

needs_native = pytest.mark.skipif(native.relay is None, reason="there is no native relay in this process")
SEEDS = 60


@pytest.fixture
def paths() -> Iterator[Callable[[bool], Streams]]:
    made: list[Streams] = []

    with shared_memory_directory() as directory:

        def make(is_native: bool) -> Streams:
            made.append(Streams(directory / str(len(made)), is_native=is_native))
            return made[-1]

        yield make
        for path in made:
            path.close()


@needs_native
@pytest.mark.parametrize("is_damaged", [False, True])
def test_native_and_plain_relay_come_to_the_same(paths: Callable[[bool], Streams], is_damaged: bool) -> None:
    native_path, plain_path = paths(True), paths(False)
    taken = 0
    for seed in range(SEEDS):
        rng = random.Random(seed)
        answer = capture(rng.choice(stream_names()))
        body = answer.framed
        if is_damaged:
            kept = rng.randrange(len(body))
            body = body[:kept] + damage(body[kept:], rng)
        reads = cut(body, rng)
        reads[0] = answer.head + reads[0]
        blocks_at = {rng.randrange(1, 12) for _ in range(rng.randrange(3))}
        drains_at = {rng.randrange(len(reads)) for _ in range(rng.randrange(3))}
        found = [path(reads, blocks_at, drains_at) for path in (native_path.stream, plain_path.stream)]
        assert found[0] == found[1], f"seed {seed}"
        assert found[0]["ordered"]
        taken += found[0]["counts"][1]
    assert taken > 4 * SEEDS, "most reads must be tokens"


def slow_reads(path: Streams, reads: list[bytes], monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many reads of a stream were not relayed as one more token."""
    slow: list[bytes] = []
    take_read = attempt_module.Attempt._take_read

    def count(self: attempt_module.Attempt, data: bytes, now: int) -> None:
        slow.append(data)
        take_read(self, data, now)

    with monkeypatch.context() as context:
        context.setattr(attempt_module.Attempt, "_take_read", count)
        path.stream(reads, set(), set())
    return len(slow)


@needs_native
def test_a_stream_of_tokens_is_relayed_natively(
    paths: Callable[[bool], Streams], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the comparison above would compare the plain twin with itself."""
    assert slow_reads(paths(True), list(stream_parts(50)), monkeypatch) == 2, "the first read and the last"


@needs_native
def test_a_template_is_learned_anew_as_long_as_it_fits_now_and_then(
    paths: Callable[[bool], Streams], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many events in a row that fit no template end the learning; a token that fits begins the count anew."""
    first, token, *_ = stream_parts(3)
    turns = 40
    reads = [first]
    for turn in range(turns):
        other = token.partition(b"\r\n")[2].removesuffix(b"\r\n").replace(b"chatcmpl-gate", b"chatcmpl-%04d" % turn)
        reads += [b"%x\r\n%b\r\n" % (len(other), other)] * 3
    counts = [slow_reads(paths(is_native), reads, monkeypatch) for is_native in (True, False)]
    assert counts == [1 + turns, 1 + turns], "of each three alike the first is looked at"


@needs_native
def test_misuse_is_refused() -> None:
    assert native.relay is not None
    state = native.relay.TokenState()
    good: list[Any] = [state, None, print, print, None, print, print, 1, 2, 3, 4]
    for position, wrong in ((0, object()), (0, PlainTokenState()), (4, object()), (7, -1), (8, "x"), (10, 1 << 64)):
        given = [*good[:position], wrong, *good[position + 1 :]]
        with pytest.raises((TypeError, ValueError, OverflowError)):
            native.relay.relay(*given)
    with pytest.raises(TypeError):
        native.relay.relay(*good[:-1])
    with pytest.raises(AttributeError):  # a scanner without a template
        native.relay.relay(*good)


NUMBERS = st.integers(0, (1 << 64) - 1)
EVENTS = st.lists(st.tuples(st.integers(0, 20) | NUMBERS, st.integers(0, (1 << 32) - 1)), max_size=6)


@needs_native
@pytest.mark.parametrize("has_native_publish", [False, True])
@given(
    reads=st.lists(st.tuples(EVENTS, st.integers(0, 1 << 61)), max_size=4),  # all together a time of 64 bits
    seq=NUMBERS,
    host=st.integers(0, 0xFFFF),
    unsent=NUMBERS,
    taken_ns=st.sampled_from([0, 1, 1 << 20]),
    early_end_ns=st.integers(0, 1 << 63),
    visible_end_ns=st.integers(0, 1 << 63),
)
def test_native_and_plain_record_events_come_to_the_same(
    ring: tuple[BroadcastWriter, BroadcastReader],
    has_native_publish: bool,
    reads: list[tuple[list[tuple[int, int]], int]],
    seq: int,
    host: int,
    unsent: int,
    taken_ns: int,
    early_end_ns: int,
    visible_end_ns: int,
) -> None:
    writer, reader = ring
    reader.poll(1 << 10)  # what an example that failed has left
    assert native.relay is not None
    native_publish = writer.native_publish() if has_native_publish else None
    found = []
    for record, state in ((record_events, native.relay.TokenState()), (plain_record_events, PlainTokenState())):
        came, now = [], 1
        for events, later in reads:
            now += later
            given_events = list(events)
            told = (writer.publish, native_publish, seq, host << 16, now, unsent)
            came.append(record(state, given_events, *told, taken_ns and now + taken_ns, early_end_ns, visible_end_ns))
            assert not given_events, "the list is emptied"
        counts = [getattr(state, name) for name in PlainTokenState.__slots__]
        found.append((came, counts, [payload for _, payload in reader.poll(1 << 10)]))
    assert found[0] == found[1]


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BroadcastWriter, BroadcastReader]]:
    path = tmp_path_factory.mktemp("ring") / "tokens"
    writer = BroadcastWriter.create(path, slot_count=256, slot_size=64, record_schema=(1, 0), name="tokens")
    reader = BroadcastReader.attach(path)
    yield writer, reader
    reader.close()
    writer.close()


@needs_native
def test_events_of_another_shape_are_refused() -> None:
    assert native.relay is not None
    state = native.relay.TokenState()
    good: list[Any] = [state, [(1, 2)], lambda *_: 0, None, 1, 2, 3, 4, 5, 6, 7]
    for position, wrong in (
        (0, PlainTokenState()), (1, ()), (1, [1]), (1, [(1,)]), (1, [("a", 1)]), (1, [(1, -1)]), (3, 5), (4, -1),
        (6, "x"), (10, -1),
    ):  # fmt: skip
        given_arguments = [*good[:position], wrong, *good[position + 1 :]]
        with pytest.raises((TypeError, ValueError, OverflowError)):
            native.relay.record_events(*given_arguments)
    with pytest.raises(ZeroDivisionError):
        native.relay.record_events(state, [(1, 2)], lambda *_: 1 // 0, None, 1, 2, 3, 4, 5, 6, 7)


@pytest.mark.parametrize("make", [PlainTokenState, *([native.relay.TokenState] if native.relay is not None else [])])
def test_a_state_begins_at_zero(make: type[PlainTokenState]) -> None:
    state = make()
    names = PlainTokenState.__slots__
    assert [getattr(state, name) for name in names] == [0] * len(names)
    for number, name in enumerate(names):
        setattr(state, name, number + (1 << 62))
    assert [getattr(state, name) for name in names] == [number + (1 << 62) for number in range(len(names))]


def test_a_ring_of_other_slots_has_no_native_publish(tmp_path: Path) -> None:
    wide = BroadcastWriter.create(tmp_path / "wide", slot_count=8, slot_size=128, record_schema=(1, 0), name="wide")
    with pytest.raises(ValueError, match="64"):
        wide.native_publish()
    wide.close()
