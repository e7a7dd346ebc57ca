"""Batches in one call, on both backends: what goes in comes out whole, in order and counted."""

from __future__ import annotations

import struct
from array import array
from pathlib import Path

import pytest

from ringbuffer import BroadcastReader, BroadcastWriter, GatingConsumer, GatingProducer

PAYLOAD_BYTES = 56
SLOT_BYTES = 64
SCHEMA = (1, 0)


def batch(first: int, count: int) -> bytes:
    """Return ``count`` payloads of seven words, each word naming its record."""
    return b"".join(struct.pack("<7Q", *(10 * n + word for word in range(7))) for n in range(first, first + count))


def records(first: int, count: int) -> list[tuple[int, ...]]:
    """Return what a poll into a buffer shows of them: the sequence, then the seven words."""
    return [(n, *(10 * n + word for word in range(7))) for n in range(first, first + count)]


def unpacked(room: bytearray, count: int) -> list[tuple[int, ...]]:
    return list(struct.iter_unpack("<8Q", room[: count * SLOT_BYTES]))


def test_a_batch_is_published_at_once_and_polled_at_once(broadcast: BroadcastWriter) -> None:
    reader = BroadcastReader.attach(broadcast.segment.path)
    room = bytearray(8 * SLOT_BYTES)
    assert broadcast.publish_batch(batch(0, 5)) == 0, "the first sequence"
    assert broadcast.published == 5
    assert reader.poll_into(room) == 5
    assert unpacked(room, 5) == records(0, 5)
    assert broadcast.publish_batch(batch(5, 8)) == 5, "a batch may go round the end of the ring"
    assert reader.poll_into(room) == 8
    assert unpacked(room, 8) == records(5, 8)
    assert reader.poll_into(room) == 0
    assert (reader.position, reader.lost) == (13, 0)


def test_a_batch_is_the_same_as_its_records_one_by_one(broadcast: BroadcastWriter) -> None:
    reader = BroadcastReader.attach(broadcast.segment.path)
    broadcast.publish_batch(batch(0, 3))
    broadcast.publish(*(30 + word for word in range(7)))
    broadcast.publish_record(batch(4, 1))
    assert reader.poll(10) == [(n, batch(n, 1)) for n in range(5)]


def test_a_poll_into_a_buffer_takes_as_many_records_as_fit(broadcast: BroadcastWriter) -> None:
    reader = BroadcastReader.attach(broadcast.segment.path)
    broadcast.publish_batch(batch(0, 5))
    room = bytearray(3 * SLOT_BYTES - 1)
    counts = []
    while (count := reader.poll_into(room)) > 0:
        counts.append(count)
        assert room[2 * SLOT_BYTES :] == bytes(SLOT_BYTES - 1), "nothing beyond the whole records is touched"
    assert counts == [2, 2, 1]


def test_what_was_overwritten_is_counted_and_seen_in_the_sequences(broadcast: BroadcastWriter) -> None:
    reader = BroadcastReader.attach(broadcast.segment.path)
    room = bytearray(8 * SLOT_BYTES)
    for first in (0, 8, 16):
        broadcast.publish_batch(batch(first, 8))
    assert reader.poll_into(room) == 8
    assert unpacked(room, 8) == records(16, 8)
    assert (reader.position, reader.lost) == (24, 16)


def test_records_that_are_being_overwritten_are_lost_and_never_torn(broadcast: BroadcastWriter) -> None:
    reader = BroadcastReader.attach(broadcast.segment.path)
    broadcast.publish_batch(batch(0, 8))
    words = broadcast.segment.words
    for slot in (2, 3):
        words.store_release(broadcast.segment.slots_word + slot * 8, 0)  # as a writer leaves them that is in the middle
    room = bytearray(8 * SLOT_BYTES)
    assert reader.poll_into(room) == 6
    assert [n for n, *_ in unpacked(room, 6)] == [0, 1, 4, 5, 6, 7]
    assert (reader.position, reader.lost) == (8, 2)


def test_a_gating_batch_goes_in_whole_or_not_at_all(producer: GatingProducer) -> None:
    consumer = GatingConsumer.register(producer.segment.path, "loop")
    room = bytearray(8 * SLOT_BYTES)
    assert producer.try_publish_batch(batch(0, 6)) == 0
    assert producer.try_publish_batch(batch(6, 3)) == -1
    assert (producer.published, producer.full_count) == (6, 1)
    assert producer.try_publish_batch(batch(6, 2)) == 6
    assert consumer.poll_into(room) == 8
    assert unpacked(room, 8) == records(0, 8)
    assert consumer.poll_into(room) == 8, "the same again until it is released"
    consumer.release(consumer.position + 5)
    assert (consumer.position, consumer.lag) == (5, 3)
    assert consumer.poll_into(room) == 3
    assert unpacked(room, 3) == records(5, 3)
    assert producer.try_publish_batch(batch(8, 5)) == 8
    consumer.close()


