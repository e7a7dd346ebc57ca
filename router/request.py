"""One request on its way: its values, its stamps, and where it is. The loop is the only writer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from router.dialects import OPENAI, Dialect, Failure
from router.errors import ErrorKind
from router.mould import mould
from router.routing import Candidate, PolicyId
from router.telemetry.records import Endpoint, Outcome, Phase
from router.token_state import TokenState

NO_HEADERS: Final[Mapping[bytes, bytes]] = {}


class Egress(Protocol):
    """How an answer goes out, whatever the ingress. The loop calls it; it never blocks.

    ``raw`` tells whether streams are written with HTTP chunk framing, ``counts_events`` whether it is a
    :class:`CountingEgress`. ``blocked`` is true while the client's side does not take all bytes; while it is false,
    everything written has been taken.
    """

    raw: bool
    counts_events: bool
    blocked: bool

    def prepare(self, request: Request) -> None:
        """Make ready what can be while the host works; the answer may still be of any kind."""

    def begin_stream(self, request: Request, data: bytes, content_type: bytes, extra: bytes = b"") -> None:
        """Write the head of a streamed answer together with its first bytes, framed as ``raw`` says.

        ``extra`` are further header lines.
        """

    def write(self, data: bytes) -> None:
        """Write bytes of a stream that has begun, framed as ``raw`` says."""

    def write_comment(self, text: bytes) -> None:
        """Write an SSE comment into a stream that has begun."""

    def end_stream(self, request: Request, data: bytes, sentinel: bytes) -> None:
        """Write the last bytes (framed as ``raw`` says) and the bare sentinel event, and end the stream properly."""

    def break_stream(self, request: Request, failure: Failure) -> None:
        """Write an error and end the stream in a way no client can take for a proper end."""

    def whole(self, request: Request, status: int, content_type: bytes, body: bytes, extra: bytes = b"") -> None:
        """Write a whole answer; ``extra`` are further header lines."""

    def fail(self, request: Request, kind: ErrorKind, message: str, retry_after_s: int) -> None:
        """Write an error answer in the shape of the request's dialect; ``retry_after_s`` 0 = none."""

    def finished(self) -> None:
        """The request is over and recorded: go on with the next one of this client."""

    def untaken_bytes(self) -> int:
        """Return how many bytes the client's side has not taken: what is unsent and what its kernel did not confirm."""

    def unsent_bytes(self) -> int:
        """Return how many bytes wait for the client's socket."""

    def tcp_info(self) -> bytes:
        """Return the kernel's view of the client's connection, as :func:`router.telemetry.tcp.tcp_info` does."""

    def abort(self) -> None:
        """Drop the client at once."""


class CountingEgress(Egress, Protocol):
    """An egress that tells its client which events are in the bytes of a stream. It is never ``raw``."""

    def note(self, events: Sequence[tuple[int, int]], now: int) -> None:
        """Take the events of one read, ``(code, bytes)`` each, before their bytes are written."""

    def accepted(self, request: Request) -> None:
        """Say that the request is in the ring, before events of an answer that comes in the same turn."""

    def write_event(self, code: int, now: int, data: bytes) -> None:
        """Write one event of a stream that has begun, as :meth:`note` and ``write`` together would."""


class Terms:
    """How one request is to be served: what it, its feature or its model says, and what followed from that.

    Most requests say nothing and share :data:`NO_TERMS`: for them all of this is one field.
    """

    __slots__ = (
        "account", "answer_lines", "asked_model", "deadline_ns", "key_id", "levered", "pin", "predicted_ttft_us",
        "serves_late", "share_key", "workload",
    )  # fmt: skip

    def __init__(self) -> None:
        self.workload = 0
        """Its class (:mod:`router.admission.classes`), 0 where nobody said one."""
        self.deadline_ns = 0
        """When its first token is due, 0 = never."""
        self.serves_late = False
        """Its deadline orders it among those that wait and does no more."""
        self.share_key = ""
        """With whom it shares turns in the waiting room: its key, else its ``user_id``; empty: with all others without
        one. Of a request that need not wait it may not be known."""
        self.predicted_ttft_us = 0
        """What was foretold when it came, of one with a deadline; 0 where nothing could be."""
        self.asked_model = 0
        """Id of the model that it asked for where a rule has set another; 0 where none has."""
        self.levered: Any = None
        """What rules changed of it, a :class:`router.levers.Levered`; ``None`` for most."""
        self.pin = 0
        """Id of the host that the client asked for, 0 where any may answer."""
        self.account: Any = None
        """The :class:`router.keys.account.Account` of its key, ``None`` where no keys are configured."""
        self.key_id = 0
        """Id of the key's name, 0 without one."""
        self.answer_lines = b""
        """Header lines of the router's own for its answer."""


NO_TERMS: Final = Terms()
"""Never changed."""


