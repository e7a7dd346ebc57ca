"""A stand-in for the router's side of shared memory that is told, event by event, what happens to its requests.

It writes records as the router does, and keeps what it wrote: the observer's numbers are compared with these, which are
counted here in the simplest way there is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ringbuffer import AppendWriter, BroadcastWriter, CountersWriter, Generation, TableWriter
from router.stamps import STAMPS
from router.telemetry import records as rec
from router.telemetry.counters import CATALOGUE
from router.telemetry.records import Kind, TokenFlag
from tests.unit import done_records

MS = 1_000_000
CONTENT = (Kind.TEXT, Kind.REASONING, Kind.TOOL_CALL)


class ToldRouter:
    """One generation with the hosts ``gpu-0`` and ``gpu-1`` (ids 1 and 2) and the model ``chat`` (id 1)."""

    def __init__(self, instance: Path, *, token_slots: int = 4096, done_slots: int = 256) -> None:
        self.generation = Generation.create(instance)
        self.directory = path = self.generation.path
        schema = rec.RECORD_SCHEMA
        self.done = BroadcastWriter.create(
            path / "done.ring", slot_count=done_slots, slot_size=1024, record_schema=schema, name="done"
        )
        self.tokens = BroadcastWriter.create(
            path / "tokens.ring", slot_count=token_slots, slot_size=64, record_schema=schema, name="tokens"
        )
        self.inflight = TableWriter.create(
            path / "inflight.tab", row_count=64, row_size=1024, record_schema=schema, name="inflight"
        )
        names = AppendWriter.create(path / "names.tab", row_count=64, row_size=96, record_schema=schema, name="names")
        counters = CountersWriter.create(path / "counters", CATALOGUE)
        for host_id, host in enumerate(("gpu-0", "gpu-1"), 1):
            names.append(done_records.name(rec.NAME_HOST, host_id, host))
        names.append(done_records.name(rec.NAME_MODEL, 1, "chat"))
        self.names = names
        self.segments = (self.done, self.tokens, self.inflight, names, counters)
        self.generation.activate()
        self.next_request_seq = 0

    def ask(self, t_ns: int) -> ToldRequest:
        """Begin a request."""
        self.next_request_seq += 1
        return ToldRequest(self, self.next_request_seq - 1, t_ns)

    def die(self) -> None:
        """Give up every lock, as the kernel does for a process that was killed."""
        for segment in self.segments:
            segment.close()
        self.generation.close()


class ToldRequest:
    """One request. Each method takes the time at which the event happens; they are called in the order of time."""

    def __init__(self, router: ToldRouter, seq: int, t_ns: int) -> None:
        self.router = router
        self.seq = seq
        self.recv_ns = t_ns
        self.host = 0
        self.at = dict.fromkeys(STAMPS, 0)
        for name in STAMPS[:4]:
            self.at[name] = t_ns
        self.event_count = 0
        self.content_count = 0
        self.last_content_ns = 0
        self.stall_max_ns = 0
        self.gaps: list[int] = []
        self.host_end_ns = 0
        self.attempt_count = 0
        self.failed: list[tuple[int, ...]] = []
        self.token_seqs: list[int] = []
        """Where its records stand in the ring."""
        self.host_event_seqs: list[int] = []
        self.done_seq = -1

    def _publish(self, t_ns: int, kind: Kind, flags: int = 0, gap_ns: int = 0, index: int = 0) -> None:
        code = kind | flags << 8 | self.host << 16
        self.token_seqs.append(self.router.tokens.publish(t_ns, self.seq, code, index | 20 << 32, gap_ns, 0, 0))
        if flags & TokenFlag.HOST_EVENT:
            self.host_event_seqs.append(self.token_seqs[-1])

    def dispatch(self, t_ns: int, host: int = 1) -> None:
        """Send it to a host: everything of an attempt before is forgotten."""
        self.host = host
        self.attempt_count += 1
        for name in ("admitted", "routed1"):
            self.at[name] = self.at[name] or t_ns
        for name in ("routed", "conn", "sent"):
            self.at[name] = t_ns
        for name in ("hfb", "tok1", "out1", "tokN", "outN"):
            self.at[name] = 0
        self.content_count = self.last_content_ns = self.stall_max_ns = 0
        self.gaps = []
        self._publish(t_ns, Kind.DISPATCHED)

    def event(self, t_ns: int, kind: Kind = Kind.TEXT) -> None:
        """Take one event of the host's stream."""
        self.at["hfb"] = self.at["hfb"] or t_ns
        gap_ns = 0
        if kind in CONTENT:
            if self.last_content_ns:
                gap_ns = t_ns - self.last_content_ns
                self.gaps.append(gap_ns)
                self.stall_max_ns = max(self.stall_max_ns, gap_ns)
            else:
                self.at["tok1"] = self.at["out1"] = t_ns
            self.last_content_ns = self.at["tokN"] = self.at["outN"] = t_ns
            self.content_count += 1
        self._publish(t_ns, kind, TokenFlag.HOST_EVENT, gap_ns, self.event_count)
        self.event_count += 1
        self.host_end_ns = t_ns

    def tell(self, t_ns: int, kind: Kind) -> None:
        """Record a turn of its life."""
        self._publish(t_ns, kind)

    def fail_attempt(self, t_ns: int, error: int, status: int = 0) -> None:
        """Its attempt failed; a further :meth:`dispatch` may follow."""
        self._publish(t_ns, Kind.ATTEMPT_FAILED)
        at = self.at
        self.failed.append((self.host, error, status, at["routed"], at["conn"], at["sent"], at["hfb"], t_ns))

    def fields(self) -> dict[str, Any]:
        """Return the fields of its record so far."""
        return {
            "request_seq": self.seq,
            "stamps": tuple(self.at.values()),
            "host": self.host,
            "model": 1,
            "endpoint": rec.Endpoint.CHAT,
            "attempt_count": self.attempt_count,
        }

    def show(self, row: int, phase: rec.Phase = rec.Phase.DECODE) -> None:
        """Show it in the in-flight table."""
        payload = done_records.payload(**self.fields(), phase=phase)
        head, identity = rec.HEAD.unpack_from(payload), payload[rec.IDENTITY_OFFSET :]
        self.router.inflight.write(row, rec.HEAD.pack(*head) + bytes(rec.IDENTITY_OFFSET - rec.REST_OFFSET) + identity)

    def end(self, t_ns: int) -> None:
        """End it: its last token record."""
        self.at["done"] = t_ns
        self._publish(t_ns, Kind.DONE)

    def record(self, **given: Any) -> None:
        """Write its done record."""
        values = self.fields() | {
            "outcome": rec.Outcome.OK,
            "flags": rec.DoneFlag.STREAM,
            "n_out": self.content_count,
            "n_first": min(1, self.content_count),
            "n_events": self.event_count,
            "n_content": self.content_count,
            "stall_max_ns": self.stall_max_ns,
            "failed_attempts": self.failed[-rec.FAILED_ATTEMPT_COUNT :],
        }
        self.done_seq = self.router.done.publish_record(done_records.payload(**values | given))

    def finish(self, t_ns: int, **given: Any) -> None:
        """End it and write its done record."""
        self.end(t_ns)
        self.record(**given)
