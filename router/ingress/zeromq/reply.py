"""The answer to one request over ZeroMQ, with its credit."""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

import msgspec

from router.errors import UNDECODABLE, WIRE, ErrorKind, error_object
from router.ingress.zeromq import messages
from router.ingress.zeromq.messages import CREDIT_MAX, Mark
from router.stamps import STAMPS
from router.telemetry.records import Kind, TokenFlag
from router.telemetry.tcp import NO_TCP_INFO

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from router.dialects import Failure
    from router.ingress.zeromq.server import ZmqClient, ZmqServer
    from router.request import Request

_NOT_FORWARDED: Final = int(TokenFlag.REMOVED) << 8
_SENTINEL: Final = int(Kind.SENTINEL)
_ERROR_TEXT_BYTES_MAX: Final = 200
_RETRY_AFTER_S_MAX: Final = 86_400
_Message = tuple[bytes, bytes | None]


class Reply:
    """The answer to one request: its egress (:class:`router.request.CountingEgress`)."""

    __slots__ = (
        "_client", "_final", "_head_lines", "_held", "_index", "_marks", "_noted", "_server", "_under_way",
        "blocked", "credit", "request", "request_id",
    )  # fmt: skip

    raw = False
    counts_events = True

    def __init__(self, server: ZmqServer, client: ZmqClient, request_id: str, credit: int) -> None:
        self._server = server
        self._client = client
        self._noted: list[Mark] = []
        """``(kind, t_ns, bytes)`` of events whose bytes are not written yet."""
        self._marks: list[Mark] = []
        """The same of the events in ``_held``."""
        self._held = bytearray()
        """Written, and waiting for credit or for room."""
        self._final: Callable[[], _Message] | None = None
        """Makes the last message, when that is written and waits behind ``_held``."""
        self._head_lines = b""
        """What an HTTP answer's head would have more."""
        self._index = 0
        self._under_way = 0
        self.blocked = False
        self.credit = credit
        self.request_id = request_id
        self.request: Request | None = None

    # ------------------------------------------------------------ egress
    def prepare(self, request: Request) -> None:  # noqa: ARG002 - the interface of Egress
        """A new attempt: what was noted of the one before was never written."""
        self._noted.clear()

    def note(self, events: Sequence[tuple[int, int]], now: int) -> None:
        """Note the events of a read that go to the client."""
        for code, size in events:
            if not code & _NOT_FORWARDED and code & 0xFF != _SENTINEL:
                self._noted.append((code & 0xFF, now, size))

    def write_event(self, code: int, now: int, data: bytes) -> None:
        """Send one event: the path of most tokens."""
        client = self._client
        mark = (code & 0xFF, now, len(data))
        if self.credit and not self.blocked and client.under_way < CREDIT_MAX:
            header = messages.events(self.request_id, self._index, (mark,))
            if self._server.send(client, header, data):
                client.sent_ns = now
                self._index += 1
                self.credit -= 1
                self._under_way += 1
                client.under_way += 1
                return
        self._marks.append(mark)
        self._held += data
        self._block()

    def write(self, data: bytes) -> None:
        """Send events that were noted, as many as credit allows; hold the others."""
        if data:  # an empty write, as the head of a silent stream, is for none of the events that were noted
            self._marks += self._noted
            self._noted.clear()
            self._held += data
            if not self._send_held():
                self._block()

    def begin_stream(self, request: Request, data: bytes, content_type: bytes, extra: bytes = b"") -> None:  # noqa: ARG002
        """Send the first events; there is no head, so that its further lines go with ``done``."""
        self._head_lines = extra
        request.bytes_out += len(data)
        self.write(data)

    def write_comment(self, text: bytes) -> None:
        """Send nothing: ``alive`` messages keep the client waiting."""

    def end_stream(self, request: Request, data: bytes, sentinel: bytes) -> None:  # noqa: ARG002
        """Send the last events, then ``done``."""
        request.bytes_out += len(data)
        self.write(data)
        raw_error = request.attempt.scanner.error
        if raw_error is None:
            self._finish(lambda: (self._done(request), None))
        else:  # the client has it as an event too, which says nothing of the end
            self._finish(lambda: (self.error(WIRE[ErrorKind.HOST_ERROR_EVENT].status), _error_body(raw_error)))

    def break_stream(self, request: Request, failure: Failure) -> None:
        """Send the error behind the events that are complete."""
        self._noted.clear()
        if failure.kind == ErrorKind.SHUTTING_DOWN:  # there is no time to wait for credit
            self._marks.clear()
            self._held.clear()
            self.blocked = False
        status = request.status if request.status >= 400 else WIRE[request.error].status
        error = error_object(failure.kind, failure.message, delivered=failure.content_count)
        self._finish(lambda: (self.error(status), error))

    def whole(self, request: Request, status: int, content_type: bytes, body: bytes, extra: bytes = b"") -> None:  # noqa: ARG002
        """Send a whole answer, or the error of a host."""
        self._head_lines = extra
        request.bytes_out += len(body)
        if status < 300:
            self._finish(lambda: (self._done(request), body))
        else:
            retry_after_s = _retry_after_s(extra)
            self._finish(lambda: (self.error(status, retry_after_s), body))

    def fail(self, request: Request, kind: ErrorKind, message: str, retry_after_s: int) -> None:
        """Send an error of the router."""
        body = error_object(kind, message)
        request.bytes_out += len(body)
        self._finish(lambda: (self.error(WIRE[kind].status, retry_after_s), body))

    def finished(self) -> None:
        """The request is over: its id is free again, and so is its credit."""
        client = self._client
        others_may_wait = client.under_way >= CREDIT_MAX
        client.under_way -= self._under_way
        self._under_way = 0
        self._server.forget(client, self)
        if others_may_wait:
            self._server.flush_soon(client)

    def untaken_bytes(self) -> int:
        """Return how many bytes are held."""
        return len(self._held)

    def unsent_bytes(self) -> int:
        """Return how many bytes are held."""
        return len(self._held)

    def tcp_info(self) -> bytes:
        """Return that there is none: the connection is libzmq's."""
        return NO_TCP_INFO

    def abort(self) -> None:
        """Tell a client that took nothing for too long; it may read that when it reads again."""
        limit = "the client granted no credit for timeouts.client_stall_s"
        header = self.error(WIRE[ErrorKind.CLIENT_STALLED].status)
        self._server.control(self._client, header, error_object(ErrorKind.CLIENT_STALLED, limit))

    def accepted(self, request: Request) -> None:
        """Say that the request is in the ring, before events of an answer that comes in the same turn."""
        self._server.accepted(self._client, request, self.request_id)

    # ------------------------------------------------------------ used by the server
    def grant(self, count: int) -> None:
        """Take credit; the caller flushes then."""
        self.credit += count
        back = min(count, self._under_way)
        self._under_way -= back
        self._client.under_way -= back

    def flush(self) -> None:
        """Send what is held, as far as credit and room reach."""
        if not self.blocked or not self._send_held():
            return
        final, self._final = self._final, None
        if final is not None and not self._server.send(self._client, *final()):
            self._final = final
            return
        self.blocked = False
        self._client.blocked.pop(self, None)
        if self.request is not None:
            self._server.loop.clients.drained(self.request)

    # ------------------------------------------------------------ inside
    def _block(self) -> None:
        if self.blocked:
            return
        self.blocked = True
        self._client.blocked[self] = None
        if self.request is not None:
            self._server.loop.clients.blocked(self.request)

    def _send_held(self) -> bool:
        """Send held events in one message, as many as credit allows; return whether none is left."""
        marks, client = self._marks, self._client
        if not marks:
            return True
        count = min(len(marks), self.credit, CREDIT_MAX - client.under_way)
        if count <= 0:
            return False
        sent = marks[:count]
        size = sum(mark[2] for mark in sent)
        header = messages.events(self.request_id, self._index, sent)
        if not self._server.send(client, header, bytes(self._held[:size])):
            return False
        client.sent_ns = monotonic_ns()
        del self._held[:size]
        del marks[:count]
        self._index += count
        self.credit -= count
        self._under_way += count
        client.under_way += count
        return not marks

    def _finish(self, final: Callable[[], _Message]) -> None:
        """Send the last message, or hold it behind what is held."""
        if not self.blocked and self._server.send(self._client, *final()):
            return
        self._final = final
        self._block()

    def _done(self, request: Request) -> bytes:
        now = monotonic_ns()
        answered = now if request.tok1 else 0
        out_n = 0 if self.blocked else request.out_n  # what was held until now went out now
        stamps = (
            request.recv, request.body_ns, request.pub, request.deq, request.admitted, request.routed1, request.routed,
            request.conn_ns, request.sent_ns, request.hfb, request.tok1, request.out1 or answered, request.tok_n,
            out_n or answered, now,
        )  # fmt: skip
        assert len(stamps) == len(STAMPS)
        return messages.done(
            self.request_id,
            status=request.status,
            host=self._server.host_name(request),
            event_count=self._index,
            usage=_usage(request.usage),
            levers=request.terms.levered.notes if request.terms.levered is not None else (),
            stamps=stamps,
            model=request.model.name if request.detour is not None else "",
            headers=_headers(self._head_lines),
        )

    def error(self, status: int, retry_after_s: int = 0) -> bytes:
        """Return the header of an error that ends this answer."""
        return messages.error(self.request_id, status, retry_after_s, self._index)


