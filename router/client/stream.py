"""What the streams of both clients have in common: everything but the waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from router.client.answer import Answer, Choice, ToolCall, read_tokens
from router.client.errors import RouterError
from router.client.exchange import Done, Exchange
from router.client.reply import finished_timing
from router.client.timing import Timing


class StreamState:
    """A streamed answer as far as it has been read: the tokens that iterating gave, and nothing of the rest."""

    def __init__(self, exchange: Exchange, taken: Callable[[Exchange, int], None], *, same_clock: bool) -> None:
        self._exchange = exchange
        self._same_clock = same_clock
        self._answer = Answer()
        self._tokens = read_tokens(exchange, self._answer, taken)

    @property
    def text(self) -> str:
        """The answer's text."""
        return self._answer.choice(0).text

    @property
    def reasoning(self) -> str:
        """What the model thought before, where the host tells it."""
        return self._answer.choice(0).reasoning

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls of tools, put together; whole when the answer has ended."""
        return self._answer.choice(0).tool_calls

    @property
    def finish_reason(self) -> str | None:
        """Why the model ended: ``stop``, ``length``, ``tool_calls``, ..."""
        return self._answer.choice(0).finish_reason

    @property
    def choices(self) -> list[Choice]:
        """All ``n`` answers; the properties above are those of the first."""
        return [self._answer.choices[index] for index in sorted(self._answer.choices)]

    @property
    def request_id(self) -> str:
        """The request's name in records and logs of the router."""
        return self._exchange.id

    @property
    def request_seq(self) -> int | None:
        """Its number in all records of the router; ``None`` until it was accepted."""
        return self._exchange.request_seq

    @property
    def error(self) -> RouterError | None:
        """Why the answer was broken off, if it was; also raised by iterating."""
        return self._exchange.error

    @property
    def host(self) -> str | None:
        """The host that answered; ``None`` until the end."""
        return self._done.host if self._done else None

    @property
    def usage(self) -> dict[str, Any] | None:
        """The host's count of tokens; ``None`` until the end, and for a host that sends none."""
        return self._done.usage if self._done else None

    @property
    def levers(self) -> tuple[str, ...]:
        """What rules of the router changed of the request, in words; empty until the end."""
        return self._done.levers if self._done else ()

    @property
    def timing(self) -> Timing | None:
        """Where the time went; ``None`` until the end."""
        done = self._done
        if done is None:
            return None
        return finished_timing(self._exchange, done, done.usage, same_clock=self._same_clock)

    def _whole_text(self) -> str:
        """Return the text once nothing more is to be read; raises why it is not all of the answer's."""
        exchange = self._exchange
        if exchange.error is not None:
            raise exchange.error
        if self._done is None or self._answer.event_count < exchange.event_count:
            message = "the stream was left before its end"
            raise RouterError(message, code="left", request_id=exchange.id, delivered=exchange.event_count)
        return self.text

    @property
    def _done(self) -> Done | None:
        result = self._exchange.result
        return result if isinstance(result, Done) else None
