"""A streamed answer in the making: events of the host in, tokens out, and what they add up to; pure."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Final

import msgspec

from router.client.exchange import Exchange
from router.client.protocol import KINDS, Kind

_TAKEN_MAX: Final = 64
"""Events read of one message before they count as taken: a message may have as many as the stream's whole credit."""


class Token(msgspec.Struct, gc=False, frozen=True):
    """One event of the host. An event that adds to several choices, or in several kinds, gives one token for each."""

    text: str
    """What it adds: text, reasoning, or a piece of a tool call's arguments; empty for the other kinds."""
    kind: Kind
    choice: int
    """Which of the ``n`` answers it belongs to."""
    index: int
    """Its number among the events of this request, from 0."""
    t_ns: int
    """When the router read it from the host, nanoseconds of ``CLOCK_MONOTONIC`` of the router's machine."""
    received_ns: int
    """When this client read it."""
    raw: bytes
    """The host's server-sent event, whole and unchanged: log probabilities and vendor fields are here."""

    @property
    def transport_ns(self) -> int:
        """The way from router to client; only where both have the same clock."""
        return self.received_ns - self.t_ns

    def json(self) -> Any:
        """Decode the event's data; raises :class:`ValueError` where it is not JSON."""
        return msgspec.json.decode(event_data(self.raw))


class ToolCall(msgspec.Struct):
    """A call of a tool, put together of its pieces."""

    id: str = ""
    name: str = ""
    arguments: str = ""
    """JSON as the model wrote it, which may be broken; whole when the answer has ended."""


class Choice:
    """One of the ``n`` answers to a request, as far as it has been read."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self._tool_calls: dict[int, ToolCall] = {}
        self._pieces: dict[Kind, list[str]] = {}

    @property
    def text(self) -> str:
        """The answer itself."""
        return self._joined("text")

    @property
    def reasoning(self) -> str:
        """What the model thought before, where the host tells it."""
        return self._joined("reasoning")

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls of tools, in the model's order."""
        return [self._tool_calls[index] for index in sorted(self._tool_calls)]

    def add(self, kind: Kind, text: str) -> None:
        """Add a piece of text or reasoning."""
        self._pieces.setdefault(kind, []).append(text)

    def add_tool_call(self, piece: _ToolCallPiece) -> str:
        """Add a piece of a tool call and return what it adds to the arguments."""
        call = self._tool_calls.setdefault(piece.index, ToolCall())
        call.id = piece.id or call.id
        added = ""
        if piece.function is not None:
            call.name += piece.function.name or ""
            added = piece.function.arguments or ""
            call.arguments += added
        return added

    def _joined(self, kind: Kind) -> str:
        """Join the pieces; once joined they are kept as one, so that asking after each token stays cheap."""
        pieces = self._pieces.get(kind)
        if pieces is None:
            return ""
        if len(pieces) > 1:
            pieces[:] = ["".join(pieces)]
        return pieces[0]


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolCallPiece(msgspec.Struct, gc=False):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCallPiece] | None = None


class _Piece(msgspec.Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct, gc=False):
    choices: list[_Piece] | None = None


_decode: Final = msgspec.json.Decoder(_Event).decode
_Part = tuple[int, Kind, str]


class Answer:
    """What the events of one request add up to, by choice."""

    def __init__(self) -> None:
        self.choices: dict[int, Choice] = {}
        self.event_count = 0

    def choice(self, index: int) -> Choice:
        """Return a choice, an empty one if nothing of it has come."""
        found = self.choices.get(index)
        if found is None:
            found = self.choices[index] = Choice()
        return found

    def add(self, code: int, raw: bytes) -> list[_Part]:
        """Add one event; return choice, kind and text of each part, at least one. What cannot be read adds nothing."""
        self.event_count += 1
        kind: Kind = KINDS.get(code, "other")
        try:
            pieces = _decode(event_data(raw)).choices
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pieces = None
        if pieces:
            parts = [part for piece in pieces for part in self._parts(piece)]
            if parts:
                return parts
            return [(pieces[0].index, kind, "")]
        return [(0, kind, "")]

    def _parts(self, piece: _Piece) -> list[_Part]:
        index, delta = piece.index, piece.delta
        choice = self.choices.get(index) or self.choice(index)
        if piece.finish_reason:
            choice.finish_reason = piece.finish_reason
        parts: list[_Part] = []
        if delta is None:
            if piece.text:
                choice.add("text", piece.text)
                parts.append((index, "text", piece.text))
            return parts
        if thought := delta.reasoning_content or delta.reasoning:
            choice.add("reasoning", thought)
            parts.append((index, "reasoning", thought))
        if text := delta.content or delta.refusal:
            choice.add("text", text)
            parts.append((index, "text", text))
        if delta.tool_calls:
            added = "".join([choice.add_tool_call(call) for call in delta.tool_calls])
            parts.append((index, "tool_call", added))
        return parts


def event_data(raw: bytes) -> bytes:
    """Return the data of a server-sent event: what stands behind ``data:``, of several lines joined."""
    if raw.startswith(b"data: {") and raw.find(b"\n") >= len(raw) - 2:
        return raw[6:]
    lines = raw.splitlines()
    return b"\n".join([line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")])


def read_tokens(
    exchange: Exchange, answer: Answer, taken: Callable[[Exchange, int], None]
) -> Generator[Token | None, None, None]:
    """Yield the tokens of a request and ``None`` whenever there is none yet; never ends by itself.

    ``taken`` is called with the number of events that have been read since.
    """
    inbox, add = exchange.inbox, answer.add
    index = 0
    while True:
        if not inbox:
            yield None
            continue
        events, body, received_ns = inbox.popleft()
        at, count = 0, 0
        for code, t_ns, size in events:
            raw = body[at : at + size]
            at += size
            for choice, kind, text in add(code, raw):
                yield Token(text, kind, choice, index, t_ns, received_ns, raw)
            index += 1
            count += 1
            if count == _TAKEN_MAX:
                taken(exchange, count)
                count = 0
        if count:
            taken(exchange, count)
