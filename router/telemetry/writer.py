"""The router's side of shared memory: every segment it writes, and how a request becomes records.

The router is the only writer of all of them. Layouts: :mod:`router.telemetry.records`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ringbuffer import (
    AppendWriter,
    BroadcastWriter,
    CountersWriter,
    DistinctErrorsWriter,
    GatingConsumer,
    GatingProducer,
    Generation,
    RingError,
    TableWriter,
    find_current,
)
from router import __version__, native
from router.config import Config
from router.config.caches import own_requests_max
from router.request import NO_TERMS, new_request
from router.routing import Reason, explain
from router.telemetry import records as rec
from router.telemetry.change_log import ChangeLog
from router.telemetry.counters import CATALOGUE, Counter
from router.telemetry.decision import pack_verdicts
from router.telemetry.host_report import read_report
from router.telemetry.host_rows import HostRows
from router.telemetry.packing import packer
from router.telemetry.tags import TagReader

if TYPE_CHECKING:
    from router.request import Request


ERRORS_MAX: Final = 256
"""Distinct errors that are kept apart: a handful of kinds for each host and model. Further ones are only counted."""


def cut_utf8(text: str, limit: int) -> tuple[bytes, bool]:
    """Return ``text`` in at most ``limit`` bytes of UTF-8, never cutting a character, and whether it was cut."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit:
        return raw, False
    return raw[:limit].decode("utf-8", "ignore").encode(), True


class Names:
    """Interns values of tags, hosts and models into ids and appends each new one to ``names.tab``."""

    def __init__(self, table: AppendWriter, counters: CountersWriter) -> None:
        self._table = table
        self._counters = counters
        self._ids: dict[tuple[int, str], int] = {}
        self._counts: dict[int, int] = {}

    def intern(self, kind: int, text: str) -> int:
        """Return the id of a value, 1 to 4,096; :data:`records.OTHER_ID` when the bound or the table is reached."""
        found = self._ids.get((kind, text))
        if found is not None:
            return found
        count = self._counts.get(kind, 0) + 1
        raw, cut = cut_utf8(text, rec.NAME_TEXT_BYTES if kind >= rec.NAME_HOST else rec.TEXT_BYTES)
        if cut:
            self._counters.add(Counter.TAGS_CUT)
            return self.intern(kind, raw.decode())
        full = count > rec.VALUES_PER_TAG_MAX
        if full or self._table.append(rec.NAME.pack(kind, count, len(raw), raw)) < 0:
            self._counters.add(Counter.TAGS_CUT)
            return rec.OTHER_ID  # not remembered: the dictionary stays bounded
        self._counts[kind] = count
        self._ids[kind, text] = count
        return count


