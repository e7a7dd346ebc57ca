"""The rings against a deque: any sequence of steps, on both backends."""

from __future__ import annotations

import shutil
import struct
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ringbuffer import (
    BroadcastReader,
    BroadcastWriter,
    ConsumersFull,
    DistinctError,
    DistinctErrorsReader,
    DistinctErrorsWriter,
    GatingConsumer,
    GatingProducer,
    TableReader,
    TableWriter,
    layout,
)

SETTINGS = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
WORDS = st.integers(0, 2**64 - 1)
PAYLOAD_BYTES = 56
WHOLE_PAYLOADS = st.binary(min_size=PAYLOAD_BYTES, max_size=PAYLOAD_BYTES)


class RingMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="ring-model-"))

    def teardown(self) -> None:
        shutil.rmtree(self.directory)


@dataclass
class LossyReaderModel:
    reader: BroadcastReader
    position: int
    lost: int = 0


class LossyModel(RingMachine):
    """Several readers that joined at different places; each is told apart by where the model has it."""

    @initialize(exponent=st.integers(0, 4))
    def create(self, exponent: int) -> None:
        self.path = self.directory / "tokens"
        self.slot_count = 1 << exponent
        self.writer = BroadcastWriter.create(
            self.path, slot_count=self.slot_count, slot_size=64, record_schema=(1, 0), name="tokens"
        )
        self.kept: deque[tuple[int, bytes]] = deque(maxlen=self.slot_count)
        self.published = 0
        self.readers: list[LossyReaderModel] = []
        self.join_at("latest", 0)

    @rule(values=st.tuples(*[WORDS] * 7))
    def publish(self, values: tuple[int, int, int, int, int, int, int]) -> None:
        assert self.writer.publish(*values) == self.published
        self.keep(struct.pack("<7Q", *values))

    @rule(payload=st.binary(max_size=PAYLOAD_BYTES))
    def publish_record(self, payload: bytes) -> None:
        assert self.writer.publish_record(payload) == self.published
        self.keep(payload.ljust(PAYLOAD_BYTES, b"\0"))

    @rule(data=st.data())
    def publish_batch(self, data: st.DataObject) -> None:
        payloads = data.draw(st.lists(WHOLE_PAYLOADS, min_size=1, max_size=self.slot_count))
        assert self.writer.publish_batch(b"".join(payloads)) == self.published
        for payload in payloads:
            self.keep(payload)

    def keep(self, payload: bytes) -> None:
        self.kept.append((self.published, payload))
        self.published += 1

    @property
    def oldest(self) -> int:
        return self.published - len(self.kept)

    def join_at(self, join: Literal["latest", "oldest"] | int, position: int) -> None:
        self.readers.append(LossyReaderModel(BroadcastReader.attach(self.path, join=join), position))

    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        join = data.draw(st.sampled_from(("latest", "oldest", "at")))
        sequence = data.draw(st.integers(0, self.published))
        if join == "at":
            self.join_at(sequence, sequence)
        elif join == "latest":
            self.join_at("latest", self.published)
        else:
            self.join_at("oldest", self.oldest)

    @precondition(lambda self: len(self.readers) > 1)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.readers.pop(data.draw(st.integers(0, len(self.readers) - 1))).reader.close()

    def expect(self, model: LossyReaderModel, limit: int) -> list[tuple[int, bytes]]:
        """Let the model read; being lapped is noticed by whoever looks."""
        if limit and model.position < self.oldest:
            model.lost += self.oldest - model.position
            model.position = self.oldest
        expected = [record for record in self.kept if record[0] >= model.position][:limit]
        model.position += len(expected)
        return expected

    @rule(data=st.data(), limit=st.integers(0, 20))
    def poll(self, data: st.DataObject, limit: int) -> None:
        model = data.draw(st.sampled_from(self.readers))
        assert model.reader.poll(limit) == self.expect(model, limit)

    @rule(data=st.data(), room=st.integers(1, 20), rest=st.integers(0, 63))
    def poll_into(self, data: st.DataObject, room: int, rest: int) -> None:
        model = data.draw(st.sampled_from(self.readers))
        buffer = bytearray(64 * room + rest)
        expected = self.expect(model, room)
        assert model.reader.poll_into(buffer) == len(expected)
        written = b"".join(sequence.to_bytes(8, "little") + payload for sequence, payload in expected)
        assert buffer[: len(written)] == written

    @invariant()
    def counts_agree(self) -> None:
        assert self.writer.published == self.published
        for model in self.readers:
            assert (model.reader.position, model.reader.lost) == (model.position, model.lost)
            assert model.reader.lag == self.published - model.position
            assert bool(model.reader.spin(0)) == (model.reader.lag > 0)

    def teardown(self) -> None:
        for model in self.readers:
            model.reader.close()
        self.writer.close()
        super().teardown()


