"""The HTTP ingress: one client connection, from the first byte of a request to the last of its answer.

Requests come one after another on a connection; while one is answered, what the client sends ahead is kept (bounded),
and the socket is always read, so that a client that leaves is noticed in every phase. The end of the client's bytes
during its answer means that it has left: half-closed connections are not supported.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from time import monotonic_ns
from typing import TYPE_CHECKING, Final, cast

from router.dialects import OPENAI, Dialect, Failure, dialect_of
from router.errors import WIRE, ErrorKind, RequestError
from router.http1 import (
    HEAD_END,
    LAST_CHUNK,
    ChunkedDecoder,
    Head,
    ProtocolError,
    chunk,
    declared_length,
)
from router.ingress import heads
from router.ingress.shapes import learn
from router.telemetry.tcp import NO_TCP_INFO, tcp_descriptor, tcp_info

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.ingress.server import HttpServer
    from router.request import Request

_REQUESTS_PER_TURN: Final = 32
"""Requests that are answered at once and sent ahead by the thousand must not hold up the streams of others."""
_JSON: Final = b"application/json"
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""``struct linger`` of socket(7): on, no time."""
_STREAM_START_1_0: Final = b"HTTP/1.1 200 OK\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\nx-request-id: "
_STREAM_START: Final = _STREAM_START_1_0.replace(b"x-request-id", b"transfer-encoding: chunked\r\nx-request-id")

USUAL_SENTINEL: Final = b"data: [DONE]\n\n"
USUAL_END: Final = chunk(USUAL_SENTINEL) + LAST_CHUNK


def _parsed(parse: Callable[[bytes], Head], data: bytes) -> tuple[Head, int, int]:
    """Parse a head that no other resembles; return it with its length (-1: none) and its end."""
    head = parse(data)
    return head, declared_length(head), len(data)


def _drop(data: bytes) -> None:
    """Stand in for the write of a transport that is gone."""


