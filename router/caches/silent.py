"""The egress of requests that the router makes itself: it keeps a whole answer, and tells when the request is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.errors import WIRE
from router.telemetry.tcp import NO_TCP_INFO

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.dialects import Failure
    from router.errors import ErrorKind
    from router.request import Request


class SilentEgress:
    """Takes every byte at once. ``status`` and ``body`` are a whole answer's or an error's; a stream's are lost."""

    raw = False
    counts_events = False
    blocked = False

    def __init__(self, on_end: Callable[[SilentEgress], None]) -> None:
        self.request: Request | None = None
        self.status = 0
        self.body = b""
        self._on_end = on_end

    def prepare(self, request: Request) -> None:
        """Make nothing ready."""

    def begin_stream(self, request: Request, data: bytes, content_type: bytes, extra: bytes = b"") -> None:  # noqa: ARG002
        """Take the beginning of a stream."""
        self.status = 200

    def write(self, data: bytes) -> None:
        """Take bytes."""

    def write_comment(self, text: bytes) -> None:
        """Take a comment."""

    def end_stream(self, request: Request, data: bytes, sentinel: bytes) -> None:
        """Take the end of a stream."""

    def break_stream(self, request: Request, failure: Failure) -> None:  # noqa: ARG002
        """Take an error in a stream."""
        self.status = WIRE[failure.kind].status

    def whole(self, request: Request, status: int, content_type: bytes, body: bytes, extra: bytes = b"") -> None:  # noqa: ARG002
        """Take a whole answer."""
        self.status, self.body = status, body

    def fail(self, request: Request, kind: ErrorKind, message: str, retry_after_s: int) -> None:  # noqa: ARG002
        """Take an error."""
        self.status = WIRE[kind].status

    def finished(self) -> None:
        """Tell that the request is over."""
        self._on_end(self)

    def untaken_bytes(self) -> int:
        """Return that there are none."""
        return 0

    def unsent_bytes(self) -> int:
        """Return that there are none."""
        return 0

    def tcp_info(self) -> bytes:
        """Return that there is none: nobody is connected."""
        return NO_TCP_INFO

    def abort(self) -> None:
        """Do nothing: nobody is there."""
