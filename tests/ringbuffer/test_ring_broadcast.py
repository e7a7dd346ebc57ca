from __future__ import annotations

import struct
from pathlib import Path

import pytest

from ringbuffer import BroadcastReader, BroadcastWriter, GatingProducer, WrongKind, _plain, layout, segment, words
from ringbuffer.layout import Kind, word_index

SCHEMA = (1, 0)
MISUSE = (OverflowError, ValueError, TypeError)


def publish_many(writer: BroadcastWriter, count: int) -> None:
    for n in range(count):
        writer.publish(n, 0, 0, 0, 0, 0, 0)


def test_records_arrive_in_order_with_their_sequence(broadcast: BroadcastWriter) -> None:
    reader = BroadcastReader.attach(broadcast.segment.path)
    assert broadcast.publish(1, 2, 3, 4, 5, 6, 2**64 - 1) == 0
    assert broadcast.publish(8, 9, 10, 11, 12, 13, 14) == 1
    assert reader.lag == 2
    (first, payload), (second, _) = reader.poll(10)
    assert (first, second) == (0, 1)
    assert struct.unpack("<7Q", payload) == (1, 2, 3, 4, 5, 6, 2**64 - 1)
    assert reader.poll(10) == []
    assert (reader.position, reader.lag, reader.lost) == (2, 0, 0)


def test_a_poll_is_bounded(broadcast: BroadcastWriter) -> None:
    reader = BroadcastReader.attach(broadcast.segment.path)
    publish_many(broadcast, 5)
    assert [sequence for sequence, _ in reader.poll(2)] == [0, 1]
    assert reader.poll(0) == []
    assert [sequence for sequence, _ in reader.poll(9)] == [2, 3, 4]


def test_a_lapped_reader_knows_exactly_what_it_lost(broadcast: BroadcastWriter) -> None:
    reader = BroadcastReader.attach(broadcast.segment.path)
    publish_many(broadcast, 20)
    records = reader.poll(100)
    assert [sequence for sequence, _ in records] == list(range(12, 20)), "all that the 8 slots still hold"
    assert reader.lost == 12


@pytest.mark.parametrize(("join", "expected"), [("latest", []), ("oldest", range(12, 20)), (15, range(15, 20))])
def test_a_reader_joins_where_it_wants(broadcast: BroadcastWriter, join: str | int, expected: range) -> None:
    publish_many(broadcast, 20)
    reader = BroadcastReader.attach(broadcast.segment.path, join=join)  # type: ignore[arg-type]
    assert [sequence for sequence, _ in reader.poll(100)] == list(expected)
    assert reader.lost == 0


def test_joining_at_an_overwritten_sequence_counts_the_loss(broadcast: BroadcastWriter) -> None:
    publish_many(broadcast, 20)
    reader = BroadcastReader.attach(broadcast.segment.path, join=3)
    assert len(reader.poll(100)) == 8
    assert reader.lost == 9


@pytest.mark.parametrize("join", [-1, 1, "newest"])
def test_a_sequence_the_ring_has_not_reached_is_refused(broadcast: BroadcastWriter, join: int) -> None:
    with pytest.raises(ValueError, match="join is"):
        BroadcastReader.attach(broadcast.segment.path, join=join)


def test_a_slot_being_overwritten_counts_as_lost(broadcast: BroadcastWriter) -> None:
    reader = BroadcastReader.attach(broadcast.segment.path)
    publish_many(broadcast, 3)
    slot = broadcast.segment.slots_word + broadcast.segment.slot_words
    broadcast.segment.words.store_release(slot, 0)  # what a reader meets while the writer is inside sequence 9
    assert [sequence for sequence, _ in reader.poll(10)] == [0, 2]
    assert reader.lost == 1