class Telemetry:
    """Creates the segments of one generation and writes them."""

    def __init__(self, instance_dir: Path, config: Config, *, lock: int = -1) -> None:
        """``lock`` is that of the instance where the router before this one hands over: then readers find this one's
        segments only when it says ``generation.activate()``.
        """
        before = _current(instance_dir)
        self.generation = Generation.create(instance_dir, lock=lock)
        path = self.generation.path
        rings = config.rings
        schema = rec.RECORD_SCHEMA
        self.requests = GatingProducer.create(
            path / "requests.ring",
            slot_count=rings.requests,
            slot_size=64,
            record_schema=schema,
            name="requests",
            consumers_max=1,  # the loop: anybody else who registered and then died would fill the ring
        )
        self.loop_reader = GatingConsumer.register(path / "requests.ring", "loop")
        self.tokens = BroadcastWriter.create(
            path / "tokens.ring",
            slot_count=rings.tokens,
            slot_size=rec.TOKENS_SLOT_BYTES,
            record_schema=schema,
            name="tokens",
        )
        self.done_ring = BroadcastWriter.create(
            path / "done.ring", slot_count=rings.done, slot_size=rec.DONE_SLOT_BYTES, record_schema=schema, name="done"
        )
        in_flight_max = config.limits.in_flight + own_requests_max(config.cache)
        self.inflight = TableWriter.create(
            path / "inflight.tab",
            row_count=in_flight_max,
            row_size=rec.DONE_SLOT_BYTES,
            record_schema=schema,
            name="inflight",
        )
        names = AppendWriter.create(
            path / "names.tab", row_count=rings.names, row_size=rec.NAME_ROW_BYTES, record_schema=schema, name="names"
        )
        self._tags = TagReader(config.tags.own)
        self.counters = CountersWriter.create(path / "counters", CATALOGUE)
        self.errors = DistinctErrorsWriter.create(path / "errors", row_count=ERRORS_MAX, name="errors")
        self.names = Names(names, self.counters)
        self.host_rows = HostRows(path)
        self.changes = ChangeLog(path)
        self.changes.begin(config, before, __version__, time.monotonic_ns())
        self._segments = (
            self.requests, self.tokens, self.done_ring, self.inflight, names, self.counters, self.errors,
            self.host_rows.table,
        )  # fmt: skip
        self.free_rows = list(range(in_flight_max - 1, -1, -1))
        """Those of the in-flight table that no request has; :meth:`done` gives a request's back."""
        for position, own in enumerate(config.tags.own):
            self.names.intern(rec.NAME_OWN_TAG, own)
            assert position < rec.OWN_TAG_COUNT
        self.publish_token = self.tokens.publish
        self.native_publish = self.tokens.native_publish()
        """The same for native code; ``None`` where all records must go through ``publish_token``."""
        self.beat(time.monotonic_ns())
        if lock < 0:
            self.generation.activate()

    def beat(self, now_ns: int) -> None:
        """Store the heartbeat of every segment: the loop is making progress."""
        for segment in self._segments:
            segment.beat(now_ns)

    def close(self) -> None:
        """Release the segments; the files stay for readers and for the post-mortem."""
        self.loop_reader.close()
        for segment in self._segments:
            segment.close()
        self.generation.close()

    # ------------------------------------------------------------ one request
    def identify(self, request: Request) -> bytes:
        """Pack what never changes of a request: tag ids by position, the four text tags, the caller's trace.

        Requests with the same head and no tags in their bodies differ in their ids only: the rest is packed once.
        """
        fields, known = request.fields, request.identities
        if known is None or fields.user or fields.metadata:
            request.identity = self._packed_identity(request)[0]
            return request.identity
        around = known.get(request.model.name)
        request_id = request.request_id.encode("utf-8", "replace")
        if around is None or len(request_id) > rec.TEXT_BYTES:
            request.identity, is_exact = self._packed_identity(request)
            if is_exact:
                known[request.model.name] = request.identity[:_ID_START], request.identity[_ID_END:]
        else:
            request.identity = around[0] + request_id.ljust(rec.TEXT_BYTES, b"\0") + around[1]
        return request.identity

    def _packed_identity(self, request: Request) -> tuple[bytes, bool]:
        """Return the identity, and whether all of it is as given: what is cut or folded is counted each time."""
        fields = request.fields
        cut_count = self.counters.get(Counter.TAGS_CUT)
        tags = self._tags.read(request.headers, request.model.name, request.request_id, fields.user, fields.metadata)
        ids = [0] * rec.TAG_SLOT_COUNT
        for position, value in tags.ids.items():
            ids[position] = self.names.intern(position, value)
        texts = []
        for text in tags.texts:
            value_bytes, cut = cut_utf8(text, rec.TEXT_BYTES)
            if cut:
                self.counters.add(Counter.TAGS_CUT)
            texts.append(value_bytes)
        is_exact = self.counters.get(Counter.TAGS_CUT) == cut_count
        return rec.IDENTITY.pack(*ids, *texts, *tags.trace), is_exact

    def user_of(self, request: Request) -> str:
        """Return the tag ``user_id`` of a request, empty without one."""
        identity = request.identity or self.identify(request)
        return identity[_USER_START : _USER_START + rec.TEXT_BYTES].rstrip(b"\0").decode("utf-8", "replace")

    def show_phase(self, request: Request) -> None:
        """Show where a request is in the in-flight table, if it is not shown yet."""
        if request.shown_phase == request.phase:
            return
        request.shown_phase = request.phase
        if not request.identity:
            self.identify(request)
        self.inflight.write(request.row, row_packer.pack(request))

    def event(self, now: int, request: Request, kind: int, gap_ns: int = 0) -> None:
        """Publish a token record of the request's life (not of a host's event)."""
        self.publish_token(now, request.seq, kind | request.host << 16, request.event_index, gap_ns, 0, 0)

    def done(self, request: Request) -> None:
        """Publish the done record and clear the in-flight row."""
        try:
            self._complete(request)
            self.done_ring.publish_record(_done.pack(request))
        finally:
            if request.row >= 0:
                self.inflight.clear(request.row)
                self.free_rows.append(request.row)
                request.row = -1

    def _complete(self, request: Request) -> None:
        """Make the parts of the done record that are not as they stand in the request."""
        packed = None
        if (
            _pack_usage is not None
            and request.usage is not None
            and request.timings is None
            and request.metrics is None
        ):
            packed = _pack_usage(request.usage)
        if packed is None:
            _pack_report(request)
        else:
            request.packed_tokens = packed
        if request.candidates:
            pack_candidates(request)
        if request.failed_attempts:
            last = request.failed_attempts[-rec.FAILED_ATTEMPT_COUNT :]
            request.packed_attempts = b"".join([rec.FAILED_ATTEMPT.pack(*attempt) for attempt in last])
        if request.message:
            request.packed_message = cut_utf8(request.message, rec.MESSAGE_BYTES)[0]
        if not request.identity:
            self.identify(request)
        if request.terms is not NO_TERMS or request.ask is not None or request.detour is not None:
            request.packed_decision = _decision(request)