def _error_body(raw: bytes) -> bytes:
    """Return the error in a host's stream as the body of an error."""
    try:
        is_object = isinstance(msgspec.json.decode(raw), dict)
    except UNDECODABLE:
        is_object = False
    if is_object:
        return b'{"error":%b}' % raw
    return error_object(ErrorKind.HOST_ERROR_EVENT, raw[:_ERROR_TEXT_BYTES_MAX].decode("utf-8", "replace"))


def _usage(raw: bytes | None) -> Any:
    """Return usage, ``None`` if it cannot be said in MessagePack, which has no integers beyond 64 bits."""
    try:
        usage = msgspec.json.decode(raw) if raw else None
        messages.encode(usage)
    except (*UNDECODABLE, OverflowError, ValueError):
        return None
    return usage


def _headers(lines: bytes) -> dict[str, str]:
    """Return header lines as a map."""
    pairs = (line.partition(": ") for line in lines.decode("latin-1").splitlines())
    return {name: value for name, colon, value in pairs if colon}


def _retry_after_s(extra: bytes) -> int:
    """Return the seconds in a ``retry-after`` header line, 0 without one; a day at most."""
    value = extra.removeprefix(b"retry-after: ").strip()
    return min(int(value[:9]), _RETRY_AFTER_S_MAX) if value.isdigit() else 0