def test_a_batch_waits_for_the_claims_before_it(producer: GatingProducer) -> None:
    producer.try_claim(1)
    for publish in (producer.try_publish_batch, producer.try_publish_record):
        with pytest.raises(ValueError, match="not been published"):
            publish(batch(0, 1))
    producer.store(0, *range(7))
    producer.publish_upto(1)
    assert producer.try_publish_batch(batch(1, 1)) == 1


@pytest.mark.parametrize("size", [0, 55, 57, 9 * PAYLOAD_BYTES])
def test_a_batch_is_whole_payloads_and_at_most_one_ring(
    broadcast: BroadcastWriter, producer: GatingProducer, size: int
) -> None:
    for writer, publish in ((broadcast, broadcast.publish_batch), (producer, producer.try_publish_batch)):
        with pytest.raises(ValueError, match=f"batch of {size} bytes, must be 1 to 8 payloads of 56 bytes"):
            publish(bytes(size))
        assert writer.published == 0
    with pytest.raises(TypeError):
        broadcast.publish_batch("text")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        producer.try_publish_batch(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at most 56 fit"):
        producer.try_publish_record(bytes(57))


def test_a_buffer_must_be_writable_and_hold_a_record(broadcast: BroadcastWriter, producer: GatingProducer) -> None:
    consumer = GatingConsumer.register(producer.segment.path, "loop")
    reader = BroadcastReader.attach(broadcast.segment.path)
    for poll_into in (reader.poll_into, consumer.poll_into):
        with pytest.raises(ValueError, match="buffer of 63 bytes, one record has 64"):
            poll_into(bytearray(63))
        with pytest.raises(BufferError):
            poll_into(bytes(64))
        with pytest.raises(TypeError):
            poll_into(None)  # type: ignore[arg-type]
    consumer.close()


def test_a_broken_record_of_a_gating_ring_is_noticed(producer: GatingProducer) -> None:
    consumer = GatingConsumer.register(producer.segment.path, "loop")
    producer.try_publish_batch(batch(0, 2))
    producer.segment.words.store_release(producer.segment.slots_word + 8, 77)
    with pytest.raises(AssertionError, match="overwritten"):
        consumer.poll_into(bytearray(2 * SLOT_BYTES))
    for read in (consumer.read, consumer.read_record):
        with pytest.raises(AssertionError):
            read(1)
    consumer.close()


def test_arrays_of_numbers_go_in_and_out(broadcast: BroadcastWriter) -> None:
    reader = BroadcastReader.attach(broadcast.segment.path)
    broadcast.publish_batch(array("Q", range(14)))
    room = array("Q", bytes(2 * SLOT_BYTES))
    assert reader.poll_into(room) == 2
    assert list(room) == [0, *range(7), 1, *range(7, 14)]


def test_a_numpy_array_is_filled_and_its_columns_read(broadcast: BroadcastWriter) -> None:
    numpy = pytest.importorskip("numpy")
    reader = BroadcastReader.attach(broadcast.segment.path)
    broadcast.publish_batch(numpy.arange(28, dtype=numpy.uint64).reshape(4, 7))
    room = bytearray(8 * SLOT_BYTES)
    count = reader.poll_into(room)
    columns = numpy.dtype([("sequence", "<u8"), ("t_ns", "<u8"), ("rest", "<u8", 6)])
    table = numpy.frombuffer(room, columns)[:count]
    assert table["sequence"].tolist() == [0, 1, 2, 3]
    assert table["t_ns"].tolist() == [0, 7, 14, 21]
    square = numpy.zeros((8, 8), numpy.uint64)
    broadcast.publish_batch(batch(4, 1))
    assert reader.poll_into(square) == 1
    assert tuple(square[0].tolist()) == records(4, 1)[0]


def test_slots_of_any_size_take_batches(tmp_path: Path, backend: str) -> None:
    for slot_size in (16, 40, 1024):
        payload = slot_size - 8
        path = tmp_path / f"{slot_size}.ring"
        writer = BroadcastWriter.create(path, slot_count=4, slot_size=slot_size, record_schema=SCHEMA, name="any")
        reader = BroadcastReader.attach(path)
        content = bytes(n % 251 for n in range(3 * payload))
        writer.publish_batch(memoryview(content))
        room = bytearray(4 * slot_size)
        assert reader.poll_into(room) == 3
        for n in range(3):
            record = room[n * slot_size : (n + 1) * slot_size]
            assert int.from_bytes(record[:8], "little") == n
            assert record[8:] == content[n * payload : (n + 1) * payload]
        writer.close()


def test_a_poll_into_a_buffer_moves_the_position_file(broadcast: BroadcastWriter, tmp_path: Path) -> None:
    reader = BroadcastReader.attach(broadcast.segment.path, position=tmp_path / "reader")
    broadcast.publish_batch(batch(0, 3))
    reader.poll_into(bytearray(2 * SLOT_BYTES))
    assert reader._position_word is not None
    assert reader._position_word.segment.published == 2
    reader.close()
