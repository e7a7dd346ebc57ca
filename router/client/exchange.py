"""One request of a client: where it is, what has come of it, and when its next time-out is."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, NamedTuple

from router.client.errors import RouterError
from router.client.protocol import Request

NEVER_NS: Final = 1 << 62


class Phase(Enum):
    """Where a request is."""

    QUEUED = "waits for a connection"
    SENT = "was sent"
    ACCEPTED = "is in the router's ring"
    CLOSING = "nobody wants it any more; the router has not ended it yet"
    ENDED = "is over"


class Arrival(NamedTuple):
    """The events of one message."""

    events: list[tuple[int, int, int]]
    """Kind, ``t_ns`` and size of each."""
    body: bytes
    received_ns: int


class Done(NamedTuple):
    """The proper end of a request."""

    status: int
    host: str
    usage: dict[str, Any] | None
    stamps: list[int]
    body: bytes
    levers: tuple[str, ...]


class Pong(NamedTuple):
    """A router's answer to a ping."""

    version: str
    """Of the router's program."""
    generation: int
    """Tells one start of the router from the next."""
    t_ns: int
    """When it answered, nanoseconds of its ``CLOCK_MONOTONIC``."""


@dataclass(slots=True, eq=False)
class Exchange:
    """One request and what has come of it. The session writes everything; the user only empties ``inbox``."""

    request: Request
    asked_ns: int
    accept_by_ns: int
    phase: Phase = Phase.QUEUED
    link: int = -1
    send_count: int = 0
    request_seq: int | None = None
    generation: int | None = None
    inbox: deque[Arrival] = field(default_factory=deque)
    event_count: int = 0
    content_count: int = 0
    """Events with content: a host that counts no tokens sends about one token in each."""
    outstanding: int = 0
    buffered: int = 0
    first_token: tuple[int, int] = (0, 0)
    """When the router and when this client had the first event with content."""
    over: bool = False
    """Nothing more comes; what is in the inbox is still to be taken."""
    result: Done | Pong | None = None
    error: RouterError | None = None
    ended_ns: int = 0
    wake: Callable[[], None] | None = None
    """Called when something has come."""

    @property
    def id(self) -> str:
        """The request's name."""
        return self.request.request_id

    def notify(self) -> None:
        """Wake who waits."""
        if self.wake is not None:
            self.wake()

    def waits_for_token(self) -> bool:
        """Whether a time-out of its first token runs."""
        return bool(self.request.first_token_timeout_ns) and not self.first_token[1]

    def deadline_ns(self) -> int:
        """Return when its next time-out comes, if nothing comes before."""
        request, deadline_ns = self.request, NEVER_NS
        if self.phase is Phase.CLOSING:
            return deadline_ns
        if self.phase in {Phase.QUEUED, Phase.SENT}:
            deadline_ns = self.accept_by_ns
        if request.timeout_ns:
            deadline_ns = min(deadline_ns, self.asked_ns + request.timeout_ns)
        if self.waits_for_token():
            deadline_ns = min(deadline_ns, self.asked_ns + request.first_token_timeout_ns)
        return deadline_ns
