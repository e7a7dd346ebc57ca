from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from ringbuffer import ConsumersFull, GatingConsumer, GatingProducer
from ringbuffer.gating import ConsumerRow, _registration_lock

MISUSE = (OverflowError, ValueError, TypeError)


def publish(producer: GatingProducer, value: int = 0) -> int:
    return producer.try_publish(value, 0, 0, 0, 0, 0, 0)


def register(producer: GatingProducer, name: str = "loop") -> GatingConsumer:
    return GatingConsumer.register(producer.segment.path, name)


def test_a_consumer_reads_what_was_published_until_it_releases_it(producer: GatingProducer) -> None:
    consumer = register(producer)
    assert consumer.poll(10) == (0, 0)
    assert producer.try_publish(1, 2, 3, 4, 5, 6, 2**64 - 1) == 0
    assert consumer.poll(10) == (0, 1)
    assert consumer.poll(10) == (0, 1), "the same range again until it is released"
    assert consumer.read(0) == (1, 2, 3, 4, 5, 6, 2**64 - 1)
    consumer.release(1)
    assert consumer.poll(10) == (1, 1)
    consumer.close()


def test_a_full_ring_refuses_and_counts(producer: GatingProducer) -> None:
    consumer = register(producer)
    assert [publish(producer) for _ in range(10)] == [*range(8), -1, -1]
    assert producer.full_count == 2
    consumer.release(1)
    assert publish(producer) == 8
    assert publish(producer) == -1
    consumer.close()


def test_the_slowest_consumer_gates(producer: GatingProducer) -> None:
    fast, slow = register(producer, "fast"), register(producer, "slow")
    for _ in range(8):
        publish(producer)
    fast.release(8)
    assert publish(producer) == -1
    slow.release(3)
    assert [publish(producer) for _ in range(4)] == [8, 9, 10, -1]
    slow.close()
    assert [publish(producer) for _ in range(6)] == [11, 12, 13, 14, 15, -1], "now only the fast one gates"
    fast.close()
    assert publish(producer) == 16


def test_a_consumer_begins_where_it_joins_and_gates_from_there(producer: GatingProducer) -> None:
    for _ in range(11):
        publish(producer)
    consumer = register(producer)
    assert consumer.poll(10) == (11, 11)
    assert [publish(producer) for _ in range(9)] == [*range(11, 19), -1]
    consumer.close()


