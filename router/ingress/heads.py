"""Response heads of the HTTP ingress; pure."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from router.request import Request

_REASONS: Final = {s.value: s.phrase.encode() for s in HTTPStatus} | {499: b"Client Closed Request"}
STATUS_LINES: Final = {status: b"HTTP/1.1 %d %b\r\n" % (status, reason) for status, reason in _REASONS.items()}
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_MS_NS: Final = 1_000_000


def status_line(status: int) -> bytes:
    """Return the status line of any status, one the standard library does not know included."""
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d Status\r\n" % status


def connection_header(minor: int, *, keep_alive: bool) -> bytes:
    """Return the ``connection`` header where the client's version needs one."""
    if not keep_alive:
        return b"connection: close\r\n"
    return b"connection: keep-alive\r\n" if minor == 0 else b""


def host_header(host_name: str) -> bytes:
    """Return the header that names the host, empty while there is none."""
    return b"x-ringrouter-host: %b\r\n" % host_name.encode() if host_name else b""


def request_headers(request: Request, host_name: str) -> bytes:
    """Return the headers that tell a client about its own request: id, host, and where the time went so far."""
    request_id = request.request_id.encode("latin-1")
    return b"x-request-id: %b\r\n%bserver-timing: %b\r\n" % (
        request_id,
        host_header(host_name),
        server_timing(request),
    )


def server_timing(request: Request) -> bytes:
    """Return the stages so far in milliseconds (https://www.w3.org/TR/server-timing/)."""
    deq, admitted, routed = request.deq, request.admitted, request.routed
    conn, sent, hfb = request.conn_ns, request.sent_ns, request.hfb
    if hfb and sent:  # all stages happened, as for nearly every request
        return b"ingress;dur=%.3f, queue;dur=%.3f, route;dur=%.3f, connect;dur=%.3f, host;dur=%.3f" % (
            (deq - request.recv) / _MS_NS,
            (admitted - deq) / _MS_NS,
            (routed - admitted) / _MS_NS,
            (conn - routed) / _MS_NS,
            (max(request.tok1, request.tok_n, hfb) - sent) / _MS_NS,
        )
    parts = [b"ingress;dur=%.3f" % ((deq - request.recv) / _MS_NS)] if deq else []
    if admitted:
        parts.append(b"queue;dur=%.3f" % ((admitted - deq) / _MS_NS))
    if routed:
        parts.append(b"route;dur=%.3f" % ((routed - admitted) / _MS_NS))
    if conn:
        parts.append(b"connect;dur=%.3f" % ((conn - routed) / _MS_NS))
    if hfb:
        parts.append(b"host;dur=%.3f" % ((max(request.tok1, request.tok_n, hfb) - (sent or conn)) / _MS_NS))
    return b", ".join(parts)