@dataclass
class ConsumerModel:
    consumer: GatingConsumer
    released: int
    name: str
    is_dead: bool = False

    def die(self) -> None:
        """Let the row look as it does when its process has ended and another one has got the pid."""
        row = self.consumer._row
        word = row.word(layout.CONSUMER_START_TICKS)
        row._words.store_relaxed(word, row._words.load_relaxed(word) + 1)
        self.is_dead = True


class GatingModel(RingMachine):
    @initialize(exponent=st.integers(0, 4))
    def create(self, exponent: int) -> None:
        self.path = self.directory / "requests"
        self.slot_count = 1 << exponent
        self.producer = GatingProducer.create(
            self.path, slot_count=self.slot_count, slot_size=64, record_schema=(1, 0), name="requests", consumers_max=3
        )
        self.published: list[bytes] = []
        self.claimed: list[bytes | None] = []
        self.consumers: list[ConsumerModel] = []
        self.full_count = self.dropped_count = self.joined_count = 0

    def has_room(self, count: int) -> bool:
        slowest = min((each.released for each in self.consumers), default=len(self.published))
        room = len(self.published) + len(self.claimed) + count - slowest <= self.slot_count
        self.full_count += not room
        return room

    def accepts(self, payloads: list[bytes]) -> int:
        """Return the sequence that publishing them must answer with."""
        if not self.has_room(len(payloads)):
            return -1
        self.published += payloads
        return len(self.published) - len(payloads)

    @precondition(lambda self: not self.claimed)
    @rule(values=st.tuples(*[WORDS] * 7))
    def publish(self, values: tuple[int, int, int, int, int, int, int]) -> None:
        expected = self.accepts([struct.pack("<7Q", *values)])
        assert self.producer.try_publish(*values) == expected

    @precondition(lambda self: not self.claimed)
    @rule(payload=st.binary(max_size=PAYLOAD_BYTES))
    def publish_record(self, payload: bytes) -> None:
        expected = self.accepts([payload.ljust(PAYLOAD_BYTES, b"\0")])
        assert self.producer.try_publish_record(payload) == expected

    @precondition(lambda self: not self.claimed)
    @rule(data=st.data())
    def publish_batch(self, data: st.DataObject) -> None:
        payloads = data.draw(st.lists(WHOLE_PAYLOADS, min_size=1, max_size=self.slot_count))
        expected = self.accepts(payloads)
        assert self.producer.try_publish_batch(b"".join(payloads)) == expected

    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.slot_count))
        expected = len(self.published) + len(self.claimed) if self.has_room(count) else -1
        assert self.producer.try_claim(count) == expected
        if expected >= 0:
            self.claimed += [None] * count

    @precondition(lambda self: self.claimed)
    @rule(data=st.data(), values=st.tuples(*[WORDS] * 7))
    def store(self, data: st.DataObject, values: tuple[int, int, int, int, int, int, int]) -> None:
        place = data.draw(st.integers(0, len(self.claimed) - 1))
        self.producer.store(len(self.published) + place, *values)
        self.claimed[place] = struct.pack("<7Q", *values)

    @rule()
    def publish_claimed(self) -> None:
        stored = self.claimed.index(None) if None in self.claimed else len(self.claimed)
        self.producer.publish_upto(len(self.published) + stored)
        self.published += [payload for payload in self.claimed[:stored] if payload is not None]
        del self.claimed[:stored]

    @precondition(lambda self: len(self.consumers) < 3)
    @rule()
    def register(self) -> None:
        self.joined_count += 1
        name = f"consumer {self.joined_count}"
        self.consumers.append(ConsumerModel(GatingConsumer.register(self.path, name), len(self.published), name))

    @precondition(lambda self: len(self.consumers) == 3)
    @rule()
    def register_one_too_many(self) -> None:
        with pytest.raises(ConsumersFull):
            GatingConsumer.register(self.path, "one too many")

    def living(self, data: st.DataObject) -> ConsumerModel | None:
        alive = [each for each in self.consumers if not each.is_dead]
        return data.draw(st.sampled_from(alive)) if alive else None

    @rule(data=st.data(), limit=st.integers(0, 20))
    def consume(self, data: st.DataObject, limit: int) -> None:
        model = self.living(data)
        if model is None:
            return
        end = min(len(self.published), model.released + limit)
        assert model.consumer.poll(limit) == (model.released, end)
        expected = self.published[model.released : end]
        sequences = range(model.released, end)
        assert [struct.pack("<7Q", *model.consumer.read(sequence)) for sequence in sequences] == expected
        assert [model.consumer.read_record(sequence) for sequence in sequences] == expected
        self.release(data, model, end)

    @rule(data=st.data(), room=st.integers(1, 20))
    def consume_into(self, data: st.DataObject, room: int) -> None:
        model = self.living(data)
        if model is None:
            return
        buffer = bytearray(64 * room)
        end = min(len(self.published), model.released + room)
        assert model.consumer.poll_into(buffer) == end - model.released
        sequences = range(model.released, end)
        written = b"".join(each.to_bytes(8, "little") + self.published[each] for each in sequences)
        assert buffer[: len(written)] == written
        self.release(data, model, end)

    def release(self, data: st.DataObject, model: ConsumerModel, end: int) -> None:
        model.released = data.draw(st.integers(model.released, end))
        model.consumer.release(model.released)

    @precondition(lambda self: self.consumers)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        model = self.living(data)
        if model is not None:
            self.consumers.remove(model)
            model.consumer.close()

    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        model = self.living(data)
        if model is not None:
            model.die()

    @rule()
    def drop_dead_consumers(self) -> None:
        dead = [each for each in self.consumers if each.is_dead]
        assert sorted(self.producer.drop_dead_consumers()) == sorted(each.name for each in dead)
        self.consumers = [each for each in self.consumers if not each.is_dead]
        self.dropped_count += len(dead)

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "producer"):
            return
        assert self.producer.published == len(self.published)
        assert self.producer.full_count == self.full_count
        words = self.producer.segment.words
        assert words.load_relaxed(layout.DROPPED_COUNT_OFFSET // 8) == self.dropped_count

    def teardown(self) -> None:
        for model in self.consumers:
            model.consumer.close()
        self.producer.close()
        super().teardown()


class TableModel(RingMachine):
    @initialize(row_count=st.integers(1, 5), row_words=st.integers(2, 9))
    def create(self, row_count: int, row_words: int) -> None:
        path = self.directory / "rows"
        self.room = 8 * (row_words - 1)
        self.writer = TableWriter.create(
            path, row_count=row_count, row_size=8 * row_words, record_schema=(1, 0), name="rows"
        )
        self.reader = TableReader.attach(path)
        self.rows: list[bytes | None] = [None] * row_count

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        row = data.draw(st.integers(0, len(self.rows) - 1))
        payload = data.draw(st.binary(max_size=self.room))
        self.writer.write(row, payload)
        self.rows[row] = payload.ljust(self.room, b"\0")

    @rule(data=st.data())
    def clear(self, data: st.DataObject) -> None:
        row = data.draw(st.integers(0, len(self.rows) - 1))
        self.writer.clear(row)
        self.rows[row] = None

    @invariant()
    def rows_agree(self) -> None:
        if hasattr(self, "reader"):
            assert list(self.reader.rows()) == [(i, row) for i, row in enumerate(self.rows) if row is not None]
            assert self.reader.torn_count == 0

    def teardown(self) -> None:
        self.reader.close()
        self.writer.close()
        super().teardown()


class DistinctErrorsModel(RingMachine):
    @initialize(row_count=st.integers(1, 4))
    def create(self, row_count: int) -> None:
        path = self.directory / "errors"
        self.row_count = row_count
        self.writer = DistinctErrorsWriter.create(path, row_count=row_count)
        self.reader = DistinctErrorsReader.attach(path)
        self.errors: dict[str, list[int]] = {}
        self.overflow_count = self.now_ns = 0

    @rule(text=st.sampled_from(["", "a", "b", "ü" * 400, "c", "\0"]), later_ns=st.integers(0, 2**40))
    def note(self, text: str, later_ns: int) -> None:
        self.now_ns += later_ns
        self.writer.note(text, self.now_ns)
        kept = text.rstrip("\0")[: 488 // 2] if text.startswith("ü") else text
        if kept not in self.errors and len(self.errors) == self.row_count:
            self.overflow_count += 1
        else:
            self.errors.setdefault(kept, []).append(self.now_ns)

    @invariant()
    def errors_agree(self) -> None:
        if hasattr(self, "reader"):
            expected = [
                DistinctError(text.rstrip("\0"), len(times), times[0], times[-1]) for text, times in self.errors.items()
            ]
            assert self.reader.read() == expected
            assert self.reader.overflow_count == self.overflow_count

    def teardown(self) -> None:
        self.reader.close()
        self.writer.close()
        super().teardown()


def test_the_lossy_ring_behaves_like_a_bounded_deque(backend: str) -> None:
    run_state_machine_as_test(LossyModel, settings=SETTINGS)


def test_the_gating_ring_behaves_like_a_queue_that_refuses(backend: str) -> None:
    run_state_machine_as_test(GatingModel, settings=SETTINGS)


def test_a_table_behaves_like_a_list(backend: str) -> None:
    run_state_machine_as_test(TableModel, settings=SETTINGS)


def test_distinct_errors_behave_like_a_dictionary(backend: str) -> None:
    run_state_machine_as_test(DistinctErrorsModel, settings=SETTINGS)
