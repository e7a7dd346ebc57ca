"""What can go wrong with a request, as exceptions. Whoever catches :class:`RouterError` catches all of them."""
# ruff: noqa: N818 -- the names tell what happened; each is a RouterError

from __future__ import annotations


class RouterError(Exception):
    """The router or a host has refused a request or broken it off.

    ``status`` is the HTTP status of the same error, 0 for what the client itself found; ``code``, ``type``, ``param``
    and ``message`` are those of OpenAI's error object. ``delivered`` counts the events that came before: not 0 means
    that the answer is incomplete. ``retry_after_s`` is when to ask again, 0 = not said.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        code: str = "",
        type: str = "",  # noqa: A002 - the name in OpenAI's error object
        param: str | None = None,
        request_id: str = "",
        delivered: int = 0,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.type = type
        self.param = param
        self.request_id = request_id
        self.delivered = delivered
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuilt, (type(self), self.message, dict(self.__dict__)))


def _rebuilt(kind: type[RouterError], message: str, fields: dict[str, object]) -> RouterError:
    """Make an unpickled error: keyword arguments do not survive the way ``Exception`` is pickled by itself."""
    error = kind(message)
    error.__dict__.update(fields)
    return error


class NotConnected(RouterError, ConnectionError):
    """No router has accepted the request in time. It has not run, or its router cancelled it; asking again is safe.

    ``code`` is ``not_connected`` when it was sent to none, ``not_accepted`` when one had it and did not take it.
    """


class ConnectionLost(RouterError, ConnectionError):
    """The router went away, or was silent for too long, after it had accepted the request."""


class TimedOut(RouterError, TimeoutError):
    """The request took longer than ``timeout_s`` or ``first_token_timeout_s``; it was cancelled at the router."""


class ProtocolError(RouterError):
    """The router sent what the protocol does not allow: another version, a gap between events, broken messages."""
