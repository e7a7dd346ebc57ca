"""A consumer that joins while the producer goes on: what it was not seen for, it does not get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ringbuffer as rb
from ringbuffer import segment


class Interrupted:
    """The words of a segment; something happens at the fence of a consumer that joins."""

    def __init__(self, words: Any, meanwhile: Any) -> None:
        self._words, self._meanwhile = words, meanwhile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._words, name)

    def fence(self) -> None:
        self._words.fence()
        self._meanwhile()


def test_a_consumer_begins_behind_what_was_published_while_it_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ring"
    producer = rb.GatingProducer.create(path, slot_count=4, slot_size=64, record_schema=(1, 0), name="ring")
    seen: list[int] = []

    def go_round() -> None:  # as a producer that looked at the rows before this one was active
        published = 4
        seen.append(published)
        producer.segment.words.store_release(0x100 // 8, published)

    real = segment.attach

    def attach(*args: Any, **options: Any) -> Any:
        found = real(*args, **options)
        found.words = Interrupted(found.words, go_round)
        return found

    monkeypatch.setattr(segment, "attach", attach)
    consumer = rb.GatingConsumer.register(path, "late")
    assert seen, "the fence of SYNC E stands between the active row and the second look"
    assert consumer.position == 4
