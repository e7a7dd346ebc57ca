"""Answers that come as a whole."""

from __future__ import annotations

import base64
from array import array
from typing import Any

import msgspec

from router.client.errors import ProtocolError
from router.client.session import Done, Exchange
from router.client.timing import Timing, timing


class Reply:
    """A whole answer: ``json`` is the host's object, unchanged."""

    def __init__(self, exchange: Exchange, done: Done, *, same_clock: bool) -> None:
        try:
            self.json: dict[str, Any] = msgspec.json.decode(done.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"the answer is not JSON: {error}", request_id=exchange.id) from None
        self.raw = done.body
        """The same as the host sent it."""
        self.request_id = exchange.id
        self.request_seq = exchange.request_seq
        """The request's number in all records of the router."""
        self.host = done.host
        """The host that answered."""
        self.usage = done.usage or self.json.get("usage")
        self.timing: Timing = finished_timing(exchange, done, self.usage, same_clock=same_clock)

    @property
    def text(self) -> str:
        """The text of the first choice of a chat or completion."""
        choice: dict[str, Any] = next(iter(self.json.get("choices") or ()), {})
        message = choice.get("message")
        return str((message.get("content") if message else choice.get("text")) or "")


class Embeddings(Reply):
    """A reply to ``embeddings``."""

    @property
    def vectors(self) -> list[list[float]]:
        """One vector for each input, in their order; decodes base64 where that was asked for."""
        rows = sorted(self.json["data"], key=lambda row: int(row.get("index", 0)))
        return [_vector(row["embedding"]) for row in rows]


def _vector(value: list[float] | str) -> list[float]:
    if isinstance(value, str):
        return list(array("f", base64.b64decode(value)))
    return value


def finished_timing(
    exchange: Exchange, done: Done, usage: dict[str, Any] | None, *, same_clock: bool, content_count: int = 0
) -> Timing:
    """Return the times of a finished request; without usage, each event with content counts as a token."""
    return timing(
        done.stamps,
        token_count=int((usage or {}).get("completion_tokens") or content_count),
        streamed=exchange.request.streamed,
        same_clock=same_clock,
        asked_ns=exchange.asked_ns,
        first_token=exchange.first_token,
        ended_ns=exchange.ended_ns,
    )
