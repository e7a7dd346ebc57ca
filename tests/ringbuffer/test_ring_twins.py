"""The two backends are twins: the same calls give the same answers, the same complaints and the same bytes."""

from __future__ import annotations

import importlib
import random
from pathlib import Path
from typing import Any

import pytest

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
