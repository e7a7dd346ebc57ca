"""A stand-in for the router's side of shared memory: real segments, filled by the test."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import done_records

from ringbuffer import (
    AppendWriter,
    BroadcastWriter,
    CountersWriter,
    DistinctErrorsWriter,
    GatingProducer,
    Generation,
    TableWriter,
)
from router.errors import ErrorKind
from router.telemetry import records as rec
from router.telemetry.counters import CATALOGUE

HOST_ID = 1
MODEL_ID = 1


class FakeRouter:
    """One generation with host ``gpu-0`` (id 1) and model ``chat`` (id 1). Small rings: 64 finished requests."""

    def __init__(self, instance: Path, schema: tuple[int, int] = rec.RECORD_SCHEMA) -> None:
        self.generation = Generation.create(instance)
        self.directory = path = self.generation.path
        self.done = BroadcastWriter.create(
            path / "done.ring", slot_count=64, slot_size=rec.DONE_SLOT_BYTES, record_schema=schema, name="done"
        )
        self.tokens = BroadcastWriter.create(
            path / "tokens.ring", slot_count=64, slot_size=rec.TOKENS_SLOT_BYTES, record_schema=schema, name="tokens"
        )
        self.requests = GatingProducer.create(
            path / "requests.ring", slot_count=64, slot_size=64, record_schema=schema, name="requests"
        )
        self.inflight = TableWriter.create(
            path / "inflight.tab", row_count=16, row_size=rec.DONE_SLOT_BYTES, record_schema=schema, name="inflight"
        )
        self.names = AppendWriter.create(
            path / "names.tab", row_count=64, row_size=rec.NAME_ROW_BYTES, record_schema=schema, name="names"
        )
        self.counters = CountersWriter.create(path / "counters", CATALOGUE)
        self.errors = DistinctErrorsWriter.create(path / "errors", row_count=8, name="errors")
        self.segments = (self.done, self.tokens, self.requests, self.inflight, self.names, self.counters, self.errors)
        self.add_name(rec.NAME_HOST, HOST_ID, "gpu-0")
        self.add_name(rec.NAME_MODEL, MODEL_ID, "chat")
        self.generation.activate()

    def add_name(self, kind: int, value_id: int, text: str) -> None:
        self.names.append(done_records.name(kind, value_id, text))

    def finish(self, request_id: str, **given: Any) -> None:
        """Publish a streamed answer of 21 tokens with a TTFT of 101 ms and a TPOT of 10 ms, unless told otherwise."""
        defaults = {
            "stamps": done_records.stamps(time.monotonic_ns() - 10**9),
            "outcome": rec.Outcome.OK,
            "endpoint": rec.Endpoint.CHAT,
            "flags": rec.DoneFlag.STREAM,
            "host": HOST_ID,
            "model": MODEL_ID,
            "n_out": 21,
            "n_first": 1,
            "early_tokens": 20,
            "visible_tokens": 21,
            "request_id": request_id,
        }
        self.done.publish_record(done_records.payload(**{**defaults, **given}))

    def finish_late(self, request_id: str) -> None:
        self.finish(request_id, outcome=rec.Outcome.TIMEOUT, error=ErrorKind.FIRST_TOKEN_TIMEOUT, n_out=0)

    def beat_at(self, t_ns: int) -> None:
        for segment in self.segments:
            segment.beat(t_ns)

    def die(self) -> None:
        """Give up every lock, as the kernel does for a process that was killed."""
        for segment in self.segments:
            segment.close()
        self.generation.close()
