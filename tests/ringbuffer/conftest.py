"""Every ring test runs on both backends, or on those that RING_TEST_BACKENDS names."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringbuffer import BroadcastWriter, GatingProducer, words

SCHEMA = (1, 0)
BACKENDS = os.environ.get("RING_TEST_BACKENDS", "c plain").split()


@pytest.fixture(params=BACKENDS)
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