def _pack_report(request: Request) -> None:
    """Pack what the host has said of a request, whatever it has said."""
    report = read_report(request.usage, request.timings, request.metrics)
    n_out = report.n_out
    if not report.has_usage:
        n_out = request.content_count
        request.flags |= _ESTIMATED
    request.packed_tokens = rec.TOKENS.pack(report.n_in, n_out, report.n_cached, report.n_reasoning, 1 if n_out else 0)
    if report.source:
        request.packed_times = rec.HOST_TIMES.pack(
            report.prompt_ms, report.predicted_ms, report.queue_ms, report.ttft_ms,
            report.cache_n, report.prompt_n, report.predicted_n, report.source,
        )  # fmt: skip


def _current(instance_dir: Path) -> Path | None:
    """Return the directory of the life before this one."""
    try:
        return find_current(instance_dir)
    except RingError:
        return None


def _decision(request: Request) -> bytes:
    """Pack what was decided about a request, beyond which host got it."""
    terms, ask, detour = request.terms, request.ask, request.detour
    levered, predicted_us, prefix_tokens = terms.levered, terms.predicted_ttft_us, 0
    noted = rec.DECISION.unpack(request.packed_decision)[_NOTED_FIRST:] if request.packed_decision else _NOTHING_NOTED
    if ask is not None:
        prefix_tokens = min(ask.held_tokens, _U32)
        predicted_us = predicted_us or min(ask.predicted_ttft_ns // 1000, _U32)
    return rec.DECISION.pack(
        terms.deadline_ns,
        predicted_us,
        prefix_tokens,
        min(levered.asked_max_tokens, _U32) if levered is not None else 0,
        min(max(levered.asked_temperature, -_F32), _F32) if levered is not None else 0.0,
        terms.key_id,
        terms.asked_model or (detour.asked.model_id if detour is not None else 0),
        terms.workload,
        levered.flags if levered is not None else 0,
        *noted,
    )


_NOTED_FIRST: Final = [name for name, _, _ in rec.DECISION_FIELDS].index("tool_count")
"""From here on the decision is what :mod:`router.telemetry.decision` has noted."""
_NOTHING_NOTED: Final = (0,) * (len(rec.DECISION_FIELDS) - _NOTED_FIRST)
_U32: Final = 0xFFFFFFFF
_F32: Final = 3.0e38
"""Near the most that a record's field holds."""
_USER_START: Final = 2 * rec.TAG_SLOT_COUNT + rec.TEXT_BYTES * rec.TEXT_TAGS.index("user_id")
_ID_START: Final = 2 * rec.TAG_SLOT_COUNT + rec.TEXT_BYTES * rec.TEXT_TAGS.index("request_id")
_ID_END: Final = _ID_START + rec.TEXT_BYTES
"""Where the request's id stands in the identity."""
_pack_usage: Final[Callable[[bytes], bytes | None] | None] = native.scan and native.scan.pack_usage
"""Packs usage of the usual shape as :func:`_pack_report` does, of any other returns ``None``."""
_ESTIMATED: Final = int(rec.DoneFlag.N_OUT_ESTIMATED)
_UNHEALTHY, _PINNED = int(Reason.UNHEALTHY), int(Reason.PINNED)
row_packer: Final = packer(rec.DONE_PAYLOAD_BYTES, rec.INFLIGHT_SOURCE, new_request())
_done: Final = packer(rec.DONE_PAYLOAD_BYTES, rec.DONE_SOURCE, new_request())


def pack_candidates(request: Request) -> None:
    """Pack the candidates of a request's routing, the chosen one first, and let them go: there may be many hosts."""
    if not request.candidates or request.chosen < 0:
        return
    ask = request.ask
    verdicts = explain(request.candidates, request.chosen) if ask is None else ask.verdicts
    bars = {}
    if any(reason == _UNHEALTHY for _, reason, _ in verdicts):
        bars = {host.host_id: host.bar for host in request.model.hosts}
    if request.terms.pin:
        verdicts = [(verdicts[0][0], _PINNED, verdicts[0][2]), *verdicts[1:]]
    request.packed_candidates = pack_verdicts(verdicts, bars)
    request.candidates = ()