def test_a_record_overwritten_during_the_copy_is_not_delivered(
    broadcast: BroadcastWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "core", _plain)
    reader = BroadcastReader.attach(broadcast.segment.path)
    publish_many(broadcast, 1)
    copy = _plain.LossyReader._load_payload

    def copy_while_the_writer_laps(self: _plain.LossyReader, slot: int) -> bytes:
        if broadcast.published == 1:
            publish_many(broadcast, 8)
        return copy(self, slot)

    monkeypatch.setattr(_plain.LossyReader, "_load_payload", copy_while_the_writer_laps)
    assert [sequence for sequence, _ in reader.poll(100)] == list(range(1, 9))
    assert reader.lost == 1


def test_a_payload_is_padded_with_zeros_also_over_an_older_one(tmp_path: Path, backend: str) -> None:
    writer = BroadcastWriter.create(tmp_path / "done", slot_count=1, slot_size=32, record_schema=SCHEMA, name="done")
    reader = BroadcastReader.attach(tmp_path / "done")
    for payload in (b"x" * 24, b"", b"abcdefghijk", bytearray(b"yy"), memoryview(b"12345678")):
        writer.publish_record(payload)
        assert reader.poll(1)[0][1] == bytes(payload).ljust(24, b"\0")
    writer.close()


def test_what_does_not_fit_is_refused_and_nothing_is_published(broadcast: BroadcastWriter) -> None:
    with pytest.raises(ValueError, match="57 bytes, at most 56"):
        broadcast.publish_record(b"x" * 57)
    with pytest.raises(MISUSE):
        broadcast.publish(1, 2, 3, 4, 5, 6, -1)
    with pytest.raises(MISUSE):
        broadcast.publish(1, 2, 3)  # type: ignore[call-arg]
    with pytest.raises(MISUSE):
        broadcast.publish_record("text")  # type: ignore[arg-type]
    assert broadcast.published == 0
    assert broadcast.publish(1, 2, 3, 4, 5, 6, 7) == 0


def test_seven_words_need_a_slot_of_64_bytes(tmp_path: Path, backend: str) -> None:
    writer = BroadcastWriter.create(tmp_path / "done", slot_count=2, slot_size=128, record_schema=SCHEMA, name="done")
    with pytest.raises(ValueError, match="64 bytes"):
        writer.publish(1, 2, 3, 4, 5, 6, 7)
    writer.close()


def test_publishing_is_a_call_into_the_backend_without_a_python_frame(tmp_path: Path) -> None:
    pytest.importorskip("ringbuffer._words")
    if words.BACKEND != "c":
        pytest.skip("the plain backend was forced")
    writer = BroadcastWriter.create(tmp_path / "t", slot_count=2, slot_size=64, record_schema=SCHEMA, name="tokens")
    assert type(writer.publish).__name__ == "builtin_function_or_method"
    writer.close()


def test_a_reader_keeps_its_position_where_others_can_see_it(broadcast: BroadcastWriter, tmp_path: Path) -> None:
    (tmp_path / "readers").mkdir()
    position = tmp_path / "readers" / "observe"
    reader = BroadcastReader.attach(broadcast.segment.path, position=position)
    publish_many(broadcast, 20)
    reader.poll(3)
    with pytest.raises(WrongKind, match="READER_POSITION"):
        BroadcastReader.attach(position)
    seen = segment.attach(position, (Kind.READER_POSITION,))
    assert seen.published == reader.position == 15
    assert seen.words.load_relaxed(word_index(layout.FULL_COUNT_OFFSET)) == reader.lost == 12
    reader.close()
    assert not position.exists()


def test_an_observer_can_read_a_gating_ring_without_gating_it(producer: GatingProducer) -> None:
    reader = BroadcastReader.attach(producer.segment.path)
    for n in range(20):
        assert producer.try_publish(n, 0, 0, 0, 0, 0, 0) == n, "an observer never fills the ring"
    assert [sequence for sequence, _ in reader.poll(100)] == list(range(12, 20))
    assert reader.lost == 12
