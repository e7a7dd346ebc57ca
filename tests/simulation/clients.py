"""Scripted clients: what they send, how they read and leave, and what they got."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tests.simulation.network import Peer, Transport
from tests.simulation.scenario import Ask, Client

if TYPE_CHECKING:
    from tests.simulation.virtual_loop import VirtualLoop

MS: Final = 1_000_000
_PATHS: Final = {
    "chat": "/v1/chat/completions",
    "completion": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "responses": "/v1/responses",
    "unknown_model": "/v1/chat/completions",
    "broken": "/v1/chat/completions",
}
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder().decode


def message(ask: Ask) -> bytes:
    """Return a request as its bytes."""
    version = f"HTTP/1.{ask.minor}"
    more = "".join(f"{name}: {value}\r\n" for name, value in ask.headers.items())
    if ask.endpoint == "models":
        return f"GET /v1/models {version}\r\nhost: r\r\nx-request-id: {ask.id}\r\n{more}\r\n".encode()
    body: dict[str, Any] = {"model": "nobody" if ask.endpoint == "unknown_model" else ask.model, "ask": ask.id}
    if ask.stream:
        body["stream"] = True
    if ask.max_tokens:
        body["max_tokens"] = ask.max_tokens
    if ask.session:
        body["metadata"] = {"session_id": ask.session}
    text = "x" * ask.body_bytes
    if ask.endpoint in {"completion", "responses", "embeddings"}:
        body["prompt" if ask.endpoint == "completion" else "input"] = text
    else:
        body["messages"] = [{"role": "user", "content": text}]
    raw = b"{broken" if ask.endpoint == "broken" else _encode(body)
    head = f"POST {_PATHS[ask.endpoint]} {version}\r\nhost: r\r\nx-request-id: {ask.id}\r\n{more}"
    return f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw


class Answer:
    """What a client got for one request, read piece by piece."""

    def __init__(self, ask: Ask, sent_ns: int) -> None:
        self.ask = ask
        self.sent_ns = sent_ns
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.is_begun = False
        """A byte of it has come."""
        self.is_whole = False
        """It is framed to its end."""
        self.is_left = False
        """The client has left."""
        self.was_reset = False
        """The router has dropped the connection, with what was not read."""
        self.is_refused = False
        """There was no router any more to ask."""
        self.is_behind = False
        """It was asked for before another one was answered."""
        self.first_ns = 0
        """When the first token came."""
        self.ended_ns = 0
        self.events: list[dict[str, Any]] = []
        self.is_done = False
        """``[DONE]`` has come."""
        self.error = ""
        """The code of an error event in a stream."""
        self._left = -1
        self._unframed = b""
        self._text = b""

    @property
    def is_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    def feed(self, data: bytes, now_ns: int) -> bytes:
        """Take bytes; return what is behind the answer."""
        self._unframed += data
        self.is_begun = True
        while not self.headers:
            head, end, rest = self._unframed.partition(b"\r\n\r\n")
            if not end:
                return b""
            self._unframed = rest
            self._take_head(head)
        if self.headers.get("transfer-encoding") == "chunked":
            self._take_chunks(now_ns)
        elif "content-length" in self.headers:
            missing = int(self.headers["content-length"]) - len(self.body)
            self.body += self._unframed[:missing]
            self._unframed = self._unframed[missing:]
            self._finish(now_ns, is_whole=len(self.body) == int(self.headers["content-length"]))
        else:
            self._payload(self._unframed, now_ns)
            self._unframed = b""
            return b""
        return self._unframed if self.is_whole else b""

    def _take_head(self, head: bytes) -> None:
        lines = head.decode().split("\r\n")
        self.status = int(lines[0].split(" ")[1])
        if self.status < 200:
            return
        for line in lines[1:]:
            name, _, value = line.partition(": ")
            assert name not in self.headers, f"header {name} stands twice"
            self.headers[name] = value
        self.headers.setdefault("content-type", "")

    def _take_chunks(self, now_ns: int) -> None:
        while not self.is_whole:
            if self._left < 0:
                line, end, rest = self._unframed.partition(b"\r\n")
                if not end:
                    return
                self._left, self._unframed = int(line, 16), rest
            if len(self._unframed) < self._left + 2:
                return
            payload, crlf = self._unframed[: self._left], self._unframed[self._left : self._left + 2]
            assert crlf == b"\r\n", f"a chunk ends in {crlf!r}"
            self._unframed = self._unframed[self._left + 2 :]
            if self._left:
                self._payload(payload, now_ns)
            else:
                self._finish(now_ns, is_whole=True)
            self._left = -1

    def _payload(self, data: bytes, now_ns: int) -> None:
        self.body += data
        if not self.is_stream:
            return
        self._text += data
        while b"\n\n" in self._text:
            event, _, self._text = self._text.partition(b"\n\n")
            self._take_event(event, now_ns)

    def _take_event(self, event: bytes, now_ns: int) -> None:
        for line in event.split(b"\n"):
            if not line.startswith(b"data: "):
                continue
            if line == b"data: [DONE]":
                self.is_done = True
                continue
            try:
                decoded = _decode(line[6:])
            except msgspec.DecodeError:
                decoded = {"broken": True}
            if "error" in decoded:
                self.error = str(decoded["error"].get("code"))
            else:
                self.events.append(decoded)
                if not self.first_ns and _text_of(decoded):
                    self.first_ns = now_ns

    def close(self, now_ns: int, *, in_order: bool) -> None:
        """The connection has ended."""
        framed = "content-length" in self.headers or "transfer-encoding" in self.headers
        self._finish(now_ns, is_whole=bool(self.headers) and not framed and in_order)

    def _finish(self, now_ns: int, *, is_whole: bool) -> None:
        self.is_whole = self.is_whole or is_whole
        if is_whole and not self.first_ns:
            self.first_ns = now_ns
        self.ended_ns = now_ns

    @property
    def token_count(self) -> int:
        return sum(1 for event in self.events if _text_of(event))

    @property
    def text(self) -> str:
        """All text of a stream."""
        return "".join(_text_of(event) for event in self.events)

    @property
    def finish_count(self) -> int:
        """How many choices have ended in order."""
        choices = [choice for event in self.events for choice in event.get("choices", ())]
        return sum(1 for choice in choices if choice.get("finish_reason"))


def _text_of(event: dict[str, Any]) -> str:
    choices = event.get("choices")
    if not choices:
        return ""
    return str(choices[0].get("text") or choices[0].get("delta", {}).get("content") or "")


Connect = Callable[["ClientPeer"], Transport | None]
Leaving = Callable[[Transport], Callable[[], None]]
"""Called before the router learns that a client has left; returns what is to be called in the same callback after."""


class SimClient:
    """A user: asks one thing after the other, on one connection as long as it lives."""

    def __init__(self, plan: Client, loop: VirtualLoop, connect: Connect, leaving: Leaving) -> None:
        self.plan = plan
        self.loop = loop
        self.answers: list[Answer] = []
        self.is_done = not plan.asks
        self.leaving = leaving
        self._connect = connect
        self._waiting = list(plan.asks)
        self._peer: ClientPeer | None = None

    def start(self, begin_ns: int) -> None:
        """Begin at the time in the plan."""
        self.loop.at(begin_ns + int(self.plan.at_ms * MS), self.next)

    def next(self) -> None:
        """Ask the next thing, or all that is left if this client does not wait for answers."""
        if not self._waiting:
            self.is_done = True
            if self._peer is not None:
                self._peer.finish()
            return
        if self._peer is None:
            peer = ClientPeer(self)
            if self._connect(peer) is None:
                for ask in self._waiting:
                    answer = Answer(ask, self.loop.clock.now_ns)
                    answer.is_refused = True
                    self.answers.append(answer)
                self._waiting.clear()
                self.is_done = True
                return
            self._peer = peer
        batch, self._waiting = (self._waiting, []) if self.plan.pipelined else (self._waiting[:1], self._waiting[1:])
        for ask in batch:
            self._peer.ask(ask)

    def answered(self, ask: Ask | None) -> None:
        """Go on behind an answer."""
        pause_ms = self._waiting[0].pause_ms if self._waiting else 0.0
        self.loop.at(self.loop.clock.now_ns + int(pause_ms * MS), self.next)

    def disconnected(self, peer: ClientPeer) -> None:
        """The connection is gone."""
        if self._peer is peer:
            self._peer = None

    def reported(self, answer: Answer) -> None:
        """Keep what came of a request."""
        self.answers.append(answer)


class ClientPeer(Peer):
    """One connection of a client."""

    def __init__(self, client: SimClient) -> None:
        pace = client.plan.pace
        super().__init__(client.loop, client.plan.name, (pace[0], int(pace[1] * MS)) if pace else None)
        self.client = client
        self._open: list[Answer] = []
        self._sent_ns = 0
        self._is_stuck = False
        self._check: Callable[[], None] = lambda: None

    # ------------------------------------------------------------ asking
    def ask(self, ask: Ask) -> None:
        """Send a request, in as many pieces as it says."""
        now = self.loop.clock.now_ns
        answer = Answer(ask, now)
        answer.is_behind = bool(self._open)
        self._open.append(answer)
        data = message(ask)
        size = max(len(data) // ask.pieces, 1)
        pieces = [data[i * size : (i + 1) * size] for i in range(ask.pieces - 1)] + [data[(ask.pieces - 1) * size :]]
        if self._is_stuck:
            pieces.clear()  # it would be taken for the rest of the one before
        elif ask.stuck:
            self._is_stuck = True
            pieces.pop()
        for index, piece in enumerate(pieces):
            self._sent_ns = max(self._sent_ns, now + index * 5 * MS)  # behind what was asked before
            self.loop.at(self._sent_ns, self.send, piece)
        leave = ask.leave
        if leave is not None and leave.when == "begun":
            self._leave_in(leave.after_ms, answer)
        elif leave is not None and leave.when == "sent":
            self._leave_in(leave.after_ms + (len(pieces) - 1) * 5, answer)

    def _leave_in(self, after_ms: float, answer: Answer) -> None:
        if not answer.is_left:
            answer.is_left = True
            self.loop.at(self.loop.clock.now_ns + int(after_ms * MS), self._leave, answer)

    def _leave(self, answer: Answer) -> None:
        if self.has_ended or answer not in self._open:
            return  # the answer was faster
        for other in self._open:
            other.is_left = True
        leave = answer.ask.leave
        if leave is not None and leave.reset:
            self.reset()
        else:
            self.finish()
        self._over()

    # ------------------------------------------------------------ being answered
    def received(self, data: bytes) -> None:
        while data and self._open:
            answer = self._open[0]
            try:
                data = answer.feed(data, self.loop.clock.now_ns)
            except (ValueError, AssertionError, IndexError) as error:
                raise AssertionError(f"the answer to {answer.ask.id} is no HTTP: {error}") from None
            self._look(answer)
            if not answer.is_whole:
                return
            self._open.pop(0)
            answer.is_left = False
            self.client.reported(answer)
            if answer.headers.get("connection") == "close":
                self._over_soon()
                return
            if not self._open:
                self.client.answered(answer.ask)
        if data:
            raise AssertionError(f"{self.name} got {data[:80]!r} without having asked")

    def _look(self, answer: Answer) -> None:
        leave = answer.ask.leave
        if leave is None or answer.is_left or answer.is_whole:
            return
        if (leave.when == "head" and answer.headers) or (leave.when == "token" and answer.token_count >= leave.n):
            self._leave_in(leave.after_ms, answer)

    def _over_soon(self) -> None:
        """The router closes behind this answer; what was sent ahead is for nobody."""
        self.finish()
        self._over()

    def closed(self) -> None:
        self.finish()
        self._over()

    def _over(self) -> None:
        now = self.loop.clock.now_ns
        rest, self._open = self._open, []
        for answer in rest:
            answer.was_reset = self.was_reset
            answer.close(now, in_order=not self.was_reset)
            self.client.reported(answer)
        self.client.disconnected(self)
        self.client.answered(None)

    def end_coming(self, transport: Transport) -> None:
        self._check = self.client.leaving(transport)

    def end_seen(self, transport: Transport) -> None:
        self._check()
