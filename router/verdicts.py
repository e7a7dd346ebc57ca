"""What an error means: whether another attempt can help, what it says of the host, how the request is counted; pure."""

from __future__ import annotations

from typing import Final

from router.errors import ErrorKind
from router.telemetry.records import Outcome

RETRIED_STATUSES: Final = frozenset({429, 500, 502, 503, 504})
"""Statuses of a host after which another one is asked."""
RETRIED: Final = frozenset({
    ErrorKind.CONNECT_FAILED,
    ErrorKind.CONNECT_TIMEOUT,
    ErrorKind.HOST_CLOSED,
    ErrorKind.HOST_PROTOCOL,
    ErrorKind.HOST_ERROR_EVENT,
    ErrorKind.HOST_STATUS,
    ErrorKind.NO_FINISH,
    ErrorKind.HOST_DRAINED,
})  # fmt: skip
"""Another attempt may succeed."""
ANSWERED: Final = frozenset({ErrorKind.HOST_PROTOCOL, ErrorKind.HOST_ERROR_EVENT, ErrorKind.NO_FINISH})
"""Another attempt at the same host is work done twice for the same end."""
TIMEOUTS: Final = frozenset({
    ErrorKind.QUEUE_TIMEOUT,
    ErrorKind.CONNECT_TIMEOUT,
    ErrorKind.FIRST_TOKEN_TIMEOUT,
    ErrorKind.IDLE_TIMEOUT,
    ErrorKind.TOTAL_TIMEOUT,
})  # fmt: skip
BROKEN_OFF: Final = TIMEOUTS | {
    ErrorKind.HOST_PROTOCOL,
    ErrorKind.ANSWER_TOO_LARGE,
    ErrorKind.SHUTTING_DOWN,
    ErrorKind.INTERNAL,
    ErrorKind.HOST_DRAINED,
}
"""The router breaks off what the host may still be working on."""
HOST_FAULTS: Final = frozenset({
    ErrorKind.CONNECT_TIMEOUT,
    ErrorKind.HOST_CLOSED,
    ErrorKind.HOST_PROTOCOL,
    ErrorKind.NO_FINISH,
    ErrorKind.FIRST_TOKEN_TIMEOUT,
    ErrorKind.IDLE_TIMEOUT,
})  # fmt: skip
"""The host is to blame. An error event is an answer to this one request, and no time-out of the whole request is the
host's alone. Connects that fail are counted where they are made: some are for no request."""
OF_NO_ATTEMPT: Final = frozenset({
    ErrorKind.OVERLOADED,
    ErrorKind.NO_HOST,
    ErrorKind.QUEUE_TIMEOUT,
    ErrorKind.DEADLINE_UNREACHABLE,
    ErrorKind.DEADLINE_EXCEEDED,
})  # fmt: skip
"""No attempt has noted it, and no client has brought it about."""


def blames_host(kind: ErrorKind, status: int) -> bool:
    """Return whether a failed attempt says something of the host: with ``HOST_STATUS``, by its ``status``.

    A 429 says that it has too much to do and a 4xx that it works.
    """
    return kind in HOST_FAULTS or (kind == ErrorKind.HOST_STATUS and status >= 500)


_OUTCOMES: Final = dict.fromkeys(TIMEOUTS, Outcome.TIMEOUT) | {
    ErrorKind.OVERLOADED: Outcome.REJECTED,
    ErrorKind.NO_HOST: Outcome.REJECTED,
    ErrorKind.DEADLINE_UNREACHABLE: Outcome.REJECTED,
    ErrorKind.DEADLINE_EXCEEDED: Outcome.REJECTED,
    ErrorKind.SHUTTING_DOWN: Outcome.ABORTED,
    ErrorKind.INTERNAL: Outcome.ABORTED,
    ErrorKind.BAD_REQUEST: Outcome.BAD_REQUEST,
}


def outcome_of(kind: ErrorKind) -> Outcome:
    """Return how a request is counted that ended in an error: the host's, unless something else is said here."""
    return _OUTCOMES.get(kind, Outcome.HOST_ERROR)
