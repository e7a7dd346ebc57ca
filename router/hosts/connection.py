"""One connection to a host: bytes out, response head parsed, body bytes handed to the attempt at once."""

from __future__ import annotations

import asyncio
import socket
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, cast

from router.answers import answers
from router.http1 import (
    HEAD_END,
    BodyDecoder,
    Head,
    HeadMemo,
    ProtocolError,
    declared_length,
    new_chunked_decoder,
    parse_response_head,
    response_decoder,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.attempt import Attempt
    from router.hosts.fleet import Fleet
    from router.hosts.host import Host

RESPONSE_HEAD_BYTES_MAX: Final = 64 * 1024
response_heads: Final = HeadMemo(parse_response_head)
_answers: Final = answers


def shut_down(transport: asyncio.Transport) -> None:
    """End a connection in this very callback, both ways, and drop what was not sent.

    uvloop puts off closing to a later turn, and a host that generates for nobody should know now.
    """
    sock: Any = transport.get_extra_info("socket")
    if sock is not None and (fd := sock.fileno()) >= 0:
        # A second socket object on the same descriptor: uvloop's own refuses shutdown(). All three of family, type and
        # protocol are given, so that none is asked of the kernel.
        twin = socket.socket(sock.family, sock.type, sock.proto, fileno=fd)
        try:
            twin.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was faster
        finally:
            twin.detach()
    transport.abort()


def _parsed(data: bytes, position: int) -> tuple[Head, int, int] | None:
    """Parse an unusual head; return it with its length (-1: none) and its end, ``None`` if it is not complete."""
    end = data.find(HEAD_END, position)
    if end < 0:
        return None
    head = parse_response_head(data[position : end + 4])
    return head, declared_length(head), end + 4


class HostConnection(asyncio.Protocol):
    """A connection to one host, serving one attempt at a time.

    ``take`` is where body bytes go: a bound method of the attempt, looked up once and not per token.
    """

    __slots__ = (
        "_fleet",
        "_head",
        "_on_end",
        "_paused",
        "_trailing",
        "attempt",
        "blocked",
        "host",
        "idle_since",
        "take",
        "transport",
        "used",
    )

    def __init__(self, fleet: Fleet, host: Host) -> None:
        self._fleet = fleet
        self.host = host
        self.transport: asyncio.Transport | None = None
        self.attempt: Attempt | None = None
        self.take: Callable[[bytes, int], None] | None = None
        self.blocked = False
        self._paused = False
        self._on_end: Callable[[], None] | None = None
        self.used = False
        self.idle_since = 0
        self._head = b""
        self._trailing: BodyDecoder | None = None

    # ------------------------------------------------------------ callbacks of the loop
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; whatever a write leaves over is reported at once."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by class, only by what it does
        self.transport.set_write_buffer_limits(0, 0)

    def data_received(self, data: bytes) -> None:
        """Hand body bytes on, or collect the response head."""
        take = self.take
        try:
            if take is not None:
                take(data, monotonic_ns())
            elif self.attempt is not None:
                now = monotonic_ns()
                if _answers is None or not _answers.begin(self, data, now):
                    self._collect_head(data, now)
            elif self._trailing is not None:
                self._drain_trailing(data)
            else:
                self.close()  # a host that speaks unasked
        except Exception:
            self._fault()
            raise  # the event loop's handler logs it

    def eof_received(self) -> bool:
        """Tell the attempt that the host has ended; the transport closes by itself."""
        self._ended()
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the interface of asyncio
        """Tell the attempt, if it does not know yet, and forget the connection."""
        self._ended()
        self._fleet.forget(self)
        self.transport = None

    def pause_writing(self) -> None:
        """The host's socket does not take the whole request yet."""
        self.blocked = True

    def resume_writing(self) -> None:
        """All of the request is written."""
        self.blocked = False
        if self.attempt is not None:
            self.attempt.request_written(monotonic_ns())

    # ------------------------------------------------------------ used by the attempt
    def release(self, decoder: BodyDecoder | None, *, reusable: bool) -> None:
        """Take the connection back from its attempt, whose answer is complete or nearly so.

        ``decoder`` stands in the body: behind ``[DONE]`` the last chunk may still be on its way.
        """
        self.attempt = None
        self.take = None
        self.used = True
        if self._paused:  # its client was slow to the last byte; the next one is not
            self.pause(paused=False)
        if not reusable or decoder is None or decoder.surplus or self.blocked or self.transport is None:
            self.close()
        elif decoder.ended:
            self._fleet.keep(self)
        else:
            self._trailing = decoder
            self.idle_since = monotonic_ns()
            self._fleet.wait_for_end(self)

    def kill(self) -> None:
        """Cancel what the host is doing, now."""
        self.attempt = None
        self.take = None
        if self.transport is not None:
            shut_down(self.transport)

    def abandon(self, on_end: Callable[[], None]) -> None:
        """Wait for an answer that nobody wants any more, from a host that cannot be told; then call ``on_end``.

        Such a host writes only when it has finished, so its first byte is the end of its work.
        """
        self.attempt = None
        self._on_end = on_end
        self.take = self._take_unwanted

    def _take_unwanted(self, data: bytes, now: int) -> None:  # noqa: ARG002 - the interface of ``take``
        self._finish_unwanted()
        self.close()

    def _finish_unwanted(self) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()

    def close(self) -> None:
        """Close without a word; nothing runs on the connection."""
        self.take = None
        if self.transport is not None:
            self.transport.abort()

    def pause(self, *, paused: bool) -> None:
        """Stop or go on reading: back-pressure of a client that is too slow."""
        self._paused = paused
        if self.transport is None or self.transport.is_closing():
            return
        if paused:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    # ------------------------------------------------------------ inside
    def _fault(self) -> None:
        """A fault of the router's own must not cost a slot, nor leave a client waiting."""
        attempt = self.attempt
        self.close()
        if attempt is not None:
            attempt.fault(monotonic_ns())

    def _collect_head(self, data: bytes, now: int) -> None:
        attempt = self.attempt
        assert attempt is not None
        attempt.first_byte(now)
        data = self._head + data if self._head else data
        position = 0
        while True:
            try:
                taken = response_heads.take(data, position, RESPONSE_HEAD_BYTES_MAX) or _parsed(data, position)
            except ProtocolError as error:
                attempt.protocol_failed(f"not an HTTP response: {error}", now)
                return
            if taken is None:
                self._head = data[position:]
                if len(self._head) > RESPONSE_HEAD_BYTES_MAX:
                    attempt.protocol_failed(f"a response head over {RESPONSE_HEAD_BYTES_MAX} bytes", now)
                return
            head, length, position = taken
            if head.status >= 200:  # behind an interim response the real one follows
                break
        self._head = b""
        decoder = new_chunked_decoder() if head.chunked and head.status == 200 else response_decoder(head, length)
        self.take = attempt.begin(head, decoder)
        if position < len(data) or decoder.ended:
            self.take(data[position:], now)

    def _drain_trailing(self, data: bytes) -> None:
        assert self._trailing is not None
        try:
            self._trailing.feed(data)
        except ProtocolError:
            self.close()
            return
        if self._trailing.ended:
            surplus = self._trailing.surplus
            self._trailing = None
            if surplus:
                self.close()
            else:
                self._fleet.keep(self)

    def _ended(self) -> None:
        attempt, self.attempt, self.take = self.attempt, None, None
        self._trailing = None
        self._finish_unwanted()
        if attempt is not None:
            attempt.host_ended(monotonic_ns())
