"""The errors that a client finds by itself, in the words that its user reads."""

from __future__ import annotations

from typing import Final

from router.client.errors import ConnectionLost, NotConnected, ProtocolError, TimedOut
from router.client.exchange import Exchange

_SLACK_BYTES: Final = 1 << 20
"""A request that is over the limit of its body by less is refused with words, so a smaller one broke no connection."""


def not_connected(exchange: Exchange, where: str, limit_ns: int) -> NotConnected:
    """Return the error of a request for which there was no connection in time; ``where`` names all endpoints."""
    times = _times(exchange.send_count)
    lost = f"; the connection was lost {times} with the request on its way" if exchange.send_count else ""
    code = "not_accepted" if exchange.send_count else "not_connected"
    return NotConnected(f"no router answers at {where} {_within(limit_ns)}{lost}", code=code, request_id=exchange.id)


def not_accepted(exchange: Exchange, endpoint: str, limit_ns: int, complaint: str) -> NotConnected:
    """Return the error of a request that was sent and not taken in time; ``complaint`` is what the router said."""
    said = f"; it said: {complaint}" if complaint else ""
    message = f"the router at {endpoint} did not accept the request {_within(limit_ns)}{said}"
    return NotConnected(message, code="not_accepted", request_id=exchange.id)


def protocol_error(exchange: Exchange, endpoint: str, what: str) -> ProtocolError:
    """Return the error of a router that sent what it must not; ``what`` says what that was."""
    message = f"the router at {endpoint} broke the protocol: {what}"
    return ProtocolError(message, code="protocol_error", request_id=exchange.id, delivered=exchange.event_count)


def timed_out(exchange: Exchange, name: str, limit_ns: int) -> TimedOut:
    """Return the error of a request for which the time-out ``name`` has come."""
    what = "no first token" if name == "first_token_timeout_s" else "not complete"
    message = f"{what} after {name} = {limit_ns / 1e9:g} s ({exchange.event_count} events had come)"
    return TimedOut(message, code="timed_out", request_id=exchange.id, delivered=exchange.event_count)


def connection_lost(exchange: Exchange, endpoint: str, reason: str) -> ConnectionLost:
    """Return the error of a request whose router went away while it ran; ``reason`` completes "the router at ..."."""
    message = (
        f"the router at {endpoint} {reason} after it had accepted the request ({exchange.event_count} events had come)"
    )
    return ConnectionLost(message, code="connection_lost", request_id=exchange.id, delivered=exchange.event_count)


def not_sent_again(exchange: Exchange, endpoint: str, reason: str) -> NotConnected:
    """Return the error of a request that is not sent once more after its connection was lost."""
    size = sum(map(len, exchange.request.frames))
    message = f"the router at {endpoint} {reason} before it had accepted the request, {_times(exchange.send_count)}"
    if size > _SLACK_BYTES:
        message += f"; the request has {size:,} bytes, probably more than limits.body_bytes of the router"
    return NotConnected(message, code="not_accepted", request_id=exchange.id)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _within(limit_ns: int) -> str:
    return f"within {limit_ns / 1e9:g} s"
