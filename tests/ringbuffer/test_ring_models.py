"""The rings against a deque: any sequence of steps, on both backends."""

from __future__ import annotations

import shutil
import struct
import tempfile
from collections import deque
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ringbuffer import BroadcastReader, BroadcastWriter, GatingConsumer, GatingProducer

SETTINGS = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
WORDS = st.integers(0, 2**64 - 1)


class RingMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="ring-model-"))

    def teardown(self) -> None:
        shutil.rmtree(self.directory)


class LossyModel(RingMachine):
    @initialize(exponent=st.integers(0, 4))
    def create(self, exponent: int) -> None:
        path = self.directory / "tokens"
        self.slot_count = 1 << exponent
        self.writer = BroadcastWriter.create(
            path, slot_count=self.slot_count, slot_size=64, record_schema=(1, 0), name="tokens"
        )
        self.reader = BroadcastReader.attach(path)
        self.kept: deque[tuple[int, bytes]] = deque(maxlen=self.slot_count)
        self.published = self.position = self.lost = 0

    @rule(values=st.tuples(*[WORDS] * 7))
    def publish(self, values: tuple[int, int, int, int, int, int, int]) -> None:
        assert self.writer.publish(*values) == self.published
        self.keep(struct.pack("<7Q", *values))

    @rule(payload=st.binary(max_size=56))
    def publish_record(self, payload: bytes) -> None:
        assert self.writer.publish_record(payload) == self.published
        self.keep(payload.ljust(56, b"\0"))

    def keep(self, payload: bytes) -> None:
        self.kept.append((self.published, payload))
        self.published += 1

    @rule(limit=st.integers(0, 20))
    def poll(self, limit: int) -> None:
        oldest = self.published - len(self.kept)
        if limit and self.position < oldest:
            self.lost += oldest - self.position
            self.position = oldest
        expected = [record for record in self.kept if record[0] >= self.position][:limit]
        self.position += len(expected)
        assert self.reader.poll(limit) == expected

    @rule()
    def rejoin(self) -> None:
        self.reader.close()
        self.reader = BroadcastReader.attach(self.directory / "tokens", join="oldest")
        self.position = self.published - len(self.kept)
        self.lost = 0

    @invariant()
    def counts_agree(self) -> None:
        assert (self.reader.position, self.reader.lost) == (self.position, self.lost)
        assert self.writer.published == self.published

    def teardown(self) -> None:
        self.reader.close()
        self.writer.close()
        super().teardown()


class GatingModel(RingMachine):
    @initialize(exponent=st.integers(0, 4))
    def create(self, exponent: int) -> None:
        self.path = self.directory / "requests"
        self.slot_count = 1 << exponent
        self.producer = GatingProducer.create(
            self.path, slot_count=self.slot_count, slot_size=64, record_schema=(1, 0), name="requests", consumers_max=3
        )
        self.published: list[int] = []
        self.claimed: list[int | None] = []
        self.consumers: list[tuple[GatingConsumer, int]] = []
        self.full_count = 0

    def has_room(self, count: int) -> bool:
        slowest = min((released for _, released in self.consumers), default=len(self.published))
        room = len(self.published) + len(self.claimed) + count - slowest <= self.slot_count
        self.full_count += not room
        return room

    @precondition(lambda self: not self.claimed)
    @rule(value=WORDS)
    def publish(self, value: int) -> None:
        expected = len(self.published) if self.has_room(1) else -1
        assert self.producer.try_publish(value, 0, 0, 0, 0, 0, 0) == expected
        if expected >= 0:
            self.published.append(value)

    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.slot_count))
        expected = len(self.published) + len(self.claimed) if self.has_room(count) else -1
        assert self.producer.try_claim(count) == expected
        if expected >= 0:
            self.claimed += [None] * count

    @precondition(lambda self: self.claimed)
    @rule(data=st.data(), value=WORDS)
    def store(self, data: st.DataObject, value: int) -> None:
        place = data.draw(st.integers(0, len(self.claimed) - 1))
        self.producer.store(len(self.published) + place, value, 0, 0, 0, 0, 0, 0)
        self.claimed[place] = value

    @rule()
    def publish_claimed(self) -> None:
        stored = self.claimed.index(None) if None in self.claimed else len(self.claimed)
        self.producer.publish_upto(len(self.published) + stored)
        self.published += [value for value in self.claimed[:stored] if value is not None]
        del self.claimed[:stored]

    @precondition(lambda self: len(self.consumers) < 3)
    @rule()
    def register(self) -> None:
        self.consumers.append((GatingConsumer.register(self.path, "c"), len(self.published)))

    @precondition(lambda self: self.consumers)
    @rule(data=st.data(), limit=st.integers(0, 20))
    def consume(self, data: st.DataObject, limit: int) -> None:
        place = data.draw(st.integers(0, len(self.consumers) - 1))
        consumer, released = self.consumers[place]
        end = min(len(self.published), released + limit)
        assert consumer.poll(limit) == (released, end)
        assert [consumer.read(sequence)[0] for sequence in range(released, end)] == self.published[released:end]
        released = data.draw(st.integers(released, end))
        consumer.release(released)
        self.consumers[place] = consumer, released

    @precondition(lambda self: self.consumers)
    @rule()
    def leave(self) -> None:
        self.consumers.pop(0)[0].close()

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "producer"):
            assert self.producer.published == len(self.published)
            assert self.producer.full_count == self.full_count

    def teardown(self) -> None:
        for consumer, _ in self.consumers:
            consumer.close()
        self.producer.close()
        super().teardown()


def test_the_lossy_ring_behaves_like_a_bounded_deque(backend: str) -> None:
    run_state_machine_as_test(LossyModel, settings=SETTINGS)


def test_the_gating_ring_behaves_like_a_queue_that_refuses(backend: str) -> None:
    run_state_machine_as_test(GatingModel, settings=SETTINGS)
