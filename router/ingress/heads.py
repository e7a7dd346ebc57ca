"""Response heads of the HTTP ingress; pure."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from http import HTTPStatus
from typing import Final

from router import native
from router.request import Request, new_request

_REASONS: Final = {s.value: s.phrase.encode() for s in HTTPStatus} | {499: b"Client Closed Request"}
STATUS_LINES: Final = {status: b"HTTP/1.1 %d %b\r\n" % (status, reason) for status, reason in _REASONS.items()}
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


def status_line(status: int) -> bytes:
    """Return the status line of any status, one the standard library does not know included."""
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d Status\r\n" % status


def connection_header(minor: int, *, keep_alive: bool) -> bytes:
    """Return the ``connection`` header where the client's version needs one."""
    if not keep_alive:
        return b"connection: close\r\n"
    return b"connection: keep-alive\r\n" if minor == 0 else b""


@cache  # hosts are few
def host_header(host_name: str) -> bytes:
    """Return the header that names the host, empty while there is none."""
    return b"x-ringrouter-host: %b\r\n" % host_name.encode() if host_name else b""


def plain_server_timing(request: Request) -> bytes:
    """Return the stages so far in milliseconds (https://www.w3.org/TR/server-timing/), without what did not happen."""
    deq, admitted, routed = request.deq, request.admitted, request.routed
    conn, sent, hfb = request.conn_ns, request.sent_ns, request.hfb
    last = request.tok_n or request.tok1 or hfb
    stages_ns = (
        deq - request.recv if deq else -1,
        admitted - deq if admitted else -1,
        routed - admitted if routed else -1,
        conn - routed if conn else -1,
        last - (sent or conn) if hfb else -1,
    )
    microseconds = [(name, (ns + 500) // 1000) for name, ns in zip(_STAGES, stages_ns, strict=True) if ns >= 0]
    return b", ".join([b"%b;dur=%d.%03d" % (name, us // 1000, us % 1000) for name, us in microseconds])


_STAGES: Final = (b"ingress", b"queue", b"route", b"connect", b"host")
server_timing: Final[Callable[[Request], bytes]] = (
    plain_server_timing if native.steps is None else native.steps.StageTimes(new_request()).of
)
"""As :func:`plain_server_timing`, in one step where there is native code: it stands before every first token."""
