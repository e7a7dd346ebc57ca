"""A ZeroMQ client on a bare DEALER socket: it can send any frames, and checks the order of whatever comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from time import monotonic, monotonic_ns
from typing import Any, Self

import msgspec
import zmq

from tests.faults.client import TIMEOUT_S, chat_body

CREDIT_FIRST = 256
CREDIT_MAX = 4096
pack = msgspec.msgpack.encode


@dataclass
class Event:
    """One event of an answer: ``data`` is all of its bytes, blank line included."""

    kind: int
    t_ns: int
    data: bytes


@dataclass
class Message:
    """One message of the router, cut but not interpreted. ``body`` is ``None`` where there was no second frame."""

    type: str
    id: str
    more: list[Any]
    body: bytes | None
    came_ns: int

    @property
    def facts(self) -> dict[str, Any]:
        """The map that stands third in the header."""
        facts: dict[str, Any] = self.more[0]
        return facts

    @property
    def error(self) -> dict[str, Any]:
        """The error object of an ``error``."""
        assert self.type == "error", self
        assert self.body is not None
        assert set(self.facts) == {"status", "retry_after_s", "events"}
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error


@dataclass
class Answer:
    """What has come for one request. Each message is checked against the protocol when it is added."""

    id: str
    request_seq: int = -1
    generation: int = 0
    events: list[Event] = field(default_factory=list)
    message_sizes: list[int] = field(default_factory=list)
    """How many events each message had."""
    end: Message | None = None

    def add(self, message: Message) -> None:
        """Take one message."""
        assert self.end is None, f"{message} comes behind the end of its request"
        if message.type == "accepted":
            assert self.request_seq < 0, "a request is accepted once"
            self.request_seq, self.generation = message.more
        elif message.type == "events":
            self._add_events(message)
        else:
            assert message.type in {"done", "error"}, message
            assert message.facts["events"] == len(self.events), "the end says how many events came"
            self.end = message

    def _add_events(self, message: Message) -> None:
        assert self.request_seq >= 0, "events come behind accepted"
        first_index, marks = message.more
        assert first_index == len(self.events), "no event is lost or repeated"
        assert marks, "a message of no events says nothing"
        assert message.body is not None
        at = 0
        for kind, t_ns, size in marks:
            self.events.append(Event(kind, t_ns, message.body[at : at + size]))
            at += size
        assert at == len(message.body), "the sizes cut the body exactly"
        assert all(a.t_ns <= b.t_ns for a, b in pairwise(self.events[-len(marks) - 1 :])), "times do not run backwards"
        assert self.events[-1].t_ns <= message.came_ns
        self.message_sizes.append(len(marks))

    @property
    def data(self) -> bytes:
        """The bytes of all events."""
        return b"".join(event.data for event in self.events)

    @property
    def kinds(self) -> list[int]:
        """The kind of each event."""
        return [event.kind for event in self.events]

    @property
    def done(self) -> dict[str, Any]:
        """What ``done`` says."""
        assert self.end is not None
        assert self.end.type == "done", self.end
        assert set(self.end.facts) - {"levers", "headers"} == {"status", "host", "events", "usage", "stamps"}
        return self.end.facts

    @property
    def error(self) -> dict[str, Any]:
        """The error object that ended the request."""
        assert self.end is not None
        return self.end.error


class ZeromqClient:
    """A DEALER socket at a router; a context manager. ``high_water`` makes it take in few messages ahead of reading."""

    def __init__(self, endpoint: str, *, high_water: int = 0, routing_id: bytes = b"", ipv6: bool = False) -> None:
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IPV6, int(ipv6))
        if high_water:
            self._socket.setsockopt(zmq.RCVHWM, high_water)
            self._socket.setsockopt(zmq.RCVBUF, 4096)
        else:
            self._socket.setsockopt(zmq.RCVHWM, 0)
        if routing_id:
            self._socket.setsockopt(zmq.ROUTING_ID, routing_id)
        self._socket.connect(endpoint)
        self.answers: dict[str, Answer] = {}
        """By id; a request that takes an id again gets a new one."""
        self.others: list[Message] = []
        """Messages of no request, in the order in which they came."""
        self.alive_ns: list[int] = []
        """When each ``alive`` came."""
        self.granting = False
        """Whether each message's events are granted back as it is read."""

    def watch_losses(self) -> Callable[[], bool]:
        """Return what tells whether its connection has been lost since; ask it from the same thread."""
        monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        return lambda: bool(monitor.poll(0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> int:
        """Close and return when."""
        now_ns = monotonic_ns()
        if not self._socket.closed:  # it may be closed twice
            self._socket.disable_monitor()
            self._socket.close(0)
        return now_ns

    # ------------------------------------------------------------ out
    def send(self, *frames: bytes) -> None:
        """Send frames as they are."""
        self._socket.send_multipart(frames)

    def say(self, verb: str, body: bytes | None = None, **keys: Any) -> None:
        """Send a message of the protocol."""
        header = pack({"v": 1, "verb": verb, **keys})
        self.send(*([header] if body is None else [header, body]))

    def ask(self, request_id: str, body: bytes | dict[str, Any], verb: str = "chat", **keys: Any) -> Answer:
        """Send a request; return where its answer is going to be."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = self.answers[request_id] = Answer(request_id)
        self.say(verb, raw, id=request_id, **keys)
        return answer

    def chat(
        self, request_id: str = "1", model: str = "m", *, keys: dict[str, Any] | None = None, **body: Any
    ) -> Answer:
        """Ask for a chat, streamed because nothing else is said; ``keys`` are further ones of the header."""
        asked = chat_body(model, **body)
        if "stream" not in body:
            del asked["stream"]
        return self.ask(request_id, asked, **(keys or {}))

    def grant(self, *grants: tuple[str, int]) -> None:
        """Give credit back."""
        self.say("credit", grants=grants)

    # ------------------------------------------------------------ in
    def read(self, timeout_s: float = TIMEOUT_S) -> Message:
        """Read one message and put it where it belongs."""
        assert self._socket.poll(round(timeout_s * 1000)), f"nothing came for {timeout_s:g} s"
        message = cut(self._socket.recv_multipart())
        if message.type == "alive":
            assert (message.id, message.more, message.body) == ("", [], None)
            self.alive_ns.append(message.came_ns)
        elif message.id in self.answers and message.type != "pong":
            self.answers[message.id].add(message)
            if self.granting and message.type == "events":
                self.grant((message.id, len(message.more[1])))
        else:
            self.others.append(message)
        return message

    def read_until(self, is_enough: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S) -> None:
        """Read until something is true that what is read changes."""
        until_s = monotonic() + timeout_s
        while not is_enough():
            left_s = until_s - monotonic()
            assert left_s > 0, f"waited {timeout_s:g} s in vain: {what}"
            if self._socket.poll(round(left_s * 1000) + 1):
                self.read()

    def finish(self, *answers: Answer, timeout_s: float = TIMEOUT_S) -> Answer:
        """Read until these answers, without any all of them, have ended; return the first."""
        waited = answers or tuple(self.answers.values())
        self.read_until(lambda: all(answer.end for answer in waited), "the end of the answers", timeout_s)
        return waited[0]

    def wait_events(self, answer: Answer, count: int) -> None:
        """Read until so many events of an answer have come."""
        self.read_until(lambda: len(answer.events) >= count or answer.end, f"{count} events")
        assert len(answer.events) >= count, f"{len(answer.events)} events, and {answer.end}"

    def pause(self, seconds: float) -> None:
        """Read whatever comes for so long."""
        until_s = monotonic() + seconds
        while (left_s := until_s - monotonic()) > 0:
            if self._socket.poll(round(left_s * 1000) + 1):
                self.read()

    def next_other(self) -> Message:
        """Return the next message that belongs to no request."""
        self.read_until(lambda: self.others, "a message of no request")
        return self.others.pop(0)

    def ping(self) -> Message:
        """Ask for a pong and return it: whatever was sent before has then been looked at."""
        self.say("ping", id="ping")
        message = self.next_other()
        assert message.type == "pong", message
        return message

    def has_more(self, timeout_s: float = 0) -> bool:
        """Whether a message is there now, or comes in this time."""
        return bool(self._socket.poll(round(timeout_s * 1000)))


def cut(frames: list[bytes]) -> Message:
    """Cut a message of the router."""
    came_ns = monotonic_ns()
    assert 1 <= len(frames) <= 2, "a message has one or two frames"
    version, kind, request_id, *more = msgspec.msgpack.decode(frames[0])
    assert version == 1
    return Message(kind, request_id, more, frames[1] if len(frames) == 2 else None, came_ns)