@dataclass(slots=True, eq=False)
class Request(TokenState):
    """One request. Times are nanoseconds of the one clock, 0 = has not happened.

    What is written for every token is in :class:`router.token_state.TokenState`. The rest has slots: the interpreter
    reaches one in a few nanoseconds (a field of a msgspec struct takes five times as long).
    """

    egress: Egress
    endpoint: Endpoint
    request_id: str
    body: bytes
    fields: Any
    """The decoded body, a :data:`router.messages.RequestBody` or, of one that passes through, a ``PassBody``."""
    headers: Mapping[bytes, bytes]
    model: Any
    """A :class:`router.models.Model`."""
    recv: int
    body_ns: int
    identity: bytes = b""
    """What never changes of it in the records, once it was made."""
    identities: dict[str, tuple[bytes, bytes]] | None = None
    """Of requests with the same head, by model: their identity before and behind the request's id."""
    trace_headers: bytes = b""
    path: str = ""
    """Of a request that passes through: its path, which not every host has. Empty for those that every host takes."""
    target: bytes = b""
    """What a host is asked for: ``path`` with the client's query, or the path of the endpoint."""
    dialect_headers: bytes = b""
    """Lines of the client's head that the path's API needs."""
    dialect: Dialect = OPENAI
    """In which words errors are told."""
    comments: bool = True
    """Whether a comment may stand in its stream."""
    stream: bool = False
    fold: bool = False
    timing_asked: bool = False
    max_tokens: int = 0
    choices_asked: int = 1
    """The body's ``n``: a host that dies before each choice has ended has not answered."""
    temperature: float = 0.0
    policy: int = PolicyId.LEAST_OUTSTANDING
    """The :class:`router.routing.PolicyId` that decided."""
    model_id: int = 0
    body_bytes: int = 0
    """Length of ``body`` as it came, once it was let go or edited."""
    seq: int = 0
    row: int = -1
    phase: Phase = Phase.NONE
    shown_phase: Phase | None = None
    """The phase that the in-flight table shows."""
    attempt: Any = None
    """The :class:`router.attempt.Attempt` under way, ``None`` between two and while waiting."""
    attempt_count: int = 0
    stale_retries: int = 0
    tried: tuple[int, ...] = ()
    """Ids of the hosts that failed it."""
    failed_attempts: tuple[tuple[int, int, int, int, int, int, int, int], ...] = ()
    terms: Terms = NO_TERMS
    """How it is to be served, where anybody has said so."""
    ask: Any = None
    """What a routing policy knows of it, the :class:`router.routing.policy.Ask`; ``None`` while none was asked."""
    candidates: Sequence[Candidate] = ()
    detour: Any = None
    """Where it went on that its own model could not answer, a :class:`router.recovery.Detour`; ``None`` for most."""
    chosen: int = -1
    """Which of ``candidates`` got the request."""
    host: int = 0
    committed: bool = False
    """The client has the head of a stream: an error must now be an event in it."""
    ending: Outcome = Outcome.NONE
    """Set when everything is written and only the client's socket is still to take it."""
    host_paused: bool = False
    check_ns: int = 0
    """Before this time no time-out can be due: the tick looks no further."""
    last_out_ns: int = 0
    taken_bytes: int = 0
    """What the client's kernel had taken of ``bytes_out`` when its socket was last looked at while blocked."""
    left_ns: int = 0
    cancel_latency_ns: int = 0
    pub: int = 0
    deq: int = 0
    admitted: int = 0
    routed1: int = 0
    routed: int = 0
    conn_ns: int = 0
    sent_ns: int = 0
    hfb: int = 0
    tok1: int = 0
    out1: int = 0
    done_ns: int = 0
    ttfc: int = 0
    ttfo: int = 0
    choice_count: int = 0
    waiting_ahead: int = 0
    tokens_saved: int = 0
    flags: int = 0
    status: int = 0
    outcome: Outcome = Outcome.NONE
    error: ErrorKind = ErrorKind.NONE
    message: str = ""
    folded: bool = False
    packed_tokens: bytes = b""
    """Parts of the done record, made when it is written."""
    packed_times: bytes = b""
    packed_tcp: bytes = b""
    packed_candidates: bytes = b""
    packed_attempts: bytes = b""
    packed_message: bytes = b""
    packed_decision: bytes = b""
    usage: bytes | None = None
    timings: bytes | None = None
    metrics: bytes | None = None

    @property
    def workload(self) -> int:
        """Its class, as :attr:`Terms.workload`."""
        return self.terms.workload

    @property
    def deadline_ns(self) -> int:
        """When its first token is due, 0 = never."""
        return self.terms.deadline_ns

    @property
    def serves_late(self) -> bool:
        """Whether it is served after its deadline too."""
        return self.terms.serves_late

    @property
    def share_key(self) -> str:
        """With whom it shares turns in the waiting room, as :attr:`Terms.share_key`."""
        return self.terms.share_key

    @property
    def pin(self) -> int:
        """Id of the host that the client asked for, 0 where any may answer."""
        return self.terms.pin

    def own_terms(self) -> Terms:
        """Return terms that are this request's alone, and may be changed before it waits."""
        if self.terms is NO_TERMS:
            self.terms = Terms()
        return self.terms

    def let_go(self) -> None:
        """Forget what only a further attempt would need: an idle stream should hold little."""
        if self.body:
            self.body_bytes, self.body = self.body_bytes or len(self.body), b""
        self.fields = None
        self.headers = NO_HEADERS

    def failure(self, kind: ErrorKind, message: str) -> Failure:
        """Return what there is to tell of an error."""
        return Failure(kind, message, self.request_id, None, self.content_count, self.event_index)

    def reset_attempt(self) -> None:
        """Forget what belongs to one attempt, before a further one."""
        self.shown_phase = None
        self.routed = self.conn_ns = self.sent_ns = self.hfb = 0
        self.tok1 = self.out1 = self.tok_n = self.out_n = self.ttfc = self.ttfo = 0
        self.stall_max_ns = 0
        self.content_count = self.early_tokens = self.visible_tokens = 0
        self.choice_count = 0
        self.folded = False
        self.usage = self.timings = self.metrics = None


_NOTHING: Final[Any] = None
new_request: Final = mould(lambda: Request(_NOTHING, Endpoint.CHAT, "", b"", _NOTHING, _NOTHING, _NOTHING, 0, 0))
"""Makes a request of which nothing is known yet: whoever asks for it sets what has no default. A class's own
``__init__`` with a hundred arguments takes six times as long.
"""