def test_records_published_while_a_consumer_joins_are_never_overwritten(
    producer: GatingProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ConsumerRow.is_active

    def is_active_after_the_producer_ran(row: ConsumerRow) -> bool:
        for _ in range(13):
            publish(producer)
        return bool(real.fget(row))  # type: ignore[attr-defined]

    monkeypatch.setattr(ConsumerRow, "is_active", property(is_active_after_the_producer_ran))
    consumer = register(producer)
    monkeypatch.setattr(ConsumerRow, "is_active", real)
    while publish(producer) >= 0:
        pass
    first, end = consumer.poll(100)
    assert end - first == 8
    assert [consumer.read(sequence)[0] for sequence in range(first, end)] == [0] * 8
    consumer.close()


def test_a_claim_is_visible_only_when_it_is_published(producer: GatingProducer) -> None:
    consumer = register(producer)
    assert producer.try_claim(3) == 0
    for sequence in (2, 0, 1):
        producer.store(sequence, sequence, 0, 0, 0, 0, 0, 0)
    assert consumer.poll(10) == (0, 0)
    producer.publish_upto(2)
    assert consumer.poll(10) == (0, 2)
    producer.publish_upto(3)
    assert [consumer.read(s)[0] for s in range(3)] == [0, 1, 2]
    assert consumer.poll(2) == (0, 2), "a poll is bounded"
    consumer.close()


def test_a_claim_larger_than_what_is_free_is_refused_whole(producer: GatingProducer) -> None:
    consumer = register(producer)
    assert producer.try_claim(6) == 0
    assert producer.try_claim(3) == -1
    assert producer.try_claim(2) == 6
    assert producer.full_count == 1
    consumer.close()


def test_misuse_is_refused_and_publishes_nothing(producer: GatingProducer) -> None:
    consumer = register(producer)
    for count in (0, 9, -1):
        with pytest.raises(MISUSE):
            producer.try_claim(count)
    first = producer.try_claim(2)
    with pytest.raises(ValueError, match="not been published"):
        publish(producer)
    with pytest.raises(ValueError, match="not claimed"):
        producer.store(first + 2, 0, 0, 0, 0, 0, 0, 0)
    producer.store(first, 0, 0, 0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="sequence 1 was claimed but never stored"):
        producer.publish_upto(first + 2)
    with pytest.raises(ValueError, match="cannot publish up to 3"):
        producer.publish_upto(first + 3)
    with pytest.raises(MISUSE):
        producer.try_publish(-1, 0, 0, 0, 0, 0, 0)
    assert producer.published == 0
    assert consumer.poll(10) == (0, 0)
    consumer.close()


def test_a_consumer_cannot_read_or_release_what_is_not_its_own(producer: GatingProducer) -> None:
    consumer = register(producer)
    publish(producer)
    publish(producer)
    consumer.release(1)
    for sequence in (0, 2, 9):
        with pytest.raises(AssertionError):
            consumer.read(sequence)
    for end in (0, 3):
        with pytest.raises(ValueError, match="cannot release"):
            consumer.release(end)
    assert consumer.poll(9) == (1, 2)
    consumer.close()


def test_a_broken_sequence_word_is_noticed(producer: GatingProducer) -> None:
    consumer = register(producer)
    publish(producer)
    producer.segment.words.store_release(producer.segment.slots_word, 77)
    with pytest.raises(AssertionError):
        consumer.read(0)
    consumer.close()


def test_consumer_rows_are_bounded_and_given_back(producer: GatingProducer) -> None:
    first, second = register(producer, "a"), register(producer, "b")
    with pytest.raises(ConsumersFull, match="2 consumer rows"):
        register(producer, "c")
    first.close()
    third = register(producer, "c")
    first.close()  # closing twice must not free the row of the third
    with pytest.raises(ConsumersFull):
        register(producer, "d")
    with pytest.raises(ValueError, match="consumer name"):
        register(producer, "n" * 65)
    second.close()
    third.close()


def test_only_dead_consumers_are_dropped(producer: GatingProducer) -> None:
    mine = register(producer, "mine")
    ended = subprocess.Popen(["true"])
    ended.wait()
    other = register(producer, "ended")
    row = other._row
    row._words.store_relaxed(row.word(0x08), ended.pid)
    assert producer.drop_dead_consumers() == ["ended"]
    assert producer.drop_dead_consumers() == []
    assert mine._row.is_active
    mine.close()


def test_dropping_never_waits_for_a_process_that_is_registering(producer: GatingProducer) -> None:
    with _registration_lock(producer.segment.path, block=True):
        began = time.monotonic()
        assert producer.drop_dead_consumers() == []
        assert time.monotonic() - began < 5


def test_slots_of_another_size_hold_payloads_and_never_seven_words(tmp_path: Path, backend: str) -> None:
    producer = GatingProducer.create(
        tmp_path / "small.ring", slot_count=2, slot_size=24, record_schema=(1, 0), name="small", consumers_max=1
    )
    consumer = register(producer)
    for misuse in (lambda: publish(producer), lambda: consumer.read(0)):
        with pytest.raises(ValueError, match="slots of 64 bytes, these have 24"):
            misuse()
    assert producer.try_publish_record(b"sixteen bytes...") == 0
    assert producer.try_publish_record(b"few") == 1
    assert producer.try_publish_record(b"") == -1
    assert [consumer.read_record(sequence) for sequence in range(2)] == [b"sixteen bytes...", b"few" + bytes(13)]
    consumer.close()
    producer.close()
