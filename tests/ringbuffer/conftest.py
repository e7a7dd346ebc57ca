"""Every ring test runs on both backends."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringbuffer import BroadcastWriter, GatingProducer, words

SCHEMA = (1, 0)


@pytest.fixture(params=["c", "plain"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name = "_words" if request.param == "c" else "_plain"
    try:
        module = importlib.import_module(f"ringbuffer.{name}")
    except ImportError:
        pytest.skip("the C extension was not built: no compiler")
    monkeypatch.setattr(words, "core", module)
    return str(request.param)


@pytest.fixture
def broadcast(tmp_path: Path, backend: str) -> Iterator[BroadcastWriter]:
    writer = BroadcastWriter.create(
        tmp_path / "tokens.ring", slot_count=8, slot_size=64, record_schema=SCHEMA, name="tokens"
    )
    yield writer
    writer.close()


@pytest.fixture
def producer(tmp_path: Path, backend: str) -> Iterator[GatingProducer]:
    made = GatingProducer.create(
        tmp_path / "requests.ring", slot_count=8, slot_size=64, record_schema=SCHEMA, name="requests", consumers_max=2
    )
    yield made
    made.close()
