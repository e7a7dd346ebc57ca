"""One request on its way: its values, its stamps, and where it is. The loop is the only writer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from router.errors import ErrorKind
from router.routing import Policy
from router.telemetry.records import Endpoint, Outcome, Phase

if TYPE_CHECKING:
    from router.attempt import Attempt
    from router.messages import RequestBody
    from router.models import Model
    from router.telemetry.tcp import TcpInfo


class Egress(Protocol):
    """How an answer goes out, whatever the ingress. The loop calls it; it never blocks.

    ``raw`` tells whether streams are written with HTTP chunk framing. ``blocked`` is true while the client's socket
    does not take all bytes; while it is false, everything written has been taken.
    """

    raw: bool
    blocked: bool

    def begin_stream(self, request: Request, data: bytes, content_type: bytes) -> None:
        """Write the head of a streamed answer together with its first bytes, framed as ``raw`` says."""

    def write(self, data: bytes) -> None:
        """Write bytes of a stream that has begun, framed as ``raw`` says."""

    def write_comment(self, text: bytes) -> None:
        """Write an SSE comment into a stream that has begun."""

    def end_stream(self, request: Request, data: bytes, sentinel: bytes) -> None:
        """Write the last bytes (framed as ``raw`` says) and the bare sentinel event, and end the stream properly."""

    def break_stream(self, event: bytes) -> None:
        """Write a bare error event and end the stream in a way no client can take for a proper end."""

    def whole(self, request: Request, status: int, content_type: bytes, body: bytes) -> None:
        """Write a whole answer."""

    def fail(self, request: Request, kind: ErrorKind, message: str, retry_after_s: int) -> None:
        """Write an error answer in OpenAI's shape; ``retry_after_s`` 0 = none."""

    def finished(self) -> None:
        """The request is over and recorded: go on with the next one of this client."""

    def unsent_bytes(self) -> int:
        """Return how many bytes wait for the client's socket."""

    def tcp_info(self) -> TcpInfo:
        """Return the kernel's view of the client's connection."""

    def abort(self) -> None:
        """Drop the client at once."""


class Request:
    """One request. Times are nanoseconds of the one clock, 0 = has not happened."""

    __slots__ = (
        "admitted", "attempt", "attempt_count", "blocked_bytes", "blocked_ns", "body", "body_ns", "bytes_out",
        "cancel_latency_ns", "candidates", "check_ns", "choice_count", "committed", "conn_ns", "content_count", "deq",
        "done_ns", "early_tokens", "egress", "ending", "endpoint", "error", "event_index", "failed_attempts", "fields",
        "flags", "fold", "folded", "hfb", "host", "host_paused", "identity", "last_content_ns", "last_out_ns",
        "left_ns", "max_tokens", "message", "metrics", "model", "model_id", "out1", "out_n", "outcome", "phase",
        "policy", "pub", "recv", "request_id", "routed", "routed1", "row", "sent_ns", "seq", "stale_retries",
        "stall_max_ns", "status", "stream", "temperature", "timing_asked", "timings", "tok1", "tok_n", "tokens_saved",
        "trace_headers", "tried", "ttfc", "ttfo", "usage", "visible_tokens", "waiting_ahead",
    )  # fmt: skip

    def __init__(self, egress: Egress, endpoint: Endpoint, request_id: str, body: bytes, fields: RequestBody) -> None:
        self.egress = egress
        self.endpoint = endpoint
        self.request_id = request_id
        self.body = body
        self.fields = fields
        self.identity = b""
        self.trace_headers = b""
        self.model: Model
        self.model_id = 0
        self.stream = False
        self.fold = False
        self.timing_asked = False
        self.max_tokens = 0
        self.temperature = 0.0
        self.policy = Policy.LEAST_OUTSTANDING
        self.seq = 0
        self.row = -1
        self.phase = Phase.NONE
        self.attempt: Attempt | None = None
        self.attempt_count = 0
        self.stale_retries = 0
        self.tried: set[int] = set()
        self.failed_attempts: list[tuple[int, int, int, int, int, int, int, int]] = []
        self.candidates: list[tuple[int, int, float]] = []
        self.host = 0
        self.committed = False
        """The client has the head of a stream: an error must now be an event in it."""
        self.ending = Outcome.NONE
        """Set when everything is written and only the client's socket is still to take it."""
        self.host_paused = False
        self.check_ns = 0
        """Before this time no time-out can be due: the tick looks no further."""
        self.last_out_ns = 0
        self.blocked_ns = self.blocked_bytes = 0
        self.left_ns = self.cancel_latency_ns = 0
        self.recv = self.body_ns = self.pub = self.deq = self.admitted = self.routed1 = self.done_ns = 0
        self.waiting_ahead = self.tokens_saved = self.bytes_out = self.flags = self.status = 0
        self.event_index = 0
        self.outcome = Outcome.NONE
        self.error = ErrorKind.NONE
        self.message = ""
        self.reset_attempt()

    def reset_attempt(self) -> None:
        """Forget what belongs to one attempt, before the first and before each further one."""
        self.routed = self.conn_ns = self.sent_ns = self.hfb = 0
        self.tok1 = self.out1 = self.tok_n = self.out_n = self.ttfc = self.ttfo = 0
        self.last_content_ns = self.stall_max_ns = 0
        self.content_count = self.early_tokens = self.visible_tokens = 0
        self.choice_count = 0
        self.folded = False
        self.usage: bytes | None = None
        self.timings: bytes | None = None
        self.metrics: bytes | None = None
