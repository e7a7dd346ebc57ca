"""Answers that come as a whole."""

from __future__ import annotations

import base64
from array import array
from typing import Any, Final

import msgspec

from router.client.errors import ProtocolError
from router.client.exchange import Done, Exchange
from router.client.protocol import usage_of
from router.client.timing import Timing, timing

_SHOWN_BYTES_MAX: Final = 60
"""How much of an answer that cannot be read stands in its error."""


class Reply:
    """A whole answer: ``json`` is the host's object, unchanged."""

    def __init__(self, exchange: Exchange, done: Done, *, same_clock: bool) -> None:
        self.json: dict[str, Any] = _decoded(done.body, exchange.id)
        self.raw = done.body
        """The same as the host sent it."""
        self.request_id = exchange.id
        self.request_seq = exchange.request_seq
        """The request's number in all records of the router."""
        self.host = done.host
        """The host that answered."""
        self.levers = done.levers
        """What rules of the router changed of the request, in words: ``max_tokens=512 (asked 4096)``."""
        self.usage = done.usage or usage_of(self.json.get("usage"))
        self.timing: Timing = finished_timing(exchange, done, self.usage, same_clock=same_clock)

    @property
    def text(self) -> str:
        """The text of the first choice of a chat or completion."""
        choices = self.json.get("choices")
        choice = _object(choices[0]) if isinstance(choices, list) and choices else {}
        return str(_object(choice.get("message")).get("content") or choice.get("text") or "")


class Embeddings(Reply):
    """A reply to ``embeddings``."""

    @property
    def vectors(self) -> list[list[float]]:
        """One vector for each input, in their order; decodes base64 where that was asked for.

        Raises :class:`ProtocolError` where the host's answer has none.
        """
        try:
            rows = sorted(self.json["data"], key=lambda row: int(row.get("index", 0)))
            return [_vector(row["embedding"]) for row in rows]
        except (KeyError, TypeError, ValueError, AttributeError):
            message = "the answer has no vectors"
            raise ProtocolError(message, code="protocol_error", request_id=self.request_id) from None


def _decoded(body: bytes, request_id: str) -> dict[str, Any]:
    """Return the JSON object that a body is."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        message = f"the answer is not JSON: {error}"
        raise ProtocolError(message, code="protocol_error", request_id=request_id) from None
    if not isinstance(value, dict):
        message = f"the answer is no JSON object: {body[:_SHOWN_BYTES_MAX].decode('utf-8', 'replace')}"
        raise ProtocolError(message, code="protocol_error", request_id=request_id)
    return value


def _object(value: Any) -> dict[str, Any]:
    """Return a part of the host's JSON that should be an object; an empty one where it is not."""
    return value if isinstance(value, dict) else {}


def _vector(value: Any) -> list[float]:
    if isinstance(value, str):
        return list(array("f", base64.b64decode(value)))
    if not isinstance(value, list):
        raise TypeError("an embedding is a list or base64")
    return value


def finished_timing(exchange: Exchange, done: Done, usage: dict[str, Any] | None, *, same_clock: bool) -> Timing:
    """Return the times of a finished request; without usage, each event with content counts as a token."""
    return timing(
        done.stamps,
        token_count=(usage or {}).get("completion_tokens") or exchange.content_count,
        streamed=exchange.request.streamed,
        same_clock=same_clock,
        asked_ns=exchange.asked_ns,
        first_token=exchange.first_token,
        ended_ns=exchange.ended_ns,
    )
