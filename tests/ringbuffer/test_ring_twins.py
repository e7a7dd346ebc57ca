"""The two backends are twins: the same calls give the same answers, the same complaints and the same bytes."""

from __future__ import annotations

import importlib
import random
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringbuffer import BroadcastReader, GatingConsumer, GatingProducer, words

SEEDS = range(40)
CALLS = 150


def run(backend: str, seed: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return everything that can be seen of a random sequence of calls on rings of random sizes."""
    monkeypatch.setattr(words, "core", importlib.import_module(f"ringbuffer.{backend}"))
    choice = random.Random(seed)
    slot_size, slot_count = choice.choice([16, 24, 64, 128]), choice.choice([1, 2, 8, 16])
    producer = GatingProducer.create(
        path, slot_count=slot_count, slot_size=slot_size, record_schema=(1, 0), name="twin"
    )
    consumer = GatingConsumer.register(path, "consumer")
    observer = BroadcastReader.attach(path)
    payload_bytes = slot_size - 8

    def poll_into(reader: GatingConsumer | BroadcastReader) -> tuple[object, ...]:
        room = bytearray(slot_size * choice.randrange(4))
        return reader.poll_into(room), room, reader.position

    def consume() -> list[bytes]:
        first, end = consumer.poll(choice.randrange(5))
        payloads = [consumer.read_record(sequence) for sequence in range(first, end)]
        consumer.release(end)
        return payloads

    calls = (
        lambda: producer.try_publish(*(choice.randrange(2**64) for _ in range(7))),
        lambda: producer.try_publish_record(choice.randbytes(choice.randrange(slot_size))),
        lambda: producer.try_publish_batch(choice.randbytes(payload_bytes * choice.randrange(slot_count + 2))),
        lambda: poll_into(consumer),
        lambda: poll_into(observer),
        consume,
        lambda: observer.poll(choice.randrange(5)),
        lambda: (consumer.spin(0), observer.spin(0), consumer.lag, observer.lost, producer.full_count),
    )
    seen: list[Any] = []
    for _ in range(CALLS):
        try:
            seen.append(choice.choice(calls)())
        except ValueError as error:
            seen.append(str(error))
    seen.append(producer.segment.mapping[producer.segment.header.header_size :])
    consumer.close()
    producer.close()
    return seen


@pytest.mark.parametrize("seed", SEEDS)
def test_both_backends_do_the_same(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ringbuffer._words")
    assert run("_words", seed, tmp_path / "ring", monkeypatch) == run("_plain", seed, tmp_path / "ring", monkeypatch)


class Indexed:
    """No integer, but what stands for one, as the integers of numpy do."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __index__(self) -> int:
        return self._value

    def __repr__(self) -> str:
        return f"Indexed({self._value})"


NUMBERS: tuple[Any, ...] = (
    0, 1, 2, 3, 4, 7, 8, 9, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**70, 10**5000,
    -1, -2, -(2**63), -(2**63) - 1, -(2**64), True, 1.0, 1.5, "1", None, b"1", Indexed(1), Indexed(2**64), Indexed(-1),
)  # fmt: skip
BUFFERS: tuple[Any, ...] = (
    b"", b"1", bytes(7), bytes(56), bytes(57), bytes(64), bytes(56 * 3), bytes(56 * 5), bytearray(64 * 5),
    bytearray(63), memoryview(bytes(112))[::2], memoryview(bytearray(128))[::2],
    memoryview(bytes(56)).cast("Q"), None, 5, "text",
)  # fmt: skip
ONE_ARGUMENT = (
    "writer.try_publish_record", "writer.try_publish_batch", "writer.try_claim", "writer.publish_upto",
    "consumer.poll", "consumer.poll_into", "consumer.read", "consumer.read_record", "consumer.release",
    "observer.poll", "observer.poll_into", "lossy.publish_record", "lossy.publish_batch", "rows.clear", "table.read",
    "counters.add", "counters.get", "words.load_acquire", "words.load_relaxed", "frozen.load_acquire",
)  # fmt: skip
TWO_ARGUMENTS = (
    "rows.write", "counters.add", "counters.set", "counters.max", "words.store_release", "words.store_relaxed",
    "frozen.store_release",
)  # fmt: skip


def one_of(*values: Any) -> st.SearchStrategy[Any]:
    """Choose by place: not all of the values can be compared."""
    return st.integers(0, len(values) - 1).map(values.__getitem__)


EDGES = one_of(*NUMBERS, *BUFFERS)
WORDS = st.tuples(*[st.one_of(st.just(5), one_of(*NUMBERS))] * 7)
STEPS = st.one_of(
    st.tuples(one_of(*ONE_ARGUMENT), st.tuples(EDGES)),
    st.tuples(one_of(*TWO_ARGUMENTS), st.tuples(EDGES, EDGES)),
    st.tuples(one_of("consumer.poll_into", "observer.poll_into"), st.tuples(EDGES, one_of(0, -1, 2**64, 1.5, None))),
    st.tuples(one_of("consumer.spin", "observer.spin"), st.tuples(one_of(0, -1, 2**64, 1.5, None))),
    st.tuples(one_of("writer.try_publish", "lossy.publish"), WORDS),
    st.tuples(st.just("writer.store"), st.tuples(EDGES, WORDS).map(lambda both: (both[0], *both[1]))),
)
PUBLISHED, FULL, ROW, HEARTBEAT, HANDED, SLOTS = 0, 1, 8, 10, 11, 16


class Twin:
    """Every class of a backend on memory of its own."""

    def __init__(self, backend: str) -> None:
        core = importlib.import_module(f"ringbuffer.{backend}")
        self.gating, self.broadcast, self.rest = bytearray(512), bytearray(512), bytearray(512)
        self.objects = {
            "writer": core.GatingWriter(self.gating, SLOTS, 4, 8, PUBLISHED, FULL, ROW, 1, 8, 1),
            "observer": core.LossyReader(self.gating, SLOTS, 4, 8, PUBLISHED, 0),
            "lossy": core.LossyWriter(self.broadcast, SLOTS, 4, 8, PUBLISHED),
            "rows": core.RowWriter(self.rest, SLOTS, 4, 8),
            "table": core.RowReader(self.rest, SLOTS, 4, 8),
            "counters": core.CounterWords(self.rest, 0, 8),
            "words": core.Words(self.rest),
            "frozen": core.Words(bytes(64)),
        }
        core.Words(self.gating).store_release(ROW, 1)
        self.objects["consumer"] = core.GatingReader(
            self.gating, SLOTS, 4, 8, PUBLISHED, ROW + 1, HEARTBEAT, HANDED
        )  # fmt: skip

    def memory(self) -> bytes:
        """Return all that both must have alike: everything but the time of the heartbeat."""
        beat = 8 * HEARTBEAT
        return bytes(self.gating[:beat] + self.gating[beat + 8 :] + self.broadcast + self.rest)

    def call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """Return what a call gives, or the kind of its error, and of a number its words too."""
        owner, method = name.split(".")
        before = self.memory()
        arguments = tuple(bytearray(each) if isinstance(each, bytearray) else each for each in arguments)
        try:
            return getattr(self.objects[owner], method)(*arguments), arguments
        except (OverflowError, IndexError, ValueError, AssertionError) as error:
            refusal = type(error), str(error)
        except (TypeError, BufferError) as error:
            refusal = type(error), ""
        assert self.memory() == before, "what is refused touches nothing"
        return refusal


@settings(max_examples=800, deadline=None, derandomize=True)
@given(st.lists(STEPS, max_size=30))
def test_both_backends_refuse_the_same_and_touch_nothing(steps: list[tuple[str, tuple[Any, ...]]]) -> None:
    pytest.importorskip("ringbuffer._words")
    compiled, plain = Twin("_words"), Twin("_plain")
    for name, arguments in steps:
        assert compiled.call(name, arguments) == plain.call(name, arguments), (name, arguments)
        assert compiled.memory() == plain.memory(), (name, arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "said"),
    [
        ("observer.poll", (-1,), OverflowError, "-1 is not in 0 to 18446744073709551615"),
        ("consumer.poll", (-1,), OverflowError, "-1 is not in 0 to 18446744073709551615"),
        ("lossy.publish", (1, 2, 3, 4, 5, 6, 2**64), OverflowError, f"{2**64} is not in 0 to 18446744073709551615"),
        ("lossy.publish", (1, "2", 3, 4, 5, 6, 7), TypeError, "'str' object cannot be interpreted as an integer"),
        ("writer.store", (0, 1, 2, 3, 4, 5, 6, -7), OverflowError, "-7 is not in 0 to 18446744073709551615"),
        ("counters.set", (0, 2**63), OverflowError, f"{2**63} is not in {-(2**63)} to {2**63 - 1}"),
        ("counters.add", (0, Indexed(-(2**70))), OverflowError, f"{-(2**70)} is not in {-(2**63)} to {2**63 - 1}"),
        ("counters.add", (8,), IndexError, "index 8 is not in 0 to 7"),
        ("rows.write", (-1, b""), IndexError, "index -1 is not in 0 to 3"),
        ("words.load_acquire", (2**64,), IndexError, f"index {2**64} is not in 0 to 63"),
    ],
)
def test_a_bad_number_is_named_with_its_limits(
    backend: str, name: str, arguments: tuple[Any, ...], kind: type[Exception], said: str
) -> None:
    owner, method = name.split(".")
    with pytest.raises(kind) as caught:
        getattr(Twin("_words" if backend == "c" else "_plain").objects[owner], method)(*arguments)
    assert str(caught.value) == said


def test_a_bad_word_destroys_no_record(backend: str) -> None:
    twin = Twin("_words" if backend == "c" else "_plain")
    for n in range(4):
        twin.objects["lossy"].publish(n, n, n, n, n, n, n)
    before = bytes(twin.broadcast)
    with pytest.raises(OverflowError):
        twin.objects["lossy"].publish(1, 2, 3, 4, 5, 6, 2**64)
    assert bytes(twin.broadcast) == before
    assert twin.objects["lossy"].publish(1, 2, 3, 4, 5, 6, 7) == 4


def test_integers_of_numpy_are_integers(backend: str) -> None:
    twin = Twin("_words" if backend == "c" else "_plain")
    words = numpy.arange(7, dtype=numpy.uint64)
    assert twin.objects["lossy"].publish(*words) == 0
    twin.objects["counters"].add(numpy.int32(3), numpy.int64(-5))
    assert twin.objects["counters"].get(3) == -5