class ClientConnection(asyncio.Protocol):
    """One client. Also the egress of its requests (:class:`router.request.Egress`)."""

    counts_events = False

    __slots__ = (
        "_advancing", "_body", "_body_left", "_buffer", "_chunks", "_close_after", "_descriptor", "_flooded", "_head",
        "_refused", "_server", "_stream_head", "_transport", "blocked", "number", "raw", "recv_ns", "request",
        "request_id", "since_ns", "write",
    )  # fmt: skip

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._head: Head | None = None
        self._body = bytearray()
        self._body_left = 0
        self._chunks: ChunkedDecoder | None = None
        self._close_after = False
        self._stream_head = b""
        self._descriptor = -1
        self._flooded = False
        self._refused = False
        self._advancing = False
        self.request: Request | None = None
        self.request_id = ""
        self.number = 0
        """Which connection of this router it is, counted from 1."""
        self.recv_ns = 0
        self.since_ns = 0
        """When the request now being read began, 0 between requests (then ``recv_ns`` is not in use)."""
        self.raw = True
        self.blocked = False
        self.write: Callable[[bytes], None] = _drop
        """The transport's own write, called without a frame between: this runs per token."""

    # ------------------------------------------------------------ callbacks of the event loop
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept, or refuse over the limit."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by class, only by what it does
        self.write = self._transport.write
        self._transport.set_write_buffer_limits(0, 0)  # whatever a write leaves over is reported at once
        self._descriptor = tcp_descriptor(transport.get_extra_info("socket"))
        if not self._server.accept(self):
            self._refuse(ErrorKind.TOO_MANY_CONNECTIONS, "too many connections (limits.connections)")

    def data_received(self, data: bytes) -> None:
        """Collect requests; while one is answered or the answer not taken, keep what is sent ahead."""
        if self.request is not None or self.blocked or self._refused:
            self._send_ahead(data)
            return
        if not self._buffer and self._head is None:
            try:
                if self._server.intake.take(self, data):
                    return
            except RequestError as error:
                self._server.refuse_known(self, data, error)
                return
            if self._take_at_once(data):
                return
        self._buffer = self._buffer + data if self._buffer else data
        self._advance()

    def eof_received(self) -> bool:
        """The client has left, or ends its side: both cancel what runs for it."""
        self._buffer = b""  # what it has sent ahead is for nobody any more
        if self.request is not None:
            self._server.loop.clients.left(self.request, monotonic_ns())
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the interface of asyncio
        """The connection is gone."""
        request, self.request = self.request, None
        self._transport = None
        self.write = _drop
        self._server.forget(self)
        if request is not None:
            self._server.loop.clients.left(request, monotonic_ns())

    def pause_writing(self) -> None:
        """The client's socket does not take everything."""
        self.blocked = True
        if self.request is not None:
            self._server.loop.clients.blocked(self.request)

    def resume_writing(self) -> None:
        """The client's socket has taken everything."""
        self.blocked = False
        if self.request is not None:
            self._server.loop.clients.drained(self.request)
        else:
            self._advance()

    # ------------------------------------------------------------ a request comes in
    def _send_ahead(self, data: bytes) -> None:
        if self._flooded or self._refused:
            return
        if len(self._buffer) + len(data) > self._server.limits.pipelined_bytes:
            # Reading goes on, because that is how leaving is noticed; the bytes are dropped, so the connection ends
            # with an error once this answer is complete.
            self._flooded = True
            self._buffer = b""
            return
        self._buffer += data

    def _advance(self) -> None:
        """Take as many requests off the buffer as there are, one answer after another."""
        if self._advancing:
            return
        self._advancing = True
        turns = 0
        try:
            while self._may_go_on():
                turns += 1
                if turns > 2 * _REQUESTS_PER_TURN:  # each takes two: head and body
                    self._go_on_later()
                    return
                if self._flooded:
                    limit = self._server.limits.pipelined_bytes
                    self._refuse(
                        ErrorKind.PIPELINE_TOO_LONG, f"more than {limit} bytes were sent ahead (limits.pipelined_bytes)"
                    )
                elif not (self._take_body() if self._head is not None else self._take_head()):
                    break
        finally:
            self._advancing = False
        if (self._buffer or self._head is not None) and not self.since_ns and self._may_go_on():
            self._server.reading(self)  # not all of a request is here: its time-out runs

    def _go_on_later(self) -> None:
        """Let others have their turn; until then no more is read, since nothing runs for this client."""
        assert self._transport is not None
        self._transport.pause_reading()
        asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            self._advance()

    @property
    def idle(self) -> bool:
        """Whether the client is between two requests."""
        return self.request is None and not self.since_ns

    def _may_go_on(self) -> bool:
        """Return whether the next request may be taken: none runs, and the client has taken every answer so far."""
        transport = self._transport
        return self.request is None and not (
            self.blocked or self._refused or transport is None or transport.is_closing()
        )

    def _take_at_once(self, data: bytes) -> bool:
        """Take a read that is one whole request, as most are, without further steps; false for any other."""
        server = self._server
        limits = server.limits
        try:
            taken = server.heads.take(data, 0, limits.head_bytes)
        except ProtocolError:
            return False  # refused on the usual way
        if taken is None:
            return False
        head, length, end = taken
        if len(data) != (end + length if length > 0 else end) or length > limits.body_bytes or head.chunked:
            return False
        self.recv_ns = monotonic_ns()
        self._close_after = not head.keep_alive
        self.raw = head.minor > 0
        route = head.route or server.route(head)
        self.request_id = route.request_id or server.next_id()
        if route.endpoint is not None:
            server.take(self, head, route.endpoint, data[end:])
            if server.intake.may_learn():
                learn(server, self, head, data, end)
        else:
            server.handle(self, head, data[end:])
        return True

    def _take_head(self) -> bool:
        """Take a request head off the buffer; false when it is not complete."""
        buffer = self._buffer
        if not buffer:
            return False
        if not self.since_ns:
            buffer = self._buffer = buffer.lstrip(b"\r\n")  # RFC 9112 §2.2: blank lines before a request line
            if not buffer:
                return False
        limit = self._server.limits.head_bytes
        end = buffer.find(HEAD_END, 0, limit)
        if end < 0:
            if len(buffer) >= limit:
                self._refuse(ErrorKind.HEAD_TOO_LARGE, f"the request head exceeds {limit} bytes (limits.head_bytes)")
            return False
        try:
            head, length, end = self._server.heads.take(buffer, 0, limit) or _parsed(
                self._server.parse, buffer[: end + 4]
            )
        except ProtocolError as error:
            self._refuse(ErrorKind.BAD_REQUEST, f"not an HTTP request: {error}")
            return False
        self.recv_ns = monotonic_ns()
        self._buffer = buffer[end:]
        return self._begin_body(head, length)

    def _begin_body(self, head: Head, length: int) -> bool:
        self._head = head
        self._close_after = not head.keep_alive
        self.raw = head.minor > 0
        route = head.route or self._server.route(head)
        self.request_id = route.request_id or self._server.next_id()
        refusal = route.body_refusal
        if refusal is not None and (head.chunked or length > len(self._buffer)):
            self._refuse_head(head, refusal)  # nobody's body is collected whose request is refused
            return False
        limit = self._server.limits.body_bytes
        if length > limit:
            text = f"the request body has {length} bytes, at most {limit} are allowed (limits.body_bytes)"
            self._refuse(ErrorKind.BODY_TOO_LARGE, text)
            return False
        self._chunks = ChunkedDecoder() if head.chunked else None
        self._body_left = max(length, 0)
        if head.minor and (head.chunked or self._body_left > len(self._buffer)):
            self._answer_expectation(head)
        return True

    def _answer_expectation(self, head: Head) -> None:
        if head.headers.get(b"expect", b"").lower() == b"100-continue":
            self.write(heads.CONTINUE)

    def _take_body(self) -> bool:
        """Take body bytes off the buffer; false when it is not complete."""
        body = self._take_chunked() if self._chunks is not None else self._take_length()
        if body is None:
            return False
        head, self._head = self._head, None
        assert head is not None
        if self.since_ns:
            self.since_ns = 0
            self._server.read_done(self)
        self._server.handle(self, head, body)
        return True

    def _take_length(self) -> bytes | None:
        buffer, left = self._buffer, self._body_left
        if not self._body and len(buffer) >= left:  # the usual case: all of it is here
            self._buffer = buffer[left:]
            return buffer[:left]
        take = buffer[: left - len(self._body)]
        self._body += take
        self._buffer = buffer[len(take) :]
        return self._whole_body() if len(self._body) == left else None

    def _take_chunked(self) -> bytes | None:
        assert self._chunks is not None
        data, self._buffer = self._buffer, b""
        try:
            self._body += self._chunks.feed(data)
        except ProtocolError as error:
            self._refuse(ErrorKind.BAD_REQUEST, f"the chunked body is broken: {error}")
            return None
        limit = self._server.limits.body_bytes
        if len(self._body) > limit:
            self._refuse(ErrorKind.BODY_TOO_LARGE, f"the request body exceeds {limit} bytes (limits.body_bytes)")
            return None
        if not self._chunks.ended:
            return None
        self._buffer = self._chunks.surplus
        return self._whole_body()

    def _whole_body(self) -> bytes:
        body = bytes(self._body)
        self._body.clear()
        return body

    def refuse_slow_head(self, text: str) -> None:
        """The request did not come in in time."""
        self._refuse(ErrorKind.HEAD_TIMEOUT, text)

    def close_idle(self) -> None:
        """Close between two requests; a client that does not take its last answer gets no more of it."""
        if self.blocked:
            self.abort()
        elif self._transport is not None:
            self._transport.close()

    def _refuse(self, kind: ErrorKind, message: str, extra: bytes = b"") -> None:
        """Answer bytes that are no request (or one too large) and end: where the next one begins is unknown.

        Only our side is closed. To close the socket while the client still sends would reset the connection, and the
        reset would take the answer away from the client that has not read it yet.
        """
        dialect = dialect_of(self._head.url.decode("latin-1")) if self._head is not None else OPENAI
        self._server.refused()
        self._close_after = self._refused = True
        self._buffer = b""
        self._body.clear()
        self.error(kind, message, extra=extra, dialect=dialect)
        self.request_id = ""
        if self._transport is not None and self._server.linger(self):
            self._transport.write_eof()
        else:
            self.end()

    def _refuse_head(self, head: Head, error: RequestError) -> None:
        """Refuse a request whose body has not come, as its owner would with the body, and end."""
        self._refuse(error.kind, error.message, self._server.refuse_head(self, head, error))

    def peer_address(self) -> str:
        """Return the address of who is connected, ``unix`` for a process at a socket file, empty where it is not known.

        What is not known must not pass for ``unix``: a connection that was reset has no address, and what it sent
        before can still be read.
        """
        transport = self._transport
        if transport is None:
            return ""
        if transport.get_extra_info("socket").family == socket.AF_UNIX:
            return "unix"
        name = transport.get_extra_info("peername")
        return str(name[0]) if isinstance(name, tuple) else ""

    # ------------------------------------------------------------ answers without a host
    def error(
        self,
        kind: ErrorKind,
        message: str,
        param: str | None = None,
        *,
        retry_after_s: int = 0,
        extra: bytes = b"",
        head_only: bool = False,
        dialect: Dialect = OPENAI,
    ) -> None:
        """Write an error answer in the shape of a dialect; ``extra`` are further header lines."""
        if retry_after_s:
            extra += b"retry-after: %d\r\n" % retry_after_s
        body = dialect.body(Failure(kind, message, self.request_id, param))
        self.answer(WIRE[kind].status, _JSON, body, extra, head_only=head_only)

    def answer(
        self, status: int, content_type: bytes, body: bytes, extra: bytes = b"", *, head_only: bool = False
    ) -> None:
        """Write a whole answer; ``extra`` are further header lines."""
        request_id = b"x-request-id: %b\r\n" % self.request_id.encode("latin-1") if self.request_id else b""
        head = b"%bcontent-type: %b\r\n%b%b%bcontent-length: %d\r\n\r\n" % (
            heads.status_line(status),
            content_type,
            request_id,
            extra,
            self._connection_header(),
            len(body),
        )
        self.write(head if head_only else head + body)

    def end(self) -> None:
        """The answer is written: close if that was the last one."""
        self.request_id = ""
        if self._close_after and self._transport is not None:
            self._transport.close()

    def _connection_header(self) -> bytes:
        return heads.connection_header(1 if self.raw else 0, keep_alive=not self._close_after)

    # ------------------------------------------------------------ egress
    def _write_counted(self, data: bytes) -> None:
        if self.request is not None:
            self.request.bytes_out += len(data)
        self.write(data)

    def prepare(self, request: Request) -> None:
        """Make the constant part of a streamed answer's head while the host works on its first token."""
        if not request.stream:
            return
        if not self.raw:
            self._close_after = True  # HTTP/1.0 has no chunks: the end of the connection ends the answer
        host_id = request.host
        host = heads.host_header(self._server.loop.host_of[host_id].name) if host_id else b""
        start = _STREAM_START if self.raw else _STREAM_START_1_0
        request_id = request.request_id.encode("latin-1")
        close = b"" if self.raw and not self._close_after else self._connection_header()
        self._stream_head = b"".join((start, request_id, b"\r\n", host, request.terms.answer_lines, close))

    def begin_stream(self, request: Request, data: bytes, content_type: bytes, extra: bytes = b"") -> None:
        """Write the head of a streamed answer and its first bytes at once; ``extra`` are further header lines."""
        if not self._stream_head:  # no host has it yet, and a heartbeat is due
            self.prepare(request)
        head, self._stream_head = self._stream_head, b""
        timing = heads.server_timing(request)
        data = b"".join(
            (head, b"content-type: ", content_type, b"\r\nserver-timing: ", timing, b"\r\n", extra, b"\r\n", data)
        )
        request.bytes_out += len(data)
        self.write(data)

    def write_comment(self, text: bytes) -> None:
        """Write an SSE comment."""
        comment = b": %b\n\n" % text
        self._write_counted(chunk(comment) if self.raw else comment)

    def end_stream(self, request: Request, data: bytes, sentinel: bytes) -> None:
        """Write the last bytes, the timing comment if it was asked for, the sentinel, and the end."""
        if request.timing_asked:
            sentinel = self._server.timing_comment(request) + sentinel
        if not self.raw:
            data += sentinel
        elif sentinel == USUAL_SENTINEL:
            data += USUAL_END
        else:
            data += (chunk(sentinel) if sentinel else b"") + LAST_CHUNK
        request.bytes_out += len(data)
        self.write(data)

    def break_stream(self, request: Request, failure: Failure) -> None:
        """Write an error event and close without the last chunk."""
        self._close_after = True
        event = request.dialect.event(failure)
        self._write_counted(chunk(event) if self.raw else event)

    def whole(self, request: Request, status: int, content_type: bytes, body: bytes, extra: bytes = b"") -> None:
        """Write a whole answer; ``extra`` are further header lines."""
        host = heads.host_header(self._server.host_name(request))
        close = b"" if self.raw and not self._close_after else self._connection_header()
        length = b"content-length: " + str(len(body)).encode() + b"\r\n" if status != 204 else b""  # RFC 9110 §8.6
        data = b"".join(
            (
                heads.status_line(status), b"content-type: ", content_type,
                b"\r\nx-request-id: ", request.request_id.encode("latin-1"), b"\r\n", host,
                request.terms.answer_lines, b"server-timing: ", heads.server_timing(request), b"\r\n",
                extra, close, length, b"\r\n", body,
            )
        )  # fmt: skip
        request.bytes_out += len(data)
        self.write(data)

    def fail(self, request: Request, kind: ErrorKind, message: str, retry_after_s: int) -> None:
        """Write an error answer to a request."""
        retry_after = b"retry-after: %d\r\n" % retry_after_s if retry_after_s else b""
        body = request.dialect.body(request.failure(kind, message))
        self.whole(request, WIRE[kind].status, _JSON, body, retry_after)

    def finished(self) -> None:
        """The request is over: close, or take the next one."""
        self.request = None
        self._stream_head = b""
        self.request_id = ""
        if self._close_after and self._transport is not None:
            self._transport.close()
        self._server.answered(self)
        if (self._buffer or self._flooded) and not self._close_after:
            self._advance()

    def untaken_bytes(self) -> int:
        """Return how many bytes the client's kernel has not confirmed: those of the transport and of our socket.

        Our socket reports room again only when a large part of it is empty. Until then only this number shows that a
        slow client does take its bytes.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            return 0
        queued = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        return transport.get_write_buffer_size() + int.from_bytes(queued, sys.byteorder)

    def unsent_bytes(self) -> int:
        """Return how many bytes wait in the transport."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def tcp_info(self) -> bytes:
        """Return the kernel's view of the client's connection."""
        transport = self._transport
        if transport is None or transport.is_closing():  # its descriptor may be another's by now
            return NO_TCP_INFO
        return tcp_info(self._descriptor)

    def abort(self) -> None:
        """Drop the client with a reset: what it has not taken would else stay in the kernel for minutes."""
        if self._transport is None:
            return
        sock = self._transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()
