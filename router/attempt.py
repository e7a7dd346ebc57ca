"""The token path: one attempt at one host, from the request written to the last event relayed.

A read of the host's socket is scanned once, written to the client at once, and only then recorded: one time, one write,
one record per event. Nothing else happens per token.

Until the first content event nothing is written (the commit point): the answer's head and its role-only events are
held, so that a failure can be retried at another host without the client knowing.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, cast

from router import native
from router.answers import answers
from router.dialects import in_stream
from router.errors import ErrorKind
from router.hosts.events import EventScanner, StreamError
from router.hosts.fold import Fold, FoldError
from router.hosts.foreign import ForeignScanner, is_event_stream, is_json_lines, whole_report
from router.hosts.native_scan import same_token
from router.hosts.scanner import StreamScanner
from router.hosts.whole import error_text, report_of
from router.http1 import BodyDecoder, Head, ProtocolError
from router.mould import mould
from router.stamps import EARLY_WINDOW_NS
from router.telemetry.records import DoneFlag, Endpoint, Phase
from router.telemetry.writer import pack_candidates
from router.token_state import ANSWER_CAME, record_events

if TYPE_CHECKING:
    from router.hosts.connection import HostConnection
    from router.hosts.host import Host
    from router.loop import Loop
    from router.request import CountingEgress, Request

_relay: Final = native.relay and native.relay.relay
_answers: Final = answers
_EVENT_STREAM: Final = b"text/event-stream"
_PASSED_HEADERS: Final = (b"content-encoding", b"location")
"""Of a whole answer in another dialect: without them its bytes would mean something else."""
# The interpreter looks members of an enum up anew each time.
_PREFILL, _DECODE = Phase.PREFILL, Phase.DECODE
_CALLS_TOOLS: Final = int(DoneFlag.CALLS_TOOLS)


class Attempt:
    """One attempt. ``over`` is set when its outcome is known; whatever the host still sends is then ignored."""

    __slots__ = (
        "_answer",
        "_content_type",
        "_counting",
        "_decoder",
        "_early_end_ns",
        "_fold",
        "_held",
        "_host_bits",
        "_keep_alive",
        "_live",
        "_loop",
        "_native_publish",
        "_publish",
        "_relaying",
        "_token_bits",
        "connection",
        "drop_progress",
        "drop_usage",
        "host",
        "last_read_ns",
        "on_kept_connection",
        "over",
        "passed_headers",
        "request",
        "retry_after",
        "scanner",
        "status",
    )

    def __init__(self) -> None:
        """Begin as all begin; :meth:`of` says whose it is."""
        nothing: Any = None
        self._loop: Loop = nothing
        self._publish: Callable[..., int] = nothing
        self._native_publish: object = None
        self._host_bits = 0
        self._token_bits = 0
        """The third word of the record of one more token like the last."""
        self._held = b""
        self._keep_alive = True
        self._live = False
        self._relaying = False
        self._early_end_ns = 0
        self._content_type = b""
        self._counting: CountingEgress | None = None
        self._answer: bytearray | None = None
        self._decoder: BodyDecoder | None = None
        self._fold: Fold | None = None
        self.request: Request = nothing
        self.host: Host = nothing
        self.connection: HostConnection | None = None
        self.scanner: EventScanner | None = None
        self.status = 0
        self.retry_after = b""
        """The host's own ``retry-after``, which clients obey."""
        self.passed_headers = b""
        """Header lines of an answer in another dialect that go to the client."""
        self.over = False
        self.on_kept_connection = False
        self.last_read_ns = 0
        self.drop_usage = False
        self.drop_progress = False

    @staticmethod
    def of(loop: Loop, request: Request, host: Host) -> Attempt:
        """Return the attempt of a request at a host."""
        self = _new_attempt()
        self._loop = loop
        self._publish = loop.telemetry.publish_token
        self._native_publish = loop.telemetry.native_publish
        self._host_bits = host.host_id << 16
        self.request = request
        self.host = host
        return self

    # ------------------------------------------------------------ the request goes out
    def start(self, connection: HostConnection, data: bytes, now: int) -> None:
        """Send the request on a connection in hand."""
        request = self.request
        self.connection = connection
        self.on_kept_connection = connection.used or connection.idle_since > 0
        self.last_read_ns = now
        request.conn_ns = now
        request.check_ns = 0  # another time-out holds from here on
        request.phase = _PREFILL
        connection.attempt = self
        connection.transport.write(data)  # type: ignore[union-attr]  # a connection in hand has one
        if not connection.blocked:
            request.sent_ns = self.last_read_ns = monotonic_ns()

    def request_written(self, now: int) -> None:
        """The last byte of the request is in the socket."""
        if not self.request.sent_ns:
            self.request.sent_ns = now
            self.last_read_ns = now

    # ------------------------------------------------------------ the answer comes in
    def read_ns(self) -> int:
        """Return when the host's last bytes were read."""
        return max(self.last_read_ns, self.request.tok_n)  # tokens store one time, not two

    def first_byte(self, now: int) -> None:
        """The host has begun to answer."""
        if not self.request.hfb:
            self.request.hfb = now
        self.last_read_ns = now

    def begin(self, head: Head, decoder: BodyDecoder) -> Callable[[bytes, int], None]:
        """Take the response head; return where body bytes go."""
        self.status = head.status
        self._keep_alive = head.keep_alive
        self._decoder = decoder
        if head.route is None:
            head.route = _answer_facts(head)
        self._content_type, streamed, self.retry_after = head.route
        request = self.request
        if request.path:
            return self._begin_foreign(head, decoder)
        if head.status != 200 or not streamed or not (request.stream or request.fold):
            return self._take_whole
        if request.fold:
            self._fold = Fold(chat=request.endpoint == Endpoint.CHAT, answer_bytes_max=self._loop.limits.answer_bytes)
        elif request.egress.counts_events:
            self._counting = cast("CountingEgress", request.egress)
        raw = request.egress.raw and not request.fold
        scanner = StreamScanner.of(decoder, raw, self.drop_usage, self.drop_progress, self._loop.limits.event_bytes)
        if request.fold:
            scanner.payloads = []
        self.scanner = scanner
        # What is not relayed natively is relayed by _take_stream; the first read of either is none that it would relay.
        return self._take_stream if _relay is None or self._counting is not None else self._take_read

    def _begin_foreign(self, head: Head, decoder: BodyDecoder) -> Callable[[bytes, int], None]:
        """Begin to relay an answer that passes through: what comes decides how, whatever was asked for."""
        request = self.request
        lines = is_json_lines(self._content_type)
        self.passed_headers = b"".join(b"%b: %b\r\n" % (n, v) for n in _PASSED_HEADERS if (v := head.headers.get(n)))
        if self.status != 200 or not (lines or is_event_stream(self._content_type)):
            return self._take_whole
        if request.committed and lines:  # a heartbeat has promised server-sent events
            return self._take_whole
        self.scanner = ForeignScanner(
            decoder, raw=request.egress.raw, lines=lines, event_bytes_max=self._loop.limits.event_bytes
        )
        return self._take_stream

    def _take_stream(self, data: bytes, now: int) -> None:
        """Relay one read of a stream. This is the path of every token: one function, since each more is memory that a
        token must find cold.
        """
        scanner = self.scanner
        assert scanner is not None
        if not (self._relaying and scanner.aligned and (size := same_token(data, scanner.prefix, scanner.suffix))):
            self._take_read(data, now)
            return
        request = self.request
        egress = request.egress
        if self._counting is None:
            request.bytes_out += len(data)
            egress.write(data)
        else:
            request.bytes_out += size
            self._counting.write_event(scanner.code, now, data[-size - 2 : -2])
        written = monotonic_ns()
        gap = now - request.tok_n
        index = request.event_index
        unsent = self._unsent(request) if egress.blocked else 0
        self._publish(now, request.seq, self._token_bits, index | size << 32, gap, unsent, 0)
        request.event_index = index + 1
        request.content_count += 1
        request.tok_n = now
        scanner.misses = 0
        if not unsent:
            request.out_n = written
        if gap > request.stall_max_ns:  # noqa: PLR1730 - max() is a call, and this runs per token
            request.stall_max_ns = gap
        if now <= self._early_end_ns:
            request.early_tokens += 1
            if not unsent and written <= request.recv + EARLY_WINDOW_NS:
                request.visible_tokens += 1

    def _take_read(self, data: bytes, now: int) -> None:
        """Relay a read that is anything but one more token like the last."""
        if _answers is None or not _answers.take(self, data, now):
            self._scan_read(data, now)

    def _scan_read(self, data: bytes, now: int) -> None:
        scanner = self.scanner
        assert scanner is not None
        self.last_read_ns = now
        try:
            out = scanner.feed(data)
        except (StreamError, ProtocolError) as error:
            self._record(now, now)  # the events before the fault did come
            self.protocol_failed(str(error), now)
            return
        self._take_scanned(out, now)

    def _take_scanned(self, out: bytes, now: int) -> None:
        """Relay what the scanner has made of a read: ``out`` is what the client gets of it."""
        scanner = self.scanner
        assert scanner is not None
        if scanner.sentinel is not None or (not scanner.aligned and scanner.ended):  # one that has ended is not aligned
            self._take_last(out, now)
            return
        if self._counting is not None:
            self._counting.note(scanner.events, now)
        if self._live:
            if out:
                request = self.request
                request.bytes_out += len(out)
                request.egress.write(out)
            self._record(now, monotonic_ns())
        else:
            self._take_early(out, now)

    def _unsent_now(self) -> int:
        return self._unsent(self.request)

    def _unsent(self, request: Request) -> int:
        """Return what waits for the client's socket; when it is too much, the host is read no further."""
        unsent = request.egress.unsent_bytes()
        if unsent > self._loop.limits.client_buffer_bytes and not request.host_paused:
            self._loop.clients.pause_host(request)
        return unsent

    def _record(self, now: int, written: int) -> None:
        """Publish one record for each event of a read, after its bytes went to the client."""
        scanner, request = self.scanner, self.request
        assert scanner is not None
        is_blocked = request.egress.blocked
        taken_ns = 0 if is_blocked or request.fold else written
        came = record_events(
            request, scanner.events, self._publish, self._native_publish, request.seq, self._host_bits, now,
            self._unsent(request) if is_blocked else 0, taken_ns, self._early_end_ns, request.recv + EARLY_WINDOW_NS,
        )  # fmt: skip
        if came:
            if not request.tok1:
                self._first_content(now)
            if came & ANSWER_CAME and not request.ttfo:
                request.ttfo = now
            if taken_ns and not request.out1:
                request.out1 = taken_ns
        if scanner.lesson is not None:
            scanner.learn()
        self._token_bits = scanner.code | self._host_bits

    def _first_content(self, now: int) -> None:
        request = self.request
        request.tok1 = now
        if request.ask is not None:
            request.ask.policy.first_token(self.host.host_id, request.ask, now - (request.sent_ns or request.conn_ns))
        if request.model.forecast is not None:
            request.model.forecast.note_first(now - (request.sent_ns or request.conn_ns), now, whole=False)
        self._early_end_ns = now + EARLY_WINDOW_NS
        if self._live:  # there will be no further attempt
            if request.candidates:
                pack_candidates(request)
            request.let_go()
        request.phase = _DECODE
        request.check_ns = 0  # another time-out holds from here on

    # ------------------------------------------------------------ before the commit point
    def _take_early(self, out: bytes, now: int) -> None:
        scanner, request = self.scanner, self.request
        assert scanner is not None
        if scanner.first_choices and not request.ttfc:
            request.ttfc = now
        if scanner.error is not None and not scanner.content_count:
            self._record(now, now)
            self._fail(ErrorKind.HOST_ERROR_EVENT, error_text(scanner.error), now)
            return
        if self._fold is not None:
            self._fold_events(now)
            return
        self._held = self._held + out if self._held else out
        if scanner.content_count or scanner.finish_count or len(self._held) > self._loop.limits.held_bytes:
            self._commit()
        self._record(now, monotonic_ns())
        if self._relaying and _relay is not None and self._counting is None:
            self._relay_natively()

    def _relay_natively(self) -> None:
        """Have further reads relayed by native code, which gives those to this attempt that are not one more token."""
        request = self.request
        assert self.connection is not None
        self.connection.take = _relay(
            request, self.scanner, request.egress.write, self._publish, self._native_publish,
            self._take_read, self._unsent_now, request.seq, self._host_bits, self._early_end_ns,
            request.recv + EARLY_WINDOW_NS,
        )  # fmt: skip

    def _commit(self) -> None:
        """Write the head and everything held: from here on the answer is this host's."""
        held, self._held = self._held, b""
        self._live = True
        request = self.request
        self._relaying = (request.egress.raw or self._counting is not None) and not request.path
        if request.path:
            self._settle_foreign()
        if request.committed:  # a heartbeat has sent the head
            if held:
                request.bytes_out += len(held)
                request.egress.write(held)
            return
        request.status = 200
        request.egress.begin_stream(request, held, self._content_type)
        request.committed = True

    def _settle_foreign(self) -> None:
        """From here on the client's answer is a stream of this format."""
        request = self.request
        lines = is_json_lines(self._content_type)
        request.stream = True
        request.comments = not lines
        request.timing_asked = request.timing_asked and not lines
        request.dialect = in_stream(request.dialect, lines=lines)

    def _fold_events(self, now: int) -> None:
        scanner = self.scanner
        assert scanner is not None
        assert scanner.payloads is not None
        assert self._fold is not None
        try:
            for payload in scanner.payloads:
                self._fold.add(payload)
        except FoldError as error:
            self._record(now, now)
            self._fail(ErrorKind.ANSWER_TOO_LARGE if error.too_large else ErrorKind.HOST_PROTOCOL, str(error), now)
            return
        scanner.payloads.clear()
        self._record(now, now)

    # ------------------------------------------------------------ the end of a stream
    def _take_last(self, out: bytes, now: int) -> None:
        """Relay the read that ends the stream: ``[DONE]``, or the end of the body without one."""
        scanner, request = self.scanner, self.request
        assert scanner is not None
        if scanner.sentinel is None:
            out += scanner.finish()
        if scanner.first_choices and not request.ttfc:
            request.ttfc = now
        if self._counting is not None:
            self._counting.note(scanner.events, now)
        if scanner.error is not None and not self._live and not scanner.content_count:
            self._record(now, now)
            self._fail(ErrorKind.HOST_ERROR_EVENT, error_text(scanner.error), now)
            return
        if self._fold is not None:
            self._end_fold(now)
            return
        if not scanner.succeeded and scanner.error is None:
            self._end_without_finish(out, now)
            return
        if not self._live:
            self._held += out
            out = b""
            self._commit()
        request.usage, request.timings, request.metrics = scanner.usage, scanner.timings, scanner.metrics
        request.choice_count = scanner.choice_count
        if request.timing_asked or self._counting is not None:
            self._record(now, now)  # what is said of the timing goes out with the last write
        request.egress.end_stream(request, out, scanner.sentinel or b"")
        self._record(now, monotonic_ns())
        self.complete(now)
        if scanner.error is not None:
            self._loop.end_with_host_error(request, error_text(scanner.error), now)
        else:
            self._loop.end_ok(request, now)

    def _end_without_finish(self, out: bytes, now: int) -> None:
        """The body ended, but no choice has a finish_reason: whatever it looks like, it is not complete."""
        if self._live and out:
            self.request.bytes_out += len(out)
            self.request.egress.write(out)
        self._record(now, monotonic_ns())
        self._fail(ErrorKind.NO_FINISH, "the host ended its stream without a finish_reason", now)

    def _end_fold(self, now: int) -> None:
        scanner, request = self.scanner, self.request
        assert scanner is not None
        assert self._fold is not None
        self._fold_events(now)
        if self.over:
            return
        if scanner.error is not None:
            self._fail(ErrorKind.HOST_ERROR_EVENT, error_text(scanner.error), now)
            return
        if not scanner.succeeded:
            self._fail(ErrorKind.NO_FINISH, "the host ended its stream without a finish_reason", now)
            return
        request.usage, request.timings, request.metrics = scanner.usage, scanner.timings, scanner.metrics
        request.choice_count = scanner.choice_count
        request.folded = True
        body = self._fold.answer()
        request.status = 200
        request.egress.whole(request, 200, b"application/json", body)
        self.complete(now)
        self._loop.end_ok(request, now)

    # ------------------------------------------------------------ whole answers
    def _take_whole(self, data: bytes, now: int) -> None:
        """Collect an answer that is not a stream, or an error of the host."""
        decoder = self._decoder
        assert decoder is not None
        self.last_read_ns = now
        try:
            part = decoder.feed(data)
        except ProtocolError as error:
            self.protocol_failed(str(error), now)
            return
        limit = self._loop.limits.answer_bytes
        if len(part) + (0 if self._answer is None else len(self._answer)) > limit:
            self._fail(ErrorKind.ANSWER_TOO_LARGE, f"the host's answer exceeds {limit} bytes", now)
        elif decoder.ended:
            self._end_whole(part if self._answer is None else bytes(self._answer + part), now)
        elif self._answer is None:
            self._answer = bytearray(part)
        else:
            self._answer += part

    def _end_whole(self, body: bytes, now: int) -> None:
        request = self.request
        passes = bool(request.path)
        if self.status != 200 and not (passes and 200 <= self.status < 300):
            self._loop.recovery.host_status(self, self.status, self._content_type, body, now)
            return
        if request.committed:  # a heartbeat promised a stream, and the host sends none
            self._fail(ErrorKind.HOST_PROTOCOL, "the host answered a request for a stream with a whole answer", now)
            return
        if passes:
            request.stream = False  # whatever was asked for
            request.usage, request.timings, request.metrics = whole_report(body)
        else:
            request.usage, request.timings, request.metrics, request.choice_count, calls_tools = report_of(body)
            if calls_tools:
                request.flags |= _CALLS_TOOLS
        request.tok1 = request.tok_n = request.ttfc = request.ttfo = now
        if request.model.forecast is not None:
            request.model.forecast.note_first(now - (request.sent_ns or request.conn_ns), now, whole=True)
        request.status = self.status
        request.egress.whole(request, self.status, self._content_type, body, self.passed_headers)
        self.complete(now)
        self._loop.end_ok(request, now)

    # ------------------------------------------------------------ endings
    def complete(self, now: int) -> None:
        """The host's part is done: free its slot and its connection before anything else."""
        self.over = True
        connection, self.connection = self.connection, None
        decoder = self._decoder
        streamed = self.scanner is not None
        if connection is not None:
            reusable = self._keep_alive and (self.host.facts.reuse_after_stream or not streamed)
            connection.release(decoder, reusable=reusable)
        request = self.request
        if request.ask is not None:
            request.ask.policy.ended(self.host.host_id, request.ask)
        if request.model.forecast is not None:
            request.model.forecast.note_held(now - request.routed, now)
        self._loop.release_slot(self.host, now)

    def take_connection(self) -> HostConnection | None:
        """Give the connection up to whoever ends the attempt."""
        self.over = True
        connection, self.connection = self.connection, None
        return connection

    def host_ended(self, now: int) -> None:
        """The host closed the connection."""
        if self.over:
            return
        decoder = self._decoder
        self.connection = None
        if self.scanner is None and decoder is None:
            self._loop.recovery.closed_before_answer(self, now)
            return
        framed = decoder is not None and decoder.length_is_framed
        if self.scanner is not None:
            self._stream_cut(now, framed=framed)
        elif framed:
            self._fail(ErrorKind.HOST_CLOSED, "the host closed the connection in the middle of its answer", now)
        else:
            self._end_whole(bytes(self._answer or b""), now)

    def _stream_cut(self, now: int, *, framed: bool) -> None:
        """The connection ended before the body did, or with it where there is no framing."""
        scanner = self.scanner
        assert scanner is not None
        whole = scanner.succeeded and scanner.finish_count >= self.request.choices_asked
        if whole or scanner.error is not None or not framed:
            self._take_last(b"", now)
            return
        self._record(now, now)
        self._fail(ErrorKind.HOST_CLOSED, "the host closed the connection in the middle of its answer", now)

    def protocol_failed(self, text: str, now: int) -> None:
        """The host's bytes make no sense."""
        self._fail(ErrorKind.HOST_PROTOCOL, text, now)

    def fault(self, now: int) -> None:
        """The router itself has failed at this answer."""
        self._loop.recovery.fault(self, now)

    def _fail(self, kind: ErrorKind, text: str, now: int) -> None:
        self._loop.recovery.attempt_failed(self, kind, text, now)

    @property
    def live(self) -> bool:
        """Whether this attempt's bytes are at the client: nothing can be retried any more."""
        return self._live


_new_attempt: Final = mould(Attempt)


def _answer_facts(head: Head) -> tuple[bytes, bool, bytes]:
    """Return the type of an answer's content, whether it is an event stream, and its ``retry-after``."""
    content_type = head.headers.get(b"content-type", b"application/json")
    return content_type, content_type.lower().startswith(_EVENT_STREAM), head.headers.get(b"retry-after", b"")
